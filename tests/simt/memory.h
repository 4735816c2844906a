// The arrays in the device's memory, and who watches over them.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>
#include "engine.h"

namespace simt {

// In bytes. `first_...`: of these, such as no thread of the launch had read, or written, before.
struct Traffic {
    uint64_t read, written, atomic, first_read, first_written;
};

// Global memory, or a part of it, that kernels may use.
struct Array {
    std::string name;
    char* data;
    size_t size;  // to the byte
    unsigned cell;  // bytes that are watched as one: an element
    bool initialised, writable;
    Traffic traffic;  // of the present launch
};

// A `__shared__` array.
struct Shared {
    std::string name;
    char* data;
    size_t size;
};

extern std::vector<Array> arrays;

// What nobody has written: NaN as float, half, bfloat16 or double for the even kinds, and -1 or the
// largest int; the odd one a large number, since CUDA's fmaxf and fminf pass a NaN over.
constexpr uint32_t POISON[] = {0xffffffffu, 0x7f7f7f7fu, 0x7fffffffu};

inline void poison(char* data, size_t size, uint64_t kind) {
    for (size_t i = 0; i < size; i++) {
        *static_cast<volatile char*>(data + i) = char(POISON[kind % 3] >> 8 * (i % 4));
    }
}

// The machine tells the watcher who runs; with it, the program's loads and stores make sense.

struct Watched {
    uint16_t number = 0;
    Index index = {};
    bool dirty = false;        // has written global memory since its last fence
    uint32_t fence_epoch = 0;  // of its last fence, or 0
    uint32_t clocks[32] = {};  // of the lanes' warp barriers, those it is ordered after
};

struct Range {
    const char* data;
    size_t size;
    bool has(const char* address) const { return size_t(address - data) < size; }
};

void watch_arrays(const std::vector<Shared>& shared);  // and `arrays`
void watch_launch(const Range& stacks, const Range& dynamic_shared);
void watch_block(Watched* threads, int count);
void watch_thread(Watched* thread);
void watch_barrier();
void watch_warp_barrier(Watched* warp, unsigned mask);
void watch_fence();
void watch_atomic(const void* address, size_t size, int line);
const void* watched_place();  // in the program, of the latest access

}  // namespace simt
