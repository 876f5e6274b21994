// Traces: the file is read strictly (nobody vouches for it), and a summary counts what is in it, beside a fit
// too.
#include "cli/trace_file.hpp"
#include "dispatch/dispatcher.hpp"
#include "dispatch/fit_file.hpp"
#include "support.hpp"

namespace ramp::core {
namespace {

constexpr const char* kHead =
    "{\"schema\": \"ramp.trace\", \"version\": 1, \"device\": \"NVIDIA H200\", \"sm_count\": 132}\n";

nlohmann::json record(int64_t number, int64_t tokens, std::vector<int32_t> histogram) {
  return {{"number", number},
          {"call", number % 2},
          {"experts", 8},
          {"top_k", 2},
          {"hidden", 256},
          {"intermediate", 128},
          {"format", "fp8_block"},
          {"tokens", tokens},
          {"batched", false},
          {"configs", {"c0", "c1"}},
          {"chosen", 0},
          {"predicted_us", 10.0},
          {"histogram", std::move(histogram)}};
}
std::string text_of(const std::vector<nlohmann::json>& records) {
  std::string text = kHead;
  for (const nlohmann::json& r : records) text += r.dump() + "\n";
  return text;
}

TEST(Trace, ReadsWhatTheFormatSays) {
  nlohmann::json second = record(3, 4, {4, 1, 1, 1, 1, 0, 0, 0});
  second["measured_us"] = 12.5;
  second["chosen"] = 1;
  second["batched"] = true;
  const cli::Trace t =
      cli::parse_trace(text_of({record(0, 4, {1, 1, 1, 1, 1, 1, 1, 1}), second}) + "\n  \n", "t.jsonl");
  EXPECT_EQ(t.device, "NVIDIA H200");
  EXPECT_EQ(t.sm_count, 132);
  ASSERT_EQ(t.records.size(), 2U);
  EXPECT_EQ(t.records[0].configs[t.records[0].chosen], "c0");
  EXPECT_EQ(t.records[0].measured_us, 0);
  EXPECT_EQ(t.records[1].configs[t.records[1].chosen], "c1");
  EXPECT_EQ(t.records[1].measured_us, 12.5);
  EXPECT_TRUE(t.records[1].batched);
  EXPECT_EQ(t.records[1].histogram[0], 4);
  EXPECT_TRUE(cli::parse_trace(kHead, "t.jsonl").records.empty());
}

TEST(Trace, RefusesWhatItDoesNotSay) {
  const auto bad = [](const std::string& text, std::initializer_list<const char*> parts) {
    expect_has(error_of([&] { static_cast<void>(cli::parse_trace(text, "t.jsonl")); }, RAMP_ERROR_BAD_FILE),
               parts);
  };
  bad("", {"t.jsonl", "no lines"});
  bad("{\"schema\": \"ramp.fit\", \"version\": 1}\n", {"t.jsonl:1", "schema", "'ramp.trace'"});
  bad("{\"schema\": \"ramp.trace\", \"version\": 2}\n", {"t.jsonl:1", "version"});
  bad(std::string(kHead) + "[1]\n", {"t.jsonl:2"});
  bad(std::string(kHead) + "{\"number\": 0", {"t.jsonl:2"});
  const auto with = [](const char* key, const nlohmann::json& value) {
    nlohmann::json r = record(0, 4, {1, 1, 1, 1, 1, 1, 1, 1});
    r[key] = value;
    return text_of({r});
  };
  bad(with("histogram", {1, 2}), {"t.jsonl:2", "histogram"});
  bad(with("histogram", {9, 0, 0, 0, 0, 0, 0, 0}), {"9 rows", "at most tokens * top_k = 8"});
  bad(with("histogram", {-1, 0, 0, 0, 0, 0, 0, 0}), {"histogram"});
  bad(with("chosen", 2), {"chosen"});
  bad(with("configs", nlohmann::json::array()), {"configs"});
  bad(with("batched", 1), {"batched", "true or false"});
  bad(with("top_k", 0), {"top_k"});
  bad(with("top_k", (1 << 20) + 1), {"top_k"});  // more than the local experts is a shard's right
  bad(with("predicted_us", -1), {"predicted_us"});
  bad(with("default", 1), {"default"});
  bad(with("default_us", -1), {"default_us"});
  nlohmann::json missing = record(0, 4, {1, 1, 1, 1, 1, 1, 1, 1});
  missing.erase("format");
  bad(text_of({missing}), {"t.jsonl:2", "format"});
  error_of([] { static_cast<void>(cli::read_trace("/nonexistent/t.jsonl")); }, RAMP_ERROR_IO);
}

TEST(Trace, Summarizes) {
  nlohmann::json timed = record(1, 4, {8, 0, 0, 0, 0, 0, 0, 0});
  timed["measured_us"] = 20.0;
  timed["chosen"] = 1;
  nlohmann::json other = record(5, 1, {1, 1, 0, 0, 0, 0, 0, 0});
  other["predicted_us"] = 0;
  const cli::Trace t = cli::parse_trace(text_of({record(0, 4, {1, 1, 1, 1, 1, 1, 1, 1}), timed, other}), "t");
  const cli::TraceSummary s = cli::summarize(t, nullptr);
  EXPECT_EQ(s.records, 3);
  EXPECT_EQ(s.calls, 2);
  EXPECT_EQ(s.lost, 3) << "numbers 2, 3, 4";
  ASSERT_EQ(s.groups.size(), 2U);
  EXPECT_EQ(s.groups[0].tokens, 4);
  EXPECT_EQ(s.groups[0].records, 2);
  EXPECT_DOUBLE_EQ(s.groups[0].active, 4.5);
  EXPECT_DOUBLE_EQ(s.groups[0].max_over_mean, 4.5);  // 1 and 8
  EXPECT_DOUBLE_EQ(s.groups[0].entropy, 0.5);
  EXPECT_DOUBLE_EQ(s.groups[0].predicted_us, 10);
  EXPECT_DOUBLE_EQ(s.groups[0].measured_us, 20);
  EXPECT_DOUBLE_EQ(s.groups[0].misprediction, 0.5);
  EXPECT_EQ(s.groups[0].chosen.size(), 2U);
  EXPECT_EQ(s.groups[1].predicted_us, 0);
  EXPECT_EQ(s.groups[0].judged, 0);
  expect_has(cli::trace_text(s),
             {"NVIDIA H200, 132 SMs: 3 records of 2 calls; 3 more were lost", "c0 50%", "8,2,256,128"});
  const cli::Json j = cli::trace_json(s);
  EXPECT_EQ(j["groups"].size(), 2U);
  EXPECT_TRUE(j["groups"][0]["fit"].is_null());
  EXPECT_TRUE(j["groups"][0]["default"].is_null());
  EXPECT_TRUE(j["groups"][0]["measured"].is_null()) << "one time alone";
  EXPECT_TRUE(j["groups"][1]["predicted_us"].is_null());
}

// Regret of the default by predictions, and of choices by times measured with the same histogram; imbalance
// over the experts that have rows.
TEST(Trace, RegretAndImbalance) {
  const std::vector<int32_t> even = {1, 1, 1, 1, 1, 1, 1, 1};
  const std::vector<int32_t> skewed = {6, 2, 0, 0, 0, 0, 0, 0};
  const auto timed = [](int64_t number, const std::vector<int32_t>& h, int chosen, double us) {
    nlohmann::json r = record(number, 4, h);
    r["chosen"] = chosen;
    r["measured_us"] = us;
    return r;
  };
  nlohmann::json first = timed(0, even, 0, 10);
  first["default"] = "c1";
  first["default_us"] = 12.0;  // predicted for the choice: 10
  nlohmann::json second = timed(1, even, 1, 15);
  second["default"] = "c1";
  second["default_us"] = 9.5;
  nlohmann::json empty = record(5, 4, {0, 0, 0, 0, 0, 0, 0, 0});
  empty["default"] = "c1";
  empty["default_us"] = 90.0;
  const cli::Trace t = cli::parse_trace(text_of({first, second, timed(2, even, 1, 17),
                                                 timed(3, skewed, 0, 30), timed(4, skewed, 0, 40), empty}),
                                        "t");
  EXPECT_EQ(t.records[0].fallback, "c1");
  EXPECT_EQ(t.records[0].fallback_us, 12);
  const cli::TraceSummary s = cli::summarize(t, nullptr);
  ASSERT_EQ(s.groups.size(), 1U);
  const cli::TraceGroup& g = s.groups[0];
  EXPECT_EQ(g.with_rows, 5);
  EXPECT_DOUBLE_EQ(g.imbalance, (3 * 1 + 2 * 1.5) / 5);  // 6 over a mean of 4
  EXPECT_DOUBLE_EQ(g.max_imbalance, 1.5);
  EXPECT_EQ(g.compared, 2) << "an empty step compares nothing";
  EXPECT_EQ(g.changed, 1);
  EXPECT_DOUBLE_EQ(g.default_regret, (0.2 - 0.05) / 2);
  EXPECT_DOUBLE_EQ(g.max_default_regret, 12.0 / 10 - 1);
  EXPECT_EQ(g.rivalled, 3) << "the skewed histogram was measured with one config alone";
  EXPECT_DOUBLE_EQ(g.measured_regret, (0 + 0.6 + 0.6) / 3);
  EXPECT_DOUBLE_EQ(g.max_measured_regret, 16.0 / 10 - 1);
  expect_has(cli::trace_text(s), {"imbalance", "default +%", "20.0", "regret %", "60.0"});
  const cli::Json j = cli::trace_json(s)["groups"][0];
  EXPECT_EQ(j["default"]["changed"], 1);
  EXPECT_DOUBLE_EQ(j["measured"]["max_regret"], 0.6);
  EXPECT_DOUBLE_EQ(j["max_imbalance"], 1.5);
}

TEST(Trace, BesideAFit) {
  const Dataset d = synthetic_dataset(4);
  const Fit fit = fit_dataset(d, "wave", h200(), {});
  const Dispatcher dispatcher(fit.models.front());
  std::vector<nlohmann::json> records;
  for (const WorkPoint& p : d.points) {
    nlohmann::json r = record(static_cast<int64_t>(records.size()), p.tokens, p.histogram);
    r["configs"] = {d.configs.names[0], d.configs.names[dispatcher.choose(p.histogram)]};
    r["chosen"] = records.size() % 2;
    records.push_back(std::move(r));
  }
  nlohmann::json unknown = records.front();
  unknown["configs"] = {"somebody else's"};
  unknown["chosen"] = 0;
  unknown["number"] = records.size();
  records.push_back(std::move(unknown));
  const cli::TraceSummary s = cli::summarize(cli::parse_trace(text_of(records), "t"), &fit);
  int64_t judged = 0;
  for (const cli::TraceGroup& g : s.groups) {
    judged += g.judged;
    EXPECT_GE(g.loss, 0);
    EXPECT_GE(g.max_loss, g.loss);
    EXPECT_GE(g.agreed, g.judged / 2) << "every other record is the fit's own choice";
  }
  EXPECT_EQ(judged, static_cast<int64_t>(records.size()) - 1);
  expect_has(cli::trace_text(s), {"as the fit %", "loss %"});
  EXPECT_FALSE(cli::trace_json(s)["groups"][0]["fit"].is_null());
}

}  // namespace
}  // namespace ramp::core
