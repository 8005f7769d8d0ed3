// The kernels of softmax_kl, and which one a call takes.
//
//   kernel          a row is shared by      and kept in        for
//   lanes_kernel    8 or 32 lanes           registers          up to 128 chunks (1024 classes of 16 bits, 512 of fp32)
//   cluster_kernel  1 .. 16 blocks          shared memory      rows that fit: 16 x 2048 chunks (262144 classes of 16
//   bits) and
//                                                              beyond; one block without clusters (before sm_90)
//   block_kernel    one block               nowhere            longer rows, fp64: reads the row once more for the
//   gradient thread_kernel   one thread              nowhere            up to 16 classes, and rows whose classes are
//   far apart but whose
//                                                              neighbours touch (dim=1 of NCHW): accesses are coalesced
//                                                              over rows
//
// Bounds checked by tests/native/test_cuda_gates.py: no spills; registers at most 168 (lanes, thread), 128
// (block), 80 (cluster).
#pragma once

#include "cuda/softmax_kl_row.cuh"

namespace kdx::cuda {

constexpr int kThreads = 128;         // of every kernel but the cluster's
constexpr int kClusterThreads = 256;  // at most
constexpr int kSliceChunks = 2048;    // of 16 bytes and per side: 64 KiB of shared memory, three blocks on an SM

// Blocks write their share of the total to `partial`; the last one to do so adds them up in order and zeroes the
// ticket.
struct Workspace {
  unsigned* ticket;
  double* partial;  // [blocks, one for each cluster]
};

template <typename T>
struct Call {
  using A = typename Element<T>::Acc;
  SoftmaxKl raw;
  Workspace workspace;
  Temperature<A> temperature;
  A beta, kl_scale, ce_scale;
  std::int64_t rows;

