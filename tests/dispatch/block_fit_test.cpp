// Fits of the expert block through the C ABI: which are used, which are refused and how they say so, what a
// context then chooses, that choosing neither allocates nor disturbs running calls, and that batch-invariant
// calls keep their bits.
#include "dispatch/block_fit.hpp"

#include <thread>

#include "abi/handles.hpp"
#include "base/file.hpp"
#include "dispatch/default_points.hpp"
#include "dispatch/fit_file.hpp"
#include "support.hpp"
#include "weights/synthetic.hpp"

namespace ramp::core {
namespace {

const ModelShape kShape{"8,2,256,128", 8, 2, 256, 128};

struct Log {
  std::vector<std::string> warnings;
  static void line(void* user, ramp_log_level level, const char* message) {
    if (level == RAMP_LOG_WARNING) static_cast<Log*>(user)->warnings.emplace_back(message);
  }
};

struct Runner {
  Log log;
  ramp_context* context = nullptr;
  explicit Runner(const std::string& cache = "", int32_t threads = 2,
                  ramp_backend backend = RAMP_BACKEND_CPU) {
    ramp_context_options o = ramp_context_options_init();
    o.backend = backend;
    o.num_threads = threads;
    o.log = Log::line;
    o.log_user = &log;
    o.cache_dir = cache.empty() ? nullptr : cache.c_str();
    EXPECT_EQ(ramp_context_create(&o, &context), RAMP_OK) << ramp_last_error();
  }
  ~Runner() { ramp_context_destroy(context); }
  Runner(const Runner&) = delete;
  Runner& operator=(const Runner&) = delete;

  [[nodiscard]] Backend& backend() const { return *context_of(context).backend; }
  [[nodiscard]] BlockMachine machine() const {
    const BackendInfo& i = backend().info();
    return {i.name, i.isa, i.device_name, i.workers};
  }
  int32_t load(const char* path) {
    int32_t used = -1;
    EXPECT_EQ(ramp_context_load_fit(context, path, &used), RAMP_OK) << ramp_last_error();
    return used;
  }
};

std::vector<KernelConfig> legal_configs(const Runner& r) {
  return r.backend().configs(kShape, RAMP_FORMAT_BF16, RAMP_ACTIVATION_SILU_AND_MUL, false).legal;
}

// A fit in which config `best` is twice as fast as any other at every point.
Fit make_fit(const std::vector<KernelConfig>& configs, size_t best, Metadata metadata) {
  Dataset d;
  d.configs = block_configs(configs);
  d.models = {kShape};
  d.points = default_points(kShape, 256, 1);
  for (WorkPoint& p : d.points) p.model = 0;
  for (const WorkPoint& p : d.points)
    for (size_t c = 0; c < configs.size(); ++c)
      d.us.push_back((c == best ? 1.0 : 2.0) * (20.0 + static_cast<double>(p.tokens)) *
                     (1 + 1e-3 * static_cast<double>(c)));
  d.us_repeat.assign(d.us.size(), NAN);
  return fit_dataset(d, kDefaultCostModel, cpu_hardware(2), std::move(metadata));
}

std::vector<int32_t> histogram() {
  return {3, 0, 1, 4, 0, 2, 0, 6};
}

ExpertWeights weights_like(ramp_format format = RAMP_FORMAT_BF16) {
  ExpertWeights w;
  w.experts = kShape.experts;
  w.hidden = kShape.hidden;
  w.intermediate = kShape.intermediate;
  w.format = format;
  w.activation = RAMP_ACTIVATION_SILU_AND_MUL;
  return w;
}

// A layer and a call on it.
struct Block {
  SyntheticWeights weights = make_synthetic_weights(kShape, RAMP_FORMAT_BF16, RAMP_ACTIVATION_SILU_AND_MUL);
  ramp_weights* handle = nullptr;
  std::vector<float> x, y;
  std::vector<int32_t> ids;
  std::vector<float> w;
  int64_t tokens;

