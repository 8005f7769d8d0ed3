// RKD-A: triangles of points i < j < k, each visited once for its three angles and the gradients of its three sides.
//
// Legs are packed per row: legs[i][vector of k][4][W] holds S_s/2, r_s, S_t/2, r_t of the pairs (i, k), so that a step
// of k reads 4 W consecutive numbers. r is 0 for exact duplicates and past the last point, and a leg with r = 0 adds
// nothing: that is also how points k <= j are left out.
#pragma once

#include <type_traits>

#include "cpu/rkd_distance.h"

namespace kdx {
namespace KDX_ISA {

template <class T>
constexpr int64_t kLegs = 4 * kLanes<T>;

// Rows as they follow each other in memory; never a power of two apart, which would make them fight for the same lines
// of the cache.
template <class T>
struct Rows {
  T* data;
  int64_t stride;

  T* operator[](int64_t i) const { return data + i * stride; }
  static int64_t legs_stride(int64_t vectors) { return vectors * kLegs<T> + kLanes<T>; }
  static int64_t sums_stride(int64_t vectors) { return vectors * 2 * kLanes<T> + kLanes<T>; }
};

// Two tiles of squared distances as legs; `legs` begins at the tile's first row and column. Returns Huber's loss of the
// "angles" between a leg and itself, whose cosine is 1, or 0 between exact duplicates.
template <class T>
double store_legs(const T* student, const T* teacher, T delta_, Rows<T> legs) {
  using V = Lanes<T>;
  constexpr int E = kEdge<T>, W = kLanes<T>;
  const V half = spread(T(0.5)), one = spread(T(1)), delta = spread(delta_);
  V loss{};
  for (int i = 0; i < E; ++i) {
    for (int h = 0; h < 2; ++h) {
      V cosine[2];
      for (int side = 0; side < 2; ++side) {
        V s = load((side == 0 ? student : teacher) + i * E + h * W);
        const auto zero = is_duplicate<T>(s);
        s = zero ? V{} : s;
        const V r = zero ? V{} : one / square_root(s);
        T* to = legs[i] + h * kLegs<T> + side * 2 * W;
        store(to, s * half);
        store(to + W, r);
        cosine[side] = s * r * r;
      }
      const V z = cosine[0] - cosine[1], psi = huber_slope(z, delta);
      loss += huber_loss(z, psi, half);
    }
  }
  return sum_lanes<T>(loss);
}

// The side (i, j) of the triangles: half the squared distance, the inverse distance, and their product.
template <class T>
struct Side {
  T half_s, inv_s, part_s, half_t, inv_t, part_t;
};

template <class T>
Side<T> side_of(const T* legs, int lane) {
  constexpr int W = kLanes<T>;
  const T half_s = legs[lane], inv_s = legs[W + lane], half_t = legs[2 * W + lane], inv_t = legs[3 * W + lane];
  return {half_s, inv_s, half_s * inv_s, half_t, inv_t, half_t * inv_t};
}

// Lane l of the vector at keep_after<T>[W - 1 - lane] is 1 where l > lane, otherwise 0.
template <class T>
struct Keep {
  alignas(64) T flag[2 * kLanes<T>];
  constexpr Keep() : flag() {
    for (int l = 0; l < 2 * kLanes<T>; ++l) flag[l] = T(l >= kLanes<T>);
  }
};
template <class T>
constexpr Keep<T> kKeep{};

// What the side (i, j) gathers over k: dL/dS_ij = r P - r^2 Q - R.
template <class T>
struct SideSums {
  Lanes<T> p, q, r;
};

// One vector of points k against i and kRows points j, the first one `lane` of its vector. `sums`: dL/dS of the sides
// (i, k) and (j, k) is A - r^2 B, with A and B here.
template <bool kGrad, bool kMasked, int kRows, class T>
inline __attribute__((always_inline)) void triangles(const T* legs_i, const Rows<T>& legs_j, const Side<T>* sides,
                                                     int lane, T delta_, T* sums_i, const Rows<T>& sums_j,
                                                     SideSums<T>* of_side, Lanes<T>& loss) {
  using V = Lanes<T>;
  constexpr int W = kLanes<T>;
  const V delta = spread(delta_), half = spread(T(0.5));
  const V a_s = load(legs_i), a_t = load(legs_i + 2 * W);
  V a, b;
  if (kGrad) a = load(sums_i), b = load(sums_i + W);
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    const T* leg = legs_j[r];
    const Side<T>& side = sides[r];
    const V b_s = load(leg), b_t = load(leg + 2 * W);
    V ra_s = load(legs_i + W), ra_t = load(legs_i + 3 * W), rb_s = load(leg + W), rb_t = load(leg + 3 * W);
    if (kMasked) {
      const V keep = load(kKeep<T>.flag + W - 1 - lane - r);
      ra_s *= keep, ra_t *= keep, rb_s *= keep, rb_t *= keep;
    }
    const V inv = spread(side.inv_s), inv_t = spread(side.inv_t);
    const V gap_s = a_s - b_s, gap_t = a_t - b_t, rr_s = ra_s * rb_s, rr_t = ra_t * rb_t;
    const V cos_i = (spread(side.part_s) + inv * gap_s) * ra_s, cos_j = (spread(side.part_s) - inv * gap_s) * rb_s;
    const V cos_k = ((a_s - spread(side.half_s)) + b_s) * rr_s;
    const V z_i = cos_i - (spread(side.part_t) + inv_t * gap_t) * ra_t;
    const V z_j = cos_j - (spread(side.part_t) - inv_t * gap_t) * rb_t;
    const V z_k = cos_k - ((a_t - spread(side.half_t)) + b_t) * rr_t;
    const V psi_i = huber_slope(z_i, delta), psi_j = huber_slope(z_j, delta), psi_k = huber_slope(z_k, delta);
    loss += huber_loss(z_i, psi_i, half);
    loss += huber_loss(z_j, psi_j, half);
    loss += huber_loss(z_k, psi_k, half);
    if (kGrad) {
      const V m_i = psi_i * ra_s, m_j = psi_j * rb_s, w = psi_k * rr_s, d = m_i - m_j;
      of_side[r].p += m_i;
      of_side[r].p += m_j;
      of_side[r].r += w;
      of_side[r].q += psi_i * cos_i;
      of_side[r].q += psi_j * cos_j;
      a += w;
      a += inv * d;
      b += psi_i * cos_i;
      b += psi_k * cos_k;
      T* to = sums_j[r];
      V a_j = load(to), b_j = load(to + W);
      a_j += w;
      a_j -= inv * d;
      b_j += psi_j * cos_j;
      b_j += psi_k * cos_k;
      store(to, a_j);
      store(to + W, b_j);
    }
  }
  if (kGrad) {
    store(sums_i, a);
    store(sums_i + W, b);
  }
}

// The vectors [v0, v1) of points k against i and kRows points j; `masked`: the first one holds the points j themselves.
// Adds scale * dL/dS_ij to v_ij[r].
template <bool kGrad, int kRows, class T>
__attribute__((noinline)) void triangle_rows(const T* legs_i, Rows<T> legs_j, const T* legs_of_side, int lane,
                                             int64_t v0, int64_t v1, bool masked, T delta, T scale, T* sums_i,
                                             Rows<T> sums_j, T* v_ij, Lanes<T>* loss) {
  using V = Lanes<T>;
  constexpr int W = kLanes<T>;
  Side<T> sides[kRows];
  for (int r = 0; r < kRows; ++r) sides[r] = side_of(legs_of_side, lane + r);
  SideSums<T> of_side[kRows] = {};
  V sum{};
  int64_t v = v0;
  if (masked) {
    triangles<kGrad, true, kRows>(legs_i + v * kLegs<T>, Rows<T>{legs_j.data + v * kLegs<T>, legs_j.stride}, sides,
                                  lane, delta, sums_i + v * 2 * W, Rows<T>{sums_j.data + v * 2 * W, sums_j.stride},
                                  of_side, sum);
    ++v;
  }
  for (; v < v1; ++v) {
    triangles<kGrad, false, kRows>(legs_i + v * kLegs<T>, Rows<T>{legs_j.data + v * kLegs<T>, legs_j.stride}, sides,
                                   lane, delta, sums_i + v * 2 * W, Rows<T>{sums_j.data + v * 2 * W, sums_j.stride},
                                   of_side, sum);
  }
  *loss += sum;
  if (!kGrad) return;
  for (int r = 0; r < kRows; ++r) {
    const V inv = spread(sides[r].inv_s);
    const T v = fold_lanes<T>(inv * (of_side[r].p - inv * of_side[r].q) - of_side[r].r);
    if (sides[r].inv_s != T(0)) v_ij[r] += scale * v;
  }
}

// All triangles of the points i of one panel, j of another or the same, and k > j of a block.
template <class T>
struct AngleTask {
  int64_t count_i, count_j;  // points of the panels
  bool same;                 // the two panels are one: then i < j
  bool ordered;              // the points j are among the points k: then k > j
  int64_t first, vectors;    // of k: [first, vectors); when `ordered`, `first` holds the first points j
  Rows<T> legs_ik, legs_jk;  // from the first point i, j and the block's first k on
  Rows<T> legs_ij;           // from the first point i and the first point j on
  T delta, scale;
  Rows<T> sums;  // [2 kEdge]: A and B of the points i, then those of the points j; zero from `first` on
  T* v_ij;       // [kEdge][kEdge]: scale * dL/dS_ij is added
};

// Returns Huber's loss of the angles.
template <bool kGrad, class T>
double visit_triangles(const AngleTask<T>& task) {
  constexpr int E = kEdge<T>, W = kLanes<T>, kRows = kVectorBytes == 64 ? 4 : 2;
  constexpr int64_t kChunk = 256 / W;  // vectors of k whose legs and sums for kRows points j stay in L1
  double loss = 0;
  for (int64_t j = 0; j < task.count_j; j += kRows) {
    const int64_t first = task.ordered ? task.first + j / W : task.first;
    for (int64_t v0 = first; v0 < task.vectors; v0 += kChunk) {
      const int64_t v1 = v0 + kChunk < task.vectors ? v0 + kChunk : task.vectors;
      const bool masked = task.ordered && v0 == first;
      Lanes<T> sum{};
      const auto visit = [&](auto rows, int64_t i, int64_t at) {
        triangle_rows<kGrad, decltype(rows)::value>(task.legs_ik[i], Rows<T>{task.legs_jk[at], task.legs_jk.stride},
                                                    task.legs_ij[i] + at / W * kLegs<T>, int(at % W), v0, v1, masked,
                                                    task.delta, task.scale, kGrad ? task.sums[i] : nullptr,
                                                    Rows<T>{kGrad ? task.sums[E + at] : nullptr, task.sums.stride},
                                                    kGrad ? task.v_ij + i * E + at : nullptr, &sum);
      };
      for (int64_t i = 0; i < task.count_i && !(task.same && i >= j + kRows - 1); ++i) {
        if (!task.same || i < j) {
          visit(std::integral_constant<int, kRows>{}, i, j);
        } else {
          for (int64_t at = i + 1; at < j + kRows; ++at) visit(std::integral_constant<int, 1>{}, i, at);
        }
      }
      loss += sum_lanes<T>(sum);
    }
  }
  return loss;
}

// Adds scale * dL/dS of one row against the kEdge points of a panel, where `legs` and `sums` begin, to a row of a tile.
template <class T>
void add_row(const T* legs, const T* sums, T scale, T* tile_row) {
  using V = Lanes<T>;
  constexpr int W = kLanes<T>;
  for (int h = 0; h < 2; ++h) {
    const V inv = load(legs + h * kLegs<T> + W), a = load(sums + h * 2 * W), b = load(sums + h * 2 * W + W);
    const V v = inv == V{} ? V{} : V(spread(scale) * (a - inv * inv * b));
    store(tile_row + h * W, load(tile_row + h * W) + v);
  }
}

}  // namespace KDX_ISA
}  // namespace kdx
