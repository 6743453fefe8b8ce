// The one matrix kernel that everything else is made of: a tile of C = A B held in registers.
//
// Each element of C is the sum over k = 0, 1, 2 ... in that order, whatever the shape of the tile around it. A row's
// result therefore does not depend on how many rows are computed with it: a token verified among four others gets
// the same logits, bit by bit, as one decoded alone.
#pragma once

#include <type_traits>

#include "ahead.h"
#include "vec.h"

namespace nightjar {

// Tiles are kVecs vectors wide and at most tile_height<kVecs> rows high, so that the sums, a row of B and one
// broadcast element of A fit into the registers: 32 of them with AVX-512, else 16.
template <int kVecs>
constexpr int tile_height = (kLanes == 16 ? 24 : 12) / kVecs;

constexpr int kPanelVecs = 2;
constexpr int kPanelColumns = kPanelVecs * kLanes;

enum class Store { kOverwrite, kAdd };

// Rows of B that follow each other at a fixed distance.
struct StridedRows {
  const float* data;
  int64_t stride;
  const float* operator()(int64_t k) const { return data + k * stride; }
};

// Rows of a packed panel of `Weight`s, which lie end to end. While they are used, memory from `coming` on is fetched into
// the cache of level kLevel (1 or 2), as much as there is in this panel for every `passes` panels used.
template <int kLevel, typename Weight>
class PanelRows {
  static constexpr int64_t kRowBytes = kPanelColumns * sizeof(Weight), kFetched = std::max(kRowBytes, kCacheLine);

 public:
  PanelRows(const Weight* panel, const void* coming, int64_t passes)
      : every(passes * kFetched / kRowBytes), panel_(panel), coming_(static_cast<const char*>(coming)) {}

  const Weight* operator()(int64_t k) const { return panel_ + k * kPanelColumns; }
  void used(float) {
    for (int64_t i = 0; i < kFetched; i += kCacheLine) fetch_into_level<kLevel>(coming_ + i);
    coming_ += kFetched;
  }

  const int64_t every;

 private:
  const Weight* panel_;
  const char* coming_;
};

// Rows scattered over memory, all shifted by the same number of columns.
struct ScatteredRows {
  const float* const* rows;
  int64_t column;
  const float* operator()(int64_t k) const { return rows[k] + column; }
};

// c[m][j] (kAdd: +)= sum_k a[m][k] b(k)[j] for kRows rows and kVecs * kLanes columns. If B wants to know, `b.used(cycles)`
// is called for every `b.every` rows of it, with about how long they take.
template <int kRows, int kVecs, Store kStore, typename Rows>
inline __attribute__((always_inline)) void tile(const float* __restrict a, int64_t lda, Rows b, int64_t depth,
                                                float* __restrict c, int64_t ldc) {
  Vec acc[kRows][kVecs];
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 16
    for (int j = 0; j < kVecs; ++j) acc[m][j] = Vec{};
  constexpr int64_t kDepth = kDepthOf<std::remove_cvref_t<decltype(*b(0))>>;
  int64_t due = 0;
  for (int64_t r = 0; r < depth / kDepth; ++r) {
    if constexpr (requires { b.used(0.0f); })
      if (r == due) {
        due += b.every;
        b.used(b.every * (kRows * kVecs / 2.0f));
      }
    const auto* row = b(r);
    const auto multiply = [&]<int kPart>() __attribute__((always_inline)) {
      Vec bv[kVecs];
#pragma GCC unroll 16
      for (int j = 0; j < kVecs; ++j) bv[j] = held(load_part<kPart>(row + j * kLanes));
#pragma GCC unroll 16
      for (int m = 0; m < kRows; ++m) {
        const float x = a[m * lda + r * kDepth + kPart];
#pragma GCC unroll 16
        for (int j = 0; j < kVecs; ++j) acc[m][j] += x * bv[j];
      }
    };
    multiply.template operator()<0>();
    if constexpr (kDepth == 2) multiply.template operator()<1>();
  }
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 16
    for (int j = 0; j < kVecs; ++j) {
      float* out = c + m * ldc + j * kLanes;
      store(out, kStore == Store::kAdd ? load(out) + acc[m][j] : acc[m][j]);
    }
  }
}

// tile() for a number of rows known only at run time, 1 <= rows <= tile_height<kVecs>.
template <int kVecs, Store kStore, typename Rows, int kRows = tile_height<kVecs>>
inline void tile_rows(int64_t rows, const float* a, int64_t lda, Rows b, int64_t depth, float* c, int64_t ldc) {
  if (rows == kRows) {
    tile<kRows, kVecs, kStore>(a, lda, b, depth, c, ldc);
  } else if constexpr (kRows > 1) {
    tile_rows<kVecs, kStore, Rows, kRows - 1>(rows, a, lda, b, depth, c, ldc);
  }
}

}  // namespace nightjar
