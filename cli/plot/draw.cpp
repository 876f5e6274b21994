// The drawing module (ramp_plot.so): a figure onto a cairo surface. Axes with round ticks, legends, heat
// maps; nothing here knows what the numbers mean.
#include <cairo-svg.h>
#include <cairo.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <exception>
#include <memory>

#include "cli/plot/plot.hpp"
#include "ramp/version.h"

namespace ramp::cli::plot {
namespace {

// Points; a panel is about a printed column wide.
constexpr double kPanelWidth = 600, kPanelHeight = 430, kTitleHeight = 44;
constexpr double kLeft = 74, kRight = 20, kTop = 40, kBottom = 78;
constexpr double kSmall = 10.5, kNormal = 12, kLarge = 14, kHuge = 17;
constexpr double kPixelsPerPoint = 2;  // PNG
constexpr const char* kFont = "sans-serif";

struct Rgb {
  double r, g, b;
};
Rgb rgb(Colour c) {
  switch (c) {
    case Colour::kBlack:
      return {0.13, 0.13, 0.13};
    case Colour::kOrange:
      return {0.90, 0.62, 0.00};
    case Colour::kSky:
      return {0.34, 0.71, 0.91};
    case Colour::kGreen:
      return {0.00, 0.62, 0.45};
    case Colour::kYellow:
      return {0.94, 0.89, 0.26};
    case Colour::kBlue:
      return {0.00, 0.45, 0.70};
    case Colour::kVermilion:
      return {0.84, 0.37, 0.00};
    case Colour::kPurple:
      return {0.80, 0.47, 0.65};
    case Colour::kGrey:
      break;
  }
  return {0.55, 0.55, 0.55};
}

// Cividis, light to dark: even steps of lightness, the same for colour-blind readers. t in 0..1.
Rgb heat_colour(double t) {
  constexpr std::array<Rgb, 6> kStops = {{{0.99, 0.97, 0.85},
                                          {0.95, 0.86, 0.52},
                                          {0.79, 0.71, 0.45},
                                          {0.54, 0.53, 0.47},
                                          {0.30, 0.37, 0.45},
                                          {0.05, 0.20, 0.40}}};
  const double at = std::clamp(t, 0.0, 1.0) * (kStops.size() - 1);
  const size_t i = std::min(static_cast<size_t>(at), kStops.size() - 2);
  const double f = at - static_cast<double>(i);
  const Rgb a = kStops[i];
  const Rgb b = kStops[i + 1];
  return {a.r + f * (b.r - a.r), a.g + f * (b.g - a.g), a.b + f * (b.b - a.b)};
}

struct Tick {
  double at;
  std::string text;  // "" = minor
};

std::vector<Tick> linear_ticks(const Axis& axis) {
  const double raw = (axis.high - axis.low) / 6;
  const double power = std::pow(10, std::floor(std::log10(raw)));
  double step = 10 * power;
  for (const double s : {1.0, 2.0, 2.5, 5.0}) {
    if (s * power >= raw) {
      step = s * power;
      break;
    }
  }
  std::vector<Tick> ticks;
  const double first = std::ceil(axis.low / step);
  for (int i = 0; i < 8; ++i) {  // a step is a sixth of the range or more
    const double v = (first + i) * step;
    if (v > axis.high * (1 + 1e-9)) break;
    ticks.push_back({v, fmt::format("{:g}", std::abs(v) < step / 1e6 ? 0.0 : v)});
  }
  return ticks;
}

std::string log_text(double v) {
  return v >= 1e6 || v < 1e-3 ? fmt::format("{:.0e}", v) : fmt::format("{:g}", v);
}

std::vector<Tick> log_ticks(const Axis& axis) {
  std::vector<Tick> ticks;
  const double decades = std::log10(axis.high / axis.low);
  const int first = static_cast<int>(std::floor(std::log10(axis.low)));
  const int last = static_cast<int>(std::floor(std::log10(axis.high) + 1e-9));
  for (int e = first; e <= last; ++e) {
    const double power = std::pow(10, e);
    for (int m = 1; m < 10; ++m) {
      const double v = m * power;
      if (v < axis.low * (1 - 1e-9) || v > axis.high * (1 + 1e-9)) continue;
      const bool named = m == 1 || (decades < 3.2 && (m == 2 || m == 5));
      ticks.push_back({v, named ? log_text(v) : ""});
    }
  }
  return ticks;
}

class Painter {
 public:
  explicit Painter(cairo_t* c) : c_(c) {}

