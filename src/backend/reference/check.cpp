// The checker (check.hpp): the reference's loops once more, with the error analysis of bounds.hpp carried
// along. GEMM inputs are exact numbers (quantisation is defined bit for bit), so uncertainty starts with the
// first fp32 sum and is followed through activation, requantisation, GEMM2, the weighted sum and the rounding
// of y.
#include "backend/reference/check.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "backend/reference/bounds.hpp"
#include "backend/reference/rows.hpp"
#include "base/float_types.hpp"
#include "base/tensor.hpp"
#include "weights/quantize.hpp"

namespace ramp::core {
namespace {

using namespace reference;  // NOLINT(google-build-using-namespace): its only user besides the backend

constexpr size_t kRowChunk = 16;     // rows that share a dequantised weight row
constexpr int64_t kTaskRows = 64;    // weight rows per parallel task
constexpr int64_t kTokenChunk = 64;  // tokens whose slots are held at a time

// One slot's result: expert(x) before the router weight.
struct SlotRow {
  std::vector<Uncertain> z;  // [H]; empty: masked
  double weight = 1.0;
  bool infinite = false;  // an infinity was met on the way
};

struct Weights {
  WeightViews views;
  double depth1 = 0, depth2 = 0;  // longest chains of additions
  double tensor_unit = 0;
};

void in_tasks(const ParallelFor& parallel, int64_t n, const std::function<void(int64_t, int64_t)>& body) {
  parallel((n + kTaskRows - 1) / kTaskRows,
           [&](int64_t task) { body(task * kTaskRows, std::min(n, (task + 1) * kTaskRows)); });
}

// A group of rows of one expert -> their slots.
void check_chunk(const Weights& weights, int64_t expert, const ramp_tensor& x, const ramp_tensor& x_scale,
                 std::span<const Source> rows, const ParallelFor& parallel, std::vector<SlotRow>& slots,
                 CheckResult& result) {
  const ExpertWeights& w = *weights.views.w;
  const int64_t h = w.hidden;
  const int64_t i = w.intermediate;
  const int64_t n1 = w.rows13();
  const size_t count = rows.size();

  std::vector<std::vector<double>> a(count, std::vector<double>(static_cast<size_t>(h)));
  for (size_t r = 0; r < count; ++r) load_input(w, x, x_scale, rows[r], false, a[r].data());

  std::vector<std::vector<Uncertain>> c(count, std::vector<Uncertain>(static_cast<size_t>(n1)));
  in_tasks(parallel, n1, [&](int64_t begin, int64_t end) {
    std::vector<double> row(static_cast<size_t>(h));
    for (int64_t n = begin; n < end; ++n) {
      weight_row13(weights.views, expert, n, row.data());
      for (size_t r = 0; r < count; ++r)
        c[r][static_cast<size_t>(n)] =
            fp32_dot(dot_sums(a[r].data(), row.data(), h), weights.depth1, weights.tensor_unit);
    }
  });

  std::vector<Requantized> middle(count);
  for (size_t r = 0; r < count; ++r) {
    std::vector<Uncertain> v(static_cast<size_t>(i));
    for (size_t j = 0; j < v.size(); ++j)
      v[j] = fp32_activation(w.activation, c[r][j],
                             w.gated() ? c[r][static_cast<size_t>(i) + j] : Uncertain{1.0});
    middle[r] = requantize_uncertain(w, v);
    result.flips_allowed += middle[r].flips;
    SlotRow& slot = slots[static_cast<size_t>(rows[r].out)];
    slot.z.resize(static_cast<size_t>(h));
    slot.weight = rows[r].output_weight;
    slot.infinite = middle[r].infinite;
    for (const Uncertain& e : c[r]) slot.infinite = slot.infinite || std::isinf(e.value);
    for (const double e : a[r]) slot.infinite = slot.infinite || std::isinf(e);
  }

  in_tasks(parallel, h, [&](int64_t begin, int64_t end) {
    std::vector<double> row(static_cast<size_t>(i));
    for (int64_t n = begin; n < end; ++n) {
      weight_row2(weights.views, expert, n, row.data());
      for (size_t r = 0; r < count; ++r)
        slots[static_cast<size_t>(rows[r].out)].z[static_cast<size_t>(n)] =
            gemm2_element(middle[r], row.data(), i, weights.depth2, weights.tensor_unit);
    }
  });
}

std::vector<SlotRow> check_slots(const Weights& weights, const ramp_tensor& x, const ramp_tensor& x_scale,
                                 const std::vector<std::vector<Source>>& lists, size_t count,
                                 const ParallelFor& parallel, CheckResult& result) {
  std::vector<SlotRow> slots(count);
  for (size_t e = 0; e < lists.size(); ++e) {
    for (size_t first = 0; first < lists[e].size(); first += kRowChunk) {
      const size_t n = std::min(kRowChunk, lists[e].size() - first);
      check_chunk(weights, static_cast<int64_t>(e), x, x_scale, std::span(lists[e]).subspan(first, n),
                  parallel, slots, result);
    }
  }
  return slots;
}

// Compares elements and keeps the score.
class Judge {
 public:
  Judge(const CheckOptions& options, ramp_dtype dtype, CheckResult& result)
      : options_(options), dtype_(dtype), result_(result) {}

