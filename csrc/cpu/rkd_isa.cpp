// The relational losses on a CPU: order of the work, threads, memory. Compiled once per instruction set.
//
// The upper triangle of the pair grid is cut into square tiles of kEdge x kEdge pairs, the tiles into blocks. One block
// holds everything up to the cap (see rkd_block); beyond it the blocks are processed one after the other and recompute
// their distances, so that the scratch does not grow with N^2. Whatever is written belongs to one thread at a time and
// every sum runs in a fixed order: results do not depend on the number of threads.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "cpu/rkd_angle.h"
#include "cpu/rkd_distance.h"
#include "cpu/rkd_grid.h"
#include "cpu/rkd_isa.h"
#include "cpu/rkd_product.h"

namespace kdx {
namespace KDX_ISA {
namespace {

template <class T>
class Relational {
 public:
  Relational(const Rkd& op, int threads)
      : op_(op),
        threads_(threads),
        n_(op.rows),
        grid_{ceil_div(n_, E), std::min(ceil_div(op.block, E), ceil_div(n_, E)), threads},
        distance_(op.distance_weight != 0),
        angle_(op.angle_weight != 0),
        gradient_(op.grad != nullptr) {}

  void run() {
    allocate();
    if (resident()) {
      measure_everything();
    } else {
      teacher_ = teacher();
      student_ = student();
    }
    if (distance_) {
      if (!resident()) sum_distances();
      inv_mu_ = inverse_mean(total_.student, total_.student_count);
      inv_nu_ = inverse_mean(total_.teacher, total_.teacher_count);
      sum_losses();
    }
    if (gradient_ && !resident()) std::fill_n(static_cast<T*>(op_.grad), n_ * student_.depth(), T(0));
    if (gradient_ && distance_) grid_.each_block_pair([this](const TileSet& set) { differentiate_distances(set); });
    if (angle_) each_block_triple();
    if (gradient_ && resident()) multiply(grid_.pair(0, 0), v_[0].get());
    const double pairs = static_cast<double>(n_) * static_cast<double>(n_);
    double loss = 0;
    if (distance_) loss += op_.distance_weight * (total_.loss / pairs);
    if (angle_) loss += op_.angle_weight * (angle_loss_ / (pairs * static_cast<double>(n_)));
    *static_cast<T*>(op_.loss) = static_cast<T>(loss);
    if (gradient_ && std::isnan(loss)) {
      std::fill_n(static_cast<T*>(op_.grad), n_ * student_.depth(), std::numeric_limits<T>::quiet_NaN());
    }
  }

 private:
  static constexpr int E = kEdge<T>;

  bool resident() const { return grid_.blocks() == 1; }
  int64_t vectors() const { return grid_.block * 2; }  // of a row of legs

  static T* tile(const Buffer<T>& tiles, int64_t slot) { return tiles.get() + slot * kTile<T>; }
  Rows<T> legs(int pair, int64_t panel, int64_t other = 0) const {
    const int64_t stride = Rows<T>::legs_stride(vectors());
    return {legs_[pair].get() + panel * E * stride + other * 2 * kLegs<T>, stride};
  }

  void allocate() {
    const int64_t tiles = resident() ? grid_.pair(0, 0).size() : grid_.block * grid_.block;
    const int64_t pairs = resident() ? 1 : std::min<int64_t>(3, grid_.blocks() * (grid_.blocks() + 1) / 2);
    if (resident()) teacher_tiles_ = Buffer<T>(tiles * kTile<T>);
    for (int64_t p = 0; p < pairs; ++p) {
      if (distance_ || gradient_) v_[p] = Buffer<T>(tiles * kTile<T>);
      if (angle_) legs_[p] = Buffer<T>(grid_.block * E * Rows<T>::legs_stride(vectors()));
    }
    if (gradient_ && angle_) {
      sums_ = Buffer<T>(static_cast<int64_t>(threads_) * 2 * E * Rows<T>::sums_stride(vectors()));
    }
    partial_.resize(static_cast<std::size_t>(tiles));
    angle_partial_.resize(static_cast<std::size_t>(tiles));
  }

  void clear_partial(const TileSet& set) { std::fill(partial_.begin(), partial_.begin() + set.size(), DistanceSums{}); }

  static double times(const TileSet& set, int64_t slot) {
    int64_t i, j;
    set.panels(slot, i, j);
    return set.first_i + i == set.first_j + j ? 1.0 : 2.0;
  }

