// The C++ wrapper of the dispatcher: the whole way, and exceptions of the callbacks.
#include "foreign.hpp"

namespace ramp::core {
namespace {

TEST(CppWrapper, ProfilesFitsDispatchesAndCarriesExceptions) {
  const auto points = toy_points();
  ramp::KernelDesc desc{.name = "toy",
                        .configs = {},
                        .extra_columns = {"x"},
                        .num_experts = 8,
                        .top_k = 2,
                        .hidden = 256,
                        .intermediate = 128};
  for (const int32_t m : {8, 16, 32, 64})
    desc.configs.push_back({.name = fmt::format("m{}", m), .tile_m = m, .tile_n = 128, .extra = {1.0}});
  bool explode = false;
  desc.launch = [&](int32_t config, void* call) {
    if (explode) throw std::runtime_error("boom");
    *static_cast<int32_t*>(call) = config;
    return 0;
  };
  auto bad = desc;
  bad.configs[0].extra.clear();
  EXPECT_THROW(ramp::Kernel{bad}, ramp::Error);
  ramp::Kernel kernel(desc);
  std::vector<ramp::Workload> workloads;
  for (const WorkPoint& p : points) workloads.push_back({p.name, p.tokens, p.histogram});
  const std::vector<int32_t>* now = nullptr;
  kernel.profile({.workloads = workloads,
                  .prepare =
                      [&](const ramp_workload& w) {
                        for (const WorkPoint& p : points)
                          if (p.name == w.name) now = &p.histogram;
                        return const_cast<std::vector<int32_t>*>(now);
                      },
                  .measure =
                      [&](int32_t config, void* call) {
                        EXPECT_EQ(call, now);
                        if (config == 3) throw std::runtime_error("does not run");
                        KernelConfig k;
                        k.tile_m = 8 << config;
                        return synthetic_us(k, *now);
                      }});
  ASSERT_EQ(kernel.warnings().size(), 1U);
  expect_has(kernel.warnings()[0], {"'m64'", "measure"});
  kernel.fit();
  int32_t ran = -1;
  const int32_t chosen = kernel.dispatch(points[0].histogram, &ran);
  EXPECT_EQ(ran, chosen);
  EXPECT_EQ(chosen, kernel.choose(points[0].histogram));
  EXPECT_TRUE(std::isinf(kernel.predict(points[0].histogram)[3]));
  EXPECT_STREQ(kernel.config_name(1), "m16");
  TempDir dir;
  kernel.save_fit(dir.file("f.json"));
  kernel.save_profile(dir.file("p.json"));
  ramp::Kernel copy(desc);
  EXPECT_TRUE(copy.load_fit(dir.file("f.json")));
  EXPECT_TRUE(copy.load_profile(dir.file("p.json")));
  EXPECT_EQ(copy.choose(points[4].histogram), kernel.choose(points[4].histogram));
  EXPECT_THROW(copy.load_fit(dir.file("p.json")), ramp::Error);

  explode = true;
  EXPECT_THROW(kernel.dispatch(points[0].histogram, &ran), std::runtime_error);
  EXPECT_THROW(
      kernel.profile({.workloads = workloads,
                      .prepare = [](const ramp_workload&) -> void* { throw std::logic_error("no inputs"); }}),
      std::logic_error);
  EXPECT_THROW(kernel.profile({.workloads = {{"x", 1, {1}}}}), ramp::Error);
  EXPECT_EQ(kernel.info().fitted, 1);
}

}  // namespace
}  // namespace ramp::core
