// Plans of strided copies: loops merged where they may be, the right worker for each, and units that divide
// everything.
#include "backend/cuda/strided_copy.hpp"

#include <gtest/gtest.h>

#include "base/error.hpp"
#include "cuda/strided.hpp"

namespace ramp::cuda_test {
namespace {
using core::cuda::plan_copy;
using core::cuda::StridedCopy;

StridedCopy plan(const std::vector<int64_t>& shape, const std::vector<int64_t>& from,
                 const std::vector<int64_t>& to, ramp_dtype dtype = RAMP_BF16) {
  return plan_copy(tensor_of(nullptr, dtype, shape, from), tensor_of(nullptr, dtype, shape, to));
}

TEST(StridedCopy, ContiguousIsOneRun) {
  EXPECT_EQ(plan({3, 4, 8}, {}, {}).run, 3U * 4 * 8 * 2);
  EXPECT_EQ(plan({3, 4, 8}, {}, {}).loops, 0);
  EXPECT_EQ(plan({}, {}, {}).run, 2U);
  EXPECT_EQ(plan({4, 0}, {}, {}).run, 0U);
  EXPECT_EQ(plan({1, 8, 1}, {99, 1, 5}, {7, 1, 3}).loops, 0) << "dimensions of one do not count";
}

TEST(StridedCopy, LoopsMerge) {
  const StridedCopy c = plan({3, 4, 8}, {64, 16, 1}, {32, 8, 1});  // both: 12 rows
  EXPECT_EQ(c.loops, 1);
  EXPECT_EQ(c.run, 16U);
  EXPECT_EQ(c.count[0], 12U);
  EXPECT_EQ(c.from_stride[0], 32U);
  EXPECT_EQ(c.to_stride[0], 16U);
  EXPECT_EQ(plan({3, 4, 8}, {80, 16, 1}, {32, 8, 1}).loops, 2);
  EXPECT_EQ(plan({2, 3, 4, 8}, {1000, 128, 16, 1}, {400, 100, 10, 1}).loops, 3);
  EXPECT_EQ(plan({6, 5}, {40, 8}, {5, 1}).run, 2U) << "no unit stride: element by element";
}

TEST(StridedCopy, WhoCopies) {
  const auto loops = [](const std::vector<int64_t>& shape, const std::vector<int64_t>& from,
                        const std::vector<int64_t>& to) { return loops_of_3d_copy(plan(shape, from, to)); };
  EXPECT_EQ(loops({5, 16}, {24, 1}, {16, 1}), 1);
  EXPECT_EQ(loops({3, 4, 8}, {80, 16, 1}, {60, 10, 1}), 2);
  EXPECT_EQ(loops({3, 4, 8}, {81, 16, 1}, {60, 10, 1}), 1) << "plane is no multiple of the pitch";
  EXPECT_EQ(loops({6, 8}, {0, 1}, {8, 1}), 0) << "pitch below a row";
  EXPECT_EQ(loops({3, 4, 8}, {0, 16, 1}, {64, 10, 1}), 1) << "planes that overlap";
  EXPECT_EQ(loops({2, 8}, {int64_t{1} << 31, 1}, {8, 1}), 0) << "pitch beyond what the driver takes";
}

TEST(StridedCopy, UnitDividesEverything) {
  int unit = 0;
  const StridedCopy c = plan({5, 16}, {24, 1}, {16, 1});
  const core::cuda::CopyParameters p = copy_parameters(c, 256, 512, unit);
  EXPECT_EQ(unit, 16);
  EXPECT_EQ(p.units, 2U);
  EXPECT_EQ(p.rows, 5U);
  copy_parameters(c, 256, 520, unit);
  EXPECT_EQ(unit, 8);
  copy_parameters(c, 258, 520, unit);
  EXPECT_EQ(unit, 2);
  copy_parameters(plan({5, 15}, {25, 1}, {16, 1}, RAMP_E4M3), 256, 512, unit);
  EXPECT_EQ(unit, 1);
  copy_parameters(plan({5, 15}, {25, 1}, {16, 1}, RAMP_F32), 256, 512, unit);
  EXPECT_EQ(unit, 4);
}

TEST(StridedCopy, OtherShapesAreABug) {
  EXPECT_THROW(plan_copy(tensor_of(nullptr, RAMP_F32, {3}, {}), tensor_of(nullptr, RAMP_F32, {4}, {})),
               core::Error);
  EXPECT_THROW(plan_copy(tensor_of(nullptr, RAMP_F32, {3}, {}), tensor_of(nullptr, RAMP_BF16, {3}, {})),
               core::Error);
  EXPECT_THROW(plan({3, 4}, {-4, 1}, {}), core::Error);
}

}  // namespace
}  // namespace ramp::cuda_test
