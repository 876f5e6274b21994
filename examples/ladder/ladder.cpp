// The ladder: one expert GEMM in six rungs, from one output per thread to a kernel that streams weights at
// the speed of memory; each checked against fp64, then timed. README.md beside this file explains the rungs.
//
//   ladder [--model NAME] [--tokens 1,32] [--routing zipf:1.2] [--layers N] [--replays N] [--kernels DIR]
//   ladder --compile-only      registers and spills of each rung; needs NVRTC and no GPU
//
// Exit code: 0 all right, 1 a check failed, 2 it could not run (no GPU, a bad option, ...).
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <exception>
#include <future>

#include "backend/backend.hpp"
#include "backend/cuda/driver.hpp"
#include "backend/cuda/gpu.hpp"
#include "base/error.hpp"
#include "gpu/graph_timer.hpp"
#include "ladder/layers.hpp"
#include "ladder/rungs.hpp"

namespace ladder {
namespace {

using ramp::core::fail_argument;

constexpr int kRun = 0, kCheckFailed = 1, kCouldNotRun = 2;
constexpr int64_t kLeastLayers = 3, kMostLayers = 64;
// The active weights of all layers, in units of the L2 cache: none of them is there when its turn comes
// again.
constexpr double kBeyondL2 = 4;
constexpr double kMostUs = 1e6;  // a row's time on the GPU: a slow rung gets fewer replays

struct Options {
  std::string model = "olmoe", routing = "zipf:1.2", kernels = RAMP_LADDER_DIR;
  std::vector<int64_t> tokens = {32};
  int64_t layers = 0, replays = 20;  // layers 0: enough that no weight stays in L2
  bool compile_only = false, help = false;
};

int64_t integer(std::string_view option, std::string_view text, int64_t most) {
  int64_t v = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), v);
  if (error != std::errc() || end != text.data() + text.size() || v < 1 || v > most)
    fail_argument(option, "'" + ramp::core::printable(text) + "'",
                  fmt::format("an integer from 1 to {}", most));
  return v;
}

Options parse(std::span<char*> arguments) {
  Options o;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const std::string_view name = arguments[i];
    if (name == "--help" || name == "-h") {
      o.help = true;
      continue;
    }
    if (name == "--compile-only") {
      o.compile_only = true;
      continue;
    }
    const bool known = name == "--model" || name == "--tokens" || name == "--routing" || name == "--layers" ||
                       name == "--replays" || name == "--kernels";
    if (!known)
      fail_argument("ladder", "'" + ramp::core::printable(name) + "'", "one of its options", "see --help");
    if (++i == arguments.size()) fail_argument(name, "nothing behind it", "a value");
    const std::string_view value = arguments[i];
    if (name == "--model") o.model = value;
    if (name == "--routing") o.routing = value;
    if (name == "--kernels") o.kernels = value;
    if (name == "--layers") o.layers = integer(name, value, kMostLayers);
    if (name == "--replays") o.replays = integer(name, value, 1000);
    if (name != "--tokens") continue;
    o.tokens.clear();
    for (size_t at = 0; at <= value.size();) {
      const size_t end = std::min(value.find(',', at), value.size());
      o.tokens.push_back(integer(name, value.substr(at, end - at), 8192));
      at = end + 1;
    }
  }
  return o;
}

std::vector<Compiled> compile_all(std::span<const Rung> list, const std::string& directory) {
  std::vector<std::future<Compiled>> jobs;
  for (const Rung& r : list)
    jobs.push_back(std::async(std::launch::async, [&r, &directory] { return compile(r, directory); }));
  std::vector<Compiled> done;
  done.reserve(jobs.size());
  for (auto& job : jobs) done.push_back(job.get());
  return done;
}

