// Runs families of kernels under ThreadSanitizer: races ORDER FAMILY PLACE FAMILY PLACE ..., where ORDER is that of
// cuda_emulation.h and PLACE the number of the place in the sources that is left out (0: none), see races.py. Prints a
// line for each call, its last number a digest of the results; test_races.py reads them.
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "cuda_emulation.h"
#include "kdx/rkd.h"
#include "kdx/softmax_kl.h"
#include "kdx/topk_kl.h"
#include "races.h"

int kdx_left_out = 0;  // which of the places marked by races.py is left out; 0: none

namespace {

struct Found {};
using Bytes = std::vector<unsigned char>;
std::mt19937 generator(1);
const int kSizes[] = {4, 8, 2, 2};
const char* const kNames[] = {"float32", "float64", "bfloat16", "float16"};

Bytes numbers(const std::vector<float>& values, int dtype) {
  Bytes out(values.size() * std::size_t(kSizes[dtype]) + 16);
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (dtype == kdx::kFloat64) reinterpret_cast<double*>(out.data())[i] = values[i];
    if (dtype == kdx::kFloat32) reinterpret_cast<float*>(out.data())[i] = values[i];
    if (dtype == kdx::kBFloat16) reinterpret_cast<__nv_bfloat16*>(out.data())[i] = __float2bfloat16(values[i]);
    if (dtype == kdx::kFloat16) reinterpret_cast<__half*>(out.data())[i] = __float2half(values[i]);
  }
  return out;
}

Bytes same(float value, std::size_t count, int dtype) { return numbers(std::vector<float>(count, value), dtype); }

std::vector<float> random(std::size_t count) {
  std::normal_distribution<float> normal(0.0f, 2.0f);
  std::vector<float> out(count);
  for (float& x : out) x = normal(generator);
  return out;
}

int accumulator(int dtype) { return dtype == kdx::kFloat64 ? kdx::kFloat64 : kdx::kFloat32; }

template <typename T>
unsigned long digest(const std::vector<T>& values) {
  const auto* bytes = reinterpret_cast<const unsigned char*>(values.data());
  unsigned long hash = 1469598103934665603ul;
  for (std::size_t i = 0; i < values.size() * sizeof(T); ++i) hash = (hash ^ bytes[i]) * 1099511628211ul;
  return hash;
}

void done(const std::string& name, const char* error, unsigned long result) {
  std::printf("%s %s %lx\n", name.c_str(), error ? error : "ok", result);
  if (error && kdx_left_out) throw Found();  // which is what the run was for
}

// Rows of C classes, of an image of I pixels where I > 1: with and without cross-entropy, the last row not counting.
void softmax_kl(std::int64_t O, std::int64_t C, std::int64_t I, int dtype, int divergence, int arch) {
  emulation::settings().arch = arch;
  const std::int64_t rows = O * I;
  for (const bool reduce : {true, false}) {
    if (!reduce && divergence != kdx::kForward) continue;  // only what is done with the row's loss is another
    Bytes student = numbers(random(std::size_t(rows * C)), dtype),
          teacher = numbers(random(std::size_t(rows * C)), dtype);
    Bytes grad(student.size()), loss(std::size_t(rows) * 8);
    std::vector<float> counts(std::size_t(rows), 1.0f);
    counts.back() = 0.0f;
    const Bytes kl_rows = numbers(counts, accumulator(dtype)), ce_rows = kl_rows;
    const std::vector<std::int64_t> labels(std::size_t(rows), C - 1);
    const std::int64_t so = C * I, sc = I, si = 1;
    const kdx::SoftmaxKl call{{student.data(), so, sc, si},
                              {teacher.data(), so, sc, si},
                              {grad.data(), so, sc, si},
                              loss.data(),
                              kl_rows.data(),
                              labels.data(),
                              ce_rows.data(),
                              O,
                              C,
                              I,
                              2.0,
                              0.3,
                              1.0,
                              0.5,
                              dtype,
                              divergence,
                              reduce};
    const std::int64_t bytes = kdx::softmax_kl_cuda_workspace(call);
    Bytes workspace(std::size_t(bytes) + 16);
    const char* error = kdx::softmax_kl_cuda(call, workspace.data(), bytes, nullptr);
    done("softmax_kl " + std::to_string(rows) + "x" + std::to_string(C) + " " + kNames[dtype] + " divergence " +
             std::to_string(divergence) + " sm_" + std::to_string(arch),
         error, digest(grad) ^ digest(loss));
  }
}

void softmax_kl_lanes() {
  for (int dtype = 0; dtype < 4; ++dtype)
    for (int divergence = 0; divergence < 5; ++divergence) {
      softmax_kl(150, 10, 1, dtype, divergence, 90);
      softmax_kl(2, 19, 70, dtype, divergence, 90);  // one thread a row, classes far apart
      for (const std::int64_t C : {23, 101, 499}) softmax_kl(9, C, 1, dtype, divergence, 90);
    }
}

