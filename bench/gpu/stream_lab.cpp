// Lab: variants of the stream kernels from cubins, parts of the block in graphs.
//   stream_lab variants.txt model:T:z[,...] parts
#include <dlfcn.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <sstream>
#include <string>
#include <vector>

#include "backend/cuda/driver.hpp"
#include "backend/cuda/gpu.hpp"
#include "backend/cuda/kernel_library.hpp"
#include "backend/cuda/launch.hpp"
#include "backend/cuda/plain_block.hpp"
#include "backend/cuda/prologue.hpp"
#include "base/error.hpp"
#include "base/float_types.hpp"
#include "base/rng.hpp"
#include "base/tensor.hpp"
#include "gpu/graph_timer.hpp"
#include "params/block.hpp"
#include "params/fill.hpp"
#include "params/stream.hpp"
#include "routing/workload.hpp"

namespace {
using namespace ramp::core;
using namespace ramp::core::cuda;

struct Model {
  const char* name;
  int64_t experts, top_k, hidden, inter;
  int layers;
};
constexpr Model kModels[] = {{"olmoe", 64, 8, 2048, 1024, 5},
                             {"qwen3-30b", 128, 8, 2048, 768, 5},
                             {"mixtral-8x7b", 8, 2, 4096, 14336, 3},
                             {"dsv3", 256, 8, 7168, 2048, 2},
                             {"e64", 64, 4, 3584, 2560, 4}};

struct Variant {
  std::string name;
  int width = 8, stages = 4, blocks = 3, smem1 = 0, smem2 = 0, early = 1, flags = 0, blocks2 = 0, waves = 0;
  std::string cubin[2];
  CUfunction f[2]{};
  CUdeviceptr times[2]{};
  size_t times_bytes[2]{};
};

struct Machine {
  std::shared_ptr<const Gpu> gpu = Gpu::open(0);
  std::shared_ptr<const DeviceMemory> memory = make_device_memory(gpu);
  KernelLibrary library{gpu, "", {}};
  Prologue prologue{gpu, library};
  Combine combine{gpu, library};
  CUstream stream = nullptr;
  CUfunction fill = nullptr;
  std::shared_ptr<void> codes;
  Machine() {
    const ScopedContext scope(*gpu);
    RAMP_CU(cuStreamCreate, &stream, static_cast<unsigned>(CU_STREAM_NON_BLOCKING));
    combine.prepare(RAMP_BF16);
    fill = library.get(KernelProgram{"bench_fill", "bench/fill.cu", {}, {"fill_1", "fill_2", "fill_4"}, 80}, "fill_1");
    std::vector<uint8_t> table(4096);
    for (size_t i = 0; i < table.size(); ++i) table[i] = f32_to_e4m3(static_cast<float>(random_normal(5, i)) * 40.0F);
    codes = memory->allocate(4096);
    memory->upload(codes.get(), table.data(), 4096, stream);
    memory->synchronize(stream);
  }
  std::shared_ptr<void> random(int64_t rows, int64_t cols, uint64_t seed) {
    auto p = memory->allocate(static_cast<uint64_t>(rows * cols));
    FillParams f{p.get(), codes.get(), seed, rows, cols};
    launch(fill, Grid{2048, 1, 256, 0}, stream, f);
    return p;
  }
  template <typename T>
  std::shared_ptr<void> up(const std::vector<T>& v) {
    auto p = memory->allocate(v.size() * sizeof(T));
    memory->upload(p.get(), v.data(), v.size() * sizeof(T), stream);
    memory->synchronize(stream);
    return p;
  }
};

struct Layer {
  std::shared_ptr<void> w13, w2, s13, s2, x, ids, weights, y, workspace, extra;
  BlockCall block;
};

struct Parts {
  PrologueWorkspace prologue;
  uint8_t* codes = nullptr;
  float* scales = nullptr;
  uint16_t* rows = nullptr;
  char* extra = nullptr;
};
constexpr uint64_t kExtra = uint64_t{64} << 20;

uint64_t carve(const ExpertWeights& w, int64_t tokens, int64_t k, int width, void* base, Parts& p) {
  uint64_t at = carve_prologue(w, tokens, k, width, base, p.prologue);
  const auto take = [&](uint64_t bytes) {
    at = (at + 255) / 256 * 256;
    void* r = base == nullptr ? nullptr : static_cast<std::byte*>(base) + at;
    at += bytes;
    return r;
  };
  const uint64_t slots = static_cast<uint64_t>(tokens * k);
  const uint64_t padded = slots + 8 * static_cast<uint64_t>(max_tiles(tokens * k, w.experts, width)) + 8;
  p.codes = static_cast<uint8_t*>(take(padded * w.intermediate));
  p.scales = static_cast<float*>(take(padded * w.intermediate / 128 * 4));
  p.rows = static_cast<uint16_t*>(take(slots * w.hidden * 2));
  p.extra = static_cast<char*>(take(kExtra));
  return at;
}

struct Lab {
  Machine m;
  const Model* model = nullptr;
  int64_t tokens = 0;
  ExpertWeights w;
  std::vector<Layer> layers;
  std::shared_ptr<void> workspace;
  std::vector<uint8_t> first_y;

