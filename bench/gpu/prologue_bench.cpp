// What the prologue costs inside a CUDA graph: microseconds per prologue, for one model and number of tokens,
// of a graph of several prologues with inputs of their own (no x is in the L2 cache from the replay before:
// what the graph's inputs do not fill is flushed between replays). Columns: ids given; routed_block();
// route() and block() as two calls; the same ids given with x read in place, that is, the index alone. Bars
// beside them, '!' where one is missed.
//
//   prologue_bench [fp8_block|fp8_channel|fp8_tensor|bf16] [largest T] [chosen|own] [f32|bf16]
//   prologue_bench decide [largest T]
//
// chosen: every model with a softmax over the chosen; own: with its own router. Then the type of the logits.
// decide: what it costs that the device decides among 1, 2 or 3 kernels: ids given, fp8_block; columns: one
// fixed plan, then by how much longer the prologues with a decision take (+), and those that read its
// parameters as constants (c); the same of the index alone.
#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "backend/cuda/driver.hpp"
#include "backend/cuda/gpu.hpp"
#include "backend/cuda/kernel_library.hpp"
#include "backend/cuda/prologue.hpp"
#include "base/error.hpp"
#include "base/float_types.hpp"
#include "base/rng.hpp"
#include "base/tensor.hpp"
#include "params/prologue.hpp"
#include "routing/router.hpp"

