// The emulated PTX instructions by themselves: rounding of every conversion against src/base/float_types.hpp,
// mbarriers and what they catch, copies (early and late), tiles between shared memory and registers, and the
// products of mma and wgmma against sums over plain matrices. ptx_matrix_test.cpp has the matrices.
#include "emulator/ptx.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "base/float_types.hpp"
#include "emulator/launch.hpp"
#include "emulator/ptx_late.hpp"

namespace {

using namespace emu;  // NOLINT(google-build-using-namespace)
using namespace ptx;  // NOLINT(google-build-using-namespace)
namespace core = ramp::core;

std::string launch(Launch l, const std::function<void()>& body) {
  void* arguments[] = {const_cast<std::function<void()>*>(&body)};
  l.run = [](void** a) { (*static_cast<std::function<void()>*>(a[0]))(); };
  l.arguments = arguments;
  l.dynamic_shared = 64 * 1024;
  return run(l);
}
std::string launch(u32 threads, const std::function<void()>& body) {
  Launch l;
  l.threads = {threads, 1, 1};
  return launch(l, body);
}
std::string launch_cluster(u32 blocks, u32 threads, const std::function<void()>& body) {
  Launch l;
  l.grid = l.cluster = {blocks, 1, 1};
  l.threads = {threads, 1, 1};
  return launch(l, body);
}

bool wait(u32 bar, u32 parity) {
  bool done;
  mbarrier_test_wait_parity_shared_cta_b64(done, at(bar), parity);
  return done;
}
void wait_for(u32 bar, u32 parity) {
  bool done = false;
  while (!done) mbarrier_try_wait_parity_shared_cta_b64(done, at(bar), parity);
}

struct Late {
  explicit Late(bool on) { ptx::detail::late_switch() = on; }
  ~Late() { ptx::detail::late_switch() = false; }
  Late(const Late&) = delete;
  Late& operator=(const Late&) = delete;
};

// ---------------------------------------------------------------- conversions

u32 bits(float v) {
  return std::bit_cast<u32>(v);
}
bool is_nan(u32 v) {
  return (v & 0x7fffffffU) > 0x7f800000U;
}

struct Narrow {
  u32 f16, bf16, e4m3;
};
Narrow narrow(float v) {
  u16 f16, bf16, pair;
  cvt_rn_f16_f32(f16, v);
  cvt_rn_bf16_f32(bf16, v);
  cvt_rn_satfinite_e4m3x2_f32(pair, v, 0.0F);
  EXPECT_EQ(pair & 0xff, 0);
  return {f16, bf16, static_cast<u32>(pair >> 8)};
}
// The instructions' and the library's rounding agree; NaN is the instructions' canonical one.
void expect_same(u32 u) {
  const float v = std::bit_cast<float>(u);
  const Narrow got = narrow(v);
  if (is_nan(u)) {
    ASSERT_EQ(got.f16, 0x7fffU);
    ASSERT_EQ(got.bf16, 0x7fffU);
    ASSERT_EQ(got.e4m3, 0x7fU);
    return;
  }
  ASSERT_EQ(got.f16, core::f32_to_f16(v)) << std::hex << u;
  ASSERT_EQ(got.bf16, core::f32_to_bf16(v)) << std::hex << u;
  ASSERT_EQ(got.e4m3, core::f32_to_e4m3(v)) << std::hex << u;
}

TEST(EmulatedPtx, EveryCodeAndEveryTieRounds) {
  const auto around = [](float v) {
    for (const u32 sign : {0U, 0x80000000U})
      for (int off = -2; off <= 2; ++off) expect_same((bits(v) + static_cast<u32>(off)) ^ sign);
  };
  const auto codes = [&](u32 last, auto value) {
    for (u32 c = 1; c <= last; ++c) {
      const double a = value(c - 1), b = value(c);
      around(static_cast<float>(b));
      around(static_cast<float>((a + b) / 2));  // a type's tie is a number of fp32
    }
  };
  codes(0x7e, [](u32 c) { return core::e4m3_to_f32(static_cast<uint8_t>(c)); });
  codes(0x7bff, [](u32 c) { return core::f16_to_f32(static_cast<uint16_t>(c)); });
  codes(0x7f7f, [](u32 c) { return core::bf16_to_f32(static_cast<uint16_t>(c)); });
  for (const float v : {0.0F, 448.0F, 464.0F, 480.0F, 65504.0F, 65519.0F, 65520.0F, 65536.0F, INFINITY,
                        3.4e38F, 0x1p-10F, 0x1p-9F, 0x1p-25F, 0x1p-24F, 0x1p-149F, 0x1p-126F})
    around(v);
}

TEST(EmulatedPtx, RoundingAgreesAllOverFp32) {
  for (u64 u = 0; u < u64{1} << 32; u += 1013) {
    expect_same(static_cast<u32>(u));
    if (HasFatalFailure()) return;
  }
}

TEST(EmulatedPtx, PairsHaveTheFirstSourceAbove) {
  u32 r;
  cvt_rn_f16x2_f32(r, 1.0F, -2.0F);
  EXPECT_EQ(r, 0x3c00c000U);
  cvt_rn_bf16x2_f32(r, 1.0F, -2.0F);
  EXPECT_EQ(r, 0x3f80c000U);
  u16 h;
  cvt_rn_satfinite_e4m3x2_f32(h, 1.0F, -2.0F);
  EXPECT_EQ(h, 0x38c0);
  cvt_rn_satfinite_e4m3x2_f32(h, INFINITY, -1e9F);
  EXPECT_EQ(h, 0x7efe);
}

TEST(EmulatedPtx, WideningIsExact) {
  for (u32 c = 0; c < 65536; ++c) {
    float v;
    cvt_f32_f16(v, static_cast<u16>(c));
    const float want = core::f16_to_f32(static_cast<uint16_t>(c));
    if (std::isnan(want))
      ASSERT_TRUE(std::isnan(v)) << c;
    else
      ASSERT_EQ(bits(v), bits(want)) << c;
    u32 pair;
    cvt_rn_f16x2_e4m3x2(pair, static_cast<u16>(c));
    for (int i = 0; i < 2; ++i) {
      const auto code = static_cast<uint8_t>(c >> 8 * i);
      const auto half = static_cast<uint16_t>(pair >> 16 * i);
      const float value = core::e4m3_to_f32(code);
      ASSERT_EQ(half, std::isnan(value) ? 0x7fff : core::f32_to_f16(value)) << c;
    }
  }
}

TEST(EmulatedPtx, ProductsOfF16Pairs) {
  for (u32 x = 0; x < 65536; x += 7) {
    for (const u32 y : {0x3c00U, 0x5c00U, 0x0001U, 0x8400U, 0x7bffU, 0x3555U, 0x7c00U, 0x0000U}) {
      u32 r;
      mul_f16x2(r, x << 16 | y, y << 16 | x);
      ASSERT_EQ(r >> 16, r & 0xffff);
      const double product = double{core::f16_to_f32(static_cast<uint16_t>(x))} *
                             double{core::f16_to_f32(static_cast<uint16_t>(y))};
      ASSERT_EQ(r & 0xffff, std::isnan(product) ? 0x7fffU : core::f32_to_f16(static_cast<float>(product)))
          << x << " " << y;
    }
  }
}

TEST(EmulatedPtx, ExponentialAndReciprocal) {
  const auto ex2 = [](float v) {
    float r;
    ex2_approx_ftz_f32(r, v);
    return r;
  };
  const auto rcp = [](float v) {
    float r;
    rcp_approx_ftz_f32(r, v);
    return r;
  };
  for (int e = -126; e <= 127; ++e) {
    EXPECT_EQ(ex2(static_cast<float>(e)), std::ldexp(1.0F, e));
    if (e < 127) {
      EXPECT_EQ(rcp(std::ldexp(1.0F, e)), std::ldexp(1.0F, -e));
    }
  }
  EXPECT_EQ(bits(ex2(-127.0F)), 0U);  // subnormal results are flushed
  EXPECT_EQ(ex2(-INFINITY), 0.0F);
  EXPECT_EQ(ex2(INFINITY), INFINITY);
  EXPECT_EQ(ex2(0x1p-140F), 1.0F);
  EXPECT_TRUE(std::isnan(ex2(NAN)));
  EXPECT_EQ(bits(rcp(0x1p127F)), 0U);
  EXPECT_EQ(bits(rcp(-INFINITY)), 0x80000000U);
  EXPECT_EQ(rcp(-0x1p-130F), -INFINITY);
  EXPECT_EQ(rcp(3.0F), 1.0F / 3.0F);
}

TEST(EmulatedPtx, Registers) {
  u32 r = 0;
  popc_b32(r, 0xf0f0U);
  EXPECT_EQ(r, 8U);
  shr_u32(r, 64U, 6);
  EXPECT_EQ(r, 1U);
  shr_u32(r, 64U, 32);
  EXPECT_EQ(r, 0U);
  bool p;
  setp_ne_b32(p, -1, 0);
  EXPECT_TRUE(p);
  selp_u32(r, 1, 0, p);
  EXPECT_EQ(r, 1U);
  u16 a, b;
  mov_b32(vec(a, b), 0x12345678U);
  EXPECT_EQ(a, 0x5678);
  EXPECT_EQ(b, 0x1234);
  float f;
  mov_f32(f, f32bits(0x3f800000U));
  EXPECT_EQ(f, 1.0F);
  const int values[4] = {1, 2, 3, 4};
  EXPECT_EQ(vec(values[0], values[1] + 1)[1], 3);
}

// ---------------------------------------------------------------- loads and stores

TEST(EmulatedPtx, LoadsAndStores) {
  alignas(16) u32 memory[4] = {1, 2, 3, 4};
  EXPECT_EQ(launch(1,
                   [&] {
                     u32 a, b, c, d;
                     ld_global_v4_u32(vec(a, b, c, d), at(memory));
                     EXPECT_EQ(d, 4U);
                     st_shared_v4_u32(at(kDynamicShared), vec(a + 1, b, c, d));
                     ld_shared_u32(a, at(kDynamicShared));
                     EXPECT_EQ(a, 2U);
                     float f;
                     st_shared_f32(at(kDynamicShared), 2.5F);
                     ld_shared_f32(f, at(kDynamicShared, 0));
                     EXPECT_EQ(f, 2.5F);
                     st_shared_u16(at(kDynamicShared + 2), static_cast<u16>(0xbf80));
                     ld_shared_f32(f, at(kDynamicShared));
                     EXPECT_EQ(bits(f), 0xbf800000U);
                     atom_relaxed_gpu_global_add_u32(a, at(memory), 1);
                     EXPECT_EQ(a, 1U);
                     red_release_gpu_global_add_s32(at(memory), -5);
                     i32 s;
                     ld_acquire_gpu_global_s32(s, at(memory));
                     EXPECT_EQ(s, -3);
                   }),
            "");
  alignas(16) float sums[4] = {1, 2, 3, 0x1p-149F};
  EXPECT_EQ(
      launch(64, [&] { red_relaxed_gpu_global_add_v4_f32(at(sums), vec(1.0F, 0.5F, -1.0F, 0x1p-130F)); }),
      "");
  EXPECT_EQ(sums[0], 65.0F);
  EXPECT_EQ(sums[1], 34.0F);
  EXPECT_EQ(sums[2], -61.0F);
  EXPECT_EQ(sums[3], 0.0F);
  const auto fault = [&](const char* what, const std::function<void()>& body) {
    EXPECT_NE(launch(1, body).find(what), std::string::npos) << what;
  };
  u32 a, b, c, d;
  fault("multiple of 16", [&] { ld_global_v4_u32(vec(a, b, c, d), at(memory, 4)); });
  fault("multiple of 4", [&] { ld_shared_u32(a, at(kDynamicShared + 2)); });
  fault("", [&] { ld_shared_u32(a, at(kArenaBytes)); });
}

// ---------------------------------------------------------------- mbarriers

constexpr u32 kBar = kDynamicShared, kData = kDynamicShared + 1024;

TEST(EmulatedPtx, BarrierPhases) {
  EXPECT_EQ(launch(1,
                   [] {
                     mbarrier_init_shared_cta_b64(at(kBar), 2);
                     EXPECT_FALSE(wait(kBar, 0));
                     EXPECT_TRUE(wait(kBar, 1));  // the phase before the first one counts as complete
                     for (u32 phase = 0; phase < 5; ++phase) {
                       mbarrier_arrive_shared_cta_b64(sink(), at(kBar));
                       EXPECT_FALSE(wait(kBar, phase & 1));
                       mbarrier_arrive_shared_cta_b64(sink(), at(kBar));
                       EXPECT_TRUE(wait(kBar, phase & 1));
                       EXPECT_FALSE(wait(kBar, ~phase & 1));
                     }
                   }),
            "");
}

TEST(EmulatedPtx, BarrierCountsBytes) {
  alignas(16) char source[64] = "bytes";
  EXPECT_EQ(launch(1,
                   [&] {
                     mbarrier_init_shared_cta_b64(at(kBar), 2);
                     const auto copy = [&](u32 bytes) {
                       cp_async_bulk_shared_cluster_global_mbarrier_complete_tx_bytes(at(kData), at(source),
                                                                                      bytes, at(kBar));
                     };
                     copy(32);  // before the announcement: the count goes below zero
                     mbarrier_arrive_expect_tx_shared_cta_b64(sink(), at(kBar), 64);
                     mbarrier_arrive_shared_cta_b64(sink(), at(kBar));
                     EXPECT_FALSE(wait(kBar, 0));  // all have arrived, 32 bytes have not
                     copy(32);
                     EXPECT_TRUE(wait(kBar, 0));
                     EXPECT_STREQ(reinterpret_cast<const char*>(shared(kData)), "bytes");
                     mbarrier_arrive_expect_tx_shared_cta_b64(sink(), at(kBar), 16);
                     copy(16);
                     EXPECT_FALSE(wait(kBar, 1));  // the bytes are here, one arrival is not
                     mbarrier_arrive_shared_cta_b64(sink(), at(kBar));
                     EXPECT_TRUE(wait(kBar, 1));
                   }),
            "");
}

TEST(EmulatedPtx, BarrierMisuseIsAFault) {
  alignas(16) static char source[64];
  const auto fault = [](const char* what, const std::function<void()>& body) {
    const std::string got = launch(1, body);
    EXPECT_NE(got.find(what), std::string::npos) << "got \"" << got << "\", expected \"" << what << "\"";
  };
  const auto init = [](u32 count) { mbarrier_init_shared_cta_b64(at(kBar), count); };
  fault("expected an initialised mbarrier", [] {
    st_shared_v4_u32(at(kBar), vec(0, 0, 0, 0));
    mbarrier_arrive_shared_cta_b64(sink(), at(kBar));
  });
  fault("multiple of 8", [] { mbarrier_init_shared_cta_b64(at(kBar + 4), 1); });
  fault("got a count of 0", [&] { init(0); });
  fault("one arrival more", [&] {
    init(1);
    mbarrier_arrive_expect_tx_shared_cta_b64(sink(), at(kBar), 16);
    mbarrier_arrive_shared_cta_b64(sink(), at(kBar));
  });
  fault("parity 2", [&] {
    init(1);
    wait(kBar, 2);
  });
  fault("tx-count", [&] {
    init(3);
    mbarrier_arrive_expect_tx_shared_cta_b64(sink(), at(kBar), (1 << 20) - 1);
    mbarrier_arrive_expect_tx_shared_cta_b64(sink(), at(kBar), 16);
  });
  const auto copy = [](u64 to, u64 from, u32 bytes) {
    cp_async_bulk_shared_cluster_global_mbarrier_complete_tx_bytes(to, from, bytes, at(kBar));
  };
  fault("multiple of 16", [&] { init(1), copy(at(kData + 8), at(source), 16); });
  fault("multiple of 16", [&] { init(1), copy(at(kData), at(source, 4), 16); });
  fault("got 24 bytes", [&] { init(1), copy(at(kData), at(source), 24); });
  fault("", [&] { init(1), copy(at(kArenaBytes - 16), at(source), 32); });
  fault("setmaxnreg", [] { setmaxnreg_inc_sync_aligned_u32(100); });
}

// ---------------------------------------------------------------- copies

TEST(EmulatedPtx, SmallCopiesFillWithZeros) {
  alignas(16) static const u32 source[4] = {1, 2, 3, 4};
  for (const bool late : {false, true}) {
    const Late l(late);
    EXPECT_EQ(launch(1,
                     [] {
                       st_shared_v4_u32(at(kData), vec(9, 9, 9, 9));
                       cp_async_cg_shared_global_L2_128B(at(kData), at(source), 16, 16);
                       cp_async_commit_group();
                       cp_async_cg_shared_global_L2_128B(at(kData, 16), at(source), 16, 0);
                       cp_async_ca_shared_global(at(kData, 32), at(source, 4), 4, 4);
                       cp_async_ca_shared_global(at(kData, 36), at(source, 4), 4, 0);
                       cp_async_commit_group();
                       u32 a, b, c, d;
                       cp_async_wait_group(1);
                       ld_shared_v4_u32(vec(a, b, c, d), at(kData));
                       EXPECT_EQ(a + 10 * d, 41U);
                       cp_async_wait_group(0);
                       ld_shared_v4_u32(vec(a, b, c, d), at(kData, 16));
                       EXPECT_EQ(a | b | c | d, 0U);
                       ld_shared_u32(a, at(kData, 32));
                       ld_shared_u32(b, at(kData, 36));
                       EXPECT_EQ(a, 2U);
                       EXPECT_EQ(b, 0U);
                     }),
              "");
  }
}

TEST(EmulatedPtx, SmallCopiesArriveAtABarrier) {
  static const u32 source[32] = {5, 6};
  for (const bool late : {false, true}) {
    const Late l(late);
    EXPECT_EQ(launch(32,
                     [] {
                       const u32 lane = here().lane;
                       if (lane == 0) mbarrier_init_shared_cta_b64(at(kBar), 32);
                       st_shared_u32(at(kData, 4 * lane), 77U);
                       bar_sync(0, 32);
                       cp_async_ca_shared_global(at(kData, 4 * lane), at(source, 4 * lane), 4);
                       cp_async_mbarrier_arrive_noinc_shared_cta_b64(at(kBar));
                       wait_for(kBar, 0);
                       u32 v;
                       ld_shared_u32(v, at(kData, 4 * ((lane + 1) % 32)));
                       EXPECT_EQ(v, source[(lane + 1) % 32]);
                     }),
              "");
  }
}

TEST(EmulatedPtx, LateCopiesShowAMissingWait) {
  alignas(16) static u32 source[8] = {1, 2, 3, 4, 5, 6, 7, 8}, target[4];
  for (const bool late : {false, true}) {
    const Late l(late);
    std::memset(target, 0, sizeof target);
    EXPECT_EQ(launch(1,
                     [&] {
                       u32 v;
                       mbarrier_init_shared_cta_b64(at(kBar), 1);
                       st_shared_u32(at(kData), 77U);
                       mbarrier_arrive_expect_tx_shared_cta_b64(sink(), at(kBar), 32);
                       cp_async_bulk_shared_cluster_global_mbarrier_complete_tx_bytes_L2_cache_hint(
                           at(kData), at(source), 32, at(kBar), u64{0});
                       ld_shared_u32(v, at(kData));  // without a wait
                       EXPECT_EQ(v, late ? 77U : 1U);
                       wait_for(kBar, 0);
                       ld_shared_u32(v, at(kData));
                       EXPECT_EQ(v, 1U);
                       cp_async_bulk_global_shared_cta_bulk_group(at(target), at(kData), 16);
                       cp_async_bulk_commit_group();
                       st_shared_u32(at(kData), 55U);  // too early
                       cp_async_bulk_wait_group_read(0);
                     }),
              "");
    EXPECT_EQ(target[0], late ? 55U : 1U);
    EXPECT_EQ(target[3], 4U);
  }
}

TEST(EmulatedPtx, NothingMayBeUnderWayAtTheEnd) {
  alignas(16) static u32 memory[4];
  const Late l(true);
  const auto fault = [](const char* what, const std::function<void()>& body) {
    const std::string got = launch(1, body);
    EXPECT_NE(got.find(what), std::string::npos) << "got \"" << got << "\", expected \"" << what << "\"";
  };
  fault("bulk copies to shared memory under way", [] {
    mbarrier_init_shared_cta_b64(at(kBar), 1);
    mbarrier_arrive_expect_tx_shared_cta_b64(sink(), at(kBar), 16);
    cp_async_bulk_shared_cluster_global_mbarrier_complete_tx_bytes(at(kData), at(memory), 16, at(kBar));
  });
  fault("before its bulk stores were read", [] {
    cp_async_bulk_global_shared_cta_bulk_group(at(memory), at(kData), 16);
    cp_async_bulk_commit_group();
  });
  EXPECT_EQ(launch(1, [] {}), "");  // and nothing of it is left
}

TEST(EmulatedPtx, WaitingForNobodyIsAFault) {
  const std::string got = launch(32, [] {
    if (here().lane == 0) mbarrier_init_shared_cta_b64(at(kBar), 33);
    bar_sync(0, 32);
    mbarrier_arrive_shared_cta_b64(sink(), at(kBar));
    wait_for(kBar, 0);
  });
  EXPECT_NE(got.find("deadlock"), std::string::npos) << got;
  EXPECT_NE(got.find("mbarrier"), std::string::npos) << got;
}

TEST(EmulatedPtx, ClustersShareMemory) {
  alignas(16) static const u32 source[2][4] = {{1, 2, 3, 4}, {5, 6, 7, 8}};
  for (const bool late : {false, true}) {
    const Late l(late);
    EXPECT_EQ(
        launch_cluster(2, 32,
                       [] {
                         u32 rank;
                         mov_u32(rank, sreg_cluster_ctarank());
                         EXPECT_EQ(sreg_cluster_nctarank(), 2U);
                         const u32 other = rank ^ 1U;
                         if (here().thread == 0) mbarrier_init_shared_cta_b64(at(kBar), 2);
                         fence_mbarrier_init_release_cluster();
                         barrier_cluster_arrive();
                         barrier_cluster_wait();
                         if (here().thread == 0) {
                           // 16 bytes of each block to both, 4 bytes and an arrival to the other one.
                           mbarrier_arrive_expect_tx_shared_cta_b64(sink(), at(kBar), 36);
                           cp_async_bulk_shared_cluster_global_mbarrier_complete_tx_bytes_multicast_cluster(
                               at(kData, 16 * rank), at(source[rank]), 16, at(kBar), static_cast<u16>(3));
                           u32 data, bar;
                           mapa_shared_cluster_u32(data, kData + 32, other);
                           mapa_shared_cluster_u32(bar, kBar, other);
                           st_async_weak_shared_cluster_mbarrier_complete_tx_bytes_f32(
                               at(data), static_cast<float>(rank + 1), at(bar));
                           mbarrier_arrive_shared_cluster_b64(sink(), at(bar));
                         }
                         wait_for(kBar, 0);
                         u32 v;
                         ld_shared_u32(v, at(kData, 12));
                         EXPECT_EQ(v, 4U);
                         ld_shared_u32(v, at(kData, 16));
                         EXPECT_EQ(v, 5U);
                         float f;
                         ld_shared_f32(f, at(kData, 32));
                         EXPECT_EQ(f, static_cast<float>(other + 1));
                         u32 remote;
                         mapa_shared_cluster_u32(remote, kData + 32, other);
                         ld_shared_cluster_u32(v, at(remote));
                         EXPECT_EQ(std::bit_cast<float>(v), static_cast<float>(rank + 1));
                         barrier_cluster_arrive_release();
                         barrier_cluster_wait_acquire();
                       }),
        "");
  }
  const std::string got = launch_cluster(2, 1, [] {
    mbarrier_init_shared_cta_b64(at(kBar), 1);
    u32 remote;
    mapa_shared_cluster_u32(remote, kData, sreg_cluster_ctarank() ^ 1U);
    st_async_weak_shared_cluster_mbarrier_complete_tx_bytes_f32(at(remote), 1.0F, at(kBar));
  });
  EXPECT_NE(got.find("two blocks"), std::string::npos) << got;
}

}  // namespace
