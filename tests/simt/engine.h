// What kernels ask of the machine that runs them. Two machines answer: fibers.cpp and threads.cpp.
#pragma once
#include <cstddef>
#include <cstdint>

namespace simt {

struct Index {
    unsigned x, y, z;
};

// A thread's place does not change while it runs, so the compiler may ask once.
[[gnu::const]] Index thread_index();
[[gnu::const]] Index block_index();
[[gnu::const]] Index block_size();
[[gnu::const]] Index grid_size();
[[gnu::const]] unsigned lane();
[[gnu::const]] void* dynamic_shared();

// All threads of the block. The sum of their predicates; a barrier is known by its line.
int barrier(bool predicate, int line);

// The lanes of `mask`, which all bring one value to the same operation at the same line: `values`
// receives what each of them brought.
void exchange(unsigned mask, const char* operation, uint64_t value, uint64_t* values, int line);

void warp_barrier(unsigned mask, int line);
void fence(bool device, int line);
void before_atomic(const void* address, size_t size, int line);

// Ends the process with a report, about a line or a place in the program.
[[noreturn]] void fail(int line, const char* format, ...) __attribute__((format(printf, 2, 3)));
[[noreturn]] void fail_at(const void* place, const char* format, ...)
    __attribute__((format(printf, 2, 3)));

// Where machines are told what to run.

using Entry = void (*)(void** arguments);

struct Launch {
    const char* name;
    Entry entry;
    Index grid, block;
    size_t shared;
    void** arguments;
};

void run(const Launch& launch, uint64_t seed);
unsigned seconds();  // that a launch may take

// Parameters of a kernel, as the caller has to pass them.
struct Parameter {
    char kind;  // p(ointer), i(nteger), f(loat), s(tructure)
    unsigned size;
};

struct Kernel {
    const char* name;
    Entry entry;
    const Parameter* parameters;
    int parameter_count;
    int largest_block;  // of __launch_bounds__, or 0
};

extern const Kernel kernels[];
extern const int kernel_count;

}  // namespace simt
