// CPU kernels: Mish, batch norm + Mish, and bias + Mish in place, for float32 and bfloat16, channels_last and NCHW.
//
// Compiled on the user's machine for its processor. A tensor is (batch, channels, plane) in memory order: channels_last
// is a plane of 1 and a batch of all its pixels. Sums run over a fixed partition and are combined in a fixed order in
// double, so that results do not depend on the number of threads.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "vector.h"

namespace {

// The formulas of mish_math.h on vectors.
template <typename T>
VECTOR_INLINE Vector mish(Vector x) {
    const Vector e = exponential<T>(at_least(at_most(x, 20.0f), -110.0f));
    const Vector n = e * (e + 2.0f);
    return x * (n * reciprocal(n + 2.0f));
}

template <typename T>
VECTOR_INLINE Vector mish_slope(Vector x) {
    const Vector c = at_least(at_most(x, 20.0f), -100.0f);
    const Vector e = exponential<T>(c), c4 = c * 4.0f;
    const Vector w = e * (e * (e + 4.0f) + (c4 + 6.0f)) + (c4 + 4.0f);
    const Vector r = reciprocal(e * (e + 2.0f) + 2.0f);
    return (e * w) * (r * r);
}

constexpr int64_t kChunk = 1 << 13;      // elements of one piece of work
constexpr int64_t kSerial = 1 << 15;     // below this many elements a second thread costs more than it saves
constexpr int64_t kParts = 64;           // partial sums, whatever the number of threads
constexpr int64_t kWhole = kLanes;       // a count that the compiler sees to be a full vector

// body(i, count) for every vector of a flat range; count is below kLanes only in the last one.
template <typename Body>
VECTOR_INLINE void each_vector(int64_t start, int64_t stop, const Body &body) {
    for (; start + kLanes <= stop; start += kLanes) body(start, kWhole);
    if (start < stop) body(start, stop - start);
}

template <typename T>
VECTOR_INLINE Vector get(const T *p, int64_t count) {
    return count == kLanes ? load(p) : load(p, count);
}

template <typename T>
VECTOR_INLINE void put(T *p, Vector v, int64_t count) {
    if (count == kLanes) store(p, v);
    else store(p, v, count);
}

template <typename Body>
void flat(int64_t num, const Body &body) {
#pragma omp parallel for schedule(static) if (num > kSerial)
    for (int64_t start = 0; start < num; start += kChunk)
        each_vector(start, std::min(start + kChunk, num), body);
}

// Layout of per-channel values beside the vectors of a tensor: in channels_last a row of `wide` elements, a whole number of
// vectors, repeats the channels; in NCHW every vector belongs to one channel.
struct Grid {
    int64_t batch, channels, plane, num, wide;

    Grid(int64_t batch, int64_t channels, int64_t plane)
        : batch(batch), channels(channels), plane(plane), num(batch * channels * plane),
          wide(plane == 1 ? std::lcm(channels, static_cast<int64_t>(kLanes)) : channels * kLanes) {
        while (plane == 1 && wide < 4 * kLanes) wide *= 2;  // fewer, longer rows
    }

