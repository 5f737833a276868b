// minGRU and minLSTM (Feng et al. 2024) in one step, forward and backward, as in modern.py. No gate sees h, so
// the only path from step to step is h' = (1 − z) ⊙ h + z ⊙ g, or h' = f ⊙ h + i ⊙ g.
#pragma once
#include "cell.h"

// g(a) = a + 0.5 for a ≥ 0, else σ(a), and its slope, given g
template <class R> static inline R positive(R a) { return a >= 0 ? a + R(0.5) : sigmoid(a); }
template <class R> static inline R positive_slope(R g) { return g >= R(0.5) ? R(1) : g * (1 - g); }

template <class R> static void mingru_forward(R *a, const R *h_before, R *h, int64_t H) {
#pragma omp simd
  for (int64_t j = 0; j < H; j++) {
    const R z = sigmoid(a[j]);
    const R g = positive(a[H + j]);
    h[j] = (1 - z) * h_before[j] + z * g;
    a[j] = z;
    a[H + j] = g;
  }
}

// dh: of h' on entry, of h on return.
template <class R>
static void mingru_backward(const R *a, R *d, const R *h_before, R *dh, const R *dy, R *dbias, int64_t H) {
#pragma omp simd
  for (int64_t j = 0; j < H; j++) {
    const R z = a[j];
    const R g = a[H + j];
    const R dh_j = dh[j] + dy[j];
    const R d_z = dh_j * (g - h_before[j]) * z * (1 - z);
    const R d_g = dh_j * z * positive_slope(g);
    d[j] = d_z;
    d[H + j] = d_g;
    dbias[j] += d_z;
    dbias[H + j] += d_g;
    dh[j] = dh_j * (1 - z);
  }
}

// With e(x) = e^−x, f = σ(log σ(f̃) − log σ(ĩ)) = (1 + e(ĩ)) / (2 + e(ĩ) + e(f̃)). Above and below are divided
// by the largest of these powers, so that none overflows. One share of the whole, that of 1, is kept beside f:
// those of e(ĩ) and e(f̃) are f and i without it, and ∂i/∂ĩ is i times the one, ∂f/∂f̃ is f times the other.
// a (3H,): the pre-activations of i, f and g; on return that share, f and g.
template <class R> static void minlstm_forward(R *a, const R *h_before, R *h, int64_t H) {
#pragma omp simd
  for (int64_t j = 0; j < H; j++) {
    const R i_a = a[j];
    const R f_a = a[H + j];
    const R g = positive(a[2 * H + j]);
    R most = -i_a > -f_a ? -i_a : -f_a;
    most = most > 0 ? most : 0;
    const R one = exponential(-most);
    const R e_i = exponential(-i_a - most);
    const R e_f = exponential(-f_a - most);
    const R scale = 1 / (2 * one + e_i + e_f);
    const R f = (one + e_i) * scale;
    const R i = (one + e_f) * scale;
    h[j] = f * h_before[j] + i * g;
    a[j] = one * scale;
    a[H + j] = f;
    a[2 * H + j] = g;
  }
}

template <class R>
static void minlstm_backward(const R *a, R *d, const R *h_before, R *dh, const R *dy, R *dbias, int64_t H) {
#pragma omp simd
  for (int64_t j = 0; j < H; j++) {
    const R share = a[j];
    const R f = a[H + j];
    const R g = a[2 * H + j];
    const R dh_j = dh[j] + dy[j];
    const R df = dh_j * (h_before[j] - g);  // since i = 1 − f
    const R d_i = -df * (1 - f) * (f - share);
    const R d_f = df * f * (1 - f - share);
    const R d_g = dh_j * (1 - f) * positive_slope(g);
    d[j] = d_i;
    d[H + j] = d_f;
    d[2 * H + j] = d_g;
    dbias[j] += d_i;
    dbias[H + j] += d_f;
    dbias[2 * H + j] += d_g;
    dh[j] = dh_j * f;
  }
}
