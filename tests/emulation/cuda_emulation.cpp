// The scheduler behind cuda_emulation.h: fibers, barriers, warps, clusters, poisoned shared memory.
#include "cuda_emulation.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "races.h"

#if defined(__x86_64__) && !defined(KDX_EMULATION_UCONTEXT)
#define KDX_OWN_SWITCH  // swapcontext makes two system calls each time
#else
#include <ucontext.h>
#endif

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {
namespace {

constexpr std::size_t kStackBytes = 64 * 1024;
constexpr std::size_t kSharedLimit = 227 * 1024, kSharedLimit80 = 163 * 1024;
constexpr std::size_t kCanaryBytes = 64;
constexpr std::size_t kTagBytes = 2 * 34;   // addresses that stand for a block's barriers, its cluster's and its warps'
constexpr std::size_t kThreadsSeen = 1024;  // told apart by ThreadSanitizer; each takes 1.5 MB and 2 ms
constexpr unsigned char kPoison = 0xff, kCanary = 0xa5;  // 0xff... is NaN in every float format

// --- switching stacks ---------------------------------------------------------------------------------------------
#ifdef KDX_OWN_SWITCH
extern "C" void kdx_switch(void** from, void* to);
asm(R"(
.text
.globl kdx_switch
.type kdx_switch, @function
kdx_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size kdx_switch, .-kdx_switch
)");
using Context = void*;
void switch_to(Context& from, Context& to) { kdx_switch(&from, to); }
void prepare(Context& context, char* stack, void (*entry)()) {
  auto* top = reinterpret_cast<std::uintptr_t*>(stack + kStackBytes);
  *--top = 0;                                        // a return address that is never used; keeps the stack aligned
  *--top = reinterpret_cast<std::uintptr_t>(entry);  // where kdx_switch returns to
  for (int i = 0; i < 6; ++i) *--top = 0;
  context = top;
}
#else
using Context = ucontext_t;
void switch_to(Context& from, Context& to) { swapcontext(&from, &to); }
void prepare(Context& context, char* stack, void (*entry)()) {
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = kStackBytes;
  context.uc_link = nullptr;
  makecontext(&context, entry, 0);
}
#endif

// Pages of their own, zeroed. New pages are new to ThreadSanitizer as well, whatever it knew of their addresses.
class Memory {
 public:
  Memory() = default;
  Memory(Memory&& other) noexcept : start_(std::exchange(other.start_, nullptr)), bytes_(other.bytes_) {}
  Memory& operator=(Memory&& other) noexcept {
    std::swap(start_, other.start_), std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~Memory() {
    if (start_) munmap(start_, bytes_);
  }
  bool reserve(std::size_t bytes) {  // keeps what there is where it is enough and nobody looks for races
    if (start_ && bytes_ >= bytes && !races::kOn) return true;
    if (start_) munmap(start_, bytes_);
    start_ = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    bytes_ = bytes;
    if (start_ == MAP_FAILED) start_ = nullptr;
    return start_ != nullptr;
  }
  char* data() const { return static_cast<char*>(start_); }

 private:
  void* start_ = nullptr;
  std::size_t bytes_ = 0;
};

// --- state of one cluster in flight ----------------------------------------------------------------------------------
struct Slots {
  unsigned char bytes[32][8];
};
struct Rendezvous {  // of the lanes of one mask; two sets of slots, because a fast lane may already be at the next one
  unsigned mask = 0, arrived = 0;
  Meeting kind = Meeting::sync;
  unsigned generation = 0;
  Slots slots[2];
};
struct Warp {
  std::vector<std::unique_ptr<Rendezvous>> meetings;
};
struct Barrier {
  unsigned arrived = 0, generation = 0;
  bool vote = false, result = false;
};
struct Copy {
  void* to;
  const void* from;
  std::size_t bytes;
};
struct Block {
  dim3 index;
  unsigned rank = 0, live = 0;
  Barrier barrier;
  std::vector<Warp> warps;
  Memory memory;
  unsigned char* arena = nullptr;
  char* tags = nullptr;        // [kTagBytes], of races::acquire and release
  std::vector<void*> atomics;  // global addresses that the block's atomics have seen
};
struct Fiber {
  Context context;
  races::Thread seen_as;
  char* stack = nullptr;
  Block* block = nullptr;
  dim3 thread;
  unsigned linear = 0;
  const unsigned* wait_on = nullptr;  // waits while *wait_on == wait_value
  unsigned wait_value = 0;
  const char* wait_name = nullptr;
  unsigned cluster_phase = 0;
  bool cluster_arrived = false, done = false;
  bool fenced = false;  // since the last atomic
  std::vector<Copy> copies;
};
struct Cluster {
  std::vector<Block> blocks;
  std::vector<Fiber> fibers;
  Barrier barrier;
};
struct Region {
  std::size_t offset, bytes;
  std::string name;
};

Cluster cluster;
Fiber* current = nullptr;
Context scheduler;
races::Thread scheduler_seen_as;
std::size_t threads_used = 0;
char launched, ended;  // what a launch is ordered after, and what is ordered after it
const std::function<void()>* body = nullptr;
std::map<const void*, Region> regions;  // of KDX_SHARED, the same offsets in every block of the launch
std::size_t dynamic_bytes = 0, arena_used = 0, arena_limit = 0;
std::string error;
Settings the_settings;
Counts the_counts;
Memory stacks;

std::size_t round_up(std::size_t value, std::size_t step) { return (value + step - 1) / step * step; }

void leave() {
  races::enter(scheduler_seen_as);
  switch_to(current->context, scheduler);
}

void yield() {
  ++the_counts.switches;
  leave();
}

void wait(const unsigned* generation, unsigned value, const char* name) {
  current->wait_on = generation;
  current->wait_value = value;
  current->wait_name = name;
  while (*generation == value) yield();
  current->wait_on = nullptr;
}

void fiber_main() {
  races::acquire(&launched);
  try {
    (*body)();
    if (!current->copies.empty()) fail("the thread ended with asynchronous copies it never waited for");
    if (current->cluster_arrived) fail("the thread ended between cluster_arrive and cluster_wait");
  } catch (const std::exception& problem) {
    if (error.empty()) error = problem.what();
  }
  current->done = true;
  --current->block->live;
  leave();
}

// What the threads of the next cluster are to ThreadSanitizer. The first clusters of a launch have different ones, as
// what one of its threads did earlier comes before what it does now: two blocks would seem to be in order. In a large
// cluster neighbouring lanes are one to it.
void tell_apart() {
  static std::vector<races::Thread> threads;
  const std::size_t lanes = (cluster.fibers.size() + kThreadsSeen - 1) / kThreadsSeen;
  const std::size_t count = (cluster.fibers.size() + lanes - 1) / lanes;
  if (threads_used + count > kThreadsSeen) threads_used = 0;
  while (threads.size() < threads_used + count) threads.push_back(races::create());
  for (std::size_t i = 0; i < cluster.fibers.size(); ++i) cluster.fibers[i].seen_as = threads[threads_used + i / lanes];
  threads_used += count;
}

void end_of_cluster() {
  if (!races::kOn) return;
  for (const Fiber& fiber : cluster.fibers) {
    races::enter(fiber.seen_as);
    races::release(&ended);
    races::enter(scheduler_seen_as);
  }
  if (!error.empty()) races::acquire(&ended);
}

void check_canaries(const Block& block) {
  auto intact = [&](std::size_t end) {
    const unsigned char* p = block.arena + end;
    return std::all_of(p, p + kCanaryBytes, [](unsigned char c) { return c == kCanary; });
  };
  if (!intact(dynamic_bytes) && error.empty()) error = "a write past the end of the dynamic shared memory";
  for (const auto& [key, region] : regions)
    if (!intact(region.offset + region.bytes) && error.empty())
      error = "a write past the end of the shared array " + region.name;
}

void start_block(Block& block, dim3 index, unsigned rank, unsigned threads) {
  block.index = index;
  block.rank = rank;
  block.live = threads;
  block.barrier = {};
  block.warps.clear();
  block.warps.resize((threads + 31) / 32);
  block.atomics.clear();
  const std::size_t bytes = kSharedLimit + 64 * kCanaryBytes;  // pages are aligned as shared memory may have to be
  if (!block.memory.reserve(bytes + kTagBytes)) throw std::bad_alloc();
  block.arena = reinterpret_cast<unsigned char*>(block.memory.data());
  block.tags = block.memory.data() + bytes;
  std::memset(block.arena, kPoison, arena_used);
  std::memset(block.arena + dynamic_bytes, kCanary, kCanaryBytes);
  for (const auto& [key, region] : regions)
    std::memset(block.arena + region.offset + region.bytes, kCanary, kCanaryBytes);
}

bool runnable(const Fiber& fiber) { return !fiber.done && !(fiber.wait_on && *fiber.wait_on == fiber.wait_value); }

void report_deadlock() {
  std::map<std::string, int> waits;
  int ended = 0;
  for (const Fiber& fiber : cluster.fibers) fiber.done ? ++ended : ++waits[fiber.wait_name ? fiber.wait_name : "?"];
  error = "deadlock:";
  for (const auto& [name, count] : waits) error += " " + std::to_string(count) + " threads wait at " + name + ",";
  error += " " + std::to_string(ended) +
           " have ended (every thread must reach a barrier, and every lane of its mask a shuffle)";
}

void run_cluster(std::mt19937_64& random) {
  std::vector<Fiber*> order;
  for (Fiber& fiber : cluster.fibers) order.push_back(&fiber);
  if (the_settings.order == Order::reverse) std::reverse(order.begin(), order.end());
  if (the_settings.order == Order::shuffled) std::shuffle(order.begin(), order.end(), random);
  std::size_t left = order.size();
  while (left && error.empty()) {
    bool progress = false;
    for (Fiber* fiber : order) {
      if (!runnable(*fiber)) continue;
      progress = true;
      current = fiber;
      threadIdx = fiber->thread;
      blockIdx = fiber->block->index;
      races::enter(fiber->seen_as);
      switch_to(scheduler, fiber->context);
      if (races::found() && error.empty()) error = "ThreadSanitizer found a race";
      if (!error.empty()) break;
      if (fiber->done) {
        --left;
        if (!fiber->block->live) {  // a block whose memory a neighbour still reads has ended too early
          check_canaries(*fiber->block);
          std::memset(fiber->block->arena, kPoison, arena_used);
        }
      }
    }
    if (!progress && error.empty()) report_deadlock();
    if (the_settings.order == Order::shuffled) std::shuffle(order.begin(), order.end(), random);
  }
  current = nullptr;
}

const char* invalid(const Shape& s) {
  const unsigned threads = s.block.x * s.block.y * s.block.z;
  if (threads == 0 || threads > 1024) return "a block has 1 to 1024 threads";
  if (!s.grid.x || !s.grid.y || !s.grid.z) return "the grid is empty";
  if (s.grid.x > 2147483647u || s.grid.y > 65535 || s.grid.z > 65535) return "the grid is too large";
  if (s.cluster < 1 || s.cluster > 16 || s.grid.x % unsigned(s.cluster))
    return "the cluster size does not fit the grid";
  if (s.cluster > 1 && the_settings.arch < 90) return "clusters need compute capability 9.0";
  if (s.shared_bytes > arena_limit) return "too much dynamic shared memory";
  return nullptr;
}

}  // namespace

Settings& settings() { return the_settings; }
Counts& counts() { return the_counts; }

void fail(const char* format, ...) {
  char text[512];
  va_list arguments;
  va_start(arguments, format);
  const int used =
      current ? std::snprintf(text, sizeof text, "block %u thread %u: ", current->block->index.x, current->linear) : 0;
  std::vsnprintf(text + used, sizeof text - std::size_t(used), format, arguments);
  va_end(arguments);
  throw std::runtime_error(text);
}

const char* run(const Shape& shape, const std::function<void()>& kernel) {
  static std::mutex one_launch;
  if (current) return "a kernel launched a kernel";
  const std::lock_guard<std::mutex> lock(one_launch);
  const races::Unseen scheduling;
  error.clear();
  arena_limit = the_settings.arch < 90 ? kSharedLimit80 : kSharedLimit;
  if (const char* why = invalid(shape)) {
    error = why;
    return error.c_str();
  }
  ++the_counts.launches;
  blockDim = shape.block;
  gridDim = shape.grid;
  body = &kernel;
  regions.clear();
  dynamic_bytes = shape.shared_bytes;
  arena_used = round_up(dynamic_bytes, 16) + kCanaryBytes;

  const unsigned threads = shape.block.x * shape.block.y * shape.block.z;
  const std::size_t blocks = std::size_t(shape.grid.x) * shape.grid.y * shape.grid.z;
  const std::size_t size = std::size_t(shape.cluster);
  std::mt19937_64 random(the_settings.seed);
  std::vector<std::size_t> order(blocks / size);
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  if (the_settings.order == Order::reverse) std::reverse(order.begin(), order.end());
  if (the_settings.order == Order::shuffled) std::shuffle(order.begin(), order.end(), random);

  scheduler_seen_as = races::self();
  threads_used = 0;
  if (cluster.blocks.size() < size) cluster.blocks.resize(size);
  cluster.fibers.clear();
  cluster.fibers.resize(threads * size);
  for (const std::size_t first : order) {
    cluster.barrier = {};
    if (!stacks.reserve(threads * size * kStackBytes)) return "no memory for the stacks of the threads";
    for (std::size_t rank = 0; rank < size; ++rank) {
      const std::size_t linear = first * size + rank;
      const dim3 index(unsigned(linear % shape.grid.x), unsigned(linear / shape.grid.x % shape.grid.y),
                       unsigned(linear / shape.grid.x / shape.grid.y));
      start_block(cluster.blocks[rank], index, unsigned(rank), threads);
      ++the_counts.blocks;
      for (unsigned t = 0; t < threads; ++t) {
        Fiber& fiber = cluster.fibers[rank * threads + t];
        fiber = Fiber{};
        fiber.stack = stacks.data() + (rank * threads + t) * kStackBytes;
        fiber.block = &cluster.blocks[rank];
        fiber.linear = t;
        fiber.thread = dim3(t % shape.block.x, t / shape.block.x % shape.block.y, t / shape.block.x / shape.block.y);
        prepare(fiber.context, fiber.stack, fiber_main);
      }
    }
    if (races::kOn) tell_apart();
    races::release(&launched);
    run_cluster(random);
    end_of_cluster();
    if (!error.empty()) return error.c_str();
  }
  races::acquire(&ended);
  return nullptr;
}

void* dynamic_shared() { return current->block->arena; }

void* shared(const void* key, std::size_t bytes, const char* name) {
  auto found = regions.find(key);
  if (found == regions.end()) {
    const std::size_t offset = round_up(arena_used, 16);
    if (offset + bytes > arena_limit) fail("too much shared memory with the array %s", name);
    found = regions.emplace(key, Region{offset, bytes, name}).first;
    arena_used = offset + bytes + kCanaryBytes;
    const races::Unseen poisoning;
    for (Block& block : cluster.blocks) {
      if (!block.arena) continue;
      std::memset(block.arena + offset, kPoison, bytes);
      std::memset(block.arena + offset + bytes, kCanary, kCanaryBytes);
    }
  }
  return current->block->arena + found->second.offset;
}

namespace {
void arrive_block(bool vote, bool predicate) {
  Barrier& barrier = current->block->barrier;
  const unsigned threads = blockDim.x * blockDim.y * blockDim.z;
  const unsigned generation = barrier.generation;
  char* const tag = current->block->tags + (generation & 1u);  // a fast thread may already be at the next one
  races::release(tag);
  barrier.vote = (barrier.arrived ? barrier.vote : false) || (vote && predicate);
  if (++barrier.arrived == threads) {
    barrier.arrived = 0;
    barrier.result = barrier.vote;
    ++barrier.generation;
  } else {
    wait(&barrier.generation, generation, "__syncthreads");
  }
  races::acquire(tag);
}
}  // namespace

void sync_threads() { arrive_block(false, false); }

bool sync_threads_or(bool predicate) {
  arrive_block(true, predicate);
  return current->block->barrier.result;
}

namespace {
// By moves and not by memcpy, which ThreadSanitizer would see.
void copy_few(void* to, const void* from, std::size_t size) {
  if (size == 8) std::memcpy(to, from, 8);
  if (size == 4) std::memcpy(to, from, 4);
  if (size == 1) std::memcpy(to, from, 1);
}
}  // namespace

unsigned lane_id() { return current->linear % 32; }

// A shuffle or a vote hands over a value and orders nothing else; __syncwarp orders what its lanes did.
const void* meet(unsigned mask, Meeting kind, const void* value, std::size_t size) {
  const unsigned lane = lane_id();
  const unsigned threads = blockDim.x * blockDim.y * blockDim.z, warp_index = current->linear / 32;
  const unsigned present = std::min(32u, threads - warp_index * 32);
  if (mask == 0xffffffffu && present < 32) mask = (1u << present) - 1;  // the last warp of a block may be partial
  if (!(mask >> lane & 1u)) fail("lane %u calls a warp function whose mask %08x lacks it", lane, mask);
  auto& meetings = current->block->warps[warp_index].meetings;
  auto found = std::find_if(meetings.begin(), meetings.end(), [&](const auto& m) { return m->mask == mask; });
  if (found == meetings.end()) {
    const races::Unseen making;
    meetings.push_back(std::make_unique<Rendezvous>());
    found = meetings.end() - 1;
    (*found)->mask = mask;
  }
  Rendezvous& meeting = **found;
  if (meeting.arrived && meeting.kind != kind) fail("the lanes of mask %08x meet at different warp functions", mask);
  meeting.kind = kind;
  const unsigned generation = meeting.generation;
  Slots& slots = meeting.slots[generation & 1u];
  char* const tag = current->block->tags + 4 + 2 * warp_index + (generation & 1u);
  if (kind == Meeting::sync) races::release(tag);
  copy_few(slots.bytes[lane], value, size);
  meeting.arrived |= 1u << lane;
  if (meeting.arrived == mask) {
    meeting.arrived = 0;
    ++meeting.generation;
  } else {
    wait(&meeting.generation, generation, "a warp shuffle, vote or __syncwarp");
  }
  if (kind == Meeting::sync) races::acquire(tag);
  return &slots;
}

void given(const void* slots, unsigned lane, void* out, std::size_t size) {
  copy_few(out, static_cast<const Slots*>(slots)->bytes[lane], size);
}

unsigned cluster_rank() { return current->block->rank; }

void cluster_arrive() {
  if (current->cluster_arrived) fail("cluster_arrive twice without cluster_wait");
  current->cluster_arrived = true;
  current->cluster_phase = cluster.barrier.generation;
  races::release(cluster.blocks[0].tags + 2 + (current->cluster_phase & 1u));
  if (++cluster.barrier.arrived == cluster.fibers.size()) {
    cluster.barrier.arrived = 0;
    ++cluster.barrier.generation;
  }
}

void cluster_wait() {
  if (!current->cluster_arrived) fail("cluster_wait without cluster_arrive");
  current->cluster_arrived = false;
  wait(&cluster.barrier.generation, current->cluster_phase, "cluster_wait");
  races::acquire(cluster.blocks[0].tags + 2 + (current->cluster_phase & 1u));
}

// An atomic by itself orders nothing. What a thread did before a fence and its next atomic comes before what follows a
// fence in a block whose atomics have seen that address.
void fence() {
  current->fenced = true;
  for (void* address : current->block->atomics) races::acquire(address);
}

void see_atomic(void* address) {
  if (!races::kOn) return;
  if (std::exchange(current->fenced, false)) races::release(address);
  const races::Unseen noting;
  auto& seen = current->block->atomics;
  if (std::find(seen.begin(), seen.end(), address) == seen.end()) seen.push_back(address);
}

void* map_shared(void* pointer, unsigned rank) {
  const std::size_t size = cluster.fibers.size() / (blockDim.x * blockDim.y * blockDim.z);
  if (rank >= size) fail("map_shared to rank %u in a cluster of %zu blocks", rank, size);
  const auto offset = static_cast<unsigned char*>(pointer) - current->block->arena;
  if (offset < 0 || std::size_t(offset) >= arena_used) fail("map_shared of an address that is not shared memory");
  if (!cluster.blocks[rank].live) fail("map_shared to block %u of the cluster, which has ended", rank);
  return cluster.blocks[rank].arena + offset;
}

// The bytes move when the thread waits, so that a read without a wait finds poison.
void copy_async(void* shared, const void* global, std::size_t bytes) {
  if (reinterpret_cast<std::uintptr_t>(shared) % bytes || reinterpret_cast<std::uintptr_t>(global) % bytes)
    fail("an asynchronous %zu-byte copy is misaligned", bytes);
  const auto offset = static_cast<unsigned char*>(shared) - current->block->arena;
  if (offset < 0 || std::size_t(offset) + bytes > arena_used)
    fail("an asynchronous copy to an address outside shared memory");
  current->copies.push_back({shared, global, bytes});
}

void copy_async_wait() {
  for (const Copy& copy : current->copies) std::memcpy(copy.to, copy.from, copy.bytes);
  current->copies.clear();
}

namespace {
// The hardware's approximations are off by up to their documented bound; so are these, by an amount that depends on the
// bits of the argument alone, so that a kernel that needs more than the bound fails here too.
float disturb(double value, double bound, float argument) {
  std::uint32_t hash = bits<std::uint32_t>(argument) * 2654435761u;
  hash ^= hash >> 15;
  hash *= 2246822519u;
  hash ^= hash >> 13;
  return float(value + bound * (double(hash) / 2147483648.0 - 1.0));
}
float flush(float x) { return std::fabs(x) < std::numeric_limits<float>::min() ? std::copysign(0.0f, x) : x; }
}  // namespace

float exp2_approx(float x) {
  x = flush(x);
  const double exact = std::exp2(double(x));
  if (!std::isfinite(exact) || exact == 0.0 || x == 0.0f) return float(exact);
  return flush(disturb(exact, 1.5 * std::ldexp(1.0, std::ilogb(exact) - 23), x));  // 2 ulp with the rounding
}

float log2_approx(float x) {
  x = flush(x);
  const double exact = std::log2(double(x));
  if (!std::isfinite(exact) || x == 1.0f) return float(exact);
  return flush(disturb(exact, x > 0.5f && x < 2.0f ? 0x1p-22 : std::fabs(exact) * 0x1p-22, x));
}

}  // namespace emulation

unsigned __ballot_sync(unsigned mask, int predicate) {
  const unsigned char yes = predicate != 0;
  const void* slots = emulation::meet(mask, emulation::Meeting::vote, &yes, 1);
  unsigned ballot = 0;
  const unsigned threads = blockDim.x * blockDim.y * blockDim.z, first = emulation::lane_id();
  const unsigned warp = (threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) - first;
  for (unsigned lane = 0; lane < 32 && warp + lane < threads; ++lane) {
    unsigned char said = 0;
    if (mask >> lane & 1u) emulation::given(slots, lane, &said, 1);
    if (said) ballot |= 1u << lane;
  }
  return ballot;
}

__nv_bfloat16 __float2bfloat16(float v) {
  const unsigned u = __float_as_uint(v);
  if ((u & 0x7fffffffu) > 0x7f800000u) return {0x7fff};
  return {std::uint16_t((u + 0x7fffu + (u >> 16 & 1u)) >> 16)};
}

float __half2float(__half v) {
  const unsigned sign = unsigned(v.x & 0x8000u) << 16, exponent = v.x >> 10 & 31u, mantissa = v.x & 0x3ffu;
  if (exponent == 31) return __uint_as_float(sign | 0x7f800000u | mantissa << 13);
  if (exponent) return __uint_as_float(sign | (exponent + 112) << 23 | mantissa << 13);
  const float value = float(mantissa) * 0x1p-24f;
  return sign ? -value : value;
}

__half __float2half(float v) {
  const unsigned u = __float_as_uint(v);
  const std::uint16_t sign = std::uint16_t(u >> 16 & 0x8000u);
  const float a = std::fabs(v);
  if (a != a) return {0x7fff};
  if (a >= 65520.0f) return {std::uint16_t(sign | 0x7c00u)};
  if (a < 0x1p-14f) return {std::uint16_t(sign | unsigned(std::nearbyint(double(a) * 0x1p24)))};  // subnormal
  unsigned rounded = (u & 0x7fffffffu) + 0xfffu + (u >> 13 & 1u);
  return {std::uint16_t(sign | ((rounded >> 13) - (112u << 10)))};
}
