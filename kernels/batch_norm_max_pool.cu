// Batch normalisation, the activation and max pooling in one pass, NHWC, and their gradients in two. Windows are 3 x 3 with
// stride 2 and padding 1, as in the stem of ResNets:
//
//   input (N, H, W, C) -> output (N, OH, OW, C), indices (N, OH, OW, C) uint8
//   output gradient (N, OH, OW, C), indices -> weight', bias', input gradient (N, H, W, C)
//
// The formulas are those of batch_norm.cu and max_pool.cu. Values that those kernels would write and read again are rounded
// here as they would be stored, so all results but the order of the sums over pixels are those of the separate passes.
//
// Bound by memory. At batch 128 and 224 x 224, the input is 112 x 112 x 64: 206 MB in bf16. The output is 51 MB, the indices
// 26 MB. Forward moves 283 MB, 84 us at 3.35 TB/s, where two passes move 694. The reduction reads 283 MB, 84 us; the writing
// pass moves 488 MB, 146 us. Three passes move 1311 MB, 391 us. Forward normalises each element 9/4 times, 0.5 G
// multiply-adds, and compares nine per output.
//
// Forward: a thread computes 16 bytes of channels of one output pixel and has nine loads of 16 bytes in flight. Taps outside
// the image read the nearest pixel, so no load waits for a branch, and are not compared.
// Backward: a place is a quad, the pixels (2 a + i, 2 b + j) with i, j = 0, 1. Pixel row 2 a is row 1 of window row a; pixel
// row 2 a + 1 is row 2 of window row a and row 0 of window row a + 1. So the four windows (a + u, b + v) contain all four
// pixels, and no others do: each gradient and index is loaded once a quad, without divisions, with up to twelve loads in
// flight. The windows of a pixel are added in scan order.
//
// dynamic shared memory: batch_norm_max_pool_reduce_fp32 4096
// dynamic shared memory: batch_norm_max_pool_reduce_bf16 8192
#include "batch_norm.cuh"

// Mirrors `PoolGeometry` in Rust.
struct PoolGeometry {
    int batch;
    int height;
    int width;
    int channels;
    int output_height;
    int output_width;
};

struct BatchNormMaxPoolForwardArguments {
    const void* input;   // (N, H, W, C)
    void* output;        // (N, OH, OW, C)
    uint8_t* indices;    // (N, OH, OW, C)
    BatchNormChannels norm;
    PoolGeometry geometry;
    Activation activation;
    int vectorised;
    int pixels_per_block;   // of the output
    int padding;
};

constexpr int kTaps = 9;

// The value that the batch norm would store.
template <class T>
__device__ __forceinline__ float normalised(Activation activation, float x, float factor, float summand) {
    return to_float(from_float<T>(activate(activation, fmaf(x, factor, summand) + 0.0f)));
}

