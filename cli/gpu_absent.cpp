// gpu.hpp in a build without the CUDA backend.
#include <filesystem>

#include "base/error.hpp"
#include "cli/gpu.hpp"

namespace ramp::cli {
namespace {

[[noreturn]] void absent() {
  core::fail(RAMP_ERROR_UNSUPPORTED, "backend: this build of ramp has no CUDA backend; use backend cpu");
}

}  // namespace

bool gpu_plausible() {
  std::error_code ignored;
  return std::filesystem::exists("/dev/nvidiactl", ignored);
}
DeviceWeights fill_on_device(ramp_context* /*context*/, const core::SyntheticRecipe& /*recipe*/) {
  absent();
}
struct Graph::State {};
Graph::Graph(ramp_context* /*context*/, const std::function<void(void*)>& /*enqueue*/) {
  absent();
}
Graph::~Graph() = default;
void Graph::replay() {
  absent();
}
std::vector<double> Graph::time(int64_t /*replays*/) {
  absent();
}
struct GraphRounds::State {};
GraphRounds::GraphRounds(ramp_context* /*context*/) {
  absent();
}
GraphRounds::~GraphRounds() = default;
bool GraphRounds::has(size_t /*key*/) const {
  absent();
}
void GraphRounds::capture(size_t /*key*/, const std::function<void(void*)>& /*enqueue*/, bool /*first*/) {
  absent();
}
void GraphRounds::clear() {
  absent();
}
std::vector<double> GraphRounds::time(std::span<const size_t> /*keys*/) {
  absent();
}
size_t compile_configs(ramp_context* /*context*/, std::span<const core::KernelConfig> /*configs*/,
                       ramp_format /*format*/, ramp_activation /*activation*/,
                       const std::function<void(double)>& /*progress*/) {
  absent();
}
std::vector<int32_t> residency_of(std::span<const core::KernelConfig> /*configs*/, ramp_format /*format*/) {
  absent();
}
int64_t l2_bytes_of(ramp_context* /*context*/) {
  absent();
}
void describe_gpu(ramp_context* /*context*/, core::Metadata& /*metadata*/) {
  absent();
}

}  // namespace ramp::cli
