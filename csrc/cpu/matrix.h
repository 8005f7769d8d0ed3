// Products of float matrices on the matrix engine (AMX) of an x86 CPU that has one. Two ways, by what may be lost:
//
// Products of points, which their norms bound: every point is scaled by a power of two and rounded to a whole number of
// 24 bits, written as three signed digits of eight. Products of digits and their sums are exact; of the nine products
// of two numbers the largest eight are computed. What rounding and the ninth lose is a small part of a unit in the last
// place of |a| |b| on most data, whatever their order, so that a b = b a.
//
// Products of any numbers, each as exact as its factors: a float is the sum of three bfloat16 numbers. The engine
// multiplies them exactly and adds the products as floats; of the nine products of two such sums the six largest are
// computed, and what is left out, below 3 * 2^-24 of the product, is what a float loses when it is rounded.
//
// Numbers below 2^-126 count as zero and scales end at 2^99, so that matrices whose largest number lies far from 1 lose
// digits: points keep to [kSmallest, kLargest]. What multiplies them is not looked at: V loses digits where a loss's
// weight is below 1e-17 for points of size 1e5, below 1e-25 for points of size 1.
#pragma once

#include <cstdint>

namespace kdx {
namespace matrix {

constexpr int kSide = 32;                                  // of a panel of points, and of a block
constexpr float kSmallest = 0x1p-20f, kLargest = 0x1p20f;  // of the largest number of a matrix
constexpr float kLeastSum = 0x1p-70f;                      // sums of squares below have lost digits

// Whether this machine, its kernel and this build have the engine.
bool available();

// While one lives, the thread that made it may multiply.
class Session {
 public:
  explicit Session(bool on);
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

 private:
  [[maybe_unused]] const bool on_;
};

// A panel of 32 points as digits, 64 coordinates a step: [half of the points][step][digit][1 KB], in the shape in which
// the engine reads a left operand, or a right one.
constexpr int kStep = 64;
constexpr int64_t kStepBytes = 3 * 1024;

// Writes point `at` (below kSide) of a left panel: x [64 steps] less origin, of which the largest is `largest`. Returns
// the point's unit, a power of two.
float write_digits(const float* x, const float* origin, float largest, int64_t steps, int at, int8_t* panel);
void right_of_transpose(const int8_t* left, int64_t steps, int8_t* right);
// out[32][32] = products of the points of two panels with these units; `upper`: of a panel with itself, where the lower
// left quarter is left out.
void multiply_digits(const int8_t* left, const int8_t* right, int64_t steps, const float* left_units,
                     const float* right_units, bool upper, float* out);

// A block of 32 x 32 floats in parts: six tiles of 1 KB, two halves of three parts.
constexpr int64_t kBlock = 6 * 512;  // bfloat16 numbers

// A block as a left operand: x [32][32]; and as a right one: x [32][32], rows `stride` numbers apart, less origin [32].
void split_left(const float* x, uint16_t* left);
void split_right(const float* x, int64_t stride, const float* origin, uint16_t* right);
// out[32][32] = the sum of left[k] right[k] over `count` blocks that follow each other, added to what is there when
// `accumulate`. Runs of kRun blocks fit in the first-level cache.
constexpr int64_t kRun = 4;
void multiply(const uint16_t* left, const uint16_t* right, int64_t count, bool accumulate, float* out);

}  // namespace matrix
}  // namespace kdx
