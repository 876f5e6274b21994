/* ramp: the expert block of a Mixture-of-Experts layer, as fast as the hardware allows for this step's
 * routing.
 *
 * This is the C ABI (dispatch.h adds the dispatcher for kernels of your own). Shapes are written [rows,
 * columns], row-major unless strides say otherwise. T tokens, E experts, k top-k, H hidden, I intermediate
 * (per expert, after tensor parallelism), c_e tokens routed to expert e (the histogram).
 *
 * Conventions that hold for every function here:
 *
 *  - Errors. A function returns RAMP_OK or an error status; ramp_last_error() then holds, for the calling
 *    thread, one line that names the argument, what was got, what was expected and how to mend it. Nothing is
 *    written to outputs on an error that is detected on the host. No exception crosses this border.
 *
 *  - Sized structs. A struct that begins with `struct_size` is initialised with its ramp_NAME_init(): all
 *    fields zero (every zero is the documented default) and struct_size set. A struct from an older header is
 *    accepted (the fields that it lacks are zero); one from a newer header is accepted as long as the fields
 *    that this library does not know are zero, else RAMP_ERROR_UNSUPPORTED. Of a struct that a function fills
 *    in, only the first struct_size bytes are written; fields that this library does not know become zero.
 *    Structs without struct_size (ramp_device, ramp_tensor, ramp_executor) never change their layout. Fields
 *    named `reserved` must be zero.
 *
 *  - Silence. The library never prints, never exits, and reads no environment variable but those that
 *    ramp_context_create documents. Log lines go to the sink given to the context, or nowhere.
 *
 *  - Handles are created and destroyed by the caller and must outlive the calls that use them (on a GPU: the
 *    work enqueued, captured graphs too). Destroying NULL does nothing; a NULL or foreign handle elsewhere is
 *    INVALID_ARGUMENT. Weights and checkpoints do not depend on the context that made them: it may go first.
 *
 *  - Tensors. An output must not overlap an input, another output, the workspace, the weights or itself
 *    (interleaved views, such as two column ranges of one matrix, do not overlap). Every tensor lies on the
 *    context's device.
 *
 *  - Concurrency. Different contexts are independent. On one context, calls that take a `const` weights
 *    handle may run concurrently if each has its own workspace; with workspace == NULL the context's own
 *    workspace is used and such calls are serialised inside (ramp_route always uses it). pack and update are
 *    writers: no other call may use that weights handle meanwhile. Creating, querying and destroying other
 *    handles is always possible.
 *
 *  - Streams. `stream` is the backend's native stream (a CUstream for CUDA, NULL = its legacy default
 * stream); on the CPU it must be NULL and calls are complete when they return. Asynchronous device errors
 * surface at the next call on that context or at the caller's own synchronisation.
 *
 *  - CUDA graphs. ramp_expert_block, ramp_expert_block_batched, ramp_moe_forward and ramp_route only enqueue
 *    kernels: they may be captured, with the caller's own workspace, after one call like it outside of a
 * capture (which loads kernels). A captured call may be replayed with other ids, weights and values in the
 * same buffers; for fewer tokens than captured give the rest the id -1.
 *
 *  - Memory. After a first call with the same or larger shapes, ramp_expert_block, ramp_moe_forward,
 *    ramp_route and ramp_expert_block_batched allocate nothing (the reference backend excepted); with the
 *    caller's own workspace not even the first call grows one.
 */
#ifndef RAMP_RAMP_H_
#define RAMP_RAMP_H_

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "ramp/version.h"

#if defined(_WIN32)
#define RAMP_API
#else
#define RAMP_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Defines the initialiser of a sized struct: all zero, struct_size set. */
#define RAMP_DEFINE_INIT(type)           \
  static inline type type##_init(void) { \
    type value;                          \
    memset(&value, 0, sizeof value);     \
    value.struct_size = sizeof value;    \
    return value;                        \
  }

/* ---------------------------------------------------------------- status */

typedef enum ramp_status {
  RAMP_OK = 0,
  RAMP_ERROR_INVALID_ARGUMENT = 1,    /* an argument is wrong: shape, dtype, stride, null pointer, range */
  RAMP_ERROR_UNSUPPORTED = 2,         /* valid, but this backend or build cannot do it */
  RAMP_ERROR_OUT_OF_MEMORY = 3,       /* host or device memory */
  RAMP_ERROR_WORKSPACE_TOO_SMALL = 4, /* call the matching *_workspace function */
  RAMP_ERROR_IO = 5,                  /* the operating system refused a read or a write */
  RAMP_ERROR_BAD_FILE = 6,            /* a file was read but its content is malformed or of the wrong kind */
  RAMP_ERROR_DEVICE = 7,              /* the device or its driver reported an error */
  RAMP_ERROR_INTERNAL = 8             /* a bug in ramp: please report the message */
} ramp_status;

