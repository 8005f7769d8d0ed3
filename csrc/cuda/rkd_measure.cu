// Squared distances of a block of the pair grid by direct differences, student and teacher in one launch; and the sums
// of the distance loss over them.
#include "cuda/rkd_tile.cuh"

namespace kdx::cuda {

namespace {

// A block of 16 x 16 threads does a tile of 16 kMicro squared; each thread kMicro x kMicro pairs, 16 apart, so that the
// threads of a warp read neighbouring numbers of shared memory.
constexpr int kSide = 16, kSlab = 32, kThreads = kSide * kSide;

template <int kMicro>
__device__ void square_tile(const RkdInput& x, const RkdInput& y, std::int64_t i0, std::int64_t i_end, std::int64_t j0,
                            std::int64_t j_end, float (*a)[kSide * kMicro + 1], float (*b)[kSide * kMicro + 1],
                            float (&sum)[kMicro][kMicro]) {
  constexpr int kTile = kSide * kMicro;
  const int row = int(threadIdx.x) / kSide, column = int(threadIdx.x) % kSide;
  for (int r = 0; r < kMicro; ++r)
    for (int c = 0; c < kMicro; ++c) sum[r][c] = 0.0f;
  for (int d0 = 0; d0 < x.columns; d0 += kSlab) {
    __syncthreads();
    for (int e = int(threadIdx.x); e < kTile * kSlab; e += kThreads) {
      const int point = e / kSlab, d = d0 + e % kSlab;
      const bool inside = d < x.columns;
      a[e % kSlab][point] = inside && i0 + point < i_end ? read(x, i0 + point, d) : 0.0f;
      b[e % kSlab][point] = inside && j0 + point < j_end ? read(y, j0 + point, d) : 0.0f;
    }
    __syncthreads();
    // Runs of 8 are summed by themselves and then added: a long sum would cost the digits that the law of cosines needs
    // for points that nearly touch.
#pragma unroll 1
    for (int run = 0; run < kSlab; run += 8) {
      float part[kMicro][kMicro] = {};
#pragma unroll
      for (int d = run; d < run + 8; ++d) {
        float u[kMicro], v[kMicro];
#pragma unroll
        for (int r = 0; r < kMicro; ++r) {
          u[r] = a[d][row + kSide * r];
          v[r] = b[d][column + kSide * r];
        }
#pragma unroll
        for (int r = 0; r < kMicro; ++r) {
#pragma unroll
          for (int c = 0; c < kMicro; ++c) {
            const float difference = u[r] - v[c];
            part[r][c] = fmaf(difference, difference, part[r][c]);
          }
        }
      }
      for (int r = 0; r < kMicro; ++r)
        for (int c = 0; c < kMicro; ++c) sum[r][c] += part[r][c];
    }
  }
}

template <int kMicro>
__global__ void __launch_bounds__(kThreads, kMicro == 1 ? 4 : 2) rkd_measure_kernel(RkdMeasure call) {
  constexpr int kTile = kSide * kMicro;
  KDX_SHARED(float, memory, 2 * kSlab * (kTile + 1));
  KDX_SHARED(float, scratch, kThreads / 32);
  auto* a = reinterpret_cast<float (*)[kTile + 1]>(memory);
  auto* b = a + kSlab;
  const RkdBlock& block = call.block;
  const bool above = block.symmetric && blockIdx.y < blockIdx.x, below = block.symmetric && blockIdx.y > blockIdx.x;
  const std::int64_t li = std::int64_t(blockIdx.y) * kTile, lj = std::int64_t(blockIdx.x) * kTile;
  const int row = int(threadIdx.x) / kSide, column = int(threadIdx.x) % kSide;
  const int program = int(blockIdx.y * gridDim.x + blockIdx.x), programs = int(gridDim.x * gridDim.y);
  for (int side = 0; side < 2; ++side) {
    const RkdInput& x = side == 0 ? call.student : call.teacher;
    float* out = side == 0 ? call.s_square : call.t_square;
    float total = 0.0f, count = 0.0f;
    if (!below) {
      float sum[kMicro][kMicro];
      square_tile<kMicro>(x, x, block.i0 + li, block.i0 + block.ni, block.j0 + lj, block.j0 + block.nj, a, b, sum);
      for (int r = 0; r < kMicro; ++r) {
        for (int c = 0; c < kMicro; ++c) {
          const std::int64_t i = li + row + kSide * r, j = lj + column + kSide * c;
          if (i >= block.ni || j >= block.nj) continue;
          out[i * block.nj + j] = sum[r][c];
          if (above) out[j * block.nj + i] = sum[r][c];
          total += root(sum[r][c]);
          count += sum[r][c] < kSmallest ? 0.0f : 1.0f;
        }
      }
    }
    if (call.sums != nullptr) {
      total = block_sum<kThreads>(total, scratch);
      count = block_sum<kThreads>(count, scratch);
      if (threadIdx.x == 0) {
        call.sums[(2 * side) * programs + program] = above ? 2.0f * total : total;
        call.sums[(2 * side + 1) * programs + program] = above ? 2.0f * count : count;
      }
    }
  }
}

template <int kMicro>
__global__ void __launch_bounds__(kThreads, kMicro == 1 ? 4 : 2) pairwise_sq_dist_kernel(PairwiseSqDist call) {
  constexpr int kTile = kSide * kMicro;
  KDX_SHARED(float, memory, 2 * kSlab * (kTile + 1));
  auto* a = reinterpret_cast<float (*)[kTile + 1]>(memory);
  const std::int64_t li = std::int64_t(blockIdx.y) * kTile, lj = std::int64_t(blockIdx.x) * kTile;
  float sum[kMicro][kMicro];
  square_tile<kMicro>(call.x, call.y, li, call.rows, lj, call.other, a, a + kSlab, sum);
  for (int r = 0; r < kMicro; ++r) {
    for (int c = 0; c < kMicro; ++c) {
      const std::int64_t i = li + int(threadIdx.x) / kSide + kSide * r, j = lj + int(threadIdx.x) % kSide + kSide * c;
      if (i < call.rows && j < call.other) static_cast<float*>(call.out)[i * call.other + j] = sum[r][c];
    }
  }
}

constexpr int kSumThreads = 256;
constexpr std::int64_t kMaxPrograms = 512;  // a constant, so that the order of the sums is the same on every device

__global__ void __launch_bounds__(kSumThreads) rkd_distance_kernel(RkdDistance call) {
  KDX_SHARED(float, scratch, kSumThreads / 32);
  const Mean mu = mean_of<kSumThreads>(call.s_means, int(call.counts), scratch);
  const Mean nu = mean_of<kSumThreads>(call.t_means, int(call.counts), scratch);
  float loss = 0.0f, b = 0.0f;
  const std::int64_t stride = std::int64_t(gridDim.x) * kSumThreads;
  for (std::int64_t at = std::int64_t(blockIdx.x) * kSumThreads + threadIdx.x; at < call.size; at += stride) {
    const float d = root(call.s_square[at]);
    const float z = d * mu.inverse - root(call.t_square[at]) * nu.inverse;
    const float psi = huber_slope(z, call.delta);
    loss += huber_loss(z, psi, 0.5f);
    b = fmaf(psi, d, b);
  }
  loss = block_sum<kSumThreads>(loss, scratch);
  b = block_sum<kSumThreads>(b, scratch);
  if (threadIdx.x == 0) {
    call.out[blockIdx.x] = loss;
    call.out[gridDim.x + blockIdx.x] = b;
  }
}

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// Small tiles for few points, so that the device has enough blocks.
bool small(const RkdBlock& block) { return block.ni <= 512 && block.nj <= 512; }

}  // namespace

}  // namespace kdx::cuda

