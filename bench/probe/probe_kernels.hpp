// The stream probe's kernels: a variant's parameters, its shared memory, and its compilation with NVRTC.
// Registers and spills come from ptxas's own report, so that they are known without a GPU.
#pragma once

#include <cuda.h>
#include <fmt/format.h>
#include <nvrtc.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <regex>
#include <string>
#include <vector>

namespace probe {

// What runs now, and what to do before an error ends the program (rows measured so far are kept).
inline std::string& running() {
  static std::string text;
  return text;
}
inline std::function<void()>& on_fatal() {
  static std::function<void()> f;
  return f;
}
inline void check(CUresult r, const char* what) {
  if (r == CUDA_SUCCESS) return;
  const char* text = nullptr;
  cuGetErrorString(r, &text);
  fmt::print(stderr, "{}: {} (at: {})\n", what, text != nullptr ? text : "unknown error", running());
  if (on_fatal()) on_fatal()();
  std::exit(5);
}
#define CK(call) check((call), #call)

inline constexpr size_t kTile = 16384;

enum class Launch {
  kThree,
  kBarrier,
  kReady
};  // three launches; one with a grid-wide barrier or ready counters

// device.cuh and docs/probe.md say what the fields select. `fold`, `balanced` and kBarrier against kReady are
// the host's choice alone.
struct Variant {
  int width = 8, fp8 = 1, stages = 6, blocks = 2, math = 1, rows = 128, packed = 0;
  int split = 1, cast = 0, tensor = 0, overlap = 0, pdl = 0, hint = 0;
  Launch launch = Launch::kThree;
  int fold = 0, balanced = 0;
  auto operator<=>(const Variant&) const = default;

  [[nodiscard]] bool single() const { return launch != Launch::kThree; }
  [[nodiscard]] int cluster() const { return cast != 0 ? 2 : split; }
  [[nodiscard]] int threads() const { return rows * 2 + 64; }
  [[nodiscard]] int item_rows() const { return cast != 0 ? 2 * width : width; }
  [[nodiscard]] int smem() const {
    const int scale = fp8 != 0 ? (width * 4 + 16 + 127) / 128 * 128 : 0;
    return stages * (rows * 128 + width * 128 + scale) + (split - 1) * width * rows * 4 + 16 * stages + 32;
  }
  // 228 KB an SM, 1 KB of it taken by every block; 227 KB a block.
  [[nodiscard]] bool fits() const {
    return stages >= 2 && blocks * (smem() + 1024) <= 228 * 1024 && smem() <= 227 * 1024;
  }
  // The deepest ring (at most `most`) that leaves room for the blocks asked for; stages 0 where none does.
  [[nodiscard]] Variant deepest(int most = 26) const {
    Variant v = *this;
    for (v.stages = most; v.stages >= 2 && !v.fits();) --v.stages;
    if (v.stages < 2) v.stages = 0;
    return v;
  }
  // What the compiler sees.
  [[nodiscard]] Variant compiled() const {
    Variant v = *this;
    v.fold = v.balanced = 0;
    if (v.single()) v.launch = Launch::kReady;
    return v;
  }
};

inline std::string describe(const Variant& v) {
  std::string s = fmt::format("{}{} w{} s{} b{}", v.math != 0 ? "" : "copy ", v.fp8 != 0 ? "fp8" : "bf16",
                              v.width, v.stages, v.blocks);
  if (v.rows != 128) s += fmt::format(" r{}", v.rows);
  if (v.packed != 0) s += " px";
  if (v.tensor != 0) s += " tm";
  if (v.cast != 0) s += " mc";
  if (v.overlap != 0) s += " ov";
  if (v.split > 1) s += fmt::format(" x{}", v.split);
  if (v.single()) s += v.launch == Launch::kReady ? " 1L" : " 1Lbar";
  if (v.fold != 0) s += " fold";
  if (v.balanced != 0) s += " bal";
  if (v.pdl != 0) s += " pdl";
  if (v.hint != 0) s += " ef";
  return s;
}

// One wrapper per token width: wgmma m64 x n x (32 bytes of depth), A and B from shared memory, fp32
// accumulators.
inline std::string wgmma_text(int width, bool fp8) {
  std::string s =
      "template <int N> __device__ __forceinline__ void wgmma(float (&d)[N / 2], unsigned long long a, "
      "unsigned long long b, int add);\n";
  for (int n = 8; n <= width; n += 8) {
    std::string regs;
    std::string outs;
    for (int i = 0; i < n / 2; ++i) {
      regs += fmt::format("{}%{}", i > 0 ? "," : "", i);
      outs += fmt::format("{}\"+f\"(d[{}])", i > 0 ? "," : "", i);
    }
    const int at = n / 2;
    s += fmt::format(
        "template <> __device__ __forceinline__ void wgmma<{0}>(float (&d)[{1}], unsigned long long a, "
        "unsigned long long b, int add) {{\n"
        "  asm volatile(\"{{\\n.reg .pred p;\\nsetp.ne.b32 p, %{2}, "
        "0;\\nwgmma.mma_async.sync.aligned.m64n{0}k{3}.f32.{4} {{{5}}}, %{6}, %{7}, p, 1, 1{8};\\n}}\" : {9} "
        ": "
        "\"l\"(a), \"l\"(b), \"r\"(add));\n}}\n",
        n, n / 2, at + 2, fp8 ? 32 : 16, fp8 ? "e4m3.e4m3" : "bf16.bf16", regs, at, at + 1,
        fp8 ? "" : ", 0, 0", outs);
  }
  return s;
}

struct Kernel {
  CUmodule module = nullptr;
  CUfunction stream = nullptr;
  int registers = 0, spill = 0, resident = 0;
  bool is_built = false, is_serialised = false;  // serialised: ptxas could not keep wgmmas in flight
  double nvrtc_seconds = 0;
};
struct Helpers {
  CUfunction combine = nullptr, fill = nullptr;
};

class Kernels {
 public:
  explicit Kernels(std::string directory) : directory_(std::move(directory)) {}
  bool compile_only = false, watchdog = true;

