// Shows what an sm_90 GPU does where the kernels to come rely on it: where bulk tensor copies (TMA) put their elements in
// shared memory, and which bytes wgmma reads for a descriptor. `retune probe` launches these kernels, writes what they dump
// to a file, and compares it with the model in src/device/cuda/probe/. Compiled for sm_90a only.
#include <stdint.h>

// Bytes that no copy has written.
constexpr uint32_t kUntouched = 0xeeeeeeeeu;
// Clock cycles after which a copy is given up, about half a second.
constexpr long long kPatience = 1ll << 30;

struct ProbeLoadArguments {
    // A tensor map of 128 bytes.
    const void* map;
    // The whole shared buffer after the copy.
    uint32_t* dump;
    // 1 if the copy has completed, 2 if it was given up.
    uint32_t* status;
    // Bytes of the shared buffer, and of the copy.
    uint32_t bytes;
    uint32_t copied;
    // Byte of the buffer at which the copy begins.
    uint32_t destination;
    // 2 or 4 dimensions in tiled mode, or 0 for im2col mode.
    uint32_t dimensions;
    // Coordinates, the innermost first.
    int32_t channel;
    int32_t column;
    int32_t row;
    int32_t image;
    // Offsets of im2col mode.
    uint32_t column_offset;
    uint32_t row_offset;
};

struct ProbeMultiplyArguments {
    // The content of shared memory.
    const uint32_t* content;
    // The accumulators: one row per thread.
    float* dump;
    // Descriptors of the first step for a buffer at address 0.
    uint64_t a;
    uint64_t b;
    // Steps of 32 bytes of K, and how far the descriptors advance in each, in units of 16 bytes.
    uint32_t steps;
    uint32_t a_advance;
    uint32_t b_advance;
    // Bytes of the content, a multiple of 4.
    uint32_t bytes;
};

extern __shared__ __align__(1024) uint32_t buffer[];

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// The model counts addresses from a multiple of 1024, at which the pattern of the swizzle begins.
__device__ __forceinline__ void require_aligned_buffer() {
    if (shared_address(buffer) % 1024 != 0) __trap();
}

// Makes what this thread has written to shared memory visible to copies and wgmma.
__device__ __forceinline__ void fence_for_async_proxy() {
    asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
}

__device__ __forceinline__ bool has_completed(uint32_t barrier) {
    uint32_t done;
    asm volatile(
        "{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], 0;\nselp.u32 %0, 1, 0, p;\n}\n"
        : "=r"(done)
        : "r"(barrier)
        : "memory");
    return done != 0;
}

extern "C" __global__ void __launch_bounds__(128) probe_load(const ProbeLoadArguments arguments) {
    __shared__ __align__(8) uint64_t barrier;
    require_aligned_buffer();
    for (uint32_t word = threadIdx.x; word < arguments.bytes / 4; word += blockDim.x) buffer[word] = kUntouched;
    const uint32_t arrival = shared_address(&barrier);
    if (threadIdx.x == 0) {
        asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;\n" ::"r"(arrival) : "memory");
    }
    fence_for_async_proxy();
    __syncthreads();
    if (threadIdx.x == 0) {
        // The map was written by a copy from the host, not through the proxy that reads it.
        asm volatile("fence.proxy.tensormap::generic.acquire.sys [%0], 128;\n" ::"l"(arguments.map) : "memory");
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(arrival), "r"(arguments.copied)
                     : "memory");
        const uint32_t target = shared_address(buffer) + arguments.destination;
        if (arguments.dimensions == 2) {
            asm volatile(
                "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];\n" ::"r"(
                    target),
                "l"(arguments.map), "r"(arguments.channel), "r"(arguments.column), "r"(arrival)
                : "memory");
        } else if (arguments.dimensions == 4) {
            asm volatile(
                "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, %5}], "
                "[%6];\n" ::"r"(target),
                "l"(arguments.map), "r"(arguments.channel), "r"(arguments.column), "r"(arguments.row), "r"(arguments.image),
                "r"(arrival)
                : "memory");
        } else {
            asm volatile(
                "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, %5}], "
                "[%6], {%7, %8};\n" ::"r"(target),
                "l"(arguments.map), "r"(arguments.channel), "r"(arguments.column), "r"(arguments.row), "r"(arguments.image),
                "r"(arrival), "h"(static_cast<uint16_t>(arguments.column_offset)),
                "h"(static_cast<uint16_t>(arguments.row_offset))
                : "memory");
        }
    }
    // A copy of another number of bytes than expected would never complete.
    const long long begun = clock64();
    bool done = false;
    while (!done && clock64() - begun < kPatience) done = has_completed(arrival);
    if (threadIdx.x == 0) *arguments.status = done ? 1 : 2;
    __syncthreads();
    for (uint32_t word = threadIdx.x; word < arguments.bytes / 4; word += blockDim.x) arguments.dump[word] = buffer[word];
}

// A step of 64 x 64 x 16 in bf16. An operand is transposed if its rows (A) or columns (B) are contiguous, not K.
template <int ATransposed, int BTransposed>
struct Bf16N64 {
    static constexpr int kAccumulators = 32;

    static __device__ __forceinline__ void multiply(float (&d)[kAccumulators], uint64_t a, uint64_t b, int accumulates) {
        asm volatile(
            "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
            "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
            "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
            "}, %32, %33, p, 1, 1, %35, %36;\n}\n"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
              "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),
              "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),
              "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
            : "l"(a), "l"(b), "r"(accumulates), "n"(ATransposed), "n"(BTransposed));
    }
};

