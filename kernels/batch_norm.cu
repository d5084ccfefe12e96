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
// one pass. Backward is a pass that reduces and a pass that writes; where a convolution wrote the output gradient, it has
// also applied the derivative of the activation and computed the sums (conv2d_tensor.cu), and only the writing pass is left.
// In each kernel a thread keeps the constants of 16 bytes of channels in registers and walks over pixels. Constants in
// shared memory would be read as often as the activations, and a warp has more channels than shared memory has banks.
// Neighbouring threads have neighbouring groups of channels, so a warp reads 512 contiguous bytes, or several pixels with
// fewer channels. If the channels are not divisible by four (eight in bf16), a group is one element.
//
// A thread loads kRounds pixels of each operand before it uses the first. A load past the end reads the last pixel again, so
// none waits for a branch. What a pass reads is known when it is compiled, because a test of a pointer between two loads
// would be such a branch. Two blocks of 256 threads with four to twelve loads of 16 bytes in flight in each thread are 32 to
// 98 KB for a multiprocessor; at 3.35 TB/s and 0.8 us of latency, 132 multiprocessors need 20 KB each.
//
// Grids: the passes over all elements have as many blocks as the GPU runs at once, or fewer if a thread would have less than
// one round. No result depends on the number of blocks there. The reduction has at most 264 blocks, two for each
// multiprocessor of an H100, on every GPU: the shape alone determines the order of its sums. A block writes its sums to a row
// of the workspace, and the last block adds the rows in order. g is rounded to bf16 only when it is stored.
//
// An H100 (3.35 TB/s in its data sheet) moved 2.3 to 2.9 TB/s forward, 1.6 to 2.8 in the reduction and 2.2 to 3.0 in the
// writing pass with the kernels before these, which had two rounds, tested pointers between loads, and wrote 8 bytes at once.
//
// dynamic shared memory: batch_norm_reduce_fp32 4096
// dynamic shared memory: batch_norm_reduce_bf16 8192
#include "batch_norm.cuh"

// Pixels of a thread whose loads are in flight at once.
constexpr int kRounds = 4;

struct BatchNormForwardArguments {
    const void* input;         // [pixels, C]
    const void* residual;      // [pixels, C] or null
    void* output;              // [pixels, C]
    BatchNormChannels norm;
    Activation activation;
    int vectorised;            // whether the channels are a multiple of 16 bytes
    int pixels_per_block;
    int padding;
};

template <class T, int Length, bool kResidual>
__device__ __forceinline__ void normalise(const BatchNormForwardArguments& arguments) {
    using Group = Vector<T, Length>;
    __shared__ float factors[kGroupsPerTile * Length];
    __shared__ float summands[kGroupsPerTile * Length];
    const int channels = arguments.norm.channels;
    const Tile<Length> tile(arguments.norm.pixels, channels, arguments.pixels_per_block);
    prepare(arguments.norm, tile.first_channel, tile.channel_count, factors, summands);
    float factor[Length], summand[Length];
#pragma unroll
    for (int i = 0; i < Length; i++) {
        factor[i] = factors[tile.channel - tile.first_channel + i];
        summand[i] = summands[tile.channel - tile.first_channel + i];
    }
    const T* input = static_cast<const T*>(arguments.input) + tile.channel;
    const T* residual = static_cast<const T*>(arguments.residual) + (kResidual ? tile.channel : 0);
    T* output = static_cast<T*>(arguments.output) + tile.channel;
    for (long long first = tile.place; first < tile.end; first += kRounds * tile.lanes) {
        Group inputs[kRounds], residuals[kRounds];
#pragma unroll
        for (int round = 0; round < kRounds; round++) {
            const long long element = min(first + round * tile.lanes, tile.end - 1) * channels;
            inputs[round] = *reinterpret_cast<const Group*>(input + element);
            if constexpr (kResidual) residuals[round] = *reinterpret_cast<const Group*>(residual + element);
        }
#pragma unroll
        for (int round = 0; round < kRounds; round++) {
            const long long pixel = first + round * tile.lanes;
            float values[Length];
            float added[Length] = {};
            unpack(values, inputs[round]);
            if constexpr (kResidual) unpack(added, residuals[round]);
#pragma unroll
            for (int i = 0; i < Length; i++) {
                values[i] = activate(arguments.activation, fmaf(values[i], factor[i], summand[i]) + added[i]);
            }
            if (pixel < tile.end) store_floats<T, Length>(output + pixel * channels, values);
        }
    }
}

