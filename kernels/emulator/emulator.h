// The emulator's interface for kernels: CUDA's keywords, built-in variables, types and intrinsics, and a substitute for
// every function of ptx.cuh. With this header the host's C++ compiler compiles the .cu files unchanged.
//
// A CUDA thread is a fiber, a block's fibers run on one host thread, and a fiber that waits for other threads of the block
// switches fibers (machine.cpp). Functions that need the machine are declared here and defined there, because kernels
// may be compiled with instrumented memory accesses (checks.h) and the machine is not.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(alignment) __attribute__((aligned(alignment)))
// At block scope a thread-local variable is static: one for each host thread, and so one for each block that runs.
#define __shared__ thread_local

#define threadIdx (emulator::thread_index())
#define blockIdx (emulator::block_index())
#define blockDim (emulator::block_extent())
#define gridDim (emulator::grid_extent())
#define warpSize 32

#define EMULATOR_VECTOR(name, type)                                                                                    \
    struct __align__(2 * sizeof(type)) name##2 {                                                                       \
        type x, y;                                                                                                     \
    };                                                                                                                 \
    struct name##3 {                                                                                                   \
        type x, y, z;                                                                                                  \
    };                                                                                                                 \
    struct __align__(sizeof(type) < 8 ? 4 * sizeof(type) : 16) name##4 {                                               \
        type x, y, z, w;                                                                                               \
    };                                                                                                                 \
    inline name##2 make_##name##2(type x, type y) {                                                                    \
        return {x, y};                                                                                                 \
    }                                                                                                                  \
    inline name##3 make_##name##3(type x, type y, type z) {                                                            \
        return {x, y, z};                                                                                              \
    }                                                                                                                  \
    inline name##4 make_##name##4(type x, type y, type z, type w) {                                                    \
        return {x, y, z, w};                                                                                           \
    }
EMULATOR_VECTOR(char, signed char)
EMULATOR_VECTOR(uchar, unsigned char)
EMULATOR_VECTOR(short, short)
EMULATOR_VECTOR(ushort, unsigned short)
EMULATOR_VECTOR(int, int)
EMULATOR_VECTOR(uint, unsigned)
EMULATOR_VECTOR(longlong, long long)
EMULATOR_VECTOR(ulonglong, unsigned long long)
EMULATOR_VECTOR(float, float)
EMULATOR_VECTOR(double, double)
#undef EMULATOR_VECTOR

using dim3 = uint3;

namespace emulator {

// A location in a kernel's source. Not the return address: the compiler may duplicate a call.
struct Site {
    const char* file;
    int line;

    // As a default argument: the location of the call.
    static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
        return {file, line};
    }

    bool operator==(const Site& other) const {
        return line == other.line && (file == other.file || std::strcmp(file, other.file) == 0);
    }
};

// Constant during the life of a thread, so the compiler may call them once.
__attribute__((const)) uint3 thread_index();
__attribute__((const)) uint3 block_index();
__attribute__((const)) uint3 block_extent();
__attribute__((const)) uint3 grid_extent();

// Ends the launch with an error that names kernel, block, thread and `cause`.
[[noreturn]] void fault(const char* cause, ...) __attribute__((format(printf, 1, 2)));

// Waits for all threads of the block. Returns the number of threads for which `predicate` held.
int barrier(const char* name, bool predicate, Site site);

// The collectives of a warp. `name` identifies the intrinsic; lanes that wait for each other must call the same one.
void synchronize_warp(uint32_t mask, Site site);
uint64_t shuffle(const char* name, uint32_t mask, uint64_t value, int source_lane, Site site);
uint32_t ballot(const char* name, uint32_t mask, bool predicate, Site site);
uint64_t reduce(const char* name, uint32_t mask, uint64_t value, uint64_t (*operation)(uint64_t, uint64_t), Site site);
int lane();

void fence();
void read_constant(const void* address, size_t bytes);
uint32_t atomic(uint32_t* address, uint32_t operand, uint32_t (*operation)(uint32_t old, uint32_t operand),
                uint32_t compared, Site site);

