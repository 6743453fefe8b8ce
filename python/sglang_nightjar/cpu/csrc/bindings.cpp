// The operators torch.ops.nightjar.*: checks of shapes and types around the kernels of the headers.
#include <ATen/ATen.h>
#include <sys/mman.h>
#include <torch/library.h>

#include <memory>

#include "eagle3.h"
#include "llama.h"
#include "noise.h"

namespace {

using at::Tensor;
using nightjar::Store;
using nightjar::Team;
using TensorList = std::vector<Tensor>;
using OptionalTensor = std::optional<Tensor>;

void check_rows(const Tensor& t, const char* name) {
  TORCH_CHECK(t.dim() >= 1 && t.is_contiguous() && t.scalar_type() == at::kFloat, name, " must be contiguous float32");
}

// True if a row-wise operation on `t` is worth more than one thread.
bool worth_it(const Tensor& t) { return t.numel() > nightjar::kParallelElements; }

const int64_t* int64_data(const Tensor& t, const char* name) {
  TORCH_CHECK(t.scalar_type() == at::kLong && t.is_contiguous(), name, " must be contiguous int64");
  return t.data_ptr<int64_t>();
}

// Memory on huge pages where the system has them: weights are read from front to back once per step, and with 4 KiB
// pages a step at batch 1 took a quarter longer.
Tensor huge_page_buffer(int64_t elements, at::ScalarType type) {
  constexpr size_t kHugePage = size_t{2} << 20;
  const size_t bytes = (elements * at::elementSize(type) + kHugePage - 1) / kHugePage * kHugePage;
  void* memory = std::aligned_alloc(kHugePage, std::max(bytes, kHugePage));
  TORCH_CHECK(memory != nullptr, "out of memory for ", bytes, " bytes of packed weights");
  madvise(memory, bytes, MADV_HUGEPAGE);
  return at::from_blob(memory, {elements}, [](void* p) { std::free(p); }, at::TensorOptions().dtype(type));
}

template <typename Weight, int64_t kSide = 1>
void pack(const Tensor& weight, Tensor& packed) {
  Team::parallel(1, true, [&](Team::Member& team) {
    nightjar::pack_weight<kSide>(team, static_cast<const Weight*>(weight.data_ptr()), weight.size(0), weight.size(1),
                          static_cast<Weight*>(packed.data_ptr()));
  });
}

nightjar::WeightType weight_type(const Tensor& weight) {
  switch (weight.scalar_type()) {
    case at::kFloat:
      return nightjar::WeightType::kFloat;
    case at::kBFloat16:
      return nightjar::WeightType::kBFloat16;
    case at::kHalf:
      return nightjar::WeightType::kFloat16;
    // A bfloat16, and a pair of them; only the kernels look inside.
    case at::kShort:
      return nightjar::WeightType::kTiles;
    case at::kInt:
      return nightjar::WeightType::kTilePairs;
    default:
      TORCH_CHECK(false, "no packed weights are of type ", weight.scalar_type());
  }
}

void check_weight(const Tensor& weight) {
  TORCH_CHECK(weight.dim() == 2 && weight.is_contiguous(), "weight must be contiguous [out, in]");
  TORCH_CHECK(weight.is_floating_point(), "weights must be float32, bfloat16 or float16, not ", weight.scalar_type());
}

Tensor pack_linear_weight(const Tensor& weight) {
  check_weight(weight);
  const nightjar::PackedWeight shape{nullptr, weight_type(weight), weight.size(0), weight.size(1)};
  Tensor packed = huge_page_buffer(shape.panels() * shape.in * nightjar::kPanelColumns, weight.scalar_type());
  switch (shape.type) {
    case nightjar::WeightType::kFloat:
      pack<float>(weight, packed);
      break;
    case nightjar::WeightType::kBFloat16:
      TORCH_CHECK(shape.in % 2 == 0, "bfloat16 weights of an odd depth, ", shape.in, ", can't be packed");
      pack<nightjar::BFloat16, 2>(weight, packed);
      break;
    case nightjar::WeightType::kFloat16:
      pack<nightjar::Float16>(weight, packed);
      break;
    default:
      break;
  }
  return packed.view({shape.panels(), shape.in, nightjar::kPanelColumns});
}

bool tiles_possible(int64_t depth) { return nightjar::tiles_possible(depth); }

// float32 [out, in] for tile registers: as pairs of bfloat16, or as bfloat16 where that holds every weight exactly.
Tensor pack_tiles(const Tensor& weight, bool pairs) {
  check_weight(weight);
  check_rows(weight, "weight");
  const nightjar::PackedWeight shape{nullptr, nightjar::WeightType::kTilePairs, weight.size(0), weight.size(1)};
  TORCH_CHECK(tiles_possible(shape.in), "weights of depth ", shape.in, " can't be packed for tiles on this machine");
  Tensor packed =
      huge_page_buffer(shape.panels() * shape.in * nightjar::kPanelColumns, pairs ? at::kInt : at::kShort);
  auto* halves = static_cast<nightjar::BFloat16*>(packed.data_ptr());
  Team::parallel(1, true, [&](Team::Member& team) {
    const auto run = pairs ? nightjar::pack_tiles<true> : nightjar::pack_tiles<false>;
    run(team, weight.data_ptr<float>(), shape.out, shape.in, halves);
  });
  return packed.view({shape.panels(), shape.in, nightjar::kPanelColumns});
}

nightjar::PackedWeight packed_weight(const Tensor& packed, int64_t out) {
  TORCH_CHECK(packed.dim() == 3 && packed.is_contiguous() && packed.size(2) == nightjar::kPanelColumns,
              "not a packed weight");
  const nightjar::PackedWeight weight{packed.data_ptr(), weight_type(packed), out, packed.size(1)};
  TORCH_CHECK(weight.panels() == packed.size(0), "packed weight does not have ", out, " outputs");
  return weight;
}

Tensor packed_linear(const Tensor& x, const Tensor& packed, int64_t out, const OptionalTensor& bias) {
  check_rows(x, "x");
  const auto weight = packed_weight(packed, out);
  TORCH_CHECK(x.size(-1) == weight.in, "x has ", x.size(-1), " features, the weight ", weight.in);
  if (bias) check_rows(*bias, "bias");
  auto sizes = x.sizes().vec();
  sizes.back() = out;
  Tensor y = at::empty(sizes, x.options());
  const int64_t rows = x.numel() / weight.in;
  if (rows == 0) return y;
  Team::parallel(1, true, [&](Team::Member& team) {
    nightjar::linear<Store::kOverwrite>(team, x.data_ptr<float>(), weight.in, rows, weight,
                                        bias ? bias->data_ptr<float>() : nullptr, y.data_ptr<float>(), out);
  });
  return y;
}

Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps) {
  check_rows(weight, "weight");
  const int64_t width = weight.numel();
  TORCH_CHECK(x.dim() == 2 && x.size(1) == width && x.stride(1) == 1 && x.scalar_type() == at::kFloat,
              "x must be float32 [rows, ", width, "]");
  Tensor out = at::empty({x.size(0), width}, x.options());
  Team::parallel(1, worth_it(x), [&](Team::Member& team) {
    nightjar::rms_norm(team, x.data_ptr<float>(), x.stride(0), weight.data_ptr<float>(), out.data_ptr<float>(), width,
                       x.size(0), width, static_cast<float>(eps));
  });
  return out;
}

