// The program around a kernel: reads jobs (arrays, launches, a seed), runs them, writes the arrays
// back. run.py is at the other end. Numbers are int64, in the machine's byte order.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include "engine.h"
#include "memory.h"

namespace simt {
namespace {

constexpr size_t GUARD = 4096;  // between arrays

void read_bytes(void* to, size_t size) {
    if (size && fread(to, 1, size, stdin) != size) exit(0);  // nobody is there any more
}

int64_t read_number() {
    int64_t number;
    read_bytes(&number, sizeof number);
    return number;
}

std::string read_text() {
    std::string text(size_t(read_number()), ' ');
    read_bytes(text.data(), text.size());
    return text;
}

void write_bytes(const void* from, size_t size) {
    if (size && fwrite(from, 1, size, stdout) != size) exit(1);
}

std::vector<Shared> read_shared() {
    std::vector<Shared> shared(static_cast<size_t>(read_number()));
    for (Shared& s : shared) {
        s.name = read_text();
        s.data = reinterpret_cast<char*>(read_number());
        s.size = size_t(read_number());
    }
    return shared;
}

// Memory that arrays lie in. Its start is `misalignment` above a multiple of 256.
struct Block {
    std::unique_ptr<char[]> memory;
    char* data;
    size_t size;
    bool comes_back;
};

std::vector<Block> read_blocks(uint64_t seed) {
    std::vector<Block> blocks(static_cast<size_t>(read_number()));
    for (Block& b : blocks) {
        b.size = size_t(read_number());
        const size_t misalignment = size_t(read_number());
        const bool initialised = read_number();
        b.comes_back = read_number();
        b.memory.reset(new char[b.size + 2 * GUARD]);
        const uintptr_t start = uintptr_t(b.memory.get()) + GUARD / 2;
        b.data = reinterpret_cast<char*>((start & ~uintptr_t(255)) + 256 + misalignment);
        if (initialised)
            read_bytes(b.data, b.size);
        else
            poison(b.data, b.size, seed);
    }
    return blocks;
}

void read_arrays(const std::vector<Block>& blocks) {
    arrays.resize(size_t(read_number()));
    for (Array& a : arrays) {
        a = {};
        a.name = read_text();
        const Block& block = blocks.at(size_t(read_number()));
        a.data = block.data + read_number();
        a.size = size_t(read_number());
        a.cell = unsigned(read_number());
        a.initialised = read_number();
        a.writable = read_number();
    }
}

const Kernel& kernel_of(const std::string& name) {
    for (int i = 0; i < kernel_count; i++)
        if (name == kernels[i].name) return kernels[i];
    fail(0, "no kernel is called %s", name.c_str());
}

struct Argument {
    alignas(16) char value[4096];
};

void read_argument(Argument& argument, const Parameter& parameter, const char* kernel, int at,
                   const std::vector<Block>& blocks) {
    const char kind = char(read_number());
    const int64_t size = read_number();  // of a pointer: the block it points to, or -1
    if (kind == 'p') {
        const int64_t offset = read_number();
        const char* address = size < 0 ? nullptr : blocks.at(size_t(size)).data + offset;
        memcpy(argument.value, &address, sizeof address);
    } else {
        if (size_t(size) > sizeof argument.value) fail(0, "an argument of %ld bytes", long(size));
        read_bytes(argument.value, size_t(size));
    }
    if (kind != parameter.kind || (kind != 'p' && size != parameter.size))
        fail(0, "argument %d of %s: %c of %ld bytes, and the kernel takes %c of %u", at, kernel,
             kind, kind == 'p' ? 8L : long(size), parameter.kind, parameter.size);
}

Index read_index() {
    const int64_t x = read_number(), y = read_number(), z = read_number();
    return {unsigned(x), unsigned(y), unsigned(z)};
}

void check_geometry(const Launch& l, const Kernel& kernel) {
    if (l.grid.x < 1 || l.grid.y < 1 || l.grid.z < 1)
        fail(0, "%s: an empty grid, which CUDA refuses", l.name);
    if (l.grid.x > 0x7fffffff || l.grid.y > 65535 || l.grid.z > 65535)
        fail(0, "%s: a grid of (%u, %u, %u), which CUDA refuses", l.name, l.grid.x, l.grid.y,
             l.grid.z);
    if (l.block.z > 64) fail(0, "%s: blocks of depth %u, which CUDA refuses", l.name, l.block.z);
    const unsigned threads = l.block.x * l.block.y * l.block.z;
    if (kernel.largest_block && threads > unsigned(kernel.largest_block))
        fail(0, "%s: %u threads a block, and __launch_bounds__(%d)", l.name, threads,
             kernel.largest_block);
}

void run_launches(const std::vector<Block>& blocks, uint64_t seed) {
    const int64_t count = read_number();
    for (int64_t i = 0; i < count; i++) {
        const std::string name = read_text();
        const Kernel& kernel = kernel_of(name);
        Launch launch{kernel.name, kernel.entry, read_index(), read_index(), 0, nullptr};
        launch.shared = size_t(read_number());
        const int64_t given = read_number();
        if (given != kernel.parameter_count)
            fail(0, "%s takes %d arguments, not %ld", kernel.name, kernel.parameter_count,
                 long(given));
        std::vector<Argument> arguments(static_cast<size_t>(given));
        std::vector<void*> addresses;
        for (int64_t j = 0; j < given; j++) {
            read_argument(arguments[j], kernel.parameters[j], kernel.name, int(j), blocks);
            addresses.push_back(arguments[j].value);
        }
        launch.arguments = addresses.data();
        check_geometry(launch, kernel);
        run(launch, seed ? seed + 1000 * uint64_t(i) : 0);
        for (const Array& a : arrays) write_bytes(&a.traffic, sizeof a.traffic);
    }
}

}  // namespace

unsigned seconds() {
    const char* given = getenv("SECONDS");
    return given ? unsigned(atoi(given)) : 60;
}

}  // namespace simt

int main() {
    using namespace simt;
    static char buffer[1 << 20];
    setvbuf(stdout, buffer, _IOFBF, sizeof buffer);
    for (;;) {
        const uint64_t seed = uint64_t(read_number());
        const std::vector<Shared> shared = read_shared();
        const std::vector<Block> blocks = read_blocks(seed);
        read_arrays(blocks);
        watch_arrays(shared);
        run_launches(blocks, seed);
        for (const Block& b : blocks)
            if (b.comes_back) write_bytes(b.data, b.size);
        fflush(stdout);
    }
}
