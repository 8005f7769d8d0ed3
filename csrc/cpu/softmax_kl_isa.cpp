// The rows of softmax_kl on a CPU. Compiled once per instruction set with KDX_ISA naming it; plain loops over
// csrc/common, which the compiler vectorises. No std:: templates in here: see common/hd.h.
//
// A row is swept three times (maxima; exponentials and their sums; terms and gradient), four times where the gradient
// needs the row's loss. The first sweep waits for memory and the second for arithmetic, so where the next row lies in
// place its maxima are found beside the exponentials of this one. A row stays in L2 between the sweeps. Sums run over
// fixed chunks, so results depend on nothing but the row.
#include "common/softmax_kl.h"
#include "cpu/element.h"
#include "cpu/softmax_kl_rows.h"

namespace kdx {
namespace KDX_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int64_t kLanes = 16;  // of a vector of floats
#else
constexpr int64_t kLanes = 8;
#endif
constexpr int64_t kShort = 128;   // columns below which a row is copied, so that it is one piece
constexpr int64_t kChunk = 1024;  // columns that are summed in the working precision; chunks are summed in double

// Whole vectors of a row.
template <class T>
struct Piece {
  int64_t n;
  const T* s;    // [n] student
  const T* t;    // [n] teacher
  T* g;          // [n] gradient or nullptr
  T *q, *p, *h;  // [n] scratch
};

// A row is filled up to whole vectors with classes that neither side has, which changes nothing and spares the scalar
// remainders. What is left of a row that lies in place is copied for that: the second piece, empty otherwise.
template <class T>
struct Row {
  Piece<T> pieces[2];
  T m_s, m_t;          // maxima
  T ahead_s, ahead_t;  // maxima of `next`, found with the exponentials of this row
  Piece<T> next;       // the first piece of the next row; empty where it is not in place or there is none
  T inv_t, beta;
  double kl, ce;   // coefficients; 0: the term is not computed
  double ce_loss;  // found: the cross-entropy times its coefficient
  int64_t label;
  T *moved_s[2], *moved_t[2];  // where each piece of student and teacher may be written anew
};

template <class T>
T larger(T a, T b) {
  return b > a ? b : a;
}

template <class T>
T max_of(const T* x, int64_t n) {
  T m = T(-INFINITY);
#pragma omp simd reduction(max : m)
  for (int64_t j = 0; j < n; ++j) m = x[j] > m ? x[j] : m;
  return m;
}

// e[j] = exp(x[j] - m); returns the sum.
template <class T>
double exponentials(const T* __restrict x, T m, T* __restrict e, int64_t n) {
  double total = 0;
  for (int64_t c = 0; c < n; c += kChunk) {
    const int64_t end = c + kChunk < n ? c + kChunk : n;
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = c; j < end; ++j) {
      e[j] = exp_nonpositive(x[j] - m);
      sum += e[j];
    }
    total += double(sum);
  }
  return total;
}

// Adds a piece to the row's statistics, in double; e_s, e_t: exp((x - m) / T) of student and teacher. kAhead: finds the
// maxima of `next` on the way.
template <bool kAhead, class T>
void add_statistics(const Piece<T>& piece, Row<T>& r, T centre, T ratio, RowStats<double>& total) {
  const T* __restrict s = piece.s, * __restrict t = piece.t;
  const T* __restrict next_s = kAhead ? r.next.s : s, * __restrict next_t = kAhead ? r.next.t : t;
  T* __restrict e_s = piece.q, * __restrict e_t = piece.p;
  const T inv_t = r.inv_t, m_s = r.m_s, m_t = r.m_t;
  T ahead_s = T(-INFINITY), ahead_t = T(-INFINITY);
  for (int64_t c = 0; c < piece.n; c += kChunk) {
    const int64_t end = c + kChunk < piece.n ? c + kChunk : piece.n;
    T l_s = 0, l_t = 0, dot = 0;
#pragma omp simd reduction(+ : l_s, l_t, dot) reduction(max : ahead_s, ahead_t)
    for (int64_t j = c; j < end; ++j) {
      const T a = exp_nonpositive((s[j] - m_s) * inv_t), b = exp_nonpositive((t[j] - m_t) * inv_t);
      const T y = log_ratio(s[j], t[j], inv_t) - centre;
      e_s[j] = a, e_t[j] = b;
      l_s += a, l_t += b;
      dot += abs_(y) < T(kTail) ? a * (y + y * y * expm1_tail(y)) : b * ratio - a;
      if (kAhead) {
        ahead_s = next_s[j] > ahead_s ? next_s[j] : ahead_s;
        ahead_t = next_t[j] > ahead_t ? next_t[j] : ahead_t;
      }
    }
    total.l_s += double(l_s), total.l_t += double(l_t), total.dot += double(dot);
  }
  if (kAhead) r.ahead_s = ahead_s, r.ahead_t = ahead_t;
}

