// Where a warp's threads meet for the matrix instructions of ptx_matrix.hpp: 8 x 8 tiles of 16-bit elements
// between shared memory and registers, and mma.sync. Layouts as in the PTX ISA: of an 8 x 8 tile, lane l
// holds elements 2(l%4) and + 1 of row l/4; row i of tile t is at the address that lane 8t + i gives.
#include "emulator/ptx_matrix.hpp"

#include "emulator/ptx_convert.hpp"

namespace ptx::detail {
namespace {

constexpr u32 kWarp = 0xffffffffU;

struct Tiles {
  u32* registers;
  u64 row;
  int count;
};

u8* row_of(void** mines, u32 index, const char* what) {
  const u64 address = static_cast<const Tiles*>(mines[index])->row;
  check_aligned(address, 16, what);
  return emu::shared(static_cast<u32>(address), 16);
}

void load_all(void** mines, u32 lanes) {
  const int count = static_cast<const Tiles*>(mines[0])->count;
  for (int t = 0; t < count; t++) {
    for (u32 l = 0; l < lanes; l++) {
      const u8* const row = row_of(mines, static_cast<u32>(t) * 8 + l / 4, "ldmatrix");
      std::memcpy(&static_cast<const Tiles*>(mines[l])->registers[t], row + static_cast<u64>(4 * (l % 4)), 4);
    }
  }
}
void store_all(void** mines, u32 lanes) {
  const int count = static_cast<const Tiles*>(mines[0])->count;
  for (int t = 0; t < count; t++) {
    for (u32 l = 0; l < lanes; l++) {
      u8* const row = row_of(mines, static_cast<u32>(t) * 8 + l / 4, "stmatrix");
      std::memcpy(row + static_cast<u64>(4 * (l % 4)), &static_cast<const Tiles*>(mines[l])->registers[t], 4);
    }
  }
}
void transpose_all(void** mines, u32 lanes) {
  u16 tile[8][8];
  for (u32 l = 0; l < lanes; l++) {
    const u32 v = *static_cast<const u32*>(mines[l]);
    tile[l / 4][2 * (l % 4)] = static_cast<u16>(v);
    tile[l / 4][2 * (l % 4) + 1] = static_cast<u16>(v >> 16);
  }
  for (u32 l = 0; l < lanes; l++) {
    const u32 column = l / 4, row = 2 * (l % 4);
    *static_cast<u32*>(mines[l]) = static_cast<u32>(tile[row + 1][column]) << 16 | tile[row][column];
  }
}

// ---------------------------------------------------------------- mma

struct Product {
  const u32 *a, *b;
  const float* c;
  float* d;
  Element type;
};

// Element i (from the lowest bits) of a register.
float element(u32 v, int i, Element type) {
  switch (type) {
    case Element::kE4m3:
      return e4m3_value(static_cast<u8>(v >> 8 * i));
    case Element::kBf16:
      return bf16_value(static_cast<u16>(v >> 16 * i));
    case Element::kF16:
      return f16_value(static_cast<u16>(v >> 16 * i));
  }
  return 0;
}

// Lane l holds of a: rows l/4 (registers 0, 2) and l/4 + 8 (1, 3); of b: column l/4. A register is 4 bytes
// of depth: bytes 4(l%4) of the first half (a 0 and 1, b 0) or of the second one.
void multiply_all(void** mines, u32 lanes) {
  const Element type = static_cast<const Product*>(mines[0])->type;
  const int each = type == Element::kE4m3 ? 4 : 2, half = 4 * each, depth = 2 * half;
  float a[16][32], b[8][32];
  for (u32 l = 0; l < lanes; l++) {
    const Product& mine = *static_cast<const Product*>(mines[l]);
    for (int r = 0; r < 4; r++) {
      const int k = half * (r / 2) + each * static_cast<int>(l % 4);
      for (int i = 0; i < each; i++)
        a[l / 4 + 8 * static_cast<u32>(r % 2)][k + i] = element(mine.a[r], i, type);
    }
    for (int r = 0; r < 2; r++) {
      const int k = half * r + each * static_cast<int>(l % 4);
      for (int i = 0; i < each; i++) b[l / 4][k + i] = element(mine.b[r], i, type);
    }
  }
  for (u32 l = 0; l < lanes; l++) {
    const Product& mine = *static_cast<const Product*>(mines[l]);
    for (u32 i = 0; i < 4; i++) {
      const float *const row = a[l / 4 + 8 * (i / 2)], *const column = b[2 * (l % 4) + i % 2];
      float sum = mine.c[i];
      for (int k = 0; k < depth; k++) sum += row[k] * column[k];
      mine.d[i] = sum;
    }
  }
}

}  // namespace

void load_matrices(u32* registers, int count, u64 row) {
  Tiles mine{registers, row, count};
  emu::warp_collective(kWarp, &mine, load_all);
}
void store_matrices(const u32* registers, int count, u64 row) {
  Tiles mine{const_cast<u32*>(registers), row, count};
  emu::warp_collective(kWarp, &mine, store_all);
}
u32 transpose_matrix(u32 v) {
  emu::warp_collective(kWarp, &v, transpose_all);
  return v;
}
void multiply_warp(float* d, const u32* a, const u32* b, const float* c, Element type) {
  Product mine{a, b, c, d, type};
  emu::warp_collective(kWarp, &mine, multiply_all);
}

}  // namespace ptx::detail
