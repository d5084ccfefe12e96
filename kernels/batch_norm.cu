// Batch normalisation of [pixels, C] (NHWC with pixels = N H W), float32 or bf16, with the residual and the ReLU that
// follow it (Ioffe and Szegedy, 2015).
//
//   mean = sum x / pixels, variance = sum (x - mean)^2 / pixels       (training; else the running statistics)
//   factor = weight / sqrt(variance + epsilon), summand = bias - mean factor
//   output = relu(factor x + summand + residual)
//
// and backward, with g the output's gradient where the ReLU let the value through and 0 elsewhere, and
// n = (x - mean) / sqrt(variance + epsilon):
//
//   weight' = sum g n, bias' = sum g, residual' = g
//   x' = factor (g - bias' / pixels - n weight' / pixels)             (training; else factor g)
//
// All of it is bound by memory. Floors at batch 128 and 224 x 224 in bf16, where layer 1 has 401408 x 64 (51 MB):
// forward reads x (and the residual) and writes the output, 103 (154) MB, 24 (36) us at 4.3 TB/s; backward reads x and
// the gradient twice and writes x', 257 MB, 60 us; with a residual the output, for the mask, twice as well, and g.
// The arithmetic is 10 operations an element.
//
// Three kernels. The statistics of the forward pass come from the convolution (statistics.cuh), so forward is one pass;
// every block computes factors and summands of all channels in shared memory, which is 4 C loads from the second-level
// cache for at least 8 K elements of work. Backward is one pass that reduces and one that writes. In the reduction a
// thread keeps one group of 16 bytes of channels and walks over pixels, 256 threads side by side so that a warp reads
// 512 contiguous bytes; a block's sums go to a row of the workspace, and the last block adds the rows in order. Rounding
// of g to bf16 happens once, when it is stored. No GPU has measured any of it yet.
//
// dynamic shared memory: batch_norm_forward_fp32 4096
// dynamic shared memory: batch_norm_forward_bf16 4096
// dynamic shared memory: batch_norm_reduce_fp32 4096
// dynamic shared memory: batch_norm_reduce_bf16 8192
// dynamic shared memory: batch_norm_backward_fp32 10240
// dynamic shared memory: batch_norm_backward_bf16 10240
#include "statistics.cuh"

constexpr int kThreads = 256;

// Calls `visit(element, channel)` for each group of `Length` elements that is this thread's, in order. `channel` is that
// of the first; a group does not cross pixels, because `Length` divides `channels`.
template <int Length, class Visit>
__device__ __forceinline__ void for_each_group(long long elements, int channels, Visit visit) {
    const long long stride = static_cast<long long>(gridDim.x) * kThreads * Length;
    long long element = (static_cast<long long>(blockIdx.x) * kThreads + threadIdx.x) * Length;
    int channel = static_cast<int>(element % channels);
    const int step = static_cast<int>(stride % channels);
    for (; element < elements; element += stride) {
        visit(element, channel);
        channel += step;
        if (channel >= channels) channel -= channels;
    }
}

struct BatchNormForwardArguments {
    const void* input;         // [pixels, C]
    const void* residual;      // [pixels, C] or null
    void* output;              // [pixels, C]
    const float* statistics;   // [2, C], the total: in training; else null
    const float* weight;       // [C]
    const float* bias;         // [C]
    float* running_mean;       // [C]
    float* running_variance;   // [C]
    float* normaliser;         // [4, C]: mean, 1 / standard deviation, factor, summand
    int pixels;
    int channels;
    float epsilon;
    float momentum;
    int relu;
    int vectorised;            // whether 16 bytes divide the channels
};

template <class T, int Length>
__device__ __forceinline__ void normalise(const BatchNormForwardArguments& arguments, const float* factors,
                                          const float* summands) {
    const T* input = static_cast<const T*>(arguments.input);
    const T* residual = static_cast<const T*>(arguments.residual);
    T* output = static_cast<T*>(arguments.output);
    const long long elements = static_cast<long long>(arguments.pixels) * arguments.channels;
    for_each_group<Length>(elements, arguments.channels, [&](long long element, int channel) {
        float values[Length];
        load_floats<T, Length>(values, input + element);
        float added[Length] = {};
        if (residual != nullptr) load_floats<T, Length>(added, residual + element);
#pragma unroll
        for (int i = 0; i < Length; i++) {
            const float value = fmaf(values[i], factors[channel + i], summands[channel + i]) + added[i];
            // Not fmaxf: a NaN stays a NaN.
            values[i] = arguments.relu != 0 && value < 0 ? 0 : value;
        }
        store_floats<T, Length>(output + element, values);
    });
}

