// Attention and a shift of an output in place, of excited_cpp.py: two passes, and between them the
// layers, whose operations would each take longer to call than to compute.
#include "gates.h"
#include "head.h"
#include "linear.h"
#include "passes.h"

namespace {
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

template <class S>
void excite(const Layers<S>& layers, S* x, i64 N, i64 L, bool last, int threads) {
  const i64 C = layers.channels, whole = N * C;
  const i64 space = layers.space(N);
  S *mean = scratch<S>(2 * whole + space + PARTS * C), *s = mean + whole, *t = s + whole;
  means(x, mean, t + space, N, C, L, last, threads);
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
  const i64 space = in + 2 * C + layers.space(1);
  S *seen = scratch<S>(space + PARTS * in), *mean = seen + in, *s = mean + C;
  means(x, seen, seen + space, 1, in, L, last, threads);
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
