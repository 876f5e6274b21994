// The host's side of the trace.
#include "backend/cuda/step_trace.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.hpp"
#include "params/prologue.hpp"

namespace ramp::core::cuda {
namespace {

// A record: number + 1, call, option, ns, and a count per expert (kernels/prologue/decide.cuh).
constexpr uint64_t kHeaderWords = 4;
constexpr uint64_t kRecordWords = kHeaderWords + kPrologueMaxExperts;
constexpr uint64_t kCounterBytes = 8;
constexpr uint64_t kMostRecords = uint64_t{1} << 20;  // 4 GB

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

void StepTrace::describe(const ExpertWeights& w, int64_t tokens, int64_t top_k, bool batched,
                         const StepSet& set, DecideParams& out) {
  const std::lock_guard lock(mutex_);
  const auto [at, added] = numbers_.try_emplace({&w, tokens, top_k, batched, &set}, calls_.size());
  if (added) {
    Call call;
    call.shape = {"", w.experts, top_k, w.hidden, w.intermediate};
    call.format = w.format;
    call.tokens = tokens;
    call.batched = batched;
    for (const StepCandidate& c : set.candidates) call.configs.push_back(c.config());
    calls_.push_back(std::move(call));
  }
  out.trace = static_cast<unsigned long long*>(ring_.get());
  out.trace_words = static_cast<unsigned>(kRecordWords);
  out.trace_records = static_cast<unsigned>(records_);
  out.trace_call = at->second;
}

void StepTrace::read(const std::function<void(const TraceRecord&)>& take) {
  const std::lock_guard lock(mutex_);
  if (ring_ == nullptr) return;
  memory_->synchronize_all();
  uint64_t written = 0;
  memory_->download(&written, ring_.get(), kCounterBytes, nullptr);
  std::vector<uint32_t> words(kRecordWords);
  std::vector<int32_t> histogram;
  for (uint64_t n = std::max(read_, written - std::min(written, records_)); n < written; ++n) {
    const auto* const from =
        static_cast<const std::byte*>(ring_.get()) + kCounterBytes + 4 * kRecordWords * (n % records_);
    memory_->download(words.data(), from, 4 * kRecordWords, nullptr);
    if (words[0] != static_cast<uint32_t>(n) + 1 || words[1] >= calls_.size()) continue;
    const Call& call = calls_[words[1]];
    histogram.assign(words.begin() + kHeaderWords, words.begin() + kHeaderWords + call.shape.experts);
    TraceRecord record;
    record.number = n;
    record.call = words[1];
    record.shape = &call.shape;
    record.format = call.format;
    record.tokens = call.tokens;
    record.batched = call.batched;
    record.configs = call.configs;
    record.chosen = words[2];
    record.predicted_us = words[3] / 1000.0;
    record.histogram = histogram;
    take(record);
  }
  read_ = written;
}

}  // namespace ramp::core::cuda
