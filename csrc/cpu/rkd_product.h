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

// A panel of rows of V, by its tiles, times kEdge coordinates `x` of their points.
template <class T>
void v_times(const VTile<T>* v, int64_t tiles, const T* x, T* sum) {
  using V = Lanes<T>;
  constexpr int E = kEdge<T>, W = kLanes<T>, R = kBlockRows;
  constexpr int64_t kRun = 128 / E;  // tiles that are summed before they are added to the total
  for (int64_t t0 = 0; t0 < tiles; t0 += kRun) {
    const int64_t t1 = t0 + kRun < tiles ? t0 + kRun : tiles;
    for (int i = 0; i < E; i += R) {
      V acc[R][2] = {};
      for (int64_t t = t0; t < t1; ++t) {
        if (v[t].turned) {
          add_products<true>(v[t].data, i, x + t * E * E, acc);
        } else {
          add_products<false>(v[t].data, i, x + t * E * E, acc);
        }
      }
      for (int r = 0; r < R; ++r) {
        T* to = sum + (i + r) * E;
        store(to, t0 == 0 ? acc[r][0] : load(to) + acc[r][0]);
        store(to + W, t0 == 0 ? acc[r][1] : load(to + W) + acc[r][1]);
      }
    }
  }
}

// A panel of rows of V as left operands of the matrix engine.
inline void split_tiles(const VTile<float>* v, int64_t tiles, uint16_t* left) {
  constexpr float kOrigin[matrix::kSide] = {};
  for (int64_t t = 0; t < tiles; ++t) {
    alignas(64) float turned[kTile<float>];
    if (v[t].turned) transpose_tile(v[t].data, turned);
    matrix::split(v[t].turned ? turned : v[t].data, matrix::kSide, kOrigin, left + t * matrix::kBlock);
  }
}

// Group g of the coordinates of the points from first_row on: out[row][D] gets 2 (degree_i x_i - sum_i), added when
// `accumulate`.
template <class T>
void write_gradient(const T* sum, const double* degree, const Points<T>& x, int64_t g, int64_t first_row,
                    bool accumulate, T* out) {
  constexpr int E = kEdge<T>;
  const int64_t depth = x.depth(), rows = x.size() - first_row < E ? x.size() - first_row : E;
  const int64_t width = depth - g * E < E ? depth - g * E : E;
  constexpr T kOrigin[E] = {};
  const bool packed = !x.on_engine();  // and centred
  const T* from = packed ? x.coordinates(g) + first_row * E : x.row(first_row) + g * E;
  const T* origin = packed ? kOrigin : x.centre() + g * E;
  const int64_t stride = packed ? E : x.stride();
  for (int64_t i = 0; i < rows; ++i) {
    const T *xi = from + i * stride, *si = sum + i * E, of_i = static_cast<T>(degree[i]);
    T* to = out + i * depth + g * E;
    if (accumulate) {
      for (int64_t c = 0; c < width; ++c) to[c] += T(2) * (of_i * (xi[c] - origin[c]) - si[c]);
    } else {
      for (int64_t c = 0; c < width; ++c) to[c] = T(2) * (of_i * (xi[c] - origin[c]) - si[c]);
    }
  }
}

}  // namespace KDX_ISA
}  // namespace kdx
