// Batch normalisation (Ioffe and Szegedy, 2015) of [pixels, C], NHWC with pixels = N H W, in float32 or bf16, fused
// with the residual addition and the activation that follow it.
//
//   mean = sum x / pixels, variance = sum (x - mean)^2 / pixels       (training; otherwise the running statistics)
//   scale = weight / sqrt(variance + epsilon), shift = bias - mean scale
//   output = activation(scale x + shift + residual)                  (`factor` and `summand` in the code)
//
// For the backward pass, let g be the gradient with respect to the argument of the activation (for ReLU: the output
// gradient where the output is positive, otherwise 0) and n = (x - mean) / sqrt(variance + epsilon):
//
//   weight' = sum g n, bias' = sum g, residual' = g
//   x' = scale (g - bias' / pixels - n weight' / pixels)              (training; otherwise scale g)
//
// Bound by memory. Lower bounds at batch 128 and 224 x 224 in bf16, where layer1 has 401408 x 64 activations (51 MB):
// forward reads x (and the residual) and writes the output, 103 (154) MB, 24 (36) us at 4.3 TB/s. Backward reads x and
// the output gradient twice and writes x', 257 MB, 60 us; with a residual it also reads the output twice and writes g.
// The arithmetic is 10 operations per element.
//
// There are three kernels. The convolution computes the statistics of the forward pass (statistics.cuh), so forward is
// one pass. Backward is a pass that reduces and a pass that writes. In each kernel a thread keeps the constants of one
// group of channels in registers and walks over pixels. Constants in shared memory would be read as often as the
// activations, and a warp has more channels than shared memory has banks. Neighbouring threads have neighbouring
// groups, so a warp reads 512 (256) contiguous bytes, or several pixels with fewer channels. Forward and the reduction
// read 16 bytes at once. The writing pass reads four elements, because it keeps five constants per channel and would
// otherwise run with a third of the threads. Each thread has two to four loads of each operand in flight. If the
// channels are not divisible by four or eight, a group is one element.
//
// Tiles: 32 groups of channels (256 channels in bf16, 128 in float32 and in the writing pass) or all groups if there
// are fewer, times the pixels that 256 threads process in 4 to 8 rounds. With more rounds, small activations would
// leave multiprocessors idle. With fewer, reading the statistics of the channels from the L2 cache would be an eighth
// of the traffic or more.
//
// The shape alone determines how the reduction is split: into at most 1024 blocks, two or three times as many as a
// large GPU runs at once. A block writes its sums to a row of the workspace, and the last block adds the rows in order.
// g is rounded to bf16 only when it is stored. In layer1 and the stem, an H100 (3.35 TB/s in its data sheet) moves 2.3
// to 2.9 TB/s forward, 1.6 to 2.8 in the reduction and 2.2 to 3.0 in the writing pass; the lower figures are those of
// bf16. In layer4 the reduction takes 31 to 38 us, several times longer than its bytes require.
//
// dynamic shared memory: batch_norm_reduce_fp32 4096
// dynamic shared memory: batch_norm_reduce_bf16 8192
#include "activation.cuh"
#include "statistics.cuh"

constexpr int kThreads = 256;

constexpr int kGroupsPerTile = 32;

// The elements that a thread processes in a pass over all elements: the `Length` channels starting at `channel` of
// every
// `lanes`-th pixel from `pixel` to `end`. blockIdx.x selects pixels and blockIdx.y channels.
template <int Length>
struct Tile {
    int first_channel;   // of the block
    int channel_count;   // of the block
    int channel;
    int lanes;
    long long pixel;
    long long end;

    __device__ __forceinline__ Tile(int pixels, int channels, int pixels_per_block) {
        const int first_group = blockIdx.y * kGroupsPerTile;
        const int groups = min(kGroupsPerTile, channels / Length - first_group);
        const int lane = static_cast<int>(threadIdx.x) / groups;
        first_channel = first_group * Length;
        channel_count = groups * Length;
        channel = first_channel + (static_cast<int>(threadIdx.x) - lane * groups) * Length;
        lanes = kThreads / groups;
        const long long first = static_cast<long long>(blockIdx.x) * pixels_per_block;
        end = min(first + pixels_per_block, static_cast<long long>(pixels));
        // The remaining threads have no pixel.
        pixel = lane < lanes ? first + lane : end;
    }
};

template <class T, int Length>
__device__ __forceinline__ void unpack(float (&values)[Length], const Vector<T, Length>& vector) {
#pragma unroll
    for (int i = 0; i < Length; i++) values[i] = to_float(vector.elements[i]);
}

