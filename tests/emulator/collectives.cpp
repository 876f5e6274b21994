// See collectives.hpp.
#include "emulator/collectives.hpp"

#include <algorithm>

namespace emu {
namespace {

struct Shuffle {
  u64 value;
  u32 source;
  u64 result;
  bool valid;
};
void shuffle_all(void** mines, u32 count) {
  for (u32 i = 0; i < count; ++i) {
    if (mines[i] == nullptr) continue;
    auto* const mine = static_cast<Shuffle*>(mines[i]);
    const auto* const other = static_cast<const Shuffle*>(mines[mine->source]);
    mine->valid = other != nullptr;
    mine->result = other != nullptr ? other->value : 0;
  }
}

struct Vote {
  u64 value;
  u32 result;
};
void ballot_all(void** mines, u32 count) {
  u32 result = 0;
  for (u32 i = 0; i < count; ++i)
    if (mines[i] != nullptr && static_cast<const Vote*>(mines[i])->value != 0) result |= 1U << i;
  for (u32 i = 0; i < count; ++i)
    if (mines[i] != nullptr) static_cast<Vote*>(mines[i])->result = result;
}
void match_all_lanes(void** mines, u32 count) {
  for (u32 i = 0; i < count; ++i) {
    if (mines[i] == nullptr) continue;
    auto* const mine = static_cast<Vote*>(mines[i]);
    mine->result = 0;
    for (u32 j = 0; j < count; ++j)
      if (mines[j] != nullptr && static_cast<const Vote*>(mines[j])->value == mine->value)
        mine->result |= 1U << j;
  }
}
void sync_all(void**, u32) {}

u32 combine(u32 a, u32 b, Reduce what) {
  switch (what) {
    case Reduce::kAdd:
      return a + b;
    case Reduce::kAnd:
      return a & b;
    case Reduce::kOr:
      return a | b;
    case Reduce::kXor:
      return a ^ b;
    case Reduce::kMin:
      return std::min(a, b);
    case Reduce::kMax:
      return std::max(a, b);
    case Reduce::kMinSigned:
      return static_cast<u32>(std::min(static_cast<i32>(a), static_cast<i32>(b)));
    case Reduce::kMaxSigned:
      return static_cast<u32>(std::max(static_cast<i32>(a), static_cast<i32>(b)));
  }
  return 0;
}
template <Reduce WHAT>
void reduce_all(void** mines, u32 count) {
  bool any = false;
  u32 result = 0;
  for (u32 i = 0; i < count; ++i) {
    if (mines[i] == nullptr) continue;
    const auto v = static_cast<u32>(static_cast<const Vote*>(mines[i])->value);
    result = any ? combine(result, v, WHAT) : v;
    any = true;
  }
  for (u32 i = 0; i < count; ++i)
    if (mines[i] != nullptr) static_cast<Vote*>(mines[i])->result = result;
}

u32 vote(u32 mask, u64 value, void (*all)(void**, u32)) {
  Vote v{value, 0};
  warp_collective(mask, &v, all);
  return v.result;
}

}  // namespace

u64 shuffle(u32 mask, u64 value, u32 source) {
  Shuffle s{value, source % 32, 0, false};
  warp_collective(mask, &s, shuffle_all);
  if (!s.valid) trapf("a shuffle reads lane %u, which is not in its mask %#x", s.source, mask);
  return s.result;
}
u32 ballot(u32 mask, bool predicate) {
  return vote(mask, predicate ? 1 : 0, ballot_all);
}
u32 match_any(u32 mask, u64 value) {
  return vote(mask, value, match_all_lanes);
}
u32 match_all(u32 mask, u64 value) {
  return match_any(mask, value) == mask ? mask : 0;
}
u32 reduce(u32 mask, u32 value, Reduce what) {
  switch (what) {
    case Reduce::kAdd:
      return vote(mask, value, reduce_all<Reduce::kAdd>);
    case Reduce::kAnd:
      return vote(mask, value, reduce_all<Reduce::kAnd>);
    case Reduce::kOr:
      return vote(mask, value, reduce_all<Reduce::kOr>);
    case Reduce::kXor:
      return vote(mask, value, reduce_all<Reduce::kXor>);
    case Reduce::kMin:
      return vote(mask, value, reduce_all<Reduce::kMin>);
    case Reduce::kMax:
      return vote(mask, value, reduce_all<Reduce::kMax>);
    case Reduce::kMinSigned:
      return vote(mask, value, reduce_all<Reduce::kMinSigned>);
    case Reduce::kMaxSigned:
      return vote(mask, value, reduce_all<Reduce::kMaxSigned>);
  }
  return 0;
}
void sync_warp(u32 mask) {
  warp_collective(mask, nullptr, sync_all);
}

}  // namespace emu
