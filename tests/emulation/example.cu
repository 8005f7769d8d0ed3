// Kernels to copy from and to test the emulation with: the first does nothing but move data, each of the others uses
// one facility of CUDA, and each takes a `mistake` that leaves out what makes it right.
#include "cuda/device.cuh"

namespace {

using namespace kdx::cuda;

__global__ void copy_kernel(const float* __restrict__ in, float* __restrict__ out, std::int64_t count) {
  const std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < count) out[i] = in[i];
}

// out[b] = sum of row b, by warp shuffles and one shared array.
__global__ void row_sum_kernel(const float* __restrict__ in, float* __restrict__ out, int columns, int mistake) {
  KDX_SHARED(float, partial, 32);
  float sum = 0.0f;
  for (int c = threadIdx.x; c < columns; c += blockDim.x) sum += in[std::int64_t(blockIdx.x) * columns + c];
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
  if (mistake != 1) __syncthreads();
  if (mistake == 2 && threadIdx.x == 5) return;
  float total = 0.0f;
  for (int w = 0; w < int(blockDim.x) / 32; ++w) total += partial[w];
  if (mistake == 2) __syncthreads();
  if (mistake == 3) partial[32 + threadIdx.x % 2] = total;
  if (mistake == 4 && threadIdx.x % 32 < 16) total = __shfl_xor_sync(0xffffffffu, total, 1);
  if (threadIdx.x == 0) out[blockIdx.x] = total;
}

// out[0] = sum of all, by the last block to finish, in the order of the blocks.
__global__ void total_kernel(const float* __restrict__ in, float* partial, unsigned* ticket, float* out, int columns) {
  float sum = 0.0f;
  if (threadIdx.x == 0)
    for (int c = 0; c < columns; ++c) sum += in[std::int64_t(blockIdx.x) * columns + c];
  KDX_SHARED(int, last, 1);
  if (threadIdx.x == 0) {
    partial[blockIdx.x] = sum;
    __threadfence();
    last[0] = atomicInc(ticket, gridDim.x - 1) == gridDim.x - 1;
  }
  __syncthreads();
  if (!last[0] || threadIdx.x != 0) return;
  __threadfence();
  float total = 0.0f;
  for (unsigned b = 0; b < gridDim.x; ++b) total += partial[b];
  out[0] = total;
}

// Every block of a cluster writes the sum of what its neighbours hold in shared memory.
__global__ void cluster_kernel(const float* __restrict__ in, float* __restrict__ out, int cluster, int mistake) {
  KDX_DYNAMIC_SHARED(float, mine);
  if (threadIdx.x == 0) mine[0] = in[blockIdx.x];
  if (mistake != 1) cluster_sync();
  float sum = 0.0f;
  for (int r = 0; r < cluster; ++r) sum += *map_shared(mine, unsigned(r));
  if (mistake != 2) cluster_sync();  // a block must not end while another reads its memory
  if (threadIdx.x == 0) out[blockIdx.x] = sum;
}

__global__ void async_kernel(const uint4* __restrict__ in, uint4* __restrict__ out, int mistake) {
  KDX_DYNAMIC_SHARED(uint4, stage);
  copy_async16(stage + threadIdx.x, in + threadIdx.x);
  if (mistake != 1) copy_async_wait();
  __syncthreads();
  out[threadIdx.x] = stage[blockDim.x - 1 - threadIdx.x];
  if (mistake == 1) {
    __syncthreads();
    copy_async_wait();
  }
}

}  // namespace

extern "C" const char* example_copy(const float* in, float* out, std::int64_t count, void* stream) {
  const unsigned threads = 128;
  KDX_LAUNCH(copy_kernel, {dim3(unsigned((count + threads - 1) / threads)), dim3(threads), 0, stream}, in, out, count);
  return nullptr;
}

extern "C" const char* example_row_sum(const float* in, float* out, int rows, int columns, int mistake, void* stream) {
  KDX_LAUNCH(row_sum_kernel, {dim3(unsigned(rows)), dim3(128), 0, stream}, in, out, columns, mistake);
  return nullptr;
}

extern "C" const char* example_total(const float* in, float* partial, unsigned* ticket, float* out, int rows,
                                     int columns, void* stream) {
  KDX_LAUNCH(total_kernel, {dim3(unsigned(rows)), dim3(32), 0, stream}, in, partial, ticket, out, columns);
  return nullptr;
}

extern "C" const char* example_cluster(const float* in, float* out, int blocks, int cluster, int mistake,
                                       void* stream) {
  KDX_LAUNCH(cluster_kernel, {dim3(unsigned(blocks)), dim3(64), 16, stream, cluster}, in, out, cluster, mistake);
  return nullptr;
}

extern "C" const char* example_async(const void* in, void* out, int mistake, void* stream) {
  KDX_LAUNCH(async_kernel, {dim3(1), dim3(64), 64 * 16, stream}, static_cast<const uint4*>(in),
             static_cast<uint4*>(out), mistake);
  return nullptr;
}