  void colour(Rgb v, double alpha = 1) { cairo_set_source_rgba(c_, v.r, v.g, v.b, alpha); }
  void colour(Colour v, double alpha = 1) { colour(rgb(v), alpha); }

  // ax, ay: which point of the text's box stands at (x, y); 0 = left/baseline, 0.5 = middle, 1 = right/top.
  void text(double x, double y, const std::string& s, double size, double ax = 0, double ay = 0,
            bool bold = false, double angle = 0) {
    cairo_select_font_face(c_, kFont, CAIRO_FONT_SLANT_NORMAL,
                           bold ? CAIRO_FONT_WEIGHT_BOLD : CAIRO_FONT_WEIGHT_NORMAL);
    cairo_set_font_size(c_, size);
    cairo_save(c_);
    cairo_translate(c_, x, y);
    cairo_rotate(c_, angle);
    cairo_move_to(c_, -ax * width(s, size, bold), ay * 0.72 * size);
    cairo_show_text(c_, s.c_str());
    cairo_restore(c_);
  }
  double width(const std::string& s, double size, bool bold = false) {
    cairo_select_font_face(c_, kFont, CAIRO_FONT_SLANT_NORMAL,
                           bold ? CAIRO_FONT_WEIGHT_BOLD : CAIRO_FONT_WEIGHT_NORMAL);
    cairo_set_font_size(c_, size);
    cairo_text_extents_t e;
    cairo_text_extents(c_, s.c_str(), &e);
    return e.x_advance;
  }
  void segment(double x0, double y0, double x1, double y1, double thickness, bool dashed = false) {
    const double dash[] = {4, 3};
    cairo_set_dash(c_, dash, dashed ? 2 : 0, 0);
    cairo_set_line_width(c_, thickness);
    cairo_move_to(c_, x0, y0);
    cairo_line_to(c_, x1, y1);
    cairo_stroke(c_);
    cairo_set_dash(c_, nullptr, 0, 0);
  }
  void box(double x, double y, double w, double h) {
    cairo_rectangle(c_, x, y, w, h);
    cairo_fill(c_);
  }

  void panel(const Panel& p, double x, double y) {
    colour(Colour::kBlack);
    text(x + kLeft, y + 24, p.title, kLarge, 0, 0, true);
    caption(p, x, y);
    if (p.heats.empty()) {
      axes(p, x + kLeft, y + kTop, kPanelWidth - kLeft - kRight, kPanelHeight - kTop - kBottom);
    } else {
      heats(p, x + kLeft, y + kTop, kPanelWidth - kLeft - kRight, kPanelHeight - kTop - kBottom);
    }
  }

 private:
  // Two lines at most, broken at spaces.
  void caption(const Panel& p, double x, double y) {
    colour(Colour::kGrey);
    std::string line;
    double at = y + kPanelHeight - 26;
    for (size_t i = 0; i <= p.caption.size();) {
      const size_t space = std::min(p.caption.find(' ', i), p.caption.size());
      const std::string word = p.caption.substr(i, space - i);
      if (!line.empty() && width(fmt::format("{} {}", line, word), kSmall) > kPanelWidth - kLeft - kRight) {
        text(x + kLeft, at, line, kSmall);
        at += 13;
        line = word;
      } else {
        line += (line.empty() ? "" : " ") + word;
      }
      i = space + 1;
    }
    text(x + kLeft, at, line, kSmall);
  }

