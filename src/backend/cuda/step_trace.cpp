// The host's side of the trace.
#include "backend/cuda/step_trace.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <span>

#include "backend/cuda/driver.hpp"
#include "base/error.hpp"
#include "cost/step.hpp"
#include "params/prologue.hpp"
#include "routing/workload.hpp"

namespace ramp::core::cuda {
namespace {

constexpr uint64_t kRecordWords = kTraceHeader + kPrologueMaxExperts;
constexpr uint64_t kCounterBytes = 8;
constexpr uint64_t kMostRecords = uint64_t{1} << 20;  // 4 GB
constexpr uint64_t kMostTimings = uint64_t{1} << 16;  // two events each

}  // namespace

void StepTrace::begin(uint64_t records) {
  const std::lock_guard lock(mutex_);
  if (records > kMostRecords || (records != 0 && ring_ != nullptr && records != records_)) {
    fail_argument("records", fmt::format("{}", records),
                  ring_ != nullptr ? fmt::format("0 or {}, as before", records_)
                                   : fmt::format("at most {}", kMostRecords));
  }
  if (records != 0 && ring_ == nullptr) {
    const uint64_t bytes = kCounterBytes + 4 * kRecordWords * records;
    ring_ = memory_->allocate(bytes);
    memory_->fill(ring_.get(), 0, bytes, nullptr);
    memory_->synchronize(nullptr);
    records_ = records;
  }
  active_ = records != 0;
}

StepTrace::~StepTrace() {
  if (timings_.empty()) return;
  try {
    const ScopedContext scope(*gpu_);
    for (const Timed& t : timings_)
      for (CUevent e : {t.start, t.stop})
        if (e != nullptr) driver().cuEventDestroy(e);
  } catch (const Error&) {  // the context has gone, and its events with it
  }
}

StepTrace::Timing StepTrace::begin_call(const CallInfo& info, const StepSet& set, CUstream stream,
                                        DecideParams& out) {
  const std::lock_guard lock(mutex_);
  const ExpertWeights& w = *info.weights;
  const auto [at, added] =
      numbers_.try_emplace({&w, info.tokens, info.top_k, info.batched, &set}, calls_.size());
  if (added) {
    Call call;
    call.shape = {"", w.experts, info.top_k, w.hidden, w.intermediate};
    call.format = w.format;
    call.tokens = info.tokens;
    call.batched = info.batched;
    for (const StepCandidate& c : set.candidates) call.configs.push_back(c.config());
    call.set = &set;
    call.fallback = info.fallback.config();
    call.fallback_tile_m = static_cast<unsigned>(info.fallback.tile_m());
    const auto known = std::find(set.known.begin(), set.known.end(), info.fallback);
    if (known != set.known.end())
      call.fallback_cost = set.known_costs[static_cast<size_t>(known - set.known.begin())];
    calls_.push_back(std::move(call));
  }
  out.trace = static_cast<unsigned long long*>(ring_.get());
  out.trace_words = static_cast<unsigned>(kRecordWords);
  out.trace_records = static_cast<unsigned>(records_);
  out.trace_call = at->second;
  out.trace_tag = 0;
  if (!timed_.load(std::memory_order_relaxed) || memory_->capturing(stream)) return {};
  Timing timing = begin_timing(stream);
  out.trace_tag = timing.tag;
  return timing;
}

StepTrace::Timing StepTrace::begin_timing(CUstream stream) {
  if (timings_.empty()) timings_.resize(std::min(records_, kMostTimings));
  if (++last_tag_ == 0) ++last_tag_;
  Timed& t = timings_[last_tag_ % timings_.size()];
  t.taken = last_tag_;
  t.tag = 0;
  for (CUevent* e : {&t.start, &t.stop})
    if (*e == nullptr) RAMP_CU(cuEventCreate, e, static_cast<unsigned>(CU_EVENT_DEFAULT));
  RAMP_CU(cuEventRecord, t.start, stream);
  return {last_tag_, t.stop, stream};
}

void StepTrace::end_call(const Timing& timing) {
  if (timing.tag == 0) return;
  const std::lock_guard lock(mutex_);
  Timed& t = timings_[timing.tag % timings_.size()];
  if (t.taken != timing.tag) return;  // as many calls as there are events have begun meanwhile
  RAMP_CU(cuEventRecord, timing.stop, timing.stream);
  t.tag = timing.tag;
}

double StepTrace::elapsed_us(unsigned tag) const {
  if (tag == 0 || timings_.empty()) return 0;
  const Timed& t = timings_[tag % timings_.size()];
  if (t.tag != tag) return 0;  // others have taken its events
  float ms = 0;
  const CUresult r = driver().cuEventElapsedTime(&ms, t.start, t.stop);
  return r == CUDA_SUCCESS && ms > 0 ? 1000.0 * static_cast<double>(ms) : 0;
}

uint64_t StepTrace::scan(uint64_t from, const std::function<void(const TraceRecord&)>& take) {
  memory_->synchronize_all();
  uint64_t written = 0;
  memory_->download(&written, ring_.get(), kCounterBytes, nullptr);
  const uint64_t kept = written - std::min(written, records_);
  const auto lose = [&](uint64_t n) {
    if (n > counted_) counters_.lost += n - counted_;
    counted_ = std::max(counted_, n);
  };
  lose(kept);
  // Many records at a time: callers wait meanwhile.
  constexpr uint64_t kAtOnce = 1024;
  std::vector<uint32_t> several;
  uint64_t first = 0, end = 0;  // the records in it
  std::vector<int32_t> histogram;
  std::vector<double> configs_us;
  for (uint64_t n = std::max(from, kept); n < written; ++n) {
    if (n >= end) {
      first = n;
      end = std::min({written, n + kAtOnce, n + records_ - n % records_});  // not over the ring's end
      several.resize((end - first) * kRecordWords);
      const auto* const at =
          static_cast<const std::byte*>(ring_.get()) + kCounterBytes + 4 * kRecordWords * (n % records_);
      memory_->download(several.data(), at, 4 * several.size(), nullptr);
    }
    const std::span<const uint32_t> words =
        std::span(several).subspan((n - first) * kRecordWords, kRecordWords);
    if (words[0] != static_cast<uint32_t>(n) + 1 || words[1] >= calls_.size()) {
      lose(n + 1);
      continue;
    }
    const Call& call = calls_[words[1]];
    const auto counts = words.begin() + kTraceHeader;
    histogram.assign(counts, counts + call.shape.experts);
    TraceRecord record;
    record.number = n;
    record.call = words[1];
    record.shape = &call.shape;
    record.format = call.format;
    record.tokens = call.tokens;
    record.batched = call.batched;
    record.configs = call.configs;
    record.chosen = std::min<size_t>(words[2], call.configs.size() - 1);
    record.predicted_us = words[3] / 1000.0;
    record.measured_us = elapsed_us(words[4]);
    configs_us.assign(call.configs.size(), 0);
    for (size_t c = 0; call.set->whole && c < configs_us.size(); ++c)
      configs_us[c] = step_ns(call.set->decide.cost[c], call.set->decide.plan[c].tile_m, histogram) / 1000.0;
    record.configs_us = configs_us;
    // Experts that are divided among kernels are no config's.
    if (call.set->whole) record.fallback = &call.fallback;
    if (call.set->whole && call.fallback_cost)
      record.fallback_us = step_ns(*call.fallback_cost, call.fallback_tile_m, histogram) / 1000.0;
    record.histogram = histogram;
    if (n >= counted_) {
      counters_.add(record);
      counted_ = n + 1;
    }
    if (take) take(record);
  }
  return written;
}

void StepTrace::read(const std::function<void(const TraceRecord&)>& take) {
  const std::lock_guard lock(mutex_);
  if (ring_ != nullptr) read_ = scan(read_, take);
}

TraceCounters StepTrace::counters() {
  const std::lock_guard lock(mutex_);
  if (ring_ != nullptr) scan(counted_, nullptr);
  return counters_;
}

}  // namespace ramp::core::cuda

namespace ramp::core {

void TraceCounters::add(const TraceRecord& r) noexcept {
  ++records;
  const HistogramStats stats = describe(r.histogram);
  if (stats.rows == 0) return;
  ++active;
  imbalance_sum += stats.imbalance;
  imbalance_max = std::max(imbalance_max, stats.imbalance);
  if (r.fallback != nullptr && !(r.configs[r.chosen] == *r.fallback)) ++changed;
  if (r.predicted_us > 0 && r.fallback_us > 0) {
    ++compared;
    chosen_us += r.predicted_us;
    default_us += r.fallback_us;
    const double regret = r.fallback_us / r.predicted_us - 1;
    default_regret_sum += regret;
    default_regret_max = compared == 1 ? regret : std::max(default_regret_max, regret);
  }
  if (r.measured_us > 0) {
    ++measured;
    measured_us += r.measured_us;
    if (r.predicted_us > 0) {
      ++judged;
      error_sum += std::abs(r.predicted_us / r.measured_us - 1);
    }
  }
}

}  // namespace ramp::core
