// Products with weights as they are stored, for a few rows or a single step, where packing them first would take
// longer than the product.
#pragma once
#include "packed.h"

// Σ_k w[r][k] x[i][k] of ROWS rows of W and N rows x, added to sum (whole vectors) and rest (what is left over).
// The order of the sums does not depend on N.
template <class R, int ROWS, int N>
inline void dot(const R *w, int64_t stride, const R *const *x, int64_t K, Vec<R> (*sum)[ROWS],
                R (*rest)[ROWS]) {
  int64_t k = 0;
  for (; k + LANES<R> <= K; k += LANES<R>) {
    Vec<R> w_k[ROWS];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++) w_k[r] = *(const Vec<R> *)(w + r * stride + k);
#pragma GCC unroll 8
    for (int i = 0; i < N; i++) {
      const Vec<R> x_k = *(const Vec<R> *)(x[i] + k);
#pragma GCC unroll 8
      for (int r = 0; r < ROWS; r++) sum[i][r] += w_k[r] * x_k;
    }
  }
  for (; k < K; k++)
    for (int i = 0; i < N; i++)
      for (int r = 0; r < ROWS; r++) rest[i][r] += w[r * stride + k] * x[i][k];
}

// N rows of C, ROWS columns: += A Wᵀ + B Vᵀ.
template <class R, int ROWS, int N>
inline void add_dots(const R *const *a, const R *W, int64_t I, const R *const *b, const R *V, int64_t H,
                     R *const *c, int64_t column) {
  Vec<R> sum[N][ROWS] = {};
  R rest[N][ROWS] = {};
  dot<R, ROWS, N>(W, I, a, I, sum, rest);
  dot<R, ROWS, N>(V, H, b, H, sum, rest);
  for (int i = 0; i < N; i++)
    for (int r = 0; r < ROWS; r++) {
      R total = rest[i][r];
#pragma omp simd reduction(+ : total)
      for (int64_t l = 0; l < LANES<R>; l++) total += sum[i][r][l];
      c[i][column + r] += total;
    }
}

// n rows of C, M columns from c0 on, += A Wᵀ + B Vᵀ, with W (M, I) and V (M, H) as stored (I or H may be 0):
// for products too small to pack the weights first.
template <class R>
void multiply_unpacked(const R *const *a, const R *W, int64_t I, const R *const *b, const R *V, int64_t H,
                       int64_t M, R *const *c, int64_t c0, int64_t n) {
  constexpr int ROWS = 4, N = MR > 3 ? 4 : 2;  // their products' sums stay in registers
#pragma omp for schedule(static)
  for (int64_t j0 = 0; j0 < M; j0 += ROWS) {
    const R *w = W + j0 * I, *v = V + j0 * H;
    int64_t i = 0;
    if (j0 + ROWS <= M) {
      for (; i + N <= n; i += N) add_dots<R, ROWS, N>(a + i, w, I, b + i, v, H, c + i, c0 + j0);
      for (; i < n; i++) add_dots<R, ROWS, 1>(a + i, w, I, b + i, v, H, c + i, c0 + j0);
    } else
      for (; i < n; i++)
        for (int64_t r = 0; j0 + r < M; r++)
          add_dots<R, 1, 1>(a + i, w + r * I, I, b + i, v + r * H, H, c + i, c0 + j0 + r);
  }
}
