// Two-dimensional convolution on tensor cores, in bf16 and tf32, for sm_80 and later: forward and input gradient.
//
//   output (n, p, q, k)         = sum over r, s, c of input (n, p u + r - pad, q u + s - pad, c) weight (k, r, s, c)
//   input gradient (n, h, w, c) = sum over r, s, k of output gradient (n, (h + pad - r) / u, (w + pad - s) / u, k)
//                                 weight (k, r, s, c), where the stride u divides both
//   input [N, H, W, C], output [N, OH, OW, K], weight [K, R, S, C]
//
// Both are one matrix product whose left operand is gathered, not stored (implicit GEMM):
//
//   result (pixel, channel) = sum over taps t and source channels d of
//                             source (origin (pixel) + offset (t), d) weight (t, d, channel)
//
//            | pixel                | tap                 | row of origin       | row of tap | d | channel
//   forward  | (n, p, q)            | (r, s)              | p u - pad           | origin + r | c | k
//   gradient | (n, i, j) of a class | (a, b): r = r0 + ua | i + floor((y+pad)/u)| origin - a | k | c
//
// A class is the set of input pixels with h = u i + y, w = u j + x for one (y, x). Only the filter rows r = r0 + u a
// with r0 = (y + pad) mod u reach it; columns likewise. So each class is a dense product of its own (blockIdx.z), and
// no multiplication by zero is wasted. A class that no tap reaches is set to zero, or stays unchanged if the gradient
// is accumulated.
//
// Operands are bf16, or float32 rounded to tf32 (to nearest, ties away from zero) when fragments are formed. Sums are
// float32. A result is rounded once, after the existing value is added. Sums run over steps of source channels and,
// within a step, over the taps, always in the same order, so the result depends on neither the tile's width nor
// scheduling. Statistics describe the rounded output: a block computes sums and squared deviations in registers, and
// statistics.cuh explains how blocks are combined.
//
// Bound by operations. For ResNet-18 at batch 128 and 224 x 224 in bf16, a 3 x 3 layer is 30 GFLOP (15 with stride 2)
// in either direction over 18 to 103 MB, 288 to 1685 operations per byte. At 500 TFLOP/s and 4.3 TB/s that is 59 us (30
// us) for the operations and 4 to 24 us for the bytes. A 1 x 1 layer with stride 2 is 2 GFLOP: 3 us for the operations,
// 5 to 18 us for the bytes. All forward convolutions but the stem need 0.89 ms, and so do the input gradients. On an
// H100, 3 x 3 layers reach 204 to 289 TFLOP/s in bf16 and 107 to 135 in tf32; in bf16, all forward convolutions but the
// stem take 1.94 ms and the input gradients 1.68 ms.
//
// Tiles: 128 threads compute 128 pixels x 128 or 64 channels, as 2 x 2 warps of 64 pixels x 64 or 32 channels of m16n8
// fragments. A step multiplies 64 bytes of source channels of one tap: 32 channels of bf16, 16 of tf32. A warp's tile
// is wide to reduce the load on shared memory: in a step, 64 x 64 loads 16 fragments of 512 bytes for 64
// multiplications, 64 x 32 loads 12 for 32. At 128 bytes per clock and 2 clocks per multiplication (A100), a block of
// 128 channels takes 384 clocks of shared memory, including the 16 KB that are copied in, for 512 clocks of tensor
// cores. Eight warps of 64 x 32 would take 512 for 512, and would be slower on an H100. A block of 64 channels takes
// 288 for 256. It is used for results with at most 64 channels and if there are few tiles: layer4 has 196 of the wide
// ones, two rounds on 132 multiprocessors.
// occupancy: with 128 sums per thread the registers hold two blocks of four warps (12.5 %), with 64 sums four blocks
// (25 %). This is faster because many warps are not needed to hide latency: each warp has 64 (32) independent
// multiplications in a step and two steps of copies in flight, and another block multiplies while one waits at its
// barrier.
//
// Taps are the inner loop for the sake of the L1 cache: all taps of one step of channels read the same few pixels, 128
// and a halo, 64 bytes each (16 KB with 56 columns), so about one of nine copies of a source tile should come from L2.
// From L2 alone, a block of 128 x 64 would need 12 KB every 206 clocks (at the 1270 multiply-adds per clock of an
// H100's mma.sync), 60 bytes per clock, but L2 can deliver 25 to 45 to a multiprocessor. Weights bypass L1, where they
// would displace pixels.
//
// Shared memory: a ring of three stages, each the source tile [128 pixels][64 bytes] followed by the weight tile:
// forward [channels][64 bytes], gradient [32 or 16 source channels][channels]. Chunks are 16 bytes; eight of them have
// no bank conflict if their positions differ modulo 8.
//   Rows of 64 bytes: chunk j of row i lies at 4 i + (j ^ (i / 2 mod 4)). ldmatrix reads chunk j of eight rows: i mod 2
//     selects a half of 128 bytes and i / 2 mod 4 permutes within it, so all differ. The copies of eight threads fill
//     two whole rows.
//   Gradient, bf16, rows of 128 or 256 bytes: chunk j of row i lies at j ^ (i mod 8). ldmatrix reads chunk j of eight
//     rows.
//   Gradient, tf32, rows of 256 or 512 bytes: chunk j of row i lies at j ^ 2 (i mod 4). Plain loads of 4 bytes read
//     rows t = 0..3 of two chunks 2 m and 2 m + 1: (2 m ^ 2 t) + (0 or 1), all different.
//
// Where the input of the convolution is the output of a batch norm in training mode, and this input gradient completes the
// gradient of that output, the kernels conv2d_reduce also apply the derivative of the batch norm's activation and make its
// sums (batch_norm.cu): while a block writes its results it reads the input of the batch norm, and its output where a residual
// was added. In layer1 (51 MB an activation in bf16) this replaces a pass that reads two (three) activations, and with a
// residual one read and one write of the pass after it: 308 MB instead of 361, with a residual 411 instead of 566.
//
// Results pass through rows padded by 16 bytes (bf16) or 32 (float32): row i begins 4 i (8 i) banks later, so the pairs
// that lanes store from eight rows (four rows for each half of a warp) have no bank conflict. They are then written in
// whole chunks.
//
// Pipeline: in step i a thread waits for its own copies of step i. The barrier makes the copies of all threads visible
// and guarantees that all threads have read step i - 1, whose stage the copies of step i + 2 then overwrite. The kernel
// assumes nothing else about memory ordering; the emulator checks only this.
//
// dynamic shared memory: conv2d_forward_128_bf16 49152
// dynamic shared memory: conv2d_forward_64_bf16 36864
// dynamic shared memory: conv2d_forward_128_tf32 49152
// dynamic shared memory: conv2d_forward_64_tf32 36864
// dynamic shared memory: conv2d_batch_norm_128_bf16 49152
// dynamic shared memory: conv2d_batch_norm_64_bf16 36864
// dynamic shared memory: conv2d_batch_norm_128_tf32 49152
// dynamic shared memory: conv2d_batch_norm_64_tf32 36864
// dynamic shared memory: conv2d_input_gradient_128_bf16 49664
// dynamic shared memory: conv2d_input_gradient_64_bf16 37376
// dynamic shared memory: conv2d_input_gradient_128_tf32 49664
// dynamic shared memory: conv2d_input_gradient_64_tf32 37376
// dynamic shared memory: conv2d_reduce_128_bf16 49664
// dynamic shared memory: conv2d_reduce_64_bf16 37376
// dynamic shared memory: conv2d_reduce_128_tf32 49664
// dynamic shared memory: conv2d_reduce_64_tf32 37376

