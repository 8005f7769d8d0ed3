// Points repacked for the relational kernels.
//
// A panel is kEdge = 2 vectors of points. Two packings of one input [N, D]:
//   columns      [panel][D][kEdge]        a panel transposed: a tile of pairs reads one coordinate of kEdge points at
//                                         once
//   coordinates  [D / kEdge][N][kEdge]    kEdge coordinates of every point: the product with V reads these
// On a matrix engine (cpu/matrix.h) panels of digits take the place of columns, and coordinates are read from the
// input.
#pragma once

#if defined(_OPENMP)
#include <omp.h>
#endif

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

// Below the number of threads of a parallel region.
inline int64_t thread_number() {
#if defined(_OPENMP)
  return omp_get_thread_num();
#else
  return 0;
#endif
}

// Uninitialised storage aligned to a cache line; throws std::bad_alloc, and therefore is made outside of parallel
// regions, which no exception may leave.
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
        if (kForEngine && isa() >= kAmx) {
          units_ = Buffer<float>(panels * E);
          digits_ = Buffer<int8_t>(panels * panel_bytes());
        }
        on_engine_ = measure_points(threads) && digits_.get();
        if (on_engine_) {
          right_ = Buffer<int8_t>(threads * panel_bytes());
          return;
        }
        digits_ = {};
      }
    }
    columns_ = Buffer<T>(panels * E * depth_);
    if (coordinates) coordinates_ = Buffer<T>(groups() * panels * E * E);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t p = 0; p < panels; ++p) pack(p);
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

  // Whether the matrix engine multiplies; then there are digits, centred, instead of panels and coordinates.
  bool on_engine() const { return on_engine_; }
  const T* centre() const { return centre_.get(); }
  int64_t stride() const { return stride_; }  // of row()
  int64_t steps() const { return ceil_div(depth_, matrix::kStep); }
  int64_t panel_bytes() const { return 2 * steps() * matrix::kStepBytes; }
  const int8_t* digits(int64_t p) const { return digits_.get() + p * panel_bytes(); }
  const float* units(int64_t p) const { return units_.get() + p * E; }  // of the digits
  // Where the calling thread keeps one panel of digits as a right operand.
  int8_t* right() const { return right_.get() + thread_number() * panel_bytes(); }

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

  int64_t width() const { return ceil_div(depth_, matrix::kStep) * matrix::kStep; }  // of the centre

  // Neither distances nor gradients change when all points move, but a common offset would cost digits. Any origin
  // among the points will do: the mean of some of them.
  void find_centre() {
    const int64_t used = n_ < kSample ? n_ : kSample;
    centre_ = Buffer<T>(width());
    Buffer<double> sum(width());
    std::fill_n(sum.get(), width(), 0.0);
    for (int64_t k = 0; k < used; ++k) {
      const T* x = row(k * n_ / used);
      double* to = sum.get();
      for (int64_t d = 0; d < depth_; ++d) to[d] += static_cast<double>(x[d]);
    }
    const double share = 1.0 / static_cast<double>(used < 1 ? 1 : used);
    for (int64_t d = 0; d < width(); ++d) centre_.get()[d] = static_cast<T>(sum.get()[d] * share);
  }

  typedef int32_t Bits __attribute__((vector_size(kVectorBytes)));

  // The squared norms of the centred points, and their digits if there is room for them; and whether all their numbers
  // are finite and the largest lies in its range. (As bits, NaN is larger than any number.)
  bool measure_points(int threads) {
    int32_t largest = 0;
    Buffer<T> filled(threads * width());
#pragma omp parallel for num_threads(threads) schedule(static) reduction(max : largest)
    for (int64_t p = 0; p < padded() / E; ++p) {
      for (int i = 0; i < E; ++i) {
        const int64_t at = p * E + i;
        const T* x = whole_row(at, filled.get() + thread_number() * width());
        const int32_t of_point = measure_point(x, norms_.get()[at]);
        largest = of_point > largest ? of_point : largest;
        if (!digits_.get()) continue;
        int8_t* panel = digits_.get() + p * panel_bytes();
        units_.get()[at] = matrix::write_digits(x, centre_.get(), from_bits(of_point), steps(), i, panel);
      }
    }
    return largest >= bits(matrix::kSmallest) && largest <= bits(matrix::kLargest);
  }

  // A point with as many coordinates as the centre; those it does not have are the centre's, which count as 0.
  const T* whole_row(int64_t i, T* filled) const {
    if (i >= n_) return centre_.get();
    if (depth_ == width()) return row(i);
    std::memcpy(filled, centre_.get(), static_cast<std::size_t>(width()) * sizeof(T));
    std::memcpy(filled, row(i), static_cast<std::size_t>(depth_) * sizeof(T));
    return filled;
  }

  // The squared norm of a centred point, given with whole_row(), and its largest magnitude as bits.
  int32_t measure_point(const T* x, double& norm) const {
    Bits magnitudes{};
    Lanes<double> sum[2] = {};
    for (int64_t d = 0; d < width(); d += W) {
      __builtin_prefetch(x + d + stride_);  // the next point, which may lie on another page
      const Lanes<T> y = load(x + d) - load(centre_.get() + d);
      const Bits magnitude = reinterpret_cast<Bits>(y) & 0x7fffffff;
      magnitudes = magnitudes > magnitude ? magnitudes : magnitude;
      for (int h = 0; h < 2; ++h) {
        const Lanes<double> half = half_as_doubles(y, h);
        sum[h] += half * half;
      }
    }
    norm = fold_lanes<double>(sum[0] + sum[1]);
    int32_t lanes[W], largest = 0;
    std::memcpy(lanes, &magnitudes, sizeof(lanes));
    for (int l = 0; l < W; ++l) largest = lanes[l] > largest ? lanes[l] : largest;
    return largest;
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
  Buffer<float> units_;
  Buffer<int8_t> digits_, right_;
};

}  // namespace KDX_ISA
}  // namespace kdx
