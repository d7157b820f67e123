#include "client/retry.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "base/limits.h"

static const struct retry_failure UNAVAILABLE = {RPC_UNAVAILABLE, RPC_RETRY_UNSAID};

static uint32_t wait_after(struct retry *retry, struct retry_failure failure, uint64_t now_ms) {
    struct retry_plan plan;
    assert_true(retry_plan(retry, &failure, now_ms, &plan));
    return plan.wait_ms;
}

static void waits_double_up_to_the_limit_and_jitter_below(void **state) {
    (void)state;
    uint32_t least = UINT32_MAX, most = 0;
    for (uint64_t seed = 0; seed < 200; seed++) {
        struct retry retry;
        retry_init(&retry, UINT32_MAX, seed);
        uint32_t whole = CLIENT_RETRY_FIRST_MS;
        for (int i = 0; i < 10; i++) {
            uint32_t wait_ms = wait_after(&retry, UNAVAILABLE, 0);
            assert_in_range(wait_ms, whole / 2, whole);
            if (i == 0 && wait_ms < least) least = wait_ms;
            if (i == 0 && wait_ms > most) most = wait_ms;
            whole = whole * 2 < CLIENT_RETRY_LAST_MS ? whole * 2 : CLIENT_RETRY_LAST_MS;
        }
    }
    // They are spread, so that clients which failed together do not come back together.
    assert_true(most - least > CLIENT_RETRY_FIRST_MS / 3);
}

static void progress_begins_a_new_row_of_failures(void **state) {
    (void)state;
    struct retry retry;
    retry_init(&retry, 1000, 1);
    for (int i = 0; i < 3; i++)
        (void)wait_after(&retry, UNAVAILABLE, 0);
    struct retry_plan plan;
    assert_false(retry_plan(&retry, &UNAVAILABLE, 1000, &plan));
    retry_progress(&retry);
    assert_in_range(wait_after(&retry, UNAVAILABLE, 5000), 50, CLIENT_RETRY_FIRST_MS);
}

static void attempts_end_at_the_limit(void **state) {
    (void)state;
    struct retry retry;
    retry_init(&retry, 10000, 1);
    uint64_t now_ms = 77;
    int count = 0;
    struct retry_plan plan;
    for (; retry_plan(&retry, &UNAVAILABLE, now_ms, &plan); count++) {
        assert_int_equal(plan.left_ms, 77 + 10000 - now_ms);
        assert_true(plan.wait_ms <= plan.left_ms);
        now_ms += plan.wait_ms;
    }
    assert_in_range(count, 5, 20);
    assert_in_range(now_ms, 77 + 10000 - CLIENT_RETRY_LAST_MS, 77 + 10000);
    retry_init(&retry, 0, 1);
    assert_false(retry_plan(&retry, &UNAVAILABLE, 0, &plan));
}

static void what_the_server_said_is_waited_for(void **state) {
    (void)state;
    struct retry retry;
    retry_init(&retry, 60000, 1);
    for (int i = 0; i < 20; i++) {
        struct retry_failure full = {RPC_RESOURCE_EXHAUSTED, 2000};
        assert_in_range(wait_after(&retry, full, 0), 2000, 2250);
        struct retry_failure soon = {RPC_UNAVAILABLE, 0};
        assert_in_range(wait_after(&retry, soon, 0), CLIENT_RETRY_FIRST_MS,
                        CLIENT_RETRY_FIRST_MS * 9 / 8);
    }
    struct retry_plan plan;
    struct retry_failure late = {RPC_RESOURCE_EXHAUSTED, 60001};
    assert_false(retry_plan(&retry, &late, 0, &plan));
    struct retry_failure never = {RPC_UNAVAILABLE, RPC_RETRY_NEVER};
    assert_false(retry_plan(&retry, &never, 0, &plan));
}

static void what_does_not_pass_by_itself_is_not_tried_again(void **state) {
    (void)state;
    for (int code = RPC_CANCELLED; code <= RPC_UNAUTHENTICATED; code++) {
        struct retry retry;
        struct retry_plan plan;
        retry_init(&retry, 1000, 1);
        struct retry_failure unsaid = {(enum rpc_code)code, RPC_RETRY_UNSAID};
        assert_int_equal(retry_plan(&retry, &unsaid, 0, &plan), code == RPC_UNAVAILABLE);
        struct retry_failure said = {(enum rpc_code)code, 10};
        assert_int_equal(retry_plan(&retry, &said, 0, &plan),
                         code == RPC_UNAVAILABLE || code == RPC_RESOURCE_EXHAUSTED);
    }
}

static void user_is_told_once_and_not_of_a_hiccup(void **state) {
    (void)state;
    struct retry retry;
    retry_init(&retry, 60000, 1);
    struct retry_plan plan;
    for (int row = 0; row < 2; row++) {
        for (int i = 0; i < 5; i++) {
            assert_true(retry_plan(&retry, &UNAVAILABLE, 0, &plan));
            assert_int_equal(plan.is_notable, i == 1);
        }
        retry_progress(&retry);
    }
    struct retry_failure full = {RPC_RESOURCE_EXHAUSTED, 5000};
    assert_true(retry_plan(&retry, &full, 0, &plan));
    assert_true(plan.is_notable); // for a long wait
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(waits_double_up_to_the_limit_and_jitter_below),
        cmocka_unit_test(progress_begins_a_new_row_of_failures),
        cmocka_unit_test(attempts_end_at_the_limit),
        cmocka_unit_test(what_the_server_said_is_waited_for),
        cmocka_unit_test(what_does_not_pass_by_itself_is_not_tried_again),
        cmocka_unit_test(user_is_told_once_and_not_of_a_hiccup),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
