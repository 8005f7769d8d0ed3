// One row of softmax_kl: where its classes are kept between the sweeps (Store), which threads share it (Team), and the
// three sweeps themselves. Every kernel of softmax_kl.cuh is a pair of a Store and a Team.
//
// A row is cut into chunks of 16 bytes that lie on 16-byte boundaries of the student, so its first and last chunk may
// be partial. Missing classes read as -inf on both sides, which contribute nothing to any sum.
#pragma once

#include "cuda/element.cuh"
#include "cuda/softmax_kl_terms.cuh"

namespace kdx::cuda {

// One side of a row: its first class, the distance between classes, and whether whole chunks are 16-byte accesses.
template <typename T>
struct Line {
  T* first;
  std::int64_t step;
  bool packed;
};

template <typename T>
struct Row {
  static constexpr int kPack = Element<T>::kPack;
  using Acc = typename Element<T>::Acc;

  Line<const T> student, teacher;
  Line<T> grad;  // first == nullptr: not wanted
  std::int64_t C;
  int shift;  // classes of the first chunk that lie before the row
  int chunks;

  template <typename U>
  static __device__ int misalignment(const U* p) {
    return int(reinterpret_cast<std::uintptr_t>(p) / sizeof(T) % kPack);
  }

  // The chunks of the row start at multiples of 16 bytes of the student's address.
  __device__ void cut() {
    shift = student.step == 1 ? misalignment(student.first) : 0;
    chunks = int((C + shift + kPack - 1) / kPack);
    student.packed = student.step == 1;
    teacher.packed = teacher.step == 1 && misalignment(teacher.first) == shift;
    grad.packed = grad.step == 1 && misalignment(grad.first) == shift;
  }

  __device__ __forceinline__ std::int64_t column(int chunk) const { return std::int64_t(chunk) * kPack - shift; }
  __device__ __forceinline__ bool whole(std::int64_t column) const { return column >= 0 && column + kPack <= C; }

  // A chunk of one side with its elements one by one: at the ends of a row, or where it is not contiguous.
  __device__ uint4 gather(const Line<const T>& line, std::int64_t column) const {
    T x[kPack];
#pragma unroll
    for (int v = 0; v < kPack; ++v) {
      const std::int64_t c = column + v;
      x[v] = c >= 0 && c < C ? line.first[c * line.step] : Element<T>::store(-infinity(Acc()));
    }
    uint4 raw;
    memcpy(&raw, x, sizeof raw);
    return raw;
  }

  __device__ __forceinline__ uint4 load(const Line<const T>& line, int chunk) const {
    const std::int64_t c = column(chunk);
    if (line.packed && whole(c)) return load_streaming(reinterpret_cast<const uint4*>(line.first + c));
    return gather(line, c);
  }

  __device__ __forceinline__ void store(int chunk, const Acc (&g)[kPack]) const {
    const std::int64_t c = column(chunk);
    if (grad.packed && whole(c)) {
      store_streaming(reinterpret_cast<uint4*>(grad.first + c), Element<T>::pack(g));
      return;
    }
#pragma unroll
    for (int v = 0; v < kPack; ++v)
      if (c + v >= 0 && c + v < C) grad.first[(c + v) * grad.step] = Element<T>::store(g[v]);
  }
};

// --- stores: a thread sees the same chunks in every sweep ------------------------------------------------------------

// In registers: at most kChunks chunks a thread.
template <typename T, int kChunks>
struct RegisterStore {
  static constexpr bool kResident = true;
  uint4 s[kChunks], t[kChunks];

  __device__ __forceinline__ void fill(const Row<T>& row, int first, int step, int end) {
#pragma unroll
    for (int i = 0; i < kChunks; ++i)
      if (first + i * step < end)
        s[i] = row.load(row.student, first + i * step), t[i] = row.load(row.teacher, first + i * step);
  }
  template <typename F>
  __device__ __forceinline__ void each(const Row<T>&, int first, int step, int end, const F& visit) const {
#pragma unroll
    for (int i = 0; i < kChunks; ++i)
      if (first + i * step < end) visit(first + i * step, s[i], t[i]);
  }
};

// In shared memory, as raw 16-byte chunks; each thread reads back only what it wrote, so no barrier is needed.
template <typename T>
struct SharedStore {
  static constexpr bool kResident = true;
  uint4 *s, *t;  // this thread's first chunk of each side; the next ones are a block apart

