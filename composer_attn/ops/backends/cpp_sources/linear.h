// A linear layer on few samples, whose time is that of reading its weights.
#pragma once
#include "vectors.h"

namespace {
// With fewer weights, waking other threads takes longer than reading them.
const i64 WEIGHTS_ALONE = 1 << 15;

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
#pragma omp parallel for schedule(static) num_threads(in * out < WEIGHTS_ALONE ? 1 : threads)
  for (i64 row = 0; row < out; ++row)  // the weights, of which there is more, are read once
    for (i64 i = 0; i < n; ++i) {
      S sum = dot(w + row * in, m + i * in, in) + (b ? b[row] : 0);
      y[i * out + row] = relu && sum < 0 ? 0 : sum;
    }
}
}  // namespace
