// kdx_ext._cuda: the CUDA launchers behind plain integers and floats; tensors come as addresses, so no torch header is
// needed.
#include <pybind11/pybind11.h>

namespace py = pybind11;

void bind_rkd(py::module_& m);
void bind_softmax_kl(py::module_& m);
void bind_topk_kl(py::module_& m);

PYBIND11_MODULE(_cuda, m) {
#ifdef KDX_EMULATE
  m.attr("emulated") = true;
#else
  m.attr("emulated") = false;
#endif
  bind_rkd(m);
  bind_softmax_kl(m);
  bind_topk_kl(m);
}
