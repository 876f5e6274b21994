// Read bandwidth: the ceiling that decode is held against.
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <iterator>

#include "base/aligned_buffer.hpp"
#include "cli/machine.hpp"
#include "cli/stats.hpp"
#include "cli/timed_passes.hpp"

namespace ramp::cli {
namespace {

constexpr int64_t kLine = 64;

// The readers differ in how many streams a thread follows and how far ahead it asks for lines: which one is
// best depends on the hardware's own prefetching. A stream is read in blocks of `kBlock` lines; the
// prefetches run past the end of the streams, where they do nothing.
template <int kStreams, int kAhead, int kBlock = 4>
uint64_t sum_baseline(const std::byte* data, int64_t bytes) {
  const int64_t part = bytes / kStreams;
  uint64_t sum[4] = {};
  for (int64_t i = 0; i + kBlock * kLine <= part; i += kBlock * kLine) {
    for (int s = 0; s < kStreams; ++s) {
      const std::byte* const p = data + s * part + i;
      for (int line = 0; line < kBlock; ++line) {
        if (kAhead > 0) __builtin_prefetch(p + (line + kAhead) * kLine, 0, 2);
        const auto* words = reinterpret_cast<const uint64_t*>(p + line * kLine);
        for (int j = 0; j < 8; ++j) sum[j & 3] += words[j];
      }
    }
  }
  return sum[0] + sum[1] + sum[2] + sum[3];
}

#if defined(__x86_64__)
template <int kStreams, int kAhead, int kBlock = 4>
__attribute__((target("avx2"))) uint64_t sum_avx2(const std::byte* data, int64_t bytes) {
  const int64_t part = bytes / kStreams;
  __m256i sum[8];
  for (__m256i& v : sum) v = _mm256_setzero_si256();
  for (int64_t i = 0; i + kBlock * kLine <= part; i += kBlock * kLine) {
#pragma GCC unroll 4
    for (int s = 0; s < kStreams; ++s) {
      const std::byte* const p = data + s * part + i;
#pragma GCC unroll 4
      for (int line = 0; line < kBlock; ++line) {
        if (kAhead > 0) __builtin_prefetch(p + (line + kAhead) * kLine, 0, 2);
        const auto* v = reinterpret_cast<const __m256i*>(p + line * kLine);
        const int j = line * 2 & 7;
        sum[j] = _mm256_add_epi64(sum[j], _mm256_load_si256(v));
        sum[j + 1] = _mm256_add_epi64(sum[j + 1], _mm256_load_si256(v + 1));
      }
    }
  }
  for (int j = 1; j < 8; ++j) sum[0] = _mm256_add_epi64(sum[0], sum[j]);
  alignas(32) uint64_t out[4];
  _mm256_store_si256(reinterpret_cast<__m256i*>(out), sum[0]);
  return out[0] + out[1] + out[2] + out[3];
}

template <int kStreams, int kAhead, int kBlock = 4>
__attribute__((target("avx512f"))) uint64_t sum_avx512(const std::byte* data, int64_t bytes) {
  const int64_t part = bytes / kStreams;
  __m512i sum[8];
  for (__m512i& v : sum) v = _mm512_setzero_si512();
  for (int64_t i = 0; i + kBlock * kLine <= part; i += kBlock * kLine) {
#pragma GCC unroll 4
    for (int s = 0; s < kStreams; ++s) {
      const std::byte* const p = data + s * part + i;
#pragma GCC unroll 8
      for (int line = 0; line < kBlock; ++line) {
        if (kAhead > 0) __builtin_prefetch(p + (line + kAhead) * kLine, 0, 2);
        __m512i& v = sum[(s * kBlock + line) & 7];
        v = _mm512_add_epi64(v, _mm512_load_si512(p + line * kLine));
      }
    }
  }
  for (int j = 1; j < 8; ++j) sum[0] = _mm512_add_epi64(sum[0], sum[j]);
  alignas(64) uint64_t out[8];
  _mm512_store_si512(out, sum[0]);
  uint64_t total = 0;
  for (const uint64_t v : out) total += v;
  return total;
}
#endif

struct Reader {
  const char* name;
  uint64_t (*read)(const std::byte* data, int64_t bytes);
};
#define RAMP_READERS(set, loads)                                                  \
  constexpr Reader set[] = {{loads ", one stream", sum_##set<1, 0>},              \
                            {loads ", one stream, prefetched", sum_##set<1, 16>}, \
                            {loads ", two streams, prefetched", sum_##set<2, 8>}, \
                            {loads ", four streams, prefetched", sum_##set<4, 8>}}
RAMP_READERS(baseline, "8-byte loads");
#if defined(__x86_64__)
RAMP_READERS(avx2, "32-byte loads");
RAMP_READERS(avx512, "64-byte loads");
#endif
#undef RAMP_READERS

std::vector<Reader> readers() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f")) return {std::begin(avx512), std::end(avx512)};
  if (__builtin_cpu_supports("avx2")) return {std::begin(avx2), std::end(avx2)};
#endif
  return {std::begin(baseline), std::end(baseline)};
}

// Keeps the sums alive, so that the loops are not removed.
std::atomic<uint64_t> g_sink{0};

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

  const std::vector<Reader> list = readers();
  const auto count = static_cast<double>(list.size());
  const auto total = static_cast<double>(result.buffer_bytes);
  for (size_t r = 0; r < list.size(); ++r) {
    const PassTimes passes = timed_passes(threads, seconds / count, 3, [&](int thread, int pass) {
      // The first warm-up writes (each thread its own part, so that the memory lies near it).
      if (r == 0 && pass == 0)
        std::memset(slice(thread), 0x5a, static_cast<size_t>(part));
      else if (pass > 0)
        g_sink += list[r].read(slice(thread), part);
    });
    if (progress) progress(static_cast<double>(r + 1) / count);
    result.cpu_share += passes.cpu_share / count;
    const double gbps = total / *std::min_element(passes.seconds.begin(), passes.seconds.end()) / 1e9;
    if (gbps <= result.gbps) continue;
    result.gbps = gbps;
    result.median_gbps = total / percentiles(passes.seconds).median / 1e9;
    result.passes = static_cast<int>(passes.seconds.size());
    result.reader = list[r].name;
  }
  return result;
}

}  // namespace ramp::cli
