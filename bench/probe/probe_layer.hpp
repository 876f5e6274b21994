// The stream probe's work: model shapes, the items of a layer under uniform routing, and their order over the
// blocks' queues.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <queue>
#include <random>
#include <vector>

#include "probe_kernels.hpp"

namespace probe {

struct Model {
  const char* name;
  int experts, top_k, hidden, intermediate, layers;
};
inline constexpr Model kModels[] = {{"olmoe", 64, 8, 2048, 1024, 5},
                                    {"qwen3-30b", 128, 8, 2048, 768, 5},
                                    {"mixtral-8x7b", 8, 2, 4096, 14336, 3},
                                    {"dsv3", 256, 8, 7168, 2048, 2}};

// The device's twin, with what each field means, is in device.cuh.
struct alignas(16) Item {
  uint64_t tile;
  uint32_t steps, row0, rows, out_col, weight_row, x_at, mid_at, counter, need, consumers, gemm, half;
  uint32_t unused[2];
};
static_assert(sizeof(Item) == 64);

struct Layer {
  std::vector<Item> gemm1, gemm2;
  std::vector<uint32_t> rows1, rows2;  // row_index of each GEMM (gathered tokens)
  uint64_t base1 = 0, base2 = 0;       // row-major layout: first 16 KB unit of each GEMM's weights
  uint64_t tiles = 0;                  // both GEMMs
  uint32_t blocks1 = 0, blocks2 = 0;   // packed tokens: blocks of 8 rows x 128 bytes
  uint32_t counters = 0;               // ready counters used
  uint32_t row_tiles = 0;              // groups of rows: items of one slice
  int active = 0, max_load = 0;
};

inline uint32_t depth_steps(int depth, bool fp8) {
  return static_cast<uint32_t>(depth) / (fp8 ? 128 : 64);
}

// Uniform routing, k distinct experts per token.
inline std::vector<std::vector<uint32_t>> route(const Model& m, int tokens, std::mt19937_64& rng) {
  std::vector<std::vector<uint32_t>> lists(static_cast<size_t>(m.experts));
  std::vector<size_t> order(static_cast<size_t>(m.experts));
  std::iota(order.begin(), order.end(), size_t{0});
  for (int t = 0; t < tokens; ++t) {
    for (size_t j = 0; j < static_cast<size_t>(m.top_k); ++j) {
      std::swap(order[j], order[j + rng() % (order.size() - j)]);
      lists[order[j]].push_back(static_cast<uint32_t>(t));
    }
  }
  return lists;
}

// Packed: every active expert's slices one after another, W1 then W2. Row-major (v.tensor): all W1, then all
// W2.
inline Layer make_layer(const Model& m, int tokens, const Variant& v, uint64_t base, std::mt19937_64& rng) {
  Layer l;
  const auto lists = route(m, tokens, rng);
  const bool fp8 = v.fp8 != 0;
  const uint32_t steps1 = depth_steps(m.hidden, fp8);
  const uint32_t steps2 = depth_steps(m.intermediate, fp8);
  const auto columns1 = static_cast<uint32_t>(2 * m.intermediate);
  const auto columns2 = static_cast<uint32_t>(m.hidden);
  const auto rows = static_cast<uint32_t>(v.rows);
  const auto item_rows = static_cast<uint32_t>(v.item_rows());
  struct RowTile {
    uint32_t row0, rows, x1, x2, counter;
  };
  for (const auto& list : lists) {
    if (list.empty()) continue;
    const auto n = static_cast<uint32_t>(list.size());
    const auto row0 = static_cast<uint32_t>(l.rows1.size());
    l.max_load = std::max(l.max_load, static_cast<int>(n));
    for (const uint32_t t : list) {
      l.rows1.push_back(t);
      l.rows2.push_back(static_cast<uint32_t>(l.rows2.size()));
    }
    std::vector<RowTile> row_tiles;
    for (uint32_t r = 0; r < n; r += item_rows) {
      const uint32_t valid = std::min(n - r, item_rows);
      row_tiles.push_back({row0 + r, valid, l.blocks1, l.blocks2, l.counters++});
      l.blocks1 += (valid + 7) / 8 * steps1;
      l.blocks2 += (valid + 7) / 8 * steps2;
    }
    l.row_tiles += static_cast<uint32_t>(row_tiles.size());
    const auto add = [&](std::vector<Item>& to, uint32_t columns, uint32_t steps, bool second) {
      for (uint32_t c = 0; c < columns; c += rows) {
        for (const RowTile& r : row_tiles) {
          Item item{};
          item.tile = base + l.tiles + uint64_t{c / 128} * steps;
          item.steps = steps;
          item.row0 = r.row0;
          item.rows = r.rows;
          item.out_col = c;
          item.weight_row = static_cast<uint32_t>(l.active) * columns + c;
          item.x_at = second ? r.x2 : r.x1;
          item.mid_at = r.x2;
          item.half = c % 128 * 128;
          item.counter = r.counter;
          if (v.single() && second) {
            item.gemm = 1;
            item.need = columns1 / rows;
            item.consumers = columns2 / rows * static_cast<uint32_t>(v.split);
          }
          to.push_back(item);
        }
      }
      l.tiles += uint64_t{columns / 128} * steps;
    };
    add(l.gemm1, columns1, steps1, false);
    add(l.gemm2, columns2, steps2, true);
    ++l.active;
  }
  l.base1 = base;
  l.base2 = base + uint64_t{columns1 / 128} * steps1 * static_cast<uint64_t>(l.active);
  if (v.launch == Launch::kBarrier) {
    for (Item& i : l.gemm1) i.counter = 0;
    for (Item& i : l.gemm2) {
      i.counter = 0;
      i.need = static_cast<uint32_t>(l.gemm1.size());
      i.consumers = static_cast<uint32_t>(l.gemm2.size()) * static_cast<uint32_t>(v.split);
    }
  }
  return l;
}

// Queue q of `queues` is q, q + queues, ... of the result. Balanced: every item goes to the queue with the
// fewest depth steps so far, the first of equals; a queue keeps the items' order (GEMM1 before GEMM2), ends
// with steps 0.
inline std::vector<Item> order_items(const std::vector<Item>& items, size_t queues, bool is_balanced) {
  if (!is_balanced) return items;
  std::vector<std::vector<Item>> lists(queues);
  using Load = std::pair<uint64_t, size_t>;
  std::priority_queue<Load, std::vector<Load>, std::greater<>> least;
  for (size_t q = 0; q < queues; ++q) least.push({0, q});
  size_t longest = 0;
  for (const Item& item : items) {
    const auto [load, q] = least.top();
    least.pop();
    lists[q].push_back(item);
    longest = std::max(longest, lists[q].size());
    least.push({load + item.steps, q});
  }
  std::vector<Item> out(longest * queues, Item{});
  for (size_t q = 0; q < queues; ++q) {
    for (size_t i = 0; i < lists[q].size(); ++i) out[i * queues + q] = lists[q][i];
  }
  return out;
}

}  // namespace probe