  const Kernel& get(const Variant& v) {
    auto [it, is_new] = cache_.try_emplace(v.compiled());
    if (is_new) it->second = compile(it->first);
    return it->second;
  }
  const Helpers& helpers() {
    if (helpers_.fill == nullptr) {
      std::string log;
      CUmodule module = nullptr;
      CK(cuModuleLoadData(&module, build(Variant{}, "helpers.cuh", log).data()));
      CK(cuModuleGetFunction(&helpers_.combine, module, "combine"));
      CK(cuModuleGetFunction(&helpers_.fill, module, "fill"));
    }
    return helpers_;
  }

 private:
  // The cubin; empty where registers do not suffice for the blocks asked for (a finding; anything else is a
  // bug).
  [[nodiscard]] std::string build(const Variant& v, const char* file, std::string& log) const {
    std::string text = wgmma_text(v.width, v.fp8 != 0) + "#define RAMP_WIDTHS";
    for (int n = 8; n <= v.width; n += 8) text += fmt::format(" RAMP_WIDTH({})", n / 8);
    text += fmt::format("\n#include \"{}\"\n", file);
    nvrtcProgram program = nullptr;
    nvrtcCreateProgram(&program, text.c_str(), "probe.cu", 0, nullptr, nullptr);
    std::vector<std::string> options = {"-arch=sm_90a", "-std=c++17", "-I" + directory_,
                                        "-I" + directory_ + "/../../kernels", "--ptxas-options=-v"};
    const auto define = [&](const char* name, int value) {
      options.push_back(fmt::format("-D{}={}", name, value));
    };
    define("WIDTH", v.width), define("FP8", v.fp8), define("ROWS", v.rows), define("STAGES", v.stages);
    define("BLOCKS", v.blocks), define("MATH", v.math), define("SPLIT", v.split), define("CAST", v.cast);
    define("TENSOR", v.tensor), define("PACKED", v.packed), define("OVERLAP", v.overlap),
        define("PDL", v.pdl);
    define("SINGLE", v.single() ? 1 : 0), define("HINT", v.hint), define("WATCHDOG", watchdog ? 1 : 0);
    std::vector<const char*> pointers;
    for (const std::string& o : options) pointers.push_back(o.c_str());
    const auto result = nvrtcCompileProgram(program, static_cast<int>(pointers.size()), pointers.data());
    size_t n = 0;
    nvrtcGetProgramLogSize(program, &n);
    log.assign(n, '\0');
    nvrtcGetProgramLog(program, log.data());
    std::string cubin;
    if (result == NVRTC_SUCCESS) {
      nvrtcGetCUBINSize(program, &n);
      cubin.assign(n, '\0');
      nvrtcGetCUBIN(program, cubin.data());
    } else if (log.find("Insufficient registers") == std::string::npos) {
      fmt::print(stderr, "{}:\n{}\n", describe(v), log);
      std::exit(1);
    }
    nvrtcDestroyProgram(&program);
    return cubin;
  }

  [[nodiscard]] Kernel compile(const Variant& v) const {
    Kernel k;
    std::string log;
    const auto start = std::chrono::steady_clock::now();
    const std::string cubin = build(v, "stream.cuh", log);
    k.nvrtc_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    if (cubin.empty()) return k;
    k.is_built = true;
    k.is_serialised = log.find("serialized") != std::string::npos;
    std::smatch found;
    if (std::regex_search(log, found, std::regex("Used ([0-9]+) registers")))
      k.registers = std::stoi(found[1]);
    if (std::regex_search(log, found, std::regex("([0-9]+) bytes spill stores, ([0-9]+) bytes spill loads")))
      k.spill = std::stoi(found[1]) + std::stoi(found[2]);
    if (compile_only) return k;
    CK(cuModuleLoadData(&k.module, cubin.data()));
    CK(cuModuleGetFunction(&k.stream, k.module, "stream"));
    CK(cuFuncSetAttribute(k.stream, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, v.smem()));
    CK(cuOccupancyMaxActiveBlocksPerMultiprocessor(&k.resident, k.stream, v.threads(),
                                                   static_cast<size_t>(v.smem())));
    return k;
  }
  std::string directory_;
  std::map<Variant, Kernel> cache_;
  Helpers helpers_;
};

}  // namespace probe