template <class T, int Length>
__device__ __forceinline__ void pool(const BatchNormMaxPoolForwardArguments& arguments) {
    using Group = Vector<T, Length>;
    __shared__ float factors[kGroupsPerTile * Length];
    __shared__ float summands[kGroupsPerTile * Length];
    const PoolGeometry& geometry = arguments.geometry;
    const int height = geometry.height, width = geometry.width, channels = geometry.channels;
    const int output_pixels = geometry.batch * geometry.output_height * geometry.output_width;
    const Tile<Length> tile(output_pixels, channels, arguments.pixels_per_block);
    prepare(arguments.norm, tile.first_channel, tile.channel_count, factors, summands);
    float factor[Length], summand[Length];
#pragma unroll
    for (int i = 0; i < Length; i++) {
        factor[i] = factors[tile.channel - tile.first_channel + i];
        summand[i] = summands[tile.channel - tile.first_channel + i];
    }
    const T* input = static_cast<const T*>(arguments.input) + tile.channel;
    T* output = static_cast<T*>(arguments.output) + tile.channel;
    uint8_t* indices = arguments.indices + tile.channel;
    for (long long place = tile.place; place < tile.end; place += tile.lanes) {
        const uint32_t pixel = static_cast<uint32_t>(place);
        const uint32_t output_row = pixel / geometry.output_width;
        const int image = static_cast<int>(output_row / geometry.output_height);
        const int first_row = static_cast<int>(output_row - image * geometry.output_height) * 2 - 1;
        const int first_column = static_cast<int>(pixel - output_row * geometry.output_width) * 2 - 1;
        Group inputs[kTaps];
#pragma unroll
        for (int tap = 0; tap < kTaps; tap++) {
            const int row = min(max(first_row + tap / 3, 0), height - 1);
            const int column = min(max(first_column + tap % 3, 0), width - 1);
            const long long element = ((static_cast<long long>(image) * height + row) * width + column) * channels;
            inputs[tap] = *reinterpret_cast<const Group*>(input + element);
        }
        float best[Length];
        // If nothing is larger than minus infinity, the first pixel is the maximum.
        int position[Length];
#pragma unroll
        for (int i = 0; i < Length; i++) {
            best[i] = -__uint_as_float(0x7f800000u);
            position[i] = (first_row < 0 ? 3 : 0) + (first_column < 0 ? 1 : 0);
        }
#pragma unroll
        for (int tap = 0; tap < kTaps; tap++) {
            const int row = first_row + tap / 3, column = first_column + tap % 3;
            const bool exists = row >= 0 && row < height && column >= 0 && column < width;
            float x[Length];
            unpack(x, inputs[tap]);
#pragma unroll
            for (int i = 0; i < Length; i++) {
                const float value = normalised<T>(arguments.activation, x[i], factor[i], summand[i]);
                const bool wins = exists && (value > best[i] || value != value);
                best[i] = wins ? value : best[i];
                position[i] = wins ? tap : position[i];
            }
        }
        store_floats<T, Length>(output + place * channels, best);
        Vector<uint8_t, Length> bytes;
#pragma unroll
        for (int i = 0; i < Length; i++) bytes.elements[i] = static_cast<uint8_t>(position[i]);
        *reinterpret_cast<Vector<uint8_t, Length>*>(indices + place * channels) = bytes;
    }
}

template <class T>
__device__ __forceinline__ void forward(const BatchNormMaxPoolForwardArguments& arguments) {
    if (arguments.vectorised != 0) {
        pool<T, kVectorLength<T>>(arguments);
    } else {
        pool<T, 1>(arguments);
    }
}

extern "C" __global__ void __launch_bounds__(256, 2)
    batch_norm_max_pool_forward_fp32(const BatchNormMaxPoolForwardArguments arguments) {
    forward<float>(arguments);
}

extern "C" __global__ void __launch_bounds__(256, 2)
    batch_norm_max_pool_forward_bf16(const BatchNormMaxPoolForwardArguments arguments) {
    forward<bf16>(arguments);
}

// `Length` channels of a quad: the input, and the gradients of the activation.
template <class T, int Length>
struct Quad {
    using Group = Vector<T, Length>;
    using Bytes = Vector<uint8_t, Length>;
    int row;
    int column;
    long long element;    // of its first pixel in the input, without the channel
    Group inputs[4];
    Group gradients[4];
    Bytes indices[4];
    bool window_exists[4];