int compile_only(const Options& o) {
  fmt::print("{:<22} {:>9} {:>12} {:>9}\n", "rung", "registers", "spill bytes", "NVRTC s");
  int spills = 0;
  for (const auto& list : {floors(), rungs()}) {
    const std::vector<Compiled> compiled = compile_all(list, o.kernels);
    for (size_t i = 0; i < list.size(); ++i) {
      const auto& r = compiled[i].resources;
      const int bytes = r ? r->spill_stores + r->spill_loads : 0;
      spills += bytes;
      fmt::print("{:<22} {:>9} {:>12} {:>9.2f}\n", list[i].name, r ? fmt::to_string(r->registers) : "cached",
                 r ? fmt::to_string(bytes) : "", compiled[i].seconds);
    }
  }
  return spills == 0 ? kRun : kCheckFailed;
}

ramp::core::ModelShape model_of(const std::string& name) {
  ramp::core::ModelShape m = ramp::core::parse_model(name);
  if (m.hidden % 128 != 0 || m.intermediate % 128 != 0)
    fail_argument("--model", fmt::format("H = {} and I = {}", m.hidden, m.intermediate),
                  "multiples of 128, the block scales' side");
  return m;
}

class Ladder {
 public:
  Ladder(const Options& o, Device device) : o_(o), device_(std::move(device)) {
    const auto all = [&](std::span<const Rung> list, std::vector<CUfunction>& functions) {
      const std::vector<Compiled> compiled = compile_all(list, o_.kernels);
      for (size_t i = 0; i < list.size(); ++i) functions.push_back(load(list[i], compiled[i]));
    };
    all(floors(), floor_functions_);
    all(rungs(), functions_);
  }

  int run() {
    const ramp::core::ModelShape model = model_of(o_.model);
    const ramp::core::WorkloadSpec routing = ramp::core::parse_workload(o_.routing);
    const int64_t fewest = *std::min_element(o_.tokens.begin(), o_.tokens.end());
    const double l2 = device_.gpu->facts().l2_bytes;
    const double bytes = make_step(device_, model, routing, fewest, 1).weight_bytes();
    int64_t count = o_.layers;
    if (count == 0)
      count = std::clamp(static_cast<int64_t>(std::ceil(kBeyondL2 * l2 / bytes)), kLeastLayers, kMostLayers);
    layers_ = make_layers(device_, model, count);
    fmt::print("GEMM1 of {} (E {}, k {}, H {}, I {}): x * W13 with SwiGLU, fp8_block to bf16 h\n", model.name,
               model.experts, model.top_k, model.hidden, model.intermediate);
    fmt::print("{}; {} layers with distinct weights in one CUDA graph, median of {} replays / layers\n",
               device_.gpu->facts().name, count, o_.replays);
    if (static_cast<double>(count) * bytes < 2 * l2)
      fmt::print("note: {:.0f} MB of active weights may stay in {:.0f} MB of L2; --layers takes more\n",
                 static_cast<double>(count) * bytes * 1e-6, l2 * 1e-6);
    bool ok = true;
    for (const int64_t tokens : o_.tokens)
      ok = point(make_step(device_, model, routing, tokens, count)) && ok;
    return ok ? kRun : kCheckFailed;
  }

 private:
  void enqueue(const Rung& r, CUfunction f, const Step& step, size_t l) const {
    const Params p = params_of(step, layers_[l], step.layers[l], r.tile_height);
    ramp::core::cuda::launch(f, grid_of(r, p, device_.gpu->facts().sm_count), device_.stream, p);
  }
  double time(const Rung& r, CUfunction f, const Step& step) const {
    const auto record = [&] {
      for (size_t l = 0; l < layers_.size(); ++l) enqueue(r, f, step, l);
    };
    const double once = bench::time_graph(device_.stream, 1, record).median_us;
    const auto replays = std::clamp(static_cast<int64_t>(kMostUs / once), int64_t{1}, o_.replays);
    return bench::time_graph(device_.stream, static_cast<int>(replays), record).median_us /
           static_cast<double>(layers_.size());
  }

