// Assembling w13 and w2 of one layer: every tensor is found and checked first, then the buffers are
// allocated, then each expert is copied once from the map to its place. Peak memory is the layer itself.
#include <fmt/format.h>

#include <cstring>

#include "base/error.hpp"
#include "base/tensor.hpp"
#include "loader/layer_layout.hpp"

namespace ramp::core {
namespace {

constexpr int64_t kBlock = 128;  // side of a weight scale block

int64_t blocks(int64_t n) {
  return (n + kBlock - 1) / kBlock;
}

// One matrix of the checkpoint and where it goes: rows x cols elements of a source whose element (r, c) lies
// at (r * row_stride + c * col_stride), into contiguous rows at `to`.
struct Piece {
  const std::byte* from = nullptr;
  int64_t row_stride = 0, col_stride = 1, rows = 0, cols = 0;
  int64_t to = 0;  // element offset in the destination
};

template <typename T>
void copy_strided(const Piece& p, std::byte* destination) {
  // Blocks of 64 x 64 keep both sides of a transposition in the L1 cache.
  constexpr int64_t kTile = 64;
  for (int64_t r0 = 0; r0 < p.rows; r0 += kTile) {
    for (int64_t c0 = 0; c0 < p.cols; c0 += kTile) {
      for (int64_t r = r0; r < std::min(r0 + kTile, p.rows); ++r) {
        for (int64_t c = c0; c < std::min(c0 + kTile, p.cols); ++c) {
          const int64_t source = r * p.row_stride + c * p.col_stride;
          std::memcpy(destination + (p.to + r * p.cols + c) * static_cast<int64_t>(sizeof(T)),
                      p.from + source * static_cast<int64_t>(sizeof(T)), sizeof(T));
        }
      }
    }
  }
}

// Source rows are not necessarily aligned to their element size (the format does not ask for it): bytes only.
void copy_piece(const Piece& p, int64_t element, std::byte* destination) {
  if (p.col_stride == 1 && p.row_stride == p.cols) {
    std::memcpy(destination + p.to * element, p.from, static_cast<size_t>(p.rows * p.cols * element));
  } else if (p.col_stride == 1) {
    for (int64_t r = 0; r < p.rows; ++r)
      std::memcpy(destination + (p.to + r * p.cols) * element, p.from + r * p.row_stride * element,
                  static_cast<size_t>(p.cols * element));
  } else if (element == 4) {
    copy_strided<uint32_t>(p, destination);
  } else if (element == 2) {
    copy_strided<uint16_t>(p, destination);
  } else {
    copy_strided<uint8_t>(p, destination);
  }
}

// Scales: f32 or bf16 in the file, f32 in memory.
struct ScalePiece {
  Piece piece;
  ramp_dtype dtype = RAMP_F32;
};
void copy_scales(const ScalePiece& s, float* destination) {
  const Piece& p = s.piece;
  for (int64_t r = 0; r < p.rows; ++r) {
    for (int64_t c = 0; c < p.cols; ++c) {
      const int64_t source = r * p.row_stride + c * p.col_stride;
      float& out = destination[p.to + r * p.cols + c];
      if (s.dtype == RAMP_F32) {
        std::memcpy(&out, p.from + source * 4, 4);
      } else {
        uint16_t code = 0;
        std::memcpy(&code, p.from + source * 2, 2);
        out = bf16_to_f32(code);
      }
    }
  }
}

// Collects the pieces of all experts, checking each tensor as it is found.
class Plan {
 public:
  Plan(const Checkpoint& checkpoint, const LayerLayout& layout) : c_(checkpoint), l_(layout) {}

  // Expert `e` of the checkpoint becomes local expert number `slot`.
  void routed(int64_t e, int64_t slot) {
    if (l_.stacked) return stacked(e, slot);
    const int64_t i = l_.intermediate;
    matrix(l_.expert_name(e, Projection::kGate), {i, l_.hidden}, {0, 0}, slot, 0);
    matrix(l_.expert_name(e, Projection::kUp), {i, l_.hidden}, {0, 0}, slot, 1);
    matrix(l_.expert_name(e, Projection::kDown), {l_.hidden, i}, {0, 0}, slot, 2);
  }
  // Part `part` of the shared experts: rows [part*I, ..) of gate and up, columns of down.
  void shared(int64_t part, int64_t slot) {
    const int64_t s = l_.shared_intermediate;
    const int64_t first = part * l_.intermediate;
    matrix(l_.shared_name(Projection::kGate), {s, l_.hidden}, {first, 0}, slot, 0);
    matrix(l_.shared_name(Projection::kUp), {s, l_.hidden}, {first, 0}, slot, 1);
    matrix(l_.shared_name(Projection::kDown), {l_.hidden, s}, {0, first}, slot, 2);
  }