/* The calling thread's last error message ("" if none). Valid until the thread's next failing call. */
RAMP_API const char* ramp_last_error(void);
/* A short name such as "invalid argument". Never NULL. */
RAMP_API const char* ramp_status_name(ramp_status status);
/* The library's version, e.g. "0.1.0" (the header's is RAMP_VERSION_STRING). */
RAMP_API const char* ramp_version(void);

/* ---------------------------------------------------------------- enumerations */

/* Structs store these as int32_t, so that their size does not depend on the compiler. */

typedef enum ramp_dtype {
  RAMP_DTYPE_NONE = 0,
  RAMP_F32 = 1,
  RAMP_F16 = 2,
  RAMP_BF16 = 3,
  RAMP_E4M3 = 4, /* float8 e4m3fn: no infinities, NaN = 0x7f/0xff, largest finite 448 */
  RAMP_I32 = 5,
  RAMP_I64 = 6,
  RAMP_U8 = 7,
  RAMP_F64 = 8
} ramp_dtype;

typedef enum ramp_device_type { RAMP_DEVICE_CPU = 0, RAMP_DEVICE_CUDA = 1 } ramp_device_type;

typedef enum ramp_backend {
  RAMP_BACKEND_AUTO = 0,      /* the fastest backend that the device has */
  RAMP_BACKEND_REFERENCE = 1, /* plain fp64 loops on the host: the yardstick, slow */
  RAMP_BACKEND_CPU = 2,       /* threaded CPU backend */
  RAMP_BACKEND_CUDA = 3
} ramp_backend;

/* How expert weights are stored, and what their activations are quantised to.
 *   fp8_block      weights e4m3; scales f32 (they multiply) per 128x128 block: w13 [E, G*ceil(I/128),
 *                  ceil(H/128)] with G = 2 for gated activations (gate and up are quantised apart), w2
 *                  [E, ceil(H/128), ceil(I/128)]; activations e4m3 with one f32 scale per 1x128 group
 *   bf16/f16/f32   no scales; activations of the same type
 *   fp8_tensor     weights e4m3; scales f32 [E] (w13 also [E,2]: gate, up); activations e4m3, one static
 *                  scale per GEMM
 *   fp8_channel    weights e4m3; scales f32 [E, rows]; activations e4m3 with one dynamic scale per token row
 * Values from 32 on are reserved for formats to come (MXFP4, W4A16, INT8, UE8M0 scales). */
typedef enum ramp_format {
  RAMP_FORMAT_NONE = 0,
  RAMP_FORMAT_FP8_BLOCK = 1,
  RAMP_FORMAT_BF16 = 2,
  RAMP_FORMAT_F16 = 3,
  RAMP_FORMAT_F32 = 4,
  RAMP_FORMAT_FP8_TENSOR = 5,
  RAMP_FORMAT_FP8_CHANNEL = 6
} ramp_format;

/* act(gate) * up for the gated ones: w13 holds 2*I rows per expert, gate rows first. relu2 is not gated: w13
 * holds I rows and the intermediate is max(v,0)^2. Computed in fp32. */
typedef enum ramp_activation {
  RAMP_ACTIVATION_SILU_AND_MUL = 0,
  RAMP_ACTIVATION_GELU_AND_MUL = 1,      /* exact: 0.5*g*(1+erf(g/sqrt(2))) */
  RAMP_ACTIVATION_GELU_TANH_AND_MUL = 2, /* tanh approximation */
  RAMP_ACTIVATION_RELU2 = 3
} ramp_activation;

typedef enum ramp_determinism {
  RAMP_REPEATABLE = 0,      /* same inputs, same bits, whatever the schedule */
  RAMP_BATCH_INVARIANT = 1, /* also: a token's bits do not depend on its neighbours in the batch */
  RAMP_FAST = 2             /* fp32 reductions in any order */
} ramp_determinism;

