// What `ramp bench` says about its GPU measurements: the table, the speed-ups over the figures that there are
// to beat, and the JSON objects.
#pragma once

#include <string>
#include <vector>

#include "cli/block_bench.hpp"
#include "cli/peers.hpp"

namespace ramp::cli {

struct LayerRow {
  core::ModelShape model;
  ramp_format format = RAMP_FORMAT_NONE;
  ramp_activation activation = RAMP_ACTIVATION_SILU_AND_MUL;
  Measurement m;
  std::string requested;  // config: "auto" or a name
  std::string fit;        // the file by which "auto" chose; "": none
  ramp_determinism mode = RAMP_REPEATABLE;
  int64_t layers = 0, checked_layer = 0;
  core::CheckResult check;
  bool checked = false;
  double floor_us = 0, read_gbps = 0;  // 0: not known
  double pause = 0;                    // seconds of rest before its replays
  Peers::Figure peer;
  // Speed-up over the peer; 0: there is none.
  [[nodiscard]] double ratio() const { return peer.us > 0 ? peer.us / m.us.median : 0; }
};

Json to_json(const LayerRow& row, const ContextFacts& facts);
// Time of each row over the best of its point, format and mode, minus 1; NaN where it is the only one there.
std::vector<double> regrets(const std::vector<LayerRow>& rows);
std::string layer_table(const std::vector<LayerRow>& rows);
// Geometric means by group of token counts, per mode and for the better mode of each point, with the goals
// and the points below the least ratio; "" where no row has a peer.
std::string ratio_text(const std::vector<LayerRow>& rows, const Peers& peers);

}  // namespace ramp::cli
