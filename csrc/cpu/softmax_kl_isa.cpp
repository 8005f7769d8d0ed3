// The rows of softmax_kl on a CPU. Compiled once per instruction set with KDX_ISA naming it; plain loops over
// csrc/common, which the compiler vectorises. No std:: templates in here: see common/hd.h.
//
// A row is swept three times (maxima; exponentials and their sums; terms and gradient), four times where the gradient
// needs the row's loss. It stays in L2 between the sweeps. Sums run over fixed chunks, so results depend on nothing but
// the row.
#include "common/softmax_kl.h"
#include "cpu/element.h"
#include "cpu/softmax_kl_rows.h"

namespace kdx {
namespace KDX_ISA {
namespace {

constexpr int64_t kLanes = 8;     // of a vector of floats with AVX2
constexpr int64_t kShort = 128;   // columns below which a row is filled up to whole vectors
constexpr int64_t kChunk = 1024;  // columns that are summed in the working precision; chunks are summed in double

template <class T>
struct Row {
  const T* s;    // [C] student
  const T* t;    // [C] teacher
  T* g;          // [C] gradient or nullptr
  T *q, *p, *h;  // [C] scratch
  int64_t C;
  T inv_t, beta;
  double kl, ce;  // coefficients; 0: the term is not computed
  int64_t label;
};

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

// The row's statistics, in double; e_s, e_t: exp((x - m) / T) of student and teacher.
template <class T>
RowStats<double> statistics(const Row<T>& r, T m_s, T centre) {
  const T* __restrict s = r.s, * __restrict t = r.t;
  T* __restrict e_s = r.q, * __restrict e_t = r.p;
  const T inv_t = r.inv_t, m_t = max_of(t, r.C);
  // exp((t - s) / T - centre) = e_t / e_s * ratio: far from 1 it may be taken from the exponentials at hand.
  const T ratio = T(std::exp((double(m_t) - double(m_s)) * double(inv_t) - double(centre)));
  RowStats<double> total = {double(m_s), 0, double(m_t), 0, 0};
  for (int64_t c = 0; c < r.C; c += kChunk) {
    const int64_t end = c + kChunk < r.C ? c + kChunk : r.C;
    T l_s = 0, l_t = 0, dot = 0;
#pragma omp simd reduction(+ : l_s, l_t, dot)
    for (int64_t j = c; j < end; ++j) {
      const T a = exp_nonpositive((s[j] - m_s) * inv_t), b = exp_nonpositive((t[j] - m_t) * inv_t);
      const T y = log_ratio(s[j], t[j], inv_t) - centre;
      e_s[j] = a, e_t[j] = b;
      l_s += a, l_t += b;
      dot += abs_(y) < T(kTail) ? a * (y + y * y * expm1_tail(y)) : b * ratio - a;
    }
    total.l_s += double(l_s), total.l_t += double(l_t), total.dot += double(dot);
  }
  return total;
}

// Terms of the loss; writes the forward gradient, or h for the sweep that follows. *slope: sum of q h.
template <class T, int kDivergence, bool kGrad>
double terms(const Row<T>& r, T inv_ls, T inv_lt, T log_ratio_of_sums, T scale, double* slope) {
  const T* __restrict s = r.s, * __restrict t = r.t, * __restrict e_s = r.q, * __restrict e_t = r.p;
  T* __restrict g = r.g, * __restrict h = r.h;
  const T inv_t = r.inv_t, beta = r.beta;
  double total = 0, slopes = 0;
  for (int64_t c = 0; c < r.C; c += kChunk) {
    const int64_t end = c + kChunk < r.C ? c + kChunk : r.C;
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
        sum += jsd_term(k, beta, &log_ratio_to_mixture, &part);
        slope_sum += part;
        if (kGrad) h[j] = log_ratio_to_mixture;
      }
    }
    total += double(sum);
    slopes += double(slope_sum);
  }
  *slope = kDivergence == kReverse ? total : slopes;
  return total;
}

// g = scale * q (h - slope), and 0 for a class the student does not have (h is infinite there).
template <class T>
void centred_gradient(const Row<T>& r, T inv_ls, T slope, T scale) {
  const T* __restrict e_s = r.q, * __restrict h = r.h;
  T* __restrict g = r.g;
  const int64_t n = r.C;
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    const T q = e_s[j] * inv_ls, centred = q * (h[j] - slope) * scale;
    g[j] = q == T(0) ? T(0) : centred;
  }
}

