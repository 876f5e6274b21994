// Opening libcuda: each function by the symbol that cuda.h maps its name to, so that the table has the ABI
// that the declarations promise; and the text of a failed call.
#include "backend/cuda/driver.hpp"

#include <dlfcn.h>
#include <fmt/format.h>

#include <optional>

#include "base/error.hpp"

namespace ramp::core::cuda {
namespace {

constexpr int kOldestDriver = 12000;
constexpr const char* kLibrary = "libcuda.so.1";
constexpr const char* kFix = "or use backend cpu";

// cuda.h renames functions whose ABI has changed (cuMemAlloc is cuMemAlloc_v2): the symbol is the name after
// macro expansion, which takes a second level of macro.
#define RAMP_CUDA_SYMBOL_TEXT(name) #name
#define RAMP_CUDA_SYMBOL(name) RAMP_CUDA_SYMBOL_TEXT(name)

// What older drivers of the versions we accept call the same thing. CUDA 12.8 brought a second
// cuEventElapsedTime with the same parameters; all other symbols of the table are there since 12.0.
const char* older_symbol(std::string_view symbol) {
  return symbol == "cuEventElapsedTime_v2" ? "cuEventElapsedTime" : nullptr;
}

void* symbol_of(void* library, const char* symbol) {
  void* address = ::dlsym(library, symbol);
  if (address == nullptr)
    if (const char* const older = older_symbol(symbol)) address = ::dlsym(library, older);
  return address;
}

// Fills `d` and returns "", or the one line that says why there is no driver to use.
std::string open_driver(Driver& d) {
  // Never closed: memory and modules may be freed until the process ends.
  void* const library = ::dlopen(kLibrary, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    const char* const reason = ::dlerror();  // NOLINT(concurrency-mt-unsafe): per thread in glibc
    return fmt::format(
        "CUDA driver: got no {} ({}), expected an NVIDIA driver of CUDA {} or newer; install one {}",
        kLibrary, reason == nullptr ? "not found" : reason, version_text(kOldestDriver), kFix);
  }
  d.library = kLibrary;
  Dl_info info{};
  // The version first: a driver that is too old lacks symbols too, and its age is the better explanation.
  d.cuDriverGetVersion =
      reinterpret_cast<decltype(d.cuDriverGetVersion)>(symbol_of(library, "cuDriverGetVersion"));
  if (d.cuDriverGetVersion == nullptr || d.cuDriverGetVersion(&d.version) != CUDA_SUCCESS)
    return fmt::format(
        "CUDA driver: got a {} that does not tell its version, expected an NVIDIA driver; install one {}",
        kLibrary, kFix);
  if (::dladdr(reinterpret_cast<void*>(d.cuDriverGetVersion), &info) != 0 && info.dli_fname != nullptr)
    d.library = info.dli_fname;
  if (d.version < kOldestDriver)
    return fmt::format("CUDA driver: got version {}, expected {} or newer; update the NVIDIA driver {}",
                       version_text(d.version), version_text(kOldestDriver), kFix);
#define RAMP_CUDA_OPEN(name)                                                                          \
  d.name = reinterpret_cast<decltype(d.name)>(symbol_of(library, RAMP_CUDA_SYMBOL(name)));            \
  if (d.name == nullptr)                                                                              \
    return fmt::format("CUDA driver: got {} without {}, expected a complete driver; reinstall it {}", \
                       d.library, RAMP_CUDA_SYMBOL(name), kFix);
  RAMP_CUDA_FUNCTIONS(RAMP_CUDA_OPEN)
#undef RAMP_CUDA_OPEN
  const CUresult started = d.cuInit(0);
  if (started != CUDA_SUCCESS && started != CUDA_ERROR_NO_DEVICE) {
    const char* name = nullptr;
    if (d.cuGetErrorName(started, &name) != CUDA_SUCCESS || name == nullptr) name = "an unknown error";
    return fmt::format("CUDA driver: got {} ({}) from cuInit, expected success; check 'nvidia-smi' {}", name,
                       static_cast<int>(started), kFix);
  }
  int count = 0;
  if (started == CUDA_ERROR_NO_DEVICE || d.cuDeviceGetCount(&count) != CUDA_SUCCESS || count == 0)
    return fmt::format(
        "CUDA driver: got no GPU (driver {}), expected at least one; check 'nvidia-smi' and "
        "CUDA_VISIBLE_DEVICES {}",
        version_text(d.version), kFix);
  return {};
}

struct Opened {
  Driver table;
  std::string why;  // "" where the table can be used
};
const Opened& opened() {
  static const Opened once = [] {
    Opened o;
    o.why = open_driver(o.table);
    return o;
  }();
  return once;
}

}  // namespace

std::string version_text(int version) {
  return fmt::format("{}.{}", version / 1000, version % 1000 / 10);
}

const Driver& driver() {
  const Opened& o = opened();
  if (!o.why.empty()) [[unlikely]]
    fail(RAMP_ERROR_UNSUPPORTED, o.why);
  return o.table;
}

const Driver* find_driver(std::string* why) noexcept {
  try {
    const Opened& o = opened();
    if (o.why.empty()) return &o.table;
    if (why != nullptr) *why = o.why;
  } catch (...) {  // no memory for a text
  }
  return nullptr;
}

void check_result(CUresult r, std::string_view call, std::string_view arguments) {
  if (r == CUDA_SUCCESS) return;
  const char* name = nullptr;
  const char* description = nullptr;
  if (const Driver* const d = find_driver(nullptr)) {
    if (d->cuGetErrorName(r, &name) != CUDA_SUCCESS) name = nullptr;
    if (d->cuGetErrorString(r, &description) != CUDA_SUCCESS) description = nullptr;
  }
  fail(r == CUDA_ERROR_OUT_OF_MEMORY ? RAMP_ERROR_OUT_OF_MEMORY : RAMP_ERROR_DEVICE,
       fmt::format("{}({}): got {} ({}{}{}), expected CUDA_SUCCESS", call, arguments,
                   name == nullptr ? "an unknown error" : name, static_cast<int>(r),
                   description == nullptr ? "" : ": ", description == nullptr ? "" : description));
}

namespace detail {
std::string argument_text(const void* p) {
  return p == nullptr ? "NULL" : fmt::format("{}", p);
}
std::string argument_text(unsigned long long v) {
  return fmt::format("{}", v);
}
std::string argument_text(long long v) {
  return fmt::format("{}", v);
}
}  // namespace detail

}  // namespace ramp::core::cuda
