// One recurrent layer in one direction on the CPU, forward and backward, called from native.py.
//
// The rows of a batch do not depend on each other: each thread takes some of them through all time steps, so
// that no thread waits for another within the loop. What a step reads and writes then stays in the
// caches of one core. Rows are dealt out longest first; a row that has ended drops out of its thread's batch.
//
// Step s of a row is its s-th in the direction of the scan. Cell (b, s) is number start[b] + s: the rows of
// gates, cs and norms lie so, without padding. x, y, dx and dy are (B, T, ·) with any strides.
#include <cmath>
#include <numeric>
#include <omp.h>
#include <vector>

#include "gemm.h"

enum Kind : int64_t { LSTM, PEEPHOLE, LAYERNORM, RNN, GRU };

// Rows [row, row + n) of W_hh give columns [column, column + n) of the gates.
struct Part {
  int64_t row, column, n;
};

// Filled by native.py, where it is called Arguments. A row of gates has G columns: i, f, g, o; in the GRU r, z, n_x, n_h, since the reset gate
// comes between the input's and the hidden part of n.
template <class R> struct Scan {
  Kind kind;
  int64_t B, T, I, H, reverse, threads;
  const int64_t *lengths;  // (B,); null: T
  const R *x;
  int64_t x_b, x_t;
  const R *h0, *c0;      // (B, H)
  const R *w_ih, *w_hh, *b_ih, *b_hh;
  const R *extra;        // peephole: w_ci, w_cf, w_co; layer norm: gain
  R *y;
  int64_t y_b, y_t;
  R *h, *c;      // final state (B, H)
  R *gates;      // (cells, G): activated, layer norm: normalised; null: not wanted
  R *cs;         // (cells, H)
  R *norms;      // (cells, 4): layer norm's 1/σ of each gate
  const R *dy;   // null: zeros
  int64_t dy_b, dy_t;
  R *dx;         // null: not wanted
  int64_t dx_b, dx_t;
  R *dh, *dc;    // (B, H): of the final state on entry, of the first one on return
  R *dw_ih, *dw_hh, *dbias, *dextra;
  R *dgates;     // (cells, G): of the pre-activations; may be gates, which are then overwritten

  bool has_addresses() const { return x && h0 && (c0 || !has_c()) && w_ih && w_hh && b_ih && b_hh && y; }
  bool has_c() const { return kind <= LAYERNORM; }
  int64_t G() const { return kind == RNN ? H : 4 * H; }
  int64_t N() const { return kind == GRU ? 3 * H : G(); }  // rows of W_ih and of W_hh
  std::vector<Part> parts() const {
    return kind == GRU ? std::vector<Part>{{0, 0, 2 * H}, {2 * H, 3 * H, H}} : std::vector<Part>{{0, 0, G()}};
  }
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

// e^x = s + s·p, s a power of two, p = e^r − 1 with |r| ≤ ln(2)/2: the parts, so that tanh need not subtract 1 from
// a rounded sum. Relative error 1e-7.
static inline float exp_parts(float x, float &s) {
  x = x > 87.0f ? 87.0f : x;
  x = x < -87.0f ? -87.0f : x;
  const float n = std::rint(x * 1.44269504f);
  const float r = x - n * 0.693359375f + n * 2.12194440e-4f;  // ln 2 in two parts
  const uint32_t bits = uint32_t(int32_t(n) + 127) << 23;
  std::memcpy(&s, &bits, sizeof s);
  const float p = ((((r * (1 / 5040.f) + 1 / 720.f) * r + 1 / 120.f) * r + 1 / 24.f) * r + 1 / 6.f) * r + 0.5f;
  return r + r * r * p;
}
static inline float sigmoid(float x) {
  float s, p = exp_parts(-x, s);
  return 1 / (1 + (s + s * p));
}
static inline float tanh(float x) {
  float s, p = exp_parts(2 * x, s), e = s * p + (s - 1);  // e^2x − 1
  return e / (e + 2);
}
static inline double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

// â = (a − mean) / σ of each gate; norms[gate] = 1/σ.
template <class R> static void normalise(R *a, R *norms, int64_t H) {
  for (int64_t gate = 0; gate < 4; gate++, a += H) {
    R sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < H; j++) sum += a[j];
    const R mean = sum / H;
#pragma omp simd reduction(+ : squares)
    for (int64_t j = 0; j < H; j++) squares += (a[j] - mean) * (a[j] - mean);
    const R norm = norms[gate] = 1 / std::sqrt(squares / H + R(1e-5));
#pragma omp simd
    for (int64_t j = 0; j < H; j++) a[j] = (a[j] - mean) * norm;
  }
}