#include "batch_norm.cuh"
#include "conv2d.cuh"

template <class T>
struct Conv2dTensorForwardArguments {
    const T* input;         // [N, H, W, C]
    const T* weight;        // [K, R, S, C]
    T* output;              // [N, OH, OW, K]
    float* statistics;      // [rows, 2, K] or null
    unsigned* counters;     // zeros
    Conv2dGeometry geometry;
    int channel_tiles;      // tiles over the output channels, the fastest index in blockIdx.x
};

template <class T>
struct Conv2dTensorBatchNormArguments {
    Conv2dTensorForwardArguments<T> convolution;
    Conv2dFinish finish;
};

template <class T>
struct Conv2dTensorInputGradientArguments {
    const T* output_gradient;    // [N, OH, OW, K]
    const T* weight;             // [K, R, S, C]
    T* input_gradient;           // [N, H, W, C]
    Conv2dGeometry geometry;
    int channel_tiles;           // tiles over the input channels, the fastest index in blockIdx.x
    int accumulate;              // add to the values in `input_gradient`
    int reserved;
};

template <class T>
struct Conv2dTensorReduceArguments {
    Conv2dTensorInputGradientArguments<T> convolution;
    const T* input;                  // of the batch norm, laid out as the input gradient
    const T* output;                 // of the batch norm, if a residual was added before the activation; otherwise null
    const float* saved_statistics;   // [4, C]
    BatchNormSums sums;
    Activation activation;
    int padding;
};

#if RETUNE_TENSOR_CORES

constexpr int kThreads = 128;
constexpr int kPixels = 128;    // of a block
constexpr int kStages = 3;
constexpr int kChunk = 16;       // bytes of a copy
constexpr int kStepBytes = 64;   // of source channels per step
constexpr int kSourceCopies = kPixels * kStepBytes / kChunk / kThreads;
constexpr int kWarpPixels = 64;
constexpr int kPixelFragments = kWarpPixels / 16;
static_assert(kPixels == kPixelsPerBlock, "a block's pixels are a row of statistics");
constexpr unsigned kColumnBit = 1u << 16;    // valid taps of a pixel: filter rows in the lower half, columns in the upper

template <class T>
constexpr int kStep = kStepBytes / static_cast<int>(sizeof(T));

template <int kChannels>
constexpr int kStageBytes = (kPixels + kChannels) * kStepBytes;

// The float32 sums of a warp: 64 pixels x half of the block's channels.
template <int kChannels>
using Sums = float[kPixelFragments][kChannels / 16][4];

// The product in the terms of the file head: positions of pixels, and taps. The same in all threads of a block.
template <class T>
struct Product {
    const T* source;
    const T* weight;
    int channels;           // of the result
    int pixels;             // of the result in this class
    int target_height;      // pixels are (image, row, column) of this grid
    int target_width;
    int origin_step;        // origin row = target row * origin_step + origin_row
    int origin_row;
    int origin_column;
    int source_height;
    int source_width;
    int source_channels;
    int tap_rows;           // the taps, and the filter position of each
    int tap_columns;
    int first_row;
    int first_column;
    int filter_step;
    int kernel_positions;    // R S
    int kernel_width;        // S
};

// Bits of the taps a with 0 <= origin + a < extent, or with 0 <= origin - a < extent.
template <bool kGradient>
__device__ __forceinline__ unsigned valid_taps(int origin, int extent, int taps) {
    const int first = max(kGradient ? origin - extent + 1 : -origin, 0);
    const int end = min(kGradient ? origin + 1 : extent - origin, taps);
    return first < end ? (1u << end) - (1u << first) : 0u;
}

// The operands of one warp in half a step: 64 pixels and the warp's channels, each with 32 bytes of source channels.
template <class T, bool kGradient, int kChannels>
struct Fragments {
    uint32_t source[kPixelFragments][4];
    uint32_t weight[kChannels / 32][4];    // two n8 fragments each

