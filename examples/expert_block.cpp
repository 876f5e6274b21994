// The expert block from C++. Expert e computes (e+1) * max(x, 0)^2, since w13 = I, w2 = (e+1) * I and the
// activation is relu2. So x = 3 through experts 0 and 1 with weights 0.25 and 0.75 must give
// 0.25 * 9 + 0.75 * 18 = 15.75.
#include <cstdio>
#include <exception>
#include <ramp/ramp.hpp>
#include <vector>

int main() try {
  constexpr int64_t E = 2, H = 32, T = 1;  // experts, hidden and intermediate size, tokens
  std::vector<float> w13(E * H * H), w2(E * H * H), x(T * H, 3.0F), y(T * H), weights = {0.25F, 0.75F};
  std::vector<int32_t> ids = {0, 1};
  for (int64_t n = 0; n < E * H; ++n)
    w13[n * H + n % H] = 1.0F, w2[n * H + n % H] = static_cast<float>(n / H + 1);
  ramp::Context context;
  ramp::Weights experts(context, {.format = RAMP_FORMAT_F32,
                                  .activation = RAMP_ACTIVATION_RELU2,
                                  .w13 = ramp::tensor(w13, {E, H, H}),
                                  .w2 = ramp::tensor(w2, {E, H, H})});
  context.expert_block(experts, {.x = ramp::tensor(x, {T, H}),
                                 .topk_ids = ramp::tensor(ids, {T, 2}),
                                 .topk_weights = ramp::tensor(weights, {T, 2}),
                                 .y = ramp::tensor(y, {T, H})});
  std::printf("ramp %s on %s: y[0] = %g, expected 15.75\n", ramp_version(), context.info().backend_name,
              double{y[0]});
  return y == std::vector<float>(T * H, 15.75F) ? 0 : 1;
} catch (const std::exception& e) {
  return std::fprintf(stderr, "%s\n", e.what()), 1;
}
