// The help of every command, written by us from the declared options rather than by CLI11's formatter: the
// text must not depend on CLI11's version, because docs/cli.md is generated from the same facts.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

namespace ramp::cli {

// For the program (app without parent) or one command.
std::string help_text(const CLI::App& app);
// The whole docs/cli.md.
std::string help_markdown(const CLI::App& program);
// Long and short names of an application's options, with dashes; for "did you mean".
std::vector<std::string> option_names(const CLI::App& app);

}  // namespace ramp::cli
