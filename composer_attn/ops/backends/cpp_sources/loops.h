// How the passes go through a feature map. Rows are (sample, channel) in NCHW, with positions side by
// side; in channels last, rows are positions, with channels side by side. Rows in NCHW that are
// shorter than a vector are taken as many at a time as a vector has lanes. Sums run in an order that
// depends on the shape alone, never on the number of threads.
#pragma once
#include <algorithm>
#include <vector>
#include "vectors.h"

namespace {
template <class K, int lanes> void channels(const K& k, typename K::V* q, i64 at, i64 n) {
  for (int j = 0; j < K::params; ++j) q[j] = load<typename K::S, lanes>(k.p[j] + at, n);
}
template <class K> void channel(const K& k, typename K::V* q, i64 at) {
  for (int j = 0; j < K::params; ++j) q[j] = typename K::V{} + k.p[j][at];
}

// How many of the rows in NCHW are taken a vector of rows at a time.
template <class K> i64 rows_apart(i64 rows, i64 L) {
  const i64 W = 64 / sizeof(typename K::S);
  return L < W ? rows / W * W : 0;
}

// In place, no value may be computed twice.
template <class K, bool in_place = false>
void map(const K& k, i64 N, i64 C, i64 L, bool last, int threads) {
  using V = typename K::V;
  const i64 W = 64 / sizeof(typename K::S);
  if (last || L == 1) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (i64 row = 0; row < N * L; ++row) {
      i64 at = row / L * C, i = row * C, c = 0;
      V q[K::params];
      for (; c + W <= C; c += W) {
        channels<K, ALL>(k, q, at + c, W);
        k.template map<ALL>(q, i + c, W);
      }
      if (c < C) {
        channels<K, FIRST>(k, q, at + c, C - c);
        k.template map<FIRST>(q, i + c, C - c);
      }
    }
  } else {
    const i64 apart = rows_apart<K>(N * C, L);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (i64 row = 0; row < apart; row += W) {
      V q[K::params];
      channels<K, ALL>(k, q, row, W);
      for (i64 l = 0; l < L; ++l) k.template map<APART>(q, row * L + l, L);
    }
#pragma omp parallel for schedule(static) num_threads(apart ? 1 : threads)
    for (i64 row = apart; row < N * C; ++row) {
      V q[K::params];
      channel(k, q, row);
      i64 i = row * L, end = i + L;
      for (; i + W <= end; i += W) k.template map<ALL>(q, i, W);
      if (i < end && L >= W && !in_place) k.template map<ALL>(q, end - W, W);
      else if (i < end) k.template map<FIRST>(q, i, end - i);
    }
  }
}

// Add up `rows` rows of B vectors of channels, into sums[0], sums[1], ...
template <class K, int B, int lanes>
void add_rows(const K& k, i64 i, i64 C, i64 rows, i64 at, i64 n, typename K::S* const* sums) {
  using V = typename K::V; using S = typename K::S;
  const i64 W = 64 / sizeof(S);
  V q[B][K::params], f[B][K::sums];
#pragma GCC unroll 4
  for (int b = 0; b < B; ++b) {
    for (V& each : f[b]) each = V{};
    channels<K, lanes>(k, q[b], at + b * W, n);
  }
  for (i64 r = 0; r < rows; ++r, i += C) {
#pragma GCC unroll 4
    for (int b = 0; b < B; ++b) k.template add<lanes>(q[b], i + b * W, n, f[b]);
  }
#pragma GCC unroll 4
  for (int b = 0; b < B; ++b) {
    i64 c = at + b * W;
#pragma GCC unroll 5
    for (int j = 0; j < K::sums; ++j)
      store<S, lanes>(sums[j] + c, load<S, lanes>(sums[j] + c, n) + f[b][j], n);
  }
}

