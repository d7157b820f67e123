#include "tests/bench/noise.h"

#include <stdio.h>
#include <time.h>
#include <unistd.h>

#include "base/check.h"

struct noise noise_now(void) {
    struct noise noise = {0, 0, 0};
    struct timespec own;
    CHECK(clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &own) == 0);
    noise.own_seconds = (double)own.tv_sec + (double)own.tv_nsec * 1e-9;
    FILE *file = fopen("/proc/stat", "r");
    if (file == NULL) return noise;
    // user, nice, system, idle, iowait, irq, softirq, steal: proc(5)
    unsigned long long t[8] = {0};
    if (fscanf(file, "cpu %llu %llu %llu %llu %llu %llu %llu %llu", &t[0], &t[1], &t[2], &t[3],
               &t[4], &t[5], &t[6], &t[7]) == 8) {
        double tick = 1.0 / (double)sysconf(_SC_CLK_TCK);
        noise.busy_seconds = (double)(t[0] + t[1] + t[2] + t[5] + t[6] + t[7]) * tick;
        noise.idle_seconds = (double)(t[3] + t[4]) * tick;
    }
    fclose(file);
    return noise;
}

double noise_share(const struct noise *before, const struct noise *after) {
    double busy = after->busy_seconds - before->busy_seconds;
    double all = busy + after->idle_seconds - before->idle_seconds;
    double others = busy - (after->own_seconds - before->own_seconds);
    return all > 0 && others > 0 ? others / all : 0;
}
