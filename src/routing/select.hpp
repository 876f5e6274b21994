// Top-k selection with a total order: by key, NaN after everything, ties to the lower id. Key and id travel
// as one 64-bit number, so comparing, sorting and a later device twin are plain integer work.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

namespace ramp::core {

// Order-preserving bits of a float: NaN 0, then -inf < ... < -0 = +0 < ... < +inf.
inline uint32_t ordered_bits(float x) noexcept {
  if (x != x) return 0;
  const uint32_t bits = std::bit_cast<uint32_t>(x + 0.0F);  // -0 becomes +0: they tie
  return (bits & 0x80000000U) != 0 ? ~bits : bits | 0x80000000U;
}
// Larger is better; of equal keys the lower id is.
inline uint64_t candidate(float key, int64_t id) noexcept {
  return static_cast<uint64_t>(ordered_bits(key)) << 32U | ~static_cast<uint32_t>(id);
}
// The key again (NaN for 0; -0 came in as +0).
inline float candidate_key(uint64_t c) noexcept {
  const auto bits = static_cast<uint32_t>(c >> 32U);
  if (bits == 0) return std::bit_cast<float>(0x7fc00000U);
  return std::bit_cast<float>((bits & 0x80000000U) != 0 ? bits ^ 0x80000000U : ~bits);
}
inline int64_t candidate_id(uint64_t c) noexcept {
  const uint32_t id = ~static_cast<uint32_t>(c);
  return id;
}

// Collects candidates in any order; finish() leaves the best k in `best`, best first. For small k an
// insertion into the sorted k (most candidates fail the first comparison), else introselect over all of them.
class TopK {
 public:
  static constexpr int64_t kInsertionLimit = 64;

  // best: room for capacity() candidates.
  TopK(uint64_t* best, int64_t k) noexcept : best_(best), k_(k) {}
  static int64_t capacity(int64_t k, int64_t candidates) noexcept {
    return k <= kInsertionLimit ? k : candidates;
  }
  void offer(uint64_t c) noexcept {
    if (k_ > kInsertionLimit) {
      best_[size_++] = c;
      return;
    }
    if (size_ == k_ && c < best_[k_ - 1]) return;
    int64_t i = size_ < k_ ? size_++ : k_ - 1;
    for (; i > 0 && best_[i - 1] < c; --i) best_[i] = best_[i - 1];
    best_[i] = c;
  }
  // Offers ids [begin, end) with keys[id]; ranges come in ascending order. Blocks in which nothing exceeds
  // the k-th best so far are skipped by one vector comparison: an equal key has a higher id, so it loses too.
  void offer_range(const float* keys, int64_t begin, int64_t end) noexcept {
    constexpr int64_t kBlock = 32;
    int64_t id = begin;
    for (; id + kBlock <= end; id += kBlock) {
      if (size_ == k_ && k_ <= kInsertionLimit && worst_ == worst_) {
        unsigned exceeds = 0;
        for (int64_t i = 0; i < kBlock; ++i) exceeds |= keys[id + i] > worst_ ? 1U : 0U;
        if (exceeds == 0) continue;
      }
      for (int64_t i = 0; i < kBlock; ++i) offer_key(keys[id + i], id + i);
    }
    for (; id < end; ++id) offer_key(keys[id], id);
  }
  // At least k candidates must have been offered.
  void finish() noexcept {
    if (k_ <= kInsertionLimit) return;
    const auto greater = [](uint64_t a, uint64_t b) { return a > b; };
    std::nth_element(best_, best_ + (k_ - 1), best_ + size_, greater);
    std::sort(best_, best_ + k_, greater);
  }

 private:
  void offer_key(float key, int64_t id) noexcept {
    // (NaN as the k-th best: anything but NaN is better, which only the candidates can tell.)
    if (size_ == k_ && key <= worst_ && k_ <= kInsertionLimit) return;
    offer(candidate(key, id));
    if (size_ == k_) worst_ = candidate_key(best_[k_ - 1]);
  }

  uint64_t* best_;
  int64_t k_;
  int64_t size_ = 0;
  float worst_ = 0;  // key of best_[k_-1] once there are k
};

}  // namespace ramp::core
