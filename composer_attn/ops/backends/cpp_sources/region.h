// A norm, an activation and an attention in few calls, for the activation named ACTIVATION.
#pragma once
#include <type_traits>
#include "activated.h"
#include "region_norm.h"
#include "site.h"

namespace {
// The activations, in the order of activations.py's table.
enum Inner { IDENTITY, RELU_INNER, RELU6, LEAKY_RELU, SILU, HARDSWISH, GELU, GELU_TANH, MISH, ELU };

template <class F> void with_activation(int kind, F f) {
  switch (kind) {
    case IDENTITY: return f(identity());
    case RELU_INNER: return f(relu());
    case RELU6: return f(relu6());
    case LEAKY_RELU: return f(leaky_relu());
    case SILU: return f(silu());
    case HARDSWISH: return f(hardswish());
    case GELU: return f(gelu());
    case GELU_TANH: return f(gelu_tanh());
    case MISH: return f(mish());
    case ELU: return f(elu());
  }
}

enum Kind { ONE_KERNEL, ONE_LAYER, TWO_LAYERS };

// An attention: a kernel along the channels, one linear layer, or two with an activation between.
template <class S> struct Attention {
  const S *w1, *b1, *w2, *b2;
  int kind; i64 width; int inner; double alpha; int gate;
};

// What is kept of it for the gradient: the means, the scales, and the first layer's output.
template <class S> struct Attended {
  S *m, *s, *hidden;
  Attended(S* at, i64 N, i64 C) : m(at), s(m + N * C), hidden(s + N * C) {}
};

// to = phi(from), by vectors.
template <class S> void inner_activation(int kind, S alpha, const S* from, S* to, i64 count) {
  using V = typename Type<S>::V;
  std::copy(from, from + count, to);
  with_activation(kind, [&](auto phi) {
    transform(to, count, [=](V z) { V d; return decltype(phi)::template at<S>(z, alpha, d); });
  });
}

// d *= phi'(z); where that is 0, so is the gradient, be it infinite.
template <class S> void inner_gradient(int kind, S alpha, const S* z, S* d, S* slope, i64 count) {
  using V = typename Type<S>::V;
  std::copy(z, z + count, slope);
  with_activation(kind, [&](auto phi) {
    transform(slope, count, [=](V z) {
      V d = {};
      decltype(phi)::template at<S>(z, alpha, d);
      return d;
    });
  });
  for (i64 i = 0; i < count; ++i) d[i] = slope[i] == 0 ? 0 : d[i] * slope[i];
}

// The scales, from the means of the activation; scratch has as many numbers as the hidden layer.
template <class S>
void scales(const Attention<S>& of, const Attended<S>& a, S* scratch, i64 N, i64 C) {
  if (of.kind == ONE_KERNEL) {
    convolve(a.m, of.w1, a.s, of.width, N, C);
  } else if (of.kind == ONE_LAYER) {
    multiply(NO, YES, N, C, C, a.m, of.w1, a.s);
    add_rows(a.s, of.b1, N, C);
  } else {
    const i64 H = of.width;
    multiply(NO, YES, N, H, C, a.m, of.w1, a.hidden);
    add_rows(a.hidden, of.b1, N, H);
    inner_activation(of.inner, S(of.alpha), a.hidden, scratch, N * H);
    multiply(NO, YES, N, C, H, scratch, of.w2, a.s);
    add_rows(a.s, of.b2, N, C);
  }
  gate(of.gate, a.s, N * C);
}

template <class T, class S = typename Type<T>::S>
void attend(const T* x, S* work, const S* mu, const S* bias, S* kept, S* scratch, double alpha,
            bool fixed, const Attention<S>& of, i64 N, i64 C, i64 L, bool last, int threads) {
  Spread<S> w(work, N, C);
  Attended<S> a(kept, N, C);
  if (std::is_same<Phi, identity>::value && !fixed) {
    // Follows from the moments; scale mean + shift would cancel if the mean is large.
    for (i64 n = 0, i = 0; n < N; ++n)
      for (i64 c = 0; c < C; ++c, ++i)
        a.m[i] = (w.mean[i] - mu[c]) * w.scale[i] + (bias ? bias[c] : 0);
  } else {
    reduce(Means<T>{x, {w.scale, w.shift}, a.m, S(1) / L, S(alpha)}, N, C, L, last, threads, {a.m});
  }
  scales(of, a, scratch, N, C);
}

// d_s, of the scales, becomes that of the logits; d_m is the gradient of the means.
template <class S>
void attention_gradient(const Attention<S>& of, const Attended<S>& a, S* d_s, S* d_m, S* scratch,
                        const Gradients<S>& d, i64 N, i64 C) {
  gate_gradient(of.gate, d_s, a.s, N * C);
  if (of.kind == ONE_KERNEL)
    return convolve_gradient(d_s, a.m, of.w1, d_m, d.w1, of.width, N, C);
  if (of.kind == ONE_LAYER) {
    multiply(YES, NO, C, C, N, d_s, a.m, d.w1);
    sum_rows(d_s, d.b1, N, C);
    return multiply(NO, NO, N, C, C, d_s, of.w1, d_m);
  }
  const i64 H = of.width;
  S *d_hidden = scratch, *other = d_hidden + N * H;
  inner_activation(of.inner, S(of.alpha), a.hidden, other, N * H);
  multiply(YES, NO, C, H, N, d_s, other, d.w2);
  sum_rows(d_s, d.b2, N, C);
  multiply(NO, NO, N, H, C, d_s, of.w2, d_hidden);
  inner_gradient(of.inner, S(of.alpha), a.hidden, d_hidden, other, N * H);
  multiply(YES, NO, H, C, N, d_hidden, a.m, d.w1);
  sum_rows(d_hidden, d.b1, N, H);
  multiply(NO, NO, N, C, H, d_hidden, of.w1, d_m);
}

// A gradient where a ReLU's output is not 0.
template <class T> struct Masked {
  using S = typename Type<T>::S; using V = typename Type<T>::V;
  static const int params = 1;
  const T *dy, *y; T* g; const S* p[1];  // none is used, of an array that may not be empty
  template <int lanes> void map(const V*, i64 i, i64 n) const {
    store<T, lanes>(g + i, cut<V>(load<T, lanes>(y + i, n), load<T, lanes>(dy + i, n)), n);
  }
};

// The whole gradient. If y is given, its ReLU masks dy into g; without an attention, `attended` is
// null. The scratch has 8 N C numbers, and 2 N H for a hidden layer.
template <class T, class S = typename Type<T>::S>
void region_gradient(const T* dy, const T* x, const T* y, const S* statistics, const S* line,
                     S* attended, S* scratch, const S* weight, T* g, T* dx,
                     const Gradients<S>& of, double alpha, bool fixed, const Attention<S>& layers,
                     i64 N, i64 C, i64 L, bool last, int threads) {
  const i64 count = N * C;
  const S share = S(1) / L;
  S *centre = scratch, *scale = centre + count, *shift = scale + count, *b = shift + count,
    *d = b + count, *factor = d + count, *offset = factor + count, *of_x = offset + count;
  spread_row(statistics, centre, N, C);
  spread_row(line, scale, N, C);
  spread_row(line + C, shift, N, C);
  if (y) {
    map(Masked<T>{dy, y, g, {centre}}, N, C, L, last, threads);
    dy = g;
  }
  if (attended) {
    Attended<S> a(attended, N, C);
    S *const sums[] = {b, d, factor, offset, of_x}, *d_m = scale;  // which is spread again below
    reduce(ActivatedSums<T, true>{dy, x, {centre, scale, shift}, S(alpha)}, N, C, L, last, threads,
           sums);
    attention_gradient(layers, a, factor, d_m, of_x + count, of, N, C);
    for (i64 i = 0; i < count; ++i) {
      const S along = d_m[i] / L, s = a.s[i];
      b[i] = s * b[i] + along * offset[i];
      d[i] = s * d[i] + along * of_x[i];
      offset[i] = along;
    }
    spread_row(line, scale, N, C);
    for (i64 i = 0; i < count; ++i) {
      factor[i] = scale[i] * a.s[i];
      offset[i] *= scale[i];
    }
  } else {
    S* const sums[] = {b, d};
    reduce(ActivatedSums<T, false>{dy, x, {centre, scale, shift}, S(alpha)}, N, C, L, last, threads,
           sums);
    factor = scale;
    std::fill(offset, offset + count, S(0));
  }
  norm_gradient(b, d, statistics + C, weight, of.weight, of.bias, fixed, N, C);
  if (!dx) return;
  const S *f = factor, *o = offset, *m = centre;
  auto run = [&](auto k) { map(k, N, C, L, last, threads); };
  if (fixed) run(Gradient<T, false>{dy, x, dx, {scale, shift, f, o, b}, share, S(alpha)});
  else run(Gradient<T, true>{dy, x, dx, {scale, shift, f, o, b, m, d}, share, S(alpha)});
}
}  // namespace