typedef enum ramp_output {
  RAMP_OUTPUT_COMBINED = 0, /* y [T,H]: the weighted sum over a token's experts (+ shared addend) */
  /* y [T,k,H]: one row per (token, slot), times its weight unless that was applied on input; rows of masked
   * slots are zero */
  RAMP_OUTPUT_PER_SLOT = 1
} ramp_output;

typedef enum ramp_scoring {
  RAMP_SCORING_SOFTMAX = 0, /* softmax over all experts, then top-k (Mixtral with renormalize, OLMoE, Qwen) */
  RAMP_SCORING_TOPK_SOFTMAX = 1, /* top-k of the logits, softmax over those k (gpt-oss) */
  RAMP_SCORING_SIGMOID = 2 /* independent sigmoids (DeepSeek-V3), usually with selection_bias and groups */
} ramp_scoring;

typedef enum ramp_group_score {
  RAMP_GROUP_SCORE_MAX = 0,     /* best expert of the group (DeepSeek-V2) */
  RAMP_GROUP_SCORE_TOP2_SUM = 1 /* sum of the group's two best (DeepSeek-V3) */
} ramp_group_score;

typedef enum ramp_ownership {
  RAMP_COPY = 0,   /* the library copies; the caller may free its buffers when create returns */
  RAMP_BORROW = 1, /* read in place, never written; buffers must outlive the handle; pack makes a copy */
  /* buffers must be contiguous, writable and outlive the handle; pack rewrites them, no second copy */
  RAMP_IN_PLACE = 2
} ramp_ownership;

/* ---------------------------------------------------------------- tensors */

#define RAMP_MAX_DIMS 4

typedef struct ramp_device {
  int32_t type;  /* ramp_device_type */
  int32_t index; /* ordinal; 0 on the CPU */
} ramp_device;

/* A view; never owns. data == NULL means "absent" (or empty, where the shape has a zero). Strides count
 * elements and are >= 0; all-zero strides mean contiguous row-major. The last dimension must have stride 1.
 * data is aligned to the element. */
typedef struct ramp_tensor {
  void* data;
  int32_t dtype; /* ramp_dtype */
  int32_t ndim;  /* 0..RAMP_MAX_DIMS */
  int64_t shape[RAMP_MAX_DIMS];
  int64_t stride[RAMP_MAX_DIMS];
  ramp_device device;
} ramp_tensor;

/* ---------------------------------------------------------------- context */

typedef struct ramp_context ramp_context;

/* One unit of work: task in [0, num_tasks), worker in [0, num_workers). Never throws. */
typedef void (*ramp_task_fn)(void* arg, int64_t task, int32_t worker);

/* The caller's own executor. parallel_for runs every task exactly once, at most one task at a time per worker
 * index, and returns when all are done. Tasks never block on one another and never call back into ramp.
 * parallel_for must not throw; it is called from every thread that calls ramp on that context. */
typedef struct ramp_executor {
  int32_t num_workers; /* >= 1 */
  void (*parallel_for)(void* user, int64_t num_tasks, ramp_task_fn fn, void* arg);
  void* user;
} ramp_executor;

typedef enum ramp_log_level {
  RAMP_LOG_ERROR = 0,
  RAMP_LOG_WARNING = 1,
  RAMP_LOG_INFO = 2,
  RAMP_LOG_DEBUG = 3
} ramp_log_level;
/* Called from any thread that is inside a ramp call; must not call back into ramp. */
typedef void (*ramp_log_fn)(void* user, ramp_log_level level, const char* message);

typedef struct ramp_context_options {
  uint64_t struct_size;
  ramp_device device;
  int32_t backend;     /* ramp_backend; AUTO picks the device's fastest */
  int32_t num_threads; /* CPU backend without executor: 0 = one worker per core available to the process */
  const ramp_executor* executor; /* NULL = own thread pool; copied */
  ramp_log_fn log;               /* NULL = no log */
  void* log_user;
  const char* cache_dir; /* compiled kernels; NULL = $RAMP_CACHE_DIR, $XDG_CACHE_HOME/ramp, ~/.cache/ramp */
  const char* isa; /* CPU backend: an ISA level by its `ramp info` name; NULL = $RAMP_CPU_ISA or the best.
                      CUDA backend: a kernel family ("sm90", "portable", "plain", ...: docs/cuda.md); NULL =
                      the best. "amx" asks Linux for the matrix unit, for the whole process: alternate signal
                      stacks below sysconf(_SC_SIGSTKSZ) are refused from then on */
} ramp_context_options;
RAMP_DEFINE_INIT(ramp_context_options)

