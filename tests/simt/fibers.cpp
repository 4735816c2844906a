// Threads as fibers: one block at a time, in an order that the seed chooses, and inside a block
// one thread at a time, which changes at every operation by which threads wait for each other.
#include <sys/mman.h>
#include <unistd.h>
#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <utility>
#include <vector>
#include "engine.h"
#include "memory.h"
#include "switch.h"

extern "C" char __start_simt_shared[] __attribute__((weak));
extern "C" char __stop_simt_shared[] __attribute__((weak));

namespace simt {
namespace {

constexpr size_t STACK = 64 << 10;
constexpr int MOST_THREADS = 1024;
const char* const SYNCWARP = "__syncwarp";

enum State : uint8_t { READY, AT_BARRIER, AT_EXCHANGE, EXITED };

struct Thread {
    Context context;
    Index index;
    int number;
    State state;
    // What it waits for
    int line;
    bool predicate;
    unsigned mask;
    const char* operation;
    uint64_t value;
    uint64_t* values;
    int result;
};

Thread threads[MOST_THREADS];
Watched watched[MOST_THREADS];
Thread* current;
Context scheduler;
char* stacks;
Range dynamic;  // shared memory

const Launch* now;
Index block;
int thread_count, exited, waiting, barrier_line, votes;
std::vector<Thread*> ready;
uint64_t state_of_chance, kind_of_poison;
int policy;

unsigned chance(unsigned below) {
    state_of_chance ^= state_of_chance << 13;
    state_of_chance ^= state_of_chance >> 7;
    state_of_chance ^= state_of_chance << 17;
    return unsigned((state_of_chance >> 16) % below);
}

Range static_shared() {
    return {__start_simt_shared, size_t(__stop_simt_shared - __start_simt_shared)};
}

void make_ready(Thread* thread) {
    thread->state = READY;
    ready.push_back(thread);
}

void leave(State state) {
    current->state = state;
    Thread* self = current;
    switch_context(&self->context, &scheduler);
}

void live() {
    for (;;) {  // a finished fiber is used again for the next block's thread
        now->entry(now->arguments);
        leave(EXITED);
    }
}

// Lets the warp's lanes go on that wait for the same exchange as `thread`, once all have come.
void try_exchange(const Thread* thread) {
    const int first = thread->number / 32 * 32, own = thread->number % 32;
    Thread* warp = threads + first;
    unsigned expected = thread->mask, come = 0;
    if (!(expected >> own & 1))
        fail(thread->line, "%s: mask %#x is without the calling lane %d", thread->operation,
             expected, own);
    for (int i = 0; i < 32; i++) {
        if (!(expected >> i & 1)) continue;
        const bool there = first + i < thread_count && warp[i].state != EXITED;
        if (!there && thread->operation == SYNCWARP) {
            expected &= ~(1u << i);  // it waits for lanes that have not exited
        } else if (!there) {
            fail(thread->line, "%s: mask %#x names lane %d, which %s", thread->operation, expected,
                 i, first + i < thread_count ? "has exited" : "does not exist");
        } else if (warp[i].state == AT_EXCHANGE && warp[i].line == thread->line &&
                   warp[i].mask == thread->mask && warp[i].operation == thread->operation) {
            come |= 1u << i;
        }
    }
    if (come != expected) return;
    if (thread->operation == SYNCWARP) watch_warp_barrier(watched + first, come);
    uint64_t values[32];
    for (int i = 0; i < 32; i++) values[i] = warp[i].value;
    for (int i = 0; i < 32; i++) {
        if (!(come >> i & 1)) continue;
        if (warp[i].values) memcpy(warp[i].values, values, sizeof values);
        make_ready(&warp[i]);
    }
}

// An exit may be what the other lanes' __syncwarp still waits for.
void after_exit(const Thread* thread) {
    exited++;
    const int first = thread->number / 32 * 32;
    for (int i = first; i < first + 32 && i < thread_count; i++)
        if (threads[i].state == AT_EXCHANGE) try_exchange(&threads[i]);
}

void try_barrier() {
    if (waiting == 0 || waiting + exited < thread_count) return;
    if (exited)
        fail(barrier_line, "a barrier for %d threads, of which %d have exited", thread_count,
             exited);
    watch_barrier();
    for (int i = 0; i < thread_count; i++) {
        threads[i].result = votes;
        make_ready(&threads[i]);
    }
    waiting = votes = 0;
}

[[noreturn]] void report_deadlock() {
    std::string who;
    int told = 0;
    for (int i = 0; i < thread_count && told < 8; i++) {
        const Thread& t = threads[i];
        const bool like_the_last = i && t.state == threads[i - 1].state && t.line == threads[i - 1].line;
        if (t.state == EXITED || like_the_last) continue;
        const char* operation = t.state == AT_BARRIER ? "__syncthreads" : t.operation;
        who += "\n  from thread " + std::to_string(i) + ": " + operation + " at line " +
               std::to_string(t.line);
        told++;
    }
    fail(0, "deadlock: %d threads have exited, the others wait:%s", exited, who.c_str());
}

Thread* next_thread() {
    size_t at = ready.size() - 1;  // as far as it goes
    if (policy == 0) at = chance(unsigned(ready.size()));
    if (policy == 1) at = chance(2) ? at : 0;
    Thread* thread = ready[at];
    ready[at] = ready.back();
    ready.pop_back();
    return thread;
}

void run_block(uint64_t number) {
    const Launch& l = *now;
    block = {unsigned(number % l.grid.x), unsigned(number / l.grid.x % l.grid.y),
             unsigned(number / l.grid.x / l.grid.y)};
    exited = waiting = votes = 0;
    for (const Range& range : {static_shared(), dynamic})
        poison(const_cast<char*>(range.data), range.size, kind_of_poison + number);
    watch_block(watched, thread_count);
    for (int i = 0; i < thread_count; i++) {
        threads[i].index = {i % l.block.x, i / l.block.x % l.block.y, i / l.block.x / l.block.y};
        make_ready(&threads[i]);
    }
    for (int i = thread_count; i-- > 1;) std::swap(ready[i], ready[chance(i + 1)]);
    while (!ready.empty()) {
        current = next_thread();
        watch_thread(watched + current->number);
        switch_context(&scheduler, &current->context);
        switch (current->state) {
            case READY: ready.push_back(current); break;
            case AT_EXCHANGE: try_exchange(current); break;
            case AT_BARRIER: try_barrier(); break;
            case EXITED:
                after_exit(current);
                try_barrier();
                break;
        }
    }
    if (exited < thread_count) report_deadlock();
}

[[noreturn]] void out_of_time(int) {
    fail_at(watched_place(), "no end after %u seconds: it waits for another block?", seconds());
}

}  // namespace

Index thread_index() { return current->index; }
Index block_index() { return block; }
Index block_size() { return now->block; }
Index grid_size() { return now->grid; }
unsigned lane() { return unsigned(current->number) % 32; }
void* dynamic_shared() { return const_cast<char*>(dynamic.data); }

int barrier(bool predicate, int line) {
    if (waiting && line != barrier_line)
        fail(line, "a divergent barrier: other threads wait at line %d", barrier_line);
    barrier_line = line;
    current->line = line;
    waiting++;
    votes += predicate;
    leave(AT_BARRIER);
    return current->result;
}

void exchange(unsigned mask, const char* operation, uint64_t value, uint64_t* values, int line) {
    current->mask = mask;
    current->operation = operation;
    current->value = value;
    current->values = values;
    current->line = line;
    leave(AT_EXCHANGE);
}

void warp_barrier(unsigned mask, int line) { exchange(mask, SYNCWARP, 0, nullptr, line); }

void fence(bool device, int) {
    if (device) watch_fence();
    if (chance(2)) leave(READY);
}

void before_atomic(const void* address, size_t size, int line) {
    if (chance(2)) leave(READY);
    watch_atomic(address, size, line);
}

namespace {

[[noreturn]] void report(const char* where, const char* format, va_list list) {
    char message[4000];
    vsnprintf(message, sizeof message, format, list);
    const Index thread = current ? current->index : Index{};
    fprintf(stderr, "simt: %s, block (%u, %u, %u), thread (%u, %u, %u), %s: %s\n",
            now ? now->name : "no kernel", block.x, block.y, block.z, thread.x, thread.y, thread.z,
            where, message);
    _exit(3);
}

}  // namespace

void fail(int line, const char* format, ...) {
    va_list list;
    va_start(list, format);
    report(("line " + std::to_string(line)).c_str(), format, list);
}

void fail_at(const void* place, const char* format, ...) {
    char where[40];
    snprintf(where, sizeof where, "at %p", place);
    va_list list;
    va_start(list, format);
    report(where, format, list);
}

void run(const Launch& launch, uint64_t seed) {
    if (!stacks) {
        const int access = PROT_READ | PROT_WRITE;
        const int kind = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
        void* made = mmap(nullptr, MOST_THREADS * STACK, access, kind, -1, 0);
        if (made == MAP_FAILED) fail(0, "no memory for stacks");
        stacks = static_cast<char*>(made);
        signal(SIGALRM, out_of_time);
    }
    now = &launch;
    thread_count = int(launch.block.x * launch.block.y * launch.block.z);
    if (thread_count < 1 || thread_count > MOST_THREADS) fail(0, "%d threads a block", thread_count);
    for (int i = 0; i < thread_count; i++) {
        threads[i] = Thread{};
        threads[i].number = i;
        make_context(&threads[i].context, stacks + size_t(i) * STACK, STACK, live);
    }
    state_of_chance = 0x9e3779b97f4a7c15 * (seed + 1);
    policy = int(seed % 3);
    kind_of_poison = seed;
    std::vector<char> memory(launch.shared + 256);
    const uintptr_t aligned = (uintptr_t(memory.data()) + 255) & ~uintptr_t(255);
    dynamic = {reinterpret_cast<char*>(aligned), launch.shared};
    watch_launch({stacks, MOST_THREADS * STACK}, dynamic);
    alarm(seconds());
    std::vector<uint32_t> order(size_t(launch.grid.x) * launch.grid.y * launch.grid.z);
    for (size_t i = 0; i < order.size(); i++) order[i] = uint32_t(i);
    for (size_t i = order.size(); seed && i-- > 1;) std::swap(order[i], order[chance(i + 1)]);
    for (const uint32_t number : order) run_block(number);
    alarm(0);
    watch_thread(nullptr);
    current = nullptr;
}

}  // namespace simt
