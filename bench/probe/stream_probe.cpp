// The stream probe: which structure should the decode kernel have? Brings the active experts' weights through
// shared-memory rings, with and without wgmma consuming them, in the layer protocol of docs/probe.md (one
// graph, layers with distinct weights and routing), for every choice that page decides between. Needs a
// Hopper GPU, libcuda and libnvrtc; with --compile-only neither GPU nor driver. Prints a row per variant and
// a short table last; writes all rows as JSON with -o.
#include <cuda.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "probe_kernels.hpp"
#include "probe_layer.hpp"
#include "probe_parts.hpp"
#include "probe_run.hpp"

namespace probe {
namespace {

struct Options {
  std::string output, directory = "bench/probe";
  std::set<std::string> parts, models, tokens, formats;  // empty: all
  bool compile_only = false, watchdog = true;
  [[nodiscard]] static bool has(const std::set<std::string>& s, const std::string& v) {
    return s.empty() || s.count(v) != 0;
  }
};

struct Point {
  const Model* model;
  int tokens;
  bool fp8;
  std::string part;
  std::vector<Variant> variants;
};

std::set<std::string> split(const std::string& text) {
  std::set<std::string> out;
  std::stringstream in(text);
  for (std::string s; std::getline(in, s, ',');) out.insert(s);
  return out;
}

int usage() {
  fmt::print(
      stderr,
      "usage: stream_probe [-o results.json] [--only base,a,...] [--models olmoe,...] [--tokens 1,8,...]\n"
      "                    [--formats fp8,bf16] [--no-watchdog] [--source bench/probe] [--compile-only]\n");
  for (const Part& p : kParts) fmt::print(stderr, "  {:<5} {}\n", p.name, p.question);
  return 2;
}

bool parse(int argc, char** argv, Options& o) {
  for (int i = 1; i < argc; ++i) {
    const std::string a = argv[i];
    if (a == "--compile-only") {
      o.compile_only = true;
    } else if (a == "--no-watchdog") {
      o.watchdog = false;
    } else if (i + 1 >= argc) {
      return false;
    } else if (a == "-o") {
      o.output = argv[++i];
    } else if (a == "--source") {
      o.directory = argv[++i];
    } else if (a == "--only") {
      o.parts = split(argv[++i]);
    } else if (a == "--models") {
      o.models = split(argv[++i]);
    } else if (a == "--tokens") {
      o.tokens = split(argv[++i]);
    } else if (a == "--formats") {
      o.formats = split(argv[++i]);
    } else {
      return false;
    }
  }
  for (const std::string& name : o.parts) {
    if (std::none_of(std::begin(kParts), std::end(kParts), [&](const Part& p) { return name == p.name; }))
      return false;
  }
  return true;
}

// Format outermost: the pool is refilled only once.
std::vector<Point> points(const Options& o) {
  std::vector<Point> out;
  for (const bool fp8 : {true, false}) {
    if (!Options::has(o.formats, fp8 ? "fp8" : "bf16")) continue;
    for (const Part& p : kParts) {
      if (!Options::has(o.parts, p.name)) continue;
      for (const Model& m : kModels) {
        for (const int tokens : kTokens) {
          if (!Options::has(o.models, m.name) || !Options::has(o.tokens, std::to_string(tokens))) continue;
          Point point{&m, tokens, fp8, p.name, variants(p.name, m, tokens, fp8)};
          if (!point.variants.empty()) out.push_back(std::move(point));
        }
      }
    }
  }
  return out;
}

std::string build_text(const Kernel& k) {
  return fmt::format("regs {:3} spill {:3} nvrtc {:.2f}s{}", k.registers, k.spill, k.nvrtc_seconds,
                     k.is_serialised ? " WGMMA SERIALISED" : "");
}

nlohmann::json to_json(const Row& r, const Kernel& k) {
  const char* launches[] = {"three", "one_barrier", "one_ready"};
  return {{"part", r.part},
          {"model", r.model},
          {"format", r.v.fp8 != 0 ? "fp8_block" : "bf16"},
          {"tokens", r.tokens},
          {"active", r.active},
          {"max_load", r.max_load},
          {"variant", describe(r.v)},
          {"width", r.v.width},
          {"stages", r.v.stages},
          {"blocks_per_sm", r.v.blocks},
          {"item_rows", r.v.rows},
          {"math", r.v.math},
          {"packed_tokens", r.v.packed},
          {"tensor_map", r.v.tensor},
          {"multicast", r.v.cast},
          {"overlap", r.v.overlap},
          {"split", r.v.split},
          {"launch", launches[static_cast<int>(r.v.launch)]},
          {"combine_folded", r.v.fold},
          {"balanced", r.v.balanced},
          {"pdl", r.v.pdl},
          {"evict_first", r.v.hint},
          {"smem_bytes", r.v.smem()},
          {"grid", r.grid},
          {"cluster_capacity", r.cluster_capacity},
          {"us", r.us},
          {"p10_us", r.p10},
          {"p90_us", r.p90},
          {"tbps", r.tbps},
          {"ideal_us", r.ideal_us},
          {"registers", k.registers},
          {"spill_bytes", k.spill},
          {"nvrtc_s", k.nvrtc_seconds},
          {"error_over_bound", r.worst}};
}

int compile_all(Kernels& kernels, const std::vector<Point>& all) {
  std::set<Variant> seen;
  double seconds = 0;
  int serialised = 0;
  size_t rows = 0;
  for (const Point& p : all) {
    rows += p.variants.size();
    for (const Variant& v : p.variants) {
      if (!seen.insert(v.compiled()).second) continue;
      const Kernel& k = kernels.get(v);
      seconds += k.nvrtc_seconds;
      serialised += k.is_serialised ? 1 : 0;
      fmt::print("{:<40} {}\n", describe(v.compiled()),
                 k.is_built ? build_text(k) : std::string("does not compile: too few registers"));
      std::fflush(stdout);
    }
  }
  fmt::print("{} rows, {} kernels, {:.0f} s of NVRTC, {} with serialised wgmma\n", rows, seen.size(), seconds,
             serialised);
  return serialised == 0 ? 0 : 1;
}

// Microseconds of the best variant with math per point and part, then the best of all parts.
void table(const std::vector<Row>& rows, Kernels& kernels) {
  std::map<std::pair<std::string, std::pair<size_t, int>>, std::map<std::string, const Row*>> best;
  for (const Row& r : rows) {
    if (r.v.math == 0 || r.worst > 1) continue;
    size_t model = 0;
    while (r.model != kModels[model].name) ++model;
    auto& point = best[{r.v.fp8 != 0 ? "0 fp8" : "1 bf16", {model, r.tokens}}];
    const std::string part = r.part == "a" && r.v.tensor != 0 ? "a-tm" : r.part;
    for (const std::string& key : {part, std::string("best")}) {
      if (point[key] == nullptr || r.us < point[key]->us) point[key] = &r;
    }
  }
  const std::vector<std::string> columns = {"base", "a", "a-tm", "b", "c", "d", "e", "f"};
  fmt::print("\n{:<5} {:<13} {:>4} {:>8}", "", "", "T", "ideal");
  for (const std::string& c : columns) fmt::print(" {:>7}", c);
  fmt::print("   best: TB/s regs spill variant\n");
  for (const auto& [point, entries] : best) {
    const Row& r = *entries.at("best");
    const Kernel& k = kernels.get(r.v);
    fmt::print("{:<5} {:<13} {:>4} {:>8.1f}", point.first.substr(2), r.model, r.tokens, r.ideal_us);
    for (const std::string& c : columns) {
      const auto it = entries.find(c);
      fmt::print(" {:>7}", it == entries.end() ? std::string("-") : fmt::format("{:.1f}", it->second->us));
    }
    fmt::print("   {:.2f} {:3} {:3} {}\n", r.tbps, k.registers, k.spill, describe(r.v));
  }
}

}  // namespace
}  // namespace probe

