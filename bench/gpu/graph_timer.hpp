// Timing on the GPU: work captured into a CUDA graph, replayed, timed with events; medians.
#pragma once

#include <algorithm>
#include <functional>
#include <vector>

#include "backend/cuda/driver.hpp"

namespace bench {

struct Times {
  double median_us = 0, p10_us = 0, p90_us = 0;
};

// Replays `record` (everything that it enqueues on the stream) `replays` times after two to warm up.
inline Times time_graph(CUstream stream, int replays, const std::function<void()>& record) {
  CUgraph graph = nullptr;
  CUgraphExec exec = nullptr;
  RAMP_CU(cuStreamBeginCapture, stream, CU_STREAM_CAPTURE_MODE_RELAXED);
  record();
  RAMP_CU(cuStreamEndCapture, stream, &graph);
  RAMP_CU(cuGraphInstantiateWithFlags, &exec, graph, 0ULL);
  CUevent begin = nullptr;
  CUevent end = nullptr;
  RAMP_CU(cuEventCreate, &begin, 0U);
  RAMP_CU(cuEventCreate, &end, 0U);
  std::vector<double> us;
  for (int i = -2; i < replays; ++i) {
    RAMP_CU(cuEventRecord, begin, stream);
    RAMP_CU(cuGraphLaunch, exec, stream);
    RAMP_CU(cuEventRecord, end, stream);
    RAMP_CU(cuStreamSynchronize, stream);
    float ms = 0;
    RAMP_CU(cuEventElapsedTime, &ms, begin, end);
    if (i >= 0) us.push_back(1e3 * static_cast<double>(ms));
  }
  RAMP_CU(cuEventDestroy, begin);
  RAMP_CU(cuEventDestroy, end);
  RAMP_CU(cuGraphExecDestroy, exec);
  RAMP_CU(cuGraphDestroy, graph);
  std::sort(us.begin(), us.end());
  const auto at = [&](double q) {
    return us[static_cast<size_t>(q * static_cast<double>(us.size() - 1) + 0.5)];
  };
  return {at(0.5), at(0.1), at(0.9)};
}

}  // namespace bench
