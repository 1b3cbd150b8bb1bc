// The four passes over a feature map: the kernels, chosen by what is asked for.
#pragma once
#include "kernels.h"
#include "loops.h"

namespace {
// Sums over parts of a single sample, about one shift.
template <class T> struct PartOfMoments : Moments<T> {
  i64 channels, middle;  // middle: where the row of the shift begins
  void begin(i64 at, i64 count, i64, i64) const {
    Moments<T>::begin(at, count, middle + at % channels, 1);
  }
  void end(i64, i64) const {}
};

template <class T, class S = typename Type<T>::S>
void moments_of_parts(const T* x, S* mean, S* variance, i64 C, i64 L, int threads) {
  S *first = scratch<S>(3 * PARTS * C), *second = first + PARTS * C, *shift = second + PARTS * C;
  Moments<T> whole{x, {shift}, mean, variance, shift, S(1) / L};
  reduce(PartOfMoments<T>{whole, C, L / 2 * C}, PARTS, C, L / PARTS, true, threads, {first, second});
  for (i64 c = 0; c < C; ++c) {
    mean[c] = variance[c] = 0;
    for (i64 i = c; i < PARTS * C; i += C) { mean[c] += first[i]; variance[c] += second[i]; }
  }
  whole.end(0, C);
}

template <class T>
void moments(const T* x, typename Type<T>::S* mean, typename Type<T>::S* variance,
             typename Type<T>::S* shift, i64 N, i64 C, i64 L, bool last, int threads) {
  if (in_parts(N, C, L, last)) return moments_of_parts(x, mean, variance, C, L, threads);
  Moments<T> k{x, {shift}, mean, variance, shift, typename Type<T>::S(1) / L};
  reduce(k, N, C, L, last, threads, {mean, variance});
}

// Means over space; there is space for the sums of parts, PARTS C.
template <class T, class S = typename Type<T>::S>
void means(const T* x, S* mean, S* parts, i64 N, i64 C, i64 L, bool last, int threads) {
  if (!in_parts(N, C, L, last))
    return reduce(Averages<T>{x, {}, mean, S(1) / L}, N, C, L, last, threads, {mean});
  reduce(Averages<T>{x, {}, parts, S(1) / L}, PARTS, C, L / PARTS, last, threads, {parts});
  std::copy(parts, parts + C, mean);
  for (i64 i = C; i < PARTS * C; i += C)
    for (i64 c = 0; c < C; ++c) mean[c] += parts[i + c];
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
  auto run = [&](auto k) { reduce(k, N, C, L, last, threads, {first, second}); };
  if (y) run(Sums<T, OUTPUT>{dy, x, y, g, {centre}});
  else if (scale) run(Sums<T, COMPUTED>{dy, x, y, g, {centre, scale, shift}});
  else run(Sums<T, NONE>{dy, x, y, g, {centre}});
}

template <class T, class S = typename Type<T>::S>
void input_gradient(const T* dy, const T* x, const S* slope, const S* mean, const S* d_mean,
                    const S* d_variance, const S* shift, T* dx, i64 N, i64 C, i64 L, bool last,
                    int threads) {
  const S share = S(1) / L;
  auto run = [&](auto k) { map(k, N, C, L, last, threads); };
  const S *m = mean, *v = d_variance;
  if (shift && v) run(InputGradient<T, true, true>{dy, x, dx, {slope, d_mean, shift, m, v}, share});
  else if (shift) run(InputGradient<T, true, false>{dy, x, dx, {slope, d_mean, shift}, share});
  else if (v) run(InputGradient<T, false, true>{dy, x, dx, {slope, d_mean, m, v}, share});
  else run(InputGradient<T, false, false>{dy, x, dx, {slope, d_mean}, share});
}
}  // namespace
