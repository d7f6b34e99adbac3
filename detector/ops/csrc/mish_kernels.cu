// GPU kernels: Mish, batch norm + Mish and bias + Mish, for the storage type that STORAGE names.
//
// Built by NVRTC on the user's machine, once for each storage type, with no header but mish_math.h. Arithmetic is
// float32. A cell is the data of one load: 16 bytes, or one element if channels, plane or addresses are odd.
//
// Kernels over channels treat every layout as images of positions. In channels_last the owner of a cell is a group of
// neighbouring channels, and cells of one owner lie `pitch` cells apart; in NCHW it is one channel, whose planes are
// cells in a row. A thread has one owner, so per-channel values stay in its registers. The positions of all
// images are cut into tiles; part p of `parts` takes the tiles p, p + parts, ... . Sums run over the tiles of a thread,
// then over the threads of a block as a tree, then over the parts in double: always in the same order, without atomics.
#include "mish_math.h"

typedef long long int64;

#define DEVICE __device__ __forceinline__

#ifndef MISH_THREADS
#define MISH_THREADS 256  // of a block, at most
#endif

struct BFloat16 {
    unsigned short bits;
};
struct Float16 {
    unsigned short bits;
};

struct Arguments {
    const void *x, *grad, *residual;
    void *out;
    const float *mean, *scale, *variance, *bias, *constant, *slope;  // of each channel; with a variance, `scale` is the
    // weight, and the scale is weight / sqrt(variance + epsilon)
    float *partial;                                       // sums of each part
    int64 owner_step, image_step, line_step, cell_step;              // in bytes: to the next owner, image, position
    int64 tile_step, wrap_step;                           // in bytes: `parts` tiles on; and where that leaves the image
    int extent, images, chunks;                           // positions of an image; tiles = images * chunks
    int columns, lines, tile;
    int chunk_step, left_step, left_wrap;
    int owners, owner_tiles;                              // owner_tiles = owners / columns, rounded up
    int parts, channels;
    float epsilon;
};

struct FlatArguments {
    const void *x, *grad;
    void *out;
    int64 num;  // elements
};

// ---- storage

template <typename T>
struct Traits;
template <>
struct Traits<float> {
    static constexpr int width = 4, octaves = 0;
    MISH_INLINE float exponential(float c) { return mish_exp(c); }
};
template <>
struct Traits<BFloat16> {
    static constexpr int width = 8, octaves = 8;  // the smallest normal results are those of e = 2^-132.5
    MISH_INLINE float exponential(float c) { return mish_exp_approximate<octaves>(c); }
};
template <>
struct Traits<Float16> {
    static constexpr int width = 8, octaves = 0;
    MISH_INLINE float exponential(float c) { return mish_exp_approximate<octaves>(c); }
};

template <typename T>
MISH_INLINE float forward(float x) {
    return mish_forward_of<Traits<T>::octaves>(x, Traits<T>::exponential(mish_at_most_20(x)));
}
template <typename T>
MISH_INLINE float gradient(float x) {
    const float c = mish_at_most_20(x);
    return mish_gradient_of<Traits<T>::octaves>(c, Traits<T>::exponential(c));
}

MISH_INLINE void unpack(unsigned word, BFloat16, float &low, float &high) {
    low = __uint_as_float(word << 16);
    high = __uint_as_float(word & 0xffff0000u);
}
MISH_INLINE void unpack(unsigned word, Float16, float &low, float &high) { ptx_from_half2(word, low, high); }
MISH_INLINE unsigned pack(float low, float high, BFloat16) { return ptx_to_bfloat2(low, high); }
MISH_INLINE unsigned pack(float low, float high, Float16) { return ptx_to_half2(low, high); }

