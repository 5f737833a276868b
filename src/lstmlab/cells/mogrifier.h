// The mogrifier (Melis et al. 2020) over all steps, forward and backward: kernel.cpp's loops, with rounds of
// products between x and h before each step of an LSTM. So the input's products cannot take several steps at
// once.
#pragma once
#include "scan.h"

// Where the numbers of a round lie. Value v_k is what round k made: of x if k is odd, of h if it is even. So the
// input is v_-1 and h is v_0, and round k makes v_k = 2σ(M_k v_{k−1}) ⊙ v_{k−2}, where M_k may be left · right.
// A row of norms holds, for each round, 2σ(…), v_k and, of low rank, right · v_{k−1} and room for its gradient.
template <class R> struct Rounds {
  const Scan<R> &scan;
  int64_t I = scan.I, H = scan.H, count = scan.rounds, rank = scan.rank;
  explicit Rounds(const Scan<R> &scan) : scan(scan) {}
  int64_t n(int64_t k) const { return k % 2 ? I : H; }
  int64_t m(int64_t k) const { return k % 2 ? H : I; }
  int64_t at(int64_t k) const { return k / 2 * 2 * I + (k - 1) / 2 * 2 * H + (k - 1) * 2 * rank; }
  int64_t width() const { return at(count + 1); }
  R *row(int64_t cell, int64_t k) const { return scan.norms + cell * width() + at(k); }
  int64_t last_x() const { return count % 2 ? count : count - 1; }
  int64_t last_h() const { return count % 2 ? count - 1 : count; }
  int64_t matrix(int64_t k) const { return (k - 1) * (rank ? rank * (I + H) : I * H); }
  int64_t right(int64_t k) const { return matrix(k) + n(k) * rank; }

  // The matrices, in the order in which a product with M takes them, or with its transpose (backward).
  template <class E> std::vector<Packed<E>> packed(bool backward) const {
    std::vector<Packed<E>> all;
    for (int64_t k = 1; k <= count; k++) {
      const int64_t from = backward ? n(k) : m(k), to = backward ? m(k) : n(k);
      if (rank) all.emplace_back(from, rank);
      all.emplace_back(rank ? rank : from, to);
    }
    return all;
  }
  template <class E> void pack_all(const std::vector<Packed<E>> &all, bool backward) const {
    for (int64_t k = 1, q = 0; k <= count; k++) {
      if (rank) pack(all[q++], scan.extra + (backward ? matrix(k) : right(k)), !backward);
      pack(all[q++], scan.extra + (rank && backward ? right(k) : matrix(k)), !backward);
    }
  }
};

