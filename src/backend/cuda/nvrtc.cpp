// Finding libnvrtc and compiling with it.
#include "backend/cuda/nvrtc.hpp"

#include <dlfcn.h>
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <utility>

#include "backend/cuda/driver.hpp"
#include "backend/cuda/programs.hpp"
#include "base/error.hpp"

namespace ramp::core::cuda {
namespace {

// Where toolkits put it: the directory that NVIDIA's packages link, the versions beside it, the
// distribution's and (last, by CMake) the one that this library was built with.
std::vector<std::string> directories(int major) {
  return {"/usr/local/cuda/lib64",
          "/usr/local/cuda/targets/x86_64-linux/lib",
          "/usr/local/cuda/targets/sbsa-linux/lib",
          fmt::format("/usr/local/cuda-{}/lib64", major),
          "/opt/cuda/lib64",
          "/usr/lib/x86_64-linux-gnu",
          "/usr/lib/aarch64-linux-gnu",
          RAMP_CUDA_LIBRARY_DIR};
}

// "" or why this library will not do.
std::string fill(Nvrtc& n, void* library) {
#define RAMP_NVRTC_OPEN(name)                                           \
  n.name = reinterpret_cast<decltype(n.name)>(::dlsym(library, #name)); \
  if (n.name == nullptr) return "it has no " #name;
  RAMP_NVRTC_FUNCTIONS(RAMP_NVRTC_OPEN)
#undef RAMP_NVRTC_OPEN
  int count = 0;
  if (n.nvrtcVersion(&n.major, &n.minor) != NVRTC_SUCCESS ||
      n.nvrtcGetNumSupportedArchs(&count) != NVRTC_SUCCESS || count <= 0)
    return "it does not tell its version and architectures";
  n.archs.resize(static_cast<size_t>(count));
  if (n.nvrtcGetSupportedArchs(n.archs.data()) != NVRTC_SUCCESS) return "it does not tell its architectures";
  std::sort(n.archs.begin(), n.archs.end());
  Dl_info info{};
  if (::dladdr(reinterpret_cast<void*>(n.nvrtcVersion), &info) != 0 && info.dli_fname != nullptr)
    n.library = info.dli_fname;
  return {};
}

struct Opened {
  Nvrtc table;
  std::string why;
};

Opened open_nvrtc() {
  Opened o;
  std::vector<int> majors = {13, 12};
  if (const Driver* const d = find_driver(nullptr); d != nullptr && d->version < 13000)
    std::swap(majors[0], majors[1]);
  std::string unusable;
  for (const int major : majors) {
    const std::string name = fmt::format("libnvrtc.so.{}", major);
    std::vector<std::string> places = {name};
    for (const std::string& directory : directories(major))
      places.push_back(fmt::format("{}/{}", directory, name));
    for (const std::string& place : places) {
      void* const library = ::dlopen(place.c_str(), RTLD_NOW | RTLD_LOCAL);  // never closed
      if (library == nullptr) continue;
      const std::string why = fill(o.table, library);
      if (why.empty()) {
        if (o.table.library.empty()) o.table.library = place;
        return o;
      }
      unusable = fmt::format(" ({}: {})", place, why);
      o.table = Nvrtc();
    }
  }
  o.why = fmt::format(
      "NVRTC: got no libnvrtc.so.13 or .so.12 from the loader or /usr/local/cuda{}, expected the "
      "runtime compiler of CUDA 12 or 13; install it (package cuda-nvrtc) or set LD_LIBRARY_PATH",
      unusable);
  return o;
}

const Opened& opened() {
  static const Opened once = open_nvrtc();
  return once;
}

// One program, destroyed whatever happens.
class Program {
 public:
  Program(const Nvrtc& n, const std::string& source, const std::string& name,
          const std::vector<const char*>& texts, const std::vector<const char*>& names)
      : n_(n) {
    check(n_.nvrtcCreateProgram(&program_, source.c_str(), name.c_str(), static_cast<int>(texts.size()),
                                texts.data(), names.data()),
          "nvrtcCreateProgram", name);
  }
  ~Program() { n_.nvrtcDestroyProgram(&program_); }
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;
  [[nodiscard]] nvrtcProgram get() const noexcept { return program_; }
  void check(nvrtcResult r, const char* call, const std::string& what) const {
    if (r == NVRTC_SUCCESS) return;
    fail(r == NVRTC_ERROR_OUT_OF_MEMORY ? RAMP_ERROR_OUT_OF_MEMORY : RAMP_ERROR_INTERNAL,
         fmt::format("{}({}): got {} from NVRTC {} ({}), expected NVRTC_SUCCESS", call, what,
                     n_.nvrtcGetErrorString(r), n_.version(), n_.library));
  }

 private:
  const Nvrtc& n_;
  nvrtcProgram program_ = nullptr;
};

}  // namespace

std::string Nvrtc::version() const {
  return fmt::format("{}.{}", major, minor);
}

const Nvrtc& nvrtc() {
  const Opened& o = opened();
  if (!o.why.empty()) fail(RAMP_ERROR_UNSUPPORTED, o.why);
  return o.table;
}

const Nvrtc* find_nvrtc(std::string* why) noexcept {
  try {
    const Opened& o = opened();
    if (o.why.empty()) return &o.table;
    if (why != nullptr) *why = o.why;
  } catch (...) {  // no memory for a text
  }
  return nullptr;
}

int arch_number(const std::string& arch) {
  int number = 0;
  if (arch.starts_with("sm_")) {
    const char* const end = arch.data() + arch.size();
    const auto [at, error] = std::from_chars(arch.data() + 3, end, number);
    const std::string_view rest(at, static_cast<size_t>(end - at));
    if (error == std::errc() && number >= 10 && (rest.empty() || rest == "a" || rest == "f")) return number;
  }
  fail_argument("arch", "'" + printable(arch) + "'", "a GPU architecture such as sm_80, sm_89 or sm_90a");
}

std::vector<std::string> compile_options(const KernelProgram& program, const std::string& arch) {
  // -v: the resource report of ptxas goes into the log. It does not change the code.
  std::vector<std::string> options = {"-std=c++17", "--gpu-architecture=" + arch, "--ptxas-options=-v"};
  options.insert(options.end(), program.options.begin(), program.options.end());
  return options;
}

Cubin compile_source(const std::string& name, std::string_view source, std::span<const EmbeddedFile> headers,
                     const std::vector<std::string>& options) {
  const Nvrtc& n = nvrtc();
  const auto start = std::chrono::steady_clock::now();
  // Copies: NVRTC wants terminated strings, which a string_view need not be.
  std::vector<std::string> copies;
  for (const EmbeddedFile& h : headers) {
    copies.emplace_back(h.text);
    copies.emplace_back(h.name);
  }
  std::vector<const char*> texts, names, flags;
  for (size_t i = 0; i < copies.size(); i += 2) {
    texts.push_back(copies[i].c_str());
    names.push_back(copies[i + 1].c_str());
  }
  for (const std::string& o : options) flags.push_back(o.c_str());
  const Program program(n, std::string(source), name, texts, names);
  const nvrtcResult compiled =
      n.nvrtcCompileProgram(program.get(), static_cast<int>(flags.size()), flags.data());
  Cubin cubin;
  size_t bytes = 0;
  if (n.nvrtcGetProgramLogSize(program.get(), &bytes) == NVRTC_SUCCESS && bytes > 1) {
    cubin.log.resize(bytes);
    if (n.nvrtcGetProgramLog(program.get(), cubin.log.data()) != NVRTC_SUCCESS) cubin.log.clear();
    while (!cubin.log.empty() && (cubin.log.back() == '\0' || cubin.log.back() == '\n')) cubin.log.pop_back();
  }
  if (compiled != NVRTC_SUCCESS) {
    std::string text;
    for (const std::string& o : options) text += (text.empty() ? "" : " ") + o;
    const ramp_status status = compiled == NVRTC_ERROR_OUT_OF_MEMORY               ? RAMP_ERROR_OUT_OF_MEMORY
                               : compiled == NVRTC_ERROR_BUILTIN_OPERATION_FAILURE ? RAMP_ERROR_UNSUPPORTED
                                                                                   : RAMP_ERROR_INTERNAL;
    fail(status, fmt::format("kernel {} ({}): got {} from NVRTC {} ({}), expected a cubin; its log:\n{}",
                             name, text, n.nvrtcGetErrorString(compiled), n.version(), n.library, cubin.log));
  }
  program.check(n.nvrtcGetCUBINSize(program.get(), &bytes), "nvrtcGetCUBINSize", name);
  cubin.bytes.resize(bytes);
  program.check(n.nvrtcGetCUBIN(program.get(), cubin.bytes.data()), "nvrtcGetCUBIN", name);
  cubin.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return cubin;
}

Cubin compile_program(const KernelProgram& program, const std::string& arch) {
  const int number = arch_number(arch);
  const Nvrtc& n = nvrtc();
  if (!std::binary_search(n.archs.begin(), n.archs.end(), number))
    fail(RAMP_ERROR_UNSUPPORTED,
         fmt::format(
             "NVRTC: got {} ({}) for {}, expected a version that compiles for it ({} has sm_{} to sm_{}); "
             "install a newer toolkit",
             n.version(), n.library, arch, n.version(), n.archs.front(), n.archs.back()));
  if (!compiles_for(program, number) || (program.min_arch == 90 && arch != "sm_90a"))
    fail(RAMP_ERROR_UNSUPPORTED,
         fmt::format("kernel {}: got {}, expected {}", program.name, arch,
                     program.min_arch == 90 ? "sm_90a" : fmt::format("sm_{} or newer", program.min_arch)));
  const std::vector<EmbeddedFile> files = files_of(program);
  return compile_source(program.name, files.front().text, std::span(files).subspan(1),
                        compile_options(program, arch));
}

}  // namespace ramp::core::cuda
