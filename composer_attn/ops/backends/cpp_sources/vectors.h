// Vectors of 64 bytes over arrays of float, double and bfloat16.
#pragma once
#include <cstdint>
#include <cstring>

namespace {
using i64 = int64_t;
template <class S> struct Lane;
template <> struct Lane<float> {
  typedef float V __attribute__((vector_size(64)));
  typedef int32_t I;
  typedef I M __attribute__((vector_size(64)));
};
template <> struct Lane<double> {
  typedef double V __attribute__((vector_size(64)));
  typedef int64_t I;
  typedef I M __attribute__((vector_size(64)));
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

// Where the lanes of a vector are in memory: side by side, all of them or the first n; or n apart.
enum Lanes { ALL, FIRST, APART };

template <class T, int lanes> typename Type<T>::V load(const T* p, i64 n) {
  const i64 W = 64 / sizeof(typename Type<T>::S);
  if (lanes == ALL) return Type<T>::widen(p);
  T part[W] = {};
  for (i64 i = 0; i < (lanes == APART ? W : n); ++i) part[i] = p[lanes == APART ? i * n : i];
  return Type<T>::widen(part);
}
template <class T, int lanes> void store(T* p, typename Type<T>::V v, i64 n) {
  const i64 W = 64 / sizeof(typename Type<T>::S);
  if (lanes == ALL) return Type<T>::narrow(p, v);
  T part[W];
  Type<T>::narrow(part, v);
  for (i64 i = 0; i < (lanes == APART ? W : n); ++i) p[lanes == APART ? i * n : i] = part[i];
}
template <class V> V cut(V y, V gradient) {  // as a ReLU cuts it, which hands on that of a NaN
  return y <= 0 ? V{} : gradient;
}

template <class S, class V> V first_lanes(V v, i64 n) {
  for (i64 j = n; j < i64(sizeof(V) / sizeof(S)); ++j) v[j] = 0;
  return v;
}

// A vector without its first lanes.
template <class S, class V> V without_first(V v, i64 skip) {
  typename Lane<S>::M lane;
  for (i64 j = 0; j < i64(sizeof(V) / sizeof(S)); ++j) lane[j] = j;
  return lane >= typename Lane<S>::M{} + typename Lane<S>::I(skip) ? v : V{};
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
}  // namespace