void add_rms_norm_(Tensor& x, Tensor& residual, const Tensor& weight, double eps) {
  check_rows(x, "x");
  check_rows(residual, "residual");
  check_rows(weight, "weight");
  const int64_t width = weight.numel();
  TORCH_CHECK(x.sizes() == residual.sizes() && x.size(-1) == width, "x, residual and weight differ in shape");
  Team::parallel(1, worth_it(x), [&](Team::Member& team) {
    nightjar::add_rms_norm(team, x.data_ptr<float>(), residual.data_ptr<float>(), weight.data_ptr<float>(),
                           x.data_ptr<float>(), x.numel() / width, width, static_cast<float>(eps));
  });
}

Tensor silu_and_mul(const Tensor& x) {
  check_rows(x, "x");
  auto sizes = x.sizes().vec();
  const int64_t width = sizes.back() / 2;
  sizes.back() = width;
  Tensor out = at::empty(sizes, x.options());
  if (x.numel() == 0) return out;
  Team::parallel(1, worth_it(x), [&](Team::Member& team) {
    nightjar::silu_and_mul(team, x.data_ptr<float>(), out.data_ptr<float>(), x.numel() / (2 * width), width);
  });
  return out;
}

// Rotates q and k in place: [rows, heads * head_dim] with any row stride.
void rotary_embedding_(const Tensor& positions, Tensor& q, Tensor& k, const Tensor& cos_sin, int64_t head_dim,
                       bool neox) {
  const int64_t* position = int64_data(positions, "positions");
  check_rows(cos_sin, "cos_sin");
  const int64_t rotary = cos_sin.size(-1), rows = positions.numel();
  for (Tensor* t : {&q, &k}) {
    TORCH_CHECK(t->dim() == 2 && t->size(0) == rows && t->stride(1) == 1 && t->scalar_type() == at::kFloat &&
                    t->size(1) % head_dim == 0,
                "q and k must be float32 [rows, heads * head_dim]");
    float* data = t->data_ptr<float>();
    const int64_t stride = t->stride(0), heads = t->size(1) / head_dim;
    Team::parallel(1, worth_it(*t), [&](Team::Member& team) {
      team.run_ranges(rows, nightjar::rows_per_task(t->size(1)), [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r)
          for (int64_t h = 0; h < heads; ++h)
            nightjar::rotate_head(data + r * stride + h * head_dim, cos_sin.data_ptr<float>() + position[r] * rotary,
                                  rotary, neox);
      });
    });
  }
}

