// Causal attention over a KV cache with page size 1, reached through req_to_token.
//
// Decode, verification, draft-extend and prefill are one algorithm: the new rows are the last `rows` positions of each
// request, and their keys and values are already in the cache. Keys are taken in chunks of kChunkKeys, each chunk in
// blocks of kBlockKeys with an online softmax (Milakov and Gimelshein 2018; FlashAttention, Dao et al. 2022), and the
// chunks' partial results are merged in order (Flash-Decoding). Chunk and block borders are fixed positions of the
// request, so a row's result is the same bit by bit however the rows are batched or spread over threads.
#pragma once

#include <ATen/Parallel.h>

#include <vector>

#include "tile.h"

namespace nightjar {

constexpr int64_t kBlockKeys = 64;
constexpr int64_t kChunkKeys = 128;
// Rows (times query heads per kv head) that a task works on at once.
constexpr int64_t kTaskRows = 96;

struct AttentionShape {
  int64_t heads, kv_heads, dim;
  float scaling, logit_cap;
  // Keys that a row sees, itself included; 0: all.
  int64_t window;

  int64_t group() const { return heads / kv_heads; }
  // Head dimension rounded up to whole tiles.
  int64_t padded() const { return (dim + kTileColumns - 1) / kTileColumns * kTileColumns; }
};

// One request's part of the batch: `rows` new rows from row `first_row` of the query, at the end of `length` positions.
struct Request {
  const int32_t* slots;
  int64_t first_row, rows, length;

  int64_t position(int64_t row) const { return length - rows + row; }
};

// A unit of work: rows [row, row + rows) of a request for one kv head, over chunks [chunk, end_chunk).
struct AttentionTask {
  int32_t request, kv_head;
  int64_t row, rows, chunk, end_chunk;
  // Where the result goes: a slot for a partial result, or -1 for straight to the output.
  int64_t partial;
};

// The division of a batch into tasks. It depends on lengths only, so a whole stack of layers shares it.
struct AttentionPlan {
  std::vector<Request> requests;
  std::vector<AttentionTask> tasks;
  // Partial results: for each, a task's group * rows maxima and sums, then as many accumulated rows.
  int64_t partials = 0;
  // Partial slots of (request, kv_head) follow each other from first_partial[request * kv_heads + kv_head].
  std::vector<int64_t> first_partial, partial_count;

  AttentionPlan(std::vector<Request> batch, const AttentionShape& shape) : requests(std::move(batch)) {
    const int64_t group = shape.group();
    first_partial.assign(requests.size() * shape.kv_heads, 0);
    partial_count.assign(requests.size() * shape.kv_heads, 0);
    for (size_t r = 0; r < requests.size(); ++r) {
      const Request& request = requests[r];
      if (request.rows == 0) continue;
      if (request.rows * group <= kTaskRows / 2) {
        split_by_chunk(static_cast<int32_t>(r), shape);
      } else {
        split_by_rows(static_cast<int32_t>(r), shape);
      }
    }
  }

 private:
  int64_t first_chunk(const Request& request, int64_t row, const AttentionShape& shape) const {
    if (shape.window == 0) return 0;
    return std::max<int64_t>(0, request.position(row) - shape.window + 1) / kChunkKeys;
  }

  // Few rows, as in decoding: the keys are what there is to share out. Heads of a chunk are neighbours in memory.
  void split_by_chunk(int32_t r, const AttentionShape& shape) {
    const Request& request = requests[r];
    const int64_t begin = first_chunk(request, 0, shape);
    const int64_t chunks = (request.length + kChunkKeys - 1) / kChunkKeys - begin;
    for (int64_t c = 0; c < chunks; ++c)
      for (int64_t h = 0; h < shape.kv_heads; ++h)
        tasks.push_back({r, static_cast<int32_t>(h), 0, request.rows, begin + c, begin + c + 1,
                         chunks == 1 ? -1 : partials + h * chunks + c});
    if (chunks == 1) return;
    for (int64_t h = 0; h < shape.kv_heads; ++h) {
      first_partial[r * shape.kv_heads + h] = partials + h * chunks;
      partial_count[r * shape.kv_heads + h] = chunks;
    }
    partials += chunks * shape.kv_heads;
  }

  // Many rows, as in prefill: share out rows; a task walks over all chunks that its rows see.
  void split_by_rows(int32_t r, const AttentionShape& shape) {
    const Request& request = requests[r];
    const int64_t most = std::max<int64_t>(1, kTaskRows / shape.group());
    const int64_t parts = (request.rows + most - 1) / most;
    // The last rows see the most keys: they come first, so that no thread ends with the longest task.
    for (int64_t p = parts - 1; p >= 0; --p) {
      const int64_t row = request.rows * p / parts, end = request.rows * (p + 1) / parts;
      const int64_t last = request.position(end - 1) / kChunkKeys;
      for (int64_t h = 0; h < shape.kv_heads; ++h)
        tasks.push_back({r, static_cast<int32_t>(h), row, end - row, first_chunk(request, row, shape), last + 1, -1});
    }
  }
};

// Scratch memory of one thread.
struct AttentionScratch {
  std::vector<float> query, keys, values, scores, accumulated, merged, maxima, sums, merged_maxima, merged_sums;