template <class T, int kDivergence>
double kl_of_row(const Row<T>& r, T m_s) {
  const T centre = centre_of(r.s[0], r.t[0], r.inv_t);
  const RowStats<double> stats = statistics(r, m_s, centre);
  const T ratio = T(log_partition_ratio<double>(stats, centre, r.inv_t));
  const T inv_ls = T(1 / stats.l_s), inv_lt = T(1 / stats.l_t);
  double slope;
  if (!r.g) return terms<T, kDivergence, false>(r, inv_ls, inv_lt, ratio, T(0), &slope);
  T scale = T(r.kl * r.inv_t);
  const double loss = terms<T, kDivergence, true>(r, inv_ls, inv_lt, ratio, scale, &slope);
  if (kDivergence == kJsd) scale *= T(1) - r.beta;
  if (kDivergence != kForward) centred_gradient(r, inv_ls, T(slope), scale);
  return loss;
}

template <class T>
double cross_entropy_of_row(const Row<T>& r, T m_s) {
  const double sum = exponentials(r.s, m_s, r.q, r.C);
  if (r.g) {
    const T scale = T(r.ce / sum);
#pragma omp simd
    for (int64_t j = 0; j < r.C; ++j) r.g[j] += r.q[j] * scale;
    r.g[r.label] -= T(r.ce);
  }
  return std::log(sum) + (double(m_s) - double(r.s[r.label]));
}

template <class T>
void fill_zero(T* x, int64_t n) {
  for (int64_t j = 0; j < n; ++j) x[j] = T(0);
}

template <class T>
double row_loss(const Row<T>& r, int divergence) {
  if (r.g && r.kl == 0) fill_zero(r.g, r.C);
  if (r.kl == 0 && r.ce == 0) return 0;
  const T m_s = max_of(r.s, r.C);
  double loss = 0;
  if (r.kl != 0) {
    loss += r.kl * (divergence == kForward   ? kl_of_row<T, kForward>(r, m_s)
                    : divergence == kReverse ? kl_of_row<T, kReverse>(r, m_s)
                                             : kl_of_row<T, kJsd>(r, m_s));
  }
  if (r.ce != 0) loss += r.ce * cross_entropy_of_row(r, m_s);
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

template <class In>
void rows(const SoftmaxKl& call, int64_t begin, int64_t end, Acc<In>* scratch, double* row_losses) {
  using T = Acc<In>;
  const int64_t C = call.C, stride = softmax_kl_padded(call), block = softmax_kl_block(call);
  T *room_s = scratch, *room_t = room_s + block * stride, *room_g = room_t + block * stride;
  Row<T> row;
  row.q = room_g + block * stride, row.p = row.q + stride, row.h = row.p + stride;
  row.inv_t = T(1 / call.temperature), row.beta = T(call.beta);
  // Short rows are filled up to whole vectors with classes that neither side has, which changes nothing and spares the
  // scalar remainders that would take most of the time.
  const bool fill = C < kShort && C % kLanes != 0;
  row.C = fill ? (C + kLanes - 1) / kLanes * kLanes : C;
  for (int64_t k = 0; k < block; ++k) {
    for (int64_t j = C; j < row.C; ++j) room_s[k * stride + j] = room_t[k * stride + j] = T(-INFINITY);
  }
  const T* kl_rows = static_cast<const T*>(call.kl_rows);
  const T* ce_rows = static_cast<const T*>(call.ce_rows);
  const View& grad = call.grad;
  const bool in_place = !fill && grad.data && grad.sc == 1 && block == 1 && as_acc(static_cast<const In*>(grad.data));
  for (int64_t r = begin; r < end;) {
    const int64_t o = r / call.I, i = r % call.I;
    int64_t count = block < end - r ? block : end - r;
    count = count < call.I - i ? count : call.I - i;
    const T* s = load<In>(call.student, o, i, count, C, stride, !fill, room_s);
    const T* t = load<In>(call.teacher, o, i, count, C, stride, !fill, room_t);
    T* g = room_g;
    if (in_place) g = reinterpret_cast<T*>(static_cast<In*>(grad.data) + o * grad.so + i * grad.si);
    for (int64_t k = 0; k < count; ++k, ++r) {
      row.s = s + k * stride, row.t = t + k * stride, row.g = grad.data ? g + k * stride : nullptr;
      row.kl = call.kl_scale * (kl_rows ? double(kl_rows[r]) : 1.0);
      row.ce = ce_rows ? call.ce_scale * double(ce_rows[r]) : 0.0;
      row.label = ce_rows ? call.labels[r] : 0;
      if (row.label < 0 || row.label >= C) row.label = 0, row.ce = row.ce == 0 ? 0 : double(NAN);
      row_losses[r] = row_loss(row, call.divergence);
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
