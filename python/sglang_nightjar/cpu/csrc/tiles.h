// Y = X W^T in the tile registers of AMX, which multiply bfloat16 an order of magnitude faster than vectors multiply floats.
//
// A float is the sum of two bfloat16 numbers, high and low, to 16 bits of its mantissa. The product of two such sums is
// three products of halves, high * high + low * high + high * low; the fourth is below what the halves leave out. So a
// float product costs three of bfloat16's, weights take as many bytes as floats do, and each product is right to about
// 2^-17 of its size: between float (2^-24) and bfloat16 (2^-9), and nearer to the former. (Henry, Tang and Heinecke 2019,
// arXiv 1904.06376, have the scheme.) Weights that bfloat16 holds exactly have no low half.
//
// The order of summation is that of k, whatever the number of rows, so a row's result does not depend on the others.
#pragma once

#include <cstdlib>

#include "aligned.h"
#include "linear.h"

#if defined(__linux__) && defined(__AMX_BF16__) && defined(__AVX512BF16__)
#define NIGHTJAR_TILES 1
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace nightjar {

// Rows of a tile, and the depth that one tile product sums over.
constexpr int64_t kTileRows = 16;
constexpr int64_t kTileDepth = 32;
// Elements of a tile of halves, and of a panel's weights at one such depth: two tiles of high halves, maybe two of low ones.
constexpr int64_t kTileHalves = kTileRows * kTileDepth;
template <bool kPair>
constexpr int64_t kWeightHalves = (kPair ? 4 : 2) * kTileHalves;

// Split rows that stay in the second-level cache, which has 2 MiB where there are tiles. More rows are taken in blocks, and
// for each of them all weights are read again.
constexpr int64_t kSplitRowsBytes = 1024 * 1024;

// Whether weights of this depth can be multiplied in tiles here. The system grants a process the registers on request.
inline bool tiles_possible(int64_t depth) {
#if defined(NIGHTJAR_TILES)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  static const bool granted = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return granted && kPanelColumns == 2 * kTileRows && depth % kTileDepth == 0;
#else
  return false;
#endif
}

// The halves of a float; `low` is what `high` leaves of it.
struct Halves {
  BFloat16 high, low;
};

inline Halves halves(float x) {
  const BFloat16 high = from_float<BFloat16>(x);
  return {high, from_float<BFloat16>(x - to_float(high))};
}

// Panels of two tiles side by side, [panels][depth / kTileDepth][high, maybe low][2][kTileHalves]; in a tile, the two
// halves that one lane sums over lie together: [kTileDepth / 2][kTileRows][2].
template <bool kPair>
inline void pack_tiles(Team::Member& team, const float* weight, int64_t out, int64_t in, BFloat16* packed) {
  team.run((out + kPanelColumns - 1) / kPanelColumns, [&](int64_t p) {
    for (int64_t block = 0; block < in / kTileDepth; ++block) {
      BFloat16* high = packed + (p * (in / kTileDepth) + block) * kWeightHalves<kPair>;
      for (int64_t j = 0; j < kPanelColumns; ++j) {
        const int64_t row = p * kPanelColumns + j;
        for (int64_t k = 0; k < kTileDepth; ++k) {
          const Halves value = row < out ? halves(weight[row * in + block * kTileDepth + k]) : Halves{};
          const int64_t at = j / kTileRows * kTileHalves + (k / 2 * kTileRows + j % kTileRows) * 2 + k % 2;
          high[at] = value.high;
          if (kPair) high[at + 2 * kTileHalves] = value.low;
        }
      }
    }
  });
}

#if defined(NIGHTJAR_TILES)

namespace tiles {

// Tile registers: 0 to 3 are sums, 4 and 5 rows of x, 6 and 7 weights. Fewer than 16 rows of x take no more than they need.
struct alignas(64) Config {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  explicit Config(int64_t x_rows) {
    for (int i = 0; i < 8; ++i) {
      row_bytes[i] = 64;
      rows[i] = i < 6 ? std::min(x_rows, kTileRows) : kTileRows;
    }
  }
};

// Rows of x in tiles: [tiles][depth / kTileDepth][high, low][kTileHalves]; rows past the end are zero.
class SplitRows {
 public:
  const BFloat16* tiles() const { return tiles_.data(); }

  void take(const float* x, int64_t ldx, int64_t rows, int64_t depth) {
    const int64_t blocks = depth / kTileDepth, count = (rows + kTileRows - 1) / kTileRows;
    tiles_.reserve(count * blocks * 2 * kTileHalves);
    for (int64_t r = 0; r < count * kTileRows; ++r) {
      BFloat16* tile = tiles_.data() + r / kTileRows * blocks * 2 * kTileHalves + r % kTileRows * kTileDepth;
      for (int64_t b = 0; b < blocks; ++b, tile += 2 * kTileHalves) {
        __m512i high = _mm512_setzero_si512(), low = high;
        if (r < rows) split(x + r * ldx + b * kTileDepth, high, low);
        _mm512_store_si512(tile, high);
        _mm512_store_si512(tile + kTileHalves, low);
      }
    }
  }

 private:
  // kTileDepth floats, as halves.
  static void split(const float* from, __m512i& high, __m512i& low) {
    const auto as_float = [](__m256i bits) {
      return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
    };
    const __m512 first = _mm512_loadu_ps(from), second = _mm512_loadu_ps(from + 16);
    high = (__m512i)_mm512_cvtne2ps_pbh(second, first);
    low = (__m512i)_mm512_cvtne2ps_pbh(_mm512_sub_ps(second, as_float(_mm512_extracti64x4_epi64(high, 1))),
                                       _mm512_sub_ps(first, as_float(_mm512_castsi512_si256(high))));
  }

  Aligned<BFloat16> tiles_;
};

// Weights are fetched so many bytes before they are multiplied, a few cache lines after each product: many at once would
// make the loads wait. One tile of rows is through so soon that weights go to the first-level cache at once.
constexpr int64_t kTilesAhead = 8192;

// c[16 or 32 rows][kPanelColumns] = x w^T for one panel; x are kRowTiles tiles as SplitRows makes them.
template <int kRowTiles, bool kPair>
inline void multiply(const BFloat16* x, const BFloat16* panel, int64_t blocks, bool fetch, float* c) {
  constexpr bool kTwo = kRowTiles == 2;
  constexpr int kProducts = kRowTiles * (kPair ? 6 : 4);
  constexpr int64_t kLines = (kWeightHalves<kPair> * sizeof(BFloat16) / 64 + kProducts - 1) / kProducts;
  const int64_t next_tile = blocks * 2 * kTileHalves;
  _tile_zero(0);
  _tile_zero(1);
  if constexpr (kTwo) {
    _tile_zero(2);
    _tile_zero(3);
  }
  const auto load_rows = [&](const BFloat16* from) {
    _tile_loadd(4, from, 64);
    if constexpr (kTwo) _tile_loadd(5, from + next_tile, 64);
  };
  const auto load_weights = [](const BFloat16* from) {
    _tile_loadd(6, from, 64);
    _tile_loadd(7, from + kTileHalves, 64);
  };
  const char* ahead = nullptr;
  const auto fetch_some = [&] {
    if (fetch)
      for (int64_t i = 0; i < kLines; ++i, ahead += 64) _mm_prefetch(ahead, kTwo ? _MM_HINT_T1 : _MM_HINT_T0);
  };
  const auto add_products = [&] {
    _tile_dpbf16ps(0, 4, 6);
    fetch_some();
    _tile_dpbf16ps(1, 4, 7);
    fetch_some();
    if constexpr (kTwo) {
      _tile_dpbf16ps(2, 5, 6);
      fetch_some();
      _tile_dpbf16ps(3, 5, 7);
      fetch_some();
    }
  };
  for (int64_t b = 0; b < blocks; ++b, x += 2 * kTileHalves, panel += kWeightHalves<kPair>) {
    ahead = reinterpret_cast<const char*>(panel) + kTilesAhead;
    load_weights(panel);
    load_rows(x);
    add_products();
    load_rows(x + kTileHalves);
    add_products();
    if constexpr (kPair) {
      load_weights(panel + 2 * kTileHalves);
      load_rows(x);
      add_products();
    }
  }
  constexpr int64_t kStride = kPanelColumns * sizeof(float);
  _tile_stored(0, c, kStride);
  _tile_stored(1, c + kTileRows, kStride);
  if constexpr (kTwo) {
    _tile_stored(2, c + kTileRows * kPanelColumns, kStride);
    _tile_stored(3, c + kTileRows * kPanelColumns + kTileRows, kStride);
  }
}

// y[rows][width] (kAdd: +)= c (+ bias).
template <Store kStore>
inline void write_panel(const float* c, int64_t rows, int64_t width, const float* bias, float* y, int64_t ldy) {
  for (int64_t r = 0; r < rows; ++r, c += kPanelColumns, y += ldy) {
    int64_t j = 0;
    for (; j + kLanes <= width; j += kLanes) {
      Vec value = load(c + j);
      if (bias != nullptr) value += load(bias + j);
      store(y + j, kStore == Store::kAdd ? load(y + j) + value : value);
    }
    for (; j < width; ++j) {
      const float value = c[j] + (bias != nullptr ? bias[j] : 0.0f);
      y[j] = kStore == Store::kAdd ? y[j] + value : value;
    }
  }
}

// Columns of the panels [begin, end) of y (kAdd: +)= x w^T (+ bias) for `rows` rows, x as SplitRows makes it.
template <Store kStore, bool kPair>
inline void panels(const BFloat16* x, int64_t rows, const PackedWeight& w, int64_t begin, int64_t end,
                   const float* bias, float* y, int64_t ldy) {
  const int64_t blocks = w.in / kTileDepth;
  const auto panel_at = [&](int64_t p) {
    return static_cast<const BFloat16*>(w.data) + p * blocks * kWeightHalves<kPair>;
  };
  const auto write = [&](const float* c, int64_t p, int64_t first_row) {
    const int64_t column = p * kPanelColumns;
    write_panel<kStore>(c, std::min(rows - first_row, 2 * kTileRows), std::min<int64_t>(kPanelColumns, w.out - column),
                        bias != nullptr ? bias + column : nullptr, y + first_row * ldy + column, ldy);
  };
  alignas(64) float c[2 * kTileRows * kPanelColumns];
  const Config config(rows);
  _tile_loadconfig(&config);
  for (int64_t p = begin; p < end; ++p)
    for (int64_t m = 0; m < rows; m += 2 * kTileRows) {
      const BFloat16* tile = x + m / kTileRows * blocks * 2 * kTileHalves;
      // Later rows find the panel in the cache.
      if (rows - m > kTileRows) {
        multiply<2, kPair>(tile, panel_at(p), blocks, m == 0, c);
      } else {
        multiply<1, kPair>(tile, panel_at(p), blocks, m == 0, c);
      }
      write(c, p, m);
    }
  // Let go, since oneDNN uses the registers, too.
  _tile_release();
}

}  // namespace tiles

// As linear_as() in linear.h, on weights from pack_tiles().
template <Store kStore, bool kPair>
inline void linear_in_tiles(Team::Member& team, const float* x, int64_t ldx, int64_t rows, const PackedWeight& w,
                            const float* bias, float* y, int64_t ldy) {
  const int64_t most = std::max<int64_t>(2 * kTileRows, kSplitRowsBytes / 4 / w.in);
  // Every thread splits the rows for itself: that is quicker than waiting for each other.
  thread_local tiles::SplitRows split;
  int64_t have = -1;
  share_out(team, rows, most, w.panels(), [&](int64_t block, int64_t m, int64_t height, int64_t begin, int64_t end) {
    if (have != block) split.take(x + m * ldx, ldx, height, w.in);
    have = block;
    tiles::panels<kStore, kPair>(split.tiles(), height, w, begin, end, bias, y + m * ldy, ldy);
  });
}

#else

template <Store kStore, bool kPair>
inline void linear_in_tiles(Team::Member&, const float*, int64_t, int64_t, const PackedWeight&, const float*, float*,
                            int64_t) {
  std::abort();  // Nothing is packed for tiles here.
}

#endif  // NIGHTJAR_TILES

}  // namespace nightjar