Tensor argmax(const Tensor& x) {
  check_rows(x, "x");
  TORCH_CHECK(x.dim() == 2, "x must be [rows, columns]");
  Tensor out = at::empty({x.size(0)}, x.options().dtype(at::kLong));
  Team::parallel(1, worth_it(x), [&](Team::Member& team) {
    nightjar::argmax(team, x.data_ptr<float>(), out.data_ptr<int64_t>(), x.size(0), x.size(1));
  });
  return out;
}

void add_gumbel_(Tensor& x, const Tensor& temperature, const Tensor& keys, const OptionalTensor& ids) {
  check_rows(x, "x");
  check_rows(temperature, "temperature");
  TORCH_CHECK(x.dim() == 2 && temperature.numel() == x.size(0) && keys.numel() == x.size(0),
              "x must be [rows, columns], temperature and keys [rows]");
  TORCH_CHECK(!ids || ids->size(-1) == x.size(1), "ids must have a token for every column of x");
  TORCH_CHECK(!ids || ids->dim() == 1 || ids->size(0) == x.size(0), "ids must be [columns] or [rows, columns]");
  const int64_t* key = int64_data(keys, "keys");
  const int64_t* token = ids ? int64_data(*ids, "ids") : nullptr;
  Team::parallel(1, worth_it(x), [&](Team::Member& team) {
    nightjar::add_gumbel(team, x.data_ptr<float>(), temperature.data_ptr<float>(), key, token,
                         ids && ids->dim() == 2 ? x.size(1) : 0, x.size(0), x.size(1));
  });
}

// The batch as the attention sees it. Without extend_lens every request has one new row.
std::vector<nightjar::Request> requests(const Tensor& req_to_token, const Tensor& req_pool_indices,
                                        const Tensor& seq_lens, const OptionalTensor& extend_lens, int64_t rows) {
  TORCH_CHECK(req_to_token.scalar_type() == at::kInt && req_to_token.stride(1) == 1, "req_to_token must be int32");
  const int64_t* pool = int64_data(req_pool_indices, "req_pool_indices");
  const int64_t* lengths = int64_data(seq_lens, "seq_lens");
  const int64_t* extend = extend_lens ? int64_data(*extend_lens, "extend_lens") : nullptr;
  TORCH_CHECK(req_pool_indices.numel() == seq_lens.numel(), "req_pool_indices and seq_lens differ in length");
  std::vector<nightjar::Request> batch(seq_lens.numel());
  int64_t row = 0;
  for (size_t i = 0; i < batch.size(); ++i) {
    const int64_t new_rows = extend ? extend[i] : 1;
    TORCH_CHECK(0 <= new_rows && new_rows <= lengths[i] && lengths[i] <= req_to_token.size(1),
                "request ", i, " has ", new_rows, " new rows in ", lengths[i], " positions");
    batch[i] = {req_to_token.data_ptr<int32_t>() + pool[i] * req_to_token.stride(0), row, new_rows, lengths[i]};
    row += new_rows;
  }
  TORCH_CHECK(row == rows, "the requests have ", row, " new rows, the batch ", rows);
  return batch;
}