struct BatchNormForwardArguments {
    const void* input;         // [pixels, C]
    const void* residual;      // [pixels, C] or null
    void* output;              // [pixels, C]
    const float* statistics;   // [2, C], the total, in training; otherwise null
    const float* weight;       // [C]
    const float* bias;         // [C]
    float* running_mean;       // [C]
    float* running_variance;   // [C]
    float* saved_statistics;         // [4, C]: mean, 1 / standard deviation, scale, shift
    int pixels;
    int channels;
    float epsilon;
    float momentum;
    Activation activation;
    int vectorised;            // whether the channels are a multiple of 16 bytes
    int pixels_per_block;
    int padding;
};

// Computes mean, inverse deviation, scale and shift of the tile's channels, and writes scale and shift to shared
// memory. One block of each tile also stores all four and updates the running statistics, which no other block reads in
// training.
__device__ __forceinline__ void prepare(const BatchNormForwardArguments& arguments, int first_channel,
                                        int channel_count, float* factors, float* summands) {
    const int channels = arguments.channels;
    for (int i = threadIdx.x; i < channel_count; i += kThreads) {
        const int channel = first_channel + i;
        float mean, variance;
        if (arguments.statistics != nullptr) {
            const float pixels = static_cast<float>(arguments.pixels);
            const float deviations = arguments.statistics[channels + channel];
            mean = arguments.statistics[channel] / pixels;
            variance = deviations / pixels;
            if (blockIdx.x == 0) {
                const float unbiased = deviations / (pixels - 1.0f);
                const float old = 1.0f - arguments.momentum;
                float& running_mean = arguments.running_mean[channel];
                float& running_variance = arguments.running_variance[channel];
                running_mean = fmaf(running_mean, old, mean * arguments.momentum);
                running_variance = fmaf(running_variance, old, unbiased * arguments.momentum);
            }
        } else {
            mean = arguments.running_mean[channel];
            variance = arguments.running_variance[channel];
        }
        const float inverse = 1.0f / sqrtf(variance + arguments.epsilon);
        const float factor = arguments.weight[channel] * inverse;
        const float summand = fmaf(-mean, factor, arguments.bias[channel]);
        factors[i] = factor;
        summands[i] = summand;
        if (blockIdx.x == 0) {
            arguments.saved_statistics[channel] = mean;
            arguments.saved_statistics[channels + channel] = inverse;
            arguments.saved_statistics[2 * channels + channel] = factor;
            arguments.saved_statistics[3 * channels + channel] = summand;
        }
    }
    __syncthreads();
}

template <class T, int Length>
__device__ __forceinline__ void normalise(const BatchNormForwardArguments& arguments) {
    // Loads of a thread that are in flight at once.
    constexpr int Rounds = 2;
    using Group = Vector<T, Length>;
    __shared__ float factors[kGroupsPerTile * Length];
    __shared__ float summands[kGroupsPerTile * Length];
    const int channels = arguments.channels;
    const Tile<Length> tile(arguments.pixels, channels, arguments.pixels_per_block);
    prepare(arguments, tile.first_channel, tile.channel_count, factors, summands);
    float factor[Length], summand[Length];
#pragma unroll
    for (int i = 0; i < Length; i++) {
        factor[i] = factors[tile.channel - tile.first_channel + i];
        summand[i] = summands[tile.channel - tile.first_channel + i];
    }
    const T* input = static_cast<const T*>(arguments.input) + tile.channel;
    const T* residual = static_cast<const T*>(arguments.residual);
    if (residual != nullptr) residual += tile.channel;
    T* output = static_cast<T*>(arguments.output) + tile.channel;
    for (long long first = tile.pixel; first < tile.end; first += Rounds * tile.lanes) {
        Group inputs[Rounds], residuals[Rounds];
#pragma unroll
        for (int round = 0; round < Rounds; round++) {
            const long long pixel = first + round * tile.lanes;
            if (pixel >= tile.end) continue;
            inputs[round] = *reinterpret_cast<const Group*>(input + pixel * channels);
            if (residual != nullptr) residuals[round] = *reinterpret_cast<const Group*>(residual + pixel * channels);
        }
#pragma unroll
        for (int round = 0; round < Rounds; round++) {
            const long long pixel = first + round * tile.lanes;
            if (pixel >= tile.end) continue;
            float values[Length];
            float added[Length] = {};
            unpack(values, inputs[round]);
            if (residual != nullptr) unpack(added, residuals[round]);
#pragma unroll
            for (int i = 0; i < Length; i++) {
                values[i] = activate(arguments.activation, fmaf(values[i], factor[i], summand[i]) + added[i]);
            }
            store_floats<T, Length>(output + pixel * channels, values);
        }
    }
}

