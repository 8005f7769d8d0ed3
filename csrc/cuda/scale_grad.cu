// out = grad * upstream, the upstream gradient read on the device; the whole backward of a loss whose gradient came
// with the forward. out may be grad, and where upstream is 1 nothing but that number is then read. Bounds checked by
// tests/native/test_cuda_gates.py: no spills, at most 40 registers.
#include "cuda/element.cuh"
#include "kdx/softmax_kl.h"

namespace kdx::cuda {
namespace {

constexpr int kThreads = 256;

// In place, an upstream of 1 leaves the gradient as it is: the grid is small then, so that leaving costs little.
constexpr unsigned kBlocksInPlace = 2048;

// A thread takes chunks of 16 bytes, a grid apart; the elements before the first aligned one and after the last come
// after all chunks.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    scale_kernel(const T* grad, const typename Element<T>::Acc* __restrict__ upstream, T* out, std::int64_t n, int head,
                 std::int64_t chunks) {
  using A = typename Element<T>::Acc;
  constexpr int kPack = Element<T>::kPack;
  const A factor = __ldg(upstream);
  if (grad == out && factor == A(1)) return;
  const std::int64_t step = std::int64_t(gridDim.x) * kThreads;
  std::int64_t i = std::int64_t(blockIdx.x) * kThreads + threadIdx.x;
  for (; i < chunks; i += step) {
    A x[kPack];
    Element<T>::unpack(load_streaming(reinterpret_cast<const uint4*>(grad + head) + i), x);
#pragma unroll
    for (int v = 0; v < kPack; ++v) x[v] *= factor;
    store_streaming(reinterpret_cast<uint4*>(out + head) + i, Element<T>::pack(x));
  }
  if (i == chunks) {
    const auto scale = [&](std::int64_t k) { out[k] = Element<T>::store(Element<T>::load(grad[k]) * factor); };
    for (std::int64_t k = 0; k < head; ++k) scale(k);
    for (std::int64_t k = head + chunks * kPack; k < n; ++k) scale(k);
  }
}

// Element by element, where the two are not aligned alike.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    scale_elements_kernel(const T* __restrict__ grad, const typename Element<T>::Acc* __restrict__ upstream,
                          T* __restrict__ out, std::int64_t n) {
  const std::int64_t i = std::int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i < n) out[i] = Element<T>::store(Element<T>::load(grad[i]) * __ldg(upstream));
}

template <typename T>
const char* scale(const ScaleGrad& call, void* stream) {
  using A = typename Element<T>::Acc;
  constexpr int kPack = Element<T>::kPack;
  const T* grad = static_cast<const T*>(call.grad);
  T* out = static_cast<T*>(call.out);
  const A* upstream = static_cast<const A*>(call.upstream);
  const auto misalignment = [](const void* p) { return int(reinterpret_cast<std::uintptr_t>(p) / sizeof(T) % kPack); };
  const auto blocks = [](std::int64_t items) { return dim3(unsigned((items + kThreads - 1) / kThreads)); };
  if (call.n > std::int64_t(2147483647) * kThreads) return "scale_grad: the gradient is too large";
  if (misalignment(grad) != misalignment(out)) {
    KDX_LAUNCH(scale_elements_kernel<T>, {blocks(call.n), dim3(kThreads), 0, stream}, grad, upstream, out, call.n);
    return nullptr;
  }
  std::int64_t head = (kPack - misalignment(grad)) % kPack;
  if (head > call.n) head = call.n;
  const std::int64_t chunks = (call.n - head) / kPack;
  dim3 grid = blocks(chunks + 1);
  if (grad == out && grid.x > kBlocksInPlace) grid.x = kBlocksInPlace;
  KDX_LAUNCH(scale_kernel<T>, {grid, dim3(kThreads), 0, stream}, grad, upstream, out, call.n, int(head), chunks);
  return nullptr;
}

}  // namespace
}  // namespace kdx::cuda

namespace kdx {

const char* scale_grad_cuda(const ScaleGrad& call, void* stream) {
  if (call.n <= 0) return "scale_grad: no elements, nothing to launch";
  switch (call.dtype) {
    case kFloat32:
      return cuda::scale<float>(call, stream);
    case kFloat64:
      return cuda::scale<double>(call, stream);
    case kBFloat16:
      return cuda::scale<__nv_bfloat16>(call, stream);
    case kFloat16:
      return cuda::scale<__half>(call, stream);
  }
  return "scale_grad: unknown dtype";
}

}  // namespace kdx
