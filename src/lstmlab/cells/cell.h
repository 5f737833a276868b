// The equations of one cell in one step, forward and backward, as in scratch.py. They begin at the gates'
// pre-activations: the products come before. All loops are over the H units.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

using std::int64_t;

// The numbers are those of NUMBERS in native.py.
enum Kind : int64_t { LSTM, PEEPHOLE, LAYERNORM, RNN, GRU, MINGRU, MINLSTM, SLSTM, MOGRIFIER };

// e^x = s + s·p, where s is a power of two and p = e^r − 1 with |r| ≤ ln(2)/2. Both parts are returned, so
// that tanh need not subtract 1 from a rounded sum. Relative error 1e-7.
static inline float exp_parts(float x, float &s) {
  x = x > 87.0f ? 87.0f : x;
  x = x < -87.0f ? -87.0f : x;
  const float n = std::rint(x * 1.44269504f);
  const float r = x - n * 0.693359375f + n * 2.12194440e-4f;  // ln 2 in two parts
  const uint32_t bits = uint32_t(int32_t(n) + 127) << 23;
  std::memcpy(&s, &bits, sizeof s);
  float p = ((r * (1 / 5040.f) + 1 / 720.f) * r + 1 / 120.f) * r + 1 / 24.f;
  p = (p * r + 1 / 6.f) * r + 0.5f;
  return r + r * r * p;
}
static inline float exponential(float x) {
  float s, p = exp_parts(x, s);
  return s + s * p;
}
static inline float sigmoid(float x) {
  float s, p = exp_parts(-x, s);
  return 1 / (1 + (s + s * p));
}
static inline float tanh(float x) {
  float s, p = exp_parts(2 * x, s), e = s * p + (s - 1);  // e^2x − 1
  return e / (e + 2);
}
static inline double exponential(double x) { return std::exp(x); }
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

// The gradient of a from da, that of â, gate by gate: d = (da − mean(da) − â mean(da ⊙ â)) / σ.
template <class R> static void normalise_backward(const R *a, R *d, const R *da, const R *norms, int64_t H) {
  for (int64_t gate = 0; gate < 4; gate++, a += H, d += H, da += H) {
    R sum = 0, dot = 0;
#pragma omp simd reduction(+ : sum, dot)
    for (int64_t j = 0; j < H; j++) {
      sum += da[j];
      dot += da[j] * a[j];
    }
    const R mean = sum / H, slope = dot / H, norm = norms[gate];
#pragma omp simd
    for (int64_t j = 0; j < H; j++) d[j] = (da[j] - mean - a[j] * slope) * norm;
  }
}

// a (4H,): pre-activations on entry, what backward needs on return. c may be c_before.
template <Kind KIND, class R>
static void lstm_forward(R *a, const R *c_before, R *c, R *h, const R *bias, const R *extra, int64_t H) {
#pragma omp simd
  for (int64_t j = 0; j < H; j++) {
    R i = a[j];
    R f = a[H + j];
    R g = a[2 * H + j];
    R o = a[3 * H + j];
    if (KIND == LAYERNORM) {
      i = extra[j] * i + bias[j];
      f = extra[H + j] * f + bias[H + j];
      g = extra[2 * H + j] * g + bias[2 * H + j];
      o = extra[3 * H + j] * o + bias[3 * H + j];
    }
    if (KIND == PEEPHOLE) {
      i += extra[j] * c_before[j];
      f += extra[H + j] * c_before[j];
    }
    i = sigmoid(i);
    f = sigmoid(f);
    g = tanh(g);
    const R c_j = f * c_before[j] + i * g;
    if (KIND == PEEPHOLE) o += extra[2 * H + j] * c_j;
    o = sigmoid(o);
    c[j] = c_j;
    h[j] = o * tanh(c_j);
    if (KIND != LAYERNORM) {
      a[j] = i;
      a[H + j] = f;
      a[2 * H + j] = g;
      a[3 * H + j] = o;
    }
  }
}