template <class T>
RowStats<double> statistics(Row<T>& r, T centre) {
  // exp((t - s) / T - centre) = e_t / e_s * ratio: far from 1 it may be taken from the exponentials at hand.
  const T ratio = T(std::exp((double(r.m_t) - double(r.m_s)) * double(r.inv_t) - double(centre)));
  RowStats<double> total = {double(r.m_s), 0, double(r.m_t), 0, 0};
  if (r.next.n) {
    add_statistics<true>(r.pieces[0], r, centre, ratio, total);
  } else {
    add_statistics<false>(r.pieces[0], r, centre, ratio, total);
  }
  if (r.pieces[1].n) add_statistics<false>(r.pieces[1], r, centre, ratio, total);
  return total;
}

template <class T>
void move(Piece<T>& piece, T m_s, T m_t, T* to_s, T* to_t) {
  const T *s = piece.s, *t = piece.t;  // which may be to_s and to_t
#pragma omp simd
  for (int64_t j = 0; j < piece.n; ++j) to_s[j] = s[j] - m_s, to_t[j] = t[j] - m_t;
  piece.s = to_s, piece.t = to_t;
}

// Logits of student and teacher that lie far apart are measured from their own maxima: as t - s they would share the
// digits that their distance leaves. What that rounds is a part of each class's distance from the maximum.
template <class T>
void bring_together(Row<T>& r) {
  if (!maxima_apart(r.m_s, r.m_t, r.inv_t)) return;
  for (int k = 0; k < 2; ++k) move(r.pieces[k], r.m_s, r.m_t, r.moved_s[k], r.moved_t[k]);
  r.m_s = r.m_t = T(0);
}

// Terms of the loss; writes the forward gradient, or h for the sweep that follows. *slope grows by the sum of q h.
template <class T, int kDivergence, bool kGrad>
double terms(const Piece<T>& piece, T inv_t, T beta, T inv_ls, T inv_lt, T log_ratio_of_sums, T scale, double* slope) {
  const T* __restrict s = piece.s, * __restrict t = piece.t, * __restrict e_s = piece.q, * __restrict e_t = piece.p;
  T* __restrict g = piece.g, * __restrict h = piece.h;
  double total = 0, slopes = 0;
  for (int64_t c = 0; c < piece.n; c += kChunk) {
    const int64_t end = c + kChunk < piece.n ? c + kChunk : piece.n;
    T sum = 0, slope_sum = 0;
#pragma omp simd reduction(+ : sum, slope_sum)
    for (int64_t j = c; j < end; ++j) {
      const T d = log_ratio(s[j], t[j], inv_t) - log_ratio_of_sums;
      const Class<T> k = class_of(e_s[j] * inv_ls, e_t[j] * inv_lt, d);
      if (kDivergence == kForward) {
        sum += forward_term(k);
        if (kGrad) g[j] = -k.p_less_q * scale;
      } else if (kDivergence == kReverse) {
        sum += reverse_term(k);
        if (kGrad) h[j] = -d;
      } else {
        T log_ratio_to_mixture, part;
        sum += mixture_term<T, kDivergence>(k, beta, &log_ratio_to_mixture, &part);
        slope_sum += part;
        if (kGrad) h[j] = log_ratio_to_mixture;
      }
    }
    total += double(sum);
    slopes += double(slope_sum);
  }
  *slope += kDivergence == kReverse ? total : slopes;
  return total;
}

