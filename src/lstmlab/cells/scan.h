// The arguments of a call, and where the numbers of each row, step and gate lie.
#pragma once
#include <algorithm>
#include <numeric>
#include <vector>

#include "min.h"
#include "packed.h"
#include "slstm.h"

// Rows [row, row + n) of W_hh times h from unit `from` on give columns [column, column + n) of the gates.
struct Part {
  int64_t row, column, n, from;
};

// The arguments of a call. native.py fills them in: its class Scan has the same fields in the same order.
// A row of gates has G columns: i, f, g, o. In the GRU they are r, z, n_x and n_h, since the reset gate comes
// between the input's and the hidden part of n; in the sLSTM i, f, g and o of each head, see `HeadMajor`.
template <class R> struct Scan {
  Kind kind;
  int64_t B, T, I, H, K, reverse, threads;  // K: columns of W_hh; 0 if no gate sees h
  int64_t rounds, rank;                     // of the mogrifier; rank 0: its matrices are whole
  const int64_t *lengths;  // (B,); null: all T
  const R *x;
  int64_t x_b, x_t;  // strides of B and T, here and below
  const R *h0, *c0;  // (B, H), (B, C)
  const R *w_ih, *w_hh, *b_ih, *b_hh;
  const R *extra;  // peephole: w_ci, w_cf, w_co; layer norm: gain; mogrifier: its matrices
  R *y;
  int64_t y_b, y_t;
  R *h, *c;     // (B, H), (B, C): the final state
  R *gates;     // (cells, G): activated, or normalised by layer norm; null: not wanted
  R *cs;        // (cells, C)
  R *norms;     // (cells, 4): layer norm's 1/σ of each gate; see mogrifier.h
  const R *dy;  // null: zeros
  int64_t dy_b, dy_t;
  R *dx;  // null: not wanted
  int64_t dx_b, dx_t;
  R *dh, *dc;  // (B, H), (B, C): of the final state on entry, of the first one on return
  R *dw_ih, *dw_hh, *dbias, *dextra;
  R *dgates;  // (cells, G): of the pre-activations; may be gates, which are then overwritten

  bool has_addresses() const {
    return x && h0 && (c0 || !has_c()) && w_ih && b_ih && ((w_hh && b_hh) || !K) && y;
  }
  bool has_c() const { return kind <= LAYERNORM || kind >= SLSTM; }
  int64_t C() const { return kind == SLSTM ? 3 * H : H; }  // columns of c, with n and m
  int64_t G() const {
    return kind == RNN ? H : kind == MINGRU ? 2 * H : kind == MINLSTM ? 3 * H : kind == SLSTM ? 5 * H : 4 * H;
  }
  int64_t N() const {  // rows of W_ih and of W_hh
    return kind == GRU ? 3 * H : kind == SLSTM ? 4 * H : G();
  }
  std::vector<Part> parts() const {
    if (kind == GRU) return {{0, 0, 2 * H, 0}, {2 * H, 3 * H, H, 0}};
    std::vector<Part> parts;  // of each head
    const int64_t gates = N() / H;
    for (int64_t from = 0; K && from < H; from += K)
      parts.push_back({gates * from, gates * from, gates * K, from});
    return parts;
  }
  // The row of an sLSTM's weights that gives a column of its gates
  int64_t head_row(int64_t column) const { return column / K % 4 * H + column / (4 * K) * K + column % K; }
  void bias(R *to) const {  // (G,)
    std::fill(std::copy_n(b_ih, N(), to), to + G(), R(0));
    for (const Part &p : parts())
      for (int64_t j = 0; j < p.n; j++) to[p.column + j] += b_hh[p.row + j];
  }
  int64_t length(int64_t b) const { return lengths ? lengths[b] : T; }
  int64_t time(int64_t b, int64_t s) const { return reverse ? length(b) - 1 - s : s; }
  const R *x_at(int64_t b, int64_t s) const { return x + b * x_b + time(b, s) * x_t; }
  R *y_at(int64_t b, int64_t s) const { return y + b * y_b + time(b, s) * y_t; }
  const R *h_before(int64_t b, int64_t s) const { return s ? y_at(b, s - 1) : h0 + b * H; }
};
static_assert(sizeof(Scan<float>) == sizeof(Scan<double>), "native.py has one class for both");

// The order in which rows are dealt out, and the number of the first cell of each.
struct Rows {
  std::vector<int64_t> order, start;
  template <class R> explicit Rows(const Scan<R> &scan) : order(scan.B), start(scan.B + 1) {
    for (int64_t b = 0; b < scan.B; b++) start[b + 1] = start[b] + scan.length(b);
    std::iota(order.begin(), order.end(), 0);
    auto longer = [&](int64_t p, int64_t q) { return scan.length(p) > scan.length(q); };
    std::stable_sort(order.begin(), order.end(), longer);
  }
  std::vector<int64_t> of(int thread, int threads) const {
    std::vector<int64_t> mine;
    for (size_t i = thread; i < order.size(); i += threads) mine.push_back(order[i]);
    return mine;
  }
};

// An sLSTM with the rows of its weights in the order of gates' columns: head by head, and gate by gate in each.
// So a head's four gates are one product.
template <class R> struct HeadMajor {
  const Scan<R> &original;
  int64_t I = original.I, H = original.H, K = original.K;
  Buffer<R> w_ih, w_hh, b_ih, b_hh;
  Scan<R> scan = original;
  explicit HeadMajor(const Scan<R> &original)
      : original(original), w_ih(4 * H * I), w_hh(4 * H * K), b_ih(4 * H), b_hh(5 * H) {
    for (int64_t column = 0; column < 4 * H; column++) {
      const int64_t r = original.head_row(column);
      std::copy_n(scan.w_ih + r * I, I, w_ih.p + column * I);
      std::copy_n(scan.w_hh + r * K, K, w_hh.p + column * K);
      b_ih.p[column] = scan.b_ih[r];
      b_hh.p[column] = scan.b_hh[r];
    }
    scan.w_ih = w_ih.p, scan.w_hh = w_hh.p, scan.b_ih = b_ih.p, scan.b_hh = b_hh.p;
  }
};
