// The metadata block: reading, writing and comparing.
#include "dispatch/metadata.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <ctime>
#include <utility>

#include "base/error.hpp"

namespace ramp::core {
namespace {

// "1.4.2" -> "1"; "0.4.2" -> "0.4": below 1.0 a minor version may break things (semantic versioning).
std::string compatible_series(std::string_view version) {
  const size_t first = version.find('.');
  if (first == std::string_view::npos) return std::string(version);
  if (version.substr(0, first) != "0") return std::string(version.substr(0, first));
  return std::string(version.substr(0, version.find('.', first + 1)));
}

bool far_apart(double a, double b) {
  return a > 0 && b > 0 && std::abs(std::log(a / b)) > 0.02;
}

}  // namespace

nlohmann::json metadata_to_json(const Metadata& m) {
  nlohmann::json j = {{"library_version", m.library_version},
                      {"kernel", m.kernel},
                      {"device", m.device},
                      {"sm_count", m.sm_count},
                      {"sm_clock_mhz", m.sm_clock_mhz},
                      {"memory_clock_mhz", m.memory_clock_mhz},
                      {"driver", m.driver},
                      {"cuda", m.cuda},
                      {"date_utc", m.date_utc},
                      {"source", m.source}};
  if (!m.protocol.empty()) j["protocol"] = m.protocol;
  if (m.budget_seconds >= 0) j["budget_seconds"] = m.budget_seconds;
  return j;
}

Metadata metadata_from_json(const JsonView& v) {
  const auto text = [&](const char* key) {
    const auto found = v.find(key);
    return found ? found->text() : std::string();
  };
  const auto mhz = [&](const char* key) {
    const auto found = v.find(key);
    return found ? found->number(0, 1e6) : 0.0;
  };
  Metadata m;
  m.library_version = text("library_version");
  m.kernel = text("kernel");
  m.device = text("device");
  if (const auto count = v.find("sm_count")) m.sm_count = static_cast<int32_t>(count->integer(0, 1 << 20));
  m.sm_clock_mhz = mhz("sm_clock_mhz");
  m.memory_clock_mhz = mhz("memory_clock_mhz");
  m.driver = text("driver");
  m.cuda = text("cuda");
  m.date_utc = text("date_utc");
  m.source = text("source");
  m.protocol = text("protocol");
  if (const auto budget = v.find("budget_seconds")) m.budget_seconds = budget->number(0, 1e9);
  return m;
}

std::string utc_now() {
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&now, &utc);
  return fmt::format("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z", utc.tm_year + 1900, utc.tm_mon + 1, utc.tm_mday,
                     utc.tm_hour, utc.tm_min, utc.tm_sec);
}

Compatibility compare_metadata(const Metadata& theirs, const Metadata& here, const std::string& file,
                               std::string_view mend) {
  Compatibility c;
  const auto differ = [&](std::string_view what, std::string_view got, std::string_view expected,
                          bool fatal) {
    c.usable = c.usable && !fatal;
    c.warnings.push_back(fmt::format("{}: made for {} '{}', this is '{}'; {}; to mend: {}", file, what,
                                     printable(got, 80), printable(expected, 80),
                                     fatal ? "not used" : "used all the same", mend));
  };
  const auto names = [&](std::string_view what, const std::string& a, const std::string& b, bool fatal) {
    if (!a.empty() && !b.empty() && a != b) differ(what, a, b, fatal);
  };
  names("kernel", theirs.kernel, here.kernel, true);
  names("device", theirs.device, here.device, true);
  if (theirs.sm_count > 0 && here.sm_count > 0 && theirs.sm_count != here.sm_count)
    differ("SM count", std::to_string(theirs.sm_count), std::to_string(here.sm_count), true);
  if (!theirs.library_version.empty() && !here.library_version.empty() &&
      compatible_series(theirs.library_version) != compatible_series(here.library_version)) {
    differ("library version", theirs.library_version, here.library_version, true);
  }
  names("driver", theirs.driver, here.driver, false);
  names("CUDA version", theirs.cuda, here.cuda, false);
  if (far_apart(theirs.sm_clock_mhz, here.sm_clock_mhz))
    differ("SM clock (MHz)", fmt::format("{:g}", theirs.sm_clock_mhz), fmt::format("{:g}", here.sm_clock_mhz),
           false);
  if (far_apart(theirs.memory_clock_mhz, here.memory_clock_mhz))
    differ("memory clock (MHz)", fmt::format("{:g}", theirs.memory_clock_mhz),
           fmt::format("{:g}", here.memory_clock_mhz), false);
  return c;
}

Compatibility check_schema(const JsonView& root, std::string_view schema, int64_t version,
                           const std::string& file, std::string_view mend) {
  const JsonView found = root.at("schema");
  if (found.text() != schema) found.bad(fmt::format("'{}'", schema));
  const int64_t got = root.at("version").integer(0, INT64_MAX);
  Compatibility c;
  if (got != version) {
    c.usable = false;
    c.warnings.push_back(
        fmt::format("{}: {} version {}, this library reads version {}; not used; to mend: {}", file, schema,
                    got, version, mend));
  }
  return c;
}

}  // namespace ramp::core
