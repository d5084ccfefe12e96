// The sizes of a convolution, as its kernels receive them. Mirrors `Conv2dShape` in Rust.
#pragma once

#include "statistics.cuh"

struct Conv2dGeometry {
    int batch;              // N
    int height;             // H
    int width;              // W
    int input_channels;     // C
    int output_height;      // OH
    int output_width;       // OW
    int output_channels;    // K
    int kernel_height;      // R
    int kernel_width;       // S
    int stride;
    int padding;
};
