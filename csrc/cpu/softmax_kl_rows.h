// One function per instruction set: rows [begin, end) of a call. softmax_kl_isa.cpp defines it, softmax_kl.cpp picks
// one.
#pragma once

#include "kdx/softmax_kl.h"

namespace kdx {

// scratch: at least softmax_kl_scratch(call) bytes of this thread's own, 64-byte aligned. losses: acc [R] or nullptr.
#define KDX_DECLARE_ROWS(isa)                                                                                 \
  namespace isa {                                                                                             \
  void softmax_kl_rows(const SoftmaxKl& call, int64_t begin, int64_t end, void* scratch, double* row_losses); \
  void scale_grad_range(const ScaleGrad& call, int64_t begin, int64_t end);                                   \
  }
KDX_DECLARE_ROWS(base)
KDX_DECLARE_ROWS(avx2)
KDX_DECLARE_ROWS(avx512)
#undef KDX_DECLARE_ROWS

// Rows that are gathered together when a row is not contiguous, so that neighbours share their cache lines.
inline int64_t softmax_kl_block(const SoftmaxKl& call) {
  const bool packed = call.student.sc != 1 || call.teacher.sc != 1 || (call.grad.data && call.grad.sc != 1);
  if (!packed || call.I == 1) return 1;
  const int64_t fit = (int64_t(1) << 16) / call.C;
  return fit < 1 ? 1 : fit > 16 ? 16 : fit;
}

inline int64_t softmax_kl_padded(const SoftmaxKl& call) { return (call.C + 15) / 16 * 16; }

// Three packed blocks (student, teacher, gradient) and three rows of exponentials.
inline int64_t softmax_kl_scratch(const SoftmaxKl& call) {
  const int64_t size = call.dtype == kFloat64 ? 8 : 4;
  return (3 * softmax_kl_block(call) + 3) * softmax_kl_padded(call) * size;
}

}  // namespace kdx