template <typename T, int width>
struct Cell {
    uint4 words;
    MISH_INLINE void get(Cell cell, float (&v)[width]) {
        unpack(cell.words.x, T{}, v[0], v[1]);
        unpack(cell.words.y, T{}, v[2], v[3]);
        unpack(cell.words.z, T{}, v[4], v[5]);
        unpack(cell.words.w, T{}, v[6], v[7]);
    }
    MISH_INLINE Cell of(const float (&v)[width]) {
        return Cell{uint4{pack(v[0], v[1], T{}), pack(v[2], v[3], T{}), pack(v[4], v[5], T{}), pack(v[6], v[7], T{})}};
    }
};
template <>
struct Cell<float, 4> {
    uint4 words;
    MISH_INLINE void get(Cell cell, float (&v)[4]) {
        v[0] = __uint_as_float(cell.words.x), v[1] = __uint_as_float(cell.words.y);
        v[2] = __uint_as_float(cell.words.z), v[3] = __uint_as_float(cell.words.w);
    }
    MISH_INLINE Cell of(const float (&v)[4]) {
        return Cell{uint4{__float_as_uint(v[0]), __float_as_uint(v[1]), __float_as_uint(v[2]), __float_as_uint(v[3])}};
    }
};
template <typename T>
struct Cell<T, 1> {
    T element;
    MISH_INLINE void get(Cell cell, float (&v)[1]) {
        float high;
        unpack(cell.element.bits, T{}, v[0], high);
    }
    MISH_INLINE Cell of(const float (&v)[1]) {
        return Cell{T{static_cast<unsigned short>(pack(v[0], 0.0f, T{}) & 0xffffu)}};
    }
};
template <>
struct Cell<float, 1> {
    float element;
    MISH_INLINE void get(Cell cell, float (&v)[1]) { v[0] = cell.element; }
    MISH_INLINE Cell of(const float (&v)[1]) { return Cell{v[0]}; }
};

template <typename T, int width>
MISH_INLINE Cell<T, width> load(const void *p, int64 bytes) {
    ptx_assume_global(p);
    return *reinterpret_cast<const Cell<T, width> *>(static_cast<const char *>(p) + bytes);
}
template <typename T, int width>
MISH_INLINE void store(void *p, int64 bytes, const float (&v)[width]) {
    ptx_assume_global(p);
    *reinterpret_cast<Cell<T, width> *>(static_cast<char *>(p) + bytes) = Cell<T, width>::of(v);
}

// ---- Mish of dense memory: one block, one tile

template <typename T, int width, bool backward>
MISH_INLINE void flat(const FlatArguments &a) {
    constexpr int cells = backward ? 2 : 4;  // of each input that a thread holds at once
    constexpr int64 bytes = sizeof(Cell<T, width>);
    const int64 num = a.num / width;
    const int64 first = static_cast<int64>(blockIdx.x) * (MISH_THREADS * cells) + threadIdx.x;
    Cell<T, width> x[cells], grad[cells];
#pragma unroll
    for (int u = 0; u < cells; ++u) {
        if (first + u * MISH_THREADS < num) {
            x[u] = load<T, width>(a.x, (first + u * MISH_THREADS) * bytes);
            if (backward) grad[u] = load<T, width>(a.grad, (first + u * MISH_THREADS) * bytes);
        }
    }
#pragma unroll
    for (int u = 0; u < cells; ++u) {
        if (first + u * MISH_THREADS < num) {
            float v[width], g[width];
            x[u].get(x[u], v);
            if (backward) grad[u].get(grad[u], g);
#pragma unroll
            for (int j = 0; j < width; ++j) v[j] = backward ? g[j] * gradient<T>(v[j]) : forward<T>(v[j]);
            store<T, width>(a.out, (first + u * MISH_THREADS) * bytes, v);
        }
    }
    if (width > 1 && blockIdx.x == 0 && num * width + threadIdx.x < a.num) {  // elements that fill no cell
        const int64 i = num * width + threadIdx.x;
        float v[1], g[1];
        Cell<T, 1>::get(load<T, 1>(a.x, i * sizeof(T)), v);
        if (backward) Cell<T, 1>::get(load<T, 1>(a.grad, i * sizeof(T)), g);
        v[0] = backward ? g[0] * gradient<T>(v[0]) : forward<T>(v[0]);
        store<T, 1>(a.out, i * sizeof(T), v);
    }
}

