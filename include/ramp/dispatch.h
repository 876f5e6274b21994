/* ramp, the dispatcher: for any kernel whose work is a grid of tiles. Register a table of configs and a
 * launch callback, profile it, fit it, and let every step run the config that its own expert histogram wants.
 * The kernel's source is not touched; ramp never looks inside it. (docs/dispatch.md)
 *
 *   ramp_kernel_create -> ramp_kernel_profile -> ramp_kernel_fit -> ramp_kernel_dispatch, every step
 *                              |  save/load            |  save/load
 *
 * The conventions of ramp/ramp.h hold: statuses, ramp_last_error(), sized structs, silence. Names: T tokens,
 * E experts, k top-k, H hidden size, I intermediate size, histogram = rows routed to each expert, config =
 * one set of compile-time parameters of the kernel.
 *
 * Concurrency: ramp_kernel_choose, ramp_kernel_dispatch, ramp_kernel_launch, ramp_kernel_predict and the
 * getters may run on one kernel from any number of threads at once; they neither allocate (unless they fail),
 * nor lock, nor block, beside what the launched kernel does.
 * Everything that takes a non-const ramp_kernel is a writer: no other call on that kernel meanwhile.
 * Callbacks run on the calling thread; they must not call writers on the same kernel, and must not throw.
 */
#ifndef RAMP_DISPATCH_H_
#define RAMP_DISPATCH_H_

#include "ramp/ramp.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct ramp_kernel ramp_kernel;

/* ---------------------------------------------------------------- registration */

/* Runs config number `config` (from 0) on `call`, which is passed through untouched: your own argument block.
 * May be asynchronous. 0 = success; anything else makes the call that launched it return RAMP_ERROR_DEVICE
 * with the code in the message. */
typedef int (*ramp_kernel_launch_fn)(void* user, int32_t config, void* call);

typedef struct ramp_kernel_config {
  uint64_t struct_size;
  const char* name;    /* distinct, one line */
  int32_t tile_m;      /* token rows per tile, >= 1 */
  int32_t tile_n;      /* weight rows of GEMM1 per tile, gate and up counted, >= 1 */
  int32_t tile_k;      /* depth per pipeline step; 0 = 128 */
  int32_t warps_n;     /* warps along n; 0 = not applicable */
  int32_t stages;      /* pipeline depth; 0 = 1 */
  int32_t threads;     /* per block; 0 = not applicable */
  int32_t split_k;     /* depth split over this many tiles; 0 = 1 */
  int32_t group_m;     /* GROUP_M swizzle; 0 = none */
  const double* extra; /* [num_extra_columns], finite; NULL if there are none */
} ramp_kernel_config;  /* a field that is 0 in all configs is a column that the kernel does not have */
RAMP_DEFINE_INIT(ramp_kernel_config)

/* The machine that the kernel runs on. What is 0 or NULL is not known, and is not compared when files are
 * loaded; only sm_count must be known. */
typedef struct ramp_machine {
  uint64_t struct_size;
  const char* hardware;    /* a machine that the library knows ("h200"): fills in everything left zero here */
  const char* device_name; /* as the driver calls it: "NVIDIA H200" */
  const char* driver;      /* "580.65.06" */
  const char* cuda;        /* "13.0" */
  int32_t sm_count;        /* SMs, or CPU workers: tiles that run at once = sm_count * residency */
  int32_t reserved;        /* 0 */
  double sm_clock_mhz;
  double memory_clock_mhz;
  double dram_gbps; /* read bandwidth, 1e9 bytes/s; used by the analytic model and as a start value of fits */
} ramp_machine;
RAMP_DEFINE_INIT(ramp_machine)

