// What benchmarks and tests ask of a GPU beyond the library's ABI: big weights written where they are used,
// and work captured into a CUDA graph, replayed and timed. In a build without the CUDA backend everything
// here throws UNSUPPORTED (cli/gpu_absent.cpp).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "ramp/ramp.h"
#include "weights/synthetic.hpp"

namespace ramp::cli {

// Whether this machine looks as if it had a GPU: a driver that opens, or its device files.
bool gpu_plausible();

// Weights in device memory; the descriptor's tensors are there. Ownership is IN_PLACE: handles made from it
// use this memory, which must outlive them.
struct DeviceWeights {
  ramp_weights_desc desc = ramp_weights_desc_init();
  std::vector<std::shared_ptr<void>> memory;
};
// The recipe's weights, the same bits as make_synthetic_weights gives, on the context's GPU. Blocking.
DeviceWeights fill_on_device(ramp_context* context, const core::SyntheticRecipe& recipe);

// Work on a stream of its own, as a CUDA graph.
class Graph {
 public:
  // Runs `enqueue` once as it is, so that whatever has to be loaded is, and then captures it.
  Graph(ramp_context* context, const std::function<void(void* stream)>& enqueue);
  ~Graph();
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  void replay();  // and wait for its end
  // Microseconds of each replay, enqueued one behind the other, between events on the stream.
  std::vector<double> time(int64_t replays);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace ramp::cli