// ---- the tiles of a thread

struct Place {
    int column, line, owner, part;
    bool active;
    MISH_INLINE Place of(const Arguments &a) {
        Place p;
        p.column = threadIdx.x % a.columns;
        p.line = threadIdx.x / a.columns;
        p.owner = blockIdx.x % a.owner_tiles * a.columns + p.column;
        p.part = blockIdx.x / a.owner_tiles;
        p.active = p.line < a.lines && p.owner < a.owners;
        return p;
    }
};

// A tile is `cells` positions of every line of a block. Reverse order begins with the tiles that the previous pass read
// or wrote last, because they may still be in the cache. A step only adds to `offset` and `left`.
template <bool reverse>
struct Tiles {
    const Arguments &a;
    int tile, chunk;
    int left;      // positions from the thread's own to the end of the image; may be negative
    int64 offset;  // of the thread's first cell, in bytes
    MISH_INLINE Tiles begin(const Arguments &a, const Place &p) {
        int image = p.part / a.chunks;
        const int chunk = p.part - image * a.chunks;
        int first = chunk;
        if (reverse) image = a.images - 1 - image, first = a.chunks - 1 - chunk;
        const int position = first * a.tile + p.line;
        const int64 offset = p.owner * a.owner_step + image * a.image_step + position * a.line_step;
        return Tiles{a, p.active ? p.part : a.images * a.chunks, chunk, a.extent - position, offset};
    }
    DEVICE bool more() const { return tile < a.images * a.chunks; }
    DEVICE void next() {
        tile += a.parts;
        chunk += a.chunk_step;
        left -= reverse ? -a.left_step : a.left_step;
        offset += reverse ? -a.tile_step : a.tile_step;
        if (chunk >= a.chunks) {
            chunk -= a.chunks;
            left += reverse ? -a.left_wrap : a.left_wrap;
            offset += reverse ? -a.wrap_step : a.wrap_step;
        }
    }
    DEVICE bool has(int u) const { return u * a.lines < left; }
    DEVICE int64 at(int u) const { return offset + u * a.cell_step; }
};

// Values of the channels of a thread: `lanes` channels, the first a multiple of `lanes`.
template <int lanes>
MISH_INLINE void load_channels(const float *values, int owner, float (&v)[lanes]) {
    const float *p = values + owner * lanes;
    if constexpr (lanes % 4 == 0) {
#pragma unroll
        for (int j = 0; j < lanes; j += 4) {
            const float4 four = *reinterpret_cast<const float4 *>(p + j);
            v[j] = four.x, v[j + 1] = four.y, v[j + 2] = four.z, v[j + 3] = four.w;
        }
    } else {
#pragma unroll
        for (int j = 0; j < lanes; ++j) v[j] = p[j];
    }
}

template <int lanes>
MISH_INLINE void load_scale(const Arguments &a, int owner, float (&scale)[lanes]) {
    load_channels<lanes>(a.scale, owner, scale);
    if (a.variance == nullptr) return;
    float variance[lanes];
    load_channels<lanes>(a.variance, owner, variance);
#pragma unroll
    for (int j = 0; j < lanes; ++j) scale[j] *= rsqrtf(variance[j] + a.epsilon);
}

// ---- sums over a block

template <int values, int lanes>
struct Board {
    float slot[values][lanes][MISH_THREADS];
};

