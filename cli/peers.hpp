// The figures that `ramp bench` holds its GPU measurements against: the best open kernels on the same GPU,
// what the GPU itself gives, and the goals (bench/data/peers_h200.json, built in; --peers reads another
// file).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cli/output.hpp"
#include "geometry/model.hpp"

namespace ramp::cli {

const char* peers_json() noexcept;  // the built-in file

class Peers {
 public:
  // path "": the built-in figures. Throws Error (IO, BAD_FILE) naming the file.
  explicit Peers(const std::string& path);

  struct Figure {
    double us = 0;  // 0: none
    std::string pipeline;
  };
  // Routing by its workload name; zipf:0 is uniform.
  [[nodiscard]] Figure find(const core::ModelShape& model, ramp_format format, int64_t tokens,
                            const std::string& routing) const;
  // A speed-up to reach as a geometric mean over the points with low <= tokens <= high.
  struct Goal {
    int64_t low = 0, high = 0;
    double ratio = 1;
  };
  [[nodiscard]] std::vector<Goal> goals(ramp_format format) const;
  [[nodiscard]] double least_ratio() const { return least_ratio_; }  // below it no point may be
  [[nodiscard]] int64_t layers(const std::string& model) const;      // of the protocol; 0: not in it

  // Whether the figures are of this device.
  [[nodiscard]] bool of_device(const std::string& device) const { return device == device_; }
  [[nodiscard]] const std::string& device() const noexcept { return device_; }
  [[nodiscard]] double read_gbps() const { return read_gbps_; }
  [[nodiscard]] double tflops(ramp_format format) const;  // 0: not known

 private:
  Json json_;
  std::string device_;
  double read_gbps_ = 0, least_ratio_ = 0;
};

}  // namespace ramp::cli
