// The binary contract: sizes and offsets that callers were compiled with, the sized-struct protocol on every
// struct, opaque handles, status codes and the thread's last error.
#include <cstddef>
#include <thread>

#include "abi/support.hpp"

namespace abi_test {
namespace {

// ---------------------------------------------------------------- layout

// Version 0.1's layout on LP64. A failure here means that programs built against an older header break:
// append fields instead (before `reserved` for ramp_router_config), then add a line.
static_assert(sizeof(ramp_device) == 8 && sizeof(ramp_tensor) == 88 && sizeof(ramp_executor) == 24);
static_assert(offsetof(ramp_tensor, shape) == 16 && offsetof(ramp_tensor, stride) == 48 &&
              offsetof(ramp_tensor, device) == 80);
static_assert(sizeof(ramp_context_options) == 64 && offsetof(ramp_context_options, isa) == 56);
static_assert(sizeof(ramp_trace_record) == 136 && offsetof(ramp_trace_record, configs) == 80 &&
              offsetof(ramp_trace_record, measured_us) == 104);
static_assert(sizeof(ramp_context_counters) == 128 && offsetof(ramp_context_counters, active) == 24 &&
              offsetof(ramp_context_counters, error_sum) == 120);
static_assert(sizeof(ramp_context_info) == 48 && sizeof(ramp_weights_info) == 56);
static_assert(sizeof(ramp_weights_desc) == 48 + 6 * 88 && offsetof(ramp_weights_desc, w13) == 48);
static_assert(sizeof(ramp_expert_block_args) == 32 + 8 * 88 && offsetof(ramp_expert_block_args, x) == 32);
static_assert(sizeof(ramp_batched_args) == 32 + 5 * 88 && offsetof(ramp_batched_args, x) == 32);
static_assert(sizeof(ramp_router_config) == 48 + 88 + 64 && offsetof(ramp_router_config, reserved) == 136);
static_assert(sizeof(ramp_moe_forward_args) == 32 + 200 + 9 * 88 &&
              offsetof(ramp_moe_forward_args, x) == 232);
static_assert(sizeof(ramp_layer_info) == 56 + 200 + 88 + 8 && offsetof(ramp_layer_info, architecture) == 344);

// ---------------------------------------------------------------- sized structs that callers fill in

struct World {
  Context context = make_context(RAMP_BACKEND_REFERENCE, 1);
  Model model{RAMP_FORMAT_F32, RAMP_ACTIVATION_RELU2, 3, 32, 32, 1, true};
  Weights weights = make_weights(context, model.desc());
  Call call{model, weights.get(), 2, 2, 5, true};
  Array logits{RAMP_F32, {2, 3}};
  Array slabs{RAMP_F32, {3, 2, 32}}, slabs_out{RAMP_F32, {3, 2, 32}}, counts{RAMP_I32, {3}};
  World() {
    for (int64_t i = 0; i < logits.size(); ++i) logits.set(i, static_cast<float>(i));
    for (int64_t i = 0; i < slabs.size(); ++i) slabs.set(i, 1.0F);
    for (int64_t i = 0; i < 3; ++i) counts.set_int(i, 1);
  }
};

struct SizedCase {
  const char* name;
  size_t size;
  size_t older;  // up to the first field that a caller of an older header could lack; 0: all are needed
  std::function<void(World&, void*)> fill;
  std::function<ramp_status(World&, const void*)> call;
};

std::vector<SizedCase> sized_cases() {
  return {
      {"ramp_context_options", sizeof(ramp_context_options), offsetof(ramp_context_options, cache_dir),
       [](World&, void* p) {
         auto* o = static_cast<ramp_context_options*>(p);
         *o = ramp_context_options_init();
         o->backend = RAMP_BACKEND_REFERENCE;
       },
       [](World&, const void* p) {
         ramp_context* c = nullptr;
         const ramp_status s = ramp_context_create(static_cast<const ramp_context_options*>(p), &c);
         ramp_context_destroy(c);
         return s;
       }},
      {"ramp_weights_desc", sizeof(ramp_weights_desc), offsetof(ramp_weights_desc, w13_scale),
       [](World& w, void* p) { *static_cast<ramp_weights_desc*>(p) = w.model.desc(); },
       [](World& w, const void* p) {
         ramp_weights* h = nullptr;
         const ramp_status s =
             ramp_weights_create(w.context.get(), static_cast<const ramp_weights_desc*>(p), nullptr, &h);
         ramp_weights_destroy(h);
         return s;
       }},
      {"ramp_expert_block_args", sizeof(ramp_expert_block_args), offsetof(ramp_expert_block_args, counters),
       [](World& w, void* p) { *static_cast<ramp_expert_block_args*>(p) = w.call.args; },
       [](World& w, const void* p) {
         return ramp_expert_block(w.context.get(), static_cast<const ramp_expert_block_args*>(p), nullptr, 0,
                                  nullptr);
       }},
      {"ramp_batched_args", sizeof(ramp_batched_args), 0,
       [](World& w, void* p) {
         auto* a = static_cast<ramp_batched_args*>(p);
         *a = ramp_batched_args_init();
         a->weights = w.weights.get();
         a->x = w.slabs.view();
         a->y = w.slabs_out.view();
         a->counts = w.counts.view();
       },
       [](World& w, const void* p) {
         return ramp_expert_block_batched(w.context.get(), static_cast<const ramp_batched_args*>(p), nullptr,
                                          0, nullptr);
       }},
      {"ramp_router_config", sizeof(ramp_router_config), offsetof(ramp_router_config, capacity),
       [](World&, void* p) {
         auto* r = static_cast<ramp_router_config*>(p);
         *r = ramp_router_config_init();
         r->top_k = 2;
       },
       [](World& w, const void* p) {
         const ramp_tensor logits = w.logits.view();
         const ramp_tensor ids = w.call.ids.view();
         const ramp_tensor weights = w.call.weights.view();
         return ramp_route(w.context.get(), static_cast<const ramp_router_config*>(p), &logits, &ids,
                           &weights, nullptr);
       }},
      {"ramp_moe_forward_args", sizeof(ramp_moe_forward_args), offsetof(ramp_moe_forward_args, counters),
       [](World& w, void* p) {
         auto* a = static_cast<ramp_moe_forward_args*>(p);
         *a = ramp_moe_forward_args_init();
         a->weights = w.weights.get();
         a->router.top_k = 2;
         a->x = w.call.x.view();
         a->y = w.call.y.view();
         a->router_logits = w.logits.view();
       },
       [](World& w, const void* p) {
         return ramp_moe_forward(w.context.get(), static_cast<const ramp_moe_forward_args*>(p), nullptr, 0,
                                 nullptr);
       }},
  };
}

class SizedStruct : public testing::TestWithParam<size_t> {
 protected:
  SizedStruct() : param(sized_cases()[GetParam()]) { param.fill(world, buffer); }
  void set_size(uint64_t n) { std::memcpy(buffer, &n, sizeof n); }
  ramp_status call() { return param.call(world, buffer); }
  std::string size_field() const { return std::string(param.name) + ".struct_size"; }
  std::string init() const { return std::string(param.name) + "_init()"; }

