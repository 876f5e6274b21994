// What the decision path's lane code sees: plain arrays and scalars, and the table of its builds. No standard
// library beyond fixed-width integers, because decide_kernel.inl is compiled for instruction sets that the
// rest of the program must not use.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ramp::core {

inline constexpr size_t kLaneBlock = 8;  // lanes per block; every run is padded to it

// Parameters of the lanes, struct of arrays. Plain pointers: the kernels see nothing but this.
struct LaneView {
  const float* latency = nullptr;     // us
  const float* fill_slope = nullptr;  // 1
  const float* row = nullptr;         // us per row
  const float* sharing = nullptr;     // 1
  const float* together = nullptr;    // 1 + sharing*(residency - 1)
  const float* first_read = nullptr;  // us
  const float* reread = nullptr;      // us
  const float* output = nullptr;      // us
  const float* launch = nullptr;      // us
  const float* blocked = nullptr;     // 0, or +infinity: must not be chosen (padding, never measured)
  const float* alpha = nullptr;       // residual weights, per run [training point][lane of the run]
};

// One run of lanes with its histogram-dependent scalars.
struct RunInput {
  int32_t lane_begin = 0, lane_end = 0;
  float full_waves = 0;       // whole waves
  float last_wave = 0;        // tiles on the fullest SM in the last, partial wave; 0 when there is none
  float tiles = 0;            // per SM
  float first_read = 0;       // per SM
  float output = 0;           // per SM
  float fill = 0;             // rows
  float tail = 0;             // tail_rows * (fullest - fill), rows
  float padding_centred = 0;  // padding - 1/2
};

struct LaneConstants {
  float additive_share = 0;
  float residual_limit = 0;
};

// The code of one instruction set.
struct DecideKernels {
  const char* name;
  // out[t] = sum over i < n of floor(rows[i] * 1/tile): rows hold max(c,1) - 1 + 0.5 as floats below 2^22,
  // n is a multiple of 16, the sum stays below 2^31.
  void (*count_tiles)(const float* rows, size_t n, const float* inverse, size_t tiles, int32_t* out);
  // similarity[j] = (1 + d^2/4)^-2 of x to training point j; train is [4][points], points a multiple of 8.
  void (*similarity)(const float* x, const float* train, size_t points, float* similarity);
  // us[lane] for one run.
  void (*evaluate)(const LaneView& v, const LaneConstants& k, const RunInput& r, const float* similarity,
                   size_t points, float* us);
};
extern const DecideKernels kDecideScalar;    // never vectorised: the yardstick of the tests
extern const DecideKernels kDecideBaseline;  // the target's baseline instruction set
#if defined(RAMP_DECIDE_AVX2)
extern const DecideKernels kDecideAvx2;
#endif
}  // namespace ramp::core
