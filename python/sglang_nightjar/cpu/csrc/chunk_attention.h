// A chunk of keys, in blocks with an online softmax. Block borders, like those of chunks, are fixed positions.
#pragma once

#include "ahead.h"
#include "attention_data.h"
#include "tile.h"

namespace nightjar {

// About how many cycles kLanes scores take to be summed up, a row of scores to become weights.
constexpr float kSumCycles = 2 * kLanes, kSoftmaxCycles = 100;

// Rows of B while whose use the cache's next rows are fetched.
template <typename Rows>
struct RowsWithAhead {
  Rows rows;
  Ahead& ahead;
  const float* operator()(int64_t k) const { return rows(k); }
  static constexpr int64_t every = 8;
  void used(float cycles) const { ahead.spend(cycles); }
};

class ChunkAttention {
 public:
  // The chunk's keys for all heads of a task, into its partial results at `parts`; query: [heads][rows * group][dim].
  template <typename T, typename Cache>
  void attend(const AttentionTensors<T, Cache>& t, const AttentionShape& shape, const Request& request,
              const AttentionTask& task, const Chunk& chunk, const float* query, float* parts) {
    const int64_t dim = shape.dim, padded = shape.padded(), rows = task.rows * shape.group();
    const int64_t heads = task.end_head - task.head;
    values_.reserve(kBlockKeys * padded);
    scores_.reserve(rows * kBlockKeys);
    for (int64_t h = 0; h < heads; ++h) clear(partial_at(parts, h, rows, padded), rows, padded);
    for (int64_t begin = 0; begin < chunk.count; begin += kBlockKeys) {
      const int64_t count = std::min(kBlockKeys, chunk.count - begin), rest = chunk.count - begin - count;
      // Whole vectors of keys: past the end the last one stands again, masked out and with a weight of zero.
      const int64_t columns = (count + kPanelColumns - 1) / kPanelColumns * kPanelColumns;
      const Cache *keys[kBlockKeys], *values[kBlockKeys];
      for (int64_t i = 0; i < columns; ++i) {
        const int64_t slot = chunk.slots[begin + std::min(i, count - 1)];
        keys[i] = t.k + slot * t.k_stride + task.head * dim;
        values[i] = t.v + slot * t.v_stride + task.head * dim;
      }
      const float products = rows * dim * (columns + count) / kLanes / 2;
      const float work = heads * (rows * (columns / kLanes * kSumCycles + kSoftmaxCycles) + products);
      const int64_t next_head = rest > 0 ? task.head : chunk.next_head;
      Ahead ahead(t, next_head * dim, heads * dim, rest > 0 ? chunk.slots + begin + count : chunk.next_slots,
                  std::min(kBlockKeys, rest > 0 ? rest : chunk.next_count), work);
      for (int64_t h = 0; h < heads; ++h) {
        const Partial part = partial_at(parts, h, rows, padded);
        score(query + h * rows * dim, rows, dim, keys, h * dim, columns, ahead);
        softmax(part, shape, request, task.row, task.rows, chunk.first + begin, count, columns, ahead);
        const auto add_values = [&](auto rows_at) {
          add_product(scores_.data(), kBlockKeys, count, rows, rows_at, part.rows, padded, padded);
        };
        if constexpr (std::is_same_v<Cache, float>) {
          if (dim == padded) {
            add_values([&](int64_t j) { return RowsWithAhead<ScatteredRows>{{values, h * dim + j}, ahead}; });
            continue;
          }
        }
        gather_values(values, h * dim, count, dim, padded);
        add_values([&](int64_t j) { return RowsWithAhead<StridedRows>{{values_.data() + j, padded}, ahead}; });
      }
    }
  }

 private:
  // Scores of `columns` keys, [rows][kBlockKeys]; each key begins `shift` elements into its row. A row's scores do not
  // depend on the other rows. Keys are multiplied as they lie: to transpose them first took longer with few rows, and no
  // less with hundreds.
  template <typename Cache>
  void score(const float* query, int64_t rows, int64_t dim, const Cache* const* keys, int64_t shift, int64_t columns,
             Ahead& ahead) {
    const int64_t whole = dim / kLanes * kLanes;
    const float cycles = dim / 2.0f + kSumCycles;
    for (int64_t i = 0; i < columns; i += kLanes) {
      for (int64_t m = 0; m < rows; ++m) {
        const float* row = query + m * dim;
        Vec products[kLanes];
#pragma GCC unroll 16
        for (int j = 0; j < kLanes; ++j) products[j] = Vec{};
        for (int64_t d = 0; d < whole; d += kLanes) {
          const Vec q = held(load(row + d));
#pragma GCC unroll 16
          for (int j = 0; j < kLanes; ++j) products[j] += q * load_as_float(keys[i + j] + shift + d);
        }
        Vec total = sums(products);
        for (int64_t d = whole; d < dim; ++d) {
          Vec rest;
          for (int j = 0; j < kLanes; ++j) rest[j] = to_float(keys[i + j][shift + d]);
          total += rest * row[d];
        }
        store(scores_.data() + m * kBlockKeys + i, total);
        ahead.spend(cycles);
      }
    }
  }

