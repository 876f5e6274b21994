// The stream probe: which structure should the decode kernel have? Brings the active experts' packed weights
// through shared-memory rings, with and without wgmma consuming them, in the layer protocol of DESIGN §6 (one
// graph, layers with distinct weights and routing), for every ring depth, blocks per SM, token width, cluster
// split and launch structure that docs/probe.md decides between. Needs a Hopper GPU, libcuda and libnvrtc.
// Prints a table; writes stream_probe.json with -o.
#include <cuda.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "probe_kernels.hpp"
#include "probe_layer.hpp"

namespace probe {
namespace {

struct Buffers {
  CUdeviceptr weights = 0, scales = 0, x = 0, x_scales = 0, mid = 0, mid_scales = 0, out1 = 0, out2 = 0,
              y = 0;
};

struct Row {
  Variant v;
  std::string model;
  int tokens = 0, active = 0;
  double us = 0, tbps = 0, ideal_us = 0, worst = -1;
};

class Probe {
 public:
  Probe(Kernels& kernels, CUdeviceptr pool, uint64_t pool_tiles, CUdeviceptr scales, CUdeviceptr small,
        int sms)
      : kernels_(kernels), pool_(pool), pool_tiles_(pool_tiles), scales_(scales), small_(small), sms_(sms) {
    CK(cuStreamCreate(&stream_, CU_STREAM_NON_BLOCKING));
  }

