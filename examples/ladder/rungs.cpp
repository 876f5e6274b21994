// See rungs.hpp. The ladder's own sources are read when the program runs: edit a rung, run again.
#include "ladder/rungs.hpp"

#include <fmt/format.h>

#include <filesystem>
#include <vector>

#include "backend/cuda/driver.hpp"
#include "backend/cuda/nvrtc.hpp"
#include "base/error.hpp"
#include "base/file.hpp"

namespace ladder {
namespace {

using namespace ramp::core::cuda;  // NOLINT(google-build-using-namespace)

constexpr uint64_t kTileBytes = 16384;  // of a packed weight tile: 128 rows x 128 bytes
constexpr uint64_t kSliceColumns = 64;  // of h
constexpr unsigned kRingThreads = 320;  // eight math warps and two that copy

// Ring depth and blocks per SM as the stream kernel has them (docs/probe.md); rung 3's 24 KB slots: four, and
// two blocks for its registers; the widest cluster gives a slot to the partial sums.
constexpr Rung kRungs[] = {
    {"1 reference", "rung1_reference.cu", 1, false, 128},
    {"2 wgmma", "rung2_wgmma.cu", 64, true, 128},
    {"3 ring", "rung3_ring.cu", 64, true, 192, 64, 4, 2},
    {"4 swap-AB", "rung4_swap_ab.cu", 32, true, kRingThreads, 32, 3, 3},
    {"5 width per expert", "rung5_width.cu", 32, true, kRingThreads, 32, 3, 3},
    {"  up to 8, no split", "rung6_cluster.cu", 8, true, kRingThreads, 8, 4, 3, 1},
    {"6 cluster split, 2", "rung6_cluster.cu", 8, true, kRingThreads, 8, 4, 3, 2},
    {"6 cluster split, 4", "rung6_cluster.cu", 8, true, kRingThreads, 8, 3, 3, 4},
};
constexpr Rung kFloors[] = {
    {"floor, 1 block", "floor.cu", 0, false, 32, 0, 12, 1},
    {"floor, 2 blocks", "floor.cu", 0, false, 32, 0, 6, 2},
    {"floor, 4 blocks", "floor.cu", 0, false, 32, 0, 3, 4},
};

uint64_t shared_bytes(const Rung& r) {
  const auto width = static_cast<uint64_t>(r.width);
  const uint64_t slot = kTileBytes + width * 128 + (width * 4 + 127) / 128 * 128;
  // Rung 6: four barriers, and two buffers of two sums a thread for each exchange.
  const uint64_t exchange = r.split == 1 ? 32 : r.split == 2 ? 32 + 2 * 2048 : 32 + 4 * 2048;
  return static_cast<uint64_t>(r.stages) * (slot + 16) + exchange;  // 16: two barriers
}

}  // namespace

std::span<const Rung> rungs() noexcept {
  return kRungs;
}
std::span<const Rung> floors() noexcept {
  return kFloors;
}

Compiled compile(const Rung& r, const std::string& directory) {
  // The library's embedded headers, and the ladder's by the names under which they are included.
  const std::span<const EmbeddedFile> library = embedded_files();
  std::vector<EmbeddedFile> headers(library.begin(), library.end());
  constexpr std::string_view kOwn[] = {"ladder/params.hpp", "ladder/common.cuh", "ladder/standard.cuh",
                                       "ladder/ring.cuh", "ladder/swap_ab.cuh"};
  std::vector<std::string> texts;
  texts.reserve(std::size(kOwn));
  for (const std::string_view name : kOwn) {
    texts.push_back(ramp::core::read_text(directory + "/" + std::string(name.substr(name.find('/') + 1))));
    headers.push_back({name, texts.back()});
  }
  std::vector<std::string> options = {"-std=c++17", "--gpu-architecture=sm_90a", "--ptxas-options=-v"};
  if (r.stages > 0) options.push_back(fmt::format("-DSTAGES={}", r.stages));
  if (r.width > 0)
    options.insert(options.end(), {fmt::format("-DWIDTH={}", r.width), fmt::format("-DBLOCKS={}", r.blocks),
                                   fmt::format("-DSPLIT={}", r.split)});
  const Cubin cubin =
      compile_source(r.source, ramp::core::read_text(directory + "/" + r.source), headers, options);
  if (cubin.log.find("warning") != std::string::npos)
    ramp::core::fail(RAMP_ERROR_INTERNAL,
                     fmt::format("{}: got warnings, expected none:\n{}", r.source, cubin.log));
  const std::vector<KernelResources> resources = parse_resources(cubin.log);
  return {cubin.bytes, resources.empty() ? std::nullopt : std::optional(resources.front()), cubin.seconds};
}

CUfunction load(const Rung& r, const Compiled& compiled) {
  CUmodule module = nullptr;
  CUfunction function = nullptr;
  RAMP_CU(cuModuleLoadData, &module, static_cast<const void*>(compiled.image.data()));
  RAMP_CU(cuModuleGetFunction, &function, module, "rung");
  if (r.blocks > 0)
    RAMP_CU(cuFuncSetAttribute, function, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
            static_cast<int>(shared_bytes(r)));
  return function;
}

Grid grid_of(const Rung& r, const Params& p, int sm_count) {
  const auto tiles = static_cast<uint64_t>(p.num_tiles);
  const auto columns = static_cast<uint64_t>(p.intermediate);
  if (r.blocks > 0) {
    const auto split = static_cast<uint64_t>(r.split);
    const uint64_t blocks = static_cast<uint64_t>(sm_count) * static_cast<uint64_t>(r.blocks);
    return {blocks / split * split, 1, r.threads, static_cast<unsigned>(shared_bytes(r))};
  }
  if (r.tile_height == 1) return {tiles, columns / 128, r.threads, 0};
  return {columns / kSliceColumns, tiles, r.threads, 0};
}

}  // namespace ladder
