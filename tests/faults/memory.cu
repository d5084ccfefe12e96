// Accesses to memory that does not exist, belongs to another thread, is misaligned, or has not been written.
#include "faults.cuh"

extern "C" __global__ void __launch_bounds__(kThreads) increment(const FaultArguments arguments) {
    const int i = global_index();
    if (i < arguments.count) arguments.output[i] = arguments.input[i] + 1.0f;
}

extern "C" __global__ void __launch_bounds__(kThreads) read_past_end(const FaultArguments arguments) {
    const int i = global_index();
    arguments.output[i] = arguments.input[i + arguments.amount];
}

extern "C" __global__ void __launch_bounds__(kThreads) read_before_start(const FaultArguments arguments) {
    const int i = global_index();
    arguments.output[i] = arguments.input[i - arguments.amount];
}

extern "C" __global__ void __launch_bounds__(kThreads) write_past_end(const FaultArguments arguments) {
    const int i = global_index();
    arguments.output[i + arguments.amount] = arguments.input[i];
}

extern "C" __global__ void __launch_bounds__(kThreads) write_before_start(const FaultArguments arguments) {
    const int i = global_index();
    arguments.output[i - arguments.amount] = arguments.input[i];
}

// Before all allocations.
extern "C" __global__ void __launch_bounds__(kThreads) write_far_away(const FaultArguments arguments) {
    const int i = global_index();
    arguments.output[i - (static_cast<long long>(arguments.amount) << 36)] = arguments.input[i];
}

// Four elements per thread, in the first quarter of the threads.
extern "C" __global__ void __launch_bounds__(kThreads) copy_vectors(const FaultArguments arguments) {
    const int i = 4 * global_index();
    if (i >= arguments.count) return;
    float values[4];
    load_floats(values, arguments.input + i);
    store_floats(arguments.output + i, values);
}

extern "C" __global__ void __launch_bounds__(kThreads) copy_vectors_misaligned(const FaultArguments arguments) {
    const int i = 4 * global_index();
    if (i + 4 >= arguments.count) return;
    float values[4];
    load_floats(values, arguments.input + i + arguments.amount);
    store_floats(arguments.output + i, values);
}

// Each thread keeps its own element in a static array, which has one extra element.
extern "C" __global__ void __launch_bounds__(kThreads) static_shared(const FaultArguments arguments) {
    __shared__ float kept[kThreads + 1];
    kept[threadIdx.x + arguments.amount] = arguments.input[global_index()];
    arguments.output[global_index()] = kept[threadIdx.x + arguments.amount];
}

extern "C" __global__ void __launch_bounds__(kThreads) static_shared_past_end(const FaultArguments arguments) {
    __shared__ float kept[kThreads];
    kept[threadIdx.x + arguments.amount] = arguments.input[global_index()];
    arguments.output[global_index()] = kept[threadIdx.x + arguments.amount];
}

__device__ __noinline__ void keep(float* kept, int i, float value) {
    kept[i] = value;
}

// The access does not know the size of the array.
extern "C" __global__ void __launch_bounds__(kThreads) static_shared_past_end_by_pointer(const FaultArguments arguments) {
    __shared__ float only_by_pointer[kThreads];
    keep(only_by_pointer, static_cast<int>(threadIdx.x) + arguments.amount, arguments.input[global_index()]);
    arguments.output[global_index()] = 0.0f;
}

// 4 * kThreads bytes of dynamic shared memory.
extern "C" __global__ void __launch_bounds__(kThreads) dynamic_shared(const FaultArguments arguments) {
    extern __shared__ __align__(128) unsigned char shared_memory[];
    float* const kept = reinterpret_cast<float*>(shared_memory);
    kept[threadIdx.x] = arguments.input[global_index()];
    arguments.output[global_index()] = kept[threadIdx.x];
}