typedef struct ramp_kernel_desc {
  uint64_t struct_size;
  const char* name;                  /* whose configs these are: "alpha_moe" */
  const ramp_kernel_config* configs; /* array; all elements have the struct_size of the first */
  int32_t num_configs;
  int32_t num_extra_columns;
  /* Further numeric columns of the table. Cost models use "residency" (tiles that share an SM), or
   * "smem_bytes" and "regs" (per block and per thread) to derive it; the others tell configs apart. */
  const char* const* extra_columns;
  int32_t
      default_config;     /* n > 0: config n-1 is what you run today, and is left only for a config that the
                             profile has shown to be faster; 0: the fastest on balanced routing takes its place */
  int32_t reserved;       /* 0 */
  const char* model_name; /* NULL = "E,k,H,I" */
  int64_t num_experts, top_k, hidden, intermediate; /* of the layer; one kernel handle per layer shape */
  ramp_kernel_launch_fn launch;                     /* may be NULL if only ramp_kernel_choose is used */
  void* user;                                       /* passed to launch */
  const ramp_machine* machine; /* NULL = this CPU: its model name, one tile per available core at a time */
  ramp_log_fn log;             /* warnings about files, configs that failed, ...; NULL = nowhere */
  void* log_user;
} ramp_kernel_desc;
RAMP_DEFINE_INIT(ramp_kernel_desc)

/* Copies the table and all strings. Errors: INVALID_ARGUMENT naming the config and column. The new kernel
 * dispatches at once: with its declared default if it has one, else with the analytic model. */
RAMP_API ramp_status ramp_kernel_create(const ramp_kernel_desc* desc, ramp_kernel** out);
RAMP_API void ramp_kernel_destroy(ramp_kernel* kernel);

/* The expert block with a kernel of yours beside ramp's own: one table that begins with the configs that
 * `context` has for `weights` (in the order of ramp_config_name; none on the reference backend) and goes on
 * with those of desc, one dispatcher over both. Everything below works on it as on any other kernel: profile,
 * fit, files, dispatch. */
typedef struct ramp_block_call {
  uint64_t struct_size;
  const ramp_expert_block_args* args; /* its `config` is ignored */
  void* workspace;                    /* for ramp's own configs, as in ramp_expert_block; may be NULL */
  uint64_t workspace_bytes;
  void* stream;
} ramp_block_call;
RAMP_DEFINE_INIT(ramp_block_call)

/* `call` of every launch, here and in ramp_kernel_dispatch, ramp_kernel_launch and prepare, is a
 * ramp_block_call*. One of ramp's configs runs ramp_expert_block with it: args->weights may be any layer of
 * the shape, format and activation of `weights`, and its errors are those of the call. One of yours runs
 * desc->launch, whose `config` counts from 0 among desc->configs; the pointer is passed through untouched.
 *
 * Of desc: num_configs may be 0; num_experts, hidden and intermediate are those of the weights and may be
 * left 0; top_k must be set; default_config counts in the whole table; machine NULL is the context's (its
 * device and workers). warps_n and the extra columns that say how many blocks share an SM are not taken: they
 * would have to be known of ramp's configs too. A file of such a kernel belongs to the backend, ISA level,
 * format and activation as well. Names must differ from those of ramp's configs.
 *
 * The context must outlive the kernel; of the weights only the kind is looked at. Errors: INVALID_ARGUMENT,
 * UNSUPPORTED (weights that do not run on this context), OUT_OF_MEMORY. */
RAMP_API ramp_status ramp_block_kernel_create(ramp_context* context, const ramp_weights* weights,
                                              const ramp_kernel_desc* desc, ramp_kernel** out);

typedef struct ramp_kernel_info {
  uint64_t struct_size;
  int32_t num_configs;
  int32_t default_config; /* as declared; 0 = none */
  int32_t fitted;         /* 1: choices come from a fit; 0: from the declared default or the analytic model */
  int32_t reserved;
  int64_t num_experts;
  int64_t profile_points;  /* 0 = no profile */
  int64_t profile_timings; /* measured (point, config) pairs */
  const char* cost_model;  /* "wave", "analytic", ...; valid until the next writer */
} ramp_kernel_info;
RAMP_DEFINE_INIT(ramp_kernel_info)
RAMP_API ramp_status ramp_kernel_get_info(const ramp_kernel* kernel, ramp_kernel_info* out);
/* Name of config `index` (from 0); NULL past the last one. Lives as long as the kernel. */
RAMP_API const char* ramp_kernel_config_name(const ramp_kernel* kernel, int32_t index);
/* Warning `index` (from 0) of the last profile, load or fit; NULL past the last one. Valid until the next
 * writer. */
RAMP_API const char* ramp_kernel_warning(const ramp_kernel* kernel, int32_t index);

/* ---------------------------------------------------------------- every step */

/* The config (from 0) for this step. histogram: [num_experts] counts >= 0 in host memory; all zero is valid.
 */
