// A figure as plain data: panels with axes, series, marks and heat maps. figure.cpp fills it from a fit and
// measured data; the drawing module turns it into SVG or PNG and knows nothing of ramp.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace ramp::cli {
struct Source;
struct Explanation;
}  // namespace ramp::cli

namespace ramp::cli::plot {

// Colours that stay apart for colour-blind readers (Okabe and Ito).
enum class Colour : int { kBlack, kOrange, kSky, kGreen, kYellow, kBlue, kVermilion, kPurple, kGrey };

struct Axis {
  std::string label;  // with unit
  bool log = false;
  double low = 0, high = 1;
};

struct Series {
  enum class Kind { kDots, kRings, kLine, kDashes };
  Kind kind = Kind::kDots;
  Colour colour = Colour::kBlack;
  double size = 2;           // radius of dots, width of lines; points
  double alpha = 1;          // opacity
  std::string label;         // in the legend; "" = not there
  std::vector<double> x, y;  // NaN breaks a line
};

struct Rule {  // a straight line across the panel: y = a*x (slope), x = at, or y = at
  enum class Kind { kVertical, kHorizontal, kProportional };
  Kind kind = Kind::kVertical;
  double at = 0;
  std::string label;
  bool below = false;  // the label of a proportional line
};

struct Label {
  double x = 0, y = 0;
  std::string text;
  bool strong = false;
};

// A table of coloured cells; all heat maps of a panel share one scale, from 0 to `high`.
struct Heat {
  std::string title;
  std::vector<std::string> columns, rows;
  std::vector<double> values;      // [row][column]; NaN = empty
  std::vector<std::string> texts;  // [row][column]
};

struct Panel {
  std::string id, title, caption;
  Axis x, y;
  std::vector<Series> series;
  std::vector<Rule> rules;
  std::vector<Label> labels;
  std::vector<Heat> heats;  // not empty: drawn instead of axes; x.label and y.label name columns and rows
  double heat_high = 0;
  std::string heat_unit;
};

struct Figure {
  std::string title;
  std::vector<Panel> panels;
  std::vector<std::string> notes;  // what could not be drawn
  [[nodiscard]] std::vector<std::string> panel_ids() const;
};

// "scatter", "curves", "staircase", "regret", "regions".
const std::vector<std::string>& panel_names();

// The wanted panels (empty = all that the source has data for). config: whose staircase ("" = the choice).
// Throws Error for an unknown panel or config, and for a panel asked for by name that has no data.
Figure make_figure(const Source& source, const Explanation& e, const std::string& config,
                   const std::vector<std::string>& wanted);

}  // namespace ramp::cli::plot