/* options may be NULL (CPU, defaults); strings are copied. Environment read here, once: RAMP_CACHE_DIR,
 * XDG_CACHE_HOME and HOME (when cache_dir is NULL), RAMP_NUM_THREADS (when num_threads is 0 and there is no
 * executor), RAMP_CPU_ISA (when isa is NULL). Errors: INVALID_ARGUMENT, UNSUPPORTED (this build or machine
 * lacks the backend or ISA), OUT_OF_MEMORY, DEVICE. */
RAMP_API ramp_status ramp_context_create(const ramp_context_options* options, ramp_context** out);
RAMP_API void ramp_context_destroy(ramp_context* context);

typedef struct ramp_context_info {
  uint64_t struct_size;
  int32_t backend; /* the backend in use, never AUTO */
  int32_t num_workers;
  ramp_device device;
  const char* backend_name; /* "cpu"; lives as long as the context */
  const char* isa;          /* "avx512_bf16"; "" where it does not apply; lives as long as the context */
  const char* device_name;  /* CPU or GPU model name; lives as long as the context */
} ramp_context_info;
RAMP_DEFINE_INIT(ramp_context_info)
RAMP_API ramp_status ramp_context_get_info(const ramp_context* context, ramp_context_info* out);

/* Makes the context choose configs (config 0 in every call) by what `ramp profile` measured: for weights of
 * the shape, format and activation of a fit, each step's config is then what the fit predicts to be fastest
 * for that step's histogram; other weights keep the analytic default. The hot path stays without allocations
 * and locks. Results of a step may depend on which fits are loaded wherever they depend on the config.
 *
 * path: a fit file, a directory of *.fit.json files, or NULL for the place where `ramp profile` writes by
 * default ("fits" in the cache directory of ramp_context_options; no such directory: nothing to load).
 * used (optional) receives the number of layer shapes taken over. A fit that was made for another device, ISA
 * level, number of workers, library series or set of configs is not used: the call succeeds, and a warning
 * that names the file and the command that mends it goes to the context's log. In a directory, fits of other
 * ISA levels and worker counts are passed over silently. A later fit for the same weights replaces an earlier
 * one; one made with the call's top_k goes before one made with another. May run at any time, beside other
 * calls on the context: a call chooses by the fits that were there when it began. Errors: INVALID_ARGUMENT,
 * IO and BAD_FILE (of a file that was named), UNSUPPORTED (a backend without configs), OUT_OF_MEMORY. */
RAMP_API ramp_status ramp_context_load_fit(ramp_context* context, const char* path, int32_t* used);

/* What the device decided for one layer call of packed fp8_block weights (sm_90), whose histogram the host
 * does not see. Everything is valid during the callback alone. */
typedef struct ramp_trace_record {
  uint64_t struct_size;
  uint64_t number; /* since tracing began; a gap: records gave way before they were read */
  uint64_t call;   /* which of the calls that were made or captured: replays of a graph repeat it */
  int64_t num_experts, top_k, hidden, intermediate;
  int64_t tokens; /* batched: max_tokens */
  int32_t format; /* ramp_format */
  int32_t batched;
  int32_t num_configs; /* candidates of this call */
  int32_t chosen;      /* index of the config that ran */
  const char* const* configs;
  const int32_t* histogram; /* [num_experts] rows */
  double predicted_us;      /* 0 where no cost is known */
  double measured_us;       /* 0: not timed (ramp_context_time_trace) */
  const double* configs_us; /* [num_configs] predicted, all rows with that config; 0 where no cost is known */
  const char* default_config; /* what config 0 runs without a fit; NULL where that is none of the traced */
  double default_us;          /* predicted for it; 0 where its cost is not known */
} ramp_trace_record;
RAMP_DEFINE_INIT(ramp_trace_record)
typedef void (*ramp_trace_fn)(const ramp_trace_record* record, void* user);
/* From now on such calls write a record each into device memory, of which the last `records` are kept (4 KiB
 * each); graphs that are captured now go on doing so. 0: calls made from now on write none. The number stays
 * what it was first. A traced call has one candidate at least and never takes the few-token kernel. */
RAMP_API ramp_status ramp_context_trace(ramp_context* context, uint64_t records);
/* on = 1: from now on traced calls that are not captured are timed too, by an event in front of the layer's
 * first kernel and one behind its last, which keeps the layer from overlapping its neighbours on the stream.
 * Records of captured calls stay unmeasured, and so do those of all but the last 65536 timed calls. Nothing
 * waits, neither host nor stream. 0: no more. */
