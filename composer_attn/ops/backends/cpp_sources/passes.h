// The four passes over a feature map: the kernels, chosen by what is asked for.
#pragma once
#include "kernels.h"
#include "loops.h"

namespace {
template <class T>
void moments(const T* x, typename Type<T>::S* mean, typename Type<T>::S* variance,
             typename Type<T>::S* shift, i64 N, i64 C, i64 L, bool last, int threads) {
  Moments<T> k{x, {shift}, mean, variance, shift, typename Type<T>::S(1) / L};
  reduce(k, N, C, L, last, threads, {mean, variance});
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
