// Products of bf16 pairs on the tiles of AMX: eight registers of 16 rows of 64 bytes, so 16 × 16 sums of float, or
// 16 rows of 16 pairs. One instruction adds the product of two such tiles to a third: 16 × 16 × 32 numbers.
//
// EMULATED: the same operations in plain C++, for tests on CPUs without AMX.
#pragma once
#include <vector>

#include "packed.h"
#ifndef EMULATED
#include <sys/syscall.h>
#include <unistd.h>
#endif

constexpr int TILE = 16;  // rows of a tile, and pairs or sums in a row
static_assert(PANEL<Pair> % TILE == 0 && LANES<Pair> == TILE && UNIT == TILE);

#ifdef EMULATED
thread_local Pair registers[8][TILE][TILE];

inline bool allow_tiles() { return true; }
inline void start_tiles() {}
inline void stop_tiles() {}
template <int T> void clear_tile() { std::memset(registers[T], 0, sizeof registers[T]); }
template <int T> void load_tile(const void *from, int64_t stride) {
  for (int r = 0; r < TILE; r++)
    std::memcpy(registers[T][r], static_cast<const char *>(from) + r * stride, sizeof registers[T][r]);
}
template <int T> void store_tile(void *to, int64_t stride) {
  for (int r = 0; r < TILE; r++)
    std::memcpy(static_cast<char *>(to) + r * stride, registers[T][r], sizeof registers[T][r]);
}
template <int C, int A, int B> void multiply_tiles() {
  auto number = [](Pair bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  };
  for (int m = 0; m < TILE; m++)
    for (int n = 0; n < TILE; n++) {
      float sum = number(registers[C][m][n]);
      for (int k = 0; k < TILE; k++) {
        const Pair a = registers[A][m][k], b = registers[B][k][n];
        sum += number(a << 16) * number(b << 16) + number(a & 0xffff0000) * number(b & 0xffff0000);
      }
      std::memcpy(&registers[C][m][n], &sum, sizeof sum);
    }
}
#else
// Linux asks each process to ask for the tiles, whose registers are large.
inline bool allow_tiles() {
  constexpr int ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18;
  return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}
inline void start_tiles() {
  struct alignas(64) {
    std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
    std::uint16_t bytes_per_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    std::uint8_t rows[16] = {TILE, TILE, TILE, TILE, TILE, TILE, TILE, TILE};
  } shape;
  asm volatile("ldtilecfg %0" ::"m"(shape));
}
inline void stop_tiles() { asm volatile("tilerelease"); }
template <int T> void clear_tile() { asm volatile("tilezero %%tmm%c0" ::"i"(T)); }
template <int T> void load_tile(const void *from, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(T) : "memory");
}
template <int T> void store_tile(void *to, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(T) : "memory");
}
template <int C, int A, int B> void multiply_tiles() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}
#endif

// to (M · 16 rows, N · 16 columns) = A B over K pairs. a: rows of K pairs; b: K rows, b_row pairs apart.
// The sums stay in the tiles 0 to 3; A takes 4 and 5, B takes 6 and 7.
template <int M, int N>
void multiply_block(const Pair *a, const Pair *b, int64_t b_row, int64_t K, float *to, int64_t to_row) {
  const int64_t a_bytes = K * 4, b_bytes = b_row * 4, to_bytes = to_row * 4;
  clear_tile<0>(), clear_tile<1>(), clear_tile<2>(), clear_tile<3>();
  for (int64_t k = 0; k < K; k += TILE) {
    load_tile<4>(a + k, a_bytes);
    load_tile<6>(b + k * b_row, b_bytes);
    multiply_tiles<0, 4, 6>();
    if constexpr (N == 2) load_tile<7>(b + k * b_row + TILE, b_bytes), multiply_tiles<1, 4, 7>();
    if constexpr (M == 2) load_tile<5>(a + TILE * K + k, a_bytes), multiply_tiles<2, 5, 6>();
    if constexpr (M == 2 && N == 2) multiply_tiles<3, 5, 7>();
  }
  store_tile<0>(to, to_bytes);
  if constexpr (N == 2) store_tile<1>(to + TILE, to_bytes);
  if constexpr (M == 2) store_tile<2>(to + TILE * to_row, to_bytes);
  if constexpr (M == 2 && N == 2) store_tile<3>(to + TILE * to_row + TILE, to_bytes);
}