RAMP_API ramp_status ramp_context_time_trace(ramp_context* context, int32_t on);
/* Waits for the device (no stream may be capturing) and hands out the records written since the last time,
 * oldest first. `take` must not call into the context: it and calls that begin meanwhile wait for the end. */
RAMP_API ramp_status ramp_context_read_trace(ramp_context* context, ramp_trace_fn take, void* user);

/* What the trace says, in counts and sums over its records, and the largest values of any of them.
 *   imbalance       rows of the fullest expert / mean rows of the experts that have any, >= 1
 *   default regret  predicted time of the config that runs without a fit / predicted time of what was chosen,
 *                   minus 1: what going without the fit is predicted to cost; below 0, to gain
 *   error           |predicted / measured - 1| */
typedef struct ramp_context_counters {
  uint64_t struct_size;
  uint64_t records; /* counted: all of the trace, but for `lost` */
  uint64_t lost;    /* gave way to others before they were counted */
  uint64_t active;  /* of records: an expert had rows. Only of these are there ... */
  double imbalance_sum, imbalance_max;
  uint64_t changed;             /* ... choices other than the default, */
  uint64_t compared;            /* ... pairs of predicted times, the default's and that of what was chosen, */
  double chosen_us, default_us; /* sums of them, */
  double default_regret_sum, default_regret_max;
  uint64_t measured;  /* ... measured times, */
  double measured_us; /* a sum, */
  uint64_t judged;    /* ... measured times beside predicted ones: */
  double error_sum;
} ramp_context_counters;
RAMP_DEFINE_INIT(ramp_context_counters)
/* Counts the records written since the last time, then fills in *out. Waits for the device where there is a
 * trace (no stream may be capturing); all zeros where there never was one. Records stay for
 * ramp_context_read_trace, and those that it hands out are counted there. */
RAMP_API ramp_status ramp_context_get_counters(ramp_context* context, ramp_context_counters* out);

/* ---------------------------------------------------------------- expert weights */

/* The experts of one layer. A handle runs on every context of its device; once packed, on every context of
 * its device with the same backend and ISA level. */
typedef struct ramp_weights ramp_weights;

typedef struct ramp_weights_desc {
  uint64_t struct_size;
  int32_t format;       /* ramp_format */
  int32_t activation;   /* ramp_activation */
  int32_t ownership;    /* ramp_ownership */
  int32_t reserved;     /* 0 */
  int64_t num_experts;  /* E: experts held here (local experts under expert parallelism) */
  int64_t hidden;       /* H: multiple of 32 */
  int64_t intermediate; /* I: multiple of 32 */
  /* [E, G*I, H], rows gate then up; G = 2, or 1 for relu2; any strides with unit last stride */
  ramp_tensor w13;
  ramp_tensor w2;        /* [E, H, I] */
  ramp_tensor w13_scale; /* see ramp_format; absent for bf16/f16/f32 */
  ramp_tensor w2_scale;  /* likewise */
  /* fp8_tensor only: f32 [1], the static activation scales of GEMM1 (x = q * scale) and GEMM2; read when the
   * handle is created or updated */
  ramp_tensor w13_input_scale;
  ramp_tensor w2_input_scale;
} ramp_weights_desc;
RAMP_DEFINE_INIT(ramp_weights_desc)

/* Validates every shape, dtype, stride and pointer of the descriptor. Errors: INVALID_ARGUMENT, UNSUPPORTED,
 * OUT_OF_MEMORY. Blocking. */
RAMP_API ramp_status ramp_weights_create(ramp_context* context, const ramp_weights_desc* desc, void* stream,
                                         ramp_weights** out);
RAMP_API void ramp_weights_destroy(ramp_weights* weights);

/* Brings the weights into the backend's own layout. Idempotent; optional (unpacked weights run, slower). */
RAMP_API ramp_status ramp_weights_pack(ramp_context* context, ramp_weights* weights, void* stream);
/* Overwrites experts [first_expert, first_expert + desc->num_experts) with new values of the same format, H,
 * I and activation, keeping the packing. desc->ownership is ignored: values are copied in. Static input
 * scales, when present, replace the old ones. Not allowed on BORROW handles that were not packed
 * (UNSUPPORTED). The source must not overlap the handle's own buffers. */
