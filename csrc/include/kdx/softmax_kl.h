// Launchers of softmax_kl and kd_loss: plain pointers, sizes and strides, so that one build serves every torch.
#pragma once

#include <cstdint>

#include "kdx/dtype.h"

namespace kdx {

// A tensor [O, C, I] of the call's dtype; strides in elements. A row (o, i) holds data[o*so + c*sc + i*si], c < C.
struct View {
  void* data;
  int64_t so, sc, si;
};

// The skewed ones are the halves of the JSD, KL(p || m) and KL(q || m) of the mixture m = beta p + (1 - beta) q.
enum Divergence : int { kForward = 0, kReverse = 1, kJsd = 2, kSkewForward = 3, kSkewReverse = 4 };

// Row r = o*I + i contributes kl_scale * kl_rows[r] * KL_r + ce_scale * ce_rows[r] * CE_r. The KL is taken at the
// temperature and carries no T^2, the cross-entropy is taken at temperature 1. A term whose row coefficient is 0 is not
// computed. "acc" is double for kFloat64 and float otherwise.
struct SoftmaxKl {
  View student;  // [O, C, I]
  View teacher;  // [O, C, I]
  View grad;     // [O, C, I] gradient of the sum of all rows with respect to student; data == nullptr: not wanted
  void* loss;    // acc: one number (reduce) or [R]
  const void* kl_rows;    // acc [R], or nullptr for ones
  const int64_t* labels;  // [R], or nullptr: no cross-entropy
  const void* ce_rows;    // acc [R], given exactly when labels is
  int64_t O, C, I;        // R = O * I rows of C classes, C >= 1
  double temperature, beta, kl_scale, ce_scale;
  int dtype;       // DType
  int divergence;  // Divergence
  bool reduce;
  void* ce_losses =
      nullptr;  // acc [R], zeros: the cross-entropies' part of the rows' losses; they are then not in loss
};

// out[k] = grad[k] * upstream[0] for n elements that lie densely; upstream is one acc number, and out may be grad.
struct ScaleGrad {
  const void* grad;
  const void* upstream;
  void* out;
  int64_t n;
  int dtype;
};

// All launchers return nullptr, or a message that says what went wrong.
const char* softmax_kl_cpu(const SoftmaxKl& call, int threads);
const char* scale_grad_cpu(const ScaleGrad& call, int threads);

// One launch. workspace: at least softmax_kl_cuda_workspace(call) bytes, zeroed once when allocated and used by one
// stream at a time; a finished call leaves it ready for the next. stream: a cudaStream_t of the current device.
int64_t softmax_kl_cuda_workspace(const SoftmaxKl& call);
const char* softmax_kl_cuda(const SoftmaxKl& call, void* workspace, int64_t workspace_bytes, void* stream);
const char* scale_grad_cuda(const ScaleGrad& call, void* stream);

}  // namespace kdx
