// What every CUDA file of kdx includes first: the launch, shared memory, and wrappers for the instructions that have no
// C++ spelling. Compiled by nvcc it maps to CUDA; compiled by g++ with KDX_EMULATE it maps to tests/emulation, which
// runs the same kernels on the host. Kernels use the plain CUDA names (threadIdx, __syncthreads, __shfl_xor_sync,
// atomicAdd ...) and, for everything else, the names below.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef KDX_EMULATE
#include "cuda_emulation.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

// A fixed shared array inside a kernel, and the dynamic shared memory of the launch (128-byte aligned). `__shared__`
// itself is not used in kdx: the emulation gives each block of a cluster its own memory, which the keyword cannot
// express there.
#define KDX_SHARED(type, name, count) __shared__ type name[count]
#define KDX_DYNAMIC_SHARED(type, name)                                 \
  extern __shared__ __align__(128) unsigned char kdx_dynamic_shared[]; \
  type* const name = reinterpret_cast<type*>(kdx_dynamic_shared)
#endif

namespace kdx::cuda {

// Grid, block, dynamic shared bytes, stream and cluster size (blocks along x) of one launch.
struct Launch {
  dim3 grid;
  dim3 block;
  std::size_t shared_bytes = 0;
  void* stream = nullptr;  // cudaStream_t
  int cluster = 1;
};

#ifdef KDX_EMULATE

inline int compute_capability() { return emulation::settings().arch; }
inline int multiprocessors() { return 132; }

// Runs the kernel and returns nullptr, or why it could not run.
template <typename... P, typename... A>
const char* launch(void (*kernel)(P...), const Launch& shape, A... args) {
  return emulation::run({shape.grid, shape.block, shape.shared_bytes, shape.cluster}, [&] { kernel(args...); });
}

__device__ inline float exp2_approx(float x) { return emulation::exp2_approx(x); }
__device__ inline float log2_approx(float x) { return emulation::log2_approx(x); }
__device__ inline unsigned cluster_rank() { return emulation::cluster_rank(); }
__device__ inline void cluster_arrive() { emulation::cluster_arrive(); }
__device__ inline void cluster_wait() { emulation::cluster_wait(); }
template <typename T>
__device__ T* map_shared(T* pointer, unsigned rank) {
  return static_cast<T*>(emulation::map_shared(const_cast<void*>(static_cast<const void*>(pointer)), rank));
}
__device__ inline void copy_async16(void* shared, const void* global) { emulation::copy_async(shared, global, 16); }
__device__ inline void copy_async_wait() { emulation::copy_async_wait(); }
__device__ inline uint4 load_streaming(const uint4* global) { return *emulation::aligned(global); }
__device__ inline void store_streaming(uint4* global, uint4 value) { *emulation::aligned(global) = value; }

#else

inline int compute_capability() {
  int device = 0, major = 0, minor = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  return 10 * major + minor;
}

inline int multiprocessors() {
  int device = 0, count = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  return count;
}

// Launches the kernel and returns nullptr, or the CUDA error of the launch. Every launch of kdx goes through here.
template <typename... P, typename... A>
const char* launch(void (*kernel)(P...), const Launch& shape, A... args) {
  cudaError_t error = cudaSuccess;
  const void* function = reinterpret_cast<const void*>(kernel);
  if (shape.shared_bytes > 48 * 1024) {
    error = cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shape.shared_bytes));
    if (error != cudaSuccess) return cudaGetErrorString(error);
  }
  if (shape.cluster > 8) {
    error = cudaFuncSetAttribute(function, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
    if (error != cudaSuccess) return cudaGetErrorString(error);
  }
  cudaLaunchAttribute cluster;
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = unsigned(shape.cluster);
  cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = static_cast<cudaStream_t>(shape.stream);
  config.attrs = &cluster;
  config.numAttrs = shape.cluster > 1 ? 1 : 0;
  error = cudaLaunchKernelEx(&config, kernel, P(args)...);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

// 2^x, at most 2 ulp off, subnormal results are 0; the one instruction behind every exponential of kdx.
__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// log2 x, absolute error at most 2^-22 in (0.5, 2), else relative error at most 2^-22.
__device__ __forceinline__ float log2_approx(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Clusters exist from sm_90 on. Below, the functions describe a cluster of one block, so that one kernel serves both.
__device__ __forceinline__ unsigned cluster_rank() {
#if __CUDA_ARCH__ >= 900
  unsigned rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
#else
  return 0;
#endif
}

// Release/acquire pair: what a thread wrote to shared memory before it arrives is seen by the cluster after it waited.
__device__ __forceinline__ void cluster_arrive() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}

__device__ __forceinline__ void cluster_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#else
  __syncthreads();
#endif
}

// The address of `pointer` (shared memory of this block) in block `rank` of the cluster.
template <typename T>
__device__ __forceinline__ T* map_shared(T* pointer, unsigned rank) {
#if __CUDA_ARCH__ >= 900
  std::uint64_t mapped;
  asm volatile("mapa.u64 %0, %1, %2;" : "=l"(mapped) : "l"(reinterpret_cast<std::uint64_t>(pointer)), "r"(rank));
  return reinterpret_cast<T*>(mapped);
#else
  return pointer;
#endif
}

// 16 bytes from global to shared memory without passing through registers; visible to the thread after
// copy_async_wait() and to the block after a barrier. Both addresses are 16-byte aligned.
__device__ __forceinline__ void copy_async16(void* shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(unsigned(__cvta_generic_to_shared(shared))),
               "l"(global)
               : "memory");
}
__device__ __forceinline__ void copy_async_wait() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// Loads and stores of data that is touched once.
__device__ __forceinline__ uint4 load_streaming(const uint4* global) { return __ldcs(global); }
__device__ __forceinline__ void store_streaming(uint4* global, uint4 value) { __stcs(global, value); }

#endif

__device__ inline void cluster_sync() {
  cluster_arrive();
  cluster_wait();
}

}  // namespace kdx::cuda

// Returns the error of a launch from the enclosing launcher.
#define KDX_LAUNCH(...)                                                             \
  do {                                                                              \
    if (const char* kdx_error = ::kdx::cuda::launch(__VA_ARGS__)) return kdx_error; \
  } while (0)
