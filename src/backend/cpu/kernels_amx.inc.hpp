// GEMM on the matrix unit (AMX-BF16), included by kernels.inc.hpp for the level that has it. Panels are
// already what it wants: 16 pairs of depth x 16 rows of weights are a tile, 1 KiB, at a stride of 128 bytes.
//
// Two tiles of x rows times the panel's two tiles give four sums at a time. A tile's x rows are cut into
// equal blocks of at most 32, so that one shape of the tiles serves all of a thread's calls for it
// (configuring takes 180 cycles; always 16 rows made the rows that are not there evict the others from the L1
// cache, and cost 10% of the bandwidth at one row). The last block may compute up to three rows that nobody
// reads.
//
// A few rows are as well served here as by vdpbf16ps, which on some CPUs takes 2 cycles (measured; fma 0.5);
// one unit for all also keeps a row's bits independent of the tile. Each sum adds its 32 products of a step
// as two chains (even and odd elements) that are joined at the end; like the dot products it takes
// subnormals as zero.

// Tile intrinsics do not tell the compiler what memory they read.
RAMP_INLINE void tile_fence() {
  __asm__ volatile("" ::: "memory");
}

struct TileShapes {  // what ldtilecfg reads
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};

// Rows of a block.
RAMP_INLINE int block_rows(int rows) {
  const int blocks = (rows + 31) / 32;
  return (rows + blocks - 1) / blocks;
}

// Tiles 0, 1: sums of the first x tile; 2, 3: of the second; 4, 5: x; 6, 7: weights.
void begin_tiles(int32_t rows) {
  const int first = block_rows(rows) < 16 ? block_rows(rows) : 16;
  const int second = block_rows(rows) - first;
  const int shape[8] = {first, first, second, second, first, second, 16, 16};
  alignas(64) TileShapes s = {};
  s.palette = 1;
  for (int i = 0; i < 8; ++i) {
    s.rows[i] = (uint8_t)shape[i];
    s.row_bytes[i] = shape[i] != 0 ? 64 : 0;
  }
  tile_fence();
  _tile_loadconfig(&s);
}
void end_tiles() {
  _tile_release();
}

