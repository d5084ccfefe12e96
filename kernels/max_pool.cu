// Maximum over windows, NHWC, and its gradient:
//
//   input (N, H, W, C) -> output (N, OH, OW, C), indices (N, OH, OW, C) uint8
//   output gradient (N, OH, OW, C), indices -> input gradient (N, H, W, C)
//
// An argmax index is the position of the first maximum of a window in scan order. A NaN counts as larger than any
// number, and the last NaN of a window wins. Padding never wins.
//
// Bound by memory: at batch 128, ResNet pools 112 x 112 x 64 to 56 x 56 x 64 with windows of 3 x 3 and stride 2. In
// bf16 it reads 206 MB and writes 51 MB, and 26 MB of argmax indices, 66 us at 4.3 TB/s. In float32 it moves 540 MB,
// 125 us. The backward pass moves the same bytes in the other direction. Each output element needs nine comparisons,
// 0.2 G in total.
//
// A thread computes 16 bytes of channels of one output pixel. A warp therefore reads whole lines, and each line of the
// input is read once from memory and 9/4 times from the caches. The backward pass gathers: a thread computes 16 bytes
// of one input pixel from the windows that contain it (at most four), in scan order, so each element has one writer and
// no atomics are needed. Loops over 3 x 3 windows are unrolled so that all nine loads are in flight at once. If the
// channels are not a multiple of 16 bytes, a thread computes one element. An H100 takes 0.14 ms forward in bf16 and
// 0.21 ms in float32 (2.1 and 2.5 TB/s), and 0.32 and 0.42 ms backward (0.9 and 1.3 TB/s).
#include "common.cuh"

struct MaxPoolGeometry {
    int32_t height;
    int32_t width;
    int32_t channels;
    int32_t output_height;
    int32_t output_width;
    int32_t size;
    int32_t stride;
    int32_t padding;
};

struct MaxPoolForwardArguments {
    const void* input;   // (N, H, W, C)
    void* output;        // (N, OH, OW, C)
    uint8_t* indices;    // (N, OH, OW, C) or null
    uint32_t groups;     // groups of channels in the output
    MaxPoolGeometry geometry;
    int32_t vectorised;
};

struct MaxPoolBackwardArguments {
    const uint8_t* indices;       // (N, OH, OW, C)
    const void* output_gradient;  // (N, OH, OW, C)
    void* input_gradient;         // (N, H, W, C)
    uint32_t groups;              // groups of channels in the input
    MaxPoolGeometry geometry;
    int32_t vectorised;
    int32_t accumulate;
    int32_t unused;
};

