// Inputs repacked for the relational kernels, and the tile of squared distances made from them.
//
// A panel is kEdge = 2 vectors of points. Two packings of one input [N, D]:
//   columns  [panel][D][kEdge]    a panel transposed: the distance tiles read one coordinate of kEdge points at once
//   rows     [D / kEdge][N][kEdge]  kEdge coordinates of every point, centred: the product with V reads these
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

#include "cpu/element.h"
#include "cpu/lanes.h"
#include "cpu/scratch.h"
#include "kdx/rkd.h"

namespace kdx {
namespace KDX_ISA {

template <class T>
constexpr int kEdge = 2 * kLanes<T>;
template <class T>
constexpr int kTile = kEdge<T> * kEdge<T>;

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

// One panel of points transposed to [D][kEdge]; points past N are zero.
template <class T>
void pack_columns(const RkdInput& x, int64_t n, int64_t panel, T* out) {
  constexpr int E = kEdge<T>;
  with_elements(x, [&](const auto* data) {
    for (int l = 0; l < E; ++l) {
      const int64_t i = panel * E + l;
      if (i >= n) {
        for (int64_t d = 0; d < x.columns; ++d) out[d * E + l] = T(0);
        continue;
      }
      const auto* row = data + i * x.row_stride;
      for (int64_t d = 0; d < x.columns; ++d) out[d * E + l] = static_cast<T>(widen(row[d * x.column_stride]));
    }
  });
}

template <class T>
Buffer<T> pack_all_columns(const RkdInput& x, int64_t n, int threads) {
  const int64_t panels = ceil_div(n, kEdge<T>), size = x.columns * kEdge<T>;
  Buffer<T> out(panels * size);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t p = 0; p < panels; ++p) pack_columns<T>(x, n, p, out.get() + p * size);
  return out;
}

// Rows packing, minus the mean of each coordinate: the gradient does not change, and a common offset no longer costs
// digits.
template <class T>
Buffer<T> pack_all_rows(const RkdInput& x, int64_t n, int threads) {
  constexpr int E = kEdge<T>;
  const int64_t groups = ceil_div(x.columns, E), rows = ceil_div(n, E) * E;
  Buffer<T> out(groups * rows * E);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t g = 0; g < groups; ++g) {
    T* to = out.get() + g * rows * E;
    double mean[E] = {};
    const int64_t d0 = g * E, width = x.columns - d0 < E ? x.columns - d0 : E;
    std::memset(to, 0, static_cast<std::size_t>(rows * E) * sizeof(T));
    with_elements(x, [&](const auto* data) {
      for (int64_t i = 0; i < n; ++i) {
        for (int64_t l = 0; l < width; ++l) {
          const T v = static_cast<T>(widen(data[i * x.row_stride + (d0 + l) * x.column_stride]));
          to[i * E + l] = v;
          mean[l] += static_cast<double>(v);
        }
      }
    });
    for (int l = 0; l < E; ++l) mean[l] /= static_cast<double>(n);
    for (int64_t i = 0; i < n; ++i) {
      for (int l = 0; l < E; ++l) to[i * E + l] -= static_cast<T>(mean[l]);
    }
  }
  return out;
}

// Squared distances of panel a to panel b by direct differences: out[i][j] over kEdge x kEdge, both panels [D][kEdge].
//
// Summed in runs of 16 coordinates, then runs of 8 of those, then those: a long sum would cost the digits that the law
// of cosines needs for points that nearly touch. Two slabs of 128 coordinates stay in L1.
template <class T>
void square_tile(const T* a, const T* b, int64_t depth, T* out) {
  using V = Lanes<T>;
  constexpr int E = kEdge<T>, W = kLanes<T>, kRows = 4;
  constexpr int64_t kRun = 16, kSlab = 128;
  for (int64_t d0 = 0; d0 < depth || d0 == 0; d0 += kSlab) {
    const int64_t d1 = d0 + kSlab < depth ? d0 + kSlab : depth;
    for (int i = 0; i < E; i += kRows) {
      V slab[kRows][2] = {};
      for (int64_t r0 = d0; r0 < d1; r0 += kRun) {
        const int64_t r1 = r0 + kRun < d1 ? r0 + kRun : d1;
        V sum[kRows][2] = {};
        for (int64_t d = r0; d < r1; ++d) {
          const V b0 = load(b + d * E), b1 = load(b + d * E + W);
#pragma GCC unroll 4
          for (int r = 0; r < kRows; ++r) {
            const V x = spread(a[d * E + i + r]);
            const V u = b0 - x, v = b1 - x;
            sum[r][0] += u * u;
            sum[r][1] += v * v;
          }
        }
        for (int r = 0; r < kRows; ++r) {
          slab[r][0] += sum[r][0];
          slab[r][1] += sum[r][1];
        }
      }
      for (int r = 0; r < kRows; ++r) {
        T* row = out + (i + r) * E;
        store(row, d0 == 0 ? slab[r][0] : load(row) + slab[r][0]);
        store(row + W, d0 == 0 ? slab[r][1] : load(row + W) + slab[r][1]);
      }
    }
  }
}

// Zeroes what a tile holds past the last point.
template <class T>
void clear_padding(T* tile, int64_t rows, int64_t columns) {
  constexpr int E = kEdge<T>;
  if (rows >= E && columns >= E) return;
  for (int i = 0; i < E; ++i) {
    for (int j = 0; j < E; ++j) {
      if (i >= rows || j >= columns) tile[i * E + j] = T(0);
    }
  }
}

}  // namespace KDX_ISA
}  // namespace kdx
