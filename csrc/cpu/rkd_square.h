// Tiles of squared distances: kEdge x kEdge pairs of two panels.
//
// Direct differences cost two instructions a coordinate, the product of two points one. S = |a|^2 + |b|^2 - 2 a b of
// centred points loses digits only where it cancels, so pairs nearer than kNear of the norms are computed again from
// their differences: what is left errs by a few units in the last place, as direct differences do.
#pragma once

#include "cpu/rkd_panels.h"

namespace kdx {
namespace KDX_ISA {

constexpr double kNear = 0.5;  // of |a|^2 + |b|^2: points at an angle of less than 60 degrees

// kProducts: sum_d a_d b_d, otherwise sum_d (b_d - a_d)^2, over two panels [D][kEdge].
//
// Differences are summed in runs of 16 coordinates, then runs of 8 of those, then those: a long sum would cost the
// digits that the law of cosines needs for points that nearly touch. Two slabs of 128 coordinates stay in L1.
template <bool kProducts, class T>
void pair_sums(const T* a, const T* b, int64_t depth, T* out) {
  using V = Lanes<T>;
  constexpr int E = kEdge<T>, W = kLanes<T>, R = kProducts ? kBlockRows : 4;
  constexpr int64_t kRun = kProducts ? 64 : 16, kSlab = 128;
  for (int64_t d0 = 0; d0 < depth || d0 == 0; d0 += kSlab) {
    const int64_t d1 = d0 + kSlab < depth ? d0 + kSlab : depth;
    for (int i = 0; i < E; i += R) {
      V slab[R][2] = {};
      for (int64_t r0 = d0; r0 < d1; r0 += kRun) {
        const int64_t r1 = r0 + kRun < d1 ? r0 + kRun : d1;
        V sum[R][2] = {};
        for (int64_t d = r0; d < r1; ++d) {
          const V b0 = load(b + d * E), b1 = load(b + d * E + W);
#pragma GCC unroll 8
          for (int r = 0; r < R; ++r) {
            const V x = spread(a[d * E + i + r]);
            const V u = kProducts ? b0 : b0 - x, v = kProducts ? b1 : b1 - x;
            sum[r][0] += u * (kProducts ? x : u);
            sum[r][1] += v * (kProducts ? x : v);
          }
        }
        for (int r = 0; r < R; ++r) {
          slab[r][0] += sum[r][0];
          slab[r][1] += sum[r][1];
        }
      }
      for (int r = 0; r < R; ++r) {
        T* row = out + (i + r) * E;
        store(row, d0 == 0 ? slab[r][0] : load(row) + slab[r][0]);
        store(row + W, d0 == 0 ? slab[r][1] : load(row + W) + slab[r][1]);
      }
    }
  }
}

// |a - b|^2 of two rows.
template <class T>
T square_of_pair(const T* a, const T* b, int64_t depth) {
  constexpr int W = kLanes<T>;
  Lanes<T> sum[4] = {};
  int64_t d = 0;
  for (; d + 4 * W <= depth; d += 4 * W) {
    for (int u = 0; u < 4; ++u) {
      const Lanes<T> difference = load(a + d + u * W) - load(b + d + u * W);
      sum[u] += difference * difference;
    }
  }
  for (; d < depth; d += W) {
    const Lanes<T> difference = load_part(a + d, depth - d) - load_part(b + d, depth - d);
    sum[0] += difference * difference;
  }
  return fold_lanes<T>((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

// Products of panels i and j to squared distances in place.
template <class T>
void squares_from_products(const Points<T>& x, int64_t i, int64_t j, T* tile) {
  constexpr int E = kEdge<T>;
  const double *of_i = x.norms(i), *of_j = x.norms(j);
  const T least = x.on_engine() ? T(matrix::kLeastSum) : T(0);
  T bound[kTile<T>];
  int near = 0;
  for (int r = 0; r < E; ++r) {
    T* row = tile + r * E;
    for (int c = 0; c < E; ++c) {
      const double both = of_i[r] + of_j[c];
      row[c] = static_cast<T>(both - 2 * static_cast<double>(row[c]));
      bound[r * E + c] = static_cast<T>(kNear * both) + least;
    }
    for (int c = 0; c < E; ++c) near |= !(row[c] >= bound[r * E + c]);  // NaN is near
  }
  if (!near) return;
  const int64_t rows = x.size() - i * E < E ? x.size() - i * E : E,
                columns = x.size() - j * E < E ? x.size() - j * E : E;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c) {
      T& s = tile[r * E + c];
      if (s >= bound[r * E + c]) continue;
      s = i == j && r == c ? T(0) : square_of_pair(x.row(i * E + r), x.row(j * E + c), x.depth());
    }
  }
}

// Zeroes what a tile holds past the last point.
template <class T>
void clear_padding(T* tile, int64_t rows, int64_t columns) {
  constexpr int E = kEdge<T>;
  if (rows >= E && columns >= E) return;
  for (int i = 0; i < E; ++i) {
    for (int j = 0; j < E; ++j) {
      if (i >= rows || j >= columns) tile[i * E + j] = T(0);
    }
  }
}

// A panel that others are measured against, as the matrix engine reads it.
template <class T>
struct Column {
  Column(const Points<T>& x, int64_t panel) : panel(panel) {
    if (!x.on_engine()) return;
    blocks = Buffer<uint16_t>(x.groups() * matrix::kBlock);
    for (int64_t b = 0; b < x.groups(); ++b) {
      matrix::right_of_transpose(x.left(panel) + b * matrix::kBlock, blocks.get() + b * matrix::kBlock);
    }
  }
  int64_t panel;
  Buffer<uint16_t> blocks;
};

// Squared distances of panel i to another of the same points.
template <class T>
void square_tile(const Points<T>& x, int64_t i, const Column<T>& column, T* out) {
  constexpr int E = kEdge<T>;
  const int64_t j = column.panel;
  if (x.by_products()) {
    if (x.on_engine()) {
      matrix::multiply(x.left(i), column.blocks.get(), 1, x.groups(), reinterpret_cast<float*>(out));
      // The engine adds the parts of a b and b a in another order.
      for (int r = 0; i == j && r < E; ++r) {
        for (int c = 0; c < r; ++c) out[r * E + c] = out[c * E + r];
      }
    } else {
      pair_sums<true>(x.panel(i), x.panel(j), x.depth(), out);
    }
    squares_from_products(x, i, j, out);
  } else {
    pair_sums<false>(x.panel(i), x.panel(j), x.depth(), out);
  }
  clear_padding(out, x.size() - i * E, x.size() - j * E);
}

template <class T>
void transpose_tile(const T* in, T* out) {
  constexpr int E = kEdge<T>, W = kLanes<T>;
  for (int i = 0; i < E; i += W) {
    for (int j = 0; j < E; j += W) {
      Lanes<T> block[W];
      for (int l = 0; l < W; ++l) block[l] = load(in + (i + l) * E + j);
      transpose<T>(block);
      for (int l = 0; l < W; ++l) store(out + (j + l) * E + i, block[l]);
    }
  }
}

}  // namespace KDX_ISA
}  // namespace kdx
