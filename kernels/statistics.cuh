// What blocks leave for each other as rows of a table, brought together by the last block to arrive, always in the same
// order, so that no second launch is needed and no schedule changes a bit.
//
// A table has 1 + groups + blocks rows: the total, one row a group of kBlocksPerGroup blocks, one row a block. Each block
// writes its row. The last block of a group to arrive combines the group's rows, the last group to arrive combines the
// groups' rows, both in ascending order. Two levels, because one block that reads all 12544 rows of the stem alone would
// take longer than the convolution.
#pragma once

#include "common.cuh"

constexpr int kBlocksPerGroup = 64;
// Pixels of a row of statistics: those of one block of a convolution.
constexpr int kPixelsPerBlock = 128;

__device__ __forceinline__ int groups_of(int blocks) {
    return divide_up(blocks, kBlocksPerGroup);
}

// Where the row of a group lies in the table, and that of a block.
__device__ __forceinline__ int group_row(int group) {
    return 1 + group;
}

__device__ __forceinline__ int block_row(int block, int blocks) {
    return 1 + groups_of(blocks) + block;
}

// Calls `combine(first_row, count, result_row, is_group)` in the last block of a group, and then in the last block of
// all. Returns whether this is the last of all; the total can then be read by this block after a barrier, which has been
// passed. All threads of all blocks call it after their block's row is written. `counters` are groups + 1, zero before
// and after; `flag` is an int of shared memory.
template <class Combine>
__device__ __forceinline__ bool combine_rows(int block, int blocks, unsigned* counters, int* flag, Combine combine) {
    const int groups = groups_of(blocks);
    const int group = block / kBlocksPerGroup;
    const int members = min(kBlocksPerGroup, blocks - group * kBlocksPerGroup);
    if (!arrive_last(counters + 1 + group, members, flag)) return false;
    combine(block_row(group * kBlocksPerGroup, blocks), members, group_row(group), group);
    if (!arrive_last(counters, groups, flag)) return false;
    combine(group_row(0), groups, 0, -1);
    __syncthreads();
    return true;
}

// Sums of `width` columns: `rows` is [1 + groups + blocks][width].
__device__ __forceinline__ bool sum_rows(float* rows, int width, int block, int blocks, unsigned* counters, int* flag) {
    return combine_rows(block, blocks, counters, flag, [=](int first, int count, int result, int) {
        for (int column = threadIdx.x; column < width; column += blockDim.x) {
            float sum = 0;
#pragma unroll 8
            for (int row = 0; row < count; row++) sum += rows[static_cast<size_t>(first + row) * width + column];
            rows[static_cast<size_t>(result) * width + column] = sum;
        }
    });
}

// Statistics of the channels `first_channel` up to `first_channel + channel_count` over `pixels` pixels: `rows` is
// [1 + groups + blocks][2][channels], sums and squared deviations from the row's own mean. Block `b` has the pixels from
// kPixelsPerBlock * b on.
__device__ __forceinline__ bool combine_statistics(float* rows, int channels, int first_channel, int channel_count,
                                                   int pixels, int block, int blocks, unsigned* counters, int* flag) {
    const auto counted = [=](long long first, long long count) {
        const long long left = pixels - first;
        return static_cast<float>(left < count ? left : count);
    };
    return combine_rows(block, blocks, counters, flag, [=](int first, int count, int result, int group) {
        const long long pixels_per_row = group < 0 ? kPixelsPerBlock * kBlocksPerGroup : kPixelsPerBlock;
        const long long first_pixel = group < 0 ? 0 : static_cast<long long>(group) * kBlocksPerGroup * kPixelsPerBlock;
        for (int column = threadIdx.x; column < channel_count; column += blockDim.x) {
            Statistics total = {0, 0, 0};
#pragma unroll 4
            for (int row = 0; row < count; row++) {
                const float* source = rows + static_cast<size_t>(first + row) * 2 * channels + first_channel + column;
                total = combine(total, {counted(first_pixel + row * pixels_per_row, pixels_per_row), source[0],
                                        source[channels]});
            }
            float* target = rows + static_cast<size_t>(result) * 2 * channels + first_channel + column;
            target[0] = total.sum;
            target[channels] = total.deviations;
        }
    });
}
