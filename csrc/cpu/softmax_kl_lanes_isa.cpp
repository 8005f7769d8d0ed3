// The rows of softmax_kl on a CPU, many at once: a lane of a vector is a row. For a few classes, where a row is shorter
// than a vector and what is computed once a row costs more than its classes, and for classes that are not neighbours
// (dim=1), where the same class of neighbouring rows is. Compiled once per instruction set with KDX_ISA naming it.
//
// A block of rows lies as [C][kRows] in scratch, where it does not do so in place. The sweeps are those of
// softmax_kl_isa.cpp: maxima; exponentials and their sums; terms and gradient; the gradient that needs the row's loss.
// Nothing passes from lane to lane, so results depend on nothing but the row.
#include "common/softmax_kl.h"
#include "cpu/element.h"
#include "cpu/softmax_kl_rows.h"

namespace kdx {
namespace KDX_ISA {
namespace {

constexpr int64_t kRows = kLaneRows;
constexpr int64_t kVector = 16;  // lanes come in whole vectors of this many, the widest there are
constexpr int64_t kChunk = 16;   // classes that are summed in the working precision; chunks are summed in double

// A block of rows: class j of row k is x[j * step + k].
template <class T>
struct Block {
  const T* x;
  int64_t step;
};

// What is known of each row of a block.
template <class T>
struct Rows {
  alignas(64) T m_s[kRows], m_t[kRows], centre[kRows], ratio[kRows], inv_ls[kRows], inv_lt[kRows], log_ratio[kRows];
  alignas(64) T scale[kRows], slope[kRows], kl[kRows], ce[kRows], part[3][kRows];
  alignas(64) double l_s[kRows], l_t[kRows], dot[kRows], loss[kRows], sum[kRows];
  int64_t label[kRows];
};

template <class In>
const Acc<In>* as_acc(const In*) {
  return nullptr;
}
inline const float* as_acc(const float* x) { return x; }
inline const double* as_acc(const double* x) { return x; }

// Row r of a view, and whether rows [r, r + count) are neighbours in memory.
template <class In>
In* row_at(const View& v, int64_t I, int64_t r) {
  return static_cast<In*>(v.data) + r / I * v.so + r % I * v.si;
}
inline bool neighbours(const View& v, int64_t I, int64_t r, int64_t count) { return v.si == 1 && (r % I + count <= I); }

// The rows from r on, one after the other, without a division for each.
template <class In>
class Walk {
 public:
  Walk(const View& v, int64_t I, int64_t r) : next_(v.so - (I - 1) * v.si), si_(v.si), I_(I), i_(r % I) {
    row_ = row_at<In>(v, I, r);
  }
  In* row() const { return row_; }
  void step() {
    const bool last = ++i_ == I_;
    row_ += last ? next_ : si_;
    i_ = last ? 0 : i_;
  }

