#include <pybind11/pybind11.h>

#include <stdexcept>

#include "kdx/softmax_kl.h"

namespace py = pybind11;

namespace {

void* address(uintptr_t a) { return reinterpret_cast<void*>(a); }

void check(const char* error) {
  if (error) throw std::runtime_error(error);
}

void softmax_kl(uintptr_t student, int64_t s_o, int64_t s_c, int64_t s_i, uintptr_t teacher, int64_t t_o, int64_t t_c,
                int64_t t_i, uintptr_t grad, int64_t g_o, int64_t g_c, int64_t g_i, uintptr_t loss, uintptr_t kl_rows,
                uintptr_t labels, uintptr_t ce_rows, int64_t O, int64_t C, int64_t I, double temperature, double beta,
                double kl_scale, double ce_scale, int dtype, int divergence, bool reduce, int threads,
                const py::args& ce_losses) {
  kdx::SoftmaxKl call{{address(student), s_o, s_c, s_i},
                      {address(teacher), t_o, t_c, t_i},
                      {address(grad), g_o, g_c, g_i},
                      address(loss),
                      address(kl_rows),
                      static_cast<const int64_t*>(address(labels)),
                      address(ce_rows),
                      O,
                      C,
                      I,
                      temperature,
                      beta,
                      kl_scale,
                      ce_scale,
                      dtype,
                      divergence,
                      reduce};
  if (!ce_losses.empty()) call.ce_losses = address(ce_losses[0].cast<uintptr_t>());
  py::gil_scoped_release nogil;
  check(kdx::softmax_kl_cpu(call, threads));
}

void scale_grad(uintptr_t grad, uintptr_t upstream, uintptr_t out, int64_t n, int dtype, int threads) {
  py::gil_scoped_release nogil;
  check(kdx::scale_grad_cpu({address(grad), address(upstream), address(out), n, dtype}, threads));
}

}  // namespace

void bind_softmax_kl(py::module_& m) {
  m.attr("divergences") = int(kdx::kSkewReverse) + 1;  // how many there are
  m.attr("terms_apart") = true;
  m.def("softmax_kl", &softmax_kl, "Row losses or their sum, and the gradient; see csrc/include/kdx/softmax_kl.h.");
  m.def("scale_grad", &scale_grad, "out = grad * upstream[0] over n dense elements.");
}
