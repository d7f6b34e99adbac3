// CPU kernels: Mish, and batch norm + Mish over channels_last activations, for float32 and bfloat16.
//
// Compiled on the user's machine for its processor (-O3 -march=native); the loops are written so that the compiler
// vectorises them. Sums run over a fixed partition of the rows and are combined in a fixed order in double, so a result
// does not depend on the number of threads.
#include <cstdint>
#include <cstring>
#include <vector>

#include "mish_math.h"

namespace {

struct BFloat16 {
    uint16_t bits;
};

inline float load(const float *p) { return *p; }
inline float load(const BFloat16 *p) {
    const uint32_t bits = static_cast<uint32_t>(p->bits) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
inline void store(float *p, float value) { *p = value; }
inline void store(BFloat16 *p, float value) {  // round to nearest even; a NaN stays one
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    p->bits = static_cast<uint16_t>(value != value ? 0x7fc0u : rounded);
}

constexpr int64_t kBlock = 1 << 14;   // elements of a flat work item
constexpr int64_t kParts = 64;        // partial sums over the rows, whatever the number of threads

template <typename T>
void flat_forward(const T *x, T *y, int64_t num) {
#pragma omp parallel for schedule(static)
    for (int64_t start = 0; start < num; start += kBlock) {
        const int64_t stop = start + kBlock < num ? start + kBlock : num;
#pragma omp simd
        for (int64_t i = start; i < stop; ++i) store(y + i, mish_forward(load(x + i)));
    }
}

template <typename T>
void flat_backward(const T *x, const T *grad, T *out, int64_t num) {
#pragma omp parallel for schedule(static)
    for (int64_t start = 0; start < num; start += kBlock) {
        const int64_t stop = start + kBlock < num ? start + kBlock : num;
#pragma omp simd
        for (int64_t i = start; i < stop; ++i) store(out + i, load(grad + i) * mish_gradient(load(x + i)));
    }
}

// Sums two values per channel over all rows: `term(row, channel, first, second)` gives what a row adds.
template <typename Term>
void sum_rows(int64_t rows, int64_t channels, double *first, double *second, const Term &term) {
    const int64_t parts = rows < kParts ? rows : kParts;
    std::vector<float> partial(2 * parts * channels, 0.0f);
#pragma omp parallel for schedule(static)
    for (int64_t part = 0; part < parts; ++part) {
        const int64_t start = rows * part / parts, stop = rows * (part + 1) / parts;
        float *__restrict__ a = partial.data() + 2 * part * channels;
        float *__restrict__ b = a + channels;
        int64_t row = start;
        for (; row + 4 <= stop; row += 4) {  // four rows at a time: a quarter of the trips through the accumulators
#pragma omp simd
            for (int64_t c = 0; c < channels; ++c) {
                float a0, b0, a1, b1, a2, b2, a3, b3;
                term(row, c, a0, b0);
                term(row + 1, c, a1, b1);
                term(row + 2, c, a2, b2);
                term(row + 3, c, a3, b3);
                a[c] += (a0 + a1) + (a2 + a3);
                b[c] += (b0 + b1) + (b2 + b3);
            }
        }
        for (; row < stop; ++row) {
#pragma omp simd
            for (int64_t c = 0; c < channels; ++c) {
                float a0, b0;
                term(row, c, a0, b0);
                a[c] += a0;
                b[c] += b0;
            }
        }
    }
    for (int64_t c = 0; c < channels; ++c) first[c] = second[c] = 0.0;
    for (int64_t part = 0; part < parts; ++part) {
        const float *a = partial.data() + 2 * part * channels;
        for (int64_t c = 0; c < channels; ++c) {
            first[c] += a[c];
            second[c] += a[channels + c];
        }
    }
}

// Few channels leave vector lanes idle: k rows of C channels are then seen as one row of k C channels, with the
// per-channel values repeated k times and the per-channel sums folded afterwards.
int64_t rows_to_join(int64_t rows, int64_t channels) {
    int64_t k = 1;
    while (channels * k < 64 && rows % (2 * k) == 0) k *= 2;
    return k;
}

std::vector<float> repeated(const float *values, int64_t channels, int64_t k) {
    std::vector<float> all(channels * k);
    for (int64_t i = 0; i < channels * k; ++i) all[i] = values[i % channels];
    return all;
}

void fold(std::vector<double> &sums, int64_t channels) {
    for (size_t i = channels; i < sums.size(); ++i) sums[i % channels] += sums[i];
}

// Mean and biased variance of each channel; sums run over x - (first row), which keeps a large mean from cancelling.
template <typename T>
void statistics(const T *x, int64_t rows, int64_t channels, float *mean, float *variance) {
    const int64_t k = rows_to_join(rows, channels), wide = channels * k;
    std::vector<float> origin(wide);
    std::vector<double> sum(wide), squares(wide);
    for (int64_t c = 0; c < wide; ++c) origin[c] = load(x + c % channels);
    const float *shift = origin.data();
    sum_rows(rows / k, wide, sum.data(), squares.data(), [=](int64_t row, int64_t c, float &a, float &b) {
        const float centred = load(x + row * wide + c) - shift[c];
        a = centred;
        b = centred * centred;
    });
    fold(sum, channels);
    fold(squares, channels);
    for (int64_t c = 0; c < channels; ++c) {
        const double offset = sum[c] / rows;
        const double spread = squares[c] / rows - offset * offset;
        mean[c] = static_cast<float>(shift[c] + offset);
        variance[c] = static_cast<float>(spread > 0.0 ? spread : 0.0);
    }
}

template <typename T>
void norm_forward(const T *x, T *y, int64_t rows, int64_t channels, const float *mean, const float *scale,
                  const float *bias) {
    const int64_t k = rows_to_join(rows, channels);
    const std::vector<float> means = repeated(mean, channels, k), scales = repeated(scale, channels, k),
                             biases = repeated(bias, channels, k);
    mean = means.data(), scale = scales.data(), bias = biases.data();
    rows /= k, channels *= k;
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < rows; ++row) {
        const T *in = x + row * channels;
        T *out = y + row * channels;
#pragma omp simd
        for (int64_t c = 0; c < channels; ++c)
            store(out + c, mish_forward(__builtin_fmaf(load(in + c) - mean[c], scale[c], bias[c])));
    }
}

template <typename T>
void norm_backward(const T *x, const T *grad, T *out, int64_t rows, int64_t channels, const float *mean,
                   const float *rstd, const float *weight, const float *bias, float *grad_weight, float *grad_bias) {
    const int64_t k = rows_to_join(rows, channels), joined = rows / k, wide = channels * k;
    const std::vector<float> means = repeated(mean, channels, k), biases = repeated(bias, channels, k);
    std::vector<float> scales(wide), constants(wide), slopes(wide);
    std::vector<double> sum(wide), moment(wide);
    for (int64_t c = 0; c < wide; ++c) scales[c] = weight[c % channels] * rstd[c % channels];
    const float *centre = means.data(), *scale = scales.data(), *shift = biases.data();
    sum_rows(joined, wide, sum.data(), moment.data(), [=](int64_t row, int64_t c, float &a, float &b) {
        const float centred = load(x + row * wide + c) - centre[c];
        a = load(grad + row * wide + c) * mish_gradient(__builtin_fmaf(centred, scale[c], shift[c]));
        b = a * centred;
    });
    fold(sum, channels);
    fold(moment, channels);
    for (int64_t c = 0; c < wide; ++c) {
        const int64_t channel = c % channels;
        constants[c] = static_cast<float>(sum[channel] / rows);
        slopes[c] = static_cast<float>(moment[channel] / rows * rstd[channel] * rstd[channel]);
    }
    for (int64_t c = 0; c < channels; ++c) {
        grad_bias[c] = static_cast<float>(sum[c]);
        grad_weight[c] = static_cast<float>(moment[c] * rstd[c]);
    }
    const float *constant = constants.data(), *slope = slopes.data();
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < joined; ++row) {
        const T *in = x + row * wide, *g = grad + row * wide;
        T *dx = out + row * wide;
#pragma omp simd
        for (int64_t c = 0; c < wide; ++c) {
            const float centred = load(in + c) - centre[c];
            const float inner = load(g + c) * mish_gradient(__builtin_fmaf(centred, scale[c], shift[c]));
            store(dx + c, scale[c] * (inner - constant[c] - centred * slope[c]));
        }
    }
}

}  // namespace

