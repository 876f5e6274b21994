// Runs and times the portable GEMMs of a layer by themselves, GEMM 1, requantisation where asked for, and
// GEMM 2, over made-up codes, in one CUDA graph over layers with weights of their own; routing as `ramp
// workload` draws it. For portable_ablation.cpp alone.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "backend/cuda/driver.hpp"
#include "backend/cuda/gpu.hpp"
#include "backend/cuda/kernel_library.hpp"
#include "backend/cuda/launch.hpp"
#include "backend/cuda/portable_block.hpp"
#include "backend/cuda/prologue.hpp"
#include "base/error.hpp"
#include "base/file.hpp"
#include "base/tensor.hpp"
#include "gpu/graph_timer.hpp"
#include "params/block.hpp"
#include "params/portable.hpp"
#include "routing/sorted_rows.hpp"
#include "routing/workload.hpp"
#include "svg.hpp"
#include "weights/expert_weights.hpp"

namespace bench {

using namespace ramp::core;        // NOLINT(google-build-using-namespace)
using namespace ramp::core::cuda;  // NOLINT(google-build-using-namespace)

struct Shape {
  const char* name;
  int64_t experts, top_k, hidden, intermediate;
};
constexpr Shape kModels[] = {{"OLMoE", 64, 8, 2048, 1024}, {"Mixtral-8x7B", 8, 2, 4096, 14336}};
constexpr Shape kQwen = {"Qwen3-30B", 128, 8, 2048, 768};
constexpr Shape kTiny = {"quick", 4, 2, 256, 128};
constexpr int kAllTiles = 1 << 30;
constexpr int kLayers = 2;

struct ActivateParams {  // kernels/bench/activate.cu
  const uint16_t* gate_up;
  uint16_t* h;
  long long rows;
  int n;
};

// What one line of a table runs.
struct Way {
  std::string name;
  PortableVariant variant;
  std::string option;  // of the compiler
  int group = kAllTiles;
  bool fused = true;  // gate, up and activation
  // PortableParams: rotate, tickets.
  bool rotate = false, tickets = false;
};

struct Options {
  std::string part, routing = "uniform", plot;
  ramp_format format = RAMP_FORMAT_FP8_BLOCK;
  bool direct = false;
  bool requantizes = false;  // h of fp8_block becomes GEMM 2's input, as in the block; else GEMM 2 reads x
  bool quick = false;
};

class Bench {
 public:
  explicit Bench(const Options& o)
      : o_(o),
        gpu_(Gpu::open(0)),
        scope_(*gpu_),
        library_(gpu_, "", {}),
        prologue_(gpu_, library_),
        memory_(make_device_memory(gpu_)),
        arch_(portable_arch(gpu_->facts())) {
    RAMP_CU(cuStreamCreate, &stream_, static_cast<unsigned>(CU_STREAM_NON_BLOCKING));
  }

  void run(const Shape& m, const std::vector<int64_t>& tokens, const std::vector<Way>& ways) {
    fill(m, tokens.back());
    fmt::print("\n{}, {}, {}: GEMM 1 + GEMM 2, us per layer\n\n| T |", m.name, format_name(o_.format),
               o_.routing);
    for (const Way& w : ways) fmt::print(" {} |", w.name);
    fmt::print("\n|---|");
    for (size_t i = 0; i < ways.size(); ++i) fmt::print("---|");
    fmt::print("\n");
    constexpr const char* kColours[] = {"#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#111"};
    std::vector<ramp::bench::Series> series;
    for (const Way& w : ways)
      series.push_back({fmt::format("{} {}", m.name, w.name),
                        kColours[(series_ + series.size()) % 6],
                        {},
                        true,
                        2.5,
                        0.9});
    for (const int64_t t : tokens) {
      fmt::print("| {} |", t);
      double base = 0;
      for (size_t i = 0; i < ways.size(); ++i) {
        const double us = measure(m, t, ways[i]);
        base = i == 0 ? us : base;
        fmt::print(" {}",
                   i == 0 ? fmt::format("{:.1f} |", us) : fmt::format("{:.1f} ({:.2f}) |", us, us / base));
        series[i].points.emplace_back(static_cast<double>(t), us / base);
      }
      fmt::print("\n");
      std::fflush(stdout);
    }
    series_ += series.size();
    for (ramp::bench::Series& s : series) all_.push_back(std::move(s));
  }

