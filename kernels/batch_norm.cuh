// What the passes of batch normalisation share: the statistics of channels, and the sums of the backward pass.
#pragma once

#include "activation.cuh"
#include "statistics.cuh"

constexpr int kBatchNormThreads = 256;

constexpr int kGroupsPerTile = 32;

// The elements that a thread processes in a pass over all elements: the `Length` channels starting at `channel` of every
// `lanes`-th place from `place` to `end`. A place is a pixel, or several. blockIdx.x selects places and blockIdx.y channels.
template <int Length>
struct Tile {
    int first_channel;   // of the block
    int channel_count;   // of the block
    int channel;
    int lanes;
    long long place;
    long long end;

    __device__ __forceinline__ Tile(int places, int channels, int places_per_block) {
        const int first_group = blockIdx.y * kGroupsPerTile;
        const int groups = min(kGroupsPerTile, channels / Length - first_group);
        const int lane = static_cast<int>(threadIdx.x) / groups;
        first_channel = first_group * Length;
        channel_count = groups * Length;
        channel = first_channel + (static_cast<int>(threadIdx.x) - lane * groups) * Length;
        lanes = kBatchNormThreads / groups;
        const long long first = static_cast<long long>(blockIdx.x) * places_per_block;
        end = min(first + places_per_block, static_cast<long long>(places));
        // The remaining threads have no place.
        place = lane < lanes ? first + lane : end;
    }
};

template <class T, int Length>
__device__ __forceinline__ void unpack(float (&values)[Length], const Vector<T, Length>& vector) {
#pragma unroll
    for (int i = 0; i < Length; i++) values[i] = to_float(vector.elements[i]);
}

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

// Mirrors `BatchNormChannels` in Rust.
struct BatchNormChannels {
    const float* statistics;   // [2, C], the total, in training; otherwise null
    const float* weight;       // [C]
    const float* bias;         // [C]
    float* running_mean;       // [C]
    float* running_variance;   // [C]
    float* saved_statistics;   // [4, C]: mean, 1 / standard deviation, scale, shift
    int pixels;
    int channels;
    float epsilon;
    float momentum;
};

// Computes mean, inverse deviation, scale and shift of the tile's channels, and writes scale and shift to shared
// memory. One block of each tile also stores all four and updates the running statistics, which no other block reads in
// training.
__device__ __forceinline__ void prepare(const BatchNormChannels& norm, int first_channel, int channel_count,
                                        float* factors, float* summands) {
    const int channels = norm.channels;
    for (int i = threadIdx.x; i < channel_count; i += kBatchNormThreads) {
        const int channel = first_channel + i;
        float mean, variance;
        if (norm.statistics != nullptr) {
            const float pixels = static_cast<float>(norm.pixels);
            const float deviations = norm.statistics[channels + channel];
            mean = norm.statistics[channel] / pixels;
            variance = deviations / pixels;
            if (blockIdx.x == 0) {
                const float unbiased = deviations / (pixels - 1.0f);
                const float old = 1.0f - norm.momentum;
                float& running_mean = norm.running_mean[channel];
                float& running_variance = norm.running_variance[channel];
                running_mean = fmaf(running_mean, old, mean * norm.momentum);
                running_variance = fmaf(running_variance, old, unbiased * norm.momentum);
            }
        } else {
            mean = norm.running_mean[channel];
            variance = norm.running_variance[channel];
        }
        const float inverse = 1.0f / sqrtf(variance + norm.epsilon);
        const float factor = norm.weight[channel] * inverse;
        const float summand = fmaf(-mean, factor, norm.bias[channel]);
        factors[i] = factor;
        summands[i] = summand;
        if (blockIdx.x == 0) {
            norm.saved_statistics[channel] = mean;
            norm.saved_statistics[channels + channel] = inverse;
            norm.saved_statistics[2 * channels + channel] = factor;
            norm.saved_statistics[3 * channels + channel] = summand;
        }
    }
    __syncthreads();
}

// What the backward pass needs of `Length` channels: x' = scale g + slope (x - mean) + offset, with
// slope = -scale weight' / (deviation pixels) and offset = -scale bias' / pixels.
template <int Length>
struct BackwardChannels {
    float mean[Length];
    float factor[Length];
    float summand[Length];
    float slope[Length];
    float offset[Length];