namespace {

using namespace ramp::core;        // NOLINT(google-build-using-namespace)
using namespace ramp::core::cuda;  // NOLINT(google-build-using-namespace)

struct Model {
  const char* name;
  int64_t experts, top_k, hidden;
  bool renormalize;  // of its own router
};
constexpr Model kModels[] = {{"olmoe", 64, 8, 2048, false},
                             {"qwen3-30b", 128, 8, 2048, true},
                             {"mixtral-8x7b", 8, 2, 4096, true},
                             {"dsv3", 256, 8, 7168, true}};
constexpr int kReplays = 20;
constexpr int64_t kDistinctBytes = int64_t{256} << 20;  // of inputs per graph, several times the L2 cache
constexpr double kBytesPerUs = 3.5e6;                   // 3.5 TB/s

struct Machine {
  std::shared_ptr<const Gpu> gpu = Gpu::open(0);
  std::shared_ptr<const DeviceMemory> memory = make_device_memory(gpu);
  KernelLibrary library{gpu, (std::filesystem::temp_directory_path() / "ramp_gpu_bench").string(), {}};
  Prologue prologue{gpu, library};
  Prologue constants{gpu, library, DecisionReads::kConstants};  // decisions alone
  CUstream stream = nullptr;
  std::shared_ptr<void> flush;
  static constexpr uint64_t kFlush = uint64_t{256} << 20;
  Machine() {
    const ScopedContext scope(*gpu);
    RAMP_CU(cuStreamCreate, &stream, static_cast<unsigned>(CU_STREAM_NON_BLOCKING));
    flush = memory->allocate(kFlush);
  }
};

// As random as it has to be, and quick to make: repeats after 64 Ki values, shifted each time.
std::vector<uint16_t> make_x(int64_t count, uint64_t seed) {
  std::vector<uint16_t> values(1 << 16);
  for (size_t i = 0; i < values.size(); ++i)
    values[i] = f32_to_bf16(static_cast<float>(random_normal(seed, i)));
  std::vector<uint16_t> x(static_cast<size_t>(count));
  for (size_t i = 0; i < x.size(); ++i) x[i] = values[(i + (i >> 16)) & 0xffff];
  return x;
}

// One prologue's inputs and outputs.
struct Layer {
  std::shared_ptr<void> x, ids, weights, logits, scratch, workspace;
  uint64_t scratch_bytes = 0;
  PrologueWorkspace parts;
  BlockCall block;
  RouteCall route;
};

template <typename T>
std::shared_ptr<void> upload(Machine& m, const std::vector<T>& v) {
  auto p = m.memory->allocate(v.size() * sizeof(T));
  m.memory->upload(p.get(), v.data(), v.size() * sizeof(T), m.stream);
  m.memory->synchronize(m.stream);
  return p;
}

ramp_tensor view(const std::shared_ptr<void>& p, ramp_dtype dtype, int64_t rows, int64_t columns) {
  ramp_tensor t = with_strides(make_tensor(p.get(), dtype, {rows, columns}));
  t.device = {RAMP_DEVICE_CUDA, 0};
  return t;
}

Layer make_layer(Machine& m, const Model& model, const ExpertWeights& w, const ramp_router_config& router,
                 ramp_dtype logits_dtype, int64_t tokens, uint64_t seed) {
  Layer l;
  const int64_t count = tokens * model.experts;
  std::vector<uint8_t> logits(static_cast<size_t>(count * dtype_bytes(logits_dtype)));
  std::vector<float> values(1 << 16);  // as in make_x()
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(random_normal(seed + 1, i));
  for (int64_t i = 0; i < count; ++i)
    store_f32(logits.data(), logits_dtype, i, values[static_cast<size_t>(i + (i >> 16)) & 0xffff]);
  std::vector<int32_t> ids(static_cast<size_t>(tokens * model.top_k));
  std::vector<float> weights(ids.size());
  std::vector<unsigned char> scratch(static_cast<size_t>(route_scratch_bytes(router, model.experts)));
  ramp_router_config on_host = router;
  const std::vector<float> bias(static_cast<size_t>(model.experts));
  if (present(router.selection_bias)) on_host.selection_bias.data = const_cast<float*>(bias.data());
  route_tokens(on_host, make_tensor(logits.data(), logits_dtype, {tokens, model.experts}),
               make_tensor(ids.data(), RAMP_I32, {tokens, model.top_k}),
               make_tensor(weights.data(), RAMP_F32, {tokens, model.top_k}), 0, tokens, scratch.data());
  l.x = upload(m, make_x(tokens * model.hidden, seed));
  l.logits = upload(m, logits);
  l.ids = upload(m, ids);
  l.weights = upload(m, weights);
  l.workspace = m.memory->allocate(prologue_workspace(w, tokens, model.top_k, 64));
  carve_prologue(w, tokens, model.top_k, 64, l.workspace.get(), l.parts);
  l.scratch_bytes = m.prologue.route_workspace(router, model.experts, tokens);
  l.scratch = m.memory->allocate(l.scratch_bytes);
  l.block.weights = &w;
  l.block.tokens = tokens;
  l.block.top_k = model.top_k;
  l.block.x = view(l.x, RAMP_BF16, tokens, model.hidden);
  l.block.ids = view(l.ids, RAMP_I32, tokens, model.top_k);
  l.block.topk_weights = view(l.weights, RAMP_F32, tokens, model.top_k);
  l.route.router = router;
  l.route.logits = view(l.logits, logits_dtype, tokens, model.experts);
  l.route.ids = l.block.ids;
  l.route.weights = l.block.topk_weights;
  l.route.workspace = l.scratch.get();
  l.route.workspace_bytes = l.scratch_bytes;
  return l;
}

// Median microseconds of a graph, divided by the number of layers.
double time_graph(Machine& m, std::vector<Layer>& layers, const std::function<void(Layer&)>& record) {
  const ScopedContext scope(*m.gpu);
  CUgraph graph = nullptr;
  CUgraphExec exec = nullptr;
  CUevent begin = nullptr;
  CUevent end = nullptr;
  for (Layer& l : layers) record(l);  // everything is loaded before the capture
  RAMP_CU(cuStreamSynchronize, m.stream);
  RAMP_CU(cuStreamBeginCapture, m.stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
  for (Layer& l : layers) record(l);
  RAMP_CU(cuStreamEndCapture, m.stream, &graph);
  RAMP_CU(cuGraphInstantiateWithFlags, &exec, graph, 0ULL);
  RAMP_CU(cuEventCreate, &begin, 0U);
  RAMP_CU(cuEventCreate, &end, 0U);
  std::vector<double> us;
  for (int i = 0; i < kReplays + 2; ++i) {
    m.memory->fill(m.flush.get(), static_cast<uint8_t>(i), Machine::kFlush, m.stream);
    RAMP_CU(cuEventRecord, begin, m.stream);
    RAMP_CU(cuGraphLaunch, exec, m.stream);
    RAMP_CU(cuEventRecord, end, m.stream);
    RAMP_CU(cuStreamSynchronize, m.stream);
    float ms = 0;
    RAMP_CU(cuEventElapsedTime, &ms, begin, end);
    if (i >= 2) us.push_back(1e3 * double{ms} / static_cast<double>(layers.size()));
  }
  RAMP_CU(cuEventDestroy, begin);
  RAMP_CU(cuEventDestroy, end);
  RAMP_CU(cuGraphExecDestroy, exec);
  RAMP_CU(cuGraphDestroy, graph);
  std::nth_element(us.begin(), us.begin() + kReplays / 2, us.end());
  return us[kReplays / 2];
}

ramp_format parse_format(const std::string& name) {
  for (const ramp_format f :
       {RAMP_FORMAT_FP8_BLOCK, RAMP_FORMAT_FP8_CHANNEL, RAMP_FORMAT_FP8_TENSOR, RAMP_FORMAT_BF16}) {
    if (name == format_name(f)) return f;
  }
  fail_argument("format", printable(name), "fp8_block, fp8_channel, fp8_tensor or bf16");
}

// The bar for ids given, in microseconds; 0: none.
double bar_of(int64_t tokens, double bytes) {
  if (tokens <= 64) return 4.0;
  if (tokens <= 512) return 7.0;
  return tokens == 8192 ? 20.0 + bytes / kBytesPerUs : 0.0;
}

std::string against(double us, double bar) {
  return fmt::format("{:9.2f}{}", us, bar > 0.0 && us > bar ? '!' : ' ');
}

// A set of `candidates` kernels, every option one of them for all experts, with curves and waves as real ones
// have them.
DecideParams make_decision(unsigned candidates) {
  constexpr unsigned kHeights[kMostCandidates] = {16, 32, 128};
  DecideParams d{};
  d.candidates = d.options = candidates;
  for (unsigned c = 0; c < candidates; ++c) {
    d.plan[c].tile_m = kHeights[c];
    CandidateCost& cost = d.cost[c];
    cost.base_ns = 5000 * (c + 1);
    cost.active_ns = 400;
    cost.overlap = 128;
    for (unsigned g = 0; g < 2; ++g) {
      cost.wave_ns[g] = 2000;
      cost.units[g] = 16;
      cost.places[g] = 132 * (3 - c);
    }
    for (unsigned i = 0; i < kCostPoints; ++i) cost.ns[i] = 300 + 10 * (3 - c) * point_rows(i);
    for (unsigned a = 0; a + 1 < kMostCandidates; ++a) d.option[c].above[a] = a < c ? 0 : kNeverAbove;
  }
  return d;
}

// What decisions need beside a layer's own: a plan for every candidate.
struct Plans {
  std::vector<std::shared_ptr<void>> memory;
  DecideParams decide{};
};
Plans make_plans(Machine& m, const Layer& l, unsigned candidates) {
  Plans p;
  p.decide = make_decision(candidates);
  const int64_t tiles = max_tiles(l.block.tokens * l.block.top_k, l.block.weights->experts, 16);
  for (unsigned c = 0; c < candidates; ++c) {
    p.memory.push_back(m.memory->allocate(static_cast<uint64_t>(tiles) * sizeof(Tile)));
    p.decide.plan[c].tiles = &static_cast<Tile*>(p.memory.back().get())->expert;
    p.memory.push_back(m.memory->allocate(4 * kTileCounters));
    p.decide.plan[c].num_tiles = static_cast<int32_t*>(p.memory.back().get());
  }
  return p;
}

void run_decide(int argc, char** argv) {
  const int64_t largest = argc > 2 ? std::atoll(argv[2]) : 8192;
  Machine m;
  fmt::print("{}, fp8_block, x bf16, ids given, medians of {} replays, us per prologue\n",
             m.gpu->facts().name, kReplays);
  fmt::print("{:14}{:>6}", "model", "T");
  for (const char* const first : {"fixed", "index"}) {
    fmt::print("{:>8}", first);
    for (const char* const reads : {"+", "c"})
      for (unsigned c = 1; c <= kMostCandidates; ++c) fmt::print("{:>7}{}", reads, c);
  }
  fmt::print("\n");
  for (const Model& model : kModels) {
    ExpertWeights w;
    w.format = RAMP_FORMAT_FP8_BLOCK;
    w.experts = model.experts;
    w.hidden = model.hidden;
    w.intermediate = 1024;
    ramp_router_config router = ramp_router_config_init();
    router.top_k = static_cast<int32_t>(model.top_k);
    router = check_router(router, model.experts);
    for (Prologue* const p : {&m.prologue, &m.constants}) {
      p->prepare(w, RAMP_BF16);
      p->prepare(w, RAMP_E4M3);
    }
    for (int64_t tokens = 1; tokens <= largest; tokens *= tokens == 512 ? 4 : tokens < 512 ? 8 : 4) {
      const int64_t count = std::clamp<int64_t>(kDistinctBytes / (tokens * model.hidden * 2), 4, 24);
      std::vector<Layer> layers;
      std::vector<std::vector<Plans>> plans(kMostCandidates + 1);
      for (int64_t i = 0; i < count; ++i) {
        layers.push_back(make_layer(m, model, w, router, RAMP_F32, tokens, 10 * static_cast<uint64_t>(i)));
        for (unsigned c = 1; c <= kMostCandidates; ++c) plans[c].push_back(make_plans(m, layers.back(), c));
      }
      fmt::print("{:14}{:6}", model.name, tokens);
      for (const bool index : {false, true}) {
        // Turn by turn, so that what changes meanwhile changes for all.
        constexpr int kTurns = 3;
        constexpr unsigned kColumns = 1 + 2 * kMostCandidates;
        double us[kColumns][kTurns];
        for (int turn = 0; turn < kTurns; ++turn) {
          for (unsigned c = 0; c < kColumns; ++c) {
            const unsigned candidates = c == 0 ? 0 : 1 + (c - 1) % kMostCandidates;
            Prologue& prologue = c <= kMostCandidates ? m.prologue : m.constants;
            us[c][turn] = time_graph(m, layers, [&](Layer& l) {
              const auto at = static_cast<size_t>(&l - layers.data());
              l.parts.decide = c == 0 ? nullptr : &plans[candidates][at].decide;
              BlockCall call = l.block;
              if (index) {  // x is there already
                call.x = view(l.x, RAMP_E4M3, tokens, model.hidden);
                call.x_scale = view(l.weights, RAMP_F32, tokens, 1);
              }
              prologue.block(call, l.parts, m.stream);
            });
          }
        }
        for (unsigned c = 0; c < kColumns; ++c) {
          std::nth_element(us[c], us[c] + kTurns / 2, us[c] + kTurns);
          const double median = us[c][kTurns / 2];
          if (c == 0)
            fmt::print("{:8.2f}", median);
          else
            fmt::print("{:+8.2f}", median - us[0][kTurns / 2]);
        }
      }
      fmt::print("\n");
      std::fflush(stdout);
    }
  }
}

void run(int argc, char** argv) {
  if (argc > 1 && std::string_view(argv[1]) == "decide") {
    run_decide(argc, argv);
    return;
  }
  const ramp_format format = parse_format(argc > 1 ? argv[1] : "fp8_block");
  const int64_t largest = argc > 2 ? std::atoll(argv[2]) : 8192;
  const bool own = argc > 3 && std::string_view(argv[3]) == "own";
  const ramp_dtype logits = argc > 4 && std::string_view(argv[4]) == "bf16" ? RAMP_BF16 : RAMP_F32;
  Machine m;
  fmt::print("{}, {}, x bf16, logits {}, {}, medians of {} replays, us per prologue\n", m.gpu->facts().name,
             format_name(format), dtype_name(logits), own ? "the models' routers" : "softmax over the chosen",
             kReplays);
  fmt::print("{:14}{:>6}{:>8}{:>10}{:>10}{:>10}{:>10}{:>10}{:>10}\n", "model", "T", "layers", "ids", "bar",
             "routed", "separate", "bar", "index");
  for (const Model& model : kModels) {
    ExpertWeights w;
    w.format = format;
    w.experts = model.experts;
    w.hidden = model.hidden;
    w.intermediate = 1024;
    w.w13_input_scale = 0.01F;
    ramp_router_config router = ramp_router_config_init();
    router.top_k = static_cast<int32_t>(model.top_k);
    router.renormalize = !own || model.renormalize ? 1 : 0;
    std::shared_ptr<void> bias;
    if (own && model.experts == 256) {  // DeepSeek-V3
      bias = upload(m, std::vector<float>(static_cast<size_t>(model.experts)));
      router.scoring = RAMP_SCORING_SIGMOID;
      router.num_groups = 8;
      router.topk_groups = 4;
      router.group_score = RAMP_GROUP_SCORE_TOP2_SUM;
      router.routed_scaling_factor = 2.5F;
      router.selection_bias = make_tensor(bias.get(), RAMP_F32, {model.experts});
    }
    router = check_router(router, model.experts);
    ExpertWeights plain;
    plain.format = RAMP_FORMAT_BF16;  // x in place
    plain.experts = model.experts;
    plain.hidden = model.hidden;
    plain.intermediate = 1024;
    m.prologue.prepare(w, RAMP_BF16);
    m.prologue.prepare(plain, RAMP_BF16);
    m.prologue.prepare_route(router, model.experts, logits);
    for (int64_t tokens = 1; tokens <= largest; tokens *= tokens < 512 ? 8 : tokens == 512 ? 2 : 8) {
      const int64_t x_bytes = tokens * model.hidden * 2;
      const int64_t count = std::clamp<int64_t>(kDistinctBytes / x_bytes, 4, 24);
      std::vector<Layer> layers;
      for (int64_t i = 0; i < count; ++i)
        layers.push_back(make_layer(m, model, w, router, logits, tokens, 10 * static_cast<uint64_t>(i)));
      const double ids =
          time_graph(m, layers, [&](Layer& l) { m.prologue.block(l.block, l.parts, m.stream); });
      const double routed = time_graph(
          m, layers, [&](Layer& l) { m.prologue.routed_block(l.route, l.block, l.parts, m.stream); });
      const double separate = time_graph(m, layers, [&](Layer& l) {
        l.route.stream = m.stream;
        m.prologue.route(l.route);
        m.prologue.block(l.block, l.parts, m.stream);
      });
      const double index = time_graph(m, layers, [&](Layer& l) {
        BlockCall in_place = l.block;
        in_place.weights = &plain;
        m.prologue.block(in_place, l.parts, m.stream);
      });
      const double bytes = static_cast<double>(x_bytes) * (format == RAMP_FORMAT_BF16 ? 0.0 : 1.5);
      const double bar = bar_of(tokens, bytes);
      const double routed_bar = tokens <= 512 ? bar + 2.0 : 0.0;
      fmt::print("{:14}{:6}{:8}{}{:10.2f}{}{}{:10.2f}{:10.2f}\n", model.name, tokens, count,
                 against(ids, bar), bar, against(routed, routed_bar), against(separate, routed_bar),
                 routed_bar, index);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  try {
    run(argc, argv);
  } catch (const Error& e) {
    fmt::print(stderr, "prologue_bench: {}\n", e.what());
    return 1;
  }
  return 0;
}
