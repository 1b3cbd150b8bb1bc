// The four passes of passes.py on a CPU, and what lies between them, as C functions for ctypes.
#include "head.h"
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
                             const S* d_mean, const S* d_variance, const S* shift, T* dx, i64 N,  \
                             i64 C, i64 L, bool last, int threads) {                              \
    input_gradient<T>(dy, x, slope, mean, d_mean, d_variance, shift, dx, N, C, L, last, threads); \
  }

#define HEAD(NAME, S)                                                                    \
  void normalization_##NAME(const S* s, const S* mean, const S* variance, const S* weight,        \
                            const S* bias, S* running_mean, S* running_variance, S* scale,        \
                            S* shift, S* mu, S* inverse, double eps, double momentum,             \
                            double correction, bool fixed, i64 N, i64 C) {                        \
    normalization<S>(s, mean, variance, weight, bias, running_mean, running_variance, scale,      \
                     shift, mu, inverse, eps, momentum, correction, fixed, N, C);                 \
  }                                                                                               \
  void normalization_gradient_##NAME(const S* d_scale, const S* d_shift, const S* s,              \
                                     const S* mean, const S* variance, const S* mu,               \
                                     const S* inverse, const S* weight, S* d_s, S* d_mean,        \
                                     S* d_variance, S* d_weight, S* d_bias, bool fixed, i64 N,    \
                                     i64 C) {                                                     \
    normalization_gradient<S>(d_scale, d_shift, s, mean, variance, mu, inverse, weight, d_s,      \
                              d_mean, d_variance, d_weight, d_bias, fixed, N, C);                 \
  }                                                                                               \
  void convolve_##NAME(const S* means, const S* kernel, S* logits, i64 size, i64 N, i64 C) {      \
    convolve<S>(means, kernel, logits, size, N, C);                                               \
  }                                                                                               \
  void convolve_gradient_##NAME(const S* d_logits, const S* means, const S* kernel, S* d_means,   \
                                S* d_kernel, i64 size, i64 N, i64 C) {                            \
    convolve_gradient<S>(d_logits, means, kernel, d_means, d_kernel, size, N, C);                 \
  }

extern "C" {
PASSES(float, float, float)
PASSES(double, double, double)
PASSES(bfloat16, bf16, float)
HEAD(float, float)
HEAD(double, double)
}
