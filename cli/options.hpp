// Options: typed adders whose complaints have the house format ("--tokens: got 'x', expected ...; ..."), and
// the values that several commands share (models, token counts, formats, backends).
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "geometry/model.hpp"
#include "ramp/ramp.h"
#include "routing/workload.hpp"

namespace ramp::cli {

struct IntegerRange {
  int64_t low = std::numeric_limits<int64_t>::min();
  int64_t high = std::numeric_limits<int64_t>::max();
};

// `value` holds the default, which the help shows (an empty text or a number outside the range means
// "none"). metavar: what stands for the value in the help.
CLI::Option* add_text(CLI::App& app, const std::string& name, std::string& value, const std::string& metavar,
                      std::string description);
CLI::Option* add_integer(CLI::App& app, const std::string& name, int64_t& value, IntegerRange range,
                         const std::string& metavar, std::string description);
CLI::Option* add_real(CLI::App& app, const std::string& name, double& value, double low, double high,
                      const std::string& metavar, std::string description);
CLI::Option* add_choice(CLI::App& app, const std::string& name, std::string& value,
                        std::vector<std::string> choices, std::string description);
CLI::Option* add_switch(CLI::App& app, const std::string& name, bool& value, std::string description);
// May be given several times.
CLI::Option* add_list(CLI::App& app, const std::string& name, std::vector<std::string>& values,
                      const std::string& metavar, std::string description);

struct Example {
  std::string command, meaning;
};
// The examples that the command's help ends with.
void examples(CLI::App& app, const std::vector<Example>& list);

// --- shared vocabularies -----------------------------------------------------------------------------
std::vector<std::string> format_names();
std::vector<std::string> activation_names();
std::vector<std::string> backend_names();
ramp_backend parse_backend(std::string_view name);
std::vector<std::string> determinism_names();
ramp_determinism parse_determinism(std::string_view name);
const char* determinism_name(int32_t value);

// parse_model with near names in the complaint; `argument` is the option it came from.
core::ModelShape model_from(std::string_view argument, std::string_view text);
// "olmoe,64,8,2048,1024,dbrx" -> three models: a number begins an E,k,H,I of four.
std::vector<core::ModelShape> models_from(std::string_view argument, const std::vector<std::string>& texts);
// "1,8,64" -> integers >= low.
std::vector<int64_t> integers_from(std::string_view argument, std::string_view text, IntegerRange range);
int64_t integer_from(std::string_view argument, std::string_view text, IntegerRange range);
// "uniform;zipf:1.2" -> specs.
std::vector<core::WorkloadSpec> workloads_from(const std::vector<std::string>& texts);
core::WorkloadSpec workload_from(std::string_view argument, std::string_view text);

std::vector<std::string> split(std::string_view text, char separator);
// The candidates near `text` (few edits, or a common beginning), best first, at most three.
std::vector<std::string> near_names(std::string_view text, const std::vector<std::string>& candidates);
// "; did you mean 'olmoe'?" or "".
std::string did_you_mean(std::string_view text, const std::vector<std::string>& candidates);
std::string join(const std::vector<std::string>& parts, std::string_view separator);

}  // namespace ramp::cli
