// Weight gradient of a two-dimensional convolution on tensor cores, in bf16 and tf32, for sm_80 and later.
//
//   weight gradient (k, r, s, c) = sum over n, p, q of output gradient (n, p, q, k)
//                                  input (n, p u + r - pad, q u + s - pad, c)
//   input [N, H, W, C], output gradient [N, OH, OW, K], weight gradient [K, R, S, C] in float32; stride u
//
// It is one matrix product over the output pixels m = (n, p, q), whose right operand is gathered, not stored (implicit
// GEMM):
//
//   gradient (k, j) = sum over m of output gradient (m, k) input (origin (m) + offset (j)), column j = (r, s, c)
//
// In memory, the summed index of both operands is the outermost, so both fragments are read transposed. Operands are
// bf16, or float32 rounded to tf32 (to nearest, ties away from zero) when fragments are formed. Sums are float32.
//
// Bound by operations. For ResNet-18 at batch 128 and 224 x 224 in bf16, a 3 x 3 layer is 30 GFLOP (15 with stride 2)
// over 18 to 103 MB. At 500 TFLOP/s that is 59 us (30 us) for the operations, and 4 to 24 us for the bytes. A 1 x 1
// layer with stride 2 is 2 GFLOP: 3 us for the operations, 5 to 9 us for the bytes (it reads only a quarter of the
// input). On an H100, 3 x 3 layers reach 180 to 213 TFLOP/s in bf16 and 90 to 97 in tf32.
//
// Tiles: 128 threads compute 128 channels x 128 columns or, with at most 64 channels, 64 x 192: layer1 has 576 columns,
// three such tiles. Four warps compute 64 x 64 or 64 x 48 each, 32 or 24 fragments m16n8, to reduce the load on shared
// memory as in conv2d_tensor.cu. In a step of 32 pixels (16 of tf32) a block copies 16 KB and multiplies 524288
// (narrow: 393216) pairs of bf16: 413 (310) clocks at the 1270 per clock that mma.sync can reach on an H100. Shared
// memory delivers 128 bytes per clock and moves 48 (44) KB: 384 (352) clocks. So shared memory limits 64 x 192 by an
// eighth more than operations do, and 128 x 128 not quite. If L1 held nothing, the tiles would take 40 (53) bytes per
// clock from L2. But neighbouring columns of the filter read neighbouring pixels: of the three in 192 columns of layer1
// two come from L1, which leaves 26. The input is therefore copied through L1, and the output gradient bypasses it.
// occupancy: 128 or 96 sums per thread and their operands leave room for two blocks of four warps (12.5 %). This is
// faster because many warps are not needed to hide latency: each warp has 24 to 32 independent multiplications twice in
// a step and two steps of copies in flight, and the other block multiplies while one waits at its barrier. Tiles half
// as large would be bound by shared memory and L2.
//
// Splits: there are 1 to 144 tiles for 132 multiprocessors, so the pixels are split. The sums of a split are written to
// the workspace in the layout of the registers, 16 bytes per thread. A group has about as many splits as the square
// root of their number: the last split of a group to arrive adds the group's sums, the last group to arrive adds the
// sums of the groups, both in ascending order, and that block writes the result. So the bits depend only on the shape
// and the number of multiprocessors. A last block reads what it adds alone, 48 or 64 KB per split at no more than 64
// bytes per clock; the launch code weighs that against idle multiprocessors. With 132 multiprocessors it chooses 88
// splits in layer1, and 29, 7 and 4 in the others, 13 to 38 MB that mostly stay in L2. It expects 1.2 to 1.5 times the
// time of the multiplications. In a 1 x 1 layer this overhead dominates: 12 to 20 us.
//
// Shared memory: a ring of three stages, each [pixels][channels] of the output gradient, then [pixels][columns] of the
// input. Rows have 128, 256, 384, 512 or 768 bytes, so every row begins in bank 0. Chunks are 16 bytes; eight of them
// have no bank conflict if their positions differ modulo 8.
//   bf16: chunk j of pixel i lies at j ^ (i mod 8). A transposing ldmatrix reads chunk j of eight pixels: all differ.
//   tf32: chunk j of pixel i lies at j ^ 2 (i mod 4). Plain loads of 4 bytes read pixels t = 0..3 (modulo 4) of two
//     chunks 2 m and 2 m + 1: (2 m ^ 2 t) + (0 or 1), all different.
//   Copies: eight threads write eight chunks of one pixel that begin at a multiple of 8: a permutation of 128 bytes.
//
// Copies: a thread copies one or two pixels of each step. From step to step, it updates their positions by additions: a
// step is a fixed number of images, rows and columns, with carries. Bits of a word mark the filter rows and columns
// that lie inside the image, so a copy is valid if the pixel's word has both bits of the column.
//
// Pipeline: in step i a thread waits for its own copies of step i. The barrier makes the copies of all threads visible
// and guarantees that all threads have read step i - 1, whose stage the copies of step i + 2 then overwrite.
//
// The emulator cannot show bank conflicts, what L1 and L2 hold, how long the last blocks take, or memory ordering
// beyond barriers. (Partial sums are written and counted with release; they are read past L1.)
//
// dynamic shared memory: conv2d_weight_gradient_128x128_bf16 49152
// dynamic shared memory: conv2d_weight_gradient_64x192_bf16 49152
// dynamic shared memory: conv2d_weight_gradient_128x128_tf32 49152
// dynamic shared memory: conv2d_weight_gradient_64x192_tf32 49152