  void reserve(int64_t rows, const AttentionShape& shape) {
    const int64_t padded = shape.padded();
    query.resize(rows * shape.dim);
    keys.resize(shape.dim * kBlockKeys);
    values.resize(kBlockKeys * padded);
    scores.resize(rows * kBlockKeys);
    accumulated.resize(rows * padded);
    merged.resize(rows * padded);
    for (auto* v : {&maxima, &sums, &merged_maxima, &merged_sums}) v->resize(rows);
  }
};

// A partial softmax over some keys: largest score, sum of exponentials relative to it, weighted sum of values.
struct Partial {
  float *maxima, *sums, *rows;
};

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

inline void clear(const Partial& p, int64_t rows, int64_t padded) {
  std::fill_n(p.maxima, rows, kMinusInfinity);
  std::fill_n(p.sums, rows, 0.0f);
  std::fill_n(p.rows, rows * padded, 0.0f);
}

// q, o: [rows][heads][dim] of type T with row strides; k, v: [slots][kv_heads][dim] of type T with slot strides.
template <typename T>
struct AttentionTensors {
  const T* q;
  int64_t q_stride;
  const T *k, *v;
  int64_t k_stride, v_stride;
  T* o;
  int64_t o_stride;
};

// Copies a block of keys, transposed to [dim][kBlockKeys], and its values, as [kBlockKeys][padded]. Missing keys are 0.
template <typename T>
inline void gather_block(const AttentionTensors<T>& t, const AttentionShape& shape, const int32_t* slots, int64_t count,
                         int64_t kv_head, float* keys, float* values) {
  const int64_t dim = shape.dim, padded = shape.padded();
  for (int64_t i = 0; i < kBlockKeys; ++i) {
    float* value = values + i * padded;
    if (i >= count) {
      for (int64_t d = 0; d < dim; ++d) keys[d * kBlockKeys + i] = 0.0f;
      std::fill_n(value, padded, 0.0f);
      continue;
    }
    const T* k = t.k + slots[i] * t.k_stride + kv_head * dim;
    const T* v = t.v + slots[i] * t.v_stride + kv_head * dim;
    for (int64_t d = 0; d < dim; ++d) keys[d * kBlockKeys + i] = to_float(k[d]);
    for (int64_t d = 0; d < dim; ++d) value[d] = to_float(v[d]);
    for (int64_t d = dim; d < padded; ++d) value[d] = 0.0f;
  }
}

// Scores of a block become weights exp(score - maximum); the accumulated rows are rescaled to the new maximum.
inline void softmax_block(float* scores, const Partial& part, const AttentionShape& shape, const Request& request,
                          int64_t first_row, int64_t rows, int64_t first_key, int64_t count) {
  const int64_t group = shape.group(), padded = shape.padded();
  for (int64_t m = 0; m < rows * group; ++m) {
    float* row = scores + m * kBlockKeys;
    const int64_t position = request.position(first_row + m / group);
    // Visible keys of this block: [low, high).
    const int64_t high = std::min(count, position + 1 - first_key);
    const int64_t low = shape.window > 0 ? std::max<int64_t>(0, position + 1 - shape.window - first_key) : 0;
    Vec best = broadcast(kMinusInfinity);
    for (int64_t i = 0; i < kBlockKeys; i += kLanes) {
      Vec s = load(row + i) * shape.scaling;
      if (shape.logit_cap > 0)
        for (int lane = 0; lane < kLanes; ++lane) s[lane] = shape.logit_cap * std::tanh(s[lane] / shape.logit_cap);
      if (i < low || i + kLanes > high)
        for (int lane = 0; lane < kLanes; ++lane)
          if (i + lane < low || i + lane >= high) s[lane] = kMinusInfinity;
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
    if (before != most) {
      const float keep = before == kMinusInfinity ? 0.0f : exp(before - most);
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

// c[rows][columns] (+)= a[rows][depth] b[depth][columns], columns a multiple of kTileColumns.
template <Store kStore>
inline void multiply(const float* a, int64_t lda, int64_t rows, const float* b, int64_t columns, int64_t depth, float* c) {
  for (int64_t j = 0; j < columns; j += kTileColumns)
    for (int64_t m = 0; m < rows; m += kTileRows)
      tile_rows<kStore>(std::min<int64_t>(kTileRows, rows - m), a + m * lda, lda, b + j, columns, depth,
                        c + m * columns + j, columns);
}

// One chunk of keys for a task's rows, into `part`.
template <typename T>
inline void attend_chunk(const AttentionTensors<T>& t, const AttentionShape& shape, const Request& request,
                         const AttentionTask& task, int64_t chunk, AttentionScratch& s, const Partial& part) {
  const int64_t rows = task.rows * shape.group();
  const int64_t end = std::min({(chunk + 1) * kChunkKeys, request.length, request.position(task.row + task.rows - 1) + 1});
  clear(part, rows, shape.padded());
  for (int64_t key = chunk * kChunkKeys; key < end; key += kBlockKeys) {
    const int64_t count = std::min(kBlockKeys, end - key);
    gather_block(t, shape, request.slots + key, count, task.kv_head, s.keys.data(), s.values.data());
    multiply<Store::kOverwrite>(s.query.data(), shape.dim, rows, s.keys.data(), kBlockKeys, shape.dim, s.scores.data());
    softmax_block(s.scores.data(), part, shape, request, task.row, task.rows, key, count);
    multiply<Store::kAdd>(s.scores.data(), kBlockKeys, rows, s.values.data(), shape.padded(), kBlockKeys, part.rows);
  }
}

template <typename T>
inline void write_output(const AttentionTensors<T>& t, const AttentionShape& shape, const Request& request,
                         int64_t kv_head, int64_t first_row, int64_t rows, const Partial& part) {
  const int64_t group = shape.group();
  for (int64_t m = 0; m < rows * group; ++m) {
    T* out = t.o + (request.first_row + first_row + m / group) * t.o_stride + (kv_head * group + m % group) * shape.dim;
    const float scale = 1.0f / part.sums[m];
    for (int64_t d = 0; d < shape.dim; ++d) out[d] = from_float<T>(part.rows[m * shape.padded() + d] * scale);
  }
}

template <typename T>
inline void attention(const AttentionPlan& plan, const AttentionShape& shape, const AttentionTensors<T>& t) {
  const int64_t padded = shape.padded(), group = shape.group();
  const int64_t partial_size = kTaskRows * (padded + 2);
  std::vector<float> partials(plan.partials * partial_size);
  const auto partial = [&](int64_t i) {
    float* base = partials.data() + i * partial_size;
    return Partial{base, base + kTaskRows, base + 2 * kTaskRows};
  };
  at::parallel_for(0, plan.tasks.size(), 1, [&](int64_t begin, int64_t end) {
    thread_local AttentionScratch s;
    for (int64_t i = begin; i < end; ++i) {
      const AttentionTask& task = plan.tasks[i];
      const Request& request = plan.requests[task.request];
      const int64_t rows = task.rows * group;
      s.reserve(std::max(rows, kTaskRows), shape);
      for (int64_t m = 0; m < rows; ++m) {
        const T* q = t.q + (request.first_row + task.row + m / group) * t.q_stride +
                     (task.kv_head * group + m % group) * shape.dim;
        for (int64_t d = 0; d < shape.dim; ++d) s.query[m * shape.dim + d] = to_float(q[d]);
      }
      if (task.partial >= 0) {
        attend_chunk(t, shape, request, task, task.chunk, s, partial(task.partial));
        continue;
      }
      const Partial merged{s.merged_maxima.data(), s.merged_sums.data(), s.merged.data()};
      const Partial part{s.maxima.data(), s.sums.data(), s.accumulated.data()};
      clear(merged, rows, padded);
      for (int64_t chunk = task.chunk; chunk < task.end_chunk; ++chunk) {
        attend_chunk(t, shape, request, task, chunk, s, part);
        merge(merged, part, rows, padded);
      }
      write_output(t, shape, request, task.kv_head, task.row, task.rows, merged);
    }
  });
  if (plan.partials == 0) return;
  at::parallel_for(0, plan.partial_count.size(), 16, [&](int64_t begin, int64_t end) {
    thread_local AttentionScratch s;
    for (int64_t i = begin; i < end; ++i) {
      if (plan.partial_count[i] == 0) continue;
      const Request& request = plan.requests[i / shape.kv_heads];
      const int64_t rows = request.rows * group;
      s.reserve(kTaskRows, shape);
      const Partial merged{s.merged_maxima.data(), s.merged_sums.data(), s.merged.data()};
      clear(merged, rows, padded);
      for (int64_t c = 0; c < plan.partial_count[i]; ++c) merge(merged, partial(plan.first_partial[i] + c), rows, padded);
      write_output(t, shape, request, i % shape.kv_heads, 0, request.rows, merged);
    }
  });
}

}  // namespace nightjar