template <typename T, typename Cache>
void run_attention(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache, Tensor& out,
                   const nightjar::AttentionPlan& plan, const nightjar::AttentionShape& shape) {
  const nightjar::AttentionTensors<T, Cache> tensors{static_cast<const T*>(q.data_ptr()),
                                                     q.stride(0),
                                                     static_cast<const Cache*>(k_cache.data_ptr()),
                                                     static_cast<const Cache*>(v_cache.data_ptr()),
                                                     k_cache.stride(0),
                                                     v_cache.stride(0),
                                                     static_cast<T*>(out.data_ptr()),
                                                     out.stride(0)};
  const nightjar::AlignedFloats partials(plan.partial_floats);
  Team::parallel(2, true,
                 [&](Team::Member& team) { nightjar::attention(team, plan, shape, tensors, partials.data()); });
}

// q, out: [rows, heads, dim]; caches: [slots, kv_heads, dim]; each pair float32 or bfloat16. See attention.h.
void paged_attention(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache, Tensor& out,
                     const Tensor& req_to_token, const Tensor& req_pool_indices, const Tensor& seq_lens,
                     const OptionalTensor& extend_lens, double scaling, double logit_cap, int64_t window) {
  const int64_t dim = q.size(2), kv_heads = k_cache.size(1);
  for (const Tensor* t : std::initializer_list<const Tensor*>{&q, &k_cache, &v_cache, &out}) {
    TORCH_CHECK(t->dim() == 3 && t->size(2) == dim && t->stride(2) == 1 && t->stride(1) == dim,
                "queries, caches and output must be [*, heads, ", dim, "] with whole heads side by side");
    TORCH_CHECK(t->scalar_type() == at::kFloat || t->scalar_type() == at::kBFloat16,
                "attention needs float32 or bfloat16, not ", t->scalar_type());
  }
  TORCH_CHECK(out.scalar_type() == q.scalar_type() && v_cache.scalar_type() == k_cache.scalar_type(),
              "queries and output, and the two caches, must agree in dtype");
  TORCH_CHECK(dim % 8 == 0, "head dimension ", dim, " is not a multiple of 8");
  TORCH_CHECK(q.size(1) % kv_heads == 0, q.size(1), " query heads do not divide among ", kv_heads, " kv heads");
  const nightjar::AttentionShape shape{q.size(1), kv_heads, dim, static_cast<float>(scaling),
                                       static_cast<float>(logit_cap), window};
  const nightjar::AttentionPlan plan(requests(req_to_token, req_pool_indices, seq_lens, extend_lens, q.size(0)), shape,
                                     at::get_num_threads());
  using nightjar::BFloat16;
  const bool narrow = q.scalar_type() == at::kBFloat16, narrow_cache = k_cache.scalar_type() == at::kBFloat16;
  const auto run = narrow ? (narrow_cache ? run_attention<BFloat16, BFloat16> : run_attention<BFloat16, float>)
                          : (narrow_cache ? run_attention<float, BFloat16> : run_attention<float, float>);
  run(q, k_cache, v_cache, out, plan, shape);
}

// A stack and the tensors that its pointers point into.
struct OwnedStack {
  nightjar::LlamaStack stack;
  TensorList keep;
};

std::vector<std::unique_ptr<OwnedStack>>& stacks() {
  static std::vector<std::unique_ptr<OwnedStack>> all;
  return all;
}

