// Y = X W^T with weights packed once into panels that a tile reads from front to back.
#pragma once

#include <vector>

#include "team.h"
#include "tile.h"

namespace nightjar {

// The last two are laid out for tile registers (tiles.h): as bfloat16, or each as a pair of them.
enum class WeightType { kFloat, kBFloat16, kFloat16, kTiles, kTilePairs };

// Weights [out, in] as panels [ceil(out / kPanelColumns)][in][kPanelColumns]; missing columns of the last panel are zero.
// They are stored as `type` and computed with as floats; of bfloat16 two that follow each other in depth lie side by side.
// (Panels for tiles have the same size and another order within.)
struct PackedWeight {
  const void* data;
  WeightType type;
  int64_t out;
  int64_t in;

  int64_t panels() const { return (out + kPanelColumns - 1) / kPanelColumns; }
};

// Weights side by side are `kSide` (1 or 2), of which `in` is a multiple.
template <int64_t kSide, typename Weight>
inline void pack_weight(Team::Member& team, const Weight* weight, int64_t out, int64_t in, Weight* packed) {
  team.run((out + kPanelColumns - 1) / kPanelColumns, [&](int64_t p) {
    Weight* panel = packed + p * in * kPanelColumns;
    for (int64_t j = 0; j < kPanelColumns; ++j) {
      const int64_t row = p * kPanelColumns + j;
      for (int64_t k = 0; k < in; ++k)
        panel[(k / kSide * kPanelColumns + j) * kSide + k % kSide] = row < out ? weight[row * in + k] : Weight{};
    }
  });
}

// Where row k of a panel of packed weights begins.
template <typename Weight>
inline const Weight* row_of_panel(const Weight* panel, int64_t k) {
  return panel + k / kDepthOf<Weight> * kPanelColumns;
}

// Rows of X that stay in the second-level cache while a thread goes through its panels.
constexpr int64_t kRowBlockBytes = 512 * 1024;
// Part of a panel that stays in the second-level cache while the row tiles pass over it. It is the same for every
// number of rows, because it is part of the order of summation.
constexpr int64_t kDepthBlock = 2048;
// How far ahead weights are fetched when every row of a panel is used only once, in bytes. Tiles of few rows are through
// with 8 rows of the panel before the processor could look further; the more arithmetic a tile has, the less of the
// panel the processor sees by itself, and fetching further, into the second-level cache, made 6 to 12 rows a tenth faster.
constexpr int64_t kFewRows = 4;
constexpr int64_t kFewRowsAhead = 1024;
constexpr int64_t kManyRowsAhead = 4096;

// Claims per thread and layer where panels come in runs: enough that a late thread costs little, few enough that there are runs.
constexpr int64_t kClaims = 4;

// Whether so many rows of X pass over a panel in one tile. The panel is then read once, from memory.
inline bool one_tile(int64_t rows) { return rows <= tile_height<kPanelVecs>; }

// One panel's columns of `rows` rows: y[m][0 .. kPanelColumns). `fetched`: somebody fetched this panel. `next`: the panel
// that this thread does afterwards, or null.
template <Store kStore, typename Weight>
inline void linear_panel(const float* x, int64_t ldx, int64_t rows, const Weight* panel, int64_t depth, float* y,
                         int64_t ldy, bool fetched, const Weight* next) {
  constexpr int64_t kHeight = tile_height<kPanelVecs>;
  const int64_t tiles = (rows + kHeight - 1) / kHeight;
  for (int64_t k = 0; k < depth; k += kDepthBlock) {
    const int64_t block = std::min(kDepthBlock, depth - k);
    const Weight* b = row_of_panel(panel, k);
    const auto run = [&](int64_t t, auto panel_rows) {
      // Tiles of even height: 13 rows are 7 + 6, not 12 + 1.
      const int64_t m = rows * t / tiles;
      const int64_t height = rows * (t + 1) / tiles - m;
      if (kStore == Store::kAdd || k > 0) {
        tile_rows<kPanelVecs, Store::kAdd>(height, x + m * ldx + k, ldx, panel_rows, block, y + m * ldy, ldy);
      } else {
        tile_rows<kPanelVecs, Store::kOverwrite>(height, x + m * ldx + k, ldx, panel_rows, block, y + m * ldy, ldy);
      }
    };
    const auto ahead = [&](int64_t bytes) { return reinterpret_cast<const char*>(b) + bytes; };
    if (rows <= kFewRows) {
      run(0, PanelRows<1, Weight>(b, ahead(kFewRowsAhead), 1));
      continue;
    }
    int64_t t = 0;
    if (tiles == 1 || !fetched) run(t++, PanelRows<2, Weight>(b, ahead(kManyRowsAhead), 1));
    // The other tiles have time to fetch the next block: memory and arithmetic overlap.
    const bool last = k + block == depth;
    const Weight* coming = last ? next : row_of_panel(b, block);
    if (coming == nullptr) coming = b;
    const int64_t passes = tiles - t;
    for (int64_t i = 0; t < tiles; ++t, ++i)
      run(t, PanelRows<2, Weight>(b, row_of_panel(coming, block * i / passes), passes));
    fetched = true;
  }
}

// One panel with what it needs at the edge of y: the last panel may be wider than y.
template <Store kStore, typename Weight>
inline void linear_block(const float* x, int64_t ldx, int64_t rows, const PackedWeight& w, int64_t p, const float* bias,
                         float* y, int64_t ldy, bool fetched, int64_t next) {
  const int64_t column = p * kPanelColumns;
  const int64_t width = std::min<int64_t>(kPanelColumns, w.out - column);
  const auto panel_at = [&](int64_t p) { return row_of_panel(static_cast<const Weight*>(w.data), p * w.in); };
  const Weight* coming = next < 0 ? nullptr : panel_at(next);
  float* out = y + column;
  if (width == kPanelColumns) {
    linear_panel<kStore>(x, ldx, rows, panel_at(p), w.in, out, ldy, fetched, coming);
  } else {
    std::vector<float> edge(rows * kPanelColumns);
    linear_panel<Store::kOverwrite>(x, ldx, rows, panel_at(p), w.in, edge.data(), kPanelColumns, fetched, coming);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t j = 0; j < width; ++j) {
        const float value = edge[r * kPanelColumns + j];
        out[r * ldy + j] = kStore == Store::kAdd ? out[r * ldy + j] + value : value;
      }
  }
  if (bias != nullptr)
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t j = 0; j < width; ++j) out[r * ldy + j] += bias[column + j];
}