// n rows of C = init, or C itself (accumulate), + A B. a: whole tiles of rows of B.K pairs.
inline void multiply_pairs(const Pair *a, const Packed<Pair> &B, float *const *c, int64_t n, const float *init,
                           bool accumulate) {
  float sums[2 * TILE][PANEL<Pair>];
  start_tiles();
  for (int64_t j = 0; j < B.panels(); j++)
    for (int64_t m0 = 0; m0 < n; m0 += 2 * TILE) {
      const int64_t rows = std::min<int64_t>(2 * TILE, n - m0), c0 = j * PANEL<Pair>, width = B.width(j);
      for (int64_t n0 = 0; n0 < width; n0 += 2 * TILE) {
        const bool wide = width - n0 > TILE;
        const auto run = rows > TILE ? (wide ? multiply_block<2, 2> : multiply_block<2, 1>)
                                     : (wide ? multiply_block<1, 2> : multiply_block<1, 1>);
        run(a + m0 * B.K, B.panel(j) + n0, width, B.K, sums[0] + n0, PANEL<Pair>);
      }
      for (int64_t m = 0; m < rows; m++) {
        float *to = c[m0 + m] + c0;
        const float *from = accumulate ? to : init ? init + c0 : nullptr;
        for (int n = 0; n < B.columns(j); n++) to[n] = (from ? from[n] : 0) + sums[m][n];
      }
    }
  stop_tiles();
}

// The same as in gemm.h.
template <class R, class E>
void multiply(const R *const *a, const Packed<E> &B, R *const *c, int64_t n, const R *init, bool accumulate) {
  std::vector<Pair> pairs(whole_units(n) * B.K);  // A's rows
  for (int64_t i = 0; i < n; i++) {
    Pair *to = pairs.data() + i * B.K;
    for (int64_t k = 0; k < B.depth / 2; k++) to[k] = element<Pair>(a[i][2 * k], a[i][2 * k + 1]);
    if (B.depth % 2) to[B.depth / 2] = element<Pair>(a[i][B.depth - 1], R(0));
  }
  multiply_pairs(pairs.data(), B, c, n, init, accumulate);
}

// The same as in gemm.h.
template <class E, class R>
void outer(const R *d, int64_t d_stride, int64_t M, const R *const *v, int64_t N, int64_t rows, R *c, int thread,
           int threads) {
  constexpr int64_t K_BLOCK = 256, M_BLOCK = 2 * TILE;
  Packed<Pair> V(2 * K_BLOCK, N);
  for (int64_t k0 = 0; k0 < rows; k0 += 2 * K_BLOCK) {
    pack_rows(V, v + k0, rows - k0);
    for (int64_t m0 = M * thread / threads, end = M * (thread + 1) / threads; m0 < end; m0 += M_BLOCK) {
      const int64_t height = std::min(M_BLOCK, end - m0);
      std::vector<Pair> block(M_BLOCK * V.K);  // d's columns, as rows
      R *to[M_BLOCK];
      for (int64_t m = 0; m < height; m++) to[m] = c + (m0 + m) * N;
      for (int64_t k = 0, row = k0; k < V.K && row < rows; k++, row += 2) {
        const R *first = d + row * d_stride + m0;
        for (int64_t m = 0; m < height; m++)
          block[m * V.K + k] = element<Pair>(first[m], row + 1 < rows ? first[m + d_stride] : R(0));
      }
      multiply_pairs(block.data(), V, to, height, nullptr, k0 > 0);
    }
  }
}