  ramp_tensor view(const std::shared_ptr<void>& p, ramp_dtype d, int64_t r, int64_t c) const {
    ramp_tensor t = with_strides(make_tensor(p.get(), d, {r, c}));
    t.device = {RAMP_DEVICE_CUDA, 0};
    return t;
  }
  int active = 0, most = 0;
  void set_model(const Model& mo) {
    layers.clear();
    workspace.reset();
    model = &mo;
    w = ExpertWeights{};
    w.format = RAMP_FORMAT_FP8_BLOCK;
    w.experts = mo.experts;
    w.hidden = mo.hidden;
    w.intermediate = mo.inter;
    w.device = {RAMP_DEVICE_CUDA, 0};
    m.prologue.prepare(w, RAMP_BF16, false);
    for (int l = 0; l < mo.layers; ++l) {
      Layer y;
      y.w13 = m.random(mo.experts * 2 * mo.inter, mo.hidden, 100 + l);
      y.w2 = m.random(mo.experts * mo.hidden, mo.inter, 200 + l);
      const auto scales = [&](int64_t n, uint64_t seed) {
        std::vector<float> s(static_cast<size_t>(n));
        for (size_t i = 0; i < s.size(); ++i) s[i] = 0.0004F * static_cast<float>(1 + (mix(seed + i) % 97));
        return m.up(s);
      };
      y.s13 = scales(mo.experts * 2 * mo.inter / 128 * (mo.hidden / 128), 7 + l);
      y.s2 = scales(mo.experts * mo.hidden / 128 * (mo.inter / 128), 77 + l);
      layers.push_back(std::move(y));
    }
  }
  static uint64_t mix(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return z ^ (z >> 31);
  }
  void set_tokens(int64_t t, const std::string& routing) {
    tokens = t;
    first_y.clear();
    active = 0;
    for (size_t l = 0; l < layers.size(); ++l) {
      Layer& y = layers[l];
      const Routing r = make_routing(parse_workload(routing), model->experts, model->top_k, t, 11 + l);
      std::vector<int> c(static_cast<size_t>(model->experts));
      for (const auto e : r.ids) ++c[static_cast<size_t>(e)];
      for (const int n : c) active += n > 0 ? 1 : 0;
      most = *std::max_element(c.begin(), c.end());
      std::vector<uint16_t> x(static_cast<size_t>(t * model->hidden));
      for (size_t i = 0; i < x.size(); ++i)
        x[i] = f32_to_bf16(static_cast<float>(static_cast<int>(mix(i * 31 + l) % 2001) - 1000) * 1e-3F);
      y.x = m.up(x);
      y.ids = m.up(std::vector<int32_t>(r.ids.begin(), r.ids.end()));
      y.weights = m.up(r.weights);
      y.y = m.memory->allocate(static_cast<uint64_t>(t * model->hidden * 2));
      BlockCall& b = y.block;
      b = BlockCall{};
      b.weights = &w;
      b.tokens = t;
      b.top_k = model->top_k;
      b.x = view(y.x, RAMP_BF16, t, model->hidden);
      b.ids = view(y.ids, RAMP_I32, t, model->top_k);
      b.topk_weights = view(y.weights, RAMP_F32, t, model->top_k);
      b.y = view(y.y, RAMP_BF16, t, model->hidden);
    }
    Parts p;
    uint64_t most_bytes = 0;
    for (int width : {8, 16, 32, 64, 128})
      most_bytes = std::max(most_bytes, carve(w, t, model->top_k, width, nullptr, p));
    workspace = m.memory->allocate(most_bytes);
    m.memory->fill(workspace.get(), 0, most_bytes, m.stream);
    m.memory->synchronize(m.stream);
  }
  StreamParams common(const Parts& p, const Variant& v) const {
    StreamParams s{};
    const RowIndex& index = p.prologue.index;
    s.tiles = reinterpret_cast<const StreamTile*>(index.tiles);
    s.num_tiles = index.num_tiles;
    s.offsets = index.offsets;
    s.slots = index.slots;
    s.top_k = static_cast<int>(model->top_k);
    s.early = v.early && w.experts > 16 ? 1 : v.early > 1 ? 1 : 0;
#ifdef LAB_EXTRA
    lab_extra(s, p, v);
#endif
    return s;
  }
  uint64_t blocks(const Variant& v, int gemm) const {
    const int b = gemm == 2 && v.blocks2 > 0 ? v.blocks2 : v.blocks;
    return static_cast<uint64_t>(m.gpu->facts().sm_count) * static_cast<uint64_t>(b) / 2 * 2;
  }
  void gemm1(const Variant& v, const Layer& y, const Parts& p, const GemmInput& in) const {
    StreamParams s = common(p, v);
    s.weights = static_cast<const unsigned char*>(y.w13.get());
    s.weight_scale = static_cast<const float*>(y.s13.get());
    s.ws_row = w.hidden / 128;
    s.ws_expert = s.ws_row * 2 * w.intermediate / 128;
    s.up_scale_row = static_cast<int>(w.intermediate / 128);
    s.x = static_cast<const unsigned char*>(in.data);
    s.x_stride = in.stride;
    s.x_scale = in.scales;
    s.x_scale_stride = in.scale_stride;
    s.x_source = s.x_scale_source = kRowToken;
    s.slices = static_cast<int>(2 * w.intermediate / 128);
    s.steps = static_cast<int>(w.hidden / 128);
    s.codes = p.codes;
    s.out_stride = w.intermediate;
    s.scales = p.scales;
    s.scale_out_stride = w.intermediate / 128;
    launch_dependent(true, v.f[0], Grid{blocks(v, 1), 1, v.flags == 2 ? 576U : 320U, static_cast<unsigned>(v.smem1)}, m.stream, s);
  }
  void gemm2(const Variant& v, const Layer& y, const Parts& p) const {
    StreamParams s = common(p, v);
    s.weights = static_cast<const unsigned char*>(y.w2.get());
    s.weight_scale = static_cast<const float*>(y.s2.get());
    s.ws_row = w.intermediate / 128;
    s.ws_expert = s.ws_row * w.hidden / 128;
    s.x = p.codes;
    s.x_stride = w.intermediate;
    s.x_scale = p.scales;
    s.x_scale_stride = w.intermediate / 128;
    s.x_source = s.x_scale_source = kRowSorted;
    s.slices = static_cast<int>(w.hidden / 128);
    s.steps = static_cast<int>(w.intermediate / 128);
    s.rows = p.rows;
    s.out_stride = w.hidden;
    s.slot_weight = static_cast<const float*>(y.weights.get());
    s.slot_weight_token = model->top_k;
    s.slot_weight_slot = 1;
    launch_dependent(true, v.f[1], Grid{blocks(v, 2), 1, v.flags == 2 ? 576U : 320U, static_cast<unsigned>(v.smem2)}, m.stream, s);
  }
  // parts: letters p(rologue) 1 2 c(ombine)
  double time(const Variant& v, const std::string& parts, int replays) {
    Parts p;
    carve(w, tokens, model->top_k, v.width, workspace.get(), p);
    GemmInput in{};
    const auto one = [&](Layer& y, const std::string& what) {
      for (const char c : what) {
        if (c == 'p') in = m.prologue.block(y.block, p.prologue, m.stream);
        if (c == '1') gemm1(v, y, p, in);
        if (c == '2') gemm2(v, y, p);
        if (c == 'c') m.combine.block(y.block, p.rows, RAMP_BF16, p.prologue.index, m.stream);
      }
    };
    for (Layer& y : layers) one(y, "p12c");
    RAMP_CU(cuStreamSynchronize, m.stream);
    const auto t = bench::time_graph(m.stream, replays, [&] {
      for (Layer& y : layers) one(y, parts);
    });
    return t.median_us / static_cast<double>(layers.size());
  }
  std::string compare() {
    std::vector<uint8_t> bits;
    for (Layer& y : layers) {
      const size_t n = static_cast<size_t>(tokens * model->hidden * 2);
      const size_t at = bits.size();
      bits.resize(at + n);
      m.memory->download(bits.data() + at, y.y.get(), n, m.stream);
      m.memory->synchronize(m.stream);
    }
    if (first_y.empty()) {
      first_y = bits;
      double s = 0;
      for (size_t i = 0; i + 1 < bits.size(); i += 2) {
        uint16_t a;
        std::memcpy(&a, &bits[i], 2);
        s += std::abs(bf16_to_f32(a));
      }
      return fmt::format("mean {:.3g}", s / static_cast<double>(bits.size() / 2));
    }
    if (bits == first_y) return "same";
    double d = 0, s = 0;
    for (size_t i = 0; i + 1 < bits.size(); i += 2) {
      uint16_t a, b;
      std::memcpy(&a, &bits[i], 2);
      std::memcpy(&b, &first_y[i], 2);
      d += std::abs(static_cast<double>(bf16_to_f32(a)) - static_cast<double>(bf16_to_f32(b)));
      s += std::abs(static_cast<double>(bf16_to_f32(b)));
    }
    return fmt::format("rel {:.2g}", d / s);
  }
  void histogram(const Variant& v) {
    for (int g = 0; g < 2; ++g) {
      if (v.times[g] == 0) continue;
      const size_t n = blocks(v, g + 1);
      std::vector<uint64_t> t(4 * n);
      m.memory->download(t.data(), reinterpret_cast<const void*>(v.times[g]), t.size() * 8, m.stream);
      m.memory->synchronize(m.stream);
      uint64_t base = ~uint64_t{0};
      for (size_t i = 0; i < n; ++i) base = std::min(base, t[4 * i]);
      fmt::print("    gemm{}:", g + 1);
      for (int k = 0; k < 4; ++k) {
        std::vector<double> d;
        for (size_t i = 0; i < n; ++i) d.push_back(static_cast<double>(t[4 * i + k] - base) * 1e-3);
        std::sort(d.begin(), d.end());
        const char* names[] = {"start", "waited", "first", "end"};
        fmt::print(" {} {:.1f} {:.1f} {:.1f} {:.1f} {:.1f};", names[k], d[0], d[n / 10], d[n / 2], d[n * 9 / 10], d[n - 1]);
      }
      fmt::print(" base {}\n", base % 1000000000);
    }
  }
};
}  // namespace

