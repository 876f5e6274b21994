// Fuzzes the fit file reader with the predictors inside: a file is refused with a message, or what it holds
// predicts without NaN, never below zero, and chooses one of its configs.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <string_view>
#include <vector>

#include "base/error.hpp"
#include "dispatch/fit_file.hpp"

namespace {

using namespace ramp::core;

void check(bool ok) {
  if (!ok) std::abort();
}

void use(const Predictor& p) {
  std::vector<std::byte> scratch(p.scratch_bytes() + 64);
  const size_t skip = (64 - reinterpret_cast<uintptr_t>(scratch.data()) % 64) % 64;
  const std::span<std::byte> bytes(scratch.data() + skip, p.scratch_bytes());
  std::vector<float> us(p.configs().size());
  std::vector<int32_t> histogram(static_cast<size_t>(p.model().experts), 0);
  for (const int32_t count : {0, 1, 77, INT32_MAX}) {
    std::fill(histogram.begin(), histogram.end(), count);
    p.predict(histogram, us, bytes);
    for (const float v : us) check(v >= 0);
    check(p.choose(histogram, bytes) < us.size());
  }
  static_cast<void>(p.explain(histogram, 0));
  static_cast<void>(p.to_json());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const LoadedFit loaded = parse_fit({reinterpret_cast<const char*>(data), size}, "fit.json", {});
    for (const FittedModel& m : loaded.fit.models) use(*m.predictor);
  } catch (const Error& e) {
    check(e.status() == RAMP_ERROR_BAD_FILE || e.status() == RAMP_ERROR_INVALID_ARGUMENT);
    for (const char* ch = e.what(); *ch != '\0'; ++ch) check(*ch >= 0x20 && *ch < 0x7f);
  }
  return 0;
}
