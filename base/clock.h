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
// Names the clock that clock_system() reads: the machine since it was started, and the time
// namespace. Empty when that is not known.
enum { CLOCK_ID_BYTES_MAX = 95 };
void clock_system_id(char id_out[CLOCK_ID_BYTES_MAX + 1]);

static inline uint64_t clock_now_ns(const struct clock *clock) {
    return clock->now_ns(clock->ctx);
}

static inline uint64_t clock_now_ms(const struct clock *clock) {
    return clock->now_ns(clock->ctx) / 1000000;
}
