// The four passes of passes.py on a CPU. Rows are (sample, channel) in NCHW, with positions side by
// side; in channels last, rows are positions, with channels side by side. Sums run in an order that
// depends on the shape alone, never on the number of threads.
#include <cstdint>
#include <cstring>
#include <cmath>
#include <algorithm>

namespace {
using i64 = int64_t;
template <class S> struct Lane;
template <> struct Lane<float> {
  typedef float V __attribute__((vector_size(64)));
  typedef int32_t M __attribute__((vector_size(64)));
};
template <> struct Lane<double> {
  typedef double V __attribute__((vector_size(64)));
  typedef int64_t M __attribute__((vector_size(64)));
};
struct bf16 { uint16_t bits; };
typedef uint16_t Bits __attribute__((vector_size(32)));
typedef uint32_t Wide __attribute__((vector_size(64)));

// Storage type -> the type of statistics, and vectors of 64 bytes of the latter.
template <class T> struct Type {
  using S = T;
  using V = typename Lane<S>::V;
  static V widen(const T* p) { V v; memcpy(&v, p, 64); return v; }
  static void narrow(T* p, V v) { memcpy(p, &v, 64); }
  static S scalar(T value) { return value; }
};
template <> struct Type<bf16> {
  using S = float;
  using V = Lane<float>::V;
  static V widen(const bf16* p) {
    Bits b; memcpy(&b, p, 32);
    Wide w = __builtin_convertvector(b, Wide) << 16;
    V v; memcpy(&v, &w, 64); return v;
  }
  static void narrow(bf16* p, V v) {  // rounds to nearest, ties to even, and keeps NaN
    Wide w; memcpy(&w, &v, 64);
    Wide rounded = (w + 0x7fff + ((w >> 16) & 1)) >> 16;
    Wide kept = (Wide)(v == v);
    Bits b = __builtin_convertvector((rounded & kept) | (0x7fc0 & ~kept), Bits);
    memcpy(p, &b, 32);
  }
  static float scalar(bf16 value) {
    uint32_t w = uint32_t(value.bits) << 16;
    float v; memcpy(&v, &w, 4); return v;
  }
};

template <class T, bool Full> typename Type<T>::V load(const T* p, i64 n) {
  if (Full) return Type<T>::widen(p);
  T part[64 / sizeof(typename Type<T>::S)] = {};
  for (i64 i = 0; i < n; ++i) part[i] = p[i];
  return Type<T>::widen(part);
}
template <class T, bool Full> void store(T* p, typename Type<T>::V v, i64 n) {
  if (Full) return Type<T>::narrow(p, v);
  T part[64 / sizeof(typename Type<T>::S)];
  Type<T>::narrow(part, v);
  for (i64 i = 0; i < n; ++i) p[i] = part[i];
}
template <class V> V positive(V condition, V value) {  // 0 where the condition is not above 0
  return condition > 0 ? value : V{};
}

// The sum of a vector's lanes, by halves.
template <class S, int bytes = 64, class V> S total(V v) {
  if constexpr (bytes == sizeof(S)) {
    return v[0];
  } else {
    typedef S Half __attribute__((vector_size(bytes / 2)));
    Half half[2];
    memcpy(half, &v, bytes);
    return total<S, bytes / 2>(half[0] + half[1]);
  }
}

enum Mask { NONE, COMPUTED, OUTPUT };

template <class T> struct Moments {
  using S = typename Type<T>::S; using V = typename Type<T>::V;
  static const int params = 1;
  const T* x; const S* p[1];  // the shift
  S *mean, *variance, *shift; S inverse;  // of the number of positions
  // The shift of channels at, at + 1, ... is the value in the middle, at i, i + step, ...
  void begin(i64 at, i64 count, i64 i, i64 step) const {
    for (i64 c = 0; c < count; ++c) shift[at + c] = Type<T>::scalar(x[i + c * step]);
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
  template <bool Full> void add(const V* q, i64 i, i64 n, V& first, V& second) const {
    V d = load<T, Full>(x + i, n) - q[0];
    // Lanes beyond the end hold 0 - shift: take them out.
    if (!Full) for (i64 j = n; j < i64(64 / sizeof(S)); ++j) d[j] = 0;
    first += d; second += d * d;
  }
};

template <class T, int mask> struct Sums {
  using S = typename Type<T>::S; using V = typename Type<T>::V;
  static const int params = mask == COMPUTED ? 3 : 1;
  const T *dy, *x, *y; T* g; const S* p[3];  // centre, scale, shift
  void begin(i64, i64, i64, i64) const {}
  void end(i64, i64) const {}
  void fetch(i64 from, i64 to) const {
    for (i64 i = from; i < to; i += 64 / sizeof(T)) {
      __builtin_prefetch(dy + i); __builtin_prefetch(x + i);
      if (mask == OUTPUT) __builtin_prefetch(y + i);
    }
  }
  template <bool Full> void add(const V* q, i64 i, i64 n, V& first, V& second) const {
    V grad = load<T, Full>(dy + i, n), v = load<T, Full>(x + i, n);
    if (mask == COMPUTED) grad = positive<V>(v * q[1] + q[2], grad);
    if (mask == OUTPUT) {
      grad = positive<V>(load<T, Full>(y + i, n), grad);
      store<T, Full>(g + i, grad, n);
    }
    first += grad; second += grad * (v - q[0]);
  }
};

template <class T, bool joined, bool relu> struct Affine {
  using S = typename Type<T>::S; using V = typename Type<T>::V;
  static const int params = 2;
  const T *x, *shortcut; T* y; const S* p[2];  // scale, shift
  template <bool Full> void map(const V* q, i64 i, i64 n) const {
    V v = load<T, Full>(x + i, n) * q[0] + q[1];
    if (joined) v += load<T, Full>(shortcut + i, n);
    if (relu) v = v < 0 ? V{} : v;  // so written, NaN stays NaN
    store<T, Full>(y + i, v, n);
  }
};

template <class T, bool masked> struct InputGradient {
  using S = typename Type<T>::S; using V = typename Type<T>::V;
  static const int params = masked ? 5 : 3;
  const T *dy, *x; T* dx; const S* p[5];  // slope, factor, offset, scale, shift
  template <bool Full> void map(const V* q, i64 i, i64 n) const {
    V grad = load<T, Full>(dy + i, n), v = load<T, Full>(x + i, n);
    if (masked) grad = positive<V>(v * q[3] + q[4], grad);
    store<T, Full>(dx + i, grad * q[0] + (v * q[1] + q[2]), n);
  }
};

template <class K, bool Full> void channels(const K& k, typename K::V* q, i64 at, i64 n) {
  for (int j = 0; j < K::params; ++j) q[j] = load<typename K::S, Full>(k.p[j] + at, n);
}
template <class K> void channel(const K& k, typename K::V* q, i64 at) {
  for (int j = 0; j < K::params; ++j) q[j] = typename K::V{} + k.p[j][at];
}

template <class K> void map(const K& k, i64 N, i64 C, i64 L, bool last, int threads) {
  using V = typename K::V;
  const i64 W = 64 / sizeof(typename K::S);
  if (last) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (i64 row = 0; row < N * L; ++row) {
      i64 at = row / L * C, i = row * C, c = 0;
      V q[K::params];
      for (; c + W <= C; c += W) {
        channels<K, true>(k, q, at + c, W);
        k.template map<true>(q, i + c, W);
      }
      if (c < C) {
        channels<K, false>(k, q, at + c, C - c);
        k.template map<false>(q, i + c, C - c);
      }
    }
  } else {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (i64 row = 0; row < N * C; ++row) {
      V q[K::params];
      channel(k, q, row);
      i64 i = row * L, end = i + L;
      for (; i + W <= end; i += W) k.template map<true>(q, i, W);
      if (i < end) k.template map<false>(q, i, end - i);
    }
  }
}

// Add up `rows` rows of B vectors of channels, into first and second.
template <class K, int B, bool Full>
void add_rows(const K& k, i64 i, i64 C, i64 rows, i64 at, i64 n, typename K::S* first,
              typename K::S* second) {
  using V = typename K::V; using S = typename K::S;
  const i64 W = 64 / sizeof(S);
  V q[B][K::params], f[B], s[B];
#pragma GCC unroll 4
  for (int b = 0; b < B; ++b) { f[b] = s[b] = V{}; channels<K, Full>(k, q[b], at + b * W, n); }
  for (i64 r = 0; r < rows; ++r, i += C) {
#pragma GCC unroll 4
    for (int b = 0; b < B; ++b) k.template add<Full>(q[b], i + b * W, n, f[b], s[b]);
  }
#pragma GCC unroll 4
  for (int b = 0; b < B; ++b) {
    i64 c = at + b * W;
    store<S, Full>(first + c, load<S, Full>(first + c, n) + f[b], n);
    store<S, Full>(second + c, load<S, Full>(second + c, n) + s[b], n);
  }
}

template <class K>
void reduce(const K& k, i64 N, i64 C, i64 L, bool last, int threads, typename K::S* first,
            typename K::S* second) {
  using V = typename K::V; using S = typename K::S;
  const i64 W = 64 / sizeof(S), B = 4;
  if (last) {
    // A few rows at a time, which stay in the first cache: memory is read in order, and partial
    // sums keep rounding errors small.
    const i64 rows = std::max<i64>(4, 1024 / C);
    const i64 parts = N >= threads ? 1 : std::min<i64>((C + B * W - 1) / (B * W), threads);
    const i64 width = (C + parts * B * W - 1) / (parts * B * W) * (B * W);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (i64 item = 0; item < N * parts; ++item) {
      i64 n = item / parts, from = item % parts * width, to = std::min(C, from + width);
      k.begin(n * C + from, to - from, (n * L + L / 2) * C + from, 1);
      for (i64 c = from; c < to; ++c) first[n * C + c] = second[n * C + c] = 0;
      for (i64 l = 0; l < L; l += rows) {
        i64 count = std::min(rows, L - l), at = n * C, i = (n * L + l) * C, c = from;
        // Blocks of channels jump from row to row, which the processor does not foresee.
        i64 ahead = i + count * C, share = count * B * W;
        for (; c + B * W <= to; c += B * W, ahead += share) {
          if (C > B * W && l + count < L) k.fetch(ahead, ahead + share);
          add_rows<K, B, true>(k, i + c, C, count, at + c, W, first, second);
        }
        for (; c + W <= to; c += W)
          add_rows<K, 1, true>(k, i + c, C, count, at + c, W, first, second);
        if (c < to) add_rows<K, 1, false>(k, i + c, C, count, at + c, to - c, first, second);
      }
      k.end(n * C + from, to - from);
    }
  } else {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (i64 row = 0; row < N * C; ++row) {
      i64 i = row * L, end = i + L;
      k.begin(row, 1, i + L / 2, 1);
      V q[K::params], f[B] = {}, s[B] = {};
      channel(k, q, row);
      for (; i + B * W <= end; i += B * W) {
#pragma GCC unroll 4
        for (int b = 0; b < B; ++b) k.template add<true>(q, i + b * W, W, f[b], s[b]);
      }
      for (; i + W <= end; i += W) k.template add<true>(q, i, W, f[0], s[0]);
      if (i < end) k.template add<false>(q, i, end - i, f[1], s[1]);
      V fs = (f[0] + f[1]) + (f[2] + f[3]), ss = (s[0] + s[1]) + (s[2] + s[3]);
      first[row] = total<S>(fs); second[row] = total<S>(ss);
      k.end(row, 1);
    }
  }
}

template <class T>
void moments(const T* x, typename Type<T>::S* mean, typename Type<T>::S* variance,
             typename Type<T>::S* shift, i64 N, i64 C, i64 L, bool last, int threads) {
  Moments<T> k{x, {shift}, mean, variance, shift, typename Type<T>::S(1) / L};
  reduce(k, N, C, L, last, threads, mean, variance);
}

template <class T, class S = typename Type<T>::S>
void affine(const T* x, const S* scale, const S* shift, const T* shortcut, T* y, bool relu, i64 N,
            i64 C, i64 L, bool last, int threads) {
  auto run = [&](auto k) { map(k, N, C, L, last, threads); };
  if (shortcut && relu) run(Affine<T, true, true>{x, shortcut, y, {scale, shift}});
  else if (shortcut) run(Affine<T, true, false>{x, shortcut, y, {scale, shift}});
  else if (relu) run(Affine<T, false, true>{x, shortcut, y, {scale, shift}});
  else run(Affine<T, false, false>{x, shortcut, y, {scale, shift}});
}

template <class T, class S = typename Type<T>::S>
void gradient_sums(const T* dy, const T* x, const S* centre, const S* scale, const S* shift,
                   const T* y, T* g, S* first, S* second, i64 N, i64 C, i64 L, bool last,
                   int threads) {
  auto run = [&](auto k) { reduce(k, N, C, L, last, threads, first, second); };
  if (y) run(Sums<T, OUTPUT>{dy, x, y, g, {centre}});
  else if (scale) run(Sums<T, COMPUTED>{dy, x, y, g, {centre, scale, shift}});
  else run(Sums<T, NONE>{dy, x, y, g, {centre}});
}

template <class T, class S = typename Type<T>::S>
void input_gradient(const T* dy, const T* x, const S* slope, const S* mean, const S* d_mean,
                    const S* d_variance, S* factor, S* offset, const S* scale, const S* shift,
                    T* dx, i64 N, i64 C, i64 L, bool last, int threads) {
  const S inverse = S(1) / L;
  for (i64 i = 0; i < N * C; ++i) {
    factor[i] = 2 * inverse * d_variance[i];
    offset[i] = inverse * d_mean[i] - factor[i] * mean[i];
  }
  auto run = [&](auto k) { map(k, N, C, L, last, threads); };
  if (scale) run(InputGradient<T, true>{dy, x, dx, {slope, factor, offset, scale, shift}});
  else run(InputGradient<T, false>{dy, x, dx, {slope, factor, offset}});
}

// What normalization.py computes, on blocks of channels.
const i64 BLOCK = 64;

template <class S>
void normalization(const S* s, const S* mean, const S* variance, const S* weight, const S* bias,
                   S* scale, S* shift, S* mu, S* var, S* inverse, double eps, i64 N, i64 C) {
  for (i64 c = 0; c < C; c += BLOCK) {
    const i64 count = std::min(BLOCK, C - c), end = N * C;
    S m[BLOCK] = {}, v[BLOCK] = {}, w[BLOCK], b[BLOCK];
    for (i64 i = c; i < end; i += C)
      for (i64 j = 0; j < count; ++j) m[j] += s[i + j] * mean[i + j];
    for (i64 j = 0; j < count; ++j) m[j] /= N;
    for (i64 i = c; i < end; i += C)
      for (i64 j = 0; j < count; ++j) {
        S deviation = s[i + j] * mean[i + j] - m[j];
        v[j] += s[i + j] * s[i + j] * variance[i + j] + deviation * deviation;
      }
    for (i64 j = 0; j < count; ++j) {
      v[j] /= N;
      S r = 1 / std::sqrt(v[j] + S(eps));
      mu[c + j] = m[j]; var[c + j] = v[j]; inverse[c + j] = r;
      w[j] = weight ? r * weight[c + j] : r;
      b[j] = (bias ? bias[c + j] : 0) - m[j] * w[j];
    }
    for (i64 i = c; i < end; i += C)
      for (i64 j = 0; j < count; ++j) { scale[i + j] = s[i + j] * w[j]; shift[i + j] = b[j]; }
  }
}

template <class S>
void normalization_gradient(const S* d_scale, const S* d_shift, const S* s, const S* mean,
                            const S* variance, const S* mu, const S* inverse, const S* weight,
                            S* d_s, S* d_mean, S* d_variance, S* d_weight, S* d_bias, i64 N,
                            i64 C) {
  for (i64 c = 0; c < C; c += BLOCK) {
    const i64 count = std::min(BLOCK, C - c), end = N * C;
    S w[BLOCK], db[BLOCK] = {}, dw[BLOCK] = {}, dv[BLOCK], dm[BLOCK];
    for (i64 i = c; i < end; i += C)
      for (i64 j = 0; j < count; ++j) {
        db[j] += d_shift[i + j];
        dw[j] += d_scale[i + j] * s[i + j]
               + d_shift[i + j] * (s[i + j] * mean[i + j] - mu[c + j]);
      }
    for (i64 j = 0; j < count; ++j) {
      S r = inverse[c + j];
      w[j] = weight ? r * weight[c + j] : r;
      // Twice the gradient of var, and the gradient of mu, each shared by the N samples.
      dv[j] = -dw[j] * w[j] * r * r / N;
      dm[j] = -w[j] * db[j] / N;
      d_weight[c + j] = dw[j] * r;
      d_bias[c + j] = db[j];
    }
    for (i64 i = c; i < end; i += C)
      for (i64 j = 0; j < count; ++j) {
        S e = s[i + j], m = mean[i + j];
        S d_scaled = dm[j] + dv[j] * (e * m - mu[c + j]);
        // The sums nearly cancel where the mean is large: add them up before it multiplies them.
        d_s[i + j] = d_scale[i + j] * w[j] + (d_shift[i + j] * w[j] + d_scaled) * m
                   + dv[j] * e * variance[i + j];
        d_mean[i + j] = d_scaled * e;
        d_variance[i + j] = e * e * dv[j] / 2;
      }
  }
}
}  // namespace