RAMP_API ramp_status ramp_weights_update(ramp_context* context, ramp_weights* weights, int64_t first_expert,
                                         const ramp_weights_desc* desc, void* stream);
/* Writes the checkpoint layout of w13 and w2 (values exactly as given) into caller tensors of the shapes of
 * ramp_weights_desc. Either may be absent. The handle itself stays as it is. */
RAMP_API ramp_status ramp_weights_unpack(ramp_context* context, const ramp_weights* weights,
                                         const ramp_tensor* w13, const ramp_tensor* w2, void* stream);

typedef struct ramp_weights_info {
  uint64_t struct_size;
  int32_t format, activation, packed, ownership;
  int64_t num_experts, hidden, intermediate;
  int64_t bytes; /* weights and scales as the kernels read them */
} ramp_weights_info;
RAMP_DEFINE_INIT(ramp_weights_info)
RAMP_API ramp_status ramp_weights_get_info(const ramp_weights* weights, ramp_weights_info* out);

/* ---------------------------------------------------------------- the expert block */

typedef struct ramp_expert_block_args {
  uint64_t struct_size;
  const ramp_weights* weights;
  int32_t determinism; /* ramp_determinism */
  int32_t output;      /* ramp_output */
  /* 1: x is multiplied by the router weight before GEMM1 (Llama-4), and the output then is not */
  int32_t router_weight_on_input;
  int32_t config; /* 0 = the dispatcher chooses; n > 0 = force config number n-1 of ramp_config_name */
  ramp_tensor x;  /* [T,H] bf16, f16 or f32; or e4m3, already quantised, for the fp8 formats */
  /* Only with e4m3 x: f32 [T,ceil(H/128)] (fp8_block) or [T,1] (fp8_channel); fp8_tensor: absent, the static
   * input scale applies. */
  ramp_tensor x_scale;
  ramp_tensor topk_ids;      /* [T,k] i32 or i64: global expert ids; -1 or out of range contributes nothing */
  ramp_tensor topk_weights;  /* [T,k] f32 */
  ramp_tensor expert_map;    /* optional i32 [E_global]: global id -> local expert or -1 */
  ramp_tensor shared_addend; /* optional [T,H] bf16/f16/f32, added in fp32; only with RAMP_OUTPUT_COMBINED */
  ramp_tensor y;             /* [T,H] or [T,k,H]; bf16, f16 or f32 */
  /* optional i64 [2] on the device: += slots masked (-1, or mapped to -1), += ids out of range */
  ramp_tensor counters;
} ramp_expert_block_args;
RAMP_DEFINE_INIT(ramp_expert_block_args)

/* Bytes that ramp_expert_block needs for this weights handle and any T <= max_tokens with this top_k (k of
 * the ids). Depends on shapes, format, packing and context alone. */
RAMP_API ramp_status ramp_expert_block_workspace(const ramp_context* context, const ramp_weights* weights,
                                                 int64_t max_tokens, int64_t top_k, uint64_t* bytes);

/* y = sum over slots j of weight[t,j] * expert(ids[t,j])(x[t]) (+ shared_addend[t]), where
 * expert(x) = w2 * act(w13 * x). T = 0 is valid and does nothing; T * k must be below 2^31.
 * workspace: 256-byte aligned device memory of at least ramp_expert_block_workspace bytes, or NULL with
 * workspace_bytes 0 to use (and grow, once) the context's own. Its content is scratch: it need not be
 * initialised and holds nothing between calls. On a GPU the context's own serves one stream at a time: a call
 * on another stream first waits for the device. Errors: INVALID_ARGUMENT, UNSUPPORTED, WORKSPACE_TOO_SMALL
 * (the message has the bytes needed), OUT_OF_MEMORY (only with workspace NULL), DEVICE. */
RAMP_API ramp_status ramp_expert_block(ramp_context* context, const ramp_expert_block_args* args,
                                       void* workspace, uint64_t workspace_bytes, void* stream);

/* Name of the context's config number `index` (from 0) for these weights, as `ramp configs` prints it; NULL
 * past the last one (and, with ramp_last_error set, on an error). Lives as long as the context. */
RAMP_API const char* ramp_config_name(ramp_context* context, const ramp_weights* weights, int32_t index);

/* The batched entry, as expert-parallel transports deliver tokens: rows [0, counts[e]) of slab e belong to
 * local expert e; rows beyond are neither read nor written. No combine. E * max_tokens must be below 2^31. */
