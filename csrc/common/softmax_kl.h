// The maths of one row of softmax_kl, shared by the CPU and CUDA kernels. kdx/ops/_softmax_kl/README.md derives it.
//
// Everything is written so that nearly equal teachers and students lose no digits: differences of probabilities come
// from expm1 of the log-ratio d, and each term of a loss is non-negative by itself. Infinite logits are selected away,
// never multiplied away.
#pragma once

#include "common/elementary.h"
#include "kdx/softmax_kl.h"

namespace kdx {

// What a part of a row (a tile, a block's slice, a rank's shard) knows. Maxima are raw logits and therefore exact.
template <class T>
struct RowStats {
  T m_s, l_s;  // max s, sum exp((s - m_s) / T)
  T m_t, l_t;  // the same of the teacher
  T dot;       // sum exp((s - m_s) / T) expm1((t - s) / T - centre)
};

template <class T>
KDX_HD RowStats<T> empty_stats() {
  return {T(-INFINITY), T(0), T(-INFINITY), T(0), T(0)};
}

// exp((from - to) / T) for from <= to; the part whose maximum is the maximum keeps its sums as they are, which also
// covers two empty parts (-inf and -inf).
template <class T>
KDX_HD T rescale(T from, T to, T inv_t) {
  return from == to ? T(1) : exp_nonpositive((from - to) * inv_t);
}

// Associative; `empty_stats` is neutral.
template <class T>
KDX_HD RowStats<T> merge(const RowStats<T>& a, const RowStats<T>& b, T inv_t) {
  const T m_s = a.m_s > b.m_s ? a.m_s : b.m_s, m_t = a.m_t > b.m_t ? a.m_t : b.m_t;
  const T a_s = rescale(a.m_s, m_s, inv_t), b_s = rescale(b.m_s, m_s, inv_t);
  const T a_t = rescale(a.m_t, m_t, inv_t), b_t = rescale(b.m_t, m_t, inv_t);
  return {m_s, a.l_s * a_s + b.l_s * b_s, m_t, a.l_t * a_t + b.l_t * b_t, a.dot * a_s + b.dot * b_s};
}

// (t - s) / T; 0 where both are -inf: such a class does not exist for either side.
template <class T>
KDX_HD T log_ratio(T s, T t, T inv_t) {
  return t == s ? T(0) : (t - s) * inv_t;
}

// Whether the (finite) maxima of student and teacher are so far apart that t - s loses digits which the losses need:
// beyond this many units of T, more than four bits.
template <class T>
KDX_HD bool maxima_apart(T m_s, T m_t, T inv_t) {
  const bool finite = abs_(m_s) < T(INFINITY) && abs_(m_t) < T(INFINITY);  // false for NaN
  return finite && abs_(m_t - m_s) * inv_t > T(16);
}

// The common offset of a pair of rows, read off their maxima, so that a teacher shifted by a constant costs no digits
// and a class that the sides disagree about costs none where neither thinks much of it.
template <class T>
KDX_HD T centre_of(T m_s, T m_t, T inv_t) {
  const T c = log_ratio(m_s, m_t, inv_t);
  return abs_(c) < T(INFINITY) ? c : T(0);  // false for NaN
}

// L_t - L_s, the difference of the log-sum-exps. log1p keeps its relative precision where the rows nearly agree; far
// from there (the argument of log1p close to -1, huge, or not a number) the plain difference is the better one.
template <class T>
KDX_HD T log_partition_ratio(const RowStats<T>& r, T centre, T inv_t) {
  const T x = r.dot / r.l_s;
  if (x > T(-0.8) && x < T(1e6)) return centre + log1p_(x);
  return (r.m_t - r.m_s) * inv_t + log_(r.l_t / r.l_s);
}

// One class of one row.
template <class T>
struct Class {
  T q, p;      // probability of the student, of the teacher
  T d;         // log p - log q
  T p_less_q;  // p - q
  T tail;      // (expm1(d) - d) / d^2, where near
  bool near;   // |d| is small: p - q is taken as q expm1(d), because as a difference it would lose its digits
};

template <class T>
KDX_HD Class<T> class_of(T q, T p, T d) {
  const bool near = abs_(d) < T(kTail);
  const T tail = expm1_tail(d);
  return {q, p, d, near ? q * (d + d * d * tail) : p - q, tail, near};
}

// The class's share of a loss; every one is non-negative by itself, and sum p = sum q = 1 cancels what was added for
// that. Gradients with respect to the student's logit: forward -p_less_q / T; reverse q (-d - loss) / T.
template <class T>
KDX_HD T forward_term(const Class<T>& k) {  // p d - (p - q)
  const T far = k.p == T(0) ? -k.p_less_q : k.p * k.d - k.p_less_q;
  return k.near ? k.q * (k.d * k.d) * (T(1) + (k.d - T(1)) * k.tail) : far;
}

template <class T>
KDX_HD T reverse_term(const Class<T>& k) {  // (p - q) - q d
  const T far = k.q == T(0) ? k.p_less_q : k.p_less_q - k.q * k.d;
  return k.near ? k.q * (k.d * k.d) * k.tail : far;
}

// x (expm1(w) - w), given x expm1(w), for a probability x; w may be infinite where x is 0.
template <class T>
KDX_HD T excess(T x, T w, T x_expm1_w) {
  const T far = x == T(0) ? x_expm1_w : x_expm1_w - x * w;
  return abs_(w) < T(kTail) ? x * (w * w) * expm1_tail(w) : far;
}

// What the gradient of a divergence from the mixture is multiplied by, see mixture_term.
template <class T, int kDivergence>
KDX_HD T mixture_factor(T beta) {
  return kDivergence == kJsd || kDivergence == kSkewForward ? T(1) - beta : T(1);
}

// With the mixture m = beta p + (1 - beta) q: the class's share of beta KL(p || m) + (1 - beta) KL(q || m), of KL(p ||
// m) or of KL(q || m). The gradient with respect to the student's logit is factor q (h - sum of parts) / T (0 where q
// is 0), with the factor of mixture_factor. Of the JSD h = log(q / m); x = (p - q) / m comes in where the two halves do
// not have its weights, and sum q x = -beta sum (p - q) x.
template <class T, int kDivergence>
KDX_HD T mixture_term(const Class<T>& k, T beta, T* h, T* part) {
  const bool up = k.d > T(0);
  const T a = expm1_(up ? -k.d : k.d);
  const T y = (up ? T(1) - beta : beta) * a;
  const T c = log1p_(y);
  const T u = up ? k.d + c : c;  // log(m / q)
  const T w = up ? c : c - k.d;  // log(m / p)
  if constexpr (kDivergence != kJsd) {
    const T x = (T(1) - beta) * ((up ? -a : a) / (T(1) + y));
    if constexpr (kDivergence == kSkewForward) {
      *h = -x;
      *part = beta * k.p_less_q * x;
      return excess(k.p, w, -(T(1) - beta) * k.p_less_q);
    } else {
      const T share = excess(k.q, u, beta * k.p_less_q);
      *h = beta * x - u;
      *part = share - beta * beta * k.p_less_q * x;
      return share;
    }
  } else {
    *h = -u;
    *part = excess(k.q, u, beta * k.p_less_q);
    return beta * excess(k.p, w, -(T(1) - beta) * k.p_less_q) + (T(1) - beta) * *part;
  }
}

}  // namespace kdx