extern "C" __global__ void __launch_bounds__(kThreads) dynamic_shared_past_end(const FaultArguments arguments) {
    extern __shared__ __align__(128) unsigned char shared_memory[];
    float* const kept = reinterpret_cast<float*>(shared_memory) + arguments.amount;
    kept[threadIdx.x] = arguments.input[global_index()];
    arguments.output[global_index()] = kept[threadIdx.x];
}

extern "C" __global__ void __launch_bounds__(kThreads) dynamic_shared_before_start(const FaultArguments arguments) {
    extern __shared__ __align__(128) unsigned char shared_memory[];
    float* const kept = reinterpret_cast<float*>(shared_memory) - arguments.amount;
    kept[threadIdx.x] = arguments.input[global_index()];
    arguments.output[global_index()] = kept[threadIdx.x];
}

extern "C" __global__ void __launch_bounds__(kThreads) local_array(const FaultArguments arguments) {
    float values[4] = {1.0f, 2.0f, 3.0f, 4.0f};
    values[2 * arguments.amount] = arguments.input[global_index()];
    arguments.output[global_index()] = values[3 * arguments.amount] + values[2];
}

extern "C" __global__ void __launch_bounds__(kThreads) local_array_past_end(const FaultArguments arguments) {
    float values[4] = {1.0f, 2.0f, 3.0f, 4.0f};
    values[4 * arguments.amount] = arguments.input[global_index()];
    arguments.output[global_index()] = values[3 * arguments.amount] + values[2];
}

extern "C" __global__ void __launch_bounds__(kThreads) local_array_too_large(const FaultArguments arguments) {
    volatile float values[100000];
    for (int i = 99999; i >= 0; i--) values[i] = arguments.input[global_index()];
    arguments.output[global_index()] = values[arguments.amount];
}

// A pointer to a local variable is invalid in another thread.
extern "C" __global__ void __launch_bounds__(kThreads) local_variable_of_another_thread(const FaultArguments arguments) {
    __shared__ float* shared_pointer;
    float local = arguments.input[global_index()];
    if (threadIdx.x == 0) shared_pointer = &local;
    __syncthreads();
    arguments.output[global_index()] = *shared_pointer;
    __syncthreads();
    if (threadIdx.x == 0) arguments.output[global_index()] = local;
}

extern "C" __global__ void __launch_bounds__(kThreads) leave_last_unwritten(const FaultArguments arguments) {
    const int i = global_index();
    if (i + arguments.amount < arguments.count) arguments.output[i] = arguments.input[i] + 1.0f;
}

// Reads its output before it has written it.
extern "C" __global__ void __launch_bounds__(kThreads) add_to_unwritten(const FaultArguments arguments) {
    const int i = global_index();
    arguments.output[i] += arguments.input[i];
}

extern "C" __global__ void __launch_bounds__(kThreads) read_unwritten_static_shared(const FaultArguments arguments) {
    __shared__ float kept[kThreads];
    if (static_cast<int>(threadIdx.x) >= arguments.amount) kept[threadIdx.x] = arguments.input[global_index()];
    arguments.output[global_index()] = kept[threadIdx.x];
}

extern "C" __global__ void __launch_bounds__(kThreads) read_unwritten_dynamic_shared(const FaultArguments arguments) {
    extern __shared__ __align__(128) unsigned char shared_memory[];
    float* const kept = reinterpret_cast<float*>(shared_memory);
    if (static_cast<int>(threadIdx.x) >= arguments.amount) kept[threadIdx.x] = arguments.input[global_index()];
    arguments.output[global_index()] = kept[threadIdx.x];
}

extern "C" __global__ void __launch_bounds__(kThreads) atomic_misaligned(const FaultArguments arguments) {
    unsigned char* const bytes = reinterpret_cast<unsigned char*>(arguments.counter);
    atomicAdd(reinterpret_cast<unsigned*>(bytes + arguments.amount), 1u);
    arguments.output[global_index()] = 0.0f;
}

extern "C" __global__ void __launch_bounds__(kThreads) trap(const FaultArguments arguments) {
    if (global_index() == arguments.count - arguments.amount) __trap();
}
