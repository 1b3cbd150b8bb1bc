// A batch norm, and what follows from it, in few calls: its statistics stay in one workspace, and
// what its gradient needs is kept once for all samples.
#pragma once
#include "head.h"
#include "passes.h"

namespace {
// The (N, C) numbers of a region's forward.
template <class S> struct Spread {
  S *mean, *variance, *one, *scale, *shift;
  Spread(S* at, i64 N, i64 C)
      : mean(at), variance(mean + N * C), one(variance + N * C), scale(one + N * C),
        shift(scale + N * C) {}
};

template <class S> void spread_row(const S* row, S* to, i64 N, i64 C) {
  for (i64 n = 0; n < N; ++n) std::copy(row, row + C, to + n * C);
}

// Moments and normalization, with scales of 1; with fixed statistics there are no moments. For the
// gradient, (C,) each: mu and 1 / deviation are the statistics, scale and shift the line.
template <class T, class S = typename Type<T>::S>
void normalize(const T* x, const S* weight, const S* bias, S* running_mean, S* running_variance,
               S* work, S* statistics, S* line, double eps, double momentum, double correction,
               bool fixed, i64 N, i64 C, i64 L, bool last, int threads) {
  Spread<S> w(work, N, C);
  if (!fixed) moments(x, w.mean, w.variance, w.shift, N, C, L, last, threads);
  std::fill(w.one, w.one + N * C, S(1));
  normalization(w.one, w.mean, w.variance, weight, bias, running_mean, running_variance, w.scale,
                w.shift, statistics, statistics + C, eps, momentum, correction, fixed, N, C);
  std::copy(w.scale, w.scale + C, line);
  std::copy(w.shift, w.shift + C, line + C);
}

// The gradient of a norm given B = sum(dy) and D = sum(dy (x - mu)) over space, which become
// the gradients of the moments. About mu, the samples' own means contribute nothing.
template <class S>
void norm_gradient(S* b, S* d, const S* inverse, const S* weight, S* d_weight, S* d_bias,
                   bool fixed, i64 N, i64 C) {
  const S share = S(-1) / N;
  for (i64 c = 0; c < C; c += BLOCK) {
    const i64 count = std::min(BLOCK, C - c), end = N * C;
    S of_bias[BLOCK] = {}, of_w[BLOCK] = {};
    for (i64 i = c; i < end; i += C)
      for (i64 j = 0; j < count; ++j) { of_bias[j] += b[i + j]; of_w[j] += d[i + j]; }
    for (i64 j = 0; j < count; ++j) {
      const S r = inverse[c + j], w = weight ? r * weight[c + j] : r;
      d_weight[c + j] = of_w[j] * r;
      d_bias[c + j] = of_bias[j];
      // Not 0 times the sums where they are fixed, since one sample's may be infinite.
      of_bias[j] = fixed ? 0 : w * of_bias[j] * share;
      of_w[j] = fixed ? 0 : of_w[j] * w * r * r * share / 2;
    }
    for (i64 i = c; i < end; i += C)
      for (i64 j = 0; j < count; ++j) { b[i + j] = of_bias[j]; d[i + j] = of_w[j]; }
  }
}

// The whole gradient of a norm and an addition. If y is given, its ReLU masks dy into g.
template <class T, class S = typename Type<T>::S>
void sum_gradient(const T* dy, const T* x, const T* y, const S* statistics, S* scratch,
                  const S* weight, T* g, T* dx, S* d_weight, S* d_bias, bool fixed, i64 N, i64 C,
                  i64 L, bool last, int threads) {
  const S* inverse = statistics + C;
  S *centre = scratch, *slope = centre + N * C, *b = slope + N * C, *d = b + N * C;
  const S* none = nullptr;
  spread_row(statistics, centre, N, C);
  gradient_sums<T>(dy, x, centre, none, none, y, g, b, d, N, C, L, last, threads);
  norm_gradient(b, d, inverse, weight, d_weight, d_bias, fixed, N, C);
  for (i64 c = 0; c < C; ++c) slope[c] = weight ? inverse[c] * weight[c] : inverse[c];
  for (i64 n = 1; n < N; ++n) std::copy(slope, slope + C, slope + n * C);
  if (dx)
    input_gradient<T>(y ? g : dy, x, slope, centre, b, fixed ? none : d, none, dx, N, C, L,
                      last, threads);
}
}  // namespace
