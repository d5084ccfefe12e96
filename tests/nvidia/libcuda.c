/* A fake of the NVIDIA driver's library: the part of its interface that retune calls, on host memory. It enforces the rules
 * of a GPU: a current context, no copies while a stream is captured, shared memory configured before it is used, nothing on
 * the default stream. Work is executed as late as possible, when the caller waits for it, so that memory that is reused or
 * freed too early is detected. FAKE_CUDA selects a fault of the machine.
 *
 * It implements two kernels, `fill` and `fault`. Others do nothing. */
#include <malloc.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    STUB_LIBRARY = 34,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    NO_BINARY_FOR_GPU = 209,
    UNSUPPORTED_PTX_VERSION = 222,
    NOT_FOUND = 500,
    NOT_READY = 600,
    ILLEGAL_ADDRESS = 700,
    SYSTEM_DRIVER_MISMATCH = 803,
    STREAM_CAPTURE_UNSUPPORTED = 900,
    STREAM_CAPTURE_INVALIDATED = 901,
};
typedef int Result;
typedef uint64_t Address;

struct FillArguments {
    Address target;
    uint32_t count;
    uint32_t value;
};
/* Static shared memory of every kernel, which counts towards its limits. */
enum { STATIC_SHARED_BYTES = 128 };
struct Function {
    const char* name;
    uint32_t shared_bytes; /* maximum dynamic shared memory of a launch */
};
struct Launch {
    struct Function* function;
    struct FillArguments arguments;
};
struct Graph {
    int count;
    struct Launch launches[64];
};
/* Pending work: a launch, a copy, or a fill with one byte. */
struct Work {
    struct Launch launch;
    Address to_device, to_host;
    const void* source;
    size_t bytes;
    int is_fill, value;
};
struct Event {
    uint64_t position; /* number of works issued before it */
    int is_recorded;
};
struct Allocation {
    void* pointer;
    size_t bytes;
};

static const size_t kTotal = (size_t)1 << 30;
static size_t used;
static struct Allocation allocations[4096];
static struct Function functions[] = {{"fill", (48 << 10) - STATIC_SHARED_BYTES},
                                      {"fault", (48 << 10) - STATIC_SHARED_BYTES}};
static struct Work works[4096];
static uint64_t issued, done;
static int context, stream, module;
static int initialised, current, retained, sticky, capturing, invalidated;
static struct Graph captured;

static int is(const char* what) {
    const char* mode = getenv("FAKE_CUDA");
    return mode && strcmp(mode, what) == 0;
}

static Result in_context(void) {
    if (!initialised || !current || !retained) return INVALID_CONTEXT;
    return sticky;
}

static Result outside_capture(void) {
    if (in_context()) return in_context();
    if (capturing) {
        invalidated = 1;
        return STREAM_CAPTURE_UNSUPPORTED;
    }
    return SUCCESS;
}

/* Whether the range lies in one allocation. */
static int is_allocated(Address address, size_t bytes) {
    for (int i = 0; i < 4096; i++) {
        const Address start = (Address)allocations[i].pointer;
        if (start && address >= start && address + bytes <= start + allocations[i].bytes) return 1;
    }
    return 0;
}

static void run(const struct Launch* launch) {
    const struct FillArguments* arguments = &launch->arguments;
    if (strcmp(launch->function->name, "fault") == 0 || !is_allocated(arguments->target, 4 * (size_t)arguments->count)) {
        sticky = ILLEGAL_ADDRESS;
        return;
    }
    for (uint32_t i = 0; i < arguments->count; i++) ((uint32_t*)arguments->target)[i] = arguments->value;
}

static void finish(const struct Work* work) {
    if (work->launch.function) {
        run(&work->launch);
    } else if (!is_allocated(work->to_device, work->bytes)) {
        sticky = ILLEGAL_ADDRESS;
    } else if (work->is_fill) {
        memset((void*)work->to_device, work->value, work->bytes);
    } else if (work->source) {
        memcpy((void*)work->to_device, work->source, work->bytes);
    } else {
        memcpy((void*)work->to_host, (void*)work->to_device, work->bytes);
    }
}

static void finish_until(uint64_t position) {
    for (; done < position && !sticky; done++) finish(&works[done % 4096]);
}

static Result issue(struct Work work) {
    if (issued - done == 4096) finish_until(done + 1);
    works[issued++ % 4096] = work;
    return SUCCESS;
}

