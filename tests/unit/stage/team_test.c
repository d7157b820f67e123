#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/limits.h"
#include "stage/cpu/cores.h"
#include "stage/cpu/parallel.h"

static struct team *team_make(uint32_t thread_count) {
    struct team *team;
    struct error error;
    assert_int_equal(team_open(thread_count, &team, &error), STATUS_OK);
    assert_int_equal(team_thread_count(team), thread_count);
    return team;
}

// Plain memory: without the team's ordering, a race that ThreadSanitizer sees.
struct tally {
    uint64_t counts[16];
    uint64_t input;
};

static void tally_part(void *ctx, uint32_t thread_index, uint32_t thread_count) {
    struct tally *tally = ctx;
    if (thread_count > 16) return;
    tally->counts[thread_index] += tally->input;
}

static void run_gives_each_thread_its_share_once(void **state) {
    (void)state;
    static const uint32_t thread_counts[] = {1, 2, 3, 7};
    for (size_t i = 0; i < 4; i++) {
        struct team *team = team_make(thread_counts[i]);
        struct tally tally = {0};
        uint64_t expected = 0;
        for (uint64_t run = 1; run <= 2000; run++) {
            tally.input = run;
            expected += run;
            team_run(team, tally_part, &tally);
            for (uint32_t t = 0; t < thread_counts[i]; t++) {
                assert_int_equal(tally.counts[t], expected);
            }
        }
        team_close(team);
    }
}

static void run_wakes_threads_that_sleep(void **state) {
    (void)state;
    struct team *team = team_make(3);
    struct tally tally = {.input = 1};
    for (uint64_t run = 1; run <= 20; run++) {
        usleep(2000);
        team_run(team, tally_part, &tally);
        assert_int_equal(tally.counts[2], run);
    }
    team_close(team);
}

static void slow_part(void *ctx, uint32_t thread_index, uint32_t thread_count) {
    if (thread_index == thread_count - 1) usleep(3000);
    tally_part(ctx, thread_index, thread_count);
}

static void run_waits_for_the_slowest(void **state) {
    (void)state;
    struct team *team = team_make(4);
    struct tally tally = {.input = 1};
    for (uint64_t run = 1; run <= 10; run++) {
        team_run(team, slow_part, &tally);
        assert_int_equal(tally.counts[3], run);
    }
    team_close(team);
}

static void idle_team_costs_nothing(void **state) {
    (void)state;
    struct team *team = team_make(4);
    struct tally tally = {.input = 1};
    team_run(team, tally_part, &tally);
    usleep(20000);
    clock_t before = clock();
    usleep(200000);
    double busy_ms = (double)(clock() - before) * 1000 / CLOCKS_PER_SEC;
    assert_true(busy_ms < 50);
    team_close(team);
}

struct places {
    struct processor_set sets[4];
};

static void place_part(void *ctx, uint32_t thread_index, uint32_t thread_count) {
    struct places *places = ctx;
    if (thread_count > 4) return;
    machine_allowed(&places->sets[thread_index]);
}

// The caller of team_run() in a thread of its own: it stays pinned.
static void *pinned_caller(void *argument) {
    struct team *team = argument;
    static struct places places;
    team_enter(team);
    team_run(team, place_part, &places);
    return &places;
}

static void pinned_threads_stay_on_their_cores(void **state) {
    (void)state;
    struct processor_set allowed;
    machine_allowed(&allowed);
    struct core_list cores = {0};
    // From the last on, so that the order is seen.
    for (uint32_t id = PROCESSOR_ID_COUNT; id-- > 0 && cores.count < 4;) {
        if (processor_set_has(&allowed, id)) cores.ids[cores.count++] = id;
    }
    struct team *team = team_make(cores.count);
    struct error error;
    assert_int_equal(team_pin(team, &cores, &error), STATUS_OK);
    pthread_t thread;
    void *result;
    assert_int_equal(pthread_create(&thread, NULL, pinned_caller, team), 0);
    assert_int_equal(pthread_join(thread, &result), 0);
    const struct places *places = result;
    for (uint32_t i = 0; i < cores.count; i++) {
        assert_int_equal(processor_set_count(&places->sets[i]), 1);
        assert_true(processor_set_has(&places->sets[i], cores.ids[i]));
    }
    struct processor_set after;
    machine_allowed(&after);
    assert_memory_equal(&after, &allowed, sizeof(after)); // the opener is not pinned
    team_close(team);
}

