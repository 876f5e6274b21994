// See cases.hpp. Values are pure functions of the spec's seed.
#include "numerics/cases.hpp"

#include <algorithm>
#include <array>
#include <climits>
#include <cmath>
#include <numeric>

#include "base/error.hpp"
#include "base/rng.hpp"
#include "base/tensor.hpp"
#include "weights/quantize.hpp"

namespace ramp::core::test {
namespace {

constexpr int64_t kGap = 24;  // elements behind each row of a strided tensor; not a multiple of any vector

int64_t gap_of(const CaseSpec& s) {
  return s.strided ? kGap : 0;
}

// x (and x_scale where it is e4m3) for `rows` rows of length hidden.
void fill_x(const CaseSpec& s, const SyntheticWeights& w, OwnedTensor& x, OwnedTensor& x_scale,
            int64_t rows) {
  std::vector<float> values(static_cast<size_t>(rows * s.hidden));
  fill_activations(values.data(), RAMP_F32, rows, s.hidden, mix64(s.seed));
  int64_t r = 0;
  for_rows(x.view, [&](uint8_t* row, int64_t) {
    const float* v = values.data() + r * s.hidden;
    if (s.x_dtype != RAMP_E4M3) {
      for (int64_t c = 0; c < s.hidden; ++c) store_f32(row, s.x_dtype, c, v[c]);
    } else if (s.format == RAMP_FORMAT_FP8_TENSOR) {
      quantize_row_static(v, s.hidden, w.w13_input_scale[0], row);
    } else {
      const int64_t slab = x_scale.view.ndim == 3 ? x_scale.view.shape[1] : 1;
      const int64_t outer = x_scale.view.ndim == 3 ? r / slab * x_scale.view.stride[0] : 0;
      const int64_t inner =
          x_scale.view.ndim == 3 ? r % slab * x_scale.view.stride[1] : r * x_scale.view.stride[0];
      float* scale = static_cast<float*>(x_scale.view.data) + outer + inner;
      if (s.format == RAMP_FORMAT_FP8_BLOCK) quantize_row_groups(v, s.hidden, row, scale);
      if (s.format == RAMP_FORMAT_FP8_CHANNEL) *scale = quantize_row_dynamic(v, s.hidden, row);
    }
    ++r;
  });
}

int64_t scale_columns(const CaseSpec& s) {
  if (s.x_dtype != RAMP_E4M3 || s.format == RAMP_FORMAT_FP8_TENSOR) return 0;
  return s.format == RAMP_FORMAT_FP8_BLOCK ? (s.hidden + kGroup - 1) / kGroup : 1;
}

SyntheticWeights synthesize(const CaseSpec& s) {
  SyntheticWeightsOptions options;
  options.seed = s.seed;
  options.split_tensor_scale = s.split_tensor_scale;
  return make_synthetic_weights({"case", s.experts, s.top_k, s.hidden, s.intermediate}, s.format,
                                s.activation, options);
}

std::unique_ptr<ExpertWeights> handle_of(const SyntheticWeights& values, ramp_ownership ownership,
                                         std::vector<std::unique_ptr<SyntheticWeights>>& keep) {
  if (ownership == RAMP_IN_PLACE) {
    keep.push_back(std::make_unique<SyntheticWeights>(clone(values, ownership)));
    return make_expert_weights(keep.back()->desc, {});
  }
  ramp_weights_desc desc = values.desc;
  desc.ownership = ownership;
  return make_expert_weights(desc, {});
}

// k ids in [0, experts) of one token.
std::vector<int64_t> draw_ids(const CaseSpec& s, Rng& rng) {
  std::vector<int64_t> ids;
  if (s.ids == Ids::kSingle) {
    for (int64_t j = 0; j < s.top_k; ++j) ids.push_back(j % s.experts);
    return ids;
  }
  std::vector<double> weight(static_cast<size_t>(s.experts), 1.0);
  if (s.ids == Ids::kSkewed) {
    for (size_t e = 0; e < weight.size(); ++e) weight[e] = std::pow(static_cast<double>(e + 1), -1.2);
  }
  for (int64_t j = 0; j < s.top_k; ++j) {
    double total = std::accumulate(weight.begin(), weight.end(), 0.0);
    if (total <= 0.0) {  // k > E: start again
      std::fill(weight.begin(), weight.end(), 1.0);
      total = static_cast<double>(s.experts);
    }
    double u = rng.unit() * total;
    size_t e = 0;
    while (e + 1 < weight.size() && u >= weight[e]) u -= weight[e++];
    while (weight[e] == 0.0) e = (e + weight.size() - 1) % weight.size();
    ids.push_back(static_cast<int64_t>(e));
    if (s.ids != Ids::kDuplicates) weight[e] = 0.0;
  }
  return ids;
}

constexpr std::array<const char*, 7> kIdsNames = {"distinct", "skewed",    "single",    "duplicates",
                                                  "masked",   "allmasked", "outofrange"};

}  // namespace

const char* ids_name(Ids ids) {
  return kIdsNames.at(static_cast<size_t>(ids));
}

std::string case_name(const CaseSpec& s) {
  std::string n = std::string(format_name(s.format)) + "_" + activation_name(s.activation) + "_T" +
                  std::to_string(s.tokens) + "_E" + std::to_string(s.experts) + "_k" +
                  std::to_string(s.top_k) + "_H" + std::to_string(s.hidden) + "_I" +
                  std::to_string(s.intermediate) + "_x" + dtype_name(s.x_dtype) + "_y" +
                  dtype_name(s.y_dtype) + "_" + ids_name(s.ids);
  if (s.shared_dtype != RAMP_DTYPE_NONE) n += std::string("_shared") + dtype_name(s.shared_dtype);
  if (s.output == RAMP_OUTPUT_PER_SLOT) n += "_perslot";
  if (s.router_weight_on_input) n += "_oninput";
  if (s.expert_map) n += "_map";
  if (s.int64_ids) n += "_i64";
  if (s.strided) n += "_strided";
  if (!s.split_tensor_scale && s.format == RAMP_FORMAT_FP8_TENSOR) n += "_onescale";
  if (s.determinism != RAMP_REPEATABLE) n += "_det" + std::to_string(s.determinism);
  return n + "_seed" + std::to_string(s.seed);
}

BlockCase::BlockCase(const CaseSpec& s) : spec(s), synthetic(synthesize(s)) {
  const int64_t gap = gap_of(s);
  weights = make_expert_weights(synthetic.desc, {});
  x = OwnedTensor(s.x_dtype, {s.tokens, s.hidden}, gap);
  if (scale_columns(s) > 0) x_scale = OwnedTensor(RAMP_F32, {s.tokens, scale_columns(s)}, gap);
  fill_x(s, synthetic, x, x_scale, s.tokens);
  ids = OwnedTensor(s.int64_ids ? RAMP_I64 : RAMP_I32, {s.tokens, s.top_k}, gap);
  topk_weights = OwnedTensor(RAMP_F32, {s.tokens, s.top_k}, gap);
  if (s.shared_dtype != RAMP_DTYPE_NONE) {
    shared_addend = OwnedTensor(s.shared_dtype, {s.tokens, s.hidden}, gap);
    Rng rng(mix64(s.seed + 77));
    for (int64_t t = 0; t < s.tokens; ++t) {
      for (int64_t c = 0; c < s.hidden; ++c) shared_addend.set(t, c, static_cast<float>(rng.normal()));
    }
  }
  y = s.output == RAMP_OUTPUT_PER_SLOT ? OwnedTensor(s.y_dtype, {s.tokens, s.top_k, s.hidden}, gap)
                                       : OwnedTensor(s.y_dtype, {s.tokens, s.hidden}, gap);

  Rng rng(mix64(s.seed + 5));
  // Local expert e is global expert global_of[e]; the other half of the global ones lives elsewhere.
  std::vector<int64_t> global_of(static_cast<size_t>(s.experts));
  std::iota(global_of.begin(), global_of.end(), int64_t{0});
  if (s.expert_map) {
    std::vector<int64_t> order(static_cast<size_t>(2 * s.experts));
    std::iota(order.begin(), order.end(), int64_t{0});
    for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[rng.below(i)]);
    map.assign(order.size(), -1);
    for (size_t e = 0; e < global_of.size(); ++e) {
      global_of[e] = order[e];
      map[static_cast<size_t>(order[e])] = static_cast<int32_t>(e);
    }
  }
  const int64_t global = s.expert_map ? 2 * s.experts : s.experts;
  const std::array<int64_t, 6> outside = {-2,        global,    global + 1000,
                                          INT32_MIN, INT32_MAX, s.int64_ids ? int64_t{1} << 40 : -3};
  for (int64_t t = 0; t < s.tokens; ++t) {
    const std::vector<int64_t> drawn = draw_ids(s, rng);
    for (int64_t j = 0; j < s.top_k; ++j) {
      int64_t id = global_of[static_cast<size_t>(drawn[static_cast<size_t>(j)])];
      const double dice = rng.unit();
      if (s.ids == Ids::kAllMasked || (s.ids == Ids::kMasked && dice < 0.34)) id = -1;
      if (s.ids == Ids::kOutOfRange && dice < 0.2) id = -1;
      if (s.ids == Ids::kOutOfRange && dice >= 0.2 && dice < 0.5) {
        id = outside[rng.below(outside.size())];
        ++expected_out_of_range;
      }
      if (s.expert_map && id >= 0 && id < global && dice > 0.75) {  // an expert that lives elsewhere
        id = std::find(map.begin(), map.end(), -1) - map.begin();
      }
      if (id == -1 || (s.expert_map && id >= 0 && id < global && map[static_cast<size_t>(id)] == -1))
        ++expected_masked;
      const int64_t at = t * ids.view.stride[0] + j * ids.view.stride[1];
      if (s.int64_ids) {
        static_cast<int64_t*>(ids.view.data)[at] = id;
      } else {
        static_cast<int32_t*>(ids.view.data)[at] = static_cast<int32_t>(id);
      }
      topk_weights.set(t, j, static_cast<float>(0.1 + rng.unit()));
    }
  }
}

