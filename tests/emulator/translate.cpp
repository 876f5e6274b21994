// See translate.hpp.
#include "emulator/translate.hpp"

#include <cctype>
#include <set>
#include <stdexcept>
#include <vector>

namespace emu {
namespace {

bool is_name(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_';
}
bool is_space(char c) {
  return std::isspace(static_cast<unsigned char>(c)) != 0;
}
std::string trimmed(std::string_view s) {
  while (!s.empty() && is_space(s.front())) s.remove_prefix(1);
  while (!s.empty() && is_space(s.back())) s.remove_suffix(1);
  return std::string(s);
}
[[noreturn]] void fail(const std::string& expected, std::string_view at) {
  throw std::runtime_error("translation: got '" + std::string(at.substr(0, 120)) + "', expected " + expected);
}

// Parts of `s` between `separator`s that are in no brackets and in no string.
std::vector<std::string> split(std::string_view s, char separator) {
  std::vector<std::string> parts;
  int depth = 0;
  std::string part;
  for (size_t i = 0; i < s.size(); ++i) {
    const char c = s[i];
    if (c == '"') {
      size_t end = i + 1;
      while (end < s.size() && s[end] != '"') end += s[end] == '\\' ? 2 : 1;
      part += s.substr(i, end + 1 - i);
      i = end;
      continue;
    }
    if (c == '(' || c == '[' || c == '{') ++depth;
    if (c == ')' || c == ']' || c == '}') --depth;
    if (c == separator && depth == 0) {
      parts.push_back(part);
      part.clear();
    } else {
      part += c;
    }
  }
  parts.push_back(part);
  return parts;
}

// ---------------------------------------------------------------- PTX

struct Operand {
  std::string constraint, expression;
  bool output = false;
};

// One asm statement's text into C++.
class PtxWriter {
 public:
  explicit PtxWriter(const std::vector<Operand>& operands) : operands_(operands) {}

  std::string write(std::string_view text) {
    std::string out;
    while (true) {
      while (!text.empty() && (is_space(text.front()) || text.front() == ';')) text.remove_prefix(1);
      if (text.empty()) return out;
      if (text.front() == '{' || text.front() == '}') {
        out += text.front();
        text.remove_prefix(1);
        continue;
      }
      const size_t end = text.find(';');
      if (end == std::string_view::npos) fail("';' at the end of an instruction", text);
      out += instruction(trimmed(text.substr(0, end)));
      text.remove_prefix(end + 1);
    }
  }

 private:
  const std::vector<Operand>& operands_;
  std::set<std::string> registers_;

  std::string instruction(std::string text) {
    std::string guard;
    if (text.front() == '@') {
      const size_t end = text.find_first_of(" \t\n");
      std::string p = text.substr(1, end - 1);
      const bool negated = p.front() == '!';
      if (negated) p.erase(0, 1);
      guard = std::string("if (") + (negated ? "!" : "") + operand(p) + ") ";
      text = trimmed(std::string_view(text).substr(end));
    }
    const size_t end = text.find_first_of(" \t\n");
    const std::string opcode = text.substr(0, end);
    const std::string rest = end == std::string::npos ? "" : trimmed(std::string_view(text).substr(end));
    if (opcode == ".reg") return declaration(rest);
    std::string out = guard + "::ptx::";
    for (size_t i = 0; i < opcode.size(); ++i) {
      if (opcode[i] == ':' || opcode[i] == '.') {
        if (opcode[i] == ':') ++i;
        out += '_';
      } else if (is_name(opcode[i])) {
        out += opcode[i];
      } else {
        fail("an opcode", text);
      }
    }
    out += '(';
    if (!rest.empty()) {
      bool first = true;
      for (const std::string& part : split(rest, ',')) {
        if (!first) out += ", ";
        first = false;
        out += operand(trimmed(part));
      }
    }
    return out + "); ";
  }

  std::string declaration(const std::string& text) {
    const size_t end = text.find_first_of(" \t\n");
    const std::string type = text.substr(0, end);
    const char* const cpp = type == ".pred"                    ? "bool"
                            : type == ".b16" || type == ".u16" ? "::emu::u16"
                            : type == ".b32" || type == ".u32" ? "::emu::u32"
                            : type == ".s32"                   ? "::emu::i32"
                            : type == ".b64" || type == ".u64" ? "::emu::u64"
                            : type == ".f32"                   ? "float"
                                                               : nullptr;
    if (cpp == nullptr) fail("a register type that the translator knows", text);
    std::string out;
    for (const std::string& part : split(text.substr(end), ',')) {
      const std::string name = trimmed(part);
      registers_.insert(name);
      out += std::string(cpp) + " emu_reg_" + name + "{}; ";
    }
    return out;
  }

