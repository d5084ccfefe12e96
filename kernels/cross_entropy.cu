// Softmax cross entropy of [N, classes] (torch.nn.functional.cross_entropy with weight and label_smoothing), its
// gradient, and the number of rows whose first largest logit is that of the target. Always float32.
//
// With the weights w of the classes, the label smoothing s and the target t of a row:
//
//   expected[i] = (1 - s) w[t] (1 if i = t) + s / classes w[i]
//   loss = scale sum over rows of sum over i of expected[i] (log sum exp(logit - largest) + largest - logit[i])
//   gradient[i] = scale (softmax[i] (sum of expected) - expected[i])
//
// scale is 1 for a sum, 1 / N for a mean, and 1 / (sum over rows of w[t]) for a mean with weights.
//
// If targets are mixed, with the share p of a row's own target t and the target u of the row before it (of the last row for
// the first), torch's class probabilities are p for t plus 1 - p for u. Then
//
//   expected[i] = (1 - s) (p w[t] (1 if i = t) + (1 - p) w[u] (1 if i = u)) + s / classes w[i]
//
// and scale is 1 / N for a mean with weights, too. A row is correct if its first largest logit is that of the target with the
// larger share, or of its own if both are equal.
//
// Bound by launch latency: 128 x 1000 logits and their gradient are 1 MB, 0.2 us at 4.3 TB/s, and 0.8 million
// operations. The kernel runs as one block so that one launch can add up the rows. Each warp processes one row at a
// time and adds its rows in ascending order; then the sums of the warps are added in ascending order. With 2 classes,
// an H100 took 17 us for the loss or the gradient, before the kernel had label smoothing and weights.
#include "common.cuh"

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / kWarp;

struct CrossEntropyArguments {
    const float* logits;         // [N, classes]
    const int* targets;          // [N]
    const float* share;          // [1]: p; only for cross_entropy_mixed
    const float* class_weights;  // [classes], or null: all 1
    float* result;               // [2]: loss, correct rows
    float* gradient;             // [N, classes] or null
    int rows;
    int classes;
    float scale;
    float label_smoothing;
    int divides_by_weights;  // whether to divide by the sum of the targets' weights
    int padding;
};

// The weight of a class, or NaN for what is not a class.
__device__ __forceinline__ float weight_of(const CrossEntropyArguments& arguments, int index) {
    if (index < 0 || index >= arguments.classes) return __uint_as_float(0x7fc00000u);
    return arguments.class_weights == nullptr ? 1.0f : arguments.class_weights[index];
}

// Whether `value` at `index` ranks before `best`: larger, or equal and earlier. A NaN is larger than any number.
__device__ __forceinline__ bool is_better(float value, int index, float best, int best_index) {
    const bool value_is_nan = value != value;
    const bool best_is_nan = best != best;
    if (value_is_nan || best_is_nan) return value_is_nan && (!best_is_nan || index < best_index);
    return value > best || (value == best && index < best_index);
}

template <bool kMixed>
__device__ __forceinline__ void run(const CrossEntropyArguments& arguments, float* losses, int* corrects) {
    const int lane = threadIdx.x % kWarp;
    const int warp = threadIdx.x / kWarp;
    float scale = arguments.scale;
    if (arguments.divides_by_weights != 0) {
        // Every warp adds the same weights in the same order.
        float divisor = 0;
        for (int row = lane; row < arguments.rows; row += kWarp) divisor += weight_of(arguments, arguments.targets[row]);
        scale /= warp_sum(divisor);
    }
    const float smoothing = arguments.label_smoothing;
    // What smoothing gives to a class of weight 1, and to all classes together.
    const float share = smoothing / arguments.classes;
    float smoothed = 0;
    if (smoothing > 0) {
        for (int i = lane; i < arguments.classes; i += kWarp) smoothed += weight_of(arguments, i);
        smoothed = share * warp_sum(smoothed);
    }
    const float own = kMixed ? arguments.share[0] : 1.0f;
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
        // A target outside the classes, whose weight is NaN, makes the loss NaN instead of causing a read beyond the row.
        const bool is_class = target >= 0 && target < arguments.classes;
        float of_target = (1.0f - smoothing) * weight_of(arguments, target);
        if (kMixed) of_target *= own;
        loss += of_target * (is_class ? logf(sum) - (logits[target] - largest) : 0.0f);
        int other = target;
        float of_other = 0;
        if (kMixed) {
            other = arguments.targets[row > 0 ? row - 1 : arguments.rows - 1];
            of_other = (1.0f - smoothing) * weight_of(arguments, other) * (1.0f - own);
            const bool other_is_class = other >= 0 && other < arguments.classes;
            loss += of_other * (other_is_class ? logf(sum) - (logits[other] - largest) : 0.0f);
        }
        if (smoothing > 0) {
            float spread = 0;
            for (int i = lane; i < arguments.classes; i += kWarp) {
                spread += weight_of(arguments, i) * (logf(sum) - (logits[i] - largest));
            }
            loss += share * warp_sum(spread);
        }
        const bool is_own = !kMixed || own >= 0.5f;
        correct += position == (is_own ? target : other) ? 1 : 0;
        if (arguments.gradient != nullptr) {
            float* gradient = arguments.gradient + static_cast<size_t>(row) * arguments.classes;
            for (int i = lane; i < arguments.classes; i += kWarp) {
                const float probability = expf(logits[i] - largest) / sum;
                float expected = share * weight_of(arguments, i) + (i == target ? of_target : 0.0f);
                float total = of_target;
                if (kMixed) {
                    expected += i == other ? of_other : 0.0f;
                    total += of_other;
                }
                gradient[i] = (probability * (total + smoothed) - expected) * scale;
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
        arguments.result[0] = loss * scale;
        arguments.result[1] = static_cast<float>(correct);
    }
}

extern "C" __global__ void __launch_bounds__(512, 2) cross_entropy(const CrossEntropyArguments arguments) {
    __shared__ float losses[kWarps];
    __shared__ int corrects[kWarps];
    run<false>(arguments, losses, corrects);
}

extern "C" __global__ void __launch_bounds__(512, 2) cross_entropy_mixed(const CrossEntropyArguments arguments) {
    __shared__ float losses[kWarps];
    __shared__ int corrects[kWarps];
    run<true>(arguments, losses, corrects);
}