std::unique_ptr<ExpertWeights> BlockCase::make_weights(ramp_ownership ownership) {
  return handle_of(synthetic, ownership, in_place_);
}

BlockCall BlockCase::call(const ExpertWeights& w) {
  BlockCall c;
  c.weights = &w;
  c.determinism = spec.determinism;
  c.output = spec.output;
  c.router_weight_on_input = spec.router_weight_on_input;
  c.tokens = spec.tokens;
  c.top_k = spec.top_k;
  c.x = x.view;
  c.x_scale = x_scale.view;
  c.ids = ids.view;
  c.topk_weights = topk_weights.view;
  c.shared_addend = shared_addend.view;
  c.y = y.view;
  c.expert_map = map;
  c.counters = spec.counters ? counters : nullptr;
  return c;
}

void BlockCase::run(Backend& backend, const ExpertWeights& w, const KernelConfig* config) {
  y.poison();
  counters[0] = 1000;  // counters are added to, never set
  counters[1] = 2000;
  const GuardedWorkspace workspace(backend.block_workspace(w, spec.tokens, spec.top_k));
  BlockCall c = call(w);
  c.config = config;
  c.workspace = workspace.data();
  c.workspace_bytes = workspace.bytes();
  backend.expert_block(c);
  counters[0] -= 1000;
  counters[1] -= 2000;
  EXPECT_TRUE(workspace.guard_intact()) << "wrote behind the workspace";
  EXPECT_TRUE(y.gaps_intact()) << "wrote between the rows of y";
  EXPECT_EQ(counters[0], spec.counters ? expected_masked : 0) << "masked slots";
  EXPECT_EQ(counters[1], spec.counters ? expected_out_of_range : 0) << "ids out of range";
}

