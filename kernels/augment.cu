// Turns decoded images, each of its own size, into the batch that the network takes:
//
//   images (height, width, 3) uint8, at any addresses -> output (N, S, S, 3), normalised float32 or bf16, or uint8
//
// A view describes, for each image, which rectangle of it is scaled to how many pixels, which S x S of those form the output
// (black outside the scaled rectangle), and whether they are mirrored. The training transform scales its crop to S x S; the
// test transform scales the whole image and takes the middle. Scaling has the bits of Pillow's BILINEAR: a triangle as
// wide as two target pixels (two source pixels when it enlarges), cut off at the rectangle's edges and normalised;
// along one axis, rounded to bytes, then along the other; coefficients in fixed point with 22 bits.
//
// Pillow computes coefficients in float64. All its quantities are fractions over 2 x scaled size, so that integers
// give the same numbers exactly, on any device, whether or not a compiler fuses multiply and add, and without
// float64, which most GPUs compute at 1/64 of their speed. Sums of products are exact as well, so their order is arbitrary.
//
// Bytes: every pixel in use is read once, every output is written once. Batch 128, 224 x 224, from crops of half of a 500 x 375
// photo: 36 MB read, 39 MB (bf16) or 77 MB (float32) written, 17 or 26 us at 4.3 TB/s. Operations: a source pixel
// contributes to two target pixels per axis, about 1.0 M multiply-adds per image, 0.25 G operations per batch, 4 us of a
// float32 unit; with the loads and the unpacking of bytes around each, four times as many instructions. So it is bound
// by bytes and by issuing instructions about equally, and is below 1 % of a training step either way.
//
// Tiles: a block of 256 threads computes 32 x 32 pixels of one image (seven tiles are 224), a warp a row of 32, so that
// everything that depends on a row is uniform in a warp, a warp's reads are one or two lines of memory, and shared
// memory does not grow with S. Source rows come in chunks of 32: a thread scales one column of up to four of them, in
// registers, to bytes in shared memory; then they are added to the four output pixels of the thread, in registers.
// If shrinking maps more than 32 columns to a pixel, their coefficients come in chunks as well, so no factor is
// too large. Rows at the edges of tiles are scaled in both: 6 % more than once at a factor of 1.4.
// If the columns have to be scaled first, all of this happens with rows and columns exchanged. A warp then reads a column, a
// line of memory for each lane, which the seven other warps and the next taps find in the cache.
//
// Coefficients are computed by each block: a photo shrunk by 18 has 66 KB of them, and 128 times as many are more than a step
// should upload, and one 64-bit division serves 32 rows. The host sends 40 bytes per image.
//
// An H100 takes 0.14 ms, four (float32) to seven (bf16) times what its bytes would take. This was measured with rows scaled first
// in every image.
#include "augment_edits.cuh"
#include "common.cuh"

struct ImageView {
    const uint8_t* pixels;   // the first pixel of the rectangle
    uint32_t row_pixels;     // pixels from one row of the image to the next
    uint32_t height;         // rows of the rectangle
    uint32_t width;          // columns of the rectangle
    uint32_t scaled_height;  // rows to which they are scaled
    uint32_t scaled_width;   // columns to which they are scaled
    int32_t window_top;      // scaled row of the first output row, negative for black ones above
    int32_t window_left;     // scaled column of the first output column before mirroring, likewise
    uint32_t flags;          // kFlipColumns, kFlipRows, kColumnsFirst, kAffine; the number of colours in the upper bits
    AffineMap map;           // if kAffine
    uint32_t erased[4];      // top, left, height and width of the erased rectangle, whose pixels become the mean colour
    Colour colours[kMostColours];
};

struct AugmentArguments {
    const ImageView* views;      // (N)
    const float* lookup_table;   // (3, 256): what each byte of each channel becomes; unused for uint8
    void* output;                // (N, S, S, 3)
    uint8_t* workspace;          // for each image a counter, which is zero, and two copies; only for augment_edited_*
    int32_t image_size;          // S
    int32_t tiles;               // tiles along an axis: S / 32, rounded up
};

namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kTile = kWarp;
constexpr int kRowsPerThread = kTile / kWarps;
constexpr int kTaps = 32;
constexpr int kChannels = 3;
constexpr int kBytes = 256;
constexpr uint32_t kFlipColumns = 1;  // output columns run from right to left
constexpr uint32_t kFlipRows = 2;     // output rows run from the bottom to the top
constexpr uint32_t kColumnsFirst = 4; // columns are scaled before rows
constexpr uint32_t kAffine = 8;       // an affine map follows
constexpr int kColoursShift = 8;      // the number of operations on colours follows
constexpr int kPrecisionBits = 22;
constexpr int kHalf = 1 << (kPrecisionBits - 1);

