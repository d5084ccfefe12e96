#include "machine.h"

#include "checks.h"

#include <algorithm>
#include <condition_variable>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <numeric>
#include <thread>

#if EMULATOR_ADDRESS_SANITIZER
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

alignas(128) thread_local unsigned char
    retune_emulator_shared_memory[emulator::kMostSharedBytes + emulator::kSharedFence];

namespace emulator {

thread_local Runner* runner = nullptr;

std::string format(const char* text, ...) {
    char buffer[512];
    va_list operands;
    va_start(operands, text);
    std::vsnprintf(buffer, sizeof(buffer), text, operands);
    va_end(operands);
    return buffer;
}

std::string format_position(uint3 position) {
    return format("(%u, %u, %u)", position.x, position.y, position.z);
}

std::string format_site(Site site) {
    const char* slash = std::strrchr(site.file, '/');
    return format("%s:%d", slash ? slash + 1 : site.file, site.line);
}

const Kernel* find_kernel(const char* name, bool checked) {
    const KernelList& list = checked ? checked_kernels : plain_kernels;
    for (size_t i = 0; i < list.length; i++) {
        if (std::strcmp(list.kernels[i]->name, name) == 0) return list.kernels[i];
    }
    return nullptr;
}

Machine::Machine() = default;
Machine::~Machine() = default;

void Launch::fail(std::string text, uintptr_t program_counter) {
    const std::lock_guard<std::mutex> lock(mutex);
    if (failed.exchange(true)) return;
    failure = std::move(text);
    failure_counter = program_counter;
}

// Fibers.

namespace {

void begin_fiber() {
    Runner& self = *runner;
    self.arrive();
    self.launch().kernel->call(self.launch().arguments);
    self.exit();
}

}  // namespace

// On a fiber's own stack for the first time.
void Runner::arrive() {
#if EMULATOR_ADDRESS_SANITIZER
    const void* stack;
    size_t bytes;
    __sanitizer_finish_switch_fiber(nullptr, &stack, &bytes);
    if (scheduler_stack_ == nullptr) {
        scheduler_stack_ = stack;
        scheduler_stack_bytes_ = bytes;
    }
#endif
}

Runner::Runner() : stacks_(kMostThreads + 1), fibers_(new Fiber[kMostThreads]) {}

uint64_t Runner::random() {
    random_state_ ^= random_state_ << 13;
    random_state_ ^= random_state_ >> 7;
    random_state_ ^= random_state_ << 17;
    return random_state_;
}

// One of the set bits: the next one after `after`, or a random one.
unsigned Runner::choose_bit(uint32_t bits, unsigned after) {
    const unsigned turn = (shuffled_ ? static_cast<unsigned>(random() >> 32) : after + 1) % kLanes;
    const uint32_t turned = bits >> turn | bits << ((kLanes - turn) % kLanes);
    return (static_cast<unsigned>(__builtin_ctz(turned)) + turn) % kLanes;
}

Fiber* Runner::choose() {
    if (ready_warps_ == 0) return nullptr;
    // A warp continues while it can, so that it may run far ahead of the others; if shuffled, it is left now and then.
    if ((ready_warps_ >> warp_ & 1) == 0 || (shuffled_ && (random() >> 32) % 64 == 0)) {
        warp_ = choose_bit(ready_warps_, warp_);
        lane_ = kLanes - 1;
    }
    lane_ = choose_bit(warps_[warp_].ready, lane_);
    return &fibers_[warp_ * kLanes + lane_];
}

void Runner::resume(Fiber& next) {
    Fiber& previous = *current_;
    if (&previous == &next) return;
    current_ = &next;
#if EMULATOR_ADDRESS_SANITIZER
    __sanitizer_start_switch_fiber(&previous.fake_stack, stacks_.begin(next.thread), kStackBytes);
#endif
    retune_emulator_switch(&previous.stack_pointer, next.stack_pointer);
#if EMULATOR_ADDRESS_SANITIZER
    __sanitizer_finish_switch_fiber(previous.fake_stack, nullptr, nullptr);
#endif
}

// Abandons the current fiber: switches to another one, or to the scheduler.
void Runner::leave(Fiber* next) {
    void* abandoned;
    current_ = next;
#if EMULATOR_ADDRESS_SANITIZER
    if (next != nullptr) __sanitizer_start_switch_fiber(nullptr, stacks_.begin(next->thread), kStackBytes);
    else __sanitizer_start_switch_fiber(nullptr, scheduler_stack_, scheduler_stack_bytes_);
#endif
    retune_emulator_switch(&abandoned, next != nullptr ? next->stack_pointer : scheduler_);
    __builtin_unreachable();
}

// The current fiber has just stopped being ready.
void Runner::wait() {
    Fiber* next = choose();
    if (next == nullptr) fail_deadlocked();
    resume(*next);
}

void Runner::fail_deadlocked() {
    for (unsigned thread = 0; thread < launch_->threads; thread++) {
        Fiber& fiber = fibers_[thread];
        if (fiber.waits_at == nullptr) continue;
        const std::string name = fiber.waits_at;
        current_ = &fiber;
        fail("deadlock: waits forever at " + name + " (" + format_site(fiber.site) + ")");
    }
    fail("deadlock");
}

void Runner::fail(const std::string& cause) {
    launch_->fail(format("kernel %s, block %s, thread %s: ", launch_->kernel->name,
                         format_position(block_index_).c_str(), format_position(current_->index).c_str()) +
                      cause,
                  reinterpret_cast<uintptr_t>(current_->program_counter));
    leave(nullptr);
}

void Runner::fail_access(const void* address, const void* program_counter) {
    current_->program_counter = program_counter;
    if (stacks_.is_guard(address)) fail("out of bounds: its local variables need more than the emulator's stacks have");
    if (reinterpret_cast<uintptr_t>(address) < kPage) {
        fail(format("out of bounds: accesses %p, a null pointer", address));
    }
    if (address == kNoAddress) fail("out of bounds or misaligned: an access that the processor refused");
    fail("out of bounds: accesses " + launch_->machine->memory.refusal(address, 1));
}

bool Runner::owns_stack(const void* address, size_t bytes) const {
    const uintptr_t begin = reinterpret_cast<uintptr_t>(stacks_.begin(current_->thread));
    const uintptr_t at = reinterpret_cast<uintptr_t>(address);
    return at >= begin && at + bytes <= begin + kStackBytes;
}

bool Runner::owns_any_stack(const void* address) const {
    const uintptr_t at = reinterpret_cast<uintptr_t>(address);
    return at >= reinterpret_cast<uintptr_t>(stacks_.begin(0)) &&
           at < reinterpret_cast<uintptr_t>(stacks_.begin(kMostThreads));
}

void Runner::exit() {
    Fiber& self = *current_;
    Warp& warp = warps_[self.thread / kLanes];
    const uint32_t bit = 1u << self.thread % kLanes;
    self.program_counter = nullptr;
    if (barrier_arrived_ > 0) {
        fail(std::string("exits while other threads of its block wait at ") + barrier_name_ + " (" +
             format_site(barrier_site_) + ")");
    }
    for (unsigned i = 0; i < warp.meetings; i++) {
        const Meeting& meeting = warp.meeting[i];
        if (meeting.mask & bit) {
            fail(format("exits while other lanes of its warp wait for it at %s (%s)", meeting.name,
                        format_site(meeting.site).c_str()));
        }
    }
    warp.exited |= bit;
    warp.ready &= ~bit;
    if (warp.ready == 0) ready_warps_ &= ~(1u << self.thread / kLanes);
    live_--;
    if (live_ == 0) leave(nullptr);
    Fiber* next = choose();
    if (next == nullptr) fail_deadlocked();
    leave(next);
}

int Runner::barrier(const char* name, bool predicate, Site site) {
    Fiber& self = *current_;
    self.program_counter = nullptr;
    if (live_ != launch_->threads) {
        fail(format("waits at %s (%s), but %u threads of its block have exited", name, format_site(site).c_str(),
                    launch_->threads - live_));
    }
    if (barrier_arrived_ == 0) {
        barrier_name_ = name;
        barrier_site_ = site;
        barrier_first_ = self.thread;
    } else if (!(barrier_site_ == site)) {
        fail(format("divergent barrier: waits at %s (%s) while thread %s waits at %s (%s)", name,
                    format_site(site).c_str(), format_position(fibers_[barrier_first_].index).c_str(), barrier_name_,
                    format_site(barrier_site_).c_str()));
    }
    barrier_arrived_++;
    barrier_count_ += predicate;
    if (barrier_arrived_ == launch_->threads) {
        barrier_result_ = barrier_count_;
        barrier_arrived_ = 0;
        barrier_count_ = 0;
        if (checks_ != nullptr) checks_->pass_barrier();
        const unsigned warps = (launch_->threads + kLanes - 1) / kLanes;
        for (unsigned warp = 0; warp < warps; warp++) warps_[warp].ready = warps_[warp].present;
        ready_warps_ = warps == 32 ? ~0u : (1u << warps) - 1;
        if (shuffled_) resume(*choose());
        return barrier_result_;
    }
    Warp& warp = warps_[self.thread / kLanes];
    warp.ready &= ~(1u << self.thread % kLanes);
    if (warp.ready == 0) ready_warps_ &= ~(1u << self.thread / kLanes);
    self.waits_at = name;
    self.site = site;
    wait();
    self.waits_at = nullptr;
    return barrier_result_;
}

void Runner::collective(const char* name, uint32_t mask, bool aligned, Site site, void* operand, Combine combine) {
    Fiber& self = *current_;
    const unsigned lane = self.thread % kLanes;
    const uint32_t bit = 1u << lane;
    self.program_counter = nullptr;
    Warp& warp = warps_[self.thread / kLanes];
    if ((mask & bit) == 0) {
        fail(format("calls %s (%s) with the mask 0x%08x, which lacks its own lane", name, format_site(site).c_str(),
                    mask));
    }
    if (mask & ~(warp.present & ~warp.exited)) {
        fail(format("calls %s (%s) with the mask 0x%08x, of which the lanes 0x%08x %s", name,
                    format_site(site).c_str(), mask, mask & ~(warp.present & ~warp.exited),
                    mask & warp.exited ? "have exited" : "do not exist"));
    }
    Meeting* joined = nullptr;
    for (unsigned i = 0; i < warp.meetings; i++) {
        Meeting& meeting = warp.meeting[i];
        if (meeting.mask == mask && std::strcmp(meeting.name, name) == 0 && (!aligned || meeting.site == site)) {
            joined = &meeting;
        } else if ((meeting.mask & bit) && (meeting.arrived & mask)) {
            // Each waits for the other at another place.
            fail(format("divergent warp collective: calls %s (%s, mask 0x%08x) while the lanes 0x%08x wait for it at "
                        "%s (%s, mask 0x%08x)",
                        name, format_site(site).c_str(), mask, meeting.arrived, meeting.name,
                        format_site(meeting.site).c_str(), meeting.mask));
        }
    }
    if (joined == nullptr) {
        joined = &warp.meeting[warp.meetings++];
        *joined = {name, site, mask, 0};
    }
    joined->arrived |= bit;
    warp.operands[lane] = operand;
    if (joined->arrived == mask) {
        *joined = warp.meeting[--warp.meetings];
        combine(warp.operands, mask);
        warp.ready |= mask;
        ready_warps_ |= 1u << self.thread / kLanes;
        if (shuffled_) resume(*choose());
        return;
    }
    warp.ready &= ~bit;
    if (warp.ready == 0) ready_warps_ &= ~(1u << self.thread / kLanes);
    self.waits_at = name;
    self.site = site;
    wait();
    self.waits_at = nullptr;
}

void Runner::copy_async(unsigned char* shared, const unsigned char* global, int bytes, bool valid, Site site) {
    const unsigned alignment = static_cast<unsigned>(bytes) - 1;
    current_->program_counter = nullptr;
    if (reinterpret_cast<uintptr_t>(shared) & alignment) {
        fail(format("cp.async (%s) to %p, which is not a multiple of %d", format_site(site).c_str(), shared, bytes));
    }
    if (reinterpret_cast<uintptr_t>(global) & alignment) {
        fail(format("cp.async (%s) from %p, which is not a multiple of %d", format_site(site).c_str(), global, bytes));
    }
    if (checks_ != nullptr) checks_->begin_copy(shared, global, bytes, valid);
    // Until the wait, the destination is undefined.
    std::memset(shared, kPoison, static_cast<size_t>(bytes));
    current_->copies.push_back({shared, global, bytes, valid, current_->copy_group});
}

void Runner::copy_async_wait(int pending) {
    std::vector<PendingCopy>& copies = current_->copies;
    size_t kept = 0;
    for (const PendingCopy& copy : copies) {
        if (copy.group + static_cast<uint32_t>(pending) >= current_->copy_group) {
            copies[kept++] = copy;
            continue;
        }
        if (checks_ != nullptr) checks_->end_copy(copy.target, copy.bytes);
        if (copy.valid) std::memcpy(copy.target, copy.source, static_cast<size_t>(copy.bytes));
        else std::memset(copy.target, 0, static_cast<size_t>(copy.bytes));
    }
    copies.resize(kept);
}

// Blocks.

void Runner::begin_block(uint64_t block) {
    const Launch& launch = *launch_;
    block_index_ = {static_cast<unsigned>(block % launch.grid.x),
                    static_cast<unsigned>(block / launch.grid.x % launch.grid.y),
                    static_cast<unsigned>(block / launch.grid.x / launch.grid.y)};
    shuffled_ = launch.seed != 0;
    random_state_ = mix(launch.seed + block) | 1;
    live_ = launch.threads;
    barrier_arrived_ = 0;
    barrier_count_ = 0;
    unsigned char* const shared_end = retune_emulator_shared_memory + launch.shared_bytes;
#if EMULATOR_ADDRESS_SANITIZER
    __asan_unpoison_memory_region(retune_emulator_shared_memory, kMostSharedBytes + kSharedFence);
#endif
    std::memset(retune_emulator_shared_memory, kPoison, launch.shared_bytes);
    std::memset(shared_end, kFence, kSharedFence);
#if EMULATOR_ADDRESS_SANITIZER
    __asan_poison_memory_region(shared_end, kMostSharedBytes + kSharedFence - launch.shared_bytes);
#endif
    static_shared_.fill(launch.kernel->unit, kPoison);
    if (checks_ != nullptr) checks_->begin_block(*this);
    ready_warps_ = 0;
    for (unsigned thread = 0; thread < launch.threads; thread++) {
        Fiber& fiber = fibers_[thread];
        fiber.thread = thread;
        fiber.index = launch.thread_index(thread);
        fiber.waits_at = nullptr;
        fiber.program_counter = nullptr;
        fiber.copies.clear();
        fiber.copy_group = 0;
#if EMULATOR_ADDRESS_SANITIZER
        fiber.fake_stack = nullptr;
        __asan_unpoison_memory_region(stacks_.begin(thread), kStackBytes);
#endif
        fiber.stack_pointer = prepare_stack(stacks_.end(thread), begin_fiber);
    }
    for (unsigned warp = 0; warp * kLanes < launch.threads; warp++) {
        const unsigned lanes = std::min(kLanes, launch.threads - warp * kLanes);
        warps_[warp].present = warps_[warp].ready = lanes == kLanes ? ~0u : (1u << lanes) - 1;
        warps_[warp].exited = 0;
        warps_[warp].meetings = 0;
        ready_warps_ |= 1u << warp;
    }
    warp_ = choose_bit(ready_warps_, kLanes - 1);
    lane_ = kLanes - 1;
}

void Runner::run_block(uint64_t block) {
    begin_block(block);
    current_ = choose();
#if EMULATOR_ADDRESS_SANITIZER
    __sanitizer_start_switch_fiber(&scheduler_fake_stack_, stacks_.begin(current_->thread), kStackBytes);
#endif
    retune_emulator_switch(&scheduler_, current_->stack_pointer);
#if EMULATOR_ADDRESS_SANITIZER
    __sanitizer_finish_switch_fiber(scheduler_fake_stack_, nullptr, nullptr);
#endif
    if (launch_->failed) return;
#if !EMULATOR_ADDRESS_SANITIZER
    const unsigned char* const end = retune_emulator_shared_memory + launch_->shared_bytes;
    if (std::any_of(end, end + kSharedFence, [](unsigned char byte) { return byte != kFence; })) {
        launch_->fail(format("kernel %s, block %s: wrote past the end of its %u bytes of dynamic shared memory",
                             launch_->kernel->name, format_position(block_index_).c_str(), launch_->shared_bytes));
    }
#endif
}

void Runner::run(Launch& launch) {
    launch_ = &launch;
    checks_ = launch.machine->checks.get();
    runner = this;
    while (!launch.failed) {
        const uint64_t turn = launch.begun.fetch_add(1);
        if (turn >= launch.blocks) break;
        run_block(static_cast<uint64_t>((static_cast<unsigned __int128>(turn) * launch.stride + launch.first) %
                                        launch.blocks));
    }
    runner = nullptr;
    launch_ = nullptr;
}

// Host threads.

namespace {

class HostThreads {
public:
    void run(unsigned threads, void (*work)(void*), void* context) {
        std::unique_lock<std::mutex> turn(turn_, std::try_to_lock);
        if (threads <= 1 || !turn.owns_lock()) {
            work(context);
            return;
        }
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            for (; count_ < threads - 1; count_++) std::thread([this] { serve(); }).detach();
            work_ = work;
            context_ = context;
            wanted_ = threads - 1;
        }
        begins_.notify_all();
        work(context);
        std::unique_lock<std::mutex> lock(mutex_);
        wanted_ = 0;
        ended_.wait(lock, [this] { return busy_ == 0; });
    }

private:
    void serve() {
        std::unique_lock<std::mutex> lock(mutex_);
        while (true) {
            begins_.wait(lock, [this] { return wanted_ > 0; });
            wanted_--;
            busy_++;
            void (*const work)(void*) = work_;
            void* const context = context_;
            lock.unlock();
            work(context);
            lock.lock();
            if (--busy_ == 0) ended_.notify_all();
        }
    }

    std::mutex turn_;
    std::mutex mutex_;
    std::condition_variable begins_;
    std::condition_variable ended_;
    unsigned count_ = 0;
    void (*work_)(void*) = nullptr;
    void* context_ = nullptr;
    unsigned wanted_ = 0;
    unsigned busy_ = 0;
};

}  // namespace

void run_on_host_threads(unsigned threads, void (*work)(void*), void* context) {
    // Never destroyed, because its threads may still be waiting when the process ends.
    static HostThreads* const host_threads = new HostThreads;
    host_threads->run(threads, work, context);
}

}  // namespace emulator
