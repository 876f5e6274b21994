// GEMM on the matrix unit (AMX-BF16), included by kernels.inc.hpp for the level that has it. Panels are
// already what it wants: 16 pairs of depth x 16 rows of weights are a tile, 1 KiB, at a stride of 128 bytes.
//
// Two tiles of x rows times the panel's two tiles give four sums, enough to cover tdpbf16ps's latency (about
// 52 cycles at 16 cycles each); tiles of x hold only the rows there are, so nothing is padded. Each sum adds
// its 32 products of a step as two chains (even and odd elements) that are joined at the end; like the dot
// products it takes subnormals as zero.

struct TileShapes {  // what ldtilecfg reads
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};

// Tiles 0, 1: sums of the first x tile; 2, 3: of the second; 4, 5: x; 6, 7: weights.
RAMP_INLINE void set_tile_shapes(int first_rows, int second_rows) {
  alignas(64) TileShapes s = {};
  s.palette = 1;
  const uint8_t rows[8] = {(uint8_t)first_rows,
                           (uint8_t)first_rows,
                           (uint8_t)second_rows,
                           (uint8_t)second_rows,
                           (uint8_t)first_rows,
                           (uint8_t)second_rows,
                           16,
                           16};
  for (int i = 0; i < 8; ++i) {
    s.rows[i] = rows[i];
    s.row_bytes[i] = rows[i] != 0 ? 64 : 0;
  }
  _tile_loadconfig(&s);
}

// Tile intrinsics do not tell the compiler what memory they read.
RAMP_INLINE void tile_fence() {
  __asm__ volatile("" ::: "memory");
}

// Rows [row, row + rows) of a piece whose panel is bf16 pairs, rows <= 32; kSecond: rows > 16.
template <bool kSecond, bool kPrefetch>
RAMP_INLINE void tile_block(const GemmArgs* g, const Piece* p, int row, float* sums, int64_t sums_stride) {
  constexpr int64_t kStride = (int64_t)kRowStride * 2;
  const char* a = (const char*)p->a + row * kStride;
  const char* w = (const char*)p->w;
  const int64_t bytes = sums_stride * 4;
  tile_fence();
  if (p->scales == nullptr) {
    _tile_loadd(0, sums, bytes);
    _tile_loadd(1, sums + 16, bytes);
    if (kSecond) _tile_loadd(2, sums + 16 * sums_stride, bytes);
    if (kSecond) _tile_loadd(3, sums + 16 * sums_stride + 16, bytes);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    if (kSecond) _tile_zero(2);
    if (kSecond) _tile_zero(3);
  }
  for (int k = 0; k < p->depth; k += 32) {
    if (kPrefetch) {
      RAMP_UNROLL for (int line = 0; line < 16; ++line) {
        _mm_prefetch(w + g->prefetch + line * 128, _MM_HINT_T0);
        _mm_prefetch(w + g->prefetch + line * 128 + 64, _MM_HINT_T0);
      }
    }
    _tile_loadd(6, w, 128);
    _tile_loadd(4, a, kStride);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, w + 64, 128);
    _tile_dpbf16ps(1, 4, 7);
    if (kSecond) {
      _tile_loadd(5, a + 16 * kStride, kStride);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    w += 2048;
    a += 64;
  }
  _tile_stored(0, sums, bytes);
  _tile_stored(1, sums + 16, bytes);
  if (kSecond) _tile_stored(2, sums + 16 * sums_stride, bytes);
  if (kSecond) _tile_stored(3, sums + 16 * sums_stride + 16, bytes);
  tile_fence();
}

void tile_piece(const GemmArgs* g, const Piece* p, bool prefetch) {
  constexpr int kRows = 32;
  alignas(64) float group_sums[kRows * kPanelRows];
  int shape = -1;
  for (int row = 0; row < g->rows; row += kRows) {
    const int rows = g->rows - row < kRows ? g->rows - row : kRows;
    if (rows != shape) set_tile_shapes(rows < 16 ? rows : 16, rows > 16 ? rows - 16 : 0);
    shape = rows;
    float* const c = g->c + row * g->c_stride;
    float* const sums = p->scales == nullptr ? c : group_sums;
    const int64_t stride = p->scales == nullptr ? g->c_stride : kPanelRows;
    const bool ahead = prefetch && row == 0;
    if (rows > 16) {
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

void gemm_tiles(const GemmArgs* g) {
  if (g->w_dtype == RAMP_BF16) {
    each_piece(g, 2, 2, [g](const Piece* p) { tile_piece(g, p, g->prefetch != 0); });
  } else {
    each_decoded_piece(g, [g](const Piece* p) { tile_piece(g, p, false); });
  }
  _tile_release();
}
