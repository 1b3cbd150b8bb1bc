// Attention and a shift of an output in place, of excited_cpp.py: two passes, and between them the
// layers, whose operations would each take longer to call than to compute.
#include <vector>
#include "gates.h"
#include "head.h"
#include "kernels.h"
#include "loops.h"

namespace {
template <class T> struct Means {
  using S = typename Type<T>::S; using V = typename Type<T>::V;
  static const int params = 0, rows = 4, sums = 1, blocks = 4;
  const T* x; const S* p[1]; S* mean; S inverse;  // inverse: of the number of positions
  void begin(i64, i64, i64, i64) const {}
  void end(i64 at, i64 count) const { for (i64 c = at; c < at + count; ++c) mean[c] *= inverse; }
  void fetch(i64 from, i64 to) const {
    for (i64 i = from; i < to; i += 64 / sizeof(T)) __builtin_prefetch(x + i);
  }
  template <int lanes, bool Again = false> void add(const V*, i64 i, i64 n, V* sum) const {
    V u = load<T, lanes>(x + i, n);
    if (Again) u = without_first<S>(u, n);
    if (lanes == FIRST) u = first_lanes<S>(u, n);
    sum[0] += u;
  }
};

template <class S> S dot(const S* a, const S* b, i64 n) {
  using V = typename Type<S>::V;
  const i64 W = 64 / sizeof(S);
  V f[4] = {};
  i64 i = 0;
  for (; i + 4 * W <= n; i += 4 * W)
    for (int j = 0; j < 4; ++j)
      f[j] += load<S, ALL>(a + i + j * W, W) * load<S, ALL>(b + i + j * W, W);
  for (; i + W <= n; i += W) f[0] += load<S, ALL>(a + i, W) * load<S, ALL>(b + i, W);
  if (i < n) f[1] += load<S, FIRST>(a + i, n - i) * load<S, FIRST>(b + i, n - i);
  return total<S>((f[0] + f[1]) + (f[2] + f[3]));
}

// W m + b of n samples.
template <class S>
void linear(const S* m, const S* w, const S* b, S* y, bool relu, i64 n, i64 in, i64 out,
            int threads) {
#pragma omp parallel for schedule(static) num_threads(in * out < 1 << 17 ? 1 : threads)
  for (i64 row = 0; row < out; ++row)  // the weights, of which there is more, are read once
    for (i64 i = 0; i < n; ++i) {
      S sum = dot(w + row * in, m + i * in, in) + (b ? b[row] : 0);
      y[i * out + row] = relu && sum < 0 ? 0 : sum;
    }
}

// What stays the same from call to call, of excited_cpp.py: addresses, null if absent, and sizes.
template <class S> struct Layers {
  const S *inverse, *w1, *b1, *w2, *b2, *post, *shift;
  i64 hidden, size, kind, channels;

  // How many numbers `scale` needs for n samples, besides those that it gives.
  i64 space(i64 n) const { return n * (channels + hidden); }

  // Means of n samples to their scales; the means are overwritten.
  void scale(S* mean, S* s, S* h, i64 n, int threads) const {
    const i64 C = channels, whole = n * C;
    for (i64 i = 0; inverse && i < whole; i += C)
      for (i64 c = 0; c < C; ++c) mean[i + c] *= inverse[c];
    if (size) {
      convolve(mean, w1, s, size, n, C);
    } else {
      linear(mean, w1, b1, h, true, n, C, hidden, threads);
      linear(h, w2, b2, s, false, n, hidden, C, threads);
    }
    gate(int(kind), s, whole);
    for (i64 i = 0; post && i < whole; i += C)
      for (i64 c = 0; c < C; ++c) s[i + c] *= post[c];
  }
};

template <class S> S* scratch(i64 count) {
  static thread_local std::vector<S> kept;
  if (i64(kept.size()) < count) kept.resize(count);
  return kept.data();
}

template <class S>
void excite(const Layers<S>& layers, S* x, i64 N, i64 L, bool last, int threads) {
  const i64 C = layers.channels, whole = N * C;
  S *mean = scratch<S>(2 * whole + layers.space(N)), *s = mean + whole, *t = s + whole;
  reduce(Means<S>{x, {}, mean, S(1) / L}, N, C, L, last, threads, {mean});
  layers.scale(mean, s, t + whole, N, threads);
  for (i64 i = 0; i < whole; i += C) std::copy(layers.shift, layers.shift + C, t + i);
  using K = Affine<S, false, false>;
  map<K, true>(K{x, nullptr, x, {s, t}}, N, C, L, last, threads);
}

// The same of a convolution of size 1 that has not run: one image's scales go into its weights.
template <class S>
void excite_weights(const Layers<S>& layers, const S* x, const S* weight, const S* bias, S* scaled,
                    S* offset, i64 in, i64 L, bool last, int threads) {
  const i64 C = layers.channels;
  S *seen = scratch<S>(in + 2 * C + layers.space(1)), *mean = seen + in, *s = mean + C;
  reduce(Means<S>{x, {}, seen, S(1) / L}, 1, in, L, last, threads, {seen});
  linear(seen, weight, bias, mean, false, 1, in, C, threads);
  layers.scale(mean, s, s + C, 1, threads);
  for (i64 c = 0; c < C; ++c) {
    for (i64 i = 0; i < in; ++i) scaled[c * in + i] = s[c] * weight[c * in + i];
    offset[c] = layers.shift[c] + (bias ? s[c] * bias[c] : 0);
  }
}
}  // namespace

#define EXCITE(NAME, S)                                                                           \
  void excite_##NAME(const Layers<S>* layers, S* x, i64 N, i64 L, bool last, int threads) {       \
    excite<S>(*layers, x, N, L, last, threads);                                                   \
  }                                                                                               \
  void excite_weights_##NAME(const Layers<S>* layers, const S* x, const S* weight, const S* bias, \
                             S* scaled, S* offset, i64 in, i64 L, bool last, int threads) {       \
    excite_weights<S>(*layers, x, weight, bias, scaled, offset, in, L, last, threads);            \
  }

extern "C" {
EXCITE(float, float)
EXCITE(double, double)
}