  std::vector<Piece> w13, w2;
  std::vector<ScalePiece> w13_scale, w2_scale;

 private:
  struct Pair {
    int64_t row = 0, col = 0;
  };
  [[nodiscard]] bool scaled() const { return l_.format == RAMP_FORMAT_FP8_BLOCK; }

  [[nodiscard]] CheckpointTensor scale_tensor(const std::string& weight,
                                              std::initializer_list<int64_t> shape) const {
    CheckpointTensor s = c_.get(weight + "_scale_inv");
    check_shape(s, s.entry->dtype == RAMP_BF16 ? RAMP_BF16 : RAMP_F32, shape);
    return s;
  }

  // A whole [full.row, full.col] tensor of the file, of which the part from `first` on, as large as an
  // expert's matrix, is gate (kind 0), up (1) or down (2) of local expert `slot`.
  void matrix(const std::string& name, Pair full, Pair first, int64_t slot, int kind) {
    const CheckpointTensor t = c_.get(name);
    check_shape(t, l_.dtype, {full.row, full.col});
    const int64_t rows = kind == 2 ? l_.hidden : l_.intermediate;
    const int64_t cols = kind == 2 ? l_.intermediate : l_.hidden;
    const int64_t element = dtype_bytes(l_.dtype);
    Piece p{t.bytes.data() + (first.row * full.col + first.col) * element, full.col, 1, rows, cols, 0};
    p.to = kind == 2 ? slot * rows * cols : (2 * slot + kind) * rows * cols;
    (kind == 2 ? w2 : w13).push_back(p);
    if (!scaled()) return;
    const CheckpointTensor s = scale_tensor(name, {blocks(full.row), blocks(full.col)});
    const int64_t scale_bytes = dtype_bytes(s.entry->dtype);
    const int64_t offset = first.row / kBlock * blocks(full.col) + first.col / kBlock;
    Piece q{s.bytes.data() + offset * scale_bytes, blocks(full.col), 1, blocks(rows), blocks(cols), 0};
    q.to = kind == 2 ? slot * q.rows * q.cols : (2 * slot + kind) * q.rows * q.cols;
    (kind == 2 ? w2_scale : w13_scale).push_back({q, s.entry->dtype});
  }

  // Expert e of the stacked pair of tensors; gate rows precede up rows in them, so w13 of an expert is one
  // piece.
  void stacked(int64_t e, int64_t slot) {
    stacked_one(l_.expert_name(e, Projection::kUp), 2 * l_.intermediate, l_.hidden, e, slot, w13, w13_scale);
    stacked_one(l_.expert_name(e, Projection::kDown), l_.hidden, l_.intermediate, e, slot, w2, w2_scale);
  }
  void stacked_one(const std::string& name, int64_t rows, int64_t cols, int64_t e, int64_t slot,
                   std::vector<Piece>& pieces, std::vector<ScalePiece>& scales) const {
    const bool t = l_.transposed;
    const CheckpointTensor w = c_.get(name);
    check_shape(w, l_.dtype, {l_.experts, t ? cols : rows, t ? rows : cols});
    pieces.push_back({w.bytes.data() + e * rows * cols * dtype_bytes(l_.dtype), t ? 1 : cols, t ? rows : 1,
                      rows, cols, slot * rows * cols});
    if (!scaled()) return;
    const int64_t r = blocks(rows);
    const int64_t c = blocks(cols);
    const CheckpointTensor s = scale_tensor(name, {l_.experts, t ? c : r, t ? r : c});
    scales.push_back(
        {{s.bytes.data() + e * r * c * dtype_bytes(s.entry->dtype), t ? 1 : c, t ? r : 1, r, c, slot * r * c},
         s.entry->dtype});
  }

