// `ramp help-markdown` (hidden): prints docs/cli.md. main answers it, because it needs the whole program.
#include "cli/command.hpp"

namespace ramp::cli {
namespace {

Body setup(CLI::App&) {
  return [](Io&) { return kOk; };
}
const Register kRegister{{"help-markdown", "print docs/cli.md", 1000, setup, true}};

}  // namespace
}  // namespace ramp::cli
