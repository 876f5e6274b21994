// Barriers, asynchronous copies, clusters and fences of the emulated PTX instructions (ptx.hpp); their bodies
// are in ptx_async.cpp.
//
// An mbarrier is its 64-bit word in shared memory, laid out in ptx_async.cpp. Misuse is a fault: a word that
// was not initialised, more arrivals than the barrier counts, a tx-count out of range, a parity that is
// neither 0 nor 1, misaligned addresses and sizes of copies, a signal to a barrier of another block than the
// data's.
//
// A fence needs no statement: all threads of a cluster take turns on one OS thread, and other blocks are
// reached by atomics (ptx_memory.hpp) and fences of C++.
#pragma once

#include "emulator/ptx_operands.hpp"

namespace ptx {

// The machine calls this when the last thread of a block leaves, in that thread. Then nothing may be under
// way: a copy that lands after its block has left would write into another block's memory, so that is a
// fault. failed: the kernel has trapped (no thread runs), what is left is forgotten.
void block_end(const emu::Block& block, bool failed);

namespace detail {

void barrier_init(u64 bar, u32 count);
void barrier_arrive(u64 bar);
void barrier_expect(u64 bar, u32 bytes);
// try_wait: the thread sleeps until the phase ends. test_wait: it only lets others run.
bool barrier_wait(u64 bar, u32 parity);
bool barrier_test(u64 bar, u32 parity);
// Global to shared memory of block `rank` of the cluster each bit of `ranks` names, or to `to` alone.
void bulk_copy(u64 to, u64 from, u32 bytes, u64 bar);
void bulk_multicast(u64 to, u64 from, u32 bytes, u64 bar, u32 ranks);
void bulk_store(u64 to, u64 from, u32 bytes);
void bulk_commit();
void bulk_wait(u32 groups);
void copy(u64 to, u64 from, u32 bytes, u32 taken);
void copy_commit();
void copy_wait(u32 groups);
void copy_arrive(u64 bar);
void store_remote(u64 to, const void* value, u32 bytes, u64 bar);
void check_registers(u32 count);

}  // namespace detail

// ---------------------------------------------------------------- mbarriers

template <typename S>
void mbarrier_init_shared_cta_b64(u64 bar, const S& count) {
  detail::barrier_init(bar, get<u32>(count));
}
inline void mbarrier_arrive_shared_cta_b64(Sink, u64 bar) {
  detail::barrier_arrive(bar);
}
inline void mbarrier_arrive_shared_cluster_b64(Sink, u64 bar) {
  detail::barrier_arrive(bar);
}
inline void mbarrier_arrive_release_cluster_shared_cluster_b64(Sink, u64 bar) {
  detail::barrier_arrive(bar);
}
template <typename S>
void mbarrier_arrive_expect_tx_shared_cta_b64(Sink, u64 bar, const S& bytes) {
  detail::barrier_expect(bar, get<u32>(bytes));
}
template <typename S>
void mbarrier_try_wait_parity_shared_cta_b64(bool& done, u64 bar, const S& parity) {
  done = detail::barrier_wait(bar, get<u32>(parity));
}
template <typename S>
void mbarrier_try_wait_parity_acquire_cluster_shared_cta_b64(bool& done, u64 bar, const S& parity) {
  done = detail::barrier_wait(bar, get<u32>(parity));
}
template <typename S>
void mbarrier_test_wait_parity_shared_cta_b64(bool& done, u64 bar, const S& parity) {
  done = detail::barrier_test(bar, get<u32>(parity));
}

// ---------------------------------------------------------------- copies

template <typename S>
void cp_async_bulk_shared_cluster_global_mbarrier_complete_tx_bytes(u64 to, u64 from, const S& bytes,
                                                                    u64 bar) {
  detail::bulk_copy(to, from, get<u32>(bytes), bar);
}
template <typename S, typename P>
void cp_async_bulk_shared_cluster_global_mbarrier_complete_tx_bytes_L2_cache_hint(u64 to, u64 from,
                                                                                  const S& bytes, u64 bar,
                                                                                  const P&) {
  detail::bulk_copy(to, from, get<u32>(bytes), bar);
}
template <typename S, typename M>
void cp_async_bulk_shared_cluster_global_mbarrier_complete_tx_bytes_multicast_cluster(u64 to, u64 from,
                                                                                      const S& bytes, u64 bar,
                                                                                      const M& ranks) {
  detail::bulk_multicast(to, from, get<u32>(bytes), bar, get<u16>(ranks));
}
template <typename S>
void cp_async_bulk_global_shared_cta_bulk_group(u64 to, u64 from, const S& bytes) {
  detail::bulk_store(to, from, get<u32>(bytes));
}
inline void cp_async_bulk_commit_group() {
  detail::bulk_commit();
}
inline void cp_async_bulk_wait_group(u32 groups) {
  detail::bulk_wait(groups);
}
inline void cp_async_bulk_wait_group_read(u32 groups) {
  detail::bulk_wait(groups);
}

// Without a last operand all bytes are taken; with one, the bytes from there on are zeros.
inline void cp_async_cg_shared_global(u64 to, u64 from, u32 bytes) {
  detail::copy(to, from, bytes, bytes);
}
inline void cp_async_cg_shared_global(u64 to, u64 from, u32 bytes, u32 taken) {
  detail::copy(to, from, bytes, taken);
}
inline void cp_async_cg_shared_global_L2_128B(u64 to, u64 from, u32 bytes, u32 taken) {
  detail::copy(to, from, bytes, taken);
}
inline void cp_async_ca_shared_global(u64 to, u64 from, u32 bytes) {
  detail::copy(to, from, bytes, bytes);
}
inline void cp_async_ca_shared_global(u64 to, u64 from, u32 bytes, u32 taken) {
  detail::copy(to, from, bytes, taken);
}
inline void cp_async_commit_group() {
  detail::copy_commit();
}
inline void cp_async_wait_group(u32 groups) {
  detail::copy_wait(groups);
}
inline void cp_async_mbarrier_arrive_noinc_shared_cta_b64(u64 bar) {
  detail::copy_arrive(bar);
}

template <typename S>
void st_async_weak_shared_cluster_mbarrier_complete_tx_bytes_f32(u64 to, const S& s, u64 bar) {
  const float v = get<float>(s);
  detail::store_remote(to, &v, sizeof v, bar);
}
template <typename V>
void st_async_weak_shared_cluster_mbarrier_complete_tx_bytes_v4_f32(u64 to, const V& s, u64 bar) {
  const float v[4] = {get<float>(s[0]), get<float>(s[1]), get<float>(s[2]), get<float>(s[3])};
  detail::store_remote(to, v, sizeof v, bar);
}

// ---------------------------------------------------------------- other barriers, clusters

template <typename I, typename T>
void bar_sync(const I& id, const T& threads) {
  emu::named_barrier(get<u32>(id), get<u32>(threads), true);
}
template <typename I, typename T>
void bar_arrive(const I& id, const T& threads) {
  emu::named_barrier(get<u32>(id), get<u32>(threads), false);
}
inline void barrier_cluster_arrive() {
  emu::cluster_arrive();
}
inline void barrier_cluster_arrive_release() {
  emu::cluster_arrive();
}
inline void barrier_cluster_wait() {
  emu::cluster_wait();
}
inline void barrier_cluster_wait_acquire() {
  emu::cluster_wait();
}
template <typename D, typename A, typename R>
void mapa_shared_cluster_u32(D& d, const A& address, const R& rank) {
  put(d, emu::map_to_rank(get<u32>(address), get<u32>(rank)));
}

// ---------------------------------------------------------------- no work here

inline void fence_mbarrier_init_release_cluster() {}
inline void fence_proxy_async() {}
inline void fence_proxy_async_shared_cta() {}
inline void fence_proxy_async_global() {
  std::atomic_thread_fence(std::memory_order_seq_cst);
}
// Launches of a stream run one after the other here: what this one depends on is complete.
inline void griddepcontrol_wait() {}
inline void griddepcontrol_launch_dependents() {}
inline void setmaxnreg_inc_sync_aligned_u32(u32 count) {
  detail::check_registers(count);
}
inline void setmaxnreg_dec_sync_aligned_u32(u32 count) {
  detail::check_registers(count);
}

}  // namespace ptx
