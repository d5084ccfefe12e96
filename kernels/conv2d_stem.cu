// The first convolution of a ResNet on tensor cores, in bf16 and tf32, for sm_80 and later: 7 x 7, stride 2, three
// channels; forward and weight gradient.
//
//   output (n, p, q, k)          = sum over r, s, c of input (n, 2 p + r - pad, 2 q + s - pad, c) weight (k, r, s, c)
//   weight gradient (k, r, s, c) = sum over n, p, q of output gradient (n, p, q, k) input (n, 2 p + r - pad, ...)
//   input [N, H, W, 3], weight [K, 7, 7, 3], output [N, OH, OW, K]; any image size, any padding. Forward supports any K;
//   the gradient needs K to be a multiple of 16 bytes
//
// Three channels fill neither a 16-byte copy nor the depth of a tensor-core instruction. But for one output pixel, a
// filter row reads 21 consecutive elements, and for the next output pixel the 21 elements that begin 6 later. So the
// input of a tile of 128 output pixels is copied to shared memory as it is (the patch), and the multiplications read
// their operands there. The depth is (r, element); element d of filter row r for pixel q lies at offset (q) + r pitch +
// d. A tile that spans several output rows consists of several runs of pixels, whose spans follow each other in each of
// the seven rows of the patch.
//
// Operands are bf16, or float32 rounded to tf32 (to nearest, ties away from zero). Sums are float32, and a forward
// result is rounded once. Statistics describe the rounded output and are computed in registers; statistics.cuh explains
// how they are combined.
//
// Words: the unit of all sizes is a word of 4 bytes (two bf16 or one tf32), because fragments consist of words: lanes t
// = 0..3 of four hold the words t and t + 4 of a step of depth (16 of bf16, 8 of tf32). In bf16 a filter row is 22
// elements or 11 words, and the weight of the first element is zero. With the usual padding of 3, a window begins at an
// odd element of an even row, so the element before it is aligned to a word, and the whole patch can be copied
// asynchronously word by word. (Rows of odd length are copied element by element.) The depth is then 154 of 160 (10
// steps) or, in tf32, 147 of 152 (19 steps). Beyond it, the weights are zero and the pixel's first word is read. Zero
// times infinity is NaN, so an infinity or NaN in an image can also affect outputs near those that read it.
//
// Bound forward by operations and bytes alike. At batch 128, 224 x 224, K = 64 in bf16: 30 GFLOP and 244 MB, 60 us at
// 500 TFLOP/s and 57 us at 4.3 TB/s; with the zeros of the depth 66 us. In tf32: 120 us for the operations, 114 us for
// the bytes. The gradient needs the same, and 22 MB written and read for the partial sums. An H100 takes 0.55 ms
// forward in bf16 and 0.83 ms in tf32, far above both bounds, and 0.20 and 0.37 ms for the gradient with the addition
// of its partial sums.
//
// Forward: blocks of 128 threads are persistent. They load the weights once and move from tile to tile; 12544 tiles
// that each load 18 KB of weights would read 240 MB from L2, and the weights cannot be copied in units of 16 bytes. A
// tile is 128 pixels x 64 channels, four warps of 64 x 32. In a step of depth, a warp reads 16 words per lane of the
// patch and two ldmatrix of weights for 16 multiplications: 24 clocks of shared memory, 96 for the block. The 131,072
// pairs of bf16 of the step take 103 clocks at the 1270 per clock that mma.sync can reach on an H100. The next patch is
// copied while results are written. In bf16, four blocks per multiprocessor (25 %) hide the remaining latency.
//
// Gradient: 64 channels x 160 of depth, summed over the pixels of consecutive tiles, four warps of 32 x 80. The output
// gradient is stored in shared memory as [pixels][64 channels] and read transposed. From the patch, a lane reads words
// of two neighbouring pixels and combines their lower halves into one fragment and their upper halves into another
// (bf16). A step of 16 pixels (8 of tf32) takes 30 clocks of shared memory per warp, 120 for the block, for 163,840
// pairs: 129 clocks.
// occupancy: 18.75 % in tf32: 64 or 80 sums per thread, the patch, and the weights or the output gradient in four bytes
// leave room for three blocks in 228 KB (two in 164 KB). In tf32 a step of depth is half as deep for the same loads, so
// smaller tiles would be bound by shared memory.
//
// Partial sums: a split consists of some tiles of a persistent block. There are 528 splits on 132 multiprocessors, with
// 40 KB of sums each. A second launch adds them: first eight slices of the splits, then the slices, each in ascending
// order. (In a single launch, the last block to arrive would read 2 x 23 partial sums alone, about 17 us.)
//
// Shared memory, in words: forward stores the weights [64 channels][84 or 156], the offsets [128] and the patch
// [7][pitch]; the gradient stores the output gradient [128 pixels][64 channels], the offsets and the patch. At ResNet's
// 112 columns, a tile has up to three runs and the pitch is 427 or 821. There are no bank conflicts:
//   Patch: the pitch is that of a filter row of depth (11 or 21) modulo 32, so word w of depth lies in bank offset + w,
//     whatever its row. In bf16, the lanes (g, t) of forward read 3 g + t + const, 0..24. In tf32 they would read 6 g +
//     t, and some of these collide; so the rows of the fragment are the even pixels, then the odd ones: 12 g + t modulo
//     32 are eight groups of four, all different. The gradient reads 6 t + g, 0..25. Equal words are one access. The
//     few tiles in which a fragment spans two runs may have conflicts.
//   Weights: a row is 21 or 39 chunks of 16 bytes, an odd number, so ldmatrix reads eight rows in different banks.
//   Output gradient: chunk j of pixel i lies at j ^ (i mod 8), or in tf32 at j ^ 2 (i mod 4), as in
//     conv2d_weight_gradient.cu.
//
// Results are written from registers. The order of the weights gives each lane eight consecutive channels, so four
// lanes write 64 or 128 consecutive bytes.
//
// The emulator cannot show bank conflicts, whether four blocks hide the latency of a patch, coalescing, or memory
// ordering beyond barriers.
//
// dynamic shared memory: conv2d_stem_forward_bf16 33972
// dynamic shared memory: conv2d_stem_forward_tf32 63436
// dynamic shared memory: conv2d_stem_batch_norm_bf16 33972
// dynamic shared memory: conv2d_stem_batch_norm_tf32 63436
// dynamic shared memory: conv2d_stem_weight_gradient_bf16 28852
// dynamic shared memory: conv2d_stem_weight_gradient_tf32 56268
// dynamic shared memory: conv2d_stem_weight_gradient_sum_bf16 0
// dynamic shared memory: conv2d_stem_weight_gradient_sum_tf32 0

