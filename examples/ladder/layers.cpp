// See layers.hpp.
#include "ladder/layers.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <set>

#include "backend/cuda/launch.hpp"
#include "base/error.hpp"
#include "base/rng.hpp"
#include "params/fill.hpp"
#include "params/stream.hpp"
#include "weights/quantize.hpp"
#include "weights/synthetic.hpp"

namespace ladder {
namespace {

using namespace ramp::core;        // NOLINT(google-build-using-namespace)
using namespace ramp::core::cuda;  // NOLINT(google-build-using-namespace)

constexpr uint64_t kSeed = 1;

template <typename T>
std::shared_ptr<void> upload(const Device& d, const std::vector<T>& values) {
  std::shared_ptr<void> to = d.memory->allocate(values.size() * sizeof(T));
  d.memory->upload(to.get(), values.data(), values.size() * sizeof(T), d.stream);
  d.memory->synchronize(d.stream);
  return to;
}

// Rows [first, ...) of each active expert in pieces of `height`.
std::vector<Tile> cut(const std::vector<int32_t>& counts, int height) {
  std::vector<Tile> tiles;
  int begin = 0;
  for (size_t e = 0; e < counts.size(); ++e) {
    const int rows = counts[e];
    const int piece = height == 0 ? rows : height;
    for (int r = 0; r < rows; r += piece)
      tiles.push_back({static_cast<int>(e), begin + r, std::min(piece, rows - r), 0});
    begin += rows;
  }
  return tiles;
}

LayerStep make_part(const Device& d, const ModelShape& model, const WorkloadSpec& spec, int64_t tokens,
                    uint64_t seed) {
  const Routing routing = make_routing(spec, model.experts, model.top_k, tokens, seed);
  LayerStep part;
  part.counts.resize(static_cast<size_t>(model.experts));
  for (const int32_t e : routing.ids) ++part.counts[static_cast<size_t>(e)];
  std::vector<size_t> order(routing.ids.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return routing.ids[a] < routing.ids[b]; });
  for (const size_t slot : order)
    part.token.push_back(static_cast<int32_t>(slot / static_cast<size_t>(model.top_k)));
  part.device_token = upload(d, part.token);
  part.h =
      d.memory->allocate(part.token.size() * static_cast<uint64_t>(model.intermediate) * sizeof(uint16_t));
  for (const int height : kTileHeights) {
    const std::vector<Tile> tiles = cut(part.counts, height);
    part.tiles[height] = {upload(d, tiles), static_cast<int>(tiles.size())};
  }
  return part;
}

}  // namespace

std::vector<Layer> make_layers(const Device& d, const ModelShape& model, int64_t count) {
  KernelLibrary library(d.gpu, "", {});
  const KernelProgram fill{"ladder_fill", "bench/fill.cu", {}, {"fill_1"}, 80};
  const KernelProgram pack{"ladder_pack", "sm90/pack.cu", {}, {"pack_tiles"}, 80};
  const auto expert_bytes = static_cast<uint64_t>(2 * model.intermediate * model.hidden);
  const auto bytes = static_cast<uint64_t>(model.experts) * expert_bytes;
  const uint64_t needed = 2 * bytes * static_cast<uint64_t>(count);
  if (needed > d.memory->free_bytes())
    fail_argument("--layers", fmt::format("{} of {}, {} bytes in two layouts", count, model.name, needed),
                  fmt::format("at most the {} bytes of free GPU memory", d.memory->free_bytes()),
                  "take fewer layers or a smaller model", RAMP_ERROR_OUT_OF_MEMORY);
  std::vector<Layer> layers;
  for (int64_t l = 0; l < count; ++l) {
    SyntheticWeightsOptions options;
    options.seed = kSeed + static_cast<uint64_t>(l);
    const SyntheticRecipe recipe =
        make_synthetic_recipe(model, RAMP_FORMAT_FP8_BLOCK, RAMP_ACTIVATION_SILU_AND_MUL, options);
    Layer layer{d.memory->allocate(bytes), d.memory->allocate(bytes), upload(d, recipe.w13_scale),
                recipe.w13_scale};
    const std::shared_ptr<void> codes = d.memory->allocate(recipe.w13.codes.size());
    d.memory->upload(codes.get(), recipe.w13.codes.data(), recipe.w13.codes.size(), d.stream);
    const auto sms = static_cast<uint64_t>(d.gpu->facts().sm_count);
    launch(library.get(fill, "fill_1"), {16 * sms, 1, 256, 0}, d.stream,
           FillParams{layer.weights.get(), codes.get(), recipe.w13.seed, recipe.w13.experts * recipe.w13.rows,
                      recipe.w13.cols});
    for (uint64_t e = 0; e < static_cast<uint64_t>(model.experts); ++e) {
      PackParams p{};
      p.from = static_cast<const unsigned char*>(layer.weights.get()) + e * expert_bytes;
      p.to = static_cast<unsigned char*>(layer.packed.get()) + e * expert_bytes;
      p.from_stride = model.hidden;
      p.rows = static_cast<int>(2 * model.intermediate);
      p.row_bytes = static_cast<int>(model.hidden);
      p.gated = 1;
      launch(library.get(pack, "pack_tiles"), {ceil_div(expert_bytes / 16, 256), 1, 256, 0}, d.stream, p);
    }
    d.memory->synchronize(d.stream);
    layers.push_back(std::move(layer));
  }
  return layers;
}

