// What this machine is and what it measures: caches, memory, vector extensions; read bandwidth and peaks of
// arithmetic as short honest measurements.
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
std::vector<Cache> caches();       // of CPU 0; empty when the system does not tell
int64_t last_level_cache_bytes();  // 0 when unknown
int64_t available_memory();        // bytes that can be taken without swapping; 0 when unknown
// Refuses what would not fit the free memory: as systems hand out memory that they do not have, the process
// would be ended while it writes. `bytes`: at least what `what` takes.
void check_memory(const std::string& argument, const std::string& what, double bytes);
std::vector<std::string> vector_extensions();  // "sse4.2", "avx2", ..., those that compiled code may use

struct Bandwidth {
  double gbps = 0;         // best pass of the best reader, 1e9 bytes/s
  double median_gbps = 0;  // over that reader's passes
  std::string reader;      // the one that was best
  int64_t buffer_bytes = 0;
  int threads = 0, passes = 0;
  bool beyond_cache = false;  // the buffer is at least twice the last-level cache
  double cpu_share = 0;       // CPU time of the threads over wall time: below 1 where others took their cores
};
// Every thread sums its own part of a buffer of at least 1 GiB and twice the last-level cache (less where a
// quarter of the free memory does not allow it), over and over for about `seconds` in all: in four ways
// (streams, prefetching), of which the fastest counts. No non-temporal hints.
Bandwidth measure_read_bandwidth(int threads, double seconds,
                                 const std::function<void(double)>& progress = {});

struct Peak {
  double gflops = 0;    // a multiply-add counts two; best of many short passes over all threads
  std::string kind;     // "avx512f fma", "avx2 fma", "128-bit mul+add", ...
  std::string missing;  // why there is no figure (gflops is 0); empty where there is one
  int threads = 0;
};
// Independent operations on registers, no memory: what the cores can do at most with this extension. fp32
// multiply-adds; bf16 dot products into fp32 (AVX512-BF16); bf16 products of tiles whose operands are loaded
// from the first-level cache (AMX-BF16; asks the system for tile state, once and for the process).
Peak measure_fp32_peak(int threads, double seconds);
Peak measure_bf16_dot_peak(int threads, double seconds);
Peak measure_bf16_amx_peak(int threads, double seconds);

}  // namespace ramp::cli