#include "conv2d.cuh"

template <class T>
struct Conv2dTensorWeightGradientArguments {
    const T* input;              // [N, H, W, C]
    const T* output_gradient;    // [N, OH, OW, K]
    float* weight_gradient;      // [K, R, S, C]
    float* workspace;            // [splits, tiles, fragments, threads, 4]; none with one split
    unsigned* counters;          // zeros, for each tile: one for the groups, and one for each group of splits
    Conv2dGeometry geometry;
    int channel_tiles;           // tiles over K, the fastest index in blockIdx.x, before column tiles and splits
    int column_tiles;            // tiles over R S C
    int splits;
    int split_steps;             // steps of pixels in a split; the last split may have fewer
    int group_splits;            // splits in a group; the last group may have fewer
};

#if RETUNE_TENSOR_CORES

constexpr int kThreads = 128;
constexpr int kStages = 3;
constexpr int kChunk = 16;                 // bytes of a copy
constexpr int kChunksAtOnce = 8;           // of one pixel, copied by as many threads
constexpr int kWarpChannels = 64;
constexpr int kChannelFragments = kWarpChannels / 16;
constexpr unsigned kColumnBit = 1u << 16;    // bits of filter positions: rows in the lower half, columns in the upper
constexpr unsigned kNowhere = 1u << 31;      // a filter has at most 15 columns

template <class T, int kChannels, int kColumns>
struct Tile {
    static constexpr int kVector = kVectorLength<T>;
    static constexpr int kStep = 64 / static_cast<int>(sizeof(T));    // pixels
    static constexpr int kChannelRow = kChannels * static_cast<int>(sizeof(T));
    static constexpr int kColumnRow = kColumns * static_cast<int>(sizeof(T));
    static constexpr int kStageBytes = kStep * (kChannelRow + kColumnRow);
    static constexpr int kChannelCopies = kChannelRow / kChunk / kChunksAtOnce;
    static constexpr int kColumnCopies = kColumnRow / kChunk / kChunksAtOnce;
    static constexpr int kPixelCopies = kStep / (kThreads / kChunksAtOnce);
    static constexpr int kWarpRows = kChannels / kWarpChannels;
    static constexpr int kWarpColumns = kColumns / (kThreads / kWarp / kWarpRows);
    static constexpr int kColumnFragments = kWarpColumns / 8;
    static constexpr int kFragments = kChannelFragments * kColumnFragments;
    using Sums = float[kChannelFragments][kColumnFragments][4];
    static_assert(kColumnFragments % 2 == 0, "fragments of columns are loaded in pairs");
};

// The position of chunk `chunk` of a pixel in its row.
template <class T>
__device__ __forceinline__ int chunk_offset(int chunk, int pixel) {
    return (chunk ^ (sizeof(T) == 2 ? pixel % 8 : pixel % 4 * 2)) * kChunk;
}

