// The edits of an image after it was scaled: one affine map, and operations on colours, by one block for the whole image.
//
// The blocks that scale an image with edits write its pixels to global memory instead of the output, and the last of them to arrive calls
// `finish`, which therefore needs no launch of its own. Most operations change each pixel by itself. These are applied together,
// in registers, when the pixel is read for something else: a mean or a histogram of the whole image, which some operations need before
// they can begin; a sharpened image, which needs the neighbours; or the output. So an image with an affine map and the
// jitter of brightness, contrast, saturation and hue is read twice: for the mean that the contrast needs, with the affine map, and for the
// output.
//
// The bits are those of Pillow, which uses bytes, float32 and float64 by turns. A compiler must not fuse a multiplication and an
// addition here, so such products are written as intrinsics. An affine map is in fixed point: coordinates with 32 fractional bits, weights
// with 16. float64 only occurs in two additions and two products for a hue, and in 256 entries of a table.
//
// Estimate for 128 images of 224 x 224, all with an affine map and the full jitter, on an H100 (not measured): 6.4 M pixels are staged in
// four bytes, read, written and read once more, 103 MB, mostly in the second-level cache, 20 to 30 us. Instructions: about 85 for the map of
// a pixel, 35 for a table, 60 for the saturation, 100 for the hue, 40 for loops, loads and stores in each of two passes, about 430 in all,
// or 86 M for warps, of which the GPU issues 0.93 G in a millisecond: 0.09 ms if nothing waits, 0.13 ms at 70 % of that. Blocks of other
// images scale in the meantime; only the last images are edited alone, 196 pixels a thread in two passes, each bound by latency: 0.05 to
// 0.08 ms. With the 0.14 ms of the scaling, which waits more than it issues and so overlaps in part, 0.25 to 0.35 ms. These kernels need 84 to
// 90 registers, so that a multiprocessor has two blocks; with three, some registers would be spilled.
#pragma once

#include "common.cuh"

constexpr int kMostColours = 5;
constexpr int kEditThreads = 256;
constexpr int kLevels = 256;

constexpr uint32_t kBrightness = 0;
constexpr uint32_t kContrast = 1;
constexpr uint32_t kSaturation = 2;
constexpr uint32_t kHue = 3;
constexpr uint32_t kSharpness = 4;
constexpr uint32_t kPosterize = 5;
constexpr uint32_t kSolarize = 6;
constexpr uint32_t kAutoContrast = 7;
constexpr uint32_t kEqualize = 8;

// An operation on colours.
struct Colour {
    uint32_t kind;
    uint32_t value;  // the bits of a float32 factor, or a number
};

// The image of which output pixel (x, y) shows the place (across[0] x + across[1] y + across[2], down...), with 32 fractional bits.
struct AffineMap {
    long long across[3];
    long long down[3];
};

// In shared memory.
struct EditState {
    AffineMap map;
    uint32_t erased[4];  // top, left, height, width
    uint32_t histogram[3][kLevels];
    uint32_t sums[2];  // the lower 16 bits of the grey levels of each thread, and the others
    uint8_t tables[kMostColours][3][kLevels];  // what a byte of each channel becomes
    Colour colours[kMostColours];
};

__device__ __forceinline__ uint32_t channel_of(uint32_t pixel, int channel) {
    return pixel >> (8 * channel) & 0xffu;
}

// Pillow's Image.blend of two bytes.
__device__ __forceinline__ uint32_t blend(uint32_t from, uint32_t to, float factor) {
    const float start = static_cast<float>(from);
    const float value = __fadd_rn(start, __fmul_rn(factor, static_cast<float>(to) - start));
    return value <= 0.0f ? 0u : value >= 255.0f ? 255u : static_cast<uint32_t>(value);
}

// Pillow's conversion to L.
__device__ __forceinline__ uint32_t grey(uint32_t pixel) {
    return (19595u * channel_of(pixel, 0) + 38470u * channel_of(pixel, 1) + 7471u * channel_of(pixel, 2) + 0x8000u) >> 16;
}

// This many 1 / 255^2 of the value, rounded.
__device__ __forceinline__ uint32_t of_value(uint32_t value, uint32_t share) {
    return (2 * value * share + 255 * 255) / (2 * 255 * 255);
}