template <class T>
__device__ __forceinline__ void forward(const BatchNormForwardArguments& arguments, float* shared) {
    const int channels = arguments.channels;
    float* factors = shared;
    float* summands = shared + channels;
    for (int channel = threadIdx.x; channel < channels; channel += kThreads) {
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
        factors[channel] = factor;
        summands[channel] = summand;
        if (blockIdx.x == 0) {
            arguments.normaliser[channel] = mean;
            arguments.normaliser[channels + channel] = inverse;
            arguments.normaliser[2 * channels + channel] = factor;
            arguments.normaliser[3 * channels + channel] = summand;
        }
    }
    __syncthreads();
    if (arguments.vectorised != 0) {
        normalise<T, kVectorLength<T>>(arguments, factors, summands);
    } else {
        normalise<T, 1>(arguments, factors, summands);
    }
}

extern "C" __global__ void __launch_bounds__(256, 5) batch_norm_forward_fp32(const BatchNormForwardArguments arguments) {
    extern __shared__ __align__(128) unsigned char shared_memory[];
    forward<float>(arguments, reinterpret_cast<float*>(shared_memory));
}

extern "C" __global__ void __launch_bounds__(256, 5) batch_norm_forward_bf16(const BatchNormForwardArguments arguments) {
    extern __shared__ __align__(128) unsigned char shared_memory[];
    forward<bf16>(arguments, reinterpret_cast<float*>(shared_memory));
}

struct BatchNormStatisticsArguments {
    const void* input;     // [pixels, C]
    float* statistics;     // [rows, 2, C]
    unsigned* counters;
    int pixels;
    int channels;
};

// One block a row: the statistics of kPixelsPerBlock pixels. A thread has a channel; neighbours read neighbours.
template <class T>
__device__ __forceinline__ void statistics_of(const BatchNormStatisticsArguments& arguments) {
    __shared__ int flag;
    const int channels = arguments.channels;
    const int blocks = gridDim.x;
    const int first = blockIdx.x * kPixelsPerBlock;
    const int count = min(kPixelsPerBlock, arguments.pixels - first);
    const T* input = static_cast<const T*>(arguments.input) + static_cast<size_t>(first) * channels;
    float* row = arguments.statistics + static_cast<size_t>(block_row(blockIdx.x, blocks)) * 2 * channels;
    for (int channel = threadIdx.x; channel < channels; channel += kThreads) {
        float sum = 0;
#pragma unroll 8
        for (int pixel = 0; pixel < count; pixel++) sum += to_float(input[static_cast<size_t>(pixel) * channels + channel]);
        const float mean = sum / static_cast<float>(count);
        float deviations = 0;
#pragma unroll 8
        for (int pixel = 0; pixel < count; pixel++) {
            const float deviation = to_float(input[static_cast<size_t>(pixel) * channels + channel]) - mean;
            deviations = fmaf(deviation, deviation, deviations);
        }
        row[channel] = sum;
        row[channels + channel] = deviations;
    }
    combine_statistics(arguments.statistics, channels, 0, channels, arguments.pixels, blockIdx.x, blocks,
                       arguments.counters, &flag);
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
    const void* input;             // [pixels, C]
    const void* output;            // [pixels, C]: its sign is the mask; null where the mask is computed or there is none
    const void* output_gradient;   // [pixels, C]
    const float* normaliser;       // [4, C]
    float* rows;                   // [1 + groups + blocks, 2, C]: sums of g and of g n
    float* weight_gradient;        // [C] or null
    float* bias_gradient;          // [C] or null
    unsigned* counters;
    int pixels;
    int channels;
    int relu;
    int vectorised;
    int pixels_per_block;
    int padding;
};

// The gradient that passes the ReLU. `output` is the forward result where `has_output`, else it is computed again.
__device__ __forceinline__ float masked(float gradient, bool relu, bool has_output, float output, float input, float factor,
                                        float summand) {
    if (!relu) return gradient;
    const float value = has_output ? output : fmaf(input, factor, summand);
    return value > 0 ? gradient : 0;
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
        // `lanes` threads share each column and take every lanes-th pixel.
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
                mean[i] = arguments.normaliser[channel + i];
                factor[i] = arguments.normaliser[2 * channels + channel + i];
                summand[i] = arguments.normaliser[3 * channels + channel + i];
            }
            for (int pixel = first_pixel + lane; pixel < end; pixel += lanes) {
                const size_t element = static_cast<size_t>(pixel) * channels + channel;
                float x[Length], g[Length];
                float z[Length] = {};
                load_floats<T, Length>(x, input + element);
                load_floats<T, Length>(g, output_gradient + element);
                if (output != nullptr) load_floats<T, Length>(z, output + element);
#pragma unroll
                for (int i = 0; i < Length; i++) {
                    const float gradient =
                        masked(g[i], arguments.relu != 0, output != nullptr, z[i], x[i], factor[i], summand[i]);
                    gradients[i] += gradient;
                    products[i] = fmaf(gradient, x[i] - mean[i], products[i]);
                }
            }
