// Two-dimensional convolution in float32 arithmetic, forward and both gradients, for any sizes. Activations and weights
// are stored as float32 or bf16; the weight gradient is always float32. In fp32 these kernels compute every
// convolution; in tf32 and bf16 they compute those that the tensor-core kernels do not support.
//
//   output (n, p, q, k)          = sum over r, s, c of input (n, p u + r - pad, q u + s - pad, c) weight (k, r, s, c)
//   input gradient (n, h, w, c)  = sum over r, s, k of output gradient (n, (h + pad - r) / u, (w + pad - s) / u, k)
//                                  weight (k, r, s, c), where the stride u divides both
//   weight gradient (k, r, s, c) = sum over n, p, q of output gradient (n, p, q, k)
//                                  input (n, p u + r - pad, q u + s - pad, c)
//   input [N, H, W, C], output [N, OH, OW, K], weight [K, R, S, C]; the padding outside the image is zero
//
// Each is a matrix product, result (row, column) = sum over depth of left (row, depth) right (depth, column). The left
// operand is gathered from the activations and never stored (implicit GEMM):
//
//                   | row              | column | depth           | left                                 | right
//   forward         | pixel (n, p, q)  | k      | tap (r, s), c   | input (origin + (r, s), c)           | weight
//   input gradient  | pixel of a class | c      | tap (a, b), k   | output gradient (origin - (a, b), k) | weight
//   weight gradient | r, s, c          | k      | pixel (n, p, q) | input (origin (pixel) + (r, s), c)   | output gradient
//
// The origin is (p u - pad, q u - pad). A class is the set of input pixels with h = u i + y, w = u j + x for one (y,
// x). Only the filter rows r = r0 + u a with r0 = (y + pad) mod u reach it, and its origin is (i + floor ((y + pad) /
// u), ...); columns likewise. So each class is a dense product of its own (blockIdx.z), and no multiplication by zero
// is wasted. A class that no tap reaches is set to zero, or stays unchanged if the gradient is accumulated.
//
// Bound by operations. For ResNet-18 at batch 128 and 224 x 224, a 3 x 3 layer is 30 GFLOP (15 with stride 2) over 36
// to 206 MB in each of the three passes: 440 us (220 us) at the 67 TFLOP/s of an H200, but 8 to 48 us for its bytes. On
// a T4 (8.1 TFLOP/s, 320 GB/s) that is 3.7 ms, and 0.1 to 0.6 ms. The stem is 30 GFLOP over 488 MB. A 1 x 1 layer with
// stride 2 is 2 GFLOP, 25 us, over 40 to 154 MB. All forward convolutions together are 464 GFLOP, 6.9 ms on an H200; a
// whole step takes three times that, less the input gradient of the stem. An H100 (also 67 TFLOP/s) reaches 30 TFLOP/s
// forward, 30 to 35 in the input gradient and 26 to 31 in the weight gradient of 3 x 3 layers, and 9 TFLOP/s in the
// weight gradient of the stem, whose grid has 128 blocks.
//
// Tiles: a block of 128 threads computes 128 rows x 64 columns, 8 x 8 per thread. There are 128 rows because a row of
// partial statistics covers 128 pixels, and 64 columns because layer1 has no more. At each depth a thread loads 16
// floats from shared memory for 64 multiply-adds. Each of a warp's four loads covers 64 or 128 contiguous bytes, so
// shared memory is busy for at most half of the arithmetic's time; with 8 x 4 per thread it would be three quarters. A
// step is eight depths: 12 floats per thread are in flight for the next step, and longer steps would take more
// registers.
// occupancy: 134 to 168 registers per thread allow 3 blocks of 4 warps: 19 % on sm_80 and sm_90, 38 % on sm_75. This is
// faster because a warp has 64 independent multiply-adds at each depth and loads the next step during 512 of them. With
// 128 registers and 4 blocks, sums spill; with 4 x 8 results per thread, shared memory is the limit.
//
// Loads: in forward and the input gradient, thread t handles row t. It decomposes one pixel into image, row and column
// once and then walks over the taps with additions. It reads 32 contiguous bytes (float32), a whole sector. In the
// weight gradient, a thread handles one position of the filter and walks over pixels. If the channels are a multiple of
// four, four are read at once.
//
// The depth of the weight gradient is up to 1.6 million pixels, but its result is small (5 tiles in layer1). The pixels
// are therefore split over as many blocks as fill the multiprocessors once. Each block writes its sums to the workspace
// [splits, K, R S C], and the last block to arrive at a tile adds them in ascending order, so the result does not
// depend on scheduling.
//
// Statistics describe the output as it is stored, after rounding. A block computes sums and squared deviations from its
// own mean in registers, over lanes and threads in a fixed order; statistics.cuh explains how blocks are combined.

