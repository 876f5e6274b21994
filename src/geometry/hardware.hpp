// Hardware constants: every number that geometry, regions and cost models take from the machine, with unit
// and origin. Nothing else in the library may write such a number down.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace ramp::core {

struct HardwareConstants {
  std::string name;
  // Structure (vendor's documentation, read back from the device attributes where there is a device).
  int32_t sm_count = 0;
  int64_t l2_bytes = 0;
  int32_t smem_per_sm = 0;       // bytes
  int32_t smem_per_block = 0;    // bytes a single block may take
  int32_t smem_reserved = 0;     // bytes that every resident block costs beyond what it asks for
  int32_t registers_per_sm = 0;  // 32-bit
  int32_t registers_per_thread = 0;
  int32_t threads_per_sm = 0;
  int32_t threads_per_block = 0;
  int32_t blocks_per_sm = 0;
  bool has_wgmma = false;
  // Rates (measured).
  double dram_gbps = 0;   // read bandwidth, 1e9 bytes/s
  double fp8_tflops = 0;  // dense e4m3 with block scales, library GEMM
  double bf16_tflops = 0;
  // Times (measured; RaMP's region thresholds derive from the first two).
  double startup_us = 0;  // fixed cost of a layer's kernel before its tiles dominate
  double tile_us = 0;     // one 128-row x ttn=256 x tile_k=128 step of one tile
  double launch_us = 0;   // one kernel inside a CUDA graph
};

// NVIDIA H200 SXM. Structure: CUDA device attributes of sm_90. Rates: bench/ceilings on the H200 (DESIGN §5):
// 4.53 TB/s pure read, FP8 block scales 1046-1120 TFLOP/s (1080 here), bf16 665-780 (720 here), launch 0.73
// us in a graph. startup and tile time: arXiv 2604.26039, 24 us and 0.130 us.
const HardwareConstants& h200();
// A CPU of that many workers. No structure: nothing shares a worker, so a tile's residency is 1. dram_gbps
// starts the fit of the bytes' cost, which the timings then correct: any CPU's order of magnitude will do.
HardwareConstants cpu_hardware(int32_t workers);
std::span<const HardwareConstants> known_hardware();
const HardwareConstants& find_hardware(std::string_view name);  // throws Error that lists the known ones

}  // namespace ramp::core
