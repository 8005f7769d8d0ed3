#include "cuda/softmax_kl_kernels.cuh"

namespace kdx::cuda {
KDX_SOFTMAX_KL_TYPED(__nv_bfloat16)
}  // namespace kdx::cuda
