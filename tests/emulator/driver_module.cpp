// libcuda of the emulated GPU: programs, their functions, and launches.
#include <cuda.h>
#include <dlfcn.h>
#include <elf.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <map>
#include <mutex>

#include "emulator/build_id.hpp"
#include "emulator/driver_state.hpp"
#include "emulator/kernel.hpp"
#include "emulator/launch.hpp"

struct CUfunc_st {
  std::string name;
  const emu::Kernel* kernel = nullptr;
  int dynamic_shared_limit = 48 * 1024;
  bool large_clusters = false;
};
struct CUmod_st {
  void* library = nullptr;
  std::mutex mutex;
  std::map<std::string, CUfunc_st> functions;
};

using namespace emu;  // NOLINT(google-build-using-namespace)

namespace {

// Registers that a compiler which heeds the launch bounds could use at most; what it does use nobody knows
// here.
int registers_of(const Kernel& k) {
  const int threads = k.most_threads == 0 ? 1024 : static_cast<int>(k.most_threads);
  return std::min(255,
                  device().registers / (threads * std::max(1, static_cast<int>(k.least_blocks))) / 8 * 8);
}

int resident_blocks(const CUfunc_st& f, u64 threads, u64 dynamic_shared) {
  const Device& d = device();
  const u64 warps = (threads + 31) / 32;
  const u64 shared = dynamic_shared + std::min<u32>(*f.kernel->static_shared, 48 * 1024) + 1024;
  u64 blocks = static_cast<u64>(d.blocks);
  blocks = std::min(blocks, static_cast<u64>(d.threads) / (32 * warps));
  blocks = std::min(blocks,
                    static_cast<u64>(d.registers) / (32 * warps * static_cast<u64>(registers_of(*f.kernel))));
  blocks = std::min(blocks, static_cast<u64>(d.shared_per_multiprocessor) / shared);
  return static_cast<int>(blocks);
}

// RAMP_EMULATED_TRACE=FILE: a line for every kernel that runs.
void note(const Launch& l) {
  static std::FILE* const file = [] {
    const char* const path = std::getenv("RAMP_EMULATED_TRACE");  // NOLINT(concurrency-mt-unsafe)
    return path == nullptr ? nullptr : std::fopen(path, "ae");
  }();
  if (file == nullptr) return;
  std::fprintf(file, "%s grid %u %u %u cluster %u threads %u shared %u\n", l.name, l.grid.x, l.grid.y,
               l.grid.z, l.cluster.x, l.threads.x, l.dynamic_shared);
  std::fflush(file);
}

CUresult launch_kernel(CUfunction f, Launch launch, bool cooperative, CUstream stream, void** arguments) {
  if (ready() != CUDA_SUCCESS) return ready();
  const Kernel& k = *f->kernel;
  const u64 threads = static_cast<u64>(launch.threads.x) * launch.threads.y * launch.threads.z;
  const u64 grid = static_cast<u64>(launch.grid.x) * launch.grid.y * launch.grid.z;
  if (k.cluster.x != 0) launch.cluster = k.cluster;
  const u64 cluster = static_cast<u64>(launch.cluster.x) * launch.cluster.y * launch.cluster.z;
  const auto refuse = [&](CUresult r, const char* why) {
    std::fprintf(stderr,
                 "emulated GPU: launch of %s refused: %s (grid %u x %u x %u, %llu threads, %u bytes of "
                 "shared memory)\n",
                 f->name.c_str(), why, launch.grid.x, launch.grid.y, launch.grid.z,
                 static_cast<unsigned long long>(threads), launch.dynamic_shared);
    return r;
  };
  if (threads == 0 || grid == 0) return refuse(CUDA_ERROR_INVALID_VALUE, "it has no threads");
  if (launch.grid.y > 65535 || launch.grid.z > 65535 || launch.grid.x > 0x7fffffffU)
    return refuse(CUDA_ERROR_INVALID_VALUE, "the grid is too large");
  if (threads > 1024 || (k.most_threads != 0 && threads > k.most_threads))
    return refuse(CUDA_ERROR_INVALID_VALUE, "more threads than the kernel's launch bounds");
  if (launch.dynamic_shared > static_cast<u32>(f->dynamic_shared_limit) ||
      launch.dynamic_shared + std::min<u32>(*k.static_shared, 48 * 1024) >
          static_cast<u32>(device().shared_per_block))
    return refuse(CUDA_ERROR_INVALID_VALUE,
                  "more shared memory than the function's attribute or the block allows");
  if (cluster == 0 || cluster > (f->large_clusters ? 16U : 8U) || launch.grid.x % launch.cluster.x != 0 ||
      launch.grid.y % launch.cluster.y != 0 || launch.grid.z % launch.cluster.z != 0)
    return refuse(CUDA_ERROR_INVALID_CLUSTER_SIZE, "the cluster does not divide the grid, or is too large");
  const int resident = resident_blocks(*f, threads, launch.dynamic_shared);
  if (resident == 0) return refuse(CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES, "no block fits a multiprocessor");
  if (cooperative && grid > static_cast<u64>(resident) * static_cast<u64>(device().multiprocessors))
    return CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE;
  // The driver copies arguments before it returns.
  std::vector<std::vector<std::byte>> copies(k.arguments);
  for (u32 i = 0; i < k.arguments; ++i) {
    const auto* const bytes = static_cast<const std::byte*>(arguments[i]);
    copies[i].assign(bytes, bytes + k.argument_bytes[i]);
  }
  launch.run = k.run;
  launch.static_shared = *k.static_shared;
  launch.multiprocessors = static_cast<u32>(device().multiprocessors);
  launch.blocks_per_multiprocessor = static_cast<u32>(resident);
  return enqueue(stream, [launch, f, copies = std::move(copies)]() mutable {
    std::vector<void*> pointers;
    // Parameters may ask for 16 bytes of alignment, which a vector of bytes has from the allocator.
    for (auto& c : copies) pointers.push_back(c.data());
    launch.arguments = pointers.data();
    launch.name = f->name.c_str();
    note(launch);
    return run(launch).empty() ? CUDA_SUCCESS : CUDA_ERROR_LAUNCH_FAILED;
  });
}

}  // namespace

