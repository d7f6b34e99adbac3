// Scalar maths of Mish: forward, gradient and second derivative with one exponential and no cancellation. No includes.
//
// With e = exp(x), h = e (e / 2 + 1) and d = h + 1:
//   tanh(softplus(x)) = h / d
//   mish(x)   = x h / d
//   mish'(x)  = e w / d^2,  w = (x + 1) + e (x + 3/2) + e^2 + e^3 / 4   (Misra 2019, omega / 4 and delta / 2)
//   mish''(x) = (e / d^2) (2 (e + 1) + x (1 + e - 3/2 e^2 - e^3) / d)
// Above 20 the first two are x and 1 to the last bit of float32, so x is clamped there before the exponential.
// NaN gives NaN. At +inf: inf, 1, 0. At -inf: forward NaN like torch's operator (the limit is -0); the gradient is NaN
// like torch's on the GPU and the limit -0 on the CPU. Finite values never give a NaN or an infinity.
//
// The GPU computes float32 tensors with expf, and 16-bit ones with the hardware's 2^x, whose relative error of 2^-22 is
// far below a rounding to 16 bits. A build with MISH_EMULATED runs the GPU's formulas on a CPU, for tests: it defines
// the functions named ptx_ before this file.
#ifndef DETECTOR_MISH_MATH_H
#define DETECTOR_MISH_MATH_H

#if defined(__CUDACC__) || defined(MISH_EMULATED)
#define MISH_ON_GPU 1
#else
#define MISH_ON_GPU 0
#endif

#ifdef __CUDACC__
#define MISH_INLINE static __device__ __forceinline__
#else
#define MISH_INLINE static inline __attribute__((always_inline))
#endif

// ---- instructions of the machine

