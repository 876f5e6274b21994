// Drawing a figure into a file. The drawing code lives in a module, ramp_plot, which is opened when a plot is
// asked for: the ramp command itself does not need cairo.
#pragma once

#include <string>

#include "cli/plot/figure.hpp"

namespace ramp::cli::plot {

// By the ending of `path`: .svg, .png (2 pixels per point) or .html (the SVG with its captions). Written
// whole or not at all. Throws Error: INVALID_ARGUMENT for another ending, UNSUPPORTED when the module is not
// installed, IO when the file cannot be written.
void draw(const Figure& figure, const std::string& path);

// What the module exports, by these names. Both sides are built from the same sources; the version says so.
inline constexpr const char* kVersionSymbol = "ramp_plot_version";
inline constexpr const char* kDrawSymbol = "ramp_plot_draw";
using VersionFunction = const char* (*)();
// Appends the image to `out`. "" or what went wrong in `error`.
using DrawFunction = void (*)(const Figure& figure, bool png, std::string& out, std::string& error);

}  // namespace ramp::cli::plot