void copy_async(void* shared, const void* global, int bytes, bool valid, Site site);
void copy_async_commit();
void copy_async_wait(int pending);

void load_matrix(uint32_t* registers, const void* row, bool transposed, Site site);
void multiply_add_bf16(float* d, const uint32_t* a, uint32_t b0, uint32_t b1, Site site);
void multiply_add_tf32(float* d, const uint32_t* a, uint32_t b0, uint32_t b1, Site site);
uint32_t shared_address(const void* pointer);

template <class To, class From>
inline To bits_as(From from) {
    static_assert(sizeof(To) == sizeof(From), "the same bits");
    return __builtin_bit_cast(To, from);
}

template <class T>
inline uint64_t widen(T value) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "warp collectives exchange 4 or 8 bytes");
    if constexpr (sizeof(T) == 4) return bits_as<uint32_t>(value);
    else return bits_as<uint64_t>(value);
}

template <class T>
inline T narrow(uint64_t bits) {
    if constexpr (sizeof(T) == 4) return bits_as<T>(static_cast<uint32_t>(bits));
    else return bits_as<T>(bits);
}

// One kernel, as it appears in the build script's table.
struct Kernel {
    const char* name;
    void (*call)(const void* arguments);
    size_t argument_bytes;
    // The first operand of __launch_bounds__, or 1024.
    unsigned most_threads;
    // The namespace of its translation unit.
    const char* unit;
};

template <auto function>
struct Trampoline;

template <class Arguments, void (*function)(Arguments)>
struct Trampoline<function> {
    static_assert(std::is_trivially_copyable_v<Arguments>, "a kernel takes one plain struct by value");
    __attribute__((no_sanitize("thread"))) static void call(const void* arguments) {
        function(*static_cast<const Arguments*>(arguments));
    }
    static constexpr Kernel describe(const char* name, unsigned most_threads, const char* unit) {
        return {name, call, sizeof(Arguments), most_threads, unit};
    }
};

}  // namespace emulator

// Synchronisation.

inline void __syncthreads(emulator::Site site = emulator::Site::here()) {
    emulator::barrier("__syncthreads", false, site);
}

inline int __syncthreads_count(int predicate, emulator::Site site = emulator::Site::here()) {
    return emulator::barrier("__syncthreads_count", predicate != 0, site);
}

inline int __syncthreads_or(int predicate, emulator::Site site = emulator::Site::here()) {
    return emulator::barrier("__syncthreads_or", predicate != 0, site) > 0;
}

inline int __syncthreads_and(int predicate, emulator::Site site = emulator::Site::here()) {
    return emulator::barrier("__syncthreads_and", predicate == 0, site) == 0;
}

inline void __syncwarp(uint32_t mask = 0xffffffffu, emulator::Site site = emulator::Site::here()) {
    emulator::synchronize_warp(mask, site);
}

inline void __threadfence() {
    emulator::fence();
}

// Barriers order the threads of a block; between barriers, the checks rely on no other order.
inline void __threadfence_block() {}

[[noreturn]] inline void __trap() {
    emulator::fault("__trap");
}

// Warp collectives. `width` divides the warp into segments of that many lanes.

template <class T>
inline T __shfl_sync(uint32_t mask, T value, int source, int width = 32, emulator::Site site = emulator::Site::here()) {
    const int first = emulator::lane() & ~(width - 1);
    return emulator::narrow<T>(
        emulator::shuffle("__shfl_sync", mask, emulator::widen(value), first + (source & (width - 1)), site));
}

template <class T>
inline T __shfl_xor_sync(uint32_t mask, T value, int lanes, int width = 32,
                         emulator::Site site = emulator::Site::here()) {
    const int lane = emulator::lane(), source = lane ^ lanes;
    const bool inside = source < (lane & ~(width - 1)) + width;
    return emulator::narrow<T>(
        emulator::shuffle("__shfl_xor_sync", mask, emulator::widen(value), inside ? source : lane, site));
}

template <class T>
inline T __shfl_down_sync(uint32_t mask, T value, unsigned lanes, int width = 32,
                          emulator::Site site = emulator::Site::here()) {
    const int lane = emulator::lane(), source = lane + static_cast<int>(lanes);
    const bool inside = source < (lane & ~(width - 1)) + width;
    return emulator::narrow<T>(
        emulator::shuffle("__shfl_down_sync", mask, emulator::widen(value), inside ? source : lane, site));
}

