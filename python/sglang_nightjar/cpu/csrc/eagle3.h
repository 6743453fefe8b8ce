// One pass of an EAGLE-3 draft as one call: what its layers read, the layers, and its head for each request's last row.
//
// A pass reads 18 MB in the demo's draft, a third of a millisecond; tensor by tensor, each with threads that wake up and
// go to sleep, it took two to three times as long.
#pragma once

#include "llama.h"

namespace nightjar {

struct Eagle3 {
  const LlamaStack* stack;
  // The target's, [vocabulary][hidden].
  const float* embeddings;
  // In front of the first layer, of the token and of the state; and behind the last one.
  const float *input_norm, *hidden_norm, *norm;
  float input_eps, norm_eps;
  // States are carried on as the head reads them, and not as the layers leave them.
  bool norm_output;
  // `out` is the draft's vocabulary.
  PackedWeight head;
  // From the target's states, one of each captured layer side by side: a norm for each or none, and a product.
  std::vector<const float*> fc_norms;
  float fc_eps;
  PackedWeight fc;
  const float* fc_bias;
};

struct Eagle3Batch {
  const int64_t* tokens;
  // [rows][width]: the draft's own of `width` hidden, or the target's of `width` fc.in.
  const float* states;
  int64_t width;
  // Each request's last row.
  std::vector<int64_t> last;
};

// By request: logits [vocabulary], the state to carry on [hidden], the likeliest token and its probability.
struct Eagle3Result {
  float *logits, *carried;
  int64_t* drawn;
  float* chance;
};

namespace detail {

// The probability of element `best`, the largest, of a row of logits.
inline float chance_row(const float* x, int64_t width, int64_t best) {
  const Vec most = broadcast(x[best]);
  Vec sums{};
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) sums += exp(load(x + i) - most);
  float total = sum(sums);
  for (; i < width; ++i) total += exp(x[i] - x[best]);
  return 1.0f / total;
}

}  // namespace detail

// Keys and values of all rows enter the cache on the way.
inline void eagle3_forward(const Eagle3& e, const Eagle3Batch& batch, const LlamaBatch& rows_of, const Eagle3Result& result) {
  const LlamaStack& s = *e.stack;
  const int64_t rows = rows_of.rows, hidden = s.hidden, requests = batch.last.size(), vocabulary = e.head.out;
  const bool own = batch.width == hidden;
  const AlignedFloats residual(rows * hidden), first_input(rows * 2 * hidden), normed(requests * hidden);
  const AlignedFloats read(own || e.fc_norms.empty() ? 0 : rows * batch.width);
  const LlamaScratch scratch(s, rows_of);
  LlamaBatch layers = rows_of;
  layers.first_input = first_input.data();
  constexpr size_t kOwnPhases = 8;
  Team::parallel(s.layers.size() * kPhasesPerLayer + kOwnPhases, true, [&](Team::Member& team) {
    if (!own) {
      const float* states = batch.states;
      if (!e.fc_norms.empty()) {
        team.run_ranges(rows, rows_per_task(batch.width), [&](int64_t begin, int64_t end) {
          for (int64_t r = begin; r < end; ++r)
            for (size_t i = 0; i < e.fc_norms.size(); ++i) {
              const int64_t at = r * batch.width + i * hidden;
              rms_norm_row(batch.states + at, e.fc_norms[i], read.data() + at, hidden, e.fc_eps);
            }
        });
        states = read.data();
      }
      linear<Store::kOverwrite>(team, states, batch.width, rows, e.fc, e.fc_bias, residual.data(), hidden);
    }
    team.run_ranges(rows, rows_per_task(2 * hidden), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        float *state = residual.data() + r * hidden, *input = first_input.data() + r * 2 * hidden;
        if (own) std::copy_n(batch.states + r * hidden, hidden, state);
        rms_norm_row(e.embeddings + batch.tokens[r] * hidden, e.input_norm, input, hidden, e.input_eps);
        rms_norm_row(state, e.hidden_norm, input + hidden, hidden, s.eps);
      }
    });
    llama_layers(team, s, layers, residual.data(), scratch);
    team.run_ranges(requests, rows_per_task(hidden), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const float* state = residual.data() + batch.last[i] * hidden;
        rms_norm_row(state, e.norm, normed.data() + i * hidden, hidden, e.norm_eps);
        std::copy_n(e.norm_output ? normed.data() + i * hidden : state, hidden, result.carried + i * hidden);
      }
    });
    linear<Store::kOverwrite>(team, normed.data(), hidden, requests, e.head, nullptr, result.logits, vocabulary);
    team.run(requests, [&](int64_t i) {
      const float* logits = result.logits + i * vocabulary;
      result.drawn[i] = argmax_row(logits, vocabulary);
      result.chance[i] = detail::chance_row(logits, vocabulary, result.drawn[i]);
    });
  });
}

}  // namespace nightjar