// Pillow's conversion to HSV and back, with `shift` added to the hue in between. Pillow truncates the hue, so that it is computed as there;
// elsewhere, integers give what Pillow's floats give, and 1/6 what a division by 6 gives, for every colour.
__device__ __forceinline__ uint32_t turn_hue(uint32_t pixel, uint32_t shift) {
    const uint32_t red = channel_of(pixel, 0);
    const uint32_t green = channel_of(pixel, 1);
    const uint32_t blue = channel_of(pixel, 2);
    const uint32_t most = max(max(red, green), blue);
    const uint32_t least = min(min(red, green), blue);
    if (most == least) return pixel;
    const float range = static_cast<float>(most - least);
    const bool is_red = red == most;
    const bool is_green = !is_red && green == most;
    const uint32_t plus = is_red ? blue : is_green ? red : green;
    const uint32_t minus = is_red ? green : is_green ? blue : red;
    const double base = is_red ? 0.0 : is_green ? 2.0 : 4.0;
    const float added = __fdiv_rn(static_cast<float>(most - plus), range);
    const float taken = __fdiv_rn(static_cast<float>(most - minus), range);
    const float sixths = static_cast<float>(base + static_cast<double>(added) - static_cast<double>(taken));
    const double turned = __dadd_rn(__dmul_rn(static_cast<double>(sixths), 1.0 / 6.0), 1.0);
    const float circle = static_cast<float>(turned >= 1.0 ? turned - 1.0 : turned);
    const uint32_t hue = (min(static_cast<uint32_t>(static_cast<double>(circle) * 255.0), 255u) + shift) & 0xffu;
    const uint32_t saturation = 255 * (most - least) / most;
    // Pillow takes a hue without saturation as grey.
    if (saturation == 0) return most | most << 8 | most << 16;
    const uint32_t sector = hue * 6 / 255;
    const uint32_t rest = hue * 6 % 255;
    const uint32_t low = of_value(most, 255 * (255 - saturation));
    const uint32_t falling = of_value(most, 255 * 255 - saturation * rest);
    const uint32_t rising = of_value(most, 255 * 255 - saturation * (255 - rest));
    switch (sector % 6) {
        case 0: return most | rising << 8 | low << 16;
        case 1: return falling | most << 8 | low << 16;
        case 2: return low | most << 8 | rising << 16;
        case 3: return low | falling << 8 | most << 16;
        case 4: return rising | low << 8 | most << 16;
        default: return most | low << 8 | falling << 16;
    }
}

// Applies the operations begin .. end - 1, each of which changes a pixel by itself.
__device__ __forceinline__ uint32_t recolour(const EditState& state, int begin, int end, uint32_t pixel) {
#pragma unroll 1
    for (int i = begin; i < end; i++) {
        const Colour colour = state.colours[i];
        if (colour.kind == kHue) {
            pixel = turn_hue(pixel, colour.value);
            continue;
        }
        uint32_t result = 0;
        if (colour.kind == kSaturation) {
            const uint32_t level = grey(pixel);
            const float factor = __uint_as_float(colour.value);
#pragma unroll
            for (int c = 0; c < 3; c++) result |= blend(level, channel_of(pixel, c), factor) << (8 * c);
        } else {
#pragma unroll
            for (int c = 0; c < 3; c++) {
                result |= static_cast<uint32_t>(state.tables[i][c][channel_of(pixel, c)]) << (8 * c);
            }
        }
        pixel = result;
    }
    return pixel;
}