#include "common.cuh"
#include "conv2d.cuh"

template <class T>
struct Conv2dForwardArguments {
    const T* input;         // [N, H, W, C]
    const T* weight;        // [K, R, S, C]
    T* output;              // [N, OH, OW, K]
    float* statistics;      // [rows, 2, K] or null
    unsigned* counters;     // zeros
    Conv2dGeometry geometry;
    int column_tiles;      // tiles over the output channels, the fastest index in blockIdx.x
    int vectors;           // whether four input channels can be read at once
    int result_vectors;    // whether four output channels can be written at once
};

template <class T>
struct Conv2dBatchNormArguments {
    Conv2dForwardArguments<T> convolution;
    Conv2dFinish finish;
};

template <class T>
struct Conv2dInputGradientArguments {
    const T* output_gradient;    // [N, OH, OW, K]
    const T* weight;             // [K, R, S, C]
    T* input_gradient;           // [N, H, W, C]
    Conv2dGeometry geometry;
    int column_tiles;      // tiles over the input channels, the fastest index in blockIdx.x
    int accumulate;        // add to the values in `input_gradient`
    int vectors;           // whether four output channels can be read at once
    int result_vectors;    // whether four input channels can be read and written at once
    int reserved;
};

template <class T>
struct Conv2dWeightGradientArguments {
    const T* input;              // [N, H, W, C]
    const T* output_gradient;    // [N, OH, OW, K]
    float* weight_gradient;      // [K, R, S, C]
    float* partial;              // [splits, K, R, S, C], unused with one split
    unsigned* counters;          // zeros, one per tile
    Conv2dGeometry geometry;
    int column_tiles;        // tiles over the output channels, the fastest index in blockIdx.x
    int pixels_per_split;    // blockIdx.y is the split
    int vectors;             // whether four input channels can be read, and four results written, at once
    int column_vectors;      // whether four output channels can be read at once
    int reserved;
};

namespace {

constexpr int kThreads = 128;
constexpr int kRows = 128;
constexpr int kColumns = 64;
constexpr int kDepth = 8;
// Padded by four floats so that the forward pass's transposed stores of two chunks of depth have no bank conflict.
constexpr int kColumnStride = kColumns + 4;
constexpr int kRowGroups = kThreads / 8;
// A coordinate that no tap reaches: far outside any image in both directions.
constexpr int kNowhere = -(1 << 30);

static_assert(kRows == kThreads, "a thread gathers one row");
static_assert(kRows == kPixelsPerBlock, "a tile is one row of statistics");

// Two stages of both operands; depth is the outermost dimension.
struct Tiles {
    float left[2][kDepth][kRows];
    float right[2][kDepth][kColumnStride];
};

// A thread's results: rows row_of (0..7), columns column_of (0..7) of the tile.
using Sums = float[8][8];

__device__ __forceinline__ int row_of(int i) {
    return static_cast<int>(threadIdx.x) / 8 * 4 + i % 4 + i / 4 * (kRows / 2);
}

__device__ __forceinline__ int column_of(int j) {
    return static_cast<int>(threadIdx.x) % 8 * 4 + j % 4 + j / 4 * (kColumns / 2);
}

__device__ __forceinline__ void multiply_step(const Tiles& tiles, int stage, Sums& sums) {
    const int row = row_of(0);
    const int column = column_of(0);
#pragma unroll
    for (int depth = 0; depth < kDepth; depth++) {
        float left[2][4];
        float right[2][4];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            load_floats(left[half], &tiles.left[stage][depth][row + half * (kRows / 2)]);
            load_floats(right[half], &tiles.right[stage][depth][column + half * (kColumns / 2)]);
        }
#pragma unroll
        for (int i = 0; i < 8; i++) {
#pragma unroll
            for (int j = 0; j < 8; j++) sums[i][j] = fmaf(left[i / 4][i % 4], right[j / 4][j % 4], sums[i][j]);
        }
    }
}