template <bool kSecond>
RAMP_INLINE void load_sums(const float* sums, int64_t stride) {
  _tile_loadd(0, sums, stride * 4);
  _tile_loadd(1, sums + 16, stride * 4);
  if (kSecond) _tile_loadd(2, sums + 16 * stride, stride * 4);
  if (kSecond) _tile_loadd(3, sums + 16 * stride + 16, stride * 4);
}
template <bool kSecond>
RAMP_INLINE void store_sums(float* sums, int64_t stride) {
  _tile_stored(0, sums, stride * 4);
  _tile_stored(1, sums + 16, stride * 4);
  if (kSecond) _tile_stored(2, sums + 16 * stride, stride * 4);
  if (kSecond) _tile_stored(3, sums + 16 * stride + 16, stride * 4);
}
// 32 deep: w, 16 pairs of 32 rows of weights; a, x rows a_bytes apart.
template <bool kSecond>
RAMP_INLINE void multiply_step(const char* w, const char* a, int64_t a_bytes) {
  _tile_loadd(6, w, 128);
  _tile_loadd(4, a, a_bytes);
  _tile_dpbf16ps(0, 4, 6);
  _tile_loadd(7, w + 64, 128);
  _tile_dpbf16ps(1, 4, 7);
  if (kSecond) {
    _tile_loadd(5, a + 16 * a_bytes, a_bytes);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
}

// One block of rows, from `row` on, of a piece whose panel is bf16 pairs. kSecond: more than 16.
template <bool kSecond, bool kPrefetch>
RAMP_INLINE void tile_block(const GemmArgs* g, const Piece* p, int row, float* sums, int64_t stride) {
  constexpr int64_t kStride = (int64_t)kRowStride * 2;
  const char* a = (const char*)p->a + row * kStride;
  const char* w = (const char*)p->w;
  tile_fence();
  if (p->scales == nullptr) {
    load_sums<kSecond>(sums, stride);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    if (kSecond) _tile_zero(2);
    if (kSecond) _tile_zero(3);
  }
  for (int k = 0; k < p->depth; k += 32) {
    if (kPrefetch) {
      RAMP_UNROLL for (int line = 0; line < 16; ++line) {
        prefetch_line(w + line * 128, kNear, g->prefetch);
        prefetch_line(w + line * 128 + 64, kNear, g->prefetch);
      }
    }
    multiply_step<kSecond>(w, a, kStride);
    w += 2048;
    a += 64;
  }
  store_sums<kSecond>(sums, stride);
  tile_fence();
}

void tile_piece(const GemmArgs* g, const Piece* p, bool prefetch) {
  alignas(64) float group_sums[32 * kPanelRows];
  const int step = block_rows(g->rows);
  for (int row = 0; row < g->rows; row += step) {
    const int rows = g->rows - row < step ? g->rows - row : step;
    float* const c = g->c + row * g->c_stride;
    float* const sums = p->scales == nullptr ? c : group_sums;
    const int64_t stride = p->scales == nullptr ? g->c_stride : kPanelRows;
    const bool ahead = prefetch && row == 0;
    if (step > 16) {
      ahead ? tile_block<true, true>(g, p, row, sums, stride)
            : tile_block<true, false>(g, p, row, sums, stride);
    } else {
      ahead ? tile_block<false, true>(g, p, row, sums, stride)
            : tile_block<false, false>(g, p, row, sums, stride);
    }
    if (p->scales == nullptr) continue;
    for (int i = 0; i < rows; ++i) {
      const float* const sum = group_sums + i * kPanelRows;
      finish_row(p, c + i * g->c_stride, row + i, 0, load(sum), load(sum + VL));
    }
  }
}

// e4m3 panels and one block of rows: a step of 32 is decoded while the step before is on the matrix unit,
// which the out-of-order window covers; decoding whole scale groups in between left the two to take turns
// (20 instead of 27 GB/s of codes from the L2 cache at one row).
template <bool kSecond, bool kNan>
void tile_quads(const GemmArgs* g) {
  constexpr int64_t kStride = (int64_t)kRowStride * 2;
  constexpr int kStepWords = 16 * kPanelRows;  // 32 deep, 2 KiB
  constexpr int kBuffers = 4;
  alignas(64) float group_sums[32 * kPanelRows];
  const bool scaled = g->scales != nullptr;
  float* const sums = scaled ? group_sums : g->c;
  const int64_t stride = scaled ? kPanelRows : g->c_stride;
  uint32_t* const buffers = (uint32_t*)g->decoded;
  const char* a = (const char*)g->a;
  const char* w = (const char*)g->w;
  const int steps = g->depth / 32;
  decode_pairs_as<kNan>(g->prefetch, w, 32, buffers);
  tile_fence();
  for (int step = 0; step < steps; ++step) {
    if (step + 1 < steps) {
      w += 32 * kPanelRows;
      decode_pairs_as<kNan>(g->prefetch, w, 32, buffers + (step + 1) % kBuffers * kStepWords);
    }
    tile_fence();
    const bool first = scaled ? step % (kScaleGroup / 32) == 0 : step == 0;
    const bool last = step + 1 == steps || (scaled && (step + 1) % (kScaleGroup / 32) == 0);
    if (first && scaled) {
      _tile_zero(0);
      _tile_zero(1);
      if (kSecond) _tile_zero(2);
      if (kSecond) _tile_zero(3);
    } else if (first) {
      load_sums<kSecond>(sums, stride);
    }
    multiply_step<kSecond>((const char*)(buffers + step % kBuffers * kStepWords), a, kStride);
    a += 64;
    if (!last) continue;
    store_sums<kSecond>(sums, stride);
    tile_fence();
    if (!scaled) continue;
    const int group = step / (kScaleGroup / 32);
    const Piece p = {
        nullptr, nullptr, 0, g->scales + group * kMaxTileM, {g->w_scale[0][group], g->w_scale[1][group]}};
    for (int i = 0; i < g->rows; ++i) {
      const float* const sum = group_sums + i * kPanelRows;
      finish_row(&p, g->c + i * g->c_stride, i, 0, load(sum), load(sum + VL));
    }
  }
}

void gemm_tiles(const GemmArgs* g) {
  if (g->w_dtype == RAMP_BF16) {
    each_piece(g, 2, 2, [g](const Piece* p) { tile_piece(g, p, g->prefetch != 0); });
  } else if (g->rows > 32) {
    each_decoded_piece(g, [g](const Piece* p) { tile_piece(g, p, false); });
  } else if (g->nan_codes != 0) {
    g->rows > 16 ? tile_quads<true, true>(g) : tile_quads<false, true>(g);
  } else {
    g->rows > 16 ? tile_quads<true, false>(g) : tile_quads<false, false>(g);
  }
}