    std::vector<float> spread(const float *values) const {
        std::vector<float> all(wide);
        for (int64_t i = 0; i < wide; ++i) all[i] = values[plane == 1 ? i % channels : i / kLanes];
        return all;
    }
    void fold(const std::vector<double> &sums, double *out) const {
        std::fill(out, out + channels, 0.0);
        for (int64_t i = 0; i < wide; ++i) out[plane == 1 ? i % channels : i / kLanes] += sums[i];
    }
};

// body(i, c, count) for every vector, where c is its index among the per-channel values that were laid out.
template <typename Body>
void each(const Grid &grid, const Body &body) {
    if (grid.plane == 1) {
        const int64_t rows = std::max<int64_t>(kChunk / grid.wide, 1), chunk = rows * grid.wide;
#pragma omp parallel for schedule(static) if (grid.num > kSerial)
        for (int64_t start = 0; start < grid.num; start += chunk) {
            const int64_t stop = std::min(start + chunk, grid.num);
            for (int64_t row = start; row < stop; row += grid.wide)
                each_vector(row, std::min(row + grid.wide, stop),
                            [&](int64_t i, int64_t count) { body(i, i - row, count); });
        }
        return;
    }
    const int64_t pieces = (grid.plane + kChunk - 1) / kChunk, items = grid.batch * grid.channels * pieces;
#pragma omp parallel for schedule(static) if (grid.num > kSerial)
    for (int64_t item = 0; item < items; ++item) {
        const int64_t map = item / pieces, start = map * grid.plane + item % pieces * kChunk;
        const int64_t c = map % grid.channels * kLanes;
        each_vector(start, std::min(start + kChunk, (map + 1) * grid.plane),
                    [&](int64_t i, int64_t count) { body(i, c, count); });
    }
}

// Two sums per channel: term(i, c, count, first, second) returns the terms of a vector; lanes from `count` on are dropped.
template <typename Term>
void sums(const Grid &grid, double *first, double *second, const Term &term) {
    constexpr int64_t kRows = 16;  // rows per trip through the accumulators
    const bool last = grid.plane == 1;
    const int64_t wide = grid.wide, rows = last ? (grid.num + wide - 1) / wide : grid.batch * grid.channels;
    const int64_t parts = last ? std::min(rows, kParts) : grid.batch;
    std::vector<float> partial(2 * parts * wide, 0.0f);
    const auto add = [&](int64_t i, int64_t c, int64_t count, Vector &a, Vector &b) {
        Vector x, y;
        term(i, c, count, x, y);
        if (count < kLanes) {
            float kept[2 * kLanes] = {};
            store(kept, x, count);
            store(kept + kLanes, y, count);
            x = load(kept), y = load(kept + kLanes);
        }
        a += x, b += y;
    };
#pragma omp parallel for schedule(static) if (grid.num > kSerial)
    for (int64_t part = 0; part < parts; ++part) {
        float *__restrict__ a = partial.data() + 2 * part * wide, *__restrict__ b = a + wide;
        const int64_t start = rows * part / parts, stop = rows * (part + 1) / parts;
        if (!last) {
            for (int64_t map = start; map < stop; ++map) {
                const int64_t c = map % grid.channels * kLanes;
                for (int64_t i = map * grid.plane, end = i + grid.plane; i < end; i += kChunk) {
                    Vector x = {}, y = {};  // a sum per piece keeps float sums short
                    each_vector(i, std::min(i + kChunk, end), [&](int64_t j, int64_t n) { add(j, c, n, x, y); });
                    store(a + c, load(a + c) + x);
                    store(b + c, load(b + c) + y);
                }
            }
            continue;
        }
        for (int64_t row = start; row < stop; row += kRows) {
            const int64_t end = std::min(row + kRows, stop);
            for (int64_t c = 0; c < wide; c += kLanes) {
                Vector x = {}, y = {};
                for (int64_t i = row * wide + c; i < end * wide; i += wide)
                    if (i + kLanes <= grid.num) add(i, c, kWhole, x, y);
                    else if (i < grid.num) add(i, c, grid.num - i, x, y);
                store(a + c, load(a + c) + x);
                store(b + c, load(b + c) + y);
            }
        }
    }
    std::vector<double> x(wide, 0.0), y(wide, 0.0);
    for (int64_t part = 0; part < parts; ++part) {
        const float *a = partial.data() + 2 * part * wide, *b = a + wide;
        for (int64_t c = 0; c < wide; ++c) x[c] += a[c], y[c] += b[c];
    }
    grid.fold(x, first);
    grid.fold(y, second);
}

// Mean and biased variance of each channel; sums run over x - (its first value), so that a large mean does not cancel.
template <typename T>
void statistics(const T *x, const Grid &grid, float *mean, float *variance) {
    std::vector<float> origin(grid.channels);
    for (int64_t c = 0; c < grid.channels; ++c) {
        float first[kLanes];
        store(first, load(x + c * grid.plane, 1));
        origin[c] = first[0];
    }
    const std::vector<float> shifts = grid.spread(origin.data());
    std::vector<double> sum(grid.channels), squares(grid.channels);
    sums(grid, sum.data(), squares.data(), [&](int64_t i, int64_t c, int64_t count, Vector &a, Vector &b) {
        a = get(x + i, count) - load(&shifts[c]);
        b = a * a;
    });
    const double size = static_cast<double>(grid.batch * grid.plane);
    for (int64_t c = 0; c < grid.channels; ++c) {
        const double offset = sum[c] / size, spread = squares[c] / size - offset * offset;
        mean[c] = static_cast<float>(origin[c] + offset);
        variance[c] = static_cast<float>(spread > 0.0 ? spread : 0.0);
    }
}

template <typename T>
void norm_mish_forward(const T *x, const T *residual, T *y, const Grid &grid, const float *mean, const float *scale,
                       const float *bias) {
    const std::vector<float> means = grid.spread(mean), scales = grid.spread(scale), biases = grid.spread(bias);
    const auto act = [&](int64_t i, int64_t c, int64_t count) {
        return mish<T>((get(x + i, count) - load(&means[c])) * load(&scales[c]) + load(&biases[c]));
    };
    if (residual == nullptr)
        each(grid, [&](int64_t i, int64_t c, int64_t count) { put(y + i, act(i, c, count), count); });
    else
        each(grid, [&](int64_t i, int64_t c, int64_t count) {
            put(y + i, get(residual + i, count) + act(i, c, count), count);
        });
}

template <typename T>
void norm_mish_train(const T *x, const T *residual, T *y, const Grid &grid, const float *weight, const float *bias,
                     double epsilon, float *mean, float *variance) {
    statistics(x, grid, mean, variance);
    std::vector<float> scale(grid.channels);
    for (int64_t c = 0; c < grid.channels; ++c)
        scale[c] = static_cast<float>(weight[c] / std::sqrt(variance[c] + epsilon));
    norm_mish_forward(x, residual, y, grid, mean, scale.data(), bias);
}

// The first pass sums g = grad * mish'(z) and g (x - mean) and writes g to `out`; the second turns g into the gradient.
template <typename T>
void norm_mish_backward(const T *grad, const T *x, T *out, const Grid &grid, const float *weight, const float *bias,
                        const float *mean, const float *variance, double epsilon, float *grad_weight,
                        float *grad_bias) {
    const int64_t channels = grid.channels;
    std::vector<float> scale(channels), constant(channels), slope(channels);
    std::vector<double> sum(channels), moment(channels), rstd(channels);
    for (int64_t c = 0; c < channels; ++c) {
        rstd[c] = 1.0 / std::sqrt(variance[c] + epsilon);
        scale[c] = static_cast<float>(weight[c] * rstd[c]);
    }
    const std::vector<float> means = grid.spread(mean), scales = grid.spread(scale.data()), biases = grid.spread(bias);
    sums(grid, sum.data(), moment.data(), [&](int64_t i, int64_t c, int64_t count, Vector &a, Vector &b) {
        const Vector centred = get(x + i, count) - load(&means[c]);
        a = get(grad + i, count) * mish_slope<T>(centred * load(&scales[c]) + load(&biases[c]));
        b = a * centred;
        put(out + i, a, count);
    });
    // grad x = scale (g - S1 / M - (x - mean) rstd^2 S2 / M), as scale g - (x slope + constant)
    const double size = static_cast<double>(grid.batch * grid.plane);
    for (int64_t c = 0; c < channels; ++c) {
        grad_bias[c] = static_cast<float>(sum[c]);
        grad_weight[c] = static_cast<float>(moment[c] * rstd[c]);
        constant[c] = static_cast<float>(scale[c] * sum[c] / size);
        slope[c] = static_cast<float>(scale[c] * moment[c] / size * rstd[c] * rstd[c]);
    }
    const std::vector<float> constants = grid.spread(constant.data()), slopes = grid.spread(slope.data());
    each(grid, [&](int64_t i, int64_t c, int64_t count) {
        const Vector centred = get(x + i, count) - load(&means[c]);
        put(out + i, load(&scales[c]) * get(out + i, count) - load(&constants[c]) - centred * load(&slopes[c]), count);
    });
}

template <typename T>
void bias_mish(T *x, const float *bias, const T *residual, const Grid &grid) {
    const std::vector<float> biases = grid.spread(bias);
    each(grid, [&](int64_t i, int64_t c, int64_t count) {
        const Vector y = mish<T>(get(x + i, count) + load(&biases[c]));
        put(x + i, residual == nullptr ? y : get(residual + i, count) + y, count);
    });
}

}  // namespace