// Adds the product to `sums`. The tiles can be reused when it returns.
template <class Loader>
__device__ __forceinline__ void multiply(Loader& loader, int steps, Tiles& tiles, Sums& sums) {
    if (steps > 0) {
        loader.load();
        loader.store(tiles, 0);
    }
    __syncthreads();
    for (int step = 0; step < steps; step++) {
        const int stage = step % 2;
        const bool more = step + 1 < steps;
        if (more) loader.load();
        multiply_step(tiles, stage, sums);
        // All threads finished reading this stage before the last barrier.
        if (more) loader.store(tiles, stage ^ 1);
        __syncthreads();
    }
}

// Loads up to four neighbours, of which `count` exist; with `vectors`, `count` is 4 or at most 0.
template <class T>
__device__ __forceinline__ void load_four(float (&values)[4], const T* source, int count, bool vectors) {
    if (vectors && count > 0) {
        load_floats(values, source);
        return;
    }
#pragma unroll
    for (int i = 0; i < 4; i++) values[i] = i < count ? to_float(source[i]) : 0.0f;
}

template <class T>
__device__ __forceinline__ void store_four(T* target, const float (&values)[4], int count, bool vectors) {
    if (vectors && count > 0) {
        store_floats(target, values);
        return;
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        if (i < count) target[i] = from_float<T>(values[i]);
    }
}

// A position in the depth of forward and input gradient.
struct Tap {
    int row;
    int column;
    int channel;

    __device__ __forceinline__ void advance(int count, int channels, int columns) {
        channel += count;
        while (channel >= channels) {
            channel -= channels;
            column++;
            if (column == columns) {
                column = 0;
                row++;
            }
        }
    }
};

// The left operand of forward and input gradient: thread t loads row t of the tile, `kVector` channels at once. The
// number of channels is a multiple of `kVector`.
template <class T, int kVector, bool kGradient>
struct Gather {
    const T* source;
    int height;
    int width;
    int channels;
    int tap_rows;
    int tap_columns;
    int pixel;    // of the origin
    int y;
    int x;
    Tap tap;
    float values[kDepth];

    __device__ __forceinline__ void load() {
        constexpr int sign = kGradient ? -1 : 1;
#pragma unroll
        for (int i = 0; i < kDepth; i += kVector) {
            float loaded[kVector] = {};
            if (tap.row < tap_rows && static_cast<unsigned>(y + sign * tap.row) < static_cast<unsigned>(height) &&
                static_cast<unsigned>(x + sign * tap.column) < static_cast<unsigned>(width)) {
                const int place = pixel + sign * (tap.row * width + tap.column);
                load_floats(loaded, source + static_cast<long long>(place) * channels + tap.channel);
            }
#pragma unroll
            for (int j = 0; j < kVector; j++) values[i + j] = loaded[j];
            tap.advance(kVector, channels, tap_columns);
        }
    }

    __device__ __forceinline__ void store(Tiles& tiles, int stage) const {
#pragma unroll
        for (int i = 0; i < kDepth; i++) tiles.left[stage][i][threadIdx.x] = values[i];
    }
};

template <class T, int kVector>
struct ForwardLoader {
    Gather<T, kVector, false> left;
    const T* weight;    // of the column
    int depth;          // of the next step
    int depths;         // 0 for a column that does not exist
    float right[4];

    __device__ __forceinline__ void load() {
        left.load();
        load_four(right, weight + depth, depths - depth, kVector == 4);
        depth += kDepth;
    }

