// Traces as files.
#include "cli/trace.hpp"

#include <fmt/format.h>

#include <cstdio>
#include <exception>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>

#include "base/env.hpp"
#include "base/file.hpp"
#include "cli/runtime.hpp"
#include "geometry/model.hpp"

namespace ramp::cli {
namespace {

// Of as many layer calls as a bench of all points makes; 64 MiB of device memory.
constexpr uint64_t kRecords = 16384;

std::mutex g_mutex;
std::map<ramp_context*, std::string> g_files;  // contexts that are traced

void append(const ramp_trace_record* r, void* user) {
  nlohmann::json j;
  j["number"] = r->number;
  j["call"] = r->call;
  j["experts"] = r->num_experts;
  j["top_k"] = r->top_k;
  j["hidden"] = r->hidden;
  j["intermediate"] = r->intermediate;
  j["format"] = core::format_name(static_cast<ramp_format>(r->format));
  j["tokens"] = r->tokens;
  j["batched"] = r->batched != 0;
  j["configs"] = nlohmann::json::array();
  for (int32_t c = 0; c < r->num_configs; ++c) j["configs"].push_back(r->configs[c]);
  j["chosen"] = r->chosen;
  j["predicted_us"] = r->predicted_us;
  j["configs_us"] = std::vector<double>(r->configs_us, r->configs_us + r->num_configs);
  if (r->measured_us > 0) j["measured_us"] = r->measured_us;
  if (r->default_config != nullptr) {
    j["default"] = r->default_config;
    j["default_us"] = r->default_us;
  }
  j["histogram"] = std::vector<int32_t>(r->histogram, r->histogram + r->num_experts);
  *static_cast<std::string*>(user) += j.dump() + "\n";
}

}  // namespace

void begin_trace(ramp_context* context) {
  const auto file = core::env("RAMP_TRACE");
  if (!file || facts_of(context).backend != "cuda") return;
  check(ramp_context_trace(context, kRecords));
  const auto times = core::env("RAMP_TRACE_TIMES");
  check(ramp_context_time_trace(context, times && *times != "0" ? 1 : 0));
  const std::lock_guard lock(g_mutex);
  g_files[context] = *file;
}

void finish_trace(ramp_context* context) noexcept {
  try {
    std::string file;
    {
      const std::lock_guard lock(g_mutex);
      const auto at = g_files.find(context);
      if (at == g_files.end()) return;
      file = at->second;
      g_files.erase(at);
    }
    const ContextFacts facts = facts_of(context);
    std::string text;
    check(ramp_context_read_trace(context, append, &text));
    if (text.empty()) return;  // nothing ran: a trace that is there stays
    const nlohmann::json head = {
        {"schema", "ramp.trace"}, {"version", 1}, {"device", facts.device}, {"sm_count", facts.workers}};
    core::write_text(file, head.dump() + "\n" + text);
  } catch (const std::exception& e) {
    fmt::print(stderr, "ramp: RAMP_TRACE: {}\n", e.what());
  }
}

}  // namespace ramp::cli
