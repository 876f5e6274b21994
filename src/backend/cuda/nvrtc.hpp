// libnvrtc, opened at run time like the driver: which one was found, what it compiles for, and checked
// compilation of one source text with headers that exist in memory only.
#pragma once

#include <nvrtc.h>

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "backend/cuda/kernel_library.hpp"

namespace ramp::core::cuda {

#define RAMP_NVRTC_FUNCTIONS(X) \
  X(nvrtcVersion)               \
  X(nvrtcGetErrorString)        \
  X(nvrtcGetNumSupportedArchs)  \
  X(nvrtcGetSupportedArchs)     \
  X(nvrtcCreateProgram)         \
  X(nvrtcDestroyProgram)        \
  X(nvrtcCompileProgram) X(nvrtcGetProgramLogSize) X(nvrtcGetProgramLog) X(nvrtcGetCUBINSize) X(nvrtcGetCUBIN)

struct Nvrtc {
// NOLINTNEXTLINE(bugprone-macro-parentheses): a declarator takes none.
#define RAMP_NVRTC_MEMBER(name) decltype(&::name) name = nullptr;
  RAMP_NVRTC_FUNCTIONS(RAMP_NVRTC_MEMBER)
#undef RAMP_NVRTC_MEMBER
  int major = 0, minor = 0;
  std::vector<int> archs;                     // compute capabilities as 75, 80, 90 ..., rising
  std::string library;                        // path that was opened
  [[nodiscard]] std::string version() const;  // "13.0"
};

// Opened on first use (thread-safe): libnvrtc.so.13, then .so.12 (the other way round where the driver is one
// of CUDA 12, which does not load what 13 compiles), by name and then in the places where toolkits install
// it. Throws UNSUPPORTED with one clear line.
const Nvrtc& nvrtc();
// The same as a question: nullptr and the line in *why.
const Nvrtc* find_nvrtc(std::string* why) noexcept;

// The options that a program is compiled with, those that every program has included.
std::vector<std::string> compile_options(const KernelProgram& program, const std::string& arch);
// "sm_90a" -> 90, "sm_120" -> 120. Throws INVALID_ARGUMENT.
int arch_number(const std::string& arch);

// Compiles `source`; `headers` are found by their names. Throws INTERNAL with the compiler's log.
Cubin compile_source(const std::string& name, std::string_view source, std::span<const EmbeddedFile> headers,
                     const std::vector<std::string>& options);

}  // namespace ramp::core::cuda