  // Compiles everything at once.
  void prepare(const std::vector<Way>& ways) {
    std::vector<KernelProgram> programs;
    for (const Way& w : ways) {
      for (const bool gated : {false, true}) {
        KernelProgram p = program(w, gated);
        const auto same = [&](const KernelProgram& other) { return other.name == p.name; };
        if (std::none_of(programs.begin(), programs.end(), same)) programs.push_back(std::move(p));
      }
    }
    library_.load(programs);
  }

  // A variant that the library ships, by the tokens of a tile.
  [[nodiscard]] PortableVariant shipped(int32_t tokens) const {
    for (const PortableVariant& v : kPortableVariants)
      if (v.tokens == tokens && v.is_for(o_.format, arch_)) return v;
    fail_argument("tile", fmt::format("{} tokens", tokens), "a tile of the portable kernels", "");
  }

  void plot(const std::string& title) {
    if (o_.plot.empty()) return;
    ramp::bench::Chart chart(title, {"tokens", true}, {"time over the first column's", false});
    for (ramp::bench::Series& s : all_) chart.add(std::move(s));
    write_text(o_.plot, chart.text());
  }

 private:
  [[nodiscard]] int64_t bytes() const { return dtype_bytes(weight_dtype(o_.format)); }

  // Random values of moderate size, the same megabytes again and again.
  std::shared_ptr<void> random_values(uint64_t size) {
    constexpr uint64_t kPiece = 8U << 20U;
    std::vector<uint8_t>& host = piece_;
    if (host.empty()) {
      std::mt19937_64 random(1);
      host.resize(kPiece);
      for (uint64_t i = 0; i < kPiece; ++i) {
        const auto byte = static_cast<uint8_t>(random());
        // e4m3 between 2^-3 and 2^2; bf16: 0x3f00 to 0x3fff with a sign.
        host[i] = bytes() == 1    ? static_cast<uint8_t>((byte & 0x9fU) | 0x20U)
                  : i % 2 == 0    ? byte
                  : byte % 2 == 0 ? uint8_t{0x3f}
                                  : uint8_t{0xbf};
      }
    }
    std::shared_ptr<void> p = memory_->allocate(size);
    for (uint64_t at = 0; at < size; at += kPiece)
      memory_->upload(static_cast<uint8_t*>(p.get()) + at, host.data(), std::min(kPiece, size - at), stream_);
    return p;
  }

  void fill(const Shape& m, int64_t most) {
    for (auto& list : {&w13_, &w2_}) list->clear();
    const auto w = static_cast<uint64_t>(m.experts * m.hidden * m.intermediate * bytes());
    for (int l = 0; l < kLayers; ++l) {
      w13_.push_back(random_values(2 * w));
      w2_.push_back(random_values(w));
    }
    const auto rows = static_cast<uint64_t>(most * m.top_k);
    const auto width = static_cast<uint64_t>(std::max(m.hidden, m.intermediate));
    x_ = random_values(rows * width * static_cast<uint64_t>(bytes()));
    h_ = memory_->allocate(rows * static_cast<uint64_t>(m.intermediate) * 4);
    wide_ = memory_->allocate(rows * static_cast<uint64_t>(m.intermediate) * 4);
    out_ = memory_->allocate(rows * static_cast<uint64_t>(m.hidden) * 4);
    codes_ = memory_->allocate(rows * static_cast<uint64_t>(m.intermediate));
    h_scales_ = memory_->allocate(rows * static_cast<uint64_t>(m.intermediate) / 128 * 4);
    const uint64_t scales = std::max<uint64_t>(rows * width, 2 * w) / 128 * 4;
    std::vector<float> values(scales / 4, 0.01F);
    scales_ = memory_->allocate(scales);
    memory_->upload(scales_.get(), values.data(), scales, stream_);
    memory_->synchronize(stream_);
  }

