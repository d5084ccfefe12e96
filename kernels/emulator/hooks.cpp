// The functions that the compiler calls in a kernel compiled with -fsanitize=thread and -fsanitize=bounds,alignment. The
// names and parameters are those of GCC's run-time libraries, which are not linked.

#include "checks.h"

#if defined(__SANITIZE_THREAD__)
#error "the machine itself is not instrumented"
#endif

namespace emulator {
namespace {

Checks* checks() {
    return runner != nullptr && runner->on_fiber() ? runner->checks() : nullptr;
}

// As in libubsan's interface.
struct SourceLocation {
    const char* file;
    uint32_t line;
    uint32_t column;
};

struct TypeDescriptor {
    uint16_t kind;
    uint16_t information;
    char name[1];
};

struct OutOfBounds {
    SourceLocation location;
    const TypeDescriptor* array;
    const TypeDescriptor* index;
};

struct TypeMismatch {
    SourceLocation location;
    const TypeDescriptor* type;
    uint8_t log_alignment;
    uint8_t kind;
};

std::string format_location(const SourceLocation& location) {
    return format_site({location.file, static_cast<int>(location.line)});
}

}  // namespace
}  // namespace emulator

using namespace emulator;

// Either the access is allowed, or the hook does not return.
#define EMULATOR_HOOK(name, action, bytes)                                                                             \
    extern "C" void name(void* address) {                                                                              \
        if (Checks* const found = checks()) {                                                                          \
            runner->fiber().program_counter = __builtin_return_address(0);                                             \
            found->action(address, bytes);                                                                             \
        }                                                                                                              \
    }
#define EMULATOR_HOOKS(bytes)                                                                                          \
    EMULATOR_HOOK(__tsan_read##bytes, read, bytes)                                                                     \
    EMULATOR_HOOK(__tsan_write##bytes, write, bytes)                                                                   \
    EMULATOR_HOOK(__tsan_unaligned_read##bytes, read, bytes)                                                           \
    EMULATOR_HOOK(__tsan_unaligned_write##bytes, write, bytes)                                                         \
    EMULATOR_HOOK(__tsan_volatile_read##bytes, read, bytes)                                                            \
    EMULATOR_HOOK(__tsan_volatile_write##bytes, write, bytes)
EMULATOR_HOOKS(1)
EMULATOR_HOOKS(2)
EMULATOR_HOOKS(4)
EMULATOR_HOOKS(8)
EMULATOR_HOOKS(16)
#undef EMULATOR_HOOKS
#undef EMULATOR_HOOK

extern "C" {

void __tsan_init() {}

void __tsan_func_entry(void*) {}

void __tsan_func_exit() {}

void __tsan_read_range(void* address, size_t bytes) {
    if (Checks* const found = checks()) {
        runner->fiber().program_counter = __builtin_return_address(0);
        found->read(address, bytes);
    }
}

void __tsan_write_range(void* address, size_t bytes) {
    if (Checks* const found = checks()) {
        runner->fiber().program_counter = __builtin_return_address(0);
        found->write(address, bytes);
    }
}

void __ubsan_handle_out_of_bounds(OutOfBounds* data, uintptr_t index) {
    if (checks() == nullptr) return;
    fault("out of bounds: index %td of an array of type %s (%s)", static_cast<ptrdiff_t>(index), data->array->name,
          format_location(data->location).c_str());
}

void __ubsan_handle_type_mismatch_v1(TypeMismatch* data, uintptr_t pointer) {
    if (checks() == nullptr) return;
    const unsigned alignment = 1u << data->log_alignment;
    if (pointer % alignment == 0) return;
    fault("misaligned: an access of type %s at %p, which is not a multiple of %u (%s)", data->type->name,
          reinterpret_cast<void*>(pointer), alignment, format_location(data->location).c_str());
}

}  // extern "C"
