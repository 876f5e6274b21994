// Traces of the dispatcher (docs/dispatch.md, "Traces"): reading the file, and what a trace says: per shape
// and number of tokens how unbalanced steps were, what was chosen, what was predicted and measured, and,
// beside a fit, what other choices would have gained.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "cli/output.hpp"
#include "dispatch/fit_file.hpp"
#include "geometry/model.hpp"

namespace ramp::cli {

struct TraceRecord {
  int64_t number = 0, call = 0, tokens = 0;
  core::ModelShape shape;
  std::string format;
  bool batched = false;
  std::vector<std::string> configs;  // candidates; `chosen` is one of them
  size_t chosen = 0;
  double predicted_us = 0, measured_us = 0;  // 0: not known
  std::string fallback;                      // what runs without a fit; "": not known
  double fallback_us = 0;                    // predicted; 0: not known
  std::vector<int32_t> histogram;
};
struct Trace {
  std::string device;
  int32_t sm_count = 0;
  std::vector<TraceRecord> records;
};
// Throws Error(IO) or Error(BAD_FILE) naming file, line, key, what was found and what is expected.
Trace read_trace(const std::string& path);
Trace parse_trace(std::string_view text, const std::string& name);

// Records of one shape, format, entry and number of tokens.
struct TraceGroup {
  core::ModelShape shape;
  std::string format;
  bool batched = false;
  int64_t tokens = 0, records = 0;
  double active = 0, max_over_mean = 0, entropy = 0;  // means
  // Over records with rows: the fullest expert's rows over the mean of the experts that have any.
  int64_t with_rows = 0;
  double imbalance = 0, max_imbalance = 0;
  // Over records with both times: what runs without a fit is predicted to take over what was chosen, minus 1.
  int64_t compared = 0, changed = 0;  // changed: the choice is another one
  double default_regret = 0, max_default_regret = 0;
  // Over measured records whose histogram was measured with other configs too: the mean time of the chosen
  // one with this histogram over that of the fastest one, minus 1.
  int64_t rivalled = 0;
  double measured_regret = 0, max_measured_regret = 0;
  double predicted_us = 0, measured_us = 0;  // means over the records that have them; 0: none has
  double misprediction = 0;                  // mean |predicted/measured - 1| over records with both
  std::vector<std::pair<std::string, int64_t>> chosen;  // most frequent first
  // Beside a fit of the shape: records whose choice the fit knows, how often it is the fit's own, and by how
  // much the chosen config is predicted to be slower than the fit's choice.
  int64_t judged = 0, agreed = 0;
  double loss = 0, max_loss = 0;
};
struct TraceSummary {
  std::string device;
  int32_t sm_count = 0;
  int64_t records = 0, calls = 0, lost = 0;  // lost: gaps in the numbers
  std::vector<TraceGroup> groups;            // in the order of their first record
};
// fit: nullptr where there is none.
TraceSummary summarize(const Trace& trace, const core::Fit* fit);

std::string trace_text(const TraceSummary& s);
Json trace_json(const TraceSummary& s);

}  // namespace ramp::cli