constexpr size_t kTensorsPerLayer = 8;

// tensors: for each layer input norm, qkv, o, post norm, gate_up, down (packed), k cache, v cache. Returns a handle.
int64_t llama_create(TensorList tensors, const Tensor& cos_sin, int64_t heads, int64_t kv_heads, int64_t head_dim,
                     double scaling, double eps, bool neox) {
  TORCH_CHECK(!tensors.empty() && tensors.size() % kTensorsPerLayer == 0, "expected 8 tensors per layer");
  check_rows(cos_sin, "cos_sin");
  auto owned = std::make_unique<OwnedStack>();
  auto& s = owned->stack;
  s.hidden = tensors[3].numel();
  s.intermediate = tensors[5].size(1);
  s.attention = {heads, kv_heads, head_dim, static_cast<float>(scaling), 0.0f, 0};
  TORCH_CHECK(tensors[6].scalar_type() == at::kFloat || tensors[6].scalar_type() == at::kBFloat16,
              "the cache must be float32 or bfloat16");
  s.bfloat16_cache = tensors[6].scalar_type() == at::kBFloat16;
  s.slot_stride = kv_heads * head_dim;
  s.cos_sin = cos_sin.data_ptr<float>();
  s.rotary = cos_sin.size(1);
  s.neox = neox;
  s.eps = static_cast<float>(eps);
  const int64_t q_width = heads * head_dim, qkv_width = q_width + 2 * kv_heads * head_dim;
  for (size_t i = 0; i < tensors.size(); i += kTensorsPerLayer) {
    const Tensor* t = &tensors[i];
    for (size_t norm : {0, 3}) check_rows(t[norm], "a norm");
    for (size_t cache : {6, 7})
      TORCH_CHECK(t[cache].is_contiguous() && t[cache].scalar_type() == tensors[6].scalar_type(),
                  "caches must be contiguous and agree in dtype");
    TORCH_CHECK(t[0].numel() == s.hidden && t[3].numel() == s.hidden, "norms differ from the hidden size");
    TORCH_CHECK(t[6].stride(0) == s.slot_stride && t[7].stride(0) == s.slot_stride, "caches have another head layout");
    s.layers.push_back({t[0].data_ptr<float>(), packed_weight(t[1], qkv_width), packed_weight(t[2], s.hidden),
                        t[3].data_ptr<float>(), packed_weight(t[4], 2 * s.intermediate), packed_weight(t[5], s.hidden),
                        t[6].data_ptr(), t[7].data_ptr()});
    const auto& layer = s.layers.back();
    TORCH_CHECK(layer.o.in == q_width && layer.gate_up.in == s.hidden && layer.down.in == s.intermediate,
                "layer ", i / kTensorsPerLayer, " has weights of other shapes");
    TORCH_CHECK(i == 0 || layer.qkv.in == s.hidden, "only the first layer may take a wider input");
  }
  owned->keep = std::move(tensors);
  owned->keep.push_back(cos_sin);
  stacks().push_back(std::move(owned));
  return static_cast<int64_t>(stacks().size()) - 1;
}

void llama_destroy(int64_t handle) { stacks().at(handle).reset(); }

const nightjar::LlamaStack& stack_at(int64_t handle) {
  const auto& owned = stacks().at(handle);
  TORCH_CHECK(owned != nullptr, "this stack was destroyed");
  return owned->stack;
}