// Combines the threads of a column pairwise: `join(other)` takes in what the thread with index `other` holds on the
// board, `show()` puts there what this thread holds. The first line ends up with everything.
template <typename Show, typename Join>
MISH_INLINE void combine_lines(const Place &p, const Arguments &a, const Show &show, const Join &join) {
    show();
    int half = 1;
    while (half < a.lines) half *= 2;
    for (half /= 2; half > 0; half /= 2) {
        __syncthreads();
        if (p.line < half && p.line + half < a.lines) {
            join(threadIdx.x + half * a.columns);
            show();
        }
    }
}

template <typename T, int width, int lanes>
MISH_INLINE void norm_statistics(const Arguments &a) {
    constexpr int cells = 4;
    __shared__ Board<2, lanes> board;
    __shared__ float counts[MISH_THREADS];
    const Place p = Place::of(a);
    // Sums of the differences to the thread's first value, so that a large mean does not cancel the variance.
    float shift[lanes], sum[lanes] = {}, squares[lanes] = {}, num = 0.0f;
#pragma unroll
    for (int j = 0; j < lanes; ++j) shift[j] = 0.0f;
    for (auto t = Tiles<false>::begin(a, p); t.more(); t.next()) {
        Cell<T, width> x[cells];
#pragma unroll
        for (int u = 0; u < cells; ++u)
            if (t.has(u)) x[u] = load<T, width>(a.x, t.at(u));
        if (num == 0.0f && t.has(0)) {
            float v[width];
            x[0].get(x[0], v);
#pragma unroll
            for (int j = 0; j < lanes; ++j) shift[j] = v[j];
        }
#pragma unroll
        for (int u = 0; u < cells; ++u) {
            if (!t.has(u)) continue;
            float v[width], cell_sum[lanes] = {}, cell_squares[lanes] = {};
            float(&s)[lanes] = lanes == 1 ? cell_sum : sum, (&q)[lanes] = lanes == 1 ? cell_squares : squares;
            x[u].get(x[u], v);
#pragma unroll
            for (int j = 0; j < width; ++j) {
                const int lane = lanes == 1 ? 0 : j;
                const float centred = v[j] - shift[lane];
                s[lane] += centred;
                q[lane] = mish_fma(centred, centred, q[lane]);
            }
            if (lanes == 1) sum[0] += s[0], squares[0] += q[0];
            num += width / lanes;
        }
    }
    // From here `sum` is the mean and `squares` the sum of the squared differences to it.
#pragma unroll
    for (int j = 0; j < lanes; ++j) {
        if (num == 0.0f) continue;
        const float offset = sum[j] / num;
        const float spread = mish_fma(-offset, sum[j], squares[j]);
        sum[j] = shift[j] + offset;
        squares[j] = spread < 0.0f ? 0.0f : spread;
    }
    combine_lines(
        p, a,
        [&] {
            counts[threadIdx.x] = num;
#pragma unroll
            for (int j = 0; j < lanes; ++j) {
                board.slot[0][j][threadIdx.x] = sum[j];
                board.slot[1][j][threadIdx.x] = squares[j];
            }
        },
        [&](int other) {  // Chan, Golub and LeVeque 1979, "Updating Formulae", equation 2.1
            const float both = num + counts[other];
            if (both == num) return;
            const float share = counts[other] / both;
#pragma unroll
            for (int j = 0; j < lanes; ++j) {
                const float delta = board.slot[0][j][other] - sum[j];
                sum[j] = mish_fma(delta, share, sum[j]);
                squares[j] += mish_fma(delta * delta, num * share, board.slot[1][j][other]);
            }
            num = both;
        });
    if (p.line != 0 || !p.active) return;
    float *mean = a.partial + static_cast<int64>(p.part) * a.channels + p.owner * lanes;
    float *spread = mean + static_cast<int64>(a.parts) * a.channels;
#pragma unroll
    for (int j = 0; j < lanes; ++j) mean[j] = sum[j], spread[j] = squares[j];
    if (p.owner == 0) a.partial[2 * static_cast<int64>(a.parts) * a.channels + p.part] = num;
}

