// Runs one variant on one layer shape: buffers, one CUDA graph over the layers, timing, checks.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "probe_check.hpp"
#include "probe_kernels.hpp"
#include "probe_layer.hpp"

namespace probe {

struct Row {
  std::string part, model;
  Variant v;
  int tokens = 0, active = 0, max_load = 0, grid = 0, cluster_capacity = 0;
  double us = 0, p10 = 0, p90 = 0, tbps = 0, ideal_us = 0, worst = -1;
};

// Twins of the device's structures (device.cuh).
struct GemmArgs {
  CUdeviceptr x, x_scales, row_index, out;
  uint32_t row_stride, scale_stride, out_stride, unused;
};
struct Args {
  CUtensorMap maps[2];
  GemmArgs gemm[2];
  CUdeviceptr weights, weight_scales, items, mid, y, counters, tickets;
  uint32_t count, fold_need, tokens, top_k;
};
static_assert(offsetof(Args, count) == 408, "the device's twin must agree");

class Probe {
 public:
  Probe(Kernels& kernels, CUdeviceptr pool, uint64_t pool_tiles, CUdeviceptr scales, CUdeviceptr small,
        uint64_t small_bytes, int sms)
      : kernels_(kernels),
        pool_(pool),
        pool_tiles_(pool_tiles),
        scales_(scales),
        small_(small),
        small_bytes_(small_bytes),
        sms_(sms) {
    CK(cuStreamCreate(&stream_, CU_STREAM_NON_BLOCKING));
  }

  // Queues (blocks, or clusters of them) that are resident at once; 0 if the variant does not run here.
  int queues(const Variant& v) {
    const Kernel& kernel = kernels_.get(v);
    const int resident = std::min(kernel.resident, v.blocks);
    if (!kernel.is_built || resident == 0) return 0;
    if (v.cluster() == 1) return sms_ * resident;
    CUlaunchAttribute attribute{};
    CUlaunchConfig c = config(static_cast<unsigned>(v.cluster()), static_cast<unsigned>(v.threads()),
                              v.smem(), false, v.cluster(), &attribute);
    int clusters = 0;
    CK(cuOccupancyMaxActiveClusters(&clusters, kernel.stream, &c));
    return std::min(clusters, sms_ * resident / v.cluster());
  }

