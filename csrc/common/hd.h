// Functions that are compiled for the host (once per instruction set) and for the device.
#pragma once

// Internal linkage matters on the host: the same header is compiled with -mavx512f and without, and a linker that
// merged the two copies could hand AVX-512 code to a plain x86-64 machine.
#if defined(__CUDACC__)
#define KDX_HD static __host__ __device__ __forceinline__
#else
#define KDX_HD static inline __attribute__((always_inline))
#endif
