// Running error analysis of one row of the expert block (docs/numerics.md has the derivations): how far fp32
// arithmetic may be from the exact values, step by step. Deterministic bounds carry the name `error`,
// standard deviations of the statistical model `sigma`.
#pragma once

#include <cstdint>
#include <vector>

#include "weights/expert_weights.hpp"

namespace ramp::core::reference {

inline constexpr double kUnit = 0x1p-24;  // unit roundoff of fp32

// n u / (1 - n u): bound of n roundings in a row (Higham, Accuracy and Stability, ch. 3).
constexpr double gamma_of(double n) noexcept {
  return n * kUnit / (1.0 - n * kUnit);
}

// A number with its uncertainty.
struct Uncertain {
  double value = 0, error = 0, sigma = 0;
};

// Sums over a dot product of exact numbers.
struct DotSums {
  double sum = 0;       // of a*w
  double absolute = 0;  // of |a*w|
  double square = 0;    // of (a*w)^2
};
// Over n elements, a multiple of 32.
DotSums dot_sums(const double* a, const double* w, int64_t n) noexcept;
// The dot product as fp32 computes it, in any order with chains of at most `depth` additions.
// tensor_unit: CheckOptions::tensor_unit.
Uncertain fp32_dot(const DotSums& s, double depth, double tensor_unit = 0) noexcept;

// act(gate) * up in fp32 from uncertain arguments, rounded once.
Uncertain fp32_activation(ramp_activation a, const Uncertain& gate, const Uncertain& up) noexcept;

// GEMM2's input, requantised: value + the ways in which it may differ from a backend's.
struct Requantized {
  std::vector<double> value;  // what the reference's codes stand for
  std::vector<double> error;  // |backend's - value| without the common factor below
  // For the statistical bound: fp32's own standard deviation for f32; for the other formats (stepwise) the
  // step to the farthest value within kCheckSigmas standard deviations, mostly 0.
  std::vector<double> sigma;
  bool stepwise = false;
  // Per run of kGroup columns: relative uncertainty of the scale, common to the run's values.
  std::vector<double> scale_error, scale_sigma;
  int64_t flips = 0;      // values that could have another code (rigorous)
  bool infinite = false;  // an infinity went in or came out
};
Requantized requantize_uncertain(const ExpertWeights& w, const std::vector<Uncertain>& h);

// One element of GEMM2: exact sums over the requantised row, plus what its uncertainties can do to them.
Uncertain gemm2_element(const Requantized& q, const double* w, int64_t n, double depth,
                        double tensor_unit = 0) noexcept;

// Half the distance between neighbours of dtype at magnitude v (the largest rounding error there).
double half_spacing(ramp_dtype dtype, double v) noexcept;
// v rounded to dtype.
double round_to(ramp_dtype dtype, double v) noexcept;

}  // namespace ramp::core::reference
