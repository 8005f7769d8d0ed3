// Checks, degenerate sizes and the choice of the instruction set for the relational kernels.
#include "kdx/rkd.h"

#include <cstring>
#include <new>

#include "cpu/isa.h"
#include "cpu/rkd_isa.h"

namespace kdx {

namespace {

bool valid(const RkdInput& x) { return x.dtype >= kFloat32 && x.dtype <= kFloat16 && x.columns >= 0; }

bool valid_compute(int dtype) { return dtype == kFloat32 || dtype == kFloat64; }

std::size_t size_of(int dtype) { return dtype == kFloat64 ? sizeof(double) : sizeof(float); }

int at_least_one(int threads) { return threads < 1 ? 1 : threads; }

}  // namespace

int64_t rkd_block(int64_t rows, bool with_angle) {
  const int64_t cap = with_angle ? 4096 : 8192;
  return rows <= cap ? rows : 1024;
}

const char* rkd_cpu(const Rkd& call, int threads) try {
  if (!valid(call.student) || !valid(call.teacher) || !valid_compute(call.compute)) return "rkd: unknown dtype";
  if (call.rows < 0 || call.block < 0) return "rkd: sizes must not be negative";
  if (!(call.delta > 0)) return "rkd: delta must be positive";
  if (call.rows < 2 || (call.distance_weight == 0 && call.angle_weight == 0)) {
    // No pair, or nothing asked for: 0 with zero gradients.
    const std::size_t size = size_of(call.compute);
    std::memset(call.loss, 0, size);
    if (call.grad) std::memset(call.grad, 0, size * static_cast<std::size_t>(call.rows * call.student.columns));
    return nullptr;
  }
  Rkd cut = call;
  if (cut.block == 0) cut.block = rkd_block(call.rows, call.angle_weight != 0);
  pick(KDX_VERSIONS(rkd))(cut, at_least_one(threads));
  return nullptr;
} catch (const std::bad_alloc&) {
  return "rkd: out of memory";
}

const char* pairwise_sq_dist_cpu(const PairwiseSqDist& call, int threads) try {
  if (!valid(call.x) || !valid(call.y) || !valid_compute(call.compute)) return "pairwise_sq_dist: unknown dtype";
  if (call.rows < 0 || call.other < 0) return "pairwise_sq_dist: sizes must not be negative";
  if (call.x.columns != call.y.columns) return "pairwise_sq_dist: x and y must have as many columns";
  if (call.rows == 0 || call.other == 0) return nullptr;
  pick(KDX_VERSIONS(pairwise_sq_dist))(call, at_least_one(threads));
  return nullptr;
} catch (const std::bad_alloc&) {
  return "pairwise_sq_dist: out of memory";
}

}  // namespace kdx