  __device__ void fill_side(const Row<T>& row, const Line<const T>& line, uint4* to, int first, int step, int end) {
    for (int i = first; i < end; i += step, to += blockDim.x) {
      const std::int64_t c = row.column(i);
      if (line.packed && row.whole(c))
        copy_async16(to, line.first + c);
      else
        *to = row.gather(line, c);
    }
  }
  __device__ void fill(const Row<T>& row, int first, int step, int end) {
    fill_side(row, row.student, s, first, step, end);
    fill_side(row, row.teacher, t, first, step, end);
    copy_async_wait();
  }
  template <typename F>
  __device__ __forceinline__ void each(const Row<T>&, int first, int step, int end, const F& visit) const {
    const uint4 *from_s = s, *from_t = t;
    for (int i = first; i < end; i += step, from_s += blockDim.x, from_t += blockDim.x) visit(i, *from_s, *from_t);
  }
};

// Nowhere: every sweep reads global memory again. The sweeps alternate in direction, so that a sweep starts with what
// the one before left in the cache.
template <typename T>
struct GlobalStore {
  static constexpr bool kResident = false;
  mutable bool backwards = false;

  __device__ void fill(const Row<T>&, int, int, int) {}
  template <typename F>
  __device__ __forceinline__ void each(const Row<T>& row, int first, int step, int end, const F& visit) const {
    const int count = first < end ? (end - first + step - 1) / step : 0;
    for (int n = 0; n < count; ++n) {
      const int i = first + (backwards ? count - 1 - n : n) * step;
      visit(i, row.load(row.student, i), row.load(row.teacher, i));
    }
    backwards = !backwards;
  }
};

// --- teams: who shares a row
// ------------------------------------------------------------------------------------------

// Sum over groups of kLanes neighbouring lanes, in a fixed order; every lane gets it.
template <int kLanes, typename A>
__device__ __forceinline__ A lane_sum(A x) {
  const unsigned mask = kLanes == 32 ? 0xffffffffu : ((1u << kLanes % 32) - 1u) << (threadIdx.x % 32 / kLanes * kLanes);
#pragma unroll
  for (int bit = kLanes / 2; bit > 0; bit /= 2) x += __shfl_xor_sync(mask, x, bit);
  return x;
}

template <int kLanes, typename A>
__device__ __forceinline__ A lane_maximum(A x) {
  const unsigned mask = kLanes == 32 ? 0xffffffffu : ((1u << kLanes % 32) - 1u) << (threadIdx.x % 32 / kLanes * kLanes);
#pragma unroll
  for (int bit = kLanes / 2; bit > 0; bit /= 2) x = maximum(x, __shfl_xor_sync(mask, x, bit));
  return x;
}

template <int kLanes, typename A>
__device__ __forceinline__ Stats<A> lane_merge(const Stats<A>& x, const Temperature<A>& k, bool cross_entropy) {
  Stats<A> y = rebase(x, lane_maximum<kLanes>(x.m_s), lane_maximum<kLanes>(x.m_t), k);
  y.l_s = lane_sum<kLanes>(y.l_s);
  y.l_t = lane_sum<kLanes>(y.l_t);
  y.gap = lane_sum<kLanes>(y.gap);
  if (cross_entropy) y.l_1 = lane_sum<kLanes>(y.l_1);
  return y;
}

// kLanes neighbouring lanes of a warp; 1: a thread by itself.
template <typename A, int kLanes>
struct LaneTeam {
  __device__ int index() const { return int(threadIdx.x) % kLanes; }
  __device__ int size() const { return kLanes; }
  __device__ Stats<A> merge(const Stats<A>& x, const Temperature<A>& k, bool ce) const {
    return lane_merge<kLanes>(x, k, ce);
  }
  __device__ A sum(A x, int) const { return lane_sum<kLanes>(x); }
};

// The blocks of a cluster, or one block. Each block sends its own part to all of them and then needs only its own
// memory.
constexpr int kMaxCluster = 16;

template <typename A>
struct ClusterTeam {
  Stats<A>* warps;  // [32]
  Stats<A>* parts;  // [kMaxCluster], written by the blocks of the cluster
  A* sums;          // [2][32 + kMaxCluster], by slot
  int blocks, rank;

