// Where a profile or a fit comes from: the metadata block of both files, and what to do when it does not
// match the machine at hand (docs/dispatch.md, "Mismatch").
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "dispatch/json_view.hpp"

namespace ramp::core {

// Empty strings and zeros mean "not known"; what is not known is never compared.
struct Metadata {
  std::string library_version;  // "0.1.0"
  std::string kernel;           // whose configs these are: "ramp cpu", "alpha_moe", ...
  std::string device;           // GPU or CPU model name
  int32_t sm_count = 0;         // SMs of the GPU, or CPU workers
  double sm_clock_mhz = 0;
  double memory_clock_mhz = 0;
  std::string driver;
  std::string cuda;
  std::string date_utc;  // when it was measured: "2026-11-20T12:00:00Z"
  std::string source;    // the data it was made from: a directory or file
  // How configs were timed ("5 layers, wall clock, quantile 0.5"): timings of two protocols are not compared,
  // so a profile goes on under its own alone. Choices do not depend on it.
  std::string protocol;
  double budget_seconds = -1;  // that the timing might take; 0: no limit, -1: not known
};

nlohmann::json metadata_to_json(const Metadata& m);
Metadata metadata_from_json(const JsonView& v);

std::string utc_now();  // "2026-11-20T12:00:00Z"

// `file` was made under file_metadata; we run under `here`. Every warning is one line that names the file,
// both values and the command that mends it.
//   not usable:  another kernel, another device name, another SM count, another library major version
//                (0.x: minor version): its timings do not describe this machine
//   usable:      another driver, CUDA version or SM or memory clock (by more than 2%): timings drift, choices
//                mostly hold
struct Compatibility {
  bool usable = true;
  std::vector<std::string> warnings;
};
Compatibility compare_metadata(const Metadata& file_metadata, const Metadata& here, const std::string& file,
                               std::string_view mend);

// The schema and version of a document. Another schema is an error: it is another kind of file. Another
// version of the same schema is "not usable" with a warning.
Compatibility check_schema(const JsonView& root, std::string_view schema, int64_t version,
                           const std::string& file, std::string_view mend);

}  // namespace ramp::core
