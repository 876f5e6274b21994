// Fuzzes the config.json parser: it either gives a config whose numbers are within their documented bounds,
// or throws BAD_FILE or UNSUPPORTED.
#include <cstdint>
#include <cstdlib>
#include <string>

#include "base/error.hpp"
#include "loader/model_config.hpp"

namespace {
void check(bool ok) {
  if (!ok) std::abort();
}
}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const ramp::core::ModelConfig c =
        ramp::core::parse_model_config({reinterpret_cast<const char*>(data), size}, "config.json");
    check(c.present && c.num_experts >= 1 && c.top_k >= 1 && c.top_k <= c.num_experts);
    check(c.router.num_groups <= 1 || c.num_experts % c.router.num_groups == 0);
    check(c.router.routed_scaling_factor > 0.0F);
    check(c.hidden >= 0 && c.intermediate >= 0 && c.num_layers >= 0);
    for (const int64_t layer : {int64_t{0}, int64_t{1}, int64_t{61}, int64_t{65535}})
      static_cast<void>(c.is_dense(layer));
  } catch (const ramp::core::Error& e) {
    check(e.status() == RAMP_ERROR_BAD_FILE || e.status() == RAMP_ERROR_UNSUPPORTED);
    for (const char* ch = e.what(); *ch != '\0'; ++ch) check(*ch >= 0x20 && *ch < 0x7f);
  }
  return 0;
}
