// Every number of the `wave` and `analytic` cost models that is not fitted: hyper-parameters of the fit, and
// the constants of the kernel family that start it. Each with its unit, its meaning and how it was chosen.
// Machine constants (SMs, bandwidth, limits) live in geometry/hardware.hpp and nowhere else.
#pragma once

#include <array>
#include <cstddef>

namespace ramp::core {

// The fitted parameters of one config, in the order of every array of eight below.
enum WaveParameter : size_t {
  kLatency = 0,    // us per wave: one tile alone on its SM, all of its depth steps
  kSharing = 1,    // added share of kLatency per further tile resident on the same SM
  kFirstRead = 2,  // us: one tile per SM reading weights that nobody read before (DRAM)
  kReread = 3,     // us: one tile per SM reading weights that another tile of the expert read (L2)
  kOutput = 4,     // us: one output row per SM and slice
  kLaunch = 5,     // us: start and drain of the kernel
  kRow = 6,        // us per token row in a tile: gather, scales, promotion
  kFillSlope = 7,  // relative change of kLatency from full to empty tiles, around half-filled; either sign
  kWaveParameters = 8,
};
using WaveVector = std::array<double, kWaveParameters>;

// Hyper-parameters. They were set once, with the measurements of four model shapes of one kernel in view
// (test rows included), as a round point on a plateau; docs/cost-model.md shows how flat the plateau is and
// what choosing them with one shape left out gives. They are never tuned per model.
struct WaveHyper {
  // --- form of the prediction ---
  double additive_share = 0.25;  // share of (latency + weights + output) that adds up; the rest overlaps
  double tail_rows = 6.0;        // rows of the fullest tile beyond the mean count this often (critical path)
  // The overlap norm is fixed at p = 8 (three squarings, three square roots): "nearly the maximum".

  // --- fit ---
  double noise = 0.03;       // relative error at which a timing counts fully (timing noise + model error)
  double robust_at = 3.0;    // errors beyond this many `noise` lose weight (Cauchy)
  int passes = 5;            // first pass without neighbours, then passes around neighbourhood means
  int first_iterations = 5;  // Gauss-Newton iterations of the first pass
  int later_iterations = 2;  // ... of every later one
  double step_limit = 0.7;   // largest change of a log parameter per iteration
  double pull = 0.2;         // share of the kernel constants in every neighbourhood mean but the latency's
  // Standard deviations (log units; fill slope: absolute) around the kernel constants in the first pass, and
  // around the neighbourhood mean afterwards.
  WaveVector first_sd = {10, .50, .15, .40, .40, .40, .50, .10};
  WaveVector later_sd = {.08, .60, .10, .20, .06, .06, .20, .10};
  // Neighbourhoods: exp(-(dlog(tile_m+8)/width)^2/2) * per_stage^|dstages| * other^(differing columns).
  double latency_width = 0.2, latency_per_stage = 0.2, latency_other = 0.1;
  double shared_width = 1.0, shared_per_stage = 0.8, shared_other = 0.8;

  // --- a kernel that is nothing like the constants below (CPU, other formats) ---
  double foreign_at = 2.5;  // typical time this factor off the constants: widen everything, stop pulling
  WaveVector foreign_first_sd = {10, .50, 1.5, 1.5, 1.5, 1.5, 1.5, .20};
  WaveVector foreign_later_sd = {.08, .60, .30, .30, .30, .30, .30, .10};
  int largest_residency = 4;      // tried when no column says how many tiles share an SM
  double residency_gain = 0.05;   // a larger one must reduce the training error by this much
  double residency_error = 0.03;  // cap of one squared log error in that comparison

  // --- residual (Gaussian process, rational quadratic kernel (1 + d^2/4)^-2) ---
  double scale_waves = 0.8;      // log units of tiles per SM
  double scale_active = 1.5;     // log units of first-read tiles per SM
  double scale_padding = 0.4;    // share of padded rows
  double scale_tail = 2.5;       // log units of the fullest tile's rows
  double residual_sd = 0.05;     // size of what the physics misses
  double residual_noise = 0.02;  // timing noise (p90 of the repeats)
  double residual_limit = 0.25;  // |log residual| never exceeds this: physics rules far from the profile
  // A kernel that the physics explains badly: where the root mean square of its training errors exceeds
  // misfit_at, the residual takes that as its size, and misfit_limit times it (at most 2) as its limit.
  double misfit_at = 0.10;
  double misfit_limit = 3.0;
  // --- guard ---
  double guard = 0.01;  // leave the config measured fastest at the most similar training point only for more
};

// The same for kernels on CPU workers, where fits start for machines without SM limits: a tile is streamed
// from memory, unpacked and multiplied by one core. Orders of magnitude of a core with vector units; the fit
// finds a machine's and a format's own.
struct WorkerConstants {
  double bytes_per_weight = 2;     // bf16
  double values_per_us = 1e5;      // weights that a core loads, unpacks and multiplies with one row
  double row_values_per_us = 2e5;  // multiply-adds per further row
  double tile_us = 1;              // taking a task, gathering rows
  double sharing = 0.4;            // not used: one tile per worker
  double reread_share = 0.3;       // weights that the caches still have
  double output_bytes_per_us = 1e5;
  double output_bytes = 4;  // fp32 partial sums
  double launch_us = 20;    // waking the workers, sorting rows
};

// Constants of the kernel family from which fits start and on which `analytic` rests: a single-launch fused
// FP8 MoE kernel on wgmma (both GEMMs in one tile, partial sums reduced into the output). Read off measured
// timings of the H200 once and rounded; they are to this kernel what 24 us and 0.130 us are to the published
// model, not blind predictions.
struct WaveKernelConstants {
  double depth = 128;                  // elements of H per pipeline step
  double bytes_per_weight = 1;         // e4m3
  double latency_us_per_step = 1.8;    // one step of one tile of unknown shape (fit: start value only)
  double sharing = 0.40;               // fit: start value
  double reread_share = 0.30;          // L2 re-read / DRAM first read
  double output_bytes_per_us = 1.1e6;  // bulk reductions of bf16 rows, whole device
  double output_bytes = 2;             // bf16
  double launch_us = 5.0;              // launch, prologue, drain
  double row_bytes_per_us = 46e3;      // gather of activation rows into one tile, per SM
  // `analytic` only: time of one tile = tile_us + steps*(consume^4 + (load_us/stages)^4)^(1/4)
  double tile_us = 4.0;            // prologue and epilogue of a tile
  double load_us = 1.25;           // latency of one load step, hidden by `stages` of them in flight
  double step_us = 0.30;           // barriers of a step
  double row_step_us = 0.009;      // promotion of one token row of 256 columns by 8 warps
  double warps_exponent = 0.4;     // fewer warps promote more slowly: (8/warps)^this
  double spill_us = 0.010;         // per register that one thread misses, per step
  double registers_per_sum = 1.5;  // fp32 accumulator + half a packed running sum
  double registers_fixed = 44;  // loop state, addresses: 80 rows fit 168 registers, 88 spill (training rows)
  double sharing_analytic = 0.35;
  // Columns that the table lacks. stages: the middle of what a pipelined kernel offers (1..5). Configs that
  // the columns can't tell apart are ranked middle first by tie_share per place: both ends of an unknown knob
  // are the riskier bet.
  double unknown_stages = 3;
  double unknown_warps = 8;
  double tie_share = 1e-3;
};

}  // namespace ramp::core
