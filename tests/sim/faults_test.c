// Whatever goes wrong, every request ends once, with the tokens it has alone on one stage.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/log.h"
#include "client/simulate/simulation.h"

// Sanitizers are slower by this.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { SLOWNESS = 8 };
#else
enum { SLOWNESS = 1 };
#endif

// What happened in all seeds together: a simulation in which nothing happens proves nothing.
struct totals {
    uint64_t seed_count, done_count, cancelled_count, fault_count, replay_count, stale_count;
    uint64_t token_count, refused_count, failed_count, cached_count, wasted_count;
};

static void add(struct totals *t, const struct simulation_report *r) {
    t->seed_count++;
    t->done_count += r->done_count;
    t->cancelled_count += r->cancelled_count;
    t->refused_count += r->refused_count;
    t->failed_count += r->failed_count;
    t->fault_count += r->fault_count;
    t->replay_count += r->replay_count;
    t->stale_count += r->stale_frame_count;
    t->token_count += r->token_count;
    t->cached_count += r->cached_token_count;
    t->wasted_count += r->wasted_row_count;
}

// The way that a seed takes, unless the test has chosen one.
static struct simulation_settings vary(struct simulation_settings settings) {
    if (settings.is_naive || settings.feedback_coordinator) return settings;
    settings.is_naive = settings.seed % 16 == 3;
    settings.feedback_coordinator = settings.seed % 4 == 1;
    return settings;
}

// Runs seeds first, first + 1, ...; prints the command that repeats the first one that fails.
static struct totals run_seeds(struct simulation_settings settings, uint32_t seed_count) {
    struct totals totals = {0};
    log_init("sim", LOG_NONE);
    for (uint32_t i = 0; i < seed_count / SLOWNESS; i++, settings.seed++) {
        struct simulation_report report;
        struct error error;
        struct simulation_settings varied = vary(settings);
        simulation_announce(&varied);
        alarm(20); // of one seed
        if (simulation_run(&varied, &report, &error) != STATUS_OK)
            fail_msg("seed %lu: %s", (unsigned long)settings.seed, error.text);
        alarm(0);
        add(&totals, &report);
        if (report.failure[0] == '\0') continue;
        char command[1024];
        simulation_command(&varied, command, sizeof(command));
        fail_msg("%s\nrepeat with: %s", report.failure, command);
    }
    printf("%lu seeds: %lu requests done, %lu cancelled, %lu failed, %lu tokens, %lu faults, %lu "
           "replays, %lu stale frames, %lu rows wasted, %lu tokens cached\n",
           totals.seed_count, totals.done_count, totals.cancelled_count, totals.failed_count,
           totals.token_count, totals.fault_count, totals.replay_count, totals.stale_count,
           totals.wasted_count, totals.cached_count);
    return totals;
}

static struct simulation_settings with(uint64_t seed, uint32_t faults) {
    struct simulation_settings settings = simulation_settings_of(seed);
    settings.faults = faults;
    return settings;
}

static void tokens_do_not_depend_on_how_the_work_was_cut(void **state) {
    (void)state;
    struct totals t = run_seeds(with(1, 0), 3000);
    assert_int_equal(t.cancelled_count + t.refused_count + t.failed_count, 0);
    assert_true(t.done_count > t.seed_count * 4);
    // Blocks ran out, were shared, and rows went ahead of tokens that ended their sequence.
    assert_true(t.replay_count > 0 && t.cached_count > 0 && t.wasted_count > 0);
}

static void requests_survive_every_fault_together(void **state) {
    (void)state;
    struct totals t = run_seeds(with(100000, SIMULATION_FAULT_ALL), 8000);
    assert_true(t.fault_count > t.seed_count && t.replay_count > t.seed_count);
    assert_true(t.stale_count > 0 && t.cancelled_count > 0);
}

static void requests_survive_each_fault_alone(void **state) {
    (void)state;
    for (uint32_t fault = 1; fault < SIMULATION_FAULT_ALL; fault *= 2)
        run_seeds(with(200000 + fault * 1000, fault), 800);
}

static void the_naive_schedule_gives_the_same_tokens(void **state) {
    (void)state;
    struct simulation_settings settings = with(300000, SIMULATION_FAULT_ALL);
    settings.is_naive = true;
    run_seeds(settings, 800);
}

static void feedback_through_the_coordinator_gives_the_same_tokens(void **state) {
    (void)state;
    struct simulation_settings settings = with(400000, SIMULATION_FAULT_ALL);
    settings.feedback_coordinator = true;
    run_seeds(settings, 800);
}

static void a_seed_tells_the_same_story_again(void **state) {
    (void)state;
    log_init("sim", LOG_NONE);
    for (uint64_t seed = 1; seed <= 20; seed++) {
        struct simulation_settings settings = with(seed, SIMULATION_FAULT_ALL);
        struct simulation_report first, second;
        assert_int_equal(simulation_run(&settings, &first, NULL), STATUS_OK);
        assert_int_equal(simulation_run(&settings, &second, NULL), STATUS_OK);
        assert_memory_equal(&first, &second, sizeof(first));
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tokens_do_not_depend_on_how_the_work_was_cut),
        cmocka_unit_test(requests_survive_every_fault_together),
        cmocka_unit_test(requests_survive_each_fault_alone),
        cmocka_unit_test(the_naive_schedule_gives_the_same_tokens),
        cmocka_unit_test(feedback_through_the_coordinator_gives_the_same_tokens),
        cmocka_unit_test(a_seed_tells_the_same_story_again),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