    __device__ __forceinline__ void load(const unsigned char* stage, int half) {
        const int lane = threadIdx.x % kWarp;
        const int warp = threadIdx.x / kWarp;
        const int row = warp / 2 * kWarpPixels + lane % 16;
        const unsigned char* source_row = stage + row * kStepBytes + ((half * 2 + lane / 16) ^ (row / 2 % 4)) * kChunk;
#pragma unroll
        for (int i = 0; i < kPixelFragments; i++) load_matrix_x4(source[i], source_row + i * 16 * kStepBytes);

        const unsigned char* weights = stage + kPixels * kStepBytes;
        const int first_channel = warp % 2 * (kChannels / 2);
        if constexpr (!kGradient) {
            const int channel = first_channel + lane % 8 + lane / 16 * 8;
            const int chunk = (half * 2 + lane / 8 % 2) ^ (channel / 2 % 4);
            const unsigned char* channel_row = weights + channel * kStepBytes + chunk * kChunk;
#pragma unroll
            for (int j = 0; j < kChannels / 32; j++) load_matrix_x4(weight[j], channel_row + j * 16 * kStepBytes);
        } else if constexpr (sizeof(T) == 2) {
            const int depth = half * 16 + lane % 16;
            const unsigned char* depth_row = weights + depth * kChannels * 2;
#pragma unroll
            for (int j = 0; j < kChannels / 32; j++) {
                const int chunk = (first_channel / 8 + j * 2 + lane / 16) ^ (depth % 8);
                load_matrix_x4_transposed(weight[j], depth_row + chunk * kChunk);
            }
        } else {
            const int depth = half * 8 + lane % 4;
            const unsigned char* depth_row = weights + depth * kChannels * 4 + lane / 4 % 4 * 4;
#pragma unroll
            for (int j = 0; j < kChannels / 32; j++) {
#pragma unroll
                for (int k = 0; k < 4; k++) {
                    const int chunk = (first_channel / 4 + j * 4 + k / 2 * 2 + lane / 16) ^ (lane % 4 * 2);
                    const unsigned char* element = depth_row + k % 2 * 4 * kChannels * 4 + chunk * kChunk;
                    weight[j][k] = *reinterpret_cast<const uint32_t*>(element);
                }
            }
        }
    }

    __device__ __forceinline__ void multiply(Sums<kChannels>& sums) {
        if constexpr (sizeof(T) == 4) {
#pragma unroll
            for (int k = 0; k < 4; k++) {
#pragma unroll
                for (int i = 0; i < kPixelFragments; i++) source[i][k] = round_to_tf32(__uint_as_float(source[i][k]));
#pragma unroll
                for (int j = 0; j < kChannels / 32; j++) weight[j][k] = round_to_tf32(__uint_as_float(weight[j][k]));
            }
        }
#pragma unroll
        for (int i = 0; i < kPixelFragments; i++) {
#pragma unroll
            for (int j = 0; j < kChannels / 16; j++) {
                const uint32_t(&pair)[4] = weight[j / 2];
                if constexpr (sizeof(T) == 2) {
                    multiply_add_bf16(sums[i][j], source[i], pair[j % 2 * 2], pair[j % 2 * 2 + 1]);
                } else {
                    multiply_add_tf32(sums[i][j], source[i], pair[j % 2 * 2], pair[j % 2 * 2 + 1]);
                }
            }
        }
    }
};

// Adds the product to `sums`. All shared memory can be reused when it returns.
template <class T, bool kGradient, int kChannels>
__device__ __forceinline__ void multiply(const Product<T>& product, int first_pixel, int first_channel,
                                         unsigned char* shared, Sums<kChannels>& sums) {
    constexpr int kVector = kVectorLength<T>;
    const int thread = threadIdx.x;
    const int chunk = thread % 4;
    const int row = thread / 4;

    // Each thread computes the origin and the valid taps of one pixel, then reads those of the four pixels that it
    // copies. The table lies in the last stage, to which nothing is copied before the first barrier of the loop.
    int* origins = reinterpret_cast<int*>(shared + (kStages - 1) * kStageBytes<kChannels>);
    unsigned* taps = reinterpret_cast<unsigned*>(origins + kPixels);
    {
        const int pixel = first_pixel + thread;
        const int target_row = pixel / product.target_width;
        const int image = target_row / product.target_height;
        const int y = (target_row - image * product.target_height) * product.origin_step + product.origin_row;
        const int x = (pixel - target_row * product.target_width) * product.origin_step + product.origin_column;
        const bool exists = pixel < product.pixels;
        origins[thread] = exists ? (image * product.source_height + y) * product.source_width + x : 0;
        taps[thread] = exists ? valid_taps<kGradient>(y, product.source_height, product.tap_rows) |
                                    valid_taps<kGradient>(x, product.source_width, product.tap_columns) * kColumnBit
                              : 0u;
    }
    __syncthreads();
    int origin[kSourceCopies];
    unsigned valid[kSourceCopies];
#pragma unroll
    for (int i = 0; i < kSourceCopies; i++) {
        origin[i] = origins[row + i * (kPixels / kSourceCopies)];
        valid[i] = taps[row + i * (kPixels / kSourceCopies)];
    }

    // The copies of a thread lie 128 chunks apart in both tiles.
    constexpr int kCopyDistance = kThreads * kChunk;
    constexpr int kWeightCopies = kChannels * kStepBytes / kCopyDistance;
    constexpr int kChunksPerDepth = kChannels / kVector;
    const int source_target = row * kStepBytes + (chunk ^ (row / 2 % 4)) * kChunk;
    // Forward: rows are channels of the result, and a copy contains source channels. Gradient: the reverse.
    const int depth_row = thread / kChunksPerDepth;
    const int depth_chunk = thread % kChunksPerDepth;
    const int depth_swizzle = sizeof(T) == 2 ? depth_row % 8 : depth_row % 4 * 2;
    const int depth_target = (depth_row * kChunksPerDepth + (depth_chunk ^ depth_swizzle)) * kChunk;
    const int weight_target = kPixels * kStepBytes + (kGradient ? depth_target : source_target);
    const int weight_row = kGradient ? depth_row : first_channel + row;
    const int weight_rows = kGradient ? product.source_channels : product.channels;
    const int weight_channel = kGradient ? first_channel + depth_chunk * kVector : chunk * kVector;
    const int weight_row_bytes = product.kernel_positions * static_cast<int>(sizeof(T)) *
                                 (kGradient ? product.channels : product.source_channels);
    const int source_row_bytes = product.source_channels * static_cast<int>(sizeof(T));
    const unsigned char* weight_start = reinterpret_cast<const unsigned char*>(product.weight + weight_channel);
    const unsigned char* source_start = reinterpret_cast<const unsigned char*>(product.source + chunk * kVector);

    // The step to copy next.
    int tap_row = 0;
    int tap_column = 0;
    int depth = 0;    // its first source channel

    // Addresses outside the tensor are formed but not read, so that one wide multiply-add computes each address.
    const auto copy = [&](unsigned char* stage) {
        const bool channel_exists = depth + chunk * kVector < product.source_channels;
        const unsigned tap = 1u << tap_row | kColumnBit << tap_column;
        const int distance = tap_row * product.source_width + tap_column;
        const unsigned char* source = source_start + depth * static_cast<int>(sizeof(T));
#pragma unroll
        for (int i = 0; i < kSourceCopies; i++) {
            const int pixel = kGradient ? origin[i] - distance : origin[i] + distance;
            copy_async_16_cached(stage + source_target + i * kCopyDistance,
                                 source + static_cast<long long>(pixel) * source_row_bytes,
                                 channel_exists && (valid[i] & tap) == tap);
        }
        const int position = (product.first_row + product.filter_step * tap_row) * product.kernel_width +
                             product.first_column + product.filter_step * tap_column;
        const int column = kGradient ? position * product.channels : position * product.source_channels + depth;
        const bool column_exists = kGradient ? weight_channel < product.channels : channel_exists;
        const unsigned char* weight = weight_start + column * static_cast<int>(sizeof(T));
        const int copy_row = kGradient ? weight_row + depth : weight_row;
        constexpr int kRowDistance = kGradient ? kThreads / kChunksPerDepth : kThreads / 4;
#pragma unroll
        for (int i = 0; i < kWeightCopies; i++) {
            const int current = copy_row + i * kRowDistance;
            copy_async_16(stage + weight_target + i * kCopyDistance,
                          weight + static_cast<long long>(current) * weight_row_bytes,
                          column_exists && current < weight_rows);
        }
        tap_column++;
        if (tap_column == product.tap_columns) {
            tap_column = 0;
            tap_row++;
            if (tap_row == product.tap_rows) {
                tap_row = 0;
                depth += kStep<T>;
            }
        }
    };

    const int steps = product.tap_rows * product.tap_columns * divide_up(product.source_channels, kStep<T>);
#pragma unroll
    for (int stage = 0; stage < kStages - 1; stage++) {
        if (stage < steps) copy(shared + stage * kStageBytes<kChannels>);
        copy_async_commit();
    }
    int multiplied = 0;
    int copied = kStages - 1;
    for (int step = 0; step < steps; step++) {
        copy_async_wait<kStages - 2>();
        __syncthreads();
        const unsigned char* stage = shared + multiplied * kStageBytes<kChannels>;
        Fragments<T, kGradient, kChannels> first;
        first.load(stage, 0);
        if (step + kStages - 1 < steps) copy(shared + copied * kStageBytes<kChannels>);
        copy_async_commit();
        Fragments<T, kGradient, kChannels> second;
        second.load(stage, 1);
        first.multiply(sums);
        second.multiply(sums);
        multiplied = multiplied + 1 < kStages ? multiplied + 1 : 0;
        copied = copied + 1 < kStages ? copied + 1 : 0;
    }
    copy_async_wait<0>();
    __syncthreads();
}

