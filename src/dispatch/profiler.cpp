// The profiling state machine.
#include "dispatch/profiler.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <deque>
#include <numeric>
#include <unordered_set>

#include "base/error.hpp"
#include "cost/evaluate.hpp"

namespace ramp::core {
namespace {

constexpr double kUnmeasured = std::numeric_limits<double>::quiet_NaN();

int64_t rows_of(const WorkPoint& p) {
  return std::accumulate(p.histogram.begin(), p.histogram.end(), int64_t{0});
}

void check_point(const WorkPoint& p, const ModelShape& m) {
  if (static_cast<int64_t>(p.histogram.size()) != m.experts) {
    fail_argument(fmt::format("workload '{}': histogram", printable(p.name)),
                  fmt::format("{} counts", p.histogram.size()),
                  fmt::format("one per expert ({})", m.experts));
  }
  if (std::any_of(p.histogram.begin(), p.histogram.end(), [](int32_t c) { return c < 0; }))
    fail_argument(fmt::format("workload '{}': histogram", printable(p.name)), "a negative count",
                  "counts >= 0");
  const int64_t rows = rows_of(p);
  if (p.tokens < 1 || rows < 1 || rows > p.tokens * m.top_k) {
    fail_argument(fmt::format("workload '{}'", printable(p.name)),
                  fmt::format("{} tokens, {} rows", p.tokens, rows),
                  fmt::format("1 to tokens*top_k rows (top_k = {})", m.top_k));
  }
}

void check_options(const ProfilerOptions& o) {
  const auto need = [](bool good, const char* name, double got, const char* expected) {
    if (!good) fail_argument(name, fmt::format("{:g}", got), expected);
  };
  need(o.warmup >= 0, "warmup", o.warmup, ">= 0");
  need(o.repeats >= 1, "repeats", o.repeats, ">= 1");
  need(o.quantile >= 0 && o.quantile <= 1, "quantile", o.quantile, "0 to 1");
  need(o.judge_after >= 1, "judge_after", o.judge_after, ">= 1");
  need(o.hopeless_ratio > 1, "hopeless_ratio", o.hopeless_ratio, "> 1");
  need(o.skip_after >= 0, "skip_after", o.skip_after, ">= 0");
  need(o.max_bad_ticks >= 1, "max_bad_ticks", o.max_bad_ticks, ">= 1");
  need(o.settled_us >= 0, "settled_us", o.settled_us, ">= 0");
  need(o.narrow_ratio == 0 || o.narrow_ratio > 1, "narrow_ratio", o.narrow_ratio, "0 or > 1");
  need(o.neighbour_ratio == 0 || o.neighbour_ratio > 1, "neighbour_ratio", o.neighbour_ratio, "0 or > 1");
  need(o.narrow_after >= 1, "narrow_after", o.narrow_after, ">= 1");
  need(o.finalist_ratio == 0 || o.finalist_ratio > 1, "finalist_ratio", o.finalist_ratio, "0 or > 1");
  need(o.finalist_after >= 1, "finalist_after", o.finalist_after, ">= 1");
  need(o.least_repeats >= 1 && o.least_repeats <= o.repeats, "least_repeats", o.least_repeats,
       "1 to repeats");
  need(o.settle_us >= 0, "settle_us", o.settle_us, ">= 0");
  need(o.settle_window_us > 0, "settle_window_us", o.settle_window_us, "> 0");
  need(o.settle_most_us >= o.settle_us, "settle_most_us", o.settle_most_us, ">= settle_us");
  need(o.settle_ratio > 1, "settle_ratio", o.settle_ratio, "> 1");
  need(o.reference_us > 0, "reference_us", o.reference_us, "> 0");
  for (const double c : o.cost) need(c > 0 && !std::isinf(c), "cost", c, "> 0, finite");
  need(o.budget_us >= 0, "budget_us", o.budget_us, ">= 0");
}

void check_length(size_t got, size_t points, const char* name) {
  if (got != 0 && got != points)
    fail_argument(name, fmt::format("{} entries", got),
                  fmt::format("none, or one for each of {} points", points));
}

}  // namespace

std::vector<size_t> ends_inwards(size_t n) {
  std::vector<size_t> order;
  if (n == 0) return order;
  order.push_back(0);
  if (n > 1) order.push_back(n - 1);
  std::deque<std::pair<size_t, size_t>> gaps = {{0, n - 1}};  // both ends taken
  while (!gaps.empty()) {
    const auto [low, high] = gaps.front();
    gaps.pop_front();
    if (high - low < 2) continue;
    const size_t middle = low + (high - low) / 2;
    order.push_back(middle);
    gaps.emplace_back(low, middle);
    gaps.emplace_back(middle, high);
  }
  return order;
}

Profiler::Profiler(ConfigTable configs, const ModelShape& model, std::vector<WorkPoint> points,
                   const ProfilerOptions& options, const Dataset* previous)
    : options_(options) {
  check_options(options);
  if (configs.size() == 0) fail_argument("configs", "none", "at least one");
  if (points.empty()) fail_argument("workloads", "none", "at least one");
  check_length(options.unsteady.size(), points.size(), "unsteady");
  check_length(options.cost.size(), points.size(), "cost");
  std::unordered_set<std::string> names;
  for (WorkPoint& p : points) {
    check_point(p, model);
    if (!names.insert(p.name).second)
      fail_argument("workloads", fmt::format("'{}' twice", printable(p.name)), "distinct names");
    p.model = 0;
    p.train = true;
  }
  data_.source = "profile";
  data_.configs = std::move(configs);
  data_.models = {model};
  data_.points = std::move(points);
  data_.us.assign(data_.points.size() * data_.configs.size(), kUnmeasured);
  data_.us_repeat = data_.us;
  hopeless_.assign(data_.configs.size(), 0);
  failed_.assign(data_.configs.size(), false);
  settled_.assign(data_.us.size(), false);
  data_.has_repeat = options_.halves;
  if (previous != nullptr) adopt(*previous);

  std::vector<size_t> by_rows(data_.points.size());
  std::iota(by_rows.begin(), by_rows.end(), size_t{0});
  std::stable_sort(by_rows.begin(), by_rows.end(),
                   [&](size_t a, size_t b) { return rows_at(a) < rows_at(b); });
  if (options_.budget_us > 0) {
    order_ = by_rows;  // each point's neighbour below is known when it begins
  } else {
    for (const size_t i : ends_inwards(by_rows.size())) order_.push_back(by_rows[i]);
  }
  start_point();
}

void Profiler::adopt(const Dataset& previous) {
  const ConfigTable& theirs = previous.configs;
  for (size_t c = 0; c < data_.configs.size(); ++c) {
    const auto same = std::find(theirs.names.begin(), theirs.names.end(), data_.configs.names[c]);
    if (same == theirs.names.end()) continue;
    const auto other = static_cast<size_t>(same - theirs.names.begin());
    if (!(theirs.configs[other] == data_.configs.configs[c])) continue;
    for (size_t p = 0; p < data_.points.size(); ++p) {
      for (size_t q = 0; q < previous.points.size(); ++q) {
        const WorkPoint& a = data_.points[p];
        const WorkPoint& b = previous.points[q];
        const ModelShape& m = previous.models[static_cast<size_t>(b.model)];
        if (a.name == b.name && a.histogram == b.histogram && m.hidden == data_.models[0].hidden &&
            m.intermediate == data_.models[0].intermediate && m.top_k == data_.models[0].top_k) {
          timing(p, c) = previous.time(q, other);
          if (options_.halves) data_.us_repeat[p * data_.configs.size() + c] = previous.repeat(q, other);
          // Points are written whole: where one has timings, a config without was left out.
          const auto row = previous.us.begin() + static_cast<std::ptrdiff_t>(q * theirs.size());
          settled_[p * data_.configs.size() + c] =
              options_.budget_us > 0 && !options_.reopen &&
              std::any_of(row, row + static_cast<std::ptrdiff_t>(theirs.size()),
                          [](double us) { return !std::isnan(us); });
        }
      }
    }
  }
}

std::optional<Profiler::Task> Profiler::next() const noexcept {
  if (at_ >= order_.size()) return std::nullopt;
  if (settling_.on || reference_.due) return Task{reference_.config, order_[at_], true};
  return Task{alive_[turn_], order_[at_], warmup_left_ > 0};
}

std::vector<Profiler::Task> Profiler::round(size_t most) const {
  std::vector<Task> tasks;
  if (at_ >= order_.size()) return tasks;
  const Task reference{reference_.config, order_[at_], true};
  if (settling_.on) {  // what fills the window at the pace of the last run
    const double left = options_.settle_window_us - settling_.window_us;
    const double runs = settling_.pace_us > 0 ? std::ceil(left / settling_.pace_us) : 1;
    tasks.assign(static_cast<size_t>(std::clamp(runs, 1.0, std::max(1.0, static_cast<double>(most)))),
                 reference);
    return tasks;
  }
  if (reference_.due) tasks.push_back(reference);
  if (reference_.every == 0 && reference_.on) return tasks;  // how often, its first tick will say
  size_t since = reference_.due ? 0 : reference_.since;
  for (size_t turn = turn_; turn < alive_.size() && tasks.size() < most; ++turn) {
    const size_t config = alive_[turn];
    const int32_t warmups = turn == turn_ ? warmup_left_ : samples_[config].empty() ? options_.warmup : 0;
    const size_t before = tasks.size();
    for (int32_t w = 0; w < (settles_ ? std::min(warmups, 1) : warmups); ++w)
      tasks.push_back({config, order_[at_], true});
    if (warmups == 0 || !settles_) tasks.push_back({config, order_[at_], false});
    since += tasks.size() - before;
    if (reference_.on && (since >= reference_.every || turn + 1 == alive_.size())) {
      tasks.push_back(reference);
      since = 0;
    }
  }
  return tasks;
}

double Profiler::rows_at(size_t point) const noexcept {
  return static_cast<double>(rows_of(data_.points[point]));
}

void Profiler::start_point() {
  for (; at_ < order_.size(); end_point()) {
    alive_.clear();
    samples_.assign(data_.configs.size(), {});
    for (size_t c = 0; c < data_.configs.size(); ++c) {
      if (failed_[c] || !std::isnan(timing(order_[at_], c)) ||
          settled_[order_[at_] * data_.configs.size() + c])
        continue;
      const auto patience = static_cast<size_t>(options_.skip_after);
      if (patience > 0 && at_ >= patience && hopeless_[c] >= at_) {
        ++dropped_;
        continue;
      }
      alive_.push_back(c);
    }
    turn_ = 0;
    spent_here_us_ = 0;
    if (alive_.empty()) continue;
    if (options_.budget_us > 0) {
      sort_by_neighbour();
      if (options_.neighbour_ratio > 0) leave_out_by_neighbour();
    }
    settles_ = options_.settled_us > 0 && at_ > 0 && best_at(order_[at_ - 1]) >= options_.settled_us;
    share_us_ = share();
    cost_ = options_.cost.empty() ? 1 : options_.cost[order_[at_]];
    start_reference();
    start_config();
    return;
  }
}

void Profiler::start_config() {
  warmup_left_ = samples_[alive_[turn_]].empty() ? options_.warmup : 0;
  bad_ticks_ = 0;
}

void Profiler::report(double us) {
  if (at_ >= order_.size()) fail_argument("report", "a timing", "no more: the profile is complete");
  ++runs_;
  const bool good = us > 0 && !std::isinf(us);
  if (good) spent_us_ += cost_ * us;
  if (settling_.on) return settle_tick(us, good);
  if (good) spent_here_us_ += cost_ * us;
  if (reference_.due) return reference_tick(us, good);
  ++reference_.since;
  if (warmup_left_ > 0) {
    const bool settled = good && options_.settled_us > 0 && us >= options_.settled_us;
    warmup_left_ = settled ? 0 : warmup_left_ - 1;
    if (!settled) return;
  }
  const size_t config = alive_[turn_];
  if (!good) {
    if (++bad_ticks_ >= options_.max_bad_ticks)
      fail_config(config, fmt::format("the timer said {:g} us {} times in a row", us, bad_ticks_));
    return;
  }
  samples_[config].push_back(us);
  if (reference_.on) reference_.samples.emplace_back(spent_here_us_ - cost_ * us / 2, config);
  ++turn_;
  end_turn();
}

void Profiler::report_failure(const std::string& reason) {
  if (at_ >= order_.size()) fail_argument("report_failure", "a failure", "none: the profile is complete");
  ++runs_;
  fail_config(next()->config, reason);
}

void Profiler::report_failure(size_t config, const std::string& reason) {
  if (at_ >= order_.size()) fail_argument("report_failure", "a failure", "none: the profile is complete");
  if (config >= data_.configs.size())
    fail_argument("report_failure", fmt::format("config {}", config),
                  fmt::format("below {}", data_.configs.size()));
  if (!failed_[config]) fail_config(config, reason);
}

void Profiler::fail_config(size_t config, const std::string& reason) {
  notes_.push_back(fmt::format("config '{}' failed on '{}' and will not be chosen: {}",
                               data_.configs.names[config], data_.points[order_[at_]].name, reason));
  failed_[config] = true;
  for (size_t p = 0; p < data_.points.size(); ++p) {
    timing(p, config) = kUnmeasured;
    data_.us_repeat[p * data_.configs.size() + config] = kUnmeasured;
  }
  samples_[config].clear();
  const auto at = std::find(alive_.begin(), alive_.end(), config);
  if (at == alive_.end()) {
    // A reference may be replayed though it takes no more samples.
    if (!reference_.on || config != reference_.config) return;
    drop_reference();
    if (turn_ >= alive_.size()) advance();
    return;
  }
  if (static_cast<size_t>(at - alive_.begin()) < turn_) --turn_;
  alive_.erase(at);
  if (reference_.on && config == reference_.config) {
    const bool samples = !reference_.samples.empty() || !reference_.all.empty();
    if (samples || alive_.empty())
      drop_reference();
    else
      start_reference();
  }
  if (turn_ >= alive_.size() && reference_.on && !alive_.empty() && !settling_.on) {
    reference_.due = true;
    return;
  }
  advance();
}

// turn_ points at the next config of the round, or past the last one.
void Profiler::advance() {
  // Before anything is known (the first point, which has the fewest rows) nobody is left out.
  if (options_.budget_us > 0 && !options_.everybody && at_ > 0 && turn_ > 0 &&
      spent_here_us_ >= 2 * share_us_)
    leave_out_the_rest();
  if (turn_ >= alive_.size()) end_round();
  if (alive_.empty()) {
    end_point();
    start_point();
    return;
  }
  start_config();
}

double Profiler::fastest_median() const {
  double best = std::numeric_limits<double>::infinity();
  const size_t width = data_.configs.size();
  for (size_t c = 0; c < width; ++c) {
    const double known = data_.us[order_[at_] * width + c];  // of an adopted profile
    if (known < best) best = known;
    if (!samples_[c].empty()) best = std::min(best, quantile(samples_[c], options_.quantile));
  }
  return best;
}

void Profiler::end_round() {
  turn_ = 0;
  relate_round();
  const double fastest = fastest_median();
  const double limit = options_.hopeless_ratio * fastest;
  const auto fewest =
      static_cast<size_t>(std::max(options_.least_repeats, options_.everybody ? options_.judge_after : 1));
  if (options_.budget_us > 0 && spent_here_us_ >= share_us_ &&
      std::all_of(alive_.begin(), alive_.end(), [&](size_t c) { return samples_[c].size() >= fewest; })) {
    alive_.clear();  // nobody lost samples that others got
    return;
  }
  std::erase_if(alive_, [&](size_t c) {
    const std::vector<double>& s = samples_[c];
    if (static_cast<int32_t>(s.size()) >= options_.repeats) return true;
    // One tick does not condemn what was near the best next door, nor two a config whose ticks disagree: the
    // machine may have hiccuped. From five samples on each half's median stands above that.
    constexpr size_t kEnough = 5;
    const auto [low, high] = std::minmax_element(s.begin(), s.end());
    const bool hiccup = s.size()<kEnough&& * high> options_.hopeless_ratio * *low;
    const bool doubtful = s.size() < 2 && was_near(c);
    const bool hopeless = static_cast<int32_t>(s.size()) >= options_.judge_after && *low > limit && !doubtful;
    const bool far = options_.narrow_ratio > 0 && static_cast<int32_t>(s.size()) >= options_.narrow_after &&
                     quantile(s, options_.quantile) > options_.narrow_ratio * fastest && !hiccup;
    const bool beaten = options_.finalist_ratio > 0 &&
                        static_cast<int32_t>(s.size()) >= options_.finalist_after &&
                        quantile(s, options_.quantile) > options_.finalist_ratio * fastest;
    dropped_ += hopeless ? 1 : 0;
    return hopeless || far || beaten;
  });
  std::reverse(alive_.begin(), alive_.end());
}

void Profiler::end_point() {
  const size_t point = order_[at_];
  relate_point();
  for (size_t c = 0; c < data_.configs.size(); ++c) {
    const std::vector<double>& s = samples_[c];
    if (s.empty()) continue;
    if (!options_.halves) {
      timing(point, c) = quantile(s, options_.quantile);
      continue;
    }
    std::vector<double> half[2];
    for (size_t i = 0; i < s.size(); ++i) half[i % 2].push_back(s[i]);
    timing(point, c) = quantile(half[0], options_.quantile);
    if (!half[1].empty())
      data_.us_repeat[point * data_.configs.size() + c] = quantile(half[1], options_.quantile);
  }
  double best = std::numeric_limits<double>::infinity();
  for (size_t c = 0; c < data_.configs.size(); ++c) best = timing(point, c) < best ? timing(point, c) : best;
  for (size_t c = 0; c < data_.configs.size(); ++c) {
    // Not measured here although it has not failed: it was hopeless everywhere before, or the budget left it
    // out, which says nothing.
    const bool left_out = options_.budget_us > 0 && std::isnan(timing(point, c));
    if (!left_out && !(timing(point, c) <= options_.hopeless_ratio * best)) ++hopeless_[c];
  }
  ++at_;
}

Profiler::Progress Profiler::progress() const noexcept {
  const bool over = at_ >= order_.size();
  const double points = static_cast<double>(at_) / static_cast<double>(order_.size());
  const double budget = options_.budget_us > 0 ? spent_us_ / options_.budget_us : 0;
  return {at_,
          order_.size(),
          runs_,
          dropped_,
          static_cast<size_t>(std::count(failed_.begin(), failed_.end(), true)),
          spent_us_,
          over                     ? 1.0
          : options_.budget_us > 0 ? std::min(budget, 0.99)
                                   : points};
}

}  // namespace ramp::core
