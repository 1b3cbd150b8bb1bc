// The kernels of activated.py's passes, for one activation of activations.h: that named ACTIVATION.
#pragma once
#include "activations.h"
#include "loops.h"

namespace {
using Phi = ACTIVATION;

template <class T> struct Means {
  using S = typename Type<T>::S; using V = typename Type<T>::V;
  static const int params = 2, rows = 4, sums = 1, blocks = 4;
  const T* x; const S* p[2];  // scale, shift
  S* mean; S inverse, alpha;  // inverse: of the number of positions
  void begin(i64, i64, i64, i64) const {}
  void end(i64 at, i64 count) const { for (i64 c = at; c < at + count; ++c) mean[c] *= inverse; }
  void fetch(i64 from, i64 to) const {
    for (i64 i = from; i < to; i += 64 / sizeof(T)) __builtin_prefetch(x + i);
  }
  template <int lanes, bool Again = false> void add(const V* q, i64 i, i64 n, V* sum) const {
    V d, u = Phi::template at<S>(load<T, lanes>(x + i, n) * q[0] + q[1], alpha, d);
    if (Again) u = without_first<S>(u, n);
    if (lanes == FIRST) u = first_lanes<S>(u, n);
    sum[0] += u;
  }
};

template <class T, bool joined> struct Activate {
  using S = typename Type<T>::S; using V = typename Type<T>::V;
  static const int params = 3;
  const T *x, *shortcut; T* y; const S* p[3];  // scale, shift, s
  S alpha;
  template <int lanes> void map(const V* q, i64 i, i64 n) const {
    V d, u = Phi::template at<S>(load<T, lanes>(x + i, n) * q[0] + q[1], alpha, d) * q[2];
    if (joined) u += load<T, lanes>(shortcut + i, n);
    store<T, lanes>(y + i, u, n);
  }
};

template <class T, bool attended> struct ActivatedSums {
  using S = typename Type<T>::S; using V = typename Type<T>::V;
  static const int params = 3, rows = 1, sums = attended ? 5 : 2, blocks = attended ? 2 : 4;
  const T *dy, *x; const S* p[3];  // centre, scale, shift
  S alpha;
  void begin(i64, i64, i64, i64) const {}
  void end(i64, i64) const {}
  void fetch(i64, i64) const {}
  template <int lanes, bool Again = false> void add(const V* q, i64 i, i64 n, V* sum) const {
    V grad = load<T, lanes>(dy + i, n), v = load<T, lanes>(x + i, n), d;
    V u = Phi::template at<S>(v * q[1] + q[2], alpha, d);
    if (Again) { grad = without_first<S>(grad, n); d = without_first<S>(d, n); }
    if (lanes == FIRST) d = first_lanes<S>(d, n);
    v -= q[0];
    sum[0] += grad * d; sum[1] += grad * d * v;
    if constexpr (attended) { sum[2] += grad * u; sum[3] += d; sum[4] += d * v; }
  }
};

template <class T, bool spread> struct Gradient {
  using S = typename Type<T>::S; using V = typename Type<T>::V;
  static const int params = 5 + 2 * spread;
  const T *dy, *x; T* dx;
  const S* p[7];  // scale, shift, factor, offset, d_mean; mean, d_variance
  S share, alpha;  // share: of a position
  template <int lanes> void map(const V* q, i64 i, i64 n) const {
    V v = load<T, lanes>(x + i, n), rest = share * q[4], d;
    Phi::template at<S>(v * q[0] + q[1], alpha, d);
    if constexpr (spread) {
      V factor = S(2) * share * q[6];
      rest = v * factor + (rest - factor * q[5]);
    }
    store<T, lanes>(dx + i, (load<T, lanes>(dy + i, n) * q[2] + q[3]) * d + rest, n);
  }
};
}  // namespace
