// The two sweeps of topk_kl on a GPU, one block a row: the sum of exponentials, with or without the listed classes, and
// the gradient. kdx/ops/_topk_kl/sweeps.py says what they compute and what happens between them.
//
// The listed classes of a row are marked in shared memory, a bit for each class. They come in ascending order, so a
// class that is listed often stands in neighbouring places.
#include "kdx/topk_kl.h"

#include "cuda/softmax_kl_row.cuh"

namespace kdx::cuda {
namespace {

constexpr int kThreads = 256;
constexpr std::int64_t kMostClasses = std::int64_t(160) * 1024 * 8;  // whose bits fit into shared memory

template <typename A>
struct Sum {
  A top, total;  // the maximum, and the sum of exponentials under it
};

template <typename A>
__device__ __forceinline__ Sum<A> under(const Sum<A>& x, A top, A exponent) {
  return {top, x.total * Math<A>::exponential((x.top - finite_maximum(top)) * exponent)};
}

template <typename A>
__device__ Sum<A> warp_sum(const Sum<A>& x, A exponent) {
  Sum<A> y = under(x, lane_maximum<32>(x.top), exponent);
  y.total = lane_sum<32>(y.total);
  return y;
}

// Of the whole block; `parts` is shared and used once a slot.
template <typename A>
__device__ Sum<A> block_sum(const Sum<A>& x, Sum<A>* parts, A exponent) {
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32, count = int(blockDim.x) / 32;
  const Sum<A> mine = warp_sum(x, exponent);
  if (lane == 0) parts[warp] = mine;
  __syncthreads();
  return warp_sum(lane < count ? parts[lane] : Sum<A>{-infinity(A()), A(0)}, exponent);
}

template <typename A>
__device__ __forceinline__ void follow(Sum<A>& sum, A z, A exponent) {
  if (z > sum.top) sum = under(sum, z, exponent);
  sum.total += Math<A>::exponential((z - finite_maximum(sum.top)) * exponent);
}

template <typename T>
__device__ Row<T> row_of(const TopkSums& call, std::int64_t r, T* grad) {
  Row<T> row;
  row.student = {static_cast<const T*>(call.student) + r * call.student_row, 1, false};
  row.teacher = row.student;
  row.grad = {grad, 1, false};
  row.C = call.C;
  row.cut();
  return row;
}

// Marks the row's listed classes; all threads of the block call it.
__device__ void mark(const TopkSums& call, const std::int64_t* ids, unsigned* bits) {
  for (std::int64_t w = threadIdx.x; w < (call.C + 31) / 32; w += blockDim.x) bits[w] = 0;
  __syncthreads();
  for (std::int64_t k = threadIdx.x; k < call.K; k += blockDim.x) {
    const std::int64_t id = ids[k];
    if (id >= 0 && id < call.C) atomicOr(bits + id / 32, 1u << (id % 32));
  }
  __syncthreads();
}

__device__ __forceinline__ bool marked(const unsigned* bits, std::int64_t c) { return bits[c / 32] >> (c % 32) & 1u; }

template <typename T>
__global__ void __launch_bounds__(kThreads)
    sums_kernel(const TopkSums call, typename Element<T>::Acc temperature, typename Element<T>::Acc exponent,
                typename Element<T>::Acc natural) {
  using A = typename Element<T>::Acc;
  constexpr int kPack = Element<T>::kPack;
  KDX_DYNAMIC_SHARED(unsigned, bits);
  KDX_SHARED(Sum<A>, parts, 32);
  KDX_SHARED(Sum<A>, parts_1, 32);
  const std::int64_t r = blockIdx.x;
  const std::int64_t* const ids = call.ids + r * call.K;
  A* const few = static_cast<A*>(call.few) + r * (call.K + 1);
  if (!call.counts[r]) {
    for (std::int64_t k = threadIdx.x; k <= call.K; k += blockDim.x) few[k] = A(0);
    if (threadIdx.x == 0 && call.total_1) static_cast<A*>(call.total_1)[r] = A(0);
    return;
  }
  if (call.without) mark(call, ids, bits);
  const Row<T> row = row_of<T>(call, r, nullptr);
  Sum<A> sum{-infinity(A()), A(0)}, sum_1 = sum;
  for (int i = int(threadIdx.x); i < row.chunks; i += int(blockDim.x)) {
    A z[kPack];
    Element<T>::unpack(row.load(row.student, i), z);
    const std::int64_t column = row.column(i);
#pragma unroll
    for (int v = 0; v < kPack; ++v) {
      const std::int64_t c = column + v;
      if (c < 0 || c >= call.C) continue;
      if (call.total_1) follow(sum_1, z[v], natural);
      if (!call.without || !marked(bits, c)) follow(sum, z[v], exponent);
    }
  }
  sum = block_sum(sum, parts, exponent);
  for (std::int64_t k = threadIdx.x; k < call.K; k += blockDim.x) {
    const std::int64_t id = ids[k];
    const A none = id < 0 ? -infinity(A()) : infinity(A()) - infinity(A());  // never an address before this
    few[k] = id < 0 || id >= call.C ? none : A(Element<T>::load(row.student.first[id]));
  }
  if (threadIdx.x == 0) few[call.K] = sum.total == A(0) ? -infinity(A()) : sum.top + temperature * log_(sum.total);
  if (!call.total_1) return;
  sum_1 = block_sum(sum_1, parts_1, natural);
  if (threadIdx.x == 0) static_cast<A*>(call.total_1)[r] = sum_1.top + log_(sum_1.total);
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    gradient_kernel(const TopkGradient call, typename Element<T>::Acc exponent, typename Element<T>::Acc natural) {
  using A = typename Element<T>::Acc;
  constexpr int kPack = Element<T>::kPack;
  const std::int64_t r = blockIdx.x, C = call.sums.C, K = call.sums.K;
  T* const grad = static_cast<T*>(call.grad) + r * C;
  const Row<T> row = row_of<T>(call.sums, r, grad);
  const bool live = call.sums.counts[r];
  const A rest = live ? static_cast<const A*>(call.rest)[r] : A(0), total = static_cast<const A*>(call.total)[r];
  const A ce = live && call.ce ? static_cast<const A*>(call.ce)[r] : A(0);
  const A total_1 = ce != A(0) ? static_cast<const A*>(call.total_1)[r] : A(0);
  const std::int64_t label = ce != A(0) ? call.labels[r] : -1;
  const auto other = [&](A z, std::int64_t c) {  // the part that has nothing to do with the listed classes
    return ce * (Math<A>::exponential((z - total_1) * natural) - (c == label ? A(1) : A(0)));
  };
  // Of a class that the student does not have there is nothing, also where no other class is left.
  const auto of_rest = [&](A z) {
    return z == -infinity(A()) ? A(0) : rest * Math<A>::exponential((z - total) * exponent);
  };
  for (int i = int(threadIdx.x); i < row.chunks; i += int(blockDim.x)) {
    A z[kPack], g[kPack];
    const std::int64_t column = row.column(i);
#pragma unroll
    for (int v = 0; v < kPack; ++v) z[v] = g[v] = A(0);
    if (live) Element<T>::unpack(row.load(row.student, i), z);
#pragma unroll
    for (int v = 0; v < kPack; ++v) {
      if (!live) continue;
      g[v] = of_rest(z[v]);
      if (ce != A(0)) g[v] += other(z[v], column + v);
    }
    row.store(i, g);
  }
  if (!live) return;
  __syncthreads();  // what the block wrote is there before some of it is written anew
  const std::int64_t* const ids = call.sums.ids + r * K;
  const A* const add = static_cast<const A*>(call.add) + r * K;
  for (std::int64_t k = threadIdx.x; k < K; k += blockDim.x) {
    const std::int64_t id = ids[k];
    if (id < 0 || id >= C || (k > 0 && ids[k - 1] == id)) continue;
    const A z = A(Element<T>::load(row.student.first[id]));
    A g = call.sums.without ? A(0) : of_rest(z);
    for (std::int64_t same = k; same < K && ids[same] == id; ++same) g += add[same];
    if (ce != A(0)) g += other(z, id);
    grad[id] = Element<T>::store(g);
  }
}

template <typename T>
const char* sums_typed(const TopkSums& call, void* stream) {
  using A = typename Element<T>::Acc;
  const std::size_t bits = call.without ? std::size_t(call.C + 31) / 32 * 4 : 0;
  const Launch shape{dim3(unsigned(call.N)), dim3(kThreads), bits, stream, 1};
  return launch(sums_kernel<T>, shape, call, A(call.temperature), Math<A>::exponent(1.0 / call.temperature),
                Math<A>::exponent(1.0));
}

template <typename T>
const char* gradient_typed(const TopkGradient& call, void* stream) {
  using A = typename Element<T>::Acc;
  const Launch shape{dim3(unsigned(call.sums.N)), dim3(kThreads), 0, stream, 1};
  return launch(gradient_kernel<T>, shape, call, Math<A>::exponent(1.0 / call.sums.temperature),
                Math<A>::exponent(1.0));
}

const char* check(const TopkSums& call) {
  if (call.N < 1 || call.C < 1 || call.K < 1) return "topk_kl: sizes must be N, C, K >= 1";
  if (call.N > 2147483647) return "topk_kl: more than 2147483647 rows; call it on parts of the batch";
  if (call.without && call.C > kMostClasses) return "topk_kl: more than 1310720 classes";
  if (!(call.temperature > 0)) return "topk_kl: temperature must be positive";
  return nullptr;
}

}  // namespace
}  // namespace kdx::cuda

namespace kdx {

const char* topk_kl_sums_cuda(const TopkSums& call, void* stream) {
  using namespace cuda;
  if (const char* error = check(call)) return error;
  switch (call.dtype) {
    case kFloat32:
      return sums_typed<float>(call, stream);
    case kFloat64:
      return sums_typed<double>(call, stream);
    case kBFloat16:
      return sums_typed<__nv_bfloat16>(call, stream);
    case kFloat16:
      return sums_typed<__half>(call, stream);
  }
  return "topk_kl: unknown dtype";
}

const char* topk_kl_gradient_cuda(const TopkGradient& call, void* stream) {
  using namespace cuda;
  if (const char* error = check(call.sums)) return error;
  switch (call.sums.dtype) {
    case kFloat32:
      return gradient_typed<float>(call, stream);
    case kFloat64:
      return gradient_typed<double>(call, stream);
    case kBFloat16:
      return gradient_typed<__nv_bfloat16>(call, stream);
    case kFloat16:
      return gradient_typed<__half>(call, stream);
  }
  return "topk_kl: unknown dtype";
}

}  // namespace kdx
