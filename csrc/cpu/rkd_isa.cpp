// The relational losses on a CPU: order of the work, threads, memory. Compiled once per instruction set.
//
// The upper triangle of the pair grid is cut into square tiles of kEdge x kEdge pairs, the tiles into blocks. One block
// holds everything up to the cap (see rkd_block); beyond it the blocks are processed one after the other and recompute
// their distances, so that the scratch does not grow with N^2. A tile belongs to one thread and every sum runs in a
// fixed order: results do not depend on the number of threads.
#if defined(_OPENMP)
#include <omp.h>
#endif

#include <algorithm>

#include <cmath>
#include <vector>

#include "cpu/rkd_angle.h"
#include "cpu/rkd_distance.h"
#include "cpu/rkd_isa.h"
#include "cpu/rkd_panels.h"
#include "cpu/rkd_product.h"

namespace kdx {
namespace KDX_ISA {
namespace {

inline int64_t thread_number() {
#if defined(_OPENMP)
  return omp_get_thread_num();
#else
  return 0;
#endif
}

// The tiles of one pair of blocks: all of them, or the upper triangle of a block with itself.
struct TileSet {
  int64_t first_i, first_j, count_i, count_j;  // panels
  bool diagonal;

  int64_t size() const { return diagonal ? count_j * (count_j + 1) / 2 : count_i * count_j; }
  int64_t slot(int64_t i, int64_t j) const {  // local panel numbers, i <= j on the diagonal
    return diagonal ? j * (j + 1) / 2 + i : i * count_j + j;
  }
  void panels(int64_t slot, int64_t& i, int64_t& j) const {
    if (!diagonal) {
      i = slot / count_j;
      j = slot % count_j;
      return;
    }
    j = static_cast<int64_t>((std::sqrt(8.0 * static_cast<double>(slot) + 1.0) - 1.0) / 2.0);
    while (j * (j + 1) / 2 > slot) --j;
    while ((j + 1) * (j + 2) / 2 <= slot) ++j;
    i = slot - j * (j + 1) / 2;
  }
};

template <class T>
class Relational {
 public:
  Relational(const Rkd& op, int threads)
      : op_(op),
        threads_(threads),
        n_(op.rows),
        panels_(ceil_div(n_, E)),
        padded_(panels_ * E),
        block_(ceil_div(op.block, E) < panels_ ? ceil_div(op.block, E) : panels_),
        blocks_(ceil_div(panels_, block_)),
        distance_(op.distance_weight != 0),
        angle_(op.angle_weight != 0),
        gradient_(op.grad != nullptr) {}

  void run() {
    student_ = pack_all_columns<T>(op_.student, n_, threads_);
    teacher_ = pack_all_columns<T>(op_.teacher, n_, threads_);
    allocate();
    if (resident()) measure_everything();
    if (distance_) {
      if (!resident()) sum_distances();
      inv_mu_ = inverse_mean(total_.student, total_.student_count);
      inv_nu_ = inverse_mean(total_.teacher, total_.teacher_count);
      sum_losses();
    }
    if (gradient_) rows_ = pack_all_rows<T>(op_.student, n_, threads_);
    if (gradient_ || angle_) each_block_pair([this](const TileSet& set) { differentiate(set); });
    const double pairs = static_cast<double>(n_) * static_cast<double>(n_);
    double loss = 0;
    if (distance_) loss += op_.distance_weight * (total_.loss / pairs);
    if (angle_) loss += op_.angle_weight * (angle_loss_ / (pairs * static_cast<double>(n_)));
    *static_cast<T*>(op_.loss) = static_cast<T>(loss);
  }

 private:
  static constexpr int E = kEdge<T>;

  bool resident() const { return blocks_ == 1; }