// residual [rows, hidden] is updated in place. first_input: see LlamaBatch. captured [rows, capture.size() * hidden].
void llama_forward(int64_t handle, Tensor& residual, const OptionalTensor& first_input, const Tensor& positions,
                   const Tensor& slots, const Tensor& req_to_token, const Tensor& req_pool_indices,
                   const Tensor& seq_lens, const OptionalTensor& extend_lens, std::vector<int64_t> capture,
                   const OptionalTensor& captured) {
  const auto& s = stack_at(handle);
  check_rows(residual, "residual");
  const int64_t rows = residual.size(0);
  const int64_t first_width = s.layers[0].qkv.in;
  TORCH_CHECK(residual.size(1) == s.hidden && positions.numel() == rows && slots.numel() == rows,
              "residual, positions and slots differ in rows");
  TORCH_CHECK(first_input || first_width == s.hidden, "this stack needs first_input");
  if (first_input) {
    check_rows(*first_input, "first_input");
    TORCH_CHECK(first_input->size(0) == rows && first_input->size(1) == first_width, "first_input has a wrong shape");
  }
  if (!capture.empty()) {
    check_rows(*captured, "captured");
    TORCH_CHECK(std::is_sorted(capture.begin(), capture.end()), "layers to capture must ascend");
    TORCH_CHECK(captured->numel() == rows * s.hidden * static_cast<int64_t>(capture.size()), "captured has a wrong shape");
  }
  const nightjar::AttentionPlan plan(requests(req_to_token, req_pool_indices, seq_lens, extend_lens, rows), s.attention,
                                     at::get_num_threads());
  nightjar::llama_forward(
      s,
      {rows, int64_data(positions, "positions"), int64_data(slots, "slots"), &plan,
       first_input ? first_input->data_ptr<float>() : nullptr, std::move(capture),
       captured ? captured->data_ptr<float>() : nullptr},
      residual.data_ptr<float>());
}

const float* norm_of(const Tensor& t, int64_t width, const char* name) {
  check_rows(t, name);
  TORCH_CHECK(t.numel() == width, name, " has ", t.numel(), " weights, not ", width);
  return t.data_ptr<float>();
}

// See eagle3.h. norms: of the token, of the state, behind the layers; eps: of the first, the last, and those of fc.
std::tuple<Tensor, Tensor, Tensor, Tensor> eagle3_forward(
    int64_t stack, const Tensor& tokens, const Tensor& states, const Tensor& positions, const Tensor& slots,
    const Tensor& req_to_token, const Tensor& req_pool_indices, const Tensor& seq_lens, const OptionalTensor& extend_lens,
    const Tensor& embeddings, TensorList norms, std::vector<double> eps, bool norm_output, const Tensor& head,
    int64_t vocabulary, TensorList fc_norms, const OptionalTensor& fc, const OptionalTensor& fc_bias) {
  const auto& s = stack_at(stack);
  const int64_t rows = tokens.numel(), hidden = s.hidden;
  check_rows(states, "states");
  check_rows(embeddings, "embeddings");
  TORCH_CHECK(norms.size() == 3 && eps.size() == 3, "expected three norms, and three epsilons");
  TORCH_CHECK(states.dim() == 2 && states.size(0) == rows && positions.numel() == rows && slots.numel() == rows,
              "tokens, states, positions and slots differ in rows");
  TORCH_CHECK(s.layers[0].qkv.in == 2 * hidden && embeddings.dim() == 2 && embeddings.size(1) == hidden,
              "this is no draft whose first layer reads a token beside a state");
  const auto owned_head = packed_weight(head, head.size(0) * nightjar::kPanelColumns);
  TORCH_CHECK(0 < vocabulary && vocabulary <= owned_head.out && owned_head.in == hidden, "the head has another shape");
  nightjar::Eagle3 e{&s,
                     embeddings.data_ptr<float>(),
                     norm_of(norms[0], hidden, "the token's norm"),
                     norm_of(norms[1], hidden, "the state's norm"),
                     norm_of(norms[2], hidden, "the last norm"),
                     static_cast<float>(eps[0]),
                     static_cast<float>(eps[1]),
                     norm_output,
                     {owned_head.data, owned_head.type, vocabulary, owned_head.in},
                     {},
                     static_cast<float>(eps[2]),
                     {},
                     fc_bias ? norm_of(*fc_bias, hidden, "the bias of fc") : nullptr};
  if (states.size(1) != hidden) {
    TORCH_CHECK(fc.has_value(), "states of ", states.size(1), " features need fc");
    e.fc = packed_weight(*fc, hidden);
    TORCH_CHECK(e.fc.in == states.size(1), "states have ", states.size(1), " features, fc ", e.fc.in);
    TORCH_CHECK(fc_norms.empty() || static_cast<int64_t>(fc_norms.size()) * hidden == e.fc.in, "fc has other norms");
    for (const Tensor& norm : fc_norms) e.fc_norms.push_back(norm_of(norm, hidden, "a norm of fc"));
  }
  const int64_t* token = int64_data(tokens, "tokens");
  for (int64_t r = 0; r < rows; ++r)
    TORCH_CHECK(0 <= token[r] && token[r] < embeddings.size(0), "token ", token[r], " has no embedding");
  nightjar::Eagle3Batch batch{token, states.data_ptr<float>(), states.size(1), {}};
  const auto asked = requests(req_to_token, req_pool_indices, seq_lens, extend_lens, rows);
  for (const auto& request : asked) batch.last.push_back(request.first_row + request.rows - 1);
  const auto count = static_cast<int64_t>(asked.size());
  Tensor logits = at::empty({count, vocabulary}, states.options()), carried = at::empty({count, hidden}, states.options());
  Tensor drawn = at::empty({count}, tokens.options()), chance = at::empty({count}, states.options());
  const nightjar::AttentionPlan plan(asked, s.attention, at::get_num_threads());
  nightjar::eagle3_forward(
      e, batch, {rows, int64_data(positions, "positions"), int64_data(slots, "slots"), &plan, nullptr, {}, nullptr},
      {logits.data_ptr<float>(), carried.data_ptr<float>(), drawn.data_ptr<int64_t>(), chance.data_ptr<float>()});
  return {logits, carried, drawn, chance};
}

}  // namespace