// a: what forward left. d: the gradient of the pre-activations; may be a. dh: of h'. dc: of c' on entry, of c
// on return. da: memory for layer norm, (4H,).
template <Kind KIND, class R>
static void lstm_backward(const R *a, R *d, const R *norms, const R *c_before, const R *c, const R *dh,
                          const R *dy, R *dc, const R *bias, const R *extra, R *dbias, R *dextra, R *da,
                          int64_t H) {
  R *to = KIND == LAYERNORM ? da : d;
#pragma omp simd
  for (int64_t j = 0; j < H; j++) {
    R i = a[j];
    R f = a[H + j];
    R g = a[2 * H + j];
    R o = a[3 * H + j];
    const R n_i = i, n_f = f, n_g = g, n_o = o;  // normalised, if there is a layer norm
    if (KIND == LAYERNORM) {
      i = sigmoid(extra[j] * i + bias[j]);
      f = sigmoid(extra[H + j] * f + bias[H + j]);
      g = tanh(extra[2 * H + j] * g + bias[2 * H + j]);
      o = sigmoid(extra[3 * H + j] * o + bias[3 * H + j]);
    }
    const R tanh_c = tanh(c[j]);
    const R dh_j = dh[j] + dy[j];
    R d_o = dh_j * tanh_c * o * (1 - o);
    R dc_j = dc[j] + dh_j * o * (1 - tanh_c * tanh_c);
    if (KIND == PEEPHOLE) {
      dc_j += d_o * extra[2 * H + j];
      dextra[2 * H + j] += d_o * c[j];
    }
    R d_i = dc_j * g * i * (1 - i);
    R d_f = dc_j * c_before[j] * f * (1 - f);
    R d_g = dc_j * i * (1 - g * g);
    dc[j] = dc_j * f;
    if (KIND == PEEPHOLE) {
      dc[j] += d_i * extra[j] + d_f * extra[H + j];
      dextra[j] += d_i * c_before[j];
      dextra[H + j] += d_f * c_before[j];
    }
    dbias[j] += d_i;
    dbias[H + j] += d_f;
    dbias[2 * H + j] += d_g;
    dbias[3 * H + j] += d_o;
    if (KIND == LAYERNORM) {
      dextra[j] += d_i * n_i;
      dextra[H + j] += d_f * n_f;
      dextra[2 * H + j] += d_g * n_g;
      dextra[3 * H + j] += d_o * n_o;
      d_i *= extra[j];
      d_f *= extra[H + j];
      d_g *= extra[2 * H + j];
      d_o *= extra[3 * H + j];
    }
    to[j] = d_i;
    to[H + j] = d_f;
    to[2 * H + j] = d_g;
    to[3 * H + j] = d_o;
  }
  if (KIND == LAYERNORM) normalise_backward(a, d, da, norms, H);
}

template <class R> static void rnn_forward(const R *a, R *h, int64_t H) {
#pragma omp simd
  for (int64_t j = 0; j < H; j++) h[j] = tanh(a[j]);
}

template <class R> static void rnn_backward(R *d, const R *h, const R *dh, const R *dy, R *dbias, int64_t H) {
#pragma omp simd
  for (int64_t j = 0; j < H; j++) {
    d[j] = (dh[j] + dy[j]) * (1 - h[j] * h[j]);
    dbias[j] += d[j];
  }
}

template <class R> static void gru_forward(R *a, const R *h_before, R *h, int64_t H) {
#pragma omp simd
  for (int64_t j = 0; j < H; j++) {
    const R r = sigmoid(a[j]);
    const R z = sigmoid(a[H + j]);
    const R n = tanh(a[2 * H + j] + r * a[3 * H + j]);
    h[j] = (1 - z) * n + z * h_before[j];
    a[j] = r;
    a[H + j] = z;
    a[2 * H + j] = n;
  }
}

// dh: of h' on entry; on return of h, as far as h is reached without the gates.
template <class R>
static void gru_backward(const R *a, R *d, const R *h_before, R *dh, const R *dy, R *dbias, int64_t H) {
#pragma omp simd
  for (int64_t j = 0; j < H; j++) {
    const R r = a[j];
    const R z = a[H + j];
    const R n = a[2 * H + j];
    const R dh_j = dh[j] + dy[j];
    const R d_n = dh_j * (1 - z) * (1 - n * n);
    const R d_z = dh_j * (h_before[j] - n) * z * (1 - z);
    const R d_r = d_n * a[3 * H + j] * r * (1 - r);
    const R d_nh = d_n * r;
    d[j] = d_r;
    d[H + j] = d_z;
    d[2 * H + j] = d_n;
    d[3 * H + j] = d_nh;
    dbias[j] += d_r;
    dbias[H + j] += d_z;
    dbias[2 * H + j] += d_n;
    dbias[3 * H + j] += d_nh;
    dh[j] = dh_j * z;
  }
}