  // Copies a block of values to [kBlockKeys][padded].
  template <typename Cache>
  void gather_values(const Cache* const* rows, int64_t shift, int64_t count, int64_t dim, int64_t padded) {
    for (int64_t i = 0; i < count; ++i) {
      float* out = values_.data() + i * padded;
      int64_t d = 0;
      for (; d + kLanes <= dim; d += kLanes) store(out + d, load_as_float(rows[i] + shift + d));
      for (; d < dim; ++d) out[d] = to_float(rows[i][shift + d]);
      for (; d < padded; ++d) out[d] = 0.0f;
    }
  }

  // Scores of a block become weights exp(score - maximum); the accumulated rows are rescaled to the new maximum.
  void softmax(const Partial& part, const AttentionShape& shape, const Request& request, int64_t first_row, int64_t rows,
               int64_t first_key, int64_t count, int64_t columns, Ahead& ahead) {
    const int64_t group = shape.group(), padded = shape.padded();
    const IntVec lanes = lane_numbers();
    for (int64_t m = 0; m < rows * group; ++m) {
      float* row = scores_.data() + m * kBlockKeys;
      ahead.spend(kSoftmaxCycles);
      const int64_t position = request.position(first_row + m / group);
      // Visible keys of this block: [low, high).
      const auto high = static_cast<int32_t>(std::clamp<int64_t>(position + 1 - first_key, 0, count));
      const auto low = static_cast<int32_t>(
          shape.window > 0 ? std::clamp<int64_t>(position + 1 - shape.window - first_key, 0, kBlockKeys) : 0);
      Vec best = broadcast(kMinusInfinity);
      for (int64_t i = 0; i < columns; i += kLanes) {
        Vec s = capped(load(row + i) * shape.scaling, shape.logit_cap);
        const IntVec key = lanes + static_cast<int32_t>(i);
        s = ((key >= low) & (key < high)) ? s : broadcast(kMinusInfinity);
        store(row + i, s);
        best = max(best, s);
      }
      const float before = part.maxima[m];
      const float most = std::max(before, max_of(best));
      if (most == kMinusInfinity) {
        std::fill_n(row, columns, 0.0f);
        continue;
      }
      Vec total{};
      for (int64_t i = 0; i < columns; i += kLanes) {
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

  // c[rows][columns] += a[rows][depth] b, columns [column, column + kVecs * kLanes).
  template <int kVecs, typename Rows>
  static void add_columns(const float* a, int64_t lda, int64_t depth, int64_t rows, Rows b, float* c, int64_t ldc) {
    constexpr int64_t kHeight = tile_height<kVecs>;
    for (int64_t m = 0; m < rows; m += kHeight)
      tile_rows<kVecs, Store::kAdd>(std::min(kHeight, rows - m), a + m * lda, lda, b, depth, c + m * ldc, ldc);
  }

  // The same for all columns; `rows_at(column)` is B from that column on. Wide tiles where they fit.
  template <typename RowsAt>
  static void add_product(const float* a, int64_t lda, int64_t depth, int64_t rows, RowsAt rows_at, float* c, int64_t ldc,
                          int64_t columns) {
    constexpr int kWide = 2 * kPanelVecs;
    int64_t j = 0;
    if (kLanes == 16 || rows <= tile_height<kWide>)
      for (; j + kWide * kLanes <= columns; j += kWide * kLanes)
        add_columns<kWide>(a, lda, depth, rows, rows_at(j), c + j, ldc);
    for (; j < columns; j += kPanelColumns)
      add_columns<kPanelVecs>(a, lda, depth, rows, rows_at(j), c + j, ldc);
  }

  AlignedFloats values_, scores_;
};

}  // namespace nightjar
