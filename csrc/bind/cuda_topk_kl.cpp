#include <pybind11/pybind11.h>

#include <stdexcept>
#include <tuple>

#include "kdx/topk_kl.h"

namespace py = pybind11;

namespace {

void* address(uintptr_t a) { return reinterpret_cast<void*>(a); }

void check(const char* error) {
  if (error) throw std::runtime_error(error);
}

}  // namespace

void bind_topk_kl(py::module_& m) {
  py::class_<kdx::TopkSums>(m, "TopkSums", "A first sweep of topk_kl; see csrc/include/kdx/topk_kl.h.")
      .def(py::init([](uintptr_t student, int64_t student_row, uintptr_t ids, uintptr_t counts, uintptr_t few,
                       uintptr_t total_1, std::tuple<int64_t, int64_t, int64_t> shape, double temperature, int dtype,
                       bool without) {
        return kdx::TopkSums{address(student),
                             student_row,
                             static_cast<const int64_t*>(address(ids)),
                             static_cast<const uint8_t*>(address(counts)),
                             address(few),
                             address(total_1),
                             std::get<0>(shape),
                             std::get<1>(shape),
                             std::get<2>(shape),
                             temperature,
                             dtype,
                             without};
      }));
  m.def(
      "topk_kl_sums",
      [](const kdx::TopkSums& call, uintptr_t stream) {
        py::gil_scoped_release nogil;
        check(kdx::topk_kl_sums_cuda(call, address(stream)));
      },
      "The logits of the listed classes and the logsumexp of the rest of each row.");
  m.def(
      "topk_kl_gradient",
      [](const kdx::TopkSums& sums, uintptr_t grad, uintptr_t add, uintptr_t rest, uintptr_t total, uintptr_t ce,
         uintptr_t total_1, uintptr_t labels, uintptr_t stream) {
        const kdx::TopkGradient call{
            sums,           address(grad), address(add),     address(rest),
            address(total), address(ce),   address(total_1), static_cast<const int64_t*>(address(labels))};
        py::gil_scoped_release nogil;
        check(kdx::topk_kl_gradient_cuda(call, address(stream)));
      },
      "The gradient of each row.");
}