// g = scale * q (h - slope), and 0 for a class the student does not have (h is infinite there); NaN where the slope is.
template <class T>
void centred_gradient(const Piece<T>& piece, T inv_ls, T slope, T scale) {
  const T* __restrict e_s = piece.q, * __restrict h = piece.h;
  T* __restrict g = piece.g;
  const int64_t n = piece.n;
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    const T q = e_s[j] * inv_ls;
    g[j] = q * ((q == T(0) ? T(0) : h[j]) - slope) * scale;
  }
}

template <class T, int kDivergence>
double kl_of_row(Row<T>& r) {
  const T centre = centre_of(r.m_s, r.m_t, r.inv_t);
  const RowStats<double> stats = statistics(r, centre);
  const T ratio = T(log_partition_ratio<double>(stats, centre, r.inv_t));
  const T inv_ls = T(1 / stats.l_s), inv_lt = T(1 / stats.l_t);
  T scale = T(r.kl * r.inv_t);
  double loss = 0, slope = 0;
  for (const Piece<T>& piece : r.pieces) {
    if (!piece.n) continue;
    loss += piece.g ? terms<T, kDivergence, true>(piece, r.inv_t, r.beta, inv_ls, inv_lt, ratio, scale, &slope)
                    : terms<T, kDivergence, false>(piece, r.inv_t, r.beta, inv_ls, inv_lt, ratio, scale, &slope);
  }
  scale *= mixture_factor<T, kDivergence>(r.beta);
  for (const Piece<T>& piece : r.pieces) {
    if (kDivergence != kForward && piece.g) centred_gradient(piece, inv_ls, T(slope), scale);
  }
  return loss;
}

template <class T>
double cross_entropy_of_row(const Row<T>& r) {
  double sum = 0;
  for (const Piece<T>& piece : r.pieces) sum += exponentials(piece.s, r.m_s, piece.q, piece.n);
  const T scale = T(r.ce / sum);
  for (const Piece<T>& piece : r.pieces) {
    if (!piece.g) continue;
    const int64_t n = piece.n;
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) piece.g[j] += piece.q[j] * scale;
  }
  const bool in_first = r.label < r.pieces[0].n;
  const Piece<T>& piece = r.pieces[in_first ? 0 : 1];
  const int64_t at = in_first ? r.label : r.label - r.pieces[0].n;
  if (piece.g) piece.g[at] -= T(r.ce);
  return std::log(sum) + (double(r.m_s) - double(piece.s[at]));
}

template <class T>
void fill_zero(T* x, int64_t n) {
  for (int64_t j = 0; j < n; ++j) x[j] = T(0);
}

// The KL times its coefficient; the cross-entropy goes to r.ce_loss.
// *ahead: the maxima of this row are known from the row before; afterwards, those of the next row from this one.
template <class T>
double row_loss(Row<T>& r, int divergence, bool* ahead) {
  const bool known = *ahead;
  *ahead = r.kl != 0 && r.next.n;
  r.ce_loss = 0;
  for (const Piece<T>& piece : r.pieces) {
    if (piece.g && r.kl == 0) fill_zero(piece.g, piece.n);
  }
  if (r.kl == 0 && r.ce == 0) return 0;
  const Piece<T>&first = r.pieces[0], &rest = r.pieces[1];
  r.m_s = known ? r.ahead_s : max_of(first.s, first.n), r.m_t = known ? r.ahead_t : max_of(first.t, first.n);
  r.m_s = larger(r.m_s, max_of(rest.s, rest.n)), r.m_t = larger(r.m_t, max_of(rest.t, rest.n));
  double loss = 0;
  if (r.kl != 0) {
    bring_together(r);
    loss += r.kl * (divergence == kForward       ? kl_of_row<T, kForward>(r)
                    : divergence == kReverse     ? kl_of_row<T, kReverse>(r)
                    : divergence == kJsd         ? kl_of_row<T, kJsd>(r)
                    : divergence == kSkewForward ? kl_of_row<T, kSkewForward>(r)
                                                 : kl_of_row<T, kSkewReverse>(r));
  }
  if (r.ce != 0) r.ce_loss = r.ce * cross_entropy_of_row(r);
  return loss;
}

