// Everything that runs on the GPU before the first GEMM: routing, the sorted row index, the tile plan, and
// GEMM1's input in the activation type of the format. Host side: what to launch, and where in the workspace
// the results lie. The kernels are in kernels/prologue/. Nothing here reads anything back; grids depend on
// shapes alone, so a captured graph stays right when ids, weights and values change between replays.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "backend/backend.hpp"
#include "backend/cuda/kernel_library.hpp"
#include "params/decide.hpp"
#include "params/early.hpp"

namespace ramp::core::cuda {

// One tile of GEMM work: rows [first, first + rows) of the sorted row index, all of one expert.
struct Tile {
  int32_t expert, first, rows, reserved;
};

// The sorted row index and the plan, in device memory. Rows are the T*k flat slots (t*k + j; batched:
// e*max_tokens + r) that reach a local expert, ordered by expert, then slot: no padding rows anywhere.
struct RowIndex {
  int32_t* offsets = nullptr;    // [E+1]: expert e owns rows offsets[e] .. offsets[e+1]
  int32_t* slots = nullptr;      // [T*k]: row -> flat slot; entries from offsets[E] on are not written
  int32_t* positions = nullptr;  // [T*k]: flat slot -> row, -1 where the slot is masked
  Tile* tiles = nullptr;  // [max_tiles()]: by expert, then rows; entries from num_tiles on are not written
  int32_t* num_tiles = nullptr;  // [kTileCounters]: the number; GEMMs count in the zeros behind it
  int32_t tile_m = 0;            // rows per tile at most
};
// Tiles that T*k slots over E experts can need: min(T*k, E + T*k/tile_m).
int64_t max_tiles(int64_t slots, int64_t experts, int32_t tile_m) noexcept;

// GEMM1's input as the GEMM reads it. Rows begin at multiples of 16 bytes (an x for which that does not hold
// is copied). Batched: row e*max_tokens + r.
struct GemmInput {
  const void* data = nullptr;
  ramp_dtype dtype = RAMP_DTYPE_NONE;  // e4m3, bf16, f16 or f32
  int64_t stride = 0;                  // elements from row to row
  bool per_slot = false;               // rows are flat slots; else tokens (slot / k)
  // f32 [rows, groups]; nullptr: none, or static_scale for fp8_tensor (which has scales where router weights
  // multiply pre-quantised x: static_scale times the weight)
  const float* scales = nullptr;
  int64_t scale_stride = 0;  // elements from row to row
  int64_t groups = 0;        // scales per row: ceil(H/128), or 1
  bool scales_per_slot = false;
  float static_scale = 1.0F;
};

// The parts of a prologue. Pointers are device memory; they overlap nowhere.
struct PrologueWorkspace {
  RowIndex index;
  void* codes = nullptr;    // GEMM1's input where x cannot be read as it is: rows x H in the activation type
  float* scales = nullptr;  // its scales
  int32_t* counts = nullptr;  // scratch of the sort over several launches
  EarlyWeights weights{};     // early_weights.hpp
  bool overlap = false;       // GEMM 1 has something to do before this prologue ends: it starts beside it
  // Several candidates: tiles go to their plans (index.tiles and index.num_tiles are not written). fp8_block
  // alone. Read during the call.
  const DecideParams* decide = nullptr;
};
// Bytes that carve_prologue needs, for any T <= tokens (batched: experts * max_tokens slots, k = 1) with any
// x and flags.
uint64_t prologue_workspace(const ExpertWeights& weights, int64_t tokens, int64_t top_k, int32_t tile_m);
// Lays the parts out from `workspace` (256-byte aligned) on; returns the bytes used.
uint64_t carve_prologue(const ExpertWeights& weights, int64_t tokens, int64_t top_k, int32_t tile_m,
                        void* workspace, PrologueWorkspace& out);

// All programs of the prologue and of routing, for the shipped list.
std::vector<KernelProgram> prologue_programs(int arch);
std::vector<KernelProgram> route_programs(int arch);

// How a decision reads its parameters (kernels/prologue/decide.cuh): as data, all at once, or as constants,
// which is there to be timed beside it (x bf16 or e4m3; prologue_bench decide).
enum class DecisionReads { kData, kConstants };

class Prologue {
 public:
  Prologue(std::shared_ptr<const Gpu> gpu, KernelLibrary& library,
           DecisionReads reads = DecisionReads::kData);
  ~Prologue();
  // Brings in the kernels that such a call needs, so that the call itself loads nothing.
  void prepare(const ExpertWeights& weights, ramp_dtype x_dtype);
  // logits_dtype RAMP_DTYPE_NONE: logits are computed here, from x and router_weight of any types.
  void prepare_route(const ramp_router_config& router, int64_t num_logits, ramp_dtype logits_dtype);

  // Row index, plan and GEMM1's input, asynchronously on `stream`. T*k <= 10240 ids: one launch; else three.
  // counters (may be nullptr): += masked slots, += ids out of range. At most 1024 experts (UNSUPPORTED).
  GemmInput block(const BlockCall& call, const PrologueWorkspace& workspace, CUstream stream);
  // route() and block(), with x converted while the tokens are routed. One launch for both was slower at
  // every size (docs/kernel-log.md). block.ids is route.ids.
  GemmInput routed_block(const RouteCall& route, const BlockCall& block, const PrologueWorkspace& workspace,
                         CUstream stream);
  // Either of the two; routing nullptr: ids and weights are given.
  GemmInput block(const BlockCall& call, const RouteCall* routing, const PrologueWorkspace& workspace,
                  CUstream stream);
  // The same for the batched entry: counts instead of ids. Slots are e*max_tokens + r.
  GemmInput batched(const BatchedCall& call, const PrologueWorkspace& workspace, CUstream stream);
  // GEMM2's input, in rows of the sorted index, from h f32 [rows, I] (in sorted row order; the rows are
  // offsets[E], known on the device alone): the activation type of the format, requantised. codes: [T*k, I],
  // scales as GemmInput tells.
  GemmInput requantize(const ExpertWeights& weights, const float* h, int64_t max_rows, const RowIndex& index,
                       void* codes, float* scales, CUstream stream);

  // Routing: logits -> ids and weights (all of ramp_router_config), computing the logits first where x and
  // router_weight are given (fp32 accumulation; tensor cores for bf16 and f16). At most 1024 logits per token
  // and top_k 32 (UNSUPPORTED).
  [[nodiscard]] uint64_t route_workspace(const ramp_router_config& router, int64_t num_logits,
                                         int64_t max_tokens, bool logits_given = false) const;
  void route(const RouteCall& call);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace ramp::core::cuda
