// dX = 2 (diag(V 1) - V) X for one panel of rows.
#pragma once

#include "cpu/rkd_panels.h"

namespace kdx {
namespace KDX_ISA {

// `v` is [columns][kEdge]: V of the panel's kEdge rows against `columns` points, the points leading. `x` are the row
// packings of those points (first_column) and of the panel itself (first_row), `all_rows` points each. out[row][D] gets
// 2 (sum_j v_ij x_i - sum_j v_ij x_j), added when `accumulate`.
template <class T>
void laplacian_times(const T* v, int64_t columns, const T* x, int64_t all_rows, int64_t first_column, int64_t first_row,
                     int64_t rows, int64_t depth, bool accumulate, T* out) {
  using V = Lanes<T>;
  constexpr int E = kEdge<T>, W = kLanes<T>, kRows = 4;
  constexpr int64_t kBlock = 128;
  double degree[E] = {};
  for (int64_t j = 0; j < columns; ++j) {
    for (int i = 0; i < E; ++i) degree[i] += static_cast<double>(v[j * E + i]);
  }
  for (int64_t g = 0; g < ceil_div(depth, E); ++g) {
    const T* xg = x + g * all_rows * E;
    T sum[E * E] = {};
    for (int64_t j0 = 0; j0 < columns; j0 += kBlock) {
      const int64_t j1 = j0 + kBlock < columns ? j0 + kBlock : columns;
      for (int i = 0; i < E; i += kRows) {
        V acc[kRows][2] = {};
        for (int64_t j = j0; j < j1; ++j) {
          const T* xj = xg + (first_column + j) * E;
          const V x0 = load(xj), x1 = load(xj + W);
#pragma GCC unroll 4
          for (int r = 0; r < kRows; ++r) {
            const V w = spread(v[j * E + i + r]);
            acc[r][0] += w * x0;
            acc[r][1] += w * x1;
          }
        }
        for (int r = 0; r < kRows; ++r) {
          T* to = sum + (i + r) * E;
          store(to, load(to) + acc[r][0]);
          store(to + W, load(to + W) + acc[r][1]);
        }
      }
    }
    const int64_t width = depth - g * E < E ? depth - g * E : E;
    for (int64_t i = 0; i < rows; ++i) {
      const T* xi = xg + (first_row + i) * E;
      T* to = out + i * depth + g * E;
      for (int64_t c = 0; c < width; ++c) {
        const T value = T(2) * (static_cast<T>(degree[i]) * xi[c] - sum[i * E + c]);
        to[c] = accumulate ? to[c] + value : value;
      }
    }
  }
}

}  // namespace KDX_ISA
}  // namespace kdx
