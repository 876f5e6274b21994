// Who runs when: workers take clusters in order of their index while the machine has room for them, and run
// their threads in turn until each has left the kernel. Finds deadlocks, endless polling, writes behind the
// end of shared memory, and the faults that the host's own processor reports.
#include "emulator/scheduler.hpp"

#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <thread>

#include "emulator/ptx_async.hpp"

namespace emu {
namespace {

thread_local Worker* t_worker = nullptr;

constexpr u8 kPoison = 0xff;  // NaN in every format
constexpr u32 kCanary = 1024;

u64 number_from_environment(const char* name, u64 otherwise) {
  const char* const text = std::getenv(name);  // NOLINT(concurrency-mt-unsafe)
  return text == nullptr || *text == '\0' ? otherwise : std::strtoull(text, nullptr, 10);
}

u64 volume(const Dim& d) {
  return static_cast<u64>(d.x) * d.y * d.z;
}

u8* take_arena(Worker& w) {
  if (w.arenas.empty()) {
    void* const memory = ::mmap(nullptr, kArenaBytes, PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    w.arenas.push_back(static_cast<u8*>(memory));
  }
  u8* const arena = w.arenas.back();
  w.arenas.pop_back();
  return arena;
}

void run_thread(void* fiber) {
  auto* const f = static_cast<Fiber*>(fiber);
  const Launch& launch = *worker().run->launch;
  launch.run(launch.arguments);
  if (f->block->alive == 1) ptx::block_end(f->block->info, false);
  ClusterState& c = *f->block->cluster;
  f->done = true;
  --f->block->alive;
  --c.alive;
  --c.runnable;
  progress();
  thread_left(*f);
  if (c.alive > 0 && c.runnable == 0)
    trapf("deadlock: this thread has left the kernel, all others wait\n%s", describe_waits(c).c_str());
  leave();
}

void set_up_block(Worker& w, ClusterState& c, u32 rank, const Dim& index) {
  const Launch& l = *w.run->launch;
  BlockState& b = c.blocks[rank];
  b.info = {index, l.grid,          l.threads, l.cluster, rank, static_cast<u32>(c.blocks.size()),
            0,     l.dynamic_shared};
  b.info.sm = static_cast<u32>(
      (index.x + static_cast<u64>(l.grid.x) * (index.y + static_cast<u64>(l.grid.y) * index.z)) %
      l.multiprocessors);
  b.cluster = &c;
  b.arena = take_arena(w);
  std::memset(b.arena, kPoison, kDynamicShared + std::min(l.dynamic_shared + kCanary, kSharedBytes));
  std::memset(b.arena + kStaticShared, kPoison, std::min(l.static_shared, kStaticBytes));
  const auto threads = static_cast<u32>(volume(l.threads));
  b.alive = threads;
  b.fibers = std::vector<Fiber>(threads);
  b.warps.resize((threads + 31) / 32);
  b.warpgroups.resize((threads + 127) / 128);
  for (u32 t = 0; t < threads; ++t) {
    Fiber& f = b.fibers[t];
    f.position = {t,       t / 32,
                  t % 32,  t / 128,
                  threads, {t % l.threads.x, t / l.threads.x % l.threads.y, t / l.threads.x / l.threads.y}};
    f.block = &b;
    if (w.stacks.empty()) w.stacks.push_back(Stack::make());
    f.stack = w.stacks.back();
    w.stacks.pop_back();
    f.place.begin(f.stack, run_thread, &f);
    w.ready.push_back(&f);
  }
}

// The next cluster of the grid, if there is one and the machine has room. Blocks start in order of their
// index.
bool admit(Worker& w) {
  Run& run = *w.run;
  if (w.clusters.size() >= w.share || run.next.load() >= run.clusters) return false;
  if (run.resident.fetch_add(1) >= run.capacity) {
    --run.resident;
    return false;
  }
  const u64 number = run.next.fetch_add(1);
  if (number >= run.clusters) {
    --run.resident;
    return false;
  }
  const Launch& l = *run.launch;
  const u64 cx = l.grid.x / l.cluster.x, cy = l.grid.y / l.cluster.y;
  const Dim at{static_cast<u32>(number % cx), static_cast<u32>(number / cx % cy),
               static_cast<u32>(number / cx / cy)};
  auto made = std::make_unique<ClusterState>();
  ClusterState& c = *made;
  c.worker = &w;
  c.blocks = std::vector<BlockState>(volume(l.cluster));
  c.alive = c.runnable = static_cast<u32>(c.blocks.size() * volume(l.threads));
  w.clusters.push_back(std::move(made));
  for (u32 r = 0; r < c.blocks.size(); ++r)
    set_up_block(w, c, r,
                 {at.x * l.cluster.x + r % l.cluster.x, at.y * l.cluster.y + r / l.cluster.x % l.cluster.y,
                  at.z * l.cluster.z + r / l.cluster.x / l.cluster.y});
  return true;
}

void give_back(Worker& w, ClusterState& c) {
  for (BlockState& b : c.blocks) {
    if (b.arena != nullptr) w.arenas.push_back(b.arena);
    for (const Fiber& f : b.fibers)
      if (f.stack.low != nullptr) w.stacks.push_back(f.stack);
  }
}

void report(Run& run, const std::string& text) {
  thread_local bool reporting = false;
  if (reporting) std::abort();  // a fault of the report itself
  reporting = true;
  const std::lock_guard lock(run.mutex);
  if (run.fault.empty()) {
    run.fault = text;
    std::fprintf(stderr, "emulated GPU: %s\n", text.c_str());
  }
  run.faulted = true;
  reporting = false;
}

// Nothing may have been written between the end of the dynamic shared memory and the static one.
void check_canary(Run& run, const ClusterState& c) {
  const Launch& l = *run.launch;
  for (const BlockState& b : c.blocks) {
    const u8* const end = b.arena + kDynamicShared + l.dynamic_shared;
    const u32 bytes = std::min(kCanary, kSharedBytes - l.dynamic_shared);
    for (u32 i = 0; i < bytes; ++i)
      if (end[i] != kPoison) {
        report(run, std::string(l.name) + ", block " + std::to_string(b.info.index.x) + ": wrote " +
                        std::to_string(i) + " bytes behind its " + std::to_string(l.dynamic_shared) +
                        " bytes of dynamic shared memory");
        return;
      }
    for (u32 i = 0; i < kDynamicShared; ++i)
      if (b.arena[i] != kPoison) {
        report(run, std::string(l.name) + ", block " + std::to_string(b.info.index.x) +
                        ": wrote in front of its shared memory");
        return;
      }
  }
}

void retire(Worker& w) {
  for (size_t i = 0; i < w.clusters.size();) {
    if (w.clusters[i]->alive > 0) {
      ++i;
      continue;
    }
    check_canary(*w.run, *w.clusters[i]);
    give_back(w, *w.clusters[i]);
    w.clusters.erase(w.clusters.begin() + static_cast<std::ptrdiff_t>(i));
    --w.run->resident;
  }
}

void work(Worker& w) {
  using Clock = std::chrono::steady_clock;
  t_worker = &w;
  Run& run = *w.run;
  const u64 limit = number_from_environment("RAMP_EMULATED_TIMEOUT", 60);
  auto last_change = Clock::now();
  u64 last_progress = ~u64{0};
  while (!run.faulted) {
    retire(w);
    admit(w);
    if (w.clusters.empty()) {
      if (run.next.load() >= run.clusters) break;
      ::sched_yield();
      continue;
    }
    // One turn: everybody who can run does so once.
    const u64 before = run.progress.load();
    for (size_t n = w.ready.size(); n > 0 && !run.faulted; --n) {
      if (w.shuffled) std::swap(w.ready.front(), w.ready[w.random() % w.ready.size()]);
      w.current = w.ready.front();
      w.ready.pop_front();
      w.place.switch_to(w.current->place);
    }
    w.current = nullptr;
    if (run.progress.load() != before) continue;
    ::sched_yield();
    if (run.progress.load() != last_progress) {
      last_progress = run.progress.load();
      last_change = Clock::now();
    } else if (Clock::now() - last_change > std::chrono::seconds(limit)) {
      std::string text =
          std::string(run.launch->name) + ": nothing but polling for " + std::to_string(limit) + " s";
      for (const auto& c : w.clusters) text += "\n" + describe_waits(*c);
      report(run, text);
    }
  }
  for (const auto& c : w.clusters) {
    for (const BlockState& b : c->blocks) ptx::block_end(b.info, true);
    give_back(w, *c);
  }
  w.clusters.clear();
  w.ready.clear();
  w.current = nullptr;
  t_worker = nullptr;
}

// ---------------------------------------------------------------- faults that the host's processor reports

constexpr int kSignals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
struct sigaction g_old[std::size(kSignals)];

void restore_signals() {
  for (size_t i = 0; i < std::size(kSignals); ++i) ::sigaction(kSignals[i], &g_old[i], nullptr);
}

#if defined(__x86_64__)
thread_local const char* t_signal = "";
thread_local void* t_address = nullptr;

[[noreturn]] void landed() {
  trapf("%s (address %p)", t_signal, t_address);
}

void on_signal(int signal, siginfo_t* info, void* context) {
  if (t_worker == nullptr || t_worker->current == nullptr) {
    restore_signals();  // not a kernel's: as before
    return;
  }
  // Illegal instructions are what the compiler puts where it was asked to check (build_id.cpp).
  t_signal = signal == SIGFPE ? "integer division by zero"
             : signal == SIGILL
                 ? "a pointer that is not aligned for its type, or an index outside of its array"
                 : "access outside of memory, or the stack is full";
  t_address = info->si_addr;
  auto* const machine = &static_cast<ucontext_t*>(context)->uc_mcontext;
  auto* const top = t_worker->emergency.low + Stack::kBytes - 64;
  machine->gregs[REG_RSP] = static_cast<greg_t>(reinterpret_cast<uintptr_t>(top) - 8);
  machine->gregs[REG_RIP] = static_cast<greg_t>(reinterpret_cast<uintptr_t>(&landed));
}
#endif

// For one OS thread while it works: where its signals are handled, the fibers' stacks being full perhaps.
class SignalStack {
 public:
  SignalStack() : memory_(new char[kBytes]) {
    stack_t mine{};
    mine.ss_sp = memory_.get();
    mine.ss_size = kBytes;
    ::sigaltstack(&mine, &old_);
  }
  ~SignalStack() { ::sigaltstack(&old_, nullptr); }
  SignalStack(const SignalStack&) = delete;
  SignalStack& operator=(const SignalStack&) = delete;

 private:
  static constexpr size_t kBytes = 64 * 1024;
  std::unique_ptr<char[]> memory_;
  stack_t old_{};
};

void catch_signals(bool on) {
#if defined(__x86_64__)
  if (on) {
    struct sigaction mine {};
    mine.sa_sigaction = on_signal;
    mine.sa_flags = SA_SIGINFO | SA_ONSTACK;
    for (size_t i = 0; i < std::size(kSignals); ++i) ::sigaction(kSignals[i], &mine, &g_old[i]);
  } else {
    restore_signals();
  }
#else
  static_cast<void>(on);
#endif
}

std::vector<std::unique_ptr<Worker>>& workers() {
  static auto* const made =
      new std::vector<std::unique_ptr<Worker>>;  // threads of a dying process may use it
  return *made;
}

}  // namespace

Worker& worker() {
  return *t_worker;
}

void wait(const char* what, u32 id) {
  Fiber& f = current();
  ClusterState& c = *f.block->cluster;
  f.waits_for = what;
  f.waits_id = id;
  if (--c.runnable == 0) trapf("deadlock: every thread waits\n%s", describe_waits(c).c_str());
  f.place.switch_to(worker().place);
}

void wake(Fiber* f) {
  f->waits_for = nullptr;
  ++f->block->cluster->runnable;
  f->block->cluster->worker->ready.push_back(f);
}

void progress() {
  worker().run->progress.fetch_add(1, std::memory_order_relaxed);
}

void leave() {
  Worker& w = worker();
  Fiber& f = *w.current;
  f.place.switch_to(w.place, true);
  std::abort();
}

void yield() {
  Worker& w = worker();
  Fiber& f = *w.current;
  w.ready.push_back(&f);
  f.place.switch_to(w.place);
}

void trap(const char* what) {
  const Fiber& f = current();
  const Block& b = f.block->info;
  char place[200];
  std::snprintf(place, sizeof place,
                "%s, block %u,%u,%u (rank %u), thread %u (warp %u, lane %u): ", worker().run->launch->name,
                b.index.x, b.index.y, b.index.z, b.cluster_rank, f.position.thread, f.position.warp,
                f.position.lane);
  report(*worker().run, std::string(place) + what);
  leave();
}

void trapf(const char* format, ...) {
  char text[4000];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  trap(text);
}

// Threads of each block by what they wait for, neighbours in one line.
std::string describe_waits(const ClusterState& c) {
  std::string text;
  for (const BlockState& b : c.blocks) {
    for (size_t first = 0; first < b.fibers.size();) {
      const Fiber& f = b.fibers[first];
      size_t last = first;
      while (last + 1 < b.fibers.size() && b.fibers[last + 1].done == f.done &&
             b.fibers[last + 1].waits_for == f.waits_for && b.fibers[last + 1].waits_id == f.waits_id)
        ++last;
      char line[200];
      std::snprintf(line, sizeof line, "  block %u,%u threads %zu..%zu: %s %#x\n", b.info.index.x,
                    b.info.index.y, first, last,
                    f.done                   ? "left"
                    : f.waits_for == nullptr ? "running or polling"
                                             : f.waits_for,
                    f.waits_id);
      if (text.size() < 3000) text += line;
      first = last + 1;
    }
  }
  return text;
}

std::string run(const Launch& launch) {
  static std::mutex one_at_a_time;
  const std::lock_guard lock(one_at_a_time);
  Run run;
  run.launch = &launch;
  const u64 in_cluster = volume(launch.cluster);
  run.clusters = volume(launch.grid) / in_cluster;
  run.capacity = std::max<u64>(
      1, static_cast<u64>(launch.multiprocessors) * launch.blocks_per_multiprocessor / in_cluster);
  const u64 cores = std::max<u64>(1, std::thread::hardware_concurrency());
  const u64 count =
      std::min({number_from_environment("RAMP_EMULATED_THREADS", cores), run.clusters, run.capacity});
  const u64 seed = number_from_environment("RAMP_EMULATED_SEED", 0);
  while (workers().size() < std::max<u64>(1, count)) {
    workers().push_back(std::make_unique<Worker>());
    workers().back()->emergency = Stack::make();
    workers().back()->random.seed(static_cast<unsigned>(seed * 64 + workers().size()));
  }
  catch_signals(true);
  const auto start = [&](Worker& w) {
    const SignalStack signals;
    w.run = &run;
    w.shuffled = seed != 0;
    w.share = (run.capacity + count - 1) / count;
    work(w);
  };
  std::vector<std::thread> others;
  for (u64 i = 1; i < count; ++i) others.emplace_back([&, i] { start(*workers()[i]); });
  start(*workers()[0]);
  for (std::thread& t : others) t.join();
  catch_signals(false);
  return run.fault;
}

}  // namespace emu
