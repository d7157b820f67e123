// progress: how long something has stood still, told by a count that moves while it does not. One
// looks at it every so often; nothing is asked of the one that works but to count.
#pragma once

#include <stdbool.h>
#include <stdint.h>

// All zero before the first look. Owned by the thread that looks.
struct progress {
    uint64_t count;
    uint64_t looked_ms;
    uint64_t still_ms;
    bool is_seen;
};

// How long there has been something to do (`is_owed`) and `count` has been the same; 0 when nothing
// is to be done. A pause of more than pause_ms_max between two looks counts as so much only: then
// it was the looker that stood still, with the whole process or the machine.
uint64_t progress_still_ms(struct progress *progress, uint64_t count, bool is_owed, uint64_t now_ms,
                           uint64_t pause_ms_max);