  struct Frame {
    const Axis& ax;
    const Axis& ay;
    double x, y, w, h;
    static double part(const Axis& a, double v) {
      return a.log ? std::log(v / a.low) / std::log(a.high / a.low) : (v - a.low) / (a.high - a.low);
    }
    [[nodiscard]] double px(double v) const { return x + w * part(ax, v); }
    [[nodiscard]] double py(double v) const { return y + h * (1 - part(ay, v)); }
  };

  void axes(const Panel& p, double x, double y, double w, double h) {
    const Frame f{p.x, p.y, x, y, w, h};
    for (const Tick& t : p.x.log ? log_ticks(p.x) : linear_ticks(p.x)) {
      colour({0.9, 0.9, 0.9});
      if (!t.text.empty()) segment(f.px(t.at), y, f.px(t.at), y + h, 0.6);
      colour(Colour::kBlack);
      segment(f.px(t.at), y + h, f.px(t.at), y + h + (t.text.empty() ? 2.5 : 5), 0.8);
      text(f.px(t.at), y + h + 17, t.text, kSmall, 0.5);
    }
    for (const Tick& t : p.y.log ? log_ticks(p.y) : linear_ticks(p.y)) {
      colour({0.9, 0.9, 0.9});
      if (!t.text.empty()) segment(x, f.py(t.at), x + w, f.py(t.at), 0.6);
      colour(Colour::kBlack);
      segment(x - (t.text.empty() ? 2.5 : 5), f.py(t.at), x, f.py(t.at), 0.8);
      text(x - 8, f.py(t.at), t.text, kSmall, 1, 0.5);
    }
    text(x + w / 2, y + h + 35, p.x.label, kNormal, 0.5);
    text(x - 56, y + h / 2, p.y.label, kNormal, 0.5, 0, false, -std::acos(-1) / 2);

    cairo_save(c_);
    cairo_rectangle(c_, x, y, w, h);
    cairo_clip(c_);
    for (const Rule& r : p.rules) rule(r, f);
    for (const Series& s : p.series) series(s, f);
    cairo_restore(c_);
    for (const Rule& r : p.rules) rule_label(r, f);
    names(p, f);
    colour(Colour::kBlack);
    cairo_set_line_width(c_, 0.9);
    cairo_rectangle(c_, x, y, w, h);
    cairo_stroke(c_);
    legend(p, f);
  }

  void rule(const Rule& r, const Frame& f) {
    colour({0.45, 0.45, 0.45});
    if (r.kind == Rule::Kind::kVertical) segment(f.px(r.at), f.y, f.px(r.at), f.y + f.h, 0.9, true);
    if (r.kind == Rule::Kind::kHorizontal) segment(f.x, f.py(r.at), f.x + f.w, f.py(r.at), 0.9, true);
    if (r.kind == Rule::Kind::kProportional)
      segment(f.px(f.ax.low), f.py(r.at * f.ax.low), f.px(f.ax.high), f.py(r.at * f.ax.high), 0.9,
              !r.label.empty());
  }

  void rule_label(const Rule& r, const Frame& f) {
    if (r.label.empty()) return;
    colour({0.35, 0.35, 0.35});
    if (r.kind == Rule::Kind::kVertical) text(f.px(r.at) + 4, f.y + f.h - 8, r.label, kSmall);
    if (r.kind == Rule::Kind::kHorizontal) text(f.x + f.w - 6, f.py(r.at) - 5, r.label, kSmall, 1);
    if (r.kind == Rule::Kind::kProportional) {
      // Along the line, near its lower end.
      const double low = std::max(f.ax.low, f.ay.low / r.at);
      const double angle = std::atan2(f.py(r.at * low * 2) - f.py(r.at * low), f.px(low * 2) - f.px(low));
      const double aside = r.below ? 13 : -5;
      text(f.px(low) + 26 * std::cos(angle) - aside * std::sin(angle),
           f.py(r.at * low) + 26 * std::sin(angle) + aside * std::cos(angle), r.label, kSmall, 0, 0, false,
           angle);
    }
  }