void softmax_kl_blocks() {
  for (int dtype = 0; dtype < 4; ++dtype)
    for (int divergence = 0; divergence < 5; ++divergence) {
      softmax_kl(3, 1101, 1, dtype, divergence, 90);
      softmax_kl(3, 1101, 1, dtype, divergence, 80);
    }
  for (int divergence = 0; divergence < 5; ++divergence)
    softmax_kl(2, 22001, 1, kdx::kFloat32, divergence, 80);  // long
}

void softmax_kl_clusters() {
  for (int divergence = 0; divergence < 5; ++divergence)
    for (int dtype = 0; dtype < 4; ++dtype)
      if (dtype != kdx::kFloat64) softmax_kl(2, dtype == kdx::kFloat32 ? 8201 : 16411, 1, dtype, divergence, 90);
  softmax_kl(2, 16391, 1, kdx::kFloat32, kdx::kJsd, 90);       // 4 blocks
  softmax_kl(2, 33003, 1, kdx::kFloat32, kdx::kForward, 100);  // 8
  softmax_kl(2, 66003, 1, kdx::kFloat32, kdx::kJsd, 90);       // 16
}

// From and to any alignment, and in place.
void scale_grad() {
  for (int dtype = 0; dtype < 4; ++dtype)
    for (const float factor : {1.5f, 1.0f}) {
      Bytes grad = numbers(random(1000), dtype), out(grad.size());
      const Bytes upstream = same(factor, 1, accumulator(dtype));
      const auto size = std::size_t(kSizes[dtype]);
      const std::pair<void*, void*> ways[] = {{grad.data(), out.data()},
                                              {grad.data() + size, out.data()},
                                              {grad.data() + size, out.data() + size},
                                              {grad.data() + size, grad.data() + size}};
      for (const auto& [from, to] : ways)
        done(std::string("scale_grad ") + kNames[dtype],
             kdx::scale_grad_cuda({from, upstream.data(), to, 999, dtype}, nullptr), digest(out) ^ digest(grad));
    }
}

void rkd(std::int64_t N, std::int64_t D, int dtype) {
  const auto n = std::size_t(N);
  const Bytes x = numbers(random(n * std::size_t(D)), dtype), y = numbers(random(n * 24), dtype);
  const kdx::RkdInput student{x.data(), dtype, D, D, 1}, teacher{y.data(), dtype, 24, 24, 1};
  const kdx::RkdBlock block{N, 0, N, 0, N, true};
  std::vector<float> s(n * n), t(n * n), v(n * n), grad(n * std::size_t(D)), loss(1);
  const std::string name = "rkd " + std::to_string(N) + "x" + std::to_string(D) + " " + kNames[dtype];
  const std::int64_t counts = kdx::rkd_measure_programs(block);
  std::vector<float> sums(std::size_t(4 * counts));
  done(name + " measure", kdx::rkd_measure_cuda({student, teacher, block, s.data(), t.data(), sums.data()}, nullptr),
       digest(sums) ^ digest(s));
  const std::int64_t programs = kdx::rkd_distance_programs(N * N);
  std::vector<float> distance(std::size_t(2 * programs));
  const float *s_means = sums.data(), *t_means = sums.data() + 2 * counts;
  done(name + " distance",
       kdx::rkd_distance_cuda({s.data(), t.data(), N * N, s_means, t_means, counts, 1.0f, distance.data()}, nullptr),
       digest(distance));
  const std::int64_t angles = kdx::rkd_angle_programs(block);
  std::vector<float> angle(static_cast<std::size_t>(angles));
  const float scale = 1.0f / float(N * N * N);
  for (float* to : {static_cast<float*>(nullptr), v.data()})
    done(name + " angle",
         kdx::rkd_angle_cuda({s.data(), t.data(), s.data(), t.data(), block, 1.0f, scale, to, angle.data()}, nullptr),
         digest(angle) ^ digest(v));
  for (const bool along : {true, false})
    done(name + " gradient",
         kdx::rkd_gradient_cuda(
             {student, block,        s.data(), t.data(),        v.data(),    along ? N : 1, along ? 1 : N,
              s_means, t_means,      counts,   distance.data(), programs,    angle.data(),  angles,
              1.0f,    float(N * N), 1.0f,     scale,           grad.data(), !along,        loss.data()},
             nullptr),
         digest(grad) ^ digest(loss));
  if (dtype != kdx::kFloat32) return;
  std::vector<float> square(n * n);
  const kdx::PairwiseSqDist call{student, student, N, N, kdx::kFloat32, square.data()};
  done("pairwise_sq_dist", kdx::pairwise_sq_dist_cuda(call, nullptr), digest(square));
}

void rkd_small() {
  for (const int dtype : {kdx::kFloat32, kdx::kBFloat16, kdx::kFloat16}) rkd(37, 40, dtype);
}