#define DETECTOR_KERNELS(T, NAME)                                                                                      \
    extern "C" void detector_mish_forward_##NAME(const T *x, T *y, int64_t num) { flat_forward(x, y, num); }           \
    extern "C" void detector_mish_backward_##NAME(const T *x, const T *grad, T *out, int64_t num) {                    \
        flat_backward(x, grad, out, num);                                                                              \
    }                                                                                                                  \
    extern "C" void detector_norm_statistics_##NAME(const T *x, int64_t rows, int64_t channels, float *mean,           \
                                                    float *variance) {                                                 \
        statistics(x, rows, channels, mean, variance);                                                                 \
    }                                                                                                                  \
    extern "C" void detector_norm_mish_forward_##NAME(const T *x, T *y, int64_t rows, int64_t channels,                \
                                                      const float *mean, const float *scale, const float *bias) {      \
        norm_forward(x, y, rows, channels, mean, scale, bias);                                                         \
    }                                                                                                                  \
    extern "C" void detector_norm_mish_backward_##NAME(                                                                \
        const T *x, const T *grad, T *out, int64_t rows, int64_t channels, const float *mean, const float *rstd,       \
        const float *weight, const float *bias, float *grad_weight, float *grad_bias) {                                \
        norm_backward(x, grad, out, rows, channels, mean, rstd, weight, bias, grad_weight, grad_bias);                 \
    }

DETECTOR_KERNELS(float, float32)
DETECTOR_KERNELS(BFloat16, bfloat16)
