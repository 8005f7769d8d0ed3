// Choice of the instruction set at run time.
#pragma once

namespace kdx {

enum Isa : int { kBase = 0, kAvx2 = 1, kAvx512 = 2, kAmx = 3 };  // kAmx: AVX-512 with the engine of cpu/matrix.h

// What this CPU and this build both have, lowered (never raised) by KDX_CPU_ISA=base|avx2|avx512|amx. Read once.
Isa isa();
const char* isa_name(Isa isa);

// A kernel's versions, in the order of Isa; those above what was built are null. (The matrix engine is used from within
// the last one.)
template <class Fn>
Fn pick(Fn base, Fn avx2, Fn avx512) {
  if (isa() >= kAvx512 && avx512) return avx512;
  if (isa() >= kAvx2 && avx2) return avx2;
  return base;
}

}  // namespace kdx

// KDX_VERSIONS(f): the three functions kdx::base::f, kdx::avx2::f, kdx::avx512::f, with null for those not built.
#if defined(KDX_X86)
#define KDX_VERSIONS(f) ::kdx::base::f, ::kdx::avx2::f, ::kdx::avx512::f
#else
#define KDX_VERSIONS(f) ::kdx::base::f, decltype (&::kdx::base::f)(nullptr), decltype (&::kdx::base::f)(nullptr)
#endif
