// NumPy .npy files: read and write arrays of the types that ramp exchanges. bf16 and e4m3 have no NumPy type:
// bf16 travels as uint16 ("<u2") or ml_dtypes' void type "|V2", e4m3 as "|u1" or "|V1"; the caller says which
// it wants.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/aligned_buffer.hpp"
#include "ramp/ramp.h"

namespace ramp::core {

struct NpyArray {
  std::string descr;                   // "<f4", "<f2", "<u2", "|u1", "<i4", "<i8", "<f8", ...
  ramp_dtype dtype = RAMP_DTYPE_NONE;  // what descr means without further knowledge (u2 and V2 -> bf16)
  std::vector<int64_t> shape;
  AlignedBuffer data;                      // C order (Fortran-order files are transposed on reading)
  [[nodiscard]] ramp_tensor view() const;  // throws if more than RAMP_MAX_DIMS dims
};

// Throws Error(BAD_FILE) naming file, what was found and what is accepted: pickled objects, truncated data,
// hostile headers (overlong, negative or overflowing shapes) included. Never executes or trusts anything in
// the file.
NpyArray parse_npy(std::span<const std::byte> bytes, const std::string& name);
NpyArray read_npy(const std::string& path);
void write_npy(const std::string& path, const ramp_tensor& tensor);  // atomic; bf16 as <u2, e4m3 as |u1

}  // namespace ramp::core
