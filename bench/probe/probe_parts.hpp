// The stream probe's parts: which variants run at which point. docs/probe.md gives each part's question and
// what was expected of it before it ran.
#pragma once

#include <cmath>
#include <string>
#include <vector>

#include "probe_kernels.hpp"
#include "probe_layer.hpp"

namespace probe {

struct Part {
  const char* name;
  const char* question;
};
inline constexpr Part kParts[] = {
    {"base", "ring depth, blocks per SM, early PDL, depth split (three launches, gathered tokens)"},
    {"a", "packed tiles against tensor maps over the row-major layout (packed tokens in both)"},
    {"b", "cluster multicast: two blocks share each tile, each with half of the tokens"},
    {"c", "one launch: ready counters or grid barrier, combine folded in, early PDL"},
    {"d", "64-row items (8 KB tiles, one math warpgroup), three launches and one"},
    {"e", "the fp8 gate: DSv3 T = 8, every ring setting, order, hint and launch structure"},
    {"f", "overlapped promotion, gathered and packed tokens"},
};
inline constexpr int kTokens[] = {1, 8, 32, 128, 256};

// The width that holds nearly every expert's load (mean + 3 sigma); wider experts take several items.
inline int width_for(const Model& m, int tokens) {
  const double mean = static_cast<double>(tokens) * m.top_k / m.experts;
  const int want = static_cast<int>(mean + 3 * std::sqrt(mean) + 1);
  return tokens <= 8 ? 8 : (want <= 32 ? 32 : (want <= 64 ? 64 : 128));
}

// Variants without a ring (stages 0), without registers or with depth that does not split are dropped.
class List {
 public:
  explicit List(const Model& m) : model_(m) {}
  void add(Variant v, int shallower = 0, int most = 26) {
    v = v.deepest(most);
    v.stages -= shallower;
    const bool fp8 = v.fp8 != 0;
    // Known to spill in the main loop or not to compile: registers for 10 warps a block.
    if ((v.width >= 64 && v.blocks > 2) || (v.width >= 128 && v.blocks > 1) ||
        (v.width >= 32 && v.blocks > 3))
      return;
    if (v.stages < 2) return;
    if (depth_steps(model_.hidden, fp8) % static_cast<uint32_t>(v.split) != 0) return;
    if (depth_steps(model_.intermediate, fp8) % static_cast<uint32_t>(v.split) != 0) return;
    variants.push_back(v);
  }
  std::vector<Variant> variants;