// Shares out runs of panels, and blocks of about `most` rows if there are many: piece(block, first row, rows, begin, end)
// has the panels [begin, end).
template <typename Piece>
inline void share_out(Team::Member& team, int64_t rows, int64_t most, int64_t panels, const Piece& piece) {
  const int64_t blocks = (rows + most - 1) / most;
  const int64_t run = std::max<int64_t>(1, panels / (kClaims * team.threads()));
  const int64_t runs = (panels + run - 1) / run;
  team.run(blocks * runs, [&](int64_t i) {
    const int64_t block = i / runs, begin = i % runs * run;
    const int64_t m = rows * block / blocks, height = rows * (block + 1) / blocks - m;
    piece(block, m, height, begin, std::min(panels, begin + run));
  });
}

// Shares out panels one by one, so that threads end together, to threads that know their next one: piece(first row, rows,
// panel, whether it is this thread's first, next panel or -1).
template <typename Piece>
inline void share_out_ahead(Team::Member& team, int64_t rows, int64_t most, int64_t panels, const Piece& piece) {
  const int64_t blocks = (rows + most - 1) / most;
  bool first = true;
  team.run_ahead(blocks * panels, [&](int64_t i, int64_t next) {
    const int64_t block = i / panels, m = rows * block / blocks, height = rows * (block + 1) / blocks - m;
    piece(m, height, i % panels, first, next < blocks * panels ? next % panels : -1);
    first = false;
  });
}

// y[rows][out] (kAdd: +)= x[rows][in] W^T (+ bias).
template <Store kStore, typename Weight>
inline void linear_as(Team::Member& team, const float* x, int64_t ldx, int64_t rows, const PackedWeight& w,
                      const float* bias, float* y, int64_t ldy) {
  const int64_t most = std::max<int64_t>(tile_height<kPanelVecs>, kRowBlockBytes / 4 / w.in);
  const auto panel = [&](int64_t m, int64_t height, int64_t p, bool first, int64_t next) {
    linear_block<kStore, Weight>(x + m * ldx, ldx, height, w, p, bias, y + m * ldy, ldy, !first, next);
  };
  if (!one_tile(rows)) return share_out_ahead(team, rows, most, w.panels(), panel);
  share_out(team, rows, most, w.panels(), [&](int64_t, int64_t m, int64_t height, int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) panel(m, height, p, false, -1);
  });
}

}  // namespace nightjar
