// Bodies of ptx_async.hpp: the mbarrier's word, and the copies that are under way where RAMP_EMULATED_LATE=1
// asks for the latest moment instead of the earliest one.
//
// Late copies of an OS thread (whole clusters) stand in one list. A bulk copy to shared memory lands when
// somebody waits for its barrier in vain, a group of small copies or of bulk stores when its thread waits for
// the group (or, for small copies, when somebody waits for a barrier that they arrive at). Later ones land
// before earlier ones: their order is not promised either.
#include "emulator/ptx_async.hpp"

#include <algorithm>
#include <cstdlib>
#include <vector>

#include "emulator/ptx_late.hpp"
#include "emulator/scheduler.hpp"

namespace ptx {
namespace detail {
namespace {

// ---------------------------------------------------------------- the word of an mbarrier
// From the lowest bit: 20 bits arrivals that a phase expects, 20 bits arrivals still to come in this one, 21
// bits tx-count (signed: bytes may arrive before they are announced), 1 bit parity of the running phase, and
// 10 in the two highest bits of a word that has been initialised.
constexpr u32 kCountLimit = (1U << 20) - 1;
constexpr i32 kBytesLimit = (1 << 20) - 1;

struct Barrier {
  u32 expected, pending;
  i32 bytes;
  u32 parity;
};

u64 pack(const Barrier& b) {
  return u64{b.expected} | u64{b.pending} << 20 | (static_cast<u64>(b.bytes) & 0x1fffffU) << 40 |
         u64{b.parity} << 61 | u64{2} << 62;
}

u64* word_at(u64 bar, const char* what) {
  check_aligned(bar, 8, what);
  return reinterpret_cast<u64*>(emu::shared(static_cast<u32>(bar), 8));
}

Barrier unpack(const u64* at, const char* what) {
  const u64 word = *at;
  const Barrier b{static_cast<u32>(word & kCountLimit), static_cast<u32>(word >> 20 & kCountLimit),
                  static_cast<i32>(static_cast<u32>(word >> 40 & 0x1fffffU) << 11) >> 11,
                  static_cast<u32>(word >> 61 & 1U)};
  if (word >> 62 != 2 || b.expected == 0 || b.pending > b.expected || (b.pending == 0 && b.bytes == 0))
    emu::trapf("%s: got word 0x%016llx, expected an initialised mbarrier", what,
               static_cast<unsigned long long>(word));
  return b;
}

// Threads that sleep in try_wait, all of clusters of this OS thread.
struct Sleeper {
  const u64* word;
  emu::Fiber* thread;
};
thread_local std::vector<Sleeper> sleepers;

void wake_all(const u64* word) {
  for (const Sleeper& s : sleepers)
    if (s.word == word) emu::wake(s.thread);
  std::erase_if(sleepers, [&](const Sleeper& s) { return s.word == word; });
}

// One change of the barrier: `arrivals` of the running phase, `bytes` more (or, negative, fewer) to come.
void change(u64* at, u32 arrivals, i32 bytes, const char* what) {
  Barrier b = unpack(at, what);
  if (arrivals > b.pending)
    emu::trapf("%s: got one arrival more than the %u that the mbarrier counts in a phase", what, b.expected);
  if (std::abs(b.bytes + bytes) > kBytesLimit)
    emu::trapf("%s: got a tx-count of %d, expected at most %d", what, b.bytes + bytes, kBytesLimit);
  b.pending -= arrivals;
  b.bytes += bytes;
  if (b.pending == 0 && b.bytes == 0) {
    b.pending = b.expected;
    b.parity ^= 1U;
    wake_all(at);
    emu::progress();
  }
  *at = pack(b);
}

// ---------------------------------------------------------------- copies under way

struct Thread {
  const emu::Block* block;
  u32 index;
  bool operator==(const Thread&) const = default;
};

struct Copy {
  enum Kind { kToShared, kSmall, kArrival, kStore } kind;
  u8* to;
  const u8* from;
  u32 bytes, taken;  // the rest are zeros
  u64* bar;          // kToShared, kArrival
  Thread thread;
  u32 group;  // of that thread: how many were committed before it
  u32 rank;   // kToShared: of the block that it goes to
};

struct Late {
  std::vector<Copy> copies;
  std::vector<std::pair<Thread, u32>> groups[2];  // committed by a thread: of small copies, of stores
};
thread_local Late late_copies;

Thread this_thread() {
  return {&emu::block(), emu::here().thread};
}
u32& committed(int store) {
  auto& all = late_copies.groups[store];
  const Thread thread = this_thread();
  const auto found =
      std::find_if(all.begin(), all.end(), [&](const auto& entry) { return entry.first == thread; });
  return found != all.end() ? found->second : all.emplace_back(thread, 0U).second;
}

void land(const Copy& c) {
  if (c.kind != Copy::kArrival) {
    std::memcpy(c.to, c.from, c.taken);
    std::memset(c.to + c.taken, 0, c.bytes - c.taken);
  }
  if (c.kind == Copy::kToShared) change(c.bar, 0, -static_cast<i32>(c.bytes), "cp.async.bulk");
  if (c.kind == Copy::kArrival) change(c.bar, 1, 0, "cp.async.mbarrier.arrive");
}

// Lands what `taken` says of the list, the last first.
template <typename Taken>
void land_some(const Taken& taken) {
  auto& copies = late_copies.copies;
  std::vector<Copy> now;
  for (const Copy& c : copies)
    if (taken(c)) now.push_back(c);
  std::erase_if(copies, taken);
  std::for_each(now.rbegin(), now.rend(), land);
}

// What stands between a barrier's phase and its end: copies that complete on it, and arrivals that follow
// their thread's small copies.
void land_for(const u64* bar) {
  const std::vector<Copy> waiting = late_copies.copies;
  for (const Copy& arrival : waiting) {
    if (arrival.kind != Copy::kArrival || arrival.bar != bar) continue;
    land_some([&](const Copy& c) {
      return c.kind == Copy::kSmall && c.thread == arrival.thread && c.group <= arrival.group;
    });
  }
  land_some([&](const Copy& c) { return c.bar == bar; });
}

void begin(const Copy& c) {
  if (late())
    late_copies.copies.push_back(c);
  else
    land(c);
}

u32 rank_of(u64 address) {
  return address >> 24 != 0 ? static_cast<u32>(address >> 24) - 1 : emu::cluster_rank();
}
void check_same_block(u64 to, u64 bar, const char* what) {
  if (rank_of(to) != rank_of(bar))
    emu::trapf("%s: got data and mbarrier of two blocks (0x%llx, 0x%llx)", what,
               static_cast<unsigned long long>(to), static_cast<unsigned long long>(bar));
}
void check_bulk(u64 to, u64 from, u32 bytes, const char* what) {
  check_aligned(to, 16, what);
  check_aligned(from, 16, what);
  if (bytes % 16 != 0) emu::trapf("%s: got %u bytes, expected a multiple of 16", what, bytes);
}

void bulk_to_shared(u64 to, u64 from, u32 bytes, u64 bar) {
  const char* const what = "cp.async.bulk";
  check_bulk(to, from, bytes, what);
  check_same_block(to, bar, what);
  u64* const word = word_at(bar, what);
  unpack(word, what);
  emu::check_memory(reinterpret_cast<const void*>(from), bytes, what);
  u8* const host = emu::shared(static_cast<u32>(to), bytes);
  begin({Copy::kToShared, host, reinterpret_cast<const u8*>(from), bytes, bytes, word, this_thread(), 0,
         rank_of(to)});
}

}  // namespace

std::atomic<bool>& late_switch() {
  static std::atomic<bool> value = [] {
    const char* const text = std::getenv("RAMP_EMULATED_LATE");
    return text != nullptr && *text != '\0' && *text != '0';
  }();
  return value;
}

void barrier_init(u64 bar, u32 count) {
  if (count == 0 || count > kCountLimit)
    emu::trapf("mbarrier.init: got a count of %u, expected 1 to %u", count, kCountLimit);
  *word_at(bar, "mbarrier.init") = pack({count, count, 0, 0});
}
void barrier_arrive(u64 bar) {
  change(word_at(bar, "mbarrier.arrive"), 1, 0, "mbarrier.arrive");
}
void barrier_expect(u64 bar, u32 bytes) {
  const char* const what = "mbarrier.arrive.expect_tx";
  if (bytes > static_cast<u32>(kBytesLimit))
    emu::trapf("%s: got %u bytes, expected at most %d", what, bytes, kBytesLimit);
  change(word_at(bar, what), 1, static_cast<i32>(bytes), what);
}
bool barrier_test(u64 bar, u32 parity) {
  const char* const what = "mbarrier.test_wait.parity";
  if (parity > 1) emu::trapf("%s: got parity %u, expected 0 or 1", what, parity);
  u64* const word = word_at(bar, what);
  if (unpack(word, what).parity != parity) return true;
  if (late()) land_for(word);
  emu::yield();
  return unpack(word, what).parity != parity;
}
bool barrier_wait(u64 bar, u32 parity) {
  if (late()) return barrier_test(bar, parity);  // somebody must look again after each copy that begins
  const char* const what = "mbarrier.try_wait.parity";
  if (parity > 1) emu::trapf("%s: got parity %u, expected 0 or 1", what, parity);
  u64* const word = word_at(bar, what);
  if (unpack(word, what).parity != parity) return true;
  sleepers.push_back({word, &emu::current()});
  emu::wait("mbarrier", static_cast<u32>(bar));
  return unpack(word, what).parity != parity;
}

void bulk_copy(u64 to, u64 from, u32 bytes, u64 bar) {
  bulk_to_shared(to, from, bytes, bar);
}
void bulk_multicast(u64 to, u64 from, u32 bytes, u64 bar, u32 ranks) {
  if (ranks == 0 || ranks >> emu::cluster_blocks() != 0)
    emu::trapf("cp.async.bulk.multicast: got ranks 0x%x, expected some of a cluster of %u", ranks,
               emu::cluster_blocks());
  for (u32 rank = 0; rank < emu::cluster_blocks(); rank++) {
    if ((ranks >> rank & 1U) == 0) continue;
    bulk_to_shared(emu::map_to_rank(static_cast<u32>(to), rank), from, bytes,
                   emu::map_to_rank(static_cast<u32>(bar), rank));
  }
}
void bulk_store(u64 to, u64 from, u32 bytes) {
  const char* const what = "cp.async.bulk.global.shared";
  check_bulk(to, from, bytes, what);
  u8* const host = reinterpret_cast<u8*>(to);
  emu::check_memory(host, bytes, what);
  const u8* const source = emu::shared(static_cast<u32>(from), bytes);
  begin({Copy::kStore, host, source, bytes, bytes, nullptr, this_thread(), late() ? committed(1) : 0, 0});
}
void bulk_commit() {
  if (late()) committed(1)++;
}
void bulk_wait(u32 groups) {
  if (!late()) return;
  const Thread thread = this_thread();
  const u32 now = committed(1);
  land_some([&](const Copy& c) {
    return c.kind == Copy::kStore && c.thread == thread && c.group < now && now - c.group > groups;
  });
}

void copy(u64 to, u64 from, u32 bytes, u32 taken) {
  const char* const what = "cp.async";
  if ((bytes != 4 && bytes != 8 && bytes != 16) || taken > bytes)
    emu::trapf("%s: got %u of %u bytes, expected 4, 8 or 16", what, taken, bytes);
  check_aligned(to, bytes, what);
  check_aligned(from, bytes, what);
  const u8* const source = reinterpret_cast<const u8*>(from);
  if (taken != 0) emu::check_memory(source, taken, what);
  u8* const host = emu::shared(static_cast<u32>(to), bytes);
  begin({Copy::kSmall, host, source, bytes, taken, nullptr, this_thread(), late() ? committed(0) : 0, 0});
}
void copy_commit() {
  if (late()) committed(0)++;
}
void copy_wait(u32 groups) {
  if (!late()) return;
  const Thread thread = this_thread();
  const u32 now = committed(0);
  land_some([&](const Copy& c) {
    return c.kind == Copy::kSmall && c.thread == thread && c.group < now && now - c.group > groups;
  });
}
void copy_arrive(u64 bar) {
  const char* const what = "cp.async.mbarrier.arrive";
  u64* const word = word_at(bar, what);
  unpack(word, what);
  begin({Copy::kArrival, nullptr, nullptr, 0, 0, word, this_thread(), late() ? committed(0) : 0, 0});
}

void store_remote(u64 to, const void* value, u32 bytes, u64 bar) {
  const char* const what = "st.async";
  check_aligned(to, bytes, what);
  check_same_block(to, bar, what);
  std::memcpy(emu::shared(static_cast<u32>(to), bytes), value, bytes);
  change(word_at(bar, what), 0, -static_cast<i32>(bytes), what);
}

void check_registers(u32 count) {
  if (count % 8 != 0 || count < 24 || count > 256)
    emu::trapf("setmaxnreg: got %u registers, expected a multiple of 8 from 24 to 256", count);
}

}  // namespace detail

namespace {
void forget(const emu::Block& block) {
  std::erase_if(detail::late_copies.copies, [&](const auto& c) { return c.thread.block == &block; });
  for (auto& groups : detail::late_copies.groups)
    std::erase_if(groups, [&](const auto& g) { return g.first.block == &block; });
  detail::late_products_clear(block);
  std::erase_if(detail::sleepers, [&](const auto& s) { return &s.thread->block->info == &block; });
}
}  // namespace

void block_end(const emu::Block& block, bool failed) {
  // What goes to another block may outlast the one that asked for it: who waits for it is over there.
  if (!failed) {
    detail::land_some([&](const detail::Copy& c) {
      return c.thread.block == &block && c.kind == detail::Copy::kToShared && c.rank != block.cluster_rank;
    });
  }
  bool to_shared = false, store = false;
  for (const detail::Copy& c : detail::late_copies.copies) {
    if (c.thread.block != &block) continue;
    to_shared |= c.kind == detail::Copy::kToShared;
    store |= c.kind == detail::Copy::kStore;
  }
  const bool product = detail::late_products_left(block);
  forget(block);
  if (failed) return;
  if (to_shared) emu::trap("a block has left the kernel with bulk copies to shared memory under way");
  if (store)
    emu::trap("a block has left the kernel before its bulk stores were read (no cp.async.bulk.wait_group)");
  if (product) emu::trap("a block has left the kernel with wgmma under way");
}

}  // namespace ptx