  const T* student_panel(int64_t p) const { return student_.get() + p * E * op_.student.columns; }
  const T* teacher_panel(int64_t p) const { return teacher_.get() + p * E * op_.teacher.columns; }
  T* student_tile(int64_t slot) const { return student_tiles_.get() + slot * kTile<T>; }
  T* teacher_tile(int64_t slot) const { return teacher_tiles_.get() + slot * kTile<T>; }
  T* legs_of(const Buffer<T>& legs, int64_t local_panel) const {
    return legs.get() + local_panel * 2 * padded_ * kLegs<T>;
  }

  void allocate() {
    const int64_t tiles = resident() ? panels_ * (panels_ + 1) / 2 : block_ * block_;
    if (distance_ || gradient_) student_tiles_ = Buffer<T>(tiles * kTile<T>);
    if (distance_) teacher_tiles_ = Buffer<T>(tiles * kTile<T>);
    if (angle_) {
      legs_j_ = Buffer<T>(block_ * 2 * padded_ * kLegs<T>);
      if (!resident()) legs_i_ = Buffer<T>(block_ * 2 * padded_ * kLegs<T>);
    }
    if (gradient_) gathered_ = Buffer<T>(static_cast<int64_t>(threads_) * block_ * kTile<T>);
    partial_.resize(static_cast<std::size_t>(tiles));
  }

  template <class F>
  void each_block_pair(F f) {
    for (int64_t j = 0; j < blocks_; ++j) {
      for (int64_t i = 0; i <= j; ++i) {
        const int64_t fi = i * block_, fj = j * block_;
        f(TileSet{fi, fj, panels_ - fi < block_ ? panels_ - fi : block_, panels_ - fj < block_ ? panels_ - fj : block_,
                  i == j});
      }
    }
  }

  // f(global panel i, global panel j, slot) for every tile.
  template <class F>
  void each_tile(const TileSet& set, F f) {
    const int64_t size = set.size();
#pragma omp parallel for num_threads(threads_) schedule(dynamic)
    for (int64_t s = size - 1; s >= 0; --s) {
      int64_t i, j;
      set.panels(s, i, j);
      f(set.first_i + i, set.first_j + j, s);
    }
  }

  void clear_partial(const TileSet& set) { std::fill(partial_.begin(), partial_.begin() + set.size(), DistanceSums{}); }

  void add_partial(const TileSet& set) {
    for (int64_t s = 0; s < set.size(); ++s) {
      int64_t i, j;
      set.panels(s, i, j);
      total_.add(partial_[static_cast<std::size_t>(s)], set.first_i + i == set.first_j + j ? 1.0 : 2.0);
    }
  }

  void square(const T* a, const T* b, int64_t i, int64_t j, int64_t depth, T* out) const {
    square_tile(a, b, depth, out);
    clear_padding(out, n_ - i * E, n_ - j * E);
  }

  void square_both(int64_t i, int64_t j, T* s, T* t) const {
    square(student_panel(i), student_panel(j), i, j, op_.student.columns, s);
    square(teacher_panel(i), teacher_panel(j), i, j, op_.teacher.columns, t);
  }

  static void to_distances(T* s, T* t, DistanceSums& sums) {
    distances_in_place(s, sums.student, sums.student_count);
    distances_in_place(t, sums.teacher, sums.teacher_count);
  }

  // The whole grid once: legs for the angles, distances and their sums.
  void measure_everything() {
    const TileSet set{0, 0, panels_, panels_, true};
    clear_partial(set);
    each_tile(set, [&](int64_t i, int64_t j, int64_t slot) {
      alignas(64) T here[3][kTile<T>];
      T* s = distance_ ? student_tile(slot) : here[0];
      T* t = distance_ ? teacher_tile(slot) : here[1];
      square_both(i, j, s, t);
      if (angle_) {
        for (int side = 0; side < 2; ++side) {
          const T* tile = side == 0 ? s : t;
          store_legs(tile, i * E, padded_, side, legs_of(legs_j_, j));
          if (i != j) {
            transpose_tile(tile, here[2]);
            store_legs(here[2], j * E, padded_, side, legs_of(legs_j_, i));
          }
        }
      }
      if (distance_) to_distances(s, t, partial_[static_cast<std::size_t>(slot)]);
    });
    if (distance_) add_partial(set);
  }