  // Median microseconds of a layer: GEMM1, GEMM2, combine.
  Row run(const Model& m, int tokens, const Variant& v, bool check_results) {
    const Kernel& kernel = kernels_.get(v);
    std::mt19937_64 rng(static_cast<uint64_t>(tokens) * 1000 + static_cast<uint64_t>(m.experts));
    const bool fp8 = v.fp8 != 0;
    const uint32_t width_bytes = fp8 ? 1 : 2;
    std::vector<Layer> layers;
    uint64_t base = 0;
    for (int l = 0; l < m.layers; ++l) {
      layers.push_back(make_layer(m, tokens, v.width, fp8, base, rng));
      base += layers.back().tiles;
      if (base > pool_tiles_) {
        layers.pop_back();
        break;
      }
    }
    const uint64_t rows = static_cast<uint64_t>(tokens) * m.top_k;
    // Small buffers from one block, NaN-poisoned outputs.
    CUdeviceptr at = small_;
    const auto take = [&](uint64_t bytes) {
      const CUdeviceptr p = at;
      at += (bytes + 255) / 256 * 256;
      return p;
    };
    Buffers b;
    b.x = take(uint64_t(tokens) * m.hidden * width_bytes);
    b.mid = take(rows * m.intermediate * width_bytes);
    fill(b.x, at - b.x, fp8);
    b.x_scales = take(uint64_t(tokens) * (m.hidden / 128) * 4);
    b.mid_scales = take(rows * (m.intermediate / 128) * 4);
    std::vector<float> host((at - b.x_scales) / 4);
    for (float& f : host) f = 0.5F + static_cast<float>(rng() % 1024) / 1024.0F;
    CK(cuMemcpyHtoD(b.x_scales, host.data(), host.size() * 4));
    b.out1 = take(rows * 2 * m.intermediate * 4);
    b.out2 = take(rows * m.hidden * 4);
    CK(cuMemsetD32(b.out1, 0x7fc00000, (at - b.out1) / 4));
    b.y = take(uint64_t(tokens) * m.hidden * 2);
    struct Plan {
      CUdeviceptr items1, items2, rows1, rows2;
    };
    std::vector<Plan> plans;
    for (const Layer& l : layers) {
      Plan p{take(l.gemm1.size() * sizeof(Item)), take(l.gemm2.size() * sizeof(Item)),
             take(l.rows1.size() * 4), take(l.rows2.size() * 4)};
      CK(cuMemcpyHtoD(p.items1, l.gemm1.data(), l.gemm1.size() * sizeof(Item)));
      CK(cuMemcpyHtoD(p.items2, l.gemm2.data(), l.gemm2.size() * sizeof(Item)));
      CK(cuMemcpyHtoD(p.rows1, l.rows1.data(), l.rows1.size() * 4));
      CK(cuMemcpyHtoD(p.rows2, l.rows2.data(), l.rows2.size() * 4));
      plans.push_back(p);
    }
    const int resident = std::max(1, std::min(kernel.resident, v.blocks));
    CUgraph graph = nullptr;
    CUgraphExec exec = nullptr;
    CK(cuStreamBeginCapture(stream_, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
    for (size_t l = 0; l < layers.size(); ++l) {
      gemm(kernel, v, plans[l].items1, layers[l].gemm1.size(), b.x, b.x_scales, plans[l].rows1, m.hidden, fp8,
           b.out1, 2 * m.intermediate, resident);
      gemm(kernel, v, plans[l].items2, layers[l].gemm2.size(), b.mid, b.mid_scales, plans[l].rows2,
           m.intermediate, fp8, b.out2, m.hidden, resident);
      uint32_t t = static_cast<uint32_t>(tokens);
      uint32_t k = static_cast<uint32_t>(m.top_k);
      uint32_t h = static_cast<uint32_t>(m.hidden);
      void* args[] = {&b.out2, &b.y, &t, &k, &h};
      launch(kernel.combine, std::min<unsigned>(264, (t * h + 255) / 256), 256, 0, args, v.pdl != 0, 1);
    }
    CK(cuStreamEndCapture(stream_, &graph));
    CK(cuGraphInstantiate(&exec, graph, 0));
    CUevent start = nullptr;
    CUevent stop = nullptr;
    CK(cuEventCreate(&start, 0));
    CK(cuEventCreate(&stop, 0));
    std::vector<float> times;
    for (int i = 0; i < 25; ++i) {
      CK(cuEventRecord(start, stream_));
      CK(cuGraphLaunch(exec, stream_));
      CK(cuEventRecord(stop, stream_));
      CK(cuEventSynchronize(stop));
      float ms = 0;
      CK(cuEventElapsedTime(&ms, start, stop));
      if (i >= 5) times.push_back(ms * 1000 / static_cast<float>(layers.size()));
    }
    std::sort(times.begin(), times.end());
    Row r;
    r.v = v;
    r.model = m.name;
    r.tokens = tokens;
    double bytes = 0;
    for (const Layer& l : layers) {
      bytes += static_cast<double>(l.tiles) * kTile / static_cast<double>(layers.size());
      r.active = l.active;
    }
    r.us = times[times.size() / 2];
    r.tbps = bytes / r.us / 1e6;
    r.ideal_us = bytes / 4.53e6;
    if (check_results && v.math != 0) {
      const Layer& last = layers.back();
      r.worst = std::max(worst_ratio(last.gemm1, last.rows1, pool_, scales_, b.x, b.x_scales, b.out1,
                                     m.hidden * width_bytes, 2 * m.intermediate, fp8, rng),
                         worst_ratio(last.gemm2, last.rows2, pool_, scales_, b.mid, b.mid_scales, b.out2,
                                     m.intermediate * width_bytes, m.hidden, fp8, rng));
    }
    CK(cuGraphExecDestroy(exec));
    CK(cuGraphDestroy(graph));
    CK(cuEventDestroy(start));
    CK(cuEventDestroy(stop));
    return r;
  }

  void fill(CUdeviceptr p, uint64_t bytes, bool fp8) {
    const Kernel& k = kernels_.get(Variant{});
    uint64_t n = bytes / 16;
    uint32_t keep = fp8 ? 0xbfbfbfbfU : 0x83ff83ffU;  // |values| < 2, no NaN
    uint32_t set = fp8 ? 0 : 0x3c003c00U;
    uint32_t seed = 17;
    void* args[] = {&p, &n, &keep, &set, &seed};
    CK(cuLaunchKernel(k.fill, 1320, 1, 1, 512, 1, 1, 0, nullptr, args, nullptr));
    CK(cuCtxSynchronize());
  }

 private:
  void launch(CUfunction f, unsigned grid, unsigned threads, unsigned smem, void** args, bool pdl,
              unsigned cluster) {
    CUlaunchConfig c{};
    c.gridDimX = grid;
    c.gridDimY = c.gridDimZ = c.blockDimY = c.blockDimZ = 1;
    c.blockDimX = threads;
    c.sharedMemBytes = smem;
    c.hStream = stream_;
    CUlaunchAttribute attributes[2]{};
    if (pdl) {
      attributes[c.numAttrs].id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
      attributes[c.numAttrs++].value.programmaticStreamSerializationAllowed = 1;
    }
    if (cluster > 1) {
      attributes[c.numAttrs].id = CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
      attributes[c.numAttrs].value.clusterDim.x = cluster;
      attributes[c.numAttrs].value.clusterDim.y = attributes[c.numAttrs].value.clusterDim.z = 1;
      ++c.numAttrs;
    }
    c.attrs = attributes;
    CK(cuLaunchKernelEx(&c, f, args, nullptr));
  }
  void gemm(const Kernel& kernel, const Variant& v, CUdeviceptr items, size_t count, CUdeviceptr x,
            CUdeviceptr x_scales, CUdeviceptr rows, int depth, bool fp8, CUdeviceptr out, int columns,
            int resident) {
    auto n = static_cast<uint32_t>(count);
    auto row_stride = static_cast<uint32_t>(depth * (fp8 ? 1 : 2));
    auto scale_stride = static_cast<uint32_t>(depth / 128);
    auto out_stride = static_cast<uint32_t>(columns);
    void* args[] = {&pool_,      &scales_,      &x,   &x_scales,  &rows, &items, &n,
                    &row_stride, &scale_stride, &out, &out_stride};
    const auto groups = std::min<unsigned>(n, static_cast<unsigned>(sms_ * resident / v.split));
    launch(kernel.stream, groups * static_cast<unsigned>(v.split), 288, v.smem(), args, v.pdl != 0,
           static_cast<unsigned>(v.split));
  }

  Kernels& kernels_;
  CUdeviceptr pool_;
  uint64_t pool_tiles_;
  CUdeviceptr scales_, small_;
  int sms_;
  CUstream stream_ = nullptr;
};

}  // namespace
}  // namespace probe

int main(int argc, char** argv) {
  using namespace probe;
  std::string output;
  std::string source_path = "bench/probe/stream.cuh";
  bool compile_only = false;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "-o") == 0 && i + 1 < argc)
      output = argv[++i];
    else if (std::strcmp(argv[i], "--source") == 0 && i + 1 < argc)
      source_path = argv[++i];
    else if (std::strcmp(argv[i], "--compile-only") == 0)
      compile_only = true;
    else
      return fmt::print(stderr,
                        "usage: stream_probe [-o results.json] [--source stream.cuh] [--compile-only]\n"),
             2;
  }
  std::ifstream in(source_path);
  std::stringstream text;
  text << in.rdbuf();
  if (text.str().empty())
    return fmt::print(stderr, "{}: cannot read the device source; run from the repository root\n",
                      source_path),
           3;
  Kernels kernels(text.str());

  // Ring shapes per width: the deepest rings that 1, 2, 3, 4 blocks per SM leave room for.
  const auto shapes = [](int width, int fp8, int split) {
    std::vector<Variant> out;
    for (const int blocks : {1, 2, 3, 4}) {
      Variant v{width, fp8, 2, blocks, 1, split, 0};
      while (Variant{width, fp8, v.stages + 1, blocks, 1, split, 0}.fits() && v.stages < 13) ++v.stages;
      if (v.fits()) out.push_back(v);
    }
    return out;
  };
  if (compile_only) {
    kernels.compile_only = true;
    for (const int fp8 : {1, 0}) {
      for (const int width : {8, 32, 64, 128}) {
        for (const int split : {1, 2}) {
          Variant v = shapes(width, fp8, split).front();
          v.split = split;
          v.pdl = split - 1;
          fmt::print("{:<24} NVRTC {:.2f} s\n", describe(v), kernels.get(v).nvrtc_seconds);
        }
      }
    }
    return 0;
  }

  CK(cuInit(0));
  CUdevice device = 0;
  CUcontext context = nullptr;
  CK(cuDeviceGet(&device, 0));
  CK(cuDevicePrimaryCtxRetain(&context, device));
  CK(cuCtxSetCurrent(context));
  char name[128];
  CK(cuDeviceGetName(name, sizeof name, device));
  int sms = 0;
  CK(cuDeviceGetAttribute(&sms, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, device));
  const uint64_t pool_bytes = uint64_t{24} << 30;
  CUdeviceptr pool = 0;
  CUdeviceptr scales = 0;
  CUdeviceptr small = 0;
  CK(cuMemAlloc(&pool, pool_bytes));
  CK(cuMemAlloc(&scales, pool_bytes / kTile * 8));
  CK(cuMemAlloc(&small, uint64_t{1} << 30));
  Probe probe(kernels, pool, pool_bytes / kTile, scales, small, sms);
  std::mt19937_64 rng(5);
  std::vector<float> host(pool_bytes / kTile * 2);
  for (float& f : host) f = 0.5F + static_cast<float>(rng() % 1024) / 1024.0F;
  CK(cuMemcpyHtoD(scales, host.data(), host.size() * 4));

  fmt::print(
      "{}: {} SMs; us per layer (GEMM1, GEMM2, combine), TB/s of active weights; error/bound on sampled "
      "outputs\n",
      name, sms);
  nlohmann::json json = nlohmann::json::array();
  int failures = 0;
  const auto report = [&](const Row& r) {
    const Kernel& k = kernels.get(r.v);
    fmt::print(
        "{:<13} T={:<4} active {:<4} {:<24} {:8.2f} us {:5.2f} TB/s ideal {:7.2f} regs {:3} spill {} nvrtc "
        "{:.2f}s{}\n",
        r.model, r.tokens, r.active, describe(r.v), r.us, r.tbps, r.ideal_us, k.registers, k.spill,
        k.nvrtc_seconds,
        r.worst >= 0 ? fmt::format(" err {:.2f}{}", r.worst, r.worst > 1 ? " FAILED" : "") : "");
    std::fflush(stdout);
    if (r.worst > 1) ++failures;
    json.push_back({{"model", r.model},
                    {"tokens", r.tokens},
                    {"active", r.active},
                    {"variant", describe(r.v)},
                    {"width", r.v.width},
                    {"fp8", r.v.fp8},
                    {"stages", r.v.stages},
                    {"blocks_per_sm", r.v.blocks},
                    {"math", r.v.math},
                    {"split", r.v.split},
                    {"pdl", r.v.pdl},
                    {"us", r.us},
                    {"tbps", r.tbps},
                    {"ideal_us", r.ideal_us},
                    {"registers", k.registers},
                    {"spill_bytes", k.spill},
                    {"nvrtc_s", k.nvrtc_seconds},
                    {"error_over_bound", r.worst}});
  };
  for (const int fp8 : {1, 0}) {
    probe.fill(pool, pool_bytes, fp8 != 0);
    for (const Model& m : kModels) {
      for (const int tokens : {1, 8, 32, 128}) {
        // Expected largest load decides the width; wider experts take several tiles.
        const double mean = static_cast<double>(tokens) * m.top_k / m.experts;
        const int want = static_cast<int>(mean + 3 * std::sqrt(mean) + 1);
        const int width = tokens <= 8 ? 8 : (want <= 32 ? 32 : (want <= 64 ? 64 : 128));
        std::vector<Variant> variants;
        for (Variant v : shapes(width, fp8, 1)) {
          if (fp8 != 0) {
            v.math = 0;
            variants.push_back(v);
            v.math = 1;
          }
          variants.push_back(v);
          v.pdl = 1;
          variants.push_back(v);
        }
        if (tokens <= 8) {
          for (const int split : {2, 4}) {
            for (Variant v : shapes(width, fp8, split)) {
              if (m.intermediate / (fp8 != 0 ? 128 : 64) % split != 0 || v.blocks == 3) continue;
              v.pdl = 1;
              variants.push_back(v);
            }
          }
        }
        for (const Variant& v : variants) {
          if (kernels.get(v).stream == nullptr) {
            fmt::print("{:<13} T={:<4} {:<24} does not compile: too few registers for {} blocks per SM\n",
                       m.name, tokens, describe(v), v.blocks);
            continue;
          }
          report(probe.run(m, tokens, v, true));
        }
      }
    }
  }
  if (!output.empty()) std::ofstream(output) << json.dump(1) << "\n";
  fmt::print("{} rows, {} failed checks\n", json.size(), failures);
  return failures == 0 ? 0 : 1;
}
