// exp, expm1 and log1p for float and double.
//
// On the device these are CUDA's. On the host they are branch-free polynomials, so that a plain loop over them
// vectorises on every instruction set; errors are below 2 ulp (tests/native/test_elementary.py measures them). The
// polynomials are Chebyshev interpolants on the reduced interval. NaN stays NaN, exp(-inf) = 0, expm1(-inf) = -1.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/hd.h"

namespace kdx {

// (expm1(r) - r) / r^2 for |r| <= kTail, which is ln2 / 2: with it differences of nearly equal exponentials keep their
// digits.
constexpr double kTail = 0.3465;

KDX_HD float expm1_tail(float r) {
  float p = 0.001392625083f;
  p = p * r + 0.008363232884f;
  p = p * r + 0.04166655421f;
  p = p * r + 0.1666657667f;
  return p * r + 0.5f;
}

KDX_HD double expm1_tail(double r) {
  double p = 1.6086677666787361503e-10;
  p = p * r + 2.0918212319133978201e-9;
  p = p * r + 2.5052070957960000000e-8;
  p = p * r + 2.7557263077309411451e-7;
  p = p * r + 2.7557319247344509509e-6;
  p = p * r + 0.000024801587336630946966;
  p = p * r + 0.00019841269841263251867;
  p = p * r + 0.0013888888888879003084;
  p = p * r + 0.0083333333333333340131;
  p = p * r + 0.041666666666666676865;
  p = p * r + 0.16666666666666666667;
  return p * r + 0.5;
}

#if defined(__CUDA_ARCH__)

KDX_HD float exp_(float x) { return ::expf(x); }
KDX_HD double exp_(double x) { return ::exp(x); }
KDX_HD float exp_nonpositive(float x) { return ::expf(x); }
KDX_HD double exp_nonpositive(double x) { return ::exp(x); }
KDX_HD float expm1_(float x) { return ::expm1f(x); }
KDX_HD double expm1_(double x) { return ::expm1(x); }
KDX_HD float log1p_(float x) { return ::log1pf(x); }
KDX_HD double log1p_(double x) { return ::log1p(x); }
KDX_HD float log_(float x) { return ::logf(x); }
KDX_HD double log_(double x) { return ::log(x); }

#else

KDX_HD int32_t bits(float x) {
  int32_t i;
  __builtin_memcpy(&i, &x, sizeof i);
  return i;
}
KDX_HD int64_t bits(double x) {
  int64_t i;
  __builtin_memcpy(&i, &x, sizeof i);
  return i;
}
KDX_HD float from_bits(int32_t i) {
  float x;
  __builtin_memcpy(&x, &i, sizeof x);
  return x;
}
KDX_HD double from_bits(int64_t i) {
  double x;
  __builtin_memcpy(&x, &i, sizeof x);
  return x;
}

// x = n ln2 + r with |r| <= ln2/2 and n an integer (as a number and as an int); expm1(r) = r + r^2 P(r).
struct ReducedF {
  float n;
  int32_t i;
  float expm1_r;
};
struct ReducedD {
  double n;
  int64_t i;
  double expm1_r;
};

// 2^n for the exponents of normal numbers. For others, which only a NaN or an infinite argument brings, it is some
// number: the shift is of unsigned integers, as that of a negative one is undefined.
KDX_HD float power_of_two(int32_t n) { return from_bits(int32_t(uint32_t(n + 127) << 23)); }
KDX_HD double power_of_two(int64_t n) { return from_bits(int64_t(uint64_t(n + 1023) << 52)); }

KDX_HD ReducedF reduce_exp(float x) {
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer that can be read off the low bits
  const float shifted = x * 1.44269504f + magic;
  const float n = shifted - magic;
  const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;  // the first product is exact
  return {n, bits(shifted) - bits(magic), r + r * r * expm1_tail(r)};
}

KDX_HD ReducedD reduce_exp(double x) {
  const double magic = 6755399441055744.0;  // 1.5 * 2^52
  const double shifted = x * 1.4426950408889634074 + magic;
  const double n = shifted - magic;
  const double r = (x - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10;
  return {n, bits(shifted) - bits(magic), r + r * r * expm1_tail(r)};
}

KDX_HD float exp_(float x) {
  x = x < -104.0f ? -104.0f : x;
  x = x > 89.0f ? 89.0f : x;
  const ReducedF k = reduce_exp(x);
  const int32_t half = k.i >> 1;  // 2^n in two factors: n reaches -150 (subnormals) and 128 (overflow to inf)
  const float y = k.expm1_r + 1.0f;
  return y * power_of_two(half) * power_of_two(k.i - half);
}

KDX_HD double exp_(double x) {
  x = x < -746.0 ? -746.0 : x;
  x = x > 710.0 ? 710.0 : x;
  const ReducedD k = reduce_exp(x);
  const int64_t half = k.i >> 1;
  const double y = k.expm1_r + 1.0;
  return y * power_of_two(half) * power_of_two(k.i - half);
}

// exp of x <= 0, cheaper: 0 from 2^-126.5 (2^-1022.5) down, whose probability nothing can tell from none.
KDX_HD float exp_nonpositive(float x) {
  x = x < -88.0f ? -88.0f : x;
  const float magic = 12582912.0f + 127.0f;  // as in reduce_exp, with the exponent's bias in it
  const float shifted = x * 1.44269504f + magic;
  const float n = shifted - magic;
  const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  return ((r + r * r * expm1_tail(r)) + 1.0f) * from_bits(int32_t(uint32_t(bits(shifted)) << 23));
}

KDX_HD double exp_nonpositive(double x) {
  x = x < -709.0 ? -709.0 : x;
  const double magic = 6755399441055744.0 + 1023.0;
  const double shifted = x * 1.4426950408889634074 + magic;
  const double n = shifted - magic;
  const double r = (x - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10;
  return ((r + r * r * expm1_tail(r)) + 1.0) * from_bits(int64_t(uint64_t(bits(shifted)) << 52));
}

// Saturates to inf at the last argument whose 2^n is finite, 88.3 (709.4), a hair before the true overflow.
KDX_HD float expm1_(float x) {
  const bool over = x > 88.3f;
  x = x < -60.0f ? -60.0f : x;
  x = over ? 88.3f : x;
  const ReducedF k = reduce_exp(x);
  const float scale = power_of_two(k.i);
  const float y = scale * k.expm1_r + (scale - 1.0f);
  return over ? INFINITY : y;
}

KDX_HD double expm1_(double x) {
  const bool over = x > 709.4;
  x = x < -60.0 ? -60.0 : x;
  x = over ? 709.4 : x;
  const ReducedD k = reduce_exp(x);
  const double scale = power_of_two(k.i);
  const double y = scale * k.expm1_r + (scale - 1.0);
  return over ? double(INFINITY) : y;
}

// For finite x > -1 (and NaN): u = 1 + x = 2^k (1 + f), with what the rounding of 1 + x lost put back.
KDX_HD float log1p_(float x) {
  const float u = 1.0f + x;
  const int32_t k = (bits(u) - bits(0.70710678f)) >> 23;
  const float scale = power_of_two(-k);
  const float lost = x - (u - 1.0f);
  const float f = k == 0 ? x : (u * scale - 1.0f) + lost * scale;
  float q = 0.06980701959f;
  q = q * f + -0.1149454661f;
  q = q * f + 0.1168907114f;
  q = q * f + -0.1242403772f;
  q = q * f + 0.1424855126f;
  q = q * f + -0.1666785097f;
  q = q * f + 0.200007305f;
  q = q * f + -0.2499999663f;
  q = q * f + 0.3333333112f;
  const float n = float(k);
  return (f - (0.5f * f * f - (f * f * f * q + n * -2.12194440e-4f))) + n * 0.693359375f;
}

KDX_HD double log1p_(double x) {
  const double u = 1.0 + x;
  const int64_t k = (bits(u) - bits(0.70710678118654752440)) >> 52;
  const double scale = power_of_two(-k);
  const double lost = x - (u - 1.0);
  const double f = k == 0 ? x : (u * scale - 1.0) + lost * scale;
  const double s = f / (2.0 + f), z = s * s;
  double q = 0.13097930076724688049;
  q = q * z + 0.13267687908632143586;
  q = q * z + 0.15386280387980571371;
  q = q * z + 0.18181794889125405785;
  q = q * z + 0.22222222398770395628;
  q = q * z + 0.28571428570772360568;
  q = q * z + 0.4000000000000092823;
  q = q * z + 0.66666666666666666451;
  // log(1 + f) = 2s + s^3 q(s^2) = f - s (f - z q), which keeps the low bits of f.
  const double n = double(int32_t(k));
  return (f - (s * (f - z * q) - n * 1.90821492927058770002e-10)) + n * 6.93147180369123816490e-01;
}

// Scalars of a row (never inside a vector loop).
KDX_HD float log_(float x) { return std::log(x); }
KDX_HD double log_(double x) { return std::log(x); }

#endif

KDX_HD float abs_(float x) { return x < 0 ? -x : x; }
KDX_HD double abs_(double x) { return x < 0 ? -x : x; }

}  // namespace kdx
