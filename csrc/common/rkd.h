// The arithmetic of the relational losses, written once for a host scalar, a host vector of lanes and a device scalar.
//
// T is float, double or a vector of lanes with elementwise operators; the operations used are + - * and comparison.
#pragma once

#include "common/hd.h"

namespace kdx {

// z clamped to [-bound, bound]. A NaN may come out as a bound. csrc/cpu/lanes.h has the vector instructions for lanes.
template <class T>
struct Clamp {
  KDX_HD T symmetric(T z, T bound) {
    const T low = z < bound ? z : bound;
    return low > -bound ? low : -bound;
  }
};

#if defined(__CUDACC__)
template <>
struct Clamp<float> {
  KDX_HD float symmetric(float z, float bound) { return fmaxf(fminf(z, bound), -bound); }
};
#endif

// Huber's influence function. It may swallow a NaN, which the loss term still carries: gradients take it from there.
template <class T>
KDX_HD T huber_slope(T z, T delta) {
  return Clamp<T>::symmetric(z, delta);
}

// Huber's loss from its slope: z^2 / 2 inside, delta (|z| - delta / 2) outside, without a branch.
template <class T>
KDX_HD T huber_loss(T z, T slope, T half) {
  return slope * (z - half * slope);
}

// What a pair (i, j) gathers over all third points k.
template <class T>
struct PairSums {
  T p, q, r, loss;
};

// A point k as seen from one end of the pair: half the squared distance and the inverse distance (0 for a duplicate).
template <class T>
struct Leg {
  T half_sq, inv;
};

// One triple (i, j, k) of one side: the cosines at its three corners by the law of cosines.
//
// `edge` is (i, j), `a` is (i, k), `b` is (j, k). The cosines at i and j lack the factor edge.inv, which is the same
// for every k: the caller multiplies it in once, after the loop.
template <class T>
struct Corners {
  T at_i, at_j, at_k, inv_ab;
};

template <class T>
KDX_HD Corners<T> corners(const Leg<T>& edge, const Leg<T>& a, const Leg<T>& b) {
  const T gap = a.half_sq - b.half_sq;
  Corners<T> c;
  c.inv_ab = a.inv * b.inv;
  c.at_i = (edge.half_sq + gap) * a.inv;
  c.at_j = (edge.half_sq - gap) * b.inv;
  c.at_k = ((a.half_sq - edge.half_sq) + b.half_sq) * c.inv_ab;
  return c;
}

// Adds the triple (i, j, k) to the sums of the pair (i, j): the Huber loss of the angle at k, and the three parts of
// dL/dS_ij = inv (P - inv^2 Q) - R, where Q still lacks edge.inv of the student (see Corners).
template <bool kGrad, class T>
KDX_HD void add_triple(const Leg<T>& edge_s, const Leg<T>& a_s, const Leg<T>& b_s, const Leg<T>& edge_t,
                       const Leg<T>& a_t, const Leg<T>& b_t, T delta, T half, PairSums<T>& sums) {
  const Corners<T> s = corners(edge_s, a_s, b_s);
  const Corners<T> t = corners(edge_t, a_t, b_t);
  const T z_k = s.at_k - t.at_k;
  const T psi_k = huber_slope(z_k, delta);
  sums.loss = sums.loss + huber_loss(z_k, psi_k, half);
  if (kGrad) {
    const T psi_i = huber_slope(T(edge_s.inv * s.at_i - edge_t.inv * t.at_i), delta);
    const T psi_j = huber_slope(T(edge_s.inv * s.at_j - edge_t.inv * t.at_j), delta);
    sums.p = sums.p + psi_i * a_s.inv;
    sums.p = sums.p + psi_j * b_s.inv;
    sums.q = sums.q + psi_i * s.at_i;
    sums.q = sums.q + psi_j * s.at_j;
    sums.r = sums.r + psi_k * s.inv_ab;
  }
}

}  // namespace kdx
