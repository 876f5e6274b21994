// Candidates of every kernel, each with its own rule of what is legal.
#include "backend/cuda/config_space.hpp"

#include <algorithm>

#include "backend/cuda/flat_block.hpp"
#include "backend/cuda/flat_prefill_block.hpp"
#include "backend/cuda/prefill_block.hpp"
#include "backend/cuda/stream_block.hpp"
#include "regions/regions.hpp"

namespace ramp::core::cuda {
namespace {

class Listing {
 public:
  explicit Listing(bool with_rejected) : with_rejected_(with_rejected) {}
  void ship(const KernelConfig& config) { list_.legal.push_back(config); }
  void add(const KernelConfig& config, std::string reason) {
    if (!reason.empty()) {
      if (with_rejected_) list_.rejected.push_back({config, std::move(reason)});
      return;
    }
    if (std::find(list_.legal.begin(), list_.legal.end(), config) == list_.legal.end())
      list_.legal.push_back(config);
  }
  ConfigList take() { return std::move(list_); }

 private:
  bool with_rejected_;
  ConfigList list_;
};

bool predicts_groups(const ModelShape& m) {
  return region_of(m.name, m.experts, 2 * m.intermediate, m.hidden, 1, h200()).group_m;
}

}  // namespace

// Configs with sums come last: who leaves them out keeps the others' numbers.
ConfigList config_space(const ModelShape& model, ramp_format format, ramp_activation activation,
                        bool with_rejected) {
  Listing list(with_rejected);
  if (flat_format(format)) {
    if (!flat_applies(format, activation, model.hidden, model.intermediate)) return {};
    for (const FlatVariant& v : flat_variants(format, model.hidden, model.intermediate))
      list.ship(v.config(format));
    list.ship(flat_prefill_config(format));
    for (const FlatVariant& v : flat_space())
      list.add(v.config(format), v.rejection(format, model.hidden, model.intermediate));
    list.add(flat_prefill_config(format, true), {});
    return list.take();
  }
  if (!stream_applies(format, activation, model.hidden, model.intermediate)) return {};
  for (const StreamVariant& v : stream_variants()) list.ship(v.config());
  list.ship(prefill_config());
  for (const StreamVariant& v : stream_space()) list.add(v.config(), v.rejection());
  for (const PrefillVariant& v : prefill_space(predicts_groups(model))) list.add(v.config(), v.rejection());
  return list.take();
}

int32_t config_residency(const KernelConfig& config, ramp_format format) noexcept {
  if (flat_format(format)) {
    const std::optional<FlatVariant> v = flat_variant(config, format);
    return v ? v->blocks : 1;
  }
  const std::optional<StreamVariant> v = stream_variant(config);
  return v ? v->blocks : 1;
}

std::vector<KernelProgram> config_programs(const KernelConfig& config, ramp_format format,
                                           ramp_activation activation) {
  if (flat_format(format)) {
    if (is_flat_prefill(config, format)) return FlatPrefillBlock::programs(format, activation, config.sums);
    const std::optional<FlatVariant> v = flat_variant(config, format);
    return v ? flat_programs_of(*v, format, activation) : std::vector<KernelProgram>{};
  }
  if (const std::optional<StreamVariant> v = stream_variant(config))
    return stream_programs_of(*v, activation);
  if (const std::optional<PrefillVariant> v = prefill_variant(config))
    return prefill_programs_of(*v, activation);
  return {};
}

}  // namespace ramp::core::cuda