#define DETECTOR_KERNELS(T, NAME)                                                                                      \
    extern "C" void detector_mish_forward_##NAME(const T *x, T *y, int64_t num) {                                      \
        flat(num, [=](int64_t i, int64_t count) { put(y + i, mish<T>(get(x + i, count)), count); });                   \
    }                                                                                                                  \
    extern "C" void detector_mish_backward_##NAME(const T *grad, const T *x, T *out, int64_t num) {                    \
        flat(num, [=](int64_t i, int64_t count) {                                                                      \
            put(out + i, get(grad + i, count) * mish_slope<T>(get(x + i, count)), count);                              \
        });                                                                                                            \
    }                                                                                                                  \
    extern "C" void detector_norm_mish_forward_##NAME(const T *x, const T *residual, T *y, int64_t batch,              \
                                                      int64_t channels, int64_t plane, const float *mean,              \
                                                      const float *scale, const float *bias) {                         \
        norm_mish_forward(x, residual, y, Grid(batch, channels, plane), mean, scale, bias);                            \
    }                                                                                                                  \
    extern "C" void detector_norm_mish_train_##NAME(const T *x, const T *residual, T *y, int64_t batch,                \
                                                    int64_t channels, int64_t plane, const float *weight,              \
                                                    const float *bias, double epsilon, float *mean,                    \
                                                    float *variance) {                                                 \
        norm_mish_train(x, residual, y, Grid(batch, channels, plane), weight, bias, epsilon, mean, variance);          \
    }                                                                                                                  \
    extern "C" void detector_norm_mish_backward_##NAME(                                                                \
        const T *grad, const T *x, T *out, int64_t batch, int64_t channels, int64_t plane, const float *weight,        \
        const float *bias, const float *mean, const float *variance, double epsilon, float *grad_weight,               \
        float *grad_bias) {                                                                                            \
        norm_mish_backward(grad, x, out, Grid(batch, channels, plane), weight, bias, mean, variance, epsilon,          \
                           grad_weight, grad_bias);                                                                    \
    }                                                                                                                  \
    extern "C" void detector_bias_mish_##NAME(T *x, const float *bias, const T *residual, int64_t batch,               \
                                              int64_t channels, int64_t plane) {                                       \
        bias_mish(x, bias, residual, Grid(batch, channels, plane));                                                    \
    }

DETECTOR_KERNELS(float, float32)
DETECTOR_KERNELS(BFloat16, bfloat16)
