// Combines the partial results of blocks in a table. The last block to arrive combines them, always in the same order,
// so no second launch is needed and the result does not depend on scheduling.
//
// A table has 1 + groups + blocks rows: the total, one row for each group of kBlocksPerGroup blocks, and one row for
// each block. Each block writes its row. The last block of a group to arrive combines the rows of the group, and the
// last group to arrive combines the rows of the groups, both in ascending order. There are two levels because one block
// would need longer to read the 12544 rows of the stem than the convolution takes.
#pragma once

#include "common.cuh"

constexpr int kBlocksPerGroup = 64;
// Pixels in a row of statistics: those of one block of a convolution.
constexpr int kPixelsPerBlock = 128;

__device__ __forceinline__ int groups_of(int blocks) {
    return divide_up(blocks, kBlocksPerGroup);
}

// The index of the row of a group, and of a block, in the table.
__device__ __forceinline__ int group_row(int group) {
    return 1 + group;
}

__device__ __forceinline__ int block_row(int block, int blocks) {
    return 1 + groups_of(blocks) + block;
}

// Calls `combine(first_row, count, result_row, is_group)` in the last block of each group, and then in the last block
// of all. Returns whether this is the last block of all; it has then passed a barrier and can read the total. All
// threads of all blocks call it after they have written their block's row. `counters` has groups + 1 elements, zero
// before and after.
template <class Combine>
__device__ __forceinline__ bool combine_rows(int block, int blocks, unsigned* counters, Combine combine) {
    const int groups = groups_of(blocks);
    const int group = block / kBlocksPerGroup;
    const int members = min(kBlocksPerGroup, blocks - group * kBlocksPerGroup);
    if (!arrive_last(counters + 1 + group, members)) return false;
    combine(block_row(group * kBlocksPerGroup, blocks), members, group_row(group), group);
    if (!arrive_last(counters, groups)) return false;
    combine(group_row(0), groups, 0, -1);
    __syncthreads();
    return true;
}

// Statistics of the channels from `first_channel` to `first_channel + channel_count` over `pixels` pixels. `rows` is
// [1 + groups + blocks][2][channels]: sums, and squared deviations from the mean of the row. Block `b` has the pixels
// starting at kPixelsPerBlock * b.
//
// It adds excesses: the sum of a row minus the sum that it would have with the mean of the first row. They are as small
// as the deviations, so no digits are lost even if the mean is a thousand times the deviation, as they would be in
// sums.
__device__ __forceinline__ bool combine_statistics(float* rows, int channels, int first_channel, int channel_count,
                                                   int pixels, int block, int blocks, unsigned* counters) {
    return combine_rows(block, blocks, counters, [=](int first, int count, int result, int group) {
        constexpr int pixels_per_group = kPixelsPerBlock * kBlocksPerGroup;
        const int pixels_per_row = group < 0 ? pixels_per_group : kPixelsPerBlock;
        const int total = group < 0 ? pixels : min(pixels_per_group, pixels - group * pixels_per_group);
        const int full_rows = count - 1;
        const float full = static_cast<float>(pixels_per_row);
        const float last = static_cast<float>(total - full_rows * pixels_per_row);
        const size_t row_length = 2 * static_cast<size_t>(channels);
        for (int column = threadIdx.x; column < channel_count; column += blockDim.x) {
            const float* sums = rows + first * row_length + first_channel + column;
            const float* deviations = sums + channels;
            const float centre = sums[0] / (count == 1 ? last : full);
            const float last_excess = fmaf(-last, centre, sums[full_rows * row_length]);
            float excess = 0;
#pragma unroll 8
            for (int row = 0; row < full_rows; row++) excess += fmaf(-full, centre, sums[row * row_length]);
            excess += last_excess;
            const float shift = excess / static_cast<float>(total);
            float squares = 0;
#pragma unroll 8
            for (int row = 0; row < full_rows; row++) {
                // The number of pixels in a full row is a power of two, so this multiplication equals the division.
                const float difference = fmaf(-full, centre, sums[row * row_length]) * (1.0f / full) - shift;
                squares += fmaf(full * difference, difference, deviations[row * row_length]);
            }
            const float difference = last_excess / last - shift;
            squares += fmaf(last * difference, difference, deviations[full_rows * row_length]);
            float* target = rows + result * row_length + first_channel + column;
            target[0] = fmaf(static_cast<float>(total), centre, excess);
            target[channels] = squares;
        }
    });
}