  World world;
  SizedCase param;
  alignas(16) std::byte buffer[4096] = {};
};

TEST_P(SizedStruct, CurrentSizeWorks) {
  EXPECT_EQ(call(), RAMP_OK) << ramp_last_error();
}

TEST_P(SizedStruct, NewerWithZerosWorks) {
  set_size(param.size + 64);
  EXPECT_EQ(call(), RAMP_OK) << ramp_last_error();
}

TEST_P(SizedStruct, NewerWithAnUnknownFieldInUseIsUnsupported) {
  set_size(param.size + 64);
  buffer[param.size + 63] = std::byte{1};
  expect_error(call(), RAMP_ERROR_UNSUPPORTED,
               {param.name, "byte " + std::to_string(param.size + 63), "newer"});
}

TEST_P(SizedStruct, BytesBeyondStructSizeAreNotRead) {
  buffer[param.size] = std::byte{1};
  EXPECT_EQ(call(), RAMP_OK) << ramp_last_error();
}

TEST_P(SizedStruct, OlderStructIsExtendedWithZeros) {
  const size_t older = param.older != 0 ? param.older : param.size - sizeof(ramp_tensor);
  set_size(older);
  std::memset(buffer + older, 0xff, sizeof buffer - older);  // what an old caller's stack holds there
  if (param.older != 0) {
    EXPECT_EQ(call(), RAMP_OK) << ramp_last_error();
  } else {
    expect_error(call(), RAMP_ERROR_INVALID_ARGUMENT, {"y: got no tensor"});
  }
}

TEST_P(SizedStruct, AbsurdSizesNameTheInitialiser) {
  for (const uint64_t n :
       {uint64_t{0}, uint64_t{8}, uint64_t{param.size - 3}, uint64_t{1} << 20, UINT64_MAX}) {
    set_size(n);
    expect_error(call(), RAMP_ERROR_INVALID_ARGUMENT, {size_field() + ": got " + std::to_string(n), init()});
  }
}

TEST_P(SizedStruct, NullPointer) {
  if (std::string(param.name) == "ramp_context_options") {  // there NULL means the defaults
    EXPECT_EQ(param.call(world, nullptr), RAMP_OK);
  } else {
    expect_error(param.call(world, nullptr), RAMP_ERROR_INVALID_ARGUMENT, {param.name, "NULL", init()});
  }
}

TEST_P(SizedStruct, MisalignedPointer) {
  std::memmove(buffer + 4, buffer, param.size);
  expect_error(param.call(world, buffer + 4), RAMP_ERROR_INVALID_ARGUMENT, {param.name, "multiple of 8"});
}

INSTANTIATE_TEST_SUITE_P(All, SizedStruct, testing::Range(size_t{0}, sized_cases().size()),
                         [](const auto& info) { return std::string(sized_cases()[info.param].name); });

// The router inside ramp_moe_forward_args keeps its size for ever; 0 stands for it.
TEST(EmbeddedRouter, StructSize) {
  World w;
  ramp_moe_forward_args a = ramp_moe_forward_args_init();
  a.weights = w.weights.get();
  a.router.top_k = 2;
  a.x = w.call.x.view();
  a.y = w.call.y.view();
  a.router_logits = w.logits.view();
  const auto run = [&] { return ramp_moe_forward(w.context.get(), &a, nullptr, 0, nullptr); };
  for (const uint64_t ok : {uint64_t{0}, uint64_t{48}, uint64_t{sizeof(ramp_router_config)}}) {
    a.router.struct_size = ok;
    EXPECT_EQ(run(), RAMP_OK) << ok << ": " << ramp_last_error();
  }
  for (const uint64_t bad : {uint64_t{8}, uint64_t{sizeof(ramp_router_config) + 8}}) {
    a.router.struct_size = bad;
    expect_error(run(), RAMP_ERROR_INVALID_ARGUMENT, {"struct_size", std::to_string(bad)});
  }
  a.router.struct_size = 0;
  a.router.reserved[7] = 1;
  expect_error(run(), RAMP_ERROR_UNSUPPORTED, {"router.reserved"});
}

// ---------------------------------------------------------------- sized structs that the library fills in

TEST(OutputStruct, OlderCallerGetsItsBytesOnly) {
  World w;
  alignas(8) std::byte buffer[sizeof(ramp_context_info) + 64];
  std::memset(buffer, 0xee, sizeof buffer);
  const uint64_t older = offsetof(ramp_context_info, isa);
  std::memcpy(buffer, &older, sizeof older);
  ASSERT_EQ(ramp_context_get_info(w.context.get(), reinterpret_cast<ramp_context_info*>(buffer)), RAMP_OK);
  ramp_context_info info;
  std::memcpy(&info, buffer, sizeof info);
  EXPECT_EQ(info.struct_size, older);
  EXPECT_EQ(info.backend, RAMP_BACKEND_REFERENCE);
  for (size_t i = older; i < sizeof buffer; ++i) ASSERT_EQ(buffer[i], std::byte{0xee}) << i;
}

TEST(OutputStruct, NewerCallerGetsZerosInFieldsUnknownHere) {
  World w;
  alignas(8) std::byte buffer[sizeof(ramp_weights_info) + 128];
  std::memset(buffer, 0xee, sizeof buffer);
  const uint64_t newer = sizeof(ramp_weights_info) + 64;
  std::memcpy(buffer, &newer, sizeof newer);
  ASSERT_EQ(ramp_weights_get_info(w.weights.get(), reinterpret_cast<ramp_weights_info*>(buffer)), RAMP_OK);
  ramp_weights_info info;
  std::memcpy(&info, buffer, sizeof info);
  EXPECT_EQ(info.num_experts, 3);
  for (size_t i = sizeof(ramp_weights_info); i < newer; ++i) ASSERT_EQ(buffer[i], std::byte{0}) << i;
  for (size_t i = newer; i < sizeof buffer; ++i) ASSERT_EQ(buffer[i], std::byte{0xee}) << i;
}

TEST(OutputStruct, CountersOfAContextWithoutATrace) {
  World w;
  ramp_context_counters counters;
  std::memset(&counters, 0xee, sizeof counters);
  counters.struct_size = sizeof counters;
  ASSERT_EQ(ramp_context_get_counters(w.context.get(), &counters), RAMP_OK);
  const ramp_context_counters none = ramp_context_counters_init();
  EXPECT_EQ(std::memcmp(&counters, &none, sizeof none), 0);
  expect_error(ramp_context_time_trace(w.context.get(), 2), RAMP_ERROR_INVALID_ARGUMENT, {"on", "0 or 1"});
  expect_error(ramp_context_time_trace(w.context.get(), 1), RAMP_ERROR_UNSUPPORTED, {"trace", "cuda"});
  expect_error(ramp_context_trace(w.context.get(), 1), RAMP_ERROR_UNSUPPORTED, {"trace", "cuda"});
}

TEST(OutputStruct, UninitialisedSizeIsAnError) {
  World w;
  ramp_context_counters counters{};
  expect_error(ramp_context_get_counters(w.context.get(), &counters), RAMP_ERROR_INVALID_ARGUMENT,
               {"ramp_context_counters_init()"});
  expect_error(ramp_context_get_counters(nullptr, &counters), RAMP_ERROR_INVALID_ARGUMENT, {"context"});
  ramp_context_info info{};
  expect_error(ramp_context_get_info(w.context.get(), &info), RAMP_ERROR_INVALID_ARGUMENT,
               {"ramp_context_info.struct_size", "ramp_context_info_init()"});
  expect_error(ramp_context_get_info(w.context.get(), nullptr), RAMP_ERROR_INVALID_ARGUMENT,
               {"ramp_context_info"});
  ramp_weights_info weights_info{};
  expect_error(ramp_weights_get_info(w.weights.get(), &weights_info), RAMP_ERROR_INVALID_ARGUMENT,
               {"ramp_weights_info_init()"});
}

// ---------------------------------------------------------------- status and last error

TEST(Status, NamesAndVersion) {
  EXPECT_STREQ(ramp_version(), RAMP_VERSION_STRING);
  std::vector<std::string> names;
  for (int s = RAMP_OK; s <= RAMP_ERROR_INTERNAL; ++s) {
    names.emplace_back(ramp_status_name(static_cast<ramp_status>(s)));
    EXPECT_FALSE(names.back().empty());
    for (size_t i = 0; i + 1 < names.size(); ++i) EXPECT_NE(names[i], names.back());
  }
  EXPECT_STREQ(ramp_status_name(RAMP_ERROR_INVALID_ARGUMENT), "invalid argument");
  // Any int may come in from C; reading the parameter as an enum would be undefined in C++ outside its range
  // of bits, so the largest value in range stands for all.
  EXPECT_NE(ramp_status_name(static_cast<ramp_status>(15)), nullptr);
}

TEST(LastError, BelongsToTheThreadAndOutlivesSuccess) {
  expect_error(ramp_context_create(nullptr, nullptr), RAMP_ERROR_INVALID_ARGUMENT, {"out"});
  const std::string mine = ramp_last_error();
  std::string fresh = "?";
  std::string theirs;
  std::thread([&] {
    fresh = ramp_last_error();
    ramp_weights_info info = ramp_weights_info_init();
    EXPECT_EQ(ramp_weights_get_info(nullptr, &info), RAMP_ERROR_INVALID_ARGUMENT);
    theirs = ramp_last_error();
  }).join();
  EXPECT_EQ(fresh, "");
  EXPECT_NE(theirs, mine);
  EXPECT_EQ(ramp_last_error(), mine);
  const Context context = make_context(RAMP_BACKEND_REFERENCE, 1);
  EXPECT_EQ(ramp_last_error(), mine);  // success leaves it
}

TEST(LastError, LongMessagesAreShortened) {
  const std::string path(20000, 'p');
  ramp_checkpoint* checkpoint = nullptr;
  EXPECT_NE(ramp_checkpoint_open(path.c_str(), &checkpoint), RAMP_OK);
  EXPECT_GT(std::strlen(ramp_last_error()), 0U);
  EXPECT_LT(std::strlen(ramp_last_error()), 8192U);
}

}  // namespace
}  // namespace abi_test
