/* The expert block from C. Expert e computes (e+1) * max(x, 0)^2, since w13 = I, w2 = (e+1) * I and the
 * activation is relu2. So x = 3 through experts 0 and 1 with weights 0.25 and 0.75 must give
 * 0.25 * 9 + 0.75 * 18 = 15.75. */
#include <ramp/ramp.h>
#include <stdio.h>

enum { H = 32 }; /* hidden and intermediate size */
static float w13[2][H][H], w2[2][H][H], x[H], y[H], weights[2] = {0.25F, 0.75F};
static int32_t ids[2] = {0, 1};

int main(void) {
  for (int i = 0; i < H; ++i) x[i] = 3, w13[0][i][i] = w13[1][i][i] = 1, w2[0][i][i] = 1, w2[1][i][i] = 2;
  ramp_context* context = NULL;
  ramp_weights_desc desc = {.struct_size = sizeof desc,
                            .format = RAMP_FORMAT_F32,
                            .activation = RAMP_ACTIVATION_RELU2,
                            .num_experts = 2,
                            .hidden = H,
                            .intermediate = H,
                            .w13 = {.data = w13, .dtype = RAMP_F32, .ndim = 3, .shape = {2, H, H}},
                            .w2 = {.data = w2, .dtype = RAMP_F32, .ndim = 3, .shape = {2, H, H}}};
  ramp_expert_block_args args = {
      .struct_size = sizeof args,
      .x = {.data = x, .dtype = RAMP_F32, .ndim = 2, .shape = {1, H}},
      .topk_ids = {.data = ids, .dtype = RAMP_I32, .ndim = 2, .shape = {1, 2}},
      .topk_weights = {.data = weights, .dtype = RAMP_F32, .ndim = 2, .shape = {1, 2}},
      .y = {.data = y, .dtype = RAMP_F32, .ndim = 2, .shape = {1, H}}};
  ramp_weights* experts = NULL;
  int failed = ramp_context_create(NULL, &context) || ramp_weights_create(context, &desc, NULL, &experts);
  args.weights = experts;
  if (failed || ramp_expert_block(context, &args, NULL, 0, NULL))
    return fprintf(stderr, "%s\n", ramp_last_error()), 1;
  printf("ramp %s: y[0] = %g, expected 15.75\n", ramp_version(), (double)y[0]);
  ramp_weights_destroy(experts), ramp_context_destroy(context);
  return y[0] == 15.75F && y[H - 1] == 15.75F ? 0 : 1;
}
