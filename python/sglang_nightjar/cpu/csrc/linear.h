// Y = X W^T with weights packed once into panels that a tile reads from front to back.
#pragma once

#include <ATen/Parallel.h>

#include <vector>

#include "tile.h"

namespace nightjar {

// Weights [out, in] as panels [ceil(out / kPanelColumns)][in][kPanelColumns]; missing columns of the last panel are zero.
struct PackedWeight {
  const float* data;
  int64_t out;
  int64_t in;

  int64_t panels() const { return (out + kPanelColumns - 1) / kPanelColumns; }
};

inline void pack_weight(const float* weight, int64_t out, int64_t in, float* packed) {
  const int64_t panels = (out + kPanelColumns - 1) / kPanelColumns;
  at::parallel_for(0, panels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      float* panel = packed + p * in * kPanelColumns;
      for (int64_t j = 0; j < kPanelColumns; ++j) {
        const int64_t row = p * kPanelColumns + j;
        for (int64_t k = 0; k < in; ++k) panel[k * kPanelColumns + j] = row < out ? weight[row * in + k] : 0.0f;
      }
    }
  });
}

// Rows of X that stay in the second-level cache while a thread goes through its panels.
constexpr int64_t kRowBlockBytes = 512 * 1024;
// Part of a panel that stays in the second-level cache while the row tiles pass over it. It is the same for every
// number of rows, because it is part of the order of summation.
constexpr int64_t kDepthBlock = 2048;
// How far ahead weights are fetched when every row of a panel is used only once, in bytes: 8 rows.
constexpr int64_t kStreamAhead = 1024;

// One panel's columns of `rows` rows: y[m][0 .. kPanelColumns).
template <Store kStore>
inline void linear_panel(const float* x, int64_t ldx, int64_t rows, const float* panel, int64_t depth, float* y,
                         int64_t ldy) {
  constexpr int64_t kHeight = tile_height<kPanelVecs>;
  const int64_t tiles = (rows + kHeight - 1) / kHeight;
  for (int64_t k = 0; k < depth; k += kDepthBlock) {
    const int64_t block = std::min(kDepthBlock, depth - k);
    const float* b = panel + k * kPanelColumns;
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
    run(0, PanelRows<1>{b, kStreamAhead});
    // The second tile finds the block in the cache, so it has time to fetch the next one: memory and arithmetic overlap.
    if (tiles > 1) run(1, PanelRows<2>{b, block * kPanelColumns * 4});
    for (int64_t t = 2; t < tiles; ++t) run(t, PanelRows<0>{b, 0});
  }
}

// y[rows][out] (kAdd: +)= x[rows][in] W^T (+ bias). Parallel over panels, and over blocks of rows if there are many.
template <Store kStore>
inline void linear(const float* x, int64_t ldx, int64_t rows, const PackedWeight& w, const float* bias, float* y,
                   int64_t ldy) {
  if (rows == 0) return;
  const int64_t panels = w.panels();
  const int64_t most = std::max<int64_t>(tile_height<kPanelVecs>, kRowBlockBytes / 4 / w.in);
  const int64_t blocks = (rows + most - 1) / most;
  at::parallel_for(0, blocks * panels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t block = i / panels, p = i % panels;
      const int64_t m = rows * block / blocks;
      const int64_t height = rows * (block + 1) / blocks - m;
      const int64_t column = p * kPanelColumns;
      const int64_t width = std::min<int64_t>(kPanelColumns, w.out - column);
      const float* panel = w.data + p * w.in * kPanelColumns;
      float* out = y + m * ldy + column;
      if (width == kPanelColumns) {
        linear_panel<kStore>(x + m * ldx, ldx, height, panel, w.in, out, ldy);
      } else {
        // The last panel is wider than y: compute beside it and copy what exists.
        std::vector<float> edge(height * kPanelColumns);
        linear_panel<Store::kOverwrite>(x + m * ldx, ldx, height, panel, w.in, edge.data(), kPanelColumns);
        for (int64_t r = 0; r < height; ++r)
          for (int64_t j = 0; j < width; ++j) {
            const float value = edge[r * kPanelColumns + j];
            out[r * ldy + j] = kStore == Store::kAdd ? out[r * ldy + j] + value : value;
          }
      }
      if (bias != nullptr)
        for (int64_t r = 0; r < height; ++r)
          for (int64_t j = 0; j < width; ++j) out[r * ldy + j] += bias[column + j];
    }
  });
}

}  // namespace nightjar