  // value: exact result with the bounds (error rigorous, sigma already times kCheckSigmas) before y's
  // rounding.
  void element(double got, const Uncertain& value, bool infinite, CheckResult::Worst where) {
    ++result_.elements;
    where.got = got;
    where.expected = value.value;
    if (!std::isfinite(value.value)) {
      // inf - inf and 0 * inf come out as NaN or infinity depending on the way; a NaN alone does not.
      const bool agrees =
          std::isnan(value.value) ? (infinite ? !std::isfinite(got) : std::isnan(got)) : got == value.value;
      if (!agrees) mismatch(where);
      return;
    }
    if (!std::isfinite(value.error)) {
      ++result_.undetermined;
      return;
    }
    if (!std::isfinite(got)) {
      const double edge = std::copysign(std::fabs(value.value) + value.error, value.value);
      if (!std::isinf(round_to(dtype_, edge)) || std::isnan(got)) mismatch(where);
      return;
    }
    const double difference = std::fabs(got - value.value);
    error2_ += difference * difference;
    norm2_ += value.value * value.value;
    const double magnitude = std::fabs(value.value);
    where.bound = value.error + half_spacing(dtype_, magnitude + value.error) + kUnit * magnitude;
    const double ratio = difference / where.bound;
    double sigma_ratio = 0.0;
    if (options_.statistical) {
      const double bound = value.sigma + half_spacing(dtype_, magnitude + value.sigma) + kUnit * magnitude;
      sigma_ratio = difference / bound;
      if (sigma_ratio > ratio) where.bound = bound;
    }
    const double larger = std::max(ratio, sigma_ratio);
    if (larger > worst_ && result_.nan_mismatches == 0) {
      worst_ = larger;
      result_.worst = where;
    }
    result_.max_ratio = std::max(result_.max_ratio, ratio);
    result_.max_sigma_ratio = std::max(result_.max_sigma_ratio, sigma_ratio);
  }
  void finish() const {
    result_.relative_error = norm2_ > 0.0 ? std::sqrt(error2_ / norm2_) : std::sqrt(error2_);
  }

 private:
  void mismatch(const CheckResult::Worst& where) {
    if (result_.nan_mismatches++ == 0) result_.worst = where;
  }

