// ring: a bounded queue of pointers between threads (several producers, several consumers) without
// locks. After D. Vyukov, "Bounded MPMC queue".
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "base/status.h"

struct ring;

// capacity_count is a power of two, at least 2. STATUS_NO_MEMORY.
MUST_USE enum status ring_open(size_t capacity_count, struct ring **ring_out);
void ring_close(struct ring *ring); // NULL allowed; entries left inside are not freed

// Never waits. False when full: the caller keeps the entry.
MUST_USE bool ring_give(struct ring *ring, void *entry);
// Never waits. NULL when empty.
void *ring_take(struct ring *ring);