// One axis of the rectangle. Positions along it are counted in 1 / (2 x scaled) of a source pixel.
struct Axis {
    uint32_t source;
    uint32_t scaled;

    // How far a scaled pixel's triangle reaches to either side.
    __device__ long long support() const {
        return 2LL * (source > scaled ? source : scaled);
    }

    // No scaled pixel is computed from more source pixels than this.
    __device__ int taps() const {
        return source > scaled ? static_cast<int>(2 * ((source - 1) / scaled + 1) + 1) : 3;
    }
};

// The source pixels first .. last - 1 from which one scaled pixel is computed.
struct Window {
    long long centre;
    long long sum;
    int first;
    int last;
};

// The weight of a source pixel before it is normalised.
__device__ __forceinline__ long long weight(const Axis& axis, long long centre, int pixel) {
    const long long offset = (2LL * pixel + 1) * axis.scaled - centre;
    const long long height = axis.support() - (offset < 0 ? -offset : offset);
    return height > 0 ? height : 0;
}

// Empty for a pixel outside the scaled image.
__device__ __forceinline__ Window make_window(const Axis& axis, long long pixel) {
    if (pixel < 0 || pixel >= axis.scaled) return {0, 1, 0, 0};
    Window window;
    window.centre = (2 * pixel + 1) * axis.source;
    const long long from = window.centre - axis.support() + axis.scaled;
    const long long to = (window.centre + axis.support() + axis.scaled) / (2LL * axis.scaled);
    window.first = from <= 0 ? 0 : static_cast<int>(from / (2LL * axis.scaled));
    window.last = static_cast<int>(to < axis.source ? to : axis.source);
    window.sum = 0;
    for (int i = window.first; i < window.last; i++) window.sum += weight(axis, window.centre, i);
    return window;
}

// The share of a source pixel in fixed point, rounded to nearest, halves up.
__device__ __forceinline__ int coefficient(const Axis& axis, const Window& window, int pixel) {
    const unsigned long long share = static_cast<unsigned long long>(weight(axis, window.centre, pixel));
    const unsigned long long sum = static_cast<unsigned long long>(window.sum);
    return static_cast<int>(((share << (kPrecisionBits + 1)) + sum) / (2 * sum));
}

__device__ __forceinline__ uint32_t round_to_byte(int sum) {
    return static_cast<uint32_t>(min(sum >> kPrecisionBits, 255));
}

__device__ __forceinline__ uint32_t pack_pixel(const int (&sums)[kChannels]) {
    return round_to_byte(sums[0]) | round_to_byte(sums[1]) << 8 | round_to_byte(sums[2]) << 16;
}

template <class T>
__device__ __forceinline__ T from_byte(const float* table, int channel, uint32_t byte) {
    return from_float<T>(table[channel * kBytes + static_cast<int>(byte)]);
}

template <>
__device__ __forceinline__ uint8_t from_byte<uint8_t>(const float*, int, uint32_t byte) {
    return static_cast<uint8_t>(byte);
}

// The mean colour, which is zero after normalisation, but for bytes.
template <class T>
__device__ __forceinline__ T mean_colour(int) {
    return from_float<T>(0.0f);
}

template <>
__device__ __forceinline__ uint8_t mean_colour<uint8_t>(int channel) {
    return channel == 0 ? 124 : channel == 1 ? 116 : 104;
}

__device__ __forceinline__ bool is_erased(const uint32_t (&erased)[4], int y, int x) {
    return static_cast<uint32_t>(y) - erased[0] < erased[2] && static_cast<uint32_t>(x) - erased[1] < erased[3];
}

