// The few-token kernels: the two GEMMs of the expert block for T*k <= 128 (fp8_block, sm_90a, packed
// weights), in launches that overlap so that weights never stop coming. Every block makes the plan from the
// ids (few_plan.cuh) and takes one run of the steps of the whole GEMM, the same number as every other block:
// where a run begins or ends inside an item (128 weight rows x one tile of up to WIDTH token rows), its sums
// are parts, and whoever reads them adds the parts up in the order of the blocks. Nothing is activated or
// requantised here: that, too, is done by whoever reads, in front of his own products.
//
//   GEMM    1: w13 times x, which is quantised on its way into shared memory. 2: w2 times act(gate) * up,
//   requantised
//           on its way.
//   WIDTH   token rows per tile at most: 8 or 16
//   STAGES  ring depth
//
// Warps 0-7 do math. Warp 8 + s owns slot s of the ring: it starts the copy of the weights, makes the tokens'
// codes and factors while that is under way, and so goes round. GEMM 2's first copies do not wait for GEMM 1.
#define WGMMA_E4M3
#include "prologue/values.cuh"
#include "sm90/few_plan.cuh"
#include "sm90/wgmma.cuh"

constexpr u32 kTile = 16384;  // bytes of a packed weight tile
constexpr u32 kMathThreads = 256;
constexpr u32 kThreads = kMathThreads + 32 * STAGES;
constexpr u32 kTokenBytes = WIDTH * 128;
constexpr u32 kStage = kTile + kTokenBytes;
constexpr u32 kFactorBytes = WIDTH * 8;  // per column: its scale times the gate's, times the up's
constexpr u32 kAllLanes = 0xffffffffu;

struct Shared {
  u32 ring, factors, full, empty;
};

// A run of steps, and where one of them lies.
struct Run {
  u32 begin, count;
};
struct Step {
  u32 tile, slice, k;
};
__device__ __forceinline__ Step find_step(const FewParams& p, u32 step) {
  const u32 item = step / p.steps;
  const u32 tile = item / p.slices;
  return {tile, item - tile * p.slices, step - item * p.steps};
}

// ---------------------------------------------------------------- math

__device__ __forceinline__ void load_pair(float& a, float& b, u32 address) {
  asm volatile("ld.shared.v2.f32 {%0,%1}, [%2];" : "=f"(a), "=f"(b) : "r"(address));
}
__device__ __forceinline__ void store_float(u32 address, float v) {
  asm volatile("st.shared.f32 [%0], %1;" ::"r"(address), "f"(v) : "memory");
}
__device__ __forceinline__ void store_word(u32 address, u32 v) {
  asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(v) : "memory");
}

// `steps` steps of one item from ring position `at` on, and what they add up to.
template <int N>
__device__ __forceinline__ void run_item(const FewParams& p, const Shared& s, const Step& place,
                                         const FewTile& tile, u32 at, u32 steps) {
  const u32 group = threadIdx.x / 128;
  const u32 lane = threadIdx.x % 32;
  float sum[N / 2];
#pragma unroll
  for (int i = 0; i < N / 2; ++i) sum[i] = 0.0f;
  u32 slot = at % STAGES;
  u32 phase = (at / STAGES) & 1;
  for (u32 k = 0; k < steps; ++k) {
    barrier_wait(s.full + 8 * slot, phase);
    const u64 a = descriptor(s.ring + slot * kStage + group * 8192);
    const u64 b = descriptor(s.ring + slot * kStage + kTile);
    float part[N / 2];
    wgmma_fence();
#pragma unroll
    for (int j = 0; j < 4; ++j) wgmma<E4m3, N>(part, a + 2 * j, b + 2 * j, j != 0);
    wgmma_commit();
    float low[N / 4], high[N / 4];  // factors of the rows lane/4 and lane/4 + 8 of a warp's 16
#pragma unroll
    for (int j = 0; j < N / 8; ++j) {
      const u32 from = s.factors + slot * kFactorBytes + 4 * (8 * j + 2 * (lane % 4));
      load_pair(low[2 * j], low[2 * j + 1], from);
      if (GEMM == 1) load_pair(high[2 * j], high[2 * j + 1], from + 4 * WIDTH);
    }
    wgmma_wait<0>();
    barrier_arrive(s.empty + 8 * slot);
#pragma unroll
    for (int i = 0; i < N / 2; ++i) {
      const int column = i / 4 * 2 + i % 2;
      sum[i] = fmaf(part[i], GEMM == 1 && i % 4 >= 2 ? high[column] : low[column], sum[i]);
    }
    if (++slot == STAGES) {
      slot = 0;
      phase ^= 1;
    }
  }

  const u32 warp = threadIdx.x / 32;
#pragma unroll
  for (int i = 0; i < N / 2; ++i) {
    const u32 column = 8 * (i / 4) + 2 * (lane % 4) + i % 2;
    if (column >= tile.rows) continue;
    const bool up = i % 4 >= 2;  // or, of GEMM 2, the row 8 further on
    float* to;
    if (GEMM == 1) {
      const u32 row = warp * 8 + lane / 4;
      to = place.k == 0 ? p.out.first + (u64)(tile.first + column) * (p.slices * 128) + place.slice * 64 +
                              row + (up ? p.slices * 64 : 0)
                        : p.out.rest + part_place(blockIdx.x, column, row + (up ? 64 : 0));
    } else {
      const u32 row = warp * 16 + lane / 4 + (up ? 8 : 0);
      to = place.k == 0
               ? p.out.first + (u64)(tile.first + column) * (p.slices * 128) + place.slice * 128 + row
               : p.out.rest + part_place(blockIdx.x, column, row);
    }
    *to = sum[i];
  }
}

