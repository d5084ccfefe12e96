// One step of gradient descent over the flat buffer of a parameter group, as torch.optim.SGD makes it:
//
//   g = gradient + weight_decay * value
//   velocity = momentum * velocity + g, value -= learning_rate * velocity     (with momentum)
//   value -= learning_rate * g                                                (without)
//   copy = value rounded to bf16                                              (where convolutions read it)
//
// Bound by memory. ResNet-18's 11.2 M values: 90 MB read and 45 MB written, 31 us at 4.3 TB/s; momentum adds 90 MB, the
// copy 22 MB. Six operations a value.
//
// A thread has 16 bytes of each buffer, a block 1024 values; the elements that are left over at the end go one by one.
// No GPU has measured it yet.
#include "common.cuh"

struct SgdArguments {
    float* values;
    const float* gradients;
    float* velocity;  // null without momentum
    bf16* copy;       // null where no copy is wanted
    uint64_t count;
    float learning_rate;
    float momentum;
    float weight_decay;
    int32_t vectorised;  // whether all addresses are multiples of four elements
};

namespace {

constexpr int kThreads = 256;
constexpr int kLength = 4;

template <int kCount>
__device__ __forceinline__ void update(const SgdArguments& arguments, size_t first) {
    float values[kCount], steps[kCount];
    load_floats<float, kCount>(values, arguments.values + first);
    load_floats<float, kCount>(steps, arguments.gradients + first);
    if (arguments.velocity != nullptr) {
        float velocity[kCount];
        load_floats<float, kCount>(velocity, arguments.velocity + first);
#pragma unroll
        for (int i = 0; i < kCount; i++) {
            steps[i] = fmaf(arguments.momentum, velocity[i], fmaf(arguments.weight_decay, values[i], steps[i]));
        }
        store_floats<float, kCount>(arguments.velocity + first, steps);
    } else {
#pragma unroll
        for (int i = 0; i < kCount; i++) steps[i] = fmaf(arguments.weight_decay, values[i], steps[i]);
    }
#pragma unroll
    for (int i = 0; i < kCount; i++) values[i] = fmaf(-arguments.learning_rate, steps[i], values[i]);
    store_floats<float, kCount>(arguments.values + first, values);
    if (arguments.copy != nullptr) store_floats<bf16, kCount>(arguments.copy + first, values);
}

}  // namespace

extern "C" __global__ void __launch_bounds__(256) sgd(const SgdArguments arguments) {
    const size_t first = (static_cast<size_t>(blockIdx.x) * kThreads + threadIdx.x) * kLength;
    if (arguments.vectorised != 0 && first + kLength <= arguments.count) {
        update<kLength>(arguments, first);
        return;
    }
    for (size_t i = first; i < first + kLength && i < arguments.count; i++) update<1>(arguments, i);
}
