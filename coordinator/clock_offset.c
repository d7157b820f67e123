#include "coordinator/clock_offset.h"

enum { HALF = 2 };

void clock_offset_observe(struct clock_offset *offset, uint64_t sent_ns, uint64_t heard_ns,
                          uint64_t answered_ns, uint64_t now_ns) {
    bool is_possible = sent_ns <= now_ns && heard_ns <= answered_ns &&
                       answered_ns - heard_ns <= now_ns - sent_ns && now_ns <= INT64_MAX / HALF &&
                       answered_ns <= INT64_MAX / HALF;
    if (!is_possible) return;
    uint32_t place = offset->exchange_count % CLOCK_OFFSET_SAMPLE_COUNT;
    // ((heard - sent) + (answered - now)) / 2, the sums first.
    int64_t twice_ns = (int64_t)(heard_ns + answered_ns) - (int64_t)(sent_ns + now_ns);
    offset->exchanges[place] = (struct clock_exchange){
        .round_trip_ns = (now_ns - sent_ns) - (answered_ns - heard_ns),
        .offset_ns = twice_ns / HALF,
    };
    offset->exchange_count++;
    uint32_t count = offset->exchange_count < CLOCK_OFFSET_SAMPLE_COUNT
                         ? offset->exchange_count
                         : (uint32_t)CLOCK_OFFSET_SAMPLE_COUNT;
    offset->best = offset->exchanges[0];
    for (uint32_t i = 1; i < count; i++)
        if (offset->exchanges[i].round_trip_ns < offset->best.round_trip_ns)
            offset->best = offset->exchanges[i];
}

bool clock_offset_is_known(const struct clock_offset *offset) {
    return offset->is_same_clock || offset->exchange_count > 0;
}

uint64_t clock_offset_to_ours(const struct clock_offset *offset, uint64_t stage_ns) {
    if (offset->is_same_clock) return stage_ns;
    int64_t offset_ns = offset->best.offset_ns;
    if (offset_ns < 0) return stage_ns + (uint64_t)-offset_ns;
    return stage_ns > (uint64_t)offset_ns ? stage_ns - (uint64_t)offset_ns : 0;
}