  const Checkpoint& c_;
  const LayerLayout& l_;
};

// How many experts the shared MLP makes, or the reason why it makes none.
int64_t shared_count(const LayerLayout& l, const std::string& path) {
  const std::string name = "shared experts of " + path;
  if (l.shared_base.empty()) return 0;
  if (l.shared_gated)
    fail_argument(name, "a gate on the shared expert (shared_expert_gate)",
                  "shared experts of constant weight", "compute it outside and pass it as shared_addend",
                  RAMP_ERROR_UNSUPPORTED);
  const int64_t n = l.shared_intermediate / l.intermediate;
  if (l.shared_intermediate % l.intermediate != 0)
    fail_argument(name, fmt::format("intermediate size {}", l.shared_intermediate),
                  fmt::format("a multiple of the routed experts' {}", l.intermediate),
                  "compute it outside and pass it as shared_addend", RAMP_ERROR_UNSUPPORTED);
  if (n > 1 && l.format == RAMP_FORMAT_FP8_BLOCK && l.intermediate % kBlock != 0)
    fail_argument(name, fmt::format("{} experts of intermediate size {}", n, l.intermediate),
                  "a multiple of 128, so that no scale block is split",
                  "compute it outside and pass it as shared_addend", RAMP_ERROR_UNSUPPORTED);
  return n;
}

AlignedBuffer allocate(int64_t experts, int64_t rows, int64_t cols, int64_t element) {
  int64_t bytes = 0;
  if (__builtin_mul_overflow(experts, rows, &bytes) || __builtin_mul_overflow(bytes, cols, &bytes) ||
      __builtin_mul_overflow(bytes, element, &bytes))
    fail(RAMP_ERROR_OUT_OF_MEMORY, "host memory: the size of the layer overflows");
  return AlignedBuffer(static_cast<uint64_t>(bytes));
}

}  // namespace

LoadedLayer load_layer(const Checkpoint& checkpoint, int64_t layer, int64_t first_expert, int64_t num_experts,
                       const LoadOptions& options) {
  if (first_expert < 0) fail_argument("first_expert", std::to_string(first_expert), "an expert number >= 0");
  LayerLayout l = describe_layer(checkpoint, layer, first_expert);
  if (options.append_shared_experts) find_shared(checkpoint, l);
  if (first_expert >= l.experts || num_experts < 0 || num_experts > l.experts - first_expert)
    fail_argument("experts", fmt::format("{} from {} on", num_experts, first_expert),
                  fmt::format("a part of the layer's {} experts", l.experts));
  const int64_t routed = num_experts == 0 ? l.experts - first_expert : num_experts;

  LoadedLayer out;
  if (options.append_shared_experts) out.shared_experts = shared_count(l, checkpoint.path());
  const int64_t total = routed + out.shared_experts;
  Plan plan(checkpoint, l);
  for (int64_t e = 0; e < routed; ++e) plan.routed(first_expert + e, e);
  for (int64_t s = 0; s < out.shared_experts; ++s) plan.shared(s, routed + s);

  const int64_t h = l.hidden;
  const int64_t i = l.intermediate;
  const int64_t element = dtype_bytes(l.dtype);
  out.w13 = allocate(total, 2 * i, h, element);
  out.w2 = allocate(total, h, i, element);
  for (const Piece& p : plan.w13) copy_piece(p, element, out.w13.as<std::byte>());
  for (const Piece& p : plan.w2) copy_piece(p, element, out.w2.as<std::byte>());

  ramp_weights_desc& d = out.desc;
  d = ramp_weights_desc_init();
  d.format = l.format;
  d.activation = checkpoint.config().activation;
  d.ownership = RAMP_BORROW;
  d.num_experts = total;
  d.hidden = h;
  d.intermediate = i;
  d.w13 = make_tensor(out.w13.data(), l.dtype, {total, 2 * i, h});
  d.w2 = make_tensor(out.w2.data(), l.dtype, {total, h, i});
  if (l.format == RAMP_FORMAT_FP8_BLOCK) {
    out.w13_scale.resize(static_cast<size_t>(total * 2 * blocks(i) * blocks(h)));
    out.w2_scale.resize(static_cast<size_t>(total * blocks(h) * blocks(i)));
    for (const ScalePiece& s : plan.w13_scale) copy_scales(s, out.w13_scale.data());
    for (const ScalePiece& s : plan.w2_scale) copy_scales(s, out.w2_scale.data());
    d.w13_scale = make_tensor(out.w13_scale.data(), RAMP_F32, {total, 2 * blocks(i), blocks(h)});
    d.w2_scale = make_tensor(out.w2_scale.data(), RAMP_F32, {total, blocks(h), blocks(i)});
  }
  return out;
}

}  // namespace ramp::core