    __device__ __forceinline__ void load(const PoolGeometry& geometry, long long place, const T* input, const T* output_gradient,
                                         const uint8_t* all_indices) {
        const uint32_t columns = (geometry.width + 1) / 2;
        const uint32_t rows = (geometry.height + 1) / 2;
        const uint32_t quad = static_cast<uint32_t>(place);
        const uint32_t quad_row = quad / columns;
        const uint32_t image = quad_row / rows;
        const int a = static_cast<int>(quad_row - image * rows), b = static_cast<int>(quad - quad_row * columns);
        row = 2 * a;
        column = 2 * b;
        element = ((static_cast<long long>(image) * geometry.height + row) * geometry.width + column) * geometry.channels;
        const long long window = (static_cast<long long>(image) * geometry.output_height + a) * geometry.output_width + b;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            // What does not exist is read at the first place, which always does.
            const int u = i / 2, v = i % 2;
            inputs[i] = *reinterpret_cast<const Group*>(input + element +
                                                        (exists(geometry, i) ? offset(geometry, i) : 0));
            window_exists[i] = a + u < geometry.output_height && b + v < geometry.output_width;
            const long long source =
                (window + (window_exists[i] ? u * geometry.output_width + v : 0)) * geometry.channels;
            gradients[i] = *reinterpret_cast<const Group*>(output_gradient + source);
            indices[i] = *reinterpret_cast<const Bytes*>(all_indices + source);
        }
    }

    __device__ __forceinline__ bool exists(const PoolGeometry& geometry, int pixel) const {
        return row + pixel / 2 < geometry.height && column + pixel % 2 < geometry.width;
    }

    __device__ __forceinline__ long long offset(const PoolGeometry& geometry, int pixel) const {
        return (static_cast<long long>(pixel / 2) * geometry.width + pixel % 2) * geometry.channels;
    }

    // The gradient that max pooling would store for channel `i` of a pixel.
    __device__ __forceinline__ float gradient(int pixel, int i) const {
        const int pixel_row = pixel / 2, pixel_column = pixel % 2;
        float sum = 0.0f;
#pragma unroll
        for (int u = 0; u <= pixel_row; u++) {
#pragma unroll
            for (int v = 0; v <= pixel_column; v++) {
                const int tap = (pixel_row - 2 * u + 1) * 3 + pixel_column - 2 * v + 1;
                const int window = u * 2 + v;
                const bool wins = window_exists[window] && indices[window].elements[i] == tap;
                sum += wins ? to_float(gradients[window].elements[i]) : 0.0f;
            }
        }
        return to_float(from_float<T>(sum));
    }
};

struct BatchNormMaxPoolReduceArguments {
    const void* input;               // (N, H, W, C)
    const uint8_t* indices;          // (N, OH, OW, C)
    const void* output_gradient;     // (N, OH, OW, C)
    const float* saved_statistics;   // [4, C]
    BatchNormSums sums;
    PoolGeometry geometry;
    Activation activation;
    int vectorised;
    int quads;
    int quads_per_block;
};

template <class T, int Length>
__device__ __forceinline__ void reduce_block(const BatchNormMaxPoolReduceArguments& arguments, float* shared) {
    const PoolGeometry& geometry = arguments.geometry;
    const int channels = geometry.channels;
    const float* saved = arguments.saved_statistics;
    float* row = arguments.sums.rows + static_cast<size_t>(block_row(blockIdx.x, gridDim.x)) * 2 * channels;
    const long long first_quad = static_cast<long long>(blockIdx.x) * arguments.quads_per_block;
    const long long end = min(static_cast<long long>(arguments.quads), first_quad + arguments.quads_per_block);
    const auto add = [&](int channel, int lane, int lanes, float(&gradients)[Length], float(&products)[Length]) {
        float mean[Length], factor[Length], summand[Length];
        load_floats<float, Length>(mean, saved + channel);
        load_floats<float, Length>(factor, saved + 2 * channels + channel);
        load_floats<float, Length>(summand, saved + 3 * channels + channel);
        for (long long place = first_quad + lane; place < end; place += lanes) {
            Quad<T, Length> quad;
            quad.load(geometry, place, static_cast<const T*>(arguments.input) + channel,
                      static_cast<const T*>(arguments.output_gradient) + channel, arguments.indices + channel);
#pragma unroll
            for (int pixel = 0; pixel < 4; pixel++) {
                if (!quad.exists(geometry, pixel)) continue;
                float x[Length];
                unpack(x, quad.inputs[pixel]);
#pragma unroll
                for (int i = 0; i < Length; i++) {
                    const float g = activate_backward(arguments.activation, fmaf(x[i], factor[i], summand[i]),
                                                      quad.gradient(pixel, i));
                    gradients[i] += g;
                    products[i] = fmaf(g, x[i] - mean[i], products[i]);
                }
            }
        }
    };
    sum_block<Length>(saved, channels, row, shared, add);
}

