// See fiber.hpp.
#include "emulator/fiber.hpp"

#include <sys/mman.h>

#include <cstdlib>
#include <new>

namespace emu {

Stack Stack::make() {
  void* const memory = ::mmap(nullptr, kBytes + kGuard, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  if (::mprotect(memory, kGuard, PROT_NONE) != 0) throw std::bad_alloc();
  return {static_cast<std::byte*>(memory) + kGuard};
}

namespace {
// Frames that an earlier fiber never left are forgotten.
void clean(const Stack& stack) {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(stack.low, Stack::kBytes);
#else
  static_cast<void>(stack);
#endif
}
}  // namespace

void Place::enter(Place* place) {
#if defined(__SANITIZE_ADDRESS__)
  const void* low = nullptr;
  size_t bytes = 0;
  __sanitizer_finish_switch_fiber(nullptr, &low, &bytes);
  if (place->came_from_ != nullptr && place->came_from_->stack_low_ == nullptr) {
    place->came_from_->stack_low_ = low;  // the OS thread's own stack
    place->came_from_->stack_bytes_ = bytes;
  }
#endif
  place->entry_(place->argument_);
  std::abort();
}

void fiber_entered(Place* place) {
  Place::enter(place);
}

#if defined(__x86_64__)

extern "C" {
// Saves what a function must keep on the stack, the stack pointer in *from, and goes on where `to` points.
void emu_switch(void** from, void* to);
[[gnu::used]] void emu_fiber_begin(void* place) {
  fiber_entered(static_cast<Place*>(place));
}
}
asm(R"(
.text
.globl emu_switch
.hidden emu_switch
.type emu_switch, @function
emu_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emu_switch, .-emu_switch
.type emu_start, @function
emu_start:
  movq %r12, %rdi
  call emu_fiber_begin
  ud2
.size emu_start, .-emu_start
)");
extern "C" void emu_start();
asm(".hidden emu_fiber_begin");

void Place::begin(const Stack& stack, void (*entry)(void*), void* argument) {
  clean(stack);
  entry_ = entry;
  argument_ = argument;
  stack_low_ = stack.low;
  stack_bytes_ = Stack::kBytes;
  auto* const top = reinterpret_cast<void**>(stack.low + Stack::kBytes);
  // r15 r14 r13 r12 rbx rbp, the address to return to, and two words that keep calls aligned.
  void** const sp = top - 9;
  for (int i = 0; i < 9; ++i) sp[i] = nullptr;
  sp[3] = this;
  void (*const start)() = &emu_start;
  sp[6] = reinterpret_cast<void*>(start);
  sp_ = sp;
}

void Place::switch_to(Place& to, [[maybe_unused]] bool last) {
  to.came_from_ = this;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(last ? nullptr : &fake_stack_, to.stack_low_, to.stack_bytes_);
#endif
  emu_switch(&sp_, to.sp_);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack_, nullptr, nullptr);
#endif
}

#else

namespace {
void start(unsigned high, unsigned low) {
  fiber_entered(reinterpret_cast<Place*>(static_cast<uintptr_t>(high) << 32 | low));
}
}  // namespace

void Place::begin(const Stack& stack, void (*entry)(void*), void* argument) {
  clean(stack);
  entry_ = entry;
  argument_ = argument;
  stack_low_ = stack.low;
  stack_bytes_ = Stack::kBytes;
  ::getcontext(&context_);
  context_.uc_stack.ss_sp = stack.low;
  context_.uc_stack.ss_size = Stack::kBytes;
  context_.uc_link = nullptr;
  const auto self = reinterpret_cast<uintptr_t>(this);
  ::makecontext(&context_, reinterpret_cast<void (*)()>(&start), 2, static_cast<unsigned>(self >> 32),
                static_cast<unsigned>(self));
}

void Place::switch_to(Place& to, [[maybe_unused]] bool last) {
  to.came_from_ = this;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(last ? nullptr : &fake_stack_, to.stack_low_, to.stack_bytes_);
#endif
  ::swapcontext(&context_, &to.context_);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack_, nullptr, nullptr);
#endif
}

#endif

}  // namespace emu
