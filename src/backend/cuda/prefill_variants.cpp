// The prefill kernels' compiled shapes: which are legal and why not, their shared memory, their programs.
#include "backend/cuda/prefill_variants.hpp"

#include <fmt/format.h>

#include "backend/cuda/gated_programs.hpp"
#include "backend/cuda/prefill_sums.hpp"
#include "params/prefill.hpp"
#include "weights/quantize.hpp"

namespace ramp::core::cuda {
namespace {

constexpr int32_t kSliceRows = 128;
constexpr uint32_t kSharedPerBlock = 227 << 10;  // of sm_90

}  // namespace

const char* prefill_entry(PrefillKernel kernel) noexcept {
  return kernel == kPrefillPack ? "prefill_pack" : kernel == kPrefillZero ? "prefill_zero" : "prefill";
}

KernelProgram prefill_program(const PrefillVariant& v, PrefillKernel kernel, ramp_activation activation) {
  if (kernel == kPrefillPack)
    return {"prefill_pack", "sm90/prefill_pack.cu", {}, {prefill_entry(kPrefillPack)}, 90};
  if (kernel == kPrefillZero) return prefill_zero_program();
  KernelProgram p{
      kernel == kPrefillGemm2 ? "prefill_gemm2" : "prefill_gemm1",
      "sm90/prefill.cu",
      {fmt::format("-DGEMM={}", kernel == kPrefillGemm2 ? 2 : 1),
       fmt::format("-DGATHER={}", kernel == kPrefillGemm1 ? 1 : 0), fmt::format("-DSTAGES={}", v.stages)},
      {prefill_entry(kernel)},
      90};
  if (v.stages != kPrefillShipped.stages || v.couples != kPrefillShipped.couples)
    p.name += fmt::format("_s{}_c{}", v.stages, v.couples);
  if (v.couples != kPrefillShipped.couples) p.options.push_back(fmt::format("-DCOUPLES={}", v.couples));
  if (v.mixed) {
    p.name += "_mix";
    p.options.emplace_back("-DMIXED=1");
  }
  if (v.tall) {
    p.name += "_tall";
    p.options.emplace_back("-DTALL=1");
  }
  if (kernel == kPrefillGemm2 && v.sums) {
    p.options.emplace_back("-DFAST=1");
    p.name += "_sum";
  }
  if (kernel != kPrefillGemm2) {
    if (kernel == kPrefillGemm1Packed) p.name += "_packed";
    add_activation(p, activation);
  }
  return p;
}

std::vector<KernelProgram> prefill_programs(int /*arch*/) {
  std::vector<KernelProgram> list;
  for (const PrefillKernel kernel : {kPrefillGemm1, kPrefillGemm1Packed})
    for (size_t a = 0; a < kGatedActivations; ++a)
      list.push_back(prefill_program(kPrefillShipped, kernel, static_cast<ramp_activation>(a)));
  for (const PrefillKernel kernel : {kPrefillGemm2, kPrefillPack, kPrefillZero})
    list.push_back(prefill_program(kPrefillShipped, kernel, RAMP_ACTIVATION_SILU_AND_MUL));
  PrefillVariant sums = kPrefillShipped;
  sums.sums = true;
  list.push_back(prefill_program(sums, kPrefillGemm2, RAMP_ACTIVATION_SILU_AND_MUL));
  return list;
}

std::vector<KernelProgram> prefill_programs_of(const PrefillVariant& variant, ramp_activation activation) {
  std::vector<KernelProgram> list;
  for (size_t kernel = 0; kernel < kPrefillKernels; ++kernel)
    if (variant.needs(static_cast<PrefillKernel>(kernel)))
      list.push_back(prefill_program(variant, static_cast<PrefillKernel>(kernel), activation));
  return list;
}

bool PrefillVariant::needs(PrefillKernel kernel) const noexcept {
  return kernel == kPrefillZero ? sums : kernel != kPrefillGemm1 || !tall;  // tall items are not gathered
}

KernelConfig prefill_config() noexcept {
  return kPrefillShipped.config();
}

// kernels/sm90/prefill.cu: per stage a tile's rows, weight tiles, token scales, two weight scales, an item,
// two barriers; what results are staged in; the queue of GEMM 2, aligned to 16 bytes (GEMM 1's, which is
// longer, and its exchanges of amax have room in its staging, which is shorter).
uint32_t PrefillVariant::shared_bytes() const noexcept {
  const uint32_t height = static_cast<uint32_t>(rows()), tile = 16384, staging = 4096;
  const uint32_t stage = 128 * height + (tall ? 1 : 2) * tile + 4 * height + 8 + 16 + 16;
  return static_cast<uint32_t>(stages) * stage + height / 16 * staging + 192 + 16;
}

int32_t PrefillVariant::rows() const noexcept {
  return tall ? kPrefillTallRows : kPrefillRows;
}

// A math warpgroup per 64 rows, one that copies.
unsigned PrefillVariant::threads() const noexcept {
  return static_cast<unsigned>(2 * rows() + 128);
}

KernelConfig PrefillVariant::config() const noexcept {
  KernelConfig c;
  c.tile_m = rows();
  c.tile_n = (tall ? 1 : 2) * kSliceRows;
  c.tile_k = kGroup;
  c.stages = stages;
  c.threads = static_cast<int32_t>(threads());
  if (couples != kPrefillShipped.couples) {
    c.order = TaskOrder::kGrouped;
    c.group_m = 2 * couples;
  } else if (mixed) {
    c.order = TaskOrder::kMixed;
  }
  c.sums = sums;
  return c;
}

std::string PrefillVariant::rejection() const {
  constexpr int32_t kLeastStages = 2, kMostCouples = 64;
  if (stages < kLeastStages) return fmt::format("{} stages, expected at least {}", stages, kLeastStages);
  if (shared_bytes() > kSharedPerBlock)
    return fmt::format("shared memory {} bytes exceed {} ({} stages)", shared_bytes(), kSharedPerBlock,
                       stages);
  if (couples < 1 || couples > kMostCouples)
    return fmt::format("groups of {} row tiles, expected 2 to {}", 2 * couples, 2 * kMostCouples);
  if (mixed && couples != kPrefillShipped.couples)
    return fmt::format("groups of {} row tiles in mixed order, expected {}", 2 * couples,
                       2 * kPrefillShipped.couples);
  if (tall && sums) return "tiles of 192 rows with sums, expected one of both";
  return {};
}

std::vector<PrefillVariant> prefill_space(bool many_groups) {
  std::vector<PrefillVariant> all;
  const auto add = [&](bool sums, bool tall) {
    for (const int32_t couples : {1, 2, 4, 8, 16, 32}) {
      if (!many_groups && (couples == 2 || couples == 16)) continue;
      for (int32_t stages = 2; stages <= 6; ++stages) all.push_back({stages, couples, sums, tall});
    }
  };
  add(false, false);
  add(false, true);
  for (const bool tall : {false, true})
    for (int32_t stages = 3; stages <= 4; ++stages)
      all.push_back({stages, kPrefillShipped.couples, false, tall, true});
  add(true, false);
  return all;
}

std::optional<PrefillVariant> prefill_variant(const KernelConfig& config) {
  PrefillVariant v{config.stages, config.group_m / 2, config.sums, config.tile_m == kPrefillTallRows,
                   config.order == TaskOrder::kMixed};
  if (config.order != TaskOrder::kGrouped) v.couples = kPrefillShipped.couples;
  if (v.stages < 1 || !(v.config() == config) || !v.rejection().empty()) return std::nullopt;
  return v;
}

}  // namespace ramp::core::cuda
