// The combine kernel behind its producer, inside a CUDA graph: (producer + combine) x L minus producer x L,
// over L, with distinct rows per layer. Bytes it must move: T*k*H bf16 rows in, T*H bf16 out, the row index.
// The producer writes all rows in GEMM2's order, so what is still in L2 is what a real block would leave
// there.
//   combine_bench [replays]
#include <fmt/format.h>

#include <cstdlib>
#include <random>
#include <vector>

#include "backend/cuda/driver.hpp"
#include "backend/cuda/gpu.hpp"
#include "backend/cuda/launch.hpp"
#include "backend/cuda/plain_block.hpp"
#include "base/tensor.hpp"
#include "gpu/graph_timer.hpp"

namespace {

using namespace ramp::core;        // NOLINT(google-build-using-namespace)
using namespace ramp::core::cuda;  // NOLINT(google-build-using-namespace)

struct RowsParams {
  uint16_t* rows;
  long long count;
  int hidden;
  unsigned seed;
};

struct Shape {
  const char* name;
  int64_t top_k, hidden;
};

constexpr int kLayers = 4;

}  // namespace

int main(int argc, char** argv) {
  const int replays = argc > 1 ? std::atoi(argv[1]) : 20;
  const std::shared_ptr<const Gpu> gpu = Gpu::open(0);
  const ScopedContext scope(*gpu);
  KernelLibrary library(gpu, "", {});
  const std::shared_ptr<const DeviceMemory> memory = make_device_memory(gpu);
  Combine combine(gpu, library);
  combine.prepare(RAMP_BF16);
  const KernelProgram program{"bench_rows", "bench/rows.cu", {}, {"write_rows"}, 80};
  CUfunction const write = library.get(program, "write_rows");
  CUstream stream = nullptr;
  RAMP_CU(cuStreamCreate, &stream, static_cast<unsigned>(CU_STREAM_NON_BLOCKING));
  const auto blocks = static_cast<uint64_t>(gpu->facts().sm_count) * 8;

  fmt::print(
      "combine behind GEMM2's stand-in, repeatable, bf16 rows; bars: <= 2.5 us at T <= 8, >= 3.2 TB/s at "
      "2048, >= 3.8 at 8192\n");
  fmt::print("{:<12} {:>6} {:>9} {:>9} {:>9} {:>8}\n", "model", "T", "us", "producer", "MB", "TB/s");
  for (const Shape& s : {Shape{"olmoe", 8, 2048}, Shape{"qwen3-30b", 8, 2048}, Shape{"mixtral-8x7b", 2, 4096},
                         Shape{"dsv3", 8, 7168}}) {
    for (const int64_t tokens : {1, 8, 32, 128, 512, 2048, 8192}) {
      const int64_t slots = tokens * s.top_k;
      std::vector<int32_t> order(static_cast<size_t>(slots));
      std::mt19937 random(static_cast<unsigned>(tokens));
      ExpertWeights weights;  // only the shape is read
      weights.hidden = s.hidden;
      std::vector<std::shared_ptr<void>> rows, positions, y;
      for (int l = 0; l < kLayers; ++l) {
        for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int32_t>(i);
        std::shuffle(order.begin(), order.end(), random);
        rows.push_back(memory->allocate(static_cast<uint64_t>(slots * s.hidden) * 2));
        positions.push_back(memory->allocate(static_cast<uint64_t>(slots) * 4));
        y.push_back(memory->allocate(static_cast<uint64_t>(tokens * s.hidden) * 2));
        memory->upload(positions.back().get(), order.data(), order.size() * 4, stream);
        memory->synchronize(stream);
      }
      const auto record = [&](bool both) {
        for (int l = 0; l < kLayers; ++l) {
          const auto at = static_cast<size_t>(l);
          launch(write, {blocks, 1, 256, 0}, stream,
                 RowsParams{static_cast<uint16_t*>(rows[at].get()), slots, static_cast<int>(s.hidden),
                            static_cast<unsigned>(l)});
          if (!both) continue;
          BlockCall call;
          call.weights = &weights;
          call.tokens = tokens;
          call.top_k = s.top_k;
          call.y = make_tensor(y[at].get(), RAMP_BF16, {tokens, s.hidden});
          call.y = with_strides(call.y);
          RowIndex index;
          index.positions = static_cast<int32_t*>(positions[at].get());
          combine.block(call, rows[at].get(), RAMP_BF16, index, stream);
        }
      };
      record(true);
      memory->synchronize(stream);
      const double with = bench::time_graph(stream, replays, [&] { record(true); }).median_us / kLayers;
      const double without = bench::time_graph(stream, replays, [&] { record(false); }).median_us / kLayers;
      const double us = with - without;
      const double bytes =
          static_cast<double>(slots * s.hidden + tokens * s.hidden) * 2 + static_cast<double>(slots) * 4;
      fmt::print("{:<12} {:>6} {:>9.2f} {:>9.2f} {:>9.2f} {:>8.2f}\n", s.name, tokens, us, without,
                 bytes * 1e-6, bytes / us * 1e-6);
    }
  }
  return 0;
}
