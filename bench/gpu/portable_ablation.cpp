// Ablations of the portable GEMMs (docs/ablations.md): order of tiles, split of the depth, padding, fusion of
// gate, up and activation. GEMM 1 and GEMM 2 alone, without prologue and combine, over made-up codes, in one
// CUDA graph over layers with weights of their own; routing as `ramp workload` draws it.
//   portable_ablation order|split|padding|fusion [--format bf16] [--routing zipf:1.2] [--plot FILE.svg]
//   portable_ablation trials               what is on trial (docs/kernel-log.md), fp8_block and bf16, with
//                                          requantisation; --quick: each once, on small shapes, as a test
//   portable_ablation fusion --direct      every variant once, without a graph: for a profiler
#include <fmt/format.h>

#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "gpu/portable_bench.hpp"

namespace {

using namespace bench;  // NOLINT(google-build-using-namespace)

int run(const Options& o) {
  Bench bench(o);
  std::vector<Way> ways;
  std::vector<int64_t> tokens;
  if (o.part == "order") {
    for (const int32_t t : {64, 128})
      for (const auto& [name, group] : {std::pair{"column", kAllTiles}, {"row", 1}, {"grouped by 8", 8}})
        ways.push_back({fmt::format("m{} {}", t, name), bench.shipped(t), "", group});
    tokens = {512, 2048};
  } else if (o.part == "split") {
    // Tiles of 8 tokens and 32 weight rows; as many warps per SM with every split.
    for (const int k : {1, 2, 4, 8}) {
      PortableVariant v{32, 8, k, 1, 1, 3, std::max(1, 12 / k)};
      ways.push_back({fmt::format("1/{}", k), v, ""});
    }
    tokens = {1, 2, 4, 8, 16, 32, 64};
  } else if (o.part == "padding") {
    for (const int32_t t : {8, 32, 64, 128}) {
      ways.push_back({fmt::format("m{}", t), bench.shipped(t), ""});
      ways.push_back({fmt::format("m{} padded", t), bench.shipped(t), "-DPADDED=1"});
    }
    tokens = {8, 32, 128, 512};
  } else if (o.part == "fusion") {
    for (const int32_t t : {32, 128}) {
      if (o.direct && t == 32) continue;
      ways.push_back({fmt::format("m{} fused", t), bench.shipped(t), ""});
      ways.push_back({fmt::format("m{} apart", t), bench.shipped(t), "", kAllTiles, false});
    }
    tokens = o.direct ? std::vector<int64_t>{512} : std::vector<int64_t>{32, 128, 512, 2048, 8192};
  } else {
    fail_argument("part", o.part, "order, split, padding, fusion or trials", "name one");
  }
  bench.prepare(ways);
  for (const Shape& m : kModels) bench.run(m, tokens, ways);
  bench.plot(fmt::format("{} ({}, {})", o.part, format_name(o.format), o.routing));
  return 0;
}

// What is on trial beside what ships: copies of tokens that are not there, schedules, fragments carried over,
// codes out of GEMM 1, larger tiles.
void run_trials(Options o) {
  for (const ramp_format format : {RAMP_FORMAT_FP8_BLOCK, RAMP_FORMAT_BF16}) {
    const bool fp8 = format == RAMP_FORMAT_FP8_BLOCK;
    o.format = format;
    o.requantizes = fp8;
    Bench bench(o);
    std::vector<Way> few, many;
    for (const int32_t t : {8, 32, 64}) {
      few.push_back({fmt::format("m{}", t), bench.shipped(t), ""});
      few.push_back({fmt::format("m{} absent copied", t), bench.shipped(t), "-DABSENT=1"});
    }
    const auto add = [&](const char* name, PortableVariant v, bool rotate, bool tickets, bool carry,
                         bool fused) {
      v.carry = carry;
      v.fused = fused;
      many.push_back({name, v, "", kAllTiles, true, rotate, tickets});
    };
    const PortableVariant m64 = bench.shipped(64), m128 = bench.shipped(128);
    add("m64", m64, false, false, false, false);
    add("m64 rotated", m64, true, false, false, false);
    add("m64 tickets", m64, false, true, false, false);
    if (fp8) add("m64 tickets, codes", m64, false, true, false, true);
    add("m128", m128, false, false, false, false);
    add("m128 rotated", m128, true, false, false, false);
    add("m128 tickets", m128, false, true, false, false);
    many.push_back({"m128 rotated, absent left out", m128, "-DABSENT=0", kAllTiles, true, true});
    add("m128 carry", m128, false, false, true, false);
    add("m128 rotated, carry", m128, true, false, true, false);
    add("m128 tickets, carry", m128, false, true, true, false);
    if (fp8) add("m128 tickets, carry, codes", m128, false, true, true, true);
    const PortableVariant m192{128, 192, 1, 2, 4, 4, 1};
    add("m192 carry", m192, false, false, true, false);
    add("m192 tickets, carry", m192, false, true, true, false);
    if (fp8) add("m192 tickets, carry, codes", m192, false, true, true, true);
    if (!fp8) add("n256 m128 tickets, carry", {256, 128, 1, 4, 2, 4, 1}, false, true, true, false);
    std::vector<Way> all = few;
    all.insert(all.end(), many.begin(), many.end());
    bench.prepare(all);
    if (o.quick) {
      bench.run(kTiny, {3, 150}, all);
      continue;
    }
    for (const Shape& m : kModels) {
      bench.run(m, {1, 8, 32, 128}, few);
      bench.run(m, {512, 2048, 8192}, many);
    }
    bench.run(kQwen, {2048, 8192}, many);
  }
}

}  // namespace

int main(int argc, char** argv) {
  try {
    Options o;
    if (argc > 1) o.part = argv[1];
    for (int i = 2; i < argc; ++i) {
      const bool more = i + 1 < argc;
      if (std::strcmp(argv[i], "--direct") == 0) o.direct = true;
      if (std::strcmp(argv[i], "--quick") == 0) o.quick = true;
      if (more && std::strcmp(argv[i], "--routing") == 0) o.routing = argv[i + 1];
      if (more && std::strcmp(argv[i], "--plot") == 0) o.plot = argv[i + 1];
      if (more && std::strcmp(argv[i], "--format") == 0)
        o.format = std::strcmp(argv[i + 1], "bf16") == 0 ? RAMP_FORMAT_BF16 : RAMP_FORMAT_FP8_BLOCK;
    }
    if (o.part == "trials") {
      run_trials(o);
      return 0;
    }
    return run(o);
  } catch (const Error& e) {
    fmt::print(stderr, "portable_ablation: {}\n", e.what());
    return 1;
  }
}
