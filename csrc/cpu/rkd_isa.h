// The relational kernels as compiled for each instruction set; rkd.cpp chooses.
#pragma once

#include "kdx/rkd.h"

namespace kdx {

#define KDX_DECLARE_RKD(isa)                                    \
  namespace isa {                                               \
  void rkd(const Rkd& op, int threads);                         \
  void pairwise_sq_dist(const PairwiseSqDist& op, int threads); \
  }
KDX_DECLARE_RKD(base)
KDX_DECLARE_RKD(avx2)
KDX_DECLARE_RKD(avx512)
#undef KDX_DECLARE_RKD

}  // namespace kdx