CheckResult BlockCase::check(CheckOptions options) {
  options.unpacked = weights.get();
  return check_block(call(*weights), options);
}

std::vector<uint8_t> BlockCase::y_bits() const {
  return bytes_of(y.view);
}

std::vector<int32_t> BlockCase::histogram() const {
  std::vector<int32_t> c(static_cast<size_t>(spec.experts));
  for (int64_t t = 0; t < spec.tokens; ++t) {
    for (int64_t j = 0; j < spec.top_k; ++j) {
      const int64_t at = t * ids.view.stride[0] + j * ids.view.stride[1];
      int64_t id = spec.int64_ids ? static_cast<const int64_t*>(ids.view.data)[at]
                                  : static_cast<const int32_t*>(ids.view.data)[at];
      if (spec.expert_map) id = id >= 0 && id < 2 * spec.experts ? map[static_cast<size_t>(id)] : -1;
      if (id >= 0 && id < spec.experts) ++c[static_cast<size_t>(id)];
    }
  }
  return c;
}

BatchedCase::BatchedCase(const CaseSpec& s, bool with_row_weights) : spec(s), synthetic(synthesize(s)) {
  const int64_t gap = gap_of(s);
  weights = make_expert_weights(synthetic.desc, {});
  x = OwnedTensor(s.x_dtype, {s.experts, s.tokens, s.hidden}, gap);
  if (scale_columns(s) > 0) x_scale = OwnedTensor(RAMP_F32, {s.experts, s.tokens, scale_columns(s)}, gap);
  fill_x(s, synthetic, x, x_scale, s.experts * s.tokens);
  y = OwnedTensor(s.y_dtype, {s.experts, s.tokens, s.hidden}, gap);
  counts = OwnedTensor(s.int64_ids ? RAMP_I64 : RAMP_I32, {s.experts});
  Rng rng(mix64(s.seed + 9));
  for (int64_t e = 0; e < s.experts; ++e) {
    int64_t count = static_cast<int64_t>(rng.below(static_cast<uint64_t>(s.tokens + 1)));
    if (e == 0) count = s.tokens;
    if (e == 1) count = 0;
    if (e == 2) count = s.tokens + 5;
    if (e == 3) count = -4;
    if (s.int64_ids) {
      static_cast<int64_t*>(counts.view.data)[e] = count;
    } else {
      static_cast<int32_t*>(counts.view.data)[e] = static_cast<int32_t>(count);
    }
  }
  if (with_row_weights) {
    row_weights = OwnedTensor(RAMP_F32, {s.experts, s.tokens}, gap);
    for_rows(row_weights.view, [&](uint8_t* row, int64_t) {
      for (int64_t r = 0; r < s.tokens; ++r)
        reinterpret_cast<float*>(row)[r] = static_cast<float>(0.1 + rng.unit());
    });
  }
}

