// What the relational kernels share: reading points, roots of squared distances, sums over a block of threads.
#pragma once

#include "common/rkd.h"
#include "cuda/device.cuh"
#include "kdx/dtype.h"
#include "kdx/rkd.h"

namespace kdx::cuda {

// Below the smallest normal number a squared distance counts as that of exact duplicates; comparisons keep NaN.
__device__ constexpr float kSmallest = 1.17549435e-38f;

// 1 / sqrt(x) of a normal number, relative error at most 2^-22.4 (two units in the last place).
__device__ __forceinline__ float rsqrt_approx(float x) {
#ifdef KDX_EMULATE
  return (1.0f / sqrtf(x)) * (1.0f + 0x1.8p-23f);
#else
  float y;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

// 1 / sqrt, 0 for duplicates. The step of Newton's method brings the approximation to the last digit without the slow
// path that a correctly rounded root and a division have.
__device__ __forceinline__ float inverse_root(float square) {
  const float y = rsqrt_approx(square);
  const float refined = fmaf(0.5f * y, fmaf(-square * y, y, 1.0f), y);
  return square < kSmallest ? 0.0f : refined;
}
__device__ __forceinline__ float root(float square) { return square < kSmallest ? 0.0f : sqrtf(square); }

__device__ __forceinline__ float read(const RkdInput& x, std::int64_t i, int d) {
  const std::int64_t at = i * x.row_stride + d * x.column_stride;
  if (x.dtype == kFloat32) return static_cast<const float*>(x.data)[at];
  if (x.dtype == kBFloat16) return __bfloat162float(static_cast<const __nv_bfloat16*>(x.data)[at]);
  return __half2float(static_cast<const __half*>(x.data)[at]);
}

// The sum over a block of kThreads threads, in a fixed order, for every thread. `scratch` holds one number per warp.
template <int kThreads>
__device__ float block_sum(float value, float* scratch) {
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  __syncthreads();  // the scratch may still be read from the last call
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
  __syncthreads();
  float total = 0.0f;
  for (int w = 0; w < kThreads / 32; ++w) total += scratch[w];
  return total;
}

// The sum of part[0 .. count), the same in every block.
template <int kThreads>
__device__ float total_of(const float* __restrict__ part, int count, float* scratch) {
  float sum = 0.0f;
  for (int i = int(threadIdx.x); i < count; i += kThreads) sum += part[i];
  return block_sum<kThreads>(sum, scratch);
}

struct Mean {
  float inverse;  // 1 / mean of the positive distances; 0 when there are none
  float count;
};

template <int kThreads>
__device__ Mean mean_of(const float* __restrict__ part, int count, float* scratch) {
  const float sum = total_of<kThreads>(part, count, scratch);
  const float number = total_of<kThreads>(part + count, count, scratch);
  return {number == 0.0f ? 0.0f : number / sum, number};
}

}  // namespace kdx::cuda
