// The table of known machines.
#include "geometry/hardware.hpp"

#include <fmt/format.h>

#include <array>

#include "base/error.hpp"

namespace ramp::core {
namespace {

HardwareConstants make_h200() {
  HardwareConstants h;
  h.name = "h200";
  h.sm_count = 132;
  h.l2_bytes = int64_t{60} << 20;
  h.smem_per_sm = 228 << 10;
  h.smem_per_block = 227 << 10;
  h.smem_reserved = 1 << 10;
  h.registers_per_sm = 65536;
  h.registers_per_thread = 255;
  h.threads_per_sm = 2048;
  h.threads_per_block = 1024;
  h.blocks_per_sm = 32;
  h.has_wgmma = true;
  h.dram_gbps = 4530;
  h.fp8_tflops = 1080;
  h.bf16_tflops = 720;
  h.startup_us = 24.0;
  h.tile_us = 0.130;
  h.launch_us = 0.73;
  return h;
}

const std::array<HardwareConstants, 1>& table() {
  static const std::array<HardwareConstants, 1> machines = {make_h200()};
  return machines;
}

}  // namespace

const HardwareConstants& h200() {
  return table()[0];
}

HardwareConstants cpu_hardware(int32_t workers) {
  HardwareConstants h;
  h.name = "cpu";
  h.sm_count = workers;
  h.dram_gbps = 50;  // a few DDR5 channels; where the machine is far off, the fit shifts all constants
  return h;
}

std::span<const HardwareConstants> known_hardware() {
  return table();
}

const HardwareConstants& find_hardware(std::string_view name) {
  std::string known;
  for (const HardwareConstants& h : table()) {
    if (h.name == name) return h;
    known += (known.empty() ? "" : ", ") + h.name;
  }
  fail_argument("hardware", fmt::format("'{}'", name), "one of " + known);
}

}  // namespace ramp::core
