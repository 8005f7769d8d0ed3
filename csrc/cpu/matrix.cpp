#include "cpu/matrix.h"

#if defined(KDX_X86) && defined(__linux__) && defined(__has_include)
#if __has_include(<amxbf16intrin.h>)
#define KDX_MATRIX 1
#endif
#endif

#if defined(KDX_MATRIX)
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#else
#include <cstdlib>
#endif

namespace kdx {
namespace matrix {

#if defined(KDX_MATRIX)

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"  // GCC 12 warns about its own 512-bit intrinsics
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

// The file is compiled for any x86; only what runs behind available() uses the engine.
#define KDX_ENGINE __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16,amx-tile,amx-bf16")))

namespace {

constexpr int kTile = 512;        // numbers of a tile: 16 rows of 64 bytes
constexpr int kHalf = 3 * kTile;  // of the three parts of one half of a block
constexpr int64_t kRun = 16;      // blocks that are summed on the engine before they are added to the total

// Permission to use the engine's registers, which the kernel gives a process that asks.
bool permitted() {
  constexpr long kRequest = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
}

struct alignas(64) Shape {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
  constexpr Shape() {
    for (int t = 0; t < 8; ++t) row_bytes[t] = 64, rows[t] = 16;
  }
};
constexpr Shape kShape;

KDX_ENGINE inline __m512 widen(__m256i x) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}

KDX_ENGINE inline void split_row(__m512 low, __m512 high, uint16_t* to) {
  for (int part = 0; part < 3; ++part) {
    const __m512i both = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
    _mm512_storeu_si512(to + part * kTile, both);
    low = _mm512_sub_ps(low, widen(_mm512_castsi512_si256(both)));
    high = _mm512_sub_ps(high, widen(_mm512_extracti64x4_epi64(both, 1)));
  }
}

// 16 x 16 pairs of numbers.
KDX_ENGINE inline void transpose(const uint16_t* from, uint16_t* to) {
  __m512i a[16], b[16];
  for (int r = 0; r < 16; ++r) a[r] = _mm512_loadu_si512(from + r * 32);
  for (int r = 0; r < 16; r += 2) {
    b[r] = _mm512_unpacklo_epi32(a[r], a[r + 1]);
    b[r + 1] = _mm512_unpackhi_epi32(a[r], a[r + 1]);
  }
  for (int r = 0; r < 16; r += 4) {
    for (int h = 0; h < 2; ++h) {
      a[r + 2 * h] = _mm512_unpacklo_epi64(b[r + h], b[r + h + 2]);
      a[r + 2 * h + 1] = _mm512_unpackhi_epi64(b[r + h], b[r + h + 2]);
    }
  }
  // a[4 q + c]: column c of each quarter of the rows 4 q .. 4 q + 3
  for (int c = 0; c < 4; ++c) {
    const __m512i low = _mm512_shuffle_i32x4(a[c], a[c + 4], 0x88),
                  high = _mm512_shuffle_i32x4(a[c + 8], a[c + 12], 0x88);
    const __m512i low1 = _mm512_shuffle_i32x4(a[c], a[c + 4], 0xdd),
                  high1 = _mm512_shuffle_i32x4(a[c + 8], a[c + 12], 0xdd);
    _mm512_storeu_si512(to + c * 32, _mm512_shuffle_i32x4(low, high, 0x88));
    _mm512_storeu_si512(to + (c + 4) * 32, _mm512_shuffle_i32x4(low1, high1, 0x88));
    _mm512_storeu_si512(to + (c + 8) * 32, _mm512_shuffle_i32x4(low, high, 0xdd));
    _mm512_storeu_si512(to + (c + 12) * 32, _mm512_shuffle_i32x4(low1, high1, 0xdd));
  }
}

// Registers 0 to 3 hold the sums of a block's quarters, 4 and 5 one part of the left halves, 6 and 7 of the right ones.
KDX_ENGINE inline void load_left(const uint16_t* part) {
  _tile_loadd(4, part, 64);
  _tile_loadd(5, part + kHalf, 64);
}

KDX_ENGINE inline void load_right(const uint16_t* part) {
  _tile_loadd(6, part, 64);
  _tile_loadd(7, part + kHalf, 64);
}

KDX_ENGINE inline void multiply_add() {
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(1, 4, 7);
  _tile_dpbf16ps(2, 5, 6);
  _tile_dpbf16ps(3, 5, 7);
}

}  // namespace

bool available() {
  static const bool here = [] {
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
    const bool tiles = (d >> 22 & 1) && (d >> 24 & 1);
    if (!tiles || !__get_cpuid_count(7, 1, &a, &b, &c, &d)) return false;
    return (a >> 5 & 1) && permitted();  // AVX512_BF16
  }();
  return here;
}

KDX_ENGINE void split(const float* x, int64_t stride, const float* origin, uint16_t* left) {
  const __m512 low = _mm512_loadu_ps(origin), high = _mm512_loadu_ps(origin + 16);
  for (int r = 0; r < kSide; ++r) {
    const float* row = x + r * stride;
    split_row(_mm512_sub_ps(_mm512_loadu_ps(row), low), _mm512_sub_ps(_mm512_loadu_ps(row + 16), high),
              left + r / 16 * kHalf + r % 16 * 32);
  }
}

KDX_ENGINE void right_of_transpose(const uint16_t* left, uint16_t* right) {
  for (int t = 0; t < 6; ++t) transpose(left + t * kTile, right + t * kTile);
}

KDX_ENGINE void right_of_same(const uint16_t* left, uint16_t* right) {
  // Row p of a tile holds rows 2 p and 2 p + 1 of the block, their numbers alternating.
  alignas(64) uint16_t first[32];
  for (int k = 0; k < 32; ++k) first[k] = static_cast<uint16_t>(k / 2 + k % 2 * 32);
  const __m512i of_first = _mm512_loadu_si512(first), of_second = _mm512_add_epi16(of_first, _mm512_set1_epi16(16));
  for (int part = 0; part < 3; ++part) {
    __m512i rows[32];
    for (int r = 0; r < 32; ++r) rows[r] = _mm512_loadu_si512(left + r / 16 * kHalf + part * kTile + r % 16 * 32);
    for (int p = 0; p < 16; ++p) {
      uint16_t* to = right + part * kTile + p * 32;
      _mm512_storeu_si512(to, _mm512_permutex2var_epi16(rows[2 * p], of_first, rows[2 * p + 1]));
      _mm512_storeu_si512(to + kHalf, _mm512_permutex2var_epi16(rows[2 * p], of_second, rows[2 * p + 1]));
    }
  }
}

KDX_ENGINE void multiply(const uint16_t* left, const uint16_t* right, int64_t step, int64_t count, float* out) {
  _tile_loadconfig(&kShape);
  for (int64_t k0 = 0; k0 < count || k0 == 0; k0 += kRun) {
    const int64_t k1 = k0 + kRun < count ? k0 + kRun : count;
    asm volatile("" ::: "memory");  // what was stored before is read by the loads below
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    // The small products come first: what they are added to is small, so that their sums lose nothing.
    for (int64_t k = k0; k < k1; ++k) {
      const uint16_t *a = left + k * kBlock, *b = right + k * step * kBlock;
      load_left(a);
      load_right(b + 2 * kTile);
      multiply_add();
      load_right(b + kTile);
      multiply_add();
      load_left(a + kTile);
      multiply_add();
      load_right(b);
      multiply_add();
      load_left(a + 2 * kTile);
      multiply_add();
    }
    for (int64_t k = k0; k < k1; ++k) {
      load_left(left + k * kBlock);
      load_right(right + k * step * kBlock);
      multiply_add();
    }
    alignas(64) float sum[kSide * kSide];
    float* to = k0 == 0 ? out : sum;
    _tile_stored(0, to, 128);
    _tile_stored(1, to + 16, 128);
    _tile_stored(2, to + 16 * kSide, 128);
    _tile_stored(3, to + 16 * kSide + 16, 128);
    if (k0 == 0) continue;
    for (int e = 0; e < kSide * kSide; e += 16) {
      _mm512_storeu_ps(out + e, _mm512_add_ps(_mm512_loadu_ps(out + e), _mm512_loadu_ps(sum + e)));
    }
  }
  _tile_release();
}

#else

bool available() { return false; }
void split(const float*, int64_t, const float*, uint16_t*) { std::abort(); }
void right_of_transpose(const uint16_t*, uint16_t*) { std::abort(); }
void right_of_same(const uint16_t*, uint16_t*) { std::abort(); }
void multiply(const uint16_t*, const uint16_t*, int64_t, int64_t, float*) { std::abort(); }

#endif

}  // namespace matrix
}  // namespace kdx