  const CheckOptions& options_;
  ramp_dtype dtype_;
  CheckResult& result_;
  double error2_ = 0, norm2_ = 0, worst_ = 0;
};

// weight * z as fp32 computes it, its row rounded to slot_rows on the way (before or after the weight).
// sigma leaves this function as a bound: kCheckSigmas standard deviations.
Uncertain weighted(const Uncertain& z, double weight, ramp_dtype slot_rows) noexcept {
  const double scale = std::fabs(weight);
  Uncertain v{z.value * weight, z.error * scale, kCheckSigmas * z.sigma * scale};
  const auto rounding = [&](double error) {
    double r = 2.0 * kUnit * (std::fabs(v.value) + error);
    if (slot_rows != RAMP_F32) {
      r += half_spacing(slot_rows, std::fabs(v.value) + error);
      r += scale * half_spacing(slot_rows, std::fabs(z.value) + error / std::max(scale, 0x1p-126));
    }
    return r;
  };
  v.error += rounding(v.error);
  v.sigma += rounding(v.sigma);
  return v;
}

Weights weights_of(const ExpertWeights* own, const CheckOptions& options) {
  Weights w;
  w.views = weight_views(options.unpacked != nullptr ? *options.unpacked : *own);
  const auto depth = [&](int64_t k) {
    return static_cast<double>(options.sum_depth > 0 ? std::min(options.sum_depth, k) : k);
  };
  w.tensor_unit = options.tensor_unit;
  w.depth1 = depth(w.views.w->hidden);
  w.depth2 = depth(w.views.w->intermediate);
  return w;
}

double load(const ramp_tensor& t, int64_t at) noexcept {
  return load_f32(t.data, static_cast<ramp_dtype>(t.dtype), at);
}

// The combined element: sum over slots and the addend, k additions in any order.
Uncertain combined(std::span<const SlotRow> slots, size_t column, const double* addend, ramp_dtype slot_rows,
                   bool& infinite) noexcept {
  Uncertain sum;
  double absolute = 0.0;
  double absolute_sigma = 0.0;
  double terms = 0.0;
  for (const SlotRow& slot : slots) {
    if (slot.z.empty()) continue;
    const Uncertain v = weighted(slot.z[column], slot.weight, slot_rows);
    sum.value += v.value;
    sum.error += v.error;
    sum.sigma += v.sigma;
    absolute += std::fabs(v.value) + v.error;
    absolute_sigma += std::fabs(v.value) + v.sigma;
    terms += 1.0;
    infinite = infinite || slot.infinite || std::isinf(v.value);
  }
  if (addend != nullptr) {
    sum.value += *addend;
    absolute += std::fabs(*addend);
    absolute_sigma += std::fabs(*addend);
    terms += 1.0;
    infinite = infinite || std::isinf(*addend);
  }
  sum.error += gamma_of(terms) * absolute;
  sum.sigma += gamma_of(terms) * absolute_sigma;
  return sum;
}

}  // namespace

std::string CheckResult::text() const {
  std::string line = fmt::format(
      "{}: {} rows, error/bound {:.3g} (statistical {:.3g}), relative error {:.3g}, {} NaN mismatches, {} "
      "undetermined, {} flips allowed",
      ok() ? "ok" : "WRONG", rows, max_ratio, max_sigma_ratio, relative_error, nan_mismatches, undetermined,
      flips_allowed);
  if (worst.column < 0) return line;  // nothing finite was compared
  return line + fmt::format("; worst at token {} slot {} column {}: got {:.9g}, expected {:.9g} +- {:.3g}",
                            worst.token, worst.slot, worst.column, worst.got, worst.expected, worst.bound);
}

CheckResult check_block(const BlockCall& call, const CheckOptions& options) {
  CheckResult result;
  const Weights weights = weights_of(call.weights, options);
  const std::vector<int64_t> tokens = list_or_all(options.tokens, call.tokens);
  Judge judge(options, static_cast<ramp_dtype>(call.y.dtype), result);
  const auto k = static_cast<size_t>(call.top_k);
  const int64_t h = weights.views.w->hidden;
  for (size_t first = 0; first < tokens.size(); first += static_cast<size_t>(kTokenChunk)) {
    const auto part =
        std::span(tokens).subspan(first, std::min(static_cast<size_t>(kTokenChunk), tokens.size() - first));
    const std::vector<SlotRow> slots =
        check_slots(weights, call.x, call.x_scale, sources_of(call, part, nullptr, nullptr), part.size() * k,
                    options.parallel, result);
    for (size_t n = 0; n < part.size(); ++n) {
      const std::span<const SlotRow> mine = std::span(slots).subspan(n * k, k);
      const int64_t t = part[n];
      if (call.output == RAMP_OUTPUT_PER_SLOT) {
        for (size_t j = 0; j < k; ++j, ++result.rows) {
          const int64_t at = t * call.y.stride[0] + static_cast<int64_t>(j) * call.y.stride[1];
          for (int64_t c = 0; c < h; ++c) {
            bool infinite = false;
            const Uncertain v =
                combined(mine.subspan(j, 1), static_cast<size_t>(c), nullptr, options.slot_rows, infinite);
            judge.element(load(call.y, at + c), v, infinite, {t, static_cast<int64_t>(j), c});
          }
        }
        continue;
      }
      ++result.rows;
      for (int64_t c = 0; c < h; ++c) {
        bool infinite = false;
        double addend = 0.0;
        const bool shared = present(call.shared_addend);
        if (shared)
          addend =
              load(call.shared_addend, t * call.shared_addend.stride[0] + c * call.shared_addend.stride[1]);
        const Uncertain v =
            combined(mine, static_cast<size_t>(c), shared ? &addend : nullptr, options.slot_rows, infinite);
        judge.element(load(call.y, t * call.y.stride[0] + c), v, infinite, {t, -1, c});
      }
    }
  }
  judge.finish();
  return result;
}

CheckResult check_batched(const BatchedCall& call, const CheckOptions& options) {
  CheckResult result;
  const Weights weights = weights_of(call.weights, options);
  const std::vector<int64_t> rows = list_or_all(options.tokens, flat_rows(call));
  Judge judge(options, static_cast<ramp_dtype>(call.y.dtype), result);
  const int64_t h = weights.views.w->hidden;
  for (size_t first = 0; first < rows.size(); first += static_cast<size_t>(kTokenChunk)) {
    const auto part =
        std::span(rows).subspan(first, std::min(static_cast<size_t>(kTokenChunk), rows.size() - first));
    const std::vector<SlotRow> slots = check_slots(weights, call.x, call.x_scale, sources_of(call, part),
                                                   part.size(), options.parallel, result);
    for (size_t n = 0; n < part.size(); ++n) {
      if (slots[n].z.empty()) continue;  // beyond the count
      ++result.rows;
      const int64_t at =
          part[n] / call.max_tokens * call.y.stride[0] + part[n] % call.max_tokens * call.y.stride[1];
      for (int64_t c = 0; c < h; ++c) {
        bool infinite = false;
        const Uncertain v = combined(std::span(slots).subspan(n, 1), static_cast<size_t>(c), nullptr,
                                     options.slot_rows, infinite);
        judge.element(load(call.y, at + c), v, infinite, {part[n], -1, c});
      }
    }
  }
  judge.finish();
  return result;
}

}  // namespace ramp::core
