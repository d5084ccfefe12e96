// Softmax cross entropy of [N, classes] (torch.nn.functional.cross_entropy), its gradient, and the number of rows whose
// first largest logit is that of the target. Always float32.
//
//   loss = scale sum over rows of (log sum exp(logit - largest) + largest - logit[target])
//   gradient = scale (softmax - one at the target)
//
// Bound by launch latency: 128 x 1000 logits and their gradient are 1 MB, 0.2 us at 4.3 TB/s, and 0.8 million
// operations. The kernel runs as one block so that one launch can add up the rows. Each warp processes one row at a
// time and adds its rows in ascending order; then the sums of the warps are added in ascending order. With 2 classes,
// an H100 takes 17 us for the loss or the gradient.
#include "common.cuh"

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / kWarp;

struct CrossEntropyArguments {
    const float* logits;    // [N, classes]
    const int* targets;     // [N]
    float* result;          // [2]: loss, correct rows
    float* gradient;        // [N, classes] or null
    int rows;
    int classes;
    float scale;
    int padding;
};

// Whether `value` at `index` ranks before `best`: larger, or equal and earlier. A NaN is larger than any number.
__device__ __forceinline__ bool is_better(float value, int index, float best, int best_index) {
    const bool value_is_nan = value != value;
    const bool best_is_nan = best != best;
    if (value_is_nan || best_is_nan) return value_is_nan && (!best_is_nan || index < best_index);
    return value > best || (value == best && index < best_index);
}

extern "C" __global__ void __launch_bounds__(512, 2) cross_entropy(const CrossEntropyArguments arguments) {
    __shared__ float losses[kWarps];
    __shared__ int corrects[kWarps];
    const int lane = threadIdx.x % kWarp;
    const int warp = threadIdx.x / kWarp;
    float loss = 0;
    int correct = 0;
    for (int row = warp; row < arguments.rows; row += kWarps) {
        const float* logits = arguments.logits + static_cast<size_t>(row) * arguments.classes;
        const int target = arguments.targets[row];
        float largest = -__uint_as_float(0x7f800000u);
        int position = arguments.classes;
        for (int i = lane; i < arguments.classes; i += kWarp) {
            if (is_better(logits[i], i, largest, position)) {
                largest = logits[i];
                position = i;
            }
        }
#pragma unroll
        for (int distance = kWarp / 2; distance > 0; distance /= 2) {
            const float other = __shfl_xor_sync(kAllLanes, largest, distance);
            const int other_position = __shfl_xor_sync(kAllLanes, position, distance);
            if (is_better(other, other_position, largest, position)) {
                largest = other;
                position = other_position;
            }
        }
        float sum = 0;
        for (int i = lane; i < arguments.classes; i += kWarp) sum += expf(logits[i] - largest);
        sum = warp_sum(sum);
        // A target outside the classes makes the loss NaN instead of causing a read beyond the row.
        const bool is_class = target >= 0 && target < arguments.classes;
        loss += is_class ? logf(sum) - (logits[target] - largest) : __uint_as_float(0x7fc00000u);
        correct += position == target ? 1 : 0;
        if (arguments.gradient != nullptr) {
            float* gradient = arguments.gradient + static_cast<size_t>(row) * arguments.classes;
            for (int i = lane; i < arguments.classes; i += kWarp) {
                const float probability = expf(logits[i] - largest) / sum;
                gradient[i] = (probability - (i == target ? 1.0f : 0.0f)) * arguments.scale;
            }
        }
    }
    if (lane == 0) {
        losses[warp] = loss;
        corrects[warp] = correct;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int other = 1; other < kWarps; other++) {
            loss += losses[other];
            correct += corrects[other];
        }
        arguments.result[0] = loss * arguments.scale;
        arguments.result[1] = static_cast<float>(correct);
    }
}
