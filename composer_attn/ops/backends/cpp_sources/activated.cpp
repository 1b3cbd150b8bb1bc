// The passes of activated.py on a CPU, for one activation of activations.h: that named ACTIVATION.
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

template <class T, bool attended> struct Sums {
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

#define PASSES(NAME, T, S)                                                                        \
  void activated_means_##NAME(const T* x, const S* scale, const S* shift, S* mean, double alpha,  \
                              i64 N, i64 C, i64 L, bool last, int threads) {                      \
    Means<T> k{x, {scale, shift}, mean, S(1) / L, S(alpha)};                                      \
    reduce(k, N, C, L, last, threads, {mean});                                                    \
  }                                                                                               \
  void activate_##NAME(const T* x, const S* scale, const S* shift, const S* s, const T* shortcut, \
                       T* y, double alpha, i64 N, i64 C, i64 L, bool last, int threads) {         \
    auto run = [&](auto k) { map(k, N, C, L, last, threads); };                                   \
    if (shortcut) run(Activate<T, true>{x, shortcut, y, {scale, shift, s}, S(alpha)});            \
    else run(Activate<T, false>{x, shortcut, y, {scale, shift, s}, S(alpha)});                    \
  }                                                                                               \
  void activated_sums_##NAME(const T* dy, const T* x, const S* centre, const S* scale,            \
                             const S* shift, S* b, S* d, S* of_s, S* of_one, S* of_x,             \
                             double alpha, i64 N, i64 C, i64 L, bool last, int threads) {         \
    auto run = [&](auto k, auto& out) { reduce(k, N, C, L, last, threads, out); };                \
    S *const five[] = {b, d, of_s, of_one, of_x}, *const two[] = {b, d};                          \
    if (of_s) run(Sums<T, true>{dy, x, {centre, scale, shift}, S(alpha)}, five);                  \
    else run(Sums<T, false>{dy, x, {centre, scale, shift}, S(alpha)}, two);                       \
  }                                                                                               \
  void activated_gradient_##NAME(const T* dy, const T* x, const S* scale, const S* shift,         \
                                 const S* factor, const S* offset, const S* mean,                 \
                                 const S* d_mean, const S* d_variance, T* dx, double alpha,       \
                                 i64 N, i64 C, i64 L, bool last, int threads) {                   \
    const S share = S(1) / L, *m = mean, *v = d_variance;                                         \
    auto run = [&](auto k) { map(k, N, C, L, last, threads); };                                   \
    if (v) run(Gradient<T, true>{dy, x, dx, {scale, shift, factor, offset, d_mean, m, v}, share,  \
                                 S(alpha)});                                                      \
    else run(Gradient<T, false>{dy, x, dx, {scale, shift, factor, offset, d_mean}, share,         \
                                S(alpha)});                                                       \
  }

extern "C" {
PASSES(float, float, float)
PASSES(double, double, double)
PASSES(bfloat16, bf16, float)
}