  void sum_distances() {
    each_block_pair([&](const TileSet& set) {
      clear_partial(set);
      each_tile(set, [&](int64_t i, int64_t j, int64_t slot) {
        alignas(64) T here[2][kTile<T>];
        square_both(i, j, here[0], here[1]);
        to_distances(here[0], here[1], partial_[static_cast<std::size_t>(slot)]);
      });
      add_partial(set);
    });
  }

  void sum_losses() {
    each_block_pair([&](const TileSet& set) {
      clear_partial(set);
      each_tile(set, [&](int64_t i, int64_t j, int64_t slot) {
        DistanceSums& sums = partial_[static_cast<std::size_t>(slot)];
        alignas(64) T here[2][kTile<T>];
        T* s = resident() ? student_tile(slot) : here[0];
        T* t = resident() ? teacher_tile(slot) : here[1];
        if (!resident()) {
          DistanceSums known;
          square_both(i, j, s, t);
          to_distances(s, t, known);
        }
        distance_loss(s, t, T(inv_mu_), T(inv_nu_), T(op_.delta), sums);
      });
      add_partial(set);
    });
  }

  // V of one pair of blocks, the angles' loss, and the product back to the coordinates.
  void differentiate(const TileSet& set) {
    const Buffer<T>& legs_i = set.diagonal ? legs_j_ : legs_i_;
    if (angle_ && !resident()) {
      // Blocks come row by row of one column (each_block_pair), so the column's legs are kept over its rows.
      if (set.first_i == 0) measure_legs(set.first_j, set.count_j, legs_j_);
      if (!set.diagonal) measure_legs(set.first_i, set.count_i, legs_i_);
    }
    const double n = static_cast<double>(n_);
    const double scale = op_.distance_weight * inv_mu_ / (n * n);
    const double shift = total_.student_count == 0 ? 0 : total_.slope_times_distance * inv_mu_ / total_.student_count;
    clear_partial(set);
    each_tile(set, [&](int64_t i, int64_t j, int64_t slot) {
      T* v = gradient_ ? student_tile(slot) : nullptr;
      if (gradient_ && distance_) {
        if (!resident()) {
          DistanceSums known;
          square_both(i, j, v, teacher_tile(slot));
          to_distances(v, teacher_tile(slot), known);
        }
        distance_gradient(v, teacher_tile(slot), T(inv_mu_), T(inv_nu_), T(op_.delta), T(shift), T(scale));
      }
      if (angle_) partial_[static_cast<std::size_t>(slot)].loss = angle(set, legs_i, i, j, v);
    });
    if (angle_) {
      for (int64_t s = 0; s < set.size(); ++s) {
        int64_t i, j;
        set.panels(s, i, j);
        angle_loss_ += partial_[static_cast<std::size_t>(s)].loss * (set.first_i + i == set.first_j + j ? 1.0 : 2.0);
      }
    }
    if (!gradient_) return;
    multiply(set, true);
    if (!set.diagonal) multiply(set, false);
  }

  double angle(const TileSet& set, const Buffer<T>& legs_i, int64_t i, int64_t j, T* v) const {
    const double n = static_cast<double>(n_);
    const T* a = legs_of(legs_i, i - set.first_i);
    const T* b = legs_of(legs_j_, j - set.first_j);
    const int64_t rows = n_ - i * E < E ? n_ - i * E : E;
    if (!gradient_) return angle_tile<false>(a, b, i * E, rows, n_, padded_, T(op_.delta), T(0), true, v);
    return angle_tile<true>(a, b, i * E, rows, n_, padded_, T(op_.delta), T(op_.angle_weight / (n * n * n)), !distance_,
                            v);
  }

