// What lies between the passes: arithmetic on (N, C) tensors.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>

namespace {
using i64 = int64_t;

// What normalization.py computes, on blocks of channels.
const i64 BLOCK = 64;

template <class S>
void normalization(const S* s, const S* mean, const S* variance, const S* weight, const S* bias,
                   S* running_mean, S* running_variance, S* scale, S* shift, S* mu, S* inverse,
                   double eps, double momentum, double correction, bool fixed, i64 N, i64 C) {
  for (i64 c = 0; c < C; c += BLOCK) {
    const i64 count = std::min(BLOCK, C - c), end = N * C;
    S m[BLOCK] = {}, v[BLOCK] = {}, w[BLOCK], b[BLOCK];
    for (i64 i = c; !fixed && i < end; i += C)
      for (i64 j = 0; j < count; ++j) m[j] += s[i + j] * mean[i + j];
    for (i64 j = 0; j < count; ++j) m[j] = fixed ? running_mean[c + j] : m[j] / N;
    for (i64 i = c; !fixed && i < end; i += C)
      for (i64 j = 0; j < count; ++j) {
        S deviation = s[i + j] * mean[i + j] - m[j];
        v[j] += s[i + j] * s[i + j] * variance[i + j] + deviation * deviation;
      }
    for (i64 j = 0; j < count; ++j) {
      v[j] = fixed ? running_variance[c + j] : v[j] / N;
      S r = 1 / std::sqrt(v[j] + S(eps));
      mu[c + j] = m[j]; inverse[c + j] = r;
      if (running_mean && !fixed) {
        running_mean[c + j] += S(momentum) * (m[j] - running_mean[c + j]);
        running_variance[c + j] += S(momentum) * (v[j] * S(correction) - running_variance[c + j]);
      }
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
                            S* d_s, S* d_mean, S* d_variance, S* d_weight, S* d_bias, bool fixed,
                            i64 N, i64 C) {
  const S share = S(-1) / N;
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
      // Twice the gradient of var, and the gradient of mu, each shared by the N samples: not 0 times
      // their sums where they are fixed, since one sample's may be infinite.
      dv[j] = fixed ? 0 : dw[j] * w[j] * r * r * share;
      dm[j] = fixed ? 0 : w[j] * db[j] * share;
      d_weight[c + j] = dw[j] * r;
      d_bias[c + j] = db[j];
    }
    for (i64 i = c; i < end; i += C)
      for (i64 j = 0; j < count; ++j) {
        S e = s[i + j], m = mean[i + j];
        S d_scaled = fixed ? 0 : dm[j] + dv[j] * (e * m - mu[c + j]);
        // The sums nearly cancel where the mean is large: add them up before it multiplies them.
        S sum = d_scale[i + j] * w[j] + (d_shift[i + j] * w[j] + d_scaled) * m;
        d_s[i + j] = fixed ? sum : sum + dv[j] * e * variance[i + j];
        d_mean[i + j] = fixed ? 0 : d_scaled * e;
        d_variance[i + j] = fixed ? 0 : e * e * dv[j] / 2;
      }
  }
}

// What logits.py computes: a convolution along the channels, and its gradient. Position j of the
// kernel meets channels c + shift, where both are within 0 to C.
template <class F> void each_position(i64 size, i64 C, F f) {
  for (i64 j = 0; j < size; ++j) {
    const i64 shift = j - size / 2;
    f(j, shift, std::max<i64>(0, -shift), std::min(C, C - shift));
  }
}

template <class S>
void convolve(const S* means, const S* kernel, S* logits, i64 size, i64 N, i64 C) {
  std::fill(logits, logits + N * C, S(0));
  for (i64 n = 0; n < N; ++n, means += C, logits += C)
    each_position(size, C, [&](i64 j, i64 shift, i64 from, i64 to) {
      const S w = kernel[j];
      for (i64 c = from; c < to; ++c) logits[c] += w * means[c + shift];
    });
}

template <class S>
void convolve_gradient(const S* d_logits, const S* means, const S* kernel, S* d_means, S* d_kernel,
                       i64 size, i64 N, i64 C) {
  const i64 LANES = 16;  // partial sums that fill a vector
  std::fill(d_means, d_means + N * C, S(0));
  std::fill(d_kernel, d_kernel + size, S(0));
  for (i64 n = 0; n < N; ++n, means += C, d_logits += C, d_means += C)
    each_position(size, C, [&](i64 j, i64 shift, i64 from, i64 to) {
      const S w = kernel[j];
      for (i64 c = from; c < to; ++c) d_means[c + shift] += w * d_logits[c];
      S part[LANES] = {}, sum = 0;
      i64 c = from;
      for (; c + LANES <= to; c += LANES)
        for (i64 l = 0; l < LANES; ++l) part[l] += d_logits[c + l] * means[c + l + shift];
      for (; c < to; ++c) sum += d_logits[c] * means[c + shift];
      for (i64 l = 0; l < LANES; ++l) sum += part[l];
      d_kernel[j] += sum;
    });
}
}  // namespace
