// The registry behind command.hpp.
#include "cli/command.hpp"

#include <algorithm>
#include <tuple>

namespace ramp::cli {
namespace {

// Built during static initialisation by the Register objects, in whatever order the linker gives.
std::vector<Command>& registry() {
  static std::vector<Command> list;
  return list;
}

}  // namespace

std::vector<Command> commands() {
  std::vector<Command> list = registry();
  std::sort(list.begin(), list.end(), [](const Command& a, const Command& b) {
    return std::tie(a.order, a.name) < std::tie(b.order, b.name);
  });
  return list;
}

Register::Register(Command command) {
  registry().push_back(std::move(command));
}

const char* exit_code_help() {
  return "0 ok; 1 a check failed, or an internal error; 2 wrong option or argument; 3 file missing, "
         "malformed "
         "or not writable; 4 not possible on this machine or build (backend, device, memory); 130 "
         "interrupted";
}

}  // namespace ramp::cli
