// What the profiling state machine does where the clock will not hold: settling, and the reference whose runs
// the samples of a round are related to.
#include <algorithm>
#include <cmath>

#include "cost/evaluate.hpp"
#include "dispatch/profiler.hpp"

namespace ramp::core {

void Profiler::start_reference() {
  settling_ = {};
  reference_ = {};
  reference_.on = settling_.on = !options_.unsteady.empty() && options_.unsteady[order_[at_]];
  reference_.due = reference_.on;
  reference_.config = alive_.front();
}

void Profiler::settle_tick(double us, bool good) {
  Settling& s = settling_;
  if (!good) {  // the config's own turn will tell
    if (++bad_ticks_ >= options_.max_bad_ticks) s.on = false;
    if (!s.on) bad_ticks_ = 0;
    return;
  }
  bad_ticks_ = 0;
  s.pace_us = cost_ * us;
  s.spent_us += s.pace_us;
  s.window_us += s.pace_us;
  ++s.window_runs;
  if (s.spent_us >= options_.settle_most_us) s.on = false;
  if (s.window_us < options_.settle_window_us) return;
  const double mean = s.window_us / s.window_runs;
  const auto [low, high] = std::minmax(mean, s.last_mean_us);
  if (s.spent_us >= options_.settle_us && low > 0 && high <= options_.settle_ratio * low) s.on = false;
  s.last_mean_us = mean;
  s.window_us = 0;
  s.window_runs = 0;
}

void Profiler::reference_tick(double us, bool good) {
  Reference& r = reference_;
  if (!good) {  // the round does without
    if (++bad_ticks_ < options_.max_bad_ticks) return;
    drop_reference();
  } else {
    r.due = false;
    r.since = 0;
    if (r.every == 0) r.every = static_cast<size_t>(std::max(1.0, options_.reference_us / (cost_ * us)));
    if (r.base_us == 0) r.base_us = us;
    r.all.push_back(us);
    r.ticks.emplace_back(spent_here_us_ - cost_ * us / 2, us);
  }
  bad_ticks_ = 0;
  if (turn_ >= alive_.size()) advance();  // it was the last of its round
}

// A config has had its turn: the reference's may be next.
void Profiler::end_turn() {
  Reference& r = reference_;
  r.due = r.on && (r.since >= r.every || turn_ >= alive_.size());
  if (!r.due || turn_ < alive_.size()) advance();
}

// This round's samples at the pace of the reference's first tick.
void Profiler::relate_round() {
  Reference& r = reference_;
  for (const auto& [when, config] : r.samples) {
    if (samples_[config].empty() || r.ticks.empty()) continue;  // it has failed since
    const auto after = std::find_if(r.ticks.begin(), r.ticks.end(),
                                    [at = when](const auto& tick) { return tick.first >= at; });
    double pace = after == r.ticks.end() ? r.ticks.back().second : after->second;
    if (after != r.ticks.begin() && after != r.ticks.end()) {
      const auto before = after - 1;
      const double share = (when - before->first) / (after->first - before->first);
      pace = before->second + share * (after->second - before->second);
    }
    samples_[config].back() *= r.base_us / pace;
  }
  r.samples.clear();
  if (!r.ticks.empty()) r.ticks.erase(r.ticks.begin(), r.ticks.end() - 1);  // where the next round begins
}

// Back from the first tick's pace to the one that the point had on the whole.
void Profiler::relate_point() {
  if (reference_.all.empty()) return;
  const double factor = quantile(reference_.all, 0.5) / reference_.base_us;
  for (std::vector<double>& s : samples_)
    for (double& us : s) us *= factor;
}

// Those that are left do without: what there is goes to the point's pace, to which what comes is nearest.
void Profiler::drop_reference() {
  relate_round();
  relate_point();
  reference_.all.clear();
  reference_.on = reference_.due = settling_.on = false;
}

}  // namespace ramp::core
