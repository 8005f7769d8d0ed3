// One function per instruction set: rows [begin, end) of a call. topk_kl_isa.cpp defines it, topk_kl.cpp picks one.
#pragma once

#include "cpu/softmax_kl_rows.h"
#include "kdx/topk_kl.h"

namespace kdx {

// scratch: at least topk_kl_scratch(call) bytes of this thread's own, 64-byte aligned. Returns a row that lists a class
// twice, or -1.
#define KDX_DECLARE_ROWS(isa)                                                          \
  namespace isa {                                                                      \
  int64_t topk_kl_rows(const TopkKl& call, int64_t begin, int64_t end, void* scratch); \
  }
KDX_DECLARE_ROWS(base)
KDX_DECLARE_ROWS(avx2)
KDX_DECLARE_ROWS(avx512)
#undef KDX_DECLARE_ROWS

constexpr int64_t kTopkChunk = 1024;  // classes that are worked on while they are in L1

// A row of K + 1 (or C) classes as softmax_kl has it; its tensors lie in scratch.
inline SoftmaxKl topk_kl_dense(const TopkKl& call, int64_t classes) {
  SoftmaxKl dense{};
  dense.student.sc = dense.teacher.sc = dense.grad.sc = 1;
  dense.O = dense.I = 1;
  dense.C = classes;
  dense.temperature = call.temperature, dense.beta = call.beta;
  dense.dtype = call.dtype == kFloat64 ? kFloat64 : kFloat32;
  dense.divergence = call.divergence;
  return dense;
}

inline int64_t topk_kl_padded(int64_t bytes) { return (bytes + 63) / 64 * 64; }

// The parts of a thread's scratch, each in whole cache lines.
struct TopkScratch {
  int64_t row, chunks, few, dense;  // bytes of a row, of a number for each chunk, of K + 1 numbers, of softmax_kl's
  explicit TopkScratch(const TopkKl& call) {
    const int64_t size = call.dtype == kFloat64 ? 8 : 4, count = (call.C + kTopkChunk - 1) / kTopkChunk;
    row = topk_kl_padded(call.C * size);
    chunks = topk_kl_padded((count + 1) * 8);
    few = topk_kl_padded((call.K + 1) * 8);
    const int64_t classes = call.tail == kEven && call.C > call.K ? call.C : call.K + 1;
    dense = topk_kl_padded(softmax_kl_scratch(topk_kl_dense(call, classes)));
  }
  int64_t bytes() const { return 3 * row + 5 * chunks + 4 * few + dense + topk_kl_padded(kTopkChunk * 8); }
};

}  // namespace kdx
