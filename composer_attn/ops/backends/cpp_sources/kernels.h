// What the four passes do with a vector of a feature map (vectors.h says of which values). Of one
// that ends a row, n values have been added up before: Again takes them out.
#pragma once
#include <cmath>
#include "vectors.h"

namespace {
enum Mask { NONE, COMPUTED, OUTPUT };

// The moments' first half.
template <class T> struct Averages {
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

template <class T> struct Moments {
  using S = typename Type<T>::S; using V = typename Type<T>::V;
  static const int params = 1, rows = 4, sums = 2, blocks = 4;
  const T* x; const S* p[1];  // the shift
  S *mean, *variance, *shift; S inverse;  // of the number of positions
  // The shift of channels at, at + 1, ... is the value in the middle, at i, i + step, ...
  void begin(i64 at, i64 count, i64 i, i64 step) const {
    for (i64 c = 0; c < count; ++c) {
      S value = Type<T>::scalar(x[i + c * step]);
      shift[at + c] = std::isfinite(value) ? value : 0;
    }
  }
  void fetch(i64 from, i64 to) const {
    for (i64 i = from; i < to; i += 64 / sizeof(T)) __builtin_prefetch(x + i);
  }
  void end(i64 at, i64 count) const {
    for (i64 c = at; c < at + count; ++c) {
      S first = mean[c] * inverse, v = variance[c] * inverse - first * first;
      mean[c] = shift[c] + first;
      variance[c] = v < 0 ? 0 : v;
    }
  }
  template <int lanes, bool Again = false>
  void add(const V* q, i64 i, i64 n, V* sum) const {
    V d = load<T, lanes>(x + i, n) - q[0];
    if (Again) d = without_first<S>(d, n);
    if (lanes == FIRST) d = first_lanes<S>(d, n);  // those beyond hold 0 - shift
    sum[0] += d; sum[1] += d * d;
  }
};

template <class T, int mask> struct Sums {
  using S = typename Type<T>::S; using V = typename Type<T>::V;
  // Several maps are foreseen by the processor only in order, a row at a time.
  static const int params = mask == COMPUTED ? 3 : 1, rows = 1, sums = 2, blocks = 4;
  const T *dy, *x, *y; T* g; const S* p[3];  // centre, scale, shift
  void begin(i64, i64, i64, i64) const {}
  void end(i64, i64) const {}
  void fetch(i64, i64) const {}
  template <int lanes, bool Again = false>
  void add(const V* q, i64 i, i64 n, V* sum) const {
    V grad = load<T, lanes>(dy + i, n), v = load<T, lanes>(x + i, n);
    if (mask == COMPUTED) grad = cut<V>(v * q[1] + q[2], grad);
    if (mask == OUTPUT) {
      grad = cut<V>(load<T, lanes>(y + i, n), grad);
      store<T, lanes>(g + i, grad, n);
    }
    if (Again) grad = without_first<S>(grad, n);
    sum[0] += grad; sum[1] += grad * (v - q[0]);
  }
};

template <class T, bool joined, bool relu> struct Affine {
  using S = typename Type<T>::S; using V = typename Type<T>::V;
  static const int params = 2;
  const T *x, *shortcut; T* y; const S* p[2];  // scale, shift
  template <int lanes> void map(const V* q, i64 i, i64 n) const {
    V v = load<T, lanes>(x + i, n) * q[0] + q[1];
    if (joined) v += load<T, lanes>(shortcut + i, n);
    if (relu) v = v < 0 ? V{} : v;  // so written, NaN stays NaN
    store<T, lanes>(y + i, v, n);
  }
};

template <class T, bool masked, bool spread> struct InputGradient {
  using S = typename Type<T>::S; using V = typename Type<T>::V;
  static const int params = 2 + masked + 2 * spread;
  const T *dy, *x; T* dx; const S* p[5];  // slope, d_mean, shift; mean, d_variance
  S share;  // of a position
  template <int lanes> void map(const V* q, i64 i, i64 n) const {
    V grad = load<T, lanes>(dy + i, n), rest = share * q[1];
    if (masked || spread) {
      V v = load<T, lanes>(x + i, n);
      if (masked) grad = cut<V>(v * q[0] + q[2], grad);
      if (spread) {
        V factor = 2 * share * q[3 + masked];
        rest = v * factor + (rest - factor * q[2 + masked]);
      }
    }
    store<T, lanes>(dx + i, grad * q[0] + rest, n);
  }
};
}  // namespace
