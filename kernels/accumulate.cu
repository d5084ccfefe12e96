// Adds values to weighted sums of those before them, for a parameter group:
//
//   sum = keep * sum + add * value, where keep is not 0
//   sum = add * value, where it is: the first values, whatever the sum was
//
// The host writes both factors to device memory before each batch, so a recorded batch stays the same.
//
// Gradients of the batches of a step: for a summed loss, keep and add are 1. For a mean loss over d images after batches
// of D images, keep = D / (D + d) and add = d / (D + d), so that the sum is the gradient of the mean loss over all images
// so far.
//
// Moving average of parameters: keep is the decay and add = 1 - keep. If the loss or the norm of the gradients of the
// step is not finite, the optimiser has changed nothing, and neither does the kernel.
//
// Bound by memory: for the 11.2 M values of ResNet-18, it reads 90 MB and writes 45 MB, 31 us at 4.3 TB/s. A thread
// processes 16 bytes of each buffer and a block 1024 values. It has not run on a GPU.
#include "common.cuh"

struct AccumulateArguments {
    const float* values;
    float* sums;
    const float* words;  // keep, add
    const float* loss;   // only its first value is read; or null
    const float* norm;   // of all gradients; or null
    uint64_t count;
    int32_t vectorised;  // whether both addresses are multiples of four elements
    int32_t padding;
};

namespace {

constexpr int kAccumulateThreads = 256;
constexpr int kAccumulateLength = 4;

template <int kCount>
__device__ __forceinline__ void add_values(const AccumulateArguments& arguments, float keep, float add, size_t first) {
    float values[kCount], sums[kCount];
    load_floats<float, kCount>(values, arguments.values + first);
    if (keep != 0.0f) load_floats<float, kCount>(sums, arguments.sums + first);
#pragma unroll
    for (int i = 0; i < kCount; i++) {
        const float added = add * values[i];
        sums[i] = keep != 0.0f ? fmaf(keep, sums[i], added) : added;
    }
    store_floats<float, kCount>(arguments.sums + first, sums);
}

}  // namespace

extern "C" __global__ void __launch_bounds__(256) accumulate(const AccumulateArguments arguments) {
    if (arguments.loss != nullptr && !is_finite(arguments.loss[0])) return;
    if (arguments.norm != nullptr && !is_finite(arguments.norm[0])) return;
    const float keep = arguments.words[0], add = arguments.words[1];
    const size_t first = (static_cast<size_t>(blockIdx.x) * kAccumulateThreads + threadIdx.x) * kAccumulateLength;
    if (arguments.vectorised != 0 && first + kAccumulateLength <= arguments.count) {
        add_values<kAccumulateLength>(arguments, keep, add, first);
        return;
    }
    for (size_t i = first; i < first + kAccumulateLength && i < arguments.count; i++) {
        add_values<1>(arguments, keep, add, i);
    }
}