#include "conv2d.cuh"

template <class T>
struct Conv2dStemForwardArguments {
    const T* input;        // [N, H, W, 3]
    const T* weight;       // [K, 7, 7, 3]
    T* output;             // [N, OH, OW, K]
    float* statistics;     // [rows, 2, K] or null
    unsigned* counters;    // zeros, for each tile of channels: one, and one for each group of tiles
    Conv2dGeometry geometry;
    int patch_pitch;       // words from one row of the patch to the next
};

template <class T>
struct Conv2dStemBatchNormArguments {
    Conv2dStemForwardArguments<T> convolution;
    Conv2dFinish finish;
};

template <class T>
struct Conv2dStemWeightGradientArguments {
    const T* input;              // [N, H, W, 3]
    const T* output_gradient;    // [N, OH, OW, K]
    float* workspace;            // [splits, tiles of channels, fragments, threads, 4]
    Conv2dGeometry geometry;
    int patch_pitch;             // words from one row of the patch to the next
    int split_tiles;             // tiles of pixels in a split (blockIdx.x); the last split may have fewer
    int reserved;
};

struct Conv2dStemWeightGradientSumArguments {
    const float* workspace;    // [splits, tiles of channels, fragments, threads, 4]
    float* weight_gradient;    // [K, 7, 7, 3]
    int output_channels;       // K
    int splits;
};

#if RETUNE_TENSOR_CORES

constexpr int kThreads = 128;
constexpr int kPixels = kPixelsPerBlock;
constexpr int kChannels = 64;    // of a block
constexpr int kFilter = 7;
constexpr int kInputChannels = 3;
constexpr int kStride = 2;
constexpr int kFilterRow = kFilter * kInputChannels;
constexpr int kFilterLength = kFilter * kFilterRow;
constexpr int kStepWords = 8;     // of depth in one multiplication
constexpr int kChunkWords = 4;    // 16 bytes
static_assert(kThreads == kPixels, "each thread computes the offset of one pixel");

// Sizes in words of four bytes: two elements of bf16, one float.
template <class T>
struct Format;

template <>
struct Format<bf16> {
    static constexpr int kElements = 2;      // in a word
    static constexpr int kLead = 1;          // elements before the filter row, with weight zero
    static constexpr int kRowWords = 11;     // of depth in a filter row
    static constexpr int kPixelWords = 3;    // from one output pixel to the next
    static constexpr int kRunWords = 8;      // of a run in addition to kPixelWords per pixel
    static constexpr int kSteps = 10;
};

