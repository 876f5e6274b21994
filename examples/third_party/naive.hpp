// The third-party kernel of the examples on a CPU, naive and honest: one thread, no tiles, a transposed copy
// of the weights, so that the compiler's vectors run along the outputs. silu(gate) * up in f32.
#pragma once

#include <ramp/ramp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "layer.hpp"

class Naive {
 public:
  // w13 [E, 2I, H], w2 [E, H, I]: copied.
  Naive(const Shape& shape, const float* w13, const float* w2)
      : shape_(shape),
        w13_(static_cast<size_t>(shape.experts * 2 * shape.intermediate * shape.hidden)),
        w2_(static_cast<size_t>(shape.experts * shape.hidden * shape.intermediate)) {
    const auto& [E, k, H, I] = shape_;
    for (int64_t e = 0; e < E; ++e) {
      transpose(w13 + e * 2 * I * H, 2 * I, H, &w13_[e * 2 * I * H]);
      transpose(w2 + e * H * I, H, I, &w2_[e * H * I]);
    }
  }

  // f32 tensors, contiguous. `block` rows of an expert at a time.
  void run(int64_t block, const ramp_expert_block_args& args) {
    const auto& [E, k, H, I] = shape_;
    const int64_t tokens = args.x.shape[0];
    const auto* ids = static_cast<const int32_t*>(args.topk_ids.data);
    const auto* weights = static_cast<const float*>(args.topk_weights.data);
    const auto* x = static_cast<const float*>(args.x.data);
    auto* y = static_cast<float*>(args.y.data);
    std::fill(y, y + tokens * H, 0.0F);
    rows_.resize(static_cast<size_t>(E));
    for (std::vector<int64_t>& r : rows_) r.clear();
    for (int64_t slot = 0; slot < tokens * k; ++slot)
      if (ids[slot] >= 0 && ids[slot] < E) rows_[static_cast<size_t>(ids[slot])].push_back(slot);
    up_.resize(static_cast<size_t>(block * 2 * I));
    down_.resize(static_cast<size_t>(block * H));
    for (int64_t e = 0; e < E; ++e) {
      const std::vector<int64_t>& rows = rows_[static_cast<size_t>(e)];
      for (int64_t at = 0; at < static_cast<int64_t>(rows.size()); at += block) {
        const int64_t m = std::min(block, static_cast<int64_t>(rows.size()) - at);
        std::fill(up_.begin(), up_.end(), 0.0F);
        std::fill(down_.begin(), down_.end(), 0.0F);
        for (int64_t h = 0; h < H; ++h)
          for (int64_t r = 0; r < m; ++r)
            add(x[rows[at + r] / k * H + h], &w13_[(e * H + h) * 2 * I], &up_[r * 2 * I], 2 * I);
        for (int64_t r = 0; r < m; ++r)
          for (int64_t i = 0; i < I; ++i) {
            const float gate = up_[r * 2 * I + i];
            up_[r * 2 * I + i] = gate / (1 + std::exp(-gate)) * up_[r * 2 * I + I + i];
          }
        for (int64_t i = 0; i < I; ++i)
          for (int64_t r = 0; r < m; ++r) add(up_[r * 2 * I + i], &w2_[(e * I + i) * H], &down_[r * H], H);
        for (int64_t r = 0; r < m; ++r)
          add(weights[rows[at + r]], &down_[r * H], y + rows[at + r] / k * H, H);
      }
    }
  }

 private:
  static void transpose(const float* in, int64_t rows, int64_t columns, float* out) {
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < columns; ++c) out[c * rows + r] = in[r * columns + c];
  }
  static void add(float factor, const float* v, float* sum, int64_t n) {
    for (int64_t i = 0; i < n; ++i) sum[i] += factor * v[i];
  }
  Shape shape_;
  std::vector<float> w13_, w2_, up_, down_;  // [E, H, 2I], [E, I, H], and sums of a block of rows
  std::vector<std::vector<int64_t>> rows_;
};
