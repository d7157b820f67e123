#include "base/clock.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

static uint64_t system_now_ns(void *ctx) {
    (void)ctx;
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

struct clock clock_system(void) {
    return (struct clock){.now_ns = system_now_ns, .ctx = NULL};
}

void clock_system_id(char id_out[CLOCK_ID_BYTES_MAX + 1]) {
    id_out[0] = '\0';
    char boot_id[40], name_space[40];
    FILE *file = fopen("/proc/sys/kernel/random/boot_id", "re");
    if (file == NULL) return;
    bool is_read = fscanf(file, "%39s", boot_id) == 1;
    fclose(file);
    if (!is_read) return;
    // Kernels without time namespaces have one clock a machine.
    ssize_t size = readlink("/proc/self/ns/time", name_space, sizeof(name_space) - 1);
    name_space[size > 0 ? size : 0] = '\0';
    snprintf(id_out, CLOCK_ID_BYTES_MAX + 1, "%s %s", boot_id, name_space);
}