// a: in (·, G) pre-activations, out what backward needs. c may be c_before.
template <Kind KIND, class R>
static void lstm_forward(R *a, const R *c_before, R *c, R *h, const R *bias, const R *extra, int64_t H) {
#pragma omp simd
  for (int64_t j = 0; j < H; j++) {
    R i = a[j], f = a[H + j], g = a[2 * H + j], o = a[3 * H + j];
    if (KIND == LAYERNORM) {
      i = extra[j] * i + bias[j];
      f = extra[H + j] * f + bias[H + j];
      g = extra[2 * H + j] * g + bias[2 * H + j];
      o = extra[3 * H + j] * o + bias[3 * H + j];
    }
    if (KIND == PEEPHOLE) i += extra[j] * c_before[j], f += extra[H + j] * c_before[j];
    i = sigmoid(i), f = sigmoid(f), g = tanh(g);
    const R c_j = f * c_before[j] + i * g;
    if (KIND == PEEPHOLE) o += extra[2 * H + j] * c_j;
    o = sigmoid(o);
    c[j] = c_j;
    h[j] = o * tanh(c_j);
    if (KIND != LAYERNORM) a[j] = i, a[H + j] = f, a[2 * H + j] = g, a[3 * H + j] = o;
  }
}

// a: what forward left, d: the pre-activations' gradient, may be a. dh: in of h', dc: in of c', out of c.
template <Kind KIND, class R>
static void lstm_backward(const R *a, R *d, const R *norms, const R *c_before, const R *c, const R *dh, const R *dy, R *dc, const R *bias,
                          const R *extra, R *dbias, R *dextra, R *da, int64_t H) {
  R *to = KIND == LAYERNORM ? da : d;
#pragma omp simd
  for (int64_t j = 0; j < H; j++) {
    R i = a[j], f = a[H + j], g = a[2 * H + j], o = a[3 * H + j];
    const R n_i = i, n_f = f, n_g = g, n_o = o;  // layer norm: normalised
    if (KIND == LAYERNORM) {
      i = sigmoid(extra[j] * i + bias[j]);
      f = sigmoid(extra[H + j] * f + bias[H + j]);
      g = tanh(extra[2 * H + j] * g + bias[2 * H + j]);
      o = sigmoid(extra[3 * H + j] * o + bias[3 * H + j]);
    }
    const R tanh_c = tanh(c[j]), dh_j = dh[j] + dy[j];
    R d_o = dh_j * tanh_c * o * (1 - o);
    R dc_j = dc[j] + dh_j * o * (1 - tanh_c * tanh_c);
    if (KIND == PEEPHOLE) dc_j += d_o * extra[2 * H + j], dextra[2 * H + j] += d_o * c[j];
    R d_i = dc_j * g * i * (1 - i), d_f = dc_j * c_before[j] * f * (1 - f), d_g = dc_j * i * (1 - g * g);
    dc[j] = dc_j * f;
    if (KIND == PEEPHOLE) {
      dc[j] += d_i * extra[j] + d_f * extra[H + j];
      dextra[j] += d_i * c_before[j], dextra[H + j] += d_f * c_before[j];
    }
    dbias[j] += d_i, dbias[H + j] += d_f, dbias[2 * H + j] += d_g, dbias[3 * H + j] += d_o;
    if (KIND == LAYERNORM) {
      dextra[j] += d_i * n_i, dextra[H + j] += d_f * n_f, dextra[2 * H + j] += d_g * n_g, dextra[3 * H + j] += d_o * n_o;
      d_i *= extra[j], d_f *= extra[H + j], d_g *= extra[2 * H + j], d_o *= extra[3 * H + j];
    }
    to[j] = d_i, to[H + j] = d_f, to[2 * H + j] = d_g, to[3 * H + j] = d_o;
  }
  if (KIND == LAYERNORM)  // d a = (d â − mean(d â) − â mean(d â ⊙ â)) / σ
    for (int64_t gate = 0; gate < 4; gate++, a += H, d += H, da += H) {
      R sum = 0, dot = 0;
#pragma omp simd reduction(+ : sum, dot)
      for (int64_t j = 0; j < H; j++) sum += da[j], dot += da[j] * a[j];
      const R mean = sum / H, slope = dot / H, norm = norms[gate];
#pragma omp simd
      for (int64_t j = 0; j < H; j++) d[j] = (da[j] - mean - a[j] * slope) * norm;
    }
}

