// clock_offset: how far the clock of a stage is from ours, learnt from messages that go both ways
// (as NTP does, RFC 5905 section 8). Of the last exchanges the one with the shortest round trip
// counts: the offset is wrong by at most half of it.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/limits.h"

struct clock_exchange {
    uint64_t round_trip_ns; // without the time that the stage took to answer
    int64_t offset_ns;
};

// Zeroed: nothing is known.
struct clock_offset {
    bool is_same_clock; // the offset is 0
    uint32_t exchange_count;
    struct clock_exchange exchanges[CLOCK_OFFSET_SAMPLE_COUNT]; // the last ones, a ring
    struct clock_exchange best;
};

// We sent at sent_ns and the answer came at now_ns (our clock); the stage heard us at heard_ns and
// answered at answered_ns (its clock). Impossible times are ignored.
void clock_offset_observe(struct clock_offset *offset, uint64_t sent_ns, uint64_t heard_ns,
                          uint64_t answered_ns, uint64_t now_ns);

bool clock_offset_is_known(const struct clock_offset *offset);
// A time of the stage's clock on ours; 0 when it is before our clock's start.
uint64_t clock_offset_to_ours(const struct clock_offset *offset, uint64_t stage_ns);
