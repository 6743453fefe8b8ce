// The one matrix kernel that everything else is made of: a tile of C += A B held in registers.
//
// Each element of C is the sum over k = 0, 1, 2 ... in that order, whatever the shape of the tile around it. A row's
// result therefore does not depend on how many rows are computed with it: a token verified among four others gets
// the same logits, bit by bit, as one decoded alone.
#pragma once

#include "vec.h"

namespace nightjar {

// Registers: kTileRows * kTileVecs accumulators, one row of B, one broadcast.
#if defined(__AVX512F__)
constexpr int kTileRows = 12;
#else
constexpr int kTileRows = 6;
#endif
constexpr int kTileVecs = 2;
constexpr int kTileColumns = kTileVecs * kLanes;

// How far ahead of its use a row of B is prefetched, in bytes.
constexpr int kPrefetchBytes = 1024;

enum class Store { kOverwrite, kAdd };

// c[m][j] = (kAdd: c[m][j] *) scale + sum_k a[m][k] b[k][j]; j runs over kTileColumns columns.
template <int kRows, Store kStore>
inline __attribute__((always_inline)) void tile(const float* __restrict a, int64_t lda, const float* __restrict b,
                                                int64_t ldb, int64_t depth, float* __restrict c, int64_t ldc) {
  Vec acc[kRows][kTileVecs];
  for (int m = 0; m < kRows; ++m)
    for (int j = 0; j < kTileVecs; ++j) acc[m][j] = Vec{};
  for (int64_t k = 0; k < depth; ++k) {
    const float* row = b + k * ldb;
    Vec bv[kTileVecs];
    for (int j = 0; j < kTileVecs; ++j) bv[j] = load(row + j * kLanes);
    for (int j = 0; j < kTileColumns * 4; j += 64) __builtin_prefetch(reinterpret_cast<const char*>(row) + kPrefetchBytes + j);
    for (int m = 0; m < kRows; ++m) {
      const float x = a[m * lda + k];
      for (int j = 0; j < kTileVecs; ++j) acc[m][j] += x * bv[j];
    }
  }
  for (int m = 0; m < kRows; ++m) {
    for (int j = 0; j < kTileVecs; ++j) {
      float* out = c + m * ldc + j * kLanes;
      store(out, kStore == Store::kAdd ? load(out) + acc[m][j] : acc[m][j]);
    }
  }
}

// tile() for a row count known only at run time, 1 <= rows <= kTileRows.
template <Store kStore, int kRows = kTileRows>
inline void tile_rows(int64_t rows, const float* a, int64_t lda, const float* b, int64_t ldb, int64_t depth, float* c,
                      int64_t ldc) {
  if (rows == kRows) {
    tile<kRows, kStore>(a, lda, b, ldb, depth, c, ldc);
  } else if constexpr (kRows > 1) {
    tile_rows<kStore, kRows - 1>(rows, a, lda, b, ldb, depth, c, ldc);
  }
}

}  // namespace nightjar