  void add_partial(const TileSet& set) {
    for (int64_t s = 0; s < set.size(); ++s) total_.add(partial_[static_cast<std::size_t>(s)], times(set, s));
  }

  void add_angle_partial(const TileSet& set) {
    for (int64_t s = 0; s < set.size(); ++s) angle_loss_ += angle_partial_[static_cast<std::size_t>(s)] * times(set, s);
  }

  // f(i, j, slot, squared distances of student and teacher) for every tile.
  template <class F>
  void each_squared(const TileSet& set, F f) const {
    grid_.each_column(set, [&](int64_t j, int64_t i0, int64_t i1) {
      const Column<T> of_student(student_, set.first_j + j), of_teacher(teacher_, set.first_j + j);
      alignas(64) T s[kTile<T>], t[kTile<T>];
      for (int64_t i = i0; i < i1; ++i) {
        square_tile(student_, set.first_i + i, of_student, s);
        square_tile(teacher_, set.first_i + i, of_teacher, t);
        f(i, j, set.slot(i, j), s, t);
      }
    });
  }

  static void to_distances(T* s, T* t, DistanceSums& sums) {
    distances_in_place(s, sums.student, sums.student_count);
    distances_in_place(t, sums.teacher, sums.teacher_count);
  }

  Points<T> student() const { return {op_.student, n_, true, gradient_, threads_}; }
  Points<T> teacher() const { return {op_.teacher, n_, true, false, threads_}; }

  // The whole grid once: legs for the angles, distances and their sums. One input after the other, each packed just
  // before it is read, so that it stays in cache.
  void measure_everything() {
    const TileSet set = grid_.pair(0, 0);
    clear_partial(set);
    teacher_ = teacher();
    grid_.each_column(set, [&](int64_t j, int64_t i0, int64_t i1) {
      const Column<T> column(teacher_, j);
      for (int64_t i = i0; i < i1; ++i) square_tile(teacher_, i, column, tile(teacher_tiles_, set.slot(i, j)));
    });
    teacher_ = {};
    student_ = student();
    grid_.each_column(set, [&](int64_t j, int64_t i0, int64_t i1) {
      const Column<T> column(student_, j);
      for (int64_t i = i0; i < i1; ++i) {
        const int64_t slot = set.slot(i, j);
        alignas(64) T here[kTile<T>];
        T *s = distance_ ? tile(v_[0], slot) : here, *t = tile(teacher_tiles_, slot);
        square_tile(student_, i, column, s);
        if (angle_) angle_partial_[static_cast<std::size_t>(slot)] = store_legs(s, t, T(op_.delta), legs(0, i, j));
        if (distance_) to_distances(s, t, partial_[static_cast<std::size_t>(slot)]);
        if (gradient_ && !distance_) std::fill_n(tile(v_[0], slot), kTile<T>, T(0));
      }
    });
    if (distance_) add_partial(set);
    if (angle_) add_angle_partial(set);
  }

  // f(slot, distances of student and teacher) for every tile, kept or computed anew.
  template <class F>
  void each_distance(const TileSet& set, F f) const {
    if (resident()) {
      grid_.each_tile(set,
                      [&](int64_t, int64_t, int64_t slot) { f(slot, tile(v_[0], slot), tile(teacher_tiles_, slot)); });
    } else {
      each_squared(set, [&](int64_t, int64_t, int64_t slot, T* s, T* t) {
        DistanceSums known;
        to_distances(s, t, known);
        f(slot, s, t);
      });
    }
  }

  void sum_distances() {
    grid_.each_block_pair([&](const TileSet& set) {
      clear_partial(set);
      each_squared(set, [&](int64_t, int64_t, int64_t slot, T* s, T* t) {
        to_distances(s, t, partial_[static_cast<std::size_t>(slot)]);
      });
      add_partial(set);
    });
  }

  void sum_losses() {
    grid_.each_block_pair([&](const TileSet& set) {
      clear_partial(set);
      each_distance(set, [&](int64_t slot, const T* s, const T* t) {
        DistanceSums& sums = partial_[static_cast<std::size_t>(slot)];
        distance_loss(s, t, T(inv_mu_), T(inv_nu_), T(op_.delta), sums);
      });
      add_partial(set);
    });
  }

  // V of the distances of one pair of blocks.
  void differentiate_distances(const TileSet& set) {
    const double n = static_cast<double>(n_);
    const double scale = op_.distance_weight * inv_mu_ / (n * n);
    const double shift = total_.student_count == 0 ? 0 : total_.slope_times_distance * inv_mu_ / total_.student_count;
    each_distance(set, [&](int64_t slot, const T* s, const T* t) {
      distance_gradient(s, t, T(inv_mu_), T(inv_nu_), T(op_.delta), T(shift), T(scale), tile(v_[0], slot));
    });
    if (!resident()) multiply(set, v_[0].get());
  }

