// Threads and scratch memory of topk_kl on a CPU.
#include "kdx/topk_kl.h"

#include <new>
#include <vector>

#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"
#include "cpu/topk_kl_rows.h"

namespace kdx {

const char* topk_kl_cpu(const TopkKl& call, int threads, int64_t* twice) try {
  *twice = -1;
  if (call.N < 0 || call.C < 1 || call.K < 1) return "topk_kl: sizes must be N >= 0, C >= 1, K >= 1";
  if (call.dtype < kFloat32 || call.dtype > kFloat16) return "topk_kl: unknown dtype";
  if (call.tail < kBucket || call.tail > kSampled) return "topk_kl: unknown tail";
  if (!(call.temperature > 0)) return "topk_kl: temperature must be positive";
  if ((call.labels == nullptr) != (call.ce_rows == nullptr)) return "topk_kl: labels and ce_rows go together";
  const auto rows = pick(KDX_VERSIONS(topk_kl_rows));
  const int64_t bytes = TopkScratch(call).bytes(), grain = (int64_t(1) << 14) / call.C + 1;
  const int most = threads_for(call.N, grain, threads);
  const Scratch scratch(static_cast<std::size_t>(bytes * most));
  std::vector<int64_t> found(most, -1);
  parallel_for(call.N, grain, threads, [&](int64_t begin, int64_t end, int thread) {
    if (begin == end) return;
    const int64_t row = rows(call, begin, end, scratch.get() + bytes * thread);
    if (row >= 0) found[thread] = row;
  });
  for (const int64_t row : found) *twice = row >= 0 ? row : *twice;
  return nullptr;
} catch (const std::bad_alloc&) {
  return "topk_kl: out of memory";
}

}  // namespace kdx
