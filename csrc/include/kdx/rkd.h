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

// The stages on a GPU; kdx/ops/_rkd/pair_grid.py calls them one after the other. All numbers but the inputs are
// float32.
//
// A stage works on a block of the pair grid, rows i0 .. i0 + ni and columns j0 .. j0 + nj. It is symmetric when rows
// and columns are the same points: then only the tiles on and above the diagonal are computed, the others are mirrored,
// and a tile above the diagonal counts twice in every sum.
struct RkdBlock {
  int64_t points;  // N
  int64_t i0, ni, j0, nj;
  bool symmetric;
};

// Squared distances of both inputs, and partial sums of the positive distances.
struct RkdMeasure {
  RkdInput student, teacher;
  RkdBlock block;
  float* s_square;  // [ni, nj]
  float* t_square;  // [ni, nj]
  float* sums;      // [4, programs]: sum and number of the student's, of the teacher's; or nullptr
};

// Huber's loss of the distances and B = sum psi d, over `size` pairs.
struct RkdDistance {
  const float* s_square;  // [size]
  const float* t_square;  // [size]
  int64_t size;
  const float* s_means;  // [2, counts]: partial sums and numbers of the positive distances
  const float* t_means;  // [2, counts]
  int64_t counts;
  float delta;
  float* out;  // [2, programs]
};

// Every pair of the block against every k: dL/dS_ij, and Huber's loss of the angles.
struct RkdAngle {
  const float* s_i;  // [N, ni] squared distances of all points to the block's rows
  const float* t_i;
  const float* s_j;  // [N, nj] and to its columns
  const float* t_j;
  RkdBlock block;
  float delta, scale;  // scale = angle_weight / N^3
  float* v;            // [ni, nj], or nullptr: no gradient
  float* losses;       // [programs]
};

// Rows i of 2 (diag(V 1) - V) X over the columns j; V is the sum of `v` and of that of the distances.
struct RkdGradient {
  RkdInput points;  // [N, D]
  RkdBlock block;
  const float* s_square;  // [ni, nj] by the strides below; nullptr: no distance loss
  const float* t_square;
  const float* v;  // nullptr: no angle loss
  int64_t row_stride, column_stride;
  const float* s_means;  // as in RkdDistance
  const float* t_means;
  int64_t counts;
  const float* sums;  // [2, sum_count] of RkdDistance
  int64_t sum_count;
  const float* losses;  // [loss_count] of RkdAngle
  int64_t loss_count;
  float delta;
  float pairs;  // N^2
  float distance_weight;
  float scale;  // angle_weight / N^3
  float* out;   // [N, D] contiguous
  bool accumulate;
  float* loss;  // [1], or nullptr
};

// Partial sums ("programs") that a stage writes for a block, or for so many pairs.
int64_t rkd_measure_programs(const RkdBlock& block);
int64_t rkd_distance_programs(int64_t size);
int64_t rkd_angle_programs(const RkdBlock& block);
const char* rkd_measure_cuda(const RkdMeasure& call, void* stream);
const char* rkd_distance_cuda(const RkdDistance& call, void* stream);
const char* rkd_angle_cuda(const RkdAngle& call, void* stream);
const char* rkd_gradient_cuda(const RkdGradient& call, void* stream);
const char* pairwise_sq_dist_cuda(const PairwiseSqDist& call, void* stream);

}  // namespace kdx