template <class K>
void reduce(const K& k, i64 N, i64 C, i64 L, bool last, int threads,
            typename K::S* const (&sums)[K::sums]) {
  using V = typename K::V; using S = typename K::S;
  const i64 W = 64 / sizeof(S), B = K::blocks;
  if (last || L == 1) {
    // A few rows at a time, which stay in the first cache: memory is read nearly in order, and the
    // sums stay in registers from row to row.
    const i64 rows = std::max<i64>(K::rows, K::rows * 256 / C);
    const i64 parts = N >= threads ? 1 : std::min<i64>((C + B * W - 1) / (B * W), threads);
    const i64 width = (C + parts * B * W - 1) / (parts * B * W) * (B * W);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (i64 item = 0; item < N * parts; ++item) {
      i64 n = item / parts, from = item % parts * width, to = std::min(C, from + width);
      k.begin(n * C + from, to - from, (n * L + L / 2) * C + from, 1);
      for (S* sum : sums)
        for (i64 c = from; c < to; ++c) sum[n * C + c] = 0;
      for (i64 l = 0; l < L; l += rows) {
        i64 count = std::min(rows, L - l), at = n * C, i = (n * L + l) * C, c = from;
        // Blocks of channels jump from row to row, which the processor does not foresee.
        i64 ahead = i + count * C, share = count * B * W;
        for (; c + B * W <= to; c += B * W, ahead += share) {
          if (C > B * W && l + count < L) k.fetch(ahead, ahead + share);
          add_rows<K, B, ALL>(k, i + c, C, count, at + c, W, sums);
        }
        for (; c + W <= to; c += W) add_rows<K, 1, ALL>(k, i + c, C, count, at + c, W, sums);
        if (c < to) add_rows<K, 1, FIRST>(k, i + c, C, count, at + c, to - c, sums);
      }
      k.end(n * C + from, to - from);
    }
  } else {
    const i64 apart = rows_apart<K>(N * C, L);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (i64 row = 0; row < apart; row += W) {
      k.begin(row, W, row * L + L / 2, L);
      V q[K::params], f[K::sums] = {};
      channels<K, ALL>(k, q, row, W);
      for (i64 l = 0; l < L; ++l) k.template add<APART>(q, row * L + l, L, f);
      for (int j = 0; j < K::sums; ++j) store<S, ALL>(sums[j] + row, f[j], W);
      k.end(row, W);
    }
#pragma omp parallel for schedule(static) num_threads(apart ? 1 : threads)
    for (i64 row = apart; row < N * C; ++row) {
      i64 i = row * L, end = i + L;
      k.begin(row, 1, i + L / 2, 1);
      V q[K::params], f[B][K::sums] = {};
      channel(k, q, row);
      for (; i + B * W <= end; i += B * W) {
#pragma GCC unroll 4
        for (int b = 0; b < B; ++b) k.template add<ALL>(q, i + b * W, W, f[b]);
      }
      for (; i + W <= end; i += W) k.template add<ALL>(q, i, W, f[0]);
      if (i < end && L >= W) k.template add<ALL, true>(q, end - W, W - (end - i), f[1]);
      else if (i < end) k.template add<FIRST>(q, i, end - i, f[1]);
#pragma GCC unroll 5
      for (int j = 0; j < K::sums; ++j) {
        V sum = f[0][j] + f[1][j];
        if constexpr (B == 4) sum = sum + (f[2][j] + f[3][j]);
        sums[j][row] = total<S>(sum);
      }
      k.end(row, 1);
    }
  }
}

// A single sample in channels last is taken as several, of some of its rows each: a thread then reads
// rows that the convolution before has left in its cache, not a share of the channels of all.
const i64 PARTS = 4, DIVISIBLE = 1 << 14;
inline bool in_parts(i64 N, i64 C, i64 L, bool last) {
  return N == 1 && last && L % PARTS == 0 && L * C >= DIVISIBLE;
}

// Memory of the calling thread, for numbers of a call.
template <class S> S* scratch(i64 count) {
  static thread_local std::vector<S> kept;
  if (i64(kept.size()) < count) kept.resize(count);
  return kept.data();
}
}  // namespace
