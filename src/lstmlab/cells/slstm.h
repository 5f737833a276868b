// The sLSTM (Beck et al. 2024) in one step of one head of K units, forward and backward, as in modern.py. c, n and
// m lie H apart. A unit with n = 0 has not started.
#pragma once
#include "cell.h"

// log(1 + e) for 0 ≤ e ≤ 1, as 2 artanh(e / (2 + e))
static inline float log_of_one_and(float e) {
  const float r = e / (2 + e), r2 = r * r;
  float p = ((r2 * (1 / 13.f) + 1 / 11.f) * r2 + 1 / 9.f) * r2 + 1 / 7.f;
  p = ((p * r2 + 1 / 5.f) * r2 + 1 / 3.f) * r2;
  return 2 * (r + r * p);
}
static inline double log_of_one_and(double e) { return std::log1p(e); }

// a (4K,): the pre-activations of i, f, g and o; on return i and f, stabilised, g and o. slope: ∂ log σ(f̃) / ∂f̃.
// c may be c_before.
template <class R>
static void slstm_forward(R *a, R *slope, const R *c_before, R *c, R *h, int64_t K, int64_t H) {
#pragma omp simd
  for (int64_t j = 0; j < K; j++) {
    const R i_a = a[j];
    const R f_a = a[K + j];
    const R g = tanh(a[2 * K + j]);
    const R o = sigmoid(a[3 * K + j]);
    const R n_before = c_before[H + j];
    const R e = exponential(f_a > 0 ? -f_a : f_a);  // e^−|f̃|
    const R log_f = (f_a < 0 ? f_a : 0) - log_of_one_and(e);
    const R past = log_f + c_before[2 * H + j];
    const R m = n_before == 0 || i_a >= past ? i_a : past;
    const R i = exponential(i_a - m);
    const R f = n_before == 0 ? 0 : exponential(past - m);
    const R c_j = f * c_before[j] + i * g;
    const R n = f * n_before + i;
    c[j] = c_j;
    c[H + j] = n;
    c[2 * H + j] = m;
    h[j] = o * c_j / n;
    a[j] = i;
    a[K + j] = f;
    a[2 * K + j] = g;
    a[3 * K + j] = o;
    slope[j] = (f_a > 0 ? e : 1) / (1 + e);
  }
}

// dc: of c', n' and m' on entry, of c, n and m on return. dh is zero on return: h is reached by the gates alone.
template <class R>
static void slstm_backward(const R *a, const R *slope, R *d, const R *c_before, const R *c, R *dh, const R *dy,
                           R *dc, R *dbias, int64_t K, int64_t H) {
#pragma omp simd
  for (int64_t j = 0; j < K; j++) {
    const R i = a[j];
    const R f = a[K + j];
    const R g = a[2 * K + j];
    const R o = a[3 * K + j];
    const R scale = 1 / c[H + j];
    const R dh_j = (dh[j] + dy[j]) * scale;
    const R dc_j = dc[j] + dh_j * o;
    const R dn_j = dc[H + j] - dh_j * o * c[j] * scale;
    const R through_i = (dc_j * g + dn_j) * i;
    const R through_f = (dc_j * c_before[j] + dn_j * c_before[H + j]) * f;
    const R dm = dc[2 * H + j] - through_i - through_f;
    const bool by_input = i == 1;  // m' = ĩ, and else m' = log f + m
    const R d_past = through_f + (by_input ? 0 : dm);
    const R d_i = through_i + (by_input ? dm : 0);
    const R d_f = d_past * slope[j];
    const R d_g = dc_j * i * (1 - g * g);
    const R d_o = dh_j * c[j] * o * (1 - o);
    dc[j] = dc_j * f;
    dc[H + j] = dn_j * f;
    dc[2 * H + j] = d_past;
    dh[j] = 0;
    d[j] = d_i;
    d[K + j] = d_f;
    d[2 * K + j] = d_g;
    d[3 * K + j] = d_o;
    dbias[j] += d_i;
    dbias[K + j] += d_f;
    dbias[2 * K + j] += d_g;
    dbias[3 * K + j] += d_o;
  }
}
