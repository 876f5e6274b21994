// A fiber: a stack of its own and the switch between two of them. On x86-64 the switch is a dozen
// instructions; elsewhere ucontext does it (which makes a system call each time).
#pragma once

#include <cstddef>
#include <cstdint>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace emu {

// One stack, with a page below it that nobody may touch.
struct Stack {
  static constexpr size_t kBytes = 128 * 1024;
  static constexpr size_t kGuard = 4096;
  std::byte* low = nullptr;  // of the usable part
  static Stack make();       // std::bad_alloc where the system has no room
};

// Where a fiber, or the thread that runs fibers, stands while another one runs.
class Place {
 public:
  // Switched to for the first time, calls entry(argument) on the stack; it must not return.
  void begin(const Stack& stack, void (*entry)(void*), void* argument);
  // Leaves this place for `to`; returns when somebody switches back. last: nobody ever will.
  void switch_to(Place& to, bool last = false);

 private:
#if defined(__x86_64__)
  void* sp_ = nullptr;
#else
  ucontext_t context_;
#endif
  void (*entry_)(void*) = nullptr;
  void* argument_ = nullptr;
  const void* stack_low_ = nullptr;  // what a sanitizer wants to know of the stack
  size_t stack_bytes_ = 0;
  void* fake_stack_ = nullptr;
  Place* came_from_ = nullptr;
  static void enter(Place* place);
  friend void fiber_entered(Place* place);
};

}  // namespace emu