// Bits of the filter positions i with 0 <= origin + i < extent.
__device__ __forceinline__ unsigned positions_inside(int origin, int extent, int positions) {
    const int first = max(-origin, 0);
    const int end = min(extent - origin, positions);
    return first < end ? (1u << end) - (1u << first) : 0u;
}

// The copies of one thread: every eighth chunk of the tile's channels and columns, for each of its pixels.
template <class T, int kChannels, int kColumns>
struct Copies {
    using Sizes = Tile<T, kChannels, kColumns>;

    const Conv2dTensorWeightGradientArguments<T>& arguments;
    int pixels;
    int first_channel;                         // of this thread's first chunk
    int pixel;                                 // the first pixel to copy next
    int image[Sizes::kPixelCopies];            // image, row and column of each pixel
    int row[Sizes::kPixelCopies];
    int column[Sizes::kPixelCopies];
    int step_images;                           // the distance to the pixel of the next step
    int step_rows;
    int step_columns;
    int offset[Sizes::kColumnCopies];          // of a column of the tile in the input, from the origin of the window
    unsigned position[Sizes::kColumnCopies];   // the bits of its filter row and column

    __device__ __forceinline__ Copies(const Conv2dTensorWeightGradientArguments<T>& arguments, int first_step,
                                      int first_channel, int first_column)
        : arguments(arguments), first_channel(first_channel + chunk() * Sizes::kVector) {
        const Conv2dGeometry& geometry = arguments.geometry;
        const int image_pixels = geometry.output_height * geometry.output_width;
        pixels = geometry.batch * image_pixels;
        pixel = first_step * Sizes::kStep + static_cast<int>(threadIdx.x) / kChunksAtOnce;
#pragma unroll
        for (int i = 0; i < Sizes::kPixelCopies; i++) {
            const int index = pixel + i * (kThreads / kChunksAtOnce);
            image[i] = index / image_pixels;
            const int rest = index - image[i] * image_pixels;
            row[i] = rest / geometry.output_width;
            column[i] = rest - row[i] * geometry.output_width;
        }
        step_images = Sizes::kStep / image_pixels;
        const int rest = Sizes::kStep - step_images * image_pixels;
        step_rows = rest / geometry.output_width;
        step_columns = rest - step_rows * geometry.output_width;

        const int columns = geometry.kernel_height * geometry.kernel_width * geometry.input_channels;
#pragma unroll
        for (int j = 0; j < Sizes::kColumnCopies; j++) {
            const int index = first_column + (chunk() + j * kChunksAtOnce) * Sizes::kVector;
            const int tap = index / geometry.input_channels;
            const int filter_row = tap / geometry.kernel_width;
            const int filter_column = tap - filter_row * geometry.kernel_width;
            offset[j] = (filter_row * geometry.width + filter_column) * geometry.input_channels + index -
                        tap * geometry.input_channels;
            position[j] = index < columns ? 1u << filter_row | kColumnBit << filter_column : kNowhere;
        }
    }

    static __device__ __forceinline__ int chunk() {
        return static_cast<int>(threadIdx.x) % kChunksAtOnce;
    }

