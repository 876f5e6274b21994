// Finding the drawing module, and wrapping its output into files.
#include "cli/plot/plot.hpp"

#include <dlfcn.h>
#include <fmt/format.h>

#include <filesystem>
#include <vector>

#include "base/error.hpp"
#include "base/file.hpp"
#include "ramp/version.h"

namespace ramp::cli::plot {
namespace {

constexpr const char* kModule = "ramp_plot.so";

// Beside the command; where an installed tree keeps it; where a build tree keeps it.
std::vector<std::filesystem::path> places() {
  std::error_code unknown;
  const std::filesystem::path here = std::filesystem::read_symlink("/proc/self/exe", unknown).parent_path();
  if (unknown) return {};
  return {here / kModule, here / RAMP_PLOT_DIRECTORY / kModule, here / "../lib/ramp" / kModule,
          here / "../lib" / kModule};
}

DrawFunction load() {
  std::string why = "it is not installed beside the command";
  for (const std::filesystem::path& path : places()) {
    std::error_code unknown;
    if (!std::filesystem::exists(path, unknown)) continue;
    // Never closed: cairo and fontconfig keep state until the process ends.
    void* const module = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (module == nullptr) {
      why = dlerror();  // NOLINT(concurrency-mt-unsafe): one thread
      continue;
    }
    const auto version = reinterpret_cast<VersionFunction>(dlsym(module, kVersionSymbol));
    const auto draw = reinterpret_cast<DrawFunction>(dlsym(module, kDrawSymbol));
    if (version == nullptr || draw == nullptr || std::string_view(version()) != RAMP_VERSION_STRING) {
      why = fmt::format("{} belongs to another version of ramp", path.lexically_normal().string());
      continue;
    }
    return draw;
  }
  core::fail(RAMP_ERROR_UNSUPPORTED,
             fmt::format(
                 "--plot: cannot load the drawing module {}: {}; install libcairo2 and a ramp that was built "
                 "with libcairo2-dev, or use --json and draw the numbers yourself",
                 kModule, why));
}

std::string escape(const std::string& text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

std::string html(const Figure& figure, const std::string& svg) {
  std::string out = fmt::format(
      "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{0}</title>\n"
      "<style>body{{font:15px/1.5 sans-serif;max-width:1240px;margin:2em auto;padding:0 1em;color:#222}}"
      "svg{{width:100%;height:auto}}dt{{font-weight:bold}}</style></head><body>\n<h1>{0}</h1>\n",
      escape(figure.title));
  out += svg.substr(std::min(svg.find("<svg"), svg.size()));
  out += "<dl>\n";
  for (const Panel& p : figure.panels)
    out += fmt::format("<dt>{}</dt><dd>{}</dd>\n", escape(p.title), escape(p.caption));
  return out + "</dl>\n</body></html>\n";
}

}  // namespace

void draw(const Figure& figure, const std::string& path) {
  const std::string ending = std::filesystem::path(path).extension().string();
  if (ending != ".svg" && ending != ".png" && ending != ".html")
    core::fail_argument("--plot", fmt::format("'{}'", core::printable(path)),
                        "a file name ending in .svg, .png or .html");
  const DrawFunction drawing = load();
  std::string image;
  std::string error;
  drawing(figure, ending == ".png", image, error);
  if (!error.empty()) core::fail(RAMP_ERROR_INTERNAL, "drawing failed: " + error);
  core::write_text(path, ending == ".html" ? html(figure, image) : image);
}

}  // namespace ramp::cli::plot
