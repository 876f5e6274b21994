// Pairwise covering arrays (see cases.hpp).
#include <algorithm>

#include "base/rng.hpp"
#include "numerics/cases.hpp"

namespace ramp::core::test {

std::vector<std::vector<int32_t>> pairwise(const std::vector<int32_t>& levels, uint64_t seed) {
  const size_t factors = levels.size();
  // covered[a][b][i * levels[b] + j]
  std::vector<std::vector<std::vector<bool>>> covered(factors, std::vector<std::vector<bool>>(factors));
  int64_t open = 0;
  for (size_t a = 0; a < factors; ++a) {
    for (size_t b = a + 1; b < factors; ++b) {
      covered[a][b].assign(static_cast<size_t>(levels[a]) * static_cast<size_t>(levels[b]), false);
      open += levels[a] * levels[b];
    }
  }
  const auto cell = [&](size_t a, size_t b, const std::vector<int32_t>& row) {
    return covered[a][b][static_cast<size_t>(row[a]) * static_cast<size_t>(levels[b]) +
                         static_cast<size_t>(row[b])];
  };
  const auto gain = [&](const std::vector<int32_t>& row) {
    int64_t g = 0;
    for (size_t a = 0; a < factors; ++a) {
      for (size_t b = a + 1; b < factors; ++b) g += cell(a, b, row) ? 0 : 1;
    }
    return g;
  };
  std::vector<std::vector<int32_t>> rows;
  Rng rng(seed);
  const auto draw = [&](size_t f) {
    return static_cast<int32_t>(rng.below(static_cast<uint64_t>(levels[f])));
  };
  while (open > 0) {
    // Best of 40 random rows, half of which contain a pair that is still open.
    std::vector<int32_t> best;
    int64_t best_gain = 0;
    for (int attempt = 0; attempt < 40 || best_gain == 0; ++attempt) {
      std::vector<int32_t> row(factors);
      for (size_t f = 0; f < factors; ++f) row[f] = draw(f);
      if (attempt % 2 == 1) {
        for (size_t a = 0; a < factors; ++a) {
          for (size_t b = a + 1; b < factors; ++b) {
            const auto it = std::find(covered[a][b].begin(), covered[a][b].end(), false);
            if (it == covered[a][b].end()) continue;
            const auto at = static_cast<int32_t>(it - covered[a][b].begin());
            row[a] = at / levels[b];
            row[b] = at % levels[b];
            a = factors;
            break;
          }
        }
      }
      const int64_t g = gain(row);
      if (g > best_gain) {
        best_gain = g;
        best = row;
      }
    }
    for (size_t a = 0; a < factors; ++a) {
      for (size_t b = a + 1; b < factors; ++b)
        covered[a][b][static_cast<size_t>(best[a]) * static_cast<size_t>(levels[b]) +
                      static_cast<size_t>(best[b])] = true;
    }
    open -= best_gain;
    rows.push_back(std::move(best));
  }
  return rows;
}

}  // namespace ramp::core::test
