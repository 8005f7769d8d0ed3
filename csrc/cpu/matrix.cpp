#include "cpu/matrix.h"

#include "common/elementary.h"

#if defined(KDX_X86) && defined(__linux__) && defined(__has_include)
#if __has_include(<amxbf16intrin.h>) || __has_include(<amxintrin.h>)  // GCC's, Clang's
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
#define KDX_ENGINE __attribute__((target("avx512f,avx512bw,avx512vl,avx512vbmi,amx-tile,amx-int8,amx-bf16")))

namespace {

constexpr int kTile = 512;          // bfloat16 numbers of a tile: 16 rows of 64 bytes
constexpr int kHalf = 3 * kTile;    // of the three parts of one half of a block
constexpr int kDigitTile = 1024;    // digits of a tile
constexpr int64_t kDigitRun = 512;  // steps whose sums of products of digits fit in 32 bits

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

// The nearest bfloat16 number, as a float; halfway away from zero.
KDX_ENGINE inline __m512 nearest(__m512 x) {
  const __m512i up = _mm512_add_epi32(_mm512_castps_si512(x), _mm512_set1_epi32(0x8000));
  return _mm512_castsi512_ps(_mm512_and_si512(up, _mm512_set1_epi32(static_cast<int>(0xffff0000))));
}

// The three parts of x in the upper halves of floats. Each remainder is exact, and so is the third part: a float has 24
// digits, and a part takes eight of them.
KDX_ENGINE inline void split(__m512 x, __m512i* parts) {
  for (int p = 0; p < 3; ++p) {
    const __m512 part = p < 2 ? nearest(x) : x;
    parts[p] = _mm512_castps_si512(part);
    x = _mm512_sub_ps(x, part);
  }
}

// 16 x 16 words of four digits.
KDX_ENGINE inline void transpose(const int8_t* from, int8_t* to) {
  __m512i a[16], b[16];
  for (int r = 0; r < 16; ++r) a[r] = _mm512_loadu_si512(from + r * 64);
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
    _mm512_storeu_si512(to + c * 64, _mm512_shuffle_i32x4(low, high, 0x88));
    _mm512_storeu_si512(to + (c + 4) * 64, _mm512_shuffle_i32x4(low1, high1, 0x88));
    _mm512_storeu_si512(to + (c + 8) * 64, _mm512_shuffle_i32x4(low, high, 0xdd));
    _mm512_storeu_si512(to + (c + 12) * 64, _mm512_shuffle_i32x4(low1, high1, 0xdd));
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
    const bool bytes = c >> 1 & 1;  // AVX512_VBMI
    return bytes && (d >> 22 & 1) && (d >> 24 & 1) && (d >> 25 & 1) && permitted();
  }();
  return here;
}

namespace {

// Constructors do not take a target.
KDX_ENGINE void configure() { _tile_loadconfig(&kShape); }
KDX_ENGINE void release() { _tile_release(); }

thread_local int sessions = 0;

}  // namespace

Session::Session(bool on) : on_(on) {
  if (on_ && sessions++ == 0) configure();
}

Session::~Session() {
  if (on_ && --sessions == 0) release();
}

