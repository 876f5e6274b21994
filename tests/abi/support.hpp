// What the ABI tests share, on public headers alone: storage types, handles that free themselves, small
// models in every format, and calls with poisoned outputs.
#pragma once

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "ramp/ramp.h"

namespace abi_test {

// ---------------------------------------------------------------- storage types

int64_t element_bytes(int32_t dtype);
// Independent of the library's own conversions: by search in the table of all codes.
float decode(int32_t dtype, const void* data, int64_t index);
void encode(int32_t dtype, void* data, int64_t index, float value);  // nearest, ties to even, saturating

// A typed array: storage of one tensor. Starts as NaN (or a canary, for integers).
struct Array {
  int32_t dtype = RAMP_DTYPE_NONE;
  std::vector<int64_t> shape;
  std::vector<std::byte> bytes;

  Array() = default;
  Array(int32_t dtype, std::vector<int64_t> shape);
  int64_t size() const;
  float get(int64_t i) const { return decode(dtype, bytes.data(), i); }
  void set(int64_t i, float v) { encode(dtype, bytes.data(), i, v); }
  int64_t get_int(int64_t i) const;
  void set_int(int64_t i, int64_t v);
  ramp_tensor view() const;
};

ramp_tensor view(const void* data, int32_t dtype, const std::vector<int64_t>& shape);

// Values in (0,1), a function of seed and index alone.
double unit(uint64_t seed, uint64_t index);
double normal(uint64_t seed, uint64_t index);

// ---------------------------------------------------------------- handles

struct FreeContext {
  void operator()(ramp_context* c) const { ramp_context_destroy(c); }
};
struct FreeWeights {
  void operator()(ramp_weights* w) const { ramp_weights_destroy(w); }
};
struct FreeCheckpoint {
  void operator()(ramp_checkpoint* c) const { ramp_checkpoint_close(c); }
};
using Context = std::unique_ptr<ramp_context, FreeContext>;
using Weights = std::unique_ptr<ramp_weights, FreeWeights>;
using Checkpoint = std::unique_ptr<ramp_checkpoint, FreeCheckpoint>;

Context make_context(ramp_backend backend, int32_t threads = 2);
Weights make_weights(const Context& context, const ramp_weights_desc& desc, bool packed = false);

// 256-byte aligned scratch, filled with NaN bit patterns.
class Scratch {
 public:
  explicit Scratch(uint64_t bytes);
  void* data() const { return data_; }
  uint64_t bytes() const { return bytes_; }

 private:
  std::vector<std::byte> storage_;
  void* data_ = nullptr;
  uint64_t bytes_ = 0;
};

// ---------------------------------------------------------------- models and calls

// Expert weights. exact: small integers, so sparse that every product and sum of a relu2 block is exact in
// the formats f32, bf16, f16 and fp8_tensor: results are then the same bits on every backend and in any
// order.
struct Model {
  int32_t format, activation;
  int64_t experts, hidden, intermediate;
  Array w13, w2, w13_scale, w2_scale, w13_input_scale, w2_input_scale;

  Model(int32_t format, int32_t activation, int64_t experts, int64_t hidden, int64_t intermediate,
        uint64_t seed, bool exact = false);
  int64_t rows13() const { return activation == RAMP_ACTIVATION_RELU2 ? intermediate : 2 * intermediate; }
  ramp_weights_desc desc(int32_t ownership = RAMP_COPY) const;
  // Dequantised values.
  double w13_at(int64_t e, int64_t row, int64_t col) const;
  double w2_at(int64_t e, int64_t row, int64_t col) const;
};

// Inputs and outputs of an expert block, all present, y and counters poisoned.
struct Call {
  Array x, ids, weights, y;
  ramp_expert_block_args args;

  Call(const Model& model, const ramp_weights* handle, int64_t tokens, int64_t top_k, uint64_t seed,
       bool exact = false, int32_t x_dtype = RAMP_F32, int32_t id_dtype = RAMP_I32,
       int32_t y_dtype = RAMP_F32);
  Call(const Call&) = delete;  // args points into the arrays
  int64_t tokens() const { return x.shape[0]; }
  int64_t top_k() const { return ids.shape[1]; }
  void per_slot();  // y becomes [T,k,H]
};

// The block in fp64 with no rounding anywhere: what an exact relu2 call must give, bit for bit; [T,k,H] and
// its sum over the slots [T,H]. map: global id -> local expert.
std::vector<double> exact_slots(const Model& model, const Call& call, const std::vector<int32_t>& map = {});
std::vector<double> exact_combined(const Model& model, const Call& call,
                                   const std::vector<int32_t>& map = {});
// Equal after rounding `want` to the type of `got`.
void expect_equal(const Array& got, const std::vector<double>& want);

// Relative L2 distance, and the bound that two correct implementations keep (see support.cpp).
double distance(const Array& a, const Array& b);
double tolerance(const Model& model, int64_t tokens, int64_t top_k);

// A failing call: status and what the message must contain.
void expect_error(ramp_status got, ramp_status want, const std::vector<std::string>& parts);

const char* format_name(int32_t format);
const char* activation_name(int32_t activation);
inline const char* backend_name(ramp_backend b) {
  return b == RAMP_BACKEND_REFERENCE ? "reference" : "cpu";
}

}  // namespace abi_test