// A step of 64 x 232 x 16 in bf16.
template <int ATransposed, int BTransposed>
struct Bf16N232 {
    static constexpr int kAccumulators = 116;

    static __device__ __forceinline__ void multiply(float (&d)[kAccumulators], uint64_t a, uint64_t b, int accumulates) {
        asm volatile(
            "{\n.reg .pred p;\nsetp.ne.b32 p, %118, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n232k16.f32.bf16.bf16 {"
            "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
            "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
            "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
            "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
            "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
            "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
            "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
            "%112, %113, %114, %115"
            "}, %116, %117, p, 1, 1, %119, %120;\n}\n"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
              "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),
              "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),
              "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]),
              "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]),
              "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]),
              "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]),
              "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63]),
              "+f"(d[64]), "+f"(d[65]), "+f"(d[66]), "+f"(d[67]), "+f"(d[68]), "+f"(d[69]), "+f"(d[70]), "+f"(d[71]),
              "+f"(d[72]), "+f"(d[73]), "+f"(d[74]), "+f"(d[75]), "+f"(d[76]), "+f"(d[77]), "+f"(d[78]), "+f"(d[79]),
              "+f"(d[80]), "+f"(d[81]), "+f"(d[82]), "+f"(d[83]), "+f"(d[84]), "+f"(d[85]), "+f"(d[86]), "+f"(d[87]),
              "+f"(d[88]), "+f"(d[89]), "+f"(d[90]), "+f"(d[91]), "+f"(d[92]), "+f"(d[93]), "+f"(d[94]), "+f"(d[95]),
              "+f"(d[96]), "+f"(d[97]), "+f"(d[98]), "+f"(d[99]), "+f"(d[100]), "+f"(d[101]), "+f"(d[102]), "+f"(d[103]),
              "+f"(d[104]), "+f"(d[105]), "+f"(d[106]), "+f"(d[107]), "+f"(d[108]), "+f"(d[109]), "+f"(d[110]), "+f"(d[111]),
              "+f"(d[112]), "+f"(d[113]), "+f"(d[114]), "+f"(d[115])
            : "l"(a), "l"(b), "r"(accumulates), "n"(ATransposed), "n"(BTransposed));
    }
};

// A step of 64 x 64 x 8 in tf32, whose operands are never transposed.
struct Tf32N64 {
    static constexpr int kAccumulators = 32;

    static __device__ __forceinline__ void multiply(float (&d)[kAccumulators], uint64_t a, uint64_t b, int accumulates) {
        asm volatile(
            "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n64k8.f32.tf32.tf32 {"
            "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
            "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
            "}, %32, %33, p, 1, 1;\n}\n"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
              "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),
              "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),
              "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
            : "l"(a), "l"(b), "r"(accumulates));
    }
};

// Multiplies what the descriptors name, for one warpgroup.
template <typename Product>
__device__ __forceinline__ void multiply(const ProbeMultiplyArguments& arguments) {
    require_aligned_buffer();
    for (uint32_t word = threadIdx.x; word < arguments.bytes / 4; word += blockDim.x) buffer[word] = arguments.content[word];
    fence_for_async_proxy();
    __syncthreads();
    const uint64_t base = shared_address(buffer) >> 4;
    float sums[Product::kAccumulators] = {};
    for (uint32_t step = 0; step < arguments.steps; step++) {
        const uint64_t a = arguments.a + base + step * arguments.a_advance;
        const uint64_t b = arguments.b + base + step * arguments.b_advance;
        asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
        Product::multiply(sums, a, b, step != 0);
        asm volatile("wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;\n" ::: "memory");
    }
    for (int i = 0; i < Product::kAccumulators; i++) arguments.dump[threadIdx.x * Product::kAccumulators + i] = sums[i];
}

// The two letters say which dimension of A and of B is contiguous: k, or m or n.
extern "C" __global__ void __launch_bounds__(128) probe_bf16_64_kk(const ProbeMultiplyArguments arguments) {
    multiply<Bf16N64<0, 0>>(arguments);
}

extern "C" __global__ void __launch_bounds__(128) probe_bf16_64_kn(const ProbeMultiplyArguments arguments) {
    multiply<Bf16N64<0, 1>>(arguments);
}

extern "C" __global__ void __launch_bounds__(128) probe_bf16_64_mk(const ProbeMultiplyArguments arguments) {
    multiply<Bf16N64<1, 0>>(arguments);
}

extern "C" __global__ void __launch_bounds__(128) probe_bf16_64_mn(const ProbeMultiplyArguments arguments) {
    multiply<Bf16N64<1, 1>>(arguments);
}

extern "C" __global__ void __launch_bounds__(128) probe_bf16_232_kk(const ProbeMultiplyArguments arguments) {
    multiply<Bf16N232<0, 0>>(arguments);
}

extern "C" __global__ void __launch_bounds__(128) probe_bf16_232_kn(const ProbeMultiplyArguments arguments) {
    multiply<Bf16N232<0, 1>>(arguments);
}

extern "C" __global__ void __launch_bounds__(128) probe_tf32_64_kk(const ProbeMultiplyArguments arguments) {
    multiply<Tf32N64>(arguments);
}