// Pillow's transform(..., AFFINE, ..., BILINEAR); black outside of the image.
__device__ __forceinline__ uint32_t interpolated(const uint32_t* image, int size, const AffineMap& map, int x, int y) {
    long long across = map.across[0] * x + map.across[1] * y + map.across[2];
    long long down = map.down[0] * x + map.down[1] * y + map.down[2];
    const long long end = static_cast<long long>(size) << 32;
    if (across < 0 || across >= end || down < 0 || down >= end) return 0;
    across -= 1LL << 31;
    down -= 1LL << 31;
    const int column = static_cast<int>(across >> 32);
    const int row = static_cast<int>(down >> 32);
    const int left = max(column, 0);
    const int right = min(column + 1, size - 1);
    const uint32_t* above = image + static_cast<size_t>(max(row, 0)) * size;
    const uint32_t* below = image + static_cast<size_t>(min(row + 1, size - 1)) * size;
    const uint32_t corners[4] = {above[left], above[right], below[left], below[right]};
    const int of_right = static_cast<int>(across >> 16 & 0xffff);
    const int of_below = static_cast<int>(down >> 16 & 0xffff);
    uint32_t result = 0;
#pragma unroll 3
    for (int c = 0; c < 3; c++) {
        int levels[4];
#pragma unroll
        for (int i = 0; i < 4; i++) levels[i] = static_cast<int>(channel_of(corners[i], c));
        const int top = (levels[0] << 16) + (levels[1] - levels[0]) * of_right;
        const int bottom = (levels[2] << 16) + (levels[3] - levels[2]) * of_right;
        const long long sum = (static_cast<long long>(top) << 16) + static_cast<long long>(bottom - top) * of_below;
        result |= static_cast<uint32_t>(sum >> 32) << (8 * c);
    }
    return result;
}

// Pillow's ImageEnhance.Sharpness. Pixels at the edges stay as they are.
__device__ __forceinline__ uint32_t sharpened(const uint32_t* image, int size, float factor, int x, int y) {
    const uint32_t* centre = image + static_cast<size_t>(y) * size + x;
    const uint32_t pixel = *centre;
    if (x == 0 || y == 0 || x == size - 1 || y == size - 1) return pixel;
    uint32_t sums[3] = {4 * channel_of(pixel, 0), 4 * channel_of(pixel, 1), 4 * channel_of(pixel, 2)};
#pragma unroll
    for (int i = 0; i < 9; i++) {
        const uint32_t neighbour = centre[(i / 3 - 1) * size + i % 3 - 1];
#pragma unroll
        for (int c = 0; c < 3; c++) sums[c] += channel_of(neighbour, c);
    }
    uint32_t result = 0;
#pragma unroll
    for (int c = 0; c < 3; c++) result |= blend((2 * sums[c] + 13) / 26, channel_of(pixel, c), factor) << (8 * c);
    return result;
}

// What byte `level` becomes, by Pillow's ImageOps.autocontrast of a channel.
__device__ __forceinline__ uint32_t stretched(const uint32_t* histogram, int level) {
    int lowest = 0;
    int highest = kLevels - 1;
    while (lowest < kLevels - 1 && histogram[lowest] == 0) lowest++;
    while (highest > 0 && histogram[highest] == 0) highest--;
    if (highest <= lowest) return static_cast<uint32_t>(level);
    const double scale = 255.0 / static_cast<double>(highest - lowest);
    const double offset = __dmul_rn(-static_cast<double>(lowest), scale);
    const double value = __dadd_rn(__dmul_rn(static_cast<double>(level), scale), offset);
    return value <= 0.0 ? 0u : value >= 255.0 ? 255u : static_cast<uint32_t>(value);
}

// The same by ImageOps.equalize.
__device__ __forceinline__ uint32_t equalized(const uint32_t* histogram, int level) {
    uint32_t all = 0;
    uint32_t below = 0;
    uint32_t last = 0;
    for (int i = 0; i < kLevels; i++) {
        const uint32_t count = histogram[i];
        if (i < level) below += count;
        all += count;
        if (count > 0) last = count;
    }
    const uint32_t step = (all - last) / 255;
    return step == 0 ? static_cast<uint32_t>(level) : min((step / 2 + below) / step, 255u);
}

