// The machine under an emulated kernel, as the instructions (ptx*.hpp) and the CUDA builtins (device.hpp) see
// it: who the running thread is, how threads meet (warp, warpgroup, named barrier, cluster), where shared
// memory lies, and how a device fault ends a kernel. Implemented in machine.cpp, which lies in the emulated
// libcuda; translated programs find these symbols when libcuda loads them.
//
// A CUDA thread is a fiber. All fibers of a block, and all blocks of a cluster, run on one OS thread, and a
// fiber gives way only inside these functions: between two of them a thread's statements are never
// interleaved with those of its own block or cluster (so no lock is needed for what a cluster shares:
// mbarriers, shared memory). Blocks of other clusters may run on other OS threads at the same time: global
// memory needs atomics as ever.
#pragma once

#include <cstddef>
#include <cstdint>

namespace emu {

using u8 = std::uint8_t;
using u16 = std::uint16_t;
using u32 = std::uint32_t;
using u64 = std::uint64_t;
using i8 = std::int8_t;
using i16 = std::int16_t;
using i32 = std::int32_t;
using i64 = std::int64_t;

struct Dim {
  u32 x = 1, y = 1, z = 1;
};

// Of the running fiber. thread: linear index in the block; warpgroup = thread / 128.
struct Position {
  u32 thread, warp, lane, warpgroup;
  u32 block_threads;
  Dim thread_index;  // threadIdx
};
const Position& here();

// Of the running block.
struct Block {
  Dim index, grid, threads;  // blockIdx, gridDim, blockDim
  Dim cluster;               // extent of a cluster, 1 x 1 x 1 without one
  u32 cluster_rank, cluster_blocks;
  u32 sm;              // %smid: which of the emulated multiprocessors this block stands for
  u32 dynamic_shared;  // bytes of dynamic shared memory of the launch
};
const Block& block();

// Lets the other threads of the block and of other blocks run. Every instruction that polls calls it
// (test_wait and try_wait that fail, loads that acquire or are volatile, __nanosleep), as does every loop in
// wait for another thread.
void yield();

// Every thread of the group calls with its own `mine`; the last one to arrive runs all(mines, count), where
// mines[i] is the pointer of thread i of the group, nullptr where that lane is not in the mask; then all go
// on. All lanes of the mask must come to the same meeting: another `all` than the first one's is a fault.
void warp_collective(u32 mask, void* mine, void (*all)(void** mines, u32 count));  // count = 32
void warpgroup_collective(void* mine, void (*all)(void** mines, u32 count));       // count = 128
// Lanes of this warp that have not left the kernel (what __activemask() can at best promise).
u32 warp_alive();

// bar.sync (wait) and bar.arrive (not wait) of barrier `id` for `threads` threads; 0 threads: all of the
// block.
// __syncthreads is named_barrier(0, 0, true).
void named_barrier(u32 id, u32 threads, bool wait);

// Shared memory. Addresses are below 2^24 inside a block; rank r of a cluster is address | (r + 1) << 24, so
// that bits below 18 (wgmma descriptors keep address & 0x3ffff) identify the place. Dynamic shared memory
// starts at kDynamicShared, a multiple of 1024; static storage lies behind it.
inline constexpr u32 kDynamicShared = 1024;
inline constexpr u32 kSharedBytes = 227 * 1024;                      // most dynamic bytes of a block
inline constexpr u32 kStaticShared = kDynamicShared + kSharedBytes;  // where static storage starts
inline constexpr u32 kStaticBytes = 256 * 1024;                      // of all kernels of a program together
inline constexpr u32 kArenaBytes = kStaticShared + kStaticBytes;     // shared memory of one block, all told

u8* shared(u32 address,
           u32 bytes = 1);          // host pointer; a fault where [address, address + bytes) is not inside
u32 shared_address(const void* p);  // the other way; a fault where p is not in this cluster's shared memory
bool is_shared(const void* p);      // whether p lies in this cluster's shared memory
u32 map_to_rank(u32 address, u32 rank);  // mapa

inline u32 cluster_rank() {
  return block().cluster_rank;
}
inline u32 cluster_blocks() {
  return block().cluster_blocks;
}
void cluster_arrive();  // barrier.cluster.arrive
void cluster_wait();    // barrier.cluster.wait

// A fault where [p, p + bytes) is not inside memory that cuMemAlloc or cuMemAllocHost gave out (or shared
// memory, or the thread's own stack). Instructions call it for what they touch asynchronously or with a
// descriptor.
void check_memory(const void* p, u64 bytes, const char* what);

// A device fault: the text and the place go to stderr, the kernel ends, and its context is lost
// (CUDA_ERROR_LAUNCH_FAILED from then on).
[[noreturn]] void trap(const char* what);
[[noreturn]] void trapf(const char* format, ...) __attribute__((format(printf, 1, 2)));

u64 clock_ns();  // %globaltimer, clock64

}  // namespace emu
