// Launchers of topk_kl: a row of the student's logits against a few classes of the teacher's.
#pragma once

#include <cstdint>

#include "kdx/softmax_kl.h"

namespace kdx {

// What becomes of the classes that a row does not list; the numbers are those of kdx/ops/_linear_kl/call.py.
enum Tail : int { kBucket = 1, kEven = 2, kRenormalise = 3, kDrop = 4, kSampled = 5 };

// Row r contributes kl_scale * kl_rows[r] * KL_r + ce_scale * ce_rows[r] * CE_r, as in SoftmaxKl. A row whose
// coefficients are both 0 is never read, and its gradient is 0.
struct TopkKl {
  const void* student;    // [N, C]
  int64_t student_row;    // elements from a row to the next; classes are neighbours
  const int64_t* ids;     // [N, K], negative where a row has no class
  const void* known;      // acc [N, K + 1]: log-probabilities of the classes, of all others last
  const void* kl_rows;    // acc [N]
  const int64_t* labels;  // [N], or nullptr: no cross-entropy
  const void* ce_rows;    // acc [N], given exactly when labels is
  void* grad;             // [N, C] without gaps: of the sum of all rows; nullptr: not wanted
  void* loss;             // acc [N]
  int64_t N, K, C;
  double temperature, beta, kl_scale, ce_scale;
  int dtype;       // DType
  int divergence;  // Divergence, of kBucket and kEven
  int tail;        // Tail
};

// *twice: a row that lists a class more than once (but for kSampled, where that is right), or -1.
const char* topk_kl_cpu(const TopkKl& call, int threads, int64_t* twice);

// The two sweeps on a GPU; kdx/ops/_topk_kl/sweeps.py calls them. "acc" is double for kFloat64 and float otherwise.
struct TopkSums {
  const void* student;    // [N, C]
  int64_t student_row;    // elements from a row to the next; classes are neighbours
  const int64_t* ids;     // [N, K] in ascending order, negative where a row has no class
  const uint8_t* counts;  // [N], 0: the row is never read
  void* few;              // acc [N, K + 1]: the listed classes' logits, then T logsumexp(z / T)
  void* total_1;          // acc [N]: logsumexp(z) of all classes; nullptr: not wanted
  int64_t N, K, C;
  double temperature;
  int dtype;
  bool without;  // the listed classes are left out of the sum at the temperature
};

// grad = rest exp((z - total) / T) + ce (exp(z - total_1) - [label]); a listed class has `add` instead of the first
// term (without) or beside it.
struct TopkGradient {
  TopkSums sums;          // few and total_1 are not looked at
  void* grad;             // [N, C] without gaps
  const void* add;        // acc [N, K]
  const void* rest;       // acc [N]
  const void* total;      // acc [N]
  const void* ce;         // acc [N], or nullptr: no cross-entropy
  const void* total_1;    // acc [N], given with ce
  const int64_t* labels;  // [N], given with ce
};

const char* topk_kl_sums_cuda(const TopkSums& call, void* stream);
const char* topk_kl_gradient_cuda(const TopkGradient& call, void* stream);

}  // namespace kdx