template <class T>
__device__ __forceinline__ void forward(const BatchNormForwardArguments& arguments) {
    if (arguments.vectorised != 0) {
        normalise<T, kVectorLength<T>>(arguments);
    } else {
        normalise<T, 1>(arguments);
    }
}

extern "C" __global__ void __launch_bounds__(256, 4)
    batch_norm_forward_fp32(const BatchNormForwardArguments arguments) {
    forward<float>(arguments);
}

extern "C" __global__ void __launch_bounds__(256, 3)
    batch_norm_forward_bf16(const BatchNormForwardArguments arguments) {
    forward<bf16>(arguments);
}

struct BatchNormStatisticsArguments {
    const void* input;     // [pixels, C]
    float* statistics;     // [rows, 2, C]
    unsigned* counters;
    int pixels;
    int channels;
};

// Each block writes one row: the statistics of kPixelsPerBlock pixels. Each thread handles one channel.
template <class T>
__device__ __forceinline__ void statistics_of(const BatchNormStatisticsArguments& arguments) {
    const int channels = arguments.channels;
    const int blocks = gridDim.x;
    const int first = blockIdx.x * kPixelsPerBlock;
    const int count = min(kPixelsPerBlock, arguments.pixels - first);
    const T* input = static_cast<const T*>(arguments.input) + static_cast<size_t>(first) * channels;
    float* row = arguments.statistics + static_cast<size_t>(block_row(blockIdx.x, blocks)) * 2 * channels;
    for (int channel = threadIdx.x; channel < channels; channel += kThreads) {
        float sum = 0;
#pragma unroll 8
        for (int pixel = 0; pixel < count; pixel++) {
            sum += to_float(input[static_cast<size_t>(pixel) * channels + channel]);
        }
        const float mean = sum / static_cast<float>(count);
        // Corrects the sum and the squared deviations for the rounding error of the mean.
        float deviations = 0;
        float rest = 0;
#pragma unroll 8
        for (int pixel = 0; pixel < count; pixel++) {
            const float deviation = to_float(input[static_cast<size_t>(pixel) * channels + channel]) - mean;
            deviations = fmaf(deviation, deviation, deviations);
            rest += deviation;
        }
        const float excess = rest * rest / static_cast<float>(count);
        row[channel] = fmaf(mean, static_cast<float>(count), rest);
        row[channels + channel] = deviations < excess ? 0 : deviations - excess;
    }
    combine_statistics(arguments.statistics, channels, 0, channels, arguments.pixels, blockIdx.x, blocks,
                       arguments.counters);
}

extern "C" __global__ void __launch_bounds__(256, 4)
    batch_norm_statistics_fp32(const BatchNormStatisticsArguments arguments) {
    statistics_of<float>(arguments);
}

extern "C" __global__ void __launch_bounds__(256, 4)
    batch_norm_statistics_bf16(const BatchNormStatisticsArguments arguments) {
    statistics_of<bf16>(arguments);
}

struct BatchNormReduceArguments {
    const void* input;             // [pixels, C], or null if neither the weight gradient nor the activation needs it
    const void* output;            // [pixels, C] if the derivative of the activation depends on it; otherwise null
    const void* output_gradient;   // [pixels, C]
    const float* saved_statistics;       // [4, C]
    float* rows;                   // [1 + groups + blocks, 2, C]: sums of g and of g n
    float* weight_gradient;        // [C] or null
    float* bias_gradient;          // [C] or null
    unsigned* counters;
    int pixels;
    int channels;
    Activation activation;
    int vectorised;
    int pixels_per_block;
    int padding;
};

// The gradient with respect to the argument of the activation. With `has_output`, `output` is the forward result;
// otherwise the argument is recomputed.
__device__ __forceinline__ float before_activation(float gradient, Activation activation, bool has_output,
                                                   float output, float input, float factor, float summand) {
    // The gradient does not depend on the argument.
    if (activation == Activation::kNone) return gradient;
    const float value = has_output ? output : fmaf(input, factor, summand);
    return activate_backward(activation, value, gradient);
}