  // The plan of one layer and its place on the device.
  struct Plan {
    std::shared_ptr<void> memory;
    const int* offsets = nullptr;
    const int* slots = nullptr;
    const int* count = nullptr;
    const PortableTile* tiles = nullptr;
    int64_t number = 0;
  };
  Plan plan(const Shape& m, int64_t tokens, int32_t tile, uint64_t seed) {
    const Routing r = make_routing(parse_workload(o_.routing), m.experts, m.top_k, tokens, seed);
    const int64_t rows = tokens * m.top_k;
    std::vector<int32_t> offsets(static_cast<size_t>(m.experts) + 1), slots(static_cast<size_t>(rows)), none;
    SortedRows sorted{offsets, slots, none};
    sort_rows(make_tensor(const_cast<int32_t*>(r.ids.data()), RAMP_I32, {tokens, m.top_k}), {}, m.experts,
              sorted);
    std::vector<PortableTile> tiles;
    for (int64_t e = 0; e < m.experts; ++e) {
      const int32_t end = offsets[static_cast<size_t>(e) + 1];
      for (int32_t at = offsets[static_cast<size_t>(e)]; at < end; at += tile)
        tiles.push_back({static_cast<int>(e), at, std::min(tile, end - at), 0});
    }
    Plan p;
    p.number = static_cast<int64_t>(tiles.size());
    const int32_t count[4] = {static_cast<int32_t>(tiles.size()), 0, 0, 0};  // and tickets
    const uint64_t parts[] = {tiles.size() * sizeof(PortableTile), 4 * offsets.size(), 4 * slots.size(),
                              sizeof count};
    const void* const from[] = {tiles.data(), offsets.data(), slots.data(), count};
    const void* to[4] = {};
    uint64_t size = 0;
    for (const uint64_t part : parts) size += (part + 255) / 256 * 256;
    p.memory = memory_->allocate(size);
    auto* at = static_cast<uint8_t*>(p.memory.get());
    for (size_t i = 0; i < 4; ++i) {
      memory_->upload(at, from[i], parts[i], stream_);
      to[i] = at;
      at += (parts[i] + 255) / 256 * 256;
    }
    memory_->synchronize(stream_);
    p.tiles = static_cast<const PortableTile*>(to[0]);
    p.offsets = static_cast<const int*>(to[1]);
    p.slots = static_cast<const int*>(to[2]);
    p.count = static_cast<const int*>(to[3]);
    return p;
  }

  [[nodiscard]] KernelProgram program(const Way& way, bool gated) const {
    KernelProgram p = portable_program(way.variant, o_.format, gated);
    if (!way.option.empty()) {
      p.name += "_bench";
      p.options.push_back(way.option);
    }
    return p;
  }

  void gemm(const Way& way, bool gated, const PortableParams& p, const Plan& plan) {
    CUfunction const f = library_.get(program(way, gated), "gemm");
    const uint32_t shared = way.variant.shared_bytes(o_.format, arch_);
    RAMP_CU(cuFuncSetAttribute, f, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, static_cast<int>(shared));
    int blocks = 0;
    RAMP_CU(cuOccupancyMaxActiveBlocksPerMultiprocessor, &blocks, f, way.variant.threads(),
            static_cast<size_t>(shared));
    const auto columns = static_cast<uint64_t>(way.variant.unit_columns(o_.format, gated));
    const uint64_t units = static_cast<uint64_t>(plan.number) * ceil_div(static_cast<uint64_t>(p.n), columns);
    launch_dependent(
        gpu_->facts().major >= 9, f,
        {std::min(units, static_cast<uint64_t>(gpu_->facts().sm_count) * static_cast<uint64_t>(blocks)), 1,
         static_cast<unsigned>(way.variant.threads()), shared},
        stream_, p);
  }