template <class R> static void rnn_forward(const R *a, R *h, int64_t H) {
#pragma omp simd
  for (int64_t j = 0; j < H; j++) h[j] = tanh(a[j]);
}
template <class R> static void rnn_backward(R *d, const R *h, const R *dh, const R *dy, R *dbias, int64_t H) {
#pragma omp simd
  for (int64_t j = 0; j < H; j++) dbias[j] += d[j] = (dh[j] + dy[j]) * (1 - h[j] * h[j]);
}

template <class R> static void gru_forward(R *a, const R *h_before, R *h, int64_t H) {
#pragma omp simd
  for (int64_t j = 0; j < H; j++) {
    const R r = sigmoid(a[j]), z = sigmoid(a[H + j]), n = tanh(a[2 * H + j] + r * a[3 * H + j]);
    h[j] = (1 - z) * n + z * h_before[j];
    a[j] = r, a[H + j] = z, a[2 * H + j] = n;
  }
}
// dh: in of h', out of h as far as it is reached without the gates.
template <class R> static void gru_backward(const R *a, R *d, const R *h_before, R *dh, const R *dy, R *dbias, int64_t H) {
#pragma omp simd
  for (int64_t j = 0; j < H; j++) {
    const R r = a[j], z = a[H + j], n = a[2 * H + j], dh_j = dh[j] + dy[j];
    const R d_n = dh_j * (1 - z) * (1 - n * n), d_z = dh_j * (h_before[j] - n) * z * (1 - z);
    const R d_r = d_n * a[3 * H + j] * r * (1 - r), d_nh = d_n * r;
    d[j] = d_r, d[H + j] = d_z, d[2 * H + j] = d_n, d[3 * H + j] = d_nh;
    dbias[j] += d_r, dbias[H + j] += d_z, dbias[2 * H + j] += d_n, dbias[3 * H + j] += d_nh;
    dh[j] = dh_j * z;
  }
}

template <class R> static void cell_forward(const Scan<R> &g, int64_t b, int64_t s, R *a, R *norms, const R *c_before, R *c, const R *bias) {
  R *h = g.y_at(b, s);
  if (g.kind == LAYERNORM) normalise(a, norms, g.H);
  switch (g.kind) {
    case LSTM: return lstm_forward<LSTM>(a, c_before, c, h, bias, g.extra, g.H);
    case PEEPHOLE: return lstm_forward<PEEPHOLE>(a, c_before, c, h, bias, g.extra, g.H);
    case LAYERNORM: return lstm_forward<LAYERNORM>(a, c_before, c, h, bias, g.extra, g.H);
    case RNN: return rnn_forward(a, h, g.H);
    case GRU: return gru_forward(a, g.h_before(b, s), h, g.H);
  }
}

