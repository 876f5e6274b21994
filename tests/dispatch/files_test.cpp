// Fit and profile files: bits survive a round trip, writing is all or nothing, broken and hostile files get
// an error that names file and key, and files of another machine get a warning and are not used.
#include <fmt/format.h>

#include <bit>
#include <filesystem>
#include <fstream>

#include "base/file.hpp"
#include "cost/evaluate.hpp"
#include "dispatch/fit_file.hpp"
#include "dispatch/profile_file.hpp"
#include "support.hpp"

namespace ramp::core {
namespace {

const std::string kMeasured = RAMP_SOURCE_DIR "/tests/data/alpha_moe_h200";

Metadata h200_metadata() {
  Metadata m;
  m.library_version = "0.1.0";
  m.kernel = "alpha_moe";
  m.device = "NVIDIA H200";
  m.sm_count = 132;
  m.sm_clock_mhz = 1980;
  m.memory_clock_mhz = 3201;
  m.driver = "580.65.06";
  m.cuda = "13.0";
  m.date_utc = "2026-11-20T12:00:00Z";
  m.source = "tests/data/alpha_moe_h200";
  return m;
}

bool same_bits(const std::vector<double>& a, const std::vector<double>& b) {
  return a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin(), [](double x, double y) {
           return std::bit_cast<uint64_t>(x) == std::bit_cast<uint64_t>(y) ||
                  (std::isnan(x) && std::isnan(y));
         });
}

void expect_same(const Dataset& a, const Dataset& b) {
  EXPECT_EQ(a.configs.names, b.configs.names);
  EXPECT_EQ(a.configs.configs, b.configs.configs);
  EXPECT_EQ(a.configs.known_columns, b.configs.known_columns);
  EXPECT_EQ(a.configs.extra_columns, b.configs.extra_columns);
  EXPECT_TRUE(same_bits(a.configs.extra, b.configs.extra));
  EXPECT_TRUE(same_bits(a.us, b.us));
  EXPECT_TRUE(same_bits(a.us_repeat, b.us_repeat));
  EXPECT_EQ(a.has_repeat, b.has_repeat);
  ASSERT_EQ(a.models.size(), b.models.size());
  for (size_t m = 0; m < a.models.size(); ++m) {
    EXPECT_EQ(a.models[m].name, b.models[m].name);
    EXPECT_EQ(a.models[m].experts, b.models[m].experts);
    EXPECT_EQ(a.models[m].top_k, b.models[m].top_k);
    EXPECT_EQ(a.models[m].hidden, b.models[m].hidden);
    EXPECT_EQ(a.models[m].intermediate, b.models[m].intermediate);
  }
  ASSERT_EQ(a.points.size(), b.points.size());
  for (size_t p = 0; p < a.points.size(); ++p) {
    EXPECT_EQ(a.points[p].name, b.points[p].name);
    EXPECT_EQ(a.points[p].model, b.points[p].model);
    EXPECT_EQ(a.points[p].tokens, b.points[p].tokens);
    EXPECT_EQ(a.points[p].train, b.points[p].train);
    EXPECT_EQ(a.points[p].histogram, b.points[p].histogram);
    EXPECT_TRUE(a.points[p].zipf == b.points[p].zipf ||
                (std::isnan(a.points[p].zipf) && std::isnan(b.points[p].zipf)));
  }
}

TEST(ProfileFile, MeasuredDataSurvivesJsonAndCsv) {
  const Dataset d = read_dataset(kMeasured);
  TempDir dir;
  write_profile(dir.file("profile.json"), h200_metadata(), d);
  const LoadedProfile back = read_profile(dir.file("profile.json"), h200_metadata());
  EXPECT_TRUE(back.compatibility.usable);
  EXPECT_TRUE(back.compatibility.warnings.empty());
  expect_same(d, back.profile.data);
  EXPECT_EQ(profile_text(back.profile.metadata, back.profile.data), profile_text(h200_metadata(), d));
  EXPECT_EQ(back.profile.metadata.driver, "580.65.06");

  write_dataset(dir.path(), back.profile.data);
  expect_same(d, read_dataset(dir.path()));
}

TEST(ProfileFile, AwkwardValuesSurvive) {
  Dataset d = synthetic_dataset();
  d.configs.names[0] = "with, comma and \"quotes\"";
  d.configs.extra[0] = 1.0 / 3.0;
  d.configs.extra[1] = -5e-324;
  d.us[0] = std::nextafter(1.0, 2.0);
  d.us[1] = 1e-300;
  d.us[2] = std::nan("");
  d.us_repeat[0] = 0.1 + 0.2;
  d.has_repeat = true;
  d.points[3].zipf = std::nan("");
  d.points[4].train = false;
  expect_same(d, parse_profile(profile_text({}, d), "t", {}).profile.data);
  TempDir dir;
  write_dataset(dir.path(), d);
  expect_same(d, read_dataset(dir.path(), {.allow_missing = true}));
  d.configs.names[0] = "two\nlines";
  const std::string message = error_of([&] { write_dataset(dir.path(), d); }, RAMP_ERROR_INVALID_ARGUMENT);
  expect_has(message, {"line break"});
}

TEST(ProfileFile, NamesAreUtf8) {
  Dataset d = synthetic_dataset();
  d.configs.names[0] = "größer, \xe5\xa4\xa7";
  expect_same(d, parse_profile(profile_text({}, d), "t", {}).profile.data);
  d.configs.names[0] = "\xff\xfe";
  expect_has(error_of([&] { (void)profile_text({}, d); }, RAMP_ERROR_INVALID_ARGUMENT), {"UTF-8"});
  expect_has(
      error_of([&] { (void)fit_text(fit_dataset(d, "wave", h200(), {})); }, RAMP_ERROR_INVALID_ARGUMENT),
      {"UTF-8"});
}

TEST(FitFile, RoundTripIsBitwise) {
  const Dataset d = read_dataset(kMeasured);
  for (const std::string_view model : cost_model_names()) {
    std::vector<ModelFitReport> reports;
    const Fit fit = fit_dataset(d, model, h200(), h200_metadata(), &reports);
    EXPECT_EQ(reports.size(), d.models.size());
    TempDir dir;
    write_fit(dir.file("fit.json"), fit);
    const LoadedFit back = read_fit(dir.file("fit.json"), h200_metadata());
    ASSERT_TRUE(back.compatibility.usable);
    EXPECT_EQ(fit_text(back.fit), fit_text(fit)) << model;
    ASSERT_EQ(back.fit.models.size(), d.models.size());
    for (size_t m = 0; m < d.models.size(); ++m) {
      const Predictor& a = *fit.models[m].predictor;
      const Predictor& b = *back.fit.models[m].predictor;
      EXPECT_EQ(&back.fit.find(d.models[m].name), &back.fit.models[m]);
      std::vector<float> ua(d.configs.size()), ub(d.configs.size());
      std::vector<std::byte> scratch(a.scratch_bytes() + 64);
      void* at = scratch.data();
      size_t space = scratch.size();
      std::align(64, a.scratch_bytes(), at, space);
      const std::span<std::byte> work(static_cast<std::byte*>(at), a.scratch_bytes());
      for (const size_t p : select_points(d, static_cast<int32_t>(m), false)) {
        a.predict(d.points[p].histogram, ua, work);
        b.predict(d.points[p].histogram, ub, work);
        ASSERT_EQ(std::memcmp(ua.data(), ub.data(), ua.size() * sizeof(float)), 0) << model;
      }
    }
  }
}

TEST(FitFile, UnknownModelNamesTheKnownOnes) {
  const Fit fit = fit_dataset(synthetic_dataset(), "wave", h200(), {});
  expect_has(error_of([&] { (void)fit.find("gpt"); }, RAMP_ERROR_INVALID_ARGUMENT), {"'gpt'", "toy"});
}

TEST(Files, WritingIsAllOrNothing) {
  TempDir dir;
  const std::string path = dir.file("fit.json");
  write_text(path, "old");
  const Fit fit = fit_dataset(synthetic_dataset(), "wave", h200(), {});
  EXPECT_THROW(write_fit(dir.file("missing/fit.json"), fit), Error);
  std::filesystem::create_directory(dir.file("is_a_directory"));
  EXPECT_THROW(write_fit(dir.file("is_a_directory"), fit), Error);
  EXPECT_EQ(read_text(path), "old");
  EXPECT_EQ(dir.entries(), 2U);  // no temporary file left
  write_fit(path, fit);
  EXPECT_EQ(read_text(path), fit_text(fit));
  EXPECT_EQ(dir.entries(), 2U);
  EXPECT_THROW(write_profile("/dev/full", {}, synthetic_dataset()), Error);
}

// Every place where a document can be broken, by replacing the value at a JSON pointer.
struct Breakage {
  const char* pointer;
  const char* json;  // new value; "" = remove
  const char* key;   // must be in the message
};

void expect_broken(const nlohmann::json& good, const Breakage& b,
                   const std::function<void(const std::string&)>& parse) {
  nlohmann::json bad = good;
  const nlohmann::json::json_pointer at(b.pointer);
  if (*b.json == '\0') {
    bad.at(at.parent_pointer()).erase(at.back());
  } else {
    bad[at] = nlohmann::json::parse(b.json);
  }
  const std::string message = error_of([&] { parse(bad.dump()); }, RAMP_ERROR_BAD_FILE);
  expect_has(message, {"some/file.json", b.key, "got", "expected"});
  EXPECT_LT(message.size(), 700U) << message;
}

TEST(ProfileFile, BrokenValuesAreNamed) {
  Dataset d = synthetic_dataset(2);
  const nlohmann::json good = nlohmann::json::parse(profile_text({}, d));
  const auto parse = [](const std::string& text) { (void)parse_profile(text, "some/file.json", {}); };
  parse(good.dump());
  const std::vector<Breakage> all = {
      {"/schema", "", "schema"},
      {"/schema", "\"ramp.fit\"", "schema"},
      {"/schema", "3", "schema"},
      {"/version", "", "version"},
      {"/version", "-1", "version"},
      {"/version", "1.5", "version"},
      {"/metadata", "", "metadata"},
      {"/metadata", "[]", "metadata"},
      {"/metadata/device", "5", "metadata.device"},
      {"/metadata/sm_count", "1e99", "metadata.sm_count"},
      {"/metadata/sm_clock_mhz", "-3", "metadata.sm_clock_mhz"},
      {"/configs", "null", "configs"},
      {"/configs/columns", "[]", "configs.columns"},
      {"/configs/columns/0", "\"tile_x\"", "tile_m"},
      {"/configs/columns/1", "\"tile_m\"", "configs.columns[1]"},
      {"/configs/rows", "{}", "configs.rows"},
      {"/configs/rows/1/name", "\"c0\"", "configs.rows[1].name"},
      {"/configs/rows/0/values", "[1]", "configs.rows[0].values"},
      {"/configs/rows/0/values/0", "0", "configs.rows[0].values[0]"},
      {"/configs/rows/0/values/0", "8.5", "configs.rows[0].values[0]"},
      {"/configs/rows/0/values/0", "99999999999999999999", "configs.rows[0].values[0]"},
      {"/configs/rows/0/values/3", "\"x\"", "configs.rows[0].values[3]"},
      {"/models", "[]", "models"},
      {"/models/0/experts", "0", "models[0].experts"},
      {"/models/0/experts", "1000000000000", "models[0].experts"},
      {"/models/0/top_k", "9", "models[0].top_k"},
      {"/models/0/name", "\"\"", "models[0].name"},
      {"/points", "7", "points"},
      {"/points/0/model", "1", "points[0].model"},
      {"/points/0/tokens", "-1", "points[0].tokens"},
      {"/points/0/split", "\"maybe\"", "points[0].split"},
      {"/points/0/histogram", "[1,1]", "points[0].histogram"},
      {"/points/0/histogram/0", "-1", "points[0].histogram[0]"},
      {"/points/0/histogram/0", "3000000000", "points[0].histogram[0]"},
      {"/points/0/histogram/0", "100", "tokens*top_k"},
      {"/points/1/name", "\"even1\"", "points[1].name"},
      {"/points/0/timings_us", "[1]", "points[0].timings_us"},
      {"/points/0/timings_us/0", "0", "points[0].timings_us[0]"},
      {"/points/0/timings_us/0", "-2", "points[0].timings_us[0]"},
      {"/points/0/timings_us/0", "\"fast\"", "points[0].timings_us[0]"},
      {"/points/0/timings_us/0", "true", "points[0].timings_us[0]"},
      {"/points/0/zipf", "[]", "points[0].zipf"},
  };
  for (const Breakage& b : all) {
    SCOPED_TRACE(fmt::format("{} = {}", b.pointer, b.json));
    expect_broken(good, b, parse);
  }
}

TEST(FitFile, BrokenValuesAreNamed) {
  const Fit fit = fit_dataset(synthetic_dataset(), "wave", h200(), {});
  const nlohmann::json good = nlohmann::json::parse(fit_text(fit));
  const auto parse = [](const std::string& text) { (void)parse_fit(text, "some/file.json", {}); };
  parse(good.dump());
  const std::vector<Breakage> all = {
      {"/schema", "\"ramp.profile\"", "schema"},
      {"/models", "", "models"},
      {"/models", "[]", "models"},
      {"/models/0", "[]", "models[0]"},
      {"/models/0/name", "\"other\"", "models[0].name"},
      {"/models/0/cost_model", "7", "models[0].cost_model"},
      {"/models/0/cost_model", "\"magic\"", "models[0].predictor"},
      {"/models/0/predictor", "", "models[0].predictor"},
      {"/models/0/predictor", "{}", "models[0].predictor"},
      {"/models/0/predictor", "[[]]", "models[0].predictor"},
      {"/models/0/predictor/parameters", "[]", "models[0].predictor"},
      {"/models/0/predictor/configs/tile_m/0", "0", "models[0].predictor"},
      {"/models/0/predictor/configs/tile_m/0", "\"x\"", "models[0].predictor"},
      {"/models/0/predictor/model/experts", "-1", "models[0].predictor"},
      {"/models/0/guard", "", "models[0].guard"},
      {"/models/0/guard/defaults", "{}", "models[0].guard.defaults"},
      {"/models/0/guard/defaults/0/config", "8", "models[0].guard.defaults[0].config"},
      {"/models/0/guard/defaults/1/tokens", "0", "models[0].guard.defaults[1].tokens"},
      {"/models/0/guard/noise_margin_fraction", "-1", "models[0].guard.noise_margin_fraction"},
      {"/models/0/guard/best_measured_speedup_over_default", "[]", "best_measured_speedup_over_default"},
      {"/models/0/guard/best_measured_speedup_over_default/0/0", "null",
       "best_measured_speedup_over_default"},
  };
  for (const Breakage& b : all) {
    SCOPED_TRACE(fmt::format("{} = {}", b.pointer, b.json));
    expect_broken(good, b, parse);
  }
}

TEST(Files, HostileTextIsRefused) {
  const auto both = [](const std::string& text) {
    for (int i = 0; i < 2; ++i) {
      const std::string message = error_of(
          [&] {
            if (i == 0) (void)parse_fit(text, "some/file.json", {});
            if (i == 1) (void)parse_profile(text, "some/file.json", {});
          },
          RAMP_ERROR_BAD_FILE);
      expect_has(message, {"some/file.json"});
    }
  };
  both("");
  both("null");
  both("[1,2]");
  both("\"text\"");
  both("{");
  both("{\"schema\":");
  both(std::string("\x00\xff\xfe{}", 5));
  both("{\"a\":1e999999}");
  both("{\"schema\":\"\xff\xfe\"}");
  both(std::string(1 << 20, '['));
  std::string deep;
  for (int i = 0; i < 100000; ++i) deep += "{\"a\":";
  both(deep);
  const std::string good = fit_text(fit_dataset(synthetic_dataset(), "wave", h200(), {}));
  for (size_t cut = 1; cut + 3 < good.size(); cut += good.size() / 37) both(good.substr(0, cut));
}

TEST(Files, LimitsAndMissingFiles) {
  TempDir dir;
  const std::string path = dir.file("huge.json");
  { std::ofstream(path) << "{"; }
  std::filesystem::resize_file(path, uintmax_t{1} << 40);  // sparse: a terabyte that nobody should read
  expect_has(error_of([&] { (void)read_fit(path, {}); }, RAMP_ERROR_BAD_FILE), {"huge.json", "bytes"});
  expect_has(error_of([&] { (void)read_profile(path, {}); }, RAMP_ERROR_BAD_FILE), {"huge.json", "bytes"});
  expect_has(error_of([&] { (void)read_fit(dir.file("none.json"), {}); }, RAMP_ERROR_IO), {"none.json"});
  EXPECT_THROW((void)read_profile(dir.path(), {}), Error);
}

TEST(Files, MismatchesAreWarningsThatNameFileAndCommand) {
  const Dataset d = synthetic_dataset();
  const std::string fit = fit_text(fit_dataset(d, "wave", h200(), h200_metadata()));
  const std::string profile = profile_text(h200_metadata(), d);
  struct Case {
    std::function<void(Metadata&)> change;
    bool usable;
    const char* what;
  };
  const std::vector<Case> cases = {
      {[](Metadata& m) { m.device = "NVIDIA H100"; }, false, "NVIDIA H100"},
      {[](Metadata& m) { m.sm_count = 114; }, false, "114"},
      {[](Metadata& m) { m.kernel = "other"; }, false, "other"},
      {[](Metadata& m) { m.library_version = "0.2.0"; }, false, "0.2.0"},
      {[](Metadata& m) { m.library_version = "1.0.0"; }, false, "1.0.0"},
      {[](Metadata& m) { m.driver = "590.1"; }, true, "590.1"},
      {[](Metadata& m) { m.cuda = "13.1"; }, true, "13.1"},
      {[](Metadata& m) { m.sm_clock_mhz = 1500; }, true, "1500"},
      {[](Metadata& m) { m.memory_clock_mhz = 2619; }, true, "2619"},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.what);
    Metadata here = h200_metadata();
    c.change(here);
    for (const Compatibility& got : {parse_fit(fit, "dir/f.json", here).compatibility,
                                     parse_profile(profile, "dir/f.json", here).compatibility}) {
      EXPECT_EQ(got.usable, c.usable);
      ASSERT_EQ(got.warnings.size(), 1U);
      expect_has(got.warnings[0],
                 {"dir/f.json", c.what, "to mend:", "profile", c.usable ? "used" : "not used"});
    }
  }
  // What is not known is not compared; a patch version, the date, the source and clock jitter do not matter.
  Metadata here = h200_metadata();
  here.library_version = "0.1.9";
  here.date_utc = "2027-01-01T00:00:00Z";
  here.source = "elsewhere";
  here.sm_clock_mhz = 1985;
  EXPECT_TRUE(parse_fit(fit, "f", here).compatibility.warnings.empty());
  EXPECT_TRUE(parse_fit(fit, "f", {}).compatibility.warnings.empty());
}

TEST(Files, OtherSchemaVersionIsAWarningAndEmpty) {
  nlohmann::json j = nlohmann::json::parse(fit_text(fit_dataset(synthetic_dataset(), "wave", h200(), {})));
  j["version"] = 2;
  j["models"] = "laid out in a way that version 1 does not know";
  const LoadedFit loaded = parse_fit(j.dump(), "f.json", {});
  EXPECT_FALSE(loaded.compatibility.usable);
  EXPECT_TRUE(loaded.fit.models.empty());
  ASSERT_EQ(loaded.compatibility.warnings.size(), 1U);
  expect_has(loaded.compatibility.warnings[0], {"f.json", "version 2", "ramp fit"});
}

TEST(Files, UnknownKeysAreIgnored) {
  nlohmann::json j = nlohmann::json::parse(profile_text({}, synthetic_dataset()));
  j["comment"] = {{"by", "hand"}};
  j["metadata"]["room"] = "B12";
  expect_same(synthetic_dataset(), parse_profile(j.dump(), "f.json", {}).profile.data);
}

}  // namespace
}  // namespace ramp::core
