// Causal attention over a KV cache with page size 1, reached through req_to_token.
//
// Decode, verification, draft-extend and prefill are one algorithm: the new rows are the last `rows` positions of each
// request, and their keys and values are already in the cache. Keys are taken in chunks of kChunkKeys, each chunk in
// blocks of kBlockKeys with an online softmax (Milakov and Gimelshein 2018; FlashAttention, Dao et al. 2022), and the
// chunks' partial results are merged in order (Flash-Decoding). Chunk and block borders are fixed positions of the
// request, so a row's result is the same bit by bit however the rows are batched or spread over threads.
#pragma once

#include "attention_plan.h"
#include "team.h"
#include "tile.h"

namespace nightjar {

constexpr size_t kCacheLine = 64;
// Rows of a decode or verify step; a prompt's tasks have more.
constexpr int64_t kStepRows = 24;

// A partial softmax of some rows over some keys: largest score, sum of exponentials relative to it, weighted values.
struct Partial {
  float *maxima, *sums, *rows;
};

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

// Scratch memory of one thread. Partial results of a task's heads follow each other.
struct AttentionScratch {
  std::vector<float> query, keys, values, scores, chunk, merged;

  void reserve(int64_t rows, int64_t heads, const AttentionShape& shape) {
    query.resize(heads * rows * shape.dim);
    keys.resize(shape.dim * kBlockKeys);
    values.resize(kBlockKeys * shape.padded());
    scores.resize(rows * kBlockKeys);
    chunk.resize(heads * rows * (shape.padded() + 2));
    merged.resize(heads * rows * (shape.padded() + 2));
  }
};

// The partial result number `index` in a buffer of partial results of `rows` rows each.
inline Partial partial_at(float* buffer, int64_t index, int64_t rows, int64_t padded) {
  float* base = buffer + index * rows * (padded + 2);
  return {base, base + rows, base + 2 * rows};
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

// Loads of a block's rows, which lie scattered over the cache, begin while the block before it is computed, a line or
// so between every few products. All at once they would fill the core's buffers and stop it.

// Copies a block of keys, transposed to [dim][kBlockKeys], and begins to load its values.
template <typename Cache>
inline void gather_keys(const Cache* const* rows, const Cache* const* values, int64_t dim, float* keys) {
  const int64_t whole = dim / kLanes * kLanes;
  for (int64_t i = 0; i < kBlockKeys; i += kLanes) {
    for (int64_t d = 0; d < whole; d += kLanes) {
      Vec square[kLanes];
#pragma GCC unroll 16
      for (int r = 0; r < kLanes; ++r) {
        square[r] = load_as_float(rows[i + r] + d);
        if (d * sizeof(Cache) % kCacheLine == 0) __builtin_prefetch(values[i + r] + d);
      }
      transpose(square);
#pragma GCC unroll 16
      for (int r = 0; r < kLanes; ++r) store(keys + (d + r) * kBlockKeys + i, square[r]);
    }
    for (int64_t d = whole; d < dim; ++d)
      for (int64_t r = 0; r < kLanes; ++r) keys[d * kBlockKeys + i + r] = to_float(rows[i + r][d]);
  }
}

// Copies a block of values to [kBlockKeys][padded], and begins to load the keys that come next.
template <typename Cache>
inline void gather_values(const Cache* const* rows, const Cache* const* next, int64_t dim, int64_t padded,
                          float* values) {
  for (int64_t i = 0; i < kBlockKeys; ++i) {
    float* out = values + i * padded;
    int64_t d = 0;
    for (; d + kLanes <= dim; d += kLanes) {
      store(out + d, load_as_float(rows[i] + d));
      if (d * sizeof(Cache) % kCacheLine == 0) __builtin_prefetch(next[i] + d);
    }
    for (; d < dim; ++d) out[d] = to_float(rows[i][d]);
    for (; d < padded; ++d) out[d] = 0.0f;
  }
}

// Scores of a block become weights exp(score - maximum); the accumulated rows are rescaled to the new maximum.
inline void softmax_block(float* scores, const Partial& part, const AttentionShape& shape, const Request& request,
                          int64_t first_row, int64_t rows, int64_t first_key, int64_t count) {
  const int64_t group = shape.group(), padded = shape.padded();
  const IntVec lanes = lane_numbers();
  for (int64_t m = 0; m < rows * group; ++m) {
    float* row = scores + m * kBlockKeys;
    const int64_t position = request.position(first_row + m / group);
    // Visible keys of this block: [low, high).
    const auto high = static_cast<int32_t>(std::clamp<int64_t>(position + 1 - first_key, 0, count));
    const auto low = static_cast<int32_t>(
        shape.window > 0 ? std::clamp<int64_t>(position + 1 - shape.window - first_key, 0, kBlockKeys) : 0);
    Vec best = broadcast(kMinusInfinity);
    for (int64_t i = 0; i < kBlockKeys; i += kLanes) {
      Vec s = load(row + i) * shape.scaling;
      if (shape.logit_cap > 0)
        for (int lane = 0; lane < kLanes; ++lane) s[lane] = shape.logit_cap * std::tanh(s[lane] / shape.logit_cap);
      const IntVec key = lanes + static_cast<int32_t>(i);
      s = ((key >= low) & (key < high)) ? s : broadcast(kMinusInfinity);
      store(row + i, s);
      best = max(best, s);
    }
    const float before = part.maxima[m];
    const float most = std::max(before, max_of(best));
    if (most == kMinusInfinity) {
      std::fill_n(row, kBlockKeys, 0.0f);
      continue;
    }
    Vec total{};
    for (int64_t i = 0; i < kBlockKeys; i += kLanes) {
      const Vec weight = exp(load(row + i) - most);
      store(row + i, weight);
      total += weight;
    }
    if (before != most && before != kMinusInfinity) {
      const float keep = exp(before - most);
      part.sums[m] *= keep;
      for (int64_t d = 0; d < padded; d += kLanes) {
        float* a = part.rows + m * padded + d;
        store(a, load(a) * keep);
      }
    }
    part.maxima[m] = most;
    part.sums[m] += sum(total);
  }
}

// c[rows][columns] (kAdd: +)= a[rows][depth] b, columns [column, column + kVecs * kLanes).
template <int kVecs, Store kStore, typename Rows>
inline void multiply_columns(const float* a, int64_t depth, int64_t rows, Rows b, float* c, int64_t columns) {
  constexpr int64_t kHeight = tile_height<kVecs>;
  for (int64_t m = 0; m < rows; m += kHeight)
    tile_rows<kVecs, kStore>(std::min(kHeight, rows - m), a + m * depth, depth, b, depth, c + m * columns, columns);
}

// The same for all columns; `rows_at(column)` is B from that column on. Wide tiles where they fit.
template <Store kStore, typename RowsAt>
inline void multiply(const float* a, int64_t depth, int64_t rows, RowsAt rows_at, float* c, int64_t columns) {
  constexpr int kWide = kLanes == 16 ? 4 : kPanelVecs;
  int64_t j = 0;
  for (; j + kWide * kLanes <= columns; j += kWide * kLanes)
    multiply_columns<kWide, kStore>(a, depth, rows, rows_at(j), c + j, columns);
  for (; j < columns; j += kPanelColumns)
    multiply_columns<kPanelVecs, kStore>(a, depth, rows, rows_at(j), c + j, columns);
}

// One chunk of keys for all heads of a task, into the task's partial results at `parts`.
template <typename T, typename Cache>
inline void attend_chunk(const AttentionTensors<T, Cache>& t, const AttentionShape& shape, const Request& request,
                         const AttentionTask& task, int64_t chunk, AttentionScratch& s, float* parts) {
  const int64_t dim = shape.dim, padded = shape.padded(), rows = task.rows * shape.group();
  const int64_t heads = task.end_head - task.head;
  const int64_t first = chunk * kChunkKeys;
  const int64_t end = std::min(first + kChunkKeys, request.position(task.row + task.rows - 1) + 1);
  for (int64_t h = 0; h < heads; ++h) clear(partial_at(parts, h, rows, padded), rows, padded);
  for (int64_t key = first; key < end; key += kBlockKeys) {
    const int64_t count = std::min(kBlockKeys, end - key);
    const int32_t* slots = request.slots + key;
    for (int64_t h = 0; h < heads; ++h) {
      // Rows past the end repeat the last key: they are masked out, and their weights are zero.
      const Cache *keys[kBlockKeys], *values[kBlockKeys], *next[kBlockKeys];
      // The next head of this block, or the first of the next block; at a chunk's end some that are there anyway.
      const bool is_last = h + 1 == heads;
      const int64_t ahead = is_last ? std::min(kBlockKeys, end - 1 - key) : 0;
      const Cache* next_head = t.k + (is_last ? task.head : task.head + h + 1) * dim;
      for (int64_t i = 0; i < kBlockKeys; ++i) {
        const int64_t slot = slots[std::min(i, count - 1)];
        next[i] = next_head + slots[std::min(ahead + i, end - 1 - key)] * t.k_stride;
        keys[i] = t.k + slot * t.k_stride + (task.head + h) * dim;
        values[i] = t.v + slot * t.v_stride + (task.head + h) * dim;
      }
      const Partial part = partial_at(parts, h, rows, padded);
      gather_keys(keys, values, dim, s.keys.data());
      multiply<Store::kOverwrite>(
          s.query.data() + h * rows * dim, dim, rows,
          [&](int64_t j) { return StridedRows{s.keys.data() + j, kBlockKeys}; }, s.scores.data(), kBlockKeys);
      softmax_block(s.scores.data(), part, shape, request, task.row, task.rows, key, count);
      if constexpr (std::is_same_v<Cache, float>) {
        if (dim == padded) {
          // With many rows each tile would fetch the next keys again.
          if (rows <= kStepRows)
            multiply<Store::kAdd>(s.scores.data(), kBlockKeys, rows,
                                  [&](int64_t j) { return ScatteredRowsBefore{values, next, j}; }, part.rows, padded);
          else
            multiply<Store::kAdd>(s.scores.data(), kBlockKeys, rows,
                                  [&](int64_t j) { return ScatteredRows{values, j}; }, part.rows, padded);
          continue;
        }
      }
      gather_values(values, next, dim, padded, s.values.data());
      multiply<Store::kAdd>(s.scores.data(), kBlockKeys, rows,
                            [&](int64_t j) { return StridedRows{s.values.data() + j, padded}; }, part.rows, padded);
    }
  }
}

template <typename T, typename Cache>
inline void write_output(const AttentionTensors<T, Cache>& t, const AttentionShape& shape, const Request& request,
                         int64_t kv_head, int64_t first_row, int64_t rows, const Partial& part) {
  const int64_t group = shape.group();
  for (int64_t m = 0; m < rows * group; ++m) {
    T* out = t.o + (request.first_row + first_row + m / group) * t.o_stride + (kv_head * group + m % group) * shape.dim;
    const float scale = 1.0f / part.sums[m];
    for (int64_t d = 0; d < shape.dim; ++d) out[d] = from_float<T>(part.rows[m * shape.padded() + d] * scale);
  }
}

template <typename T, typename Cache>
inline void run_task(const AttentionTensors<T, Cache>& t, const AttentionShape& shape, const AttentionPlan& plan,
                     const AttentionTask& task, AttentionScratch& s, float* partials) {
  const Request& request = plan.requests[task.request];
  const int64_t group = shape.group(), rows = task.rows * group, padded = shape.padded();
  const int64_t heads = task.end_head - task.head;
  s.reserve(rows, heads, shape);
  for (int64_t h = 0; h < heads; ++h)
    for (int64_t m = 0; m < rows; ++m) {
      const T* q = t.q + (request.first_row + task.row + m / group) * t.q_stride +
                   ((task.head + h) * group + m % group) * shape.dim;
      float* out = s.query.data() + (h * rows + m) * shape.dim;
      for (int64_t d = 0; d < shape.dim; ++d) out[d] = to_float(q[d]);
    }
  if (task.partial >= 0) {
    attend_chunk(t, shape, request, task, task.chunk, s, partials + task.partial);
    return;
  }
  for (int64_t h = 0; h < heads; ++h) clear(partial_at(s.merged.data(), h, rows, padded), rows, padded);
  for (int64_t chunk = task.chunk; chunk < task.end_chunk; ++chunk) {
    attend_chunk(t, shape, request, task, chunk, s, s.chunk.data());
    for (int64_t h = 0; h < heads; ++h)
      merge(partial_at(s.merged.data(), h, rows, padded), partial_at(s.chunk.data(), h, rows, padded), rows, padded);
  }
  for (int64_t h = 0; h < heads; ++h)
    write_output(t, shape, request, task.head + h, task.row, task.rows, partial_at(s.merged.data(), h, rows, padded));
}

// Merges the chunks of a request whose chunks were shared out.
template <typename T, typename Cache>
inline void merge_chunks(const AttentionTensors<T, Cache>& t, const AttentionShape& shape, const Request& request,
                         AttentionScratch& s, float* partials) {
  const int64_t rows = request.rows * shape.group(), padded = shape.padded();
  s.reserve(rows, 1, shape);
  const Partial merged = partial_at(s.merged.data(), 0, rows, padded);
  for (int64_t h = 0; h < shape.kv_heads; ++h) {
    clear(merged, rows, padded);
    for (int64_t c = 0; c < request.chunks; ++c)
      merge(merged, partial_at(partials + request.partials, c * shape.kv_heads + h, rows, padded), rows, padded);
    write_output(t, shape, request, h, 0, request.rows, merged);
  }
}

// `partials` has room for plan.partial_floats.
template <typename T, typename Cache>
inline void attention(Team::Member& team, const AttentionPlan& plan, const AttentionShape& shape,
                      const AttentionTensors<T, Cache>& t, float* partials) {
  team.run(plan.tasks.size(), [&](int64_t i) {
    thread_local AttentionScratch s;
    run_task(t, shape, plan, plan.tasks[i], s, partials);
  });
  if (plan.shared.empty()) return;
  team.run_ranges(plan.shared.size(), 4, [&](int64_t begin, int64_t end) {
    thread_local AttentionScratch s;
    for (int64_t i = begin; i < end; ++i) merge_chunks(t, shape, plan.requests[plan.shared[i]], s, partials);
  });
}

}  // namespace nightjar