template <class In>
const Acc<In>* as_acc(const In*) {
  return nullptr;
}
inline const float* as_acc(const float* x) { return x; }
inline const double* as_acc(const double* x) { return x; }

// `count` rows from (o, i) on as [count][stride] in the accumulation type; the tensor's own memory where it already is
// that.
template <class In>
const Acc<In>* load(const View& v, int64_t o, int64_t i, int64_t count, int64_t C, int64_t stride, bool in_place,
                    Acc<In>* room) {
  const In* x = static_cast<const In*>(v.data) + o * v.so + i * v.si;
  if (v.sc == 1 && count == 1) {
    const Acc<In>* same = as_acc(x);
    if (same && in_place) return same;
#pragma omp simd
    for (int64_t j = 0; j < C; ++j) room[j] = widen(x[j]);
    return room;
  }
  for (int64_t j = 0; j < C; ++j) {
    for (int64_t k = 0; k < count; ++k) room[k * stride + j] = widen(x[j * v.sc + k * v.si]);
  }
  return room;
}

template <class In>
void store(const View& v, int64_t o, int64_t i, int64_t count, int64_t C, int64_t stride, const Acc<In>* from) {
  In* x = static_cast<In*>(v.data) + o * v.so + i * v.si;
  if (v.sc == 1 && count == 1) {
#pragma omp simd
    for (int64_t j = 0; j < C; ++j) narrow(from[j], &x[j]);
    return;
  }
  for (int64_t j = 0; j < C; ++j) {
    for (int64_t k = 0; k < count; ++k) narrow(from[k * stride + j], &x[j * v.sc + k * v.si]);
  }
}

// The first piece's remainder: where the row has been copied to, or for a row in place a copy in `room`, whose end has
// been filled.
template <class T>
const T* rest_of(const T* row, bool copied, int64_t first, int64_t C, T* room) {
  if (copied) return row + first;
  for (int64_t j = first; j < C; ++j) room[j - first] = row[j];
  return room;
}

