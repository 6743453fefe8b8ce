// The division of a batch's attention into tasks. It depends on lengths only, so that a stack of layers shares it.
#pragma once

#include <vector>

#include "tile.h"

namespace nightjar {

constexpr int64_t kBlockKeys = 64;
constexpr int64_t kChunkKeys = 128;
// Rows, times query heads per kv head, that a task works on at once.
constexpr int64_t kTaskRows = 96;

struct AttentionShape {
  int64_t heads, kv_heads, dim;
  float scaling, logit_cap;
  // Keys that a row sees, itself included; 0: all.
  int64_t window;

  int64_t group() const { return heads / kv_heads; }
  // Head dimension rounded up to whole tiles.
  int64_t padded() const { return (dim + kPanelColumns - 1) / kPanelColumns * kPanelColumns; }
};

// Floats that a partial result takes (attention_data.h), in whole cache lines.
inline int64_t partial_size(int64_t rows, int64_t padded) { return rows * padded + (2 * rows + 15) / 16 * 16; }

// One request's part of the batch: `rows` new rows from row `first_row` of the query, at the end of `length` positions.
struct Request {
  const int32_t* slots;
  int64_t first_row, rows, length;
  // If its chunks are shared out: how many there are, and where their partial results begin, [chunk][kv_head].
  int64_t chunks = 0, partials = 0;

  int64_t position(int64_t row) const { return length - rows + row; }
};

// A unit of work: rows [row, row + rows) of a request, kv heads [head, end_head), chunks [chunk, end_chunk).
struct AttentionTask {
  int64_t request, row, rows, head, end_head, chunk, end_chunk;
  // Where the partial result goes (an offset in floats), or -1: straight to the output.
  int64_t partial;
};

struct AttentionPlan {
  std::vector<Request> requests;
  std::vector<AttentionTask> tasks;
  // Requests whose chunks are shared out, and the room for their partial results.
  std::vector<int64_t> shared;
  int64_t partial_floats = 0;

  AttentionPlan(std::vector<Request> batch, const AttentionShape& shape, int64_t threads) : requests(std::move(batch)) {
    int64_t chunks = 0;
    for (const Request& request : requests) chunks += (request.length + kChunkKeys - 1) / kChunkKeys;
    // All kv heads of a token lie side by side in the cache, so one task for all reads memory in order. Only a small
    // batch needs its heads apart to keep every thread busy.
    const int64_t heads_per_task = chunks >= 4 * threads ? shape.kv_heads : 1;
    for (size_t r = 0; r < requests.size(); ++r) {
      if (requests[r].rows == 0) continue;
      if (requests[r].rows * shape.group() <= kTaskRows / 2) {
        share_chunks(r, shape, heads_per_task);
      } else {
        share_rows(r, shape);
      }
    }
  }

 private:
  static int64_t first_chunk(const Request& request, int64_t row, const AttentionShape& shape) {
    if (shape.window == 0) return 0;
    return std::max<int64_t>(0, request.position(row) - shape.window + 1) / kChunkKeys;
  }

  // Few rows, as in decoding and verification: the keys are what there is to share out.
  void share_chunks(int64_t r, const AttentionShape& shape, int64_t heads_per_task) {
    Request& request = requests[r];
    const int64_t begin = first_chunk(request, 0, shape);
    const int64_t chunks = (request.length + kChunkKeys - 1) / kChunkKeys - begin;
    const int64_t part = partial_size(request.rows * shape.group(), shape.padded());
    if (chunks > 1) {
      request.chunks = chunks;
      request.partials = partial_floats;
      partial_floats += chunks * shape.kv_heads * part;
      shared.push_back(r);
    }
    for (int64_t c = 0; c < chunks; ++c)
      for (int64_t h = 0; h < shape.kv_heads; h += heads_per_task) {
        const int64_t partial = chunks > 1 ? request.partials + (c * shape.kv_heads + h) * part : -1;
        tasks.push_back({r, 0, request.rows, h, h + heads_per_task, begin + c, begin + c + 1, partial});
      }
  }

  // Many rows, as in prefill: share out rows and heads; a task walks over all chunks that its rows see.
  void share_rows(int64_t r, const AttentionShape& shape) {
    const Request& request = requests[r];
    const int64_t most = std::max<int64_t>(1, kTaskRows / shape.group());
    const int64_t parts = (request.rows + most - 1) / most;
    for (int64_t p = 0; p < parts; ++p) {
      const int64_t row = request.rows * p / parts, end = request.rows * (p + 1) / parts;
      const int64_t last = request.position(end - 1) / kChunkKeys;
      for (int64_t h = 0; h < shape.kv_heads; ++h)
        tasks.push_back({r, row, end - row, h, h + 1, first_chunk(request, row, shape), last + 1, -1});
    }
  }
};

}  // namespace nightjar
