// Programs of kernels/prologue/ with their macros, and how they are loaded and launched.
#include "backend/cuda/prologue_kernels.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "backend/cuda/driver.hpp"
#include "backend/cuda/prologue.hpp"
#include "base/error.hpp"
#include "base/tensor.hpp"
#include "geometry/model.hpp"
#include "params/prologue.hpp"

namespace ramp::core::cuda {
namespace {

// Order of operations as on the host: a*b+c is contracted nowhere.
constexpr const char* kNoContraction = "-fmad=false";

constexpr std::array<ramp_format, 6> kFormats = {RAMP_FORMAT_FP8_BLOCK,  RAMP_FORMAT_BF16,
                                                 RAMP_FORMAT_F16,        RAMP_FORMAT_F32,
                                                 RAMP_FORMAT_FP8_TENSOR, RAMP_FORMAT_FP8_CHANNEL};
constexpr std::array<ramp_dtype, 3> kFloats = {RAMP_F32, RAMP_F16, RAMP_BF16};
constexpr std::array<const char*, kRouteKinds> kRouteEntries = {
    "route_chosen", "route_softmax", "route_sigmoid", "route_grouped", "route_any"};
constexpr std::array<int, 5> kVectors = {2, 4, 8, 16, 32};  // logits per lane

size_t vectors_index(int64_t experts) noexcept {
  size_t i = 0;
  while (i + 1 < kVectors.size() && int64_t{32} * kVectors[i] < experts) ++i;
  return i;
}
// 0: CUDA cores; else the type of both operands.
int tensor_type(ramp_dtype x, ramp_dtype w) noexcept {
  return x == w && (x == RAMP_BF16 || x == RAMP_F16) ? static_cast<int>(x) : 0;
}

}  // namespace

KernelProgram main_program(ramp_format format, ramp_dtype x) {
  const bool depends = x != RAMP_DTYPE_NONE && x != RAMP_E4M3;
  KernelProgram p;
  if (x == RAMP_DTYPE_NONE) {
    p.name = "prologue_in_place";
  } else if (x == RAMP_E4M3) {
    p.name = "prologue_e4m3";
  } else {
    p.name = fmt::format("prologue_{}_{}", format_name(format), dtype_name(x));
  }
  p.source = "prologue/prologue.cu";
  p.options = {fmt::format("-DX_TYPE={}", static_cast<int>(x)),
               fmt::format("-DFORMAT={}", static_cast<int>(depends ? format : RAMP_FORMAT_FP8_BLOCK)),
               kNoContraction};
  p.entries = {"prologue"};
  if (!depends || format == RAMP_FORMAT_FP8_BLOCK) p.entries.emplace_back("prologue_decide");
  return p;
}

KernelProgram decide_constants_program(ramp_dtype x) {
  KernelProgram p = main_program(RAMP_FORMAT_FP8_BLOCK, x);
  p.name += "_constants";
  p.options.emplace_back("-DDECIDE_CONSTANTS=1");
  return p;
}

KernelProgram requantize_program(ramp_format format) {
  return {.name = fmt::format("requantize_{}", format_name(format)),
          .source = "prologue/requantize.cu",
          .options = {"-DX_TYPE=1", fmt::format("-DFORMAT={}", static_cast<int>(format)), kNoContraction},
          .entries = {"requantize"}};
}

KernelProgram index_program() {
  return {.name = "prologue_index",
          .source = "prologue/index.cu",
          .options = {kNoContraction},
          .entries = {"count_chunks", "scan_chunks", "drop"}};
}

KernelProgram route_program(int64_t experts) {
  const int vectors = kVectors[vectors_index(experts)];
  std::vector<std::string> entries(kRouteEntries.begin(), kRouteEntries.end());
  if (int64_t{vectors} > kMostGroups) entries.erase(entries.begin() + kRouteGrouped);
  return {.name = fmt::format("route_e{}", 32 * vectors),
          .source = "prologue/route.cu",
          .options = {fmt::format("-DNV={}", vectors), kNoContraction},
          .entries = std::move(entries)};
}

GemmTile router_gemm_tile(ramp_dtype x, ramp_dtype w, bool many_tokens) noexcept {
  if (tensor_type(x, w) == 0) return {4, 4};
  return many_tokens ? GemmTile{64, 32} : GemmTile{16, 8};
}

KernelProgram router_gemm_program(ramp_dtype x, ramp_dtype w, bool many_tokens) {
  const int type = tensor_type(x, w);
  const GemmTile tile = router_gemm_tile(x, w, many_tokens);
  return {.name = type == 0 ? std::string("router_gemm")
                            : fmt::format("router_gemm_{}_t{}", dtype_name(type), tile.tokens),
          .source = "prologue/router_gemm.cu",
          .options = {fmt::format("-DMMA={}", type), fmt::format("-DTOKENS={}", tile.tokens),
                      fmt::format("-DEXPERTS={}", tile.experts)},
          .entries = {"router_gemm"}};
}

std::vector<KernelProgram> prologue_programs(int /*arch*/) {
  std::vector<KernelProgram> all{index_program(), main_program(RAMP_FORMAT_NONE, RAMP_DTYPE_NONE),
                                 main_program(RAMP_FORMAT_NONE, RAMP_E4M3)};
  all.reserve(all.size() + kFormats.size() * (kFloats.size() + 1) + 2);
  for (const ramp_format f : kFormats) {
    for (const ramp_dtype x : kFloats) all.push_back(main_program(f, x));
    if (f != RAMP_FORMAT_F32) all.push_back(requantize_program(f));
  }
  for (const ramp_dtype x : {RAMP_BF16, RAMP_E4M3}) all.push_back(decide_constants_program(x));
  return all;
}

std::vector<KernelProgram> route_programs(int /*arch*/) {
  constexpr size_t kRouterGemms = 5;
  std::vector<KernelProgram> all;
  all.reserve(kVectors.size() + kRouterGemms);
  for (const int v : kVectors) all.push_back(route_program(int64_t{32} * v));
  for (const ramp_dtype t : {RAMP_BF16, RAMP_F16}) {
    for (const bool many : {false, true}) all.push_back(router_gemm_program(t, t, many));
  }
  all.push_back(router_gemm_program(RAMP_F32, RAMP_F32, false));
  return all;
}

CUfunction LazyKernel::load(KernelLibrary& library, const KernelProgram& program, const char* entry) {
  CUfunction f = library.get(program, entry);
  // With what the kernel has of its own, within what the GPU can do: kernels with much of their own (the
  // router GEMM) take no dynamic memory, and the limit must not be why they cannot be loaded.
  CUdevice device = 0;
  int limit = 0;
  int own = 0;
  RAMP_CU(cuCtxGetDevice, &device);
  RAMP_CU(cuDeviceGetAttribute, &limit, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, device);
  RAMP_CU(cuFuncGetAttribute, &own, CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, f);
  RAMP_CU(cuFuncSetAttribute, f, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
          std::min(static_cast<int>(kMaxShared), limit - own));
  function_.store(f, std::memory_order_release);
  return f;
}

CUfunction PrologueKernels::main(ramp_format format, ramp_dtype x) {
  const size_t type = static_cast<size_t>(x);
  const size_t row = x == RAMP_DTYPE_NONE || x == RAMP_E4M3 ? 0 : static_cast<size_t>(format);
  return main_[row * kTypes + type].get(
      library_, [&] { return main_program(format, x); }, "prologue");
}
CUfunction PrologueKernels::decide(ramp_dtype x) {
  return decide_[static_cast<size_t>(x)].get(
      library_,
      [&] {
        return reads_ == DecisionReads::kConstants ? decide_constants_program(x)
                                                   : main_program(RAMP_FORMAT_FP8_BLOCK, x);
      },
      "prologue_decide");
}
CUfunction PrologueKernels::requantize(ramp_format format) {
  return requantize_[static_cast<size_t>(format)].get(
      library_, [&] { return requantize_program(format); }, "requantize");
}
CUfunction PrologueKernels::count_chunks() {
  return count_.get(library_, index_program, "count_chunks");
}
CUfunction PrologueKernels::scan_chunks() {
  return scan_.get(library_, index_program, "scan_chunks");
}
CUfunction PrologueKernels::drop() {
  return drop_.get(library_, index_program, "drop");
}
CUfunction PrologueKernels::route(int64_t experts, RouteKind kind) {
  return route_[vectors_index(experts) * kRouteKinds + kind].get(
      library_, [&] { return route_program(experts); }, kRouteEntries[kind]);
}
CUfunction PrologueKernels::router_gemm(ramp_dtype x, ramp_dtype w, bool many_tokens) {
  const int type = tensor_type(x, w);
  const size_t at = type == 0 ? 0 : 2 * static_cast<size_t>(type - RAMP_F16) + (many_tokens ? 2 : 1);
  return gemm_[at].get(
      library_, [&] { return router_gemm_program(x, w, many_tokens); }, "router_gemm");
}

namespace {

// The first launch of a call may overlap whatever is in front of it on the stream. In a graph that is free;
// launched directly it costs the host 4 us a call (15.8 instead of 11.4), more than the GPU gains.
bool capturing(CUstream stream) {
  CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
  RAMP_CU(cuStreamIsCapturing, stream, &status);
  return status == CU_STREAM_CAPTURE_STATUS_ACTIVE;
}

}  // namespace

void launch_kernel(CUfunction kernel, const Launch& l, CUstream stream, const void* params) {
  void* arguments[] = {const_cast<void*>(params)};
  CUlaunchAttribute attributes[2] = {};
  unsigned count = 0;
  if (l.cluster > 1) {
    attributes[count].id = CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
    attributes[count++].value.clusterDim = {l.cluster, 1, 1};
  }
  if (l.dependent && capturing(stream)) {
    attributes[count].id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
    attributes[count++].value.programmaticStreamSerializationAllowed = 1;
  }
  CUlaunchConfig config{};
  config.gridDimX = l.grid_x;
  config.gridDimY = l.grid_y;
  config.gridDimZ = 1;
  config.blockDimX = l.threads;
  config.blockDimY = config.blockDimZ = 1;
  config.sharedMemBytes = l.shared;
  config.hStream = stream;
  config.attrs = attributes;
  config.numAttrs = count;
  RAMP_CU(cuLaunchKernelEx, static_cast<const CUlaunchConfig*>(&config), kernel,
          static_cast<void**>(arguments), static_cast<void**>(nullptr));
}

}  // namespace ramp::core::cuda