// The tile of the epilogue: as many pixels at once as three stages hold.
template <class T, int kChannels>
struct Staging {
    static constexpr int kPadding = sizeof(T) == 2 ? 16 : 32;
    static constexpr int kRowBytes = kChannels * static_cast<int>(sizeof(T)) + kPadding;
    static constexpr int kRows = sizeof(T) == 2 ? kPixels : kWarpPixels;
    static constexpr int kBytes = kRows * kRowBytes;
    static constexpr int kChunksPerRow = kChannels / kVectorLength<T>;
    static_assert(kBytes <= kStages * kStageBytes<kChannels>, "the tile fits the ring");
};

// Two neighbours in a row of the staging tile.
__device__ __forceinline__ void stage_pair(unsigned char* target, float first, float second, bf16) {
    *reinterpret_cast<uint32_t*>(target) = pack_bf16(first, second);
}

__device__ __forceinline__ void stage_pair(unsigned char* target, float first, float second, float) {
    *reinterpret_cast<float2*>(target) = make_float2(first, second);
}

__device__ __forceinline__ float2 staged_pair(const unsigned char* source, bf16) {
    const uint32_t pair = *reinterpret_cast<const uint32_t*>(source);
    return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
}

__device__ __forceinline__ float2 staged_pair(const unsigned char* source, float) {
    return *reinterpret_cast<const float2*>(source);
}

// Adds the values that exist at `existing`, if there are any: then `channels` is a multiple of the vector length.
template <class T>
struct Accumulate {
    static constexpr bool kOnlyVectors = true;
    const T* existing;    // laid out as the result

    __device__ __forceinline__ float2 operator()(float first, float second, float2 added, int) const {
        return make_float2(first + added.x, second + added.y);
    }
};

// Applies a batch norm, with the residual as existing values.
template <class T>
struct Finish {
    static constexpr bool kOnlyVectors = false;
    const T* existing;
    const Conv2dFinish& finish;
    const float2* affines;    // of the block's channels, in shared memory

    __device__ __forceinline__ float2 operator()(float first, float second, float2 added, int column) const {
        const auto stored = [](float sum) { return to_float(from_float<T>(sum)); };
        return make_float2(finish.apply(stored(first), affines[column], added.x),
                           finish.apply(stored(second), affines[column + 1], added.y));
    }
};

// Writes chunks as they are.
template <class T>
struct Store {
    static constexpr int kChunks = 1;

    // `channel` is that of the chunks. Places without an element are negative.
    __device__ __forceinline__ void operator()(T* result, const long long (&elements)[kChunks], int,
                                               const uint4 (&chunks)[kChunks]) const {
        if (elements[0] >= 0) *reinterpret_cast<uint4*>(result + elements[0]) = chunks[0];
    }
};

// Applies the derivative of a batch norm's activation to chunks before it writes them, and adds what the backward pass of the
// batch norm sums: g and g (x - mean). A thread always has the same channels. Sums are kept apart by rows modulo a number
// that does not depend on the tile's width, so their order does not either.
template <class T, int kChannels>
struct Reduce {
    static constexpr int kChunks = 4;
    static constexpr int kVector = kVectorLength<T>;
    static constexpr int kParts = kChannels / 64;
    const Conv2dTensorReduceArguments<T>& arguments;
    float mean[kVector];
    float factor[kVector];
    float summand[kVector];
    float gradients[kParts][kVector] = {};
    float products[kParts][kVector] = {};

