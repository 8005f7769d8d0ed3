// RKD-A: the pairs of two panels against every third point.
//
// Legs are packed per vector of W points: legs[vector][k][4][W] holds, for the W points j of the vector and the point
// k, S_s/2, r_s, S_t/2, r_t of the pair (k, j), so that a step of k reads 4 W consecutive numbers and no stride ever is
// a power of two.
#pragma once

#include "cpu/rkd_distance.h"

namespace kdx {
namespace KDX_ISA {

template <class T>
constexpr int64_t kLegs = 4 * kLanes<T>;

// A tile of squared distances (rows k of panel `a`, columns j) into the legs of the columns' two vectors.
// `side` 0: student, 1: teacher. `legs` is that of the panel's first vector, `padded` the rows k that a vector of legs
// holds.
template <class T>
void store_legs(const T* square, int64_t k0, int64_t padded, int side, T* legs) {
  using V = Lanes<T>;
  constexpr int E = kEdge<T>, W = kLanes<T>;
  for (int k = 0; k < E; ++k) {
    for (int h = 0; h < 2; ++h) {
      const V s = load(square + k * E + h * W);
      const auto zero = is_duplicate<T>(s);
      T* to = legs + (h * padded + k0 + k) * kLegs<T> + side * 2 * W;
      store(to, V(zero ? V{} : s * spread(T(0.5))));
      store(to + W, V(zero ? V{} : spread(T(1)) / square_root(s)));
    }
  }
}

template <class T>
void transpose_tile(const T* in, T* out) {
  constexpr int E = kEdge<T>;
  for (int i = 0; i < E; ++i) {
    for (int j = 0; j < E; ++j) out[j * E + i] = in[i * E + j];
  }
}

// kRows rows i of one vector against the W columns j of another, over the points [k0, k1).
template <bool kGrad, int kRows, class T>
__attribute__((noinline)) void angle_rows(const T* legs_i, const T* legs_j, int64_t row_of_i, int lane, int64_t k0,
                                          int64_t k1, T delta_, PairSums<Lanes<T>>* total) {
  using V = Lanes<T>;
  constexpr int W = kLanes<T>;
  const V delta = spread(delta_), half = spread(T(0.5));
  Leg<V> edge_s[kRows], edge_t[kRows];
  PairSums<V> sums[kRows];
  for (int r = 0; r < kRows; ++r) {
    const T* e = legs_j + (row_of_i + r) * kLegs<T>;
    edge_s[r] = {load(e), load(e + W)};
    edge_t[r] = {load(e + 2 * W), load(e + 3 * W)};
    sums[r] = PairSums<V>{};
  }
  for (int64_t k = k0; k < k1; ++k) {
    const T* b = legs_j + k * kLegs<T>;
    const T* a = legs_i + k * kLegs<T> + lane;
    const Leg<V> b_s{load(b), load(b + W)}, b_t{load(b + 2 * W), load(b + 3 * W)};
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const Leg<V> a_s{spread(a[r]), spread(a[W + r])}, a_t{spread(a[2 * W + r]), spread(a[3 * W + r])};
      add_triple<kGrad>(edge_s[r], a_s, b_s, edge_t[r], a_t, b_t, delta, half, sums[r]);
    }
  }
  // Blocks of k are summed first and then added: the sum over thousands of points keeps its digits.
  for (int r = 0; r < kRows; ++r) {
    if (kGrad) {
      total[r].p += sums[r].p;
      total[r].q += sums[r].q;
      total[r].r += sums[r].r;
    }
    total[r].loss += sums[r].loss;
  }
}

// One tile: `rows` rows i of a panel (the first is point `first_i`) against the columns j of a panel. Adds scale * N^3
// V to `v` (or writes it, when `fresh`) and returns the sum of the Huber terms of the angles at k in [0, points)
// between i and j.
template <bool kGrad, class T>
double angle_tile(const T* legs_i, const T* legs_j, int64_t first_i, int64_t rows, int64_t points, int64_t padded,
                  T delta, T scale_, bool fresh, T* v) {
  using V = Lanes<T>;
  constexpr int E = kEdge<T>, W = kLanes<T>, kRows = 2;
  constexpr int64_t kBlock = 64;  // 64 points of two vectors of legs: 16 KB, half of L1
  double loss = 0;
  for (int hi = 0; hi < 2; ++hi) {
    for (int hj = 0; hj < 2; ++hj) {
      const T* li = legs_i + hi * padded * kLegs<T>;
      const T* lj = legs_j + hj * padded * kLegs<T>;
      PairSums<V> sums[W] = {};
      for (int64_t k0 = 0; k0 < points; k0 += kBlock) {
        const int64_t k1 = k0 + kBlock < points ? k0 + kBlock : points;
        for (int r = 0; r < W; r += kRows) {
          if (hi * W + r < rows) {
            angle_rows<kGrad, kRows>(li, lj, first_i + hi * W + r, r, k0, k1, delta, sums + r);
          }
        }
      }
      V total{};
      for (int r = 0; r < W && hi * W + r < rows; ++r) {
        total += sums[r].loss;
        if (kGrad) {
          const T* e = lj + (first_i + hi * W + r) * kLegs<T>;
          const V inv = load(e + W);
          const V g = spread(scale_) * (inv * (sums[r].p - inv * inv * sums[r].q) - sums[r].r);
          T* to = v + (hi * W + r) * E + hj * W;
          const V masked = inv == V{} ? V{} : g;
          store(to, fresh ? masked : load(to) + masked);
        }
      }
      if (kGrad && fresh) {
        for (int r = 0; r < W; ++r) {
          if (hi * W + r >= rows) store(v + (hi * W + r) * E + hj * W, V{});
        }
      }
      loss += sum_lanes<T>(total);
    }
  }
  return loss;
}

}  // namespace KDX_ISA
}  // namespace kdx
