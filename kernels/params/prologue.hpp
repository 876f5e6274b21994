// What the host hands to the kernels of kernels/prologue/: parameter structs that both sides read, and the
// shared memory that a launch needs. Plain types only: NVRTC brings no headers.
#pragma once

#include "params/decide.hpp"
#include "params/early.hpp"

#if defined(__CUDACC__)
#define RAMP_PARAMS_FN __host__ __device__ constexpr
#else
#define RAMP_PARAMS_FN constexpr
#endif

namespace ramp::core::cuda {

constexpr unsigned kPrologueThreads = 512;
constexpr unsigned kPrologueWarps = kPrologueThreads / 32;
constexpr unsigned kPrologueMaxExperts = 2 * kPrologueThreads;  // a thread scans two of them
// Columns that one warp takes of a row: 16 per lane, so that 8 lanes share a group of 128.
constexpr unsigned kSegment = 512;
// Slots that a block of the third launch ranks at a time.
constexpr unsigned kSubChunk = 2048;
// Words of num_tiles: the number of tiles and three counters for GEMMs, which the index leaves at zero.
constexpr unsigned kTileCounters = 4;

// The sort of T*k slots by local expert (see kernels/prologue/sort.cuh).
struct SortParams {
  const void* ids;       // i32 or i64 [tokens, top_k]
  long long ids_stride;  // elements from token to token
  const int* map;        // global id -> local expert or -1; nullptr: ids are local
  unsigned long long map_size;
  unsigned ids_wide;  // ids are i64
  unsigned top_k, slots, experts, tile_m;
  unsigned chunk;       // slots per block, in slot order
  unsigned chunks;      // blocks that share the slots
  int* offsets;         // [experts + 1]
  int* rows;            // [slots]: row -> flat slot
  int* positions;       // [slots]: flat slot -> row or -1
  int* tiles;           // {expert, first, rows, 0} each
  int* num_tiles;       // [kTileCounters]: the number, then zeros
  long long* counters;  // [2]: += masked, += out of range; or nullptr
  int* counts;          // several launches: [chunks][experts], then [experts] totals
  // Capacity instead of an index: slots of rank >= capacity in their expert get id -1 and weight 0.
  unsigned capacity;
  float* drop_weights;  // [tokens, top_k]
  long long drop_stride;
};

// Where a row of GEMM1's input comes from.
enum InputRows : unsigned {
  kRowsAreTokens = 0,   // row t is x[t]
  kRowsAreSlots = 1,    // row t*k + j is x[t] times the router weight of the slot
  kRowsAreBatched = 2,  // row e*max_tokens + r is x[e][r], for r < counts[e]
};

// The rows of x (or of h) and what becomes of them (kernels/prologue/quantize.cuh).
struct RowsParams {
  const void* x;
  long long stride, slab;  // elements from row to row, from expert to expert (batched)
  const float* x_scale;    // e4m3 x: its scales; nullptr: static_scale
  long long scale_stride, scale_slab;
  const float* weights;  // router weights that multiply x, or nullptr
  long long weights_stride;
  unsigned source;
  unsigned rows;       // at most; batched: as counts tell
  const int* rows_at;  // nullptr, or where the number of rows lies on the device
  unsigned top_k;      // kRowsAreSlots
  unsigned columns, groups;
  unsigned aligned;  // every row of x begins at a multiple of 16 bytes
  float static_scale;
  void* out;      // [rows, columns] in the activation type; nullptr (e4m3 x): codes are read in place
  float* scales;  // [rows, groups] or nullptr
};

struct BatchParams {
  const void* counts;  // i32 or i64 [experts]
  unsigned counts_wide;
  unsigned max_tokens;
};

// What of the router's options a kernel knows when it is compiled.
enum RouteKind : unsigned {
  kRouteChosen = 0,   // softmax over the chosen (Mixtral, Qwen3)
  kRouteSoftmax = 1,  // softmax over all (OLMoE)
  kRouteSigmoid = 2,  // sigmoids, perhaps with a bias
  kRouteGrouped = 3,  // the same with up to 8 groups of 32 experts each (DeepSeek-V3)
  kRouteAny = 4,      // every router; the kinds above have neither a bias nor groups where nothing is said
};
constexpr unsigned kRouteKinds = 5;

// Routing of tokens from given logits (kernels/prologue/route_token.cuh).
struct RouteParams {
  const void* logits;
  long long logits_stride;
  int logits_dtype;  // ramp_dtype
  unsigned tokens, experts, top_k, shared_experts;
  int scoring, renormalize, group_score;
  unsigned num_groups, topk_groups;
  float scaling;
  const float* bias;  // [experts] or nullptr
  void* ids;          // [tokens, top_k + shared_experts]
  long long ids_stride;
  unsigned ids_wide;
  float* weights;
  long long weights_stride;
};

struct RouterGemmParams {
  const void* x;  // [tokens, hidden]
  const void* w;  // [experts, hidden]
  long long x_stride, w_stride;
  int x_dtype, w_dtype;
  unsigned tokens, experts, hidden;
  unsigned x_aligned, w_aligned;
  float* logits;  // [tokens, experts]
};

enum PrologueMode : unsigned {
  kSortHere = 0,     // the first `chunks` blocks (one cluster) sort, the others convert rows
  kSortCounted = 1,  // counts and their prefixes are there: the first `chunks` blocks scatter
  kBatched = 2,      // every block knows the rows from the counts
};

struct PrologueParams {
  unsigned mode;
  unsigned early;    // rows are converted before dependency_wait(): see kernels/prologue/prologue.cu
  unsigned trigger;  // the next kernel may start while this one runs
  unsigned short choices, traced;  // prologue_decide's: as in DecideTable; whether there is a trace
  SortParams sort;
  RowsParams rows;
  BatchParams batch;
  EarlyWeights weights;  // of `prologue` alone
};

// prologue_decide's. What it needs first is among the first parameters.
struct DecidedPrologueParams {
  PrologueParams prologue;
  DecideTable table;
};
static_assert(sizeof(DecideShared::scan) == 16 * kPrologueWarps, "a sum for every warp");

// Shared memory of a sorting block in 4-byte words: scan scratch and counters, four arrays over the experts,
// the warps' 16-bit histograms, one entry per slot of the block.
constexpr unsigned kSortScratchWords = 2 * kPrologueWarps + 4;
RAMP_PARAMS_FN unsigned sort_padded(unsigned experts) {
  return (experts + 2) & ~1U;
}
RAMP_PARAMS_FN unsigned sort_shared_words(unsigned experts, unsigned entries) {
  return kSortScratchWords + 4 * sort_padded(experts) + kPrologueWarps * sort_padded(experts) / 2 + entries;
}
// Scratch of a routing warp in words: a key per expert, and a score and a flag per group.
RAMP_PARAMS_FN unsigned route_shared_words(unsigned experts, unsigned num_groups) {
  return num_groups > 1 ? experts + 2 * num_groups : 0;
}
// kRouteGrouped: the groups that its programs are made for, the next of 2, 4 and 8; and the scratch of a
// block in words: of every expert key, score and logit, of every group two keys, of up to 32 candidates key,
// expert, and expert and score again (kernels/prologue/route_groups.cuh).
constexpr unsigned kRouteGroupsPerWarp = 2;
RAMP_PARAMS_FN unsigned route_groups_most(unsigned num_groups) {
  return num_groups <= 2 ? 2 : num_groups <= 4 ? 4 : 8;
}
RAMP_PARAMS_FN unsigned route_groups_words(unsigned most_groups) {
  return 98 * most_groups + 128;
}

}  // namespace ramp::core::cuda
