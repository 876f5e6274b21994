// Ranges in NVTX's domain "ramp". The toolkit's headers hold the whole of NVTX; a domain without a tool is
// NULL.
#include "backend/cuda/nvtx.hpp"

#include <nvtx3/nvToolsExt.h>

namespace ramp::core::cuda {
namespace {

nvtxDomainHandle_t domain() noexcept {
  static const nvtxDomainHandle_t once = nvtxDomainCreateA("ramp");
  return once;
}

}  // namespace

ScopedRange::ScopedRange(const char* name) noexcept : pushed_(domain() != nullptr) {
  if (!pushed_) return;
  nvtxEventAttributes_t attributes{};
  attributes.version = NVTX_VERSION;
  attributes.size = NVTX_EVENT_ATTRIB_STRUCT_SIZE;
  attributes.messageType = NVTX_MESSAGE_TYPE_ASCII;
  attributes.message.ascii = name;
  nvtxDomainRangePushEx(domain(), &attributes);
}

ScopedRange::~ScopedRange() {
  if (pushed_) nvtxDomainRangePop(domain());
}

}  // namespace ramp::core::cuda