int main(int argc, char** argv) {
  using namespace probe;
  Options options;
  if (!parse(argc, argv, options)) return usage();
  if (!std::ifstream(options.directory + "/stream.cuh"))
    return fmt::print(stderr, "{}/stream.cuh: cannot read the device source; run from the repository root\n",
                      options.directory),
           3;
  Kernels kernels(options.directory);
  kernels.compile_only = options.compile_only;
  kernels.watchdog = options.watchdog;
  const std::vector<Point> all = points(options);
  if (options.compile_only) return compile_all(kernels, all);

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
  const uint64_t small_bytes = uint64_t{1} << 30;
  CUdeviceptr pool = 0;
  CUdeviceptr scales = 0;
  CUdeviceptr small = 0;
  CK(cuMemAlloc(&pool, pool_bytes));
  CK(cuMemAlloc(&scales, pool_bytes / kTile * 8));
  CK(cuMemAlloc(&small, small_bytes));
  Probe probe(kernels, pool, pool_bytes / kTile, scales, small, small_bytes, sms);
  std::mt19937_64 rng(5);
  std::vector<float> host(pool_bytes / kTile * 2);
  for (float& f : host) f = 0.5F + static_cast<float>(rng() % 1024) / 1024.0F;
  CK(cuMemcpyHtoD(scales, host.data(), host.size() * 4));

  fmt::print(
      "{}: {} SMs; us per layer (GEMM1, GEMM2, combine), TB/s of active weights, error/bound of sampled "
      "outputs\n",
      name, sms);
  const auto start = std::chrono::steady_clock::now();
  nlohmann::json json = nlohmann::json::array();
  std::vector<Row> rows;
  int failures = 0;
  int filled = -1;
  const auto save = [&] {
    if (!options.output.empty()) std::ofstream(options.output) << json.dump(1) << "\n";
  };
  on_fatal() = save;
  for (const Point& p : all) {
    if (filled != (p.fp8 ? 1 : 0)) {
      probe.fill(pool, pool_bytes, p.fp8);
      filled = p.fp8 ? 1 : 0;
    }
    for (const Variant& v : p.variants) {
      const std::string title =
          fmt::format("{:<4} {:<13} T={:<4} {:<36}", p.part, p.model->name, p.tokens, describe(v));
      running() = title;
      if (probe.queues(v) == 0) {
        fmt::print(
            "{} does not run: {}\n", title,
            kernels.get(v).is_built ? "no block is resident" : "too few registers for the blocks asked for");
        continue;
      }
      Row r = probe.run(*p.model, p.tokens, v);
      r.part = p.part;
      const Kernel& k = kernels.get(v);
      fmt::print("{} {:8.2f} us {:5.2f} TB/s ideal {:7.2f} grid {:4} {}{}\n", title, r.us, r.tbps, r.ideal_us,
                 r.grid, build_text(k),
                 r.worst >= 0 ? fmt::format(" err {:.2f}{}", r.worst, r.worst > 1 ? " FAILED" : "") : "");
      std::fflush(stdout);
      failures += r.worst > 1 ? 1 : 0;
      json.push_back(to_json(r, k));
      rows.push_back(r);
    }
    save();
  }
  table(rows, kernels);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  fmt::print("{} rows in {:.0f} s, {} failed checks\n", rows.size(), seconds, failures);
  return failures == 0 ? 0 : 1;
}