    __device__ __forceinline__ void store(Tiles& tiles, int stage) const {
        left.store(tiles, stage);
        const int first = static_cast<int>(threadIdx.x) % 2 * 4;
#pragma unroll
        for (int i = 0; i < 4; i++) tiles.right[stage][first + i][threadIdx.x / 2] = right[i];
    }
};

template <class T, int kVector>
struct InputGradientLoader {
    Gather<T, kVector, true> left;
    const T* weight;    // of the first of four columns
    int columns;        // how many of the four exist
    bool vectors;
    Tap tap;            // of the thread's depth in the next step
    int first_row;      // the filter row is first_row + stride * tap.row
    int first_column;
    int stride;
    int kernel_width;
    int kernel_positions;
    int channels;       // of the result
    float right[4];

    __device__ __forceinline__ void load() {
        left.load();
        const int position = (first_row + stride * tap.row) * kernel_width + first_column + stride * tap.column;
        const long long row = static_cast<long long>(tap.channel) * kernel_positions + position;
        load_four(right, weight + row * channels, tap.row < left.tap_rows ? columns : 0, vectors);
        tap.advance(kDepth, left.channels, left.tap_columns);
    }

    __device__ __forceinline__ void store(Tiles& tiles, int stage) const {
        left.store(tiles, stage);
        store_floats(&tiles.right[stage][threadIdx.x / 16][threadIdx.x % 16 * 4], right);
    }
};

// A thread loads `kVector` neighbouring rows of the left tile at every kVector-th pixel.
template <class T, int kVector>
struct WeightGradientLoader {
    const T* input;               // at the channel of the rows
    const T* output_gradient;     // at the first of four columns
    int columns;                  // how many of the four exist
    bool vectors;
    bool exists;                  // whether the rows exist
    int height;
    int width;
    int input_channels;
    int output_height;
    int output_width;
    int output_channels;
    int stride;
    int top;                      // filter row minus padding
    int left_edge;                // filter column minus padding
    int image;                    // image, row and column of the next pixel to read
    int row;
    int column;
    int remaining;                // pixels of the split that are left to read
    long long gradient_pixel;     // the pixel whose gradient is read next
    int gradient_remaining;
    float left[kDepth];
    float right[4];

    __device__ __forceinline__ void load() {
#pragma unroll
        for (int i = 0; i < kDepth; i += kVector) {
            const int y = row * stride + top;
            const int x = column * stride + left_edge;
            float loaded[kVector] = {};
            if (exists && remaining > 0 && static_cast<unsigned>(y) < static_cast<unsigned>(height) &&
                static_cast<unsigned>(x) < static_cast<unsigned>(width)) {
                const int place = (image * height + y) * width + x;
                load_floats(loaded, input + static_cast<long long>(place) * input_channels);
            }
#pragma unroll
            for (int j = 0; j < kVector; j++) left[i + j] = loaded[j];
            remaining -= kVector;
            column += kVector;
            while (column >= output_width) {
                column -= output_width;
                row++;
                if (row == output_height) {
                    row = 0;
                    image++;
                }
            }
        }
        load_four(right, output_gradient + gradient_pixel * output_channels, gradient_remaining > 0 ? columns : 0, vectors);
        gradient_pixel += kDepth;
        gradient_remaining -= kDepth;
    }

    __device__ __forceinline__ void store(Tiles& tiles, int stage) const {
        constexpr int chunks = kRows / kVector;
        const int thread = threadIdx.x;
#pragma unroll
        for (int i = 0; i < kDepth; i += kVector) {
            float values[kVector];
#pragma unroll
            for (int j = 0; j < kVector; j++) values[j] = left[i + j];
            store_floats(&tiles.left[stage][i + thread / chunks][thread % chunks * kVector], values);
        }
        store_floats(&tiles.right[stage][thread / 16][thread % 16 * 4], right);
    }
};