template <class T, int Length>
__device__ __forceinline__ void reduce_block(const BatchNormReduceArguments& arguments, float* shared) {
    const T* input = static_cast<const T*>(arguments.input);
    const T* output = static_cast<const T*>(arguments.output);
    const T* output_gradient = static_cast<const T*>(arguments.output_gradient);
    const int channels = arguments.channels;
    const int columns = channels / Length;
    float* row = arguments.rows + static_cast<size_t>(block_row(blockIdx.x, gridDim.x)) * 2 * channels;
    const int first_pixel = blockIdx.x * arguments.pixels_per_block;
    const int end = min(arguments.pixels, first_pixel + arguments.pixels_per_block);
    for (int first_column = 0; first_column < columns; first_column += kThreads) {
        // `lanes` threads share a column; each processes every lanes-th pixel.
        const int width = min(kThreads, columns - first_column);
        const int lanes = kThreads / width;
        const int column = threadIdx.x % width;
        const int lane = threadIdx.x / width;
        const int channel = (first_column + column) * Length;
        float gradients[Length] = {};
        float products[Length] = {};
        if (lane < lanes) {
            float mean[Length], factor[Length], summand[Length];
#pragma unroll
            for (int i = 0; i < Length; i++) {
                mean[i] = arguments.saved_statistics[channel + i];
                factor[i] = arguments.saved_statistics[2 * channels + channel + i];
                summand[i] = arguments.saved_statistics[3 * channels + channel + i];
            }
#pragma unroll 2
            for (int pixel = first_pixel + lane; pixel < end; pixel += lanes) {
                const size_t element = static_cast<size_t>(pixel) * channels + channel;
                float x[Length] = {};
                float z[Length] = {};
                float g[Length];
                if (input != nullptr) load_floats<T, Length>(x, input + element);
                load_floats<T, Length>(g, output_gradient + element);
                if (output != nullptr) load_floats<T, Length>(z, output + element);
#pragma unroll
                for (int i = 0; i < Length; i++) {
                    const float gradient = before_activation(g[i], arguments.activation, output != nullptr, z[i], x[i],
                                                             factor[i], summand[i]);
                    gradients[i] += gradient;
                    products[i] = fmaf(gradient, x[i] - mean[i], products[i]);
                }
            }
#pragma unroll
            for (int i = 0; i < Length; i++) products[i] *= arguments.saved_statistics[channels + channel + i];
        }
        // Shared memory holds [lane][column][Length], first the gradients, then the products. Lanes are added in order.
        for (int which = 0; which < 2; which++) {
            __syncthreads();
            if (lane < lanes) {
#pragma unroll
                for (int i = 0; i < Length; i++) {
                    shared[(lane * width + column) * Length + i] = which == 0 ? gradients[i] : products[i];
                }
            }
            __syncthreads();
            for (int i = threadIdx.x; i < width * Length; i += kThreads) {
                float sum = 0;
                for (int other = 0; other < lanes; other++) sum += shared[other * width * Length + i];
                row[which * channels + first_column * Length + i] = sum;
            }
        }
    }
}

template <class T>
__device__ __forceinline__ void reduce(const BatchNormReduceArguments& arguments, float* shared) {
    if (arguments.vectorised != 0) {
        reduce_block<T, kVectorLength<T>>(arguments, shared);
    } else {
        reduce_block<T, 1>(arguments, shared);
    }
    const int channels = arguments.channels;
    if (!sum_rows(arguments.rows, 2 * channels, blockIdx.x, gridDim.x, arguments.counters)) return;
    for (int channel = threadIdx.x; channel < channels; channel += kThreads) {
        if (arguments.bias_gradient != nullptr) arguments.bias_gradient[channel] = arguments.rows[channel];
        if (arguments.weight_gradient != nullptr) {
            arguments.weight_gradient[channel] = arguments.rows[channels + channel];
        }
    }
}

extern "C" __global__ void __launch_bounds__(256, 4) batch_norm_reduce_fp32(const BatchNormReduceArguments arguments) {
    extern __shared__ __align__(128) unsigned char shared_memory[];
    reduce<float>(arguments, reinterpret_cast<float*>(shared_memory));
}

extern "C" __global__ void __launch_bounds__(256, 3) batch_norm_reduce_bf16(const BatchNormReduceArguments arguments) {
    extern __shared__ __align__(128) unsigned char shared_memory[];
    reduce<bf16>(arguments, reinterpret_cast<float*>(shared_memory));
}

struct BatchNormBackwardArguments {
    const void* input;               // [pixels, C], or null if nothing needs it
    const void* output;              // as in the reduction
    const void* output_gradient;     // [pixels, C]
    const float* saved_statistics;         // [4, C]
    const float* sums;               // [2, C]: sums of g and of g n, in training; otherwise null
    void* input_gradient;            // [pixels, C] or null
    void* residual_gradient;         // [pixels, C] or null
    int pixels;
    int channels;
    Activation activation;
    int vectorised;
    int accumulate_input;
    int accumulate_residual;
    int pixels_per_block;
    int padding;
};

