// Causal attention over a KV cache with page size 1, reached through req_to_token.
//
// Decode, verification, draft-extend and prefill are one algorithm: the new rows are the last `rows` positions of each
// request, and their keys and values are already in the cache. Keys are taken in chunks of kChunkKeys, and the chunks'
// partial results are merged in order (Flash-Decoding; Milakov and Gimelshein 2018; FlashAttention, Dao et al. 2022).
// Chunk borders are fixed positions of the request, so a row's result is the same bit by bit however the rows are
// batched or spread over threads.
#pragma once

#include "chunk_attention.h"
#include "team.h"

namespace nightjar {

// What one thread needs. Partial results of a task's heads follow each other.
struct AttentionScratch {
  AlignedFloats query, chunk, merged;
  ChunkAttention one_chunk;

  void reserve(int64_t rows, int64_t heads, const AttentionShape& shape) {
    query.reserve(heads * rows * shape.dim);
    chunk.reserve(heads * partial_size(rows, shape.padded()));
    merged.reserve(heads * partial_size(rows, shape.padded()));
  }
};

template <typename T>
inline void write_output(T* o, int64_t o_stride, const AttentionShape& shape, const Request& request, int64_t kv_head,
                         int64_t first_row, int64_t rows, const Partial& part) {
  const int64_t group = shape.group();
  for (int64_t m = 0; m < rows * group; ++m) {
    T* out = o + (request.first_row + first_row + m / group) * o_stride + (kv_head * group + m % group) * shape.dim;
    const float scale = 1.0f / part.sums[m];
    for (int64_t d = 0; d < shape.dim; ++d) out[d] = from_float<T>(part.rows[m * shape.padded() + d] * scale);
  }
}

// `next`: the task that this thread does after this one, or null.
template <typename T, typename Cache>
inline void run_task(const AttentionTensors<T, Cache>& t, const AttentionShape& shape, const AttentionPlan& plan,
                     const AttentionTask& task, const AttentionTask* next, AttentionScratch& s, float* partials) {
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
  const auto keys_of = [&](const AttentionTask& of, int64_t chunk) {
    const Request& owner = plan.requests[of.request];
    const int64_t first = chunk * kChunkKeys, end = owner.position(of.row + of.rows - 1) + 1;
    return Chunk{owner.slots + first, first, std::min(kChunkKeys, end - first), nullptr, 0, 0};
  };
  const auto attend = [&](int64_t number, float* parts) {
    Chunk chunk = keys_of(task, number);
    const bool last = number + 1 == task.end_chunk;
    if (!last || next != nullptr) {
      const Chunk coming = last ? keys_of(*next, next->chunk) : keys_of(task, number + 1);
      chunk.next_slots = coming.slots;
      chunk.next_count = coming.count;
      chunk.next_head = last ? next->head : task.head;
    }
    s.one_chunk.attend(t, shape, request, task, chunk, s.query.data(), parts);
  };
  if (task.partial >= 0) {
    attend(task.chunk, partials + task.partial);
    return;
  }
  for (int64_t h = 0; h < heads; ++h) clear(partial_at(s.merged.data(), h, rows, padded), rows, padded);
  for (int64_t chunk = task.chunk; chunk < task.end_chunk; ++chunk) {
    attend(chunk, s.chunk.data());
    for (int64_t h = 0; h < heads; ++h)
      merge(partial_at(s.merged.data(), h, rows, padded), partial_at(s.chunk.data(), h, rows, padded), rows, padded);
  }
  for (int64_t h = 0; h < heads; ++h)
    write_output(t.o, t.o_stride, shape, request, task.head + h, task.row, task.rows,
                 partial_at(s.merged.data(), h, rows, padded));
}

// Merges the chunks of a request whose chunks were shared out.
template <typename T>
inline void merge_chunks(T* o, int64_t o_stride, const AttentionShape& shape, const Request& request, AttentionScratch& s,
                         float* partials) {
  const int64_t rows = request.rows * shape.group(), padded = shape.padded();
  s.reserve(rows, 1, shape);
  const Partial merged = partial_at(s.merged.data(), 0, rows, padded);
  for (int64_t h = 0; h < shape.kv_heads; ++h) {
    clear(merged, rows, padded);
    for (int64_t c = 0; c < request.chunks; ++c)
      merge(merged, partial_at(partials + request.partials, c * shape.kv_heads + h, rows, padded), rows, padded);
    write_output(o, o_stride, shape, request, h, 0, request.rows, merged);
  }
}

// `partials` has room for plan.partial_floats and begins with a cache line.
template <typename T, typename Cache>
inline void attention(Team::Member& team, const AttentionPlan& plan, const AttentionShape& shape,
                      const AttentionTensors<T, Cache>& t, float* partials) {
  const int64_t tasks = plan.tasks.size();
  team.run_ahead(tasks, [&](int64_t i, int64_t next) {
    thread_local AttentionScratch s;
    run_task(t, shape, plan, plan.tasks[i], next < tasks ? &plan.tasks[next] : nullptr, s, partials);
  });
  if (plan.shared.empty()) return;
  team.run_ranges(plan.shared.size(), 4, [&](int64_t begin, int64_t end) {
    thread_local AttentionScratch s;
    for (int64_t i = begin; i < end; ++i)
      merge_chunks(t.o, t.o_stride, shape, plan.requests[plan.shared[i]], s, partials);
  });
}

}  // namespace nightjar
