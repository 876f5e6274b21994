// The CSV reader and the dataset: what is accepted, and that every kind of broken input is refused with file,
// line and column rather than fitted.
#include "cost/dataset.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <filesystem>

#include "base/error.hpp"
#include "base/file.hpp"
#include "cost/csv.hpp"

namespace ramp::core {
namespace {

constexpr const char* kConfigs = "config,tile_m,tile_n,stages,magic\na,8,256,1,0.5\nb,16,256,2,1.5\n";
constexpr const char* kPoints =
    "point,model,experts,top_k,hidden,intermediate,tokens,zipf,split,histogram\n"
    "p0,m,4,2,128,128,3,0.0,train,2 2 1 1\n"
    "p1,m,4,2,128,128,3,1.2,test,3 3 0 0\n";
constexpr const char* kTimings =
    "point,config,grid,us,us_repeat\np0,a,4,10.5,10.6\np0,b,4,9,\np1,a,2,8,8.5\np1,b,2,7.5,7.25\n";

TEST(Csv, QuotesBlankLinesAndCarriageReturns) {
  CsvReader csv("a,\"b,\"\"x\"\"\",c\r\n\r\n1,\"two\r\nlines\",3\r\n\n4,,6", "t");
  EXPECT_EQ(csv.columns(), (std::vector<std::string>{"a", "b,\"x\"", "c"}));
  auto row = csv.next();
  ASSERT_EQ(row.size(), 3U);
  EXPECT_EQ(row[1], "two\r\nlines");
  EXPECT_EQ(csv.line(), 3);
  row = csv.next();
  ASSERT_EQ(row.size(), 3U);
  EXPECT_EQ(row[1], "");
  EXPECT_EQ(csv.number(row, 2), 6.0);
  EXPECT_TRUE(csv.next().empty());
}

TEST(Csv, NumbersAreStrict) {
  for (const char* bad : {"", " 1", "1 ", "1e999", "nan", "inf", "0x10", "1,5", "--1"}) {
    const std::string text = fmt::format("v\n\"{}\"\n", bad);
    CsvReader csv(text, "t");
    const auto row = csv.next();
    ASSERT_FALSE(row.empty()) << bad;
    EXPECT_THROW((void)csv.number(row, 0), Error) << bad;
  }
}

TEST(Dataset, ReadsWhatItIsGiven) {
  const Dataset d = parse_dataset(kPoints, kConfigs, kTimings);
  ASSERT_EQ(d.configs.size(), 2U);
  EXPECT_EQ(d.configs.configs[1].tile_m, 16);
  EXPECT_EQ(d.configs.configs[1].stages, 2);
  EXPECT_EQ(d.configs.extra_columns, std::vector<std::string>{"magic"});
  EXPECT_EQ(d.configs.extra[1], 1.5);
  EXPECT_TRUE(d.configs.has("stages"));
  EXPECT_FALSE(d.configs.has("threads"));
  ASSERT_EQ(d.points.size(), 2U);
  EXPECT_TRUE(d.points[0].train);
  EXPECT_EQ(d.points[1].zipf, 1.2);
  EXPECT_EQ(d.points[1].histogram, (std::vector<int32_t>{3, 3, 0, 0}));
  EXPECT_EQ(d.time(0, 0), 10.5);
  EXPECT_EQ(d.time(1, 1), 7.5);
  EXPECT_TRUE(d.has_repeat);
  EXPECT_TRUE(std::isnan(d.repeat(0, 1)));
  EXPECT_EQ(d.repeat(1, 1), 7.25);
  EXPECT_EQ(select_points(d, 0, true), std::vector<size_t>{0});
}

TEST(Dataset, HistogramsMaySumToLess) {
  std::string points = kPoints;
  points.replace(points.find("3 3 0 0"), 7, "0 0 0 0");
  EXPECT_EQ(parse_dataset(points, kConfigs, kTimings).points[1].histogram, std::vector<int32_t>(4, 0));
}

TEST(Dataset, TextColumnsAreCategories) {
  const Dataset d = parse_dataset(
      kPoints, "config,tile_m,swizzle,tile_n,half\na,8,wide,256,0.5\nb,16,,256,\nc,16,wide,128,1\n",
      "point,config,us\np0,a,1\np0,b,2\np0,c,3\np1,a,1\np1,b,2\np1,c,3\n");
  EXPECT_EQ(d.configs.extra_columns, (std::vector<std::string>{"swizzle", "half"}));
  EXPECT_EQ(d.configs.extra, (std::vector<double>{0, 0, 1, 1, 0, 2}));
}

TEST(Dataset, MessagesArePrintable) {
  const auto refused = [](const std::string& points, const std::string& configs, const std::string& timings) {
    try {
      (void)parse_dataset(points, configs, timings);
      FAIL() << "accepted";
    } catch (const Error& e) {
      for (const char* c = e.what(); *c != '\0'; ++c) EXPECT_TRUE(*c >= 0x20 && *c < 0x7f) << e.what();
    }
  };
  const auto with = [](std::string text, const std::string& from, const std::string& to) {
    return text.replace(text.find(from), from.size(), to);
  };
  for (const std::string x : {"\xfe\x01", "\x1b[2J"}) {
    refused(with(kPoints, "p1,m,4,2", "p1,m,4," + x), kConfigs, kTimings);
    refused(kPoints, with(kConfigs, "tile_m", x), kTimings);
    refused(kPoints, kConfigs, with(kTimings, "p1,a", x + ",a"));
    refused(with(with(kPoints, "zipf", x), "0.0,train", "0.0,vain"), kConfigs, kTimings);
    refused(kPoints, with(kConfigs, "a,8", x + ",8"), "point,config,us\np0,b,1\n");  // missing rows
    refused(with(kPoints, "p0", x), kConfigs, fmt::format("point,config,us\n{0},a,1\n{0},a,1\n", x));
    refused(kPoints, with(kConfigs, "magic", x + "," + x), kTimings);  // twice
  }
}

struct Broken {
  const char* name;
  const char* file;  // which text is edited
  const char* from;
  const char* to;
  const char* expected;  // part of the message
};
class BrokenInput : public testing::TestWithParam<Broken> {};
TEST_P(BrokenInput, IsRefusedWithItsPlace) {
  const Broken& b = GetParam();
  std::string points = kPoints;
  std::string configs = kConfigs;
  std::string timings = kTimings;
  std::string& text =
      b.file == std::string("points") ? points : (b.file == std::string("configs") ? configs : timings);
  const size_t at = text.find(b.from);
  ASSERT_NE(at, std::string::npos);
  text.replace(at, std::string(b.from).size(), b.to);
  try {
    (void)parse_dataset(points, configs, timings);
    FAIL() << "accepted";
  } catch (const Error& e) {
    EXPECT_EQ(e.status(), RAMP_ERROR_BAD_FILE);
    EXPECT_NE(std::string(e.what()).find(b.expected), std::string::npos) << e.what();
  }
}
INSTANTIATE_TEST_SUITE_P(
    Kinds, BrokenInput,
    testing::Values(Broken{"nan", "timings", "10.5", "nan", "timings.csv:2: us: got 'nan'"},
                    Broken{"negative", "timings", "10.5", "-1", "positive time"},
                    Broken{"zero", "timings", "10.5", "0", "positive time"},
                    Broken{"empty", "timings", "10.5", "", "timings.csv:2: us"},
                    Broken{"infinite", "timings", "10.5", "inf", "finite"},
                    Broken{"repeat", "timings", "10.6", "-2", "us_repeat"},
                    Broken{"duplicate", "timings", "p0,b", "p0,a", "one row per point and config"},
                    Broken{"unknown point", "timings", "p1,a", "p9,a", "a point of points.csv"},
                    Broken{"unknown config", "timings", "p1,a", "p1,z", "a config of configs.csv"},
                    Broken{"missing row", "timings", "p1,a,2,8,8.5\n", "",
                           "no timing for point 'p1', config 'a'"},
                    Broken{"fields", "timings", "p1,a,2,8,8.5", "p1,a,2,8", "4 fields"},
                    Broken{"column", "timings", "us,us_repeat", "ms,us_repeat", "a column 'us'"},
                    Broken{"sum", "points", "2 2 1 1", "2 2 2 1", "at most tokens*top_k = 6"},
                    Broken{"short histogram", "points", "2 2 1 1", "2 2 1", "one count per expert (4)"},
                    Broken{"long histogram", "points", "2 2 1 1", "2 2 1 1 0", "one count per expert (4)"},
                    Broken{"negative count", "points", "2 2 1 1", "2 2 -1 1", "non-negative"},
                    Broken{"text count", "points", "2 2 1 1", "2 x 1 1", "non-negative"},
                    Broken{"huge count", "points", "2 2 1 1", "2 99999999999 1 1", "non-negative"},
                    Broken{"split", "points", "train", "valid", "train or test"},
                    Broken{"duplicate point", "points", "p1,m", "p0,m", "no earlier row"},
                    Broken{"changed shape", "points", "p1,m,4,2,128", "p1,m,4,2,256", "earlier rows"},
                    Broken{"top_k", "points", "p0,m,4,2", "p0,m,4,5", "an integer in [1, 4]"},
                    Broken{"experts", "points", "p0,m,4", "p0,m,0", "an integer in [1, 65536]"},
                    Broken{"no model", "points", "p0,m", "p0,", "model"},
                    Broken{"tile", "configs", "a,8,", "a,0,", "tile_m"},
                    Broken{"tile text", "configs", "a,8,", "a,eight,", "tile_m: got 'eight'"},
                    Broken{"duplicate config", "configs", "b,16", "a,16", "no earlier row"},
                    Broken{"residency text", "configs", "magic\na,8,256,1,0.5", "residency\na,8,256,1,few",
                           "residency: got 'few'"},
                    Broken{"column twice", "configs", "magic", "stages", "got 'stages twice'"},
                    Broken{"timing twice", "timings", "us_repeat", "us", "got 'us twice'"},
                    Broken{"no tile_m", "configs", "tile_m", "tm", "a column 'tile_m'"},
                    Broken{"quote", "configs", "a,8", "\"a,8", "closing"},
                    Broken{"no rows", "configs", "a,8,256,1,0.5\nb,16,256,2,1.5\n", "", "no rows"}),
    [](const testing::TestParamInfo<Broken>& info) {
      std::string s = info.param.name;
      for (char& c : s) c = c == ' ' ? '_' : c;
      return s;
    });

TEST(Dataset, MissingPairsAreAllowedWhenAskedFor) {
  std::string timings = kTimings;
  timings.erase(timings.find("p1,a"), std::string("p1,a,2,8,8.5\n").size());
  const Dataset d = parse_dataset(kPoints, kConfigs, timings, {.allow_missing = true});
  EXPECT_TRUE(std::isnan(d.time(1, 0)));
}

TEST(Dataset, MissingFilesAreNamed) {
  try {
    (void)read_dataset("/nonexistent/place");
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.status(), RAMP_ERROR_IO);
    EXPECT_NE(std::string(e.what()).find("points.csv"), std::string::npos) << e.what();
  }
}

// A million timing rows stream in under two seconds (the bar; measured here around a tenth of that in
// Release).
TEST(Dataset, AMillionRowsStream) {
  std::string configs = "config,tile_m,tile_n\n";
  for (int c = 0; c < 1000; ++c) configs += fmt::format("c{},{},256\n", c, c + 1);
  std::string points = "point,model,experts,top_k,hidden,intermediate,tokens,split,histogram\n";
  std::string timings = "point,config,us\n";
  timings.reserve(20 << 20);
  for (int p = 0; p < 1000; ++p) {
    points += fmt::format("p{},m,2,1,128,128,{},train,{} 0\n", p, p, p);
    for (int c = 0; c < 1000; ++c)
      fmt::format_to(std::back_inserter(timings), "p{},c{},{}.25\n", p, c, 1 + (p * 7 + c) % 999);
  }
  const auto start = std::chrono::steady_clock::now();
  const Dataset d = parse_dataset(points, configs, timings);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  EXPECT_EQ(d.us.size(), 1000000U);
  EXPECT_EQ(d.time(3, 5), 1 + (3 * 7 + 5) % 999 + 0.25);
#if defined(NDEBUG) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  EXPECT_LT(seconds, 2.0);
#endif
  RecordProperty("seconds", fmt::format("{:.3f}", seconds));
}

// The measured data in the repository reads whole, and its grid column is what our geometry counts.
TEST(Dataset, MeasuredDataAgreesWithOurGeometry) {
  const std::string dir = RAMP_SOURCE_DIR "/tests/data/alpha_moe_h200";
  const Dataset d = read_dataset(dir);
  EXPECT_EQ(d.configs.size(), 152U);
  EXPECT_EQ(d.points.size(), 169U);
  EXPECT_EQ(d.models.size(), 4U);
  CsvReader csv(dir + "/timings.csv");
  const int grid = csv.require("grid");
  size_t row_number = 0;
  for (auto row = csv.next(); !row.empty(); row = csv.next(), ++row_number) {
    const WorkPoint& p = d.points[row_number / d.configs.size()];
    const KernelConfig& c = d.configs.configs[row_number % d.configs.size()];
    const ModelShape& m = d.models[static_cast<size_t>(p.model)];
    int64_t tiles = 0;
    for (const int32_t rows : p.histogram) tiles += (rows + c.tile_m - 1) / c.tile_m;
    tiles *= (2 * m.intermediate + c.tile_n - 1) / c.tile_n;
    if (row[0] == p.name && row[1] == d.configs.names[row_number % d.configs.size()]) {
      ASSERT_EQ(csv.integer(row, grid, 0, 1 << 30), tiles) << p.name;
    }
  }
  EXPECT_EQ(row_number, d.us.size());
}

}  // namespace
}  // namespace ramp::core
