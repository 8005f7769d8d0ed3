// Products of float matrices on the matrix engine (AMX) of an x86 CPU that has one.
//
// The engine multiplies bfloat16 numbers, exactly, and adds the products as floats. A float is the sum of three
// bfloat16 numbers; of the nine products of two such sums the six largest are computed, and what is left out, below 3 *
// 2^-24 of the product, is what a float loses when it is rounded. Numbers below 2^-126 count as zero, so that matrices
// whose largest number lies far from 1 lose digits: callers keep to [kSmallest, kLargest].
//
// A matrix is cut into blocks of 32 x 32 numbers. A block is stored as six tiles of 1 KB, two halves of three parts, in
// the shape in which the engine reads a left operand, or a right one.
#pragma once

#include <cstdint>

namespace kdx {
namespace matrix {

constexpr int kSide = 32;
constexpr int64_t kBlock = 6 * 512;                        // bfloat16 numbers of a block
constexpr float kSmallest = 0x1p-20f, kLargest = 0x1p20f;  // of the largest number of a matrix
constexpr float kLeastSum = 0x1p-70f;                      // sums of squares below have lost digits

// Whether this machine, its kernel and this build have the engine.
bool available();

// A block as a left operand: x [32][32], rows `stride` numbers apart, less origin [32].
void split(const float* x, int64_t stride, const float* origin, uint16_t* left);
// The transpose of a block as a right operand, and the block itself as one, which may take its place.
void right_of_transpose(const uint16_t* left, uint16_t* right);
void right_of_same(const uint16_t* left, uint16_t* right);
// out[32][32] = the sum of left[k] right[k] over `count` blocks: those on the left follow each other, those on the
// right are `step` blocks apart.
void multiply(const uint16_t* left, const uint16_t* right, int64_t step, int64_t count, float* out);

}  // namespace matrix
}  // namespace kdx