// The kernels for more than 512 points, on a block of the pair grid that is long and narrow.
void rkd_large() {
  const std::int64_t N = 515, D = 33, width = 5;
  const Bytes x = numbers(random(std::size_t(N * D)), kdx::kFloat32);
  const kdx::RkdInput points{x.data(), kdx::kFloat32, D, D, 1};
  const kdx::RkdBlock block{N, 0, N, 0, width, false};
  std::vector<float> s(std::size_t(N * width)), t(s.size()), v(s.size()), s_i(std::size_t(N * N), 1.0f);
  std::vector<float> sums(std::size_t(4 * kdx::rkd_measure_programs(block)));
  done("rkd large measure", kdx::rkd_measure_cuda({points, points, block, s.data(), t.data(), sums.data()}, nullptr),
       digest(sums) ^ digest(s));
  const kdx::PairwiseSqDist call{points, points, N, width, kdx::kFloat32, s.data()};
  done("pairwise_sq_dist large", kdx::pairwise_sq_dist_cuda(call, nullptr), digest(s));
  const kdx::RkdBlock few{40, 0, 513, 0, 2, false};  // a block wider than its points: shapes are all the kernel sees
  std::vector<float> wide(40 * 513, 1.0f), narrow(600 * 2, 1.0f), out(513 * 2);
  std::vector<float> losses(std::size_t(kdx::rkd_angle_programs(few)));
  for (float* to : {static_cast<float*>(nullptr), out.data()})
    done("rkd large angle",
         kdx::rkd_angle_cuda(
             {wide.data(), wide.data(), narrow.data(), narrow.data(), few, 1.0f, 1.0f, to, losses.data()}, nullptr),
         digest(losses) ^ digest(out));
}

void topk_kl(std::int64_t C, int dtype, bool without, bool cross_entropy) {
  const std::int64_t N = 3, K = 6;
  const auto n = std::size_t(N);
  const int acc = accumulator(dtype);
  const Bytes student = numbers(random(n * std::size_t(C)), dtype);
  std::vector<std::int64_t> ids;
  for (std::int64_t r = 0; r < N; ++r) ids.insert(ids.end(), {-1, 0, 2, 2, C / 2, C - 1});
  const std::vector<std::uint8_t> counts{1, 1, 0};
  Bytes few = same(0.0f, n * std::size_t(K + 1), acc), total_1 = same(0.0f, n, acc), grad(student.size());
  const kdx::TopkSums sums{student.data(),
                           C,
                           ids.data(),
                           counts.data(),
                           few.data(),
                           cross_entropy ? total_1.data() : nullptr,
                           N,
                           K,
                           C,
                           2.0,
                           dtype,
                           without};
  const std::string name = "topk_kl " + std::to_string(C) + " " + kNames[dtype] + (without ? " without" : " with") +
                           (cross_entropy ? " labels" : "");
  done(name + " sums", kdx::topk_kl_sums_cuda(sums, nullptr), digest(few) ^ digest(total_1));
  const Bytes add = same(0.25f, n * std::size_t(K), acc), rest = same(0.5f, n, acc), total = same(3.0f, n, acc);
  const std::vector<std::int64_t> labels{0, C - 1, 1};
  const kdx::TopkGradient call{sums,           grad.data(),  add.data(),
                               rest.data(),    total.data(), cross_entropy ? rest.data() : nullptr,
                               total_1.data(), labels.data()};
  done(name + " gradient", kdx::topk_kl_gradient_cuda(call, nullptr), digest(grad));
}

void topk_kl_all() {
  for (int dtype = 0; dtype < 4; ++dtype)
    for (const std::int64_t C : {37, 1203})
      for (const bool without : {true, false})
        for (const bool cross_entropy : {true, false}) topk_kl(C, dtype, without, cross_entropy);
}

struct Family {
  const char* name;
  void (*run)();
};
const Family kFamilies[] = {{"softmax_kl_lanes", softmax_kl_lanes},
                            {"softmax_kl_blocks", softmax_kl_blocks},
                            {"softmax_kl_clusters", softmax_kl_clusters},
                            {"scale_grad", scale_grad},
                            {"rkd_small", rkd_small},
                            {"rkd_large", rkd_large},
                            {"topk_kl", topk_kl_all}};

}  // namespace

// ThreadSanitizer calls this for every race it reports.
extern "C" __attribute__((visibility("default"))) void __tsan_on_report(void*) { ++emulation::races::reports; }

int main(int count, char** words) {
  if (count < 4) return 2;
  emulation::settings().order = static_cast<emulation::Order>(std::atoi(words[1]));
  emulation::settings().seed = 7;
  for (int i = 2; i + 1 < count; i += 2) {
    kdx_left_out = std::atoi(words[i + 1]);
    bool known = false;
    for (const Family& family : kFamilies) {
      if (words[i] != std::string(family.name)) continue;
      known = true;
      std::printf("run %s %d\n", family.name, kdx_left_out);
      try {
        family.run();
      } catch (const Found&) {
      }
    }
    if (!known) return 2;
  }
  return 0;
}