template <>
struct Format<float> {
    static constexpr int kElements = 1;
    static constexpr int kLead = 0;
    static constexpr int kRowWords = 21;
    static constexpr int kPixelWords = 6;
    static constexpr int kRunWords = 15;
    static constexpr int kSteps = 19;
};

template <class T>
constexpr int kDepthWords = Format<T>::kSteps * kStepWords;
// An odd number of chunks.
template <class T>
constexpr int kWeightPitch = kDepthWords<T> + kChunkWords;

// The offset of a word of depth in the patch from the first word of a pixel; 0 for a word beyond the depth.
template <class T>
__device__ __forceinline__ int depth_offset(int word, int patch_pitch) {
    const int row = word / Format<T>::kRowWords;
    return row < kFilter ? word + row * (patch_pitch - Format<T>::kRowWords) : 0;
}

// Converts a word of the patch to an operand of a multiplication.
template <class T>
__device__ __forceinline__ uint32_t operand(uint32_t word) {
    if constexpr (sizeof(T) == 2) return word;
    else return round_to_tf32(__uint_as_float(word));
}

template <class T>
__device__ __forceinline__ void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    if constexpr (sizeof(T) == 2) multiply_add_bf16(d, a, b0, b1);
    else multiply_add_tf32(d, a, b0, b1);
}

// Starts to copy the input that a tile of pixels reads, and writes the offset at which each pixel begins in the patch.
// Pixels past the last one get the offset of the first.
template <class T, class Arguments>
__device__ __forceinline__ void fill_patch(const Arguments& arguments, int tile, uint32_t* patch, int* places) {
    const Conv2dGeometry& geometry = arguments.geometry;
    using Words = Format<T>;
    const int width = geometry.output_width;
    const int first_pixel = tile * kPixels;
    const int count = min(geometry.batch * geometry.output_height * width - first_pixel, kPixels);
    const int first_row = first_pixel / width;
    const int first_column = first_pixel - first_row * width;
    const int first_length = min(width - first_column, count);

    const int pixel = threadIdx.x;
    const int run_of_pixel = pixel < first_length ? 0 : 1 + (pixel - first_length) / width;
    places[pixel] = pixel < count ? pixel * Words::kPixelWords + run_of_pixel * Words::kRunWords : 0;

    const int runs = 1 + divide_up(count - first_length, width);
    const int input_row = geometry.width * kInputChannels;
    for (int line = threadIdx.x / kWarp; line < runs * kFilter; line += kThreads / kWarp) {
        const int run = line / kFilter;
        const int filter_row = line - run * kFilter;
        const int run_pixel = run == 0 ? 0 : first_length + (run - 1) * width;
        const int length = run == 0 ? first_length : min(width, count - run_pixel);
        const int image = (first_row + run) / geometry.output_height;
        const int output_row = first_row + run - image * geometry.output_height;
        const int row = output_row * kStride - geometry.padding + filter_row;
        const bool inside = row >= 0 && row < geometry.height;
        const T* source = arguments.input + static_cast<long long>(image * geometry.height + row) * input_row;
        uint32_t* target =
            patch + filter_row * arguments.patch_pitch + run_pixel * Words::kPixelWords + run * Words::kRunWords;
        const int words = length * Words::kPixelWords + Words::kRunWords;
        const int first_element =
            ((run == 0 ? first_column : 0) * kStride - geometry.padding) * kInputChannels - Words::kLead;
        const auto valid = [=](int element) { return inside && element >= 0 && element < input_row; };
        // If rows have an even length and begin at an even distance, words are aligned and lie entirely inside or
        // outside the image.
        if (Words::kElements == 1 || (input_row % 2 == 0 && first_element % 2 == 0)) {
            for (int word = threadIdx.x % kWarp; word < words; word += kWarp) {
                const int element = first_element + word * Words::kElements;
                copy_async_4(target + word, valid(element) ? source + element : arguments.input, valid(element));
            }
        } else if constexpr (Words::kElements == 2) {
            for (int word = threadIdx.x % kWarp; word < words; word += kWarp) {
                const int element = first_element + word * 2;
                const uint32_t low = valid(element) ? source[element].bits : 0u;
                const uint32_t high = valid(element + 1) ? source[element + 1].bits : 0u;
                target[word] = low | high << 16;
            }
        }
    }
    copy_async_commit();
}

