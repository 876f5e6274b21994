// Reading .npy inputs with complaints that name the option, the file and the shapes.
#include "cli/tensors.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.hpp"
#include "base/npy.hpp"
#include "cli/options.hpp"

namespace ramp::cli {

HostTensor make_host_tensor(ramp_dtype dtype, std::initializer_list<int64_t> shape) {
  HostTensor t;
  t.view = core::make_tensor(nullptr, dtype, shape);
  t.data = core::AlignedBuffer(static_cast<uint64_t>(core::numel(t.view) * core::dtype_bytes(dtype)));
  t.view.data = t.data.data();
  return t;
}

HostTensor read_tensor(std::string_view option, const std::string& path, const Expected& expected) {
  core::NpyArray array = core::read_npy(path);
  HostTensor t;
  t.view = array.view();
  const auto allowed = [&](ramp_dtype d) {
    return std::find(expected.dtypes.begin(), expected.dtypes.end(), d) != expected.dtypes.end();
  };
  if (array.dtype == RAMP_U8 && allowed(RAMP_E4M3)) t.view.dtype = RAMP_E4M3;
  bool fits = allowed(static_cast<ramp_dtype>(t.view.dtype)) &&
              t.view.ndim == static_cast<int32_t>(expected.shape.size());
  for (size_t d = 0; fits && d < expected.shape.size(); ++d)
    fits = expected.shape[d] < 0 || expected.shape[d] == t.view.shape[d];
  if (!fits) {
    std::vector<std::string> names;
    for (const ramp_dtype d : expected.dtypes) names.emplace_back(core::dtype_name(d));
    core::fail_argument(option, fmt::format("{} in {}", core::shape_text(t.view), path),
                        fmt::format("{} {}", join(names, ", "), expected.text),
                        "give a file of that dtype and shape (bf16 travels as uint16, e4m3 as uint8)");
  }
  t.data = std::move(array.data);
  return t;
}

int64_t integer_at(const ramp_tensor& t, int64_t index) noexcept {
  return t.dtype == RAMP_I64 ? static_cast<const int64_t*>(t.data)[index]
                             : int64_t{static_cast<const int32_t*>(t.data)[index]};
}

}  // namespace ramp::cli
