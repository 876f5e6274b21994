// Profile files: every timing of a kernel's configs on a set of workload points. JSON, schema "ramp.profile"
// version 1 (docs/dispatch.md shows one); the same content as the three CSV files of cost/dataset.hpp, plus
// where it was measured. Times are microseconds; null = not measured.
#pragma once

#include <string>
#include <string_view>

#include "cost/dataset.hpp"
#include "dispatch/metadata.hpp"

namespace ramp::core {

inline constexpr std::string_view kProfileSchema = "ramp.profile";
inline constexpr int64_t kProfileVersion = 1;

struct Profile {
  Metadata metadata;
  Dataset data;
};

void write_profile(const std::string& path, const Metadata& metadata, const Dataset& data);  // atomic
std::string profile_text(const Metadata& metadata, const Dataset& data);

struct LoadedProfile {
  Profile profile;  // no points when it could not be used at all (another schema version)
  Compatibility compatibility;
};
// As read_fit. Beyond types, checks what the CSV reader checks: unique names, one shape per model, histograms
// of E counts that sum to at most tokens*top_k, finite positive timings.
LoadedProfile read_profile(const std::string& path, const Metadata& here);
LoadedProfile parse_profile(std::string_view text, const std::string& name, const Metadata& here);

// The dataset as points.csv, configs.csv and timings.csv in an existing directory, each written atomically.
// Throws Error(INVALID_ARGUMENT) for names that hold line breaks. read_dataset reads the same values back.
void write_dataset(const std::string& directory, const Dataset& data);

}  // namespace ramp::core
