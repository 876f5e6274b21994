// The stream probe's work: model shapes, the tiles of a layer under uniform routing, and the check of sampled
// outputs against fp64.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <numeric>
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

struct Item {
  uint64_t tile;
  uint32_t steps, row0, rows, out_col;
};

struct Layer {
  std::vector<Item> gemm1, gemm2;
  std::vector<uint32_t> rows1, rows2;  // row_index of each GEMM
  uint64_t tiles = 0;
  int active = 0, max_load = 0;
};

// Uniform routing, k distinct experts per token; every expert's weights packed slice after slice, active ones
// only.
inline Layer make_layer(const Model& m, int tokens, int width, bool fp8, uint64_t base,
                        std::mt19937_64& rng) {
  Layer l;
  std::vector<std::vector<uint32_t>> lists(static_cast<size_t>(m.experts));
  std::vector<int> order(static_cast<size_t>(m.experts));
  std::iota(order.begin(), order.end(), 0);
  for (int t = 0; t < tokens; ++t) {
    for (int j = 0; j < m.top_k; ++j) {
      std::swap(order[static_cast<size_t>(j)],
                order[static_cast<size_t>(j) + rng() % static_cast<uint64_t>(m.experts - j)]);
      lists[static_cast<size_t>(order[static_cast<size_t>(j)])].push_back(static_cast<uint32_t>(t));
    }
  }
  const uint32_t depth = fp8 ? 128 : 64;
  const uint32_t steps1 = static_cast<uint32_t>(m.hidden) / depth;
  const uint32_t steps2 = static_cast<uint32_t>(m.intermediate) / depth;
  const uint32_t slices1 = static_cast<uint32_t>(2 * m.intermediate) / 128;
  const uint32_t slices2 = static_cast<uint32_t>(m.hidden) / 128;
  for (const auto& list : lists) {
    if (list.empty()) continue;
    ++l.active;
    l.max_load = std::max(l.max_load, static_cast<int>(list.size()));
    const auto row0 = static_cast<uint32_t>(l.rows1.size());
    for (const uint32_t t : list) {
      l.rows1.push_back(t);
      l.rows2.push_back(static_cast<uint32_t>(l.rows2.size()));
    }
    const auto n = static_cast<uint32_t>(list.size());
    for (uint32_t s = 0; s < slices1; ++s) {
      for (uint32_t r = 0; r < n; r += static_cast<uint32_t>(width)) {
        l.gemm1.push_back({base + l.tiles + s * steps1, steps1, row0 + r,
                           std::min<uint32_t>(n - r, static_cast<uint32_t>(width)), s * 128});
      }
    }
    for (uint32_t s = 0; s < slices2; ++s) {
      for (uint32_t r = 0; r < n; r += static_cast<uint32_t>(width)) {
        l.gemm2.push_back({base + l.tiles + slices1 * steps1 + s * steps2, steps2, row0 + r,
                           std::min<uint32_t>(n - r, static_cast<uint32_t>(width)), s * 128});
      }
    }
    l.tiles += uint64_t{slices1} * steps1 + uint64_t{slices2} * steps2;
  }
  return l;
}

inline float e4m3(uint8_t v) {
  const int e = (v >> 3) & 15;
  const int f = v & 7;
  const float m = e != 0 ? std::ldexp(1.0F + static_cast<float>(f) / 8, e - 7)
                         : std::ldexp(static_cast<float>(f) / 8, -6);
  return (v & 0x80) != 0 ? -m : m;
}
inline float bf16(uint16_t v) {
  const uint32_t u = static_cast<uint32_t>(v) << 16;
  float f = 0;
  std::memcpy(&f, &u, 4);
  return f;
}

// Largest |error| / bound of sampled outputs of one GEMM against fp64; the bound is (steps+8) eps of the sum
// of magnitudes. FP8 wgmma keeps about 14 bits inside one instruction: 2^-13 of each 128-deep partial
// magnitude is added for it.
inline double worst_ratio(const std::vector<Item>& items, const std::vector<uint32_t>& index,
                          CUdeviceptr weights, CUdeviceptr scales, CUdeviceptr x, CUdeviceptr x_scales,
                          CUdeviceptr out, uint32_t row_bytes, uint32_t out_stride, bool fp8,
                          std::mt19937_64& rng) {
  double worst = 0;
  std::vector<uint8_t> tile(kTile);
  std::vector<uint8_t> row(row_bytes);
  for (int sample = 0; sample < 24; ++sample) {
    const Item& item = items[rng() % items.size()];
    const uint32_t r = static_cast<uint32_t>(rng() % item.rows);
    const uint32_t n = static_cast<uint32_t>(rng() % 128);
    const uint32_t token = index[item.row0 + r];
    CK(cuMemcpyDtoH(row.data(), x + uint64_t{token} * row_bytes, row_bytes));
    double sum = 0;
    double magnitude = 0;
    for (uint32_t k = 0; k < item.steps; ++k) {
      CK(cuMemcpyDtoH(tile.data(), weights + (item.tile + k) * kTile, kTile));
      float s[2] = {1, 1};
      float xs = 1;
      if (fp8) {
        CK(cuMemcpyDtoH(s, scales + (item.tile + k) * 8, 8));
        CK(cuMemcpyDtoH(&xs, x_scales + (uint64_t{token} * (row_bytes / 128) + k) * 4, 4));
      }
      const double scale = fp8 ? static_cast<double>(n % 16 < 8 ? s[0] : s[1]) * xs : 1.0;
      for (uint32_t b = 0; b < 128; b += fp8 ? 1 : 2) {
        const size_t at = n / 8 * 1024 + n % 8 * 128 + ((b / 16) ^ (n % 8)) * 16 + b % 16;
        double w = 0;
        double v = 0;
        if (fp8) {
          w = e4m3(tile[at]);
          v = e4m3(row[k * 128 + b]);
        } else {
          uint16_t c[2];
          std::memcpy(&c[0], &tile[at], 2);
          std::memcpy(&c[1], &row[k * 128 + b], 2);
          w = bf16(c[0]);
          v = bf16(c[1]);
        }
        sum += w * v * scale;
        magnitude += std::abs(w * v * scale);
      }
    }
    float got = NAN;
    CK(cuMemcpyDtoH(&got, out + (uint64_t{item.row0 + r} * out_stride + item.out_col + n) * 4, 4));
    const double bound = magnitude * ((item.steps + 8) * 0x1p-23 + (fp8 ? 0x1p-13 : 0x1p-22 * 64));
    const double ratio = std::abs(got - sum) / bound;
    worst = std::isnan(ratio) ? INFINITY : std::max(worst, ratio);
  }
  return worst;
}

}  // namespace probe
