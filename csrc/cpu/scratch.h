// Scratch memory that survives the call: fresh pages from the system cost more than some of the work done in them.
#pragma once

#include <cstddef>

namespace kdx {

// At least `bytes` of uninitialised memory aligned to a cache line; throws std::bad_alloc. `size` is what
// scratch_return wants to know. Safe from any thread.
void* scratch_take(std::size_t bytes, std::size_t* size);

// Gives it back. Up to 32 MB in all are kept for the next call, what is beyond goes back to the system.
void scratch_return(void* memory, std::size_t size);

// Scratch memory for as long as this lives.
class Scratch {
 public:
  explicit Scratch(std::size_t bytes) : memory_(scratch_take(bytes, &size_)) {}
  Scratch(const Scratch&) = delete;
  ~Scratch() { scratch_return(memory_, size_); }
  char* get() const { return static_cast<char*>(memory_); }

 private:
  std::size_t size_ = 0;  // declared first: it is set while memory_ is being made
  void* memory_;
};

}  // namespace kdx