    // Starts to copy a step and advances to the next.
    __device__ __forceinline__ void copy(unsigned char* stage) {
        const Conv2dGeometry& geometry = arguments.geometry;
#pragma unroll
        for (int i = 0; i < Sizes::kPixelCopies; i++) {
            constexpr int distance = kThreads / kChunksAtOnce;
            const int stage_pixel = static_cast<int>(threadIdx.x) / kChunksAtOnce + i * distance;
            const int index = pixel + i * distance;
            const bool inside = index < pixels;

            unsigned char* channels = stage + stage_pixel * Sizes::kChannelRow;
            const T* gradient =
                arguments.output_gradient + static_cast<long long>(index) * geometry.output_channels + first_channel;
#pragma unroll
            for (int j = 0; j < Sizes::kChannelCopies; j++) {
                const int shift = j * kChunksAtOnce * Sizes::kVector;
                const bool valid = inside && first_channel + shift < geometry.output_channels;
                copy_async_16(channels + chunk_offset<T>(chunk() + j * kChunksAtOnce, stage_pixel),
                              valid ? gradient + shift : arguments.output_gradient, valid);
            }

            unsigned char* columns = stage + Sizes::kStep * Sizes::kChannelRow + stage_pixel * Sizes::kColumnRow;
            const int origin_row = row[i] * geometry.stride - geometry.padding;
            const int origin_column = column[i] * geometry.stride - geometry.padding;
            const unsigned reached =
                inside ? positions_inside(origin_row, geometry.height, geometry.kernel_height) |
                             positions_inside(origin_column, geometry.width, geometry.kernel_width) * kColumnBit
                       : 0u;
            const int origin = (image[i] * geometry.height + origin_row) * geometry.width + origin_column;
            const T* window = arguments.input + static_cast<long long>(origin) * geometry.input_channels;
#pragma unroll
            for (int j = 0; j < Sizes::kColumnCopies; j++) {
                const bool valid = (reached & position[j]) == position[j];
                copy_async_16_cached(columns + chunk_offset<T>(chunk() + j * kChunksAtOnce, stage_pixel),
                                     valid ? window + offset[j] : arguments.input, valid);
            }

            column[i] += step_columns;
            const bool next_row = column[i] >= geometry.output_width;
            if (next_row) column[i] -= geometry.output_width;
            row[i] += step_rows + (next_row ? 1 : 0);
            const bool next_image = row[i] >= geometry.output_height;
            if (next_image) row[i] -= geometry.output_height;
            image[i] += step_images + (next_image ? 1 : 0);
        }
        pixel += Sizes::kStep;
    }
};

// Multiplies half a step, 16 pixels of bf16 or 8 of tf32, for the channels and columns of a warp.
template <class T, int kChannels, int kColumns>
__device__ __forceinline__ void multiply_half(const unsigned char* stage, int half, int warp_channel, int warp_column,
                                              typename Tile<T, kChannels, kColumns>::Sums& sums) {
    using Sizes = Tile<T, kChannels, kColumns>;
    const unsigned char* columns = stage + Sizes::kStep * Sizes::kChannelRow;
    const int lane = threadIdx.x % kWarp;
    uint32_t a[kChannelFragments][4];
    uint32_t b[Sizes::kColumnFragments][2];
    if constexpr (sizeof(T) == 2) {
        const int a_pixel = half * 16 + lane / 16 * 8 + lane % 8;
#pragma unroll
        for (int i = 0; i < kChannelFragments; i++) {
            const int chunk = warp_channel / 8 + i * 2 + lane / 8 % 2;
            load_matrix_x4_transposed(a[i], stage + a_pixel * Sizes::kChannelRow + chunk_offset<T>(chunk, a_pixel));
        }
        const int b_pixel = half * 16 + lane % 16;
#pragma unroll
        for (int j = 0; j < Sizes::kColumnFragments; j += 2) {
            const int chunk = warp_column / 8 + j + lane / 16;
            uint32_t pair[4];
            load_matrix_x4_transposed(pair, columns + b_pixel * Sizes::kColumnRow + chunk_offset<T>(chunk, b_pixel));
            b[j][0] = pair[0];
            b[j][1] = pair[1];
            b[j + 1][0] = pair[2];
            b[j + 1][1] = pair[3];
        }
    } else {
        const auto load = [&](const unsigned char* tile, int row_bytes, int pixel, int element) {
            const unsigned char* chunk = tile + pixel * row_bytes + chunk_offset<T>(element / 4, pixel);
            return round_to_tf32(*reinterpret_cast<const float*>(chunk + element % 4 * 4));
        };
        const int pixel = half * 8 + lane % 4;
#pragma unroll
        for (int i = 0; i < kChannelFragments; i++) {
            const int channel = warp_channel + i * 16 + lane / 4;
            a[i][0] = load(stage, Sizes::kChannelRow, pixel, channel);
            a[i][1] = load(stage, Sizes::kChannelRow, pixel, channel + 8);
            a[i][2] = load(stage, Sizes::kChannelRow, pixel + 4, channel);
            a[i][3] = load(stage, Sizes::kChannelRow, pixel + 4, channel + 8);
        }
#pragma unroll
        for (int j = 0; j < Sizes::kColumnFragments; j++) {
            const int column = warp_column + j * 8 + lane / 4;
            b[j][0] = load(columns, Sizes::kColumnRow, pixel, column);
            b[j][1] = load(columns, Sizes::kColumnRow, pixel + 4, column);
        }
    }
#pragma unroll
    for (int i = 0; i < kChannelFragments; i++) {
#pragma unroll
        for (int j = 0; j < Sizes::kColumnFragments; j++) {
            if constexpr (sizeof(T) == 2) multiply_add_bf16(sums[i][j], a[i], b[j][0], b[j][1]);
            else multiply_add_tf32(sums[i][j], a[i], b[j][0], b[j][1]);
        }
    }
}

