#include "base/progress.h"

uint64_t progress_still_ms(struct progress *progress, uint64_t count, bool is_owed, uint64_t now_ms,
                           uint64_t pause_ms_max) {
    uint64_t pause_ms = now_ms - progress->looked_ms;
    if (pause_ms > pause_ms_max) pause_ms = pause_ms_max;
    bool is_still = is_owed && progress->is_seen && progress->count == count;
    progress->still_ms = is_still ? progress->still_ms + pause_ms : 0;
    progress->count = count;
    progress->looked_ms = now_ms;
    // What was not owed before is not late now.
    progress->is_seen = is_owed;
    return progress->still_ms;
}
