// What the bodies of the emulated PTX instructions share about RAMP_EMULATED_LATE=1: asynchronous work is
// then done when somebody waits for it, and not when it is issued.
#pragma once

#include <atomic>

#include "emulator/machine.hpp"

namespace ptx::detail {

std::atomic<bool>& late_switch();  // tests set it
inline bool late() {
  return late_switch().load(std::memory_order_relaxed);
}
// A block's wgmma under way (ptx_wgmma.cpp).
void late_products_clear(const emu::Block& block);
bool late_products_left(const emu::Block& block);

}  // namespace ptx::detail