#ifdef __CUDACC__
MISH_INLINE float mish_fma(float a, float b, float c) { return fmaf(a, b, c); }
MISH_INLINE float ptx_exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
MISH_INLINE float ptx_reciprocal(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
MISH_INLINE float ptx_minimum(float x, float bound) {  // keeps NaN, unlike fminf
#if __CUDA_ARCH__ >= 800
    float y;
    asm("min.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(x), "f"(bound));
    return y;
#else
    return x > bound ? bound : x;
#endif
}
// A compiler that does not know that an address is one of global memory emits slower generic accesses.
MISH_INLINE void ptx_assume_global(const void *p) { __builtin_assume(__isGlobal(p)); }
// Pairs of 16-bit numbers in a word, the first in its low half.
MISH_INLINE void ptx_from_half2(unsigned pair, float &low, float &high) {
    asm("{.reg .b16 l, h; mov.b32 {l, h}, %2; cvt.f32.f16 %0, l; cvt.f32.f16 %1, h;}"
        : "=f"(low), "=f"(high)
        : "r"(pair));
}
MISH_INLINE unsigned ptx_to_half2(float low, float high) {
    unsigned pair;
#if __CUDA_ARCH__ >= 800
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
#else
    asm("{.reg .b16 l, h; cvt.rn.f16.f32 l, %1; cvt.rn.f16.f32 h, %2; mov.b32 %0, {l, h};}"
        : "=r"(pair)
        : "f"(low), "f"(high));
#endif
    return pair;
}
MISH_INLINE unsigned ptx_to_bfloat2(float low, float high) {
    unsigned pair;
#if __CUDA_ARCH__ >= 800
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
#else
    const unsigned l = __float_as_uint(low), h = __float_as_uint(high);  // round to nearest even; NaN stays NaN
    const unsigned l16 = low != low ? 0x7fffu : (l + 0x7fffu + ((l >> 16) & 1u)) >> 16;
    const unsigned h16 = high != high ? 0x7fffu : (h + 0x7fffu + ((h >> 16) & 1u)) >> 16;
    pair = l16 | h16 << 16;
#endif
    return pair;
}
#else
MISH_INLINE float mish_fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
#endif

#if MISH_ON_GPU

MISH_INLINE float mish_exp(float x) { return expf(x); }
MISH_INLINE float mish_divide(float a, float b) { return a * ptx_reciprocal(b); }
MISH_INLINE float mish_at_most_20(float x) { return ptx_minimum(x, 20.0f); }

// exp(x) times 2^octaves, by the hardware's 2^x, which gives 0 for less than 2^-126.
template <int octaves>
MISH_INLINE float mish_exp_approximate(float x) {
    constexpr float log2_e = 1.44269504088896341f;
    return ptx_exp2(octaves == 0 ? x * log2_e : mish_fma(x, log2_e, octaves));
}

#else

MISH_INLINE float mish_divide(float a, float b) { return a / b; }
MISH_INLINE float mish_at_most_20(float x) { return x > 20.0f ? 20.0f : x; }

// exp(x) for x <= 20, to 1 ulp: 2^k * p(r) with k = round(x / ln 2) and |r| <= ln 2 / 2 (Cephes' minimax polynomial).
// 2^k is applied as two factors, so that results below the normal range lose bits gradually instead of all at once.
MISH_INLINE float mish_exp(float x) {
    x = x < -110.0f ? -110.0f : x;
    const float shifted = x * 1.44269504088896341f + 12582912.0f;  // 1.5 * 2^23: rounds to an integer in the low bits
    const float k = shifted - 12582912.0f;
    float r = mish_fma(k, -0.693359375f, x);
    r = mish_fma(k, 2.12194440e-4f, r);
    float p = 1.9875691500e-4f;
    p = mish_fma(p, r, 1.3981999507e-3f);
    p = mish_fma(p, r, 8.3334519073e-3f);
    p = mish_fma(p, r, 4.1665795894e-2f);
    p = mish_fma(p, r, 1.6666665459e-1f);
    p = mish_fma(p, r, 5.0000001201e-1f);
    p = mish_fma(p * r, r, r) + 1.0f;
    const int power = (int)k;
    const int half = power >> 1;
    union {
        int bits;
        float value;
    } first = {(half + 127) * (1 << 23)}, second = {(power - half + 127) * (1 << 23)};
    return p * first.value * second.value;
}

#endif

// ---- Mish, given e = exp(min(x, 20)) times 2^octaves: the factor vanishes in the constants

MISH_INLINE constexpr float mish_unit(int octaves) { return 1.0f / (1 << octaves); }

template <int octaves = 0>
MISH_INLINE float mish_forward_of(float x, float e) {
    constexpr float u = mish_unit(octaves);
    const float h = e * mish_fma(e, 0.5f * u * u, u);
    return x * mish_divide(h, h + 1.0f);
}

// `c` is min(x, 20).
template <int octaves = 0>
MISH_INLINE float mish_gradient_of(float c, float e) {
    constexpr float u = mish_unit(octaves);
    const float d = mish_fma(e, mish_fma(e, 0.5f * u * u, u), 1.0f);
    const float square = mish_fma(e, 0.25f * u * u * u * u, u * u * u);
    const float w = mish_fma(e, mish_fma(e, square, mish_fma(c, u * u, 1.5f * u * u)), mish_fma(c, u, u));
    return mish_divide(e * w, d * d);
}

MISH_INLINE float mish_second_of(float c, float e) {
    const float d = mish_fma(e, mish_fma(e, 0.5f, 1.0f), 1.0f);
    const float q = mish_fma(e, mish_fma(e, -1.5f - e, 1.0f), 1.0f);
    const float r = mish_divide(1.0f, d);
    return e * r * r * mish_fma(c * r, q, 2.0f * e + 2.0f);
}

// ---- Mish of a float

MISH_INLINE float mish_forward(float x) { return mish_forward_of(x, mish_exp(mish_at_most_20(x))); }

MISH_INLINE float mish_gradient(float x) {
    float c = mish_at_most_20(x);
#if !MISH_ON_GPU
    c = c < -110.0f ? -110.0f : c;
#endif
    return mish_gradient_of(c, mish_exp(c));
}

MISH_INLINE float mish_second(float x) {
    float c = mish_at_most_20(x);
    c = c < -110.0f ? -110.0f : c;
    return mish_second_of(c, mish_exp(c));
}

#endif
