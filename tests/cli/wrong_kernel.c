/* Kernel libraries that are wrong, by the name that the file is copied to: results of zeros ("zeros"), a
 * launch that fails ("fails"), a table that does not hold ("names": two configs of one name), none at all
 * ("empty"). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <ramp/dispatch.h>

static ramp_kernel_config configs[2];
static int fails;

static int launch(void* user, int32_t config, void* call) {
  (void)user, (void)config;
  const ramp_expert_block_args* args = ((const ramp_block_call*)call)->args;
  if (fails) return 42;
  memset(args->y.data, 0, (size_t)(args->y.shape[0] * args->y.shape[1]) * sizeof(float));
  return 0;
}

__attribute__((visibility("default"))) int ramp_kernel_library(const ramp_kernel_library_request* request,
                                                               ramp_kernel_desc* desc) {
  Dl_info self;
  if (dladdr((void*)configs, &self) == 0 || request->num_layers < 1) return 1;
  fails = strstr(self.dli_fname, "fails") != NULL;
  for (int i = 0; i < 2; ++i) {
    configs[i] = ramp_kernel_config_init();
    configs[i].name = i == 0 || strstr(self.dli_fname, "names") != NULL ? "a" : "b";
    configs[i].tile_m = configs[i].tile_n = 8;
  }
  desc->name = "wrong";
  desc->configs = configs;
  desc->num_configs = strstr(self.dli_fname, "empty") != NULL ? 0 : 2;
  desc->launch = launch;
  return 0;
}
