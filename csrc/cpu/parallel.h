// Threads over a range, cut into more pieces than threads: which thread takes a piece never changes what an item's
// result is.
#pragma once

#if defined(_OPENMP)
#include <omp.h>
#endif

#include <cstdint>

namespace kdx {

// Threads that a range of n items with at least `grain` in a piece keeps busy.
inline int threads_for(int64_t n, int64_t grain, int threads) {
  const int64_t pieces = n / (grain < 1 ? 1 : grain);
#if defined(_OPENMP)
  if (!omp_in_parallel() && threads > 1 && pieces > 1) return static_cast<int>(pieces < threads ? pieces : threads);
#endif
  return 1;
}

// body(begin, end, thread) on threads_for(...) threads. Pieces are handed out as threads come for them, because cores
// are not always equally fast.
template <class Body>
void parallel_for(int64_t n, int64_t grain, int threads, const Body& body) {
  constexpr int64_t kPieces = 8;  // a thread
  threads = threads_for(n, grain, threads);
#if defined(_OPENMP)
  if (threads > 1) {
    const int64_t most = n / (grain < 1 ? 1 : grain), pieces = most < threads * kPieces ? most : threads * kPieces;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t k = 0; k < pieces; ++k) body(n * k / pieces, n * (k + 1) / pieces, omp_get_thread_num());
    return;
  }
#endif
  body(int64_t(0), n, 0);
}

}  // namespace kdx
