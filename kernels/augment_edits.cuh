// The edits of an image after it was scaled: one affine map, and operations on colours, by one block for the whole image.
//
// The blocks that scale an image with edits write its pixels to global memory instead of the output, and the last of them to arrive calls
// `finish`, which so needs no launch of its own. Most operations change each pixel by itself. These are applied together,
// in registers, when the pixel is read for something else: a mean or a histogram of the whole image, which some operations need before
// they can begin; a sharpened image, which needs the neighbours; or the output. So an image with an affine map and the
// jitter of brightness, contrast, saturation and hue is read twice: for the mean that the contrast needs, with the affine map, whose result
// is written, and for the output.
//
// The bits are those of Pillow, which uses bytes, float32 and float64 by turns. A compiler must not fuse a multiplication and an
// addition here, so such products are written as intrinsics. An affine map is in fixed point: coordinates with 32 fractional bits, weights
// with 16. float64 only occurs where a hue is computed, and in 256 entries of a table.
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

// In shared memory.
struct EditState {
    uint32_t histogram[3][kLevels];
    uint32_t sums[2];  // the lower 16 bits of the grey levels of each thread, and the others
    uint8_t tables[kMostColours][3][kLevels];  // what a byte of each channel becomes
    Colour colours[kMostColours];
    int is_last;
};

// The image of which output pixel (x, y) shows the place (across[0] x + across[1] y + across[2], down...), with 32 fractional bits.
struct AffineMap {
    long long across[3];
    long long down[3];
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

// Rounds halves up, as C's round does for values that are not negative.
__device__ __forceinline__ uint32_t round_half_up(double value) {
    const uint32_t whole = static_cast<uint32_t>(value);
    return min(whole + (value - static_cast<double>(whole) >= 0.5 ? 1u : 0u), 255u);
}

// Pillow's conversion to HSV and back, with `shift` added to the hue in between.
__device__ __forceinline__ uint32_t turn_hue(uint32_t pixel, uint32_t shift) {
    const uint32_t red = channel_of(pixel, 0);
    const uint32_t green = channel_of(pixel, 1);
    const uint32_t blue = channel_of(pixel, 2);
    const uint32_t most = max(max(red, green), blue);
    const uint32_t least = min(min(red, green), blue);
    if (most == least) return pixel;
    const float range = static_cast<float>(most - least);
    const float r = __fdiv_rn(static_cast<float>(most - red), range);
    const float g = __fdiv_rn(static_cast<float>(most - green), range);
    const float b = __fdiv_rn(static_cast<float>(most - blue), range);
    float sixth;
    if (red == most) {
        sixth = b - g;
    } else if (green == most) {
        sixth = static_cast<float>(2.0 + static_cast<double>(r) - static_cast<double>(b));
    } else {
        sixth = static_cast<float>(4.0 + static_cast<double>(g) - static_cast<double>(r));
    }
    const double turned = static_cast<double>(sixth) / 6.0 + 1.0;
    const float circle = static_cast<float>(turned >= 1.0 ? turned - 1.0 : turned);
    const uint32_t hue = (min(static_cast<uint32_t>(static_cast<double>(circle) * 255.0), 255u) + shift) & 0xffu;
    const float share = __fdiv_rn(range, static_cast<float>(most));
    const uint32_t saturation = static_cast<uint32_t>(static_cast<double>(share) * 255.0);
    if (saturation == 0) return most | most << 8 | most << 16;
    const double position = static_cast<double>(hue) * 6.0 / 255.0;
    const uint32_t sector = static_cast<uint32_t>(position);
    const float rest = static_cast<float>(position - static_cast<double>(sector));
    const float strength = static_cast<float>(static_cast<double>(saturation) / 255.0);
    const double value = static_cast<double>(most);
    const double full = static_cast<double>(strength);
    const uint32_t low = round_half_up(value * (1.0 - full));
    const uint32_t falling = round_half_up(value * (1.0 - static_cast<double>(__fmul_rn(strength, rest))));
    const double rising_share = __dsub_rn(1.0, __dmul_rn(full, 1.0 - static_cast<double>(rest)));
    const uint32_t rising = round_half_up(value * rising_share);
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
        const uint32_t level = grey(pixel);
        const float factor = __uint_as_float(colour.value);
        uint32_t result = 0;
#pragma unroll
        for (int c = 0; c < 3; c++) {
            const uint32_t byte = channel_of(pixel, c);
            result |= (colour.kind == kSaturation ? blend(level, byte, factor) : state.tables[i][c][byte]) << (8 * c);
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
#pragma unroll
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
enum class Pass { kStatistics, kStore, kSharpen, kOutput };

// Edits an image of size x size pixels, in `from`, and calls `write(x, y, pixel)` for each. `spare` has as many pixels. The state's
// colours are set. All threads call it.
template <class Write>
__device__ __forceinline__ void finish(EditState& state, uint32_t* from, uint32_t* spare, int size, int colours,
                                       bool is_mapped, const AffineMap& map, Write write) {
    const int pixels = size * size;
    int ready = 0;    // operations before it change a pixel by itself
    int applied = 0;  // operations before it are in `from`
    for (;;) {
        Pass pass = Pass::kOutput;
        uint32_t kind = 0;
        for (; ready < colours; ready++) {
            kind = state.colours[ready].kind;
            if (kind == kContrast || kind == kAutoContrast || kind == kEqualize) {
                pass = Pass::kStatistics;
                break;
            }
            if (kind == kSharpness) {
                pass = is_mapped || applied < ready ? Pass::kStore : Pass::kSharpen;
                break;
            }
            fill_table(state, ready, pixels);
        }
        if (pass == Pass::kStatistics) {
            const int level = static_cast<int>(threadIdx.x);
            for (int c = 0; c < 3; c++) state.histogram[c][level] = 0;
            if (level < 2) state.sums[level] = 0;
        }
        __syncthreads();
        uint32_t sum = 0;
#pragma unroll 1
        for (int i = static_cast<int>(threadIdx.x); i < pixels; i += kEditThreads) {
            const int y = i / size;
            const int x = i - y * size;
            if (pass == Pass::kSharpen) {
                spare[i] = sharpened(from, size, __uint_as_float(state.colours[ready].value), x, y);
                continue;
            }
            const uint32_t source = is_mapped ? interpolated(from, size, map, x, y) : from[i];
            const uint32_t pixel = recolour(state, applied, ready, source);
            if (pass == Pass::kOutput) {
                write(x, y, pixel);
            } else if (pass == Pass::kStore) {
                spare[i] = pixel;
            } else {
                if (is_mapped) spare[i] = source;
                if (kind == kContrast) {
                    sum += grey(pixel);
                } else {
                    for (int c = 0; c < 3; c++) atomicAdd(&state.histogram[c][channel_of(pixel, c)], 1u);
                }
            }
        }
        if (pass == Pass::kOutput) return;
        if (pass == Pass::kStatistics && kind == kContrast) {
            atomicAdd(&state.sums[0], sum & 0xffffu);
            atomicAdd(&state.sums[1], sum >> 16);
        }
        __syncthreads();
        if (is_mapped || pass != Pass::kStatistics) {
            uint32_t* const other = from;
            from = spare;
            spare = other;
            is_mapped = false;
        }
        if (pass == Pass::kStatistics) {
            fill_table(state, ready, pixels);
            ready++;
        } else {
            if (pass == Pass::kSharpen) ready++;
            applied = ready;
        }
        __syncthreads();
    }
}
