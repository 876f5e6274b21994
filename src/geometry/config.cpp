// Names of configs: printing and parsing, each other's inverse.
#include "geometry/config.hpp"

#include <fmt/format.h>

#include <charconv>

#include "base/error.hpp"

namespace ramp::core {

const char* order_name(TaskOrder o) noexcept {
  switch (o) {
    case TaskOrder::kColumnMajor:
      return "column";
    case TaskOrder::kRowMajor:
      return "row";
    case TaskOrder::kGrouped:
      return "grouped";
    case TaskOrder::kMixed:
      return "mixed";
  }
  return "unknown";
}

std::string config_name(const KernelConfig& c) {
  std::string s = fmt::format("m{}_n{}_k{}", c.tile_m, c.tile_n, c.tile_k);
  if (c.warps_n != 0) s += fmt::format("_w{}", c.warps_n);
  if (c.stages != 1) s += fmt::format("_s{}", c.stages);
  if (c.threads != 0) s += fmt::format("_t{}", c.threads);
  if (c.split_k != 1) s += fmt::format("_sk{}", c.split_k);
  if (c.blocks != 0) s += fmt::format("_b{}", c.blocks);
  if (c.order == TaskOrder::kRowMajor) s += "_row";
  if (c.order == TaskOrder::kGrouped) s += fmt::format("_g{}", c.group_m);
  if (c.order == TaskOrder::kMixed) s += "_mix";
  if (c.sums) s += "_sum";
  return s;
}

KernelConfig parse_config(std::string_view name) {
  KernelConfig c;
  bool have_m = false;
  bool have_n = false;
  bool ok = !name.empty();
  std::string_view rest = name;
  while (ok && !rest.empty()) {
    const size_t cut = rest.find('_');
    const std::string_view part = rest.substr(0, cut);
    rest = cut == std::string_view::npos ? std::string_view{} : rest.substr(cut + 1);
    if (cut != std::string_view::npos && rest.empty()) ok = false;
    if (part == "row") {
      c.order = TaskOrder::kRowMajor;
      continue;
    }
    if (part == "mix") {
      c.order = TaskOrder::kMixed;
      continue;
    }
    if (part == "sum") {
      c.sums = true;
      continue;
    }
    const size_t digits = part.find_first_of("0123456789");
    int32_t value = 0;
    if (digits == std::string_view::npos) {
      ok = false;
      break;
    }
    const auto [end, ec] = std::from_chars(part.data() + digits, part.data() + part.size(), value);
    const std::string_view key = part.substr(0, digits);
    ok = ok && ec == std::errc() && end == part.data() + part.size() && value >= 0;
    if (key == "m") {
      c.tile_m = value;
      have_m = value > 0;
    } else if (key == "n") {
      c.tile_n = value;
      have_n = value > 0;
    } else if (key == "k") {
      c.tile_k = value;
    } else if (key == "w") {
      c.warps_n = value;
    } else if (key == "s") {
      c.stages = value;
    } else if (key == "t") {
      c.threads = value;
    } else if (key == "b") {
      c.blocks = value;
    } else if (key == "sk") {
      c.split_k = value;
    } else if (key == "g") {
      c.order = TaskOrder::kGrouped;
      c.group_m = value;
    } else {
      ok = false;
    }
  }
  if (!ok || !have_m || !have_n) {
    fail_argument("config", fmt::format("'{}'", name), "a name such as m32_n64_k128_s2_row",
                  "`ramp configs` lists the legal ones");
  }
  return c;
}

}  // namespace ramp::core