  std::string operand(const std::string& text) {
    if (text.empty()) fail("an operand", text);
    if (text.front() == '{') {
      std::string out = "::ptx::vec(";
      bool first = true;
      for (const std::string& part : split(text.substr(1, text.rfind('}') - 1), ',')) {
        if (!first) out += ", ";
        first = false;
        out += operand(trimmed(part));
      }
      return out + ")";
    }
    if (text.front() == '[') {
      const std::string inside = trimmed(std::string_view(text).substr(1, text.rfind(']') - 1));
      const size_t plus = inside.find('+');
      if (plus == std::string::npos) return "::ptx::at(" + operand(inside) + ")";
      return "::ptx::at(" + operand(trimmed(inside.substr(0, plus))) + ", " +
             trimmed(inside.substr(plus + 1)) + ")";
    }
    if (const size_t bar = text.find('|'); bar != std::string::npos)
      return operand(trimmed(text.substr(0, bar))) + ", " + operand(trimmed(text.substr(bar + 1)));
    if (text.front() == '!') return "!" + operand(text.substr(1));
    if (text == "_") return "::ptx::sink()";
    if (text.front() == '%') {
      if (text.size() > 1 && (text[1] == '%' || std::isalpha(static_cast<unsigned char>(text[1])) != 0)) {
        std::string name = text.substr(text[1] == '%' ? 2 : 1);
        for (char& c : name)
          if (c == '.') c = '_';
        return "::ptx::sreg_" + name + "()";
      }
      const size_t n = std::stoul(text.substr(1));
      if (n >= operands_.size()) fail("an operand that the asm statement has", text);
      return operands_[n].output ? "(" + operands_[n].expression + ")" : "emu_in" + std::to_string(n);
    }
    if (text.size() == 10 && (text.starts_with("0f") || text.starts_with("0F")))
      return "::ptx::f32bits(0x" + text.substr(2) + "U)";
    if (registers_.contains(text)) return "emu_reg_" + text;
    const char c = text.front();
    if (std::isdigit(static_cast<unsigned char>(c)) != 0 || c == '-') return text;
    fail("a register, a number or an operand", text);
  }
};

// ---------------------------------------------------------------- the program

class Translator {
 public:
  explicit Translator(std::string_view source) : s_(source) {}

  std::string run() {
    while (at_ < s_.size()) {
      const char c = s_[at_];
      if (c == '"' || c == '\'') {
        // 1'000 is a number.
        if (c == '\'' && at_ > 0 && is_name(s_[at_ - 1])) {
          out_ += s_[at_++];
          continue;
        }
        const size_t end = after_literal(at_);
        out_ += s_.substr(at_, end - at_);
        at_ = end;
      } else if (is_name(c)) {
        size_t end = at_;
        while (end < s_.size() && is_name(s_[end])) ++end;
        word(s_.substr(at_, end - at_), end);
      } else {
        out_ += c;
        ++at_;
      }
    }
    out_ += "\n" + kernels_;
    return out_;
  }

 private:
  std::string_view s_;
  size_t at_ = 0;
  std::string out_, kernels_;

  // The position behind the string or character literal at `from`.
  [[nodiscard]] size_t after_literal(size_t from) const {
    size_t end = from + 1;
    while (end < s_.size() && s_[end] != s_[from]) end += s_[end] == '\\' ? 2 : 1;
    return end + 1;
  }
  [[nodiscard]] size_t after_space(size_t from) const {
    while (from < s_.size() && is_space(s_[from])) ++from;
    return from;
  }
  // The position of the bracket that closes the one at `open`.
  [[nodiscard]] size_t closing(size_t open) const {
    int depth = 0;
    for (size_t i = open; i < s_.size(); ++i) {
      if (s_[i] == '"') {
        i = after_literal(i) - 1;
        continue;
      }
      if (s_[i] == '(') ++depth;
      if (s_[i] == ')' && --depth == 0) return i;
    }
    fail("a closing bracket", s_.substr(open));
  }
  [[nodiscard]] std::string_view word_at(size_t from) const {
    size_t end = from;
    while (end < s_.size() && is_name(s_[end])) ++end;
    return s_.substr(from, end - from);
  }

  void word(std::string_view w, size_t end) {
    if (w == "asm" || w == "__asm__") {
      asm_statement(end);
    } else if (w == "__shared__") {
      shared_variable(end, false);
    } else if (w == "extern" && word_at(after_space(end)) == "__shared__") {
      shared_variable(after_space(end) + std::string_view("__shared__").size(), true);
    } else if (w == "__global__") {
      kernel(end);
    } else {
      out_ += w;
      at_ = end;
    }
  }

  // name(parameters) behind __global__ with its attributes, which vanish.
  void kernel(size_t from) {
    std::string bounds, cluster;
    size_t i = from;
    at_ = from;
    while (true) {
      i = after_space(i);
      const std::string_view w = word_at(i);
      if (w.empty()) fail("the name of a kernel", s_.substr(i));
      const size_t next = after_space(i + w.size());
      if (w == "__launch_bounds__" || w == "__cluster_dims__") {
        const size_t close = closing(next);
        (w == "__launch_bounds__" ? bounds : cluster) = s_.substr(next + 1, close - next - 1);
        i = close + 1;
        continue;
      }
      if (s_[next] == '(') {
        kernels_ += "EMU_KERNEL(" + std::string(w) + ", (::emu::bounds(" + bounds +
                    ")), (::emu::cluster_dims(" + cluster + ")))\n";
        at_ = i;
        return;
      }
      out_ += " " + std::string(w) + " ";
      i += w.size();
    }
  }

