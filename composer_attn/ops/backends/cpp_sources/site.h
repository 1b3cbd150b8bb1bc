// A whole site, attention and then batch norm, in few calls: its (N, C) numbers stay in one
// workspace from the first call to the gradient's.
#pragma once
#include "gates.h"
#include "head.h"
#include "linear.h"
#include "passes.h"

namespace {
// Fortran's interface of a BLAS: torch's own, whose threads are torch's.
template <class S>
using Gemm = void (*)(const char*, const char*, const i64*, const i64*, const i64*, const S*,
                      const S*, const i64*, const S*, const i64*, const S*, S*, const i64*);
template <class S> Gemm<S> gemm = nullptr;
// Sets the BLAS's threads for the calling thread, and returns their number; null if it cannot.
int (*set_blas_threads)(int) = nullptr;
// With fewer products, waking other threads takes longer than to compute them.
const i64 BLAS_ALONE = 1 << 20;

enum Transposed : bool { NO, YES };

// c = op(a) op(b) + beta c, in C's order; the result has these rows and columns.
template <class S>
void multiply(Transposed of_a, Transposed of_b, i64 rows, i64 columns, i64 inner, const S* a,
              const S* b, S* c, S beta = 0) {
  // In Fortran's order all three are transposed: c' = op(b)' op(a)'.
  const char letter[] = {'N', 'T'};
  const i64 lda = of_a ? rows : inner, ldb = of_b ? inner : columns;
  const S one = 1;
  const bool alone = set_blas_threads && rows * columns * inner < BLAS_ALONE;
  const int before = alone ? set_blas_threads(1) : 0;
  gemm<S>(&letter[of_b], &letter[of_a], &columns, &rows, &inner, &one, b, &ldb, a, &lda, &beta, c,
          &columns);
  if (alone) set_blas_threads(before);
}

// The numbers of a site. The width is that of SE's hidden layer, or 0 for ECA.
template <class S> struct Workspace {
  S *mean, *variance, *s, *scale, *shift, *mu, *inverse, *hidden;
  Workspace(S* at, i64 N, i64 C)
      : mean(at), variance(mean + N * C), s(variance + N * C), scale(s + N * C),
        shift(scale + N * C), mu(shift + N * C), inverse(mu + C), hidden(inverse + C) {}
};

// What stays the same from call to call, of cpp_site.py: addresses, null if absent, and settings.

// The layers of an attention: SE's, or the kernel of ECA, which is w1, with its size as width.
// Folded norms have a factor of the means, one of the scales, and a shift of the output, (C,) each.
template <class S> struct Layers {
  const S *w1, *b1, *w2, *b2, *inverse, *post, *shift;
  i64 width;
  int gate;
  bool is_kernel;
};

// A batch norm: its running statistics are not updated but used if they are fixed.
template <class S> struct Norm {
  const S *weight, *bias;
  S *running_mean, *running_variance;
  double eps, momentum;
  bool fixed;
};

template <class S> void add_rows(S* to, const S* row, i64 N, i64 C) {
  for (i64 n = 0; row && n < N; ++n, to += C)
    for (i64 c = 0; c < C; ++c) to[c] += row[c];
}

template <class S> void sum_rows(const S* from, S* row, i64 N, i64 C) {
  if (!row) return;
  std::fill(row, row + C, S(0));
  for (i64 n = 0; n < N; ++n, from += C)
    for (i64 c = 0; c < C; ++c) row[c] += from[c];
}

template <class S> void multiply_rows(S* to, const S* row, i64 N, i64 C) {
  for (i64 n = 0; row && n < N; ++n, to += C)
    for (i64 c = 0; c < C; ++c) to[c] *= row[c];
}

// Scales from means, which a folded norm's factor multiplies in place.
template <class S>
void scales(const Layers<S>& of, S* mean, S* hidden, S* s, i64 N, i64 C, int threads) {
  multiply_rows(mean, of.inverse, N, C);
  if (of.is_kernel) {
    convolve(mean, of.w1, s, of.width, N, C);
  } else if (N == 1 || !gemm<S>) {
    linear(mean, of.w1, of.b1, hidden, true, N, C, of.width, threads);
    linear(hidden, of.w2, of.b2, s, false, N, of.width, C, threads);
  } else {
    multiply(NO, YES, N, of.width, C, mean, of.w1, hidden);
    add_rows(hidden, of.b1, N, of.width);
    for (i64 i = 0; i < N * of.width; ++i) hidden[i] = hidden[i] < 0 ? 0 : hidden[i];
    multiply(NO, YES, N, C, of.width, hidden, of.w2, s);
    add_rows(s, of.b2, N, C);
  }
  gate(of.gate, s, N * C);
  multiply_rows(s, of.post, N, C);
}

template <class T, class S = typename Type<T>::S>
void excite(const T* x, const Layers<S>& of, S* work, i64 N, i64 C, i64 L, bool last, int threads) {
  Workspace<S> w(work, N, C);
  moments(x, w.mean, w.variance, w.shift, N, C, L, last, threads);
  scales(of, w.mean, w.hidden, w.s, N, C, threads);
}

// The attended map in place, without what a norm or a gradient would need.
template <class S>
void attend(S* x, const Layers<S>& of, i64 N, i64 C, i64 L, bool last, int threads) {
  const i64 whole = N * C, width = of.is_kernel ? 0 : N * of.width;
  S *mean = scratch<S>(3 * whole + width + PARTS * C), *s = mean + whole, *shift = s + whole,
    *hidden = shift + whole;
  means(x, mean, hidden + width, N, C, L, last, threads);
  scales(of, mean, hidden, s, N, C, threads);
  std::fill(shift, shift + whole, S(0));
  add_rows(shift, of.shift, N, C);
  using K = Affine<S, false, false>;
  map<K, true>(K{x, nullptr, x, {s, shift}}, N, C, L, last, threads);
}

// The same of a convolution of size 1 that has not run: one image's scales go into its weights.
template <class S>
void attended_weights(const S* x, const Layers<S>& of, const S* weight, const S* bias, S* scaled,
                      S* offset, i64 in, i64 C, i64 L, bool last, int threads) {
  const i64 width = of.is_kernel ? 0 : of.width;
  S *seen = scratch<S>(in + 2 * C + width + PARTS * in), *mean = seen + in, *s = mean + C,
    *hidden = s + C;
  means(x, seen, hidden + width, 1, in, L, last, threads);
  linear(seen, weight, bias, mean, false, 1, in, C, threads);
  scales(of, mean, hidden, s, 1, C, threads);
  for (i64 c = 0; c < C; ++c) {
    for (i64 i = 0; i < in; ++i) scaled[c * in + i] = s[c] * weight[c * in + i];
    offset[c] = (of.shift ? of.shift[c] : 0) + (bias ? s[c] * bias[c] : 0);
  }
}

// The scaled map up to scale and shift, with a number of values per channel.
template <class S> void normalize(const Norm<S>& of, S* work, i64 number, i64 N, i64 C) {
  Workspace<S> w(work, N, C);
  normalization(w.s, w.mean, w.variance, of.weight, of.bias, of.running_mean, of.running_variance,
                w.scale, w.shift, w.mu, w.inverse, of.eps, of.momentum, number / (number - 1.0),
                of.fixed, N, C);
}

// Gradients of the parameters, with null for absent ones.
template <class S> struct Gradients { S *weight, *bias, *w1, *b1, *w2, *b2; };

// d_s, of the scales, becomes that of the logits; what flows back to the means is added to d_mean.
template <class S>
void excitation_gradient(const Layers<S>& of, const Workspace<S>& w, S* d_s, S* d_mean, S* rest,
                         const Gradients<S>& d, i64 N, i64 C) {
  gate_gradient(of.gate, d_s, w.s, N * C);
  if (of.is_kernel) {
    convolve_gradient(d_s, w.mean, of.w1, rest, d.w1, of.width, N, C);
    for (i64 i = 0; i < N * C; ++i) d_mean[i] += rest[i];
    return;
  }
  const i64 H = of.width;
  multiply(NO, NO, N, H, C, d_s, of.w2, rest);
  for (i64 i = 0; i < N * H; ++i) rest[i] = w.hidden[i] <= 0 ? 0 : rest[i];
  multiply(YES, NO, C, H, N, d_s, w.hidden, d.w2);
  multiply(YES, NO, H, C, N, rest, w.mean, d.w1);
  sum_rows(rest, d.b1, N, H);
  sum_rows(d_s, d.b2, N, C);
  multiply(NO, NO, N, C, H, rest, of.w1, d_mean, S(1));
}

// The whole gradient. If y is given, its ReLU masks dy into g; otherwise a ReLU is recomputed.
template <class T, class S = typename Type<T>::S>
void site_gradient(const T* dy, const T* x, const T* y, bool relu, S* work, S* scratch,
                   const S* weight, const Layers<S>& of, bool fixed, T* g, T* dx,
                   const Gradients<S>& d, i64 N, i64 C, i64 L, bool last, int threads) {
  Workspace<S> w(work, N, C);
  S *d_shift = scratch, *d_scale = d_shift + N * C, *d_s = d_scale + N * C, *d_mean = d_s + N * C,
    *d_variance = d_mean + N * C, *rest = d_variance + N * C;
  const S* shift = relu && !y ? w.shift : nullptr;
  gradient_sums(dy, x, w.mean, shift ? w.scale : nullptr, shift, y, g, d_shift, d_scale, N, C, L,
                last, threads);
  normalization_gradient(d_scale, d_shift, w.s, w.mean, w.variance, w.mu, w.inverse, weight, d_s,
                         d_mean, d_variance, d.weight, d.bias, fixed, N, C);
  excitation_gradient(of, w, d_s, d_mean, rest, d, N, C);
  if (dx)
    input_gradient(y ? g : dy, x, w.scale, w.mean, d_mean, fixed ? nullptr : d_variance, shift, dx,
                   N, C, L, last, threads);
}
}  // namespace