namespace kdx {

std::int64_t rkd_measure_programs(const RkdBlock& block) {
  const std::int64_t tile = cuda::small(block) ? 16 : 64;
  return cuda::ceil_div(block.ni, tile) * cuda::ceil_div(block.nj, tile);
}

const char* rkd_measure_cuda(const RkdMeasure& call, void* stream) {
  const RkdBlock& block = call.block;
  const std::int64_t tile = cuda::small(block) ? 16 : 64;
  const dim3 grid(unsigned(cuda::ceil_div(block.nj, tile)), unsigned(cuda::ceil_div(block.ni, tile)));
  if (grid.y > 65535u) return "rkd: a block has too many rows";
  const auto kernel = cuda::small(block) ? cuda::rkd_measure_kernel<1> : cuda::rkd_measure_kernel<4>;
  KDX_LAUNCH(kernel, {grid, dim3(cuda::kThreads), 0, stream, 1}, call);
  return nullptr;
}

std::int64_t rkd_distance_programs(std::int64_t size) {
  const std::int64_t programs = cuda::ceil_div(size, 4 * cuda::kSumThreads);
  return programs < 1 ? 1 : programs > cuda::kMaxPrograms ? cuda::kMaxPrograms : programs;
}

const char* rkd_distance_cuda(const RkdDistance& call, void* stream) {
  const dim3 grid(unsigned(rkd_distance_programs(call.size)));
  KDX_LAUNCH(cuda::rkd_distance_kernel, {grid, dim3(cuda::kSumThreads), 0, stream, 1}, call);
  return nullptr;
}

const char* pairwise_sq_dist_cuda(const PairwiseSqDist& call, void* stream) {
  if (call.rows == 0 || call.other == 0) return nullptr;
  const bool few = call.rows <= 512 && call.other <= 512;
  const std::int64_t tile = few ? 16 : 64;
  const dim3 grid(unsigned(cuda::ceil_div(call.other, tile)), unsigned(cuda::ceil_div(call.rows, tile)));
  if (grid.y > 65535u) return "pairwise_sq_dist: x has too many points";
  const auto kernel = few ? cuda::pairwise_sq_dist_kernel<1> : cuda::pairwise_sq_dist_kernel<4>;
  KDX_LAUNCH(kernel, {grid, dim3(cuda::kThreads), 0, stream, 1}, call);
  return nullptr;
}

}  // namespace kdx
