// What is told of a process whose main thread, work or pipeline gets on, or does not.
#include "rpc_world.h"

#include "grpc/health/v1/health.pb-c.h"
#include "transport/readiness.h"

#define HEALTH (&grpc__health__v1__health__descriptor)
#define READY "a.Service"

enum { TICK_MS_MAX = 200, STALL_MS_MAX = 400 };

struct process {
    struct rpc_health *health;
    struct readiness *readiness;
    struct rpc *rpc;
    struct rpc_channel *channel;
    struct readiness_report report;
};

static void open_process(struct process *p) {
    static const char *const services[] = {READY, "b.Service"};
    struct error error = {0};
    uint16_t port;
    *p = (struct process){0};
    assert_int_equal(rpc_health_open(&p->health), STATUS_OK);
    assert_int_equal(rpc_open(&(struct rpc_config){0}, &p->rpc), STATUS_OK);
    assert_int_equal(rpc_health_add(p->health, p->rpc, &error), STATUS_OK);
    const struct readiness_config config = {.clock = clock_system(),
                                            .health = p->health,
                                            .services = services,
                                            .service_count = 2,
                                            .tick_ms_max = TICK_MS_MAX,
                                            .stall_ms_max = STALL_MS_MAX};
    assert_int_equal(readiness_open(&config, &p->readiness), STATUS_OK);
    assert_int_equal(rpc_serve(p->rpc, "127.0.0.1:0", &port, &error), STATUS_OK);
    char target[64];
    snprintf(target, sizeof(target), "127.0.0.1:%u", port);
    assert_int_equal(rpc_channel_open(p->rpc, target, &p->channel), STATUS_OK);
}

static void close_process(struct process *p) {
    rpc_channel_close(p->channel);
    readiness_close(p->readiness);
    rpc_close(p->rpc, 0);
    rpc_health_close(p->health);
}

static bool is_serving(struct process *p, const char *service) {
    Grpc__Health__V1__HealthCheckRequest request = GRPC__HEALTH__V1__HEALTH_CHECK_REQUEST__INIT;
    request.service = (char *)(uintptr_t)service;
    ProtobufCMessage *response = NULL;
    assert_int_equal(rpc_call_wait(p->channel, HEALTH, "Check", &request.base,
                                   &(struct rpc_call_options){.deadline_ms = WAIT_MS}, &response,
                                   NULL),
                     RPC_OK);
    bool is = ((Grpc__Health__V1__HealthCheckResponse *)response)->status ==
              GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVING;
    protobuf_c_message_free_unpacked(response, NULL);
    return is;
}

static void assert_told(struct process *p, bool is_live, bool is_ready) {
    assert_int_equal(is_serving(p, ""), is_live);
    assert_int_equal(is_serving(p, READY), is_ready);
    assert_int_equal(is_serving(p, "b.Service"), is_ready);
}

enum moves { NOTHING_MOVES, OWED_MOVES, WORK_MOVES };

static void tick(struct process *p, enum moves moves) {
    if (moves == OWED_MOVES) p->report.owed_count++;
    if (moves == WORK_MOVES) p->report.work_count++;
    readiness_tick(p->readiness, &p->report);
    usleep(10000);
}

static void tick_for(struct process *p, unsigned ms, enum moves moves) {
    for (unsigned i = 0; i < ms / 10; i++)
        tick(p, moves);
}

// Ticks until the two are told, in bounded time: this thread may have been kept from running.
static void tick_until(struct process *p, bool is_live, bool is_ready, enum moves moves) {
    for (int i = 0; i < WAIT_MS / 10; i++) {
        tick(p, moves);
        if (is_serving(p, "") == is_live && is_serving(p, READY) == is_ready) return;
    }
    fail_msg("not told: live %d, ready %d", is_live, is_ready);
}

static void a_process_is_live_first_and_ready_when_it_says_so(void **state) {
    (void)state;
    struct process p;
    open_process(&p);
    assert_told(&p, true, false);
    p.report.is_ready = true;
    tick_until(&p, true, true, NOTHING_MOVES);
    tick_for(&p, 2 * STALL_MS_MAX, NOTHING_MOVES); // idle
    tick_until(&p, true, true, NOTHING_MOVES);
    p.report.is_ready = false;
    tick_until(&p, true, false, NOTHING_MOVES);
    assert_told(&p, true, false);
    close_process(&p);
}

static void a_main_thread_that_stands_still_is_neither(void **state) {
    (void)state;
    struct process p;
    open_process(&p);
    p.report.is_ready = true;
    tick_until(&p, true, true, NOTHING_MOVES);
    usleep(4 * TICK_MS_MAX * 1000);
    assert_told(&p, false, false);
    tick_until(&p, true, true, NOTHING_MOVES);
    close_process(&p);
}

static void what_is_owed_and_stands_still_is_live_but_not_ready(void **state) {
    (void)state;
    struct process p;
    open_process(&p);
    p.report.is_ready = p.report.is_owed = true;
    tick_for(&p, 3 * STALL_MS_MAX, OWED_MOVES); // busy
    tick_until(&p, true, true, OWED_MOVES);
    tick_for(&p, 2 * STALL_MS_MAX, NOTHING_MOVES);
    tick_until(&p, true, false, NOTHING_MOVES);
    tick_until(&p, true, true, OWED_MOVES);
    tick_for(&p, 2 * STALL_MS_MAX, NOTHING_MOVES);
    tick_until(&p, true, false, NOTHING_MOVES);
    p.report.is_owed = false;
    tick_until(&p, true, true, NOTHING_MOVES);
    close_process(&p);
}

static void work_that_stands_still_is_not_live(void **state) {
    (void)state;
    struct process p;
    open_process(&p);
    p.report.is_ready = p.report.is_working = true;
    tick_for(&p, 3 * STALL_MS_MAX, WORK_MOVES);
    tick_until(&p, true, true, WORK_MOVES);
    tick_for(&p, 2 * STALL_MS_MAX, NOTHING_MOVES);
    tick_until(&p, false, false, NOTHING_MOVES);
    tick_until(&p, true, true, WORK_MOVES);
    close_process(&p);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_process_is_live_first_and_ready_when_it_says_so),
        cmocka_unit_test(a_main_thread_that_stands_still_is_neither),
        cmocka_unit_test(what_is_owed_and_stands_still_is_live_but_not_ready),
        cmocka_unit_test(work_that_stands_still_is_not_live),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
