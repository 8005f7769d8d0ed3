// A small host emulation of CUDA: enough for kdx's kernels to be compiled by g++ and to compute the same values.
// Threads are fibers that run one at a time until they meet a barrier, shuffle, vote or cluster barrier, so a run is
// deterministic; the order in which they run can be reversed or shuffled, and shared memory is poisoned before a block
// starts and after it ends, so that a missing barrier shows as a wrong value. See README.md.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

#define KDX_SHARED(type, name, count)   \
  static const char kdx_key_##name = 0; \
  type* const name = static_cast<type*>(::emulation::shared(&kdx_key_##name, sizeof(type) * (count), #name))
#define KDX_DYNAMIC_SHARED(type, name) type* const name = static_cast<type*>(::emulation::dynamic_shared())

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
using uint3 = dim3;
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) double2 {
  double x, y;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline double2 make_double2(double x, double y) { return {x, y}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }

// Set by the scheduler before it resumes a thread.
extern dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

enum class Order { forward, reverse, shuffled };

struct Settings {
  int arch = 90;                 // compute capability the launchers see: 80, 90, 100
  Order order = Order::forward;  // in which blocks and threads run
  std::uint64_t seed = 0;        // of Order::shuffled
};
Settings& settings();

struct Counts {
  long launches = 0, blocks = 0, switches = 0;
};
Counts& counts();

struct Shape {
  dim3 grid, block;
  std::size_t shared_bytes;
  int cluster;
};

// Runs `body` once per thread. nullptr, or what went wrong (kept until the next run).
const char* run(const Shape& shape, const std::function<void()>& body);

// Called inside a kernel. Each throws (and so ends the launch with a message) on a misuse that CUDA leaves undefined.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));
void* dynamic_shared();
void* shared(const void* key, std::size_t bytes, const char* name);
void sync_threads();
bool sync_threads_or(bool predicate);
// All lanes of `mask` meet; each gives `size` bytes and afterwards reads the bytes lane `source` gave.
enum class Meeting { shuffle, vote, sync };
const void* meet(unsigned mask, Meeting kind, const void* value, std::size_t size);
void given(const void* slots, unsigned lane, void* out, std::size_t size);
unsigned lane_id();
unsigned cluster_rank();
void cluster_arrive();
void cluster_wait();
void* map_shared(void* pointer, unsigned rank);
void copy_async(void* shared, const void* global, std::size_t bytes);
void copy_async_wait();
void fence();
void see_atomic(void* address);
float exp2_approx(float x);
float log2_approx(float x);

template <typename T>
T* aligned(T* pointer) {
  if (reinterpret_cast<std::uintptr_t>(pointer) % alignof(T)) fail("a %zu-byte access is misaligned", sizeof(T));
  return pointer;
}

template <typename T>
T exchange(unsigned mask, T value, int source, int width) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles move 4 or 8 bytes");
  const void* slots = meet(mask, Meeting::shuffle, &value, sizeof(T));
  const unsigned lane = lane_id();
  if (source < 0 || source / width != int(lane) / width) return value;  // outside the segment: a lane keeps its own
  if (!(mask >> source & 1u)) fail("__shfl reads lane %d, which is not in its mask %08x", source, mask);
  T out;
  given(slots, unsigned(source), &out, sizeof(T));
  return out;
}

}  // namespace emulation

inline void __syncthreads() { emulation::sync_threads(); }
inline int __syncthreads_or(int predicate) { return emulation::sync_threads_or(predicate != 0); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { emulation::meet(mask, emulation::Meeting::sync, nullptr, 0); }
inline void __threadfence() { emulation::fence(); }
inline void __threadfence_block() {}

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  const int lane = int(emulation::lane_id());
  return emulation::exchange(mask, value, lane / width * width + source % width, width);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
  return emulation::exchange(mask, value, int(emulation::lane_id()) ^ bits, width);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  return emulation::exchange(mask, value, int(emulation::lane_id() + delta), width);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  return emulation::exchange(mask, value, int(emulation::lane_id()) - int(delta), width);
}
unsigned __ballot_sync(unsigned mask, int predicate);
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) == mask; }

