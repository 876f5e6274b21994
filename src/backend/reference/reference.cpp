// The reference backend (reference.hpp). The expert block is four plain steps: list the rows of each expert,
// GEMM1, activation and requantisation, GEMM2; then the weighted sum over slots in slot order.
#include "backend/reference/reference.hpp"

#include <algorithm>
#include <cmath>

#include "backend/reference/rows.hpp"
#include "base/env.hpp"
#include "base/error.hpp"
#include "base/float_types.hpp"
#include "base/tensor.hpp"
#include "routing/router.hpp"
#include "weights/activation.hpp"

namespace ramp::core {
namespace {

using namespace reference;  // NOLINT(google-build-using-namespace): its only user besides the checker

// Rows that are worked on together: a dequantised weight row serves all of them.
constexpr size_t kRowChunk = 32;
// Tokens whose results are held in fp64 at a time.
constexpr int64_t kTokenChunk = 256;

// Eight sums that are added at the end: nothing but a way to let the compiler use vectors. n % 8 == 0, since
// H and I are multiples of 32.
template <typename F>
F dot(const F* a, const F* b, int64_t n) noexcept {
  F sum[8] = {};
  for (int64_t k = 0; k < n; k += 8) {
    for (int64_t l = 0; l < 8; ++l) sum[l] += a[k + l] * b[k + l];
  }
  return ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
}

// z[r] = w2 * act(w13 * a[r]) of one expert for up to kRowChunk sources; z: [rows, H].
template <typename F>
void expert_chunk(const WeightViews& v, int64_t expert, const ramp_tensor& x, const ramp_tensor& x_scale,
                  std::span<const Source> rows, bool ideal, F* z) {
  const ExpertWeights& w = *v.w;
  const int64_t h = w.hidden;
  const int64_t i = w.intermediate;
  const int64_t n1 = w.rows13();
  const auto count = static_cast<int64_t>(rows.size());

  std::vector<F> a(static_cast<size_t>(count * h));
  for (int64_t r = 0; r < count; ++r)
    load_input(w, x, x_scale, rows[static_cast<size_t>(r)], ideal, a.data() + r * h);

  std::vector<F> gate_up(static_cast<size_t>(count * n1));
  std::vector<F> row(static_cast<size_t>(std::max(h, i)));
  for (int64_t n = 0; n < n1; ++n) {
    weight_row13(v, expert, n, row.data());
    for (int64_t r = 0; r < count; ++r)
      gate_up[static_cast<size_t>(r * n1 + n)] = dot(a.data() + r * h, row.data(), h);
  }

  std::vector<F> middle(static_cast<size_t>(count * i));
  for (int64_t r = 0; r < count; ++r) {
    const F* gate = gate_up.data() + r * n1;
    F* out = middle.data() + r * i;
    for (int64_t j = 0; j < i; ++j) out[j] = activate(w.activation, gate[j], w.gated() ? gate[i + j] : F(0));
    if (!ideal) requantize(w, out);
  }

  for (int64_t n = 0; n < h; ++n) {
    weight_row2(v, expert, n, row.data());
    for (int64_t r = 0; r < count; ++r) z[r * h + n] = dot(middle.data() + r * i, row.data(), i);
  }
}

// Every expert's results, times the output weight, at their `out` rows of slots [n, H]. Rows that no expert
// works on are left alone.
template <typename F>
void run_experts(const ExpertWeights& weights, const ramp_tensor& x, const ramp_tensor& x_scale,
                 const std::vector<std::vector<Source>>& lists, bool ideal, std::vector<double>& slots) {
  const WeightViews v = weight_views(weights);
  const int64_t h = weights.hidden;
  std::vector<F> z(kRowChunk * static_cast<size_t>(h));
  for (size_t e = 0; e < lists.size(); ++e) {
    for (size_t first = 0; first < lists[e].size(); first += kRowChunk) {
      const std::span<const Source> rows =
          std::span(lists[e]).subspan(first, std::min(kRowChunk, lists[e].size() - first));
      expert_chunk(v, static_cast<int64_t>(e), x, x_scale, rows, ideal, z.data());
      for (size_t r = 0; r < rows.size(); ++r) {
        for (int64_t n = 0; n < h; ++n)
          slots[static_cast<size_t>(rows[r].out * h + n)] = static_cast<double>(
              z[r * static_cast<size_t>(h) + static_cast<size_t>(n)] * static_cast<F>(rows[r].output_weight));
      }
    }
  }
}

void run_experts(const ExpertWeights& weights, const ramp_tensor& x, const ramp_tensor& x_scale,
                 const std::vector<std::vector<Source>>& lists, ReferenceMode mode,
                 std::vector<double>& slots) {
  if (mode == ReferenceMode::kF32) {
    run_experts<float>(weights, x, x_scale, lists, false, slots);
  } else {
    run_experts<double>(weights, x, x_scale, lists, mode == ReferenceMode::kIdeal, slots);
  }
}

// Sum over slots (and the shared addend); in the fp32 mode each addition is rounded to fp32.
std::vector<double> combine(const BlockCall& call, std::span<const int64_t> tokens,
                            const std::vector<double>& slots, ReferenceMode mode) {
  const int64_t h = call.weights->hidden;
  std::vector<double> y(tokens.size() * static_cast<size_t>(h));
  for (size_t n = 0; n < tokens.size(); ++n) {
    for (int64_t c = 0; c < h; ++c) {
      double sum = 0.0;
      const auto add = [&](double v) {
        sum += v;
        if (mode == ReferenceMode::kF32) sum = static_cast<float>(sum);
      };
      for (int64_t j = 0; j < call.top_k; ++j)
        add(slots[(n * static_cast<size_t>(call.top_k) + static_cast<size_t>(j)) * static_cast<size_t>(h) +
                  static_cast<size_t>(c)]);
      if (present(call.shared_addend)) {
        add(load_f32(call.shared_addend.data, static_cast<ramp_dtype>(call.shared_addend.dtype),
                     tokens[n] * call.shared_addend.stride[0] + c * call.shared_addend.stride[1]));
      }
      y[n * static_cast<size_t>(h) + static_cast<size_t>(c)] = sum;
    }
  }
  return y;
}

class ReferenceBackend final : public Backend {
 public:
  explicit ReferenceBackend(ReferenceMode mode) : mode_(mode) {
    info_.kind = RAMP_BACKEND_REFERENCE;
    info_.name = "reference";
    info_.device_name = cpu_model_name();
  }

