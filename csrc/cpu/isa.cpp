#include "cpu/isa.h"

#include <cstdlib>
#include <cstring>

#include "cpu/matrix.h"

namespace kdx {

namespace {

Isa detect() {
  Isa best = kBase;
#if defined(KDX_X86)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
    best = kAvx2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
      best = matrix::available() ? kAmx : kAvx512;
    }
  }
#endif
  if (const char* limit = std::getenv("KDX_CPU_ISA")) {
    for (int level = kBase; level < best; ++level) {
      if (std::strcmp(limit, isa_name(Isa(level))) == 0) best = Isa(level);
    }
  }
  return best;
}

}  // namespace

Isa isa() {
  static const Isa chosen = detect();
  return chosen;
}

const char* isa_name(Isa level) {
  constexpr const char* kNames[] = {"base", "avx2", "avx512", "amx"};
  return kNames[level];
}

}  // namespace kdx