namespace emulation {
// Threads run one at a time: the loads and stores need not be one step, but are told to be atomic.
template <typename T, typename F>
T atomic(T* address, const F& change) {
  see_atomic(address);
  T old, changed;
  __atomic_load(address, &old, __ATOMIC_RELAXED);
  changed = change(old);
  __atomic_store(address, &changed, __ATOMIC_RELAXED);
  return old;
}
}  // namespace emulation

template <typename T>
T atomicAdd(T* address, T value) {
  return emulation::atomic(address, [=](T old) { return old + value; });
}
inline unsigned atomicOr(unsigned* address, unsigned value) {
  return emulation::atomic(address, [=](unsigned old) { return old | value; });
}
inline unsigned atomicInc(unsigned* address, unsigned limit) {
  return emulation::atomic(address, [=](unsigned old) { return old >= limit ? 0u : old + 1u; });
}
template <typename T>
T atomicExch(T* address, T value) {
  return emulation::atomic(address, [=](T) { return value; });
}

template <typename T>
T __ldg(const T* p) {
  return *emulation::aligned(p);
}
template <typename T>
T __ldcs(const T* p) {
  return *emulation::aligned(p);
}
template <typename T>
T __ldcg(const T* p) {
  return *emulation::aligned(p);
}
template <typename T>
void __stcs(T* p, T value) {
  *emulation::aligned(p) = value;
}

namespace emulation {
template <typename To, typename From>
To bits(From value) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To out;
  std::memcpy(&out, &value, sizeof(To));
  return out;
}
}  // namespace emulation
inline float __uint_as_float(unsigned x) { return emulation::bits<float>(x); }
inline unsigned __float_as_uint(float x) { return emulation::bits<unsigned>(x); }
inline int __float_as_int(float x) { return emulation::bits<int>(x); }
inline float __int_as_float(int x) { return emulation::bits<float>(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
using std::fabs;
using std::fma;
using std::fmax;
using std::fmin;
using std::isfinite;
using std::isinf;
using std::isnan;
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
inline long min(long a, long b) { return a < b ? a : b; }
inline long max(long a, long b) { return a > b ? a : b; }

// 16-bit floats: the bits, and CUDA's names for the conversions kdx uses (round to nearest even, NaN stays NaN).
struct alignas(2) __nv_bfloat16 {
  std::uint16_t x;
};
struct alignas(2) __half {
  std::uint16_t x;
};
inline float __bfloat162float(__nv_bfloat16 v) { return __uint_as_float(unsigned(v.x) << 16); }
__nv_bfloat16 __float2bfloat16(float v);
inline __nv_bfloat16 __float2bfloat16_rn(float v) { return __float2bfloat16(v); }
float __half2float(__half v);
__half __float2half(float v);
inline __half __float2half_rn(float v) { return __float2half(v); }
struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};
struct alignas(4) __half2 {
  __half x, y;
};
inline __nv_bfloat162 __floats2bfloat162_rn(float a, float b) { return {__float2bfloat16(a), __float2bfloat16(b)}; }
inline __half2 __floats2half2_rn(float a, float b) { return {__float2half(a), __float2half(b)}; }
inline float2 __bfloat1622float2(__nv_bfloat162 v) { return {__bfloat162float(v.x), __bfloat162float(v.y)}; }
inline float2 __half22float2(__half2 v) { return {__half2float(v.x), __half2float(v.y)}; }
// The larger of each half; a NaN loses, two give NaN, as fmaxf has it.
inline __nv_bfloat162 __hmax2(__nv_bfloat162 a, __nv_bfloat162 b) {
  const float2 p = __bfloat1622float2(a), q = __bfloat1622float2(b);
  return __floats2bfloat162_rn(std::fmax(p.x, q.x), std::fmax(p.y, q.y));
}
inline __half2 __hmax2(__half2 a, __half2 b) {
  const float2 p = __half22float2(a), q = __half22float2(b);
  return __floats2half2_rn(std::fmax(p.x, q.x), std::fmax(p.y, q.y));
}