  [[nodiscard]] const BackendInfo& info() const noexcept override { return info_; }

  [[nodiscard]] ConfigList configs(const ModelShape& /*model*/, ramp_format /*format*/,
                                   ramp_activation /*activation*/, bool /*with_rejected*/) const override {
    return {{only_config()}, {}};
  }
  [[nodiscard]] KernelConfig choose(const ExpertWeights& /*weights*/, std::span<const int32_t> /*histogram*/,
                                    ramp_determinism /*determinism*/, int64_t /*top_k*/) const override {
    return only_config();
  }

  void pack(ExpertWeights& weights, void* /*stream*/) override {
    if (weights.packed != nullptr) return;
    auto packed = std::make_unique<ReferencePacked>();
    packed->w13 = weights.w13;
    packed->w2 = weights.w2;
    if (weights.ownership == RAMP_BORROW) {
      own(packed->w13, packed->own_w13);
      own(packed->w2, packed->own_w2);
    } else {
      packed->own_w13 = std::move(weights.own_w13);
      packed->own_w2 = std::move(weights.own_w2);
      weights.w13.data = nullptr;
      weights.w2.data = nullptr;
    }
    weights.packed = std::move(packed);
  }
  void update(ExpertWeights& weights, int64_t first_expert, const ramp_weights_desc& update,
              void* /*stream*/) override {
    const WeightViews v = weight_views(weights);
    update_scales(weights, first_expert, update);
    copy_elements(update.w13, expert_range(v.w13, first_expert, update.num_experts));
    copy_elements(update.w2, expert_range(v.w2, first_expert, update.num_experts));
  }
  void unpack(const ExpertWeights& weights, const ramp_tensor& w13, const ramp_tensor& w2,
              void* /*stream*/) override {
    const WeightViews v = weight_views(weights);
    if (present(w13)) copy_elements(v.w13, w13);
    if (present(w2)) copy_elements(v.w2, w2);
  }

