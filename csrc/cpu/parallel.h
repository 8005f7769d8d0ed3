// Threads over a range, cut statically: which thread does an item never changes what the item's result is.
#pragma once

#if defined(_OPENMP)
#include <omp.h>
#endif

#include <cstdint>

namespace kdx {

// body(begin, end, thread) on up to `threads` threads, each with at least `grain` items.
template <class Body>
void parallel_for(int64_t n, int64_t grain, int threads, const Body& body) {
  int64_t parts = n / (grain < 1 ? 1 : grain);
  parts = parts > threads ? threads : parts;
#if defined(_OPENMP)
  if (parts > 1 && !omp_in_parallel()) {
#pragma omp parallel num_threads(int(parts))
    {
      const int64_t k = omp_get_thread_num(), of = omp_get_num_threads();
      body(n * k / of, n * (k + 1) / of, int(k));
    }
    return;
  }
#endif
  body(int64_t(0), n, 0);
}

}  // namespace kdx
