// Two functions per instruction set: rows [begin, end) of a call, one after the other (softmax_kl_isa.cpp) or a vector
// of them at once (softmax_kl_lanes_isa.cpp). softmax_kl.cpp picks one.
#pragma once

#include "kdx/softmax_kl.h"

namespace kdx {

// scratch: at least softmax_kl_scratch(call) bytes of this thread's own, 64-byte aligned. losses: acc [R] or nullptr.
#define KDX_DECLARE_ROWS(isa)                                                                                  \
  namespace isa {                                                                                              \
  void softmax_kl_rows(const SoftmaxKl& call, int64_t begin, int64_t end, void* scratch, double* row_losses);  \
  void softmax_kl_lanes(const SoftmaxKl& call, int64_t begin, int64_t end, void* scratch, double* row_losses); \
  void scale_grad_range(const ScaleGrad& call, int64_t begin, int64_t end);                                    \
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

constexpr int64_t kLaneRows = 64;      // rows of a block of softmax_kl_lanes
constexpr int64_t kLaneClasses = 64;   // at most, where classes are neighbours: longer rows fill vectors of their own
constexpr int64_t kLaneImages = 4096;  // classes at most, where rows are neighbours: a block stays in L2

// Whether rows are taken a vector at a time. It does not depend on how many rows there are, so that a row's result does
// not either.
inline bool softmax_kl_by_lanes(const SoftmaxKl& call) {
  if (call.C <= kLaneClasses) return true;
  const bool neighbours = call.student.si == 1 && call.teacher.si == 1 && (!call.grad.data || call.grad.si == 1);
  return neighbours && call.I >= 16 && call.C <= kLaneImages;
}

inline int64_t softmax_kl_padded(const SoftmaxKl& call) { return (call.C + 15) / 16 * 16; }

// Three packed blocks (student, teacher, gradient) and three rows of exponentials, or five blocks of lanes.
inline int64_t softmax_kl_scratch(const SoftmaxKl& call) {
  const int64_t size = call.dtype == kFloat64 ? 8 : 4;
  if (softmax_kl_by_lanes(call)) return 5 * kLaneRows * call.C * size;
  return (3 * softmax_kl_block(call) + 3) * softmax_kl_padded(call) * size;
}

}  // namespace kdx