// Writes this block's row of the partial statistics, over the first `count` rows of its tile. The other rows are zero.
__device__ __forceinline__ void write_statistics(const Sums& sums, int count, float* row, int channels, int first_channel,
                                                 Tiles& tiles) {
    float(*partial)[kColumns] = reinterpret_cast<float(*)[kColumns]>(&tiles.left[0][0][0]);
    float* mean = &tiles.right[0][0][0];
    static_assert(sizeof(tiles.left) >= kRowGroups * kColumns * sizeof(float), "the partial sums fit");
    const int thread = threadIdx.x;
    const int channel = first_channel + thread;
    const bool exists = thread < kColumns && channel < channels;
    const auto total = [&] {
        float sum = 0.0f;
        for (int group = 0; group < kRowGroups; group++) sum += partial[group][thread];
        return sum;
    };
#pragma unroll
    for (int j = 0; j < 8; j++) {
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < 8; i++) sum += sums[i][j];
        partial[thread / 8][column_of(j)] = sum;
    }
    __syncthreads();
    if (thread < kColumns) {
        const float sum = total();
        mean[thread] = sum / static_cast<float>(count);
        if (exists) row[channel] = sum;
    }
    __syncthreads();
#pragma unroll
    for (int j = 0; j < 8; j++) {
        const float center = mean[column_of(j)];
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const float difference = sums[i][j] - center;
            if (row_of(i) < count) sum = fmaf(difference, difference, sum);
        }
        partial[thread / 8][column_of(j)] = sum;
    }
    __syncthreads();
    if (exists) row[channels + channel] = total();
}

// With `kFinishes`, the batch norm `finish` is applied, and there are no statistics.
template <class T, int kVector, bool kFinishes>
__device__ __forceinline__ void forward(const Conv2dForwardArguments<T>& arguments, const Conv2dFinish& finish, Tiles& tiles) {
    const Conv2dGeometry& geometry = arguments.geometry;
    const int thread = threadIdx.x;
    const int pixel_tile = static_cast<int>(blockIdx.x) / arguments.column_tiles;
    const int first_channel = (static_cast<int>(blockIdx.x) - pixel_tile * arguments.column_tiles) * kColumns;
    const int first_pixel = pixel_tile * kRows;
    const int pixels = geometry.batch * geometry.output_height * geometry.output_width;
    const int count = min(pixels - first_pixel, kRows);
    const int channels = geometry.output_channels;
    const int depths = geometry.kernel_height * geometry.kernel_width * geometry.input_channels;

    ForwardLoader<T, kVector> loader;
    const int output_row = (first_pixel + thread) / geometry.output_width;
    const int image = output_row / geometry.output_height;
    loader.left.source = arguments.input;
    loader.left.height = geometry.height;
    loader.left.width = geometry.width;
    loader.left.channels = geometry.input_channels;
    loader.left.tap_rows = geometry.kernel_height;
    loader.left.tap_columns = geometry.kernel_width;
    const int y = (output_row - image * geometry.output_height) * geometry.stride - geometry.padding;
    const int x = (first_pixel + thread - output_row * geometry.output_width) * geometry.stride - geometry.padding;
    loader.left.pixel = thread < count ? (image * geometry.height + y) * geometry.width + x : 0;
    loader.left.y = thread < count ? y : kNowhere;
    loader.left.x = x;
    loader.left.tap = {0, 0, 0};
    const int column = first_channel + thread / 2;
    loader.weight = arguments.weight + static_cast<long long>(min(column, channels - 1)) * depths;
    loader.depth = thread % 2 * 4;
    loader.depths = column < channels ? depths : 0;

    Sums sums = {};
    multiply(loader, divide_up(depths, kDepth), tiles, sums);

    const bool vectors = arguments.result_vectors != 0;
    float2 affines[8];
    if constexpr (kFinishes) {
#pragma unroll
        for (int j = 0; j < 8; j++) {
            const int channel = first_channel + column_of(j);
            affines[j] = channel < channels ? finish.affine_of(channel) : make_float2(0.0f, 0.0f);
        }
    }
#pragma unroll
    for (int i = 0; i < 8; i++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float values[4];
#pragma unroll
            for (int j = 0; j < 4; j++) {
                sums[i][half * 4 + j] = to_float(from_float<T>(sums[i][half * 4 + j]));
                values[j] = sums[i][half * 4 + j];
            }
            const int channel = first_channel + column_of(half * 4);
            if (row_of(i) >= count) continue;
            const long long element = static_cast<long long>(first_pixel + row_of(i)) * channels + channel;
            if constexpr (kFinishes) {
                float added[4] = {};
                if (finish.residual != nullptr) {
                    load_four(added, static_cast<const T*>(finish.residual) + element, channels - channel, vectors);
                }
#pragma unroll
                for (int j = 0; j < 4; j++) values[j] = finish.apply(values[j], affines[half * 4 + j], added[j]);
            }
            store_four(arguments.output + element, values, channels - channel, vectors);
        }
    }
    if (kFinishes || arguments.statistics == nullptr) return;
    const int blocks = static_cast<int>(gridDim.x) / arguments.column_tiles;
    float* row = arguments.statistics + static_cast<long long>(block_row(pixel_tile, blocks)) * 2 * channels;
    write_statistics(sums, count, row, channels, first_channel, tiles);
    // Each tile of channels has its own counters.
    unsigned* counters = arguments.counters + first_channel / kColumns * (1 + groups_of(blocks));
    combine_statistics(arguments.statistics, channels, first_channel, min(kColumns, channels - first_channel), pixels,
                       pixel_tile, blocks, counters);
}

