// The watcher: sees every load and store of a kernel, through the calls that g++ makes for its
// ThreadSanitizer. It reports accesses outside arrays, reads of what nobody wrote, and races: two
// accesses of one cell, one of them a plain write, that no barrier or fence orders. Shuffles, votes
// and atomics order nothing. It also counts bytes.
#include <algorithm>
#include <cstdio>
#include <unordered_map>
#include "memory.h"

extern "C" const char __executable_start[], _end[];

namespace simt {

std::vector<Array> arrays;

namespace {

// Epochs number the stretches between barriers of all blocks, and never repeat; epoch 0 is before
// the first launch. Blocks run one after the other, so each has a range of epochs.
struct Access {
    uint32_t epoch = 0, clock = 0;
    uint32_t place = 0;
    uint16_t thread = 0;
    bool atomic = false;
};

struct Cell {
    Access write, read, other_read;
    bool initialised = false;
};

struct Memory {
    std::string name;
    Range range;
    unsigned cell = 2;
    Array* array;  // none: shared memory
    std::vector<Cell> cells;
    std::vector<uint32_t> read_in, written_in;  // the launch that did it last, by cell
};

// Epochs `first` to `last` of a block, and epoch `own_epoch` of one of its threads.
struct Published {
    uint32_t first, last, own_epoch;
    uint16_t own_thread;
    bool has(const Access& a) const {
        return (first <= a.epoch && a.epoch <= last) ||
               (a.epoch == own_epoch && a.thread == own_thread);
    }
};

std::vector<Memory> memories;  // dynamic shared memory, the shared arrays, and `arrays`
size_t latest;
Range stacks;
const void* place;

uint32_t epoch, launch_number, launch_first, block_first, clean_epoch;
Watched *block_threads, *self;
int thread_count;

std::unordered_map<const void*, std::vector<Published>> published;  // with atomics, by address
std::vector<Published> found, heard;  // by the block: found by an atomic, made sure by a fence
int heard_by;
uint32_t heard_in;

bool ordered(const Access& before, const Memory& m) {
    if (before.epoch < (m.array ? launch_first : block_first)) return true;
    if (before.epoch >= block_first) {
        if (before.thread == self->number || before.epoch < epoch) return true;
        return before.thread / 32 == self->number / 32 &&
               before.clock <= self->clocks[before.thread % 32];
    }
    if (heard.empty() || (heard_by != self->number && heard_in == epoch)) return false;
    return std::any_of(heard.begin(), heard.end(), [&](auto& p) { return p.has(before); });
}

void check(const Access& before, bool atomic, const char* does, const char* did, const Memory& m,
           const char* address) {
    if ((before.atomic && atomic) || ordered(before, m)) return;
    const bool same_block = before.epoch >= block_first;
    fail_at(place, "a race: %s byte %td of %s, which thread %d of %s block %s at 0x%x", does,
            address - m.range.data, m.name.c_str(), before.thread, same_block ? "the" : "another",
            did, before.place);
}

void watch_cell(Memory& m, size_t index, const char* address, bool write, bool atomic) {
    Cell& cell = m.cells[index];
    const Access now{epoch, self->clocks[self->number % 32], uint32_t(uintptr_t(place)),
                     self->number, atomic};
    check(cell.write, atomic, write ? "writes" : "reads", "wrote", m, address);
    if (!write || atomic) {
        const bool known = m.array ? cell.initialised : cell.write.epoch >= block_first;
        if (!known)
            fail_at(place, "reads byte %td of %s, which nobody wrote", address - m.range.data,
                    m.name.c_str());
    }
    if (write) {
        check(cell.read, false, "writes", "read", m, address);
        check(cell.other_read, false, "writes", "read", m, address);
        cell.write = now;
        cell.initialised = true;
    } else {
        if (cell.read.thread != now.thread && !ordered(cell.read, m)) cell.other_read = cell.read;
        cell.read = now;
    }
}

uint64_t count(std::vector<uint32_t>& by, size_t index) {
    const bool first = by[index] != launch_number;
    by[index] = launch_number;
    return first;
}

Memory* memory_of(const char* address) {
    if (memories[latest].range.has(address)) return &memories[latest];
    for (size_t i = 0; i < memories.size(); i++)
        if (memories[i].range.has(address)) return latest = i, &memories[i];
    return nullptr;
}

[[noreturn]] void fail_outside(const char* address, size_t size, bool write) {
    const Memory* nearest = nullptr;
    size_t distance = SIZE_MAX;
    for (const Memory& m : memories) {
        const char* end = m.range.data + m.range.size;
        const size_t away = address < m.range.data ? m.range.data - address : address - end;
        if (m.range.size && away < distance) distance = away, nearest = &m;
    }
    if (!nearest) fail_at(place, "%s memory, and was given none", write ? "writes" : "reads");
    fail_at(place, "%s %zu bytes outside every array: from byte %td of the %zu of %s",
            write ? "writes" : "reads", size, address - nearest->range.data, nearest->range.size,
            nearest->name.c_str());
}

void watch(const void* where, size_t size, bool write, bool atomic) {
    const char* address = static_cast<const char*>(where);
    if (stacks.has(address) || !self) return;
    Memory* m = memory_of(address);
    if (!m) {
        const bool constant = address >= __executable_start && address < _end && !write;
        if (constant) return;
        fail_outside(address, size, write);
    }
    if (!m->range.has(address + size - 1)) fail_outside(address, size, write);
    if (write && m->array && !m->array->writable)
        fail_at(place, "writes %s, which is an input", m->name.c_str());
    const size_t first = size_t(address - m->range.data) / m->cell;
    const size_t last = size_t(address + size - 1 - m->range.data) / m->cell;
    const bool watched = !m->cells.empty();
    for (size_t i = first; i <= last; i++) {
        if (watched) watch_cell(*m, i, m->range.data + i * m->cell, write, atomic);
        if (!m->array) continue;
        Traffic& t = m->array->traffic;
        if (atomic) continue;
        if (write)
            t.first_written += count(m->written_in, i) * m->cell;
        else
            t.first_read += count(m->read_in, i) * m->cell;
    }
    if (!m->array) return;
    Traffic& t = m->array->traffic;
    (atomic ? t.atomic : write ? t.written : t.read) += size;
    if (write) self->dirty = true;
}

// The epochs of this block that the present thread's next atomic makes known to those who find it.
void publish(const void* address) {
    Published p{block_first, clean_epoch, 0, self->number};
    if (self->fence_epoch) p.last = std::max(p.last, self->fence_epoch - 1);
    if (self->fence_epoch && !self->dirty) p.own_epoch = epoch;
    if (p.last >= p.first || p.own_epoch) published[address].push_back(p);
}

}  // namespace

void watch_arrays(const std::vector<Shared>& shared) {
    memories.clear();
    memories.push_back({});
    for (const Shared& s : shared)
        memories.push_back({s.name, {s.data, s.size}, 2, nullptr, {}, {}, {}});
    for (Memory& m : memories) m.cells.resize(m.range.size / m.cell + 1);
    for (Array& a : arrays) {
        Memory m{a.name, {a.data, a.size}, a.cell, &a, {}, {}, {}};
        const size_t count = (a.size + a.cell - 1) / a.cell;
        if (a.writable || !a.initialised) m.cells.resize(count);
        for (Cell& cell : m.cells) cell.initialised = a.initialised;
        m.read_in.resize(count);
        m.written_in.resize(count);
        memories.push_back(std::move(m));
    }
}

void watch_launch(const Range& fibers, const Range& dynamic_shared) {
    stacks = fibers;
    launch_first = ++epoch;
    launch_number++;
    published.clear();
    for (Array& a : arrays) a.traffic = {};
    Memory& dynamic = memories[0];
    dynamic = {"dynamic shared memory", dynamic_shared, 2, nullptr, {}, {}, {}};
    dynamic.cells.resize(dynamic_shared.size / 2 + 1);
    latest = 0;
}

void watch_block(Watched* threads, int count) {
    block_first = ++epoch;
    clean_epoch = 0;
    block_threads = threads;
    thread_count = count;
    found.clear();
    heard.clear();
    for (int i = 0; i < count; i++) {
        const Index index = threads[i].index;
        threads[i] = {};
        threads[i].number = uint16_t(i);
        threads[i].index = index;
        threads[i].clocks[i % 32] = 1;
    }
}

void watch_thread(Watched* thread) { self = thread; }

void watch_barrier() {
    const bool clean = std::none_of(block_threads, block_threads + thread_count,
                                    [](const Watched& t) { return t.dirty; });
    if (clean) clean_epoch = epoch;
    epoch++;
}

void watch_warp_barrier(Watched* warp, unsigned mask) {
    uint32_t clocks[32] = {};
    for (int i = 0; i < 32; i++)
        for (int j = 0; mask >> i & 1 && j < 32; j++)
            clocks[j] = std::max(clocks[j], warp[i].clocks[j]);
    for (int i = 0; i < 32; i++) {
        if (!(mask >> i & 1)) continue;
        std::copy(clocks, clocks + 32, warp[i].clocks);
        warp[i].clocks[i]++;
    }
}

void watch_fence() {
    self->dirty = false;
    self->fence_epoch = epoch;
    if (found.empty()) return;
    heard.insert(heard.end(), found.begin(), found.end());
    found.clear();
    heard_by = self->number;
    heard_in = epoch;
}

void watch_atomic(const void* address, size_t size, int) {
    place = __builtin_return_address(0);
    watch(address, size, true, true);
    const auto known = published.find(address);
    if (known != published.end())
        found.insert(found.end(), known->second.begin(), known->second.end());
    publish(address);
}

const void* watched_place() { return place; }

}  // namespace simt

// What g++ calls

#define SEEN(name, size, write)                             \
    extern "C" void __tsan_##name(const void* address) {    \
        simt::place = __builtin_return_address(0);          \
        simt::watch(address, size, write, false);           \
    }
#define SEEN_BOTH(name, size) SEEN(read##name, size, false) SEEN(write##name, size, true)
SEEN_BOTH(1, 1) SEEN_BOTH(2, 2) SEEN_BOTH(4, 4) SEEN_BOTH(8, 8) SEEN_BOTH(16, 16)
#define SEEN_UNALIGNED(size)              \
    SEEN(unaligned_read##size, size, false) SEEN(unaligned_write##size, size, true)
SEEN_UNALIGNED(2) SEEN_UNALIGNED(4) SEEN_UNALIGNED(8) SEEN_UNALIGNED(16)

extern "C" void __tsan_read_range(const void* address, size_t size) {
    simt::place = __builtin_return_address(0);
    simt::watch(address, size, false, false);
}
extern "C" void __tsan_write_range(const void* address, size_t size) {
    simt::place = __builtin_return_address(0);
    simt::watch(address, size, true, false);
}
extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}
