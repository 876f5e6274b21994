// A line and scatter chart as SVG text: two axes (each linear or logarithmic), series of points and lines, a
// legend. Enough for the figures of docs/; no dependency, the same bytes for the same data.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

namespace ramp::bench {

struct Series {
  std::string name, colour;
  std::vector<std::pair<double, double>> points;
  bool line = false;    // joined, in the order given
  double radius = 2.5;  // 0: no marks
  double opacity = 0.8;
};

struct Axis {
  std::string title;
  bool log = false;
  std::vector<double> ticks;  // labelled; empty: chosen
  double low = 0, high = 0;   // equal: from the data
};

class Chart {
 public:
  Chart(std::string title, Axis x, Axis y) : title_(std::move(title)), x_(std::move(x)), y_(std::move(y)) {}
  void add(Series s) { series_.push_back(std::move(s)); }
  void diagonal() { diagonal_ = true; }
  void horizontal(double y) { horizontals_.push_back(y); }

  [[nodiscard]] std::string text() {
    fit_axis(x_, true);
    fit_axis(y_, false);
    std::string s = fmt::format(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0}\" height=\"{1}\" viewBox=\"0 0 {0} {1}\" "
        "font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"{0}\" height=\"{1}\" fill=\"#fff\"/>\n"
        "<text x=\"{2}\" y=\"20\" font-size=\"14\">{3}</text>\n",
        kWidth, kHeight, kLeft, escaped(title_));
    for (const double t : x_.ticks) {
      s += fmt::format(
          "<path d=\"M{0:.1f} {1}V{2}\" stroke=\"#ddd\"/><text x=\"{0:.1f}\" y=\"{3}\" "
          "text-anchor=\"middle\">{4:g}</text>\n",
          px(t), kTop, kHeight - kBottom, kHeight - kBottom + 16, t);
    }
    for (const double t : y_.ticks) {
      s += fmt::format(
          "<path d=\"M{0} {1:.1f}H{2}\" stroke=\"#ddd\"/><text x=\"{3}\" y=\"{4:.1f}\" "
          "text-anchor=\"end\">{5:g}</text>\n",
          kLeft, py(t), kWidth - kRight, kLeft - 6, py(t) + 4, t);
    }
    if (diagonal_) {
      const double low = std::max(x_.low, y_.low);
      const double high = std::min(x_.high, y_.high);
      s +=
          fmt::format("<path d=\"M{:.1f} {:.1f}L{:.1f} {:.1f}\" stroke=\"#000\" stroke-dasharray=\"4 3\"/>\n",
                      px(low), py(low), px(high), py(high));
    }
    for (const double h : horizontals_) {
      s += fmt::format("<path d=\"M{} {:.1f}H{}\" stroke=\"#000\" stroke-dasharray=\"4 3\"/>\n", kLeft, py(h),
                       kWidth - kRight);
    }
    double legend = kTop + 12;
    for (const Series& one : series_) {
      if (one.line && !one.points.empty()) {
        std::string path;
        for (const auto& [x, y] : one.points)
          path += fmt::format("{}{:.1f} {:.1f}", path.empty() ? "M" : "L", px(x), py(y));
        s += fmt::format("<path d=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"1.5\"/>\n", path,
                         one.colour);
      }
      if (one.radius > 0) {
        s += fmt::format("<g fill=\"{}\" fill-opacity=\"{}\">", one.colour, one.opacity);
        for (const auto& [x, y] : one.points) {
          s += fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"{}\"/>", px(x), py(y), one.radius);
        }
        s += "</g>\n";
      }
      s += fmt::format(
          "<rect x=\"{0}\" y=\"{1}\" width=\"10\" height=\"10\" fill=\"{2}\"/><text x=\"{3}\" "
          "y=\"{4}\">{5}</text>\n",
          kWidth - kRight + 12, legend - 9, one.colour, kWidth - kRight + 27, legend, escaped(one.name));
      legend += 18;
    }
    s += fmt::format("<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>\n",
                     (kLeft + kWidth - kRight) / 2, kHeight - 8, escaped(x_.title));
    s += fmt::format(
        "<text transform=\"translate(14 {}) rotate(-90)\" text-anchor=\"middle\">{}</text>\n</svg>\n",
        (kTop + kHeight - kBottom) / 2, escaped(y_.title));
    return s;
  }

 private:
  static constexpr int kWidth = 760, kHeight = 400, kLeft = 62, kRight = 190, kTop = 34, kBottom = 44;

  static std::string escaped(const std::string& t) {
    std::string s;
    for (const char c : t) s += c == '<' ? "&lt;" : c == '&' ? "&amp;" : std::string(1, c);
    return s;
  }
  static double place(const Axis& a, double v) {
    const auto f = [&a](double x) { return a.log ? std::log(x) : x; };
    return (f(std::clamp(v, a.low, a.high)) - f(a.low)) / (f(a.high) - f(a.low));
  }
  [[nodiscard]] double px(double v) const { return kLeft + place(x_, v) * (kWidth - kLeft - kRight); }
  [[nodiscard]] double py(double v) const {
    return kHeight - kBottom - place(y_, v) * (kHeight - kTop - kBottom);
  }

  void fit_axis(Axis& a, bool horizontal) const {
    if (a.low == a.high) {
      a.low = 1e300;
      a.high = -1e300;
      for (const Series& s : series_) {
        for (const auto& [x, y] : s.points) {
          a.low = std::min(a.low, horizontal ? x : y);
          a.high = std::max(a.high, horizontal ? x : y);
        }
      }
      if (a.log) {
        a.low /= 1.15;
        a.high *= 1.15;
      } else {
        a.low = std::min(a.low, 0.0);
        a.high *= 1.05;
      }
    }
    if (!a.ticks.empty()) return;
    if (a.log) {
      for (double decade = std::pow(10, std::floor(std::log10(a.low))); decade <= a.high; decade *= 10) {
        for (const double m : {1.0, 2.0, 5.0}) {
          if (decade * m >= a.low && decade * m <= a.high) a.ticks.push_back(decade * m);
        }
      }
    } else {
      const double rough = (a.high - a.low) / 6;
      const double power = std::pow(10, std::floor(std::log10(rough)));
      double step = power;
      for (const double m : {1.0, 2.0, 5.0, 10.0}) {
        if (power * m >= rough) {
          step = power * m;
          break;
        }
      }
      for (double t = std::ceil(a.low / step) * step; t <= a.high; t += step) a.ticks.push_back(t);
    }
  }

  std::string title_;
  Axis x_, y_;
  std::vector<Series> series_;
  bool diagonal_ = false;
  std::vector<double> horizontals_;
};

}  // namespace ramp::bench
