// What all ways to compute attention work on: its tensors, partial results, scratch memory.
#pragma once

#include "aligned.h"
#include "attention_plan.h"

namespace nightjar {

using AlignedFloats = Aligned<float>;

// q, o: [rows][heads][dim] of type T; k, v: [slots][kv_heads][dim] of type Cache; with the distance between rows or
// slots.
template <typename T, typename Cache>
struct AttentionTensors {
  const T* q;
  int64_t q_stride;
  const Cache *k, *v;
  int64_t k_stride, v_stride;
  T* o;
  int64_t o_stride;
};

// A partial softmax of some rows over some keys: weighted values, largest score, sum of exponentials relative to it.
struct Partial {
  float *rows, *maxima, *sums;
};

// The partial result number `index` in a buffer of partial results of `rows` rows each.
inline Partial partial_at(float* buffer, int64_t index, int64_t rows, int64_t padded) {
  float* base = buffer + index * partial_size(rows, padded);
  return {base, base + rows * padded, base + rows * (padded + 1)};
}

inline void clear(const Partial& p, int64_t rows, int64_t padded) {
  std::fill_n(p.maxima, rows, kMinusInfinity);
  std::fill_n(p.sums, rows, 0.0f);
  std::fill_n(p.rows, rows * padded, 0.0f);
}

// Merges `part` into `into`, row by row; a row that saw no key in `part` stays as it is.
inline void merge(const Partial& into, const Partial& part, int64_t rows, int64_t padded) {
  for (int64_t r = 0; r < rows; ++r) {
    if (part.maxima[r] == kMinusInfinity) continue;
    const float most = std::max(into.maxima[r], part.maxima[r]);
    const float keep = into.maxima[r] == kMinusInfinity ? 0.0f : exp(into.maxima[r] - most);
    const float take = exp(part.maxima[r] - most);
    into.maxima[r] = most;
    into.sums[r] = into.sums[r] * keep + part.sums[r] * take;
    float *a = into.rows + r * padded, *b = part.rows + r * padded;
    for (int64_t i = 0; i < padded; i += kLanes) store(a + i, load(a + i) * keep + load(b + i) * take);
  }
}

// A chunk of keys, as a task needs it, and what this thread needs after it, from which kv head on, if that is known.
struct Chunk {
  const int32_t* slots;
  // Position of the first key in the request.
  int64_t first, count;
  const int32_t* next_slots;
  int64_t next_count, next_head;
};

}  // namespace nightjar
