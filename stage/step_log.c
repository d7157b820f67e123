#include "stage/step_log.h"

#include <assert.h>

static_assert((STEP_LOG_COUNT_MAX & (STEP_LOG_COUNT_MAX - 1)) == 0, "a power of two");

void step_log_write(struct step_log *log, const struct step_record *record) {
    uint64_t written = atomic_load_explicit(&log->written_count, memory_order_relaxed);
    uint64_t read = atomic_load_explicit(&log->read_count, memory_order_acquire);
    if (written - read == STEP_LOG_COUNT_MAX) return;
    log->records[written & (STEP_LOG_COUNT_MAX - 1)] = *record;
    atomic_store_explicit(&log->written_count, written + 1, memory_order_release);
}

uint32_t step_log_count(struct step_log *log) {
    uint64_t written = atomic_load_explicit(&log->written_count, memory_order_acquire);
    return (uint32_t)(written - atomic_load_explicit(&log->read_count, memory_order_relaxed));
}

uint32_t step_log_take(struct step_log *log, struct step_record *records_out, uint32_t count_max) {
    uint32_t count = step_log_count(log);
    if (count > count_max) count = count_max;
    uint64_t read = atomic_load_explicit(&log->read_count, memory_order_relaxed);
    for (uint32_t i = 0; i < count; i++)
        records_out[i] = log->records[(read + i) & (STEP_LOG_COUNT_MAX - 1)];
    atomic_store_explicit(&log->read_count, read + count, memory_order_release);
    return count;
}
