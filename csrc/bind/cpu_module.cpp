// kdx_ext._cpu: the CPU kernels behind plain integers and floats; tensors come as addresses, so no torch header is
// needed.
#include <pybind11/pybind11.h>

#include "cpu/isa.h"

namespace py = pybind11;

void bind_rkd(py::module_& m);
void bind_softmax_kl(py::module_& m);
void bind_topk_kl(py::module_& m);

PYBIND11_MODULE(_cpu, m) {
  m.def("isa", [] { return kdx::isa_name(kdx::isa()); }, "The instruction set in use: base, avx2, avx512 or amx.");
  m.attr("compiler") = KDX_COMPILER;
#if defined(_OPENMP)
  m.attr("openmp") = _OPENMP;
#else
  m.attr("openmp") = 0;
#endif
  bind_rkd(m);
  bind_softmax_kl(m);
  bind_topk_kl(m);
}
