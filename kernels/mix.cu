// Mixes each image of a batch (N, H, W, 3) with the one before it, in place; the first image with the last:
//
//   image[i] = (1 - weight) image[i - 1] + weight image[i], for pixels in the rectangle
//
// mixup (Zhang et al. 2017): the rectangle is the whole image. CutMix (Yun et al. 2019): the weight is 0. Pairs and rounding
// are those of torchvision.transforms.v2: two products, then their sum, each rounded to float32.
//
// Weight and rectangle lie in device memory, where the host writes them before each batch, so a recorded step stays the same.
//
// A thread takes four elements of an image, and these in every image of the batch, from the first to the last. It keeps those of
// the previous image in registers, so it never reads an element that it has changed, and no other thread accesses them. It
// loads from eight images before it stores to them: an image has few threads, and to saturate memory, about 3 MB have to be in
// flight; eight images of 224 x 224 are 4.8 MB in float32 and 2.4 MB in bf16.
//
// Bound by memory: for 128 images of 224 x 224, it reads and writes 77 MB each in float32, 36 us at 4.3 TB/s, or 39 MB each in
// bf16, 18 us. A thread whose pixels lie outside of the rectangle reads none. It has not run on a GPU.
#include "common.cuh"

struct MixArguments {
    void* images;        // (N, H, W, 3)
    const float* words;  // share of the target (unused here), weight, top, left, bottom, right
    uint32_t count;      // N, at least 2
    uint32_t width;      // W
    uint32_t length;     // H W 3
    uint32_t vectorised; // whether the address of every image is a multiple of four elements
};

namespace {

constexpr int kMixThreads = 256;
constexpr int kMixLength = 4;
constexpr int kMixAhead = 8;

// The pixels of all images at the `kCount` elements from `first`.
template <class T, int kCount>
__device__ __forceinline__ void mix_elements(const MixArguments& arguments, uint32_t first) {
    const float* words = arguments.words;
    bool inside[kCount];
    bool any = false;
#pragma unroll
    for (int i = 0; i < kCount; i++) {
        const uint32_t pixel = (first + i) / 3;
        const float row = static_cast<float>(pixel / arguments.width);
        const float column = static_cast<float>(pixel % arguments.width);
        inside[i] = row >= words[2] && row < words[4] && column >= words[3] && column < words[5];
        any = any || inside[i];
    }
    if (!any) return;
    const float weight = words[1];
    const size_t stride = arguments.length;
    T* images = static_cast<T*>(arguments.images) + first;
    float previous[kCount];
    load_floats<T, kCount>(previous, images + (arguments.count - 1) * stride);
    for (uint32_t begin = 0; begin < arguments.count; begin += kMixAhead) {
        float current[kMixAhead][kCount];
#pragma unroll
        for (int ahead = 0; ahead < kMixAhead; ahead++) {
            if (begin + ahead < arguments.count) load_floats<T, kCount>(current[ahead], images + (begin + ahead) * stride);
        }
#pragma unroll
        for (int ahead = 0; ahead < kMixAhead; ahead++) {
            if (begin + ahead >= arguments.count) break;
            float mixed[kCount];
#pragma unroll
            for (int i = 0; i < kCount; i++) {
                const float own = current[ahead][i];
                const float sum = __fadd_rn(__fmul_rn(1.0f - weight, previous[i]), __fmul_rn(weight, own));
                mixed[i] = inside[i] ? sum : own;
                previous[i] = own;
            }
            store_floats<T, kCount>(images + (begin + ahead) * stride, mixed);
        }
    }
}

template <class T>
__device__ __forceinline__ void mix(const MixArguments& arguments) {
    const uint32_t first = (blockIdx.x * kMixThreads + threadIdx.x) * kMixLength;
    if (arguments.vectorised != 0) {
        if (first < arguments.length) mix_elements<T, kMixLength>(arguments, first);
        return;
    }
    for (uint32_t i = first; i < first + kMixLength && i < arguments.length; i++) mix_elements<T, 1>(arguments, i);
}

}  // namespace

extern "C" __global__ void __launch_bounds__(256) mix_fp32(const MixArguments arguments) {
    mix<float>(arguments);
}

extern "C" __global__ void __launch_bounds__(256) mix_bf16(const MixArguments arguments) {
    mix<bf16>(arguments);
}
