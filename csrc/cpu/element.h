// Reading and writing elements of the four dtypes in the accumulation type: float, and double for double.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/elementary.h"

namespace kdx {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

template <class In>
struct AccOf {
  using type = float;
};
template <>
struct AccOf<double> {
  using type = double;
};
template <class In>
using Acc = typename AccOf<In>::type;

KDX_HD float widen(float x) { return x; }
KDX_HD double widen(double x) { return x; }
KDX_HD float widen(BFloat16 x) { return from_bits(int32_t(uint32_t(x.bits) << 16)); }

// Shifting the exponent into place and multiplying by 2^112 is exact for normal and subnormal numbers alike.
KDX_HD float widen(Float16 x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000u) << 16, rest = uint32_t(x.bits & 0x7fffu);
  const float scaled = from_bits(int32_t(rest << 13)) * 5.192296858534827628530496329220096e+33f;
  const uint32_t special = (rest << 13) | 0x7f800000u;  // inf and NaN
  const uint32_t magnitude = rest >= 0x7c00u ? special : uint32_t(bits(scaled));
  return from_bits(int32_t(magnitude | sign));
}

KDX_HD void narrow(float x, float* out) { *out = x; }
KDX_HD void narrow(double x, double* out) { *out = x; }

// Round to nearest even; NaN keeps its quiet bit.
KDX_HD void narrow(float x, BFloat16* out) {
  const uint32_t u = uint32_t(bits(x));
  const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  out->bits = uint16_t(x != x ? 0x7fc0u : rounded);
}

KDX_HD void narrow(float x, Float16* out) {
  const uint32_t u = uint32_t(bits(x)), sign = (u >> 16) & 0x8000u, rest = u & 0x7fffffffu;
  const uint32_t normal = (rest - 0x38000000u + 0x0fffu + ((rest >> 13) & 1u)) >> 13;
  // Below 2^-14 the spacing is 2^-24: adding 0.5 puts that spacing at float's last bit, which rounds to even for us.
  const uint32_t subnormal = uint32_t(bits(from_bits(int32_t(rest)) + 0.5f)) - 0x3f000000u;
  uint32_t magnitude = rest < 0x38800000u ? subnormal : normal;
  magnitude = rest >= 0x477ff000u ? 0x7c00u : magnitude;  // from 65520 on
  magnitude = rest > 0x7f800000u ? 0x7e00u : magnitude;
  out->bits = uint16_t(sign | magnitude);
}

}  // namespace kdx