  [[nodiscard]] uint64_t block_workspace(const ExpertWeights& /*weights*/, int64_t /*max_tokens*/,
                                         int64_t /*top_k*/) const override {
    return 0;
  }
  void expert_block(const BlockCall& call) override {
    if (call.counters != nullptr) {
      std::vector<int64_t> all = list_or_all({}, call.tokens);
      sources_of(call, all, &call.counters[0], &call.counters[1]);
    }
    const auto dtype = static_cast<ramp_dtype>(call.y.dtype);
    const int64_t h = call.weights->hidden;
    const bool per_slot = call.output == RAMP_OUTPUT_PER_SLOT;
    for (int64_t first = 0; first < call.tokens; first += kTokenChunk) {
      std::vector<int64_t> tokens;
      for (int64_t t = first; t < std::min(call.tokens, first + kTokenChunk); ++t) tokens.push_back(t);
      const std::vector<double> rows = reference_rows(call, tokens, mode_);
      const double* value = rows.data();
      for (const int64_t t : tokens) {
        for (int64_t j = 0; j < (per_slot ? call.top_k : 1); ++j) {
          const int64_t at = t * call.y.stride[0] + (per_slot ? j * call.y.stride[1] : 0);
          for (int64_t c = 0; c < h; ++c) store_f32(call.y.data, dtype, at + c, static_cast<float>(*value++));
        }
      }
    }
  }

  [[nodiscard]] uint64_t batched_workspace(const ExpertWeights& /*weights*/,
                                           int64_t /*max_tokens*/) const override {
    return 0;
  }
  void expert_block_batched(const BatchedCall& call) override {
    const int64_t h = call.weights->hidden;
    const auto dtype = static_cast<ramp_dtype>(call.y.dtype);
    for (int64_t e = 0; e < call.weights->experts; ++e) {
      std::vector<int64_t> rows;
      for (int64_t r = 0; r < call.max_tokens; ++r) rows.push_back(e * call.max_tokens + r);
      if (rows.empty()) continue;
      const auto lists = sources_of(call, rows);
      std::vector<double> out(rows.size() * static_cast<size_t>(h));
      run_experts(*call.weights, call.x, call.x_scale, lists, mode_, out);
      for (const Source& s : lists[static_cast<size_t>(e)]) {
        for (int64_t c = 0; c < h; ++c)
          store_f32(call.y.data, dtype, e * call.y.stride[0] + s.out * call.y.stride[1] + c,
                    static_cast<float>(out[static_cast<size_t>(s.out * h + c)]));
      }
    }
  }

  [[nodiscard]] uint64_t route_workspace(const ramp_router_config& /*router*/, int64_t /*num_logits*/,
                                         int64_t /*max_tokens*/) const override {
    return 0;
  }
  void route(const RouteCall& call) override;

 private:
  // One expert row by one weight row: the reference has no tiles.
  static KernelConfig only_config() noexcept {
    KernelConfig c;
    c.tile_m = 1;
    c.tile_n = 1;
    return c;
  }
  static void own(ramp_tensor& view, AlignedBuffer& buffer) {
    buffer =
        AlignedBuffer(static_cast<uint64_t>(numel(view) * dtype_bytes(static_cast<ramp_dtype>(view.dtype))));
    ramp_tensor copy = view;
    copy.data = buffer.data();
    std::fill(copy.stride, copy.stride + RAMP_MAX_DIMS, 0);
    copy = with_strides(copy);
    copy_elements(view, copy);
    view = copy;
  }

