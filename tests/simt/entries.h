// The kernels of a source, as the machine calls them: arguments come as addresses of their values.
#pragma once
#include <type_traits>
#include <utility>
#include "engine.h"

namespace simt {

template <class T> constexpr Parameter parameter() {
    if (std::is_pointer_v<T>) return {'p', sizeof(T)};
    if (std::is_floating_point_v<T>) return {'f', sizeof(T)};
    if (std::is_integral_v<T>) return {'i', sizeof(T)};
    return {'s', sizeof(T)};
}

template <auto kernel> struct Called;
template <class... T, void (*kernel)(T...)> struct Called<kernel> {
    static constexpr Parameter parameters[] = {parameter<T>()..., {0, 0}};

    static void enter(void** arguments) { enter(arguments, std::index_sequence_for<T...>()); }

  private:
    template <size_t... i>
    __attribute__((no_sanitize("thread"))) static void enter(void** arguments,
                                                             std::index_sequence<i...>) {
        kernel(*static_cast<T*>(arguments[i])...);
    }
};

constexpr int largest_block(int threads = 0, int = 0, int = 0) { return threads; }

#define SIMT_KERNEL(name, ...)                                                     \
    {#name, simt::Called<name>::enter, simt::Called<name>::parameters,             \
     int(sizeof simt::Called<name>::parameters / sizeof(simt::Parameter)) - 1,     \
     simt::largest_block(__VA_ARGS__)}

}  // namespace simt