    // `sums` is [2, C], or null with running statistics.
    __device__ __forceinline__ BackwardChannels(const float* saved_statistics, const float* sums, int channels, int channel,
                                                int pixels) {
        load_floats<float, Length>(mean, saved_statistics + channel);
        load_floats<float, Length>(factor, saved_statistics + 2 * channels + channel);
        load_floats<float, Length>(summand, saved_statistics + 3 * channels + channel);
#pragma unroll
        for (int i = 0; i < Length; i++) slope[i] = offset[i] = 0.0f;
        if (sums == nullptr) return;
        const float inverse_pixels = 1.0f / static_cast<float>(pixels);
        load_floats<float, Length>(offset, sums + channel);
        load_floats<float, Length>(slope, sums + channels + channel);
#pragma unroll
        for (int i = 0; i < Length; i++) {
            const float share = -factor[i] * inverse_pixels;
            slope[i] *= share * saved_statistics[channels + channel + i];
            offset[i] *= share;
        }
    }

    __device__ __forceinline__ float input_gradient(int i, float x, float g) const {
        return fmaf(factor[i], g, fmaf(slope[i], x - mean[i], offset[i]));
    }
};

// Calls `add(channel, lane, lanes, gradients, products)` for each group of `Length` channels: it adds g and g (x - mean) of
// every `lanes`-th of the block's places, from the `lane`-th on. Writes the sums of g and of g n to `row`, [2, C]. `shared`
// has kBatchNormThreads * Length floats.
template <int Length, class Add>
__device__ __forceinline__ void sum_block(const float* saved_statistics, int channels, float* row, float* shared,
                                          const Add& add) {
    const int columns = channels / Length;
    for (int first_column = 0; first_column < columns; first_column += kBatchNormThreads) {
        // `lanes` threads share a column.
        const int width = min(kBatchNormThreads, columns - first_column);
        const int lanes = kBatchNormThreads / width;
        const int column = threadIdx.x % width;
        const int lane = threadIdx.x / width;
        const int channel = (first_column + column) * Length;
        float gradients[Length] = {};
        float products[Length] = {};
        if (lane < lanes) {
            add(channel, lane, lanes, gradients, products);
#pragma unroll
            for (int i = 0; i < Length; i++) products[i] *= saved_statistics[channels + channel + i];
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
            for (int i = threadIdx.x; i < width * Length; i += kBatchNormThreads) {
                float sum = 0;
                for (int other = 0; other < lanes; other++) sum += shared[other * width * Length + i];
                row[which * channels + first_column * Length + i] = sum;
            }
        }
    }
}

// Where the sums of the backward pass go. Mirrors `BatchNormSums` in Rust.
struct BatchNormSums {
    float* rows;               // [1 + groups + blocks, 2, C]: sums of g and of g n
    float* weight_gradient;    // [C] or null
    float* bias_gradient;      // [C] or null
    unsigned* counters;        // zeros
};

// Adds the rows of all blocks. All threads of all blocks call it after they have written their block's row of the channels
// from `first_channel` to `first_channel + channel_count`.
__device__ __forceinline__ void combine_sums(const BatchNormSums& sums, int channels, int first_channel, int channel_count,
                                             int block, int blocks, unsigned* counters) {
    const bool last = combine_rows(block, blocks, counters, [=](int first, int count, int result, int) {
        for (int i = threadIdx.x; i < 2 * channel_count; i += blockDim.x) {
            const int column = i < channel_count ? first_channel + i : channels + first_channel + i - channel_count;
            float sum = 0;
#pragma unroll 8
            for (int row = 0; row < count; row++) {
                sum += sums.rows[static_cast<size_t>(first + row) * 2 * channels + column];
            }
            sums.rows[static_cast<size_t>(result) * 2 * channels + column] = sum;
        }
    });
    if (!last) return;
    for (int i = threadIdx.x; i < channel_count; i += blockDim.x) {
        const int channel = first_channel + i;
        if (sums.bias_gradient != nullptr) sums.bias_gradient[channel] = sums.rows[channel];
        if (sums.weight_gradient != nullptr) sums.weight_gradient[channel] = sums.rows[channels + channel];
    }
}
