// Maximum over windows of an activation [N, H, W, C] (torch.nn.MaxPool2d), float32 or bf16, with the position of the
// first maximum in scan order as one byte an output element, which is all that the backward pass reads besides the
// gradient.
//
// Bound by memory. ResNet-18 has one, behind the stem: at batch 128 in bf16 forward reads 206 MB and writes 51 MB and
// 26 MB of positions, 66 us at 4.3 TB/s; backward reads 51 + 26 MB and writes 206 MB, 66 us. A 3 x 3 window of stride 2
// reads each input 2.25 times, all but the first time from cache.
//
// Forward: a thread makes 16 bytes of the channels of one output pixel; neighbouring threads read neighbouring channels.
// Backward: a thread makes 16 bytes of one input pixel and gathers from the windows that contain it, in scan order of
// the outputs; so every element is written once and nothing is added by two threads. No GPU has measured it yet.
#include "common.cuh"

struct MaxPoolForwardArguments {
    const void* input;          // [N, H, W, C]
    void* output;               // [N, OH, OW, C]
    unsigned char* positions;   // [N, OH, OW, C] or null: row in the window times its size plus column
    long long groups;           // of the output
    int height;
    int width;
    int channels;
    int output_height;
    int output_width;
    int size;
    int stride;
    int window_padding;
    int vectorised;             // whether 16 bytes divide the channels
    int padding;
};

template <class T, int Length>
__device__ __forceinline__ void forward(const MaxPoolForwardArguments& a) {
    const long long group = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (group >= a.groups) return;
    const int columns = a.channels / Length;
    const int channel = static_cast<int>(group % columns) * Length;
    const long long pixel = group / columns;
    const int output_column = static_cast<int>(pixel % a.output_width);
    const int output_row = static_cast<int>(pixel / a.output_width % a.output_height);
    const long long image = pixel / a.output_width / a.output_height;
    const int top = output_row * a.stride - a.window_padding;
    const int left = output_column * a.stride - a.window_padding;
    const T* input = static_cast<const T*>(a.input) + image * a.height * a.width * a.channels + channel;
    // Where nothing is larger than minus infinity, the first pixel of the window is the maximum.
    const int first = max(0, -top) * a.size + max(0, -left);
    float best[Length];
    int position[Length];
#pragma unroll
    for (int i = 0; i < Length; i++) {
        best[i] = -__uint_as_float(0x7f800000u);
        position[i] = first;
    }
    for (int row = max(0, -top); row < a.size && top + row < a.height; row++) {
        for (int column = max(0, -left); column < a.size && left + column < a.width; column++) {
            float values[Length];
            const long long offset = (static_cast<long long>(top + row) * a.width + left + column) * a.channels;
            load_floats<T, Length>(values, input + offset);
            const int here = row * a.size + column;
#pragma unroll
            for (int i = 0; i < Length; i++) {
                // A NaN wins and stays, as in torch.
                if (values[i] > best[i] || values[i] != values[i]) {
                    best[i] = values[i];
                    position[i] = here;
                }
            }
        }
    }
    const long long target = pixel * a.channels + channel;
    store_floats<T, Length>(static_cast<T*>(a.output) + target, best);
    if (a.positions != nullptr) {
        Vector<unsigned char, Length> bytes;
#pragma unroll
        for (int i = 0; i < Length; i++) bytes.elements[i] = static_cast<unsigned char>(position[i]);
        *reinterpret_cast<Vector<unsigned char, Length>*>(a.positions + target) = bytes;
    }
}

extern "C" __global__ void __launch_bounds__(256, 4) max_pool_forward_fp32(const MaxPoolForwardArguments arguments) {
    if (arguments.vectorised != 0) {
        forward<float, kVectorLength<float>>(arguments);
    } else {
        forward<float, 1>(arguments);
    }
}

extern "C" __global__ void __launch_bounds__(256, 4) max_pool_forward_bf16(const MaxPoolForwardArguments arguments) {
    if (arguments.vectorised != 0) {
        forward<bf16, kVectorLength<bf16>>(arguments);
    } else {
        forward<bf16, 1>(arguments);
    }
}

struct MaxPoolBackwardArguments {
    const unsigned char* positions;   // [N, OH, OW, C]
    const void* output_gradient;      // [N, OH, OW, C]
    void* input_gradient;             // [N, H, W, C]
    long long groups;                 // of the input
    int height;
    int width;
    int channels;
    int output_height;
    int output_width;
    int size;
    int stride;
    int window_padding;
    int vectorised;
    int accumulate;
};

template <class T, int Length>
__device__ __forceinline__ void backward(const MaxPoolBackwardArguments& a) {
    const long long group = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (group >= a.groups) return;
    const int columns = a.channels / Length;
    const int channel = static_cast<int>(group % columns) * Length;
    const long long pixel = group / columns;
    const int column = static_cast<int>(pixel % a.width) + a.window_padding;
    const int row = static_cast<int>(pixel / a.width % a.height) + a.window_padding;
    const long long image = pixel / a.width / a.height;
    T* target = static_cast<T*>(a.input_gradient) + pixel * a.channels + channel;
    const long long outputs = image * a.output_height * a.output_width;
    float sums[Length] = {};
    if (a.accumulate != 0) load_floats<T, Length>(sums, target);
    // Window `o` covers the padded rows from o * stride up to o * stride + size.
    const int first_row = row < a.size ? 0 : (row - a.size) / a.stride + 1;
    const int first_column = column < a.size ? 0 : (column - a.size) / a.stride + 1;
    const int last_row = min(a.output_height - 1, row / a.stride);
    const int last_column = min(a.output_width - 1, column / a.stride);
    for (int output_row = first_row; output_row <= last_row; output_row++) {
        for (int output_column = first_column; output_column <= last_column; output_column++) {
            const int here = (row - output_row * a.stride) * a.size + column - output_column * a.stride;
            const long long output = outputs + static_cast<long long>(output_row) * a.output_width + output_column;
            const long long source = output * a.channels + channel;
            const Vector<unsigned char, Length> positions =
                *reinterpret_cast<const Vector<unsigned char, Length>*>(a.positions + source);
            float gradient[Length];
            load_floats<T, Length>(gradient, static_cast<const T*>(a.output_gradient) + source);
#pragma unroll
            for (int i = 0; i < Length; i++) sums[i] += positions.elements[i] == here ? gradient[i] : 0.0f;
        }
    }
    store_floats<T, Length>(target, sums);
}

extern "C" __global__ void __launch_bounds__(256, 4) max_pool_backward_fp32(const MaxPoolBackwardArguments arguments) {
    if (arguments.vectorised != 0) {
        backward<float, kVectorLength<float>>(arguments);
    } else {
        backward<float, 1>(arguments);
    }
}

extern "C" __global__ void __launch_bounds__(256, 4) max_pool_backward_bf16(const MaxPoolBackwardArguments arguments) {
    if (arguments.vectorised != 0) {
        backward<bf16, kVectorLength<bf16>>(arguments);
    } else {
        backward<bf16, 1>(arguments);
    }
}
