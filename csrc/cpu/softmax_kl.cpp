// Threads, scratch memory and the final sum of softmax_kl on a CPU.
#include "kdx/softmax_kl.h"

#include <new>
#include <vector>

#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"
#include "cpu/softmax_kl_rows.h"

namespace kdx {

namespace {

constexpr int64_t kGrain = 1 << 14;  // elements below which a thread costs more than it brings

template <class T>
void store_losses(const SoftmaxKl& call, const double* rows, int64_t n) {
  T* out = static_cast<T*>(call.loss);
  if (call.reduce) {
    double sum = 0;
    for (int64_t r = 0; r < n; ++r) sum += rows[r];
    *out = T(sum);
    return;
  }
  for (int64_t r = 0; r < n; ++r) out[r] = T(rows[r]);
}

}  // namespace

const char* softmax_kl_cpu(const SoftmaxKl& call, int threads) try {
  const int64_t n = call.O * call.I;
  if (n < 0 || call.C < 1) return "softmax_kl: sizes must be O, I >= 0 and C >= 1";
  if (call.dtype < kFloat32 || call.dtype > kFloat16) return "softmax_kl: unknown dtype";
  if (call.divergence < kForward || call.divergence > kSkewReverse) return "softmax_kl: unknown divergence";
  if ((call.labels == nullptr) != (call.ce_rows == nullptr)) return "softmax_kl: labels and ce_rows go together";
  std::vector<double> losses(n);
  const auto rows =
      softmax_kl_by_lanes(call) ? pick(KDX_VERSIONS(softmax_kl_lanes)) : pick(KDX_VERSIONS(softmax_kl_rows));
  const int64_t bytes = (softmax_kl_scratch(call) + 63) / 64 * 64, grain = kGrain / call.C + 1;
  const Scratch scratch(static_cast<std::size_t>(bytes * threads_for(n, grain, threads)));
  parallel_for(n, grain, threads, [&](int64_t begin, int64_t end, int thread) {
    if (begin != end) rows(call, begin, end, scratch.get() + bytes * thread, losses.data());
  });
  call.dtype == kFloat64 ? store_losses<double>(call, losses.data(), n) : store_losses<float>(call, losses.data(), n);
  return nullptr;
} catch (const std::bad_alloc&) {
  return "softmax_kl: out of memory";
}

const char* scale_grad_cpu(const ScaleGrad& call, int threads) {
  if (call.dtype < kFloat32 || call.dtype > kFloat16) return "scale_grad: unknown dtype";
  const auto range = pick(KDX_VERSIONS(scale_grad_range));
  parallel_for(call.n, 4 * kGrain, threads, [&](int64_t begin, int64_t end, int) { range(call, begin, end); });
  return nullptr;
}

}  // namespace kdx
