// The CUDA launcher of softmax_kl and kd_loss: checks the call, chooses a kernel, and launches it once.
#include "cuda/softmax_kl_kernels.cuh"

namespace kdx::cuda {
namespace {

constexpr std::size_t kTicketBytes = 16;
constexpr std::size_t kStaticShared = 4096;  // more than the fixed shared arrays of any kernel here

bool starts_aligned(const View& view, std::int64_t I, int pack, int element) {
  return view.sc == 1 && reinterpret_cast<std::uintptr_t>(view.data) % 16 == 0 && view.so % pack == 0 &&
         (I == 1 || view.si % pack == 0) && pack * element == 16;
}

// Rows next to each other in memory, each of them with its classes far apart.
bool lies_across(const View& view, std::int64_t I) { return view.sc != 1 && (I > 1 ? view.si == 1 : view.so == 1); }

unsigned blocks_for(std::int64_t rows, std::int64_t rows_a_block) {
  return unsigned((rows + rows_a_block - 1) / rows_a_block);
}

}  // namespace

Plan make_plan(const SoftmaxKl& call, int arch) {
  Plan plan;
  const std::int64_t rows = call.O * call.I;
  if (rows > 2147483647 / kMaxCluster) {
    plan.error = "softmax_kl: more than 134217727 rows; call it on parts of the batch";
    return plan;
  }
  if (call.C > std::int64_t(2147483647) - 64) {
    plan.error = "softmax_kl: more than 2147483583 classes";
    return plan;
  }
  const int element = call.dtype == kFloat64 ? 8 : call.dtype == kFloat32 ? 4 : 2, pack = 16 / element;
  const bool aligned = starts_aligned(call.student, call.I, pack, element);
  const std::int64_t chunks = (call.C + (aligned ? 0 : pack - 1) + pack - 1) / pack;  // at most
  const bool across = lies_across(call.student, call.I) && (rows >= 2048 || call.C <= 1024);

  if (call.C <= 16 || across) {
    plan.kernel = Kernel::thread;
    plan.grid = blocks_for(rows, kThreads);
  } else if (element < 8 && chunks <= 128) {
    plan.kernel = chunks <= 8 ? Kernel::lanes8 : chunks <= 32 ? Kernel::lanes32 : Kernel::lanes32x4;
    plan.grid = blocks_for(rows, chunks <= 8 ? kThreads / 8 : kThreads / 32);
  } else {
    const std::int64_t room = ((arch >= 90 ? 227 : 163) * 1024 - std::int64_t(kStaticShared)) / 32;
    int cluster = 1;
    if (arch >= 90)
      while (cluster < kMaxCluster && (chunks + cluster - 1) / cluster > kSliceChunks) cluster *= 2;
    const std::int64_t share = (chunks + cluster - 1) / cluster;
    const int threads = share <= 512 ? kThreads : kClusterThreads;
    const std::int64_t slice = (share + threads - 1) / threads * threads;
    if (element < 8 && slice <= room) {
      plan.kernel = Kernel::cluster;
      plan.threads = threads;
      plan.cluster = cluster;
      plan.slice = int(slice);
      plan.shared_bytes = std::size_t(slice) * 2 * sizeof(uint4);
      plan.grid = unsigned(rows) * unsigned(cluster);
    } else {
      plan.kernel = Kernel::block;
      plan.grid = unsigned(rows);
    }
  }
  plan.parts = plan.grid / unsigned(plan.cluster);
  return plan;
}

}  // namespace kdx::cuda

namespace kdx {

std::int64_t softmax_kl_cuda_workspace(const SoftmaxKl& call) {
  using namespace cuda;
  if (!call.reduce || call.O * call.I == 0) return 0;
  const Plan plan = make_plan(call, compute_capability());
  return plan.error ? 0 : std::int64_t(kTicketBytes + plan.parts * sizeof(double));
}

const char* softmax_kl_cuda(const SoftmaxKl& call, void* workspace, std::int64_t workspace_bytes, void* stream) {
  using namespace cuda;
  if (call.O < 0 || call.I < 0 || call.C < 1) return "softmax_kl: sizes must be O >= 0, C >= 1, I >= 0";
  if (!(call.temperature > 0)) return "softmax_kl: temperature must be positive";
  if ((call.labels == nullptr) != (call.ce_rows == nullptr)) return "softmax_kl: labels and ce_rows come together";
  if (call.O * call.I == 0) return "softmax_kl: no rows, nothing to launch";
  const Plan plan = make_plan(call, compute_capability());
  if (plan.error) return plan.error;
  if (call.reduce && workspace_bytes < softmax_kl_cuda_workspace(call)) return "softmax_kl: the workspace is too small";
  const Workspace space{static_cast<unsigned*>(workspace),
                        reinterpret_cast<double*>(static_cast<char*>(workspace) + kTicketBytes)};
  switch (call.dtype) {
    case kFloat32:
      return softmax_kl_typed<float>(call, plan, space, stream);
    case kFloat64:
      return softmax_kl_typed<double>(call, plan, space, stream);
    case kBFloat16:
      return softmax_kl_typed<__nv_bfloat16>(call, plan, space, stream);
    case kFloat16:
      return softmax_kl_typed<__half>(call, plan, space, stream);
  }
  return "softmax_kl: unknown dtype";
}

}  // namespace kdx
