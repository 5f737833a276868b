// Matrix products for the recurrence, each on one thread: for products this small, a library's dispatch,
// packing and threads cost more than the arithmetic. A and C are given as pointers to their rows, which may
// lie anywhere, so the rows of a ragged batch need no gathering.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <type_traits>
#include <vector>

using std::int64_t;

// A tile of C stays in registers: MR rows of up to NV vectors, beside NV vectors of B and one of A.
#if defined(__AVX512F__)
constexpr int BYTES = 64, MR = 6;  // 32 registers
#elif defined(__AVX__)
constexpr int BYTES = 32, MR = 3;  // 16 registers
#elif defined(__aarch64__)
constexpr int BYTES = 16, MR = 6;
#else
constexpr int BYTES = 16, MR = 3;
#endif
constexpr int NV = 4;

template <class R> using Vec [[gnu::vector_size(BYTES), gnu::aligned(alignof(R)), gnu::may_alias]] = R;
template <class R> constexpr int64_t LANES = BYTES / sizeof(R);
template <class R> constexpr int64_t PANEL = NV * LANES<R>;

// An operand's element: a number of C's type R or, for products in bf16 that are summed in float, a pair of
// neighbours in k.
using Pair = std::uint32_t;
template <class E> constexpr int DEPTH = std::is_same_v<E, Pair> ? 2 : 1;  // how many k it stands for

// sum + x · w
template <class R> inline Vec<R> add_product(Vec<R> sum, Vec<R> x, Vec<R> w) { return sum + x * w; }
#ifdef __AVX512BF16__
template <class R> inline Vec<R> add_product(Vec<R> sum, Vec<Pair> x, Vec<Pair> w) {
  asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(x), "v"(w));
  return sum;
}
#endif

// The pair of two numbers, each rounded to the nearest bf16, or else the first alone.
template <class E, class R> inline E element(R first, R second) {
  if constexpr (DEPTH<E> == 1) return first;
  else {
    auto rounded = [](R number) {
      Pair bits;
      std::memcpy(&bits, &number, sizeof bits);
      return number != number ? bits | 0x400000 : bits + 0x7fff + (bits >> 16 & 1);  // NaN must not overflow
    };
    return rounded(first) >> 16 | (rounded(second) & 0xffff0000);
  }
}

template <class R> struct Buffer {  // uninitialised, aligned to cache lines
  std::unique_ptr<void, decltype(&std::free)> memory;
  R *p;
  explicit Buffer(int64_t n)
      : memory(std::aligned_alloc(64, (n * sizeof(R) / 64 + 1) * 64), std::free),
        p(static_cast<R *>(memory.get())) {}
};

// B (depth, N) as K rows of elements, cut into panels of PANEL columns, each stored as [k][column] and padded
// with zeros to whole vectors.
template <class E> struct Packed {
  int64_t depth, K, N;
  Buffer<E> data;
  Packed(int64_t depth, int64_t N)
      : depth(depth), K((depth + DEPTH<E> - 1) / DEPTH<E>), N(N), data(K * (N + LANES<E> - 1)) {}
  int64_t panels() const { return (N + PANEL<E> - 1) / PANEL<E>; }
  int columns(int64_t j) const { return int(std::min(PANEL<E>, N - j * PANEL<E>)); }
  int width(int64_t j) const { return int((columns(j) + LANES<E> - 1) / LANES<E> * LANES<E>); }
  E *panel(int64_t j) const { return data.p + j * PANEL<E> * K; }
};

// A row of a panel, of one row of numbers or of two (second null: zeros): `columns` elements, then zeros.
template <class E, class R>
inline void pack_row(E *to, const R *first, const R *second, int columns, int width) {
  if (!second)
    for (int n = 0; n < columns; n++) to[n] = element<E>(first[n], R(0));
  else
    for (int n = 0; n < columns; n++) to[n] = element<E>(first[n], second[n]);
  std::fill(to + columns, to + width, E(0));
}

// B[k, n] = from[k, n], n contiguous, or (transposed) from[n, k], k contiguous. The threads of the caller's
// parallel region share the work.
template <class E, class R> void pack(const Packed<E> &B, const R *from, bool transposed) {
#pragma omp for schedule(static)
  for (int64_t j = 0; j < B.panels(); j++) {
    const int width = B.width(j), columns = B.columns(j);
    E *to = B.panel(j);
    if (!transposed) {
      for (int64_t k = 0, row = 0; k < B.K; k++, row += DEPTH<E>) {
        const R *first = from + row * B.N + j * PANEL<E>;
        pack_row(to + k * width, first, row + 1 < B.depth ? first + B.N : nullptr, columns, width);
      }
      continue;
    }
    constexpr int64_t BLOCK = 16;  // k inside n inside blocks of k: whole cache lines of both sides
    for (int64_t k0 = 0; k0 < B.K; k0 += BLOCK)
      for (int n = 0; n < width; n++) {
        const int64_t rest = n < columns ? B.depth - k0 * DEPTH<E> : 0;
        const R *numbers = from + (j * PANEL<E> + n) * B.depth + k0 * DEPTH<E>;
        R edge[BLOCK * DEPTH<E>] = {};
        if (rest < BLOCK * DEPTH<E>)
          numbers = static_cast<R *>(std::memcpy(edge, numbers, rest * sizeof(R)));
        E column[BLOCK];
        for (int k = 0; k < BLOCK; k++)
          column[k] = element<E>(numbers[k * DEPTH<E>], numbers[k * DEPTH<E> + DEPTH<E> - 1]);
        for (int k = 0; k < std::min(BLOCK, B.K - k0); k++) to[(k0 + k) * width + n] = column[k];
      }
  }
}

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
    V.K = std::min(K_BLOCK, (rows - k0 + DEPTH<E> - 1) / DEPTH<E>);
    for (int64_t j = 0; j < V.panels(); j++)
      for (int64_t k = 0; k < V.K; k++) {
        const int64_t row = k0 + k * DEPTH<E>;
        const R *second = row + 1 < rows ? v[row + 1] + j * PANEL<E> : nullptr;
        pack_row(V.panel(j) + k * V.width(j), v[row] + j * PANEL<E>, second, V.columns(j), V.width(j));
      }
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