int main(int argc, char** argv) {
  try {
  Lab lab;
  const ScopedContext scope(*lab.m.gpu);
  using Get = int (*)(CUdeviceptr*, size_t*, CUmodule, const char*);
  auto get_global = reinterpret_cast<Get>(dlsym(dlopen("libcuda.so.1", RTLD_NOW), "cuModuleGetGlobal_v2"));
  std::vector<Variant> variants;
  std::ifstream file(argv[1]);
  for (std::string line; std::getline(file, line);) {
    std::istringstream in(line);
    Variant v;
    if (!(in >> v.name >> v.width >> v.stages >> v.blocks >> v.blocks2 >> v.smem1 >> v.smem2 >> v.early >> v.flags >> v.cubin[0] >> v.cubin[1])) continue;
    for (int g = 0; g < 2; ++g) {
      CUmodule mod = nullptr;
      std::ifstream c(v.cubin[g], std::ios::binary);
      std::stringstream data;
      data << c.rdbuf();
      const std::string bytes = data.str();
      RAMP_CU(cuModuleLoadData, &mod, static_cast<const void*>(bytes.data()));
      RAMP_CU(cuModuleGetFunction, &v.f[g], mod, "stream");
      RAMP_CU(cuFuncSetAttribute, v.f[g], CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, g == 0 ? v.smem1 : v.smem2);
      if (v.name.find("times") != std::string::npos)
        get_global(&v.times[g], &v.times_bytes[g], mod, "stream_times");
    }
    variants.push_back(v);
  }
  const std::string select = argc > 4 ? argv[4] : "";
  std::string last;
  std::istringstream points(argv[2]);
  for (std::string point; std::getline(points, point, ',');) {
    std::istringstream in(point);
    std::string name, t, z;
    std::getline(in, name, ':');
    std::getline(in, t, ':');
    std::getline(in, z);
    if (name != last) {
      for (const Model& mo : kModels)
        if (name == mo.name) lab.set_model(mo);
      last = name;
    }
    lab.set_tokens(std::stoll(t), z == "0" ? "uniform" : z[0] >= '0' && z[0] <= '9' ? "zipf:" + z : z);
    const double bytes = 3.0 * static_cast<double>(lab.model->hidden * lab.model->inter) * lab.active / lab.model->layers;
    fmt::print("{} T={} z={} active {:.1f} most {} ideal {:.1f}\n", name, t, z, lab.active / static_cast<double>(lab.model->layers), lab.most, bytes / 4.53e6);
    for (const Variant& v : variants) {
      fmt::print("  {:<22}", v.name);
      std::istringstream parts(argv[3]);
      for (std::string p; std::getline(parts, p, ',');) {
        const double us = lab.time(v, p, 11);
        fmt::print(" {}={:.1f}", p, us);
      }
      lab.time(v, "p12c", 1);
      fmt::print(" {}\n", lab.compare());
      if (v.times[0] != 0) lab.histogram(v);
      std::fflush(stdout);
    }
  }
  } catch (const std::exception& e) {
    fmt::print("error: {}\n", e.what());
    return 1;
  }
  return 0;
}