  bool point(const Step& step) const {
    fmt::print(
        "\nT = {}, {}: {:.1f} active experts per layer with up to {} rows, {:.1f} MB of their weights\n",
        step.tokens, o_.routing, step.active(), step.max_rows(), step.weight_bytes() * 1e-6);
    fmt::print("{:<22} {:>8} {:>7} {:>9} {:>10} {:>12}  {}\n", "rung", "us", "GB/s", "of floor", "rel. error",
               "error/bound", "check");
    double floor = 0;
    for (size_t i = 0; i < floors().size(); ++i) {
      const double us = time(floors()[i], floor_functions_[i], step);
      if (i == 0 || us < floor) floor = us;
    }
    fmt::print("{:<22} {:>8.1f} {:>7.0f} {:>8.0f}%\n", "floor: copies alone", floor,
               step.weight_bytes() / floor * 1e-3, 100.0);
    // The first and the last layer: a wrong layer's pointer shows in one of them.
    const size_t checked[] = {0, layers_.size() - 1};
    std::vector<std::vector<Sample>> samples;
    for (const size_t l : checked)
      samples.push_back(make_reference(device_, step, layers_[l], step.layers[l]));
    bool ok = true;
    for (size_t i = 0; i < rungs().size(); ++i) {
      const Rung& r = rungs()[i];
      Verdict worst;
      for (size_t c = 0; c < std::size(checked); ++c) {
        const Verdict v = check(r, functions_[i], step, checked[c], samples[c]);
        worst.relative_error = std::max(worst.relative_error, v.relative_error);
        worst.ratio = std::max(worst.ratio, v.ratio);
        worst.unwritten += v.unwritten;
      }
      const double us = time(r, functions_[i], step);
      fmt::print("{:<22} {:>8.1f} {:>7.0f} {:>8.0f}% {:>10.1e} {:>12.3f}  {}\n", r.name, us,
                 step.weight_bytes() / us * 1e-3, 100 * floor / us, worst.relative_error, worst.ratio,
                 worst.ok() ? "PASS" : fmt::format("FAIL ({} elements not written)", worst.unwritten));
      std::fflush(stdout);  // rows show as they come, also in a file
      ok = ok && worst.ok();
    }
    return ok;
  }

  Verdict check(const Rung& r, CUfunction f, const Step& step, size_t l,
                std::span<const Sample> samples) const {
    std::vector<uint16_t> h(static_cast<size_t>(step.rows() * step.model.intermediate));
    void* const device_h = step.layers[l].h.get();
    device_.memory->fill(device_h, 0xff, h.size() * sizeof(uint16_t), device_.stream);
    enqueue(r, f, step, l);
    device_.memory->download(h.data(), device_h, h.size() * sizeof(uint16_t), device_.stream);
    return judge(samples, h, step.model.hidden, step.model.intermediate,
                 r.tensor_cores ? ramp::core::kFp8TensorUnit : 0);
  }

  const Options& o_;
  Device device_;
  std::vector<CUfunction> floor_functions_, functions_;
  std::vector<Layer> layers_;
};

int run(std::span<char*> arguments) {
  const Options o = parse(arguments);
  if (o.help) {
    fmt::print(
        "ladder [--model NAME|E,k,H,I] [--tokens 1,32] [--routing zipf:1.2] [--layers N] [--replays N]\n"
        "       [--kernels DIR] [--compile-only]\n"
        "GEMM1 of an expert block in six rungs, each checked against fp64 and timed "
        "(examples/ladder/README.md).\n");
    return kRun;
  }
  if (o.compile_only) return compile_only(o);
  Device device;
  device.gpu = ramp::core::cuda::Gpu::open(0);
  if (device.gpu->facts().arch() != "sm_90a")
    fail_argument("GPU", device.gpu->facts().arch(), "sm_90a: the rungs are written for Hopper",
                  "--compile-only runs anywhere", RAMP_ERROR_UNSUPPORTED);
  const ramp::core::cuda::ScopedContext scope(*device.gpu);
  device.memory = make_device_memory(device.gpu);
  RAMP_CU(cuStreamCreate, &device.stream, static_cast<unsigned>(CU_STREAM_NON_BLOCKING));
  return Ladder(o, std::move(device)).run();
}

}  // namespace
}  // namespace ladder

int main(int argc, char** argv) {
  try {
    return ladder::run({argv + 1, static_cast<size_t>(argc) - 1});
  } catch (const std::exception& e) {
    fmt::print(stderr, "ladder: {}\n", e.what());
    return ladder::kCouldNotRun;
  }
}
