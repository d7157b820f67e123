#include "client/retry.h"

#include <sys/random.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/limits.h"
#include "base/rng.h"

void retry_init(struct retry *retry, uint32_t limit_ms, uint64_t seed) {
    *retry = (struct retry){.limit_ms = limit_ms, .seed = seed};
}

uint64_t retry_draw(void) {
    uint64_t seed;
    if (getrandom(&seed, sizeof(seed), GRND_NONBLOCK) == (ssize_t)sizeof(seed)) return seed;
    struct clock clock = clock_system();
    return clock_now_ns(&clock) ^ (uint64_t)getpid() << 32;
}

void retry_progress(struct retry *retry) {
    retry->failure_count = 0;
    retry->is_noted = false;
}

static bool may_pass(const struct retry_failure *failure) {
    if (failure->said_ms == RPC_RETRY_NEVER) return false;
    if (failure->code == RPC_UNAVAILABLE) return true;
    return failure->code == RPC_RESOURCE_EXHAUSTED && failure->said_ms != RPC_RETRY_UNSAID;
}

static uint32_t backoff_ms(const struct retry *retry) {
    uint32_t wait_ms = CLIENT_RETRY_FIRST_MS;
    for (uint32_t i = 1; i < retry->failure_count && wait_ms < CLIENT_RETRY_LAST_MS; i++)
        wait_ms *= 2;
    return wait_ms < CLIENT_RETRY_LAST_MS ? wait_ms : CLIENT_RETRY_LAST_MS;
}

static double wait_ms(struct retry *retry, const struct retry_failure *failure) {
    double uniform = rng_uniform(retry->seed, retry->draw_count++);
    if (failure->said_ms == RPC_RETRY_UNSAID) return backoff_ms(retry) * (1 - uniform / 2);
    // Never at once, whatever the server said: this is a loop.
    double said_ms =
        failure->said_ms > CLIENT_RETRY_FIRST_MS ? failure->said_ms : CLIENT_RETRY_FIRST_MS;
    return said_ms * (1 + uniform / 8);
}

bool retry_plan(struct retry *retry, const struct retry_failure *failure, uint64_t now_ms,
                struct retry_plan *plan_out) {
    if (retry->limit_ms == 0 || !may_pass(failure)) return false;
    if (retry->failure_count++ == 0) retry->failed_ms = now_ms;
    double spent_ms = (double)(now_ms - retry->failed_ms);
    double wait = wait_ms(retry, failure);
    if (spent_ms + wait > retry->limit_ms) return false;
    *plan_out = (struct retry_plan){
        .wait_ms = (uint32_t)wait,
        .left_ms = retry->limit_ms - (uint32_t)spent_ms,
        .is_notable =
            !retry->is_noted && (retry->failure_count > 1 || wait >= CLIENT_RETRY_QUIET_MS),
    };
    retry->is_noted = retry->is_noted || plan_out->is_notable;
    return true;
}
