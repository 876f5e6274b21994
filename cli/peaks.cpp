// Peaks of arithmetic: fp32 multiply-adds, bf16 dot products on vectors, bf16 products of tiles. The ceilings
// that prefill is held against.
#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>

#include "cli/machine.hpp"
#include "cli/timed_passes.hpp"

namespace ramp::cli {
namespace {

// Accumulators of the vector loops: latency 4 to 6 on two units needs 8 to 12 of them.
constexpr int kVectorChains = 16;
constexpr int kBaselineChains = 10;  // 16 registers in all

// Four floats per accumulator: SSE2 on x86-64, the machine's 128-bit vectors elsewhere.
float flops_baseline(int64_t rounds) {
  using Vector = float __attribute__((vector_size(16)));
  Vector acc[kBaselineChains];
  const Vector a = {0.999F, 0.999F, 0.999F, 0.999F};
  const Vector b = {0.001F, 0.001F, 0.001F, 0.001F};
  for (Vector& v : acc) v = Vector{1, 1, 1, 1};
  for (int64_t r = 0; r < rounds; ++r) {
    for (Vector& v : acc) v = v * a + b;
  }
  for (int j = 1; j < kBaselineChains; ++j) acc[0] += acc[j];
  return acc[0][0];
}

#if defined(__x86_64__)
__attribute__((target("avx2,fma"))) float flops_avx2(int64_t rounds) {
  __m256 acc[kBaselineChains];
  const __m256 a = _mm256_set1_ps(0.999F);
  const __m256 b = _mm256_set1_ps(0.001F);
  for (__m256& v : acc) v = _mm256_set1_ps(1.0F);
  for (int64_t r = 0; r < rounds; ++r) {
    for (__m256& v : acc) v = _mm256_fmadd_ps(v, a, b);
  }
  for (int j = 1; j < kBaselineChains; ++j) acc[0] = _mm256_add_ps(acc[0], acc[j]);
  alignas(32) float out[8];
  _mm256_store_ps(out, acc[0]);
  return out[0];
}

__attribute__((target("avx512f"))) float flops_avx512(int64_t rounds) {
  __m512 acc[kVectorChains];
  const __m512 a = _mm512_set1_ps(0.999F);
  const __m512 b = _mm512_set1_ps(0.001F);
  for (__m512& v : acc) v = _mm512_set1_ps(1.0F);
  for (int64_t r = 0; r < rounds; ++r) {
    for (__m512& v : acc) v = _mm512_fmadd_ps(v, a, b);
  }
  for (int j = 1; j < kVectorChains; ++j) acc[0] = _mm512_add_ps(acc[0], acc[j]);
  alignas(64) float out[16];
  _mm512_store_ps(out, acc[0]);
  return out[0];
}

// vdpbf16ps: 16 sums of two products each.
__attribute__((target("avx512f,avx512bf16"))) float flops_bf16_dot(int64_t rounds) {
  __m512 acc[kVectorChains];
  const __m512bh a = _mm512_cvtne2ps_pbh(_mm512_set1_ps(0.75F), _mm512_set1_ps(-0.375F));
  const __m512bh b = _mm512_cvtne2ps_pbh(_mm512_set1_ps(0.0625F), _mm512_set1_ps(0.03125F));
  for (__m512& v : acc) v = _mm512_set1_ps(1.0F);
  for (int64_t r = 0; r < rounds; ++r) {
    for (__m512& v : acc) v = _mm512_dpbf16_ps(v, a, b);
  }
  for (int j = 1; j < kVectorChains; ++j) acc[0] = _mm512_add_ps(acc[0], acc[j]);
  alignas(64) float out[16];
  _mm512_store_ps(out, acc[0]);
  return out[0];
}

// What LDTILECFG reads.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};
constexpr int kTileBytes = 1024, kTileRows = 16, kTileRow = 64;
// Steps over the depth that one round takes: 16 KiB of operands, within the first-level cache.
constexpr int kTileSteps = 4;

// 2 x 2 blocking: four accumulator tiles, two tiles of each operand loaded per step.
__attribute__((target("amx-tile,amx-bf16"))) float flops_bf16_amx(int64_t rounds) {
  TileConfig config;
  for (int t = 0; t < 8; ++t) {
    config.rows[t] = kTileRows;
    config.row_bytes[t] = kTileRow;
  }
  alignas(64) uint16_t operands[kTileSteps * 4 * kTileBytes / 2];
  uint32_t random = 1;
  for (uint16_t& v : operands) {
    random = random * 1664525U + 1013904223U;
    // Sign, an exponent of 2^-8 to 2^-1, random mantissa.
    v = static_cast<uint16_t>((random >> 16 & 0x8000U) | (119U + (random >> 28 & 7U)) << 7 |
                              (random >> 20 & 0x7fU));
  }
  _tile_loadconfig(&config);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t r = 0; r < rounds; ++r) {
    for (int s = 0; s < kTileSteps; ++s) {
      const uint16_t* const p = operands + s * 4 * kTileBytes / 2;
      _tile_loadd(4, p, kTileRow);
      _tile_loadd(6, p + kTileBytes, kTileRow);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(7, p + 3 * kTileBytes / 2, kTileRow);
      _tile_dpbf16ps(1, 4, 7);
      _tile_loadd(5, p + kTileBytes / 2, kTileRow);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  float out[4][kTileBytes / 4];
  _tile_stored(0, out[0], kTileRow);
  _tile_stored(1, out[1], kTileRow);
  _tile_stored(2, out[2], kTileRow);
  _tile_stored(3, out[3], kTileRow);
  _tile_release();
  return out[0][0] + out[1][1] + out[2][2] + out[3][3];
}

bool cpu_has_amx_bf16() {
  unsigned a = 0;
  unsigned b = 0;
  unsigned c = 0;
  unsigned d = 0;
  if (__get_cpuid(1, &a, &b, &c, &d) == 0 || (c >> 27 & 1U) == 0) return false;  // OSXSAVE
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return false;
  return (d >> 22 & 1U) != 0 && (d >> 24 & 1U) != 0;  // AMX-BF16, AMX-TILE
}

// Tile state must be switched on by the system (XCR0, bits 17 and 18) and asked for by the process.
bool system_gives_tiles() {
#if defined(__linux__)
  unsigned low = 0;
  unsigned high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  if ((low >> 17 & 3U) != 3U) return false;
  constexpr long kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr long kTileData = 18;               // XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

// Keeps results alive, so that the loops are not removed.
std::atomic<float> g_sink{0};

double best_gflops(float (*loop)(int64_t), int64_t flops_per_round, int threads, double seconds) {
  // A pass of about 4 ms: long against the barriers, short enough for many of them. Rounds from the best of a
  // few probes, after one that wakes the units up.
  using Clock = std::chrono::steady_clock;
  const int64_t probe = std::max<int64_t>(100, 100'000'000 / flops_per_round);
  double fastest = 1e9;
  for (int i = 0; i < 4; ++i) {
    const Clock::time_point t0 = Clock::now();
    g_sink = loop(probe);
    const double took = std::chrono::duration<double>(Clock::now() - t0).count();
    if (i > 0) fastest = std::min(fastest, took);
  }
  const auto rounds = static_cast<int64_t>(static_cast<double>(probe) * 0.004 / std::max(fastest, 1e-7)) + 1;
  const PassTimes passes = timed_passes(threads, seconds, 5, [&](int, int) { g_sink = loop(rounds); });
  const double best = *std::min_element(passes.seconds.begin(), passes.seconds.end());
  return static_cast<double>(flops_per_round) * static_cast<double>(rounds) * threads / best / 1e9;
}

}  // namespace

Peak measure_fp32_peak(int threads, double seconds) {
  Peak result;
  result.threads = threads;
  float (*loop)(int64_t) = flops_baseline;
  int64_t per_round = int64_t{kBaselineChains} * 4 * 2;
  result.kind = "128-bit mul+add";
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f")) {
    loop = flops_avx512;
    per_round = int64_t{kVectorChains} * 16 * 2;
    result.kind = "avx512f fma";
  } else if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    loop = flops_avx2;
    per_round = int64_t{kBaselineChains} * 8 * 2;
    result.kind = "avx2 fma";
  }
#endif
  result.gflops = best_gflops(loop, per_round, threads, seconds);
  return result;
}

Peak measure_bf16_dot_peak(int threads, double seconds) {
  Peak result;
  result.threads = threads;
  result.kind = "avx512bf16 dot products";
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bf16"))
    result.missing = "the CPU or the system has no AVX512-BF16";
  else
    result.gflops = best_gflops(flops_bf16_dot, int64_t{kVectorChains} * 16 * 2 * 2, threads, seconds);
#else
  result.missing = "not an x86-64 CPU";
#endif
  return result;
}

Peak measure_bf16_amx_peak(int threads, double seconds) {
  Peak result;
  result.threads = threads;
  result.kind = "amx-bf16 tiles, 2 x 2";
#if defined(__x86_64__)
  if (!cpu_has_amx_bf16())
    result.missing = "the CPU has no AMX-BF16";
  else if (!system_gives_tiles())
    result.missing = "the system does not give tile state to this process";
  else
    result.gflops = best_gflops(flops_bf16_amx, int64_t{kTileSteps} * 4 * 16 * 16 * 32 * 2, threads, seconds);
#else
  result.missing = "not an x86-64 CPU";
#endif
  return result;
}

}  // namespace ramp::cli
