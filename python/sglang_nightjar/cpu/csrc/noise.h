// Gumbel noise that is a function of a key and a token, so that whoever knows the key can make it again.
#pragma once

#include "rows.h"

namespace nightjar {

// Wellons' "lowbias32", a bijection of 32-bit integers in which every input bit changes every output bit half the time.
inline UintVec mix(UintVec x) {
  x = (x ^ (x >> 16)) * 0x7feb352du;
  x = (x ^ (x >> 15)) * 0x846ca68bu;
  return x ^ (x >> 16);
}

// Draws from the standard Gumbel distribution, at most 22.2: -log(E) of an exponential E = -log(1 - w).
// w is uniform on 2^31 points of (0, 1); small w, which are the large draws, keep all their digits.
inline Vec gumbel(uint32_t low, uint32_t high, UintVec tokens) {
  const UintVec hashed = mix(mix((tokens ^ low) + 0x9e3779b9u) + high);
  const Vec w = __builtin_convertvector(reinterpret_cast<IntVec>(hashed >> 1), Vec) * 0x1p-31f + 0x1p-32f;
  const Vec series = w * (w * (w * (w * 0.25f + 1.0f / 3) + 0.5f) + 1.0f);
  const Vec exponential = w < broadcast(0x1p-6f) ? series : -log(max(1.0f - w, broadcast(0x1p-32f)));
  return -log(exponential);
}

// x[i] += temperature * gumbel(key, token of column i) for begin <= i < end. Tokens are `ids`, or 0, 1, 2 ... without.
inline void add_gumbel_row(float* x, float temperature, uint64_t key, const int64_t* ids, int64_t begin, int64_t end) {
  const uint32_t low = static_cast<uint32_t>(key), high = static_cast<uint32_t>(key >> 32);
  for (int64_t i = begin; i < end; i += kLanes) {
    const int64_t lanes = std::min<int64_t>(kLanes, end - i);
    UintVec tokens = reinterpret_cast<UintVec>(lane_numbers()) + static_cast<uint32_t>(i);
    if (ids) {
      for (int64_t j = 0; j < lanes; ++j) tokens[j] = static_cast<uint32_t>(ids[i + j]);
    }
    const Vec noise = gumbel(low, high, tokens) * temperature;
    if (lanes == kLanes) {
      store(x + i, load(x + i) + noise);
    } else {
      for (int64_t j = 0; j < lanes; ++j) x[i + j] += noise[j];
    }
  }
}

// The same for rows of `width`; row r has keys[r], temperature[r] and the tokens ids + r * id_stride.
inline void add_gumbel(Team::Member& team, float* x, const float* temperature, const int64_t* keys, const int64_t* ids,
                       int64_t id_stride, int64_t rows, int64_t width) {
  constexpr int64_t kPiece = kParallelElements / 4;
  const int64_t pieces = (width + kPiece - 1) / kPiece;
  team.run(rows * pieces, [&](int64_t i) {
    const int64_t r = i / pieces, begin = i % pieces * kPiece;
    // A row without temperature stays as it is, to the last bit.
    if (temperature[r] == 0.0f) return;
    add_gumbel_row(x + r * width, temperature[r], static_cast<uint64_t>(keys[r]), ids ? ids + r * id_stride : nullptr, begin,
                   std::min(width, begin + kPiece));
  });
}

}  // namespace nightjar
