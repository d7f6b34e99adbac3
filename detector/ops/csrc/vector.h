// Vectors of floats in the notation of the compiler, with the few instructions that it has no notation for.
//
// One source serves AVX-512 (16 lanes), and AVX2, NEON and plain C++ (8 lanes, which the compiler splits as it must).
#ifndef DETECTOR_VECTOR_H
#define DETECTOR_VECTOR_H

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#include <immintrin.h>
constexpr int kLanes = 16;
#else
constexpr int kLanes = 8;
#endif

#define VECTOR_INLINE static inline __attribute__((always_inline))

typedef float Vector __attribute__((vector_size(4 * kLanes)));
typedef int32_t Integers __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));
typedef uint16_t HalfWords __attribute__((vector_size(2 * kLanes)));

struct BFloat16 {
    uint16_t bits;
};

VECTOR_INLINE Vector splat(float value) { return Vector{} + value; }

VECTOR_INLINE Vector load(const float *p) {
    Vector v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

VECTOR_INLINE Vector load(const BFloat16 *p) {
    HalfWords h;
    std::memcpy(&h, p, sizeof h);
    return (Vector)(__builtin_convertvector(h, Words) << 16);
}

VECTOR_INLINE void store(float *p, Vector v) { std::memcpy(p, &v, sizeof v); }

VECTOR_INLINE void store(BFloat16 *p, Vector v) {  // round to nearest even; NaN stays NaN
#if defined(__AVX512BF16__)
    const __m256bh h = _mm512_cvtneps_pbh((__m512)v);  // results below 2^-126 become 0
#else
    const Words bits = (Words)v;
    const Words rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const HalfWords h = __builtin_convertvector(v != v ? Words{} + 0x7fc0u : rounded, HalfWords);
#endif
    std::memcpy(p, &h, sizeof h);
}

// The first `count` elements only; the others are 0.
template <typename T>
VECTOR_INLINE Vector load(const T *p, int64_t count) {
    T all[kLanes] = {};
    std::memcpy(all, p, count * sizeof(T));
    return load(all);
}

template <typename T>
VECTOR_INLINE void store(T *p, Vector v, int64_t count) {
    T all[kLanes];
    store(all, v);
    std::memcpy(p, all, count * sizeof(T));
}

// Both bounds keep NaN.
VECTOR_INLINE Vector at_most(Vector x, float bound) {
#if defined(__AVX512F__)
    return (Vector)_mm512_min_ps(_mm512_set1_ps(bound), (__m512)x);
#else
    return x > bound ? splat(bound) : x;
#endif
}

VECTOR_INLINE Vector at_least(Vector x, float bound) {
#if defined(__AVX512F__)
    return (Vector)_mm512_max_ps(_mm512_set1_ps(bound), (__m512)x);
#else
    return x < bound ? splat(bound) : x;
#endif
}

// 1 / d for finite d in the normal range, to 1 ulp.
VECTOR_INLINE Vector reciprocal(Vector d) {
#if defined(__AVX512F__)
    const Vector r = (Vector)_mm512_rcp14_ps((__m512)d);
    return r + r * (1.0f - d * r);  // one step of Newton doubles the 14 bits
#else
    return 1.0f / d;
#endif
}

// p * 2^k for whole k, gradually losing bits below the normal range.
VECTOR_INLINE Vector times_power_of_two(Vector p, Vector k) {
#if defined(__AVX512F__)
    return (Vector)_mm512_scalef_ps((__m512)p, (__m512)k);
#else
    const Integers whole = __builtin_convertvector(k, Integers), half = whole >> 1;
    return p * (Vector)((half + 127) << 23) * (Vector)((whole - half + 127) << 23);
#endif
}

// exp(x) for -110 <= x <= 20, as 2^k * p with k = round(x / ln 2): to 1 ulp for float storage (Cephes' minimax
// polynomial and two-part ln 2), to 1e-7 of 2^(x log2 e) as rounded for bfloat16 (minimax polynomial of degree 5 for 2^r, |r| <= 1/2).
template <typename T>
VECTOR_INLINE Vector exponential(Vector x) {
    const float rounder = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
    const Vector k = (x * 1.44269504088896341f + rounder) - rounder;
    if constexpr (sizeof(T) == 4) {
        const Vector r = (x - k * 0.693359375f) + k * 2.12194440e-4f;
        Vector p = 1.9875691500e-4f * r + 1.3981999507e-3f;
        p = p * r + 8.3334519073e-3f;
        p = p * r + 4.1665795894e-2f;
        p = p * r + 1.6666665459e-1f;
        p = p * r + 5.0000001201e-1f;
        return times_power_of_two((p * r) * r + r + 1.0f, k);
    } else {
        const Vector r = x * 1.44269504088896341f - k;
        Vector p = 1.327647196e-3f * r + 9.675541503e-3f;
        p = p * r + 5.550713275e-2f;
        p = p * r + 2.402211972e-1f;
        p = p * r + 6.931469671e-1f;
        return times_power_of_two(p * r + 1.000000072f, k);
    }
}

#endif
