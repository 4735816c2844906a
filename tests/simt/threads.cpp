// Threads as threads of the operating system, under ThreadSanitizer: a second opinion on races.
// One block at a time. Barriers order memory here; shuffles, votes and atomics are relaxed.
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <atomic>
#include <climits>
#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>
#include "engine.h"
#include "memory.h"

extern "C" char __start_simt_shared[] __attribute__((weak));
extern "C" char __stop_simt_shared[] __attribute__((weak));

namespace simt {
namespace {


// Where `expected` threads wait for each other, again and again, and leave values for the others.
class Meeting {
  public:
    explicit Meeting(int expected) : expected_(expected) {}

    // Returns how many said yes.
    int meet(bool yes, bool orders_memory) {
        const auto order = orders_memory ? std::memory_order_acq_rel : std::memory_order_relaxed;
        const auto see = orders_memory ? std::memory_order_acquire : std::memory_order_relaxed;
        const uint32_t turn = turn_.load(std::memory_order_relaxed);
        votes_[turn & 1].fetch_add(yes, std::memory_order_relaxed);
        if (come_.fetch_add(1, order) + 1 == expected_) {
            come_.store(0, std::memory_order_relaxed);
            votes_[~turn & 1].store(0, std::memory_order_relaxed);
            turn_.fetch_add(1, order);
            futex(FUTEX_WAKE_PRIVATE, INT_MAX);
        } else {
            while (turn_.load(see) == turn) futex(FUTEX_WAIT_PRIVATE, turn);
        }
        return votes_[turn & 1].load(std::memory_order_relaxed);
    }

    void exchange(unsigned lane, uint64_t value, uint64_t* values) {
        const uint32_t turn = turn_.load(std::memory_order_relaxed);
        left_[turn & 1][lane].store(value, std::memory_order_relaxed);
        meet(false, false);
        for (int i = 0; i < 32; i++) values[i] = left_[turn & 1][i].load(std::memory_order_relaxed);
    }

  private:
    // The standard library's wait would order memory, and so hide races.
    void futex(int operation, uint32_t value) {
        syscall(SYS_futex, reinterpret_cast<uint32_t*>(&turn_), operation, value, nullptr);
    }

    const int expected_;
    std::atomic<int> come_ = 0, votes_[2] = {0, 0};
    std::atomic<uint32_t> turn_ = 0;
    std::atomic<uint64_t> left_[2][32] = {};
};

struct Warp {
    std::mutex mutex;
    std::map<unsigned, std::unique_ptr<Meeting>> meetings;  // by mask

    Meeting& of(unsigned mask) {
        const std::lock_guard lock(mutex);
        std::unique_ptr<Meeting>& meeting = meetings[mask];
        if (!meeting) meeting = std::make_unique<Meeting>(__builtin_popcount(mask));
        return *meeting;
    }
};

const Launch* now;
Index block;
std::unique_ptr<Meeting> everyone;
std::vector<Warp> warps;
char* dynamic;
thread_local int number;
thread_local Index index;

unsigned present() {  // lanes of the own warp
    const int threads = int(now->block.x * now->block.y * now->block.z);
    const int left = threads - number / 32 * 32;
    return left >= 32 ? 0xffffffffu : (1u << left) - 1;
}

void live(int which, uint64_t seed) {
    number = which;
    const Launch& l = *now;
    const unsigned i = unsigned(which);
    index = {i % l.block.x, i / l.block.x % l.block.y, i / l.block.x / l.block.y};
    const uint64_t blocks = uint64_t(l.grid.x) * l.grid.y * l.grid.z;
    for (uint64_t b = 0; b < blocks; b++) {
        if (which == 0) {
            block = {unsigned(b % l.grid.x), unsigned(b / l.grid.x % l.grid.y),
                     unsigned(b / l.grid.x / l.grid.y)};
            poison(__start_simt_shared, size_t(__stop_simt_shared - __start_simt_shared), seed + b);
            poison(dynamic, l.shared, seed + b);
        }
        everyone->meet(false, true);
        l.entry(l.arguments);
        everyone->meet(false, true);
    }
}

[[noreturn]] void out_of_time(int) { fail(0, "no end after %u seconds", seconds()); }

}  // namespace

std::vector<Array> arrays;
void watch_arrays(const std::vector<Shared>&) {}

Index thread_index() { return index; }
Index block_index() { return block; }
Index block_size() { return now->block; }
Index grid_size() { return now->grid; }
unsigned lane() { return unsigned(number) % 32; }
void* dynamic_shared() { return dynamic; }

int barrier(bool predicate, int) { return everyone->meet(predicate, true); }

void exchange(unsigned mask, const char*, uint64_t value, uint64_t* values, int) {
    warps[size_t(number) / 32].of(mask).exchange(lane(), value, values);
}

void warp_barrier(unsigned mask, int) {
    warps[size_t(number) / 32].of(mask & present()).meet(false, true);
}

void fence(bool, int) {}  // blocks do not overlap here, and inside one it is no barrier
void before_atomic(const void*, size_t, int) {}

void fail(int line, const char* format, ...) {
    va_list list;
    va_start(list, format);
    fprintf(stderr, "simt: %s, line %d: ", now ? now->name : "no kernel", line);
    vfprintf(stderr, format, list);
    _exit(3);
}

void run(const Launch& launch, uint64_t seed) {
    now = &launch;
    const int count = int(launch.block.x * launch.block.y * launch.block.z);
    everyone = std::make_unique<Meeting>(count);
    warps = std::vector<Warp>(size_t(count + 31) / 32);
    std::vector<char> memory(launch.shared + 256);
    dynamic = reinterpret_cast<char*>((uintptr_t(memory.data()) + 255) & ~uintptr_t(255));
    signal(SIGALRM, out_of_time);
    alarm(seconds());
    std::vector<std::thread> threads;
    for (int i = 0; i < count; i++) threads.emplace_back(live, i, seed);
    for (std::thread& thread : threads) thread.join();
    alarm(0);
}

}  // namespace simt