  void shared_variable(size_t from, bool dynamic) {
    const size_t end = s_.find(';', from);
    if (end == std::string_view::npos) fail("';' behind a shared variable", s_.substr(from));
    std::string text = trimmed(s_.substr(from, end - from));
    std::string align = "1";
    if (text.starts_with("alignas")) {
      const size_t open = text.find('(');
      int depth = 0;
      size_t close = open;
      for (; close < text.size(); ++close) {
        if (text[close] == '(') ++depth;
        if (text[close] == ')' && --depth == 0) break;
      }
      align = text.substr(open + 1, close - open - 1);
      text = trimmed(text.substr(close + 1));
    }
    const size_t bracket = std::min(text.find('['), text.size());
    size_t name_end = bracket;
    while (name_end > 0 && is_space(text[name_end - 1])) --name_end;
    size_t name_begin = name_end;
    while (name_begin > 0 && is_name(text[name_begin - 1])) --name_begin;
    const std::string type = trimmed(text.substr(0, name_begin));
    const std::string name = text.substr(name_begin, name_end - name_begin);
    if (type.empty() || name.empty() || text.find(',', bracket) != std::string::npos)
      fail("one variable 'T name[n]' behind __shared__", text);
    if (dynamic) {
      const bool local = out_.find_last_of("{}") != std::string::npos && in_function();
      out_ += local ? type + "* const " + name + " = ::emu::DynamicShared<" + type + ">::pointer();"
                    : "\n#define " + name + " (::emu::DynamicShared<" + type + ">::pointer())\n";
    } else {
      out_ += "auto& " + name + " = ::emu::static_shared<" + type + text.substr(bracket) + ", " + align +
              ">([] {});";
    }
    at_ = end + 1;
  }

  // Whether the text so far ends inside a function: in braces that are no namespace's.
  [[nodiscard]] bool in_function() const {
    std::vector<bool> function;
    size_t statement = 0;
    for (size_t i = 0; i < out_.size(); ++i) {
      if (out_[i] == '"') {
        while (++i < out_.size() && out_[i] != '"')
          if (out_[i] == '\\') ++i;
      } else if (out_[i] == ';') {
        statement = i + 1;
      } else if (out_[i] == '{') {
        const std::string head = out_.substr(statement, i - statement);
        function.push_back(head.find("namespace") == std::string::npos);
        statement = i + 1;
      } else if (out_[i] == '}') {
        if (!function.empty()) function.pop_back();
        statement = i + 1;
      }
    }
    for (const bool f : function)
      if (f) return true;
    return false;
  }

  void asm_statement(size_t from) {
    size_t open = after_space(from);
    if (const std::string_view w = word_at(open); w == "volatile" || w == "__volatile__")
      open = after_space(open + w.size());
    if (s_[open] != '(') fail("'(' behind asm", s_.substr(from));
    const size_t close = closing(open);
    const std::vector<std::string> parts = split(s_.substr(open + 1, close - open - 1), ':');
    std::vector<Operand> operands;
    for (size_t list = 1; list < parts.size() && list < 3; ++list) {
      if (trimmed(parts[list]).empty()) continue;
      for (const std::string& item : split(parts[list], ',')) {
        const std::string text = trimmed(item);
        const size_t quote = text.find('"', 1);
        const size_t bracket = text.find('(');
        if (text.front() != '"' || quote == std::string::npos || bracket == std::string::npos ||
            text.back() != ')')
          fail("\"constraint\"(expression)", text);
        operands.push_back(
            {text.substr(1, quote - 1), text.substr(bracket + 1, text.size() - bracket - 2), list == 1});
      }
    }
    const std::string body = PtxWriter(operands).write(literal(parts[0]));
    out_ += "do { ";
    if (!body.empty())
      for (size_t n = 0; n < operands.size(); ++n)
        if (!operands[n].output)
          out_ += std::string(operands[n].constraint == "n" ? "constexpr " : "") + "auto emu_in" +
                  std::to_string(n) + " = (" + operands[n].expression + "); ";
    out_ += body + "} while (false)";
    at_ = close + 1;
  }

  // Adjacent string literals, joined and unescaped.
  static std::string literal(std::string_view text) {
    std::string joined;
    for (size_t i = 0; i < text.size(); ++i) {
      if (is_space(text[i])) continue;
      if (text[i] != '"') fail("a string literal", text.substr(i));
      for (++i; i < text.size() && text[i] != '"'; ++i) {
        if (text[i] != '\\') {
          joined += text[i];
          continue;
        }
        ++i;
        if (text[i] == 'n' || text[i] == 't')
          joined += text[i] == 'n' ? '\n' : '\t';
        else
          fail("\\n or \\t", text.substr(i - 1));
      }
    }
    return joined;
  }
};

}  // namespace

std::string translate(std::string_view source) {
  return Translator(source).run();
}

}  // namespace emu
