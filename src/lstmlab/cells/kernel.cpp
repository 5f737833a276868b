// One recurrent layer in one direction on the CPU, forward and backward, called from native.py.
//
// The rows of a batch do not depend on each other. Each thread takes some of them through all time steps, so
// no thread waits for another within the loop, and a step's data stay in the caches of one core.
// Rows are dealt out longest first; a row that has ended drops out of its thread's batch.
//
// Step s of a row is its s-th in the direction of the scan. Cell (b, s) has the number start[b] + s, and the
// rows of gates, cs and norms lie in this order, without padding. x, y, dx and dy are (B, T, ·) with any
// strides.
#include <omp.h>

#ifdef AMX
#include "tiles.h"
#else
#include "gemm.h"
#endif
#include "mogrifier.h"
#include "unpacked.h"

template <class R>
static void cell_forward(const Scan<R> &scan, int64_t b, int64_t s, R *a, R *norms, const R *c_before, R *c,
                         const R *bias) {
  const int64_t H = scan.H;
  R *h = scan.y_at(b, s);
  if (scan.kind == LAYERNORM) normalise(a, norms, H);
  switch (scan.kind) {
    case LSTM: return lstm_forward<LSTM>(a, c_before, c, h, bias, scan.extra, H);
    case PEEPHOLE: return lstm_forward<PEEPHOLE>(a, c_before, c, h, bias, scan.extra, H);
    case LAYERNORM: return lstm_forward<LAYERNORM>(a, c_before, c, h, bias, scan.extra, H);
    case RNN: return rnn_forward(a, h, H);
    case GRU: return gru_forward(a, scan.h_before(b, s), h, H);
    case MINGRU: return mingru_forward(a, scan.h_before(b, s), h, H);
    case MINLSTM: return minlstm_forward(a, scan.h_before(b, s), h, H);
    case SLSTM:
      for (int64_t j = 0; j < H; j += scan.K)
        slstm_forward(a + 4 * j, a + 4 * H + j, c_before + j, c + j, h + j, scan.K, H);
      return;
    case MOGRIFIER: break;  // has loops of its own
  }
}

// dbias and dextra are sums over the cells of a thread; zeros stands in for a dy that is not given.
template <class R>
static void cell_backward(const Scan<R> &scan, int64_t b, int64_t s, int64_t cell, const R *bias,
                          const R *zeros, R *dbias, R *dextra, R *da) {
  const int64_t H = scan.H, G = scan.G(), C = scan.C();
  R *d = scan.dgates + cell * G, *dh = scan.dh + b * H, *dc = scan.dc + b * C;
  const R *a = scan.gates + cell * G, *norms = scan.norms + 4 * cell;
  const R *c = scan.cs + cell * C, *c_before = s ? c - C : scan.c0 + b * C;
  const R *dy = scan.dy ? scan.dy + b * scan.dy_b + scan.time(b, s) * scan.dy_t : zeros;
  auto lstm = [&](auto backward) {
    backward(a, d, norms, c_before, c, dh, dy, dc, bias, scan.extra, dbias, dextra, da, H);
  };
  switch (scan.kind) {
    case LSTM: return lstm(lstm_backward<LSTM, R>);
    case PEEPHOLE: return lstm(lstm_backward<PEEPHOLE, R>);
    case LAYERNORM: return lstm(lstm_backward<LAYERNORM, R>);
    case RNN: return rnn_backward(d, scan.y_at(b, s), dh, dy, dbias, H);
    case GRU: return gru_backward(a, d, scan.h_before(b, s), dh, dy, dbias, H);
    case MINGRU: return mingru_backward(a, d, scan.h_before(b, s), dh, dy, dbias, H);
    case MINLSTM: return minlstm_backward(a, d, scan.h_before(b, s), dh, dy, dbias, H);
    case SLSTM:
      for (int64_t j = 0, K = scan.K; j < H; j += K)
        slstm_backward(a + 4 * j, a + 4 * H + j, d + 4 * j, c_before + j, c + j, dh + j, dy + j, dc + j,
                       dbias + 4 * j, K, H);
      return;
    case MOGRIFIER: break;
  }
}

// The input's products take several steps at once: enough rows for full tiles, few enough for the L2 cache.
static int64_t steps_at_once(size_t rows) { return std::max<int64_t>(1, 96 / int64_t(rows)); }