TORCH_LIBRARY(nightjar, m) {
  m.def("pack_linear_weight(Tensor weight) -> Tensor", pack_linear_weight);
  m.def("tiles_possible(int depth) -> bool", tiles_possible);
  m.def("pack_tiles(Tensor weight, bool pairs) -> Tensor", pack_tiles);
  m.def("packed_linear(Tensor x, Tensor packed, int out, Tensor? bias) -> Tensor", packed_linear);
  m.def("rms_norm(Tensor x, Tensor weight, float eps) -> Tensor", rms_norm);
  m.def("add_rms_norm_(Tensor(a!) x, Tensor(b!) residual, Tensor weight, float eps) -> ()", add_rms_norm_);
  m.def("silu_and_mul(Tensor x) -> Tensor", silu_and_mul);
  m.def("rotary_embedding_(Tensor positions, Tensor(a!) q, Tensor(b!) k, Tensor cos_sin, int head_dim, bool neox) -> ()",
        rotary_embedding_);
  m.def("argmax(Tensor x) -> Tensor", argmax);
  m.def("add_gumbel_(Tensor(a!) x, Tensor temperature, Tensor keys, Tensor? ids) -> ()", add_gumbel_);
  m.def(
      "paged_attention(Tensor q, Tensor k_cache, Tensor v_cache, Tensor(a!) out, Tensor req_to_token, "
      "Tensor req_pool_indices, Tensor seq_lens, Tensor? extend_lens, float scaling, float logit_cap, int window) -> ()",
      paged_attention);
  m.def(
      "llama_create(Tensor[] tensors, Tensor cos_sin, int heads, int kv_heads, int head_dim, float scaling, float eps, "
      "bool neox) -> int",
      llama_create);
  m.def("llama_destroy(int handle) -> ()", llama_destroy);
  m.def(
      "llama_forward(int handle, Tensor(a!) residual, Tensor? first_input, Tensor positions, Tensor slots, "
      "Tensor req_to_token, Tensor req_pool_indices, Tensor seq_lens, Tensor? extend_lens, int[] capture, "
      "Tensor(b!)? captured) -> ()",
      llama_forward);
  m.def(
      "eagle3_forward(int stack, Tensor tokens, Tensor states, Tensor positions, Tensor slots, Tensor req_to_token, "
      "Tensor req_pool_indices, Tensor seq_lens, Tensor? extend_lens, Tensor embeddings, Tensor[] norms, float[] eps, "
      "bool norm_output, Tensor head, int vocabulary, Tensor[] fc_norms, Tensor? fc, Tensor? fc_bias) "
      "-> (Tensor logits, Tensor carried, Tensor drawn, Tensor chance)",
      eagle3_forward);
}
