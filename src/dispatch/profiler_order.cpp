// Who takes part in a point, and in which order: by what the points before it have shown.
#include <algorithm>
#include <cmath>
#include <limits>

#include "dispatch/profiler.hpp"

namespace ramp::core {

// What is left of the budget, shared out evenly over the points left (small ones leave most of theirs to the
// large ones, which come last).
double Profiler::share() const noexcept {
  const auto left = static_cast<double>(order_.size() - at_);
  return std::max(0.0, options_.budget_us - spent_us_) / left;
}

// alive_ by how much slower than the best they were at the nearest visited point (log distance of rows) where
// they were measured, best first; those that never were come last, in their own order.
void Profiler::sort_by_neighbour() {
  const double rows = rows_at(order_[at_]);
  std::vector<std::pair<double, size_t>> visited;  // distance, point
  std::vector<double> best(data_.points.size(), std::numeric_limits<double>::infinity());
  for (size_t i = at_; i-- > 0;) {  // of two as near, the later one comes first: it is the more loaded one
    const size_t p = order_[i];
    visited.emplace_back(std::abs(std::log(rows_at(p) / rows)), p);
    for (size_t c = 0; c < data_.configs.size(); ++c)
      if (timing(p, c) < best[p]) best[p] = timing(p, c);
  }
  std::stable_sort(visited.begin(), visited.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  std::vector<double> key(data_.configs.size(), std::numeric_limits<double>::infinity());
  for (const size_t c : alive_) {
    const auto at = std::find_if(visited.begin(), visited.end(),
                                 [&](const auto& v) { return !std::isnan(timing(v.second, c)); });
    if (at != visited.end()) key[c] = timing(at->second, c) / best[at->second];
  }
  std::stable_sort(alive_.begin(), alive_.end(), [&](size_t a, size_t b) { return key[a] < key[b]; });
}

double Profiler::best_at(size_t point) const {
  double best = std::numeric_limits<double>::infinity();
  for (size_t c = 0; c < data_.configs.size(); ++c) {
    const double us = data_.us[point * data_.configs.size() + c];
    if (us < best) best = us;
  }
  return best;
}

// Within a quarter of the best at the last visited point where it was measured.
bool Profiler::was_near(size_t config) const {
  constexpr double kNear = 1.25;
  if (options_.budget_us <= 0) return false;  // points come from the ends inwards: the last one is far away
  for (size_t i = at_; i-- > 0;) {
    const double us = data_.us[order_[i] * data_.configs.size() + config];
    if (!std::isnan(us)) return us <= kNear * best_at(order_[i]);
  }
  return false;
}

// Slower than the best by neighbour_ratio where it was last measured with fewer rows than here, and by more
// than at half as many or fewer before that. Times are about affine in the rows, and the ratio of two such
// functions is monotone: a config that fell behind what was best goes on to, and the best here is no slower
// than that. Of several points with as many rows the one where it did best counts. (H200, fp8_block, three
// models: this would have left out 533 of 7910 pairs of profiled points and 803 of 7159 of unseen ones, 18 to
// 64% of the time of a replay of each; none within 12% of the best of its point.)
bool Profiler::falls_behind(size_t config) const {
  constexpr double kApart = 2, kRising = 1.1;
  const double none = std::numeric_limits<double>::infinity();
  double here = none, before = none;
  double rows_here = 0, rows_before = 0;
  const double rows_now = rows_at(order_[at_]);
  for (size_t i = at_; i-- > 0;) {
    const size_t p = order_[i];
    const double us = data_.us[p * data_.configs.size() + config];
    if (std::isnan(us)) continue;
    const double rows = rows_at(p);
    if (rows >= rows_now) continue;  // with other routings to come, they say little
    if (rows_here == 0) rows_here = rows;
    if (rows == rows_here) {
      here = std::min(here, us / best_at(p));
    } else if (rows * kApart <= rows_here) {
      if (rows_before == 0) rows_before = rows;
      if (rows != rows_before) break;
      before = std::min(before, us / best_at(p));
    }
  }
  return rows_before > 0 && here > options_.neighbour_ratio && here >= kRising * before;
}

// Points are visited by rising rows, so all visited ones have no more rows than this one. The best's ratio is
// 1: somebody always stays.
void Profiler::leave_out_by_neighbour() {
  constexpr double kNoise = 1.1;  // of single samples
  const double rows = rows_at(order_[at_]);
  std::vector<double> best(data_.points.size());
  for (size_t i = 0; i < at_; ++i) best[order_[i]] = best_at(order_[i]);
  const size_t before = alive_.size();
  std::vector<size_t> stay;
  for (const size_t c : alive_) {
    bool out = false;
    for (size_t i = at_; i-- > 0;) {  // the nearest comes first
      const size_t p = order_[i];
      if (std::isnan(timing(p, c))) continue;
      const double growth = rows / rows_at(p);
      out = timing(p, c) / best[p] > std::max(options_.neighbour_ratio, kNoise * growth);
      break;
    }
    if (!(out || (options_.leave_behind && falls_behind(c))) || is_always(c)) stay.push_back(c);
  }
  if (stay.empty()) return;
  alive_ = std::move(stay);
  dropped_ += before - alive_.size();
}

// The first round took twice the point's share: what has no sample yet gets none here.
void Profiler::leave_out_the_rest() {
  const size_t before = alive_.size();
  const auto first = alive_.begin() + static_cast<std::ptrdiff_t>(turn_);
  alive_.erase(
      std::remove_if(first, alive_.end(), [&](size_t c) { return samples_[c].empty() && !is_always(c); }),
      alive_.end());
  dropped_ += before - alive_.size();
}

bool Profiler::is_always(size_t config) const {
  return std::find(options_.always.begin(), options_.always.end(), config) != options_.always.end();
}

}  // namespace ramp::core
