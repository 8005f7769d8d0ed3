// The pair grid cut into tiles of kEdge x kEdge pairs, and the tiles into blocks of panels.
#pragma once

#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "cpu/rkd_panels.h"

namespace kdx {
namespace KDX_ISA {

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

struct Grid {
  int64_t panels, block, threads;  // panels in all, and of a block

  int64_t blocks() const { return ceil_div(panels, block); }
  TileSet pair(int64_t i, int64_t j) const {
    const int64_t fi = i * block, fj = j * block;
    return {fi, fj, panels - fi < block ? panels - fi : block, panels - fj < block ? panels - fj : block, i == j};
  }

  template <class F>
  void each_block_pair(F f) const {
    for (int64_t j = 0; j < blocks(); ++j) {
      for (int64_t i = 0; i <= j; ++i) f(pair(i, j));
    }
  }

  // Tiles on a side of each_column's squares. Their panels are read from L2 again and again: 512 coordinates of a panel
  // take 48 to 64 KB. Wide squares prepare fewer columns, where every thread still finds work.
  int64_t side() const {
    constexpr int64_t kNarrow = 4, kWide = 8;
    return panels * ceil_div(panels, kWide) >= 8 * threads ? kWide : kNarrow;
  }

  // f(local panel j, local panels [i0, i1)) for columns of at most side() tiles that cover the set, one square of tiles
  // after the other.
  template <class F>
  void each_column(const TileSet& set, F f) const {
    const int64_t side = this->side();
    std::vector<std::pair<int64_t, int64_t>> order;
    for (int64_t bj = 0; bj < set.count_j; bj += side) {
      for (int64_t bi = 0; bi < set.count_i; bi += side) {
        for (int64_t j = bj; j < set.count_j && j < bj + side; ++j) {
          if (!set.diagonal || bi <= j) order.push_back({bi, j});
        }
      }
    }
    const int64_t size = static_cast<int64_t>(order.size());
#pragma omp parallel for num_threads(static_cast<int>(threads)) schedule(dynamic)
    for (int64_t at = 0; at < size; ++at) {
      const auto [i0, j] = order[static_cast<std::size_t>(at)];
      const int64_t end = set.diagonal ? j + 1 : set.count_i;
      f(j, i0, i0 + side < end ? i0 + side : end);
    }
  }

  // f(local panel i, local panel j, slot) for every tile.
  template <class F>
  void each_tile(const TileSet& set, F f) const {
    each_column(set, [&](int64_t j, int64_t i0, int64_t i1) {
      for (int64_t i = i0; i < i1; ++i) f(i, j, set.slot(i, j));
    });
  }
};

}  // namespace KDX_ISA
}  // namespace kdx
