#include "transport/readiness.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "base/limits.h"
#include "base/log.h"
#include "base/progress.h"
#include "base/wake.h"

struct readiness {
    struct readiness_config config;
    struct wake wake; // the thread's
    pthread_t thread;
    atomic_bool is_closing;

    // From the main thread. Each is read by itself: that two belong together a look later is
    // enough.
    atomic_uint_fast64_t tick_count, owed_count, work_count;
    atomic_bool is_ready, is_owed, is_working;

    // The thread's own.
    struct progress tick, owed, work;
    bool was_alive, was_stalled;
};

static uint64_t look_ms(const struct readiness *r) {
    // Small limits are for tests, which want to see them kept.
    uint32_t ms = READINESS_LOOK_MS;
    if (r->config.tick_ms_max / 4 < ms) ms = r->config.tick_ms_max / 4 + 1;
    if (r->config.stall_ms_max / 4 < ms) ms = r->config.stall_ms_max / 4 + 1;
    return ms;
}

static void tell(struct readiness *r, bool is_alive, bool is_ready) {
    struct rpc_health *health = r->config.health;
    rpc_health_set(health, "", is_alive ? RPC_HEALTH_SERVING : RPC_HEALTH_NOT_SERVING);
    for (size_t i = 0; i < r->config.service_count; i++)
        rpc_health_set(health, r->config.services[i],
                       is_ready ? RPC_HEALTH_SERVING : RPC_HEALTH_NOT_SERVING);
}

static void look(struct readiness *r) {
    uint64_t now_ms = clock_now_ms(&r->config.clock), pause_ms_max = 2 * look_ms(r);
    uint64_t tick_ms =
        progress_still_ms(&r->tick, atomic_load(&r->tick_count), true, now_ms, pause_ms_max);
    uint64_t work_ms = progress_still_ms(&r->work, atomic_load(&r->work_count),
                                         atomic_load(&r->is_working), now_ms, pause_ms_max);
    uint64_t owed_ms = progress_still_ms(&r->owed, atomic_load(&r->owed_count),
                                         atomic_load(&r->is_owed), now_ms, pause_ms_max);
    bool is_alive = tick_ms < r->config.tick_ms_max && work_ms < r->config.stall_ms_max;
    bool is_stalled = owed_ms >= r->config.stall_ms_max;
    if (r->was_alive && !is_alive)
        log_error("not alive: the main thread has stood still for %llu ms, the work for %llu ms",
                  (unsigned long long)tick_ms, (unsigned long long)work_ms);
    if (is_stalled && !r->was_stalled)
        log_error("not ready: nothing in flight has got on for %llu ms",
                  (unsigned long long)owed_ms);
    if ((is_alive && !r->was_alive) || (!is_stalled && r->was_stalled))
        log_warn("what stood still gets on again");
    r->was_alive = is_alive;
    r->was_stalled = is_stalled;
    tell(r, is_alive, is_alive && !is_stalled && atomic_load(&r->is_ready));
}

static void *run(void *ctx) {
    struct readiness *r = ctx;
    while (!atomic_load(&r->is_closing)) {
        look(r);
        wake_wait(&r->wake, (int)look_ms(r));
    }
    return NULL;
}

enum status readiness_open(const struct readiness_config *config,
                           struct readiness **readiness_out) {
    struct readiness *r = calloc(1, sizeof(*r));
    if (r == NULL) return STATUS_NO_MEMORY;
    r->config = *config;
    if (r->config.tick_ms_max == 0) r->config.tick_ms_max = READINESS_TICK_MS;
    r->was_alive = true;
    enum status status = wake_init(&r->wake);
    if (status != STATUS_OK) goto free_readiness;
    tell(r, true, false);
    if (pthread_create(&r->thread, NULL, run, r) != 0) {
        status = STATUS_IO;
        goto fini_wake;
    }
    (void)pthread_setname_np(r->thread, "readiness");
    *readiness_out = r;
    return STATUS_OK;
fini_wake:
    wake_fini(&r->wake);
free_readiness:
    free(r);
    return status;
}

void readiness_close(struct readiness *r) {
    if (r == NULL) return;
    atomic_store(&r->is_closing, true);
    wake_signal(&r->wake);
    pthread_join(r->thread, NULL);
    wake_fini(&r->wake);
    free(r);
}

void readiness_tick(struct readiness *r, const struct readiness_report *report) {
    atomic_store(&r->owed_count, report->owed_count);
    atomic_store(&r->work_count, report->work_count);
    atomic_store(&r->is_owed, report->is_owed);
    atomic_store(&r->is_working, report->is_working);
    atomic_fetch_add(&r->tick_count, 1);
    if (atomic_exchange(&r->is_ready, report->is_ready) != report->is_ready) wake_signal(&r->wake);
}
