// Matrix products for the recurrence, each on one thread: for products this small, a library's dispatch,
// packing and threads cost more than the arithmetic. A and C are given as pointers to their rows, which may
// lie anywhere, so the rows of a ragged batch need no gathering.
#pragma once
#include <vector>

#include "packed.h"

// C (M rows, N vectors at column c0, `columns` of them real) = init or C itself (accumulate) + A B.
// A's row m holds its k-th value at a[m][k * step].
template <class R, class E, int M, int N>
void tile(const E *const *a, int64_t step, const E *b, int64_t K, R *const *c, int64_t c0, int columns,
          const R *init, bool accumulate) {
  using V = Vec<R>;
  constexpr int L = LANES<R>;
  const bool whole = columns == N * L;
  R edge[M][N * L];  // stands in for rows of C that end inside a vector
  V sum[M][N];
  const E *row[M];
#pragma GCC unroll 8
  for (int m = 0; m < M; m++) {
    row[m] = a[m];
    const R *from = accumulate ? c[m] + c0 : init ? init + c0 : nullptr;
    if (from && !whole) from = static_cast<R *>(std::memcpy(edge[m], from, columns * sizeof(R)));
#pragma GCC unroll 8
    for (int n = 0; n < N; n++) sum[m][n] = from ? *(const V *)(from + n * L) : V{};
  }
  for (int64_t k = 0; k < K * step; k += step, b += N * L) {
    Vec<E> w[N];
#pragma GCC unroll 8
    for (int n = 0; n < N; n++) w[n] = *(const Vec<E> *)(b + n * L);
#pragma GCC unroll 8
    for (int m = 0; m < M; m++) {
      const Vec<E> x = row[m][k] - Vec<E>{};
#pragma GCC unroll 8
      for (int n = 0; n < N; n++) sum[m][n] = add_product<R>(sum[m][n], x, w[n]);
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; m++) {
    R *to = whole ? c[m] + c0 : edge[m];
#pragma GCC unroll 8
    for (int n = 0; n < N; n++) *(V *)(to + n * L) = sum[m][n];
    if (!whole) std::memcpy(c[m] + c0, edge[m], columns * sizeof(R));
  }
}

template <class R, class E, int M = MR> auto tile_of(int rows, int vectors) -> decltype(&tile<R, E, 1, 1>) {
  if constexpr (M > 1)
    if (rows < M) return tile_of<R, E, M - 1>(rows, vectors);
  constexpr decltype(&tile<R, E, 1, 1>) tiles[NV] = {
      tile<R, E, M, 1>, tile<R, E, M, 2>, tile<R, E, M, 3>, tile<R, E, M, 4>};
  return tiles[vectors - 1];
}

// n rows of C = init, or C itself (accumulate), + the same rows of A times B.
template <class R, class E>
void multiply(const R *const *a, const Packed<E> &B, R *const *c, int64_t n, const R *init, bool accumulate) {
  constexpr int64_t K_BLOCK = 512;  // a block of a panel fits the L2 cache, and of MR rows of A the L1
  std::vector<E> pairs(DEPTH<E> == 1 ? 0 : n * B.K);  // A's rows
  auto row = [&](int64_t i) -> const E * {
    if constexpr (DEPTH<E> == 1) return a[i];
    else return pairs.data() + i * B.K;
  };
  if constexpr (DEPTH<E> == 2)
    for (int64_t i = 0; i < n; i++) {
      E *to = pairs.data() + i * B.K;
      for (int64_t k = 0; k < B.depth / 2; k++) to[k] = element<E>(a[i][2 * k], a[i][2 * k + 1]);
      if (B.depth % 2) to[B.K - 1] = element<E>(a[i][B.depth - 1], R(0));
    }
  const int64_t tiles = (n + MR - 1) / MR;
  for (int64_t j = 0; j < B.panels(); j++)
    for (int64_t k = 0; k < B.K; k += K_BLOCK)
      for (int64_t t = 0; t < tiles; t++) {
        const int64_t first = n * t / tiles, rows = n * (t + 1) / tiles - first;  // of even height
        const E *a_k[MR];
        for (int64_t i = 0; i < rows; i++) a_k[i] = row(first + i) + k;
        const auto run = tile_of<R, E>(int(rows), int(B.width(j) / LANES<E>));
        run(a_k, 1, B.panel(j) + k * B.width(j), std::min(K_BLOCK, B.K - k), c + first, j * PANEL<E>,
            B.columns(j), init, accumulate || k);
      }
}

// C (M, N) = Σ_k d[k]ᵀ v[k] over `rows` rows d[k] = d + k * d_stride (M,) and v[k] (N,): a weight's gradient.
// Each thread of the caller's parallel region computes some rows of C.
template <class E, class R>
void outer(const R *d, int64_t d_stride, int64_t M, const R *const *v, int64_t N, int64_t rows, R *c,
           int thread, int threads) {
  constexpr int64_t K_BLOCK = 256, M_BLOCK = 8 * MR;
  Packed<E> V(K_BLOCK * DEPTH<E>, N);
  Buffer<E> block(K_BLOCK * M_BLOCK);
  for (int64_t k0 = 0; k0 < rows; k0 += K_BLOCK * DEPTH<E>) {
    pack_rows(V, v + k0, rows - k0);
    for (int64_t m0 = M * thread / threads, end = M * (thread + 1) / threads; m0 < end; m0 += M_BLOCK) {
      const int64_t height = std::min(M_BLOCK, end - m0);
      // Copied, since the rows of d lie a power of two apart and would evict each other from the caches.
      for (int64_t k = 0; k < V.K; k++) {
        const int64_t row = k0 + k * DEPTH<E>;
        const R *first = d + row * d_stride + m0;
        pack_row(block.p + k * M_BLOCK, first, row + 1 < rows ? first + d_stride : nullptr, height, height);
      }
      for (int64_t j = 0; j < V.panels(); j++)
        for (int64_t m = 0; m < height; m += MR) {
          const int count = int(std::min<int64_t>(MR, height - m));
          const E *a[MR];
          R *to[MR];
          for (int i = 0; i < count; i++) a[i] = block.p + m + i, to[i] = c + (m0 + m + i) * N;
          const auto run = tile_of<R, E>(count, int(V.width(j) / LANES<E>));
          run(a, M_BLOCK, V.panel(j), V.K, to, j * PANEL<E>, V.columns(j), nullptr, k0 > 0);
        }
    }
  }
}