template <typename T, int width, int lanes>
MISH_INLINE void norm_mish_sums(const Arguments &a) {
    constexpr int cells = 2;
    __shared__ Board<2, lanes> board;
    const Place p = Place::of(a);
    float mean[lanes] = {}, scale[lanes] = {}, bias[lanes] = {}, sum[lanes] = {}, moment[lanes] = {};
    if (p.active) {
        load_channels<lanes>(a.mean, p.owner, mean);
        load_scale<lanes>(a, p.owner, scale);
        load_channels<lanes>(a.bias, p.owner, bias);
    }
    for (auto t = Tiles<false>::begin(a, p); t.more(); t.next()) {
        Cell<T, width> x[cells], grad[cells];
#pragma unroll
        for (int u = 0; u < cells; ++u) {
            if (!t.has(u)) continue;
            x[u] = load<T, width>(a.x, t.at(u));
            grad[u] = load<T, width>(a.grad, t.at(u));
        }
#pragma unroll
        for (int u = 0; u < cells; ++u) {
            if (!t.has(u)) continue;
            float v[width], g[width], cell_sum[lanes] = {}, cell_moment[lanes] = {};
            float(&s)[lanes] = lanes == 1 ? cell_sum : sum, (&m)[lanes] = lanes == 1 ? cell_moment : moment;
            x[u].get(x[u], v);
            grad[u].get(grad[u], g);
#pragma unroll
            for (int j = 0; j < width; ++j) {
                const int lane = lanes == 1 ? 0 : j;
                const float centred = v[j] - mean[lane];
                const float inner = g[j] * gradient<T>(mish_fma(centred, scale[lane], bias[lane]));
                s[lane] += inner;
                m[lane] = mish_fma(inner, centred, m[lane]);
            }
            if (lanes == 1) sum[0] += s[0], moment[0] += m[0];
        }
    }
    combine_lines(
        p, a,
        [&] {
#pragma unroll
            for (int j = 0; j < lanes; ++j) {
                board.slot[0][j][threadIdx.x] = sum[j];
                board.slot[1][j][threadIdx.x] = moment[j];
            }
        },
        [&](int other) {
#pragma unroll
            for (int j = 0; j < lanes; ++j) {
                sum[j] += board.slot[0][j][other];
                moment[j] += board.slot[1][j][other];
            }
        });
    if (p.line != 0 || !p.active) return;
    float *first = a.partial + static_cast<int64>(p.part) * a.channels + p.owner * lanes;
    float *second = first + static_cast<int64>(a.parts) * a.channels;
#pragma unroll
    for (int j = 0; j < lanes; ++j) first[j] = sum[j], second[j] = moment[j];
}

// ---- combination of the parts, in double

struct PartialArguments {
    const float *partial, *variance;
    float *first, *second, *constant, *slope;
    double epsilon;
    int64 num;  // values of a channel
    int parts, channels;
};

constexpr int kColumns = 8;  // channels of a block: one sector of memory
constexpr int kLines = MISH_THREADS / kColumns;

template <int values>
MISH_INLINE void add_lines(double (&v)[values], double (*board)[MISH_THREADS]) {
    const int line = threadIdx.x / kColumns;
    for (int half = kLines / 2; half > 0; half /= 2) {
#pragma unroll
        for (int i = 0; i < values; ++i) board[i][threadIdx.x] = v[i];
        __syncthreads();
        if (line < half) {
#pragma unroll
            for (int i = 0; i < values; ++i) v[i] += board[i][threadIdx.x + half * kColumns];
        }
        __syncthreads();
    }
}