// Stores the weights in the layout that the multiplications read, one row per channel, padded with zeros. A lane's sums
// belong to columns 2 t and 2 t + 1 of four fragments; the order of the rows makes these eight consecutive channels.
template <class T>
__device__ __forceinline__ void fill_weights(const Conv2dStemForwardArguments<T>& arguments, int first_channel,
                                             uint32_t* weights) {
    const Conv2dGeometry& geometry = arguments.geometry;
    using Words = Format<T>;
    constexpr int depth_row = Words::kRowWords * Words::kElements;
    for (int index = threadIdx.x; index < kChannels * kDepthWords<T>; index += kThreads) {
        const int place = index / kDepthWords<T>;
        const int word = index - place * kDepthWords<T>;
        const int channel = first_channel + place / 32 * 32 + place % 8 / 2 * 8 + place % 32 / 8 * 2 + place % 2;
        const auto weight = [&](int depth) {
            const int row = depth / depth_row;
            const int element = depth - row * depth_row - Words::kLead;
            const bool valid = channel < geometry.output_channels && row < kFilter && element >= 0;
            return valid ? to_float(arguments.weight[channel * kFilterLength + row * kFilterRow + element]) : 0.0f;
        };
        uint32_t packed;
        if constexpr (Words::kElements == 2) packed = pack_bf16(weight(word * 2), weight(word * 2 + 1));
        else packed = round_to_tf32(weight(word));
        weights[place * kWeightPitch<T> + word] = packed;
    }
}

constexpr int kForwardFragments = 4;    // of pixels and of channels per warp
using ForwardSums = float[kForwardFragments][kForwardFragments][4];

// The pixel of the warp's tile that a lane's row stands for. The rows of a fragment can be any pixels.
template <class T>
__device__ __forceinline__ int pixel_of_row(int fragment, int half) {
    const int row = threadIdx.x % kWarp / 4;
    return fragment * 16 + (sizeof(T) == 2 ? row + half * 8 : row * 2 + half);
}

