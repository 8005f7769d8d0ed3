// Launchers of the relational losses (kdx.ops.rkd) and of kdx.ops.pairwise_sq_dist.
#pragma once

#include <cstdint>

#include "kdx/dtype.h"

namespace kdx {

// One set of points.
struct RkdInput {
  const void* data;       // [rows, columns]
  int dtype;              // DType
  int64_t columns;        // D
  int64_t row_stride;     // in elements
  int64_t column_stride;  // in elements
};

struct Rkd {
  RkdInput student;        // [N, D_s]
  RkdInput teacher;        // [N, D_t]
  int64_t rows;            // N
  int compute;             // kFloat32, or kFloat64 when an input is
  double distance_weight;  // 0: the distance loss is not computed
  double angle_weight;     // 0: the angle loss is not computed
  double delta;            // Huber's threshold, > 0
  void* loss;              // [1] of `compute`: distance_weight * RKD-D + angle_weight * RKD-A
  void* grad;              // [N, D_s] of `compute`, contiguous: d loss / d student; or nullptr
  int64_t block;           // points per block of the pair grid; 0: all of them up to the cap, see rkd_block
};

// S[i, j] = |x_i - y_j|^2
struct PairwiseSqDist {
  RkdInput x;     // [N, D]
  RkdInput y;     // [M, D]
  int64_t rows;   // N
  int64_t other;  // M
  int compute;    // kFloat32 or kFloat64
  void* out;      // [N, M] of `compute`, contiguous
};

// Points per block that a launcher takes when `block` is 0: all N up to 4096 with the angle loss (5 N^2 numbers, 336
// MB) and up to 8192 without it (N^2 numbers, 268 MB), else 1024. Blocks recompute distances instead of keeping them.
int64_t rkd_block(int64_t rows, bool with_angle);

// nullptr when it went well, otherwise what went wrong.
const char* rkd_cpu(const Rkd& op, int threads);
const char* pairwise_sq_dist_cpu(const PairwiseSqDist& op, int threads);

}  // namespace kdx
