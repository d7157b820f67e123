#include "coordinator/throughput.h"

#include "base/limits.h"

enum { SPAN_MS = 1000, WAIT_MS_UNKNOWN = 1000 };

void throughput_init(struct throughput *throughput, uint64_t now_ms) {
    *throughput = (struct throughput){.since_ms = now_ms, .per_ms = -1};
}

// With the span that is counted now, once it is long enough to say something.
static double rate_per_ms(const struct throughput *t, uint64_t now_ms) {
    uint64_t span_ms = now_ms - t->since_ms;
    if (span_ms < SPAN_MS) return t->per_ms;
    double rate = (double)t->count / (double)span_ms;
    if (t->per_ms < 0) return rate;
    // The longer a span, the less what was before it counts.
    double old_share = (double)SPAN_MS / (double)(SPAN_MS + span_ms);
    return old_share * t->per_ms + (1 - old_share) * rate;
}

void throughput_count(struct throughput *throughput, uint64_t now_ms) {
    throughput->count++;
    if (now_ms - throughput->since_ms < SPAN_MS) return;
    throughput->per_ms = rate_per_ms(throughput, now_ms);
    throughput->since_ms = now_ms;
    throughput->count = 0;
}

uint32_t throughput_wait_ms(const struct throughput *throughput, uint64_t now_ms, uint32_t count) {
    double rate = rate_per_ms(throughput, now_ms);
    if (rate < 0) return WAIT_MS_UNKNOWN;
    double wait_ms = rate > 0 ? count / rate : RETRY_MS_MAX;
    if (wait_ms < RETRY_MS_MIN) return RETRY_MS_MIN;
    return wait_ms < RETRY_MS_MAX ? (uint32_t)wait_ms : RETRY_MS_MAX;
}
