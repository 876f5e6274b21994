// What a command is, and the list of them. A command is one file in cli/commands/ that registers itself:
//
//   Body setup(CLI::App& app) {                    // adds options to `app`, returns what runs
//     auto o = std::make_shared<MyOptions>();
//     add_integer(app, "--tokens", o->tokens, {1, 1 << 20}, "T", "tokens per step");
//     examples(app, {{"ramp mine --tokens 8", "what it shows"}});
//     return [o](Io& io) { ...; return kOk; };
//   }
//   const Register kRegister{{"mine", "one line for the list", 70, setup}};
//
// The file is found by CMake on its own; main adds --help, --json and --quiet to every command.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <string>
#include <vector>

#include "cli/output.hpp"

namespace ramp::cli {

// The process's exit codes, as --help documents them.
enum ExitCode : int {
  kOk = 0,
  kFailed = 1,       // a check failed, or a bug in ramp
  kUsage = 2,        // a wrong option or argument
  kFile = 3,         // a file: missing, malformed, not writable
  kUnsupported = 4,  // valid, but this machine or build cannot: backend, device, memory
  kInterrupted = 130
};
const char* exit_code_help();  // the text that --help prints

// Runs the command and returns its exit code. Throws core::Error, which main prints and turns into a code.
using Body = std::function<int(Io&)>;

struct Command {
  std::string name;
  std::string summary;
  int order = 0;  // place in the list of `ramp --help`
  Body (*setup)(CLI::App& app) = nullptr;
  bool hidden = false;
};

// All registered commands by (order, name).
std::vector<Command> commands();

struct Register {
  explicit Register(Command command);
};

}  // namespace ramp::cli