template <class T>
__device__ __forceinline__ void multiply_tile(const uint32_t* patch, const int* places, const uint32_t* weights,
                                              int patch_pitch, ForwardSums& sums) {
    const int lane = threadIdx.x % kWarp;
    const int warp = threadIdx.x / kWarp;
    int place[kForwardFragments][2];
#pragma unroll
    for (int i = 0; i < kForwardFragments; i++) {
#pragma unroll
        for (int half = 0; half < 2; half++) place[i][half] = places[warp / 2 * 64 + pixel_of_row<T>(i, half)];
    }
    const uint32_t* weight_row =
        weights + (warp % 2 * 32 + lane / 16 * 8 + lane % 8) * kWeightPitch<T> + lane / 8 % 2 * kChunkWords;
#pragma unroll 2
    for (int step = 0; step < Format<T>::kSteps; step++) {
        const int low = depth_offset<T>(step * kStepWords + lane % 4, patch_pitch);
        const int high = depth_offset<T>(step * kStepWords + lane % 4 + 4, patch_pitch);
        uint32_t b[2][4];
#pragma unroll
        for (int j = 0; j < 2; j++) {
            load_matrix_x4(b[j], weight_row + j * 16 * kWeightPitch<T> + step * kStepWords);
        }
#pragma unroll
        for (int i = 0; i < kForwardFragments; i++) {
            const uint32_t a[4] = {operand<T>(patch[place[i][0] + low]), operand<T>(patch[place[i][1] + low]),
                                   operand<T>(patch[place[i][0] + high]), operand<T>(patch[place[i][1] + high])};
#pragma unroll
            for (int j = 0; j < kForwardFragments; j++) {
                multiply_add<T>(sums[i][j], a, b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
            }
        }
    }
}

// Computes statistics over the tile's first `count` pixels, one channel for each of the first 64 threads. The sums of
// the other pixels are zero.
__device__ __forceinline__ Statistics tile_statistics(const ForwardSums& sums, int first_row, int second_row, int count,
                                                      float (&partial)[2][kChannels], float (&means)[kChannels]) {
    const int lane = threadIdx.x % kWarp;
    const int warp = threadIdx.x / kWarp;
    const auto add_lanes = [&](int channel, float value) {
#pragma unroll
        for (int distance = 4; distance < kWarp; distance *= 2) value += __shfl_xor_sync(kAllLanes, value, distance);
        if (lane < 4) partial[warp / 2][channel] = value;
    };
    const int first_channel = warp % 2 * 32 + lane % 4 * 8;
#pragma unroll
    for (int j = 0; j < kForwardFragments; j++) {
#pragma unroll
        for (int k = 0; k < 2; k++) {
            float sum = 0.0f;
#pragma unroll
            for (int i = 0; i < kForwardFragments; i++) sum += sums[i][j][k] + sums[i][j][k + 2];
            add_lanes(first_channel + j * 2 + k, sum);
        }
    }
    __syncthreads();
    Statistics statistics = {static_cast<float>(count), 0.0f, 0.0f};
    const int channel = threadIdx.x;
    if (channel < kChannels) {
        statistics.sum = partial[0][channel] + partial[1][channel];
        means[channel] = statistics.sum / statistics.count;
    }
    __syncthreads();
#pragma unroll
    for (int j = 0; j < kForwardFragments; j++) {
#pragma unroll
        for (int k = 0; k < 2; k++) {
            const float mean = means[first_channel + j * 2 + k];
            float sum = 0.0f;
#pragma unroll
            for (int i = 0; i < kForwardFragments; i++) {
                const float first = sums[i][j][k] - mean;
                const float second = sums[i][j][k + 2] - mean;
                if (first_row + i * 16 < count) sum += first * first;
                if (second_row + i * 16 < count) sum += second * second;
            }
            add_lanes(first_channel + j * 2 + k, sum);
        }
    }
    __syncthreads();
    if (channel < kChannels) statistics.deviations = partial[0][channel] + partial[1][channel];
    return statistics;
}

// With `kFinishes`, the batch norm `finish` is applied, and there are no statistics.
template <class T, bool kFinishes>
__device__ __forceinline__ void forward(const Conv2dStemForwardArguments<T>& arguments, const Conv2dFinish& finish) {
    const Conv2dGeometry& geometry = arguments.geometry;
    extern __shared__ __align__(128) unsigned char shared_memory[];
    __shared__ float partial[2][kChannels];
    __shared__ float means[kChannels];
    __shared__ float2 affines[kFinishes ? kChannels : 1];
    uint32_t* weights = reinterpret_cast<uint32_t*>(shared_memory);
    int* places = reinterpret_cast<int*>(weights + kChannels * kWeightPitch<T>);
    uint32_t* patch = reinterpret_cast<uint32_t*>(places + kPixels);

    const int channels = geometry.output_channels;
    const int first_channel = static_cast<int>(blockIdx.y) * kChannels;
    const int pixels = geometry.batch * geometry.output_height * geometry.output_width;
    const int tiles = divide_up(pixels, kPixels);
    const int lane = threadIdx.x % kWarp;
    const int warp = threadIdx.x / kWarp;
    const int first_row = warp / 2 * 64 + pixel_of_row<T>(0, 0);
    const int second_row = warp / 2 * 64 + pixel_of_row<T>(0, 1);
    const int channel = first_channel + warp % 2 * 32 + lane % 4 * 8;    // the first of this lane's eight
    const bool vectors = channels % kVectorLength<T> == 0;

    if constexpr (kFinishes) {
        const int thread = static_cast<int>(threadIdx.x);
        if (thread < kChannels) {
            affines[thread] = first_channel + thread < channels ? finish.affine_of(first_channel + thread) : make_float2(0.0f, 0.0f);
        }
    }
    int tile = blockIdx.x;
    fill_patch<T>(arguments, tile, patch, places);
    fill_weights(arguments, first_channel, weights);
    while (tile < tiles) {
        const int first_pixel = tile * kPixels;
        const int count = min(pixels - first_pixel, kPixels);
        copy_async_wait<0>();
        __syncthreads();
        ForwardSums sums = {};
        multiply_tile<T>(patch, places, weights, arguments.patch_pitch, sums);
        __syncthreads();
        const int next_tile = tile + static_cast<int>(gridDim.x);
        if (next_tile < tiles) fill_patch<T>(arguments, next_tile, patch, places);

#pragma unroll
        for (int i = 0; i < kForwardFragments; i++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int row = (half == 0 ? first_row : second_row) + i * 16;
                float values[8];
                uint32_t packed[4];
#pragma unroll
                for (int j = 0; j < kForwardFragments; j++) {
                    float& low = sums[i][j][half * 2];
                    float& high = sums[i][j][half * 2 + 1];
                    if (row >= count) low = high = 0.0f;
                    if constexpr (sizeof(T) == 2) {
                        packed[j] = pack_bf16(low, high);
                        low = __uint_as_float(packed[j] << 16);
                        high = __uint_as_float(packed[j] & 0xffff0000u);
                    }
                    values[j * 2] = low;
                    values[j * 2 + 1] = high;
                }
                if (row >= count) continue;
                T* target = arguments.output + static_cast<long long>(first_pixel + row) * channels + channel;
                if constexpr (kFinishes) {
                    const T* residual = static_cast<const T*>(finish.residual);
                    if (residual != nullptr) residual += target - arguments.output;
                    const float2* own = affines + (channel - first_channel);
#pragma unroll
                    for (int k = 0; k < 8; k++) {
                        const bool is_added = residual != nullptr && channel + k < channels;
                        values[k] = finish.apply(values[k], own[k], is_added ? to_float(residual[k]) : 0.0f);
                    }
                    if constexpr (sizeof(T) == 2) {
#pragma unroll
                        for (int j = 0; j < 4; j++) packed[j] = pack_bf16(values[j * 2], values[j * 2 + 1]);
                    }
                }
                if constexpr (sizeof(T) == 2) {
                    if (vectors && channel < channels) {
                        *reinterpret_cast<uint4*>(target) = make_uint4(packed[0], packed[1], packed[2], packed[3]);
                        continue;
                    }
                } else {
                    if (vectors) {
#pragma unroll
                        for (int part = 0; part < 8; part += 4) {
                            if (channel + part >= channels) continue;
                            *reinterpret_cast<float4*>(target + part) = make_float4(
                                values[part], values[part + 1], values[part + 2], values[part + 3]);
                        }
                        continue;
                    }
                }
#pragma unroll
                for (int k = 0; k < 8; k++) {
                    if (channel + k < channels) target[k] = from_float<T>(values[k]);
                }
            }
        }

        if (!kFinishes && arguments.statistics != nullptr) {
            const Statistics statistics = tile_statistics(sums, first_row, second_row, count, partial, means);
            const int column = first_channel + static_cast<int>(threadIdx.x);
            if (threadIdx.x < kChannels && column < channels) {
                float* row = arguments.statistics + static_cast<size_t>(block_row(tile, tiles)) * 2 * channels;
                row[column] = statistics.sum;
                row[channels + column] = statistics.deviations;
            }
            unsigned* counters = arguments.counters + blockIdx.y * (groups_of(tiles) + 1);
            combine_statistics(arguments.statistics, channels, first_channel, min(kChannels, channels - first_channel),
                               pixels, tile, tiles, counters);
        }
        tile = next_tile;
    }
}

