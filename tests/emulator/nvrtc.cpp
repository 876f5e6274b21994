// libnvrtc of the emulated GPU: a program goes through the host compiler's preprocessor, the translator and
// the host compiler; the "cubin" is the shared object that comes out, which is an ELF file as a cubin is.
// RAMP_EMULATOR_COMPILER, RAMP_EMULATOR_TESTS and RAMP_EMULATOR_HEADERS (the precompiled device.hpp) come
// from CMake. RAMP_EMULATED_KEEP=1 leaves the translated texts where they were made, below the directory for
// temporary files.
#include <fcntl.h>
#include <nvrtc.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "emulator/build_id.hpp"
#include "emulator/translate.hpp"

extern char** environ;

struct _nvrtcProgram {
  std::string source, name;
  std::vector<std::pair<std::string, std::string>> headers;  // name, text
  std::string log, binary;
};

namespace {

namespace fs = std::filesystem;

void write_file(const fs::path& path, const std::string& text) {
  fs::create_directories(path.parent_path());
  std::ofstream out(path, std::ios::binary);
  out << text;
  out.close();
  if (!out) throw std::runtime_error("got no file " + path.string() + ", expected room for it");
}
std::string read_file(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

// A directory for one compilation.
class Scratch {
 public:
  Scratch() {
    std::string pattern = (fs::temp_directory_path() / "ramp-emulated.XXXXXX").string();
    if (::mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("got no directory " + pattern);
    path_ = pattern;
  }
  ~Scratch() {
    const char* const keep = std::getenv("RAMP_EMULATED_KEEP");  // NOLINT(concurrency-mt-unsafe)
    std::error_code ignored;
    if (keep == nullptr || std::strcmp(keep, "1") != 0) fs::remove_all(path_, ignored);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  [[nodiscard]] const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

// Runs the compiler; what it says goes to `log`.
bool compile(const Scratch& scratch, std::vector<std::string> arguments, std::string* log) {
  arguments.insert(arguments.begin(), RAMP_EMULATOR_COMPILER);
  std::vector<char*> argv;
  for (std::string& a : arguments) argv.push_back(a.data());
  argv.push_back(nullptr);
  const fs::path said = scratch.path() / "log";
  posix_spawn_file_actions_t actions;
  ::posix_spawn_file_actions_init(&actions);
  ::posix_spawn_file_actions_addopen(&actions, 2, said.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
  pid_t pid = 0;
  const int error = ::posix_spawn(&pid, argv[0], &actions, nullptr, argv.data(), environ);
  ::posix_spawn_file_actions_destroy(&actions);
  int status = -1;
  if (error == 0)
    while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
  log->append(error == 0 ? read_file(said) : std::string("got no compiler ") + RAMP_EMULATOR_COMPILER);
  return error == 0 && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

// The directory of the precompiled device.hpp, which is made when it is first wanted. Without it programs
// compile as well, a second slower.
fs::path precompiled(const Scratch& scratch) {
  const fs::path directory = fs::path(RAMP_EMULATOR_HEADERS) / emu::build_id();
  const fs::path header = directory / "emulator" / "device.hpp.gch";
  std::error_code error;
  if (fs::exists(header, error)) return directory;
  const fs::path made = directory / scratch.path().filename();
  fs::create_directories(header.parent_path(), error);
  std::vector<std::string> arguments = emu::compiler_options();
  arguments.insert(arguments.end(), {"-I", RAMP_EMULATOR_TESTS, "-x", "c++-header", "-o", made.string(),
                                     RAMP_EMULATOR_TESTS "/emulator/device.hpp"});
  std::string log;
  if (compile(scratch, arguments, &log)) fs::rename(made, header, error);
  return directory;
}

bool build(_nvrtcProgram& p, int count, const char* const* options) {
  const Scratch scratch;
  const fs::path from = scratch.path() / "program.cu";
  write_file(from, p.source);
  for (const auto& [name, text] : p.headers) write_file(scratch.path() / "include" / name, text);
  // NVRTC's own macros, and the words of CUDA that mean nothing here.
  std::vector<std::string> arguments = {"-E",
                                        "-P",
                                        "-x",
                                        "c++",
                                        "-nostdinc",
                                        "-std=c++17",
                                        "-D__CUDACC__=1",
                                        "-D__CUDACC_RTC__=1",
                                        "-D__device__=",
                                        "-D__host__=",
                                        "-D__constant__=",
                                        "-D__grid_constant__=",
                                        "-D__forceinline__=inline",
                                        "-D__noinline__=__attribute__((noinline))",
                                        "-D__align__(n)=alignas(n)",
                                        "-D__restrict__="};
  for (int i = 0; i < count; ++i) {
    const std::string option = options[i];
    if (option.starts_with("-D")) arguments.push_back(option);
    if (const size_t at = option.find("sm_"); option.starts_with("--gpu-arch") && at != std::string::npos) {
      const std::string arch = option.substr(at + 3);
      arguments.push_back("-D__CUDA_ARCH__=" + std::to_string(std::stoi(arch) * 10));
      if (arch == "90a") arguments.push_back("-D__CUDA_ARCH_FEAT_SM90_ALL=1");
    }
  }
  const fs::path plain = scratch.path() / "plain.cpp", translated = scratch.path() / "translated.cpp",
                 object = scratch.path() / "program.so";
  arguments.insert(arguments.end(),
                   {"-I", (scratch.path() / "include").string(), "-o", plain.string(), from.string()});
  if (!compile(scratch, arguments, &p.log)) return false;
  write_file(translated, "#include \"emulator/device.hpp\"\nEMU_BUILD(\"" + emu::build_id() + "\")\n" +
                             emu::translate(read_file(plain)));
  arguments = emu::compiler_options();
  arguments.insert(arguments.end(), {"-shared", "-I", precompiled(scratch).string(), "-I",
                                     RAMP_EMULATOR_TESTS, "-o", object.string(), translated.string()});
  if (!compile(scratch, arguments, &p.log)) return false;
  p.binary = read_file(object);
  return !p.binary.empty();
}

}  // namespace

extern "C" {

nvrtcResult nvrtcVersion(int* major, int* minor) {
  *major = 13;
  *minor = 255;  // no toolkit's: what it makes is not to be mistaken for a cubin of one
  return NVRTC_SUCCESS;
}
const char* nvrtcGetErrorString(nvrtcResult r) {
  return r == NVRTC_SUCCESS               ? "NVRTC_SUCCESS"
         : r == NVRTC_ERROR_COMPILATION   ? "NVRTC_ERROR_COMPILATION"
         : r == NVRTC_ERROR_INVALID_INPUT ? "NVRTC_ERROR_INVALID_INPUT"
                                          : "NVRTC_ERROR_INTERNAL_ERROR";
}
namespace {
constexpr int kArchs[] = {75, 80, 86, 87, 89, 90, 100, 120};
}
nvrtcResult nvrtcGetNumSupportedArchs(int* count) {
  *count = static_cast<int>(std::size(kArchs));
  return NVRTC_SUCCESS;
}
nvrtcResult nvrtcGetSupportedArchs(int* archs) {
  std::memcpy(archs, kArchs, sizeof kArchs);
  return NVRTC_SUCCESS;
}
nvrtcResult nvrtcCreateProgram(nvrtcProgram* program, const char* source, const char* name, int count,
                               const char* const* texts, const char* const* names) {
  auto* const p = new _nvrtcProgram;
  p->source = source;
  p->name = name == nullptr ? "program" : name;
  for (int i = 0; i < count; ++i) p->headers.emplace_back(names[i], texts[i]);
  *program = p;
  return NVRTC_SUCCESS;
}
nvrtcResult nvrtcDestroyProgram(nvrtcProgram* program) {
  delete *program;
  *program = nullptr;
  return NVRTC_SUCCESS;
}
nvrtcResult nvrtcCompileProgram(nvrtcProgram program, int count, const char* const* options) {
  try {
    return build(*program, count, options) ? NVRTC_SUCCESS : NVRTC_ERROR_COMPILATION;
  } catch (const std::exception& e) {
    program->log += e.what();
    return NVRTC_ERROR_COMPILATION;
  }
}
nvrtcResult nvrtcGetProgramLogSize(nvrtcProgram program, size_t* bytes) {
  *bytes = program->log.size() + 1;
  return NVRTC_SUCCESS;
}
nvrtcResult nvrtcGetProgramLog(nvrtcProgram program, char* log) {
  std::memcpy(log, program->log.c_str(), program->log.size() + 1);
  return NVRTC_SUCCESS;
}
nvrtcResult nvrtcGetCUBINSize(nvrtcProgram program, size_t* bytes) {
  *bytes = program->binary.size();
  return NVRTC_SUCCESS;
}
nvrtcResult nvrtcGetCUBIN(nvrtcProgram program, char* binary) {
  std::memcpy(binary, program->binary.data(), program->binary.size());
  return NVRTC_SUCCESS;
}

}  // extern "C"
