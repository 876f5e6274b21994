// Made-up expert weights and activations of realistic magnitude for benchmarks, tests and the CLI. A pure
// function of the seed: the same on every machine and for any number of threads. Fast enough for the largest
// models, because codes come straight from tables of normal quantiles.
//
// Values: weights ~ N(0, 1/fan_in), truncated at 3.67 standard deviations (4096 quantiles), so that for
// x ~ N(0,1) gate and up are about N(0,1). fp8 formats: what quantising such values gives. Each scale's range
// of values (block, row or tensor) has its own random spread (factor 0.6 to 1.5), so scales differ as they do
// in real checkpoints and a scale that is read from the wrong place shows; its largest values have the codes
// +-448.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "base/aligned_buffer.hpp"
#include "geometry/model.hpp"
#include "ramp/ramp.h"

namespace ramp::core {

// Runs task(0) .. task(num_tasks - 1), in any order, possibly concurrently; returns when all are done.
using ParallelFor = std::function<void(int64_t num_tasks, const std::function<void(int64_t)>& task)>;
void serial_for(int64_t num_tasks, const std::function<void(int64_t)>& task);

// Owns its buffers; the views in `desc` (ownership RAMP_BORROW) point into them and stay valid when moved.
struct SyntheticWeights {
  AlignedBuffer w13, w2;                               // contiguous, layouts of ramp_weights_desc
  std::vector<float> w13_scale, w2_scale;              // fp8 formats
  std::vector<float> w13_input_scale, w2_input_scale;  // fp8_tensor: one element each
  ramp_weights_desc desc = ramp_weights_desc_init();
};

struct SyntheticWeightsOptions {
  uint64_t seed = 0;
  bool split_tensor_scale = true;  // fp8_tensor, gated: w13_scale [E,2] instead of [E]
  ParallelFor parallel = serial_for;
};

// model.top_k is not used. H and I: multiples of 32 (else Error INVALID_ARGUMENT). The static input scales of
// fp8_tensor are calibrated: amax / 448 over a sample of fill_activations' rows and of the intermediates that
// they give.
SyntheticWeights make_synthetic_weights(const ModelShape& model, ramp_format format,
                                        ramp_activation activation,
                                        const SyntheticWeightsOptions& options = {});

// The same weights without their memory, for whoever fills memory of another device (or wants a few experts
// only).
struct SyntheticMatrix {  // [experts, rows, cols]
  static constexpr int64_t kCodes = 4096, kPerDraw = 5;
  ramp_dtype dtype = RAMP_DTYPE_NONE;
  int64_t experts = 0, rows = 0, cols = 0;
  // Row r of expert e has key = random_u64(seed, e * rows + r); its element 5i + j is
  // codes[(mix64(key + i) >> 12 j) & 4095].
  uint64_t seed = 0;
  AlignedBuffer codes;  // [4096] of dtype
};
struct SyntheticRecipe {
  SyntheticMatrix w13, w2;
  std::vector<float> w13_scale, w2_scale;              // fp8 formats
  std::vector<float> w13_input_scale, w2_input_scale;  // fp8_tensor: one element each
  // w13 and w2 have shapes but no data; the scales are views of the above. Valid when the recipe is moved.
  ramp_weights_desc desc = ramp_weights_desc_init();
};
SyntheticRecipe make_synthetic_recipe(const ModelShape& model, ramp_format format, ramp_activation activation,
                                      const SyntheticWeightsOptions& options = {});
// These experts of the recipe, as weights of their own in this order.
SyntheticWeights make_synthetic_experts(const SyntheticRecipe& recipe, std::span<const int64_t> experts,
                                        const ParallelFor& parallel = serial_for);

// Activations [rows, cols], contiguous: N(0, s_r) with a random s_r in 0.5 .. 2 per row. dtype: f32, bf16 or
// f16.
void fill_activations(void* x, ramp_dtype dtype, int64_t rows, int64_t cols, uint64_t seed,
                      const ParallelFor& parallel = serial_for);
// The standard deviation s_r of row r above.
float activation_spread(uint64_t seed, int64_t row) noexcept;

}  // namespace ramp::core