namespace {

constexpr int kThreads = 256;

// A group of channels of one pixel.
struct Place {
    int image;
    int row;
    int column;
    int channel;
};

__device__ __forceinline__ Place place_of(uint32_t group, int length, int channels, int height, int width) {
    const uint32_t groups = channels / length;
    const uint32_t pixel = group / groups;
    const uint32_t row = pixel / width;
    const uint32_t image = row / height;
    return {static_cast<int>(image), static_cast<int>(row - image * height), static_cast<int>(pixel - row * width),
            static_cast<int>(group - pixel * groups) * length};
}

__device__ __forceinline__ size_t element_of(int image, int row, int column, int height, int width, int channels) {
    return ((static_cast<size_t>(image) * height + row) * width + column) * channels;
}

// `kSize` is the size of the window if it is known at compile time, otherwise 0.
template <class T, int kLength, int kSize>
__device__ __forceinline__ void forward_group(const MaxPoolForwardArguments& arguments, uint32_t group) {
    const MaxPoolGeometry& geometry = arguments.geometry;
    const int size = kSize != 0 ? kSize : geometry.size;
    const int height = geometry.height, width = geometry.width, channels = geometry.channels;
    const Place place = place_of(group, kLength, channels, geometry.output_height, geometry.output_width);
    const int first_row = place.row * geometry.stride - geometry.padding;
    const int first_column = place.column * geometry.stride - geometry.padding;
    const T* input = static_cast<const T*>(arguments.input) + place.channel;

    float best[kLength];
    // If nothing is larger than minus infinity, the first pixel is the maximum.
    int position[kLength];
#pragma unroll
    for (int i = 0; i < kLength; i++) {
        best[i] = -__uint_as_float(0x7f800000u);
        position[i] = max(-first_row, 0) * size + max(-first_column, 0);
    }
#pragma unroll
    for (int row_tap = 0; row_tap < size; row_tap++) {
#pragma unroll
        for (int column_tap = 0; column_tap < size; column_tap++) {
            const int row = first_row + row_tap, column = first_column + column_tap;
            if (row < 0 || row >= height || column < 0 || column >= width) continue;
            float values[kLength];
            load_floats<T, kLength>(values, input + element_of(place.image, row, column, height, width, channels));
#pragma unroll
            for (int i = 0; i < kLength; i++) {
                const bool wins = values[i] > best[i] || values[i] != values[i];
                best[i] = wins ? values[i] : best[i];
                position[i] = wins ? row_tap * size + column_tap : position[i];
            }
        }
    }
    const size_t element = static_cast<size_t>(group) * kLength;
    store_floats<T, kLength>(static_cast<T*>(arguments.output) + element, best);
    if (arguments.indices != nullptr) {
        Vector<uint8_t, kLength> bytes;
#pragma unroll
        for (int i = 0; i < kLength; i++) bytes.elements[i] = static_cast<uint8_t>(position[i]);
        *reinterpret_cast<Vector<uint8_t, kLength>*>(arguments.indices + element) = bytes;
    }
}

template <class T>
__device__ __forceinline__ void forward(const MaxPoolForwardArguments& arguments) {
    const uint32_t group = blockIdx.x * kThreads + threadIdx.x;
    if (group >= arguments.groups) return;
    if (arguments.vectorised == 0) {
        forward_group<T, 1, 0>(arguments, group);
    } else if (arguments.geometry.size == 3) {
        forward_group<T, kVectorLength<T>, 3>(arguments, group);
    } else {
        forward_group<T, kVectorLength<T>, 0>(arguments, group);
    }
}

template <class T, int kLength>
__device__ __forceinline__ void backward_group(const MaxPoolBackwardArguments& arguments, uint32_t group) {
    const MaxPoolGeometry& geometry = arguments.geometry;
    const int size = geometry.size, stride = geometry.stride, channels = geometry.channels;
    const Place place = place_of(group, kLength, channels, geometry.height, geometry.width);
    // In padded coordinates, output row `o` covers input rows o stride .. o stride + size.
    const int row = place.row + geometry.padding, column = place.column + geometry.padding;
    const int first_row = row < size ? 0 : (row - size) / stride + 1;
    const int first_column = column < size ? 0 : (column - size) / stride + 1;
    const int last_row = min(row / stride, geometry.output_height - 1);
    const int last_column = min(column / stride, geometry.output_width - 1);
    const T* gradients = static_cast<const T*>(arguments.output_gradient) + place.channel;
    const uint8_t* indices = arguments.indices + place.channel;
    T* target = static_cast<T*>(arguments.input_gradient) + static_cast<size_t>(group) * kLength;

    float sums[kLength] = {};
    if (arguments.accumulate != 0) load_floats<T, kLength>(sums, target);
    for (int output_row = first_row; output_row <= last_row; output_row++) {
        for (int output_column = first_column; output_column <= last_column; output_column++) {
            const int tap = (row - output_row * stride) * size + column - output_column * stride;
            const size_t source = element_of(place.image, output_row, output_column, geometry.output_height,
                                             geometry.output_width, channels);
            float values[kLength];
            load_floats<T, kLength>(values, gradients + source);
            const auto bytes = *reinterpret_cast<const Vector<uint8_t, kLength>*>(indices + source);
#pragma unroll
            for (int i = 0; i < kLength; i++) sums[i] += bytes.elements[i] == tap ? values[i] : 0.0f;
        }
    }
    store_floats<T, kLength>(target, sums);
}

template <class T>
__device__ __forceinline__ void backward(const MaxPoolBackwardArguments& arguments) {
    const uint32_t group = blockIdx.x * kThreads + threadIdx.x;
    if (group >= arguments.groups) return;
    if (arguments.vectorised != 0) {
        backward_group<T, kVectorLength<T>>(arguments, group);
    } else {
        backward_group<T, 1>(arguments, group);
    }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(256, 4) max_pool_forward_fp32(const MaxPoolForwardArguments arguments) {
    forward<float>(arguments);
}

extern "C" __global__ void __launch_bounds__(256, 4) max_pool_forward_bf16(const MaxPoolForwardArguments arguments) {
    forward<bf16>(arguments);
}

extern "C" __global__ void __launch_bounds__(256, 4) max_pool_backward_fp32(const MaxPoolBackwardArguments arguments) {
    backward<float>(arguments);
}

extern "C" __global__ void __launch_bounds__(256, 4) max_pool_backward_bf16(const MaxPoolBackwardArguments arguments) {
    backward<bf16>(arguments);
}