  void series(const Series& s, const Frame& f) {
    colour(s.colour, s.alpha);
    const bool line = s.kind == Series::Kind::kLine || s.kind == Series::Kind::kDashes;
    const double dash[] = {5, 3};
    cairo_set_dash(c_, dash, s.kind == Series::Kind::kDashes ? 2 : 0, 0);
    cairo_set_line_width(c_, line ? s.size : 0.9);
    bool open = false;
    for (size_t i = 0; i < s.x.size(); ++i) {
      const bool there = std::isfinite(s.x[i]) && std::isfinite(s.y[i]) && (!f.ax.log || s.x[i] > 0) &&
                         (!f.ay.log || s.y[i] > 0);
      if (line) {
        if (there && open) cairo_line_to(c_, f.px(s.x[i]), f.py(s.y[i]));
        if (there && !open) cairo_move_to(c_, f.px(s.x[i]), f.py(s.y[i]));
        open = there;
      } else if (there && s.kind == Series::Kind::kDots) {
        // A stroke of no length with round ends: thirty bytes of SVG where an arc takes three hundred.
        cairo_move_to(c_, f.px(s.x[i]), f.py(s.y[i]));
        cairo_line_to(c_, f.px(s.x[i]), f.py(s.y[i]));
      } else if (there) {
        cairo_new_sub_path(c_);
        cairo_arc(c_, f.px(s.x[i]), f.py(s.y[i]), s.size, 0, 2 * std::acos(-1));
      }
    }
    if (s.kind == Series::Kind::kDots) {
      cairo_set_line_cap(c_, CAIRO_LINE_CAP_ROUND);
      cairo_set_line_width(c_, 2 * s.size);
    }
    cairo_stroke(c_);
    cairo_set_line_cap(c_, CAIRO_LINE_CAP_BUTT);
    cairo_set_dash(c_, nullptr, 0, 0);
  }

  struct Box {
    double x, y, w, h;
    [[nodiscard]] bool meets(const Box& o) const {
      return x < o.x + o.w && o.x < x + w && y < o.y + o.h && o.y < y + h;
    }
  };

  // Beside their dots, at the first of eight places where no other name is.
  void names(const Panel& p, const Frame& f) {
    std::vector<Box> taken;
    for (const Label& l : p.labels) taken.push_back({f.px(l.x) - 3, f.py(l.y) - 3, 6, 6});
    for (const Rule& r : p.rules) {
      if (r.kind != Rule::Kind::kHorizontal || r.label.empty()) continue;
      const double w = width(r.label, kSmall);
      taken.push_back({f.x + f.w - 6 - w, f.py(r.at) - 16, w, 14});
    }
    for (const Label& l : p.labels) {
      const double w = width(l.text, kSmall, l.strong);
      const double x = f.px(l.x);
      const double y = f.py(l.y);
      const std::array<Box, 8> places = {{{x + 7, y - 6, w, 12},
                                          {x - 7 - w, y - 6, w, 12},
                                          {x - w / 2, y - 19, w, 12},
                                          {x - w / 2, y + 7, w, 12},
                                          {x + 6, y - 18, w, 12},
                                          {x + 6, y + 6, w, 12},
                                          {x - 6 - w, y - 18, w, 12},
                                          {x - 6 - w, y + 6, w, 12}}};
      const Box* place = &places[0];
      for (const Box& b : places) {
        const bool inside = b.x >= f.x && b.x + b.w <= f.x + f.w && b.y >= f.y && b.y + b.h <= f.y + f.h;
        if (inside && std::none_of(taken.begin(), taken.end(), [&](const Box& t) { return b.meets(t); })) {
          place = &b;
          break;
        }
      }
      taken.push_back(*place);
      colour(l.strong ? Colour::kVermilion : Colour::kBlack);
      text(place->x, place->y + 9.5, l.text, kSmall, 0, 0, l.strong);
    }
  }