 private:
  Model model_;
};

inline void part_base(List& l, const Variant& start, int tokens) {
  for (const int blocks : {1, 2, 3, 4}) {
    Variant v = start;
    v.blocks = blocks;
    l.add(v, 0, 13);
    if (v.fp8 != 0) {
      v.math = 0;
      l.add(v, 0, 13);
      v.math = 1;
    }
    v.pdl = 1;
    if (blocks == 3) l.add(v, 0, 13);
    if (tokens > 8 || blocks != 2) continue;
    v.split = 2;
    l.add(v, 0, 13);
  }
}

inline void part_a(List& l, const Variant& start) {
  if (start.fp8 == 0) return;
  for (const int tensor : {0, 1}) {
    for (const int blocks : {2, 3}) {
      Variant v = start;
      v.packed = 1, v.tensor = tensor, v.blocks = blocks;
      l.add(v);
    }
  }
}

inline void part_b(List& l, const Variant& start, int tokens) {
  if (start.fp8 == 0 || tokens < 32) return;
  for (const int blocks : {1, 2, 3}) {
    for (const int overlap : {0, 1}) {
      Variant v = start;
      v.packed = 1, v.cast = 1, v.width /= 2, v.blocks = blocks, v.overlap = overlap;
      l.add(v);
      v.cast = 0;
      v.width *= 2;
      if (tokens < 256) l.add(v);  // width 128 without multicast is part f's
    }
  }
}

inline void part_c(List& l, const Variant& start, int tokens) {
  Variant v = start;
  v.packed = 1, v.launch = Launch::kReady, v.balanced = 1, v.fold = tokens <= 8 ? 1 : 0;
  for (const int blocks : {1, 2, 3}) {
    for (const int pdl : {0, 1}) {
      v.blocks = blocks, v.pdl = pdl;
      l.add(v);
    }
  }
  if (start.fp8 == 0) return;
  v.blocks = 2;
  Variant overlapped = v;
  overlapped.overlap = 1;
  l.add(overlapped);
  if (tokens > 8) return;
  v.pdl = 0;
  Variant other = v;
  other.launch = Launch::kBarrier;
  l.add(other);
  other = v;
  other.fold = 0;
  l.add(other);
  other = v;
  other.balanced = 0;
  l.add(other);
  other = v;
  other.math = 0;
  l.add(other);
  for (const int blocks : {1, 2}) {
    other = v;
    other.split = 2, other.pdl = 1, other.blocks = blocks;
    l.add(other);
  }
}

inline void part_d(List& l, const Variant& start, int tokens) {
  if (tokens > 8) return;
  Variant v = start;
  v.packed = 1, v.rows = 64;
  for (const int blocks : {2, 3, 4, 6}) {
    v.blocks = blocks;
    v.launch = Launch::kThree, v.pdl = v.balanced = v.fold = 0;
    l.add(v);
    v.launch = Launch::kReady, v.balanced = v.fold = 1;
    l.add(v);
    v.pdl = 1;
    l.add(v);
  }
  v.blocks = 2, v.split = 2;
  l.add(v);
}

inline void part_e(List& l, const Variant& start) {
  for (const int rows : {128, 64}) {
    for (const int blocks : {1, 2, 3, 4, 6}) {
      if ((rows == 128 && blocks == 6) || (rows == 64 && blocks == 1)) continue;
      for (const bool is_single : {false, true}) {
        for (const int pdl : {0, 1}) {
          Variant v = start;
          v.packed = 1, v.rows = rows, v.blocks = blocks, v.pdl = pdl;
          v.launch = is_single ? Launch::kReady : Launch::kThree;
          v.balanced = 1, v.fold = is_single ? 1 : 0;
          l.add(v);
          if (blocks < 3 || pdl == 0) continue;
          l.add(v, 1);
          Variant other = v;
          other.balanced = 0;
          l.add(other);
          other = v;
          other.hint = 1;
          l.add(other);
          other = v;
          other.overlap = 1;
          if (rows == 128) l.add(other);
        }
      }
    }
  }
}

inline void part_f(List& l, const Variant& start, int tokens) {
  if (tokens < 32) return;
  for (const int packed : {0, 1}) {
    for (const int overlap : {0, 1}) {
      for (const int blocks : {1, 2, 3}) {
        if ((start.width >= 64 && blocks == 3) || (start.width == 128 && (blocks == 2 || packed == 0)))
          continue;
        Variant v = start;
        v.packed = packed, v.overlap = overlap, v.blocks = blocks;
        l.add(v);
      }
    }
  }
}

inline std::vector<Variant> variants(const std::string& part, const Model& m, int tokens, bool fp8) {
  List l(m);
  const std::string name = m.name;
  Variant start;
  start.width = width_for(m, tokens);
  start.fp8 = fp8 ? 1 : 0;
  // Width 128 is asked about in parts b and f alone.
  if (tokens == 256 && (name != "mixtral-8x7b" || !fp8 || (part != "b" && part != "f"))) return {};
  if (part == "base") part_base(l, start, tokens);
  if (part == "a") part_a(l, start);
  if (part == "b" && (tokens >= 128 || name == "mixtral-8x7b")) part_b(l, start, tokens);
  if (part == "c" && (fp8 || tokens <= 8)) part_c(l, start, tokens);
  if (part == "d" && (fp8 || tokens == 1)) part_d(l, start, tokens);
  if (part == "e" && fp8 && name == "dsv3" && tokens == 8) part_e(l, start);
  if (part == "f" && fp8 && (tokens >= 128 || name == "mixtral-8x7b")) part_f(l, start, tokens);
  return l.variants;
}

}  // namespace probe
