// clock: time as an argument (law 7). Real programs pass clock_system(); tests pass their own.
#pragma once

#include <stdint.h>

struct clock {
    // Nanoseconds since an arbitrary start; never goes back. Any thread.
    uint64_t (*now_ns)(void *ctx);
    void *ctx;
};

// CLOCK_MONOTONIC.
struct clock clock_system(void);

static inline uint64_t clock_now_ns(const struct clock *clock) {
    return clock->now_ns(clock->ctx);
}

static inline uint64_t clock_now_ms(const struct clock *clock) {
    return clock->now_ns(clock->ctx) / 1000000;
}
