#include "cpu/scratch.h"

#include <pthread.h>

#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

namespace kdx {

namespace {

constexpr std::size_t kKeep = std::size_t(32) << 20;

struct Kept {
  void* memory;
  std::size_t size;
};

std::mutex mutex;
std::vector<Kept>& kept() {
  static auto* blocks = new std::vector<Kept>;  // never destroyed: threads may still run when the process ends
  return *blocks;
}
std::size_t kept_bytes = 0;

// A fork copies the mutex as it is. Taken around the fork, it is free in the child, whose other threads are gone.
const int at_fork = pthread_atfork([] { mutex.lock(); }, [] { mutex.unlock(); }, [] { mutex.unlock(); });

}  // namespace

void* scratch_take(std::size_t bytes, std::size_t* size) {
  bytes = (bytes + 64) / 64 * 64;
  {
    const std::lock_guard<std::mutex> lock(mutex);
    std::vector<Kept>& blocks = kept();
    std::size_t best = blocks.size();
    for (std::size_t i = 0; i < blocks.size(); ++i) {
      const bool fits = blocks[i].size >= bytes && blocks[i].size <= 2 * bytes;
      if (fits && (best == blocks.size() || blocks[i].size < blocks[best].size)) best = i;
    }
    if (best != blocks.size()) {
      const Kept found = blocks[best];
      blocks.erase(blocks.begin() + std::ptrdiff_t(best));
      kept_bytes -= found.size;
      *size = found.size;
      return found.memory;
    }
  }
  void* memory = std::aligned_alloc(64, bytes);
  if (memory == nullptr) throw std::bad_alloc();
  *size = bytes;
  return memory;
}

void scratch_return(void* memory, std::size_t size) {
  std::vector<Kept> out;
  {
    const std::lock_guard<std::mutex> lock(mutex);
    if (size > kKeep) {
      out.push_back({memory, size});
    } else {
      std::vector<Kept>& blocks = kept();
      blocks.push_back({memory, size});
      kept_bytes += size;
      while (kept_bytes > kKeep) {  // the oldest go first
        out.push_back(blocks.front());
        kept_bytes -= blocks.front().size;
        blocks.erase(blocks.begin());
      }
    }
  }
  for (const Kept& block : out) std::free(block.memory);
}

}  // namespace kdx
