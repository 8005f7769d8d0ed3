// dX = 2 (diag(V 1) - V) X by panels of rows and groups of coordinates.
#pragma once

#include "cpu/rkd_square.h"

namespace kdx {
namespace KDX_ISA {

// A tile of V [kEdge][kEdge] as it is stored, or its transpose.
template <class T>
struct VTile {
  const T* data;
  bool turned;
};

// sum_j v_ij over the tiles of a panel of rows.
template <class T>
void degrees(const VTile<T>* v, int64_t tiles, double* out) {
  constexpr int E = kEdge<T>;
  double sum[E] = {};
  for (int64_t t = 0; t < tiles; ++t) {
    alignas(64) T turned[kTile<T>];
    if (!v[t].turned) transpose_tile(v[t].data, turned);
    const T* columns = v[t].turned ? v[t].data : turned;
    for (int j = 0; j < E; ++j) {
      for (int i = 0; i < E; ++i) sum[i] += static_cast<double>(columns[j * E + i]);
    }
  }
  std::memcpy(out, sum, sizeof(sum));
}

// Adds kBlockRows rows i of a tile times the coordinates of its kEdge points.
template <bool kTurned, class T>
inline __attribute__((always_inline)) void add_products(const T* tile, int i, const T* x,
                                                        Lanes<T> (&acc)[kBlockRows][2]) {
  constexpr int E = kEdge<T>, W = kLanes<T>;
  const T* v = tile + i * (kTurned ? 1 : E);
  for (int j = 0; j < E; ++j) {
    const Lanes<T> x0 = load(x + j * E), x1 = load(x + j * E + W);
#pragma GCC unroll 8
    for (int r = 0; r < kBlockRows; ++r) {
      const Lanes<T> c = spread(kTurned ? v[j * E + r] : v[r * E + j]);
      acc[r][0] += c * x0;
      acc[r][1] += c * x1;
    }
  }
}

// The group g of kEdge coordinates of the panel of rows from first_row on. `v` are its tiles against the panels from
// first_column on, `degree` the sums of its rows. out[row][D] gets 2 (sum_j v_ij x_i - sum_j v_ij x_j), added when
// `accumulate`.
template <class T>
void laplacian_times(const VTile<T>* v, int64_t tiles, const double* degree, const Points<T>& x, int64_t g,
                     int64_t first_column, int64_t first_row, bool accumulate, T* out) {
  using V = Lanes<T>;
  constexpr int E = kEdge<T>, W = kLanes<T>, R = kBlockRows;
  constexpr int64_t kRun = 128 / E;  // tiles that are summed before they are added to the total
  const int64_t depth = x.depth(), rows = x.size() - first_row < E ? x.size() - first_row : E;
  const T* xg = x.coordinates(g);
  alignas(64) T sum[E * E];
  for (int64_t t0 = 0; t0 < tiles; t0 += kRun) {
    const int64_t t1 = t0 + kRun < tiles ? t0 + kRun : tiles;
    for (int i = 0; i < E; i += R) {
      V acc[R][2] = {};
      for (int64_t t = t0; t < t1; ++t) {
        const T* x_of_tile = xg + (first_column + t * E) * E;
        if (v[t].turned) {
          add_products<true>(v[t].data, i, x_of_tile, acc);
        } else {
          add_products<false>(v[t].data, i, x_of_tile, acc);
        }
      }
      for (int r = 0; r < R; ++r) {
        T* to = sum + (i + r) * E;
        store(to, t0 == 0 ? acc[r][0] : load(to) + acc[r][0]);
        store(to + W, t0 == 0 ? acc[r][1] : load(to + W) + acc[r][1]);
      }
    }
  }
  const int64_t width = depth - g * E < E ? depth - g * E : E;
  for (int64_t i = 0; i < rows; ++i) {
    const T *xi = xg + (first_row + i) * E, *si = sum + i * E, of_i = static_cast<T>(degree[i]);
    T* to = out + i * depth + g * E;
    if (accumulate) {
      for (int64_t c = 0; c < width; ++c) to[c] += T(2) * (of_i * xi[c] - si[c]);
    } else {
      for (int64_t c = 0; c < width; ++c) to[c] = T(2) * (of_i * xi[c] - si[c]);
    }
  }
}

}  // namespace KDX_ISA
}  // namespace kdx
