#include "checks.h"

#include <link.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <new>
#include <utility>

namespace emulator {

namespace {

constexpr uint32_t kHost = 1;

// Whether the program's own constants lie there: parts of its file that are mapped read-only.
bool is_constant(const void* address, size_t bytes) {
    static const std::vector<std::pair<uintptr_t, uintptr_t>> constants = [] {
        std::vector<std::pair<uintptr_t, uintptr_t>> found;
        dl_iterate_phdr(
            [](dl_phdr_info* info, size_t, void* list) {
                for (int i = 0; i < info->dlpi_phnum; i++) {
                    const ElfW(Phdr)& part = info->dlpi_phdr[i];
                    if (part.p_type != PT_LOAD || (part.p_flags & PF_W) != 0) continue;
                    const uintptr_t begin = info->dlpi_addr + part.p_vaddr;
                    static_cast<decltype(found)*>(list)->emplace_back(begin, begin + part.p_memsz);
                }
                // The first object is the program.
                return 1;
            },
            &found);
        return found;
    }();
    const uintptr_t at = reinterpret_cast<uintptr_t>(address);
    return std::any_of(constants.begin(), constants.end(),
                       [&](const auto& part) { return at >= part.first && at + bytes <= part.second; });
}

// Whether a kernel may use a static shared array: its own, or one of a device function of its translation unit.
bool belongs_to(const std::string& kernel, const std::string& unit, const std::string& symbol) {
    const std::string of_kernels = "__" + unit;
    if (symbol.find(of_kernels) != std::string::npos) return symbol.find(kernel + of_kernels) != std::string::npos;
    return symbol.find(unit) != std::string::npos;
}

bool lies_in(const void* address, size_t bytes, const void* begin, size_t length) {
    const uintptr_t offset = reinterpret_cast<uintptr_t>(address) - reinterpret_cast<uintptr_t>(begin);
    return offset < length && bytes <= length - offset;
}

}  // namespace

Cells::Cells(size_t bytes) : mapping_bytes_(std::max<size_t>(bytes, 1) * sizeof(Cell)) {
    void* memory = mmap(nullptr, mapping_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                        -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    cells_ = static_cast<Cell*>(memory);
}

Cells::~Cells() {
    if (cells_ != nullptr) munmap(cells_, mapping_bytes_);
}

Cells::Cells(Cells&& other) noexcept
    : cells_(std::exchange(other.cells_, nullptr)), mapping_bytes_(std::exchange(other.mapping_bytes_, 0)) {}

Cells& Cells::operator=(Cells&& other) noexcept {
    std::swap(cells_, other.cells_);
    std::swap(mapping_bytes_, other.mapping_bytes_);
    return *this;
}

Checks::Checks(const Memory& memory, bool strict)
    : memory_(memory), strict_(strict), dynamic_cells_(kMostSharedBytes), static_cells_(static_shared_.bytes()) {}

void Checks::begin_launch() {
    // If numbers overflowed, old ones would be taken for new ones.
    if (launch_base_ + contexts_.size() > 0xf0000000u) {
        for (auto& [begin, cells] : global_cells_) {
            const auto bytes = memory_.bytes_at(reinterpret_cast<const void*>(begin));
            for (size_t byte = 0; byte < bytes; byte++) {
                cells[byte] = {cells[byte].write == 0 ? 0 : kHost, {0, 0}};
            }
        }
        dynamic_cells_ = Cells(kMostSharedBytes);
        static_cells_ = Cells(static_shared_.bytes());
        launch_base_ = 2;
    } else {
        launch_base_ += static_cast<uint32_t>(contexts_.size());
    }
    contexts_.clear();
    releases_.clear();
    block_ = 0;
}

void Checks::begin_block(const Runner& runner) {
    runner_ = &runner;
    block_++;
    block_base_ = launch_base_ + static_cast<uint32_t>(contexts_.size());
    epoch_ = 0;
    clean_epoch_ = -1;
    dirty_threads_ = 0;
    acquisitions_.clear();
    threads_.assign(runner.launch().threads, Thread{});
    for (size_t thread = 0; thread < threads_.size(); thread++) {
        threads_[thread].fence_epoch = -1;
        threads_[thread].clocks[thread % kLanes] = 1;
    }
}

void Checks::pass_barrier() {
    if (dirty_threads_ == 0) clean_epoch_ = epoch_;
    epoch_++;
    for (Thread& thread : threads_) std::fill(std::begin(thread.contexts), std::end(thread.contexts), 0);
}

void Checks::synchronize_warp(unsigned warp, uint32_t mask) {
    uint32_t joined[kLanes] = {};
    for (unsigned lane = 0; lane < kLanes; lane++) {
        if ((mask >> lane & 1) == 0) continue;
        const Thread& thread = threads_[warp * kLanes + lane];
        for (unsigned i = 0; i < kLanes; i++) joined[i] = std::max(joined[i], thread.clocks[i]);
    }
    for (unsigned lane = 0; lane < kLanes; lane++) {
        if ((mask >> lane & 1) == 0) continue;
        Thread& thread = threads_[warp * kLanes + lane];
        std::memcpy(thread.clocks, joined, sizeof(joined));
        thread.clocks[lane]++;
        std::fill(std::begin(thread.contexts), std::end(thread.contexts), 0);
    }
}

void Checks::fence() {
    const unsigned index = runner_->fiber().thread;
    Thread& self = threads_[index];
    std::memcpy(self.fence_clocks, self.clocks, sizeof(self.clocks));
    self.clocks[index % kLanes]++;
    std::fill(std::begin(self.contexts), std::end(self.contexts), 0);
    self.fence_epoch = epoch_;
    dirty_threads_ -= self.dirty;
    self.dirty = false;
    for (Acquisition& acquisition : acquisitions_) {
        const bool own = acquisition.thread == index;
        if (!own && epoch_ <= acquisition.epoch) continue;
        acquisition.fenced_by_thread |= own;
        if (acquisition.fence_epoch < 0) acquisition.fence_epoch = epoch_;
    }
}

uint32_t Checks::context(Kind kind) {
    const unsigned index = runner_->fiber().thread;
    Thread& self = threads_[index];
    uint32_t& context = self.contexts[static_cast<int>(kind)];
    if (context == 0) {
        context = launch_base_ + static_cast<uint32_t>(contexts_.size());
        contexts_.push_back({block_, static_cast<uint32_t>(epoch_), self.clocks[index % kLanes],
                             static_cast<uint16_t>(index), kind});
    }
    return context;
}

bool Checks::is_past(uint32_t context, bool shared) const {
    return context < (shared ? block_base_ : launch_base_);
}

// Whether everything in `context` came before the current operation of the thread, whatever the schedule.
bool Checks::ordered(uint32_t context, bool shared) {
    if (is_past(context, shared)) return true;
    const Context& past = contexts_[context - launch_base_];
    if (past.block != block_) return acquired(past);
    const unsigned self = runner_->fiber().thread;
    if (past.thread == self || past.epoch < epoch_) return true;
    return past.thread / kLanes == self / kLanes && threads_[self].clocks[past.thread % kLanes] >= past.clock;
}

bool Checks::covers(const Release& release, const Context& past) {
    if (past.epoch <= release.epoch) return true;
    return past.epoch == release.warp_epoch && past.thread / kLanes == release.warp &&
           past.clock <= release.clocks[past.thread % kLanes];
}

bool Checks::acquired(const Context& past) {
    const unsigned self = runner_->fiber().thread;
    for (Acquisition& acquisition : acquisitions_) {
        const bool holds = (acquisition.fenced_by_thread && acquisition.thread == self) ||
                           threads_[self].fence_epoch > acquisition.epoch ||
                           (acquisition.fence_epoch >= 0 && epoch_ > acquisition.fence_epoch);
        if (!holds) continue;
        if (!acquisition.flattened) {
            acquisition.flattened = true;
            std::map<const std::deque<Release>*, size_t> seen;
            std::vector<std::pair<const std::deque<Release>*, size_t>> left{{acquisition.releases, acquisition.count}};
            while (!left.empty()) {
                const auto [releases, count] = left.back();
                left.pop_back();
                size_t& done = seen[releases];
                for (; done < count; done++) {
                    const Release& release = (*releases)[done];
                    acquisition.by_block[release.block].push_back(&release);
                    left.insert(left.end(), release.acquired.begin(), release.acquired.end());
                }
            }
        }
        const auto found = acquisition.by_block.find(past.block);
        if (found == acquisition.by_block.end()) continue;
        for (const Release* release : found->second) {
            if (covers(*release, past)) return true;
        }
    }
    return false;
}

std::string Checks::Place::name() const {
    if (!shared) return format("offset %zu of an allocation of %zu bytes", offset, size);
    return format("offset %zu of %s (%zu bytes)", offset, object, size);
}

bool Checks::find(const void* address, size_t bytes, bool writes, Place& place) {
    if (runner_->owns_stack(address, bytes)) return false;
    const Launch& launch = runner_->launch();
    const uintptr_t at = reinterpret_cast<uintptr_t>(address);
    if (lies_in(address, bytes, retune_emulator_shared_memory, launch.shared_bytes)) {
        const size_t offset = at - reinterpret_cast<uintptr_t>(retune_emulator_shared_memory);
        place = {&dynamic_cells_[offset], true, true, "dynamic shared memory", offset, launch.shared_bytes};
        return true;
    }
    if (lies_in(address, bytes, reinterpret_cast<const void*>(latest_begin_), latest_bytes_)) {
        const size_t offset = at - latest_begin_;
        place = {&(*latest_cells_)[offset], false, strict_, nullptr, offset, latest_bytes_};
        return true;
    }
    const StaticShared::Variable* const variable = static_shared_.nearest(address);
    if (variable != nullptr && lies_in(address, bytes, variable->begin, variable->bytes) &&
        belongs_to(launch.kernel->name, launch.kernel->unit, variable->symbol)) {
        const size_t offset = at - reinterpret_cast<uintptr_t>(variable->begin);
        place = {&static_cells_[variable->offset + offset], true, true, variable->name.c_str(), offset,
                 variable->bytes};
        return true;
    }
    const uintptr_t begin = memory_.begin_of(address, bytes);
    if (begin != 0) {
        latest_begin_ = begin;
        latest_bytes_ = memory_.bytes_at(reinterpret_cast<const void*>(begin));
        auto found = global_cells_.find(begin);
        if (found == global_cells_.end()) found = global_cells_.emplace(begin, Cells(latest_bytes_)).first;
        latest_cells_ = &found->second;
        place = {&(*latest_cells_)[at - begin], false, strict_, nullptr, at - begin, latest_bytes_};
        return true;
    }
    if (!writes && (lies_in(address, bytes, launch.arguments, launch.kernel->argument_bytes) ||
                    is_constant(address, bytes))) {
        return false;
    }
    fail_outside(address, bytes, writes);
}

void Checks::fail_outside(const void* address, size_t bytes, bool writes) {
    const char* const verb = writes ? "writes" : "reads";
    const uintptr_t at = reinterpret_cast<uintptr_t>(address);
    const Launch& launch = runner_->launch();
    if (at < kPage) fault("out of bounds: %s %zu bytes at %p, a null pointer", verb, bytes, address);
    if (runner_->owns_any_stack(address)) {
        fault("out of bounds: %s %zu bytes at %p, beyond its own local variables", verb, bytes, address);
    }
    const uintptr_t dynamic = reinterpret_cast<uintptr_t>(retune_emulator_shared_memory);
    if (at + bytes + kPage > dynamic && at < dynamic + launch.shared_bytes + kPage && launch.shared_bytes > 0) {
        fault("out of bounds: %s %zu bytes at offset %td of %u bytes of dynamic shared memory", verb, bytes,
              static_cast<ptrdiff_t>(at - dynamic), launch.shared_bytes);
    }
    const StaticShared::Variable* nearest = nullptr;
    uintptr_t distance = kPage;
    for (const StaticShared::Variable& variable : static_shared_.variables()) {
        const uintptr_t begin = reinterpret_cast<uintptr_t>(variable.begin), end = begin + variable.bytes;
        const uintptr_t away = at < begin ? begin - at : at + bytes - std::min(at + bytes, end);
        if (away >= distance || !belongs_to(launch.kernel->name, launch.kernel->unit, variable.symbol)) continue;
        nearest = &variable;
        distance = away;
    }
    if (nearest != nullptr) {
        fault("out of bounds: %s %zu bytes at offset %td of %s, %zu bytes of shared memory", verb, bytes,
              static_cast<ptrdiff_t>(at - reinterpret_cast<uintptr_t>(nearest->begin)), nearest->name.c_str(),
              nearest->bytes);
    }
    fault("out of bounds: %s %s", verb, memory_.refusal(address, bytes).c_str());
}

void Checks::fail_race(const Place& place, size_t byte, bool writes, uint32_t other, bool other_writes) {
    const Context& past = contexts_[other - launch_base_];
    const std::string where = Place{nullptr, place.shared, false, place.object, place.offset + byte, place.size}.name();
    const Launch& launch = runner_->launch();
    if (past.kind == Kind::pending_copy) {
        fault("%s %s, the destination of a cp.async of thread %s that was not awaited",
              writes ? "writes" : "reads", where.c_str(), format_position(launch.thread_index(past.thread)).c_str());
    }
    std::string who = "thread " + format_position(launch.thread_index(past.thread));
    if (past.block != block_) who += " of another block";
    fault("race: %s %s, which %s has %s with nothing that orders the two", writes ? "writes" : "reads", where.c_str(),
          who.c_str(), other_writes ? "written" : "read");
}

void Checks::access(Place& place, size_t bytes, bool writes, Kind kind) {
    const uint32_t now = context(kind);
    const bool shared = place.shared;
    for (size_t byte = 0; byte < bytes; byte++) {
        Cell& cell = place.cells[byte];
        if (writes ? cell.write == now && cell.reads[0] == 0 : cell.reads[0] == now) continue;
        if (!writes && place.must_be_written && (shared ? is_past(cell.write, true) : cell.write == 0)) {
            fault("uninitialised: reads %s memory that nothing has written, %s", shared ? "shared" : "global",
                  Place{nullptr, shared, false, place.object, place.offset + byte, place.size}.name().c_str());
        }
        if (!is_past(cell.write, shared)) {
            const Context& past = contexts_[cell.write - launch_base_];
            const bool both_atomic = kind == Kind::atomic && past.kind == Kind::atomic;
            if (past.kind == Kind::pending_copy || (!both_atomic && !ordered(cell.write, shared))) {
                fail_race(place, byte, writes, cell.write, true);
            }
        }
        if (writes) {
            for (const uint32_t read : cell.reads) {
                if (read != 0 && !ordered(read, shared)) fail_race(place, byte, true, read, false);
            }
            cell = {now, {0, 0}};
            continue;
        }
        // Two readers are kept, of different warps or blocks if possible: then a write that is not
        // ordered after all readers is not ordered after one of the two.
        const auto group = [&](uint32_t read) -> uint64_t {
            if (is_past(read, shared)) return ~uint64_t{0};
            const Context& past = contexts_[read - launch_base_];
            return uint64_t{past.block} << 32 | past.thread / kLanes;
        };
        if (!is_past(cell.reads[0], shared) &&
            (is_past(cell.reads[1], shared) || group(cell.reads[0]) != group(now) ||
             group(cell.reads[1]) == group(now))) {
            cell.reads[1] = cell.reads[0];
        }
        cell.reads[0] = now;
    }
}

void Checks::read(const void* address, size_t bytes) {
    Place place;
    if (find(address, bytes, false, place)) access(place, bytes, false, Kind::plain);
}

void Checks::read_constant(const void* address, size_t bytes) {
    Place place;
    if (!find(address, bytes, false, place)) return;
    for (size_t byte = 0; byte < bytes; byte++) {
        if (place.shared || !is_past(place.cells[byte].write, false)) {
            fault("__ldg reads %s, which is not constant during the launch",
                  Place{nullptr, place.shared, false, place.object, place.offset + byte, place.size}.name().c_str());
        }
    }
}

void Checks::write(const void* address, size_t bytes) {
    Place place;
    if (!find(address, bytes, true, place)) return;
    access(place, bytes, true, Kind::plain);
    if (place.shared) return;
    Thread& self = threads_[runner_->fiber().thread];
    dirty_threads_ += !self.dirty;
    self.dirty = true;
}

void Checks::atomic(const void* address) {
    Place place;
    if (!find(address, sizeof(uint32_t), true, place)) fault("an atomic operation on a local variable");
    if (place.must_be_written && (place.shared ? is_past(place.cells->write, true) : place.cells->write == 0)) {
        fault("uninitialised: an atomic operation on memory that nothing has written, %s", place.name().c_str());
    }
    access(place, sizeof(uint32_t), true, Kind::atomic);
    if (place.shared) return;
    const unsigned index = runner_->fiber().thread;
    const Thread& self = threads_[index];
    std::deque<Release>& releases = releases_[reinterpret_cast<uintptr_t>(address)];
    Release release{block_, std::max(clean_epoch_, self.fence_epoch - 1), self.fence_epoch, index / kLanes, {}, {}};
    std::memcpy(release.clocks, self.fence_clocks, sizeof(release.clocks));
    for (const Acquisition& acquisition : acquisitions_) {
        if (acquisition.fence_epoch >= 0) release.acquired.emplace_back(acquisition.releases, acquisition.count);
    }
    if (!releases.empty()) acquisitions_.push_back({&releases, releases.size(), index, epoch_, false, -1, false, {}});
    releases.push_back(std::move(release));
}

void Checks::begin_copy(void* shared, const void* global, int bytes, bool valid) {
    const size_t size = static_cast<size_t>(bytes);
    Place place;
    if (valid) {
        if (!find(global, size, false, place) || place.shared) fault("cp.async from memory that is not global");
        access(place, size, false, Kind::plain);
    }
    if (!find(shared, size, true, place) || !place.shared) fault("cp.async to memory that is not shared");
    access(place, size, true, Kind::pending_copy);
}

void Checks::end_copy(void* shared, int bytes) {
    Place place;
    if (!find(shared, static_cast<size_t>(bytes), true, place)) return;
    const uint32_t now = context(Kind::plain);
    for (int byte = 0; byte < bytes; byte++) place.cells[byte] = {now, {0, 0}};
}

void Checks::forget(const void* address) {
    global_cells_.erase(reinterpret_cast<uintptr_t>(address));
    latest_begin_ = 0;
    latest_bytes_ = 0;
}

void Checks::upload(const void* address, size_t bytes) {
    if (!strict_) return;
    const uintptr_t begin = memory_.begin_of(address, bytes);
    if (begin == 0) return;
    auto found = global_cells_.find(begin);
    if (found == global_cells_.end()) {
        found = global_cells_.emplace(begin, Cells(memory_.bytes_at(reinterpret_cast<const void*>(begin)))).first;
    }
    const size_t offset = reinterpret_cast<uintptr_t>(address) - begin;
    for (size_t byte = 0; byte < bytes; byte++) found->second[offset + byte] = {kHost, {0, 0}};
}

std::string Checks::download_refusal(const void* address, size_t bytes) {
    const uintptr_t begin = memory_.begin_of(address, bytes);
    if (!strict_ || begin == 0) return {};
    const auto found = global_cells_.find(begin);
    const size_t offset = reinterpret_cast<uintptr_t>(address) - begin;
    for (size_t byte = 0; byte < bytes; byte++) {
        if (found == global_cells_.end() || found->second[offset + byte].write == 0) {
            return format("uninitialised: a copy from the device reads memory that nothing has written, offset %zu of "
                          "an allocation of %zu bytes",
                          offset + byte, memory_.bytes_at(reinterpret_cast<const void*>(begin)));
        }
    }
    return {};
}

}  // namespace emulator