// The sums of a thread in the workspace, one fragment after another.
template <class Sizes>
__device__ __forceinline__ void store_sums(float4* target, const typename Sizes::Sums& sums) {
#pragma unroll
    for (int i = 0; i < Sizes::kFragments; i++) {
        const float(&sum)[4] = sums[i / Sizes::kColumnFragments][i % Sizes::kColumnFragments];
        target[i * kThreads] = make_float4(sum[0], sum[1], sum[2], sum[3]);
    }
}

// Adds `count` of them that lie `distance` apart, in this order. The loads bypass L1 because other blocks wrote the
// sums. Half of the fragments are loaded at a time, which is as many loads as the registers can hold.
template <class Sizes>
__device__ __forceinline__ void add_stored(typename Sizes::Sums& sums, const float4* source, long long distance,
                                           int count) {
#pragma unroll
    for (int first = 0; first < Sizes::kFragments; first += Sizes::kFragments / 2) {
#pragma unroll
        for (int i = first; i < first + Sizes::kFragments / 2; i++) {
            float(&sum)[4] = sums[i / Sizes::kColumnFragments][i % Sizes::kColumnFragments];
            sum[0] = sum[1] = sum[2] = sum[3] = 0.0f;
        }
#pragma unroll 1
        for (int part = 0; part < count; part++) {
#pragma unroll
            for (int i = first; i < first + Sizes::kFragments / 2; i++) {
                const float4 values = __ldcg(source + part * distance + i * kThreads);
                float(&sum)[4] = sums[i / Sizes::kColumnFragments][i % Sizes::kColumnFragments];
                sum[0] += values.x;
                sum[1] += values.y;
                sum[2] += values.z;
                sum[3] += values.w;
            }
        }
    }
}