typedef struct ramp_batched_args {
  uint64_t struct_size;
  const ramp_weights* weights;
  int32_t determinism;
  int32_t config;
  int32_t router_weight_on_input; /* 1: row_weights multiply x instead of the output */
  int32_t reserved;
  ramp_tensor x;           /* [E, max_tokens, H] as in ramp_expert_block_args */
  ramp_tensor x_scale;     /* f32 [E, max_tokens, ceil(H/128)] or [E, max_tokens, 1] */
  ramp_tensor counts;      /* i32 or i64 [E]; values are clamped to [0, max_tokens] */
  ramp_tensor row_weights; /* optional f32 [E, max_tokens] */
  ramp_tensor y;           /* [E, max_tokens, H] bf16, f16 or f32 */
} ramp_batched_args;
RAMP_DEFINE_INIT(ramp_batched_args)

RAMP_API ramp_status ramp_expert_block_batched_workspace(const ramp_context* context,
                                                         const ramp_weights* weights, int64_t max_tokens,
                                                         uint64_t* bytes);
RAMP_API ramp_status ramp_expert_block_batched(ramp_context* context, const ramp_batched_args* args,
                                               void* workspace, uint64_t workspace_bytes, void* stream);

/* ---------------------------------------------------------------- routing */

/* From logits to (ids, weights). Ties go to the lower id. A NaN logit scores 0 and sorts after every other
 * logit; +inf logits share the weight of a softmax equally. */
typedef struct ramp_router_config {
  uint64_t struct_size;
  int32_t scoring;             /* ramp_scoring */
  int32_t top_k;               /* k routed experts per token, <= number of logits */
  int32_t renormalize;         /* 1: divide the k weights by their sum */
  int32_t num_groups;          /* 0 or 1: no groups; else divides the number of logits */
  int32_t topk_groups;         /* groups kept */
  int32_t group_score;         /* ramp_group_score */
  float routed_scaling_factor; /* multiplies the weights at the end; 0 means 1 */
  int32_t num_shared_experts;  /* n: slots k..k+n-1 get ids E..E+n-1 with weight 1 (not scaled); ids are then
                                  [T,k+n] */
  int64_t capacity; /* 0 = none; else an expert keeps its first `capacity` slots in (token, slot) order, later
                       ones get id -1 and weight 0 */
  /* optional f32 [E]: added to the scores for selection only, not to the weights */
  ramp_tensor selection_bias;
  int64_t reserved[8]; /* 0; other structs embed this one, so later fields take this room */
} ramp_router_config;
RAMP_DEFINE_INIT(ramp_router_config)

/* logits [T,E] f32, bf16 or f16 -> ids [T,k(+shared)] i32 or i64, weights [T,k(+shared)] f32. T = 0 is valid
 * and does nothing; T * E and T * slots must be below 2^31, here and in ramp_moe_forward. */
RAMP_API ramp_status ramp_route(ramp_context* context, const ramp_router_config* router,
                                const ramp_tensor* logits, const ramp_tensor* topk_ids,
                                const ramp_tensor* topk_weights, void* stream);

/* Router and expert block in one call. E_global is the number of logits; without expert_map the weights hold
 * exactly E_global + num_shared_experts experts, with one the map has that many entries. */
typedef struct ramp_moe_forward_args {
  uint64_t struct_size;
  const ramp_weights* weights;
  int32_t determinism;
  int32_t router_weight_on_input;
  int32_t config;
  int32_t reserved;
  ramp_router_config router; /* router.struct_size 0 is read as the size that this header knows */
  ramp_tensor x;             /* [T,H] bf16, f16 or f32 */
  ramp_tensor router_logits; /* [T,E_global] f32, bf16 or f16; or absent, with router_weight given */
  /* [E_global,H] bf16, f16 or f32: logits = x * router_weight^T, accumulated in fp32; or absent, with
   * router_logits given */
  ramp_tensor router_weight;
  ramp_tensor expert_map;
  ramp_tensor shared_addend;
  ramp_tensor y; /* [T,H] */
  ramp_tensor counters;
  ramp_tensor topk_ids_out;     /* optional: receives the routing, i32 or i64 [T,k(+shared)] */
  ramp_tensor topk_weights_out; /* optional: f32 [T,k(+shared)] */
} ramp_moe_forward_args;
RAMP_DEFINE_INIT(ramp_moe_forward_args)