template <class T, int kVector>
__device__ __forceinline__ void input_gradient(const Conv2dInputGradientArguments<T>& arguments, Tiles& tiles) {
    const Conv2dGeometry& geometry = arguments.geometry;
    const int thread = threadIdx.x;
    const int stride = geometry.stride;
    // If the padding is odd, as in ResNet, the last class has the most taps, so it starts first.
    const int parity = static_cast<int>(gridDim.z - 1 - blockIdx.z);
    const int parity_row = parity / stride;
    const int parity_column = parity - parity_row * stride;
    const int class_height = divide_up(geometry.height - parity_row, stride);
    const int class_width = divide_up(geometry.width - parity_column, stride);
    const int pixels = geometry.batch * class_height * class_width;
    const int pixel_tile = static_cast<int>(blockIdx.x) / arguments.column_tiles;
    const int first_channel = (static_cast<int>(blockIdx.x) - pixel_tile * arguments.column_tiles) * kColumns;
    const int first_pixel = pixel_tile * kRows;
    if (first_pixel >= pixels) return;
    const int count = min(pixels - first_pixel, kRows);
    const int channels = geometry.input_channels;
    const int origin_row = (parity_row + geometry.padding) / stride;
    const int origin_column = (parity_column + geometry.padding) / stride;

    InputGradientLoader<T, kVector> loader;
    loader.first_row = parity_row + geometry.padding - origin_row * stride;
    loader.first_column = parity_column + geometry.padding - origin_column * stride;
    loader.left.tap_rows = max(divide_up(geometry.kernel_height - loader.first_row, stride), 0);
    loader.left.tap_columns = max(divide_up(geometry.kernel_width - loader.first_column, stride), 0);
    const int taps = loader.left.tap_rows * loader.left.tap_columns;
    if (arguments.accumulate != 0 && taps == 0) return;
    const int class_row = (first_pixel + thread) / class_width;
    const int image = class_row / class_height;
    const int y = class_row - image * class_height + origin_row;
    const int x = first_pixel + thread - class_row * class_width + origin_column;
    loader.left.source = arguments.output_gradient;
    loader.left.height = geometry.output_height;
    loader.left.width = geometry.output_width;
    loader.left.channels = geometry.output_channels;
    loader.left.pixel = thread < count ? (image * geometry.output_height + y) * geometry.output_width + x : 0;
    loader.left.y = thread < count ? y : kNowhere;
    loader.left.x = x;
    loader.left.tap = {0, 0, 0};
    const int column = first_channel + thread % 16 * 4;
    loader.weight = arguments.weight + column;
    loader.columns = channels - column;
    loader.vectors = arguments.result_vectors != 0;
    loader.tap = {0, 0, 0};
    loader.stride = stride;
    loader.kernel_width = geometry.kernel_width;
    loader.kernel_positions = geometry.kernel_height * geometry.kernel_width;
    loader.channels = channels;

    Sums sums = {};
    if (taps > 0) loader.tap.advance(thread / 16, geometry.output_channels, loader.left.tap_columns);
    multiply(loader, divide_up(taps * geometry.output_channels, kDepth), tiles, sums);

    const bool vectors = arguments.result_vectors != 0;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        if (row_of(i) >= count) continue;
        const int pixel = first_pixel + row_of(i);
        const int row = pixel / class_width;
        const int target_image = row / class_height;
        const int target_y = (row - target_image * class_height) * stride + parity_row;
        const int target_x = (pixel - row * class_width) * stride + parity_column;
        const int place = (target_image * geometry.height + target_y) * geometry.width + target_x;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int channel = first_channel + column_of(half * 4);
            T* target = arguments.input_gradient + static_cast<long long>(place) * channels + channel;
            float values[4] = {};
            if (arguments.accumulate != 0) load_four(values, target, channels - channel, vectors);
#pragma unroll
            for (int j = 0; j < 4; j++) values[j] += sums[i][half * 4 + j];
            store_four(target, values, channels - channel, vectors);
        }
    }
}