constexpr int kGradientChannelFragments = 2;    // per warp
constexpr int kGradientColumnFragments = 10;
constexpr int kGradientFragments = kGradientChannelFragments * kGradientColumnFragments;
using GradientSums = float[kGradientChannelFragments][kGradientColumnFragments][4];

// Words of depth per warp. A fragment of columns is eight words of tf32, or the lower or upper halves of eight words.
template <class T>
constexpr int kWarpWords = kGradientColumnFragments * 8 / Format<T>::kElements;

template <class T>
__device__ __forceinline__ void fill_gradient(const Conv2dStemWeightGradientArguments<T>& arguments, int tile,
                                              int first_channel, unsigned char* gradient) {
    const Conv2dGeometry& geometry = arguments.geometry;
    constexpr int row_bytes = kChannels * static_cast<int>(sizeof(T));
    constexpr int chunks = row_bytes / 16;
    const int pixels = geometry.batch * geometry.output_height * geometry.output_width;
    const int chunk = threadIdx.x % chunks;
    const int channel = first_channel + chunk * kVectorLength<T>;
#pragma unroll
    for (int i = 0; i < kPixels * chunks / kThreads; i++) {
        const int row = threadIdx.x / chunks + i * (kThreads / chunks);
        const int pixel = tile * kPixels + row;
        const bool valid = pixel < pixels && channel < geometry.output_channels;
        const int place = chunk ^ (sizeof(T) == 2 ? row % 8 : row % 4 * 2);
        const T* source =
            arguments.output_gradient + static_cast<long long>(pixel) * geometry.output_channels + channel;
        copy_async_16(gradient + row * row_bytes + place * 16, valid ? source : arguments.output_gradient, valid);
    }
}

