// machine: what /sys and /proc say about processors: which are one physical core, which are online,
// and how much processor time the control groups leave this process. Every file may be missing or
// odd: what cannot be read limits nothing.
//
// A processor is what Linux numbers (a hardware thread); its id is below PROCESSOR_ID_COUNT.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/limits.h"

struct processor_set {
    uint64_t words[PROCESSOR_ID_COUNT / 64];
};

static inline bool processor_set_has(const struct processor_set *set, uint32_t id) {
    return id < PROCESSOR_ID_COUNT && (set->words[id / 64] >> (id % 64) & 1) != 0;
}

static inline void processor_set_add(struct processor_set *set, uint32_t id) {
    if (id < PROCESSOR_ID_COUNT) set->words[id / 64] |= UINT64_C(1) << (id % 64);
}

uint32_t processor_set_count(const struct processor_set *set);

// Reads "7" or "4-7" (decimal, last not below first) and moves *text behind it. False when *text
// does not begin with one; then nothing is written.
bool processor_range_read(const char **text, uint64_t *first_out, uint64_t *last_out);

// The affinity mask of the calling thread: processors that do not exist or are offline are not in
// it. Never empty.
void machine_allowed(struct processor_set *set_out);

// `allowed` without processors that are offline or are hardware threads of a physical core that is
// in already: one processor a core, the lowest. Never empty when `allowed` is not.
//   root: "" for this machine; a test puts its own sys/ and proc/ below a folder.
void machine_physical_cores(const char *root, const struct processor_set *allowed,
                            struct processor_set *set_out);

// Thousandths of a processor that the CPU quotas of this process's control group and all groups
// above it allow; UINT64_MAX without a quota. Control groups of version 2 (cpu.max) and 1
// (cpu.cfs_quota_us and cpu.cfs_period_us), see cgroups(7) and the kernel's cgroup-v2 and
// sched-bwc documents.
uint64_t machine_quota_milli(const char *root);