    __device__ __forceinline__ Reduce(const Conv2dTensorReduceArguments<T>& arguments, int channels, int channel)
        : arguments(arguments) {
        channel = min(channel, channels - kVector);
        load_floats<float, kVector>(mean, arguments.saved_statistics + channel);
        load_floats<float, kVector>(factor, arguments.saved_statistics + 2 * channels + channel);
        load_floats<float, kVector>(summand, arguments.saved_statistics + 3 * channels + channel);
    }

    __device__ __forceinline__ void operator()(T* result, const long long (&elements)[kChunks], int channel,
                                               const uint4 (&chunks)[kChunks]) {
        using Group = Vector<T, kVector>;
        // Without an output the input is read twice, from the first-level cache, instead of a branch between the loads.
        const bool has_output = arguments.output != nullptr;
        const T* output = has_output ? arguments.output : arguments.input;
        Group inputs[kChunks], outputs[kChunks];
#pragma unroll
        for (int i = 0; i < kChunks; i++) {
            const long long element = elements[i] >= 0 ? elements[i] : 0;
            inputs[i] = *reinterpret_cast<const Group*>(arguments.input + element);
            outputs[i] = *reinterpret_cast<const Group*>(output + element);
        }
#pragma unroll
        for (int i = 0; i < kChunks; i++) {
            if (elements[i] < 0) continue;
            Group group = *reinterpret_cast<const Group*>(&chunks[i]);
#pragma unroll
            for (int j = 0; j < kVector; j++) {
                const float x = to_float(inputs[i].elements[j]);
                const float value = has_output ? to_float(outputs[i].elements[j]) : fmaf(x, factor[j], summand[j]);
                const float g = activate_backward(arguments.activation, value, to_float(group.elements[j]));
                group.elements[j] = from_float<T>(g);
                gradients[i % kParts][j] += g;
                products[i % kParts][j] = fmaf(g, x - mean[j], products[i % kParts][j]);
            }
            *reinterpret_cast<Group*>(result + elements[i]) = group;
        }
    }

    // Writes the block's sums to `row`, [2, C]. `shared` has room for 128 x 2 kVector kParts floats.
    __device__ __forceinline__ void write_row(float* row, int channels, int first_channel, float* shared) const {
        constexpr int kChunksPerRow = kChannels / kVector;
        constexpr int kLanes = kThreads / kChunksPerRow;
        const int thread = threadIdx.x;
        const int lane = thread / kChunksPerRow;
        const int column = thread % kChunksPerRow * kVector;
        for (int which = 0; which < 2; which++) {
#pragma unroll
            for (int part = 0; part < kParts; part++) {
#pragma unroll
                for (int i = 0; i < kVector; i++) {
                    shared[(part * kLanes + lane) * kChannels + column + i] =
                        which == 0 ? gradients[part][i] : products[part][i];
                }
            }
            __syncthreads();
            const int channel = first_channel + thread;
            if (thread < kChannels && channel < channels) {
                float sum = 0.0f;
                for (int other = 0; other < kParts * kLanes; other++) sum += shared[other * kChannels + thread];
                row[which * channels + channel] = which == 0 ? sum : sum * arguments.saved_statistics[channels + channel];
            }
            __syncthreads();
        }
    }
};

// Writes the results that `end` makes of the sums, rounded, to rows of `channels` elements at `result`. `row_of` returns the
// row of a pixel of the block, or a negative number if it has none. Existing values are loaded in whole chunks, to the
// places in shared memory where their results will be.
template <class T, int kChannels, class RowOf, class End, class Writer>
__device__ __forceinline__ void write(T* result, int channels, int first_channel, const RowOf& row_of,
                                      const Sums<kChannels>& sums, unsigned char* shared, const End& end, Writer& writer) {
    using Tile = Staging<T, kChannels>;
    constexpr int kVector = kVectorLength<T>;
    const int thread = threadIdx.x;
    const int lane = thread % kWarp;
    const int warp = thread / kWarp;
    const bool vectors = channels % kVector == 0;

    for (int first_row = 0; first_row < kPixels; first_row += Tile::kRows) {
        // The warps that hold the pixels: both rows of warps, or one.
        const int warp_row = warp / 2 * kWarpPixels - first_row;
        const bool here = warp_row >= 0 && warp_row < Tile::kRows;
        unsigned char* corner = shared + (warp_row + lane / 4) * Tile::kRowBytes +
                                (warp % 2 * (kChannels / 2) + lane % 4 * 2) * static_cast<int>(sizeof(T));

        if (!End::kOnlyVectors && end.existing != nullptr && !vectors) {
            for (int i = thread; i < Tile::kRows * kChannels; i += kThreads) {
                const int row = i / kChannels;
                const int column = i % kChannels;
                const int target = row_of(first_row + row);
                T added = from_float<T>(0.0f);
                if (target >= 0 && first_channel + column < channels) {
                    added = end.existing[static_cast<long long>(target) * channels + first_channel + column];
                }
                *reinterpret_cast<T*>(shared + row * Tile::kRowBytes + column * static_cast<int>(sizeof(T))) = added;
            }
            __syncthreads();
        } else if (end.existing != nullptr) {
#pragma unroll 4
            for (int i = thread; i < Tile::kRows * Tile::kChunksPerRow; i += kThreads) {
                const int row = i / Tile::kChunksPerRow;
                const int column = i % Tile::kChunksPerRow * kVector;
                const int target = row_of(first_row + row);
                copy_async_16(shared + row * Tile::kRowBytes + column * static_cast<int>(sizeof(T)),
                              end.existing + static_cast<long long>(target) * channels + first_channel + column,
                              target >= 0 && first_channel + column < channels);
            }
            copy_async_commit();
            copy_async_wait<0>();
            __syncthreads();
        }
        if (here) {
#pragma unroll
            for (int i = 0; i < kPixelFragments; i++) {
#pragma unroll
                for (int j = 0; j < kChannels / 16; j++) {
#pragma unroll
                    for (int k = 0; k < 2; k++) {
                        unsigned char* pair =
                            corner + (i * 16 + k * 8) * Tile::kRowBytes + j * 8 * static_cast<int>(sizeof(T));
                        float2 added = make_float2(0.0f, 0.0f);
                        if (end.existing != nullptr) added = staged_pair(pair, T());
                        const int column = warp % 2 * (kChannels / 2) + lane % 4 * 2 + j * 8;
                        const float2 value = end(sums[i][j][2 * k], sums[i][j][2 * k + 1], added, column);
                        stage_pair(pair, value.x, value.y, T());
                    }
                }
            }
        }
        __syncthreads();
        if (vectors) {
            const int column = thread % Tile::kChunksPerRow * kVector;
            const int channel = first_channel + column;
            constexpr int kRowDistance = kThreads / Tile::kChunksPerRow;
            constexpr int kUnroll = 4 / Writer::kChunks;
#pragma unroll kUnroll
            for (int first = thread / Tile::kChunksPerRow; first < Tile::kRows; first += kRowDistance * Writer::kChunks) {
                long long elements[Writer::kChunks];
                uint4 chunks[Writer::kChunks];
#pragma unroll
                for (int i = 0; i < Writer::kChunks; i++) {
                    const int row = first + i * kRowDistance;
                    const int target = row_of(first_row + row);
                    const bool exists = target >= 0 && channel < channels;
                    elements[i] = exists ? static_cast<long long>(target) * channels + channel : -1;
                    chunks[i] = *reinterpret_cast<const uint4*>(shared + row * Tile::kRowBytes +
                                                                column * static_cast<int>(sizeof(T)));
                }
                writer(result, elements, channel, chunks);
            }
        } else {
            for (int i = thread; i < Tile::kRows * kChannels; i += kThreads) {
                const int row = i / kChannels;
                const int column = i % kChannels;
                const int target = row_of(first_row + row);
                if (target < 0 || first_channel + column >= channels) continue;
                result[static_cast<long long>(target) * channels + first_channel + column] =
                    *reinterpret_cast<const T*>(shared + row * Tile::kRowBytes + column * static_cast<int>(sizeof(T)));
            }
        }
        __syncthreads();
    }
}

