// The gates of an attention, and their gradients, in place.
#pragma once
#include <cmath>
#include "activations.h"

namespace {
// The gates of gates.py: those of start="paper", then those around 1.
enum Gate { SIGMOID, HARD_SIGMOID, TANH, RELU, AROUND_ONE };

template <class S, class F> void transform(S* values, i64 count, F f) {
  const i64 W = 64 / sizeof(S);
  i64 i = 0;
  for (; i + W <= count; i += W) store<S, ALL>(values + i, f(load<S, ALL>(values + i, W)), W);
  if (i < count) {
    auto last = f(load<S, FIRST>(values + i, count - i));
    store<S, FIRST>(values + i, last, count - i);
  }
}

// Logits to scales, in place.
template <class S> void gate(int kind, S* s, i64 count) {
  using V = typename Type<S>::V;
  const bool around = kind >= AROUND_ONE;
  const S height = around ? 2 : 1, offset = around ? 1 : 0;
  switch (kind % AROUND_ONE) {
    case SIGMOID: transform(s, count, [=](V z) { return height * sigmoid<S>(z); }); break;
    case HARD_SIGMOID:
      transform(s, count, [=](V z) {
        z = z + S(3);
        z = z < 0 ? V{} : z;
        z = z > 6 ? V{} + S(6) : z;
        return z / S(6) * height;
      });
      break;
    case TANH: for (i64 i = 0; i < count; ++i) s[i] = offset + std::tanh(s[i]); break;
    case RELU: transform(s, count, [=](V z) { z = z + offset; return z < 0 ? V{} : z; });
  }
}

// The gradient of the scales to that of the logits, in place.
template <class S> void gate_gradient(int kind, S* d, const S* s, i64 count) {
  const bool around = kind >= AROUND_ONE;
  const S height = around ? 2 : 1, offset = around ? 1 : 0;
  for (i64 i = 0; i < count; ++i) {
    const S e = s[i], t = e - offset;
    switch (kind % AROUND_ONE) {
      case SIGMOID: d[i] *= e - e * e / height; break;
      // 0, not 0 times a gradient that may be infinite. The slope is a float in torch, too.
      case HARD_SIGMOID: d[i] = e > 0 && e < height ? d[i] * (float(height) / 6) : 0; break;
      case TANH: d[i] *= 1 - t * t; break;
      case RELU: d[i] = e <= 0 ? 0 : d[i];
    }
  }
}
}  // namespace
