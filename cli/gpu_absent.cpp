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

}  // namespace ramp::cli