RAMP_API ramp_status ramp_kernel_choose(const ramp_kernel* kernel, const int32_t* histogram,
                                        int64_t num_experts, int32_t* config);
/* choose, then launch(user, config, call). config (may be NULL) receives the choice even if the launch fails.
 */
RAMP_API ramp_status ramp_kernel_dispatch(const ramp_kernel* kernel, const int32_t* histogram,
                                          int64_t num_experts, void* call, int32_t* config);
/* Runs that config (from 0) without choosing: for a measure callback, for a graph per config. */
RAMP_API ramp_status ramp_kernel_launch(const ramp_kernel* kernel, int32_t config, void* call);
/* Predicted microseconds per config, us: [num_configs]; +infinity = must not be chosen. */
RAMP_API ramp_status ramp_kernel_predict(const ramp_kernel* kernel, const int32_t* histogram,
                                         int64_t num_experts, float* us, int32_t num_configs);

/* ---------------------------------------------------------------- profiling */

/* One workload point. */
typedef struct ramp_workload {
  uint64_t struct_size;
  const char* name;         /* distinct; NULL = "t<tokens>_<index>" */
  int64_t tokens;           /* T >= 1 */
  const int32_t* histogram; /* [num_experts]; 1 to T*k rows (less than T*k where ids are masked) */
} ramp_workload;
RAMP_DEFINE_INIT(ramp_workload)

/* Makes the inputs of a point and returns, in *call, what launch gets for it. Called when the point changes;
 * name, tokens and histogram of `point` are set. The previous point's `call` is no longer used then. */
typedef int (*ramp_kernel_prepare_fn)(void* user, const ramp_workload* point, void** call);
/* Runs config once on call and says how long it took, in microseconds, for kernels that a host clock cannot
 * time (CUDA events, cold caches). 0 = success. */
typedef int (*ramp_kernel_measure_fn)(void* user, int32_t config, void* call, double* us);
/* Waits until everything launched has finished. 0 = success. */
typedef int (*ramp_kernel_synchronize_fn)(void* user);

typedef struct ramp_profile_options {
  uint64_t struct_size;
  const ramp_workload* workloads; /* array; all elements have the struct_size of the first */
  int64_t num_workloads; /* 0 = 12 points: T = 1..max_tokens in six steps, uniform and Zipf 1.2 routing */
  int64_t max_tokens;    /* of those; 0 = 2048 */
  uint64_t seed;         /* of those */
  int32_t warmup;        /* untimed runs before a config's first sample; 0 = 2, -1 = none */
  int32_t repeats;       /* samples per timing (the median counts); 0 = 9 */
  double hopeless_ratio; /* a config this many times slower than the point's fastest gets no more samples
                            there, and none at later points if it was that slow at the first four; 0 = 2 */
  int32_t keep_hopeless; /* 1: measure every config fully at every point */
  int32_t resume;        /* 1: keep what the kernel's profile (measured or loaded) already has */
  ramp_kernel_prepare_fn prepare;         /* NULL: launch gets the ramp_workload* as `call`
                                             (ramp_block_kernel_create: must be given) */
  ramp_kernel_measure_fn measure;         /* NULL: the library's steady clock around launch (+ synchronize) */
  ramp_kernel_synchronize_fn synchronize; /* NULL: launch is synchronous */
  void* user;                             /* passed to prepare, measure and synchronize */
} ramp_profile_options;
RAMP_DEFINE_INIT(ramp_profile_options)

/* Measures the kernel and keeps the profile. A config whose launch or measurement fails is left out, with a
 * warning; a failing prepare ends the profile (RAMP_ERROR_DEVICE), and what was measured until then is kept:
 * resume continues it. */
RAMP_API ramp_status ramp_kernel_profile(ramp_kernel* kernel, const ramp_profile_options* options);

/* The same as a state machine, for those who own the loop (several processes, a scheduler, simulated time):
 *   while (ramp_profiler_next(p, &task) == RAMP_OK && !task.done) ramp_profiler_report(p, time_of(task));
 *   ramp_profiler_finish(p, kernel); */
