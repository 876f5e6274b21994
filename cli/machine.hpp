// What this machine is and what it measures: caches, memory, vector extensions; read bandwidth and fp32 peak
// as short honest measurements.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace ramp::cli {

struct Cache {
  int level = 0;
  std::string type;  // "data", "instruction", "unified"
  int64_t bytes = 0;
  int shared_by = 1;  // logical CPUs that share one instance
};
std::vector<Cache> caches();                   // of CPU 0; empty when the system does not tell
int64_t last_level_cache_bytes();              // 0 when unknown
int64_t available_memory();                    // bytes that can be taken without swapping; 0 when unknown
std::vector<std::string> vector_extensions();  // "sse4.2", "avx2", ..., those that compiled code may use

struct Bandwidth {
  double gbps = 0;         // best pass, 1e9 bytes/s
  double median_gbps = 0;  // over the passes
  int64_t buffer_bytes = 0;
  int threads = 0, passes = 0;
  bool beyond_cache = false;  // the buffer is at least twice the last-level cache
};
// Every thread sums its own part of a buffer of at least 1 GiB and twice the last-level cache (less where a
// quarter of the free memory does not allow it), over and over for about `seconds`. Plain loads, no
// non-temporal hints.
Bandwidth measure_read_bandwidth(int threads, double seconds,
                                 const std::function<void(double)>& progress = {});

struct Peak {
  double gflops = 0;  // fp32, a multiply-add counts two; best pass over all threads
  std::string kind;   // "avx512f fma", "avx2 fma", "sse2 mul+add"
  int threads = 0;
};
// Independent multiply-adds on registers, no memory: what the cores can do at most with this extension.
Peak measure_fp32_peak(int threads, double seconds);

}  // namespace ramp::cli
