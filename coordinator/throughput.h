// throughput: how fast answers end, so that a client that is refused learns when to come back.
#pragma once

#include <stdint.h>

struct throughput {
    uint64_t since_ms; // begin of the span that is counted now
    uint32_t count;    // in this span
    double per_ms;     // of the spans before it, recent ones more; negative: nothing is known
};

void throughput_init(struct throughput *throughput, uint64_t now_ms);
// One more has ended.
void throughput_count(struct throughput *throughput, uint64_t now_ms);
// How long until `count` more will have ended, as fast as of late; RETRY_MS_MIN to RETRY_MS_MAX.
uint32_t throughput_wait_ms(const struct throughput *throughput, uint64_t now_ms, uint32_t count);