// The order in which rows are dealt out, and where the cells of each one start.
struct Rows {
  std::vector<int64_t> order, start;
  template <class R> explicit Rows(const Scan<R> &g) : order(g.B), start(g.B + 1) {
    for (int64_t b = 0; b < g.B; b++) start[b + 1] = start[b] + g.length(b);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int64_t p, int64_t q) { return g.length(p) > g.length(q); });
  }
  std::vector<int64_t> of(int thread, int threads) const {
    std::vector<int64_t> mine;
    for (size_t i = thread; i < order.size(); i += threads) mine.push_back(order[i]);
    return mine;
  }
};

// The input's products take several steps at once: enough rows for full tiles, few enough to stay in the L2 cache.
static int64_t steps_at_once(size_t rows) { return std::max<int64_t>(1, 96 / int64_t(rows)); }

template <class E, class R> static void forward(const Scan<R> &g) {
  const int64_t H = g.H, G = g.G(), N = g.N();
  const int most = int(std::min(g.threads, g.B));
  const Rows rows(g);
  const auto parts = g.parts();
  const Packed<E> W_ih(g.I, N);
  std::vector<Packed<E>> W_hh;
  for (const Part &p : parts) W_hh.emplace_back(H, p.n);
  const Buffer<R> bias(G);
  g.bias(bias.p);
#pragma omp parallel num_threads(most)
  {
    const int threads = omp_get_num_threads();  // OMP_THREAD_LIMIT, say, may have left fewer
    pack(W_ih, g.w_ih, true);
    for (size_t q = 0; q < parts.size(); q++) pack(W_hh[q], g.w_hh + parts[q].row * H, true);
    const std::vector<int64_t> mine = rows.of(omp_get_thread_num(), threads);
    const int64_t chunk = steps_at_once(mine.size());
    const Buffer<R> unwanted(g.gates ? 0 : mine.size() * chunk * G);
    auto gates = [&](int64_t i, int64_t s) {
      return g.gates ? g.gates + (rows.start[mine[i]] + s) * G : unwanted.p + (i * chunk + s % chunk) * G;
    };
    std::vector<const R *> from(mine.size() * chunk);
    std::vector<R *> to(from.size());
    size_t active = mine.size();
    for (int64_t s = 0; active; s++) {
      if (s % chunk == 0) {
        int64_t n = 0;
        for (size_t i = 0; i < active; i++)
          for (int64_t u = s; u < std::min(s + chunk, g.length(mine[i])); u++, n++) {
            from[n] = g.x_at(mine[i], u), to[n] = gates(i, u);
            std::copy(bias.p + N, bias.p + G, to[n] + N);  // the GRU's b_hn
          }
        multiply(from.data(), W_ih, to.data(), n, g.kind == LAYERNORM ? nullptr : bias.p, false);
      }
      for (size_t q = 0; q < parts.size(); q++) {
        for (size_t i = 0; i < active; i++) from[i] = g.h_before(mine[i], s), to[i] = gates(i, s) + parts[q].column;
        multiply<R>(from.data(), W_hh[q], to.data(), active, nullptr, true);
      }
      for (size_t i = 0; i < active; i++) {
        const int64_t b = mine[i], cell = rows.start[b] + s;
        R norms[4], *c = !g.has_c() ? nullptr : g.gates ? g.cs + cell * H : g.c + b * H;
        const R *c_before = s == 0 ? g.c0 + b * H : g.gates ? c - H : c;
        cell_forward(g, b, s, gates(i, s), g.norms ? g.norms + 4 * cell : norms, c_before, c, bias.p);
      }
      for (; active && g.length(mine[active - 1]) == s + 1; active--) {
        const int64_t b = mine[active - 1];
        std::copy_n(g.y_at(b, s), H, g.h + b * H);
        if (g.has_c() && g.gates) std::copy_n(g.cs + (rows.start[b] + s) * H, H, g.c + b * H);
        for (int64_t t = s + 1; t < g.T; t++) std::fill_n(g.y + b * g.y_b + t * g.y_t, H, R(0));
      }
    }
  }
}