#pragma unroll
            for (int i = 0; i < Length; i++) products[i] *= arguments.normaliser[channels + channel + i];
        }
        // [lane][column][Length] in shared memory, first of the gradients and then of the products; lanes in order.
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
    __shared__ int flag;
    if (arguments.vectorised != 0) {
        reduce_block<T, kVectorLength<T>>(arguments, shared);
    } else {
        reduce_block<T, 1>(arguments, shared);
    }
    const int channels = arguments.channels;
    if (!sum_rows(arguments.rows, 2 * channels, blockIdx.x, gridDim.x, arguments.counters, &flag)) return;
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
    const void* input;               // [pixels, C] or null where nothing needs it
    const void* output;              // as for the reduction
    const void* output_gradient;     // [pixels, C]
    const float* normaliser;         // [4, C]
    const float* sums;               // [2, C]: sums of g and of g n, in training mode; else null
    void* input_gradient;            // [pixels, C] or null
    void* residual_gradient;         // [pixels, C] or null
    int pixels;
    int channels;
    int relu;
    int vectorised;
    int accumulate_input;
    int accumulate_residual;
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

template <class T, int Length>
__device__ __forceinline__ void write_gradients(const BatchNormBackwardArguments& arguments, const float* shared) {
    const T* input = static_cast<const T*>(arguments.input);
    const T* output = static_cast<const T*>(arguments.output);
    const T* output_gradient = static_cast<const T*>(arguments.output_gradient);
    T* input_gradient = static_cast<T*>(arguments.input_gradient);
    T* residual_gradient = static_cast<T*>(arguments.residual_gradient);
    const int channels = arguments.channels;
    const float* factor = shared;
    const float* summand = shared + channels;
    const float* mean = shared + 2 * channels;
    const float* slope = shared + 3 * channels;
    const float* offset = shared + 4 * channels;
    const long long elements = static_cast<long long>(arguments.pixels) * channels;
    for_each_group<Length>(elements, channels, [&](long long element, int channel) {
        float g[Length];
        float x[Length] = {};
        float z[Length] = {};
        load_floats<T, Length>(g, output_gradient + element);
        if (input != nullptr) load_floats<T, Length>(x, input + element);
        if (output != nullptr) load_floats<T, Length>(z, output + element);
#pragma unroll
        for (int i = 0; i < Length; i++) {
            g[i] = masked(g[i], arguments.relu != 0, output != nullptr, z[i], x[i], factor[channel + i],
                          summand[channel + i]);
        }
        if (input_gradient != nullptr) {
            float values[Length];
#pragma unroll
            for (int i = 0; i < Length; i++) {
                const int c = channel + i;
                values[i] = fmaf(factor[c], g[i], fmaf(slope[c], x[i] - mean[c], offset[c]));
            }
            add_or_set<T, Length>(input_gradient + element, arguments.accumulate_input != 0, values);
        }
        if (residual_gradient != nullptr) {
            add_or_set<T, Length>(residual_gradient + element, arguments.accumulate_residual != 0, g);
        }
    });
}

// factor g + slope (x - mean) + offset, with slope = -factor weight' / (deviation pixels), offset = -factor bias' / pixels.
template <class T>
__device__ __forceinline__ void backward(const BatchNormBackwardArguments& arguments, float* shared) {
    const int channels = arguments.channels;
    const float inverse_pixels = 1.0f / static_cast<float>(arguments.pixels);
    for (int channel = threadIdx.x; channel < channels; channel += kThreads) {
        const float factor = arguments.normaliser[2 * channels + channel];
        float slope = 0;
        float offset = 0;
        if (arguments.sums != nullptr) {
            const float share = -factor * inverse_pixels;
            slope = share * arguments.sums[channels + channel] * arguments.normaliser[channels + channel];
            offset = share * arguments.sums[channel];
        }
        shared[channel] = factor;
        shared[channels + channel] = arguments.normaliser[3 * channels + channel];
        // Without an input x stands for 0, and the slope is 0 too.
        shared[2 * channels + channel] = arguments.normaliser[channel];
        shared[3 * channels + channel] = slope;
        shared[4 * channels + channel] = offset;
    }
    __syncthreads();
    if (arguments.vectorised != 0) {
        write_gradients<T, kVectorLength<T>>(arguments, shared);
    } else {
        write_gradients<T, 1>(arguments, shared);
    }
}

extern "C" __global__ void __launch_bounds__(256, 4) batch_norm_backward_fp32(const BatchNormBackwardArguments arguments) {
    extern __shared__ __align__(128) unsigned char shared_memory[];
    backward<float>(arguments, reinterpret_cast<float*>(shared_memory));
}

extern "C" __global__ void __launch_bounds__(256, 4) batch_norm_backward_bf16(const BatchNormBackwardArguments arguments) {
    extern __shared__ __align__(128) unsigned char shared_memory[];
    backward<bf16>(arguments, reinterpret_cast<float*>(shared_memory));
}
