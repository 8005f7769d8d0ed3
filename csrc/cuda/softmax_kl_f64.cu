#include "cuda/softmax_kl_kernels.cuh"

namespace kdx::cuda {
KDX_SOFTMAX_KL_TYPED(double)
}  // namespace kdx::cuda
