#include <pybind11/pybind11.h>

#include <stdexcept>
#include <tuple>

#include "kdx/softmax_kl.h"

namespace py = pybind11;

namespace {

using Strided = std::tuple<uintptr_t, int64_t, int64_t, int64_t>;  // address, strides of O, C, I in elements

void* address(uintptr_t a) { return reinterpret_cast<void*>(a); }

kdx::View view(const Strided& v) { return {address(std::get<0>(v)), std::get<1>(v), std::get<2>(v), std::get<3>(v)}; }

void check(const char* error) {
  if (error) throw std::runtime_error(error);
}

}  // namespace

void bind_softmax_kl(py::module_& m) {
  m.attr("divergences") = int(kdx::kSkewReverse) + 1;  // how many there are
  m.attr("terms_apart") = true;
  py::class_<kdx::SoftmaxKl>(m, "SoftmaxKl", "One call of softmax_kl; see csrc/include/kdx/softmax_kl.h.")
      .def(py::init([](const Strided& student, const Strided& teacher, const Strided& grad, uintptr_t loss,
                       uintptr_t kl_rows, uintptr_t labels, uintptr_t ce_rows,
                       std::tuple<int64_t, int64_t, int64_t> shape, double temperature, double beta, double kl_scale,
                       double ce_scale, int dtype, int divergence, bool reduce) {
        return kdx::SoftmaxKl{view(student),
                              view(teacher),
                              view(grad),
                              address(loss),
                              address(kl_rows),
                              static_cast<const int64_t*>(address(labels)),
                              address(ce_rows),
                              std::get<0>(shape),
                              std::get<1>(shape),
                              std::get<2>(shape),
                              temperature,
                              beta,
                              kl_scale,
                              ce_scale,
                              dtype,
                              divergence,
                              reduce};
      }))
      .def_property(
          "ce_losses", [](const kdx::SoftmaxKl& call) { return reinterpret_cast<uintptr_t>(call.ce_losses); },
          [](kdx::SoftmaxKl& call, uintptr_t losses) { call.ce_losses = address(losses); })
      .def("workspace_bytes", &kdx::softmax_kl_cuda_workspace);
  m.def(
      "softmax_kl",
      [](const kdx::SoftmaxKl& call, uintptr_t workspace, int64_t bytes, uintptr_t stream) {
        py::gil_scoped_release nogil;
        check(kdx::softmax_kl_cuda(call, address(workspace), bytes, address(stream)));
      },
      "Row losses or their sum, and the gradient, in one launch.");
  m.def(
      "scale_grad",
      [](uintptr_t grad, uintptr_t upstream, uintptr_t out, int64_t n, int dtype, uintptr_t stream) {
        py::gil_scoped_release nogil;
        check(kdx::scale_grad_cuda({address(grad), address(upstream), address(out), n, dtype}, address(stream)));
      },
      "out = grad * upstream[0] over n dense elements.");
}
