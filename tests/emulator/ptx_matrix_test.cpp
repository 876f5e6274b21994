// Matrix instructions of the emulated PTX against sums over plain matrices: fragments of mma.sync and of
// wgmma as the ISA and the head of kernels/sm90/wgmma.cuh describe them, operands swizzled as the kernels
// swizzle them, and 8 x 8 tiles between shared memory and registers.
#include <gtest/gtest.h>

#include <functional>
#include <random>
#include <string>
#include <vector>

#include "base/float_types.hpp"
#include "emulator/launch.hpp"
#include "emulator/ptx.hpp"
#include "emulator/ptx_late.hpp"

namespace {

using namespace emu;  // NOLINT(google-build-using-namespace)
using namespace ptx;  // NOLINT(google-build-using-namespace)
namespace core = ramp::core;
using ptx::detail::Element;

std::string launch(u32 threads, const std::function<void()>& body) {
  Launch l;
  l.threads = {threads, 1, 1};
  void* arguments[] = {const_cast<std::function<void()>*>(&body)};
  l.run = [](void** a) { (*static_cast<std::function<void()>*>(a[0]))(); };
  l.arguments = arguments;
  l.dynamic_shared = 128 * 1024;
  return run(l);
}

// rows x bytes of random codes, every one a number.
struct Matrix {
  Element type;
  u32 rows, bytes;
  std::vector<u8> codes;
  Matrix(Element t, u32 r, u32 b, u32 seed) : type(t), rows(r), bytes(b), codes(std::size_t{r} * b) {
    std::mt19937 random(seed);
    for (std::size_t i = 0; i < codes.size(); i += size()) {
      const float v = std::uniform_real_distribution<float>(-4, 4)(random);
      const u32 code = t == Element::kE4m3   ? core::f32_to_e4m3(v)
                       : t == Element::kBf16 ? core::f32_to_bf16(v)
                                             : core::f32_to_f16(v);
      std::memcpy(&codes[i], &code, size());
    }
  }
  u32 size() const { return type == Element::kE4m3 ? 1 : 2; }
  u32 depth() const { return bytes / size(); }
  float value(u32 row, u32 k) const {
    u16 half = 0;
    std::memcpy(&half, &codes[std::size_t{row} * bytes + std::size_t{k} * size()], size());
    return type == Element::kE4m3   ? core::e4m3_to_f32(static_cast<uint8_t>(half))
           : type == Element::kBf16 ? core::bf16_to_f32(half)
                                    : core::f16_to_f32(half);
  }
};
float dot(const Matrix& a, u32 row, const Matrix& b, u32 column, float sum) {
  for (u32 k = 0; k < a.depth(); ++k) sum += a.value(row, k) * b.value(column, k);
  return sum;
}
const Element kTypes[] = {Element::kE4m3, Element::kBf16, Element::kF16};

// ---------------------------------------------------------------- tiles

TEST(EmulatedPtxMatrix, TilesGoThereAndBack) {
  EXPECT_EQ(
      launch(32,
             [] {
               const u32 lane = here().lane, base = kDynamicShared;
               // Tile t, row i lies at a place of its own: 16 bytes at 48 (8t + i).
               u32 r[4];
               for (u32 t = 0; t < 4; ++t) {
                 const u32 code = t << 8 | lane / 4 << 4 | 2 * (lane % 4);
                 r[t] = (code + 1) << 16 | code;
               }
               stmatrix_sync_aligned_m8n8_x4_shared_b16(at(base + 48 * lane), vec(r[0], r[1], r[2], r[3]));
               bar_sync(0, 32);
               const u8* const row = shared(base + 48 * lane, 16);
               for (u32 i = 0; i < 8; ++i) {
                 u16 v;
                 std::memcpy(&v, row + static_cast<u64>(2 * i), 2);
                 EXPECT_EQ(v, lane / 8 << 8 | lane % 8 << 4 | i);
               }
               u32 x[4];
               ldmatrix_sync_aligned_m8n8_x4_shared_b16(vec(x[0], x[1], x[2], x[3]), at(base + 48 * lane));
               for (u32 t = 0; t < 4; ++t) EXPECT_EQ(x[t], r[t]);
               // Lanes from 16 on give no address.
               ldmatrix_sync_aligned_m8n8_x2_shared_b16(vec(x[2], x[3]),
                                                        at(lane < 16 ? base + 48 * (lane + 8) : 1U));
               EXPECT_EQ(x[2], r[1]);
               EXPECT_EQ(x[3], r[2]);
               u32 turned;
               movmatrix_sync_aligned_m8n8_trans_b16(turned, r[0]);
               const u32 column = lane / 4, first = 2 * (lane % 4);
               EXPECT_EQ(turned, (first + 1) << 20 | column << 16 | first << 4 | column);
               movmatrix_sync_aligned_m8n8_trans_b16(turned, turned);
               EXPECT_EQ(turned, r[0]);
             }),
      "");
  const std::string got = launch(32, [] {
    u32 a, b;
    ldmatrix_sync_aligned_m8n8_x2_shared_b16(vec(a, b), at(kDynamicShared + 8));
  });
  EXPECT_NE(got.find("multiple of 16"), std::string::npos) << got;
}

// ---------------------------------------------------------------- mma

TEST(EmulatedPtxMatrix, ProductsOfAWarp) {
  for (const Element type : kTypes) {
    const Matrix a(type, 16, 32, 1), b(type, 8, 32, 2);
    EXPECT_EQ(
        launch(
            32,
            [&] {
              const u32 lane = here().lane;
              const auto word = [&](const Matrix& m, u32 row, u32 half) {
                u32 v;
                std::memcpy(&v, &m.codes[row * 32 + 16 * half + 4 * (lane % 4)], 4);
                return v;
              };
              const u32 row = lane / 4;
              const u32 ra[4] = {word(a, row, 0), word(a, row + 8, 0), word(a, row, 1), word(a, row + 8, 1)};
              const u32 b0 = word(b, row, 0), b1 = word(b, row, 1);
              float d[4] = {1, 2, 3, 4};
              const auto in = vec(ra[0], ra[1], ra[2], ra[3]);
              const auto out = vec(d[0], d[1], d[2], d[3]);
              if (type == Element::kE4m3)
                mma_sync_aligned_m16n8k32_row_col_f32_e4m3_e4m3_f32(out, in, vec(b0, b1), out);
              else if (type == Element::kBf16)
                mma_sync_aligned_m16n8k16_row_col_f32_bf16_bf16_f32(out, in, vec(b0, b1), out);
              else
                mma_sync_aligned_m16n8k16_row_col_f32_f16_f16_f32(out, in, vec(b0, b1), out);
              for (u32 i = 0; i < 4; ++i)
                EXPECT_EQ(d[i],
                          dot(a, row + 8 * (i / 2), b, 2 * (lane % 4) + i % 2, static_cast<float>(i + 1)));
            }),
        "");
  }
}

// ---------------------------------------------------------------- wgmma

// As in kernels/sm90/ptx.cuh.
u64 descriptor(u32 address) {
  return u64{(address & 0x3ffffU) >> 4} | u64{1} << 16 | u64{1024 >> 4} << 32 | u64{1} << 62;
}
// Rows of 128 bytes; 16-byte pieces of row r are swapped by r % 8.
void place(const Matrix& m, u32 address) {
  for (u32 r = 0; r < m.rows; ++r)
    for (u32 piece = 0; piece < 8; ++piece)
      std::memcpy(shared(address + r * 128 + 16 * (piece ^ (r % 8)), 16), &m.codes[r * 128 + 16 * piece], 16);
}

// One instruction of width N on a thread's d.
template <int N, std::size_t... I>
void issue(Element type, float* d, u64 a, u64 b, bool add, std::index_sequence<I...>) {
  const auto v = vec(d[I]...);
#define RAMP_TEST_WGMMA(n)                                                               \
  if constexpr (N == n) {                                                                \
    if (type == Element::kE4m3)                                                          \
      wgmma_mma_async_sync_aligned_m64n##n##k32_f32_e4m3_e4m3(v, a, b, add, 1, 1);       \
    else if (type == Element::kBf16)                                                     \
      wgmma_mma_async_sync_aligned_m64n##n##k16_f32_bf16_bf16(v, a, b, add, 1, 1, 0, 0); \
    else                                                                                 \
      wgmma_mma_async_sync_aligned_m64n##n##k16_f32_f16_f16(v, a, b, add, 1, 1, 0, 0);   \
  }
  RAMP_TEST_WGMMA(8)
  RAMP_TEST_WGMMA(16)
  RAMP_TEST_WGMMA(24)
  RAMP_TEST_WGMMA(32)
  RAMP_TEST_WGMMA(40)
  RAMP_TEST_WGMMA(48)
  RAMP_TEST_WGMMA(56)
  RAMP_TEST_WGMMA(64)
  RAMP_TEST_WGMMA(72)
  RAMP_TEST_WGMMA(80)
  RAMP_TEST_WGMMA(88)
  RAMP_TEST_WGMMA(96)
  RAMP_TEST_WGMMA(104)
  RAMP_TEST_WGMMA(112)
  RAMP_TEST_WGMMA(120)
  RAMP_TEST_WGMMA(128)
  RAMP_TEST_WGMMA(256)
#undef RAMP_TEST_WGMMA
}

template <int N>
void check_width() {
  for (const Element type : kTypes) {
    for (const bool late : {false, true}) {
      ptx::detail::late_switch() = late;
      const Matrix a(type, 64, 128, 3), b(type, N, 128, 4);
      // Two warpgroups: the second one's product starts from its accumulators, the first one's from zero.
      std::vector<float> got(2 * 64 * N, NAN);
      const u32 place_a = kDynamicShared, place_b = place_a + 64 * 128;
      EXPECT_EQ(launch(256,
                       [&] {
                         if (here().thread == 0) place(a, place_a), place(b, place_b);
                         bar_sync(0, 256);
                         fence_proxy_async_shared_cta();
                         const u32 group = here().warpgroup, lane = here().lane, warp = here().warp % 4;
                         float d[N / 2];
                         for (float& v : d) v = 2.0F;
                         wgmma_fence_sync_aligned();
                         for (u32 step = 0; step < 4; ++step)
                           issue<N>(type, d, descriptor(place_a) + 2 * static_cast<u64>(step),
                                    descriptor(place_b) + 2 * static_cast<u64>(step), group == 1 || step != 0,
                                    std::make_index_sequence<N / 2>());
                         wgmma_commit_group_sync_aligned();
                         if (late) {
                           EXPECT_EQ(d[0], 2.0F);
                           wgmma_wait_group_sync_aligned(1);
                           EXPECT_EQ(d[0], 2.0F);
                         }
                         wgmma_wait_group_sync_aligned(0);
                         for (u32 i = 0; i < N / 2; ++i) {
                           const u32 row = 16 * warp + lane / 4 + 8 * (i / 2 % 2);
                           const u32 column = 8 * (i / 4) + 2 * (lane % 4) + i % 2;
                           got[(group * 64 + row) * N + column] = d[i];
                         }
                       }),
                "");
      ptx::detail::late_switch() = false;
      for (u32 group = 0; group < 2; ++group)
        for (u32 row = 0; row < 64; ++row)
          for (u32 column = 0; column < N; ++column)
            ASSERT_EQ(got[(group * 64 + row) * N + column], dot(a, row, b, column, group == 1 ? 2.0F : 0.0F))
                << "n " << N << " type " << static_cast<int>(type) << " at " << row << ", " << column;
    }
  }
}

template <int... N>
void check_widths(std::integer_sequence<int, N...>) {
  (check_width<8 * (N + 1)>(), ...);
}
TEST(EmulatedPtxMatrix, ProductsOfAWarpgroup) {
  check_widths(std::make_integer_sequence<int, 16>());
  check_width<256>();
}

TEST(EmulatedPtxMatrix, WarpgroupMisuseIsAFault) {
  const auto fault = [](const char* what, const std::function<void(float*)>& body) {
    const std::string got = launch(128, [&] {
      float d[4] = {};
      body(d);
    });
    EXPECT_NE(got.find(what), std::string::npos) << "got \"" << got << "\", expected \"" << what << "\"";
  };
  const u64 good = descriptor(kDynamicShared);
  fault("128-byte swizzle", [&](float* d) {
    wgmma_mma_async_sync_aligned_m64n8k32_f32_e4m3_e4m3(vec(d[0], d[1], d[2], d[3]), good & ~(u64{1} << 62),
                                                        good, true, 1, 1);
  });
  fault("other operands in thread", [&](float* d) {
    wgmma_mma_async_sync_aligned_m64n8k32_f32_e4m3_e4m3(vec(d[0], d[1], d[2], d[3]), good,
                                                        good + 2 * (here().thread / 127), true, 1, 1);
  });
  fault("negated or transposed", [&](float* d) {
    wgmma_mma_async_sync_aligned_m64n8k16_f32_f16_f16(vec(d[0], d[1], d[2], d[3]), good, good, true, 1, 1, 1,
                                                      0);
  });
}

}  // namespace