// Rounds the sums to the type in which results are stored.
template <class T, int kChannels>
__device__ __forceinline__ void round_sums(Sums<kChannels>& sums) {
#pragma unroll
    for (int i = 0; i < kPixelFragments; i++) {
#pragma unroll
        for (int j = 0; j < kChannels / 16; j++) {
#pragma unroll
            for (int k = 0; k < 4; k++) sums[i][j][k] = to_float(from_float<T>(sums[i][j][k]));
        }
    }
}

// Computes statistics over the block's first `count` pixels, one channel per thread. The sums of the other pixels are
// zero. The order of additions does not depend on the tile's width: fragments of a lane, lanes, warps.
template <int kChannels>
__device__ __forceinline__ Statistics block_statistics(const Sums<kChannels>& sums, int count, unsigned char* shared) {
    float(*partial)[kChannels] = reinterpret_cast<float(*)[kChannels]>(shared);    // of a row of warps
    float* mean = reinterpret_cast<float*>(shared) + 2 * kChannels;
    const int channel = threadIdx.x;
    const int lane = threadIdx.x % kWarp;
    const int warp = threadIdx.x / kWarp;
    const int first_channel = warp % 2 * (kChannels / 2) + lane % 4 * 2;
    const int first_row = warp / 2 * kWarpPixels + lane / 4;
    const auto add_lanes = [&](int column, float value) {
#pragma unroll
        for (int distance = 4; distance < kWarp; distance *= 2) value += __shfl_xor_sync(kAllLanes, value, distance);
        if (lane < 4) partial[warp / 2][column] = value;
    };

#pragma unroll
    for (int j = 0; j < kChannels / 16; j++) {
#pragma unroll
        for (int k = 0; k < 2; k++) {
            float sum = 0.0f;
#pragma unroll
            for (int i = 0; i < kPixelFragments; i++) sum += sums[i][j][k] + sums[i][j][k + 2];
            add_lanes(first_channel + j * 8 + k, sum);
        }
    }
    __syncthreads();
    Statistics statistics = {static_cast<float>(count), 0.0f, 0.0f};
    if (channel < kChannels) {
        statistics.sum = partial[0][channel] + partial[1][channel];
        mean[channel] = statistics.sum / statistics.count;
    }
    __syncthreads();
#pragma unroll
    for (int j = 0; j < kChannels / 16; j++) {
#pragma unroll
        for (int k = 0; k < 2; k++) {
            const int column = first_channel + j * 8 + k;
            const float center = mean[column];
            float sum = 0.0f;
#pragma unroll
            for (int i = 0; i < kPixelFragments; i++) {
                const float upper = sums[i][j][k] - center;
                const float lower = sums[i][j][k + 2] - center;
                if (first_row + i * 16 < count) sum += upper * upper;
                if (first_row + i * 16 + 8 < count) sum += lower * lower;
            }
            add_lanes(column, sum);
        }
    }
    __syncthreads();
    if (channel < kChannels) statistics.deviations = partial[0][channel] + partial[1][channel];
    __syncthreads();
    return statistics;
}