__device__ __forceinline__ void multiply(const FewParams& p, const Shared& s, const FewPlan& plan,
                                         const Run& run) {
  u32 at = 0;
  while (at < run.count) {
    const Step place = find_step(p, run.begin + at);
    const u32 left = run.count - at;
    const u32 steps = p.steps - place.k < left ? p.steps - place.k : left;
    const FewTile tile = plan.tiles[place.tile];
#if WIDTH > 8
    if (tile.rows > 8) {
      run_item<16>(p, s, place, tile, at, steps);
    } else {
      run_item<8>(p, s, place, tile, at, steps);
    }
#else
    run_item<8>(p, s, place, tile, at, steps);
#endif
    at += steps;
  }
}

// ---------------------------------------------------------------- tokens

__device__ __forceinline__ float warp_max(float v) {
#pragma unroll
  for (u32 d = 16; d > 0; d /= 2) v = fmaxf(v, __shfl_xor_sync(kAllLanes, v, d));
  return v;
}
// Four values of a row's group of 128, spread over the warp, as codes; their scale.
__device__ __forceinline__ u32 encode4(const float (&v)[4], float& scale) {
  float amax = 0.0f;  // fmaxf passes over NaN
#pragma unroll
  for (u32 i = 0; i < 4; ++i) amax = fmaxf(amax, fabsf(v[i]));
  scale = amax_scale(warp_max(amax));
  u32 codes = 0;
#pragma unroll
  for (u32 i = 0; i < 4; ++i) codes |= plain_code(v[i], scale) << 8 * i;
  return codes;
}

#if GEMM == 1
enum Dtype { kF32 = 1, kF16 = 2, kBf16 = 3, kE4m3 = 4 };  // as ramp_dtype

// Four elements of x from column 128 k + 4 lane on, as they lie.
__device__ __forceinline__ uint4 load_x(const FewParams& p, u32 token, u32 k) {
  const i64 at = (i64)token * p.x_stride + (i64)(128 * k + 4 * (threadIdx.x % 32));
  uint4 v = make_uint4(0, 0, 0, 0);
  if (p.x_dtype == kF32) {
    v = load_16(static_cast<const u8*>(p.x) + 4 * at);
  } else if (p.x_dtype == kE4m3) {
    v.x = load_u32(static_cast<const u8*>(p.x) + at);
  } else {
    const u64 two = load_u64(static_cast<const u8*>(p.x) + 2 * at);
    v.x = (u32)two;
    v.y = (u32)(two >> 32);
  }
  return v;
}
__device__ __forceinline__ u32 encode_x(const FewParams& p, const uint4& raw, u32 slot, u32 token, u32 k,
                                        float& scale) {
  float weight = 1.0f;
  if (p.input_weight != nullptr)
    weight = __uint_as_float(load_u32(p.input_weight + (i64)token * p.input_weight_token +
                                      (i64)(slot - token * p.ids.top_k) * p.input_weight_slot));
  if (p.x_dtype == kE4m3) {
    scale = __uint_as_float(load_u32(p.x_scale + (i64)token * p.x_scale_stride + k));
    if (p.input_weight != nullptr) scale = product(scale, weight);
    return raw.x;
  }
  float v[4];
  if (p.x_dtype == kF32) {
    v[0] = __uint_as_float(raw.x);
    v[1] = __uint_as_float(raw.y);
    v[2] = __uint_as_float(raw.z);
    v[3] = __uint_as_float(raw.w);
  } else if (p.x_dtype == kBf16) {
    v[0] = __uint_as_float(raw.x << 16);
    v[1] = __uint_as_float(raw.x & 0xffff0000u);
    v[2] = __uint_as_float(raw.y << 16);
    v[3] = __uint_as_float(raw.y & 0xffff0000u);
  } else {
    v[0] = f16_value((u16)raw.x);
    v[1] = f16_value((u16)(raw.x >> 16));
    v[2] = f16_value((u16)raw.y);
    v[3] = f16_value((u16)(raw.y >> 16));
  }
  if (p.input_weight != nullptr) {
#pragma unroll
    for (u32 i = 0; i < 4; ++i) v[i] = product(v[i], weight);
  }
  return encode4(v, scale);
}
#else
__device__ __forceinline__ float4 add(float4 a, float4 b) {
  return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}