  // Triangles i < j < k by the blocks of their points. The three pairs of blocks share a place where they are the same.
  void each_block_triple() {
    for (int64_t c = 0; c < grid_.blocks(); ++c) {
      for (int64_t b = 0; b <= c; ++b) {
        for (int64_t a = 0; a <= b; ++a) {
          const int ac = b == c ? 0 : 1, bc = a == b ? ac : ac + 1;
          const TileSet sets[3] = {grid_.pair(a, b), grid_.pair(a, c), grid_.pair(b, c)};
          const TileSet* of[3] = {};
          of[0] = &sets[0], of[ac] = &sets[1], of[bc] = &sets[2];
          if (!resident()) {
            for (int p = 0; p <= bc; ++p) measure_legs(*of[p], p, p == 0 && b == c);
          }
          visit_block_triple(sets, ac, bc);
          if (!gradient_) continue;
          for (int p = 0; p <= bc; ++p) {
            mirror_diagonal(*of[p], p);
            if (!resident()) multiply(*of[p], v_[p].get());
          }
        }
      }
    }
  }

  void measure_legs(const TileSet& set, int pair, bool count) {
    each_squared(set, [&](int64_t i, int64_t j, int64_t slot, T* s, T* t) {
      angle_partial_[static_cast<std::size_t>(slot)] = store_legs(s, t, T(op_.delta), legs(pair, i, j));
      if (gradient_) std::fill_n(tile(v_[pair], slot), kTile<T>, T(0));
    });
    if (count) add_angle_partial(set);
  }

  // Rounds of pairs of panels (i, j) in which no panel comes twice: a task adds to the rows of its two panels alone, so
  // the tasks of a round run side by side and every sum grows in the order of the rounds.
  void visit_block_triple(const TileSet* sets, int ac, int bc) {
    const TileSet& ab = sets[0];
    std::fill_n(angle_partial_.begin(), ab.size(), 0.0);
    const int64_t rounds = std::max(ab.count_i, ab.count_j);
    for (int64_t round = 0; round < rounds; ++round) {
#pragma omp parallel for num_threads(threads_) schedule(dynamic)
      for (int64_t i = 0; i < ab.count_i; ++i) {
        const int64_t j = (round - i + rounds) % rounds;
        if (j >= ab.count_j || (ab.diagonal && j < i)) continue;
        double& loss = angle_partial_[static_cast<std::size_t>(ab.slot(i, j))];
        loss = gradient_ ? visit_panels<true>(sets, ac, bc, i, j) : visit_panels<false>(sets, ac, bc, i, j);
      }
    }
    for (int64_t s = 0; s < ab.size(); ++s) angle_loss_ += 2 * angle_partial_[static_cast<std::size_t>(s)];
  }

  template <bool kGrad>
  double visit_panels(const TileSet* sets, int ac, int bc, int64_t i, int64_t j) const {
    const TileSet &ab = sets[0], &to_k = sets[1];
    const double n = static_cast<double>(n_);
    AngleTask<T> task;
    task.count_i = std::min<int64_t>(E, n_ - (ab.first_i + i) * E);
    task.count_j = std::min<int64_t>(E, n_ - (ab.first_j + j) * E);
    task.same = ab.diagonal && i == j;
    task.ordered = sets[2].diagonal;
    task.first = task.ordered ? 2 * j : 0;
    task.vectors = 2 * to_k.count_j;
    task.legs_ik = legs(ac, i), task.legs_jk = legs(bc, j), task.legs_ij = legs(0, i, j);
    task.delta = T(op_.delta), task.scale = T(op_.angle_weight / (n * n * n));
    task.v_ij = nullptr;
    const int64_t stride = Rows<T>::sums_stride(vectors());
    task.sums = {sums_.get() + thread_number() * 2 * E * stride, stride};
    if (!kGrad) return visit_triangles<false>(task);
    for (int row = 0; row < 2 * E; ++row) {
      std::fill(task.sums[row] + task.first * 2 * kLanes<T>, task.sums[row] + task.vectors * 2 * kLanes<T>, T(0));
    }
    task.v_ij = tile(v_[0], ab.slot(i, j));
    const double loss = visit_triangles<true>(task);
    for (int64_t k = task.first / 2; k < to_k.count_j; ++k) {
      T *of_i = tile(v_[ac], to_k.slot(i, k)), *of_j = tile(v_[bc], sets[2].slot(j, k));
      const Rows<T> legs_i = legs(ac, i, k), legs_j = legs(bc, j, k);
      for (int row = 0; row < E; ++row) {
        add_row(legs_i[row], task.sums[row] + k * 4 * kLanes<T>, task.scale, of_i + row * E);
        add_row(legs_j[row], task.sums[E + row] + k * 4 * kLanes<T>, task.scale, of_j + row * E);
      }
    }
    return loss;
  }

