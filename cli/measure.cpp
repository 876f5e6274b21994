// Read bandwidth and fp32 peak: the ceilings that benchmarks are held against.
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <barrier>
#include <chrono>
#include <cstring>
#include <thread>

#include "base/aligned_buffer.hpp"
#include "cli/machine.hpp"
#include "cli/stats.hpp"

namespace ramp::cli {
namespace {

using Clock = std::chrono::steady_clock;
double since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Runs `work(thread, pass)` on all threads in lockstep: pass 0 to warm up, then for about `seconds` and at
// least `least` passes; returns each timed pass's time. Passes begin and end at barriers, so the slowest
// thread counts.
template <typename Work>
std::vector<double> timed_passes(int threads, double seconds, int least, const Work& work) {
  std::vector<double> times;
  std::atomic<bool> more{true};
  std::barrier gate(threads);
  Clock::time_point start;
  const auto body = [&](int thread) {
    for (int pass = 0;; ++pass) {
      gate.arrive_and_wait();
      if (!more.load()) return;
      const Clock::time_point t0 = Clock::now();
      work(thread, pass);
      gate.arrive_and_wait();
      if (thread != 0) continue;
      if (pass == 0)
        start = Clock::now();
      else
        times.push_back(since(t0));
      if (pass > 0 && since(start) >= seconds && static_cast<int>(times.size()) >= least) more = false;
    }
  };
  std::vector<std::thread> others;
  for (int t = 1; t < threads; ++t) others.emplace_back(body, t);
  body(0);
  for (std::thread& t : others) t.join();
  return times;
}

uint64_t sum_words(const uint64_t* data, int64_t count) {
  // Four chains hide the latency of the additions.
  uint64_t a = 0;
  uint64_t b = 0;
  uint64_t c = 0;
  uint64_t d = 0;
  for (int64_t i = 0; i + 4 <= count; i += 4) {
    a += data[i];
    b += data[i + 1];
    c += data[i + 2];
    d += data[i + 3];
  }
  return a + b + c + d;
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) uint64_t sum_words_avx2(const uint64_t* data, int64_t count) {
  __m256i s[8];
  for (__m256i& v : s) v = _mm256_setzero_si256();
  for (int64_t i = 0; i + 32 <= count; i += 32)
    for (int j = 0; j < 8; ++j)
      s[j] = _mm256_add_epi64(s[j], _mm256_load_si256(reinterpret_cast<const __m256i*>(data + i + 4 * j)));
  for (int j = 1; j < 8; ++j) s[0] = _mm256_add_epi64(s[0], s[j]);
  alignas(32) uint64_t out[4];
  _mm256_store_si256(reinterpret_cast<__m256i*>(out), s[0]);
  return out[0] + out[1] + out[2] + out[3];
}

// 12 independent accumulators cover latency 4-5 on two units.
__attribute__((target("avx512f"))) float flops_avx512(int64_t rounds) {
  __m512 acc[12];
  const __m512 a = _mm512_set1_ps(0.999F);
  const __m512 b = _mm512_set1_ps(0.001F);
  for (__m512& v : acc) v = _mm512_set1_ps(1.0F);
  for (int64_t r = 0; r < rounds; ++r) {
    for (__m512& v : acc) v = _mm512_fmadd_ps(v, a, b);
  }
  for (int j = 1; j < 12; ++j) acc[0] = _mm512_add_ps(acc[0], acc[j]);
  alignas(64) float out[16];
  _mm512_store_ps(out, acc[0]);
  return out[0];
}
__attribute__((target("avx2,fma"))) float flops_avx2(int64_t rounds) {
  __m256 acc[12];
  const __m256 a = _mm256_set1_ps(0.999F);
  const __m256 b = _mm256_set1_ps(0.001F);
  for (__m256& v : acc) v = _mm256_set1_ps(1.0F);
  for (int64_t r = 0; r < rounds; ++r) {
    for (__m256& v : acc) v = _mm256_fmadd_ps(v, a, b);
  }
  for (int j = 1; j < 12; ++j) acc[0] = _mm256_add_ps(acc[0], acc[j]);
  alignas(32) float out[8];
  _mm256_store_ps(out, acc[0]);
  return out[0];
}
#endif

// Four floats per accumulator: SSE2 on x86-64, the machine's 128-bit vectors elsewhere.
float flops_baseline(int64_t rounds) {
  using Vector = float __attribute__((vector_size(16)));
  Vector acc[10];
  const Vector a = {0.999F, 0.999F, 0.999F, 0.999F};
  const Vector b = {0.001F, 0.001F, 0.001F, 0.001F};
  for (Vector& v : acc) v = Vector{1, 1, 1, 1};
  for (int64_t r = 0; r < rounds; ++r) {
    for (Vector& v : acc) v = v * a + b;
  }
  for (int j = 1; j < 10; ++j) acc[0] += acc[j];
  return acc[0][0];
}

// Keep results alive, so that the loops are not removed.
std::atomic<uint64_t> g_sink_words{0};
std::atomic<float> g_sink_float{0};

}  // namespace

Bandwidth measure_read_bandwidth(int threads, double seconds, const std::function<void(double)>& progress) {
  Bandwidth result;
  result.threads = threads;
  const int64_t llc = last_level_cache_bytes();
  const int64_t memory = available_memory();
  int64_t bytes = std::max<int64_t>(int64_t{1} << 30, 2 * llc);
  if (memory > 0) bytes = std::min(bytes, memory / 4);
  constexpr int64_t kPage = 1 << 21;  // parts begin at huge pages
  const int64_t part = std::max<int64_t>(kPage, bytes / threads / kPage * kPage);
  result.buffer_bytes = part * threads;
  result.beyond_cache = llc > 0 && result.buffer_bytes >= 2 * llc;

  core::AlignedBuffer buffer(static_cast<uint64_t>(result.buffer_bytes + kPage));
  const auto address = reinterpret_cast<uintptr_t>(buffer.data());
  auto* const base = buffer.as<std::byte>() + (kPage - static_cast<int64_t>(address % kPage)) % kPage;
  madvise(base, static_cast<size_t>(result.buffer_bytes), MADV_HUGEPAGE);  // a wish; refusal costs only time
  const auto slice = [&](int thread) { return base + part * thread; };

#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool wide = __builtin_cpu_supports("avx2") != 0;
#endif
  const Clock::time_point start = Clock::now();
  // The warm-up writes (each thread its own part, so that the memory lies near it).
  const std::vector<double> times = timed_passes(threads, seconds, 3, [&](int thread, int pass) {
    if (pass == 0) {
      std::memset(slice(thread), 0x5a, static_cast<size_t>(part));
      return;
    }
    const auto* words = reinterpret_cast<const uint64_t*>(slice(thread));
    const int64_t count = part / 8;
#if defined(__x86_64__)
    g_sink_words += wide ? sum_words_avx2(words, count) : sum_words(words, count);
#else
    g_sink_words += sum_words(words, count);
#endif
    // Touching new memory takes about as long as the measurement itself.
    if (thread == 0 && progress) progress(std::min(1.0, since(start) / (2 * seconds)));
  });
  const Percentiles p = percentiles(times);
  result.passes = static_cast<int>(times.size());
  const auto total = static_cast<double>(result.buffer_bytes);
  result.gbps = total / *std::min_element(times.begin(), times.end()) / 1e9;
  result.median_gbps = total / p.median / 1e9;
  return result;
}

Peak measure_fp32_peak(int threads, double seconds) {
  Peak result;
  result.threads = threads;
  float (*loop)(int64_t) = flops_baseline;
  int64_t per_round = 10 * 4 * 2;
  result.kind = "128-bit mul+add";
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f")) {
    loop = flops_avx512;
    per_round = 12 * 16 * 2;
    result.kind = "avx512f fma";
  } else if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    loop = flops_avx2;
    per_round = 12 * 8 * 2;
    result.kind = "avx2 fma";
  }
#endif
  // A pass of about 10 ms: long against the barriers, short enough for many of them.
  constexpr int64_t kProbe = 200'000;
  const Clock::time_point t0 = Clock::now();
  g_sink_float = loop(kProbe);
  const int64_t rounds =
      std::max<int64_t>(kProbe, static_cast<int64_t>(kProbe * 0.01 / std::max(since(t0), 1e-6)));
  const std::vector<double> times =
      timed_passes(threads, seconds, 5, [&](int, int) { g_sink_float = loop(rounds); });
  const double best = *std::min_element(times.begin(), times.end());
  result.gflops = static_cast<double>(per_round * rounds) * threads / best / 1e9;
  return result;
}

}  // namespace ramp::cli
