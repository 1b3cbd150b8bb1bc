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

template <class S>
void excite(S* x, const S* inverse, const S* w1, const S* b1, const S* w2, const S* b2,
            const S* post, const S* shift, i64 hidden, i64 size, int kind, i64 N, i64 C, i64 L,
            bool last, int threads) {
  static thread_local std::vector<S> kept;  // of a few channels each: means, scales, shifts, layer
  if (i64(kept.size()) < N * (3 * C + hidden)) kept.resize(N * (3 * C + hidden));
  S *mean = kept.data(), *s = mean + N * C, *t = s + N * C, *h = t + N * C;
  reduce(Means<S>{x, {}, mean, S(1) / L}, N, C, L, last, threads, {mean});
  for (i64 n = 0; inverse && n < N * C; n += C)
    for (i64 c = 0; c < C; ++c) mean[n + c] *= inverse[c];
  if (size) {
    convolve(mean, w1, s, size, N, C);
  } else {
    linear(mean, w1, b1, h, true, N, C, hidden, threads);
    linear(h, w2, b2, s, false, N, hidden, C, threads);
  }
  gate(kind, s, N * C);
  for (i64 n = 0; n < N * C; n += C) {
    for (i64 c = 0; post && c < C; ++c) s[n + c] *= post[c];
    std::copy(shift, shift + C, t + n);
  }
  using K = Affine<S, false, false>;
  map<K, true>(K{x, nullptr, x, {s, t}}, N, C, L, last, threads);
}
}  // namespace

#define EXCITE(NAME, S)                                                                           \
  void excite_##NAME(S* x, const S* inverse, const S* w1, const S* b1, const S* w2, const S* b2,  \
                     const S* post, const S* shift, i64 hidden, i64 size, int kind, i64 N, i64 C, \
                     i64 L, bool last, int threads) {                                             \
    excite<S>(x, inverse, w1, b1, w2, b2, post, shift, hidden, size, kind, N, C, L, last,         \
              threads);                                                                           \
  }

extern "C" {
EXCITE(float, float)
EXCITE(double, double)
}