template <class E, class R> static void forward(const Scan<R> &scan) {
  const int64_t H = scan.H, K = scan.K, C = scan.C(), G = scan.G(), N = scan.N();
  const int most = int(std::min(scan.threads, scan.B));
  const Rows rows(scan);
  const auto parts = scan.parts();
  const Packed<E> W_ih(scan.I, N);
  std::vector<Packed<E>> W_hh;
  for (const Part &p : parts) W_hh.emplace_back(K, p.n);
  const Buffer<R> bias(G);
  scan.bias(bias.p);
#pragma omp parallel num_threads(most)
  {
    const int threads = omp_get_num_threads();  // OMP_THREAD_LIMIT, say, may have left fewer
    pack(W_ih, scan.w_ih, true);
    for (size_t q = 0; q < parts.size(); q++) pack(W_hh[q], scan.w_hh + parts[q].row * K, true);
    const std::vector<int64_t> mine = rows.of(omp_get_thread_num(), threads);
    const int64_t chunk = steps_at_once(mine.size());
    const Buffer<R> unwanted(scan.gates ? 0 : mine.size() * chunk * G);
    auto gates = [&](int64_t i, int64_t s) {
      if (scan.gates) return scan.gates + (rows.start[mine[i]] + s) * G;
      return unwanted.p + (i * chunk + s % chunk) * G;
    };
    std::vector<const R *> from(mine.size() * chunk);
    std::vector<R *> to(from.size());
    size_t active = mine.size();
    for (int64_t s = 0; active; s++) {
      if (s % chunk == 0) {
        int64_t n = 0;
        for (size_t i = 0; i < active; i++)
          for (int64_t u = s; u < std::min(s + chunk, scan.length(mine[i])); u++, n++) {
            from[n] = scan.x_at(mine[i], u);
            to[n] = gates(i, u);
            std::copy(bias.p + N, bias.p + G, to[n] + N);  // the GRU's b_hn
          }
        multiply(from.data(), W_ih, to.data(), n, scan.kind == LAYERNORM ? nullptr : bias.p, false);
      }
      for (size_t q = 0; q < parts.size(); q++) {
        for (size_t i = 0; i < active; i++) {
          from[i] = scan.h_before(mine[i], s) + parts[q].from;
          to[i] = gates(i, s) + parts[q].column;
        }
        multiply<R>(from.data(), W_hh[q], to.data(), active, nullptr, true);
      }
      for (size_t i = 0; i < active; i++) {
        const int64_t b = mine[i], cell = rows.start[b] + s;
        R norms[4], *c = !scan.has_c() ? nullptr : scan.gates ? scan.cs + cell * C : scan.c + b * C;
        const R *c_before = s == 0 ? scan.c0 + b * C : scan.gates ? c - C : c;
        R *norms_at = scan.norms ? scan.norms + 4 * cell : norms;
        cell_forward(scan, b, s, gates(i, s), norms_at, c_before, c, bias.p);
      }
      for (; active && scan.length(mine[active - 1]) == s + 1; active--) {
        const int64_t b = mine[active - 1];
        std::copy_n(scan.y_at(b, s), H, scan.h + b * H);
        if (scan.has_c() && scan.gates) std::copy_n(scan.cs + (rows.start[b] + s) * C, C, scan.c + b * C);
        for (int64_t t = s + 1; t < scan.T; t++)
          std::fill_n(scan.y + b * scan.y_b + t * scan.y_t, H, R(0));
      }
    }
  }
}

// Whether packing the weights would take longer than one step without gradients that uses them as they are:
// for a few rows, and for weights far larger than the L2 cache.
template <class R> static bool uses_unpacked_weights(const Scan<R> &scan) {
  const bool large = scan.N() * (scan.I + scan.K) * sizeof(R) > 4 << 20;
  return scan.T == 1 && !scan.gates && (scan.B < 24 || large);
}

