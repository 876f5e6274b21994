// The factory: the one place that knows all backends.
#include <fmt/format.h>

#include "backend/backend.hpp"
#include "backend/cpu/cpu_backend.hpp"
#if defined(RAMP_HAS_CUDA)
#include "backend/cuda/cuda_backend.hpp"
#endif
#include "backend/reference/reference.hpp"
#include "base/error.hpp"

namespace ramp::core {

std::unique_ptr<Backend> make_backend(ramp_backend kind, const BackendOptions& options) {
  if (options.device.type != RAMP_DEVICE_CPU && options.device.type != RAMP_DEVICE_CUDA) {
    fail_argument("device.type", fmt::format("{}", options.device.type),
                  "RAMP_DEVICE_CPU (0) or RAMP_DEVICE_CUDA (1)");
  }
  if (options.device.type == RAMP_DEVICE_CPU && options.device.index != 0) {
    fail_argument("device.index", fmt::format("{}", options.device.index), "0 for the CPU");
  }
  if (kind == RAMP_BACKEND_CUDA || options.device.type == RAMP_DEVICE_CUDA) {
#if defined(RAMP_HAS_CUDA)
    return make_cuda_backend(options);
#else
    fail(RAMP_ERROR_UNSUPPORTED,
         "backend: this build of ramp has no CUDA backend (the CUDA toolkit was not found when it was "
         "built); use "
         "backend cpu (or auto) on device cpu");
#endif
  }
  switch (kind) {
    case RAMP_BACKEND_AUTO:
    case RAMP_BACKEND_CPU:
      return make_cpu_backend(options);
    case RAMP_BACKEND_REFERENCE:
      return make_reference_backend(options);
    default:
      break;
  }
  fail_argument("backend", fmt::format("{}", static_cast<int>(kind)),
                "auto (0), reference (1), cpu (2) or cuda (3)");
}

}  // namespace ramp::core