KDX_ENGINE float write_digits(const float* x, const float* origin, float largest, int64_t steps, int at,
                              int8_t* panel) {
  // The largest number lies below 2^23 - 2^15, so that its first digit stays below 128.
  int32_t exponent = bits(largest * (1 + 0x1p-7f)) >> 23;
  if (exponent < 50) exponent = 50;
  const __m512 scale = _mm512_set1_ps(from_bits((276 - exponent) << 23));
  const __m512i half = _mm512_set1_epi32(0x808080);  // of each digit's range: with it digits count from 0, not -128
  // The third and second bytes of 16 + 16 words, and the first.
  alignas(64) uint8_t place[2][64] = {};
  for (int k = 0; k < 32; ++k) {
    const int word = k < 16 ? 4 * k : 64 + 4 * (k - 16);
    place[0][k] = static_cast<uint8_t>(word + 2), place[0][k + 32] = static_cast<uint8_t>(word + 1);
    place[1][k] = static_cast<uint8_t>(word);
  }
  const __m512i upper = _mm512_loadu_si512(place[0]), lower = _mm512_loadu_si512(place[1]);
  int8_t* to = panel + at / 16 * steps * kStepBytes + at % 16 * 64;
  for (int64_t s = 0; s < steps; ++s, x += kStep, origin += kStep, to += kStepBytes) {
    __m512i q[4];
    for (int v = 0; v < 4; ++v) {
      const __m512 y = _mm512_sub_ps(_mm512_loadu_ps(x + 16 * v), _mm512_loadu_ps(origin + 16 * v));
      q[v] = _mm512_xor_si512(_mm512_add_epi32(_mm512_cvtps_epi32(_mm512_mul_ps(y, scale)), half), half);
    }
    const __m512i a = _mm512_permutex2var_epi8(q[0], upper, q[1]), b = _mm512_permutex2var_epi8(q[2], upper, q[3]);
    const __m512i c = _mm512_permutex2var_epi8(q[0], lower, q[1]), d = _mm512_permutex2var_epi8(q[2], lower, q[3]);
    _mm512_storeu_si512(to, _mm512_shuffle_i64x2(a, b, 0x44));
    _mm512_storeu_si512(to + kDigitTile, _mm512_shuffle_i64x2(a, b, 0xee));
    _mm512_storeu_si512(to + 2 * kDigitTile, _mm512_shuffle_i64x2(c, d, 0x44));
  }
  return from_bits((exponent - 6) << 23);
}

KDX_ENGINE void right_of_transpose(const int8_t* left, int64_t steps, int8_t* right) {
  for (int64_t t = 0; t < 2 * steps * 3; ++t) transpose(left + t * kDigitTile, right + t * kDigitTile);
}

namespace {

// 16 x 16 products: sums[weight][32][32] of those pairs of digits whose numbers add up to `weight`.
KDX_ENGINE inline void sum_products(const int8_t* a, const int8_t* b, int64_t steps, int32_t* sums) {
  asm volatile("" ::: "memory");  // what was stored before is read by the loads below
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t s = 0; s < steps; ++s, a += kStepBytes, b += kStepBytes) {
    _tile_loadd(4, a, 64);
    _tile_loadd(5, a + kDigitTile, 64);
    _tile_loadd(6, a + 2 * kDigitTile, 64);
    _tile_loadd(7, b, 64);
    _tile_dpbssd(2, 6, 7);
    _tile_dpbssd(0, 4, 7);
    _tile_dpbssd(1, 5, 7);
    _tile_loadd(7, b + kDigitTile, 64);
    _tile_dpbssd(2, 5, 7);
    _tile_dpbssd(3, 6, 7);
    _tile_dpbssd(1, 4, 7);
    _tile_loadd(7, b + 2 * kDigitTile, 64);
    _tile_dpbssd(2, 4, 7);
    _tile_dpbssd(3, 5, 7);
  }
  _tile_stored(0, sums, 128);
  _tile_stored(1, sums + kSide * kSide, 128);
  _tile_stored(2, sums + 2 * kSide * kSide, 128);
  _tile_stored(3, sums + 3 * kSide * kSide, 128);
}

}  // namespace

KDX_ENGINE void multiply_digits(const int8_t* left, const int8_t* right, int64_t steps, const float* left_units,
                                const float* right_units, bool upper, float* out) {
  alignas(64) int32_t sums[4][kSide * kSide];
  const __m512 digit = _mm512_set1_ps(0x1p-8f);
  for (int64_t s0 = 0; s0 < steps; s0 += kDigitRun) {
    const int64_t run = steps - s0 < kDigitRun ? steps - s0 : kDigitRun;
    for (int q = 0; q < 4; ++q) {  // neighbours share a half
      const int i = q / 2, j = i ^ (q & 1);
      if (upper && i > j) continue;
      sum_products(left + (i * steps + s0) * kStepBytes, right + (j * steps + s0) * kStepBytes, run,
                   sums[0] + 16 * (i * kSide + j));
    }
    for (int e = 0; e < kSide * kSide; e += 16) {
      if (upper && e % kSide == 0 && e >= 16 * kSide) continue;
      __m512 sum = _mm512_cvtepi32_ps(_mm512_loadu_si512(sums[3] + e));
      for (int w = 2; w >= 0; --w) {
        sum = _mm512_fmadd_ps(sum, digit, _mm512_cvtepi32_ps(_mm512_loadu_si512(sums[w] + e)));
      }
      sum = _mm512_mul_ps(_mm512_mul_ps(sum, _mm512_set1_ps(left_units[e / kSide])),
                          _mm512_loadu_ps(right_units + e % kSide));
      if (s0 > 0) sum = _mm512_add_ps(sum, _mm512_loadu_ps(out + e));
      _mm512_storeu_ps(out + e, sum);
    }
  }
}