template <class T, int kVector>
__device__ __forceinline__ void weight_gradient(const Conv2dWeightGradientArguments<T>& arguments, Tiles& tiles) {
    const Conv2dGeometry& geometry = arguments.geometry;
    constexpr int chunks = kRows / kVector;
    const int thread = threadIdx.x;
    const int tile = static_cast<int>(blockIdx.x);
    const int row_tile = tile / arguments.column_tiles;
    const int first_row = row_tile * kRows;
    const int first_channel = (tile - row_tile * arguments.column_tiles) * kColumns;
    const int rows = geometry.kernel_height * geometry.kernel_width * geometry.input_channels;
    const int channels = geometry.output_channels;
    const int pixels = geometry.batch * geometry.output_height * geometry.output_width;
    const int split = static_cast<int>(blockIdx.y);
    const int first_pixel = split * arguments.pixels_per_split;
    const int split_pixels = min(pixels - first_pixel, arguments.pixels_per_split);

    WeightGradientLoader<T, kVector> loader;
    const int row = first_row + thread % chunks * kVector;
    const int position = row / geometry.input_channels;
    const int kernel_row = position / geometry.kernel_width;
    loader.input = arguments.input + (row - position * geometry.input_channels);
    loader.exists = row < rows;
    loader.height = geometry.height;
    loader.width = geometry.width;
    loader.input_channels = geometry.input_channels;
    loader.output_height = geometry.output_height;
    loader.output_width = geometry.output_width;
    loader.output_channels = channels;
    loader.stride = geometry.stride;
    loader.top = kernel_row - geometry.padding;
    loader.left_edge = position - kernel_row * geometry.kernel_width - geometry.padding;
    const int pixel = first_pixel + thread / chunks;
    const int output_row = pixel / geometry.output_width;
    loader.image = output_row / geometry.output_height;
    loader.row = output_row - loader.image * geometry.output_height;
    loader.column = pixel - output_row * geometry.output_width;
    loader.remaining = split_pixels - thread / chunks;
    const int column = first_channel + thread % 16 * 4;
    loader.output_gradient = arguments.output_gradient + column;
    loader.columns = channels - column;
    loader.vectors = arguments.column_vectors != 0;
    loader.gradient_pixel = first_pixel + thread / 16;
    loader.gradient_remaining = split_pixels - thread / 16;

    Sums sums = {};
    multiply(loader, divide_up(split_pixels, kDepth), tiles, sums);

    // The thread's part of the result or of a split's sums, four rows at once.
    const auto for_each_part = [&](auto&& visit) {
#pragma unroll
        for (int j = 0; j < 8; j++) {
            const int channel = first_channel + column_of(j);
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int part_row = first_row + row_of(half * 4);
                const int count = channel < channels ? rows - part_row : 0;
                visit(static_cast<long long>(channel) * rows + part_row, count, half, j);
            }
        }
    };
    const auto write = [&](float* target) {
        for_each_part([&](long long element, int count, int half, int j) {
            const float values[4] = {sums[half * 4][j], sums[half * 4 + 1][j], sums[half * 4 + 2][j],
                                     sums[half * 4 + 3][j]};
            store_four(target + element, values, count, kVector == 4);
        });
    };
    const int splits = static_cast<int>(gridDim.y);
    if (splits == 1) {
        write(arguments.weight_gradient);
        return;
    }
    const long long size = static_cast<long long>(channels) * rows;
    write(arguments.partial + split * size);
    if (!arrive_last(arguments.counters + tile, splits)) return;
