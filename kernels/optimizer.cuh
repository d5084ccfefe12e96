// The code that all optimisers share: one step over the flat buffer of a parameter group.
//
// A rule updates one value:
//
//   struct Rule {
//       static constexpr int kSlots;         // state slots of each value, at most 2
//       explicit Rule(const float* words);   // learning rate, hyperparameters, values derived from the step
//       // Returns the new value and updates the slots.
//       float operator()(float value, float gradient, float* slots) const;
//   };
//
// The gradient that a rule receives has been multiplied by 1 or, to clip gradients as torch.nn.utils.clip_grad_norm_
// does, by min(1, max_norm / (norm + 1e-6)). If the loss or the norm is not finite, the kernel changes nothing, so that
// the parameters can be diagnosed. The words lie in device memory, so a recorded step reads the latest values from the
// host.
//
// Bound by memory: the kernel reads values, gradients and slots, and writes values, slots and the compute copy. The
// words of a group come from the cache. A thread processes 16 bytes of each buffer and a block 1024 values. The
// remaining elements at the end are processed one at a time.
#pragma once

#include "common.cuh"

struct UpdateKernelArguments {
    float* values;
    const float* gradients;
    float* first_slot;   // null if the rule has no slot
    float* second_slot;  // null if it has fewer than two
    bf16* compute_copy;  // null if no convolution reads one
    uint64_t count;
    const float* words;
    const float* loss;  // only its first value is read; or null
    const float* norm;  // of all gradients; null if they are not clipped
    float max_norm;
    int32_t vectorised;  // whether all addresses are multiples of four elements
};

namespace {

constexpr int kUpdateThreads = 256;
constexpr int kUpdateLength = 4;

template <class Rule, int kCount>
__device__ __forceinline__ void update_values(const UpdateKernelArguments& arguments, const Rule& rule, float scale,
                                              size_t first) {
    float values[kCount], gradients[kCount], first_slot[kCount], second_slot[kCount];
    load_floats<float, kCount>(values, arguments.values + first);
    load_floats<float, kCount>(gradients, arguments.gradients + first);
    if (Rule::kSlots > 0) load_floats<float, kCount>(first_slot, arguments.first_slot + first);
    if (Rule::kSlots > 1) load_floats<float, kCount>(second_slot, arguments.second_slot + first);
#pragma unroll
    for (int i = 0; i < kCount; i++) {
        float slots[2] = {0.0f, 0.0f};
        if (Rule::kSlots > 0) slots[0] = first_slot[i];
        if (Rule::kSlots > 1) slots[1] = second_slot[i];
        values[i] = rule(values[i], gradients[i] * scale, slots);
        first_slot[i] = slots[0];
        second_slot[i] = slots[1];
    }
    if (Rule::kSlots > 0) store_floats<float, kCount>(arguments.first_slot + first, first_slot);
    if (Rule::kSlots > 1) store_floats<float, kCount>(arguments.second_slot + first, second_slot);
    store_floats<float, kCount>(arguments.values + first, values);
    if (arguments.compute_copy != nullptr) store_floats<bf16, kCount>(arguments.compute_copy + first, values);
}

template <class Rule>
__device__ __forceinline__ void update_group(const UpdateKernelArguments& arguments) {
    float scale = 1.0f;
    if (arguments.loss != nullptr && !is_finite(arguments.loss[0])) return;
    if (arguments.norm != nullptr) {
        const float norm = arguments.norm[0];
        if (!is_finite(norm)) return;
        scale = fminf(1.0f, arguments.max_norm / (norm + 1e-6f));
    }
    const Rule rule(arguments.words);
    const size_t first = (static_cast<size_t>(blockIdx.x) * kUpdateThreads + threadIdx.x) * kUpdateLength;
    if (arguments.vectorised != 0 && first + kUpdateLength <= arguments.count) {
        update_values<Rule, kUpdateLength>(arguments, rule, scale, first);
        return;
    }
    for (size_t i = first; i < first + kUpdateLength && i < arguments.count; i++) {
        update_values<Rule, 1>(arguments, rule, scale, i);
    }
}

}  // namespace
