// The passes of activated.py on a CPU, for one activation of activations.h: that named ACTIVATION.
#include "region.h"

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
    if (of_s) run(ActivatedSums<T, true>{dy, x, {centre, scale, shift}, S(alpha)}, five);         \
    else run(ActivatedSums<T, false>{dy, x, {centre, scale, shift}, S(alpha)}, two);              \
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

#define REGION(NAME, T, S)                                                                        \
  void region_attend_##NAME(const T* x, S* work, const S* mu, const S* bias, S* kept, S* scratch, \
                            const S* w1, const S* b1, const S* w2, const S* b2, double alpha,     \
                            bool fixed, int kind, i64 width, int inner, double inner_alpha,       \
                            int gate, i64 N, i64 C, i64 L, bool last, int threads) {              \
    attend<T>(x, work, mu, bias, kept, scratch, alpha, fixed,                                     \
              {w1, b1, w2, b2, kind, width, inner, inner_alpha, gate}, N, C, L, last, threads);   \
  }                                                                                               \
  void region_gradient_##NAME(const T* dy, const T* x, const T* y, const S* statistics,           \
                              const S* line, S* attended, S* scratch, const S* weight,            \
                              const S* w1, const S* w2, T* g, T* dx, S* d_weight, S* d_bias,      \
                              S* d_w1, S* d_b1, S* d_w2, S* d_b2, double alpha, bool fixed,       \
                              int kind, i64 width, int inner, double inner_alpha, int gate, i64 N,\
                              i64 C, i64 L, bool last, int threads) {                             \
    region_gradient<T>(dy, x, y, statistics, line, attended, scratch, weight, g, dx,              \
                       {d_weight, d_bias, d_w1, d_b1, d_w2, d_b2}, alpha, fixed,                  \
                       {w1, nullptr, w2, nullptr, kind, width, inner, inner_alpha, gate}, N, C, L,\
                       last, threads);                                                            \
  }

extern "C" {
PASSES(float, float, float)
PASSES(double, double, double)
PASSES(bfloat16, bf16, float)
REGION(float, float, float)
REGION(double, double, double)
REGION(bfloat16, bf16, float)

void use_gemm(Gemm<float> of_float, Gemm<double> of_double, int (*set_threads)(int)) {
  gemm<float> = of_float;
  gemm<double> = of_double;
  set_blas_threads = set_threads;
}
}