// The sums themselves, S1 and S2; with a variance, the gradients of bias and weight, and what is constant in that of x:
// with r = 1 / sqrt(variance + epsilon), S1, S2 r, S1 / num and S2 r^2 / num.
extern "C" __global__ void __launch_bounds__(MISH_THREADS) add_parts(const PartialArguments a) {
    __shared__ double board[2][MISH_THREADS];
    const int channel = blockIdx.x * kColumns + threadIdx.x % kColumns;
    const float *first = a.partial + channel, *second = first + static_cast<int64>(a.parts) * a.channels;
    double v[2] = {};
    if (channel < a.channels) {
        for (int p = threadIdx.x / kColumns; p < a.parts; p += kLines) {
            v[0] += first[static_cast<int64>(p) * a.channels];
            v[1] += second[static_cast<int64>(p) * a.channels];
        }
    }
    add_lines(v, board);
    if (threadIdx.x >= kColumns || channel >= a.channels) return;
    a.first[channel] = static_cast<float>(v[0]);
    if (a.variance == nullptr) {
        a.second[channel] = static_cast<float>(v[1]);
        return;
    }
    const double shrunk = v[1] / (a.variance[channel] + a.epsilon);  // S2 r^2
    a.second[channel] = static_cast<float>(shrunk * sqrt(a.variance[channel] + a.epsilon));
    a.constant[channel] = static_cast<float>(v[0] / a.num);
    a.slope[channel] = static_cast<float>(shrunk / a.num);
}

// Means and summed squares around the mean of the first part.
extern "C" __global__ void __launch_bounds__(MISH_THREADS) join_statistics(const PartialArguments a) {
    __shared__ double board[3][MISH_THREADS];
    const int channel = blockIdx.x * kColumns + threadIdx.x % kColumns;
    const float *mean = a.partial + channel, *spread = mean + static_cast<int64>(a.parts) * a.channels;
    const float *counts = a.partial + 2 * static_cast<int64>(a.parts) * a.channels;
    double v[3] = {};  // number, differences, squares
    if (channel < a.channels) {
        for (int p = threadIdx.x / kColumns; p < a.parts; p += kLines) {
            const double num = counts[p];
            const double offset = static_cast<double>(mean[static_cast<int64>(p) * a.channels]) - mean[0];
            v[0] += num;
            v[1] += num * offset;
            v[2] += num * offset * offset + spread[static_cast<int64>(p) * a.channels];
        }
    }
    add_lines(v, board);
    if (threadIdx.x < kColumns && channel < a.channels) {
        const double offset = v[1] / v[0], variance = v[2] / v[0] - offset * offset;
        a.first[channel] = static_cast<float>(mean[0] + offset);
        a.second[channel] = static_cast<float>(variance < 0.0 ? 0.0 : variance);
    }
}

// ---- operations on every element of a channel

template <typename T, int width, int lanes, bool norm, bool residual>
MISH_INLINE void channel_forward(const Arguments &a) {
    constexpr int cells = residual ? 2 : 4;
    const Place p = Place::of(a);
    if (!p.active) return;
    float mean[lanes], scale[lanes], bias[lanes];
    load_channels<lanes>(a.bias, p.owner, bias);
    if (norm) {
        load_channels<lanes>(a.mean, p.owner, mean);
        load_scale<lanes>(a, p.owner, scale);
    }
    for (auto t = Tiles<true>::begin(a, p); t.more(); t.next()) {
        Cell<T, width> x[cells], r[cells];
#pragma unroll
        for (int u = 0; u < cells; ++u) {
            if (!t.has(u)) continue;
            x[u] = load<T, width>(a.x, t.at(u));
            if (residual) r[u] = load<T, width>(a.residual, t.at(u));
        }
#pragma unroll
        for (int u = 0; u < cells; ++u) {
            if (!t.has(u)) continue;
            float v[width], add[width];
            x[u].get(x[u], v);
            if (residual) r[u].get(r[u], add);
#pragma unroll
            for (int j = 0; j < width; ++j) {
                const int lane = lanes == 1 ? 0 : j;
                const float z = norm ? mish_fma(v[j] - mean[lane], scale[lane], bias[lane]) : v[j] + bias[lane];
                v[j] = residual ? add[j] + forward<T>(z) : forward<T>(z);
            }
            store<T, width>(a.out, t.at(u), v);
        }
    }
}