  BackendInfo info_;
  ReferenceMode mode_;
};

void ReferenceBackend::route(const RouteCall& call) {
  const bool given = present(call.logits);
  const int64_t tokens = given ? call.logits.shape[0] : call.x.shape[0];
  const int64_t experts = given ? call.logits.shape[1] : call.router_weight.shape[0];
  const int64_t slots = router_slots(call.router);
  const auto at = [](const ramp_tensor& t, int64_t row, int64_t col) {
    return static_cast<double>(
        load_f32(t.data, static_cast<ramp_dtype>(t.dtype), row * t.stride[0] + col * t.stride[1]));
  };
  std::vector<double> logits(static_cast<size_t>(experts));
  std::vector<int64_t> ids(static_cast<size_t>(slots));
  std::vector<double> weights(static_cast<size_t>(slots));
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t e = 0; e < experts; ++e) {
      double sum = 0.0;
      if (given) {
        sum = at(call.logits, t, e);
      } else {
        for (int64_t c = 0; c < call.x.shape[1]; ++c) sum += at(call.x, t, c) * at(call.router_weight, e, c);
      }
      logits[static_cast<size_t>(e)] = sum;
    }
    route_token_f64(call.router, logits, ids, weights);
    for (int64_t j = 0; j < slots; ++j) {
      const int64_t out = t * call.ids.stride[0] + j * call.ids.stride[1];
      if (call.ids.dtype == RAMP_I64) {
        static_cast<int64_t*>(call.ids.data)[out] = ids[static_cast<size_t>(j)];
      } else {
        static_cast<int32_t*>(call.ids.data)[out] = static_cast<int32_t>(ids[static_cast<size_t>(j)]);
      }
      static_cast<float*>(call.weights.data)[t * call.weights.stride[0] + j * call.weights.stride[1]] =
          static_cast<float>(weights[static_cast<size_t>(j)]);
    }
  }
  if (call.router.capacity > 0) {
    std::vector<int64_t> counts(static_cast<size_t>(experts));
    apply_capacity(call.router.capacity, experts, call.ids, call.weights, counts);
  }
}

}  // namespace

std::unique_ptr<Backend> make_reference_backend(const BackendOptions& options, ReferenceMode mode) {
  if (options.device.type != RAMP_DEVICE_CPU) {
    fail_argument("device", "a device that is not the CPU",
                  "the CPU (the reference backend runs on the host)", "choose another backend",
                  RAMP_ERROR_UNSUPPORTED);
  }
  return std::make_unique<ReferenceBackend>(mode);
}

std::vector<double> reference_rows(const BlockCall& call, std::span<const int64_t> tokens,
                                   ReferenceMode mode) {
  const std::vector<int64_t> list = list_or_all(tokens, call.tokens);
  const auto lists = sources_of(call, list, nullptr, nullptr);
  std::vector<double> slots(list.size() * static_cast<size_t>(call.top_k * call.weights->hidden));
  run_experts(*call.weights, call.x, call.x_scale, lists, mode, slots);
  if (call.output == RAMP_OUTPUT_PER_SLOT) return slots;
  return combine(call, list, slots, mode);
}

double relative_error(const BlockCall& call, std::span<const int64_t> tokens, ReferenceMode mode) {
  const std::vector<int64_t> list = list_or_all(tokens, call.tokens);
  const int64_t h = call.weights->hidden;
  const bool per_slot = call.output == RAMP_OUTPUT_PER_SLOT;
  double error = 0.0;
  double norm = 0.0;
  for (size_t first = 0; first < list.size(); first += static_cast<size_t>(kTokenChunk)) {
    const auto part =
        std::span(list).subspan(first, std::min(static_cast<size_t>(kTokenChunk), list.size() - first));
    const std::vector<double> rows = reference_rows(call, part, mode);
    const double* expected = rows.data();
    for (const int64_t t : part) {
      for (int64_t j = 0; j < (per_slot ? call.top_k : 1); ++j) {
        const int64_t at = t * call.y.stride[0] + (per_slot ? j * call.y.stride[1] : 0);
        for (int64_t c = 0; c < h; ++c, ++expected) {
          const double got = load_f32(call.y.data, static_cast<ramp_dtype>(call.y.dtype), at + c);
          error += (got - *expected) * (got - *expected);
          norm += *expected * *expected;
        }
      }
    }
  }
  return norm > 0.0 ? std::sqrt(error / norm) : std::sqrt(error);
}

}  // namespace ramp::core
