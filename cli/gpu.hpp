// What benchmarks and tests ask of a GPU beyond the library's ABI: big weights written where they are used,
// and work captured into a CUDA graph, replayed and timed. In a build without the CUDA backend everything
// here throws UNSUPPORTED (cli/gpu_absent.cpp).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "backend/backend.hpp"
#include "dispatch/metadata.hpp"
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

// Several pieces of work as CUDA graphs on one stream, timed in turns: one replay after the other without a
// pause, so that a drift of the clock meets all of them alike.
class GraphRounds {
 public:
  explicit GraphRounds(ramp_context* context);
  ~GraphRounds();
  GraphRounds(const GraphRounds&) = delete;
  GraphRounds& operator=(const GraphRounds&) = delete;
  [[nodiscard]] bool has(size_t key) const;
  // first: runs it once as it is before, so that whatever has to be loaded is.
  void capture(size_t key, const std::function<void(void* stream)>& enqueue, bool first);
  void clear();  // drops all graphs
  // Microseconds of each replay, between events on the stream.
  std::vector<double> time(std::span<const size_t> keys);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Compiles the kernels of these configs into the context's cache, on all cores; those that are there already
// cost nothing. Returns the number compiled. progress: fraction done, from any thread; may throw.
size_t compile_configs(ramp_context* context, std::span<const core::KernelConfig> configs, ramp_format format,
                       ramp_activation activation, const std::function<void(double)>& progress);
// Blocks of each config that share an SM.
std::vector<int32_t> residency_of(std::span<const core::KernelConfig> configs, ramp_format format);
// Bytes of the L2 cache of the context's GPU, as its driver says.
int64_t l2_bytes_of(ramp_context* context);
// Driver, compiler and clocks of the context's GPU.
void describe_gpu(ramp_context* context, core::Metadata& metadata);

}  // namespace ramp::cli
