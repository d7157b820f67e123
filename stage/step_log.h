// step_log: when the last steps were received and computed, from the compute thread that records
// them to the control thread that reports them. A bounded ring without locks: one thread writes,
// one reads. A step that finds it full is not recorded.
#pragma once

#include <stdatomic.h>
#include <stdint.h>

#include "base/limits.h"

// All times are of the stage's own clock.
struct step_record {
    uint64_t epoch, step;
    uint64_t received_ns, begin_ns, end_ns;
};

struct step_log {
    struct step_record records[STEP_LOG_COUNT_MAX];
    atomic_uint_fast64_t written_count, read_count; // records[count & (max - 1)] is the next place
};

// A zeroed step_log is empty.
void step_log_write(struct step_log *log, const struct step_record *record); // the compute thread
uint32_t step_log_count(struct step_log *log);                               // the control thread
// Takes the oldest `count_max` at most; returns how many. The control thread.
uint32_t step_log_take(struct step_log *log, struct step_record *records_out, uint32_t count_max);
