// wake: lets one thread sleep until another has put something into a ring (an eventfd).
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

struct wake {
    int fd; // readable while a signal is pending; may be polled together with other descriptors
};

MUST_USE enum status wake_init(struct wake *wake);
void wake_fini(struct wake *wake);
// Any thread, and signal handlers.
void wake_signal(struct wake *wake);
// Sleeps until a signal or for timeout_ms (negative: no limit), and clears pending signals.
void wake_wait(struct wake *wake, int timeout_ms);
// Whether a signal is pending. Any thread.
bool wake_is_pending(const struct wake *wake);
// Clears pending signals without sleeping.
void wake_clear(struct wake *wake);
