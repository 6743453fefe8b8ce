// Y = X W^T, whatever form the weights were packed in.
#pragma once

#include "tiles.h"

namespace nightjar {

template <Store kStore>
inline void linear(Team::Member& team, const float* x, int64_t ldx, int64_t rows, const PackedWeight& w,
                   const float* bias, float* y, int64_t ldy) {
  switch (w.type) {
    case WeightType::kFloat:
      return linear_as<kStore, float>(team, x, ldx, rows, w, bias, y, ldy);
    case WeightType::kBFloat16:
      return linear_as<kStore, BFloat16Pair>(team, x, ldx, rows, w, bias, y, ldy);
    case WeightType::kFloat16:
      return linear_as<kStore, Float16>(team, x, ldx, rows, w, bias, y, ldy);
    case WeightType::kTiles:
      return linear_in_tiles<kStore, false>(team, x, ldx, rows, w, bias, y, ldy);
    case WeightType::kTilePairs:
      return linear_in_tiles<kStore, true>(team, x, ldx, rows, w, bias, y, ldy);
  }
}

}  // namespace nightjar
