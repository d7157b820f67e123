#include "base/clock.h"

#include <stddef.h>
#include <time.h>

static uint64_t system_now_ns(void *ctx) {
    (void)ctx;
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

struct clock clock_system(void) {
    return (struct clock){.now_ns = system_now_ns, .ctx = NULL};
}
