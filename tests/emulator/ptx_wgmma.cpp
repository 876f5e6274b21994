// wgmma of the emulated PTX (ptx_matrix.hpp): a warpgroup's threads meet, the operands are read from shared
// memory through their descriptors (K-major, 128-byte swizzle), and the products go to the threads'
// accumulators. Products are exact in fp32 (save those of two bf16 below 2^-134, which round as fp32 does);
// each is added to the accumulator in order of k. With RAMP_EMULATED_LATE=1 all of this happens when the
// warpgroup waits for the group.
#include <algorithm>
#include <array>
#include <vector>

#include "emulator/ptx_convert.hpp"
#include "emulator/ptx_late.hpp"
#include "emulator/ptx_matrix.hpp"

namespace ptx::detail {
namespace {

constexpr int kRows = 64, kThreads = 128;
constexpr u32 kDepthBytes = 32;

struct Mine {
  float* const* d;
  int n;
  u64 a, b;
  bool add;
  Element type;
};

// ---------------------------------------------------------------- operands

// descriptor(): bits 0-13 the address / 16, 16-29 the leading stride (not used by a swizzled K-major
// operand), 32-45 the stride from 8 rows to the next 8 / 16, 49-51 the base offset, 62-63 the swizzle (1: 128
// bytes). Hardware swaps address bits: 4-6 are xored with 7-9.
struct Operand {
  u32 start, stride;
};
Operand operand(u64 descriptor) {
  const u32 swizzle = static_cast<u32>(descriptor >> 62), offset = static_cast<u32>(descriptor >> 49 & 7U);
  if (swizzle != 1 || offset != 0)
    emu::trapf("wgmma: got descriptor 0x%016llx, expected the 128-byte swizzle without a base offset",
               static_cast<unsigned long long>(descriptor));
  return {static_cast<u32>(descriptor & 0x3fffU) << 4, static_cast<u32>(descriptor >> 32 & 0x3fffU) << 4};
}

float e4m3_table(u8 c) {
  static const std::array<float, 256> table = [] {
    std::array<float, 256> t{};
    for (u32 i = 0; i < 256; i++) t[i] = e4m3_value(static_cast<u8>(i));
    return t;
  }();
  return table[c];
}

// Row `r` of an operand as fp32, 32 (e4m3) or 16 values.
void read_row(const Operand& o, int r, Element type, float* to, u32 stride) {
  const u32 row = o.start + static_cast<u32>(r / 8) * o.stride + static_cast<u32>(r % 8) * 128;
  for (u32 piece = 0; piece < kDepthBytes; piece += 16) {
    const u32 linear = row + piece;
    const u8* const from = emu::shared(linear ^ (linear >> 3 & 0x70U), 16);
    for (u32 i = 0; i < 16; i += type == Element::kE4m3 ? 1 : 2) {
      u16 half;
      if (type == Element::kE4m3) {
        to[(piece + i) * stride] = e4m3_table(from[i]);
      } else {
        std::memcpy(&half, from + i, 2);
        to[(piece + i) / 2 * stride] = type == Element::kBf16 ? bf16_value(half) : f16_value(half);
      }
    }
  }
}

// ---------------------------------------------------------------- the product

typedef float Eight __attribute__((vector_size(32)));

struct Buffers {
  alignas(32) float a[kRows * 32], b[32 * 256], c[kRows * 256];
};

// c = a b + c: each sum in order of k. Inlined into a function per instruction set of the host; without
// fused operations (-ffp-contract=off), so that all give the same bits.
__attribute__((always_inline)) inline void multiply_any(Buffers& m, int n, int depth) {
  for (int row = 0; row < kRows; row += 4) {
    for (int column = 0; column < n; column += 8) {
      Eight sum[4];
      for (int i = 0; i < 4; i++) std::memcpy(&sum[i], &m.c[(row + i) * n + column], sizeof sum[i]);
      for (int k = 0; k < depth; k++) {
        Eight b;
        std::memcpy(&b, &m.b[k * n + column], sizeof b);
        for (int i = 0; i < 4; i++) sum[i] += m.a[(row + i) * depth + k] * b;
      }
      for (int i = 0; i < 4; i++) std::memcpy(&m.c[(row + i) * n + column], &sum[i], sizeof sum[i]);
    }
  }
}
#if defined(__x86_64__)
__attribute__((target("avx2"))) void multiply_avx2(Buffers& m, int n, int depth) {
  multiply_any(m, n, depth);
}
#endif
void multiply(Buffers& m, int n, int depth) {
#if defined(__x86_64__)
  static const bool avx2 = __builtin_cpu_supports("avx2") != 0;
  if (avx2) {
    multiply_avx2(m, n, depth);
    return;
  }
#endif
  multiply_any(m, n, depth);
}

// Thread t of warp w holds rows 16w + l/4 and + 8, columns 8j + 2(l%4) and + 1: d[4j .. 4j + 3].
template <typename Visit>
void visit(int n, const Visit& each) {
  for (int t = 0; t < kThreads; t++) {
    const int row = 16 * (t / 32) + t % 32 / 4, column = 2 * (t % 4);
    for (int i = 0; i < n / 2; i++) each(t, i, row + 8 * (i / 2 % 2), 8 * (i / 4) + column + i % 2);
  }
}

struct Issued {
  std::vector<float*> d;  // of all threads, n/2 each
  int n;
  u64 a, b;
  bool add;
  Element type;
  const emu::Block* block;
  u32 warpgroup, group;
};

void execute(const Issued& p) {
  thread_local Buffers m;
  const Operand a = operand(p.a), b = operand(p.b);
  const int depth = p.type == Element::kE4m3 ? 32 : 16, n = p.n, each = n / 2;
  for (int r = 0; r < kRows; r++) read_row(a, r, p.type, &m.a[r * depth], 1);
  for (int r = 0; r < n; r++) read_row(b, r, p.type, &m.b[r], static_cast<u32>(n));
  visit(n, [&](int t, int i, int row, int column) {
    m.c[row * n + column] = p.add ? *p.d[static_cast<std::size_t>(t * each + i)] : 0.0F;
  });
  multiply(m, n, depth);
  visit(n, [&](int t, int i, int row, int column) {
    *p.d[static_cast<std::size_t>(t * each + i)] = m.c[row * n + column];
  });
}

// ---------------------------------------------------------------- groups

struct Groups {
  const emu::Block* block;
  u32 warpgroup, committed;
};
thread_local std::vector<Issued> products;
thread_local std::vector<Groups> counts;

u32& committed() {
  const emu::Block* const block = &emu::block();
  const u32 warpgroup = emu::here().warpgroup;
  const auto found = std::find_if(counts.begin(), counts.end(), [&](const Groups& g) {
    return g.block == block && g.warpgroup == warpgroup;
  });
  return found != counts.end() ? found->committed : counts.emplace_back(block, warpgroup, 0U).committed;
}

void multiply_all(void** mines, u32 count) {
  const Mine& first = *static_cast<const Mine*>(mines[0]);
  thread_local Issued p;
  p.d.clear();
  for (u32 t = 0; t < count; t++) {
    const Mine& mine = *static_cast<const Mine*>(mines[t]);
    if (mine.a != first.a || mine.b != first.b || mine.add != first.add || mine.n != first.n ||
        mine.type != first.type)
      emu::trapf("wgmma: got other operands in thread %u of the warpgroup than in its first", t);
    p.d.insert(p.d.end(), mine.d, mine.d + mine.n / 2);
  }
  p.n = first.n, p.a = first.a, p.b = first.b, p.add = first.add, p.type = first.type;
  if (!late()) {
    execute(p);
    return;
  }
  p.block = &emu::block(), p.warpgroup = emu::here().warpgroup, p.group = committed();
  products.push_back(p);
}

// mines: how many groups may be left.
void wait_all(void** mines, u32) {
  const u32 groups = *static_cast<const u32*>(mines[0]);
  const emu::Block* const block = &emu::block();
  const u32 warpgroup = emu::here().warpgroup, now = committed();
  const auto taken = [&](const Issued& p) {
    return p.block == block && p.warpgroup == warpgroup && p.group < now && now - p.group > groups;
  };
  for (const Issued& p : products)
    if (taken(p)) execute(p);
  std::erase_if(products, taken);
}

}  // namespace

void multiply_warpgroup(float* const* d, int n, u64 a, u64 b, bool add, Element type) {
  Mine mine{d, n, a, b, add, type};
  emu::warpgroup_collective(&mine, multiply_all);
}
void products_commit() {
  // All threads have met at the wgmma before it, so the first one's word counts for the warpgroup.
  if (late() && emu::here().thread % kThreads == 0) committed()++;
}
void products_wait(u32 groups) {
  if (late()) emu::warpgroup_collective(&groups, wait_all);
}
void check_scales(int a, int b, int transposed) {
  if (a != 1 || b != 1 || transposed != 0)
    emu::trap("wgmma: got a negated or transposed operand, expected neither");
}
void late_products_clear(const emu::Block& block) {
  std::erase_if(products, [&](const Issued& p) { return p.block == &block; });
  std::erase_if(counts, [&](const Groups& g) { return g.block == &block; });
}
bool late_products_left(const emu::Block& block) {
  return std::any_of(products.begin(), products.end(), [&](const Issued& p) { return p.block == &block; });
}

}  // namespace ptx::detail