typedef struct ramp_profiler ramp_profiler;
typedef struct ramp_profile_task {
  uint64_t struct_size;
  int32_t done;   /* 1: nothing is left; the other fields are zero */
  int32_t config; /* from 0 */
  int32_t warmup; /* 1: run it, the reported time is ignored */
  int32_t reserved;
  int64_t workload; /* index into the workloads */
  int64_t tokens;
  const char* name;         /* of the workload; lives as long as the profiler */
  const int32_t* histogram; /* [num_experts]; lives as long as the profiler */
  int64_t points_done, points;
} ramp_profile_task;
RAMP_DEFINE_INIT(ramp_profile_task)

/* Uses workloads, seed, counts, ratio and resume of the options; callbacks are ignored. The kernel is only
 * read here. */
RAMP_API ramp_status ramp_profiler_create(const ramp_kernel* kernel, const ramp_profile_options* options,
                                          ramp_profiler** out);
RAMP_API void ramp_profiler_destroy(ramp_profiler* profiler);
/* The task to run now; the same until it is reported. */
RAMP_API ramp_status ramp_profiler_next(const ramp_profiler* profiler, ramp_profile_task* task);
/* Its microseconds. NaN, infinite, zero and negative ticks are no samples: the task comes again, at most
 * three times in a row; then the config counts as failed. */
RAMP_API ramp_status ramp_profiler_report(ramp_profiler* profiler, double us);
/* The task could not be run: its config is left out. reason: one line for the warning. */
RAMP_API ramp_status ramp_profiler_report_failure(ramp_profiler* profiler, const char* reason);
/* Gives the kernel the profile measured so far (complete points only). May be called before the end. */
RAMP_API ramp_status ramp_profiler_finish(const ramp_profiler* profiler, ramp_kernel* kernel);

/* ---------------------------------------------------------------- fits and files */

/* cost_model: NULL = the default ("wave"). Needs a profile. On an error the kernel keeps what it had. */
RAMP_API ramp_status ramp_kernel_fit(ramp_kernel* kernel, const char* cost_model);

/* Versioned JSON, written whole or not at all. */
RAMP_API ramp_status ramp_kernel_save_profile(const ramp_kernel* kernel, const char* path);
RAMP_API ramp_status ramp_kernel_save_fit(const ramp_kernel* kernel, const char* path);
/* used (may be NULL): 1 if the file was taken over. A file that was made for another machine, another kernel
 * or another library series is not an error and not used: the call returns RAMP_OK with *used = 0, the kernel
 * stays as it was, and a warning names the file and the command that mends it. A file that cannot be read or
 * is malformed is an error (IO, BAD_FILE). */
RAMP_API ramp_status ramp_kernel_load_profile(ramp_kernel* kernel, const char* path, int32_t* used);
RAMP_API ramp_status ramp_kernel_load_fit(ramp_kernel* kernel, const char* path, int32_t* used);

/* ---------------------------------------------------------------- kernel libraries */

/* A kernel for the expert block as a shared library, for `ramp profile --kernel-library FILE`: it exports one
 * C function, named ramp_kernel_library, that fills in a ramp_kernel_desc for ramp_block_kernel_create. The
 * command makes the layers, checks the results of each of the library's configs (not of ramp's) against fp64,
 * times both alike, and writes a profile and a fit; a program that registers the same name and table loads
 * the fit and dispatches by it.
 *
 * The handles belong to the command: a library compares their addresses with args->weights of a call, to know
 * the layer, and must not hand them to a libramp of its own. */
typedef struct ramp_kernel_library_request {
  uint64_t struct_size;
  ramp_device device; /* where all tensors lie */
  int32_t format, activation;
  int64_t num_experts, top_k, hidden, intermediate;
  int64_t max_tokens; /* of any call */
  int64_t num_layers;
  const ramp_weights* const* weights; /* [num_layers] args->weights of calls to come */
  const ramp_weights_desc* const*
      values; /* [num_layers] in checkpoint layout, for this call only: copy them */
} ramp_kernel_library_request;

/* Fills in name, configs, num_configs (>= 1), extra columns, launch, user of desc, an initialised struct; all
 * of it lives until the process ends. 0 = success; anything else: not for this shape, format or machine. */
typedef int (*ramp_kernel_library_fn)(const ramp_kernel_library_request* request, ramp_kernel_desc* desc);

#ifdef __cplusplus
} /* extern "C" */
#endif
#endif /* RAMP_DISPATCH_H_ */