  // Median microseconds of a layer (GEMM1, GEMM2, combine), and the worst error / bound of its last one.
  Row run(const Model& m, int tokens, const Variant& v) {
    const Kernel& kernel = kernels_.get(v);
    const auto capacity = static_cast<size_t>(queues(v));
    std::mt19937_64 rng(static_cast<uint64_t>(tokens) * 1000 + static_cast<uint64_t>(m.experts));
    std::vector<Layer> layers;
    uint64_t base = 0;
    for (int l = 0; l < m.layers; ++l) {
      layers.push_back(make_layer(m, tokens, v, base, rng));
      base += layers.back().tiles;
      if (base > pool_tiles_) {
        layers.pop_back();
        break;
      }
    }
    Row r;
    r.model = m.name;
    r.v = v;
    r.tokens = tokens;
    Shared s = prepare(m, tokens, v, layers, rng);
    CUgraph graph = nullptr;
    CUgraphExec exec = nullptr;
    std::vector<std::vector<Args>> launches;
    for (const Layer& l : layers) launches.push_back(plan(m, tokens, v, l, s, capacity));
    CK(cuCtxSynchronize());  // stream_ does not wait for the fills and copies above by itself
    CK(cuStreamBeginCapture(stream_, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
    for (std::vector<Args>& layer : launches) {
      for (Args& a : layer) {
        const auto grid =
            static_cast<unsigned>(std::min<size_t>(a.count, capacity)) * static_cast<unsigned>(v.cluster());
        r.grid = static_cast<int>(grid);
        void* args[] = {&a};
        launch(kernel.stream, grid, static_cast<unsigned>(v.threads()), v.smem(), args, v.pdl != 0,
               v.cluster());
      }
      if (v.fold != 0 && v.math != 0) continue;
      auto t = static_cast<uint32_t>(tokens);
      auto k = static_cast<uint32_t>(m.top_k);
      auto h = static_cast<uint32_t>(m.hidden);
      void* args[] = {&s.out2, &s.y, &t, &k, &h};
      launch(kernels_.helpers().combine, std::min<unsigned>(264, (t * h + 255) / 256), 256, 0, args,
             v.pdl != 0, 1);
    }
    CK(cuStreamEndCapture(stream_, &graph));
    CK(cuGraphInstantiate(&exec, graph, 0));
    const std::vector<float> times = replay(exec, layers.size());
    double bytes = 0;
    for (const Layer& l : layers)
      bytes += static_cast<double>(l.tiles * kTile) / static_cast<double>(layers.size());
    r.active = layers.back().active;
    r.max_load = layers.back().max_load;
    r.cluster_capacity = v.cluster() > 1 ? static_cast<int>(capacity) : 0;
    r.us = static_cast<double>(times[times.size() / 2]);
    r.p10 = static_cast<double>(times[times.size() / 10]);
    r.p90 = static_cast<double>(times[times.size() * 9 / 10]);
    r.tbps = bytes / r.us / 1e6;
    r.ideal_us = bytes / 4.53e6;
    if (v.math != 0) r.worst = check_layer(m, tokens, v, layers.back(), s, rng);
    CK(cuGraphExecDestroy(exec));
    CK(cuGraphDestroy(graph));
    return r;
  }

  void fill(CUdeviceptr p, uint64_t bytes, bool fp8) {
    uint64_t n = bytes / 16;
    uint32_t keep = fp8 ? 0xbfbfbfbfU : 0x83ff83ffU;  // |values| < 2, no NaN
    uint32_t set = fp8 ? 0 : 0x3c003c00U;
    uint32_t seed = 17;
    void* args[] = {&p, &n, &keep, &set, &seed};
    CK(cuLaunchKernel(kernels_.helpers().fill, 1320, 1, 1, 512, 1, 1, 0, nullptr, args, nullptr));
    CK(cuCtxSynchronize());
  }

 private:
  // What the layers of a row share; outputs start as NaN.
  struct Shared {
    CUdeviceptr at, x, mid, x_scales, mid_scales, out1, out2, y, counters, tickets;
  };

  CUdeviceptr take(Shared& s, uint64_t bytes) const {
    const CUdeviceptr p = s.at;
    s.at += (bytes + 1023) / 1024 * 1024;
    if (s.at > small_ + small_bytes_) {
      fmt::print(stderr, "small buffers: got {} bytes, expected at most {}\n", s.at - small_, small_bytes_);
      std::exit(5);
    }
    return p;
  }

  Shared prepare(const Model& m, int tokens, const Variant& v, const std::vector<Layer>& layers,
                 std::mt19937_64& rng) {
    const bool fp8 = v.fp8 != 0;
    const auto h = static_cast<uint64_t>(m.hidden);
    const auto i = static_cast<uint64_t>(m.intermediate);
    const uint64_t rows = static_cast<uint64_t>(tokens) * static_cast<uint64_t>(m.top_k);
    uint64_t blocks1 = 0;
    uint64_t blocks2 = 0;
    uint64_t counters = 0;
    for (const Layer& l : layers) {
      blocks1 = std::max<uint64_t>(blocks1, l.blocks1);
      blocks2 = std::max<uint64_t>(blocks2, l.blocks2);
      counters = std::max<uint64_t>(counters, l.counters);
    }
    Shared s{};
    s.at = small_;
    const uint64_t value = fp8 ? 1 : 2;
    s.x = take(s, v.packed != 0 ? blocks1 * 1024 : static_cast<uint64_t>(tokens) * h * value);
    s.mid = take(s, v.packed != 0 ? blocks2 * 1024 : rows * i * value);
    fill(s.x, s.at - s.x, fp8);
    s.x_scales = take(s, v.packed != 0 ? blocks1 * 32 : static_cast<uint64_t>(tokens) * (h / 128) * 4);
    s.mid_scales = take(s, v.packed != 0 ? blocks2 * 32 : rows * (i / 128) * 4);
    std::vector<float> host((s.at - s.x_scales) / 4);
    for (float& f : host) f = 0.5F + static_cast<float>(rng() % 1024) / 1024.0F;
    CK(cuMemcpyHtoD(s.x_scales, host.data(), host.size() * 4));
    s.out1 = take(s, rows * 2 * i * 4);
    s.out2 = take(s, rows * h * 4);
    s.y = take(s, static_cast<uint64_t>(tokens) * h * 2);
    CK(cuMemsetD32(s.out1, 0x7fc07fc0, (s.at - s.out1) / 4));
    s.counters = take(s, counters * 8);
    s.tickets = take(s, h / static_cast<uint64_t>(v.rows) * 4);
    CK(cuMemsetD32(s.counters, 0, (s.at - s.counters) / 4));
    return s;
  }

  [[nodiscard]] CUtensorMap map(CUdeviceptr p, uint64_t depth_bytes, uint64_t rows, int box_rows) const {
    CUtensorMap t{};
    const cuuint64_t dims[] = {depth_bytes, rows};
    const cuuint64_t strides[] = {depth_bytes};
    const cuuint32_t box[] = {128, static_cast<cuuint32_t>(box_rows)};
    const cuuint32_t steps[] = {1, 1};
    CK(cuTensorMapEncodeTiled(&t, CU_TENSOR_MAP_DATA_TYPE_UINT8, 2, reinterpret_cast<void*>(p), dims, strides,
                              box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                              CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE));
    return t;
  }

  template <class T>
  CUdeviceptr upload(Shared& s, const std::vector<T>& values) {
    const CUdeviceptr p = take(s, values.size() * sizeof(T));
    CK(cuMemcpyHtoD(p, values.data(), values.size() * sizeof(T)));
    return p;
  }

  // The launches of a layer: one per GEMM, or a single one.
  std::vector<Args> plan(const Model& m, int tokens, const Variant& v, const Layer& l, Shared& s,
                         size_t capacity) {
    const uint32_t value = v.fp8 != 0 ? 1 : 2;
    const auto h = static_cast<uint32_t>(m.hidden);
    const auto i = static_cast<uint32_t>(m.intermediate);
    const auto active = static_cast<uint64_t>(l.active);
    Args a{};
    a.gemm[0] = {s.x, s.x_scales, upload(s, l.rows1), s.out1, h * value, h / 128, 2 * i, 0};
    a.gemm[1] = {s.mid, s.mid_scales, upload(s, l.rows2), s.out2, i * value, i / 128, h, 0};
    if (v.tensor != 0) {
      a.maps[0] = map(pool_ + l.base1 * kTile, uint64_t{h} * value, active * 2 * i, v.rows);
      a.maps[1] = map(pool_ + l.base2 * kTile, uint64_t{i} * value, active * h, v.rows);
    }
    a.weights = pool_;
    a.weight_scales = scales_;
    a.mid = s.mid;
    a.y = s.y;
    a.counters = s.counters;
    a.tickets = s.tickets;
    a.fold_need = v.fold != 0 ? l.row_tiles : 0;
    a.tokens = static_cast<uint32_t>(tokens);
    a.top_k = static_cast<uint32_t>(m.top_k);
    const auto queue = [&](const Args& from, const std::vector<Item>& items) {
      Args args = from;
      const auto ordered = order_items(items, std::min(items.size(), capacity), v.balanced != 0);
      args.items = upload(s, ordered);
      args.count = static_cast<uint32_t>(ordered.size());
      return args;
    };
    if (v.single()) {
      std::vector<Item> both = l.gemm1;
      both.insert(both.end(), l.gemm2.begin(), l.gemm2.end());
      return {queue(a, both)};
    }
    Args second = a;
    second.gemm[0] = a.gemm[1];
    second.maps[0] = a.maps[1];
    return {queue(a, l.gemm1), queue(second, l.gemm2)};
  }

  std::vector<float> replay(CUgraphExec exec, size_t layers) {
    CUevent start = nullptr;
    CUevent stop = nullptr;
    CK(cuEventCreate(&start, 0));
    CK(cuEventCreate(&stop, 0));
    std::vector<float> times;
    for (int i = 0; i < 23; ++i) {
      CK(cuEventRecord(start, stream_));
      CK(cuGraphLaunch(exec, stream_));
      CK(cuEventRecord(stop, stream_));
      CK(cuEventSynchronize(stop));
      float ms = 0;
      CK(cuEventElapsedTime(&ms, start, stop));
      if (i >= 3) times.push_back(ms * 1000 / static_cast<float>(layers));
    }
    std::sort(times.begin(), times.end());
    CK(cuEventDestroy(start));
    CK(cuEventDestroy(stop));
    return times;
  }

  double check_layer(const Model& m, int tokens, const Variant& v, const Layer& l, const Shared& s,
                     std::mt19937_64& rng) {
    const uint32_t value = v.fp8 != 0 ? 1 : 2;
    const auto h = static_cast<uint32_t>(m.hidden);
    const auto i = static_cast<uint32_t>(m.intermediate);
    const Operands first{pool_, scales_, s.x, s.x_scales, s.out1, l.base1, h * value, 2 * i, &l.rows1};
    const Operands second{pool_, scales_, s.mid, s.mid_scales, s.out2, l.base2, i * value, h, &l.rows2};
    double worst = std::max(check_gemm(l.gemm1, v, first, rng), check_gemm(l.gemm2, v, second, rng));
    if (v.single()) worst = std::max(worst, check_mid(l.gemm1, v, s.out1, 2 * i, s.mid, rng));
    return std::max(worst, check_combine(m, tokens, s.out2, s.y, rng));
  }

  CUlaunchConfig config(unsigned grid, unsigned threads, int smem, bool pdl, int cluster,
                        CUlaunchAttribute* attributes) const {
    CUlaunchConfig c{};
    c.gridDimX = grid;
    c.gridDimY = c.gridDimZ = c.blockDimY = c.blockDimZ = 1;
    c.blockDimX = threads;
    c.sharedMemBytes = static_cast<unsigned>(smem);
    c.hStream = stream_;
    if (pdl) {
      attributes[c.numAttrs].id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
      attributes[c.numAttrs++].value.programmaticStreamSerializationAllowed = 1;
    }
    if (cluster > 1) {
      attributes[c.numAttrs].id = CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
      attributes[c.numAttrs].value.clusterDim.x = static_cast<unsigned>(cluster);
      attributes[c.numAttrs].value.clusterDim.y = attributes[c.numAttrs].value.clusterDim.z = 1;
      ++c.numAttrs;
    }
    c.attrs = attributes;
    return c;
  }
  void launch(CUfunction f, unsigned grid, unsigned threads, int smem, void** args, bool pdl,
              int cluster) const {
    CUlaunchAttribute attributes[2]{};
    const CUlaunchConfig c = config(grid, threads, smem, pdl, cluster, attributes);
    CK(cuLaunchKernelEx(&c, f, args, nullptr));
  }

  Kernels& kernels_;
  CUdeviceptr pool_;
  uint64_t pool_tiles_;
  CUdeviceptr scales_, small_;
  uint64_t small_bytes_;
  int sms_;
  CUstream stream_ = nullptr;
};

}  // namespace probe
