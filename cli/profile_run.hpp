// One run of `ramp profile`: a layer shape in a format, from configs to files. The command
// (commands/profile.cpp) says for which, and with what options.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cli/output.hpp"
#include "cli/runtime.hpp"
#include "cost/cost_model.hpp"
#include "dispatch/block_fit.hpp"

namespace ramp::cli {

struct ProfileOptions {
  std::vector<std::string> models, routing, formats = {"fp8_block"};
  std::string tokens, activation = "silu_and_mul", out, clock = "wall", space = "whole";
  std::string determinism = "repeatable";
  std::string cost_model{core::kDefaultCostModel};
  BackendChoice backend{"cpu"};
  int64_t layers = 0, seed = 0, repeats = 9;
  double budget = -1, quantile = 0.5;  // -1: the backend's
  bool fresh = false, report = false;
  // Judging.
  bool judge = false;
  std::string judge_tokens, csv;
  std::vector<std::string> judge_routing;
  int64_t judge_draws = 1;
  double judge_budget = -1;
  // A shared library with a kernel of somebody's (cli/kernel_profile.hpp); "": ramp's own configs alone.
  std::string kernel_library;
};

// Where the options leave them open. A GPU's points are closer: a hundred configs take turns there, and what
// is best changes from one power of two to the next.
struct Points {
  const char *tokens, *routing, *judge_tokens, *judge_routing;
  double budget;  // seconds of timing
};
inline constexpr Points kCpuPoints = {"1,4,16,64,256,1024", "uniform;zipf:1.2", "2,8,32,128,400,700",
                                      "uniform;zipf:0.8;zipf:1.6", 120};
inline constexpr Points kGpuPoints = {"1,2,4,8,16,32,64,128,256,512,1024,2048,4096,8192",
                                      "uniform;zipf:0.8;zipf:1.6", "3,12,48,96,200,700,1500,3000,6000",
                                      "zipf:0.4;zipf:0.9;zipf:1.6", 30};

struct ProfileFiles {
  std::string profile, fit, report;
};

// One shape in one format.
struct ProfileCase {
  core::ModelShape model;
  ramp_format format;
  ProfileFiles files;
};

// Throws Error(IO).
void make_directory(const std::string& path);

// Times, fits, writes the files, and (with options.judge) judges. Prints; gives what --json has of it.
Json profile_case(Io& io, const ProfileOptions& options, ramp_context* context,
                  const core::BlockMachine& machine, const ProfileCase& c);

}  // namespace ramp::cli
