// The rows of topk_kl on a CPU. Compiled once per instruction set with KDX_ISA naming it; see softmax_kl_isa.cpp.
//
// A row's logits are read once, a chunk at a time: its maximum, the exponentials under it, which stay in L2, and their
// sum. The classes that the teacher lists are left out of the sum where they are to be. Then the few classes are
// compared in double or by softmax_kl, and the gradient is the exponentials times one factor for each chunk, with the
// listed classes written by themselves. Sums run over fixed chunks, so results depend on nothing but the row.
#include <cmath>
#include <cstring>

#include "common/softmax_kl.h"
#include "cpu/element.h"
#include "cpu/topk_kl_rows.h"

namespace kdx {
namespace KDX_ISA {
namespace {

constexpr double kVanishing = 0x1p-60;  // a sum of exponentials below it may have lost some of them

template <class T>
T highest(const T* x, int64_t n) {
  T m = T(-INFINITY);
#pragma omp simd reduction(max : m)
  for (int64_t j = 0; j < n; ++j) m = x[j] > m ? x[j] : m;
  return m;
}

template <class T>
T sum_of(const T* x, int64_t n) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < n; ++j) sum += x[j];
  return sum;
}

// e[j] = exp((x[j] - base) / T)
template <class T>
void exponentials(const T* __restrict x, T base, T inv_t, T* __restrict e, int64_t n) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) e[j] = exp_nonpositive((x[j] - base) * inv_t);
}

template <class T>
T finite(T m) {
  return m == T(-INFINITY) ? T(0) : m;
}

template <class In>
const Acc<In>* as_acc(const In*) {
  return nullptr;
}
inline const float* as_acc(const float* x) { return x; }
inline const double* as_acc(const double* x) { return x; }

inline float* as_acc(float* x) { return x; }
inline double* as_acc(double* x) { return x; }
inline float* as_acc(BFloat16*) { return nullptr; }
inline float* as_acc(Float16*) { return nullptr; }

// What a thread needs for one row after another.
template <class In>
class Worker {
 public:
  using T = Acc<In>;

  Worker(const TopkKl& of, void* scratch) : call(of), inv_t(T(1 / of.temperature)), dense(scratch) {
    const TopkScratch size(of);
    chunks = (of.C + kTopkChunk - 1) / kTopkChunk;
    take(&e, size.row), take(&e1, size.row), take(&other, size.row);
    take(&sum, size.chunks), take(&sum1, size.chunks), take(&base, size.chunks), take(&base1, size.chunks);
    take(&from, size.chunks);
    take(&who, size.few), take(&few_s, size.few), take(&few_t, size.few), take(&few_g, size.few);
    take(&piece, topk_kl_padded(kTopkChunk * 8));
  }

  // Returns whether the row lists a class twice.
  bool row(int64_t r) {
    s = static_cast<const In*>(call.student) + r * call.student_row;
    g = call.grad ? static_cast<In*>(call.grad) + r * call.C : nullptr;
    ids = call.ids + r * call.K;
    known = static_cast<const T*>(call.known) + r * (call.K + 1);
    kl = call.kl_scale * double(static_cast<const T*>(call.kl_rows)[r]);
    ce = call.ce_rows ? call.ce_scale * double(static_cast<const T*>(call.ce_rows)[r]) : 0;
    label = ce != 0 ? call.labels[r] : 0;
    if (label < 0 || label >= call.C) label = 0, ce = double(NAN);
    T* const loss = static_cast<T*>(call.loss) + r;
    if (kl == 0 && ce == 0) {
      if (g) std::memset(g, 0, std::size_t(call.C) * sizeof(In));
      *loss = T(0);
      return false;
    }
    if (!list()) kl = double(NAN);
    if (call.tail == kEven && kl != 0) {
      const bool again = any_listed_twice();
      *loss = T(even(r));
      return again;
    }
    const bool second = ce != 0 && call.temperature != 1;
    const bool again = second ? sums<true>() : sums<false>();
    *loss = T(losses(second));
    if (g) second ? gradient<true>() : gradient<false>();
    return again;
  }