// With `kFinishes`, the batch norm `finish` is applied, and `affines` in shared memory has room for the block's channels.
template <class T, int kChannels, bool kFinishes>
__device__ __forceinline__ void forward(const Conv2dTensorForwardArguments<T>& arguments, const Conv2dFinish& finish,
                                        float2* affines) {
    const Conv2dGeometry& geometry = arguments.geometry;
    extern __shared__ __align__(128) unsigned char shared_memory[];
    const int tile = static_cast<int>(blockIdx.x) / arguments.channel_tiles;
    const int first_pixel = tile * kPixels;
    const int first_channel = (static_cast<int>(blockIdx.x) - tile * arguments.channel_tiles) * kChannels;
    Product<T> product;
    product.source = arguments.input;
    product.weight = arguments.weight;
    product.channels = geometry.output_channels;
    product.pixels = geometry.batch * geometry.output_height * geometry.output_width;
    product.target_height = geometry.output_height;
    product.target_width = geometry.output_width;
    product.origin_step = geometry.stride;
    product.origin_row = -geometry.padding;
    product.origin_column = -geometry.padding;
    product.source_height = geometry.height;
    product.source_width = geometry.width;
    product.source_channels = geometry.input_channels;
    product.tap_rows = geometry.kernel_height;
    product.tap_columns = geometry.kernel_width;
    product.first_row = 0;
    product.first_column = 0;
    product.filter_step = 1;
    product.kernel_positions = geometry.kernel_height * geometry.kernel_width;
    product.kernel_width = geometry.kernel_width;

    if constexpr (kFinishes) {
        const int channel = first_channel + static_cast<int>(threadIdx.x);
        if (threadIdx.x < kChannels) {
            affines[threadIdx.x] = channel < product.channels ? finish.affine_of(channel) : make_float2(0.0f, 0.0f);
        }
    }
    Sums<kChannels> sums = {};
    multiply<T, false, kChannels>(product, first_pixel, first_channel, shared_memory, sums);
    const auto row_of = [&](int pixel) {
        return first_pixel + pixel < product.pixels ? first_pixel + pixel : -1;
    };
    if constexpr (kFinishes) {
        const Finish<T> end{static_cast<const T*>(finish.residual), finish, affines};
        Store<T> store;
        write<T, kChannels>(arguments.output, product.channels, first_channel, row_of, sums, shared_memory, end, store);
    } else {
        const int blocks = divide_up(product.pixels, kPixels);
        if (arguments.statistics != nullptr) {
            round_sums<T, kChannels>(sums);
            const int count = min(product.pixels - first_pixel, kPixels);
            const Statistics statistics = block_statistics<kChannels>(sums, count, shared_memory);
            const int channel = first_channel + static_cast<int>(threadIdx.x);
            if (threadIdx.x < kChannels && channel < product.channels) {
                float* row = arguments.statistics + static_cast<size_t>(block_row(tile, blocks)) * 2 * product.channels;
                row[channel] = statistics.sum;
                row[product.channels + channel] = statistics.deviations;
            }
        }
        const Accumulate<T> nothing_added{nullptr};
        Store<T> store;
        write<T, kChannels>(arguments.output, product.channels, first_channel, row_of, sums, shared_memory, nothing_added,
                            store);
        if (arguments.statistics != nullptr) {
            // Each tile of channels counts its own blocks.
            unsigned* counters = arguments.counters + first_channel / kChannels * (groups_of(blocks) + 1);
            combine_statistics(arguments.statistics, product.channels, first_channel,
                               min(kChannels, product.channels - first_channel), product.pixels, tile, blocks, counters);
        }
    }
}

// With a `reduction`, the block's row of sums is written in any case.
template <class T, int kChannels, bool kReduces>
__device__ __forceinline__ void input_gradient(const Conv2dTensorInputGradientArguments<T>& arguments,
                                               const Conv2dTensorReduceArguments<T>* reduction) {
    const Conv2dGeometry& geometry = arguments.geometry;
    extern __shared__ __align__(128) unsigned char shared_memory[];
    // If the padding is odd, as in ResNet, the last class has the most taps, so it starts first.
    const int stride = geometry.stride;
    const int parity = static_cast<int>(gridDim.z - 1 - blockIdx.z);
    const int parity_row = parity / stride;
    const int parity_column = parity - parity_row * stride;
    const int tile = static_cast<int>(blockIdx.x) / arguments.channel_tiles;
    const int first_pixel = tile * kPixels;
    const int first_channel = (static_cast<int>(blockIdx.x) - tile * arguments.channel_tiles) * kChannels;
    Product<T> product;
    product.source = arguments.output_gradient;
    product.weight = arguments.weight;
    product.channels = geometry.input_channels;
    product.target_height = divide_up(geometry.height - parity_row, stride);
    product.target_width = divide_up(geometry.width - parity_column, stride);
    product.pixels = geometry.batch * product.target_height * product.target_width;
    product.origin_step = 1;
    product.origin_row = (parity_row + geometry.padding) / stride;
    product.origin_column = (parity_column + geometry.padding) / stride;
    product.source_height = geometry.output_height;
    product.source_width = geometry.output_width;
    product.source_channels = geometry.output_channels;
    product.first_row = parity_row + geometry.padding - product.origin_row * stride;
    product.first_column = parity_column + geometry.padding - product.origin_column * stride;
    product.tap_rows = max(divide_up(geometry.kernel_height - product.first_row, stride), 0);
    product.tap_columns = max(divide_up(geometry.kernel_width - product.first_column, stride), 0);
    product.filter_step = stride;
    product.kernel_positions = geometry.kernel_height * geometry.kernel_width;
    product.kernel_width = geometry.kernel_width;
    const bool accumulate = arguments.accumulate != 0;
    if constexpr (!kReduces) {
        if (first_pixel >= product.pixels) return;
        if (accumulate && product.tap_rows * product.tap_columns == 0) return;
    }

    // The destination of each pixel of the block, read after the barriers of the product.
    int* rows = reinterpret_cast<int*>(shared_memory + kStages * kStageBytes<kChannels>);
    const int pixel = first_pixel + static_cast<int>(threadIdx.x);
    const int target_row = pixel / product.target_width;
    const int image = target_row / product.target_height;
    const int y = (target_row - image * product.target_height) * stride + parity_row;
    const int x = (pixel - target_row * product.target_width) * stride + parity_column;
    rows[threadIdx.x] = pixel < product.pixels ? (image * geometry.height + y) * geometry.width + x : -1;

    Sums<kChannels> sums = {};
    multiply<T, true, kChannels>(product, first_pixel, first_channel, shared_memory, sums);
    const Accumulate<T> end{accumulate ? arguments.input_gradient : nullptr};
    const auto row_of = [&](int pixel) { return rows[pixel]; };
    if constexpr (kReduces) {
        const int channels = product.channels;
        const int chunk = static_cast<int>(threadIdx.x) % Staging<T, kChannels>::kChunksPerRow;
        Reduce<T, kChannels> reduce(*reduction, channels, first_channel + chunk * kVectorLength<T>);
        write<T, kChannels>(arguments.input_gradient, channels, first_channel, row_of, sums, shared_memory, end, reduce);
        const int tiles = static_cast<int>(gridDim.x) / arguments.channel_tiles;
        const int blocks = tiles * static_cast<int>(gridDim.z);
        const int block = parity * tiles + tile;
        float* row = reduction->sums.rows + static_cast<size_t>(block_row(block, blocks)) * 2 * channels;
        reduce.write_row(row, channels, first_channel, reinterpret_cast<float*>(shared_memory));
        // Each tile of channels counts its own blocks.
        unsigned* counters = reduction->sums.counters + first_channel / kChannels * (groups_of(blocks) + 1);
        combine_sums(reduction->sums, channels, first_channel, min(kChannels, channels - first_channel), block, blocks,
                     counters);
    } else {
        Store<T> store;
        write<T, kChannels>(arguments.input_gradient, product.channels, first_channel, row_of, sums, shared_memory, end, store);
    }
}