/* Bytes for any router and any T <= max_tokens. num_logits: E_global; slots: k + num_shared_experts. */
RAMP_API ramp_status ramp_moe_forward_workspace(const ramp_context* context, const ramp_weights* weights,
                                                int64_t max_tokens, int64_t slots, int64_t num_logits,
                                                uint64_t* bytes);
RAMP_API ramp_status ramp_moe_forward(ramp_context* context, const ramp_moe_forward_args* args,
                                      void* workspace, uint64_t workspace_bytes, void* stream);

/* ---------------------------------------------------------------- checkpoints (host) */

/* A Hugging Face checkpoint directory (config.json + one or several safetensors files) or a single
 * .safetensors file, memory-mapped. Tensor names of Mixtral, OLMoE, Qwen2/3-MoE and DeepSeek-V2/V3. */
typedef struct ramp_checkpoint ramp_checkpoint;

/* Errors: IO, BAD_FILE, UNSUPPORTED, INVALID_ARGUMENT. Calls on one checkpoint may run concurrently. */
RAMP_API ramp_status ramp_checkpoint_open(const char* path, ramp_checkpoint** out);
RAMP_API void ramp_checkpoint_close(ramp_checkpoint* checkpoint);

/* Errors: INVALID_ARGUMENT (no such layer, or a dense one), BAD_FILE, UNSUPPORTED. */
typedef struct ramp_layer_info {
  uint64_t struct_size;
  int32_t format, activation;
  int64_t num_experts, top_k, hidden, intermediate, num_layers;
  ramp_router_config router; /* from config.json; selection_bias is a view that is valid until close */
  ramp_tensor router_weight; /* [E,H] view, valid until close; absent if the file has none */
  const char* architecture;  /* "olmoe", "mixtral", "qwen3_moe", "deepseek_v3", ...; valid until close */
} ramp_layer_info;
RAMP_DEFINE_INIT(ramp_layer_info)
RAMP_API ramp_status ramp_checkpoint_layer_info(const ramp_checkpoint* checkpoint, int64_t layer,
                                                ramp_layer_info* out);
/* Loads experts [first_expert, first_expert + num_experts) of one layer (num_experts 0 = all from
 * first_expert on) in the format of the file. The handle owns its memory; the checkpoint may be closed before
 * it. */
RAMP_API ramp_status ramp_checkpoint_load_weights(ramp_context* context, const ramp_checkpoint* checkpoint,
                                                  int64_t layer, int64_t first_expert, int64_t num_experts,
                                                  void* stream, ramp_weights** out);

#ifdef __cplusplus
} /* extern "C" */
#endif
#endif /* RAMP_RAMP_H_ */

/* Function by function (besides what stands beside the declaration):
 *
 * errors. Every function may return INVALID_ARGUMENT, OUT_OF_MEMORY and INTERNAL, on a GPU also DEVICE; and:
 *   ramp_context_create               UNSUPPORTED: no such backend, ISA level or GPU here
 *   ramp_context_load_fit             IO, BAD_FILE, UNSUPPORTED: a backend without configs
 *   ramp_context_trace                UNSUPPORTED: a backend other than cuda
 *   ramp_weights_create               UNSUPPORTED: a format of a later version
 *   ramp_weights_update               UNSUPPORTED: a BORROW handle that was not packed
 *   ramp_expert_block, _batched,      WORKSPACE_TOO_SMALL, UNSUPPORTED: a config or option that the backend
 *     ramp_moe_forward                lacks
 *   ramp_checkpoint_open, _layer_info IO, BAD_FILE, UNSUPPORTED: a format or architecture that is not known
 *   ramp_checkpoint_load_weights      the same
 * ramp_config_name returns NULL instead. A failed create, open or load leaves *out as it was; a failed pack
 * leaves the handle unpacked. After a failed update the experts in question hold unknown values where its
 * arguments were right (DEVICE, INTERNAL), else their old ones.
 *
 * blocking. On the CPU every call is complete when it returns. On a GPU create, pack, update and load are
 * too; ramp_weights_unpack, ramp_expert_block, ramp_expert_block_batched, ramp_moe_forward and ramp_route
 * enqueue work on `stream` and return (the first call of a kind compiles or loads kernels first). Queries
 * (info, workspace, config names) never wait for the device.
 *
 * concurrency. Every function may be called from any thread. Readers of a weights handle (unpack, get_info,
 * workspace, config names and the calls that compute) may run side by side; pack, update and destroy need it
 * to themselves, on a GPU with no work of other streams under way that uses it. destroy and close need their
 * handle to themselves.
 */