template <class E, class R> static void mogrifier_forward(const Scan<R> &scan) {
  const int64_t I = scan.I, H = scan.H, G = 4 * H;
  const Rounds<R> rounds(scan);
  const int64_t width = rounds.width(), rank = rounds.rank;
  const Rows rows(scan);
  const Packed<E> W_ih(I, G), W_hh(H, G);
  const auto matrices = rounds.template packed<E>(false);
  const Buffer<R> bias(G);
  scan.bias(bias.p);
#pragma omp parallel num_threads(int(std::min(scan.threads, scan.B)))
  {
    pack(W_ih, scan.w_ih, true);
    pack(W_hh, scan.w_hh, true);
    rounds.pack_all(matrices, false);
    const std::vector<int64_t> mine = rows.of(omp_get_thread_num(), omp_get_num_threads());
    const Buffer<R> unwanted(scan.gates ? 0 : mine.size() * (G + width));
    std::vector<const R *> x(mine.size()), h(mine.size()), inner(mine.size());
    std::vector<R *> gates(mine.size()), round(mine.size()), to(mine.size());
    size_t active = mine.size();
    for (int64_t s = 0; active; s++) {
      for (size_t i = 0; i < active; i++) {
        const int64_t cell = rows.start[mine[i]] + s;
        x[i] = scan.x_at(mine[i], s);
        h[i] = scan.h_before(mine[i], s);
        gates[i] = scan.gates ? scan.gates + cell * G : unwanted.p + i * (G + width);
        round[i] = scan.gates ? rounds.row(cell, 1) : gates[i] + G;
      }
      for (int64_t k = 1, q = 0; k <= rounds.count; k++) {
        auto &source = k % 2 ? h : x, &target = k % 2 ? x : h;
        const int64_t n = rounds.n(k), at = rounds.at(k);
        if (rank) {
          for (size_t i = 0; i < active; i++) inner[i] = to[i] = round[i] + at + 2 * n;
          multiply<R>(source.data(), matrices[q++], to.data(), active, nullptr, false);
        }
        for (size_t i = 0; i < active; i++) to[i] = round[i] + at;
        multiply<R>(rank ? inner.data() : source.data(), matrices[q++], to.data(), active, nullptr, false);
        for (size_t i = 0; i < active; i++) {
          R *gate = to[i], *value = gate + n;
          const R *before = target[i];
#pragma omp simd
          for (int64_t j = 0; j < n; j++) {
            gate[j] = 2 * sigmoid(gate[j]);
            value[j] = gate[j] * before[j];
          }
          target[i] = value;
        }
      }
      multiply<R>(x.data(), W_ih, gates.data(), active, bias.p, false);
      multiply<R>(h.data(), W_hh, gates.data(), active, nullptr, true);
      for (size_t i = 0; i < active; i++) {
        const int64_t b = mine[i], cell = rows.start[b] + s;
        R *c = scan.gates ? scan.cs + cell * H : scan.c + b * H;
        const R *c_before = s == 0 ? scan.c0 + b * H : scan.gates ? c - H : c;
        lstm_forward<LSTM, R>(gates[i], c_before, c, scan.y_at(b, s), nullptr, nullptr, H);
      }
      for (; active && scan.length(mine[active - 1]) == s + 1; active--) {
        const int64_t b = mine[active - 1];
        std::copy_n(scan.y_at(b, s), H, scan.h + b * H);
        if (scan.gates) std::copy_n(scan.cs + (rows.start[b] + s) * H, H, scan.c + b * H);
        for (int64_t t = s + 1; t < scan.T; t++)
          std::fill_n(scan.y + b * scan.y_b + t * scan.y_t, H, R(0));
      }
    }
  }
}

// The steps of some rows, last one first. In norms, the gradients of M_k v_{k−1} (and of right · v_{k−1}) take the
// places of 2σ(…) (and of the room beside). xs, hs: filled in with v_-1 and v_0 of each cell.
template <class E, class R>
static void mogrifier_backward_rows(const Scan<R> &scan, const Rows &rows, const std::vector<int64_t> &mine,
                                    const Packed<E> &W_ih, const Packed<E> &W_hh,
                                    const std::vector<Packed<E>> &matrices, const R *zeros, R *dbias,
                                    const R **xs, const R **hs) {
  const int64_t I = scan.I, H = scan.H, G = 4 * H;
  const Rounds<R> rounds(scan);
  const int64_t rank = rounds.rank;
  const Buffer<R> unwanted(mine.size() * I);
  std::vector<const R *> from(mine.size());
  std::vector<R *> dx(mine.size()), dh(mine.size()), inner(mine.size());
  size_t active = 0;
  for (int64_t s = scan.length(mine[0]) - 1; s >= 0; s--) {
    while (active < mine.size() && scan.length(mine[active]) > s) active++;
    for (size_t i = 0; i < active; i++) {
      const int64_t b = mine[i], cell = rows.start[b] + s;
      xs[cell] = scan.x_at(b, s);
      hs[cell] = scan.h_before(b, s);
      dx[i] = scan.dx ? scan.dx + b * scan.dx_b + scan.time(b, s) * scan.dx_t : unwanted.p + i * I;
      dh[i] = scan.dh + b * H;
      from[i] = scan.dgates + cell * G;
      const R *c = scan.cs + cell * H, *c_before = s ? c - H : scan.c0 + b * H;
      const R *dy = scan.dy ? scan.dy + b * scan.dy_b + scan.time(b, s) * scan.dy_t : zeros;
      lstm_backward<LSTM, R>(scan.gates + cell * G, scan.dgates + cell * G, nullptr, c_before, c, dh[i], dy,
                             scan.dc + b * H, nullptr, nullptr, dbias, nullptr, nullptr, H);
    }
    multiply<R>(from.data(), W_ih, dx.data(), active, nullptr, false);
    multiply<R>(from.data(), W_hh, dh.data(), active, nullptr, false);
    for (int64_t k = rounds.count; k >= 1; k--) {
      auto &d_source = k % 2 ? dh : dx, &d_target = k % 2 ? dx : dh;
      const int64_t n = rounds.n(k);
      for (size_t i = 0; i < active; i++) {
        const int64_t cell = rows.start[mine[i]] + s;
        R *gate = rounds.row(cell, k), *d = d_target[i];
        const R *before = k == 1 ? xs[cell] : k == 2 ? hs[cell] : rounds.row(cell, k - 2) + n;
#pragma omp simd
        for (int64_t j = 0; j < n; j++) {
          const R value = gate[j], d_j = d[j];
          d[j] = d_j * value;
          gate[j] = d_j * before[j] * value * (1 - value / 2);
        }
        from[i] = gate;
        inner[i] = gate + 2 * n + rank;
      }
      const Packed<E> *M = matrices.data() + (k - 1) * (rank ? 2 : 1);
      if (rank) {
        multiply<R>(from.data(), *M++, inner.data(), active, nullptr, false);
        std::copy_n(inner.begin(), active, from.begin());
      }
      multiply<R>(from.data(), *M, d_source.data(), active, nullptr, true);
    }
  }
  if (!scan.dx) return;
  for (int64_t b : mine)
    for (int64_t t = scan.length(b); t < scan.T; t++)
      std::fill_n(scan.dx + b * scan.dx_b + t * scan.dx_t, I, R(0));
}

