#include <pybind11/pybind11.h>

#include <stdexcept>

#include "kdx/rkd.h"

namespace py = pybind11;

namespace {

void* address(uintptr_t a) { return reinterpret_cast<void*>(a); }

void check(const char* error) {
  if (error) throw std::runtime_error(error);
}

void rkd(uintptr_t student, int s_dtype, int64_t s_columns, int64_t s_row, int64_t s_column, uintptr_t teacher,
         int t_dtype, int64_t t_columns, int64_t t_row, int64_t t_column, int64_t rows, int compute,
         double distance_weight, double angle_weight, double delta, uintptr_t loss, uintptr_t grad, int64_t block,
         int threads) {
  const kdx::Rkd call{{address(student), s_dtype, s_columns, s_row, s_column},
                      {address(teacher), t_dtype, t_columns, t_row, t_column},
                      rows,
                      compute,
                      distance_weight,
                      angle_weight,
                      delta,
                      address(loss),
                      address(grad),
                      block};
  py::gil_scoped_release nogil;
  check(kdx::rkd_cpu(call, threads));
}

void pairwise_sq_dist(uintptr_t x, int x_dtype, int64_t x_row, int64_t x_column, uintptr_t y, int y_dtype,
                      int64_t y_row, int64_t y_column, int64_t rows, int64_t other, int64_t columns, int compute,
                      uintptr_t out, int threads) {
  const kdx::PairwiseSqDist call{{address(x), x_dtype, columns, x_row, x_column},
                                 {address(y), y_dtype, columns, y_row, y_column},
                                 rows,
                                 other,
                                 compute,
                                 address(out)};
  py::gil_scoped_release nogil;
  check(kdx::pairwise_sq_dist_cpu(call, threads));
}

}  // namespace

void bind_rkd(py::module_& m) {
  m.def("rkd", &rkd, "The relational losses and the student's gradient; see csrc/include/kdx/rkd.h.");
  m.def("pairwise_sq_dist", &pairwise_sq_dist, "Squared distances of two sets of points; see csrc/include/kdx/rkd.h.");
}