// One step (T = 1) without gradients, with the weights as they are.
template <class R> static void step(const Scan<R> &scan) {
  const int64_t B = scan.B, I = scan.I, H = scan.H, K = scan.K, C = scan.C(), G = scan.G();
  const int64_t shared = scan.kind == GRU ? 2 * H : scan.N();  // gates whose two products are summed
  const R *w_ih = scan.w_ih, *w_hh = scan.w_hh;
  const Buffer<R> gates(B * G), bias(G);
  scan.bias(bias.p);
  if (scan.kind == SLSTM)
    for (int64_t j = 0; j < 4 * H; j++) bias.p[j] = scan.b_ih[scan.head_row(j)] + scan.b_hh[scan.head_row(j)];
  std::vector<const R *> x(B), h(B);
  std::vector<R *> to(B);
  for (int64_t b = 0; b < B; b++) {
    x[b] = scan.x_at(b, 0);
    h[b] = scan.h0 + b * H;
    to[b] = gates.p + b * G;
    if (scan.kind == LAYERNORM) std::fill_n(to[b], G, R(0));
    else std::copy_n(bias.p, G, to[b]);
  }
  // Of large weights, each thread has its part in its own cache.
  const bool large = scan.N() * (I + K) * sizeof(R) > 1 << 18;
#pragma omp parallel num_threads(large ? scan.threads : 1)
  {
    if (scan.kind != SLSTM)
      multiply_unpacked(x.data(), w_ih, I, h.data(), w_hh, K, shared, to.data(), 0, B);
    if (scan.kind == GRU) {
      multiply_unpacked(x.data(), w_ih + 2 * H * I, I, h.data(), w_hh, 0, H, to.data(), 2 * H, B);
      multiply_unpacked(x.data(), w_ih, 0, h.data(), w_hh + 2 * H * H, H, H, to.data(), 3 * H, B);
    }
    for (int64_t j = 0; scan.kind == SLSTM && j < H; j += K) {
      std::vector<const R *> head(h);
      for (const R *&units : head) units += j;
      for (int64_t gate = 0, row = j; gate < 4; gate++, row += H)
        multiply_unpacked(x.data(), w_ih + row * I, I, head.data(), w_hh + row * K, K, K, to.data(),
                          4 * j + gate * K, B);
    }
#pragma omp for schedule(static) nowait
    for (int64_t b = 0; b < B; b++) {
      R norms[4];
      cell_forward(scan, b, 0, to[b], norms, scan.c0 + b * C, scan.c + b * C, bias.p);
      std::copy_n(scan.y_at(b, 0), H, scan.h + b * H);
    }
  }
}

// The steps of some rows, last one first: the gradients of their gates, of x and of the state.
// sums: dbias and dextra · xs, hs: filled in, for the gradients of the weights.
template <class E, class R>
static void backward_rows(const Scan<R> &scan, const Rows &rows, const std::vector<int64_t> &mine,
                          const Packed<E> &W_ih, const std::vector<Packed<E>> &W_hh, const R *bias,
                          const R *zeros, R *sums, const R **xs, const R **hs) {
  const int64_t H = scan.H, G = scan.G(), chunk = steps_at_once(mine.size());
  const auto parts = scan.parts();
  const Buffer<R> da(G);
  std::vector<const R *> from(mine.size() * chunk);
  std::vector<R *> to(from.size());
  size_t active = 0;
  for (int64_t s = scan.length(mine[0]) - 1; s >= 0; s--) {
    while (active < mine.size() && scan.length(mine[active]) > s) active++;
    for (size_t i = 0; i < active; i++) {
      const int64_t b = mine[i], cell = rows.start[b] + s;
      xs[cell] = scan.x_at(b, s);
      hs[cell] = scan.h_before(b, s);
      cell_backward(scan, b, s, cell, bias, zeros, sums, sums + G, da.p);
    }
    for (size_t q = 0; q < parts.size(); q++) {
      for (size_t i = 0; i < active; i++) {
        from[i] = scan.dgates + (rows.start[mine[i]] + s) * G + parts[q].column;
        to[i] = scan.dh + mine[i] * H + parts[q].from;
      }
      multiply<R>(from.data(), W_hh[q], to.data(), active, nullptr, scan.kind == GRU || scan.kind == SLSTM);
    }
    if (scan.dx && s % chunk == 0) {
      int64_t n = 0;
      for (size_t i = 0; i < active; i++)
        for (int64_t u = s; u < std::min(s + chunk, scan.length(mine[i])); u++, n++) {
          from[n] = scan.dgates + (rows.start[mine[i]] + u) * G;
          to[n] = scan.dx + mine[i] * scan.dx_b + scan.time(mine[i], u) * scan.dx_t;
        }
      multiply<R>(from.data(), W_ih, to.data(), n, nullptr, false);
    }
  }
  if (!scan.dx) return;
  for (int64_t b : mine)
    for (int64_t t = scan.length(b); t < scan.T; t++)
      std::fill_n(scan.dx + b * scan.dx_b + t * scan.dx_t, scan.I, R(0));
}

