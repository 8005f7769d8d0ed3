// Points repacked for the relational kernels.
//
// A panel is kEdge = 2 vectors of points. Two packings of one input [N, D]:
//   columns      [panel][D][kEdge]        a panel transposed: a tile of pairs reads one coordinate of kEdge points at
//                                         once
//   coordinates  [D / kEdge][N][kEdge]    kEdge coordinates of every point: the product with V reads these
// On a matrix engine (cpu/matrix.h) blocks of kEdge points and kEdge coordinates take their place.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

#include "cpu/element.h"
#include "cpu/isa.h"
#include "cpu/lanes.h"
#include "cpu/matrix.h"
#include "cpu/scratch.h"
#include "kdx/rkd.h"

namespace kdx {
namespace KDX_ISA {

template <class T>
constexpr int kEdge = 2 * kLanes<T>;
template <class T>
constexpr int kTile = kEdge<T> * kEdge<T>;

// Rows of a register block: with two vectors each they leave room for the operands in 32 (AVX-512) or 16 registers.
constexpr int kBlockRows = kVectorBytes == 64 ? 8 : 4;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Uninitialised storage aligned to a cache line; throws std::bad_alloc.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t count)
      : data_(static_cast<T*>(scratch_take(static_cast<std::size_t>(count) * sizeof(T), &size_))) {}
  Buffer(Buffer&& other) noexcept : size_(other.size_), data_(other.data_) { other.data_ = nullptr; }
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~Buffer() {
    if (data_ != nullptr) scratch_return(data_, size_);
  }
  T* get() const { return data_; }

 private:
  std::size_t size_ = 0;  // declared first: it is set while data_ is being made
  T* data_ = nullptr;
};

// f(pointer to the elements as they are stored).
template <class F>
void with_elements(const RkdInput& x, F f) {
  switch (x.dtype) {
    case kFloat32:
      return f(static_cast<const float*>(x.data));
    case kFloat64:
      return f(static_cast<const double*>(x.data));
    case kBFloat16:
      return f(static_cast<const BFloat16*>(x.data));
    default:
      return f(static_cast<const Float16*>(x.data));
  }
}

// A vector of `count` numbers, the other lanes zero.
template <class T>
inline Lanes<T> load_part(const T* p, int64_t count) {
  if (count >= kLanes<T>) return load(p);
  alignas(kVectorBytes) T lane[kLanes<T>] = {};
  for (int64_t l = 0; l < count; ++l) lane[l] = p[l];
  return load(lane);
}

