// The four passes of passes.py on a CPU, and what lies between them, as C functions for ctypes.
#include "region_norm.h"
#include "site.h"

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

#define SITE(NAME, T, S)                                                                          \
  void excite_##NAME(const T* x, const Layers<S>* layers, S* work, i64 N, i64 C, i64 L,           \
                     bool last, int threads) {                                                    \
    excite<T>(x, *layers, work, N, C, L, last, threads);                                          \
  }                                                                                               \
  void site_gradient_##NAME(const T* dy, const T* x, const T* y, S* work, S* scratch,             \
                            const S* weight, const S* w1, const S* w2, T* g, T* dx, S* d_weight,  \
                            S* d_bias, S* d_w1, S* d_b1, S* d_w2, S* d_b2, bool relu,             \
                            bool is_kernel, i64 width, int gate, bool fixed, i64 N, i64 C, i64 L, \
                            bool last, int threads) {                                             \
    const Layers<S> of{w1, nullptr, w2, nullptr, nullptr, nullptr, nullptr, width, gate,          \
                       is_kernel};                                                                \
    site_gradient<T>(dy, x, y, relu, work, scratch, weight, of, fixed, g, dx,                     \
                     {d_weight, d_bias, d_w1, d_b1, d_w2, d_b2}, N, C, L, last, threads);         \
  }

#define REGION(NAME, T, S)                                                                        \
  void region_normalize_##NAME(const T* x, const S* weight, const S* bias, S* running_mean,       \
                               S* running_variance, S* work, S* statistics, S* line,              \
                               double eps, double momentum, double correction, bool fixed, i64 N, \
                               i64 C, i64 L, bool last, int threads) {                            \
    normalize<T>(x, weight, bias, running_mean, running_variance, work, statistics, line, eps,    \
                 momentum, correction, fixed, N, C, L, last, threads);                            \
  }                                                                                               \
  void sum_gradient_##NAME(const T* dy, const T* x, const T* y, const S* statistics,              \
                           S* scratch, const S* weight, T* g, T* dx, S* d_weight, S* d_bias,      \
                           bool fixed, i64 N, i64 C, i64 L, bool last, int threads) {             \
    sum_gradient<T>(dy, x, y, statistics, scratch, weight, g, dx, d_weight, d_bias, fixed, N, C,  \
                    L, last, threads);                                                            \
  }

#define HEAD(NAME, S)                                                                             \
  void attend_##NAME(S* x, const Layers<S>* layers, i64 N, i64 C, i64 L, bool last,               \
                     int threads) {                                                               \
    attend<S>(x, *layers, N, C, L, last, threads);                                                \
  }                                                                                               \
  void attended_weights_##NAME(const S* x, const Layers<S>* layers, const S* weight,              \
                               const S* bias, S* scaled, S* offset, i64 in, i64 C, i64 L,         \
                               bool last, int threads) {                                          \
    attended_weights<S>(x, *layers, weight, bias, scaled, offset, in, C, L, last, threads);       \
  }                                                                                               \
  void site_normalize_##NAME(const Norm<S>* norm, S* work, i64 number, i64 N, i64 C) {            \
    normalize(*norm, work, number, N, C);                                                         \
  }                                                                                               \
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
SITE(float, float, float)
SITE(double, double, double)
SITE(bfloat16, bf16, float)
REGION(float, float, float)
REGION(double, double, double)
REGION(bfloat16, bf16, float)
HEAD(float, float)
HEAD(double, double)

void use_gemm(Gemm<float> of_float, Gemm<double> of_double, int (*set_threads)(int)) {
  gemm<float> = of_float;
  gemm<double> = of_double;
  set_blas_threads = set_threads;
}
}