  // Triangles fill the upper half of the tiles on the diagonal.
  void mirror_diagonal(const TileSet& set, int pair) const {
    for (int64_t p = 0; set.diagonal && p < set.count_j; ++p) {
      T* v = tile(v_[pair], set.slot(p, p));
      for (int i = 0; i < E; ++i) {
        for (int j = 0; j < i; ++j) v[i * E + j] = v[j * E + i];
      }
    }
  }

  void multiply(const TileSet& set, const T* v) {
    const bool add = !resident();
    multiply_rows(set, v, true, student_, add, threads_, static_cast<T*>(op_.grad));
    if (!set.diagonal) multiply_rows(set, v, false, student_, add, threads_, static_cast<T*>(op_.grad));
  }

  const Rkd& op_;
  const int threads_;
  const int64_t n_;
  Points<T> student_, teacher_;
  const Grid grid_;
  const bool distance_, angle_, gradient_;
  Buffer<T> teacher_tiles_;   // the teacher's distances, when there is one block
  Buffer<T> v_[3], legs_[3];  // of a pair of blocks; the student's distances, then V in their place
  Buffer<T> sums_;            // per thread: A and B of a pair of panels
  std::vector<DistanceSums> partial_;
  std::vector<double> angle_partial_;
  DistanceSums total_;
  double inv_mu_ = 0, inv_nu_ = 0, angle_loss_ = 0;
};

bool same(const RkdInput& x, const RkdInput& y) {
  return x.data == y.data && x.dtype == y.dtype && x.row_stride == y.row_stride && x.column_stride == y.column_stride;
}

template <class T>
void copy_tile(const T* tile, const PairwiseSqDist& op, int64_t i0, int64_t j0) {
  constexpr int E = kEdge<T>;
  const std::size_t width = static_cast<std::size_t>(std::min<int64_t>(E, op.other - j0)) * sizeof(T);
  for (int64_t i = i0; i < std::min(op.rows, i0 + E); ++i) {
    std::memcpy(static_cast<T*>(op.out) + i * op.other + j0, tile + (i - i0) * E, width);
  }
}

template <class T>
void squared_distances(const PairwiseSqDist& op, int threads) {
  constexpr int E = kEdge<T>;
  const bool of_itself = same(op.x, op.y) && op.rows == op.other;
  const Points<T> x(op.x, op.rows, of_itself, false, threads);
  if (of_itself) {
    const int64_t panels = ceil_div(op.rows, E);
    const Grid grid{panels, panels, threads};
    grid.each_column(grid.pair(0, 0), [&](int64_t j, int64_t i0, int64_t i1) {
      const Column<T> column(x, j);
      for (int64_t i = i0; i < i1; ++i) {
        alignas(64) T tile[2][kTile<T>];
        square_tile(x, i, column, tile[0]);
        transpose_tile(tile[0], tile[1]);
        copy_tile(tile[0], op, i * E, j * E);
        copy_tile(tile[1], op, j * E, i * E);
      }
    });
    return;
  }
  const Points<T> y(op.y, op.other, false, false, threads);
  const int64_t across = ceil_div(op.other, E);
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (int64_t at = 0; at < ceil_div(op.rows, E) * across; ++at) {
    alignas(64) T tile[kTile<T>];
    pair_sums<false>(x.panel(at / across), y.panel(at % across), x.depth(), tile);
    copy_tile(tile, op, at / across * E, at % across * E);
  }
}

}  // namespace

void rkd(const Rkd& op, int threads) {
  if (op.compute == kFloat64) {
    Relational<double>(op, threads).run();
  } else {
    Relational<float>(op, threads).run();
  }
}

void pairwise_sq_dist(const PairwiseSqDist& op, int threads) {
  if (op.compute == kFloat64) {
    squared_distances<double>(op, threads);
  } else {
    squared_distances<float>(op, threads);
  }
}

}  // namespace KDX_ISA
}  // namespace kdx