#endif

extern "C" __global__ void __launch_bounds__(128, 2)
    conv2d_forward_128_bf16(const Conv2dTensorForwardArguments<bf16> arguments) {
#if RETUNE_TENSOR_CORES
    forward<bf16, 128, false>(arguments, Conv2dFinish(), nullptr);
#endif
}

extern "C" __global__ void __launch_bounds__(128, 4)
    conv2d_forward_64_bf16(const Conv2dTensorForwardArguments<bf16> arguments) {
#if RETUNE_TENSOR_CORES
    forward<bf16, 64, false>(arguments, Conv2dFinish(), nullptr);
#endif
}

extern "C" __global__ void __launch_bounds__(128, 2)
    conv2d_forward_128_tf32(const Conv2dTensorForwardArguments<float> arguments) {
#if RETUNE_TENSOR_CORES
    forward<float, 128, false>(arguments, Conv2dFinish(), nullptr);
#endif
}

extern "C" __global__ void __launch_bounds__(128, 4)
    conv2d_forward_64_tf32(const Conv2dTensorForwardArguments<float> arguments) {
#if RETUNE_TENSOR_CORES
    forward<float, 64, false>(arguments, Conv2dFinish(), nullptr);
#endif
}

extern "C" __global__ void __launch_bounds__(128, 2)
    conv2d_batch_norm_128_bf16(const Conv2dTensorBatchNormArguments<bf16> arguments) {
#if RETUNE_TENSOR_CORES
    __shared__ float2 affines[128];
    forward<bf16, 128, true>(arguments.convolution, arguments.finish, affines);
#endif
}

extern "C" __global__ void __launch_bounds__(128, 4)
    conv2d_batch_norm_64_bf16(const Conv2dTensorBatchNormArguments<bf16> arguments) {
#if RETUNE_TENSOR_CORES
    __shared__ float2 affines[64];
    forward<bf16, 64, true>(arguments.convolution, arguments.finish, affines);
#endif
}

extern "C" __global__ void __launch_bounds__(128, 2)
    conv2d_batch_norm_128_tf32(const Conv2dTensorBatchNormArguments<float> arguments) {
#if RETUNE_TENSOR_CORES
    __shared__ float2 affines[128];
    forward<float, 128, true>(arguments.convolution, arguments.finish, affines);
#endif
}

extern "C" __global__ void __launch_bounds__(128, 3)
    conv2d_batch_norm_64_tf32(const Conv2dTensorBatchNormArguments<float> arguments) {
#if RETUNE_TENSOR_CORES
    __shared__ float2 affines[64];
    forward<float, 64, true>(arguments.convolution, arguments.finish, affines);
#endif
}

extern "C" __global__ void __launch_bounds__(128, 2)
    conv2d_input_gradient_128_bf16(const Conv2dTensorInputGradientArguments<bf16> arguments) {
#if RETUNE_TENSOR_CORES
    input_gradient<bf16, 128, false>(arguments, nullptr);
#endif
}

extern "C" __global__ void __launch_bounds__(128, 4)
    conv2d_input_gradient_64_bf16(const Conv2dTensorInputGradientArguments<bf16> arguments) {
#if RETUNE_TENSOR_CORES
    input_gradient<bf16, 64, false>(arguments, nullptr);
#endif
}

extern "C" __global__ void __launch_bounds__(128, 2)
    conv2d_input_gradient_128_tf32(const Conv2dTensorInputGradientArguments<float> arguments) {
#if RETUNE_TENSOR_CORES
    input_gradient<float, 128, false>(arguments, nullptr);
#endif
}

extern "C" __global__ void __launch_bounds__(128, 4)
    conv2d_input_gradient_64_tf32(const Conv2dTensorInputGradientArguments<float> arguments) {
#if RETUNE_TENSOR_CORES
    input_gradient<float, 64, false>(arguments, nullptr);
#endif
}

extern "C" __global__ void __launch_bounds__(128, 2)
    conv2d_reduce_128_bf16(const Conv2dTensorReduceArguments<bf16> arguments) {
#if RETUNE_TENSOR_CORES
    input_gradient<bf16, 128, true>(arguments.convolution, &arguments);
#endif
}

extern "C" __global__ void __launch_bounds__(128, 2)
    conv2d_reduce_128_tf32(const Conv2dTensorReduceArguments<float> arguments) {
#if RETUNE_TENSOR_CORES
    input_gradient<float, 128, true>(arguments.convolution, &arguments);
#endif
}

extern "C" __global__ void __launch_bounds__(128, 4)
    conv2d_reduce_64_bf16(const Conv2dTensorReduceArguments<bf16> arguments) {
#if RETUNE_TENSOR_CORES
    input_gradient<bf16, 64, true>(arguments.convolution, &arguments);
#endif
}

// Three blocks would leave 168 registers for 64 sums and the values of the epilogue, which spill on sm_120.
extern "C" __global__ void __launch_bounds__(128, 2)
    conv2d_reduce_64_tf32(const Conv2dTensorReduceArguments<float> arguments) {
#if RETUNE_TENSOR_CORES
    input_gradient<float, 64, true>(arguments.convolution, &arguments);
#endif
}