// Fills the table of operation `i` for each byte; thread t does byte t. `pixels` is the number of pixels of the image.
__device__ __forceinline__ void fill_table(EditState& state, int i, int pixels) {
    const Colour colour = state.colours[i];
    const int level = static_cast<int>(threadIdx.x);
    const uint32_t byte = static_cast<uint32_t>(level);
    if (colour.kind == kSaturation || colour.kind == kHue) return;
#pragma unroll 1
    for (int c = 0; c < 3; c++) {
        uint32_t result = byte;
        switch (colour.kind) {
            case kBrightness: result = blend(0, byte, __uint_as_float(colour.value)); break;
            case kContrast: {
                const long long sum = static_cast<long long>(state.sums[0]) + (static_cast<long long>(state.sums[1]) << 16);
                const long long mean = (2 * sum + pixels) / (2LL * pixels);
                result = blend(static_cast<uint32_t>(mean), byte, __uint_as_float(colour.value));
                break;
            }
            case kPosterize: result = byte & (0xffu << (8 - colour.value)) & 0xffu; break;
            case kSolarize: result = byte < colour.value ? byte : 255u - byte; break;
            case kAutoContrast: result = stretched(state.histogram[c], level); break;
            case kEqualize: result = equalized(state.histogram[c], level); break;
            default: break;
        }
        state.tables[i][c][level] = static_cast<uint8_t>(result);
    }
}

// What a pass over the image is for.
enum class Pass { kMean, kHistogram, kStore, kSharpen, kOutput };

// Edits an image of size x size pixels, the first of two copies, and calls `write(x, y, pixel)` for each. The state's colours and map are
// set. All threads call it.
template <class Write>
__device__ __forceinline__ void finish(EditState& state, uint32_t* copies, int size, int colours,
                                       bool is_mapped, Write write) {
    const int pixels = size * size;
    int ready = 0;    // operations before it change a pixel by itself
    int applied = 0;  // operations before it are in the copy that is read
    int from = 0;     // where that begins: at 0 or `pixels`
    for (;;) {
        Pass pass = Pass::kOutput;
        for (; ready < colours; ready++) {
            const uint32_t kind = state.colours[ready].kind;
            if (kind == kContrast || kind == kAutoContrast || kind == kEqualize) {
                pass = kind == kContrast ? Pass::kMean : Pass::kHistogram;
                break;
            }
            if (kind == kSharpness) {
                pass = is_mapped || applied < ready ? Pass::kStore : Pass::kSharpen;
                break;
            }
            fill_table(state, ready, pixels);
        }
        if (pass == Pass::kMean || pass == Pass::kHistogram) {
            const int level = static_cast<int>(threadIdx.x);
            for (int c = 0; c < 3; c++) state.histogram[c][level] = 0;
            if (level < 2) state.sums[level] = 0;
        }
        __syncthreads();
        // Pixels that changed are written, so that nothing is computed twice.
        const bool stores = pass == Pass::kSharpen || (pass != Pass::kOutput && (is_mapped || applied < ready));
        uint32_t sum = 0;
        int y = static_cast<int>(threadIdx.x) / size;
        int x = static_cast<int>(threadIdx.x) % size;
#pragma unroll 1
        for (int i = static_cast<int>(threadIdx.x); i < pixels; i += kEditThreads) {
            uint32_t pixel;
            if (pass == Pass::kSharpen) {
                pixel = sharpened(copies + from, size, __uint_as_float(state.colours[ready].value), x, y);
            } else {
                pixel = is_mapped ? interpolated(copies + from, size, state.map, x, y) : copies[from + i];
                pixel = recolour(state, applied, ready, pixel);
            }
            if (stores) copies[pixels - from + i] = pixel;
            if (pass == Pass::kOutput) {
                write(x, y, pixel);
            } else if (pass == Pass::kMean) {
                sum += grey(pixel);
            } else if (pass == Pass::kHistogram) {
                for (int c = 0; c < 3; c++) atomicAdd(&state.histogram[c][channel_of(pixel, c)], 1u);
            }
            y += kEditThreads / size;
            x += kEditThreads % size;
            if (x >= size) {
                x -= size;
                y++;
            }
        }
        if (pass == Pass::kOutput) return;
        if (pass == Pass::kMean) {
            atomicAdd(&state.sums[0], sum & 0xffffu);
            atomicAdd(&state.sums[1], sum >> 16);
        }
        __syncthreads();
        if (stores) {
            from = pixels - from;
            is_mapped = false;
            if (pass == Pass::kSharpen) ready++;
            applied = ready;
        }
        if (pass == Pass::kMean || pass == Pass::kHistogram) {
            fill_table(state, ready, pixels);
            ready++;
        }
        __syncthreads();
    }
}