#pragma unroll
    for (int i = 0; i < 8; i++) {
#pragma unroll
        for (int j = 0; j < 8; j++) sums[i][j] = 0.0f;
    }
    for (int i = 0; i < splits; i++) {
        const float* partial = arguments.partial + i * size;
        for_each_part([&](long long element, int count, int half, int j) {
            float values[4];
            load_four(values, partial + element, count, kVector == 4);
#pragma unroll
            for (int k = 0; k < 4; k++) sums[half * 4 + k][j] += values[k];
        });
    }
    write(arguments.weight_gradient);
}

template <class T, bool kFinishes>
__device__ __forceinline__ void forward(const Conv2dForwardArguments<T>& arguments, const Conv2dFinish& finish) {
    __shared__ __align__(16) Tiles tiles;
    if (arguments.vectors != 0) {
        forward<T, 4, kFinishes>(arguments, finish, tiles);
    } else {
        forward<T, 1, kFinishes>(arguments, finish, tiles);
    }
}

template <class T>
__device__ __forceinline__ void input_gradient(const Conv2dInputGradientArguments<T>& arguments) {
    __shared__ __align__(16) Tiles tiles;
    if (arguments.vectors != 0) {
        input_gradient<T, 4>(arguments, tiles);
    } else {
        input_gradient<T, 1>(arguments, tiles);
    }
}

template <class T>
__device__ __forceinline__ void weight_gradient(const Conv2dWeightGradientArguments<T>& arguments) {
    __shared__ __align__(16) Tiles tiles;
    if (arguments.vectors != 0) {
        weight_gradient<T, 4>(arguments, tiles);
    } else {
        weight_gradient<T, 1>(arguments, tiles);
    }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(128, 3)
    conv2d_forward_fp32(const Conv2dForwardArguments<float> arguments) {
    forward<float, false>(arguments, Conv2dFinish());
}

extern "C" __global__ void __launch_bounds__(128, 3) conv2d_forward_bf16(const Conv2dForwardArguments<bf16> arguments) {
    forward<bf16, false>(arguments, Conv2dFinish());
}

extern "C" __global__ void __launch_bounds__(128, 3)
    conv2d_batch_norm_fp32(const Conv2dBatchNormArguments<float> arguments) {
    forward<float, true>(arguments.convolution, arguments.finish);
}

extern "C" __global__ void __launch_bounds__(128, 3)
    conv2d_batch_norm_bf16(const Conv2dBatchNormArguments<bf16> arguments) {
    forward<bf16, true>(arguments.convolution, arguments.finish);
}

extern "C" __global__ void __launch_bounds__(128, 3)
    conv2d_input_gradient_fp32(const Conv2dInputGradientArguments<float> arguments) {
    input_gradient(arguments);
}

extern "C" __global__ void __launch_bounds__(128, 3)
    conv2d_input_gradient_bf16(const Conv2dInputGradientArguments<bf16> arguments) {
    input_gradient(arguments);
}

extern "C" __global__ void __launch_bounds__(128, 3)
    conv2d_weight_gradient_fp32(const Conv2dWeightGradientArguments<float> arguments) {
    weight_gradient(arguments);
}

extern "C" __global__ void __launch_bounds__(128, 3)
    conv2d_weight_gradient_bf16(const Conv2dWeightGradientArguments<bf16> arguments) {
    weight_gradient(arguments);
}