__device__ __forceinline__ float activate(int activation, float g, float u) {
  if (activation == 0) return g / (1.0f + expf(-g)) * u;
  if (activation == 1) return 0.5f * g * (1.0f + erff(g * 0.70710678f)) * u;
  const float z = 0.79788456f * (g + 0.044715f * g * g * g);
  return 0.5f * g * (1.0f + tanhf(z)) * u;
}
#endif

// Rows of x (or of GEMM 1's sums) whose loads are in flight together.
constexpr u32 kFlight = GEMM == 1 ? 4 : 2;

// One slot of the ring, by the warp that owns it.
__device__ __forceinline__ void fill_slot(const FewParams& p, const Shared& s, const FewPlan& plan,
                                          const Run& run, u32 before_share) {
  const u32 slot = threadIdx.x / 32 - kMathThreads / 32;
  const u32 lane = threadIdx.x % 32;
  const u32 full = s.full + 8 * slot;
  const u32 to = s.ring + slot * kStage;
  const u32 last = run.count > p.lead ? run.count - 1 - p.lead : 0;
  u32 phase = 1;
  for (u32 at = slot; at < run.count; at += STAGES, phase ^= 1) {
    const Step place = find_step(p, run.begin + at);
    const FewTile tile = plan.tiles[place.tile];
    if (at >= STAGES) barrier_wait(s.empty + 8 * slot, phase);
    if (lane == 0) {
      const u64 number = ((u64)tile.expert * p.slices + place.slice) * p.steps + place.k;
      barrier_expect(full, kTile);
      bulk_copy(to, p.weights + number * kTile, kTile, full);
      if (at == last) launch_dependents();
    }
    __syncwarp();
#if GEMM == 1
    const float* const gate_scale =
        p.weight_scale + (i64)tile.expert * p.ws_expert + (i64)(place.slice / 2) * p.ws_row + place.k;
    const float gate = __ldg(gate_scale);
    const float up = __ldg(gate_scale + (i64)p.up_scale_row * p.ws_row);
#else
    const float gate =
        __ldg(p.weight_scale + (i64)tile.expert * p.ws_expert + (i64)place.slice * p.ws_row + place.k);
    if (at < STAGES) dependency_wait();  // nothing of this block's own may stand behind it: copies come first
    // The group's columns are those of two slices of GEMM 1, half of the warp each.
    const u32 columns = p.before_slices * 64;
    const u32 item = place.tile * p.before_slices + 2 * place.k + lane / 16;
    const FewParts parts = parts_of(item, p.before_steps, before_share);
#endif
#pragma unroll 1
    for (u32 r0 = 0; r0 < tile.rows; r0 += kFlight) {
#if GEMM == 1
      uint4 raw[kFlight];
#pragma unroll
      for (u32 i = 0; i < kFlight; ++i)
        if (r0 + i < tile.rows) raw[i] = load_x(p, plan.token[tile.first + r0 + i], place.k);
#else
      float4 g[kFlight], u[kFlight];
#pragma unroll
      for (u32 i = 0; i < kFlight; ++i) {
        if (r0 + i >= tile.rows) continue;
        const float* const from =
            p.in.first + (u64)(tile.first + r0 + i) * (2 * columns) + place.k * 128 + 4 * lane;
        g[i] = load_floats(from);
        u[i] = load_floats(from + columns);
      }
#pragma unroll 1
      for (u32 b = parts.first + 1; b <= parts.last; ++b) {
#pragma unroll
        for (u32 i = 0; i < kFlight; ++i) {
          if (r0 + i >= tile.rows) continue;
          const float* const from = p.in.rest + part_place(b, r0 + i, 4 * (lane % 16));
          g[i] = add(g[i], load_floats(from));
          u[i] = add(u[i], load_floats(from + 64));
        }
      }
      __syncwarp();
#endif
#pragma unroll
      for (u32 i = 0; i < kFlight; ++i) {
        const u32 r = r0 + i;
        if (r >= tile.rows) break;
        float scale;
#if GEMM == 1
        const u32 row = tile.first + r;
        const u32 codes = encode_x(p, raw[i], plan.slot[row], plan.token[row], place.k, scale);
#else
        const float h[4] = {activate(p.activation, g[i].x, u[i].x), activate(p.activation, g[i].y, u[i].y),
                            activate(p.activation, g[i].z, u[i].z), activate(p.activation, g[i].w, u[i].w)};
        const u32 codes = encode4(h, scale);
#endif
        store_word(to + kTile + r * 128 + ((lane / 4) ^ (r % 8)) * 16 + lane % 4 * 4, codes);
        if (lane == 0) {
          store_float(s.factors + slot * kFactorBytes + 4 * r, gate * scale);
#if GEMM == 1
          store_float(s.factors + slot * kFactorBytes + 4 * (WIDTH + r), up * scale);
#endif
        }
      }
    }
    proxy_fence();
    barrier_arrive(full);
  }
}