template <class T>
__device__ __forceinline__ void reduce(const BatchNormMaxPoolReduceArguments& arguments, float* shared) {
    if (arguments.vectorised != 0) {
        reduce_block<T, kVectorLength<T>>(arguments, shared);
    } else {
        reduce_block<T, 1>(arguments, shared);
    }
    const int channels = arguments.geometry.channels;
    combine_sums(arguments.sums, channels, 0, channels, blockIdx.x, gridDim.x, arguments.sums.counters);
}

extern "C" __global__ void __launch_bounds__(256, 2)
    batch_norm_max_pool_reduce_fp32(const BatchNormMaxPoolReduceArguments arguments) {
    extern __shared__ __align__(128) unsigned char shared_memory[];
    reduce<float>(arguments, reinterpret_cast<float*>(shared_memory));
}

extern "C" __global__ void __launch_bounds__(256, 2)
    batch_norm_max_pool_reduce_bf16(const BatchNormMaxPoolReduceArguments arguments) {
    extern __shared__ __align__(128) unsigned char shared_memory[];
    reduce<bf16>(arguments, reinterpret_cast<float*>(shared_memory));
}

struct BatchNormMaxPoolBackwardArguments {
    const void* input;               // (N, H, W, C)
    const uint8_t* indices;          // (N, OH, OW, C)
    const void* output_gradient;     // (N, OH, OW, C)
    const float* saved_statistics;   // [4, C]
    const float* sums;               // [2, C], or null with running statistics
    void* input_gradient;            // (N, H, W, C)
    PoolGeometry geometry;
    Activation activation;
    int vectorised;
    int accumulate;
    int quads;
    int quads_per_block;
    int padding;
};

template <class T, int Length>
__device__ __forceinline__ void write_gradients(const BatchNormMaxPoolBackwardArguments& arguments) {
    const PoolGeometry& geometry = arguments.geometry;
    const int channels = geometry.channels;
    const Tile<Length> tile(arguments.quads, channels, arguments.quads_per_block);
    const BackwardChannels<Length> norm(arguments.saved_statistics, arguments.sums, channels, tile.channel,
                                        geometry.batch * geometry.height * geometry.width);
    T* target = static_cast<T*>(arguments.input_gradient) + tile.channel;
    for (long long place = tile.place; place < tile.end; place += tile.lanes) {
        Quad<T, Length> quad;
        quad.load(geometry, place, static_cast<const T*>(arguments.input) + tile.channel,
                  static_cast<const T*>(arguments.output_gradient) + tile.channel, arguments.indices + tile.channel);
#pragma unroll
        for (int pixel = 0; pixel < 4; pixel++) {
            if (!quad.exists(geometry, pixel)) continue;
            float x[Length], values[Length];
            unpack(x, quad.inputs[pixel]);
#pragma unroll
            for (int i = 0; i < Length; i++) {
                const float g = activate_backward(arguments.activation, fmaf(x[i], norm.factor[i], norm.summand[i]),
                                                  quad.gradient(pixel, i));
                values[i] = norm.input_gradient(i, x[i], g);
            }
            add_or_set<T, Length>(target + quad.element + quad.offset(geometry, pixel), arguments.accumulate != 0, values);
        }
    }
}

template <class T>
__device__ __forceinline__ void backward(const BatchNormMaxPoolBackwardArguments& arguments) {
    if (arguments.vectorised != 0) {
        write_gradients<T, kVectorLength<T>>(arguments);
    } else {
        write_gradients<T, 1>(arguments);
    }
}

extern "C" __global__ void __launch_bounds__(256, 2)
    batch_norm_max_pool_backward_fp32(const BatchNormMaxPoolBackwardArguments arguments) {
    backward<float>(arguments);
}

extern "C" __global__ void __launch_bounds__(256, 2)
    batch_norm_max_pool_backward_bf16(const BatchNormMaxPoolBackwardArguments arguments) {
    backward<bf16>(arguments);
}