 private:
  const TopkKl& call;
  const T inv_t;
  void* dense;               // scratch of softmax_kl, behind all others
  int64_t chunks;            // of a row
  T *e, *e1;                 // [C] exponentials at the temperature, and at 1
  T* other;                  // [C] the teacher's logits of kEven
  T* piece;                  // [kTopkChunk]
  double *sum, *sum1;        // [chunks] of the exponentials; without the listed classes of kBucket in the first
  double *base, *base1;      // [chunks] the logits that they are under; -inf where there is no class
  int64_t *from, *who;       // [chunks + 1], [K]: chunk c has the listed classes who[from[c]] .. who[from[c + 1]]
  T *few_s, *few_t, *few_g;  // [K + 1] logits of the listed classes and of all others, the teacher's, the gradient

  // Of the row at hand.
  const In* s;
  In* g;
  const int64_t* ids;
  const T* known;
  double kl, ce;
  int64_t label;
  double of_rest, of_all;  // a class's gradient is of_rest exp((z - top) / T) + of_all exp(z - top1)
  double top, top1;        // the largest of base and base1

  template <class U>
  void take(U** to, int64_t bytes) {
    *to = static_cast<U*>(dense);
    dense = static_cast<char*>(dense) + bytes;
  }

  int64_t size(int64_t c) const { return c + 1 < chunks ? kTopkChunk : call.C - c * kTopkChunk; }

