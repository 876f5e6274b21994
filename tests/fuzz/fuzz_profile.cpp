// Fuzzes the profile file reader: a file is refused with a message, or what it holds survives being written
// and read again to the byte, and makes a guard that keeps its promises.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "base/error.hpp"
#include "dispatch/guard.hpp"
#include "dispatch/profile_file.hpp"

namespace {

using namespace ramp::core;

void check(bool ok) {
  if (!ok) std::abort();
}

void use(const Dataset& d) {
  for (size_t m = 0; m < d.models.size(); ++m) {
    const std::vector<size_t> points = select_points(d, static_cast<int32_t>(m), true);
    const bool measured = std::any_of(points.begin(), points.end(), [&](size_t p) {
      for (size_t c = 0; c < d.configs.size(); ++c) {
        if (!std::isnan(d.time(p, c))) return true;
      }
      return false;
    });
    if (!measured) continue;
    try {
      const Guard g(d, static_cast<int32_t>(m), points);
      for (const int64_t rows : {int64_t{0}, int64_t{77}, int64_t{1} << 40}) {
        const size_t row = g.row(rows);
        check(g.default_config(row) < d.configs.size());
        check(g.evidence(row, g.default_config(row)) == Evidence::kFaster);
      }
    } catch (const Error& e) {
      // Points at whose token count no config was measured everywhere.
      check(e.status() == RAMP_ERROR_INVALID_ARGUMENT);
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const LoadedProfile loaded =
        parse_profile({reinterpret_cast<const char*>(data), size}, "profile.json", {});
    if (!loaded.compatibility.usable) return 0;
    const Profile& p = loaded.profile;
    use(p.data);
    const std::string once = profile_text(p.metadata, p.data);
    const LoadedProfile again = parse_profile(once, "profile.json", {});
    check(profile_text(again.profile.metadata, again.profile.data) == once);
  } catch (const Error& e) {
    check(e.status() == RAMP_ERROR_BAD_FILE);
    for (const char* ch = e.what(); *ch != '\0'; ++ch) check(*ch >= 0x20 && *ch < 0x7f);
  }
  return 0;
}