std::unique_ptr<ExpertWeights> BatchedCase::make_weights(ramp_ownership ownership) {
  return handle_of(synthetic, ownership, in_place_);
}

BatchedCall BatchedCase::call(const ExpertWeights& w) {
  BatchedCall c;
  c.weights = &w;
  c.determinism = spec.determinism;
  c.router_weight_on_input = spec.router_weight_on_input;
  c.max_tokens = spec.tokens;
  c.x = x.view;
  c.x_scale = x_scale.view;
  c.counts = counts.view;
  c.row_weights = row_weights.view;
  c.y = y.view;
  return c;
}

void BatchedCase::run(Backend& backend, const ExpertWeights& w, const KernelConfig* config) {
  y.poison();
  const GuardedWorkspace workspace(backend.batched_workspace(w, spec.tokens));
  BatchedCall c = call(w);
  c.config = config;
  c.workspace = workspace.data();
  c.workspace_bytes = workspace.bytes();
  backend.expert_block_batched(c);
  EXPECT_TRUE(workspace.guard_intact()) << "wrote behind the workspace";
  EXPECT_TRUE(y.gaps_intact()) << "wrote between the rows of y";
  EXPECT_TRUE(unused_rows_intact()) << "wrote rows beyond the counts";
}

CheckResult BatchedCase::check(CheckOptions options) {
  options.unpacked = weights.get();
  return check_batched(call(*weights), options);
}

bool BatchedCase::unused_rows_intact() const {
  bool intact = true;
  int64_t flat = 0;
  for_rows(y.view, [&](const uint8_t* row, int64_t bytes) {
    const int64_t e = flat / spec.tokens;
    const int64_t count = spec.int64_ids ? static_cast<const int64_t*>(counts.view.data)[e]
                                         : static_cast<const int32_t*>(counts.view.data)[e];
    if (flat % spec.tokens >= count)
      intact = intact && std::all_of(row, row + bytes, [](uint8_t b) { return b == kPoison; });
    ++flat;
  });
  return intact;
}

std::vector<uint8_t> BatchedCase::y_bits() const {
  return bytes_of(y.view);
}

}  // namespace ramp::core::test