 private:
  In* row_;
  int64_t next_, si_, I_, i_;
};

// Rows as [C][kRows]: those in place where their lanes are whole; others are copied, the lanes from count to width
// as rows of zeros.
template <class In>
Block<Acc<In>> load(const View& v, int64_t I, int64_t C, int64_t r, int64_t count, int64_t width, Acc<In>* room) {
  using T = Acc<In>;
  if (neighbours(v, I, r, count)) {
    const In* x = row_at<const In>(v, I, r);
    const T* same = as_acc(x);
    if (same && count == width) return {same, v.sc};
    for (int64_t j = 0; j < C; ++j) {
#pragma omp simd
      for (int64_t k = 0; k < count; ++k) room[j * kRows + k] = widen(x[j * v.sc + k]);
    }
  } else {
    Walk<const In> at(v, I, r);
    for (int64_t k = 0; k < count; ++k, at.step()) {
      const In* x = at.row();
      for (int64_t j = 0; j < C; ++j) room[j * kRows + k] = widen(x[j * v.sc]);
    }
  }
  for (int64_t k = count; k < width; ++k) {
    for (int64_t j = 0; j < C; ++j) room[j * kRows + k] = T(0);
  }
  return {room, kRows};
}

template <class In>
void store(const View& v, int64_t I, int64_t C, int64_t r, int64_t count, const Acc<In>* g) {
  if (neighbours(v, I, r, count)) {
    In* x = row_at<In>(v, I, r);
    for (int64_t j = 0; j < C; ++j) {
#pragma omp simd
      for (int64_t k = 0; k < count; ++k) narrow(g[j * kRows + k], &x[j * v.sc + k]);
    }
    return;
  }
  Walk<In> at(v, I, r);
  for (int64_t k = 0; k < count; ++k, at.step()) {
    In* x = at.row();
    for (int64_t j = 0; j < C; ++j) narrow(g[j * kRows + k], &x[j * v.sc]);
  }
}

template <class T>
void maxima(const Block<T>& block, int64_t C, int64_t width, T* __restrict m) {
#pragma omp simd
  for (int64_t k = 0; k < width; ++k) m[k] = T(-INFINITY);
  for (int64_t j = 0; j < C; ++j) {
    const T* __restrict x = block.x + j * block.step;
#pragma omp simd
    for (int64_t k = 0; k < width; ++k) m[k] = x[k] > m[k] ? x[k] : m[k];
  }
}

template <class T>
void add_to(double* __restrict total, T* __restrict part, int64_t width) {
#pragma omp simd
  for (int64_t k = 0; k < width; ++k) total[k] += double(part[k]), part[k] = T(0);
}

template <class T>
void clear(T* x, int64_t width) {
#pragma omp simd
  for (int64_t k = 0; k < width; ++k) x[k] = T(0);
}

// Rows whose maxima lie far apart are measured from their own, see bring_together in softmax_kl_isa.cpp.
template <class T>
void bring_together(Block<T>& s, Block<T>& t, int64_t C, int64_t width, T inv_t, Rows<T>& r, T* room_s, T* room_t) {
  int any = 0;
#pragma omp simd reduction(| : any)
  for (int64_t k = 0; k < width; ++k) any |= int(maxima_apart(r.m_s[k], r.m_t[k], inv_t));
  if (!any) return;
  alignas(64) T less_s[kRows], less_t[kRows];
  for (int64_t k = 0; k < width; ++k) {
    const bool apart = maxima_apart(r.m_s[k], r.m_t[k], inv_t) && r.kl[k] != T(0);
    less_s[k] = apart ? r.m_s[k] : T(0), less_t[k] = apart ? r.m_t[k] : T(0);
    if (apart) r.m_s[k] = r.m_t[k] = T(0);
  }
  for (int64_t j = 0; j < C; ++j) {
    const T *x = s.x + j * s.step, *y = t.x + j * t.step;
#pragma omp simd
    for (int64_t k = 0; k < width; ++k) {
      room_s[j * kRows + k] = x[k] - less_s[k], room_t[j * kRows + k] = y[k] - less_t[k];
    }
  }
  s = {room_s, kRows}, t = {room_t, kRows};
}

// The exponentials of both sides, and what follows from their sums.
template <class T>
void statistics(const Block<T>& s, const Block<T>& t, int64_t C, int64_t width, T inv_t, Rows<T>& r, T* e_s, T* e_t) {
#pragma omp simd
  for (int64_t k = 0; k < width; ++k) {
    const T c = centre_of(r.m_s[k], r.m_t[k], inv_t);
    r.centre[k] = c;
    // exp((t - s) / T - centre) = e_t / e_s * ratio; the exponent is what the rounding of centre has left.
    r.ratio[k] = T(1 + ((double(r.m_t[k]) - double(r.m_s[k])) * double(inv_t) - double(c)));
  }
  clear(r.l_s, width), clear(r.l_t, width), clear(r.dot, width);
  for (auto& part : r.part) clear(part, width);
  for (int64_t begin = 0; begin < C; begin += kChunk) {
    const int64_t end = begin + kChunk < C ? begin + kChunk : C;
    for (int64_t j = begin; j < end; ++j) {
      const T* __restrict x = s.x + j * s.step, * __restrict y = t.x + j * t.step;
      T* __restrict a = e_s + j * kRows, * __restrict b = e_t + j * kRows;
      T* __restrict l_s = r.part[0], * __restrict l_t = r.part[1], * __restrict dot = r.part[2];
      const T* __restrict m_s = r.m_s, * __restrict m_t = r.m_t, * __restrict centre = r.centre;
      const T* __restrict ratio = r.ratio;
#pragma omp simd
      for (int64_t k = 0; k < width; ++k) {
        const T p = exp_nonpositive((x[k] - m_s[k]) * inv_t), q = exp_nonpositive((y[k] - m_t[k]) * inv_t);
        const T d = log_ratio(x[k], y[k], inv_t) - centre[k];
        a[k] = p, b[k] = q;
        l_s[k] += p, l_t[k] += q;
        dot[k] += abs_(d) < T(kTail) ? p * (d + d * d * expm1_tail(d)) : q * ratio[k] - p;
      }
    }
    add_to(r.l_s, r.part[0], width), add_to(r.l_t, r.part[1], width), add_to(r.dot, r.part[2], width);
  }
  int far = 0;
#pragma omp simd reduction(| : far)
  for (int64_t k = 0; k < width; ++k) {
    const T x = T(r.dot[k] / r.l_s[k]);
    r.inv_ls[k] = T(1 / r.l_s[k]), r.inv_lt[k] = T(1 / r.l_t[k]);
    r.log_ratio[k] = r.centre[k] + log1p_(x);
    far |= int(!(x > T(-0.79) && x < T(0.99e6)));
  }
  for (int64_t k = 0; far && k < width; ++k) {  // where log1p is not the one to take
    const double x = r.dot[k] / r.l_s[k];
    if (x > -0.8 && x < 1e6) continue;
    const RowStats<double> stats = {double(r.m_s[k]), r.l_s[k], double(r.m_t[k]), r.l_t[k], r.dot[k]};
    r.log_ratio[k] = T(log_partition_ratio<double>(stats, double(r.centre[k]), double(inv_t)));
  }
}

// Terms of the loss; writes the forward gradient, or h for the sweep that follows.
template <class T, int kDivergence, bool kGrad>
void terms(const Block<T>& s, const Block<T>& t, int64_t C, int64_t width, T inv_t, T beta, Rows<T>& r, const T* e_s,
           const T* e_t, T* g, int64_t g_step) {
  clear(r.loss, width), clear(r.sum, width);
  clear(r.part[0], width), clear(r.part[1], width);
  for (int64_t begin = 0; begin < C; begin += kChunk) {
    const int64_t end = begin + kChunk < C ? begin + kChunk : C;
    for (int64_t j = begin; j < end; ++j) {
      const T* __restrict x = s.x + j * s.step, * __restrict y = t.x + j * t.step;
      const T* __restrict a = e_s + j * kRows, * __restrict b = e_t + j * kRows;
      T* __restrict h = kGrad ? g + j * g_step : nullptr;
      T* __restrict loss = r.part[0], * __restrict slope = r.part[1];
      const T* __restrict inv_ls = r.inv_ls, * __restrict inv_lt = r.inv_lt, * __restrict ratio = r.log_ratio;
      const T* __restrict scale = r.scale;
#pragma omp simd
      for (int64_t k = 0; k < width; ++k) {
        const T d = log_ratio(x[k], y[k], inv_t) - ratio[k];
        const Class<T> c = class_of(a[k] * inv_ls[k], b[k] * inv_lt[k], d);
        if (kDivergence == kForward) {
          loss[k] += forward_term(c);
          if (kGrad) h[k] = -c.p_less_q * scale[k];
        } else if (kDivergence == kReverse) {
          loss[k] += reverse_term(c);
          if (kGrad) h[k] = -d;
        } else {
          T to_mixture, part;
          loss[k] += mixture_term<T, kDivergence>(c, beta, &to_mixture, &part);
          slope[k] += part;
          if (kGrad) h[k] = to_mixture;
        }
      }
    }
    add_to(r.loss, r.part[0], width), add_to(r.sum, r.part[1], width);
  }
  if (!kGrad || kDivergence == kForward) return;
#pragma omp simd
  for (int64_t k = 0; k < width; ++k) {
    r.slope[k] = T(kDivergence == kReverse ? r.loss[k] : r.sum[k]);
    r.scale[k] *= mixture_factor<T, kDivergence>(beta);
  }
  for (int64_t j = 0; j < C; ++j) {
    const T* __restrict a = e_s + j * kRows;
    T* __restrict h = g + j * g_step;
    const T* __restrict inv_ls = r.inv_ls, * __restrict slope = r.slope, * __restrict scale = r.scale;
#pragma omp simd
    for (int64_t k = 0; k < width; ++k) {
      const T q = a[k] * inv_ls[k];
      h[k] = q * ((q == T(0) ? T(0) : h[k]) - slope[k]) * scale[k];
    }
  }
}

template <class T, int kDivergence>
void divergence(const Block<T>& s, const Block<T>& t, int64_t C, int64_t width, T inv_t, T beta, Rows<T>& r,
                const T* e_s, const T* e_t, T* g, int64_t g_step) {
  g ? terms<T, kDivergence, true>(s, t, C, width, inv_t, beta, r, e_s, e_t, g, g_step)
    : terms<T, kDivergence, false>(s, t, C, width, inv_t, beta, r, e_s, e_t, g, g_step);
}

// Adds the cross-entropy of the rows whose coefficient is not 0 to `losses`, and its gradient.
template <class T>
void cross_entropy(const Block<T>& s, int64_t C, int64_t count, int64_t width, Rows<T>& r, T* e, T* g, int64_t g_step,
                   double* losses) {
  clear(r.sum, width), clear(r.part[0], width);
  for (int64_t begin = 0; begin < C; begin += kChunk) {
    const int64_t end = begin + kChunk < C ? begin + kChunk : C;
    for (int64_t j = begin; j < end; ++j) {
      const T* __restrict x = s.x + j * s.step;
      T* __restrict a = e + j * kRows, * __restrict sum = r.part[0];
      const T* __restrict m = r.m_s;
#pragma omp simd
      for (int64_t k = 0; k < width; ++k) {
        a[k] = exp_nonpositive(x[k] - m[k]);
        sum[k] += a[k];
      }
    }
    add_to(r.sum, r.part[0], width);
  }
  for (int64_t k = 0; k < count; ++k) {
    if (r.ce[k] == T(0)) continue;
    losses[k] += double(r.ce[k]) * (std::log(r.sum[k]) + (double(r.m_s[k]) - double(s.x[r.label[k] * s.step + k])));
  }
  if (!g) return;
#pragma omp simd
  for (int64_t k = 0; k < width; ++k) r.scale[k] = T(double(r.ce[k]) / r.sum[k]);
  for (int64_t j = 0; j < C; ++j) {
    const T* __restrict a = e + j * kRows;
    T* __restrict h = g + j * g_step;
    const T* __restrict ce = r.ce, * __restrict scale = r.scale;
#pragma omp simd
    for (int64_t k = 0; k < width; ++k) h[k] = ce[k] == T(0) ? h[k] : h[k] + a[k] * scale[k];
  }
  for (int64_t k = 0; k < count; ++k) {
    if (r.ce[k] != T(0)) g[r.label[k] * g_step + k] -= r.ce[k];
  }
}

template <class In>
void lanes(const SoftmaxKl& call, int64_t begin, int64_t end, Acc<In>* scratch, double* row_losses) {
  using T = Acc<In>;
  const int64_t C = call.C, I = call.I, size = C * kRows;
  T *room_s = scratch, *room_t = room_s + size, *room_g = room_t + size, *e_s = room_g + size, *e_t = e_s + size;
  const T inv_t = T(1 / call.temperature), beta = T(call.beta);
  const T *kl_rows = static_cast<const T*>(call.kl_rows), *ce_rows = static_cast<const T*>(call.ce_rows);
  T* const apart = static_cast<T*>(call.ce_losses);
  Rows<T> r;
  for (int64_t at = begin; at < end;) {
    int64_t count = kRows < end - at ? kRows : end - at;
    if (I >= kVector && count > I - at % I) count = I - at % I;  // rows of one image, which are neighbours for dim=1
    const int64_t width = (count + kVector - 1) / kVector * kVector;
    bool any_kl = false, all_kl = true, any_ce = false;
    const bool alike = !kl_rows && !ce_rows && count == width;
    if (alike) {
      const T kl = T(call.kl_scale);
#pragma omp simd
      for (int64_t k = 0; k < width; ++k) r.kl[k] = kl, r.scale[k] = kl * inv_t;
      any_kl = all_kl = kl != T(0);
    }
    for (int64_t k = 0; !alike && k < width; ++k) {
      const bool inside = k < count;
      r.kl[k] = inside ? T(call.kl_scale * (kl_rows ? double(kl_rows[at + k]) : 1.0)) : T(0);
      r.ce[k] = inside && ce_rows ? T(call.ce_scale * double(ce_rows[at + k])) : T(0);
      r.label[k] = inside && ce_rows ? call.labels[at + k] : 0;
      if (r.label[k] < 0 || r.label[k] >= C) r.label[k] = 0, r.ce[k] = r.ce[k] == T(0) ? T(0) : T(NAN);
      r.scale[k] = r.kl[k] * inv_t;
      any_kl = any_kl || r.kl[k] != T(0), any_ce = any_ce || r.ce[k] != T(0);
      all_kl = all_kl && (!inside || r.kl[k] != T(0));
    }
    Block<T> s = load<In>(call.student, I, C, at, count, width, room_s);
    T* g = call.grad.data ? room_g : nullptr;
    int64_t g_step = kRows;
    if (g && count == width && neighbours(call.grad, I, at, count)) {
      In* first = row_at<In>(call.grad, I, at);
      if (as_acc(static_cast<const In*>(first))) g = reinterpret_cast<T*>(first), g_step = call.grad.sc;
    }
    double losses[kRows] = {}, ce_losses[kRows] = {};
    maxima(s, C, width, r.m_s);
    if (any_kl) {
      Block<T> t = load<In>(call.teacher, I, C, at, count, width, room_t);
      maxima(t, C, width, r.m_t);
      bring_together(s, t, C, width, inv_t, r, room_s, room_t);
      statistics(s, t, C, width, inv_t, r, e_s, e_t);
      switch (call.divergence) {
        case kForward:
          divergence<T, kForward>(s, t, C, width, inv_t, beta, r, e_s, e_t, g, g_step);
          break;
        case kReverse:
          divergence<T, kReverse>(s, t, C, width, inv_t, beta, r, e_s, e_t, g, g_step);
          break;
        case kJsd:
          divergence<T, kJsd>(s, t, C, width, inv_t, beta, r, e_s, e_t, g, g_step);
          break;
        case kSkewForward:
          divergence<T, kSkewForward>(s, t, C, width, inv_t, beta, r, e_s, e_t, g, g_step);
          break;
        default:
          divergence<T, kSkewReverse>(s, t, C, width, inv_t, beta, r, e_s, e_t, g, g_step);
      }
#pragma omp simd
      for (int64_t k = 0; k < width; ++k) losses[k] = r.kl[k] == T(0) ? 0.0 : double(r.kl[k]) * r.loss[k];
    }
    if (g && !all_kl) {  // rows without a divergence, whatever they hold
      for (int64_t j = 0; j < C; ++j) {
        T* __restrict h = g + j * g_step;
#pragma omp simd
        for (int64_t k = 0; k < width; ++k) h[k] = r.kl[k] == T(0) ? T(0) : h[k];
      }
    }
    if (any_ce) cross_entropy(s, C, count, width, r, e_s, g, g_step, apart ? ce_losses : losses);
    if (g == room_g) store<In>(call.grad, I, C, at, count, g);
    for (int64_t k = 0; k < count; ++k) row_losses[at + k] = losses[k];
    for (int64_t k = 0; apart && k < count; ++k) apart[at + k] = T(ce_losses[k]);
    at += count;
  }
}

}  // namespace

void softmax_kl_lanes(const SoftmaxKl& call, int64_t begin, int64_t end, void* scratch, double* row_losses) {
  switch (call.dtype) {
    case kFloat32:
      return lanes<float>(call, begin, end, static_cast<float*>(scratch), row_losses);
    case kFloat64:
      return lanes<double>(call, begin, end, static_cast<double*>(scratch), row_losses);
    case kBFloat16:
      return lanes<BFloat16>(call, begin, end, static_cast<float*>(scratch), row_losses);
    case kFloat16:
      return lanes<Float16>(call, begin, end, static_cast<float*>(scratch), row_losses);
  }
}

}  // namespace KDX_ISA
}  // namespace kdx