  const T* load(int64_t c) {
    const In* x = s + c * kTopkChunk;
    if (const T* same = as_acc(x)) return same;
    const int64_t n = size(c);
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) piece[j] = widen(x[j]);
    return piece;
  }

  // The listed classes of each chunk and their logits; false where there is a number that is no class. None where there
  // is no KL.
  bool list() {
    bool fits = true;
    for (int64_t c = 0; c <= chunks; ++c) from[c] = 0;
    for (int64_t k = 0; k < call.K; ++k) {
      const bool there = kl != 0 && ids[k] >= 0 && ids[k] < call.C;
      fits = fits && (kl == 0 || ids[k] < call.C);
      few_s[k] = there ? widen(s[ids[k]]) : T(-INFINITY);
      if (there) ++from[ids[k] / kTopkChunk + 1];
    }
    for (int64_t c = 0; c < chunks; ++c) from[c + 1] += from[c];
    for (int64_t k = 0; k < call.K; ++k) {
      if (kl != 0 && ids[k] >= 0 && ids[k] < call.C) who[from[ids[k] / kTopkChunk]++] = k;
    }
    for (int64_t c = chunks; c > 0; --c) from[c] = from[c - 1];
    from[0] = 0;
    return fits;
  }

  bool any_listed_twice() {
    bool again = false;
    for (int64_t a = 0; a < from[chunks]; ++a) e1[ids[who[a]]] = T(0);
    for (int64_t a = 0; a < from[chunks]; ++a) {
      T& mark = e1[ids[who[a]]];
      again = again || mark == T(1);
      mark = T(1);
    }
    return again;
  }

  // The exponentials of every chunk and their sums. Returns whether a class is listed twice and may not be.
  template <bool kSecond>
  bool sums() {
    bool again = false;
    for (int64_t c = 0; c < chunks; ++c) {
      const int64_t n = size(c), first = c * kTopkChunk;
      T* const to = g ? e + first : e;  // without a gradient nothing is kept
      T* const to1 = g ? e1 + first : e1;
      const T* z = load(c);
      const T m = highest(z, n);
      base[c] = base1[c] = double(m);
      exponentials(z, finite(m), inv_t, to, n);
      if (kSecond) {
        exponentials(z, finite(m), T(1), to1, n);
        sum1[c] = double(sum_of(to1, n));
      }
      if (call.tail == kBucket && from[c] < from[c + 1]) {
        again = leave_out(c, to) || again;
        sum[c] = double(sum_of(to, n));
        if (sum[c] < kVanishing) sums_of_rest(c, z, to);
      } else {
        if (call.tail != kSampled && from[c] < from[c + 1]) again = any_twice(c, to) || again;
        sum[c] = double(sum_of(to, n));
      }
    }
    return again;
  }

  bool leave_out(int64_t c, T* to) {
    bool again = false;
    for (int64_t a = from[c]; a < from[c + 1]; ++a) {
      T& x = to[ids[who[a]] - c * kTopkChunk];
      again = again || x == T(-1);
      x = T(-1);
    }
    for (int64_t a = from[c]; a < from[c + 1]; ++a) to[ids[who[a]] - c * kTopkChunk] = T(0);
    return again;
  }

  bool any_twice(int64_t c, T* to) {  // few_g keeps what is marked
    bool again = false;
    for (int64_t a = from[c]; a < from[c + 1]; ++a) {
      T& x = to[ids[who[a]] - c * kTopkChunk];
      again = again || x == T(-1);
      few_g[a] = x, x = T(-1);
    }
    for (int64_t a = from[c + 1]; a-- > from[c];) to[ids[who[a]] - c * kTopkChunk] = few_g[a];
    return again;
  }

  // Anew, under the maximum of the classes that are not listed: the listed ones are so far above them that their
  // exponentials vanished.
  void sums_of_rest(int64_t c, const T* z, T* to) {
    const int64_t n = size(c);
    if (z != piece) std::memcpy(piece, z, std::size_t(n) * sizeof(T));
    for (int64_t a = from[c]; a < from[c + 1]; ++a) piece[ids[who[a]] - c * kTopkChunk] = T(-INFINITY);
    const T m = highest(piece, n);
    base[c] = double(m);
    exponentials(piece, finite(m), inv_t, to, n);
    sum[c] = double(sum_of(to, n));
  }

  // exp((of - top) / T), 0 for a chunk without classes.
  static double share(double of, double top, double inv_t) {
    return of == -double(INFINITY) ? 0 : std::exp((of - top) * inv_t);
  }

  double total(const double* of, const double* under, double top, double inv_t) const {
    double all = 0;
    for (int64_t c = 0; c < chunks; ++c) all += of[c] * share(under[c], top, inv_t);
    return all;
  }

  // The row's loss, and what its gradient is made of.
  double losses(bool second) {
    top = top1 = -double(INFINITY);
    for (int64_t c = 0; c < chunks; ++c) {
      top = base[c] > top ? base[c] : top;
      top1 = base1[c] > top1 ? base1[c] : top1;
    }
    const double rest = total(sum, base, top, double(inv_t));
    of_rest = of_all = 0;
    double loss = 0;
    if (kl != 0) loss += call.tail == kBucket ? bucket(rest) : weighted(rest);
    if (ce != 0) {
      double all = second ? total(sum1, base1, top1, 1) : total(sum, base, top1, 1);
      if (!second && call.tail == kBucket) {
        for (int64_t k = 0; k < from[chunks]; ++k) all += exp_nonpositive(double(few_s[who[k]]) - top1);
      }
      of_all = ce / all;
      loss += ce * (std::log(all) + (top1 - double(widen(s[label]))));
    }
    return loss;
  }

  // K + 1 classes, the last of which is all that are not listed.
  double bucket(double rest) {
    const T temperature = T(call.temperature);
    few_s[call.K] = rest == 0 ? T(-INFINITY) : T(top + call.temperature * std::log(rest));
    for (int64_t k = 0; k <= call.K; ++k) few_t[k] = temperature * known[k];
    SoftmaxKl few = topk_kl_dense(call, call.K + 1);
    few.student.data = few_s, few.teacher.data = few_t, few.grad.data = g ? few_g : nullptr;
    few.kl_scale = kl;
    double loss = 0;
    softmax_kl_rows(few, 0, 1, dense, &loss);
    if (g && rest != 0) of_rest = double(few_g[call.K]) / rest;
    return loss;
  }

  // sum w (log p - log q); few_g becomes -w / T times the coefficient.
  double weighted(double all) {
    const double log_all = top * double(inv_t) + std::log(all);
    double count = 0, scale = 0;
    for (int64_t k = 0; k < call.K; ++k) {
      count += ids[k] >= 0;
      if (call.tail == kRenormalise && ids[k] >= 0) scale += exp_nonpositive(double(known[k]));
    }
    const double log_scale = call.tail == kRenormalise ? std::log(scale) : 0;
    double loss = 0, weights = 0;
    for (int64_t k = 0; k < call.K; ++k) {
      few_g[k] = T(0);
      if (ids[k] < 0) continue;
      const double log_p = double(known[k]) - log_scale;
      const double w = call.tail == kSampled ? 1 / count : exp_(log_p);
      if (w == 0) continue;
      loss += w * (log_p - (double(few_s[k]) * double(inv_t) - log_all));
      weights += w;
      few_g[k] = T(-w * kl * double(inv_t));
    }
    of_rest = weights * kl * double(inv_t) / all;
    return kl * loss;
  }

  template <bool kSecond>
  void gradient() {
    for (int64_t c = 0; c < chunks; ++c) {
      const int64_t n = size(c), first = c * kTopkChunk;
      double factor = of_rest * share(base[c], top, double(inv_t));
      if (!kSecond) factor += of_all * share(base[c], top1, 1);
      const T f = T(factor), f1 = kSecond ? T(of_all * share(base1[c], top1, 1)) : T(0);
      T* const same = as_acc(g + first);
      T* __restrict to = same ? same : piece;
      const T* __restrict x = e + first, * __restrict y = e1 + first;
#pragma omp simd
      for (int64_t j = 0; j < n; ++j) to[j] = kSecond ? x[j] * f + y[j] * f1 : x[j] * f;
      for (int64_t a = from[c]; a < from[c + 1]; ++a) {
        const int64_t k = who[a];
        T add = few_g[k];
        // Its exponential at T = 1 was left out with the one at the temperature.
        if (!kSecond && call.tail == kBucket && ce != 0) {
          add += T(of_all * exp_nonpositive(double(few_s[k]) - top1));
        }
        to[ids[k] - first] += add;
      }
      if (ce != 0 && label >= first && label < first + n) to[label - first] -= T(ce);
      if (same) continue;
#pragma omp simd
      for (int64_t j = 0; j < n; ++j) narrow(to[j], &g[first + j]);
    }
  }

  // The teacher's row in full, for as long as it is looked at, against softmax_kl.
  double even(int64_t r) {
    const int64_t C = call.C, others = C - from[chunks];
    const T temperature = T(call.temperature);
    const T each = others > 0 ? temperature * (known[call.K] - T(std::log(double(others)))) : T(-INFINITY);
    for (int64_t j = 0; j < C; ++j) other[j] = each;
    for (int64_t a = 0; a < from[chunks]; ++a) other[ids[who[a]]] = temperature * known[who[a]];
    const T* same = as_acc(s);
    if (!same) {
#pragma omp simd
      for (int64_t j = 0; j < C; ++j) e[j] = widen(s[j]);
    }
    T* const to = g ? as_acc(g) ? as_acc(g) : e1 : nullptr;
    SoftmaxKl all = topk_kl_dense(call, C);
    all.student.data = const_cast<T*>(same ? same : e), all.teacher.data = other, all.grad.data = to;
    all.kl_scale = kl;
    all.ce_scale = call.ce_scale;
    if (call.ce_rows) all.labels = call.labels + r, all.ce_rows = static_cast<const T*>(call.ce_rows) + r;
    double loss = 0;
    softmax_kl_rows(all, 0, 1, dense, &loss);
    if (g && !as_acc(g)) {
#pragma omp simd
      for (int64_t j = 0; j < C; ++j) narrow(e1[j], &g[j]);
    }
    return loss;
  }
};

template <class In>
int64_t rows(const TopkKl& call, int64_t begin, int64_t end, void* scratch) {
  Worker<In> worker(call, scratch);
  int64_t twice = -1;
  for (int64_t r = begin; r < end; ++r) {
    if (worker.row(r)) twice = r;
  }
  return twice;
}

}  // namespace

int64_t topk_kl_rows(const TopkKl& call, int64_t begin, int64_t end, void* scratch) {
  switch (call.dtype) {
    case kFloat32:
      return rows<float>(call, begin, end, scratch);
    case kFloat64:
      return rows<double>(call, begin, end, scratch);
    case kBFloat16:
      return rows<BFloat16>(call, begin, end, scratch);
    case kFloat16:
      return rows<Float16>(call, begin, end, scratch);
  }
  return -1;
}

}  // namespace KDX_ISA
}  // namespace kdx