template <class T, int Length>
__device__ __forceinline__ void forward_groups(const BatchNormForwardArguments& arguments) {
    if (arguments.residual != nullptr) {
        normalise<T, Length, true>(arguments);
    } else {
        normalise<T, Length, false>(arguments);
    }
}

template <class T>
__device__ __forceinline__ void forward(const BatchNormForwardArguments& arguments) {
    if (arguments.vectorised != 0) {
        forward_groups<T, kVectorLength<T>>(arguments);
    } else {
        forward_groups<T, 1>(arguments);
    }
}

extern "C" __global__ void __launch_bounds__(256, 3)
    batch_norm_forward_fp32(const BatchNormForwardArguments arguments) {
    forward<float>(arguments);
}

extern "C" __global__ void __launch_bounds__(256, 2)
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
    for (int channel = threadIdx.x; channel < channels; channel += kBatchNormThreads) {
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
    BatchNormSums sums;
    int pixels;
    int channels;
    Activation activation;
    int vectorised;
    int pixels_per_block;
    int padding;
};

// The gradient with respect to the argument of the activation. With `kOutput`, `output` is the forward result; otherwise the
// argument is recomputed.
template <bool kOutput>
__device__ __forceinline__ float before_activation(float gradient, Activation activation, float output, float input,
                                                   float factor, float summand) {
    return activate_backward(activation, kOutput ? output : fmaf(input, factor, summand), gradient);
}

template <class T, int Length, bool kInput, bool kOutput>
__device__ __forceinline__ void reduce_block(const BatchNormReduceArguments& arguments, float* shared) {
    using Group = Vector<T, Length>;
    const T* input = static_cast<const T*>(arguments.input);
    const T* output = static_cast<const T*>(arguments.output);
    const T* output_gradient = static_cast<const T*>(arguments.output_gradient);
    const int channels = arguments.channels;
    const float* saved = arguments.saved_statistics;
    float* row = arguments.sums.rows + static_cast<size_t>(block_row(blockIdx.x, gridDim.x)) * 2 * channels;
    const long long first_pixel = static_cast<long long>(blockIdx.x) * arguments.pixels_per_block;
    const long long end = min(static_cast<long long>(arguments.pixels), first_pixel + arguments.pixels_per_block);
    const auto add = [&](int channel, int lane, int lanes, float(&gradients)[Length], float(&products)[Length]) {
        float mean[Length], factor[Length], summand[Length];
        load_floats<float, Length>(mean, saved + channel);
        load_floats<float, Length>(factor, saved + 2 * channels + channel);
        load_floats<float, Length>(summand, saved + 3 * channels + channel);
        for (long long first = first_pixel + lane; first < end; first += kRounds * lanes) {
            Group loaded[kRounds], inputs[kRounds], outputs[kRounds];
#pragma unroll
            for (int round = 0; round < kRounds; round++) {
                const long long element = min(first + round * lanes, end - 1) * channels + channel;
                loaded[round] = *reinterpret_cast<const Group*>(output_gradient + element);
                if constexpr (kInput) inputs[round] = *reinterpret_cast<const Group*>(input + element);
                if constexpr (kOutput) outputs[round] = *reinterpret_cast<const Group*>(output + element);
            }
#pragma unroll
            for (int round = 0; round < kRounds; round++) {
                float x[Length] = {};
                float z[Length] = {};
                float g[Length];
                unpack(g, loaded[round]);
                if constexpr (kInput) unpack(x, inputs[round]);
                if constexpr (kOutput) unpack(z, outputs[round]);
                if (first + round * lanes >= end) continue;
#pragma unroll
                for (int i = 0; i < Length; i++) {
                    const float gradient =
                        before_activation<kOutput>(g[i], arguments.activation, z[i], x[i], factor[i], summand[i]);
                    gradients[i] += gradient;
                    products[i] = fmaf(gradient, x[i] - mean[i], products[i]);
                }
            }
        }
    };
    sum_block<Length>(saved, channels, row, shared, add);
}

template <class T, int Length>
__device__ __forceinline__ void reduce_groups(const BatchNormReduceArguments& arguments, float* shared) {
    if (arguments.output != nullptr) {
        if (arguments.input != nullptr) {
            reduce_block<T, Length, true, true>(arguments, shared);
        } else {
            reduce_block<T, Length, false, true>(arguments, shared);
        }
    } else if (arguments.input != nullptr) {
        reduce_block<T, Length, true, false>(arguments, shared);
    } else {
        reduce_block<T, Length, false, false>(arguments, shared);
    }
}

