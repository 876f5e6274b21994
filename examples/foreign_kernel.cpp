// Somebody else's kernel under ramp's dispatcher, its source untouched: a toy grouped matrix product on the
// CPU whose only knob is the token tile. Small tiles waste little on cold experts, large tiles reuse each
// weight for more rows. It is registered, profiled on this machine, fitted, and then dispatched step by step.
#include <chrono>
#include <cstdio>
#include <exception>
#include <ramp/dispatch.hpp>
#include <vector>

namespace {
constexpr int64_t E = 16, K = 2, H = 128, I = 64, N = 2 * I;
constexpr int32_t kTiles[] = {1, 4, 16, 64};
constexpr const char* kNames[] = {"m1", "m4", "m16", "m64"};

// ---- the foreign kernel: y = w * x per expert, over tiles of `tile_m` columns (tokens), padded to full
// tiles.
struct Arguments {
  std::vector<int32_t> histogram;
  size_t rows = 0;
  std::vector<float> x, w, y;  // [H, rows], [E, N, H], [N, rows]
};
void foreign_kernel(int32_t tile_m, Arguments& a) {
  size_t row = 0;
  for (int64_t e = 0; e < E; ++e) {
    for (int32_t done = 0; done < a.histogram[e]; done += tile_m, row += tile_m) {
      for (int64_t n = 0; n < N; ++n) {
        float sum[64] = {};
        for (int64_t h = 0; h < H; ++h) {
          for (int32_t m = 0; m < tile_m; ++m) sum[m] += a.w[(e * N + n) * H + h] * a.x[h * a.rows + row + m];
        }
        for (int32_t m = 0; m < tile_m; ++m) a.y[n * a.rows + row + m] = sum[m];
      }
    }
  }
}

Arguments arguments_for(const int32_t* histogram) {
  Arguments a{{histogram, histogram + E}, 0, {}, std::vector<float>(E * N * H, 0.5F), {}};
  for (const int32_t c : a.histogram) a.rows += static_cast<size_t>((c + 63) / 64 * 64);  // for any tile size
  a.x.assign(a.rows * H, 1.0F);
  a.y.assign(a.rows * N, 0.0F);
  return a;
}
}  // namespace

int main() try {
  Arguments a;
  ramp::KernelDesc desc{
      .name = "toy", .configs = {}, .num_experts = E, .top_k = K, .hidden = H, .intermediate = I};
  for (int i = 0; i < 4; ++i) desc.configs.push_back({.name = kNames[i], .tile_m = kTiles[i], .tile_n = N});
  desc.launch = [](int32_t config, void* call) {
    foreign_kernel(kTiles[config], *static_cast<Arguments*>(call));
    return 0;
  };
  ramp::Kernel kernel(std::move(desc));
  kernel.profile({.max_tokens = 256, .repeats = 5, .prepare = [&](const ramp_workload& w) {
                    a = arguments_for(w.histogram);
                    return &a;
                  }});
  kernel.fit();
  for (const int32_t tokens : {1, 8, 64, 256}) {  // live: cold experts first, then a hot batch
    std::vector<int32_t> histogram(E);
    for (int32_t i = 0; i < tokens * K; ++i) ++histogram[(i * 7) % E];
    a = arguments_for(histogram.data());
    const auto start = std::chrono::steady_clock::now();
    const int32_t config = kernel.dispatch(histogram, &a);
    const std::chrono::duration<double, std::micro> us = std::chrono::steady_clock::now() - start;
    std::printf("%3d tokens: %-3s predicted %7.1f us, took %7.1f us\n", tokens, kernel.config_name(config),
                double{kernel.predict(histogram)[config]}, us.count());
    if (a.y[0] != 0.5F * H) return 1;
  }
  return 0;
} catch (const std::exception& e) {
  return std::fprintf(stderr, "%s\n", e.what()), 1;
}
