// Activations: each gives phi(z), and phi'(z) in d, of a vector; what is not used is not computed.
#pragma once
#include <cmath>
#include "vectors.h"

namespace {
// What vectors V of numbers S are computed with.
template <class S> struct Range;
template <> struct Range<float> {
  using I = int32_t;
  static constexpr float shifter = 0x1.8p23f, high = 0x1.63p-1f, low = -0x1.bd0106p-13f;
  // Beyond these, exp is infinite, or smaller than a normal number.
  static constexpr float most = 88.3f, least = -87.3f;
  static constexpr int bias = 127, mantissa = 23;
};
template <> struct Range<double> {
  using I = int64_t;
  static constexpr double shifter = 0x1.8p52, high = 0x1.62e42fefa3800p-1,
                          low = 0x1.ef35793c76730p-45;
  static constexpr double most = 709, least = -708;
  static constexpr int bias = 1023, mantissa = 52;
};

template <class S, class V> V all(double value) { return V{} + S(value); }

// (exp(r) - 1 - r) / r^2 where |r| <= log(2) / 2: by Cephes in float, by Taylor in double.
template <class S, class V> V series(V r) {
  constexpr double of_float[] = {1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3,
                                 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1};
  constexpr double of_double[] = {
      1 / 6227020800., 1 / 479001600., 1 / 39916800., 1 / 3628800., 1 / 362880., 1 / 40320.,
      1 / 5040., 1 / 720., 1 / 120., 1 / 24., 1 / 6., 1 / 2.};
  V p = {};
  if constexpr (sizeof(S) == 4) for (double c : of_float) p = p * r + S(c);
  else for (double c : of_double) p = p * r + S(c);
  return p;
}

// exp(x) = power + power rest, where power is one of 2, and rest small: exp(x) - 1 keeps its digits.
template <class S, class V> void exponential(V x, V& power, V& rest) {
  using R = Range<S>; using M = typename Lane<S>::M;
  V n = x * S(1.4426950408889634) + R::shifter, whole = n - R::shifter;
  V r = (x - whole * R::high) - whole * R::low;
  rest = r + r * r * series<S>(r);
  M bits; memcpy(&bits, &n, sizeof(V));
  const S shifter = R::shifter;
  typename R::I zero; memcpy(&zero, &shifter, sizeof(S));
  bits = (bits - zero + typename R::I(R::bias)) << R::mantissa;
  memcpy(&power, &bits, sizeof(V));
}
template <class S, class V> V exp(V x) {
  using R = Range<S>;
  V power, rest;
  exponential<S>(x, power, rest);
  V y = power + power * rest;
  y = x > all<S, V>(R::most) ? all<S, V>(INFINITY) : y;
  return x < all<S, V>(R::least) ? V{} : y;
}
template <class S, class V> V sigmoid(V z) { return S(1) / (S(1) + exp<S>(-z)); }

// The normal distribution, 0.5 erfc(-z / sqrt(2)).
template <class S, class V> V normal(V z) {
  V x = z * S(-0.70710678118654752);
  if constexpr (sizeof(S) == 8) {
    for (int j = 0; j < 8; ++j) x[j] = 0.5 * std::erfc(x[j]);
    return x;
  } else {  // Numerical Recipes, erfcc: a relative error of 1.2e-7 everywhere
    V a = x < V{} ? -x : x, t = S(1) / (S(1) + S(0.5) * a), p = {};
    constexpr double c[] = {0.17087277, -0.82215223, 1.48851587, -1.13520398, 0.27886807,
                            -0.18628806, 0.09678418, 0.37409196, 1.00002368, -1.26551223};
    for (double each : c) p = p * t + S(each);
    V tail = S(0.5) * t * exp<S>(p - a * a);
    return x < V{} ? S(1) - tail : tail;
  }
}

struct identity {
  template <class S, class V> static V at(V z, S, V& d) { d = all<S, V>(1); return z; }
};
struct relu {
  template <class S, class V> static V at(V z, S, V& d) {
    d = z <= 0 ? V{} : all<S, V>(1);  // so written, NaN stays NaN, and hands on its gradient
    return z < 0 ? V{} : z;
  }
};
struct relu6 {
  template <class S, class V> static V at(V z, S, V& d) {
    V six = all<S, V>(6);
    d = (z <= 0) | (z >= six) ? V{} : all<S, V>(1);
    z = z < 0 ? V{} : z;
    return z > six ? six : z;
  }
};
struct leaky_relu {
  template <class S, class V> static V at(V z, S alpha, V& d) {
    d = z > 0 ? all<S, V>(1) : all<S, V>(alpha);
    return z * d;
  }
};
struct silu {
  template <class S, class V> static V at(V z, S, V& d) {
    V s = sigmoid<S>(z), y = z * s;
    d = s + y * (S(1) - s);
    return y;
  }
};
struct hardswish {
  template <class S, class V> static V at(V z, S alpha, V& d) {
    V three = all<S, V>(3), inner = z + three, six = all<S, V>(6);
    inner = inner < 0 ? V{} : inner;
    inner = inner > six ? six : inner;
    d = z * S(1. / 3) + S(0.5);
    d = (z == three) | (z == -three) ? d - z * (alpha * S(1. / 6)) : d;
    d = z > three ? all<S, V>(1) : d;
    d = z < -three ? V{} : d;
    return z * inner * S(1. / 6);
  }
};
struct gelu {
  template <class S, class V> static V at(V z, S, V& d) {
    V s = normal<S>(z);
    d = s + z * exp<S>(z * z * S(-0.5)) * S(0.39894228040143268);
    return z * s;
  }
};
struct gelu_tanh {  // (1 + tanh(t)) / 2 = sigmoid(2 t)
  template <class S, class V> static V at(V z, S, V& d) {
    const S factor = 1.5957691216057308;
    V square = z * z * S(0.044715), s = sigmoid<S>(factor * z * (S(1) + square)), y = z * s;
    d = s + y * (S(1) - s) * factor * (S(1) + S(3) * square);
    return y;
  }
};
struct mish {  // tanh(log(1 + e)) = n / (n + 2) where n = e (e + 2)
  template <class S, class V> static V at(V z, S, V& d) {
    const S enough = sizeof(S) == 4 ? 20 : 40;  // from there on it is 1
    V low = z > all<S, V>(enough) ? all<S, V>(enough) : z, e = exp<S>(low), n = e * (e + S(2));
    V inverse = S(1) / (n + S(2)), w = n * inverse;
    d = w + low * (S(4) * e * inverse) * ((S(1) + e) * inverse);
    return z * w;
  }
};
struct elu {
  template <class S, class V> static V at(V z, S alpha, V& d) {
    using R = Range<S>;
    V low = z < all<S, V>(R::least) ? all<S, V>(R::least) : z, power, rest;
    low = low > 0 ? V{} : low;
    exponential<S>(low, power, rest);
    V less = power * rest + (power - S(1));
    d = z > 0 ? all<S, V>(1) : alpha * (power + power * rest);
    return z > 0 ? z : alpha * less;
  }
};
}  // namespace