template <class T, int Length>
__device__ __forceinline__ void add_or_set(T* target, bool accumulate, float (&values)[Length]) {
    if (accumulate) {
        float before[Length];
        load_floats<T, Length>(before, target);
#pragma unroll
        for (int i = 0; i < Length; i++) values[i] += before[i];
    }
    store_floats<T, Length>(target, values);
}

// x' = scale g + slope (x - mean) + offset, with slope = -scale weight' / (deviation pixels) and
// offset = -scale bias' / pixels.
template <class T, int Length>
__device__ __forceinline__ void write_gradients(const BatchNormBackwardArguments& arguments) {
    // Loads of a thread that are in flight at once.
    constexpr int Rounds = 2;
    using Group = Vector<T, Length>;
    const int channels = arguments.channels;
    const Tile<Length> tile(arguments.pixels, channels, arguments.pixels_per_block);
    float mean[Length], factor[Length], summand[Length];
    float slope[Length] = {};
    float offset[Length] = {};
    load_floats<float, Length>(mean, arguments.saved_statistics + tile.channel);
    load_floats<float, Length>(factor, arguments.saved_statistics + 2 * channels + tile.channel);
    load_floats<float, Length>(summand, arguments.saved_statistics + 3 * channels + tile.channel);
    if (arguments.sums != nullptr) {
        const float inverse_pixels = 1.0f / static_cast<float>(arguments.pixels);
        load_floats<float, Length>(offset, arguments.sums + tile.channel);
        load_floats<float, Length>(slope, arguments.sums + channels + tile.channel);
#pragma unroll
        for (int i = 0; i < Length; i++) {
            const float share = -factor[i] * inverse_pixels;
            slope[i] *= share * arguments.saved_statistics[channels + tile.channel + i];
            offset[i] *= share;
        }
    }
    const T* input = static_cast<const T*>(arguments.input);
    const T* output = static_cast<const T*>(arguments.output);
    const T* output_gradient = static_cast<const T*>(arguments.output_gradient);
    T* input_gradient = static_cast<T*>(arguments.input_gradient);
    T* residual_gradient = static_cast<T*>(arguments.residual_gradient);
    for (long long first = tile.pixel; first < tile.end; first += Rounds * tile.lanes) {
        Group gradients[Rounds];
        Group inputs[Rounds] = {};
        Group outputs[Rounds] = {};
#pragma unroll
        for (int round = 0; round < Rounds; round++) {
            const long long pixel = first + round * tile.lanes;
            if (pixel >= tile.end) continue;
            const long long element = pixel * channels + tile.channel;
            gradients[round] = *reinterpret_cast<const Group*>(output_gradient + element);
            if (input != nullptr) inputs[round] = *reinterpret_cast<const Group*>(input + element);
            if (output != nullptr) outputs[round] = *reinterpret_cast<const Group*>(output + element);
        }
#pragma unroll
        for (int round = 0; round < Rounds; round++) {
            const long long pixel = first + round * tile.lanes;
            if (pixel >= tile.end) continue;
            const long long element = pixel * channels + tile.channel;
            float g[Length], x[Length], z[Length];
            unpack(g, gradients[round]);
            unpack(x, inputs[round]);
            unpack(z, outputs[round]);
#pragma unroll
            for (int i = 0; i < Length; i++) {
                g[i] = before_activation(g[i], arguments.activation, output != nullptr, z[i], x[i], factor[i],
                                         summand[i]);
            }
            if (input_gradient != nullptr) {
                float values[Length];
#pragma unroll
                for (int i = 0; i < Length; i++) {
                    // Without an input the slope is zero, so the value of x does not matter.
                    values[i] = fmaf(factor[i], g[i], fmaf(slope[i], x[i] - mean[i], offset[i]));
                }
                add_or_set<T, Length>(input_gradient + element, arguments.accumulate_input != 0, values);
            }
            if (residual_gradient != nullptr) {
                add_or_set<T, Length>(residual_gradient + element, arguments.accumulate_residual != 0, g);
            }
        }
    }
}

template <class T>
__device__ __forceinline__ void backward(const BatchNormBackwardArguments& arguments) {
    if (arguments.vectorised != 0) {
        write_gradients<T, 4>(arguments);
    } else {
        write_gradients<T, 1>(arguments);
    }
}

extern "C" __global__ void __launch_bounds__(256, 3)
    batch_norm_backward_fp32(const BatchNormBackwardArguments arguments) {
    backward<float>(arguments);
}

extern "C" __global__ void __launch_bounds__(256, 3)
    batch_norm_backward_bf16(const BatchNormBackwardArguments arguments) {
    backward<bf16>(arguments);
}