template <class T>
__device__ __forceinline__ void weight_gradient(const Conv2dStemWeightGradientArguments<T>& arguments) {
    const Conv2dGeometry& geometry = arguments.geometry;
    extern __shared__ __align__(128) unsigned char shared_memory[];
    constexpr int row_bytes = kChannels * static_cast<int>(sizeof(T));
    constexpr int groups = kWarpWords<T> / 8;
    unsigned char* gradient = shared_memory;
    int* places = reinterpret_cast<int*>(gradient + kPixels * row_bytes);
    uint32_t* patch = reinterpret_cast<uint32_t*>(places + kPixels);
    const int lane = threadIdx.x % kWarp;
    const int warp = threadIdx.x / kWarp;
    const int warp_channel = warp / 2 * 32;
    const int first_channel = static_cast<int>(blockIdx.y) * kChannels;
    const int tiles = divide_up(geometry.batch * geometry.output_height * geometry.output_width, kPixels);
    const int first_tile = static_cast<int>(blockIdx.x) * arguments.split_tiles;
    const int end_tile = min(first_tile + arguments.split_tiles, tiles);

    int offset[groups];
#pragma unroll
    for (int j = 0; j < groups; j++) {
        offset[j] = depth_offset<T>(warp % 2 * kWarpWords<T> + j * 8 + lane / 4, arguments.patch_pitch);
    }
    GradientSums sums = {};
    for (int tile = first_tile; tile < end_tile; tile++) {
        __syncthreads();
        fill_gradient(arguments, tile, first_channel, gradient);
        fill_patch<T>(arguments, tile, patch, places);
        copy_async_wait<0>();
        __syncthreads();
        if constexpr (sizeof(T) == 2) {
#pragma unroll 2
            for (int step = 0; step < kPixels / 16; step++) {
                const int2 first = *reinterpret_cast<const int2*>(places + step * 16 + lane % 4 * 2);
                const int2 second = *reinterpret_cast<const int2*>(places + step * 16 + lane % 4 * 2 + 8);
                const int pixel = step * 16 + lane / 16 * 8 + lane % 8;
                uint32_t a[kGradientChannelFragments][4];
#pragma unroll
                for (int i = 0; i < kGradientChannelFragments; i++) {
                    const int chunk = (warp_channel / 8 + i * 2 + lane / 8 % 2) ^ (pixel % 8);
                    load_matrix_x4_transposed(a[i], gradient + pixel * row_bytes + chunk * 16);
                }
#pragma unroll
                for (int j = 0; j < groups; j++) {
                    const uint32_t words[4] = {patch[first.x + offset[j]], patch[first.y + offset[j]],
                                               patch[second.x + offset[j]], patch[second.y + offset[j]]};
                    const uint32_t low[2] = {__byte_perm(words[0], words[1], 0x5410),
                                             __byte_perm(words[2], words[3], 0x5410)};
                    const uint32_t high[2] = {__byte_perm(words[0], words[1], 0x7632),
                                              __byte_perm(words[2], words[3], 0x7632)};
#pragma unroll
                    for (int i = 0; i < kGradientChannelFragments; i++) {
                        multiply_add<T>(sums[i][j * 2], a[i], low[0], low[1]);
                        multiply_add<T>(sums[i][j * 2 + 1], a[i], high[0], high[1]);
                    }
                }
            }
        } else {
#pragma unroll 2
            for (int step = 0; step < kPixels / 8; step++) {
                const int pixel = step * 8 + lane % 4;
                const int first = places[pixel];
                const int second = places[pixel + 4];
                uint32_t a[kGradientChannelFragments][4];
#pragma unroll
                for (int i = 0; i < kGradientChannelFragments; i++) {
                    const auto load = [&](int row, int channel) {
                        const int chunk = (channel / 4) ^ (row % 4 * 2);
                        const unsigned char* source = gradient + row * row_bytes + chunk * 16 + channel % 4 * 4;
                        return round_to_tf32(*reinterpret_cast<const float*>(source));
                    };
                    const int channel = warp_channel + i * 16 + lane / 4;
                    a[i][0] = load(pixel, channel);
                    a[i][1] = load(pixel, channel + 8);
                    a[i][2] = load(pixel + 4, channel);
                    a[i][3] = load(pixel + 4, channel + 8);
                }
#pragma unroll
                for (int j = 0; j < groups; j++) {
                    const uint32_t b0 = operand<T>(patch[first + offset[j]]);
                    const uint32_t b1 = operand<T>(patch[second + offset[j]]);
#pragma unroll
                    for (int i = 0; i < kGradientChannelFragments; i++) multiply_add<T>(sums[i][j], a[i], b0, b1);
                }
            }
        }
    }

    float4* target = reinterpret_cast<float4*>(arguments.workspace) +
                     (static_cast<long long>(blockIdx.x) * gridDim.y + blockIdx.y) * kGradientFragments * kThreads +
                     threadIdx.x;
#pragma unroll
    for (int i = 0; i < kGradientFragments; i++) {
        const float(&sum)[4] = sums[i / kGradientColumnFragments][i % kGradientColumnFragments];
        target[i * kThreads] = make_float4(sum[0], sum[1], sum[2], sum[3]);
    }
}

constexpr int kSumColumns = 32;    // groups of four sums in a block, one per lane
constexpr int kSumSlices = 8;      // of the splits, one per warp

