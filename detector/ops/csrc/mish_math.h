// Scalar maths of Mish: forward and gradient with one exponential and no cancellation. No includes.
//
// With e = exp(x), n = e (e + 2) and d = n + 2:
//   tanh(softplus(x)) = n / d
//   mish(x)  = x n / d
//   mish'(x) = e w / d^2,  w = 4 (x + 1) + e (4 x + 6) + 4 e^2 + e^3   (Misra 2019, omega and delta)
// Above 20 both are x and 1 to the last bit of float32, so x is clamped there before the exponential; NaN passes the
// clamp, +inf gives inf and 1, -inf gives NaN forward as the native operator does.
#ifndef DETECTOR_MISH_MATH_H
#define DETECTOR_MISH_MATH_H

#ifdef __CUDACC__
#define MISH_INLINE static __device__ __forceinline__
#else
#define MISH_INLINE static inline __attribute__((always_inline))
#endif

#ifndef __CUDACC__
// exp(x) for x <= 20, to 1 ulp: 2^k * p(r) with k = round(x / ln 2) and |r| <= ln 2 / 2 (Cephes' minimax polynomial).
// 2^k is applied as two factors, so that results below the normal range lose bits gradually instead of all at once.
MISH_INLINE float mish_exp(float x) {
    x = x < -110.0f ? -110.0f : x;
    const float shifted = x * 1.44269504088896341f + 12582912.0f;  // 1.5 * 2^23: rounds to an integer in the low bits
    const float k = shifted - 12582912.0f;
    float r = __builtin_fmaf(k, -0.693359375f, x);
    r = __builtin_fmaf(k, 2.12194440e-4f, r);
    float p = 1.9875691500e-4f;
    p = __builtin_fmaf(p, r, 1.3981999507e-3f);
    p = __builtin_fmaf(p, r, 8.3334519073e-3f);
    p = __builtin_fmaf(p, r, 4.1665795894e-2f);
    p = __builtin_fmaf(p, r, 1.6666665459e-1f);
    p = __builtin_fmaf(p, r, 5.0000001201e-1f);
    p = __builtin_fmaf(p * r, r, r) + 1.0f;
    const int power = (int)k;
    const int half = power >> 1;
    union { int bits; float value; } first = {(half + 127) << 23}, second = {(power - half + 127) << 23};
    return p * first.value * second.value;
}
#else
MISH_INLINE float mish_exp(float x) { return expf(x); }
#endif

MISH_INLINE float mish_forward(float x) {
    const float e = mish_exp(x > 20.0f ? 20.0f : x);
    const float n = e * (e + 2.0f);
    return x * (n / (n + 2.0f));
}

MISH_INLINE float mish_gradient(float x) {
    float c = x > 20.0f ? 20.0f : x;
    c = c < -100.0f ? -100.0f : c;
    const float e = mish_exp(c);
    const float d = __builtin_fmaf(e, e + 2.0f, 2.0f);
    const float w = __builtin_fmaf(e, __builtin_fmaf(e, e + 4.0f, __builtin_fmaf(4.0f, c, 6.0f)),
                                   __builtin_fmaf(4.0f, c, 4.0f));
    return e * w / (d * d);
}

#endif