static void threads_are_not_pinned_unasked(void **state) {
    (void)state;
    struct processor_set allowed;
    machine_allowed(&allowed);
    struct team *team = team_make(4);
    struct places places;
    team_run(team, place_part, &places);
    for (uint32_t i = 0; i < 4; i++) {
        assert_memory_equal(&places.sets[i], &allowed, sizeof(allowed));
    }
    team_close(team);
}

static void pin_refuses_a_core_that_is_not_there(void **state) {
    (void)state;
    struct team *team = team_make(2);
    struct core_list cores = {.count = 2, .ids = {0, PROCESSOR_ID_COUNT - 1}};
    struct error error;
    assert_int_equal(team_pin(team, &cores, &error), STATUS_IO);
    assert_non_null(strstr(error.text, "8191"));
    team_close(team);
}

static void open_refuses_counts_beyond_the_limit(void **state) {
    (void)state;
    struct team *team = NULL;
    struct error error;
    assert_int_equal(team_open(0, &team, &error), STATUS_INVALID);
    assert_int_equal(team_open(TEAM_THREAD_COUNT_MAX + 1, &team, &error), STATUS_INVALID);
    assert_non_null(strstr(error.text, "257"));
    assert_null(team);
    team_close(NULL);
}

static void parts_cover_all_units_once(void **state) {
    (void)state;
    for (uint64_t count = 0; count < 40; count++) {
        for (uint32_t threads = 1; threads < 9; threads++) {
            uint64_t next = 0;
            for (uint32_t t = 0; t < threads; t++) {
                uint64_t first, end;
                team_part(count, t, threads, &first, &end);
                assert_int_equal(first, next);
                assert_in_range(end - first, count / threads, count / threads + 1);
                next = end;
            }
            assert_int_equal(next, count);
        }
    }
}

static void queues_hand_out_all_units_once(void **state) {
    (void)state;
    for (uint64_t count = 0; count < 300; count += 7) {
        for (uint32_t unit = 1; unit < 9; unit++) {
            struct parallel_queue queue;
            parallel_queue_init(&queue, count, unit, 3);
            uint64_t next = 0, first, end;
            while (parallel_queue_take(&queue, &first, &end)) {
                assert_int_equal(first, next);
                assert_int_equal(first % unit, 0);
                assert_true(end > first && end <= count);
                next = end;
            }
            assert_int_equal(next, count);
        }
    }
}

struct queue_run {
    struct parallel_queue queue;
    uint64_t counts[2];
    unsigned char is_done[1000];
};

static void slow_taker(void *ctx, uint32_t thread_index, uint32_t thread_count) {
    (void)thread_count;
    struct queue_run *run = ctx;
    uint64_t first, end;
    while (parallel_queue_take(&run->queue, &first, &end)) {
        for (uint64_t i = first; i < end; i++) {
            run->is_done[i]++;
        }
        run->counts[thread_index] += end - first;
        usleep(thread_index == 1 ? 50000 : 1000);
    }
}

static void slow_thread_takes_less_of_a_queue(void **state) {
    (void)state;
    struct team *team = team_make(2);
    struct queue_run run = {0};
    parallel_queue_init(&run.queue, 1000, 1, 2);
    team_run(team, slow_taker, &run);
    for (size_t i = 0; i < 1000; i++) {
        assert_int_equal(run.is_done[i], 1);
    }
    assert_int_equal(run.counts[0] + run.counts[1], 1000);
    assert_true(run.counts[1] < 400);
    team_close(team);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(run_gives_each_thread_its_share_once),
        cmocka_unit_test(run_wakes_threads_that_sleep),
        cmocka_unit_test(run_waits_for_the_slowest),
        cmocka_unit_test(idle_team_costs_nothing),
        cmocka_unit_test(pinned_threads_stay_on_their_cores),
        cmocka_unit_test(threads_are_not_pinned_unasked),
        cmocka_unit_test(pin_refuses_a_core_that_is_not_there),
        cmocka_unit_test(open_refuses_counts_beyond_the_limit),
        cmocka_unit_test(parts_cover_all_units_once),
        cmocka_unit_test(queues_hand_out_all_units_once),
        cmocka_unit_test(slow_thread_takes_less_of_a_queue),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