Result cuInit(unsigned flags) {
    if (is("no-device")) return NO_DEVICE;
    if (is("mismatch")) return SYSTEM_DRIVER_MISMATCH;
    if (is("stub")) return STUB_LIBRARY;
    initialised = 1;
    return flags ? INVALID_VALUE : SUCCESS;
}
Result cuDriverGetVersion(int* version) {
    *version = is("old-driver") ? 11080 : 13010;
    return SUCCESS;
}
Result cuDeviceGetCount(int* count) {
    *count = 2;
    return SUCCESS;
}
Result cuDeviceGet(int* device, int index) {
    *device = index;
    return index < 2 ? SUCCESS : INVALID_DEVICE;
}
Result cuDeviceGetName(char* name, int length, int device) {
    snprintf(name, (size_t)length, "Fake GPU %d", device);
    return SUCCESS;
}
Result cuDeviceTotalMem_v2(size_t* bytes, int device) {
    *bytes = kTotal;
    return SUCCESS;
}
Result cuDeviceGetAttribute(int* value, int attribute, int device) {
    switch (attribute) {
        case 16: *value = 132; return SUCCESS;                                                /* multiprocessors */
        case 75: *value = is("turing") || is("volta") ? 7 : 9; return SUCCESS;                /* compute capability */
        case 76: *value = is("turing") ? 5 : 0; return SUCCESS;
        case 97: *value = 227 << 10; return SUCCESS;                                          /* shared memory */
        default: return INVALID_VALUE;
    }
}
Result cuDevicePrimaryCtxRetain(void** result, int device) {
    *result = &context;
    retained++;
    return SUCCESS;
}
Result cuDevicePrimaryCtxRelease_v2(int device) {
    retained--;
    return SUCCESS;
}
Result cuCtxSetCurrent(void* handle) {
    if (handle != &context) return INVALID_CONTEXT;
    current = 1;
    return SUCCESS;
}
Result cuStreamCreate(void** result, unsigned flags) {
    *result = &stream;
    return in_context();
}
Result cuStreamDestroy_v2(void* handle) { return handle == &stream ? in_context() : INVALID_VALUE; }
Result cuStreamSynchronize(void* handle) {
    if (handle != &stream) return INVALID_VALUE;
    if (outside_capture()) return outside_capture();
    finish_until(issued);
    return sticky;
}
Result cuStreamBeginCapture_v2(void* handle, int mode) {
    if (handle != &stream || capturing) return INVALID_VALUE;
    capturing = 1;
    invalidated = 0;
    captured.count = 0;
    return in_context();
}
Result cuStreamEndCapture(void* handle, void** graph) {
    *graph = NULL;
    if (handle != &stream || !capturing) return INVALID_VALUE;
    capturing = 0;
    if (invalidated) return STREAM_CAPTURE_INVALIDATED;
    *graph = malloc(sizeof captured);
    memcpy(*graph, &captured, sizeof captured);
    return in_context();
}
#ifndef WITHOUT_GRAPHS
Result cuGraphInstantiateWithFlags(void** result, void* graph, unsigned long long flags) {
    *result = malloc(sizeof captured);
    memcpy(*result, graph, sizeof captured);
    return in_context();
}
#endif
Result cuGraphDestroy(void* graph) {
    free(graph);
    return SUCCESS;
}
Result cuGraphExecDestroy(void* graph) {
    free(graph);
    return SUCCESS;
}
Result cuGraphLaunch(void* graph, void* handle) {
    if (in_context()) return in_context();
    if (handle != &stream) return INVALID_VALUE;
    for (int i = 0; i < ((struct Graph*)graph)->count; i++) {
        issue((struct Work){.launch = ((struct Graph*)graph)->launches[i]});
    }
    return SUCCESS;
}
Result cuEventCreate(struct Event** result, unsigned flags) {
    *result = calloc(1, sizeof **result);
    return in_context();
}
Result cuEventDestroy_v2(struct Event* event) {
    free(event);
    return SUCCESS;
}
Result cuEventRecord(struct Event* event, void* on) {
    event->position = issued;
    event->is_recorded = 1;
    return on == &stream ? in_context() : INVALID_VALUE;
}
Result cuEventSynchronize(struct Event* event) {
    if (in_context()) return in_context();
    if (event->is_recorded) finish_until(event->position);
    return sticky;
}
Result cuEventElapsedTime(float* milliseconds, struct Event* start, struct Event* end) {
    if (!start->is_recorded || !end->is_recorded) return INVALID_VALUE;
    if (done < end->position) return NOT_READY;
    *milliseconds = 2.5f * (float)(end->position - start->position);
    return in_context();
}
Result cuMemGetInfo_v2(size_t* free, size_t* total) {
    *free = kTotal - used;
    *total = kTotal;
    return in_context();
}
Result cuMemAlloc_v2(Address* address, size_t bytes) {
    if (outside_capture()) return outside_capture();
    if (bytes == 0) return INVALID_VALUE;
    if (bytes > kTotal - used) return OUT_OF_MEMORY;
    for (int i = 0; i < 4096; i++) {
        if (allocations[i].pointer) continue;
        allocations[i].pointer = aligned_alloc(512, (bytes + 511) / 512 * 512);
        allocations[i].bytes = bytes;
        memset(allocations[i].pointer, 0xcd, bytes);
        used += bytes;
        *address = (Address)allocations[i].pointer;
        return SUCCESS;
    }
    return OUT_OF_MEMORY;
}
Result cuMemFree_v2(Address address) {
    if (outside_capture()) return outside_capture();
    for (int i = 0; i < 4096; i++) {
        if ((Address)allocations[i].pointer != address) continue;
        used -= allocations[i].bytes;
        memset(allocations[i].pointer, 0xee, allocations[i].bytes);
        free(allocations[i].pointer);
        allocations[i].pointer = NULL;
        return SUCCESS;
    }
    return INVALID_VALUE;
}
Result cuMemHostAlloc(void** pointer, size_t bytes, unsigned flags) {
    *pointer = is("nothing-to-pin") ? NULL : malloc(bytes);
    return *pointer ? in_context() : OUT_OF_MEMORY;
}
Result cuMemFreeHost(void* pointer) {
    memset(pointer, 0xee, malloc_usable_size(pointer));
    free(pointer);
    return in_context();
}
Result cuMemcpyHtoDAsync_v2(Address target, const void* source, size_t bytes, void* on) {
    if (outside_capture()) return outside_capture();
    if (on != &stream || !is_allocated(target, bytes)) return INVALID_VALUE;
    return issue((struct Work){.to_device = target, .source = source, .bytes = bytes});
}
Result cuMemcpyDtoHAsync_v2(void* target, Address source, size_t bytes, void* on) {
    if (outside_capture()) return outside_capture();
    if (on != &stream || !is_allocated(source, bytes)) return INVALID_VALUE;
    return issue((struct Work){.to_device = source, .to_host = (Address)target, .bytes = bytes});
}
Result cuMemsetD8Async(Address target, unsigned char value, size_t bytes, void* on) {
    if (outside_capture()) return outside_capture();
    if (on != &stream || !is_allocated(target, bytes)) return INVALID_VALUE;
    return issue((struct Work){.to_device = target, .bytes = bytes, .is_fill = 1, .value = value});
}
Result cuModuleLoadData(void** result, const void* image) {
    *result = &module;
    if ((uintptr_t)image % 8) return INVALID_IMAGE;
    if (is("old-driver")) return UNSUPPORTED_PTX_VERSION;
    if (is("volta")) return NO_BINARY_FOR_GPU;
    return in_context();
}
Result cuModuleUnload(void* handle) { return in_context(); }
/* The kernels of the real program exist, but do nothing when they are launched. */
Result cuModuleGetFunction(void** result, void* handle, const char* name) {
    for (int i = 0; i < 2; i++) {
        *result = &functions[i];
        if (strcmp(functions[i].name, name) == 0) return in_context();
    }
    if (strcmp(name, "missing") == 0) return NOT_FOUND;
    struct Function* function = malloc(sizeof *function);
    function->name = strdup(name);
    function->shared_bytes = (48 << 10) - STATIC_SHARED_BYTES;
    *result = function;
    return in_context();
}
Result cuFuncGetAttribute(int* value, int attribute, void* function) {
    if (attribute != 1) return INVALID_VALUE;
    *value = STATIC_SHARED_BYTES;
    return in_context();
}
Result cuFuncSetAttribute(struct Function* function, int attribute, int value) {
    if (attribute != 8 || value > (227 << 10) - STATIC_SHARED_BYTES) return INVALID_VALUE;
    function->shared_bytes = (uint32_t)value;
    return in_context();
}
Result cuLaunchKernel(struct Function* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                      unsigned block_y, unsigned block_z, unsigned shared_bytes, void* on, void** parameters,
                      void** extra) {
    if (in_context()) return in_context();
    struct Launch launch = {function, {0, 0, 0}};
    if (on != &stream || parameters || !extra || shared_bytes > function->shared_bytes) return INVALID_VALUE;
    if (!grid_x || !grid_y || !grid_z || block_x * block_y * block_z > 1024) return INVALID_VALUE;
    if ((uintptr_t)extra[0] != 1 || (uintptr_t)extra[2] != 2 || extra[4]) return INVALID_VALUE;
    if (function != &functions[0] && function != &functions[1]) return SUCCESS;
    if (*(size_t*)extra[3] != sizeof launch.arguments) return INVALID_VALUE;
    memcpy(&launch.arguments, extra[1], sizeof launch.arguments);
    if (capturing) {
        captured.launches[captured.count++] = launch;
        return SUCCESS;
    }
    return issue((struct Work){.launch = launch});
}
Result cuGetErrorString(Result error, const char** text) {
    *text = error == ILLEGAL_ADDRESS ? "an illegal memory access was encountered" : "described by the driver";
    return SUCCESS;
}
