// A vector of lanes of T, as wide as the instruction set this file is compiled for. GCC and Clang lower the operators
// + - * / and ?: on such vectors to single instructions; only the square root needs a name.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "common/rkd.h"

namespace kdx {
namespace KDX_ISA {

// (GCC 12 warns about its own unmasked 512-bit intrinsics; the masked ones below become the same instructions.)
#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class T>
struct LanesOf;
template <>
struct LanesOf<float> {
  typedef float type __attribute__((vector_size(kVectorBytes)));
  typedef float unaligned __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));
};
template <>
struct LanesOf<double> {
  typedef double type __attribute__((vector_size(kVectorBytes)));
  typedef double unaligned __attribute__((vector_size(kVectorBytes), aligned(8), may_alias));
};
template <class T>
using Lanes = typename LanesOf<T>::type;
template <class T>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));

template <class T>
inline __attribute__((always_inline)) Lanes<T> load(const T* p) {
  return *reinterpret_cast<const typename LanesOf<T>::unaligned*>(p);
}

template <class T>
inline __attribute__((always_inline)) void store(T* p, Lanes<T> v) {
  *reinterpret_cast<typename LanesOf<T>::unaligned*>(p) = v;
}

template <class T>
inline __attribute__((always_inline)) Lanes<T> spread(T x) {
  return x - Lanes<T>{};  // x - 0 is x for every x, so only the broadcast is left
}

template <class T, int kCount>
struct Shorter {
  typedef T type __attribute__((vector_size(kCount * sizeof(T))));
};

// The lower or upper half of a vector of floats as doubles.
inline __attribute__((always_inline)) Lanes<double> half_as_doubles(Lanes<float> v, int half) {
#if defined(__AVX512F__)
  const __m512d x = reinterpret_cast<__m512d>(v);
  const __m256d part = half == 0 ? _mm512_maskz_extractf64x4_pd(0xff, x, 0) : _mm512_maskz_extractf64x4_pd(0xff, x, 1);
  return reinterpret_cast<Lanes<double>>(_mm512_maskz_cvtps_pd(0xff, reinterpret_cast<__m256>(part)));
#else
  typename Shorter<float, kLanes<double>>::type x;
  std::memcpy(&x, reinterpret_cast<const char*>(&v) + half * sizeof(x), sizeof(x));
  return __builtin_convertvector(x, Lanes<double>);
#endif
}

template <class T>
inline double sum_lanes(Lanes<T> v) {
  double total = 0.0;
  for (int l = 0; l < kLanes<T>; ++l) total += static_cast<double>(v[l]);
  return total;
}

// The lanes of a vector added up in its own precision, halves onto halves.
template <class T, class V>
inline __attribute__((always_inline)) T fold(V v) {
  constexpr int kCount = sizeof(V) / sizeof(T);
  if constexpr (kCount == 2) {
    return v[0] + v[1];
  } else {
    typename Shorter<T, kCount / 2>::type low, high;
    std::memcpy(&low, &v, sizeof(low));
    std::memcpy(&high, reinterpret_cast<const char*>(&v) + sizeof(low), sizeof(high));
    if constexpr (kCount == 4) return (low[0] + high[0]) + (low[1] + high[1]);
    return fold<T>(low + high);
  }
}

template <class T>
inline __attribute__((always_inline)) T fold_lanes(Lanes<T> v) {
  return fold<T>(v);
}

// One step of a transposition: lane l of the result is that of `a` where bit kStep of l is clear, and that of `b`,
// kStep lanes lower (kHigh: `a` kStep lanes higher, and `b`), where it is set.
template <class T, int kStep, bool kHigh, std::size_t... kLane>
inline __attribute__((always_inline)) Lanes<T> exchange(Lanes<T> a, Lanes<T> b, std::index_sequence<kLane...>) {
  constexpr int W = kLanes<T>;
  return __builtin_shufflevector(
      a, b, (int(kLane) & kStep ? W + int(kLane) - (kHigh ? 0 : kStep) : int(kLane) + (kHigh ? kStep : 0))...);
}

template <class T, int kStep = 1>
inline __attribute__((always_inline)) void transpose(Lanes<T>* v) {
  constexpr auto lanes = std::make_index_sequence<kLanes<T>>{};
  if constexpr (kStep < kLanes<T>) {
#pragma GCC unroll 16
    for (int r = 0; r < kLanes<T>; ++r) {
      if (r & kStep) continue;
      const Lanes<T> a = v[r], b = v[r + kStep];
      v[r] = exchange<T, kStep, false>(a, b, lanes);
      v[r + kStep] = exchange<T, kStep, true>(a, b, lanes);
    }
    transpose<T, 2 * kStep>(v);
  }
}

inline __attribute__((always_inline)) Lanes<float> square_root(Lanes<float> v) {
#if defined(__AVX512F__)
  return reinterpret_cast<Lanes<float>>(_mm512_maskz_sqrt_ps(0xffff, reinterpret_cast<__m512>(v)));
#elif defined(__AVX2__)
  return reinterpret_cast<Lanes<float>>(_mm256_sqrt_ps(reinterpret_cast<__m256>(v)));
#else
  for (int l = 0; l < kLanes<float>; ++l) v[l] = std::sqrt(v[l]);
  return v;
#endif
}

inline __attribute__((always_inline)) Lanes<double> square_root(Lanes<double> v) {
#if defined(__AVX512F__)
  return reinterpret_cast<Lanes<double>>(_mm512_maskz_sqrt_pd(0xff, reinterpret_cast<__m512d>(v)));
#elif defined(__AVX2__)
  return reinterpret_cast<Lanes<double>>(_mm256_sqrt_pd(reinterpret_cast<__m256d>(v)));
#else
  for (int l = 0; l < kLanes<double>; ++l) v[l] = std::sqrt(v[l]);
  return v;
#endif
}

}  // namespace KDX_ISA

// GCC turns the two selections of the plain form into compares and blends, twice the work of min and max.
#if defined(__AVX512F__)
template <>
struct Clamp<KDX_ISA::Lanes<float>> {
  static inline __attribute__((always_inline)) __m512 symmetric(__m512 z, __m512 bound) {
    return _mm512_maskz_range_ps(0xffff, z, bound, 2);  // the smaller magnitude with the sign of z
  }
};
template <>
struct Clamp<KDX_ISA::Lanes<double>> {
  static inline __attribute__((always_inline)) __m512d symmetric(__m512d z, __m512d bound) {
    return _mm512_maskz_range_pd(0xff, z, bound, 2);
  }
};
#elif defined(__AVX2__)
template <>
struct Clamp<KDX_ISA::Lanes<float>> {
  static inline __attribute__((always_inline)) __m256 symmetric(__m256 z, __m256 bound) {
    return _mm256_max_ps(_mm256_min_ps(z, bound), -bound);
  }
};
template <>
struct Clamp<KDX_ISA::Lanes<double>> {
  static inline __attribute__((always_inline)) __m256d symmetric(__m256d z, __m256d bound) {
    return _mm256_max_pd(_mm256_min_pd(z, bound), -bound);
  }
};
#endif

}  // namespace kdx
