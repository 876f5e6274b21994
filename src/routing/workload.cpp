// Workload specs (grammar, names, ranges) and routing read from traces. The draws: workload_draw.cpp; the
// statistics: workload_stats.cpp.
#include "routing/workload.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <limits>

#include "base/error.hpp"
#include "base/npy.hpp"
#include "base/tensor.hpp"
#include "routing/workload_draw.hpp"

namespace ramp::core {
namespace {

constexpr const char* kGrammar =
    "balanced, uniform, zipf:S, dirichlet:A, ddist:X, single, or a trace PATH.npy of integer ids [T,k] or "
    "[steps,T,k]";

struct Kind {
  std::string_view name;
  WorkloadKind kind;
  bool has_parameter;
  double low, high;
  const char* example;
};
constexpr std::array<Kind, 6> kKinds = {{
    {"balanced", WorkloadKind::kBalanced, false, 0, 0, "balanced"},
    {"uniform", WorkloadKind::kUniform, false, 0, 0, "uniform"},
    {"zipf", WorkloadKind::kZipf, true, 0, 1000, "zipf:1.2"},
    {"dirichlet", WorkloadKind::kDirichlet, true, 0.001, 1e6, "dirichlet:0.5"},
    {"ddist", WorkloadKind::kDdist, true, 0, 1, "ddist:0.9"},
    {"single", WorkloadKind::kSingle, false, 0, 0, "single"},
}};

void check_parameter(const Kind& kind, double value) {
  if (value >= kind.low && value <= kind.high) return;  // false for NaN
  fail_argument("routing", fmt::format("'{}:{}'", kind.name, value),
                fmt::format("a number from {} to {} after '{}:'", kind.low, kind.high, kind.name),
                fmt::format("for example {}", kind.example));
}

int64_t trace_id(const NpyArray& file, int64_t at) {
  const auto i = static_cast<size_t>(at);
  if (file.dtype == RAMP_I64) return file.data.as<int64_t>()[i];
  if (file.dtype == RAMP_I32) return file.data.as<int32_t>()[i];
  if (file.dtype == RAMP_U8) return file.data.as<uint8_t>()[i];
  return file.data.as<uint16_t>()[i];
}

}  // namespace

WorkloadSpec parse_workload(std::string_view text) {
  WorkloadSpec spec;
  if (text.ends_with(".npy")) {
    spec.kind = WorkloadKind::kTrace;
    spec.path = std::string(text);
    return spec;
  }
  const size_t colon = text.find(':');
  const std::string_view name = text.substr(0, colon);
  const auto* const kind =
      std::find_if(kKinds.begin(), kKinds.end(), [&](const Kind& k) { return k.name == name; });
  if (kind == kKinds.end()) fail_argument("routing", fmt::format("'{}'", printable(text)), kGrammar);
  spec.kind = kind->kind;
  if (!kind->has_parameter) {
    if (colon != std::string_view::npos)
      fail_argument("routing", fmt::format("'{}'", printable(text)),
                    fmt::format("'{}' without a parameter", kind->name), kGrammar);
    return spec;
  }
  const std::string_view number = colon == std::string_view::npos ? "" : text.substr(colon + 1);
  const char* const end = number.data() + number.size();
  const auto [stop, error] = std::from_chars(number.data(), end, spec.parameter);
  if (number.empty() || error != std::errc() || stop != end)
    fail_argument("routing", fmt::format("'{}'", printable(text)),
                  fmt::format("a number from {} to {} after '{}:'", kind->low, kind->high, kind->name),
                  fmt::format("for example {}", kind->example));
  check_parameter(*kind, spec.parameter);
  return spec;
}

std::string workload_name(const WorkloadSpec& spec) {
  if (spec.kind == WorkloadKind::kTrace) return spec.path;
  for (const Kind& k : kKinds) {
    if (k.kind != spec.kind) continue;
    return k.has_parameter ? fmt::format("{}:{}", k.name, spec.parameter) : std::string(k.name);
  }
  return "unknown";
}

namespace {

void read_trace(const std::string& path, uint64_t seed, Routing& routing) {
  const NpyArray file = read_npy(path);
  const auto bad = [&](const std::string& got, const std::string& expected, std::string_view fix = {}) {
    fail_argument(path, got, expected, fix, RAMP_ERROR_BAD_FILE);
  };
  const bool integer =
      file.dtype == RAMP_I32 || file.dtype == RAMP_I64 || file.dtype == RAMP_U8 || file.descr == "<u2";
  if (!integer)
    bad(fmt::format("dtype '{}'", printable(file.descr)), "integer ids (<i4, <i8, |u1 or <u2)",
        "convert with ids.astype('<i4')");
  const size_t ndim = file.shape.size();
  if (ndim != 2 && ndim != 3)
    bad(fmt::format("{} dimensions", ndim), "ids [tokens, k] or [steps, tokens, k]");
  const int64_t steps = ndim == 3 ? file.shape[0] : 1;
  const int64_t tokens = file.shape[ndim - 2];
  const int64_t top_k = file.shape[ndim - 1];
  if (top_k != routing.top_k)
    bad(fmt::format("k = {} (the last dimension)", top_k), fmt::format("k = {}", routing.top_k),
        "use the trace of a model with this top-k");
  if (steps == 0 || tokens < routing.tokens)
    bad(steps == 0 ? "no steps" : fmt::format("{} tokens", tokens),
        fmt::format("at least {} tokens", routing.tokens), "ask for fewer tokens or record a longer trace");
  const auto step = static_cast<int64_t>(seed % static_cast<uint64_t>(steps));
  const int64_t base = step * tokens * top_k;
  for (int64_t i = 0; i < routing.tokens * top_k; ++i) {
    const int64_t id = trace_id(file, base + i);
    if (id < 0 || id >= routing.experts)
      bad(fmt::format("id {} at step {}, token {}, slot {}", id, step, i / top_k, i % top_k),
          fmt::format("ids from 0 to {}", routing.experts - 1),
          "use the trace of a model with these experts");
    for (int64_t j = i - i % top_k; j < i; ++j) {
      if (routing.ids[static_cast<size_t>(j)] == id)
        bad(fmt::format("id {} twice in step {}, token {}", id, step, i / top_k),
            "k distinct experts per token", "check the order of the dimensions");
    }
    routing.ids[static_cast<size_t>(i)] = static_cast<int32_t>(id);
  }
}

}  // namespace

Routing make_routing(const WorkloadSpec& spec, int64_t experts, int64_t top_k, int64_t tokens,
                     uint64_t seed) {
  constexpr int64_t kMaxExperts = int64_t{1} << 24;
  constexpr int64_t kMaxRows = std::numeric_limits<int32_t>::max();
  if (experts < 1 || experts > kMaxExperts)
    fail_argument("experts", fmt::format("{}", experts), fmt::format("1 to {}", kMaxExperts));
  if (top_k < 1 || top_k > experts)
    fail_argument("top_k", fmt::format("{}", top_k), fmt::format("1 to the number of experts ({})", experts));
  if (tokens < 0 || tokens > kMaxRows / top_k)
    fail_argument("tokens", fmt::format("{}", tokens),
                  fmt::format("0 to {} (tokens * top_k stays below 2^31)", kMaxRows / top_k));
  for (const Kind& k : kKinds) {
    if (k.kind == spec.kind && k.has_parameter) check_parameter(k, spec.parameter);
  }
  Routing routing;
  routing.tokens = tokens;
  routing.top_k = top_k;
  routing.experts = experts;
  routing.ids.resize(static_cast<size_t>(tokens * top_k));
  routing.weights.resize(static_cast<size_t>(tokens * top_k));
  if (spec.kind == WorkloadKind::kTrace) {
    read_trace(spec.path, seed, routing);
  } else {
    draw_ids(spec, seed, routing);
  }
  draw_weights(seed, routing);
  return routing;
}

}  // namespace ramp::core