  // In the corner that hides the least data.
  void legend(const Panel& p, const Frame& f) {
    std::vector<const Series*> entries;
    double w = 0;
    for (const Series& s : p.series) {
      if (s.label.empty() || s.x.empty()) continue;
      entries.push_back(&s);
      w = std::max(w, width(s.label, kSmall));
    }
    if (entries.empty()) return;
    w += 34;
    const double h = 15 * static_cast<double>(entries.size()) + 8;
    const std::array<Box, 4> corners = {{{f.x + 8, f.y + 8, w, h},
                                         {f.x + f.w - w - 8, f.y + f.h - h - 8, w, h},
                                         {f.x + f.w - w - 8, f.y + 8, w, h},
                                         {f.x + 8, f.y + f.h - h - 8, w, h}}};
    const Box* best = nullptr;
    size_t least = 0;
    for (const Box& b : corners) {
      size_t hidden = 0;
      for (const Series& s : p.series) {
        for (size_t i = 0; i < s.x.size(); ++i)
          hidden += b.meets({f.px(s.x[i]) - 2, f.py(s.y[i]) - 2, 4, 4}) ? 1U : 0U;
      }
      for (const Label& l : p.labels) hidden += b.meets({f.px(l.x) - 40, f.py(l.y) - 8, 80, 16}) ? 1U : 0U;
      if (best == nullptr || hidden < least) {
        best = &b;
        least = hidden;
      }
    }
    cairo_set_source_rgba(c_, 1, 1, 1, 0.88);
    box(best->x, best->y, best->w, best->h);
    double y = best->y + 12;
    for (const Series* s : entries) {
      // Thin and pale in the plot, but to be recognised here.
      colour(s->colour, std::max(s->alpha, 0.8));
      if (s->kind == Series::Kind::kLine || s->kind == Series::Kind::kDashes) {
        segment(best->x + 6, y - 1, best->x + 24, y - 1, std::max(s->size, 1.0),
                s->kind == Series::Kind::kDashes);
      } else {
        cairo_set_line_width(c_, 0.9);
        cairo_new_sub_path(c_);
        cairo_arc(c_, best->x + 15, y - 1, std::max(s->size, 2.5), 0, 2 * std::acos(-1));
        if (s->kind == Series::Kind::kDots) {
          cairo_fill(c_);
        } else {
          cairo_stroke(c_);
        }
      }
      colour(Colour::kBlack);
      text(best->x + 30, y - 1, s->label, kSmall, 0, 0.5);
      y += 15;
    }
  }

  void heats(const Panel& p, double x, double y, double w, double h) {
    const double bar = 46;  // the scale at the right
    const double each = h / static_cast<double>(p.heats.size());
    for (size_t k = 0; k < p.heats.size(); ++k)
      heat(p, p.heats[k], x, y + each * static_cast<double>(k), w - bar,
           each - (k + 1 < p.heats.size() ? 14 : 0), k + 1 == p.heats.size());
    constexpr int kSteps = 60;
    for (int i = 0; i < kSteps; ++i) {
      colour(heat_colour(1 - i / (kSteps - 1.0)));
      box(x + w - bar + 14, y + 18 + i * (h - 18) / kSteps, 12, (h - 18) / kSteps + 0.6);
    }
    colour(Colour::kBlack);
    const Axis scale{"", false, 0, std::max(p.heat_high, 1e-9)};
    for (const Tick& t : linear_ticks(scale))
      text(x + w - bar + 29, y + h - (h - 18) * t.at / scale.high, t.text + p.heat_unit, kSmall, 0, 0.5);
  }