// ---------------------------------------------------------------- the kernel

// x and ids on their way to L2 while the kernel in front ends; each block a part of x.
__device__ __forceinline__ void prefetch(const FewParams& p) {
#if GEMM == 1
  if (threadIdx.x < p.ids.slots && blockIdx.x == 0) prefetch_l2(id_place(p.ids, threadIdx.x));
  const u32 tokens = p.ids.slots / p.ids.top_k;
  const u32 width = p.x_dtype == kF32 ? 4 : p.x_dtype == kE4m3 ? 1 : 2;
  const u32 lines = p.steps * width;  // of a row
  for (u32 i = blockIdx.x * kThreads + threadIdx.x; i < tokens * lines; i += gridDim.x * kThreads) {
    const u32 t = i / lines;
    prefetch_l2(static_cast<const u8*>(p.x) + (i64)t * p.x_stride * width + (i64)(i - t * lines) * 128);
  }
#endif
}

extern "C" __global__ void __launch_bounds__(kThreads, 2) few(const __grid_constant__ FewParams p) {
  extern __shared__ __align__(1024) u8 memory[];
  __shared__ __align__(16) FewPlan plan;
  Shared s;
  s.ring = shared_address(memory);
  s.factors = s.ring + STAGES * kStage;
  s.full = s.factors + STAGES * kFactorBytes;
  s.empty = s.full + 8 * STAGES;
  if (threadIdx.x == 0) {
    for (u32 i = 0; i < STAGES; ++i) {
      barrier_init(s.full + 8 * i, 33);  // the owner's lanes, and the announcement of the tile's bytes
      barrier_init(s.empty + 8 * i, kMathThreads);
    }
    barrier_init_fence();
  }
  prefetch(p);
  // GEMM 2 begins after every block of GEMM 1 has waited for what is in front of the two: ids are there.
  if (GEMM == 1) dependency_wait();
  const u32 tiles = make_plan(p.ids, plan, GEMM == 1 && blockIdx.x == 0 ? p.counters : nullptr);
  const u32 share = few_share(tiles, p.slices, p.steps, p.blocks);
  const u32 total = tiles * p.slices * p.steps;
  Run run;
  run.begin = blockIdx.x * share;
  run.count = run.begin >= total ? 0 : total - run.begin < share ? total - run.begin : share;
  if (run.count == 0) {
    if (threadIdx.x == 0) launch_dependents();
    if (GEMM == 2) dependency_wait();
    return;
  }
  if (threadIdx.x >= kMathThreads) {
    fill_slot(p, s, plan, run, GEMM == 2 ? few_share(tiles, p.before_slices, p.before_steps, p.blocks) : 1);
    if (GEMM == 2 && threadIdx.x / 32 - kMathThreads / 32 >= run.count)
      dependency_wait();  // had no slot to fill
  } else {
    // Math has nothing to do before codes come; but it writes, and nothing is written before this.
    if (GEMM == 2) dependency_wait();
    multiply(p, s, plan, run);
  }
}