template <class T, int kChannels, int kColumns>
__device__ __forceinline__ void weight_gradient(const Conv2dTensorWeightGradientArguments<T>& arguments) {
    const Conv2dGeometry& geometry = arguments.geometry;
    using Sizes = Tile<T, kChannels, kColumns>;
    extern __shared__ __align__(128) unsigned char shared_memory[];
    const int tiles = arguments.channel_tiles * arguments.column_tiles;
    const int split = static_cast<int>(blockIdx.x) / tiles;
    const int tile = static_cast<int>(blockIdx.x) - split * tiles;
    const int column_tile = tile / arguments.channel_tiles;
    const int first_channel = (tile - column_tile * arguments.channel_tiles) * kChannels;
    const int first_column = column_tile * kColumns;
    const int columns = geometry.kernel_height * geometry.kernel_width * geometry.input_channels;
    const int pixels = geometry.batch * geometry.output_height * geometry.output_width;

    const int warp = threadIdx.x / kWarp;
    const int warp_channel = warp % Sizes::kWarpRows * kWarpChannels;
    const int warp_column = warp / Sizes::kWarpRows * Sizes::kWarpColumns;
    // A warp past the end of the gradient only copies; it does not multiply, store or add.
    const bool active =
        first_channel + warp_channel < geometry.output_channels && first_column + warp_column < columns;

    const int first_step = split * arguments.split_steps;
    const int steps = min(divide_up(pixels, Sizes::kStep) - first_step, arguments.split_steps);
    Copies<T, kChannels, kColumns> copies(arguments, first_step, first_channel, first_column);
#pragma unroll
    for (int stage = 0; stage < kStages - 1; stage++) {
        if (stage < steps) copies.copy(shared_memory + stage * Sizes::kStageBytes);
        copy_async_commit();
    }
    typename Sizes::Sums sums = {};
    int stage = 0;
    for (int step = 0; step < steps; step++) {
        copy_async_wait<kStages - 2>();
        __syncthreads();
        const int next = stage == 0 ? kStages - 1 : stage - 1;
        if (step + kStages - 1 < steps) copies.copy(shared_memory + next * Sizes::kStageBytes);
        copy_async_commit();
        if (active) {
            const unsigned char* source = shared_memory + stage * Sizes::kStageBytes;
            multiply_half<T, kChannels, kColumns>(source, 0, warp_channel, warp_column, sums);
            multiply_half<T, kChannels, kColumns>(source, 1, warp_channel, warp_column, sums);
        }
        stage = stage == kStages - 1 ? 0 : stage + 1;
    }

    if (arguments.splits > 1) {
        const long long distance = static_cast<long long>(tiles) * Sizes::kFragments * kThreads;
        float4* parts = reinterpret_cast<float4*>(arguments.workspace) +
                        static_cast<long long>(tile) * Sizes::kFragments * kThreads + threadIdx.x;
        const int groups = divide_up(arguments.splits, arguments.group_splits);
        const int group = split / arguments.group_splits;
        const int first_split = group * arguments.group_splits;
        const int group_splits = min(arguments.splits - first_split, arguments.group_splits);
        unsigned* counters = arguments.counters + static_cast<long long>(tile) * (groups + 1);

        if (active) store_sums<Sizes>(parts + split * distance, sums);
        if (group_splits > 1) {
            if (!arrive_last(counters + 1 + group, group_splits)) return;
            if (active) add_stored<Sizes>(sums, parts + first_split * distance, distance, group_splits);
            // Each thread overwrites values that no other thread reads.
            if (active && groups > 1) store_sums<Sizes>(parts + first_split * distance, sums);
        }
        if (groups > 1) {
            if (!arrive_last(counters, groups)) return;
            if (active) add_stored<Sizes>(sums, parts, distance * arguments.group_splits, groups);
        }
    }

    // The number of columns is a multiple of four, so a pair lies entirely inside or outside.
    const int lane = threadIdx.x % kWarp;
#pragma unroll
    for (int i = 0; i < kChannelFragments; i++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int channel = first_channel + warp_channel + i * 16 + half * 8 + lane / 4;
            if (channel >= geometry.output_channels) continue;
            float* row = arguments.weight_gradient + static_cast<long long>(channel) * columns;
#pragma unroll
            for (int j = 0; j < Sizes::kColumnFragments; j++) {
                const int column = first_column + warp_column + j * 8 + lane % 4 * 2;
                if (column >= columns) continue;
                *reinterpret_cast<float2*>(row + column) = make_float2(sums[i][j][half * 2], sums[i][j][half * 2 + 1]);
            }
        }
    }
}

#endif

extern "C" __global__ void __launch_bounds__(128, 2)
    conv2d_weight_gradient_128x128_bf16(const Conv2dTensorWeightGradientArguments<bf16> arguments) {
#if RETUNE_TENSOR_CORES
    weight_gradient<bf16, 128, 128>(arguments);
#endif
}

extern "C" __global__ void __launch_bounds__(128, 2)
    conv2d_weight_gradient_64x192_bf16(const Conv2dTensorWeightGradientArguments<bf16> arguments) {
#if RETUNE_TENSOR_CORES
    weight_gradient<bf16, 64, 192>(arguments);
#endif
}

extern "C" __global__ void __launch_bounds__(128, 2)
    conv2d_weight_gradient_128x128_tf32(const Conv2dTensorWeightGradientArguments<float> arguments) {
#if RETUNE_TENSOR_CORES
    weight_gradient<float, 128, 128>(arguments);
#endif
}

extern "C" __global__ void __launch_bounds__(128, 2)
    conv2d_weight_gradient_64x192_tf32(const Conv2dTensorWeightGradientArguments<float> arguments) {
#if RETUNE_TENSOR_CORES
    weight_gradient<float, 64, 192>(arguments);
#endif
}