  void heat(const Panel& p, const Heat& m, double x, double y, double w, double h, bool last) {
    constexpr double kHead = 18;
    const double cw = w / static_cast<double>(m.columns.size());
    const double ch = (h - kHead) / static_cast<double>(m.rows.size());
    colour(Colour::kBlack);
    text(x, y + 12, m.title, kNormal, 0, 0, true);
    const double size = std::min({kSmall, cw / 2.9, ch * 0.8});
    for (size_t r = 0; r < m.rows.size(); ++r) {
      const double top = y + kHead + ch * static_cast<double>(m.rows.size() - 1 - r);
      colour(Colour::kBlack);
      text(x - 8, top + ch / 2, m.rows[r], kSmall, 1, 0.5);
      for (size_t c = 0; c < m.columns.size(); ++c) {
        const size_t at = r * m.columns.size() + c;
        const double left = x + cw * static_cast<double>(c);
        if (std::isnan(m.values[at])) {
          colour({0.96, 0.96, 0.96});
          box(left + 0.5, top + 0.5, cw - 1, ch - 1);
          continue;
        }
        const double t = p.heat_high > 0 ? m.values[at] / p.heat_high : 0;
        colour(heat_colour(t));
        box(left + 0.5, top + 0.5, cw - 1, ch - 1);
        if (t > 0.55) {
          colour({1, 1, 1});
        } else {
          colour(Colour::kBlack);
        }
        text(left + cw / 2, top + ch / 2, m.texts[at], size, 0.5, 0.5);
      }
    }
    colour(Colour::kBlack);
    text(x - 56, y + kHead + (h - kHead) / 2, p.y.label, kNormal, 0.5, 0, false, -std::acos(-1) / 2);
    if (!last) return;
    for (size_t c = 0; c < m.columns.size(); ++c)
      text(x + cw * (static_cast<double>(c) + 0.5), y + h + 14, m.columns[c], kSmall, 0.5);
    text(x + w / 2, y + h + 32, p.x.label, kNormal, 0.5);
  }

  cairo_t* c_;
};

cairo_status_t append(void* closure, const unsigned char* data, unsigned int length) {
  static_cast<std::string*>(closure)->append(reinterpret_cast<const char*>(data), length);
  return CAIRO_STATUS_SUCCESS;
}

struct Release {
  void operator()(cairo_surface_t* s) const { cairo_surface_destroy(s); }
  void operator()(cairo_t* c) const { cairo_destroy(c); }
};

void paint(const Figure& figure, bool png, std::string& out, std::string& error) {
  const size_t n = figure.panels.size();
  const size_t columns = n > 1 ? 2 : 1;
  const size_t lines = (n + columns - 1) / columns;
  const double width = kPanelWidth * static_cast<double>(columns);
  const double height = kTitleHeight + kPanelHeight * static_cast<double>(lines);
  const double scale = png ? kPixelsPerPoint : 1;
  const std::unique_ptr<cairo_surface_t, Release> surface(
      png ? cairo_image_surface_create(CAIRO_FORMAT_RGB24, static_cast<int>(width * scale),
                                       static_cast<int>(height * scale))
          : cairo_svg_surface_create_for_stream(append, &out, width, height));
  const std::unique_ptr<cairo_t, Release> c(cairo_create(surface.get()));
  cairo_scale(c.get(), scale, scale);
  cairo_set_source_rgb(c.get(), 1, 1, 1);
  cairo_paint(c.get());
  Painter painter(c.get());
  painter.colour(Colour::kBlack);
  painter.text(18, 30, figure.title, kHuge, 0, 0, true);
  for (size_t i = 0; i < n; ++i) {
    const size_t row = i / columns;
    painter.panel(figure.panels[i], kPanelWidth * static_cast<double>(i % columns),
                  kTitleHeight + kPanelHeight * static_cast<double>(row));
  }
  cairo_status_t status = cairo_status(c.get());
  if (png && status == CAIRO_STATUS_SUCCESS)
    status = cairo_surface_write_to_png_stream(surface.get(), append, &out);
  cairo_surface_finish(surface.get());
  if (status == CAIRO_STATUS_SUCCESS) status = cairo_surface_status(surface.get());
  if (status != CAIRO_STATUS_SUCCESS) error = cairo_status_to_string(status);
}

}  // namespace
}  // namespace ramp::cli::plot

extern "C" {
__attribute__((visibility("default"))) const char* ramp_plot_version() {
  return RAMP_VERSION_STRING;
}
__attribute__((visibility("default"))) void ramp_plot_draw(const ramp::cli::plot::Figure& figure, bool png,
                                                           std::string& out, std::string& error) {
  try {
    ramp::cli::plot::paint(figure, png, out, error);
  } catch (const std::exception& e) {
    error = e.what();
  }
}
}
