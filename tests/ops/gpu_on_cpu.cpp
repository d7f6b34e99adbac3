// Runs the GPU kernels on a CPU, for tests: blocks one after the other, the threads of a block as coroutines.
//
// Every thread runs to its next __syncthreads before any runs beyond it, in rising or falling order as asked: a kernel
// that lacks a barrier gives different results in the two orders. Threads that meet at no common barrier are an error.
// The hardware's approximate instructions are replaced by exact ones with an error of choice.
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#define MISH_EMULATED
#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static

struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
static struct {
    unsigned x;
} threadIdx, blockIdx;

extern "C" {
double exp2_error, reciprocal_error;  // relative
}

static float flushed(double y) { return y < 0x1p-126 ? 0.0f : static_cast<float>(y); }
static float ptx_exp2(float x) { return x != x ? x : flushed(std::exp2(static_cast<double>(x)) * (1.0 + exp2_error)); }
static float ptx_reciprocal(float x) { return static_cast<float>(1.0 / x * (1.0 + reciprocal_error)); }
static void ptx_assume_global(const void *) {}
static float rsqrtf(float x) { return static_cast<float>(1.0 / std::sqrt(static_cast<double>(x))); }
static float ptx_minimum(float x, float bound) { return x > bound ? bound : x; }

static unsigned __float_as_uint(float x) {
    unsigned bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}
static float __uint_as_float(unsigned bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}
static uint16_t to_half(float x) {
    const _Float16 half = static_cast<_Float16>(x);
    uint16_t bits;
    std::memcpy(&bits, &half, sizeof bits);
    return bits;
}
static float from_half(uint16_t bits) {
    _Float16 half;
    std::memcpy(&half, &bits, sizeof half);
    return static_cast<float>(half);
}
static void ptx_from_half2(unsigned pair, float &low, float &high) {
    low = from_half(pair & 0xffffu);
    high = from_half(pair >> 16);
}
static unsigned ptx_to_half2(float low, float high) { return to_half(low) | static_cast<unsigned>(to_half(high)) << 16; }
static unsigned to_bfloat(float x) {
    const unsigned bits = __float_as_uint(x);
    return x != x ? 0x7fffu : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
}
static unsigned ptx_to_bfloat2(float low, float high) { return to_bfloat(low) | to_bfloat(high) << 16; }

// ---- coroutines

static void __syncthreads();

#include "mish_kernels.cu"

static constexpr size_t kStackBytes = 1 << 16;
struct Thread {
    ucontext_t context;
    bool finished;
};
static ucontext_t scheduler;
static Thread threads[MISH_THREADS];
static std::unique_ptr<char[]> stacks(new char[kStackBytes * MISH_THREADS]);
static void (*current_kernel)(const void *);
static const void *current_arguments;

__attribute__((noinline)) static void __syncthreads() { swapcontext(&threads[threadIdx.x].context, &scheduler); }

static void run_thread() {
    current_kernel(current_arguments);
    threads[threadIdx.x].finished = true;
}

static int run_block(unsigned num_threads, bool falling) {
    for (unsigned t = 0; t < num_threads; ++t) {
        getcontext(&threads[t].context);
        threads[t].context.uc_stack.ss_sp = stacks.get() + t * kStackBytes;
        threads[t].context.uc_stack.ss_size = kStackBytes;
        threads[t].context.uc_link = &scheduler;
        threads[t].finished = false;
        makecontext(&threads[t].context, run_thread, 0);
    }
    for (unsigned num_finished = 0; num_finished < num_threads;) {
        if (num_finished) return 1;  // some threads have left the kernel while others wait at a barrier
        for (unsigned i = 0; i < num_threads; ++i) {
            threadIdx.x = falling ? num_threads - 1 - i : i;
            swapcontext(&scheduler, &threads[threadIdx.x].context);
        }
        for (unsigned t = 0; t < num_threads; ++t) num_finished += threads[t].finished;
    }
    return 0;
}

struct Entry {
    const char *name;
    void (*call)(const void *);
};

#define ENTRY(kernel, type) {#kernel, [](const void *a) { kernel(*static_cast<const type *>(a)); }}
#define LAYOUTS(kernel) ENTRY(kernel##_last, Arguments), ENTRY(kernel##_planes, Arguments), ENTRY(kernel##_odd, Arguments)
static const Entry entries[] = {
    ENTRY(mish_forward_cells, FlatArguments),
    ENTRY(mish_forward_odd, FlatArguments),
    ENTRY(mish_backward_cells, FlatArguments),
    ENTRY(mish_backward_odd, FlatArguments),
    ENTRY(add_parts, PartialArguments),
    ENTRY(join_statistics, PartialArguments),
    LAYOUTS(norm_statistics),
    LAYOUTS(norm_mish_sums),
    LAYOUTS(norm_mish_forward),
    LAYOUTS(norm_mish_residual),
    LAYOUTS(norm_mish_backward),
    LAYOUTS(bias_mish),
    LAYOUTS(bias_mish_residual),
};

extern "C" {

// The address of a kernel, or null.
const void *find_kernel(const char *name) {
    for (const Entry &entry : entries)
        if (std::strcmp(entry.name, name) == 0) return &entry;
    return nullptr;
}

// Status as the driver has it: 0, or 1 for threads that do not meet.
int launch_kernel(const void *kernel, unsigned num_blocks, unsigned num_threads, void **parameters, int falling) {
    current_kernel = static_cast<const Entry *>(kernel)->call;
    current_arguments = parameters[0];
    for (unsigned i = 0; i < num_blocks; ++i) {
        blockIdx.x = falling ? num_blocks - 1 - i : i;
        if (const int status = run_block(num_threads, falling)) return status;
    }
    return 0;
}

int64_t argument_bytes(int which) {
    return which == 0 ? sizeof(Arguments) : which == 1 ? sizeof(FlatArguments) : sizeof(PartialArguments);
}

// The functions of a float in mish_math.h, as float32 tensors have them on the GPU.
void evaluate(const float *x, float *y, int64_t num, int which) {
    for (int64_t i = 0; i < num; ++i)
        y[i] = which == 0 ? mish_forward(x[i]) : which == 1 ? mish_gradient(x[i]) : mish_second(x[i]);
}
}