  void layer(const Shape& m, const Way& way, const Plan& plan, size_t l) {
    PortableParams p{};
    p.tiles = plan.tiles;
    p.num_tiles = plan.count;
    p.offsets = plan.offsets;
    p.slots = plan.slots;
    p.top_k = static_cast<int>(m.top_k);
    p.group = way.group;
    p.early = 1;
    p.rotate = way.rotate ? 1 : 0;
    auto* const counters = reinterpret_cast<unsigned*>(const_cast<int*>(plan.count));
    p.tickets = way.tickets ? counters + 1 : nullptr;
    p.x_scale = static_cast<const float*>(scales_.get());
    p.w_scale = static_cast<const float*>(scales_.get());
    p.ws_column = 1;
    const auto shape = [&](const void* x, int source, const void* w, int64_t rows, int64_t n, int64_t depth) {
      p.x = static_cast<const unsigned char*>(x);
      p.x_source = p.x_scale_source = source;
      p.x_stride = p.w_row = depth * bytes();
      p.groups = static_cast<int>(depth / 128);
      p.x_scale_stride = p.ws_row = p.groups;
      p.w = static_cast<const unsigned char*>(w);
      p.w_expert = rows * depth * bytes();
      p.ws_expert = rows / 128 * p.groups;
      p.n = static_cast<int>(n);
      p.depth = static_cast<int>(depth * bytes());
      p.out_stride = n;
    };
    p.up_row = static_cast<int>(m.intermediate);
    p.up_scale_row = p.up_row / 128;
    const bool codes = way.variant.fuses(o_.format);
    p.out = codes ? codes_.get() : h_.get();
    p.h = static_cast<float*>(h_.get());
    p.out_scales = static_cast<float*>(h_scales_.get());
    p.out_groups = static_cast<int>(m.intermediate / 128);
    shape(x_.get(), kRowToken, w13_[l].get(), 2 * m.intermediate, m.intermediate, m.hidden);
    if (way.fused) {
      gemm(way, true, p, plan);
    } else {  // gate and up as bf16 rows, then the activation by a kernel of its own
      p.second = 1;
      p.n = 2 * p.n;
      p.out_stride = p.n;
      p.out = wide_.get();
      gemm(way, false, p, plan);
      CUfunction const f =
          library_.get({"bench_activate", "bench/activate.cu", {}, {"activate"}, 80}, "activate");
      const auto blocks = static_cast<uint64_t>(gpu_->facts().sm_count) * 8;
      launch(f, {blocks, 1, 256, 0}, stream_,
             ActivateParams{static_cast<const uint16_t*>(wide_.get()), static_cast<uint16_t*>(h_.get()),
                            rows_, static_cast<int>(m.intermediate)});
    }
    p.second = 1;
    p.tickets = way.tickets ? counters + 2 : nullptr;
    p.out = out_.get();
    const bool made = bytes() == 1 && o_.requantizes;
    if (made && !codes) {
      ExpertWeights w;
      w.format = o_.format;
      w.experts = m.experts;
      w.intermediate = m.intermediate;
      RowIndex index;
      index.offsets = const_cast<int*>(plan.offsets);
      prologue_.requantize(w, p.h, rows_, index, codes_.get(), p.out_scales, stream_);
    }
    // (fp8_block: what GEMM 1 leaves is fp32, so that without requantisation GEMM 2 reads made-up codes.)
    shape(made           ? codes_.get()
          : bytes() == 1 ? x_.get()
                         : h_.get(),
          kRowSorted, w2_[l].get(), m.hidden, m.hidden, m.intermediate);
    if (made) p.x_scale = p.out_scales;
    gemm(way, false, p, plan);
  }

  double measure(const Shape& m, int64_t tokens, const Way& way) {
    rows_ = tokens * m.top_k;
    std::vector<Plan> plans;
    for (int l = 0; l < kLayers; ++l)
      plans.push_back(plan(m, tokens, way.variant.tokens, static_cast<uint64_t>(l)));
    const auto record = [&] {
      // As a block's prologue leaves them; in front of all layers, where it is in nobody's way.
      for (const Plan& p : plans)
        RAMP_CU(cuMemsetD32Async, reinterpret_cast<CUdeviceptr>(p.count + 1), 0U, size_t{3}, stream_);
      for (int l = 0; l < kLayers; ++l) layer(m, way, plans[static_cast<size_t>(l)], static_cast<size_t>(l));
    };
    record();
    memory_->synchronize(stream_);
    if (o_.direct || o_.quick) return 1;
    return time_graph(stream_, tokens > 512 ? 5 : 10, record).median_us / kLayers;
  }

  Options o_;
  std::vector<uint8_t> piece_;  // of random values in this format
  std::shared_ptr<const Gpu> gpu_;
  ScopedContext scope_;
  KernelLibrary library_;
  Prologue prologue_;
  std::shared_ptr<const DeviceMemory> memory_;
  int arch_;
  CUstream stream_ = nullptr;
  std::vector<std::shared_ptr<void>> w13_, w2_;
  std::shared_ptr<void> x_, h_, wide_, out_, scales_, codes_, h_scales_;
  int64_t rows_ = 0;
  std::vector<ramp::bench::Series> all_;
  size_t series_ = 0;
};

}  // namespace bench
