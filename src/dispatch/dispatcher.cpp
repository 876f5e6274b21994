// The hot path, and its slow twin that explains itself.
#include "dispatch/dispatcher.hpp"

#include <fmt/format.h>

#include <cmath>

#include "base/error.hpp"

namespace ramp::core {
namespace {

// Uninitialised on purpose: reserving it costs nothing.
struct alignas(64) Scratch {
  Scratch() {}  // NOLINT(modernize-use-equals-default): "= default" would zero the bytes in Scratch{}
  std::byte bytes[Dispatcher::kMaxScratch];
};

int64_t count_rows(std::span<const int32_t> histogram) noexcept {
  int64_t rows = 0;
  for (const int32_t c : histogram) rows += c;
  return rows;
}

// The fastest predicted among those that may replace the default; else the default.
size_t best_allowed(const Guard& guard, size_t row, std::span<const float> us) noexcept {
  const size_t fallback = guard.default_config(row);
  size_t best = fallback;
  for (size_t c = 0; c < us.size(); ++c) {
    if (us[c] < us[best] && guard.allows(row, c, us[c], us[fallback])) best = c;
  }
  return best;
}

// The predictor's choice stands without a second look: it is the default, or shown to be faster than it.
bool stands(const Guard& guard, size_t row, size_t choice) noexcept {
  return guard.evidence(row, choice) == Evidence::kFaster;
}

}  // namespace

Dispatcher::Dispatcher(std::shared_ptr<const Predictor> predictor, Guard guard)
    : predictor_(std::move(predictor)), guard_(std::move(guard)) {
  // The fallback of choose() keeps the predictions beside the predictor's own scratch.
  const size_t needed = (predictor_->scratch_bytes() + 63) / 64 * 64 + configs() * sizeof(float);
  if (needed > kMaxScratch) {
    fail_argument(fmt::format("fit of '{}'", printable(predictor_->model().name)),
                  fmt::format("{} configs and {} experts, {} bytes of scratch", configs(), experts(), needed),
                  fmt::format("at most {} bytes", kMaxScratch), "profile fewer configs",
                  RAMP_ERROR_UNSUPPORTED);
  }
}

size_t Dispatcher::choose(std::span<const int32_t> histogram) const noexcept {
  Scratch scratch;
  const size_t inner = (predictor_->scratch_bytes() + 63) / 64 * 64;
  const std::span<std::byte> work(scratch.bytes, inner);
  const size_t choice = predictor_->choose(histogram, work);
  if (!guard_.active()) return choice;
  const size_t row = guard_.row(count_rows(histogram));
  if (stands(guard_, row, choice)) return choice;
  const std::span<float> us(reinterpret_cast<float*>(scratch.bytes + inner), configs());
  predictor_->predict(histogram, us, work);
  return best_allowed(guard_, row, us);
}

void Dispatcher::predict(std::span<const int32_t> histogram, std::span<float> us) const noexcept {
  Scratch scratch;
  predictor_->predict(histogram, us, std::span<std::byte>(scratch.bytes, predictor_->scratch_bytes()));
}

Decision Dispatcher::decide(std::span<const int32_t> histogram) const {
  Decision d;
  Scratch scratch;
  const std::span<std::byte> work(scratch.bytes, predictor_->scratch_bytes());
  d.us.resize(configs());
  predictor_->predict(histogram, d.us, work);
  d.predictor_choice = predictor_->choose(histogram, work);
  d.config = d.predictor_choice;
  d.guarded = guard_.active();
  if (d.guarded) {
    const size_t row = guard_.row(count_rows(histogram));
    d.default_config = guard_.default_config(row);
    d.evidence = guard_.evidence(row, d.predictor_choice);
    d.best_speedup = guard_.best_speedup(row, d.predictor_choice);
    if (!stands(guard_, row, d.predictor_choice)) d.config = best_allowed(guard_, row, d.us);
    d.overruled = d.config != d.predictor_choice;
  }
  return d;
}

}  // namespace ramp::core