template <class E, class R> static void mogrifier_backward(const Scan<R> &scan) {
  const int64_t I = scan.I, H = scan.H, G = 4 * H;
  const Rounds<R> rounds(scan);
  const int64_t width = rounds.width(), rank = rounds.rank;
  const int most = int(std::min(scan.threads, scan.B));
  const Rows rows(scan);
  const int64_t cells = rows.start[scan.B];
  const Packed<E> W_ih(G, I), W_hh(G, H);
  const auto matrices = rounds.template packed<E>(true);
  const Buffer<R> zeros(H), sums(most * G);  // sums: dbias of each thread
  std::fill_n(zeros.p, H, R(0));
  std::fill_n(sums.p, most * G, R(0));
  std::vector<const R *> xs(cells), hs(cells);
#pragma omp parallel num_threads(most)
  {
    pack(W_ih, scan.w_ih, false);
    pack(W_hh, scan.w_hh, false);
    rounds.pack_all(matrices, true);
    const int thread = omp_get_thread_num(), threads = omp_get_num_threads();
    mogrifier_backward_rows(scan, rows, rows.of(thread, threads), W_ih, W_hh, matrices, zeros.p,
                            sums.p + thread * G, xs.data(), hs.data());
#pragma omp barrier
    std::vector<const R *> values(cells);
    auto value = [&](int64_t k) {  // v_k of each cell
      for (int64_t cell = 0; cell < cells; cell++)
        values[cell] = k < 0 ? xs[cell] : k == 0 ? hs[cell] : rounds.row(cell, k) + rounds.n(k);
      return values.data();
    };
    const R *d = scan.dgates;
    if (scan.dw_ih) outer<E>(d, G, G, value(rounds.last_x()), I, cells, scan.dw_ih, thread, threads);
    if (scan.dw_hh) outer<E>(d, G, G, value(rounds.last_h()), H, cells, scan.dw_hh, thread, threads);
    for (int64_t k = 1; k <= rounds.count; k++) {
      const int64_t n = rounds.n(k), m = rounds.m(k);
      const R *d_k = scan.norms + rounds.at(k);
      R *left = scan.dextra + rounds.matrix(k), *right = scan.dextra + rounds.right(k);
      if (!rank) {
        outer<E>(d_k, width, n, value(k - 1), m, cells, left, thread, threads);
        continue;
      }
      for (int64_t cell = 0; cell < cells; cell++) values[cell] = d_k + cell * width + 2 * n;
      outer<E>(d_k, width, n, values.data(), rank, cells, left, thread, threads);
      outer<E>(d_k + 2 * n + rank, width, rank, value(k - 1), m, cells, right, thread, threads);
    }
  }
  std::fill_n(scan.dbias, G, R(0));
  for (R *sum = sums.p; sum < sums.p + most * G; sum += G)
    for (int64_t j = 0; j < G; j++) scan.dbias[j] += sum[j];
}