template <class T>
inline T __shfl_up_sync(uint32_t mask, T value, unsigned lanes, int width = 32,
                        emulator::Site site = emulator::Site::here()) {
    const int lane = emulator::lane(), source = lane - static_cast<int>(lanes);
    const bool inside = source >= (lane & ~(width - 1));
    return emulator::narrow<T>(
        emulator::shuffle("__shfl_up_sync", mask, emulator::widen(value), inside ? source : lane, site));
}

inline unsigned __ballot_sync(uint32_t mask, int predicate, emulator::Site site = emulator::Site::here()) {
    return emulator::ballot("__ballot_sync", mask, predicate != 0, site);
}

inline int __any_sync(uint32_t mask, int predicate, emulator::Site site = emulator::Site::here()) {
    return emulator::ballot("__any_sync", mask, predicate != 0, site) != 0;
}

inline int __all_sync(uint32_t mask, int predicate, emulator::Site site = emulator::Site::here()) {
    return emulator::ballot("__all_sync", mask, predicate == 0, site) == 0;
}

#define EMULATOR_REDUCE(name, type, expression)                                                                        \
    inline type name(uint32_t mask, type value, emulator::Site site = emulator::Site::here()) {                        \
        const auto operation = [](uint64_t left, uint64_t right) -> uint64_t {                                         \
            const type a = static_cast<type>(left), b = static_cast<type>(right);                                      \
            return static_cast<uint64_t>(expression);                                                                  \
        };                                                                                                             \
        return static_cast<type>(emulator::reduce(#name, mask, static_cast<uint64_t>(value), operation, site));        \
    }
EMULATOR_REDUCE(__reduce_add_sync, unsigned, a + b)
EMULATOR_REDUCE(__reduce_min_sync, unsigned, a < b ? a : b)
EMULATOR_REDUCE(__reduce_max_sync, unsigned, a > b ? a : b)
EMULATOR_REDUCE(__reduce_and_sync, unsigned, a & b)
EMULATOR_REDUCE(__reduce_or_sync, unsigned, a | b)
#undef EMULATOR_REDUCE

// Atomics on integers; none on floats, whose sums would depend on the schedule.

#define EMULATOR_ATOMIC(name, type, expression)                                                                        \
    inline type name(type* address, type operand, emulator::Site site = emulator::Site::here()) {                      \
        const auto operation = [](uint32_t old_bits, uint32_t operand_bits) -> uint32_t {                              \
            [[maybe_unused]] const type old = static_cast<type>(old_bits);                                             \
            const type operand = static_cast<type>(operand_bits);                                                      \
            return static_cast<uint32_t>(expression);                                                                  \
        };                                                                                                             \
        return static_cast<type>(emulator::atomic(reinterpret_cast<uint32_t*>(address),                                \
                                                  static_cast<uint32_t>(operand), operation, 0, site));                \
    }
#define EMULATOR_ATOMICS(type)                                                                                         \
    EMULATOR_ATOMIC(atomicAdd, type, static_cast<uint32_t>(old) + static_cast<uint32_t>(operand))                      \
    EMULATOR_ATOMIC(atomicSub, type, static_cast<uint32_t>(old) - static_cast<uint32_t>(operand))                      \
    EMULATOR_ATOMIC(atomicMin, type, old < operand ? old : operand)                                                    \
    EMULATOR_ATOMIC(atomicMax, type, old > operand ? old : operand)                                                    \
    EMULATOR_ATOMIC(atomicAnd, type, old & operand)                                                                    \
    EMULATOR_ATOMIC(atomicOr, type, old | operand)                                                                     \
    EMULATOR_ATOMIC(atomicXor, type, old ^ operand)                                                                    \
    EMULATOR_ATOMIC(atomicExch, type, operand)                                                                         \
    inline type atomicCAS(type* address, type compared, type operand, emulator::Site site = emulator::Site::here()) {  \
        return static_cast<type>(emulator::atomic(reinterpret_cast<uint32_t*>(address),                                \
                                                  static_cast<uint32_t>(operand), nullptr,                             \
                                                  static_cast<uint32_t>(compared), site));                             \
    }
EMULATOR_ATOMICS(int)
EMULATOR_ATOMICS(unsigned)
#undef EMULATOR_ATOMICS
#undef EMULATOR_ATOMIC

inline unsigned atomicInc(unsigned* address, unsigned limit, emulator::Site site = emulator::Site::here()) {
    const auto operation = [](uint32_t old, uint32_t operand) -> uint32_t { return old >= operand ? 0 : old + 1; };
    return emulator::atomic(address, limit, operation, 0, site);
}

// Arithmetic and bits.

template <class T>
inline T __ldg(const T* address) {
    emulator::read_constant(address, sizeof(T));
    return *address;
}

template <class T>
inline T __ldcg(const T* address) {
    return *address;
}

template <class T>
inline T __ldcs(const T* address) {
    return *address;
}

template <class T>
inline void __stcg(T* address, T value) {
    *address = value;
}

template <class T>
inline void __stcs(T* address, T value) {
    *address = value;
}

#define EMULATOR_MIN_MAX(type)                                                                                         \
    inline constexpr type min(type a, type b) {                                                                        \
        return a < b ? a : b;                                                                                          \
    }                                                                                                                  \
    inline constexpr type max(type a, type b) {                                                                        \
        return a > b ? a : b;                                                                                          \
    }
EMULATOR_MIN_MAX(int)
EMULATOR_MIN_MAX(unsigned)
EMULATOR_MIN_MAX(long)
EMULATOR_MIN_MAX(unsigned long)
EMULATOR_MIN_MAX(long long)
EMULATOR_MIN_MAX(unsigned long long)
#undef EMULATOR_MIN_MAX

// Like IEEE 754's minNum and maxNum, as in the hardware: a NaN loses.
inline float min(float a, float b) {
    return std::fmin(a, b);
}

inline float max(float a, float b) {
    return std::fmax(a, b);
}

inline float rsqrtf(float value) {
    return 1.0f / std::sqrt(value);
}

inline float __fmaf_rn(float a, float b, float c) {
    return std::fmaf(a, b, c);
}

inline float __fadd_rn(float a, float b) {
    return a + b;
}

inline float __fsub_rn(float a, float b) {
    return a - b;
}

inline float __fmul_rn(float a, float b) {
    return a * b;
}

inline float __fdiv_rn(float a, float b) {
    return a / b;
}

inline double __dadd_rn(double a, double b) {
    return a + b;
}

inline double __dsub_rn(double a, double b) {
    return a - b;
}

inline double __dmul_rn(double a, double b) {
    return a * b;
}

inline float __fsqrt_rn(float value) {
    return std::sqrt(value);
}

inline float __frcp_rn(float value) {
    return 1.0f / value;
}

inline float __frsqrt_rn(float value) {
    return 1.0f / std::sqrt(value);
}

inline float __fdividef(float a, float b) {
    return a / b;
}

inline float __expf(float value) {
    return std::exp(value);
}

inline float __logf(float value) {
    return std::log(value);
}

inline float __saturatef(float value) {
    return value > 0.0f ? (value < 1.0f ? value : 1.0f) : 0.0f;
}

inline float __uint_as_float(unsigned bits) {
    return emulator::bits_as<float>(bits);
}

inline unsigned __float_as_uint(float value) {
    return emulator::bits_as<unsigned>(value);
}

inline float __int_as_float(int bits) {
    return emulator::bits_as<float>(bits);
}

inline int __float_as_int(float value) {
    return emulator::bits_as<int>(value);
}

// Conversions saturate, and a NaN becomes zero.
inline int emulator_float_to_int(float rounded) {
    if (rounded != rounded) return 0;
    if (rounded >= 2147483648.0f) return INT32_MAX;
    return rounded < -2147483648.0f ? INT32_MIN : static_cast<int>(rounded);
}

inline int __float2int_rn(float value) {
    return emulator_float_to_int(std::nearbyint(value));
}

inline int __float2int_rz(float value) {
    return emulator_float_to_int(std::trunc(value));
}

inline int __float2int_rd(float value) {
    return emulator_float_to_int(std::floor(value));
}

inline int __float2int_ru(float value) {
    return emulator_float_to_int(std::ceil(value));
}

inline float __int2float_rn(int value) {
    return static_cast<float>(value);
}

inline float __uint2float_rn(unsigned value) {
    return static_cast<float>(value);
}

inline unsigned __umulhi(unsigned a, unsigned b) {
    return static_cast<unsigned>((static_cast<uint64_t>(a) * b) >> 32);
}

inline int __mulhi(int a, int b) {
    return static_cast<int>((static_cast<int64_t>(a) * b) >> 32);
}

inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return static_cast<unsigned long long>((static_cast<unsigned __int128>(a) * b) >> 64);
}

inline int __popc(unsigned value) {
    return __builtin_popcount(value);
}

inline int __clz(int value) {
    return value == 0 ? 32 : __builtin_clz(static_cast<unsigned>(value));
}

inline int __ffs(int value) {
    return __builtin_ffs(value);
}

inline unsigned __brev(unsigned value) {
    unsigned reversed = 0;
    for (int bit = 0; bit < 32; bit++) reversed |= ((value >> bit) & 1u) << (31 - bit);
    return reversed;
}

inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
    const uint64_t bytes = static_cast<uint64_t>(y) << 32 | x;
    unsigned permuted = 0;
    for (int i = 0; i < 4; i++) {
        const unsigned select = selector >> (4 * i) & 0xf;
        const uint8_t byte = static_cast<uint8_t>(bytes >> (8 * (select & 7)));
        permuted |= static_cast<unsigned>(select & 8 ? (byte & 0x80 ? 0xff : 0) : byte) << (8 * i);
    }
    return permuted;
}