template <class In>
void rows(const SoftmaxKl& call, int64_t begin, int64_t end, Acc<In>* scratch, double* row_losses) {
  using T = Acc<In>;
  const int64_t C = call.C, stride = softmax_kl_padded(call), block = softmax_kl_block(call);
  T *room_s = scratch, *room_t = room_s + block * stride, *room_g = room_t + block * stride;
  T* room_q = room_g + block * stride;
  const bool copy = C < kShort && C % kLanes != 0;
  const int64_t first = copy ? (C + kLanes - 1) / kLanes * kLanes : C / kLanes * kLanes, rest = first < C ? kLanes : 0;
  for (int64_t k = 0; k < block; ++k) {
    for (int64_t j = C; j < stride; ++j) room_s[k * stride + j] = room_t[k * stride + j] = T(-INFINITY);
  }
  alignas(64) T rest_s[kLanes], rest_t[kLanes], rest_g[kLanes];
  for (int64_t j = 0; j < kLanes; ++j) rest_s[j] = rest_t[j] = T(-INFINITY);
  Row<T> row;
  row.inv_t = T(1 / call.temperature), row.beta = T(call.beta);
  const T* kl_rows = static_cast<const T*>(call.kl_rows);
  const T* ce_rows = static_cast<const T*>(call.ce_rows);
  T* const ce_losses = static_cast<T*>(call.ce_losses);
  const View& grad = call.grad;
  const bool in_place = !copy && grad.data && grad.sc == 1 && block == 1 && as_acc(static_cast<const In*>(grad.data));
  bool ahead = false;
  for (int64_t r = begin; r < end;) {
    const int64_t o = r / call.I, i = r % call.I;
    int64_t count = block < end - r ? block : end - r;
    count = count < call.I - i ? count : call.I - i;
    const T* s = load<In>(call.student, o, i, count, C, stride, !copy, room_s);
    const T* t = load<In>(call.teacher, o, i, count, C, stride, !copy, room_t);
    T* g = room_g;
    if (in_place) g = reinterpret_cast<T*>(static_cast<In*>(grad.data) + o * grad.so + i * grad.si);
    const bool s_copied = s == room_s, t_copied = t == room_t;
    for (int64_t k = 0; k < count; ++k, ++r) {
      T* const g_k = grad.data ? g + k * stride : nullptr;
      T* g_rest = nullptr;
      if (g_k) g_rest = in_place ? rest_g : g_k + first;
      row.pieces[0] = {first, s + k * stride, t + k * stride, g_k, room_q, room_q + stride, room_q + 2 * stride};
      row.pieces[1] = row.pieces[0], row.pieces[1].n = rest;
      if (rest) {
        row.pieces[1] = {rest,
                         rest_of(s + k * stride, s_copied, first, C, rest_s),
                         rest_of(t + k * stride, t_copied, first, C, rest_t),
                         g_rest,
                         room_q + first,
                         room_q + stride + first,
                         room_q + 2 * stride + first};
      }
      row.moved_s[0] = room_s + k * stride, row.moved_t[0] = room_t + k * stride;
      row.moved_s[1] = s_copied ? row.moved_s[0] + first : rest_s;
      row.moved_t[1] = t_copied ? row.moved_t[0] + first : rest_t;
      row.next = row.pieces[0];
      row.next.n = 0;
      if (!s_copied && !t_copied && r + 1 < end) {
        const int64_t o1 = (r + 1) / call.I, i1 = (r + 1) % call.I;
        row.next.n = first;
        row.next.s = as_acc(static_cast<const In*>(call.student.data) + o1 * call.student.so + i1 * call.student.si);
        row.next.t = as_acc(static_cast<const In*>(call.teacher.data) + o1 * call.teacher.so + i1 * call.teacher.si);
      }
      row.kl = call.kl_scale * (kl_rows ? double(kl_rows[r]) : 1.0);
      row.ce = ce_rows ? call.ce_scale * double(ce_rows[r]) : 0.0;
      row.label = ce_rows ? call.labels[r] : 0;
      if (row.label < 0 || row.label >= C) row.label = 0, row.ce = row.ce == 0 ? 0 : double(NAN);
      row_losses[r] = row_loss(row, call.divergence, &ahead);
      if (ce_losses) {
        ce_losses[r] = T(row.ce_loss);
      } else {
        row_losses[r] += row.ce_loss;
      }
      if (rest && in_place) {
        for (int64_t j = first; j < C; ++j) g_k[j] = rest_g[j - first];
      }
    }
    if (grad.data && !in_place) store<In>(grad, o, i, count, C, stride, g);
  }
}

template <class In>
void scale(const ScaleGrad& call, int64_t begin, int64_t end) {
  const In* grad = static_cast<const In*>(call.grad);
  In* out = static_cast<In*>(call.out);
  const Acc<In> upstream = *static_cast<const Acc<In>*>(call.upstream);
#pragma omp simd
  for (int64_t k = begin; k < end; ++k) narrow(widen(grad[k]) * upstream, &out[k]);
}

}  // namespace

void softmax_kl_rows(const SoftmaxKl& call, int64_t begin, int64_t end, void* scratch, double* row_losses) {
  switch (call.dtype) {
    case kFloat32:
      return rows<float>(call, begin, end, static_cast<float*>(scratch), row_losses);
    case kFloat64:
      return rows<double>(call, begin, end, static_cast<double*>(scratch), row_losses);
    case kBFloat16:
      return rows<BFloat16>(call, begin, end, static_cast<float*>(scratch), row_losses);
    case kFloat16:
      return rows<Float16>(call, begin, end, static_cast<float*>(scratch), row_losses);
  }
}

void scale_grad_range(const ScaleGrad& call, int64_t begin, int64_t end) {
  switch (call.dtype) {
    case kFloat32:
      return scale<float>(call, begin, end);
    case kFloat64:
      return scale<double>(call, begin, end);
    case kBFloat16:
      return scale<BFloat16>(call, begin, end);
    case kFloat16:
      return scale<Float16>(call, begin, end);
  }
}

}  // namespace KDX_ISA
}  // namespace kdx