  __device__ std::int64_t at(const View& view, std::int64_t r) const {
    return r / raw.I * view.so + r % raw.I * view.si;
  }
  __device__ Row<T> row(std::int64_t r, bool teacher_counts) const {
    Row<T> row;
    row.student = {static_cast<const T*>(raw.student.data) + at(raw.student, r), raw.student.sc, false};
    // Without a KL the student stands in for the teacher: it differs from itself by nothing.
    row.teacher = teacher_counts ? Line<const T>{static_cast<const T*>(raw.teacher.data) + at(raw.teacher, r),
                                                 raw.teacher.sc, false}
                                 : row.student;
    row.grad = {raw.grad.data ? static_cast<T*>(raw.grad.data) + at(raw.grad, r) : nullptr, raw.grad.sc, false};
    row.C = raw.C;
    row.cut();
    return row;
  }
  // Where the cross-entropy of a row goes; nullptr: into its loss.
  __device__ A* ce_loss(std::int64_t r) const { return raw.ce_losses ? static_cast<A*>(raw.ce_losses) + r : nullptr; }
  __device__ RowTerms<A> terms(std::int64_t r) const {
    RowTerms<A> terms;
    terms.kl = kl_scale * (raw.kl_rows ? static_cast<const A*>(raw.kl_rows)[r] : A(1));
    terms.ce = raw.labels ? ce_scale * static_cast<const A*>(raw.ce_rows)[r] : A(0);
    terms.label = terms.ce != A(0) ? raw.labels[r] : -1;
    return terms;
  }
};

// `loss` of row r from the leader of its team (0 from other threads and from beyond the last row): stored, or summed.
template <typename T>
__device__ void deliver(const Call<T>& call, std::int64_t r, typename Element<T>::Acc loss, bool leader, unsigned part,
                        unsigned parts) {
  using A = typename Element<T>::Acc;
  if (!call.raw.reduce) {
    if (leader) static_cast<A*>(call.raw.loss)[r] = loss;
    return;
  }
  KDX_SHARED(double, sums, 32);
  KDX_SHARED(int, last, 1);
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32, warps = int(blockDim.x) / 32;
  const double of_warp = lane_sum<32>(leader ? double(loss) : 0.0);
  if (lane == 0) sums[warp] = of_warp;
  __syncthreads();
  if (threadIdx.x == 0) {
    double total = 0.0;
    for (int w = 0; w < warps; ++w) total += sums[w];
    last[0] = 0;
    if (parts == 1) {
      *static_cast<A*>(call.raw.loss) = A(total);
    } else {
      call.workspace.partial[part] = total;
      __threadfence();
      last[0] = atomicInc(call.workspace.ticket, parts - 1) == parts - 1;
    }
  }
  __syncthreads();
  if (!last[0]) return;
  __threadfence();
  double total = 0.0;
  for (unsigned i = threadIdx.x; i < parts; i += blockDim.x) total += __ldcg(call.workspace.partial + i);
  total = lane_sum<32>(total);
  if (lane == 0) sums[warp] = total;
  __syncthreads();
  if (threadIdx.x != 0) return;
  total = 0.0;
  for (int w = 0; w < warps; ++w) total += sums[w];
  *static_cast<A*>(call.raw.loss) = A(total);
}

template <typename T, int kDivergence, typename Store, int kLanes>
__global__ void __launch_bounds__(kThreads, 3) lanes_kernel(const Call<T> call) {
  using A = typename Element<T>::Acc;
  const LaneTeam<A, kLanes> team;
  const std::int64_t r = std::int64_t(blockIdx.x) * (kThreads / kLanes) + threadIdx.x / kLanes;
  A loss = A(0);
  if (r < call.rows) {
    const RowTerms<A> terms = call.terms(r);
    const Row<T> row = call.row(r, terms.kl != A(0));
    if (terms.kl != A(0) || terms.ce != A(0)) {
      Store store;
      loss = solve_row<T, kDivergence>(row, terms, store, team, call.temperature, call.beta, call.ce_loss(r));
    } else {
      clear_row(row, team);
    }
  }
  deliver(call, r, loss, r < call.rows && team.index() == 0, blockIdx.x, gridDim.x);
}

template <typename T, int kDivergence, typename Store>
__device__ void block_row(const Call<T>& call, Store& store, int blocks) {
  using A = typename Element<T>::Acc;
  KDX_SHARED(Stats<A>, warps, 32);
  KDX_SHARED(Stats<A>, parts, kMaxCluster);
  KDX_SHARED(A, sums, 2 * (32 + kMaxCluster));
  const ClusterTeam<A> team{warps, parts, sums, blocks, blocks > 1 ? int(cluster_rank()) : 0};
  team.start();
  const std::int64_t r = blockIdx.x / unsigned(blocks);
  const RowTerms<A> terms = call.terms(r);
  const Row<T> row = call.row(r, terms.kl != A(0));
  A loss = A(0);
  if (terms.kl != A(0) || terms.ce != A(0)) {
    loss = solve_row<T, kDivergence>(row, terms, store, team, call.temperature, call.beta, call.ce_loss(r));
  } else {
    if (blocks > 1) cluster_wait();
    clear_row(row, team);
  }
  if (team.rank == 0)
    deliver(call, r, loss, threadIdx.x == 0, blockIdx.x / unsigned(blocks), gridDim.x / unsigned(blocks));
}

// The slice of a row in shared memory as raw chunks, student and teacher one after the other.
template <typename T, int kDivergence>
__global__ void __launch_bounds__(kClusterThreads, 3) cluster_kernel(const Call<T> call, int blocks, int slice) {
  KDX_DYNAMIC_SHARED(uint4, chunks);  // [2][slice]
  SharedStore<T> store{chunks + threadIdx.x, chunks + slice + threadIdx.x};
  block_row<T, kDivergence>(call, store, blocks);
}

template <typename T, int kDivergence>
__global__ void __launch_bounds__(kThreads) block_kernel(const Call<T> call) {
  GlobalStore<T> store;
  block_row<T, kDivergence>(call, store, 1);
}

// --- the choice
// -------------------------------------------------------------------------------------------------------

enum class Kernel { none, thread, lanes8, lanes32, lanes32x4, cluster, block };

struct Plan {
  Kernel kernel = Kernel::none;
  unsigned grid = 0, parts = 0;  // blocks, and those that hold a share of the total
  int threads = kThreads, cluster = 1, slice = 0;
  std::size_t shared_bytes = 0;
  const char* error = nullptr;
};

Plan make_plan(const SoftmaxKl& call, int arch);

template <typename T, int kDivergence>
const char* launch_plan(const Plan& plan, const Call<T>& call, void* stream) {
  const Launch shape{dim3(plan.grid), dim3(unsigned(plan.threads)), plan.shared_bytes, stream, plan.cluster};
  if constexpr (sizeof(T) < 8) {  // fp64 has two kernels: it is there for checking, not for speed
    switch (plan.kernel) {
      case Kernel::lanes8:
        return launch(lanes_kernel<T, kDivergence, RegisterStore<T, 1>, 8>, shape, call);
      case Kernel::lanes32:
        return launch(lanes_kernel<T, kDivergence, RegisterStore<T, 1>, 32>, shape, call);
      case Kernel::lanes32x4:
        return launch(lanes_kernel<T, kDivergence, RegisterStore<T, 4>, 32>, shape, call);
      case Kernel::cluster:
        return launch(cluster_kernel<T, kDivergence>, shape, call, plan.cluster, plan.slice);
      default:
        break;
    }
  }
  if (plan.kernel == Kernel::thread) return launch(lanes_kernel<T, kDivergence, GlobalStore<T>, 1>, shape, call);
  return launch(block_kernel<T, kDivergence>, shape, call);
}

// Defined for each element type in a file of its own, so that the build compiles them side by side.
template <typename T>
const char* softmax_kl_typed(const SoftmaxKl& raw, const Plan& plan, const Workspace& workspace, void* stream);

#define KDX_SOFTMAX_KL_TYPED(T)                                                                                       \
  template <>                                                                                                         \
  const char* softmax_kl_typed<T>(const SoftmaxKl& raw, const Plan& plan, const Workspace& workspace, void* stream) { \
    using A = Element<T>::Acc;                                                                                        \
    const double inverse = 1.0 / raw.temperature;                                                                     \
    const Call<T> call{                                                                                               \
        raw,          workspace,       {A(inverse), Math<A>::exponent(inverse), Math<A>::exponent(1.0)},              \
        A(raw.beta),  A(raw.kl_scale), A(raw.ce_scale),                                                               \
        raw.O * raw.I};                                                                                               \
    switch (raw.divergence) {                                                                                         \
      case kForward:                                                                                                  \
        return launch_plan<T, kForward>(plan, call, stream);                                                          \
      case kReverse:                                                                                                  \
        return launch_plan<T, kReverse>(plan, call, stream);                                                          \
      case kJsd:                                                                                                      \
        return launch_plan<T, kJsd>(plan, call, stream);                                                              \
      case kSkewForward:                                                                                              \
        return launch_plan<T, kSkewForward>(plan, call, stream);                                                      \
      case kSkewReverse:                                                                                              \
        return launch_plan<T, kSkewReverse>(plan, call, stream);                                                      \
    }                                                                                                                 \
    return "softmax_kl: unknown divergence";                                                                          \
  }

}  // namespace kdx::cuda