template <class T>
__device__ __forceinline__ void reduce(const BatchNormReduceArguments& arguments, float* shared) {
    if (arguments.vectorised != 0) {
        reduce_groups<T, kVectorLength<T>>(arguments, shared);
    } else {
        reduce_groups<T, 1>(arguments, shared);
    }
    combine_sums(arguments.sums, arguments.channels, 0, arguments.channels, blockIdx.x, gridDim.x, arguments.sums.counters);
}

extern "C" __global__ void __launch_bounds__(256, 2) batch_norm_reduce_fp32(const BatchNormReduceArguments arguments) {
    extern __shared__ __align__(128) unsigned char shared_memory[];
    reduce<float>(arguments, reinterpret_cast<float*>(shared_memory));
}

extern "C" __global__ void __launch_bounds__(256, 2) batch_norm_reduce_bf16(const BatchNormReduceArguments arguments) {
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

template <class T, int Length, bool kInput, bool kOutput>
__device__ __forceinline__ void write_gradients(const BatchNormBackwardArguments& arguments) {
    using Group = Vector<T, Length>;
    const int channels = arguments.channels;
    const Tile<Length> tile(arguments.pixels, channels, arguments.pixels_per_block);
    const BackwardChannels<Length> norm(arguments.saved_statistics, arguments.sums, channels, tile.channel,
                                        arguments.pixels);
    const T* input = static_cast<const T*>(arguments.input);
    const T* output = static_cast<const T*>(arguments.output);
    const T* output_gradient = static_cast<const T*>(arguments.output_gradient);
    T* input_gradient = static_cast<T*>(arguments.input_gradient);
    T* residual_gradient = static_cast<T*>(arguments.residual_gradient);
    for (long long first = tile.place; first < tile.end; first += kRounds * tile.lanes) {
        Group gradients[kRounds], inputs[kRounds], outputs[kRounds];
#pragma unroll
        for (int round = 0; round < kRounds; round++) {
            const long long pixel = min(first + round * tile.lanes, tile.end - 1);
            const long long element = pixel * channels + tile.channel;
            gradients[round] = *reinterpret_cast<const Group*>(output_gradient + element);
            if constexpr (kInput) inputs[round] = *reinterpret_cast<const Group*>(input + element);
            if constexpr (kOutput) outputs[round] = *reinterpret_cast<const Group*>(output + element);
        }
#pragma unroll
        for (int round = 0; round < kRounds; round++) {
            const long long pixel = first + round * tile.lanes;
            if (pixel >= tile.end) continue;
            const long long element = pixel * channels + tile.channel;
            float g[Length];
            float x[Length] = {};
            float z[Length] = {};
            unpack(g, gradients[round]);
            if constexpr (kInput) unpack(x, inputs[round]);
            if constexpr (kOutput) unpack(z, outputs[round]);
#pragma unroll
            for (int i = 0; i < Length; i++) {
                g[i] = before_activation<kOutput>(g[i], arguments.activation, z[i], x[i], norm.factor[i], norm.summand[i]);
            }
            if (input_gradient != nullptr) {
                float values[Length];
                // Without an input the slope is zero, so the value of x does not matter.
#pragma unroll
                for (int i = 0; i < Length; i++) values[i] = norm.input_gradient(i, x[i], g[i]);
                add_or_set<T, Length>(input_gradient + element, arguments.accumulate_input != 0, values);
            }
            if (residual_gradient != nullptr) {
                add_or_set<T, Length>(residual_gradient + element, arguments.accumulate_residual != 0, g);
            }
        }
    }
}

template <class T, int Length>
__device__ __forceinline__ void backward_groups(const BatchNormBackwardArguments& arguments) {
    if (arguments.output != nullptr) {
        if (arguments.input != nullptr) {
            write_gradients<T, Length, true, true>(arguments);
        } else {
            write_gradients<T, Length, false, true>(arguments);
        }
    } else if (arguments.input != nullptr) {
        write_gradients<T, Length, true, false>(arguments);
    } else {
        write_gradients<T, Length, false, false>(arguments);
    }
}

template <class T>
__device__ __forceinline__ void backward(const BatchNormBackwardArguments& arguments) {
    if (arguments.vectorised != 0) {
        backward_groups<T, kVectorLength<T>>(arguments);
    } else {
        backward_groups<T, 1>(arguments);
    }
}

extern "C" __global__ void __launch_bounds__(256, 2)
    batch_norm_backward_fp32(const BatchNormBackwardArguments arguments) {
    backward<float>(arguments);
}

extern "C" __global__ void __launch_bounds__(256, 2)
    batch_norm_backward_bf16(const BatchNormBackwardArguments arguments) {
    backward<bf16>(arguments);
}