// Adds the splits: first within each slice, then the slices. It reads the sums in the order in which the threads of the
// gradient kernel stored them.
template <class T>
__device__ __forceinline__ void sum_splits(const Conv2dStemWeightGradientSumArguments& arguments) {
    __shared__ float4 partial[kSumSlices][kSumColumns];
    using Words = Format<T>;
    const int lane = threadIdx.x % kWarp;
    const int slice = threadIdx.x / kWarp;
    const int index = static_cast<int>(blockIdx.x) * kSumColumns + lane;
    const long long distance = static_cast<long long>(gridDim.y) * kGradientFragments * kThreads;
    const float4* source = reinterpret_cast<const float4*>(arguments.workspace) +
                           static_cast<long long>(blockIdx.y) * kGradientFragments * kThreads + index;
    const int slice_splits = divide_up(arguments.splits, kSumSlices);
    const int end = min((slice + 1) * slice_splits, arguments.splits);
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    const auto add = [&](const float4& part) {
        sum = make_float4(sum.x + part.x, sum.y + part.y, sum.z + part.z, sum.w + part.w);
    };
#pragma unroll 8
    for (int split = slice * slice_splits; split < end; split++) add(source[split * distance]);
    partial[slice][lane] = sum;
    __syncthreads();
    if (slice > 0) return;
    for (int other = 1; other < kSumSlices; other++) add(partial[other][lane]);

    const int fragment = index / kThreads;
    const int thread = index % kThreads;
    const int warp = thread / kWarp;
    const int row = thread % kWarp / 4;
    const int column_fragment = fragment % kGradientColumnFragments;
    const float sums[4] = {sum.x, sum.y, sum.z, sum.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int channel = static_cast<int>(blockIdx.y) * kChannels + warp / 2 * 32 +
                            fragment / kGradientColumnFragments * 16 + row + i / 2 * 8;
        const int word = warp % 2 * kWarpWords<T> + column_fragment / Words::kElements * 8 + thread % 4 * 2 + i % 2;
        const int depth = word * Words::kElements + column_fragment % Words::kElements;
        const int filter_row = depth / (Words::kRowWords * Words::kElements);
        const int element = depth - filter_row * (Words::kRowWords * Words::kElements) - Words::kLead;
        if (channel >= arguments.output_channels || filter_row >= kFilter || element < 0) continue;
        arguments.weight_gradient[channel * kFilterLength + filter_row * kFilterRow + element] = sums[i];
    }
}

#endif

extern "C" __global__ void __launch_bounds__(128, 4)
    conv2d_stem_forward_bf16(const Conv2dStemForwardArguments<bf16> arguments) {
#if RETUNE_TENSOR_CORES
    forward<bf16, false>(arguments, Conv2dFinish());
#endif
}

extern "C" __global__ void __launch_bounds__(128, 3)
    conv2d_stem_forward_tf32(const Conv2dStemForwardArguments<float> arguments) {
#if RETUNE_TENSOR_CORES
    forward<float, false>(arguments, Conv2dFinish());
#endif
}

extern "C" __global__ void __launch_bounds__(128, 4)
    conv2d_stem_batch_norm_bf16(const Conv2dStemBatchNormArguments<bf16> arguments) {
#if RETUNE_TENSOR_CORES
    forward<bf16, true>(arguments.convolution, arguments.finish);
#endif
}

extern "C" __global__ void __launch_bounds__(128, 3)
    conv2d_stem_batch_norm_tf32(const Conv2dStemBatchNormArguments<float> arguments) {
#if RETUNE_TENSOR_CORES
    forward<float, true>(arguments.convolution, arguments.finish);
#endif
}

extern "C" __global__ void __launch_bounds__(128, 4)
    conv2d_stem_weight_gradient_bf16(const Conv2dStemWeightGradientArguments<bf16> arguments) {
#if RETUNE_TENSOR_CORES
    weight_gradient<bf16>(arguments);
#endif
}

extern "C" __global__ void __launch_bounds__(128, 3)
    conv2d_stem_weight_gradient_tf32(const Conv2dStemWeightGradientArguments<float> arguments) {
#if RETUNE_TENSOR_CORES
    weight_gradient<float>(arguments);
#endif
}

extern "C" __global__ void __launch_bounds__(256)
    conv2d_stem_weight_gradient_sum_bf16(const Conv2dStemWeightGradientSumArguments arguments) {
#if RETUNE_TENSOR_CORES
    sum_splits<bf16>(arguments);
#endif
}

extern "C" __global__ void __launch_bounds__(256)
    conv2d_stem_weight_gradient_sum_tf32(const Conv2dStemWeightGradientSumArguments arguments) {
#if RETUNE_TENSOR_CORES
    sum_splits<float>(arguments);
#endif
}
