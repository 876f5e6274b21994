// The stream probe's checks: sampled outputs of both GEMMs against fp64, GEMM1's result as GEMM2 read it, and
// the combine. Every check gives the largest |error| / bound it saw; above 1 is a failure.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "probe_layer.hpp"

namespace probe {

inline float e4m3(uint8_t v) {
  const int e = (v >> 3) & 15;
  const int f = v & 7;
  const float m = e != 0 ? std::ldexp(1.0F + static_cast<float>(f) / 8, e - 7)
                         : std::ldexp(static_cast<float>(f) / 8, -6);
  if ((v & 0x7f) == 0x7f) return NAN;
  return (v & 0x80) != 0 ? -m : m;
}
inline float bf16(uint16_t v) {
  const uint32_t u = static_cast<uint32_t>(v) << 16;
  float f = 0;
  std::memcpy(&f, &u, 4);
  return f;
}

template <class T>
T read_one(CUdeviceptr p) {
  T v{};
  CK(cuMemcpyDtoH(&v, p, sizeof v));
  return v;
}
// `count` runs of `bytes` bytes, `pitch` apart.
inline std::vector<uint8_t> read_runs(CUdeviceptr p, size_t bytes, size_t pitch, size_t count) {
  std::vector<uint8_t> out(bytes * count);
  CUDA_MEMCPY2D c{};
  c.srcMemoryType = CU_MEMORYTYPE_DEVICE;
  c.srcDevice = p;
  c.srcPitch = pitch;
  c.dstMemoryType = CU_MEMORYTYPE_HOST;
  c.dstHost = out.data();
  c.dstPitch = bytes;
  c.WidthInBytes = bytes;
  c.Height = count;
  CK(cuMemcpy2D(&c));
  return out;
}
inline std::vector<float> as_floats(const std::vector<uint8_t>& bytes) {
  std::vector<float> out(bytes.size() / 4);
  std::memcpy(out.data(), bytes.data(), bytes.size());
  return out;
}

// One GEMM as it lies on the device.
struct Operands {
  CUdeviceptr weights, scales, x, x_scales, out;
  uint64_t base;         // row-major layout: first 16 KB unit
  uint32_t depth_bytes;  // of a weight or token row
  uint32_t out_stride;
  const std::vector<uint32_t>* index;
};

// A depth row of 128-byte pieces, each with its 16-byte chunks xor-ed by `swizzle`.
inline float element(const std::vector<uint8_t>& row, size_t k, size_t byte, uint32_t swizzle, bool fp8) {
  const size_t at = k * 128 + ((byte / 16) ^ swizzle) * 16 + byte % 16;
  if (fp8) return e4m3(row[at]);
  uint16_t v = 0;
  std::memcpy(&v, &row[at], 2);
  return bf16(v);
}

// What FP8 wgmma may lose in one depth step, as a variance in units of 2^-26: an instruction aligns its 32
// products and the accumulator to the largest of them and cuts 13 bits behind it, towards zero, and so the
// sum: 34 cuts below 2^-13 of that largest term, uniform (a third of their square each), with random signs as
// the probe's values have. `products` are unscaled; the accumulator starts from zero with each step.
inline double cut_variance(const std::vector<double>& products) {
  double sum = 0;
  double variance = 0;
  for (size_t at = 0; at < products.size(); at += 32) {
    double largest = std::abs(sum);
    for (size_t i = at; i < at + 32; ++i) {
      largest = std::max(largest, std::abs(products[i]));
      sum += products[i];
    }
    largest = std::max(largest, std::abs(sum));
    variance += 34.0 / 3 * largest * largest;
  }
  return variance;
}

// The bound is (steps + 8) eps of the sum of magnitudes (fp32 accumulation over the steps) and, in FP8, six
// standard deviations of what wgmma cuts, in bf16 64 roundings of 2^-22.
inline double check_gemm(const std::vector<Item>& items, const Variant& v, const Operands& o,
                         std::mt19937_64& rng) {
  const bool fp8 = v.fp8 != 0;
  double worst = 0;
  for (int sample = 0; sample < 24; ++sample) {
    const Item& item = items[rng() % items.size()];
    const auto r = static_cast<uint32_t>(rng() % item.rows);
    const auto n = static_cast<uint32_t>(rng() % static_cast<uint64_t>(v.rows));  // row of the item
    const uint32_t tile_row = item.half / 128 + n;                                // row of the 16 KB tile
    const uint32_t groups = (item.rows + 7) / 8;
    const size_t steps = item.steps;
    const std::vector<uint8_t> w =
        v.tensor != 0 ? read_runs(o.weights + o.base * kTile + uint64_t{item.weight_row + n} * o.depth_bytes,
                                  128, 128, steps)
                      : read_runs(o.weights + item.tile * kTile + tile_row * 128, 128, kTile, steps);
    const std::vector<uint8_t> x =
        v.packed != 0
            ? read_runs(o.x + (uint64_t{item.x_at} + r / 8) * 1024 + r % 8 * 128, 128, groups * 1024, steps)
            : read_runs(o.x + uint64_t{(*o.index)[item.row0 + r]} * o.depth_bytes, 128, 128, steps);
    std::vector<float> ws(2 * steps, 1.0F);
    std::vector<float> xs(steps, 1.0F);
    if (fp8) {
      ws = as_floats(read_runs(o.scales + item.tile * 8, 8, 8, steps));
      xs = as_floats(
          v.packed != 0
              ? read_runs(o.x_scales + (uint64_t{item.x_at} * 8 + r) * 4, 4, groups * 32, steps)
              : read_runs(o.x_scales + uint64_t{(*o.index)[item.row0 + r]} * (o.depth_bytes / 128) * 4, 4, 4,
                          steps));
    }
    double sum = 0;
    double magnitude = 0;
    double variance = 0;
    for (size_t k = 0; k < steps; ++k) {
      std::vector<double> products;
      const double scale = static_cast<double>(ws[2 * k + (n % 16 < 8 ? 0 : 1)]) * static_cast<double>(xs[k]);
      for (size_t b = 0; b < 128; b += fp8 ? 1 : 2) {
        const double p = static_cast<double>(element(w, k, b, v.tensor != 0 ? 0 : tile_row % 8, fp8)) *
                         static_cast<double>(element(x, k, b, v.packed != 0 ? r % 8 : 0, fp8));
        products.push_back(p);
        sum += p * scale;
        magnitude += std::abs(p * scale);
      }
      if (fp8) variance += scale * scale * cut_variance(products);
    }
    const auto got = read_one<float>(o.out + (uint64_t{item.row0 + r} * o.out_stride + item.out_col + n) * 4);
    const double bound = magnitude * static_cast<double>(steps + 8) * 0x1p-23 +
                         (fp8 ? 6 * 0x1p-13 * std::sqrt(variance) : magnitude * 0x1p-22 * 64);
    const double ratio = std::abs(static_cast<double>(got) - sum) / bound;
    worst = std::isnan(ratio) ? INFINITY : std::max(worst, ratio);
  }
  return worst;
}

// Single launch: GEMM2's tokens are (gate + up) / 16 of GEMM1's sums, rounded once (half a unit in the last
// place: 2^-4 of an e4m3 value, 2^-10 below its normal range, 2^-8 of a bf16 value).
inline double check_mid(const std::vector<Item>& gemm1, const Variant& v, CUdeviceptr out1,
                        uint32_t out_stride, CUdeviceptr mid, std::mt19937_64& rng) {
  const bool fp8 = v.fp8 != 0;
  double worst = 0;
  for (int sample = 0; sample < 24; ++sample) {
    const Item& item = gemm1[rng() % gemm1.size()];
    const auto r = static_cast<uint32_t>(rng() % item.rows);
    const auto local = static_cast<uint32_t>(rng() % static_cast<uint64_t>(v.rows / 2));
    const uint32_t gate = local / 8 * 16 + local % 8;
    const CUdeviceptr row = out1 + (uint64_t{item.row0 + r} * out_stride + item.out_col) * 4;
    const float want = (read_one<float>(row + gate * 4) + read_one<float>(row + (gate + 8) * 4)) * 0.0625F;
    const uint32_t byte = (item.out_col / 2 + local) * (fp8 ? 1 : 2);
    const uint32_t groups = (item.rows + 7) / 8;
    const CUdeviceptr at = mid + (uint64_t{item.mid_at} + byte / 128 * groups + r / 8) * 1024 + r % 8 * 128 +
                           (((byte % 128) / 16) ^ (r % 8)) * 16 + byte % 16;
    const float got = fp8 ? e4m3(read_one<uint8_t>(at)) : bf16(read_one<uint16_t>(at));
    const float clamped = fp8 ? std::clamp(want, -448.0F, 448.0F) : want;
    const float bound =
        fp8 ? std::max(std::abs(clamped) * 0x1p-4F, 0x1p-10F) : std::abs(want) * 0x1p-8F + 1e-30F;
    const double ratio = static_cast<double>(std::abs(got - clamped) / bound);
    worst = std::isnan(ratio) ? INFINITY : std::max(worst, ratio);
  }
  return worst;
}

// y = the sum of k rows, rounded to bf16 (2^-8 of it), the sum itself within k eps of the magnitudes.
inline double check_combine(const Model& m, int tokens, CUdeviceptr out2, CUdeviceptr y,
                            std::mt19937_64& rng) {
  double worst = 0;
  for (int sample = 0; sample < 24; ++sample) {
    const uint64_t t = rng() % static_cast<uint64_t>(tokens);
    const uint64_t c = rng() % static_cast<uint64_t>(m.hidden);
    double sum = 0;
    double magnitude = 0;
    for (int j = 0; j < m.top_k; ++j) {
      const uint64_t row = t * static_cast<uint64_t>(m.top_k) + static_cast<uint64_t>(j);
      const auto v =
          static_cast<double>(read_one<float>(out2 + (row * static_cast<uint64_t>(m.hidden) + c) * 4));
      sum += v;
      magnitude += std::abs(v);
    }
    const auto got =
        static_cast<double>(bf16(read_one<uint16_t>(y + (t * static_cast<uint64_t>(m.hidden) + c) * 2)));
    const double ratio = std::abs(got - sum) / (std::abs(sum) * 0x1p-8 + magnitude * m.top_k * 0x1p-23);
    worst = std::isnan(ratio) ? INFINITY : std::max(worst, ratio);
  }
  return worst;
}

}  // namespace probe