  Block(ramp_context* context, int64_t t) : tokens(t) {
    EXPECT_EQ(ramp_weights_create(context, &weights.desc, nullptr, &handle), RAMP_OK) << ramp_last_error();
    EXPECT_EQ(ramp_weights_pack(context, handle, nullptr), RAMP_OK);
    x.resize(static_cast<size_t>(t * kShape.hidden));
    fill_activations(x.data(), RAMP_F32, t, kShape.hidden, 1);
    y.resize(x.size());
    for (int64_t i = 0; i < 2 * t; ++i) {
      ids.push_back(static_cast<int32_t>((3 * (i / 2) + i % 2) % 8));
      w.push_back(0.5F);
    }
  }
  ~Block() { ramp_weights_destroy(handle); }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  static ramp_tensor tensor(void* data, ramp_dtype type, int64_t rows, int64_t columns) {
    ramp_tensor t{};
    t.data = data;
    t.dtype = type;
    t.ndim = 2;
    t.shape[0] = rows;
    t.shape[1] = columns;
    return t;
  }
  ramp_status run(ramp_context* context, ramp_determinism determinism = RAMP_REPEATABLE) {
    ramp_expert_block_args a = ramp_expert_block_args_init();
    a.weights = handle;
    a.determinism = determinism;
    a.x = tensor(x.data(), RAMP_F32, tokens, kShape.hidden);
    a.y = tensor(y.data(), RAMP_F32, tokens, kShape.hidden);
    a.topk_ids = tensor(ids.data(), RAMP_I32, tokens, 2);
    a.topk_weights = tensor(w.data(), RAMP_F32, tokens, 2);
    return ramp_expert_block(context, &a, nullptr, 0, nullptr);
  }
};

TEST(BlockFit, NamesAndStems) {
  const BlockKernel k{"cpu", "avx512", RAMP_FORMAT_FP8_BLOCK, RAMP_ACTIVATION_RELU2};
  EXPECT_EQ(block_kernel_name(k), "ramp cpu avx512 fp8_block relu2");
  const auto back = parse_block_kernel(block_kernel_name(k));
  ASSERT_TRUE(back);
  EXPECT_EQ(back->isa, "avx512");
  EXPECT_EQ(back->format, RAMP_FORMAT_FP8_BLOCK);
  EXPECT_EQ(back->activation, RAMP_ACTIVATION_RELU2);
  for (const char* other :
       {"", "alpha_moe", "ramp", "ramp cpu avx512 int3 relu2", "ramp cpu avx512 bf16 relu2 x"})
    EXPECT_FALSE(parse_block_kernel(other)) << other;
  EXPECT_EQ(block_file_stem({"cpu", "avx2", "", 4}, kShape, RAMP_FORMAT_BF16, RAMP_ACTIVATION_SILU_AND_MUL),
            "cpu_8x2x256x128_bf16_silu_and_mul_avx2_w4");
}

TEST(BlockFit, OrderSurvivesFiles) {
  KernelConfig row;
  row.tile_m = 32;
  row.tile_n = 64;
  row.order = TaskOrder::kRowMajor;
  KernelConfig plain = row;
  plain.order = TaskOrder::kColumnMajor;
  const std::vector<KernelConfig> configs = {row, plain};
  ConfigTable t = block_configs(configs);
  t.configs[0].order = TaskOrder::kColumnMajor;  // what a file's columns give back
  restore_configs(t, "f");
  EXPECT_EQ(t.configs, configs);
  t.configs[1].tile_n = 128;
  expect_has(error_of([&] { restore_configs(t, "f.json"); }, RAMP_ERROR_BAD_FILE), {"f.json", "columns"});
  t.names[1] = "nonsense";
  expect_has(error_of([&] { restore_configs(t, "f.json"); }, RAMP_ERROR_BAD_FILE), {"f.json", "nonsense"});
}

// A column tells cost models such a config from its twin; tables without one are as they were.
TEST(BlockFit, SumsAreAColumnWhereThereAreSome) {
  KernelConfig plain;
  plain.tile_m = 128;
  plain.tile_n = 256;
  KernelConfig sums = plain;
  sums.sums = true;
  const std::vector<KernelConfig> both = {plain, sums};
  const std::vector<int32_t> residency = {1, 2};
  ConfigTable t = block_configs(both, residency);
  EXPECT_EQ(t.extra_columns, (std::vector<std::string>{"order", "residency", "sums"}));
  EXPECT_EQ(t.extra, (std::vector<double>{0, 1, 0, 0, 2, 1}));
  t.configs[1].sums = false;  // what a file's columns give back
  restore_configs(t, "f");
  EXPECT_EQ(t.configs, both);
  EXPECT_EQ(block_configs(std::vector<KernelConfig>{plain}).extra_columns, std::vector<std::string>{"order"});
}

TEST(BlockFit, TheContextChoosesByIt) {
  const TempDir dir;
  Runner r;
  const std::vector<KernelConfig> configs = legal_configs(r);
  ASSERT_GE(configs.size(), 2U);
  const Metadata here = block_metadata(r.machine(), RAMP_FORMAT_BF16, RAMP_ACTIVATION_SILU_AND_MUL);
  const KernelConfig before = r.backend().choose(weights_like(), histogram(), RAMP_REPEATABLE);
  for (const size_t best : {size_t{0}, configs.size() / 2, configs.size() - 1}) {
    const std::string path = dir.file("f.json");
    write_fit(path, make_fit(configs, best, here));
    EXPECT_EQ(r.load(path.c_str()), 1);
    EXPECT_TRUE(r.log.warnings.empty());
    EXPECT_EQ(config_name(r.backend().choose(weights_like(), histogram(), RAMP_REPEATABLE)),
              config_name(configs[best]));
    KernelConfig invariant = configs[best];
    invariant.split_k = 1;
    EXPECT_EQ(r.backend().choose(weights_like(), histogram(), RAMP_BATCH_INVARIANT), invariant);
  }
  // Other weights keep the analytic default.
  const Runner plain;
  const ExpertWeights fp8 = weights_like(RAMP_FORMAT_FP8_BLOCK);
  EXPECT_EQ(r.backend().choose(fp8, histogram(), RAMP_REPEATABLE),
            plain.backend().choose(fp8, histogram(), RAMP_REPEATABLE));
  EXPECT_EQ(plain.backend().choose(weights_like(), histogram(), RAMP_REPEATABLE), before);
}

TEST(BlockFit, WhatDoesNotMatchIsNotUsedAndSaysHowToMendIt) {
  const TempDir dir;
  const Runner maker;
  const std::vector<KernelConfig> configs = legal_configs(maker);
  const std::string path = dir.file("f.json");
  const auto refused = [&](const std::function<void(Fit&)>& change,
                           std::initializer_list<const char*> parts) {
    Runner r;
    Fit fit =
        make_fit(configs, 0, block_metadata(r.machine(), RAMP_FORMAT_BF16, RAMP_ACTIVATION_SILU_AND_MUL));
    change(fit);
    write_fit(path, fit);
    const KernelConfig before = r.backend().choose(weights_like(), histogram(), RAMP_REPEATABLE);
    EXPECT_EQ(r.load(path.c_str()), 0);
    ASSERT_EQ(r.log.warnings.size(), 1U);
    expect_has(r.log.warnings[0], {path.c_str(), "not used", "ramp profile"});
    expect_has(r.log.warnings[0], parts);
    EXPECT_EQ(r.backend().choose(weights_like(), histogram(), RAMP_REPEATABLE), before);
  };
  refused([](Fit& f) { f.metadata.device = "Some Other CPU"; }, {"Some Other CPU"});
  refused([](Fit& f) { f.metadata.sm_count = 64; }, {"'64'", "--threads 2"});
  refused([](Fit& f) { f.metadata.kernel = "ramp cpu mmx bf16 silu_and_mul"; }, {"mmx", "--format bf16"});
  refused([](Fit& f) { f.metadata.kernel = "alpha_moe"; }, {"alpha_moe"});
  refused([](Fit& f) { f.metadata.library_version = "0.0.1"; }, {"0.0.1"});
  // A config that this backend does not have (any more).
  KernelConfig odd = configs[0];
  odd.tile_m = 1000;
  std::vector<KernelConfig> changed = configs;
  changed[0] = odd;
  refused([&](Fit& f) { f = make_fit(changed, 0, f.metadata); }, {config_name(odd).c_str()});
  // Another schema version.
  {
    Runner r;
    std::string text = read_text(path);
    const size_t at = text.rfind("\"version\": 1");
    ASSERT_NE(at, std::string::npos);
    text.replace(at, 12, "\"version\": 9");
    write_text(path, text);
    EXPECT_EQ(r.load(path.c_str()), 0);
    ASSERT_EQ(r.log.warnings.size(), 1U);
    expect_has(r.log.warnings[0], {"version 9"});
  }
  Runner r;
  int32_t used = 7;
  EXPECT_EQ(ramp_context_load_fit(r.context, dir.file("absent.json").c_str(), &used), RAMP_ERROR_IO);
  write_text(path, "{}");
  EXPECT_EQ(ramp_context_load_fit(r.context, path.c_str(), &used), RAMP_ERROR_BAD_FILE);
  EXPECT_EQ(ramp_context_load_fit(r.context, "", &used), RAMP_ERROR_INVALID_ARGUMENT);
  EXPECT_EQ(ramp_context_load_fit(nullptr, path.c_str(), &used), RAMP_ERROR_INVALID_ARGUMENT);
  EXPECT_EQ(used, 7);
  Runner reference("", 2, RAMP_BACKEND_REFERENCE);
  EXPECT_EQ(ramp_context_load_fit(reference.context, path.c_str(), nullptr), RAMP_ERROR_UNSUPPORTED);
}

TEST(BlockFit, TheCacheDirectoryIsWhereItLooks) {
  const TempDir cache;
  {
    Runner r(cache.path());
    EXPECT_EQ(r.load(nullptr), 0) << "no directory yet";
    EXPECT_TRUE(r.log.warnings.empty());
  }
  {
    write_text(cache.path() + "/file", "");
    Runner r(cache.path() + "/file");
    EXPECT_EQ(r.load(nullptr), 0) << "a file in place of the cache";
  }
  const std::string fits = fit_directory(cache.path());
  std::filesystem::create_directories(fits);
  Runner r(cache.path());
  const std::vector<KernelConfig> configs = legal_configs(r);
  Metadata here = block_metadata(r.machine(), RAMP_FORMAT_BF16, RAMP_ACTIVATION_SILU_AND_MUL);
  write_fit(fits + "/a.fit.json", make_fit(configs, 1, here));
  here.sm_count = 31;  // another worker count belongs there: silence
  write_fit(fits + "/b.fit.json", make_fit(configs, 0, here));
  write_text(fits + "/c.fit.json", "not a fit");
  write_text(fits + "/a.profile.json", "not looked at");
  EXPECT_EQ(r.load(nullptr), 1);
  ASSERT_EQ(r.log.warnings.size(), 1U);
  expect_has(r.log.warnings[0], {"c.fit.json", "not used"});
  EXPECT_EQ(r.backend().choose(weights_like(), histogram(), RAMP_REPEATABLE), configs[1]);
  EXPECT_EQ(r.load(fits.c_str()), 1) << "a directory by name";
}

TEST(BlockFit, ChoosingAllocatesNothingAndBatchInvariantBitsStay) {
  const TempDir dir;
  Runner r;
  Block block(r.context, 24);
  ASSERT_EQ(block.run(r.context, RAMP_BATCH_INVARIANT), RAMP_OK) << ramp_last_error();
  const std::vector<float> want = block.y;
  const std::vector<KernelConfig> configs = legal_configs(r);
  const Metadata here = block_metadata(r.machine(), RAMP_FORMAT_BF16, RAMP_ACTIVATION_SILU_AND_MUL);
  for (const size_t best : {size_t{1}, configs.size() - 1}) {
    write_fit(dir.file("f.json"), make_fit(configs, best, here));
    ASSERT_EQ(r.load(dir.file("f.json").c_str()), 1);
    ASSERT_EQ(block.run(r.context), RAMP_OK);
    const size_t before = count_allocations();
    for (int i = 0; i < 3; ++i) ASSERT_EQ(block.run(r.context), RAMP_OK);
    EXPECT_EQ(count_allocations(), before);
    ASSERT_EQ(block.run(r.context, RAMP_BATCH_INVARIANT), RAMP_OK);
    EXPECT_EQ(block.y, want);
  }
}

TEST(BlockFit, LoadingDisturbsNoCall) {
  const TempDir dir;
  Runner r;
  const std::vector<KernelConfig> configs = legal_configs(r);
  const Metadata here = block_metadata(r.machine(), RAMP_FORMAT_BF16, RAMP_ACTIVATION_SILU_AND_MUL);
  for (size_t i = 0; i < 2; ++i) write_fit(dir.file(fmt::format("f{}.json", i)), make_fit(configs, i, here));
  std::atomic<bool> stop{false};
  std::vector<std::thread> readers;
  for (int t = 0; t < 2; ++t) {
    readers.emplace_back([&] {
      const ExpertWeights w = weights_like();
      while (!stop) {
        const KernelConfig c = r.backend().choose(w, histogram(), RAMP_REPEATABLE);
        ASSERT_GE(c.tile_m, 1);
      }
    });
  }
  readers.emplace_back([&] {
    Block block(r.context, 8);
    while (!stop) ASSERT_EQ(block.run(r.context), RAMP_OK);
  });
  for (int i = 0; i < 20; ++i) EXPECT_EQ(r.load(dir.file(fmt::format("f{}.json", i % 2)).c_str()), 1);
  stop = true;
  for (std::thread& t : readers) t.join();
  EXPECT_EQ(r.backend().choose(weights_like(), histogram(), RAMP_REPEATABLE), configs[1]);
}

}  // namespace
}  // namespace ramp::core
