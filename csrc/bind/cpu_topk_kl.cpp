#include <pybind11/pybind11.h>

#include <stdexcept>

#include "kdx/topk_kl.h"

namespace py = pybind11;

namespace {

void* address(uintptr_t a) { return reinterpret_cast<void*>(a); }

int64_t topk_kl(uintptr_t student, int64_t student_row, uintptr_t ids, uintptr_t known, uintptr_t kl_rows,
                uintptr_t labels, uintptr_t ce_rows, uintptr_t grad, uintptr_t loss, int64_t N, int64_t K, int64_t C,
                double temperature, double beta, double kl_scale, double ce_scale, int dtype, int divergence, int tail,
                int threads) {
  const kdx::TopkKl call{address(student),
                         student_row,
                         static_cast<const int64_t*>(address(ids)),
                         address(known),
                         address(kl_rows),
                         static_cast<const int64_t*>(address(labels)),
                         address(ce_rows),
                         address(grad),
                         address(loss),
                         N,
                         K,
                         C,
                         temperature,
                         beta,
                         kl_scale,
                         ce_scale,
                         dtype,
                         divergence,
                         tail};
  py::gil_scoped_release nogil;
  int64_t twice = -1;
  if (const char* error = kdx::topk_kl_cpu(call, threads, &twice)) throw std::runtime_error(error);
  return twice;
}

}  // namespace

void bind_topk_kl(py::module_& m) {
  m.def("topk_kl", &topk_kl, "Row losses and the gradient; a row that lists a class twice, or -1.");
}
