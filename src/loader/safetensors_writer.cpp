// The safetensors writer: the header first, then the data in one pass, into a file that appears only when
// whole.
#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "base/error.hpp"
#include "base/tensor.hpp"
#include "loader/safetensors.hpp"

namespace ramp::core {
namespace {

const char* file_type(ramp_dtype dtype) {
  switch (dtype) {
    case RAMP_F64:
      return "F64";
    case RAMP_F32:
      return "F32";
    case RAMP_F16:
      return "F16";
    case RAMP_BF16:
      return "BF16";
    case RAMP_E4M3:
      return "F8_E4M3";
    case RAMP_I64:
      return "I64";
    case RAMP_I32:
      return "I32";
    case RAMP_U8:
      return "U8";
    case RAMP_DTYPE_NONE:
      break;
  }
  return nullptr;
}

std::string json_text(const nlohmann::json& value) {
  try {
    return value.dump();
  } catch (const nlohmann::json::exception&) {
    fail_argument("safetensors header", "a name or metadata that is not UTF-8", "UTF-8 text");
  }
}

uint64_t spec_bytes(const SafetensorsSpec& spec) {
  auto bytes = static_cast<uint64_t>(dtype_bytes(spec.dtype));
  for (const int64_t extent : spec.shape) {
    if (extent < 0 || __builtin_mul_overflow(bytes, static_cast<uint64_t>(extent), &bytes))
      fail_argument("tensor '" + spec.name + "'", fmt::format("shape [{}]", fmt::join(spec.shape, ", ")),
                    "extents >= 0 whose product fits 64 bits");
  }
  return bytes;
}

}  // namespace

SafetensorsWriter::SafetensorsWriter(const std::string& path, std::vector<SafetensorsSpec> specs,
                                     const std::map<std::string, std::string>& metadata)
    : file_(path), path_(path), specs_(std::move(specs)) {
  std::stable_sort(specs_.begin(), specs_.end(), [](const SafetensorsSpec& a, const SafetensorsSpec& b) {
    return dtype_bytes(a.dtype) > dtype_bytes(b.dtype);
  });
  std::string text = "{";
  if (!metadata.empty()) text += "\"__metadata__\":" + json_text(metadata);
  std::set<std::string_view> names;
  for (const SafetensorsSpec& spec : specs_) {
    if (file_type(spec.dtype) == nullptr)
      fail_argument("tensor '" + spec.name + "'", dtype_name(spec.dtype), "a dtype that safetensors knows");
    if (spec.name == "__metadata__" || !names.insert(spec.name).second)
      fail_argument("tensor '" + spec.name + "'", "a name that is taken", "unique names");
    const uint64_t begin = expected_;
    if (__builtin_add_overflow(expected_, spec_bytes(spec), &expected_))
      fail_argument("safetensors file", "tensors of more than 2^64 bytes", "a size that fits 64 bits");
    text += fmt::format("{}{}:{{\"dtype\":\"{}\",\"shape\":[{}],\"data_offsets\":[{},{}]}}",
                        text.size() > 1 ? "," : "", json_text(spec.name), file_type(spec.dtype),
                        fmt::join(spec.shape, ","), begin, expected_);
  }
  text += "}";
  // Spaces up to a multiple of 64 bytes, so that the data section is aligned for any element and any cache
  // line.
  text.append((64 - (8 + text.size()) % 64) % 64, ' ');
  if (text.size() > kSafetensorsMaxHeader)
    fail_argument("safetensors header", fmt::format("{} bytes", text.size()),
                  fmt::format("at most {}", kSafetensorsMaxHeader), "write several files");
  std::string prefix(8, '\0');
  for (size_t i = 0; i < 8; ++i) prefix[i] = static_cast<char>(text.size() >> (8 * i) & 0xffU);
  file_.write(prefix + text);
}

void SafetensorsWriter::append(std::span<const std::byte> bytes) {
  written_ += bytes.size();
  if (written_ > expected_)
    fail_argument(path_, fmt::format("{} bytes of data", written_),
                  fmt::format("{} for its tensors", expected_));
  file_.write(bytes);
}

void SafetensorsWriter::commit() {
  if (written_ != expected_)
    fail_argument(path_, fmt::format("{} bytes of data", written_),
                  fmt::format("{} for its tensors", expected_));
  file_.commit();
}

void write_safetensors(const std::string& path, std::span<const NamedTensor> tensors,
                       const std::map<std::string, std::string>& metadata) {
  std::vector<SafetensorsSpec> specs;
  std::map<std::string_view, const ramp_tensor*> by_name;
  for (const NamedTensor& t : tensors) {
    if (t.tensor.ndim < 0 || t.tensor.ndim > RAMP_MAX_DIMS || !is_contiguous(t.tensor) ||
        (t.tensor.data == nullptr && numel(t.tensor) != 0) || t.tensor.device.type != RAMP_DEVICE_CPU)
      fail_argument("tensor '" + t.name + "'", shape_text(t.tensor), "a contiguous host tensor");
    specs.push_back({t.name, static_cast<ramp_dtype>(t.tensor.dtype),
                     std::vector<int64_t>(t.tensor.shape, t.tensor.shape + t.tensor.ndim)});
    by_name.emplace(t.name, &t.tensor);
  }
  SafetensorsWriter writer(path, std::move(specs), metadata);
  for (const SafetensorsSpec& spec : writer.specs()) {
    const ramp_tensor& t = *by_name.at(spec.name);
    writer.append({static_cast<const std::byte*>(t.data), spec_bytes(spec)});
  }
  writer.commit();
}

}  // namespace ramp::core
