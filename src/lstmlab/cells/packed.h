// The operands of a matrix product: vectors, pairs of bf16 numbers, and a matrix packed into panels.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <type_traits>

using std::int64_t;

// A block of C stays in registers: MR rows of up to NV vectors, beside NV vectors of B and one of A.
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

#ifdef AMX
constexpr int64_t UNIT = 16;  // a tile takes 16 rows of B
#else
constexpr int64_t UNIT = 1;
#endif
inline int64_t whole_units(int64_t n) { return (n + UNIT - 1) / UNIT * UNIT; }


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
// with zeros to whole vectors and UNITs of K.
template <class E> struct Packed {
  int64_t depth, K, N;
  Buffer<E> data;
  Packed(int64_t depth, int64_t N)
      : depth(depth), K(whole_units((depth + DEPTH<E> - 1) / DEPTH<E>)), N(N), data(K * (N + LANES<E> - 1)) {}
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
        const R *second = row + 1 < B.depth ? first + B.N : nullptr;
        pack_row(to + k * width, first, second, row < B.depth ? columns : 0, width);
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

// B[k] = v[k], for as many of `rows` rows as B takes, which K is set to.
template <class E, class R> void pack_rows(Packed<E> &B, const R *const *v, int64_t rows) {
  B.K = whole_units((std::min(B.depth, rows) + DEPTH<E> - 1) / DEPTH<E>);
  for (int64_t j = 0; j < B.panels(); j++)
    for (int64_t k = 0, row = 0; k < B.K; k++, row += DEPTH<E>) {
      const R *first = row < rows ? v[row] + j * PANEL<E> : nullptr;
      const R *second = row + 1 < rows ? v[row + 1] + j * PANEL<E> : nullptr;
      pack_row(B.panel(j) + k * B.width(j), first, second, first ? B.columns(j) : 0, B.width(j));
    }
}
