// A stack of Llama decoder layers as one call: no Python and no tensor bookkeeping between the layers.
#pragma once

#include <vector>

#include "attention.h"
#include "product.h"
#include "rows.h"

namespace nightjar {

struct LlamaLayer {
  const float* input_norm;
  PackedWeight qkv, o;
  const float* post_norm;
  PackedWeight gate_up, down;
  // float or BFloat16, as the stack says.
  void *k_cache, *v_cache;
};

struct LlamaStack {
  std::vector<LlamaLayer> layers;
  AttentionShape attention;
  int64_t hidden, intermediate;
  bool bfloat16_cache;
  // Elements from one slot of the cache to the next.
  int64_t slot_stride;
  // [max_position][rotary]: cosines, then sines.
  const float* cos_sin;
  int64_t rotary;
  bool neox;
  float eps;
};

// What changes from batch to batch.
struct LlamaBatch {
  int64_t rows;
  const int64_t* positions;
  // Slot of the cache that each row's key and value go to.
  const int64_t* slots;
  const AttentionPlan* plan;
  // The first layer's input to its qkv product, if it is not the norm of the residual (EAGLE-3); else null.
  const float* first_input;
  // Copies of the residual before these layers, side by side: captured[row][capture.size() * hidden].
  std::vector<int64_t> capture;
  float* captured;
};

namespace detail {

template <typename Cache>
inline void store_row(const float* row, int64_t width, Cache* out) {
  for (int64_t i = 0; i < width; ++i) out[i] = from_float<Cache>(row[i]);
}

// Rotates queries and keys in place and puts keys and values into the cache.
template <typename Cache>
inline void rotate_and_store(Team::Member& team, const LlamaStack& s, const LlamaLayer& layer, const LlamaBatch& batch, float* qkv,
                             int64_t width) {
  const int64_t heads = s.attention.heads, kv_heads = s.attention.kv_heads, dim = s.attention.dim;
  team.run_ranges(batch.rows, rows_per_task(width), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      float* row = qkv + r * width;
      const float* angles = s.cos_sin + batch.positions[r] * s.rotary;
      for (int64_t h = 0; h < heads + kv_heads; ++h) rotate_head(row + h * dim, angles, s.rotary, s.neox);
      const float* key = row + heads * dim;
      const int64_t slot = batch.slots[r] * s.slot_stride;
      store_row(key, kv_heads * dim, static_cast<Cache*>(layer.k_cache) + slot);
      store_row(key + kv_heads * dim, kv_heads * dim, static_cast<Cache*>(layer.v_cache) + slot);
    }
  });
}

// From qkv [rows][qkv_width] to attended [rows][heads * dim]; new keys and values enter the cache on the way.
template <typename Cache>
inline void attend(Team::Member& team, const LlamaStack& s, const LlamaLayer& layer, const LlamaBatch& batch, float* qkv,
                   int64_t qkv_width, float* attended, float* partials) {
  rotate_and_store<Cache>(team, s, layer, batch, qkv, qkv_width);
  const AttentionTensors<float, Cache> tensors{
      qkv,           qkv_width,     static_cast<Cache*>(layer.k_cache), static_cast<Cache*>(layer.v_cache),
      s.slot_stride, s.slot_stride, attended,                           s.attention.heads * s.attention.dim};
  attention(team, *batch.plan, s.attention, tensors, partials);
}

}  // namespace detail

// Calls of Team::Member::run() per layer, or more.
constexpr size_t kPhasesPerLayer = 12;

// What lies between the products of a layer.
struct LlamaScratch {
  LlamaScratch(const LlamaStack& s, const LlamaBatch& batch)
      : q_width(s.attention.heads * s.attention.dim),
        qkv_width(q_width + 2 * s.attention.kv_heads * s.attention.dim),
        normed(batch.rows * s.hidden),
        qkv(batch.rows * qkv_width),
        attended(batch.rows * q_width),
        gate_up(batch.rows * 2 * s.intermediate),
        activated(batch.rows * s.intermediate),
        partials(batch.plan->partial_floats) {}

  const int64_t q_width, qkv_width;
  const AlignedFloats normed, qkv, attended, gate_up, activated, partials;
};

// residual [rows][hidden]: the layers' input on entry, the sum of it and of all layers' outputs on return.
inline void llama_layers(Team::Member& team, const LlamaStack& s, const LlamaBatch& batch, float* residual,
                         const LlamaScratch& scratch) {
  const int64_t rows = batch.rows, hidden = s.hidden, q_width = scratch.q_width, qkv_width = scratch.qkv_width;
  const AlignedFloats &normed = scratch.normed, &qkv = scratch.qkv, &attended = scratch.attended;
  const AlignedFloats &gate_up = scratch.gate_up, &activated = scratch.activated, &partials = scratch.partials;
  size_t captured = 0;
  for (size_t i = 0; i < s.layers.size(); ++i) {
    const LlamaLayer& layer = s.layers[i];
    if (captured < batch.capture.size() && batch.capture[captured] == static_cast<int64_t>(i)) {
      const int64_t width = batch.capture.size() * hidden;
      team.run_ranges(rows, rows_per_task(hidden), [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r)
          std::copy_n(residual + r * hidden, hidden, batch.captured + r * width + captured * hidden);
      });
      ++captured;
    }
    const float* input = normed.data();
    int64_t input_width = hidden;
    if (i == 0 && batch.first_input != nullptr) {
      input = batch.first_input;
      input_width = layer.qkv.in;
    } else {
      rms_norm(team, residual, hidden, layer.input_norm, normed.data(), hidden, rows, hidden, s.eps);
    }
    linear<Store::kOverwrite>(team, input, input_width, rows, layer.qkv, nullptr, qkv.data(), qkv_width);
    if (s.bfloat16_cache) {
      detail::attend<BFloat16>(team, s, layer, batch, qkv.data(), qkv_width, attended.data(), partials.data());
    } else {
      detail::attend<float>(team, s, layer, batch, qkv.data(), qkv_width, attended.data(), partials.data());
    }
    linear<Store::kAdd>(team, attended.data(), q_width, rows, layer.o, nullptr, residual, hidden);
    rms_norm(team, residual, hidden, layer.post_norm, normed.data(), hidden, rows, hidden, s.eps);
    linear<Store::kOverwrite>(team, normed.data(), hidden, rows, layer.gate_up, nullptr, gate_up.data(),
                              2 * s.intermediate);
    silu_and_mul(team, gate_up.data(), activated.data(), rows, s.intermediate);
    linear<Store::kAdd>(team, activated.data(), s.intermediate, rows, layer.down, nullptr, residual, hidden);
  }
}

// The same, with a team of its own.
inline void llama_forward(const LlamaStack& s, const LlamaBatch& batch, float* residual) {
  const LlamaScratch scratch(s, batch);
  Team::parallel(s.layers.size() * kPhasesPerLayer, true,
                 [&](Team::Member& team) { llama_layers(team, s, batch, residual, scratch); });
}

}  // namespace nightjar
