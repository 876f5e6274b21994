// What to time next: profiling as a pure state machine. It never launches and never looks at a clock: the
// caller asks next(), runs that config on that point, and reports the microseconds. So a profile can be
// driven by CUDA events, a steady clock, another process, or a test's fake clock, and always takes the same
// course for the same ticks.
//
// Points are visited from the ends inwards (fewest rows, most rows, the middle, ...), so that early points
// see every regime. At a point the configs take turns, one sample per round, every other round backwards: a
// clock that drifts meets all alike, since over two rounds each stands in the middle. Each is run `warmup`
// times untimed before its first sample. Hopeless configs lose their remaining
// samples at the point (their timing is kept: cost models learn from slow configs too), and configs that were
// hopeless at every one of the first `skip_after` points are not measured at the others.
//
// A budget is counted in the very ticks that are reported, so it needs no clock either. With one, points are
// visited from few rows to many and configs in the order of their times at the nearest point already visited,
// best first: when a point has used up its share of what is left, its rounds end, and configs that would only
// come after twice the share are left out there (those are the ones that were slow next door). At the first
// point nobody is.
//
// A processor at its power limit lowers its clock some tens of milliseconds after work has begun, raises it
// again where work pauses, and swings between. At points that do this to it (ProfilerOptions::unsteady) one
// config, the reference, is run untimed until its pace has settled, then again and again between the others,
// and samples are taken relative to its runs before and after them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cost/dataset.hpp"

namespace ramp::core {

struct ProfilerOptions {
  int32_t warmup = 2;       // untimed runs before the first sample
  int32_t repeats = 9;      // samples; the timing is their median (or another quantile)
  double quantile = 0.5;    // 0 = the fastest sample: where others use the machine meanwhile
  int32_t judge_after = 2;  // samples that everybody gets before hopeless configs are dropped
  // Hopeless: the fastest sample exceeds this multiple of the point's fastest median. The measured spread of
  // one config (p99 3.5-6% on the H200) is far below 2.
  double hopeless_ratio = 2.0;
  int32_t skip_after = 4;     // points; 0 = measure every config everywhere
  int32_t max_bad_ticks = 3;  // in a row: NaN, infinite, zero or negative; then the config counts as failed
  // A run of at least this many microseconds has warmed up while it ran: from there on a first tick is a
  // sample, whatever `warmup` says. 0 = off.
  double settled_us = 0;
  // From `narrow_after` samples on only configs whose median is within this multiple of the point's fastest
  // one go on: precision is spent where the choice is close. 0 = off.
  double narrow_ratio = 0;
  int32_t narrow_after = 3;
  // The same once more, for the last few. 0 = off.
  double finalist_ratio = 0;
  int32_t finalist_after = 8;
  // Microseconds that all runs together, warm-ups included, should take. Kept to within about one round of
  // the last point; every config of a point that is not left out has at least one sample. 0 = no limit.
  double budget_us = 0;
  // With a budget: a config that was more than this multiple of the best at the nearest point with no more
  // rows is left out, since rows add time and the best's time grows at most in proportion to them: from there
  // to here its ratio falls at most by the ratio of rows, which is taken where it is the larger limit. 0 =
  // off.
  double neighbour_ratio = 0;
  // With neighbour_ratio: what fell behind by that from one number of rows to twice as many or more is left
  // out from then on, however much rows grow.
  bool leave_behind = false;
  // Configs (by index) that are left out nowhere: what static policies are made of.
  std::vector<size_t> always;
  // With a budget: the budget leaves nobody out and everybody gets judge_after samples (judging needs all of
  // them). What neighbour_ratio leaves out stays out.
  bool everybody = false;
  // What an earlier run with a budget has left out is measured now, as far as the budget goes: where this
  // budget is another one.
  bool reopen = false;
  // With a budget: samples that everybody has who takes part (but for the hopeless) before it ends a point.
  int32_t least_repeats = 1;
  // By point: whether the clock will not hold there; empty: nowhere. The reference, which is the config that
  // was best next door, is run for settle_us at least, until the means of two windows in a row agree to
  // within the ratio, and for settle_most_us at most; afterwards at both ends of a round and every
  // reference_us within it. In microseconds of ticks times `cost`, and part of the budget.
  std::vector<bool> unsteady;
  double settle_us = 100e3, settle_window_us = 25e3, settle_most_us = 400e3, settle_ratio = 1.01;
  double reference_us = 5e3;
  // By point: what a run takes, as a multiple of its tick (a replay over some layers of which a tick is the
  // mean); empty: 1 everywhere.
  std::vector<double> cost;
  // us: median of the even samples, us_repeat: of the odd ones (configs with one sample have no repeat):
  // what a guard and a noise floor need. Off: us is the median of all.
  bool halves = false;
};

class Profiler {
 public:
  // Points: distinct names, histograms of E counts with at least one row. previous: an earlier (perhaps
  // interrupted) profile; what it measured of the same configs (name and columns) on the same points (name
  // and histogram) is kept and not measured again. Throws Error on no configs, no points or senseless
  // options.
  Profiler(ConfigTable configs, const ModelShape& model, std::vector<WorkPoint> points,
           const ProfilerOptions& options = {}, const Dataset* previous = nullptr);

