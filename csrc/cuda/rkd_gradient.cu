// Rows of 2 (diag(V 1) - V) X: a tile of rows and coordinates per block, V made on the way from the squared distances,
// and the loss from the partial sums of the stages before.
#include "cuda/rkd_tile.cuh"

namespace kdx::cuda {

namespace {

// 64 rows x 64 coordinates a block, 4 x 4 a thread; V and X come through shared memory 16 points j at a time.
constexpr int kSide = 16, kMicro = 4, kTile = kSide * kMicro, kSlab = 16, kThreads = kSide * kSide;

__global__ void __launch_bounds__(kThreads) rkd_gradient_kernel(RkdGradient call) {
  KDX_SHARED(float, weight, kSlab*(kTile + 4));  // [j][row]
  KDX_SHARED(float, points, kSlab* kTile);       // [j][coordinate]
  KDX_SHARED(float, scratch, kThreads / 32);
  const RkdBlock& block = call.block;
  const int row = int(threadIdx.x) / kSide, column = int(threadIdx.x) % kSide;
  const std::int64_t li = std::int64_t(blockIdx.x) * kTile;
  const int d0 = int(blockIdx.y) * kTile;
  Mean mu{0.0f, 0.0f}, nu{0.0f, 0.0f};
  float shift = 0.0f, scale = 0.0f;
  const bool distance = call.s_square != nullptr;
  if (distance) {
    mu = mean_of<kThreads>(call.s_means, int(call.counts), scratch);
    nu = mean_of<kThreads>(call.t_means, int(call.counts), scratch);
    const float b = total_of<kThreads>(call.sums + call.sum_count, int(call.sum_count), scratch);
    shift = mu.count == 0.0f ? 0.0f : b * mu.inverse / mu.count;
    scale = call.distance_weight * mu.inverse / call.pairs;
  }
  float product[kMicro][kMicro] = {}, degree[kMicro] = {};
  for (std::int64_t j0 = 0; j0 < block.nj; j0 += kSlab) {
    __syncthreads();
    for (int e = int(threadIdx.x); e < kSlab * kTile; e += kThreads) {
      // Neighbouring threads read neighbouring numbers: along j where columns are contiguous, along i otherwise.
      const bool along_j = call.column_stride == 1;
      const int jl = along_j ? e % kSlab : e / kTile, il = along_j ? e / kSlab : e % kTile;
      const std::int64_t i = li + il, j = j0 + jl;
      float v = 0.0f;
      if (i < block.ni && j < block.nj) {
        const std::int64_t at = i * call.row_stride + j * call.column_stride;
        if (call.v != nullptr) v = call.v[at];
        if (distance) {
          const float d = root(call.s_square[at]);
          const float z = d * mu.inverse - root(call.t_square[at]) * nu.inverse;
          const float psi = huber_slope(z, call.delta);
          if (!(d == 0.0f)) v += scale * (psi - shift + 0.0f * z) / d;  // 0 z: NaN where z is
        }
      }
      weight[jl * (kTile + 4) + il] = v;
      // Distances do not change when all points move: with the first point as the origin a common offset costs no
      // digits.
      const int d = d0 + e % kTile;
      const std::int64_t k = j0 + e / kTile;
      const bool inside = k < block.nj && d < call.points.columns;
      points[e] = inside ? read(call.points, block.j0 + k, d) - read(call.points, 0, d) : 0.0f;
    }
    __syncthreads();
#pragma unroll
    for (int j = 0; j < kSlab; ++j) {
      float w[kMicro], x[kMicro];
#pragma unroll
      for (int r = 0; r < kMicro; ++r) {
        w[r] = weight[j * (kTile + 4) + row + kSide * r];
        x[r] = points[j * kTile + column + kSide * r];
      }
#pragma unroll
      for (int r = 0; r < kMicro; ++r) {
        degree[r] += w[r];
#pragma unroll
        for (int c = 0; c < kMicro; ++c) product[r][c] = fmaf(w[r], x[c], product[r][c]);
      }
    }
  }
  for (int r = 0; r < kMicro; ++r) {
    for (int c = 0; c < kMicro; ++c) {
      const std::int64_t i = li + row + kSide * r;
      const int d = d0 + column + kSide * c;
      if (i >= block.ni || d >= call.points.columns) continue;
      const float own = read(call.points, block.i0 + i, d) - read(call.points, 0, d);
      const float value = 2.0f * (degree[r] * own - product[r][c]);
      float* to = call.out + (block.i0 + i) * call.points.columns + d;
      *to = call.accumulate ? *to + value : value;
    }
  }
  if (call.loss != nullptr && blockIdx.x == 0 && blockIdx.y == 0) {
    float loss = 0.0f;
    if (distance) {
      loss += call.distance_weight * (total_of<kThreads>(call.sums, int(call.sum_count), scratch) / call.pairs);
    }
    if (call.v != nullptr) loss += call.scale * total_of<kThreads>(call.losses, int(call.loss_count), scratch);
    if (threadIdx.x == 0) *call.loss = loss;
  }
}

}  // namespace

}  // namespace kdx::cuda

namespace kdx {

const char* rkd_gradient_cuda(const RkdGradient& call, void* stream) {
  const std::int64_t rows = (call.block.ni + cuda::kTile - 1) / cuda::kTile;
  const std::int64_t columns = (call.points.columns + cuda::kTile - 1) / cuda::kTile;
  if (columns > 65535) return "rkd: too many coordinates";
  const dim3 grid(static_cast<unsigned>(rows), static_cast<unsigned>(columns < 1 ? 1 : columns));
  KDX_LAUNCH(cuda::rkd_gradient_kernel, {grid, dim3(cuda::kThreads), 0, stream, 1}, call);
  return nullptr;
}

}  // namespace kdx