// One step (T = 1) without gradients: packing the weights would take longer than using them.
template <class R> static void step(const Scan<R> &g) {
  const int64_t H = g.H, G = g.G(), shared = g.kind == GRU ? 2 * H : G;
  const Buffer<R> gates(g.B * G), bias(G);
  g.bias(bias.p);
  std::vector<const R *> x(g.B), h(g.B);
  std::vector<R *> to(g.B);
  for (int64_t b = 0; b < g.B; b++) {
    x[b] = g.x_at(b, 0), h[b] = g.h0 + b * H, to[b] = gates.p + b * G;
    if (g.kind == LAYERNORM) std::fill_n(to[b], G, R(0));
    else std::copy_n(bias.p, G, to[b]);
  }
  const bool large = g.N() * (g.I + H) * sizeof(R) > 1 << 18;  // each thread then has its part in its own cache
#pragma omp parallel num_threads(large ? g.threads : 1)
  {
    multiply_unpacked(x.data(), g.w_ih, g.I, h.data(), g.w_hh, H, shared, to.data(), 0, g.B);
    if (g.kind == GRU) {
      multiply_unpacked(x.data(), g.w_ih + 2 * H * g.I, g.I, h.data(), g.w_hh, 0, H, to.data(), 2 * H, g.B);
      multiply_unpacked(x.data(), g.w_ih, 0, h.data(), g.w_hh + 2 * H * H, H, H, to.data(), 3 * H, g.B);
    }
#pragma omp for schedule(static) nowait
    for (int64_t b = 0; b < g.B; b++) {
      R norms[4];
      cell_forward(g, b, 0, to[b], norms, g.c0 + b * H, g.c + b * H, bias.p);
      std::copy_n(g.y_at(b, 0), H, g.h + b * H);
    }
  }
}

