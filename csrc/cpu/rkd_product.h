// dX = 2 (diag(V 1) - V) X by panels of rows and groups of coordinates.
#pragma once

#include <algorithm>
#include <vector>

#include "cpu/rkd_grid.h"
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
  for (int64_t t = 0; t < tiles; ++t) {
    alignas(64) float turned[kTile<float>];
    if (v[t].turned) transpose_tile(v[t].data, turned);
    matrix::split_left(v[t].turned ? turned : v[t].data, left + t * matrix::kBlock);
  }
}

// Group g of the coordinates of panels of points as right operands; what is missing to whole blocks counts as 0.
inline void split_coordinates(const Points<float>& x, int64_t first_panel, int64_t panels, int64_t g, uint16_t* right) {
  constexpr int E = kEdge<float>;
  const float* centre = x.centre() + g * E;
  const int64_t width = x.depth() - g * E < E ? x.depth() - g * E : E;
  for (int64_t p = 0; p < panels; ++p) {
    const int64_t i0 = (first_panel + p) * E, rows = x.size() - i0 < E ? x.size() - i0 : E;
    if (rows == E && width == E) {
      matrix::split_right(x.row(i0) + g * E, x.stride(), centre, right + p * matrix::kBlock);
      continue;
    }
    alignas(64) float filled[E * E];
    for (int64_t r = 0; r < E; ++r) {
      std::memcpy(filled + r * E, centre, sizeof(float) * E);
      if (r < rows) std::memcpy(filled + r * E, x.row(i0 + r) + g * E, static_cast<std::size_t>(width) * sizeof(float));
    }
    matrix::split_right(filled, E, centre, right + p * matrix::kBlock);
  }
}

// `rows` panels of V, one after the other, times those coordinates: sums [rows][kEdge][kEdge]. A run of points stays in
// cache while every panel meets it.
inline void v_times_on_engine(const uint16_t* left, int64_t rows, int64_t tiles, const uint16_t* right, float* sums) {
  for (int64_t t = 0; t < tiles; t += matrix::kRun) {
    const int64_t run = tiles - t < matrix::kRun ? tiles - t : matrix::kRun;
    for (int64_t row = 0; row < rows; ++row) {
      matrix::multiply(left + (row * tiles + t) * matrix::kBlock, right + t * matrix::kBlock, run, t > 0,
                       sums + row * kTile<float>);
    }
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

// Rows of block i (or of block j) of 2 (diag(V 1) - V) X, with the columns of the other one; added to `grad` when
// `accumulate`.
template <class T>
void multiply_rows(const TileSet& set, const T* v, bool rows_of_i, const Points<T>& x, bool accumulate, int threads,
                   T* grad) {
  constexpr int E = kEdge<T>;
  const int64_t first_row = rows_of_i ? set.first_i : set.first_j, rows = rows_of_i ? set.count_i : set.count_j;
  const int64_t first_column = rows_of_i ? set.first_j : set.first_i, columns = rows_of_i ? set.count_j : set.count_i;
  std::vector<VTile<T>> tiles(static_cast<std::size_t>(rows * columns));
  std::vector<double> degree(static_cast<std::size_t>(rows * E));
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t column = 0; column < columns; ++column) {
      const bool turned = set.diagonal ? column < row : !rows_of_i;
      const T* data = v + (turned ? set.slot(column, row) : set.slot(row, column)) * kTile<T>;
      tiles[static_cast<std::size_t>(row * columns + column)] = {data, turned};
    }
    degrees(tiles.data() + row * columns, columns, degree.data() + row * E);
  }
  // Blocks of products, whose V and coordinates are read from L2 again and again. The engine takes larger ones, because
  // V is split anew for each; their sizes do not show in the result.
  constexpr int64_t kNarrow = 4, kWide = 8;
  const int64_t groups = x.groups(), side = x.on_engine() && columns <= 2 * kWide ? kWide : kNarrow;
  const int64_t share = ceil_div(groups * ceil_div(rows, side), threads);
  const int64_t width = x.on_engine() ? std::clamp(share, kNarrow, 4 * kNarrow) : kNarrow;
  const int64_t across = ceil_div(groups, width), blocks = ceil_div(rows, side) * across;
  const int workers = static_cast<int>(std::min<int64_t>(threads, blocks));
  // Parts of a block's rows of V, for each worker; of the coordinates: of all groups, where more than one block of rows
  // reads them, otherwise of one group for each worker.
  Buffer<uint16_t> v_parts, parts;
  const bool shared = rows > side;
  const int64_t group_size = columns * matrix::kBlock, v_size = x.on_engine() ? std::min(rows, side) * group_size : 0;
  if constexpr (sizeof(T) == 4) {
    if (x.on_engine()) {
      v_parts = Buffer<uint16_t>(workers * v_size);
      parts = Buffer<uint16_t>((shared ? groups : workers) * group_size);
    }
    if (x.on_engine() && shared) {
#pragma omp parallel for num_threads(threads) schedule(static)
      for (int64_t g = 0; g < groups; ++g) {
        split_coordinates(x, first_column, columns, g, parts.get() + g * group_size);
      }
    }
  }
#pragma omp parallel for num_threads(workers) schedule(dynamic)
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t g0 = block % across * width, row0 = block / across * side, count = std::min(rows - row0, side);
    const VTile<T>* v_rows = tiles.data() + row0 * columns;
    const matrix::Session session(x.on_engine());
    uint16_t* left = v_parts.get() + thread_number() * v_size;
    if constexpr (sizeof(T) == 4) {
      if (x.on_engine()) split_tiles(v_rows, count * columns, left);
    }
    for (int64_t g = g0; g < std::min(groups, g0 + width); ++g) {
      alignas(64) T sums[kWide * kTile<T>];
      if constexpr (sizeof(T) == 4) {
        if (x.on_engine()) {
          uint16_t* right = parts.get() + (shared ? g : thread_number()) * group_size;
          if (!shared) split_coordinates(x, first_column, columns, g, right);
          v_times_on_engine(left, count, columns, right, sums);
        }
      }
      for (int64_t row = 0; row < count; ++row) {
        T* sum = sums + row * kTile<T>;
        if (!x.on_engine()) {
          v_times(v_rows + row * columns, columns, x.coordinates(g) + first_column * E * E, sum);
        }
        const int64_t i0 = (first_row + row0 + row) * E;
        write_gradient(sum, degree.data() + (row0 + row) * E, x, g, i0, accumulate, grad + i0 * x.depth());
      }
    }
  }
}

}  // namespace KDX_ISA
}  // namespace kdx