// Substitutes for ptx.cuh, which describes each of them.

inline uint32_t pack_bf16(float low, float high) {
    const auto round = [](float value) -> uint32_t {
        const uint32_t bits = __float_as_uint(value);
        return value != value ? 0x7fffu : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    };
    return round(low) | round(high) << 16;
}

inline uint32_t shared_address(const void* pointer) {
    return emulator::shared_address(pointer);
}

inline void copy_async_16(void* shared, const void* global, bool valid, emulator::Site site = emulator::Site::here()) {
    emulator::copy_async(shared, global, 16, valid, site);
}

inline void copy_async_16_cached(void* shared, const void* global, bool valid,
                                 emulator::Site site = emulator::Site::here()) {
    emulator::copy_async(shared, global, 16, valid, site);
}

inline void copy_async_4(void* shared, const void* global, bool valid, emulator::Site site = emulator::Site::here()) {
    emulator::copy_async(shared, global, 4, valid, site);
}

inline void copy_async_commit() {
    emulator::copy_async_commit();
}

inline unsigned count_with_release(unsigned* counter, emulator::Site site = emulator::Site::here()) {
    emulator::fence();
    return atomicAdd(counter, 1u, site);
}

inline void acquire_fence() {
    emulator::fence();
}

template <int Pending>
inline void copy_async_wait() {
    emulator::copy_async_wait(Pending);
}

inline void load_matrix_x4(uint32_t (&registers)[4], const void* row, emulator::Site site = emulator::Site::here()) {
    emulator::load_matrix(registers, row, false, site);
}

inline void load_matrix_x4_transposed(uint32_t (&registers)[4], const void* row,
                                      emulator::Site site = emulator::Site::here()) {
    emulator::load_matrix(registers, row, true, site);
}

inline void multiply_add_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                              emulator::Site site = emulator::Site::here()) {
    emulator::multiply_add_bf16(d, a, b0, b1, site);
}

inline void multiply_add_tf32(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                              emulator::Site site = emulator::Site::here()) {
    emulator::multiply_add_tf32(d, a, b0, b1, site);
}

inline uint32_t round_to_tf32(float value) {
    return value != value ? 0x7fffffffu : (__float_as_uint(value) + 0x1000u) & 0xffffe000u;
}