  void measure_legs(int64_t first, int64_t count, const Buffer<T>& legs) {
#pragma omp parallel for num_threads(threads_) schedule(dynamic)
    for (int64_t at = 0; at < count * panels_; ++at) {
      const int64_t j = at / panels_, k = at % panels_;
      alignas(64) T here[2][kTile<T>];
      square_both(k, first + j, here[0], here[1]);
      for (int side = 0; side < 2; ++side) store_legs(here[side], k * E, padded_, side, legs_of(legs, j));
    }
  }

  // Rows of block i (or of block j) of 2 (diag(V 1) - V) X, with the columns of the other one.
  void multiply(const TileSet& set, bool rows_of_i) {
    const int64_t first_row = rows_of_i ? set.first_i : set.first_j, rows = rows_of_i ? set.count_i : set.count_j;
    const int64_t first_column = rows_of_i ? set.first_j : set.first_i, columns = rows_of_i ? set.count_j : set.count_i;
    const int64_t depth = op_.student.columns;
    // The first block that touches a row writes it: block (0, j) for the rows of j, and block (0, 0) for the rows of 0.
    const bool accumulate = set.first_i != 0 || (rows_of_i && !set.diagonal);
#pragma omp parallel for num_threads(threads_) schedule(dynamic)
    for (int64_t row = 0; row < rows; ++row) {
      T* v = gathered_.get() + thread_number() * block_ * kTile<T>;
      for (int64_t column = 0; column < columns; ++column) {
        T* to = v + column * kTile<T>;
        const bool stored_as_is = set.diagonal ? column < row : !rows_of_i;
        const T* tile = student_tile(stored_as_is ? set.slot(column, row) : set.slot(row, column));
        if (stored_as_is) {
          std::memcpy(to, tile, sizeof(T) * kTile<T>);
        } else {
          transpose_tile(tile, to);
        }
      }
      const int64_t i0 = (first_row + row) * E;
      laplacian_times(v, columns * E, rows_.get(), padded_, first_column * E, i0, n_ - i0 < E ? n_ - i0 : E, depth,
                      accumulate, static_cast<T*>(op_.grad) + i0 * depth);
    }
  }

  const Rkd& op_;
  const int threads_;
  const int64_t n_, panels_, padded_, block_, blocks_;
  const bool distance_, angle_, gradient_;
  Buffer<T> student_, teacher_;              // column packings
  Buffer<T> rows_;                           // row packing of the student
  Buffer<T> student_tiles_, teacher_tiles_;  // distances; V takes the student's place
  Buffer<T> legs_i_, legs_j_;
  Buffer<T> gathered_;  // per thread: V of one panel of rows
  std::vector<DistanceSums> partial_;
  DistanceSums total_;
  double inv_mu_ = 0, inv_nu_ = 0, angle_loss_ = 0;
};

template <class T>
void squared_distances(const PairwiseSqDist& op, int threads) {
  constexpr int E = kEdge<T>;
  const Buffer<T> x = pack_all_columns<T>(op.x, op.rows, threads), y = pack_all_columns<T>(op.y, op.other, threads);
  const int64_t across = ceil_div(op.other, E), depth = op.x.columns;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (int64_t at = 0; at < ceil_div(op.rows, E) * across; ++at) {
    const int64_t i0 = at / across * E, j0 = at % across * E;
    alignas(64) T tile[kTile<T>];
    square_tile(x.get() + i0 * depth, y.get() + j0 * depth, depth, tile);
    const int64_t width = op.other - j0 < E ? op.other - j0 : E;
    for (int64_t i = i0; i < op.rows && i < i0 + E; ++i) {
      std::memcpy(static_cast<T*>(op.out) + i * op.other + j0, tile + (i - i0) * E,
                  static_cast<std::size_t>(width) * sizeof(T));
    }
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
