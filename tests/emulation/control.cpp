// The switches of the emulation, for Python (harness.Emulation).
#include "cuda_emulation.h"

#define KDX_EXPORT extern "C" __attribute__((visibility("default")))

KDX_EXPORT void kdx_emulation_set(int arch, int order, std::uint64_t seed) {
  emulation::settings() = {arch, static_cast<emulation::Order>(order), seed};
}

KDX_EXPORT long kdx_emulation_launches() { return emulation::counts().launches; }
