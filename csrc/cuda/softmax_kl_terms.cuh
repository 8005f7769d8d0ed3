// The maths of one row for the CUDA kernels, in the same form as csrc/common/softmax_kl.h but shaped by the GPU's
// budget: at the memory bound an H100 can issue about 59 instructions for each bf16 class (forward and gradient), so
// there is one hardware exponential for each exponential of the formula, and one polynomial serves everything that is
// small.
//
//   R(d) = (expm1(d) - d) / d^2,   P = 1 + d R:   expm1(d) = d P,   e^d d - expm1(d) = d^2 (P - R),   expm1(d) - d =
//   d^2 R
//
// where |d| < small(); elsewhere the plain differences lose nothing that matters.
//
// kNarrow: logits of 16 bits. Their distance from a maximum is exact in fp32, and their gradient is rounded to 8 or 11
// bits, so 1 / l may go into the exponent: two instructions less for each class.
#pragma once

#include "common/softmax_kl.h"
#include "cuda/device.cuh"

namespace kdx::cuda {

__device__ __forceinline__ float infinity(float) { return __uint_as_float(0x7f800000u); }
__device__ __forceinline__ double infinity(double) { return double(infinity(0.0f)); }
__device__ __forceinline__ float maximum(float a, float b) { return fmaxf(a, b); }
__device__ __forceinline__ double maximum(double a, double b) { return fmax(a, b); }

template <typename A>
struct Math;

template <>
struct Math<float> {
  // exp(x) of an x that was multiplied by log2(e) already, as `exponent` does for the factor of a whole call.
  static __device__ __forceinline__ float exponential(float x) { return exp2_approx(x); }
  static __host__ __device__ __forceinline__ float exponent(double factor) {
    return float(factor * 1.4426950408889634074);
  }
  static __device__ __forceinline__ bool small(float d) { return fabsf(d) < 0.35f; }  // false for NaN
  static __device__ __forceinline__ float series(float d) {  // R, interpolated in |d| < 0.35 to 5e-8
    return (((0.0013926919f * d + 0.008363767f) * d + 0.04166655f) * d + 0.16666573f) * d + 0.5f;
  }
};

template <>
struct Math<double> {
  static __device__ __forceinline__ double exponential(double x) { return ::exp(x); }
  static __host__ __device__ __forceinline__ double exponent(double factor) { return factor; }
  static __device__ __forceinline__ bool small(double d) { return ::fabs(d) < 0.25; }
  static __device__ __forceinline__ double series(double d) {  // Taylor: the next term is below 4e-17
    double r = 1.0 / 87178291200.0;
    double denominator = 87178291200.0;
#pragma unroll
    for (int n = 14; n > 2; --n) {
      denominator /= n;
      r = r * d + 1.0 / denominator;
    }
    return r;
  }
};

// Factors of a call, the same for all rows.
template <typename A>
struct Temperature {
  A inverse;   // 1 / T
  A exponent;  // 1 / T, in the units of Math::exponential
  A natural;   // 1, in the units of Math::exponential
};

// What a part of a row knows; maxima are raw logits. An empty part has maxima of -inf and sums of 0.
template <typename A>
struct Stats {
  A m_s, m_t;  // maxima
  A l_s, l_t;  // sum exp((s - m_s) / T) and the same of the teacher
  A gap;       // sum exp((t - m_t) / T) - exp((s - m_s) / T), without cancellation where the two are close
  A l_1;       // sum exp(s - m_s), for the cross-entropy
};

template <typename A>
__device__ __forceinline__ A finite_maximum(A m) {
  return m == -infinity(m) ? A(0) : m;
}

// The sums of a part under maxima that are at least its own.
template <typename A>
__device__ __forceinline__ Stats<A> rebase(const Stats<A>& x, A m_s, A m_t, const Temperature<A>& k) {
  const A to_s = finite_maximum(m_s), to_t = finite_maximum(m_t);
  const A a = Math<A>::exponential((x.m_s - to_s) * k.exponent), b = Math<A>::exponential((x.m_t - to_t) * k.exponent);
  const bool apart = maxima_apart(to_s, to_t, k.inverse);
  const A shift = (apart ? (x.m_t - to_t) - (x.m_s - to_s) : (x.m_t - x.m_s) - (to_t - to_s)) * k.inverse;
  const A small = a * (x.gap + x.l_t * (shift * (A(1) + shift * Math<A>::series(shift))));
  const A gap = Math<A>::small(shift) ? small : b * x.l_t - a * x.l_s;
  return {m_s, m_t, a * x.l_s, b * x.l_t, gap, x.l_1 * Math<A>::exponential((x.m_s - to_s) * k.natural)};
}

// (t - s) - (m_t - m_s), from the logits where they are wide and from their distances to the maxima where they are not
// (and those are exact) or where the maxima lie apart (and the logits have too few digits for t - s).
template <typename A, bool kNarrow>
__device__ __forceinline__ A log_ratio_of(A s, A t, A x, A y, A offset, bool apart) {
  return kNarrow || apart ? y - x : (t - s) - offset;
}

// Adds one class to sums that stand under the (finite) maxima m_s, m_t; offset = m_t - m_s, and whether that is far.
template <typename A, bool kNarrow>
__device__ __forceinline__ void add(Stats<A>& sums, A s, A t, A m_s, A m_t, A offset, bool apart,
                                    const Temperature<A>& k) {
  const A x = s - m_s, y = t - m_t;
  const A e_s = Math<A>::exponential(x * k.exponent), e_t = Math<A>::exponential(y * k.exponent);
  const A d = log_ratio_of<A, kNarrow>(s, t, x, y, offset, apart) * k.inverse;
  const A close = (e_s * d) * (A(1) + d * Math<A>::series(d));
  sums.l_s += e_s;
  sums.l_t += e_t;
  sums.gap += Math<A>::small(d) ? close : e_t - e_s;  // both -inf: d is NaN and the difference 0
}

// A whole row, ready for its second sweep.
template <typename A>
struct Solved {
  A m_s, m_t, offset;
  bool apart;      // see log_ratio_of
  A log_ratio;     // log of l_t / l_s: d = ((t - s) - offset) / T - log_ratio
  A inv_s, inv_t;  // 1 / l_s, 1 / l_t; kNarrow: their logarithms, in the units of Math::exponential
  A inv_1;         // 1 / l_1
  A log_1;         // log l_1
};

template <typename A, bool kNarrow>
__device__ __forceinline__ Solved<A> solve(const Stats<A>& x, const Temperature<A>& k, bool cross_entropy) {
  Solved<A> y;
  y.m_s = finite_maximum(x.m_s), y.m_t = finite_maximum(x.m_t), y.offset = y.m_t - y.m_s;
  y.apart = maxima_apart(y.m_s, y.m_t, k.inverse);
  const A ratio = x.gap / x.l_s;
  y.log_ratio = abs_(ratio) < A(0.5) ? log1p_(ratio) : log_(x.l_t / x.l_s);
  y.inv_s = kNarrow ? -log_(x.l_s) * Math<A>::exponent(1.0) : A(1) / x.l_s;
  y.inv_t = kNarrow ? -log_(x.l_t) * Math<A>::exponent(1.0) : A(1) / x.l_t;
  y.inv_1 = cross_entropy ? A(1) / x.l_1 : A(0);
  y.log_1 = cross_entropy ? log_(x.l_1) : A(0);
  return y;
}

// One class of a solved row.
template <typename A>
struct Term {
  A q, p, d, difference;  // student, teacher, log p - log q, p - q
  A share;                // of the row's loss, non-negative
  A slope;                // reverse and JSD: gradient = q (slope - sum of `part`) / T, times mixture_factor
  A part;
};

template <typename A, int kDivergence, bool kNarrow>
__device__ __forceinline__ Term<A> term(A s, A t, const Solved<A>& row, const Temperature<A>& k, A beta) {
  Term<A> x;
  const A a = s - row.m_s, b = t - row.m_t;
  if constexpr (kNarrow) {
    x.q = Math<A>::exponential(a * k.exponent + row.inv_s);
    x.p = Math<A>::exponential(b * k.exponent + row.inv_t);
  } else {
    x.q = Math<A>::exponential(a * k.exponent) * row.inv_s;
    x.p = Math<A>::exponential(b * k.exponent) * row.inv_t;
  }
  x.d = log_ratio_of<A, kNarrow>(s, t, a, b, row.offset, row.apart) * k.inverse - row.log_ratio;
  if constexpr (kDivergence != kForward && kDivergence != kReverse) {
    const A d = x.p == A(0) && x.q == A(0) ? A(0) : x.d;
    const Class<A> both = class_of(x.q, x.p, d);
    x.difference = both.p_less_q;
    x.share = mixture_term<A, kDivergence>(both, beta, &x.slope, &x.part);
  } else {
    const A r = Math<A>::series(x.d), one_r = A(1) + x.d * r, q_d = x.q * x.d;
    const bool small = Math<A>::small(x.d);
    x.difference = small ? q_d * one_r : x.p - x.q;
    if constexpr (kDivergence == kForward) {
      const A p_d = x.p == A(0) ? A(0) : x.p * x.d;
      x.share = small ? (q_d * x.d) * (one_r - r) : p_d - x.difference;
    } else {
      const A guarded = x.q == A(0) ? A(0) : q_d;
      x.share = small ? (q_d * x.d) * r : x.difference - guarded;
      x.slope = -x.d;
      x.part = x.share;
    }
  }
  return x;
}

}  // namespace kdx::cuda