  struct Task {
    size_t config = 0;
    size_t point = 0;
    bool warmup = false;  // no sample: the value only tells how fast the machine is
  };
  // What to run now; the same until it is reported. nullopt: the profile is complete.
  [[nodiscard]] std::optional<Task> next() const noexcept;
  // What next() will say, task by task, until the round ends or at least `most` tasks are there: for timers
  // that run many things back to back. Holds as long as every tick is good, warm-ups settle (settled_us)
  // where the point before lets one expect it and there alone, nothing fails and no budget runs out: whoever
  // reports a list of ticks compares each task with next() and asks again where they differ.
  [[nodiscard]] std::vector<Task> round(size_t most) const;
  // Microseconds of the task of next(). A bad tick is not a sample: the task comes again.
  // Throws Error when there is no task.
  void report(double us);
  // The task could not be run: the config failed and must never be chosen. All its timings are dropped.
  void report_failure(const std::string& reason);
  // The same of any config, whether or not it is its turn.
  void report_failure(size_t config, const std::string& reason);
  // Who still takes part in the point of next(), in the order of this round.
  [[nodiscard]] const std::vector<size_t>& contenders() const noexcept { return alive_; }

  struct Progress {
    size_t points_done = 0, points = 0;
    size_t runs = 0;      // reports so far, warm-ups included
    size_t dropped = 0;   // (config, point) pairs that lost samples or were skipped
    size_t failed = 0;    // configs
    double spent_us = 0;  // sum of the ticks so far
    // done, 0..1: of the budget where there is one (it may end earlier), else of the points
    double fraction = 0;
  };
  [[nodiscard]] Progress progress() const noexcept;
  // Everything measured so far, point by point (a point that is under way is not in it): NaN = not measured.
  // All points are training points.
  // A pair that has been dropped by the budget is NaN; when such a profile is resumed with a budget, it stays
  // so but for ProfilerOptions::reopen.
  [[nodiscard]] const Dataset& data() const noexcept { return data_; }
  // One line per failed config.
  [[nodiscard]] const std::vector<std::string>& notes() const noexcept { return notes_; }

 private:
  void adopt(const Dataset& previous);
  void start_point();
  void start_config();
  void advance();
  void end_round();
  void end_point();
  void fail_config(size_t config, const std::string& reason);
  void sort_by_neighbour();
  void leave_out_the_rest();
  void leave_out_by_neighbour();
  [[nodiscard]] bool falls_behind(size_t config) const;
  void start_reference();
  void settle_tick(double us, bool good);
  void reference_tick(double us, bool good);
  void end_turn();
  void relate_round();
  void relate_point();
  void drop_reference();
  [[nodiscard]] double share() const noexcept;
  [[nodiscard]] bool is_always(size_t config) const;
  [[nodiscard]] bool was_near(size_t config) const;
  [[nodiscard]] double rows_at(size_t point) const noexcept;
  [[nodiscard]] double best_at(size_t point) const;  // +infinity: nothing was measured there
  [[nodiscard]] double fastest_median() const;
  double& timing(size_t point, size_t config) { return data_.us[point * data_.configs.size() + config]; }

  ProfilerOptions options_;
  Dataset data_;
  std::vector<size_t> order_;     // points in the order of visit
  std::vector<size_t> hopeless_;  // per config: points at which it was hopeless
  std::vector<bool> failed_;
  std::vector<bool> settled_;  // [point][config]: adopted, or left out by an earlier run with a budget
  std::vector<std::string> notes_;
  size_t runs_ = 0, dropped_ = 0;
  double spent_us_ = 0;

  size_t at_ = 0;                             // position in order_
  std::vector<size_t> alive_;                 // configs that still take samples at this point
  std::vector<std::vector<double>> samples_;  // per config, of this point
  size_t turn_ = 0;                           // index into alive_
  int32_t warmup_left_ = 0;
  int32_t bad_ticks_ = 0;
  bool settles_ = false;                     // the point before was so slow that first ticks will settle here
  double share_us_ = 0, spent_here_us_ = 0;  // of this point
  double cost_ = 1;                          // of a run at this point
  struct Settling {
    bool on = false;
    double spent_us = 0, window_us = 0;
    int32_t window_runs = 0;
    double pace_us = 0, last_mean_us = 0;  // of a run; 0: none yet
  } settling_;
  struct Reference {
    bool on = false, due = false;
    size_t config = 0;
    size_t every = 0, since = 0;                     // runs between two of the reference; since the last one
    double base_us = 0;                              // its first tick: the pace that samples are brought to
    std::vector<double> all;                         // of this point
    std::vector<std::pair<double, double>> ticks;    // when, how long: of this round
    std::vector<std::pair<double, size_t>> samples;  // when, whose: of this round
  } reference_;
};

// The order of visit for n points sorted by work: 0, n-1, then midpoints of ever smaller gaps.
std::vector<size_t> ends_inwards(size_t n);

}  // namespace ramp::core