template <class E, class R> static void backward(const Scan<R> &g) {
  const int64_t H = g.H, G = g.G(), N = g.N(), X = g.kind == PEEPHOLE ? 3 * H : g.kind == LAYERNORM ? 4 * H : 0;
  const int most = int(std::min(g.threads, g.B));
  const Rows rows(g);
  const int64_t cells = rows.start[g.B];
  const auto parts = g.parts();
  const Packed<E> W_ih(N, g.I);
  std::vector<Packed<E>> W_hh;
  for (const Part &p : parts) W_hh.emplace_back(p.n, H);
  const Buffer<R> bias(G), zeros(H), sums(most * (G + X));  // sums: dbias and dextra of each thread
  g.bias(bias.p);
  std::fill_n(zeros.p, H, R(0));
  std::fill_n(sums.p, most * (G + X), R(0));
  std::vector<const R *> xs(cells), hs(cells);  // of each cell: x, and h before it
#pragma omp parallel num_threads(most)
  {
    if (g.dx) pack(W_ih, g.w_ih, false);
    for (size_t q = 0; q < parts.size(); q++) pack(W_hh[q], g.w_hh + parts[q].row * H, false);
    const int thread = omp_get_thread_num(), threads = omp_get_num_threads();
    const std::vector<int64_t> mine = rows.of(thread, threads);
    const int64_t chunk = steps_at_once(mine.size());
    R *dbias = sums.p + thread * (G + X), *dextra = dbias + G;
    const Buffer<R> da(G);
    std::vector<const R *> from(mine.size() * chunk);
    std::vector<R *> to(from.size());
    size_t active = 0;
    for (int64_t s = g.length(mine[0]) - 1; s >= 0; s--) {
      while (active < mine.size() && g.length(mine[active]) > s) active++;
      for (size_t i = 0; i < active; i++) {
        const int64_t b = mine[i], cell = rows.start[b] + s;
        xs[cell] = g.x_at(b, s), hs[cell] = g.h_before(b, s);
        R *d = g.dgates + cell * G, *dh = g.dh + b * H, *dc = g.dc + b * H;
        const R *a = g.gates + cell * G;
        const R *c = g.cs + cell * H, *c_before = s ? c - H : g.c0 + b * H, *norms = g.norms + 4 * cell;
        const R *dy = g.dy ? g.dy + b * g.dy_b + g.time(b, s) * g.dy_t : zeros.p;
        auto lstm = [&](auto backward) {
          backward(a, d, norms, c_before, c, dh, dy, dc, bias.p, g.extra, dbias, dextra, da.p, H);
        };
        switch (g.kind) {
          case LSTM: lstm(lstm_backward<LSTM, R>); break;
          case PEEPHOLE: lstm(lstm_backward<PEEPHOLE, R>); break;
          case LAYERNORM: lstm(lstm_backward<LAYERNORM, R>); break;
          case RNN: rnn_backward(d, g.y_at(b, s), dh, dy, dbias, H); break;
          case GRU: gru_backward(a, d, hs[cell], dh, dy, dbias, H); break;
        }
      }
      for (size_t q = 0; q < parts.size(); q++) {
        for (size_t i = 0; i < active; i++)
          from[i] = g.dgates + (rows.start[mine[i]] + s) * G + parts[q].column, to[i] = g.dh + mine[i] * H;
        multiply<R>(from.data(), W_hh[q], to.data(), active, nullptr, g.kind == GRU);
      }
      if (g.dx && s % chunk == 0) {
        int64_t n = 0;
        for (size_t i = 0; i < active; i++)
          for (int64_t u = s; u < std::min(s + chunk, g.length(mine[i])); u++, n++) {
            from[n] = g.dgates + (rows.start[mine[i]] + u) * G;
            to[n] = g.dx + mine[i] * g.dx_b + g.time(mine[i], u) * g.dx_t;
          }
        multiply<R>(from.data(), W_ih, to.data(), n, nullptr, false);
      }
    }
    for (int64_t b : mine)
      for (int64_t t = g.length(b); g.dx && t < g.T; t++) std::fill_n(g.dx + b * g.dx_b + t * g.dx_t, g.I, R(0));
#pragma omp barrier
    if (g.dw_ih) outer<E>(g.dgates, G, N, xs.data(), g.I, cells, g.dw_ih, thread, threads);
    for (const Part &p : parts)
      if (g.dw_hh) outer<E>(g.dgates + p.column, G, p.n, hs.data(), H, cells, g.dw_hh + p.row * H, thread, threads);
  }
  std::fill_n(g.dbias, G, R(0));
  std::fill_n(g.dextra, X, R(0));
  for (R *sum = sums.p; sum < sums.p + most * (G + X); sum += G + X) {
    for (int64_t j = 0; j < G; j++) g.dbias[j] += sum[j];
    for (int64_t j = 0; j < X; j++) g.dextra[j] += sum[G + j];
  }
}

// 0, or 1 if a tensor has no address.
template <class E, class R> static int forward_each(const Scan<R> *g, int n) {
  for (const Scan<R> *end = g + n; g < end; g++) {
    if (!g->has_addresses()) return 1;
    g->T == 1 && !g->gates ? step(*g) : forward<E>(*g);
  }
  return 0;
}
template <class E, class R> static int backward_one(const Scan<R> *g) {
  if (!g->has_addresses() || !g->gates || !g->dgates || !g->dh) return 1;
  backward<E>(*g);
  return 0;
}

extern "C" {  // n scans, one after the other
int forward_f32(const Scan<float> *g, int n) { return forward_each<float>(g, n); }
int forward_f64(const Scan<double> *g, int n) { return forward_each<double>(g, n); }
int backward_f32(const Scan<float> *g, int) { return backward_one<float>(g); }
int backward_f64(const Scan<double> *g, int) { return backward_one<double>(g); }
#ifdef __AVX512BF16__
int forward_bf16(const Scan<float> *g, int n) { return forward_each<Pair>(g, n); }
int backward_bf16(const Scan<float> *g, int) { return backward_one<Pair>(g); }
#endif
}
