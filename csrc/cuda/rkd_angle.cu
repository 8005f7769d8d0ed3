// RKD-A: a thread owns pairs (i, j) and walks over every k with the sums of P, Q, R and the loss in registers, so there
// are no atomics and no N^3 memory. The legs of 32 points k are staged in shared memory, packed (S/2, r) of student and
// teacher, so that one 16-byte load brings a leg and no inverse root is taken in the loop.
#include "cuda/rkd_tile.cuh"

namespace kdx::cuda {

namespace {

constexpr int kSide = 16, kSlab = 16, kThreads = kSide * kSide;

struct __align__(16) Legs {
  float s_half, s_inverse, t_half, t_inverse;
};

__device__ __forceinline__ Legs legs_of(float s, float t) {
  return {s < kSmallest ? 0.0f : 0.5f * s, inverse_root(s), t < kSmallest ? 0.0f : 0.5f * t, inverse_root(t)};
}

// Legs of the points k0 .. k0 + kSlab to `width` points from `first` on; [kSlab][kTile] in shared memory.
template <int kTile>
__device__ __forceinline__ void stage(const float* __restrict__ s, const float* __restrict__ t, std::int64_t points,
                                      std::int64_t width, std::int64_t k0, std::int64_t first, Legs* legs) {
  for (int e = int(threadIdx.x); e < kSlab * kTile; e += kThreads) {
    const std::int64_t k = k0 + e / kTile, at = first + e % kTile;
    const bool inside = k < points && at < width;
    legs[e] = inside ? legs_of(s[k * width + at], t[k * width + at]) : Legs{0.0f, 0.0f, 0.0f, 0.0f};
  }
}

template <int kMicro, bool kGrad>
__global__ void __launch_bounds__(kThreads, kMicro == 1 ? 4 : 2) rkd_angle_kernel(RkdAngle call) {
  constexpr int kTile = kSide * kMicro, kUnroll = kMicro == 1 ? 4 : 1;
  KDX_SHARED(Legs, legs_i, kSlab * kTile);
  KDX_SHARED(Legs, legs_j, kSlab * kTile);
  KDX_SHARED(float, scratch, kThreads / 32);
  const RkdBlock& block = call.block;
  const bool above = block.symmetric && blockIdx.y < blockIdx.x, below = block.symmetric && blockIdx.y > blockIdx.x;
  const std::int64_t li = std::int64_t(blockIdx.y) * kTile, lj = std::int64_t(blockIdx.x) * kTile;
  const int row = int(threadIdx.x) / kSide, column = int(threadIdx.x) % kSide;
  float loss = 0.0f;
  if (!below) {
    Leg<float> edge_s[kMicro][kMicro], edge_t[kMicro][kMicro];
    PairSums<float> sums[kMicro][kMicro];
#pragma unroll
    for (int r = 0; r < kMicro; ++r) {
#pragma unroll
      for (int c = 0; c < kMicro; ++c) {
        const std::int64_t i = li + row + kSide * r, j = lj + column + kSide * c;
        const bool inside = i < block.ni && j < block.nj;
        const std::int64_t at = (block.i0 + i) * block.nj + j;
        const Legs edge = inside ? legs_of(call.s_j[at], call.t_j[at]) : Legs{0.0f, 0.0f, 0.0f, 0.0f};
        edge_s[r][c] = {edge.s_half, edge.s_inverse};
        edge_t[r][c] = {edge.t_half, edge.t_inverse};
        sums[r][c] = {0.0f, 0.0f, 0.0f, 0.0f};
      }
    }
    for (std::int64_t k0 = 0; k0 < block.points; k0 += kSlab) {
      __syncthreads();
      stage<kTile>(call.s_i, call.t_i, block.points, block.ni, k0, li, legs_i);
      stage<kTile>(call.s_j, call.t_j, block.points, block.nj, k0, lj, legs_j);
      __syncthreads();
      // Points past N have legs of 0 and add nothing.
#pragma unroll kUnroll
      for (int k = 0; k < kSlab; ++k) {
        Legs a[kMicro], b[kMicro];
#pragma unroll
        for (int r = 0; r < kMicro; ++r) {
          a[r] = legs_i[k * kTile + row + kSide * r];
          b[r] = legs_j[k * kTile + column + kSide * r];
        }
#pragma unroll
        for (int r = 0; r < kMicro; ++r) {
          const Leg<float> a_s{a[r].s_half, a[r].s_inverse}, a_t{a[r].t_half, a[r].t_inverse};
#pragma unroll
          for (int c = 0; c < kMicro; ++c) {
            const Leg<float> b_s{b[c].s_half, b[c].s_inverse}, b_t{b[c].t_half, b[c].t_inverse};
            add_triple<kGrad>(edge_s[r][c], a_s, b_s, edge_t[r][c], a_t, b_t, call.delta, 0.5f, sums[r][c]);
          }
        }
      }
    }
    for (int r = 0; r < kMicro; ++r) {
      for (int c = 0; c < kMicro; ++c) {
        loss += sums[r][c].loss;
        const std::int64_t i = li + row + kSide * r, j = lj + column + kSide * c;
        if (!kGrad || i >= block.ni || j >= block.nj) continue;
        const float inverse = edge_s[r][c].inv;
        const PairSums<float>& sum = sums[r][c];
        const float value = call.scale * (inverse * (sum.p - inverse * inverse * sum.q) - sum.r);
        const float v = inverse == 0.0f ? 0.0f : value + 0.0f * sum.loss;  // NaN where the loss is
        call.v[i * block.nj + j] = v;
        if (above) call.v[j * block.nj + i] = v;
      }
    }
  }
  loss = block_sum<kThreads>(loss, scratch);
  if (threadIdx.x == 0) call.losses[blockIdx.y * gridDim.x + blockIdx.x] = above ? 2.0f * loss : loss;
}

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// One pair a thread for few points, so that the device has enough blocks; four share their legs otherwise.
bool small(const RkdBlock& block) { return block.ni <= 512 && block.nj <= 512; }

}  // namespace

}  // namespace kdx::cuda

namespace kdx {

std::int64_t rkd_angle_programs(const RkdBlock& block) {
  const std::int64_t tile = cuda::small(block) ? 16 : 32;
  return cuda::ceil_div(block.ni, tile) * cuda::ceil_div(block.nj, tile);
}

const char* rkd_angle_cuda(const RkdAngle& call, void* stream) {
  const RkdBlock& block = call.block;
  const std::int64_t tile = cuda::small(block) ? 16 : 32;
  const dim3 grid(unsigned(cuda::ceil_div(block.nj, tile)), unsigned(cuda::ceil_div(block.ni, tile)));
  if (grid.y > 65535u) return "rkd: a block has too many rows";
  const bool grad = call.v != nullptr;
  const auto kernel = cuda::small(block) ? (grad ? cuda::rkd_angle_kernel<1, true> : cuda::rkd_angle_kernel<1, false>)
                                         : (grad ? cuda::rkd_angle_kernel<2, true> : cuda::rkd_angle_kernel<2, false>);
  KDX_LAUNCH(kernel, {grid, dim3(cuda::kThreads), 0, stream, 1}, call);
  return nullptr;
}

}  // namespace kdx