template <class E, class R> static void backward(const Scan<R> &scan) {
  const int64_t H = scan.H, K = scan.K, G = scan.G(), N = scan.N();
  const int64_t X = scan.kind == PEEPHOLE ? 3 * H : scan.kind == LAYERNORM ? 4 * H : 0;
  const int most = int(std::min(scan.threads, scan.B));
  const Rows rows(scan);
  const int64_t cells = rows.start[scan.B];
  const auto parts = scan.parts();
  const Packed<E> W_ih(N, scan.I);
  std::vector<Packed<E>> W_hh;
  for (const Part &p : parts) W_hh.emplace_back(p.n, K);
  const Buffer<R> bias(G), zeros(H), sums(most * (G + X));  // sums: dbias and dextra of each thread
  scan.bias(bias.p);
  std::fill_n(zeros.p, H, R(0));
  std::fill_n(sums.p, most * (G + X), R(0));
  std::vector<const R *> xs(cells), hs(cells);  // of each cell: x, and h before it
#pragma omp parallel num_threads(most)
  {
    if (scan.dx) pack(W_ih, scan.w_ih, false);
    for (size_t q = 0; q < parts.size(); q++) pack(W_hh[q], scan.w_hh + parts[q].row * K, false);
    const int thread = omp_get_thread_num(), threads = omp_get_num_threads();
    R *own_sums = sums.p + thread * (G + X);
    const std::vector<int64_t> mine = rows.of(thread, threads);
    backward_rows(scan, rows, mine, W_ih, W_hh, bias.p, zeros.p, own_sums, xs.data(), hs.data());
#pragma omp barrier
    if (scan.dw_ih)
      outer<E>(scan.dgates, G, N, xs.data(), scan.I, cells, scan.dw_ih, thread, threads);
    std::vector<const R *> units(hs);
    int64_t at = 0;
    for (const Part &p : scan.dw_hh ? parts : std::vector<Part>()) {
      for (const R *&h : units) h += p.from - at;
      at = p.from;
      outer<E>(scan.dgates + p.column, G, p.n, units.data(), K, cells, scan.dw_hh + p.row * K, thread, threads);
    }
  }
  std::fill_n(scan.dbias, G, R(0));
  std::fill_n(scan.dextra, X, R(0));
  for (R *sum = sums.p; sum < sums.p + most * (G + X); sum += G + X) {
    for (int64_t j = 0; j < G; j++) scan.dbias[j] += sum[j];
    for (int64_t j = 0; j < X; j++) scan.dextra[j] += sum[G + j];
  }
}

template <class E, class R> static void head_major_backward(const Scan<R> &scan) {
  const int64_t I = scan.I, H = scan.H, K = scan.K;
  HeadMajor<R> moved(scan);
  const Buffer<R> dw_ih(4 * H * I), dw_hh(4 * H * K), dbias(5 * H);
  moved.scan.dw_ih = scan.dw_ih ? dw_ih.p : nullptr;
  moved.scan.dw_hh = scan.dw_hh ? dw_hh.p : nullptr;
  moved.scan.dbias = dbias.p;
  backward<E>(moved.scan);
  for (int64_t column = 0; column < 4 * H; column++) {
    const int64_t row = scan.head_row(column);
    if (scan.dw_ih) std::copy_n(dw_ih.p + column * I, I, scan.dw_ih + row * I);
    if (scan.dw_hh) std::copy_n(dw_hh.p + column * K, K, scan.dw_hh + row * K);
    scan.dbias[row] = dbias.p[column];
  }
}

// 0, or 1 if a tensor has no address, or 2 if the system gives no tiles.
template <class E, class R> static int forward_each(const Scan<R> *scans, int n) {
  for (const Scan<R> *scan = scans; scan < scans + n; scan++) {
    if (!scan->has_addresses()) return 1;
    if (scan->kind == MOGRIFIER) mogrifier_forward<E>(*scan);
    else if (uses_unpacked_weights(*scan)) step(*scan);
    else forward<E>(scan->kind == SLSTM ? HeadMajor<R>(*scan).scan : *scan);
  }
  return 0;
}
template <class E, class R> static int backward_one(const Scan<R> &scan) {
  if (!scan.has_addresses() || !scan.gates || !scan.dgates || !scan.dh) return 1;
  if (scan.kind == MOGRIFIER) mogrifier_backward<E>(scan);
  else if (scan.kind == SLSTM) head_major_backward<E>(scan);
  else backward<E>(scan);
  return 0;
}

extern "C" {
int64_t size_of_scan() { return sizeof(Scan<float>); }
// n scans, one after the other
#ifdef AMX
int forward_amx(const Scan<float> *scans, int n) { return allow_tiles() ? forward_each<Pair>(scans, n) : 2; }
int backward_amx(const Scan<float> *scan, int) { return allow_tiles() ? backward_one<Pair>(*scan) : 2; }
#else
int forward_f32(const Scan<float> *scans, int n) { return forward_each<float>(scans, n); }
int forward_f64(const Scan<double> *scans, int n) { return forward_each<double>(scans, n); }
int backward_f32(const Scan<float> *scan, int) { return backward_one<float>(*scan); }
int backward_f64(const Scan<double> *scan, int) { return backward_one<double>(*scan); }
#ifdef __AVX512BF16__
int forward_bf16(const Scan<float> *scans, int n) { return forward_each<Pair>(scans, n); }
int backward_bf16(const Scan<float> *scan, int) { return backward_one<Pair>(*scan); }
#endif
#endif
}