  // Before anything is sent, every block of the cluster must have started; the barrier is passed in merge().
  __device__ void start() const {
    if (blocks > 1) cluster_arrive();
  }
  __device__ int index() const { return rank * int(blockDim.x) + int(threadIdx.x); }
  __device__ int size() const { return blocks * int(blockDim.x); }

  __device__ Stats<A> merge(const Stats<A>& x, const Temperature<A>& k, bool ce) const {
    const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32, count = int(blockDim.x) / 32;
    const Stats<A> none = {-infinity(A()), -infinity(A()), A(0), A(0), A(0), A(0)};
    const Stats<A> mine = lane_merge<32>(x, k, ce);
    if (lane == 0) warps[warp] = mine;
    __syncthreads();
    Stats<A> block = lane_merge<32>(lane < count ? warps[lane] : none, k, ce);
    if (blocks == 1) return block;
    cluster_wait();
    if (int(threadIdx.x) < blocks) *map_shared(parts + rank, threadIdx.x) = block;
    cluster_sync();
    return lane_merge<32>(lane < blocks ? parts[lane] : none, k, ce);
  }

  // Each slot (0, 1) once a row, after merge(): a slot used again would be overwritten while slow warps still read it.
  __device__ A sum(A x, int slot) const {
    A* const mine = sums + slot * (32 + kMaxCluster);
    const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32, count = int(blockDim.x) / 32;
    x = lane_sum<32>(x);
    if (lane == 0) mine[warp] = x;
    __syncthreads();
    const A block = lane_sum<32>(lane < count ? mine[lane] : A(0));
    if (blocks == 1) return block;
    if (int(threadIdx.x) < blocks) *map_shared(mine + 32 + rank, threadIdx.x) = block;
    cluster_sync();
    return lane_sum<32>(lane < blocks ? mine[32 + lane] : A(0));
  }
};

// --- the sweeps
// -------------------------------------------------------------------------------------------------------

// What multiplies the row's two terms, and its label; see SoftmaxKl.
template <typename A>
struct RowTerms {
  A kl, ce;
  std::int64_t label;
};

// All threads of the team call this with the same row; each gets the row's loss. of_ce: where the cross-entropy goes,
// which is then not in that loss, or nullptr.
template <typename T, int kDivergence, typename Store, typename Team>
__device__ typename Element<T>::Acc solve_row(const Row<T>& row, RowTerms<typename Element<T>::Acc> terms, Store& store,
                                              const Team& team, const Temperature<typename Element<T>::Acc>& k,
                                              typename Element<T>::Acc beta, typename Element<T>::Acc* of_ce) {
  using A = typename Element<T>::Acc;
  constexpr int kPack = Element<T>::kPack;
  constexpr bool kNarrow = sizeof(T) == 2;
  const int first = team.index(), step = team.size(), end = row.chunks;
  const bool ce = terms.ce != A(0);
  const bool labelled = terms.label >= 0 && terms.label < row.C;  // never an address before this
  if (ce && !labelled) terms.ce = terms.ce * (infinity(A()) - infinity(A()));

  Stats<A> mine = {-infinity(A()), -infinity(A()), A(0), A(0), A(0), A(0)};
  const auto raise = [&](const A(&s)[kPack], const A(&t)[kPack], A& m_s, A& m_t) {
#pragma unroll
    for (int v = 0; v < kPack; ++v) m_s = maximum(m_s, s[v]), m_t = maximum(m_t, t[v]);
  };
  const auto count = [&](const A(&s)[kPack], const A(&t)[kPack]) {
    const A m_s = finite_maximum(mine.m_s), m_t = finite_maximum(mine.m_t), offset = m_t - m_s;
    const bool apart = maxima_apart(m_s, m_t, k.inverse);
#pragma unroll
    for (int v = 0; v < kPack; ++v) add<A, kNarrow>(mine, s[v], t[v], m_s, m_t, offset, apart, k);
    if (ce) {
#pragma unroll
      for (int v = 0; v < kPack; ++v) mine.l_1 += Math<A>::exponential((s[v] - m_s) * k.natural);
    }
  };
  store.fill(row, first, step, end);
  if constexpr (Store::kResident) {
    PackMaximum<T> highest_s, highest_t;
    store.each(row, first, step, end,
               [&](int, const uint4& raw_s, const uint4& raw_t) { highest_s.see(raw_s), highest_t.see(raw_t); });
    mine.m_s = highest_s.value(), mine.m_t = highest_t.value();
    store.each(row, first, step, end, [&](int, const uint4& raw_s, const uint4& raw_t) {
      A s[kPack], t[kPack];
      Element<T>::unpack(raw_s, s), Element<T>::unpack(raw_t, t);
      count(s, t);
    });
  } else {  // one read: the sums follow the maxima as they rise
    store.each(row, first, step, end, [&](int, const uint4& raw_s, const uint4& raw_t) {
      A s[kPack], t[kPack];
      Element<T>::unpack(raw_s, s), Element<T>::unpack(raw_t, t);
      A m_s = mine.m_s, m_t = mine.m_t;
      raise(s, t, m_s, m_t);
      if (m_s > mine.m_s || m_t > mine.m_t) mine = rebase(mine, m_s, m_t, k);
      count(s, t);
    });
  }
  const Solved<A> solved = solve<A, kNarrow>(team.merge(mine, k, ce), k, ce);

  A share = A(0), part = A(0);
  const bool wanted = row.grad.first != nullptr;
  const A to_grad = terms.kl * k.inverse * (kDivergence == kForward ? A(-1) : mixture_factor<A, kDivergence>(beta));
  const auto finish = [&](int chunk, const A(&s)[kPack], A(&g)[kPack]) {
    if (ce) {
      const std::int64_t column = row.column(chunk);
#pragma unroll
      for (int v = 0; v < kPack; ++v) {
        const A one_hot = column + v == terms.label ? A(1) : A(0);
        g[v] += terms.ce * (Math<A>::exponential((s[v] - solved.m_s) * k.natural) * solved.inv_1 - one_hot);
      }
    }
    row.store(chunk, g);
  };
  store.each(row, first, step, end, [&](int chunk, const uint4& raw_s, const uint4& raw_t) {
    A s[kPack], t[kPack], g[kPack];
    Element<T>::unpack(raw_s, s), Element<T>::unpack(raw_t, t);
#pragma unroll
    for (int v = 0; v < kPack; ++v) {
      const Term<A> x = term<A, kDivergence, kNarrow>(s[v], t[v], solved, k, beta);
      share += x.share;
      if constexpr (kDivergence == kForward) {
        g[v] = to_grad * x.difference;
      } else {
        part += x.part;
      }
    }
    if constexpr (kDivergence == kForward) {
      if (wanted) finish(chunk, s, g);
    }
  });
  A loss = team.sum(share, 0);
  if constexpr (kDivergence != kForward) {
    if (wanted) {
      const A total = kDivergence == kReverse ? loss : team.sum(part, 1);
      store.each(row, first, step, end, [&](int chunk, const uint4& raw_s, const uint4& raw_t) {
        A s[kPack], t[kPack], g[kPack];
        Element<T>::unpack(raw_s, s), Element<T>::unpack(raw_t, t);
#pragma unroll
        for (int v = 0; v < kPack; ++v) {
          const Term<A> x = term<A, kDivergence, kNarrow>(s[v], t[v], solved, k, beta);
          g[v] = to_grad * x.q * ((x.q == A(0) ? A(0) : x.slope) - total);
        }
        finish(chunk, s, g);
      });
    }
  }
  loss = terms.kl * (loss < A(0) ? A(0) : loss);  // a probability flushed to zero beside one that is not: -1e-38
  if (ce) {
    const std::int64_t y = labelled ? terms.label : 0;
    const A s_y = A(Element<T>::load(row.student.first[y * row.student.step]));
    const A cross_entropy = terms.ce * (solved.log_1 + (solved.m_s - s_y));
    if (!of_ce) {
      loss += cross_entropy;
    } else if (first == 0) {
      *of_ce = cross_entropy;
    }
  }
  return loss;
}

// A row that does not count: zeros, and nothing is read.
template <typename T, typename Team>
__device__ void clear_row(const Row<T>& row, const Team& team) {
  using A = typename Element<T>::Acc;
  if (!row.grad.first) return;
  A zeros[Element<T>::kPack];
#pragma unroll
  for (int v = 0; v < Element<T>::kPack; ++v) zeros[v] = A(0);
  for (int i = team.index(); i < row.chunks; i += team.size()) row.store(i, zeros);
}

}  // namespace kdx::cuda