double Step::active() const {
  int64_t sum = 0;
  for (const LayerStep& l : layers) sum += l.tiles.at(0).count;
  return static_cast<double>(sum) / static_cast<double>(layers.size());
}
double Step::weight_bytes() const {
  return active() * static_cast<double>(2 * model.intermediate * model.hidden);
}
int64_t Step::max_rows() const {
  int32_t most = 0;
  for (const LayerStep& l : layers)
    most = std::max(most, *std::max_element(l.counts.begin(), l.counts.end()));
  return most;
}

Step make_step(const Device& d, const ModelShape& model, const WorkloadSpec& routing, int64_t tokens,
               int64_t layers) {
  Step s;
  s.model = model;
  s.tokens = tokens;
  const auto h = static_cast<size_t>(model.hidden);
  const auto groups = h / static_cast<size_t>(kGroup);
  const auto t = static_cast<size_t>(tokens);
  std::vector<float> x(t * h);
  fill_activations(x.data(), RAMP_F32, tokens, model.hidden, kSeed);
  s.x.resize(t * h);
  s.x_scale.resize(t * groups);
  for (size_t i = 0; i < t; ++i)
    quantize_row_groups(&x[i * h], model.hidden, &s.x[i * h], &s.x_scale[i * groups]);
  s.device_x = upload(d, s.x);
  s.device_x_scale = upload(d, s.x_scale);
  for (int64_t l = 0; l < layers; ++l)
    s.layers.push_back(make_part(d, model, routing, tokens, kSeed + static_cast<uint64_t>(l)));
  return s;
}

Params params_of(const Step& step, const Layer& layer, const LayerStep& part, int tile_height) {
  const Tiles& tiles = part.tiles.at(tile_height);
  Params p{};
  p.weights = static_cast<const unsigned char*>(layer.weights.get());
  p.packed = static_cast<const unsigned char*>(layer.packed.get());
  p.weight_scale = static_cast<const float*>(layer.weight_scale.get());
  p.x = static_cast<const unsigned char*>(step.device_x.get());
  p.x_scale = static_cast<const float*>(step.device_x_scale.get());
  p.token = static_cast<const int*>(part.device_token.get());
  p.tiles = static_cast<const Tile*>(tiles.list.get());
  p.h = static_cast<unsigned short*>(part.h.get());
  p.num_tiles = tiles.count;
  p.hidden = static_cast<int>(step.model.hidden);
  p.intermediate = static_cast<int>(step.model.intermediate);
  return p;
}

std::vector<Sample> make_reference(const Device& d, const Step& step, const Layer& layer,
                                   const LayerStep& part) {
  const ModelShape& m = step.model;
  // First and last row of the hottest and of the coldest active expert, and four at random.
  std::vector<Tile> experts = cut(part.counts, 0);
  std::sort(experts.begin(), experts.end(), [](const Tile& a, const Tile& b) { return a.rows < b.rows; });
  std::set<int64_t> rows;
  for (const Tile& e : {experts.front(), experts.back()}) rows.insert({e.first, e.first + e.rows - 1});
  Rng random(kSeed);
  for (int i = 0; i < 4; ++i)
    rows.insert(static_cast<int64_t>(random.below(static_cast<uint64_t>(step.rows()))));

  // About half a second of the host: 2 ns per product of a decoded weight. Rows then sample different
  // columns.
  constexpr int64_t kProducts = int64_t{1} << 28;
  const auto count = static_cast<int64_t>(rows.size());
  const int64_t stride = 1 + count * 2 * m.intermediate * m.hidden / kProducts;
  const auto expert_bytes = static_cast<size_t>(2 * m.intermediate * m.hidden);
  const int64_t scales = 2 * m.intermediate / kGroup * (m.hidden / kGroup);
  std::vector<uint8_t> w13(expert_bytes);
  int loaded = -1;
  std::vector<Sample> samples;
  int64_t first = 0;
  for (const int64_t row : rows) {  // rising, so each expert comes once
    const Tile& e = *std::find_if(experts.begin(), experts.end(),
                                  [&](const Tile& t) { return row >= t.first && row < t.first + t.rows; });
    if (e.expert != loaded)
      d.memory->download(
          w13.data(),
          static_cast<const uint8_t*>(layer.weights.get()) + static_cast<size_t>(e.expert) * expert_bytes,
          expert_bytes, d.stream);
    loaded = e.expert;
    const auto token = static_cast<int64_t>(part.token[static_cast<size_t>(row)]);
    add_samples({row, &step.x[static_cast<size_t>(token * m.hidden)],
                 &step.x_scale[static_cast<size_t>(token * (m.hidden / kGroup))], w13.data(),
                 &layer.host_scale[static_cast<size_t>(e.expert * scales)], m.hidden, m.intermediate},
                first++ % stride, stride, samples);
  }
  return samples;
}

}  // namespace ladder
