// The PTX instructions that the kernels use, as C++ functions: what a translated program calls where the CUDA
// source has an asm text. The name is the opcode with '.' and '::' replaced by '_'; destinations come first
// and are references, {a, b} comes as vec(a, b), [x + 32] as at(x, 32), '_' as sink(), immediates as they
// are. Everything that is more than a few statements lies in ptx_*.cpp next to the machine, because these
// headers are compiled with every translated program.
//
// Results are those of the PTX ISA, bit for bit, with these exceptions:
//  * ex2.approx, rcp.approx give the correctly rounded value; the ISA allows 2 units in the last place for
//    ex2.approx.ftz.f32 and 1 for rcp.approx.ftz.f32;
//  * mma and wgmma add products to the accumulator one by one, in order of k, each sum rounded to fp32.
//    Hardware adds several products at once and keeps fewer bits while it does (e4m3 on sm_90 above all);
//    so bits of emulated results are to be compared with emulated ones;
//  * asynchronous copies and wgmma are done when issued, which is one of the legal executions. With
//    RAMP_EMULATED_LATE=1 they are done when somebody waits for them and not before, which is another: a
//    missing wait then reads stale data.
#pragma once

#include "emulator/ptx_async.hpp"
#include "emulator/ptx_convert.hpp"
#include "emulator/ptx_matrix.hpp"
#include "emulator/ptx_memory.hpp"

namespace ptx {

// ---------------------------------------------------------------- moves, predicates, integers

template <typename D, typename S>
void mov_u32(D& d, const S& s) {
  put(d, get<u32>(s));
}
template <typename D, typename S>
void mov_u64(D& d, const S& s) {
  put(d, get<u64>(s));
}
template <typename D, typename S>
void mov_f32(D& d, const S& s) {
  put(d, get<float>(s));
}
template <typename D, typename S>
void mov_b32(D& d, const S& s) {
  put(d, get<u32>(s));
}
// Splits a word: the lower half first.
template <typename T, typename S>
void mov_b32(const References<T, 2>& d, const S& s) {
  const u32 v = get<u32>(s);
  put(d[0], static_cast<u16>(v));
  put(d[1], static_cast<u16>(v >> 16));
}
template <typename A, typename B>
void setp_ne_u32(bool& p, const A& a, const B& b) {
  p = get<u32>(a) != get<u32>(b);
}
template <typename A, typename B>
void setp_ne_b32(bool& p, const A& a, const B& b) {
  p = get<u32>(a) != get<u32>(b);
}
template <typename D, typename A, typename B>
void selp_u32(D& d, const A& a, const B& b, bool p) {
  put(d, p ? get<u32>(a) : get<u32>(b));
}
template <typename D, typename S>
void popc_b32(D& d, const S& s) {
  put(d, static_cast<u32>(std::popcount(get<u32>(s))));
}
// Shifts of 32 and more give 0, as in PTX.
template <typename D, typename A, typename B>
void shr_u32(D& d, const A& a, const B& b) {
  const u32 by = get<u32>(b);
  put(d, by > 31 ? 0U : get<u32>(a) >> by);
}

inline u32 sreg_cluster_ctarank() {
  return emu::cluster_rank();
}
inline u32 sreg_cluster_nctarank() {
  return emu::cluster_blocks();
}
inline u64 sreg_clock64() {
  return emu::clock_ns();
}

[[noreturn]] inline void trap() {
  emu::trap("the kernel executed trap");
}

}  // namespace ptx
