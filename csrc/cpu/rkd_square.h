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
inline void squares_from_products(const Points<float>& x, int64_t i, int64_t j, float* tile) {
  constexpr int E = kEdge<float>, H = kLanes<double>;
  typedef int64_t Mask __attribute__((vector_size(kVectorBytes)));
  const double *of_i = x.norms(i), *of_j = x.norms(j), least = x.on_engine() ? matrix::kLeastSum : 0;
  // On the diagonal a product of 0 keeps a point from being near to itself, until the others are known.
  for (int r = 0; i == j && r < E; ++r) tile[r * E + r] = 0;
  Mask far = ~Mask{};  // NaN is near
  for (int r = 0; r < E; ++r) {
    for (int c = 0; c < E; c += 2 * H) {
      const Lanes<float> product = load(tile + r * E + c);
      for (int h = 0; h < 2; ++h) {
        const Lanes<double> both = of_i[r] + load(of_j + c + h * H);
        const Lanes<double> square = both - 2 * half_as_doubles(product, h);
        far &= square >= kNear * both + least;
        const auto rounded = __builtin_convertvector(square, typename Shorter<float, H>::type);
        std::memcpy(tile + r * E + c + h * H, &rounded, sizeof(rounded));
      }
    }
  }
  int64_t all_far = -1;
  for (int l = 0; l < H; ++l) all_far &= far[l];
  if (!all_far) {
    const int64_t rows = x.size() - i * E < E ? x.size() - i * E : E,
                  columns = x.size() - j * E < E ? x.size() - j * E : E;
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < columns; ++c) {
        float& s = tile[r * E + c];
        if (s >= kNear * (of_i[r] + of_j[c]) + least) continue;
        s = square_of_pair(x.row(i * E + r), x.row(j * E + c), x.depth());
      }
    }
  }
  for (int r = 0; i == j && r < E; ++r) tile[r * E + r] = 0;
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

// A panel that others are measured against, as the matrix engine reads it; the next one that a thread makes of the same
// points takes its place.
template <class T>
struct Column {
  Column(const Points<T>& x, int64_t panel) : panel(panel), session(x.on_engine()) {
    if (x.on_engine()) matrix::right_of_transpose(x.digits(panel), x.steps(), x.right());
  }
  const int64_t panel;
  const matrix::Session session;
};

// Products of panel i with another of the same points.
inline void product_tile(const Points<float>& x, int64_t i, const Column<float>& column, float* out) {
  constexpr int E = kEdge<float>;
  const int64_t j = column.panel;
  if (!x.on_engine()) return pair_sums<true>(x.panel(i), x.panel(j), x.depth(), out);
  matrix::multiply_digits(x.digits(i), x.right(), x.steps(), x.units(i), x.units(j), i == j, out);
  for (int r = E / 2; i == j && r < E; ++r) {
    for (int c = 0; c < E / 2; ++c) out[r * E + c] = out[c * E + r];
  }
}

// Squared distances of panel i to another of the same points.
template <class T>
void square_tile(const Points<T>& x, int64_t i, const Column<T>& column, T* out) {
  const int64_t j = column.panel;
  if constexpr (sizeof(T) == 4) {
    if (x.by_products()) {
      product_tile(x, i, column, out);
      squares_from_products(x, i, j, out);
      return clear_padding(out, x.size() - i * kEdge<T>, x.size() - j * kEdge<T>);
    }
  }
  pair_sums<false>(x.panel(i), x.panel(j), x.depth(), out);
  clear_padding(out, x.size() - i * kEdge<T>, x.size() - j * kEdge<T>);
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