// One input in the packings above.
template <class T>
class Points {
 public:
  Points() = default;
  // `products`: whether distances may come from products. `coordinates`: whether the product with V will ask for them.
  Points(const RkdInput& x, int64_t n, bool products, bool coordinates, int threads)
      : n_(n), depth_(x.columns), by_products_(products && sizeof(T) == 4 && x.columns >= kFewestForProducts) {
    find_rows(x, threads);
    find_centre();
    const int64_t panels = ceil_div(n_, E);
    if constexpr (sizeof(T) == 4) {
      if (by_products_) {
        norms_ = Buffer<double>(panels * E);
        std::fill_n(norms_.get() + n_, panels * E - n_, 0.0);
        const bool fits = measure_points(threads);
        on_engine_ = kForEngine && isa() >= kAmx && fits;
      }
    }
    if (on_engine_) {
      blocks_ = Buffer<uint16_t>(panels * groups() * matrix::kBlock);
    } else {
      columns_ = Buffer<T>(panels * E * depth_);
      if (coordinates) coordinates_ = Buffer<T>(groups() * panels * E * E);
    }
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t p = 0; p < panels; ++p) {
      if constexpr (kForEngine) {
        if (on_engine_) {
          pack_blocks(p);
          continue;
        }
      }
      pack(p);
    }
  }

  int64_t size() const { return n_; }
  int64_t padded() const { return ceil_div(n_, E) * E; }
  int64_t depth() const { return depth_; }
  int64_t groups() const { return ceil_div(depth_, E); }                                   // of kEdge coordinates
  const T* row(int64_t i) const { return rows_ + i * stride_; }                            // [D]
  const T* panel(int64_t p) const { return columns_.get() + p * E * depth_; }              // [D][kEdge]
  const T* coordinates(int64_t g) const { return coordinates_.get() + g * padded() * E; }  // [N][kEdge], centred

  // Whether squared distances come from products of centred points (rkd_square.h); then the panels are centred, and
  // these are the squared norms of what they hold.
  bool by_products() const { return by_products_; }
  const double* norms(int64_t p) const { return norms_.get() + p * E; }

  // Whether the matrix engine multiplies; then there are blocks instead of panels and coordinates, centred.
  bool on_engine() const { return on_engine_; }
  const T* centre() const { return centre_.get(); }
  int64_t stride() const { return stride_; }  // of row()
  const uint16_t* left(int64_t p) const { return blocks_.get() + p * groups() * matrix::kBlock; }
  // The panels from p on as right operands of the product with V, group g; those of a group are groups() blocks apart.
  const uint16_t* right_of_v(int64_t p, int64_t g) const {
    return (for_v_.get() ? for_v_.get() : blocks_.get()) + (p * groups() + g) * matrix::kBlock;
  }

  // Makes right_of_v(); in the place of left() where no more distances are wanted, so that it is found in cache.
  void prepare_for_v(bool in_place, int threads) {
    if (!on_engine_) return;
    const int64_t count = ceil_div(n_, E) * groups();
    if (!in_place) for_v_ = Buffer<uint16_t>(count * matrix::kBlock);
    uint16_t* to = in_place ? blocks_.get() : for_v_.get();
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t b = 0; b < count; ++b) {
      matrix::right_of_same(blocks_.get() + b * matrix::kBlock, to + b * matrix::kBlock);
    }
  }

 private:
  static constexpr int E = kEdge<T>, W = kLanes<T>;
  static constexpr int64_t kFewestForProducts = 128;  // coordinates: below, there is little to save
  static constexpr int64_t kSample = 64;
  static constexpr bool kForEngine = sizeof(T) == 4 && E == matrix::kSide;

  void find_rows(const RkdInput& x, int threads) {
    if (x.dtype == (sizeof(T) == 4 ? kFloat32 : kFloat64) && x.column_stride == 1) {
      rows_ = static_cast<const T*>(x.data);
      stride_ = x.row_stride;
      return;
    }
    copy_ = Buffer<T>(n_ * depth_);
    rows_ = copy_.get();
    stride_ = depth_;
    with_elements(x, [&](const auto* data) {
#pragma omp parallel for num_threads(threads) schedule(static)
      for (int64_t i = 0; i < n_; ++i) {
        T* to = copy_.get() + i * depth_;
        for (int64_t d = 0; d < depth_; ++d) {
          to[d] = static_cast<T>(widen(data[i * x.row_stride + d * x.column_stride]));
        }
      }
    });
  }

  // Neither distances nor gradients change when all points move, but a common offset would cost digits. Any origin
  // among the points will do: the mean of some of them.
  void find_centre() {
    const int64_t width = ceil_div(depth_, E) * E, used = n_ < kSample ? n_ : kSample;
    centre_ = Buffer<T>(width);
    Buffer<double> sum(width);
    for (int64_t d = 0; d < width; ++d) sum.get()[d] = 0;
    for (int64_t k = 0; k < used; ++k) {
      const T* x = row(k * n_ / used);
      double* to = sum.get();
      for (int64_t d = 0; d < depth_; ++d) to[d] += static_cast<double>(x[d]);
    }
    const double share = 1.0 / static_cast<double>(used < 1 ? 1 : used);
    for (int64_t d = 0; d < width; ++d) centre_.get()[d] = static_cast<T>(sum.get()[d] * share);
  }

  typedef int32_t Bits __attribute__((vector_size(kVectorBytes)));

  // The squared norms of the centred points; and whether all their numbers are finite and the largest lies in the
  // matrix engine's range. (As bits, NaN is larger than any number.)
  bool measure_points(int threads) {
    int32_t largest = 0;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(max : largest)
    for (int64_t i = 0; i < n_; ++i) {
      Bits of_row{};
      Lanes<double> norm[2] = {};
      for (int64_t d = 0; d < depth_; d += W) {
        const Lanes<T> x = load_part(row(i) + d, depth_ - d) - load(centre_.get() + d);
        const Bits magnitude = reinterpret_cast<Bits>(x) & 0x7fffffff;
        of_row = of_row > magnitude ? of_row : magnitude;
        for (int h = 0; h < 2; ++h) {
          const Lanes<double> half = half_as_doubles(x, h);
          norm[h] += half * half;
        }
      }
      norms_.get()[i] = sum_lanes<double>(norm[0] + norm[1]);
      for (int l = 0; l < W; ++l) largest = of_row[l] > largest ? of_row[l] : largest;
    }
    return largest >= bits(matrix::kSmallest) && largest <= bits(matrix::kLargest);
  }

  void pack_blocks(int64_t p) {
    for (int64_t g = 0; g < groups(); ++g) {
      const T *x = row(p * E) + g * E, *centre = centre_.get() + g * E;
      int64_t stride = stride_;
      alignas(64) T edge[E * E];
      if ((p + 1) * E > n_ || (g + 1) * E > depth_) {  // what is missing becomes 0
        for (int64_t r = 0; r < E; ++r) {
          for (int64_t d = 0; d < E; d += W) {
            const bool inside = p * E + r < n_;
            store(edge + r * E + d, inside ? load_part(x + r * stride_ + d, depth_ - g * E - d) : load(centre + d));
          }
        }
        x = edge, stride = E;
      }
      matrix::split(x, stride, centre, blocks_.get() + (p * groups() + g) * matrix::kBlock);
    }
  }

  void pack(int64_t p) {
    const int64_t end = coordinates_.get() ? groups() * E : depth_;
    for (int64_t d0 = 0; d0 < end; d0 += W) {
      const Lanes<T> centre = load(centre_.get() + d0);
      for (int h = 0; h < 2; ++h) {
        Lanes<T> block[W];
        for (int l = 0; l < W; ++l) {
          const int64_t i = p * E + h * W + l;
          const Lanes<T> x = i < n_ ? load_part(row(i) + d0, depth_ - d0) : Lanes<T>{};
          const Lanes<T> y = i < n_ ? x - centre : x;
          if (coordinates_.get()) store(coordinates_.get() + (d0 / E * padded() + i) * E + d0 % E, y);
          block[l] = by_products_ ? y : x;
        }
        transpose<T>(block);
        T* to = columns_.get() + (p * depth_ + d0) * E + h * W;
        for (int l = 0; l < W && d0 + l < depth_; ++l) store(to + l * E, block[l]);
      }
    }
  }

  int64_t n_ = 0, depth_ = 0;
  bool by_products_ = false, on_engine_ = false;
  const T* rows_ = nullptr;
  int64_t stride_ = 0;
  Buffer<T> copy_, centre_, columns_, coordinates_;
  Buffer<double> norms_;
  Buffer<uint16_t> blocks_, for_v_;
};

}  // namespace KDX_ISA
}  // namespace kdx
