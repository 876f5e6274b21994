// The stream probe's kernels: a variant's parameters, its shared memory, and its compilation with NVRTC.
#pragma once

#include <cuda.h>
#include <fmt/format.h>
#include <nvrtc.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <vector>

namespace probe {

inline void check(CUresult r, const char* what) {
  if (r == CUDA_SUCCESS) return;
  const char* text = nullptr;
  cuGetErrorString(r, &text);
  fmt::print(stderr, "{}: {}\n", what, text != nullptr ? text : "unknown error");
  std::exit(5);
}
#define CK(call) check((call), #call)

inline constexpr size_t kTile = 16384;

struct Variant {
  int width = 8, fp8 = 1, stages = 12, blocks = 1, math = 1, split = 1, pdl = 0;
  auto operator<=>(const Variant&) const = default;
  [[nodiscard]] unsigned smem() const {
    const unsigned scale = fp8 != 0 ? (width * 4 + 127) / 128 * 128 : 0;
    return stages * (kTile + width * 128 + scale) + (split - 1) * width * 128 * 4 + 16 * stages + 16;
  }
  [[nodiscard]] bool fits() const { return blocks * (smem() + 1024) <= 228 * 1024 && smem() <= 227 * 1024; }
};

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
  CUfunction stream = nullptr, combine = nullptr, fill = nullptr;
  int registers = 0, spill = 0, resident = 0;
  double nvrtc_seconds = 0;
};

class Kernels {
 public:
  explicit Kernels(std::string source) : source_(std::move(source)) {}
  const Kernel& get(const Variant& v) {
    auto [it, is_new] = cache_.try_emplace(v);
    if (is_new) it->second = compile(v);
    return it->second;
  }

 private:
  [[nodiscard]] Kernel compile(const Variant& v) const {
    std::string text = wgmma_text(v.width, v.fp8 != 0);
    text += "#define RAMP_WIDTHS";
    for (int n = 8; n <= v.width; n += 8) text += fmt::format(" RAMP_WIDTH({})", n / 8);
    text += "\n" + source_;
    const auto start = std::chrono::steady_clock::now();
    nvrtcProgram program = nullptr;
    nvrtcCreateProgram(&program, text.c_str(), "stream.cuh", 0, nullptr, nullptr);
    const std::vector<std::string> options = {"-arch=sm_90a",
                                              "-std=c++17",
                                              fmt::format("-DWIDTH={}", v.width),
                                              fmt::format("-DFP8={}", v.fp8),
                                              fmt::format("-DSTAGES={}", v.stages),
                                              fmt::format("-DBLOCKS={}", v.blocks),
                                              fmt::format("-DMATH={}", v.math),
                                              fmt::format("-DSPLIT={}", v.split),
                                              fmt::format("-DPDL={}", v.pdl)};
    std::vector<const char*> pointers;
    for (const std::string& o : options) pointers.push_back(o.c_str());
    if (nvrtcCompileProgram(program, static_cast<int>(pointers.size()), pointers.data()) != NVRTC_SUCCESS) {
      size_t n = 0;
      nvrtcGetProgramLogSize(program, &n);
      std::string log(n, '\0');
      nvrtcGetProgramLog(program, log.data());
      nvrtcDestroyProgram(&program);
      // Too few registers for the blocks asked for is a finding; anything else is a bug.
      if (log.find("Insufficient registers") == std::string::npos) {
        fmt::print(stderr, "{}\n", log);
        std::exit(1);
      }
      return {};
    }
    size_t n = 0;
    nvrtcGetCUBINSize(program, &n);
    std::string cubin(n, '\0');
    nvrtcGetCUBIN(program, cubin.data());
    nvrtcDestroyProgram(&program);
    Kernel k;
    k.nvrtc_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    if (compile_only) return k;
    CK(cuModuleLoadData(&k.module, cubin.data()));
    CK(cuModuleGetFunction(&k.stream, k.module, "stream"));
    CK(cuModuleGetFunction(&k.combine, k.module, "combine"));
    CK(cuModuleGetFunction(&k.fill, k.module, "fill"));
    CK(cuFuncGetAttribute(&k.registers, CU_FUNC_ATTRIBUTE_NUM_REGS, k.stream));
    CK(cuFuncGetAttribute(&k.spill, CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES, k.stream));
    CK(cuFuncSetAttribute(k.stream, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                          static_cast<int>(v.smem())));
    CK(cuOccupancyMaxActiveBlocksPerMultiprocessor(&k.resident, k.stream, 288, v.smem()));
    return k;
  }
  std::string source_;
  std::map<Variant, Kernel> cache_;

 public:
  bool compile_only = false;
};

inline std::string describe(const Variant& v) {
  return fmt::format("{}{} w{} s{} b{}{}{}", v.math != 0 ? "" : "copy ", v.fp8 != 0 ? "fp8" : "bf16", v.width,
                     v.stages, v.blocks, v.split > 1 ? fmt::format(" x{}", v.split) : "",
                     v.pdl != 0 ? " pdl" : "");
}

}  // namespace probe