#define PASSES(NAME, T, S)                                                                        \
  void moments_##NAME(const T* x, S* mean, S* variance, S* shift, i64 N, i64 C, i64 L, bool last, \
                      int threads) {                                                              \
    moments<T>(x, mean, variance, shift, N, C, L, last, threads);                                 \
  }                                                                                               \
  void affine_##NAME(const T* x, const S* scale, const S* shift, const T* shortcut, T* y,         \
                     bool relu, i64 N, i64 C, i64 L, bool last, int threads) {                    \
    affine<T>(x, scale, shift, shortcut, y, relu, N, C, L, last, threads);                        \
  }                                                                                               \
  void gradient_sums_##NAME(const T* dy, const T* x, const S* centre, const S* scale,             \
                            const S* shift, const T* y, T* g, S* first, S* second, i64 N, i64 C,  \
                            i64 L, bool last, int threads) {                                      \
    gradient_sums<T>(dy, x, centre, scale, shift, y, g, first, second, N, C, L, last, threads);   \
  }                                                                                               \
  void input_gradient_##NAME(const T* dy, const T* x, const S* slope, const S* mean,              \
                             const S* d_mean, const S* d_variance, S* factor, S* offset,          \
                             const S* scale, const S* shift, T* dx, i64 N, i64 C, i64 L,          \
                             bool last, int threads) {                                            \
    input_gradient<T>(dy, x, slope, mean, d_mean, d_variance, factor, offset, scale, shift, dx,   \
                      N, C, L, last, threads);                                                    \
  }

#define NORMALIZATION(NAME, S)                                                                    \
  void normalization_##NAME(const S* s, const S* mean, const S* variance, const S* weight,        \
                            const S* bias, S* scale, S* shift, S* mu, S* var, S* inverse,         \
                            double eps, i64 N, i64 C) {                                           \
    normalization<S>(s, mean, variance, weight, bias, scale, shift, mu, var, inverse, eps, N, C); \
  }                                                                                               \
  void normalization_gradient_##NAME(const S* d_scale, const S* d_shift, const S* s,              \
                                     const S* mean, const S* variance, const S* mu,               \
                                     const S* inverse, const S* weight, S* d_s, S* d_mean,        \
                                     S* d_variance, S* d_weight, S* d_bias, i64 N, i64 C) {       \
    normalization_gradient<S>(d_scale, d_shift, s, mean, variance, mu, inverse, weight, d_s,      \
                              d_mean, d_variance, d_weight, d_bias, N, C);                        \
  }

extern "C" {
PASSES(float, float, float)
PASSES(double, double, double)
PASSES(bfloat16, bf16, float)
NORMALIZATION(float, float)
NORMALIZATION(double, double)
}