template <class T, bool Edited>
__device__ __forceinline__ void augment(const AugmentArguments& arguments) {
    __shared__ Window columns[kTile];
    __shared__ Window rows[kTile];
    __shared__ int column_coefficients[kTaps][kTile];
    __shared__ int row_coefficients[kTile][kTile];  // of an output row and a source row of the chunk
    __shared__ uint32_t pixels[kTile][kTile];       // a source row of the chunk, scaled; in the end an output row
    __shared__ float lookup_table[kChannels * kBytes];

    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int warp = static_cast<int>(threadIdx.x) / kWarp;
    const int size = arguments.image_size;
    const int tiles = arguments.tiles;
    const int image = static_cast<int>(blockIdx.x) / (tiles * tiles);
    const int tile = static_cast<int>(blockIdx.x) % (tiles * tiles);
    const int top = tile / tiles * kTile;
    const int left = tile % tiles * kTile;
    const int tile_rows = min(kTile, size - top);
    const int tile_columns = min(kTile, size - left);
    const ImageView view = arguments.views[image];
    // What follows speaks of rows that are scaled and then added up. If columns are to be scaled first, they are the rows.
    const bool exchanged = view.flags & kColumnsFirst;
    const Axis across = exchanged ? Axis{view.height, view.scaled_height} : Axis{view.width, view.scaled_width};
    const Axis down = exchanged ? Axis{view.width, view.scaled_width} : Axis{view.height, view.scaled_height};
    const size_t column_pixels = exchanged ? view.row_pixels : 1;
    const size_t row_pixels = exchanged ? 1 : view.row_pixels;
    const bool flip_columns = view.flags & (exchanged ? kFlipRows : kFlipColumns);
    const bool flip_rows = view.flags & (exchanged ? kFlipColumns : kFlipRows);
    const long long window_left = exchanged ? view.window_top : view.window_left;
    const long long window_top = exchanged ? view.window_left : view.window_top;
    const long long scaled_top = window_top + top;

    if (warp == 0) {
        const int column = flip_columns ? size - 1 - left - lane : left + lane;
        columns[lane] = make_window(across, lane < tile_columns ? window_left + column : -1);
    } else if (warp == 1) {
        rows[lane] = make_window(down, lane < tile_rows ? scaled_top + lane : -1);
    }
    if constexpr (sizeof(T) > 1) {
        for (int i = static_cast<int>(threadIdx.x); i < kChannels * kBytes; i += kThreads) {
            lookup_table[i] = arguments.lookup_table[i];
        }
    }
    __syncthreads();

    // The source rows that the tile needs; none if it is all black.
    const long long black = scaled_top < 0 ? -scaled_top : 0;
    const long long below = static_cast<long long>(down.scaled) - scaled_top;
    const int first_row = static_cast<int>(black < tile_rows ? black : tile_rows);
    const int last_row = static_cast<int>(below < tile_rows ? below : tile_rows);
    const int first = first_row < last_row ? rows[first_row].first : 0;
    const int last = first_row < last_row ? rows[last_row - 1].last : 0;

    const Window& column = columns[lane];
    const int column_taps = column.last - column.first;
    const int taps = across.taps();
    const size_t row_step = row_pixels * (kWarps * kChannels);
    const size_t column_step = column_pixels * kChannels;
    int totals[kRowsPerThread][kChannels];
#pragma unroll
    for (int i = 0; i < kRowsPerThread; i++) totals[i][0] = totals[i][1] = totals[i][2] = kHalf;

    for (int chunk = first; chunk < last; chunk += kTile) {
        const int chunk_rows = min(kTile, last - chunk);
        int sums[kRowsPerThread][kChannels];
#pragma unroll
        for (int i = 0; i < kRowsPerThread; i++) sums[i][0] = sums[i][1] = sums[i][2] = kHalf;
        const size_t source_row = static_cast<size_t>(chunk + warp) * row_pixels;
        const uint8_t* source = view.pixels + (source_row + static_cast<size_t>(column.first) * column_pixels) * kChannels;
        for (int first_tap = 0; first_tap < taps; first_tap += kTaps) {
            if (chunk == first || taps > kTaps) {
                __syncthreads();
                for (int tap = warp; tap < min(kTaps, column_taps - first_tap); tap += kWarps) {
                    column_coefficients[tap][lane] = coefficient(across, column, column.first + first_tap + tap);
                }
                __syncthreads();
            }
            const int count = min(kTaps, column_taps - first_tap);
#pragma unroll 1
            for (int tap = 0; tap < count; tap++) {
                const int factor = column_coefficients[tap][lane];
                const uint8_t* pixel = source;
                source += column_step;
#pragma unroll
                for (int i = 0; i < kRowsPerThread; i++) {
                    if (warp + i * kWarps < chunk_rows) {
#pragma unroll
                        for (int c = 0; c < kChannels; c++) sums[i][c] += factor * __ldg(pixel + c);
                    }
                    pixel += row_step;
                }
            }
        }
        __syncthreads();
#pragma unroll
        for (int i = 0; i < kRowsPerThread; i++) {
            const int row = warp + i * kWarps;
            if (row < chunk_rows) pixels[row][lane] = pack_pixel(sums[i]);
            const int taken_row = chunk + lane;
            if (taken_row >= rows[row].first && taken_row < rows[row].last) {
                row_coefficients[row][lane] = coefficient(down, rows[row], taken_row);
            }
        }
        __syncthreads();
#pragma unroll
        for (int i = 0; i < kRowsPerThread; i++) {
            const int row = warp + i * kWarps;
            const int from = max(rows[row].first, chunk) - chunk;
            const int to = min(rows[row].last, chunk + chunk_rows) - chunk;
#pragma unroll 1
            for (int k = from; k < to; k++) {
                const int factor = row_coefficients[row][k];
                const uint32_t pixel = pixels[k][lane];
#pragma unroll
                for (int c = 0; c < kChannels; c++) {
                    totals[i][c] += factor * static_cast<int>(pixel >> (8 * c) & 0xffu);
                }
            }
        }
    }

    // Through shared memory once more, so that neighbouring threads write neighbouring elements.
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kRowsPerThread; i++) pixels[warp + i * kWarps][lane] = pack_pixel(totals[i]);
    __syncthreads();
    T* output = static_cast<T*>(arguments.output) + static_cast<size_t>(image) * size * size * kChannels;
    if constexpr (Edited) {
        __shared__ EditState state;
        const ImageView& edited = arguments.views[image];
        const int colours = static_cast<int>(view.flags >> kColoursShift);
        if (view.flags & kAffine || colours > 0) {
            const size_t copy_bytes = static_cast<size_t>(size) * size * sizeof(uint32_t);
            uint8_t* workspace = arguments.workspace + image * (16 + ((2 * copy_bytes + 15) / 16 * 16));
            uint32_t* copy = reinterpret_cast<uint32_t*>(workspace + 16);
#pragma unroll
            for (int i = 0; i < kRowsPerThread; i++) {
                const int row = warp + i * kWarps;
                if (row >= tile_rows || lane >= tile_columns) continue;
                const int flipped_row = flip_rows ? size - 1 - top - row : top + row;
                const int y = exchanged ? left + lane : flipped_row;
                const int x = exchanged ? flipped_row : left + lane;
                copy[static_cast<size_t>(y) * size + x] = pixels[row][lane];
            }
            if (threadIdx.x < kMostColours) state.colours[threadIdx.x] = edited.colours[threadIdx.x];
            if (threadIdx.x < 4) state.erased[threadIdx.x] = edited.erased[threadIdx.x];
            if (threadIdx.x == 0) state.map = edited.map;
            unsigned* counter = reinterpret_cast<unsigned*>(workspace);
            if (!arrive_last(counter, static_cast<unsigned>(tiles * tiles))) return;
            finish(state, copy, size, colours, view.flags & kAffine,
                   [&](int x, int y, uint32_t pixel) {
                       const bool erased = is_erased(state.erased, y, x);
                       T* target = output + (static_cast<size_t>(y) * size + x) * kChannels;
                       for (int c = 0; c < kChannels; c++) {
                           target[c] = erased ? mean_colour<T>(c) : from_byte<T>(lookup_table, c, channel_of(pixel, c));
                       }
                   });
            return;
        }
    }
    const int output_rows = exchanged ? tile_columns : tile_rows;
    const int output_columns = exchanged ? tile_rows : tile_columns;
    for (int i = warp; i < output_rows; i += kWarps) {
        for (int k = lane; k < output_columns * kChannels; k += kWarp) {
            const int channel = k % kChannels;
            const int row = exchanged ? k / kChannels : i;
            const int column = exchanged ? i : k / kChannels;
            const uint32_t byte = pixels[row][column] >> (8 * channel) & 0xffu;
            const int flipped_row = flip_rows ? size - 1 - top - row : top + row;
            const int y = exchanged ? left + column : flipped_row;
            const int x = exchanged ? flipped_row : left + column;
            T& target = output[(static_cast<size_t>(y) * size + x) * kChannels + channel];
            if constexpr (Edited) {
                if (is_erased(arguments.views[image].erased, y, x)) {
                    target = mean_colour<T>(channel);
                    continue;
                }
            }
            target = from_byte<T>(lookup_table, channel, byte);
        }
    }
}

}  // namespace

// The batch in the type of float32 activations.
extern "C" __global__ void __launch_bounds__(kThreads, 4) augment_fp32(const AugmentArguments arguments) {
    augment<float, false>(arguments);
}

// The batch in the type of bf16 activations.
extern "C" __global__ void __launch_bounds__(kThreads, 4) augment_bf16(const AugmentArguments arguments) {
    augment<bf16, false>(arguments);
}

// Scaled images as bytes, from which a later launch makes the batch without scaling anything.
extern "C" __global__ void __launch_bounds__(kThreads, 4) augment_bytes(const AugmentArguments arguments) {
    augment<uint8_t, false>(arguments);
}

// The same for batches in which some image has edits.
extern "C" __global__ void __launch_bounds__(kThreads, 2) augment_edited_fp32(const AugmentArguments arguments) {
    augment<float, true>(arguments);
}

extern "C" __global__ void __launch_bounds__(kThreads, 2) augment_edited_bf16(const AugmentArguments arguments) {
    augment<bf16, true>(arguments);
}

extern "C" __global__ void __launch_bounds__(kThreads, 2) augment_edited_bytes(const AugmentArguments arguments) {
    augment<uint8_t, true>(arguments);
}
