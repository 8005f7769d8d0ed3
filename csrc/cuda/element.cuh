// Element types of the CUDA kernels and how 16 bytes of them become numbers and back.
#pragma once

#include "cuda/device.cuh"

namespace kdx::cuda {

template <typename T>
struct Element;  // Acc: the type of the arithmetic; kPack: elements in 16 bytes

template <>
struct Element<float> {
  using Acc = float;
  static constexpr int kPack = 4;
  static __device__ __forceinline__ float load(float x) { return x; }
  static __device__ __forceinline__ float store(float x) { return x; }
  static __device__ __forceinline__ void unpack(uint4 raw, float (&x)[4]) {
    x[0] = __uint_as_float(raw.x), x[1] = __uint_as_float(raw.y);
    x[2] = __uint_as_float(raw.z), x[3] = __uint_as_float(raw.w);
  }
  static __device__ __forceinline__ uint4 pack(const float (&x)[4]) {
    return make_uint4(__float_as_uint(x[0]), __float_as_uint(x[1]), __float_as_uint(x[2]), __float_as_uint(x[3]));
  }
};

template <>
struct Element<double> {
  using Acc = double;
  static constexpr int kPack = 2;
  static __device__ __forceinline__ double load(double x) { return x; }
  static __device__ __forceinline__ double store(double x) { return x; }
  static __device__ __forceinline__ void unpack(uint4 raw, double (&x)[2]) { memcpy(x, &raw, sizeof raw); }
  static __device__ __forceinline__ uint4 pack(const double (&x)[2]) {
    uint4 raw;
    memcpy(&raw, x, sizeof raw);
    return raw;
  }
};

template <>
struct Element<__nv_bfloat16> {
  using Acc = float;
  static constexpr int kPack = 8;
  static __device__ __forceinline__ float load(__nv_bfloat16 x) { return __bfloat162float(x); }
  static __device__ __forceinline__ __nv_bfloat16 store(float x) { return __float2bfloat16_rn(x); }
  static __device__ __forceinline__ void unpack(uint4 raw, float (&x)[8]) {
    const unsigned words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      x[2 * i] = __uint_as_float(words[i] << 16);
      x[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
    }
  }
  static __device__ __forceinline__ uint4 pack(const float (&x)[8]) {
    uint4 raw;
    __nv_bfloat162 pairs[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) pairs[i] = __floats2bfloat162_rn(x[2 * i], x[2 * i + 1]);
    memcpy(&raw, pairs, sizeof raw);
    return raw;
  }
};

template <>
struct Element<__half> {
  using Acc = float;
  static constexpr int kPack = 8;
  static __device__ __forceinline__ float load(__half x) { return __half2float(x); }
  static __device__ __forceinline__ __half store(float x) { return __float2half_rn(x); }
  static __device__ __forceinline__ void unpack(uint4 raw, float (&x)[8]) {
    __half2 pairs[4];
    memcpy(pairs, &raw, sizeof raw);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 both = __half22float2(pairs[i]);
      x[2 * i] = both.x, x[2 * i + 1] = both.y;
    }
  }
  static __device__ __forceinline__ uint4 pack(const float (&x)[8]) {
    uint4 raw;
    __half2 pairs[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) pairs[i] = __floats2half2_rn(x[2 * i], x[2 * i + 1]);
    memcpy(&raw, pairs, sizeof raw);
    return raw;
  }
};

// The maximum of many 16-byte chunks, NaN left out; two classes an instruction where they have 16 bits.
template <typename T>
struct PackMaximum {
  using A = typename Element<T>::Acc;
  A highest = -A(INFINITY);
  __device__ __forceinline__ void see(uint4 raw) {
    A x[Element<T>::kPack];
    Element<T>::unpack(raw, x);
#pragma unroll
    for (int v = 0; v < Element<T>::kPack; ++v) highest = highest > x[v] || x[v] != x[v] ? highest : x[v];
  }
  __device__ __forceinline__ A value() const { return highest; }
};

template <>
struct PackMaximum<float> {
  float highest = -INFINITY;
  __device__ __forceinline__ void see(uint4 raw) {
    highest = fmaxf(highest, fmaxf(fmaxf(__uint_as_float(raw.x), __uint_as_float(raw.y)),
                                   fmaxf(__uint_as_float(raw.z), __uint_as_float(raw.w))));
  }
  __device__ __forceinline__ float value() const { return highest; }
};

template <typename Pair>
__device__ __forceinline__ Pair pair_maximum(Pair highest, uint4 raw) {
  Pair pairs[4];
  memcpy(pairs, &raw, sizeof raw);
  return __hmax2(highest, __hmax2(__hmax2(pairs[0], pairs[1]), __hmax2(pairs[2], pairs[3])));
}

template <>
struct PackMaximum<__nv_bfloat16> {
  __nv_bfloat162 highest = __floats2bfloat162_rn(-INFINITY, -INFINITY);
  __device__ __forceinline__ void see(uint4 raw) { highest = pair_maximum(highest, raw); }
  __device__ __forceinline__ float value() const {
    const float2 both = __bfloat1622float2(highest);
    return fmaxf(both.x, both.y);
  }
};

template <>
struct PackMaximum<__half> {
  __half2 highest = __floats2half2_rn(-INFINITY, -INFINITY);
  __device__ __forceinline__ void see(uint4 raw) { highest = pair_maximum(highest, raw); }
  __device__ __forceinline__ float value() const {
    const float2 both = __half22float2(highest);
    return fmaxf(both.x, both.y);
  }
};

}  // namespace kdx::cuda
