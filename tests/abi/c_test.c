/* The C header compiles as strict C11, every initialiser works from C, and a call goes through. Prints what
 * is wrong and returns 1. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "ramp/dispatch.h"
#include "ramp/ramp.h"

static int failures = 0;
#define CHECK(condition)                                                             \
  do {                                                                               \
    if (!(condition)) {                                                              \
      printf("%s:%d: %s (%s)\n", __FILE__, __LINE__, #condition, ramp_last_error()); \
      ++failures;                                                                    \
    }                                                                                \
  } while (0)

static ramp_tensor view(void* data, ramp_dtype dtype, int64_t a, int64_t b, int64_t c) {
  ramp_tensor t;
  memset(&t, 0, sizeof t);
  t.data = data;
  t.dtype = dtype;
  t.ndim = c > 0 ? 3 : 2;
  t.shape[0] = a;
  t.shape[1] = b;
  t.shape[2] = c;
  return t;
}

int main(void) {
  enum { E = 2, H = 32, I = 64, T = 3, K = 1 };
  float* w13 = (float*)calloc(E * 2 * I * H, sizeof(float));
  float* w2 = (float*)calloc(E * H * I, sizeof(float));
  float x[T][H];
  float y[T][H];
  float weights[T][K];
  int64_t ids[T][K];
  int e, i, t;
  ramp_context_options options = ramp_context_options_init();
  ramp_context_info context_info = ramp_context_info_init();
  ramp_weights_desc desc = ramp_weights_desc_init();
  ramp_weights_info weights_info = ramp_weights_info_init();
  ramp_expert_block_args args = ramp_expert_block_args_init();
  ramp_batched_args batched = ramp_batched_args_init();
  ramp_router_config router = ramp_router_config_init();
  ramp_moe_forward_args forward = ramp_moe_forward_args_init();
  ramp_layer_info layer = ramp_layer_info_init();
  ramp_context* context = NULL;
  ramp_weights* experts = NULL;
  uint64_t bytes = 0;

  CHECK(options.struct_size == sizeof options && options.executor == NULL);
  CHECK(batched.struct_size == sizeof batched && router.struct_size == sizeof router);
  CHECK(forward.struct_size == sizeof forward && layer.struct_size == sizeof layer);
  CHECK(strcmp(ramp_version(), RAMP_VERSION_STRING) == 0);
  if (w13 == NULL || w2 == NULL) return 1;

  /* gate = up = x, so that h = silu(x) * x in the first H of I columns; w2 = (e + 1) * I. */
  for (e = 0; e < E; ++e) {
    for (i = 0; i < H; ++i) {
      w13[(e * 2 * I + i) * H + i] = w13[(e * 2 * I + I + i) * H + i] = 1.0F;
      w2[(e * H + i) * I + i] = (float)(e + 1);
    }
  }
  for (t = 0; t < T; ++t) {
    for (i = 0; i < H; ++i) x[t][i] = (float)(i - 16) / 8.0F;
    ids[t][0] = t - 1; /* the first token is masked */
    weights[t][0] = 0.5F;
  }

  CHECK(ramp_context_create(&options, &context) == RAMP_OK);
  CHECK(ramp_context_get_info(context, &context_info) == RAMP_OK);
  CHECK(context_info.backend == RAMP_BACKEND_CPU);
  desc.format = RAMP_FORMAT_F32;
  desc.num_experts = E;
  desc.hidden = H;
  desc.intermediate = I;
  desc.w13 = view(w13, RAMP_F32, E, 2 * I, H);
  desc.w2 = view(w2, RAMP_F32, E, H, I);
  CHECK(ramp_weights_create(context, &desc, NULL, &experts) == RAMP_OK);
  CHECK(ramp_weights_pack(context, experts, NULL) == RAMP_OK);
  CHECK(ramp_weights_get_info(experts, &weights_info) == RAMP_OK && weights_info.packed == 1);
  args.weights = experts;
  args.x = view(x, RAMP_F32, T, H, 0);
  args.y = view(y, RAMP_F32, T, H, 0);
  args.topk_ids = view(ids, RAMP_I64, T, K, 0);
  args.topk_weights = view(weights, RAMP_F32, T, K, 0);
  CHECK(ramp_expert_block_workspace(context, experts, T, K, &bytes) == RAMP_OK && bytes > 0);
  CHECK(ramp_expert_block(context, &args, NULL, 0, NULL) == RAMP_OK);
  for (t = 0; t < T; ++t) {
    for (i = 0; i < H; ++i) {
      const double v = x[t][i];
      const double want = t == 0 ? 0.0 : 0.5 * t * v * v / (1.0 + exp(-v));
      /* One product per sum; exp, division and three products round a few times each. */
      CHECK(fabs(y[t][i] - want) <= 16 * 0x1p-24 * fabs(want));
    }
  }
  args.topk_ids.ndim = 7;
  CHECK(ramp_expert_block(context, &args, NULL, 0, NULL) == RAMP_ERROR_INVALID_ARGUMENT);
  CHECK(strstr(ramp_last_error(), "topk_ids") != NULL);
  ramp_weights_destroy(experts);
  ramp_context_destroy(context);
  free(w13);
  free(w2);
  printf("%s\n", failures == 0 ? "ok" : "failed");
  return failures == 0 ? 0 : 1;
}
