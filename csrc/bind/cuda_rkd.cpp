#include <pybind11/pybind11.h>

#include <stdexcept>
#include <tuple>

#include "kdx/rkd.h"

namespace py = pybind11;

namespace {

template <class T = float>
T* address(uintptr_t a) {
  return reinterpret_cast<T*>(a);
}

void check(const char* error) {
  if (error) throw std::runtime_error(error);
}

// A set of points arrives as (address, dtype, columns, row stride, column stride), a block as
// (points, i0, ni, j0, nj, symmetric).
using Points = std::tuple<uintptr_t, int, int64_t, int64_t, int64_t>;
using Block = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, bool>;

kdx::RkdInput points(const Points& p) {
  return {address<void>(std::get<0>(p)), std::get<1>(p), std::get<2>(p), std::get<3>(p), std::get<4>(p)};
}

kdx::RkdBlock block(const Block& b) {
  return {std::get<0>(b), std::get<1>(b), std::get<2>(b), std::get<3>(b), std::get<4>(b), std::get<5>(b)};
}

void measure(const Points& student, const Points& teacher, const Block& at, uintptr_t s, uintptr_t t, uintptr_t sums,
             uintptr_t stream) {
  check(kdx::rkd_measure_cuda({points(student), points(teacher), block(at), address(s), address(t), address(sums)},
                              address<void>(stream)));
}

void distance(uintptr_t s, uintptr_t t, int64_t size, uintptr_t s_means, uintptr_t t_means, int64_t counts, float delta,
              uintptr_t out, uintptr_t stream) {
  check(kdx::rkd_distance_cuda(
      {address(s), address(t), size, address(s_means), address(t_means), counts, delta, address(out)},
      address<void>(stream)));
}

void angle(uintptr_t s_i, uintptr_t t_i, uintptr_t s_j, uintptr_t t_j, const Block& at, float delta, float scale,
           uintptr_t v, uintptr_t losses, uintptr_t stream) {
  check(kdx::rkd_angle_cuda(
      {address(s_i), address(t_i), address(s_j), address(t_j), block(at), delta, scale, address(v), address(losses)},
      address<void>(stream)));
}

void gradient(const Points& x, const Block& at, uintptr_t s, uintptr_t t, uintptr_t v, int64_t row_stride,
              int64_t column_stride, uintptr_t s_means, uintptr_t t_means, int64_t counts, uintptr_t sums,
              int64_t sum_count, uintptr_t losses, int64_t loss_count, float delta, float pairs, float distance_weight,
              float scale, uintptr_t out, bool accumulate, uintptr_t loss, uintptr_t stream) {
  check(kdx::rkd_gradient_cuda({points(x),        block(at),  address(s),    address(t),
                                address(v),       row_stride, column_stride, address(s_means),
                                address(t_means), counts,     address(sums), sum_count,
                                address(losses),  loss_count, delta,         pairs,
                                distance_weight,  scale,      address(out),  accumulate,
                                address(loss)},
                               address<void>(stream)));
}

void pairwise_sq_dist(const Points& x, int64_t rows, const Points& y, int64_t other, uintptr_t out, uintptr_t stream) {
  check(kdx::pairwise_sq_dist_cuda({points(x), points(y), rows, other, kdx::kFloat32, address<void>(out)},
                                   address<void>(stream)));
}

}  // namespace

void bind_rkd(py::module_& m) {
  m.def("rkd_measure_programs", [](const Block& at) { return kdx::rkd_measure_programs(block(at)); });
  m.def("rkd_distance_programs", &kdx::rkd_distance_programs);
  m.def("rkd_angle_programs", [](const Block& at) { return kdx::rkd_angle_programs(block(at)); });
  m.def("rkd_measure", &measure, "See csrc/include/kdx/rkd.h for this and the following.");
  m.def("rkd_distance", &distance);
  m.def("rkd_angle", &angle);
  m.def("rkd_gradient", &gradient);
  m.def("pairwise_sq_dist", &pairwise_sq_dist);
}
