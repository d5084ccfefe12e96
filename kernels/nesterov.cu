// One step of gradient descent with Nesterov momentum for a parameter group, as in torch.optim.SGD(nesterov=True):
//
//   g = scale * gradient + weight_decay * value
//   velocity = momentum * velocity + g
//   value -= learning_rate * (g + momentum * velocity)
//
// It moves the same bytes as sgd with momentum and computes eight operations per value. It has not run on a GPU.
#include "optimizer.cuh"

namespace {

struct Nesterov {
    static constexpr int kSlots = 1;
    float learning_rate, weight_decay, momentum;

    __device__ explicit Nesterov(const float* words)
        : learning_rate(words[0]), weight_decay(words[1]), momentum(words[2]) {}

    __device__ float operator()(float value, float gradient, float* slots) const {
        const float decayed = fmaf(weight_decay, value, gradient);
        slots[0] = fmaf(momentum, slots[0], decayed);
        return fmaf(-learning_rate, fmaf(momentum, slots[0], decayed), value);
    }
};

}  // namespace

extern "C" __global__ void __launch_bounds__(256) nesterov(const UpdateKernelArguments arguments) {
    update_group<Nesterov>(arguments);
}