KDX_ENGINE void split_left(const float* x, uint16_t* left) {
  alignas(64) uint16_t upper[32];
  for (int k = 0; k < 32; ++k) upper[k] = static_cast<uint16_t>(2 * k + 1);
  const __m512i odd = _mm512_loadu_si512(upper);
  for (int r = 0; r < kSide; ++r) {
    __m512i low[3], high[3];
    split(_mm512_loadu_ps(x + r * kSide), low);
    split(_mm512_loadu_ps(x + r * kSide + 16), high);
    uint16_t* to = left + r / 16 * kHalf + r % 16 * 32;
    for (int p = 0; p < 3; ++p) {
      _mm512_storeu_si512(to + p * kTile, _mm512_permutex2var_epi16(low[p], odd, high[p]));
    }
  }
}

KDX_ENGINE void split_right(const float* x, int64_t stride, const float* origin, uint16_t* right) {
  const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000));
  for (int h = 0; h < 2; ++h) {
    const __m512 centre = _mm512_loadu_ps(origin + 16 * h);
    for (int pair = 0; pair < kSide / 2; ++pair) {
      const float* first = x + 2 * pair * stride + 16 * h;
      __m512i even[3], odd[3];
      split(_mm512_sub_ps(_mm512_loadu_ps(first), centre), even);
      split(_mm512_sub_ps(_mm512_loadu_ps(first + stride), centre), odd);
      uint16_t* to = right + h * kHalf + pair * 32;
      for (int p = 0; p < 3; ++p) {
        _mm512_storeu_si512(to + p * kTile,
                            _mm512_or_si512(_mm512_srli_epi32(even[p], 16), _mm512_and_si512(odd[p], upper)));
      }
    }
  }
}

KDX_ENGINE void multiply(const uint16_t* left, const uint16_t* right, int64_t count, bool accumulate, float* out) {
  asm volatile("" ::: "memory");  // what was stored before is read by the loads below
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  // The small products come first: what they are added to is small, so that their sums lose nothing.
  for (int64_t k = 0; k < count; ++k) {
    const uint16_t *a = left + k * kBlock, *b = right + k * kBlock;
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
  for (int64_t k = 0; k < count; ++k) {
    load_left(left + k * kBlock);
    load_right(right + k * kBlock);
    multiply_add();
  }
  alignas(64) float sum[kSide * kSide];
  float* to = accumulate ? sum : out;
  _tile_stored(0, to, 128);
  _tile_stored(1, to + 16, 128);
  _tile_stored(2, to + 16 * kSide, 128);
  _tile_stored(3, to + 16 * kSide + 16, 128);
  if (!accumulate) return;
  for (int e = 0; e < kSide * kSide; e += 16) {
    _mm512_storeu_ps(out + e, _mm512_add_ps(_mm512_loadu_ps(out + e), _mm512_loadu_ps(sum + e)));
  }
}

#else

bool available() { return false; }
Session::Session(bool on) : on_(on) {}
Session::~Session() {}
float write_digits(const float*, const float*, float, int64_t, int, int8_t*) { std::abort(); }
void right_of_transpose(const int8_t*, int64_t, int8_t*) { std::abort(); }
void multiply_digits(const int8_t*, const int8_t*, int64_t, const float*, const float*, bool, float*) { std::abort(); }
void split_left(const float*, uint16_t*) { std::abort(); }
void split_right(const float*, int64_t, const float*, uint16_t*) { std::abort(); }
void multiply(const uint16_t*, const uint16_t*, int64_t, bool, float*) { std::abort(); }

#endif

}  // namespace matrix
}  // namespace kdx
