// The CUDA backend: a GPU, its kernels, and the Backend interface over them.
#pragma once

#include <memory>

#include "backend/backend.hpp"

namespace ramp::core {

// options.device.index: which GPU. options.isa: the kernel family, "" = the best for each call, "plain" (fp32
// sums) or "plain_f64". Throws UNSUPPORTED with one clear line where there is no driver, GPU or compiler, or
// the GPU is older than compute capability 8.0.
std::unique_ptr<Backend> make_cuda_backend(const BackendOptions& options);

}  // namespace ramp::core
