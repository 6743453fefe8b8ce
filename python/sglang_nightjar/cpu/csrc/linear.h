// Y = X W^T with weights packed once into panels that a tile reads from front to back.
#pragma once

#include <ATen/Parallel.h>

#include "tile.h"

namespace nightjar {

// Weights [out, in] as panels [ceil(out / kTileColumns)][in][kTileColumns]; missing columns of the last panel are zero.
struct PackedWeight {
  const float* data;
  int64_t out;
  int64_t in;

  int64_t panels() const { return (out + kTileColumns - 1) / kTileColumns; }
};

inline void pack_weight(const float* weight, int64_t out, int64_t in, float* packed) {
  const int64_t panels = (out + kTileColumns - 1) / kTileColumns;
  at::parallel_for(0, panels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      float* panel = packed + p * in * kTileColumns;
      for (int64_t j = 0; j < kTileColumns; ++j) {
        const int64_t row = p * kTileColumns + j;
        for (int64_t k = 0; k < in; ++k) panel[k * kTileColumns + j] = row < out ? weight[row * in + k] : 0.0f;
      }
    }
  });
}

// Rows of X that stay in the second-level cache while a thread goes through its panels.
constexpr int64_t kRowBlockBytes = 256 * 1024;
// Part of a panel that stays in the first-level cache while the row tiles pass over it. It is the same for every
// number of rows, because it is part of the order of summation.
constexpr int64_t kDepthBlock = 384;

// One panel's columns of `rows` rows: y[m][0 .. kTileColumns).
template <Store kStore>
inline void linear_panel(const float* x, int64_t ldx, int64_t rows, const float* panel, int64_t depth, float* y,
                         int64_t ldy) {
  const int64_t tiles = (rows + kTileRows - 1) / kTileRows;
  for (int64_t k = 0; k < depth; k += kDepthBlock) {
    const int64_t block = std::min(kDepthBlock, depth - k);
    for (int64_t t = 0; t < tiles; ++t) {
      // Tiles of even height: 13 rows are 7 + 6, not 12 + 1.
      const int64_t m = rows * t / tiles;
      const int64_t height = rows * (t + 1) / tiles - m;
      const float* a = x + m * ldx + k;
      const float* b = panel + k * kTileColumns;
      if (kStore == Store::kAdd || k > 0) {
        tile_rows<Store::kAdd>(height, a, ldx, b, kTileColumns, block, y + m * ldy, ldy);
      } else {
        tile_rows<Store::kOverwrite>(height, a, ldx, b, kTileColumns, block, y + m * ldy, ldy);
      }
    }
  }
}

// y[rows][out] (kAdd: +)= x[rows][in] W^T (+ bias). Parallel over panels, and over blocks of rows if there are many.
template <Store kStore>
inline void linear(const float* x, int64_t ldx, int64_t rows, const PackedWeight& w, const float* bias, float* y,
                   int64_t ldy) {
  if (rows == 0) return;
  const int64_t panels = w.panels();
  const int64_t most = std::max<int64_t>(kTileRows, kRowBlockBytes / 4 / w.in);
  const int64_t blocks = (rows + most - 1) / most;
  at::parallel_for(0, blocks * panels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t block = i / panels, p = i % panels;
      const int64_t m = rows * block / blocks;
      const int64_t height = rows * (block + 1) / blocks - m;
      const int64_t column = p * kTileColumns;
      const int64_t width = std::min<int64_t>(kTileColumns, w.out - column);
      const float* panel = w.data + p * w.in * kTileColumns;
      float* out = y + m * ldy + column;
      if (width == kTileColumns) {
        linear_panel<kStore>(x + m * ldx, ldx, height, panel, w.in, out, ldy);
      } else {
        // The last panel is wider than y: compute beside it and copy what exists.
        std::vector<float> edge(height * kTileColumns);
        linear_panel<Store::kOverwrite>(x + m * ldx, ldx, height, panel, w.in, edge.data(), kTileColumns);
        for (int64_t r = 0; r < height; ++r)
          for (int64_t j = 0; j < width; ++j) {
            const float value = edge[r * kTileColumns + j];
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