extern "C" {

CUresult cuModuleLoadData(CUmodule* module, const void* image) {
  if (const CUresult r = unless_capturing(); r != CUDA_SUCCESS) return r;
  Elf64_Ehdr header;
  std::memcpy(&header, image, sizeof header);
  if (std::memcmp(header.e_ident, ELFMAG, SELFMAG) != 0 || header.e_ident[EI_CLASS] != ELFCLASS64)
    return CUDA_ERROR_INVALID_IMAGE;
  if (header.e_type != ET_DYN || header.e_machine == 190 /* EM_CUDA */) return CUDA_ERROR_NO_BINARY_FOR_GPU;
  // The table of sections comes last.
  const u64 bytes = header.e_shoff + static_cast<u64>(header.e_shnum) * header.e_shentsize;
  // A name of its own: dlopen would give the same library for the same name.
  std::string name = (std::filesystem::temp_directory_path() / "ramp-emulated-program.XXXXXX").string();
  const int file = ::mkstemp(name.data());
  if (file < 0) return CUDA_ERROR_OUT_OF_MEMORY;
  u64 done = 0;
  while (done < bytes) {
    const ssize_t n = ::write(file, static_cast<const char*>(image) + done, bytes - done);
    if (n <= 0) break;
    done += static_cast<u64>(n);
  }
  ::close(file);
  void* const library = done == bytes ? ::dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL) : nullptr;
  const char* const why = library == nullptr ? ::dlerror() : nullptr;  // NOLINT(concurrency-mt-unsafe)
  ::unlink(name.c_str());
  const auto* const build =
      library == nullptr ? nullptr : static_cast<const char* const*>(::dlsym(library, "emu_program_build"));
  if (build == nullptr || *build != build_id()) {
    // One of another state of the emulator: the library compiles it again.
    if (library != nullptr)
      ::dlclose(library);
    else
      std::fprintf(stderr, "emulated GPU: a program that does not load: %s\n", why == nullptr ? "?" : why);
    return CUDA_ERROR_NO_BINARY_FOR_GPU;
  }
  *module = new CUmod_st;
  (*module)->library = library;
  return CUDA_SUCCESS;
}
CUresult cuModuleUnload(CUmodule module) {
  if (ready() != CUDA_SUCCESS) return ready();
  ::dlclose(module->library);
  delete module;
  return CUDA_SUCCESS;
}
CUresult cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
  if (ready() != CUDA_SUCCESS) return ready();
  const auto* const kernel =
      static_cast<const Kernel*>(::dlsym(module->library, (std::string("emu_kernel_") + name).c_str()));
  if (kernel == nullptr) return CUDA_ERROR_NOT_FOUND;
  if (*kernel->static_shared > kStaticBytes) return CUDA_ERROR_OUT_OF_MEMORY;
  const std::lock_guard lock(module->mutex);
  CUfunc_st& f = module->functions[name];
  f.name = name;
  f.kernel = kernel;
  *function = &f;
  return CUDA_SUCCESS;
}
CUresult cuFuncGetAttribute(int* value, CUfunction_attribute which, CUfunction f) {
  switch (which) {
    case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK:
      *value = f->kernel->most_threads == 0 ? 1024 : static_cast<int>(f->kernel->most_threads);
      break;
    case CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES:
      *value = static_cast<int>(*f->kernel->static_shared);
      break;
    case CU_FUNC_ATTRIBUTE_NUM_REGS:
      *value = registers_of(*f->kernel);
      break;
    case CU_FUNC_ATTRIBUTE_BINARY_VERSION:
      *value = 10 * device().major + device().minor;
      break;
    case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES:
      *value = f->dynamic_shared_limit;
      break;
    default:
      *value = 0;
  }
  return ready();
}
CUresult cuFuncSetAttribute(CUfunction f, CUfunction_attribute which, int value) {
  if (which == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) {
    if (value < 0 || value + static_cast<int>(std::min<u32>(*f->kernel->static_shared, 48 * 1024)) >
                         device().shared_per_block)
      return CUDA_ERROR_INVALID_VALUE;
    f->dynamic_shared_limit = value;
  } else if (which == CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED) {
    f->large_clusters = value != 0;
  }
  return ready();
}
CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, CUfunction f, int threads, size_t shared) {
  *blocks = shared > static_cast<size_t>(f->dynamic_shared_limit)
                ? 0
                : resident_blocks(*f, static_cast<u64>(threads), shared);
  return ready();
}
CUresult cuLaunchKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                        unsigned bz, unsigned shared, CUstream stream, void** arguments, void**) {
  Launch l;
  l.grid = {gx, gy, gz};
  l.threads = {bx, by, bz};
  l.dynamic_shared = shared;
  return launch_kernel(f, l, false, stream, arguments);
}
CUresult cuLaunchKernelEx(const CUlaunchConfig* c, CUfunction f, void** arguments, void**) {
  Launch l;
  l.grid = {c->gridDimX, c->gridDimY, c->gridDimZ};
  l.threads = {c->blockDimX, c->blockDimY, c->blockDimZ};
  l.dynamic_shared = c->sharedMemBytes;
  bool cooperative = false;
  for (unsigned i = 0; i < c->numAttrs; ++i) {
    const CUlaunchAttribute& a = c->attrs[i];
    if (a.id == CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION)
      l.cluster = {a.value.clusterDim.x, a.value.clusterDim.y, a.value.clusterDim.z};
    if (a.id == CU_LAUNCH_ATTRIBUTE_COOPERATIVE) cooperative = a.value.cooperative != 0;
  }
  return launch_kernel(f, l, cooperative, c->hStream, arguments);
}

}  // extern "C"