template <typename T, int width, int lanes>
MISH_INLINE void channel_backward(const Arguments &a) {
    constexpr int cells = 2;
    const Place p = Place::of(a);
    if (!p.active) return;
    float mean[lanes], scale[lanes], bias[lanes], constant[lanes], slope[lanes];
    load_channels<lanes>(a.mean, p.owner, mean);
    load_scale<lanes>(a, p.owner, scale);
    load_channels<lanes>(a.bias, p.owner, bias);
    load_channels<lanes>(a.constant, p.owner, constant);
    load_channels<lanes>(a.slope, p.owner, slope);
    for (auto t = Tiles<true>::begin(a, p); t.more(); t.next()) {
        Cell<T, width> x[cells], grad[cells];
#pragma unroll
        for (int u = 0; u < cells; ++u) {
            if (!t.has(u)) continue;
            x[u] = load<T, width>(a.x, t.at(u));
            grad[u] = load<T, width>(a.grad, t.at(u));
        }
#pragma unroll
        for (int u = 0; u < cells; ++u) {
            if (!t.has(u)) continue;
            float v[width], g[width];
            x[u].get(x[u], v);
            grad[u].get(grad[u], g);
#pragma unroll
            for (int j = 0; j < width; ++j) {
                const int lane = lanes == 1 ? 0 : j;
                const float centred = v[j] - mean[lane];
                const float slant = mish_fma(centred, slope[lane], constant[lane]);
                const float z = mish_fma(centred, scale[lane], bias[lane]);
                v[j] = scale[lane] * mish_fma(g[j], gradient<T>(z), -slant);
            }
            store<T, width>(a.out, t.at(u), v);
        }
    }
}

// ---- the kernels: of whole cells in channels_last (`last`) or NCHW (`planes`), or of single elements (`odd`)

#define MISH_KERNEL(blocks, name, arguments, body)                                                                     \
    extern "C" __global__ void __launch_bounds__(MISH_THREADS, blocks) name(const arguments a) { body(a); }

#define MISH_CHANNEL_KERNELS(layout, width, lanes)                                                                     \
    MISH_KERNEL(4, norm_statistics_##layout, Arguments, (norm_statistics<STORAGE, width, lanes>))                      \
    MISH_KERNEL(3, norm_mish_sums_##layout, Arguments, (norm_mish_sums<STORAGE, width, lanes>))                        \
    MISH_KERNEL(4, norm_mish_forward_##layout, Arguments, (channel_forward<STORAGE, width, lanes, true, false>))       \
    MISH_KERNEL(4, norm_mish_residual_##layout, Arguments, (channel_forward<STORAGE, width, lanes, true, true>))       \
    MISH_KERNEL(3, norm_mish_backward_##layout, Arguments, (channel_backward<STORAGE, width, lanes>))                  \
    MISH_KERNEL(4, bias_mish_##layout, Arguments, (channel_forward<STORAGE, width, lanes, false, false>))              \
    MISH_KERNEL(4, bias_mish_residual_##layout, Arguments, (channel_forward<STORAGE, width, lanes, false, true>))

MISH_KERNEL(4, mish_forward_cells, FlatArguments, (flat<STORAGE, Traits<STORAGE>::width, false>))
MISH_KERNEL(4, mish_forward_odd, FlatArguments, (flat<STORAGE, 1, false>))
MISH_KERNEL(4, mish_backward_cells, FlatArguments, (flat<STORAGE, Traits<STORAGE>::width, true>))
MISH_KERNEL(4, mish_backward_odd, FlatArguments, (flat<STORAGE, 1, true>))
MISH_CHANNEL_KERNELS(last, Traits<STORAGE>::width, Traits<STORAGE>::width)
MISH_CHANNEL_KERNELS(planes, Traits<STORAGE>::width, 1)
MISH_CHANNEL_KERNELS(odd, 1, 1)
