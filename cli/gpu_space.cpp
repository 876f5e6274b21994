// Of gpu.hpp what `ramp profile` asks about configs: their kernels compiled ahead on all cores, how many
// blocks of each share an SM, and what GPU it was.
#include <fmt/format.h>

#include <atomic>
#include <fstream>

#include "abi/handles.hpp"
#include "backend/cuda/config_space.hpp"
#include "backend/cuda/cubin_cache.hpp"
#include "backend/cuda/driver.hpp"
#include "backend/cuda/gpu.hpp"
#include "backend/cuda/nvrtc.hpp"
#include "cli/gpu.hpp"
#include "cli/runtime.hpp"

namespace ramp::cli {

size_t compile_configs(ramp_context* context, std::span<const core::KernelConfig> configs, ramp_format format,
                       ramp_activation activation, const std::function<void(double)>& progress) {
  ramp_context& c = core::context_of(context);
  if (c.cache_dir.empty()) return 0;  // every kernel is compiled when it is first used
  const std::string arch = core::cuda::gpu_facts(c.device.index).arch();
  std::vector<core::cuda::KernelProgram> programs;
  for (const core::KernelConfig& config : configs)
    for (core::cuda::KernelProgram& p : core::cuda::config_programs(config, format, activation))
      programs.push_back(std::move(p));
  core::cuda::CubinCache cache(c.cache_dir, c.log);
  std::atomic<size_t> compiled{0};
  std::atomic<size_t> done{0};
  parallel_for(static_cast<int64_t>(programs.size()), [&](int64_t i) {
    const core::cuda::Cubin cubin =
        core::cuda::find_or_compile(cache, programs[static_cast<size_t>(i)], arch);
    compiled += cubin.seconds > 0 ? 1 : 0;
    progress(static_cast<double>(++done) / static_cast<double>(programs.size()));
  });
  return compiled;
}

std::vector<int32_t> residency_of(std::span<const core::KernelConfig> configs, ramp_format format) {
  std::vector<int32_t> blocks;
  blocks.reserve(configs.size());
  for (const core::KernelConfig& c : configs) blocks.push_back(core::cuda::config_residency(c, format));
  return blocks;
}

int64_t l2_bytes_of(ramp_context* context) {
  const ramp_context& c = core::context_of(context);
  return core::cuda::gpu_facts(c.device.index).l2_bytes;
}

void describe_gpu(ramp_context* context, core::Metadata& metadata) {
  const core::cuda::GpuFacts facts = core::cuda::gpu_facts(core::context_of(context).device.index);
  constexpr double kKhz = 1e-3;
  metadata.sm_clock_mhz = kKhz * facts.clock_khz;
  metadata.memory_clock_mhz = kKhz * facts.memory_clock_khz;
  metadata.cuda = fmt::format("driver {}, NVRTC {}", core::cuda::version_text(facts.driver_version),
                              core::cuda::nvrtc().version());
  // "NVRM version: NVIDIA UNIX ... Kernel Module  580.65.06  Release Build ...": the first word that is a
  // version.
  std::ifstream file("/proc/driver/nvidia/version");
  for (std::string word; file >> word;) {
    if (word.find_first_not_of("0123456789.") != std::string::npos || word.find('.') == std::string::npos)
      continue;
    metadata.driver = word;
    return;
  }
}

}  // namespace ramp::cli
