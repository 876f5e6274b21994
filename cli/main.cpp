// The `ramp` command: parses, runs one command, prints its result, turns errors into one line and a code.
#include <fmt/format.h>

#include <exception>
#include <map>
#include <new>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "cli/command.hpp"
#include "cli/help.hpp"
#include "cli/options.hpp"
#include "cli/output.hpp"
#include "cli/progress.hpp"

namespace ramp::cli {
namespace {

int exit_code(ramp_status status) {
  switch (status) {
    case RAMP_OK:
      return kOk;
    case RAMP_ERROR_INVALID_ARGUMENT:
    case RAMP_ERROR_WORKSPACE_TOO_SMALL:
      return kUsage;
    case RAMP_ERROR_IO:
    case RAMP_ERROR_BAD_FILE:
      return kFile;
    case RAMP_ERROR_UNSUPPORTED:
    case RAMP_ERROR_OUT_OF_MEMORY:
    case RAMP_ERROR_DEVICE:
      return kUnsupported;
    case RAMP_ERROR_INTERNAL:
      break;
  }
  return kFailed;
}

class HouseFormatter : public CLI::FormatterBase {
 public:
  std::string make_help(const CLI::App* app, std::string, CLI::AppFormatMode) const override {
    return help_text(*app);
  }
};

struct Program {
  CLI::App app{
      "ramp: the expert block of a Mixture-of-Experts layer, as fast as the hardware allows for this "
      "routing"};
  Io io;
  std::map<const CLI::App*, Body> bodies;
  bool version = false;

  Program() {
    app.name("ramp");
    app.formatter(std::make_shared<HouseFormatter>());
    app.require_subcommand(0, 1);
    app.set_help_flag("-h,--help", "print this help and exit")->group("Common");
    app.add_flag("--version", version, "print the version and exit")->group("Common");
    for (const Command& command : commands()) {
      CLI::App* sub = app.add_subcommand(command.name, command.summary);
      if (command.hidden) sub->group("");
      bodies[sub] = command.setup(*sub);
      sub->set_help_flag("-h,--help", "print this help and exit")->group("Common");
      sub->add_flag("--json", io.json, "print the result as JSON on standard output, and nothing else there")
          ->group("Common");
      sub->add_flag("--quiet", io.quiet, "no progress and no notes on standard error")->group("Common");
    }
  }

  [[nodiscard]] const CLI::App* chosen() const {
    const auto list = app.get_subcommands();
    return list.empty() ? nullptr : list.front();
  }
  [[nodiscard]] std::string command_help() const {
    const CLI::App* sub = chosen();
    return sub == nullptr ? "ramp --help" : fmt::format("ramp {} --help", sub->get_name());
  }
};

// CLI11's complaints in the house format.
std::string complaint(const Program& program, const CLI::ParseError& error) {
  const std::string see = fmt::format("see '{}'", program.command_help());
  const CLI::App* const sub = program.chosen();
  if (dynamic_cast<const CLI::ExtrasError*>(&error) != nullptr) {
    const std::vector<std::string> extras = program.app.remaining(true);
    const std::string what = extras.empty() ? "" : core::printable(extras.front());
    if (sub == nullptr && !what.starts_with("-")) {
      std::vector<std::string> names;
      for (const Command& c : commands())
        if (!c.hidden) names.push_back(c.name);
      return fmt::format("command: got '{}', expected one of {}{}; {}", what, join(names, ", "),
                         did_you_mean(what, names), see);
    }
    if (what.starts_with("-")) {
      const std::string name = what.substr(0, what.find('='));
      return fmt::format("{}: got an unknown option, expected one of the options of '{}'{}; {}", name,
                         sub == nullptr ? "ramp" : "ramp " + sub->get_name(),
                         did_you_mean(name, option_names(sub == nullptr ? program.app : *sub)), see);
    }
    return fmt::format("argument: got '{}', expected no further argument; {}", what, see);
  }
  std::string text = error.what();
  if (const auto at = text.find(" is required"); at != std::string::npos)
    return fmt::format("{}: got nothing, expected a value; {}", text.substr(0, at), see);
  if (const auto at = text.find(" requires "); at != std::string::npos)
    return fmt::format("{}: got it alone, expected it with {}; {}", text.substr(0, at), text.substr(at + 10),
                       see);
  if (const auto at = text.find(" excludes "); at != std::string::npos)
    return fmt::format("{}: got it together with {}, expected one of the two; {}", text.substr(0, at),
                       text.substr(at + 10), see);
  if (dynamic_cast<const CLI::ArgumentMismatch*>(&error) != nullptr) {
    // "--x: 1 required TEXT missing", "--x requires...", "Expected exactly 1 arguments to --x, got 2"
    const bool missing = text.find("missing") != std::string::npos;
    const auto dash = text.find("--");
    const auto end = text.find_first_of(": ,", dash);
    const std::string name = dash == std::string::npos ? "argument" : text.substr(dash, end - dash);
    return missing ? fmt::format("{}: got no value, expected one; {}", name, see)
                   : fmt::format("{}: got it more than once or with too many values, expected one; {}", name,
                                 see);
  }
  if (text.find(": got ") != std::string::npos) return text;  // our own validators
  return fmt::format("{}; {}", text, see);
}

int run(int argc, char** argv) {
  Program program;
  try {
    program.app.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    const CLI::App* const sub = program.chosen();
    program.io.json = false;
    program.io.print(help_text(sub == nullptr ? program.app : *sub));
    program.io.finish();
    return kOk;
  } catch (const CLI::ParseError& e) {
    say(complaint(program, e));
    return kUsage;
  }
  if (program.version) {
    program.io.print(fmt::format("ramp {}\n", ramp_version()));
    program.io.finish();
    return kOk;
  }
  const CLI::App* const sub = program.chosen();
  if (sub == nullptr) {
    say("command: got nothing, expected a command; see 'ramp --help'");
    return kUsage;
  }
  if (sub->get_name() == "help-markdown") {
    program.io.print(help_markdown(program.app));
    program.io.finish();
    return kOk;
  }
  const int code = program.bodies.at(sub)(program.io);
  program.io.finish();
  return code;
}

}  // namespace
}  // namespace ramp::cli

int main(int argc, char** argv) {
  using namespace ramp::cli;  // NOLINT(google-build-using-namespace)
  try {
    return run(argc, argv);
  } catch (const ramp::core::Error& e) {
    say(e.what());
    if (e.status() == RAMP_ERROR_INTERNAL) say("this is a bug in ramp: please report the line above");
    return exit_code(e.status());
  } catch (const Interrupted&) {
    say("interrupted");
    return kInterrupted;
  } catch (const std::bad_alloc&) {
    say("memory: got no more from the system, expected enough for the arguments; use fewer tokens, layers or "
        "a "
        "smaller model");
    return kUnsupported;
  } catch (const std::exception& e) {
    say(fmt::format("internal error: {}; this is a bug in ramp: please report it", e.what()));
    return kFailed;
  }
}
