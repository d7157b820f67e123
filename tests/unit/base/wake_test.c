// Sleeping and waking: by threads, and by the signals that ask a program to stop.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/signals.h"
#include "base/wake.h"

static uint64_t now_ms(void) {
    struct clock clock = clock_system();
    return clock_now_ms(&clock);
}

static void wake_wait_ends_at_its_timeout(void **state) {
    (void)state;
    struct wake wake;
    assert_int_equal(wake_init(&wake), STATUS_OK);
    uint64_t begin_ms = now_ms();
    wake_wait(&wake, 50);
    assert_true(now_ms() - begin_ms >= 49);
    wake_wait(&wake, 0);
    wake_fini(&wake);
    assert_int_equal(wake.fd, -1);
}

static void wake_signal_before_the_wait_is_not_lost(void **state) {
    (void)state;
    struct wake wake;
    assert_int_equal(wake_init(&wake), STATUS_OK);
    assert_false(wake_is_pending(&wake));
    for (int i = 0; i < 3; i++)
        wake_signal(&wake);
    assert_true(wake_is_pending(&wake));
    wake_wait(&wake, -1); // without a limit: it would hang
    assert_false(wake_is_pending(&wake));
    wake_signal(&wake);
    wake_clear(&wake);
    assert_false(wake_is_pending(&wake));
    wake_clear(&wake); // nothing there, and no waiting either
    wake_fini(&wake);
}

struct echo {
    struct wake ping, pong;
};

enum { ECHO_COUNT = 1000 };

static void *echo_run(void *arg) {
    struct echo *echo = arg;
    for (int i = 0; i < ECHO_COUNT; i++) {
        wake_wait(&echo->ping, -1);
        wake_signal(&echo->pong);
    }
    return NULL;
}

static void wake_signal_of_another_thread_ends_the_wait(void **state) {
    (void)state;
    struct echo echo;
    assert_int_equal(wake_init(&echo.ping), STATUS_OK);
    assert_int_equal(wake_init(&echo.pong), STATUS_OK);
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, echo_run, &echo), 0);
    for (int i = 0; i < ECHO_COUNT; i++) {
        wake_signal(&echo.ping);
        wake_wait(&echo.pong, -1);
    }
    assert_int_equal(pthread_join(thread, NULL), 0);
    wake_fini(&echo.ping);
    wake_fini(&echo.pong);
}

static void *sleep_without_signals(void *arg) {
    wake_wait(arg, 10000);
    return NULL;
}

// One test: what listens stays as it is until the process ends.
static void signals_set_the_flag_and_wake_the_listener_only(void **state) {
    (void)state;
    static struct wake stop; // lives as long as the process
    struct wake other;
    assert_int_equal(wake_init(&stop), STATUS_OK);
    assert_int_equal(wake_init(&other), STATUS_OK);
    signals_block();
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, sleep_without_signals, &other), 0);
    assert_int_equal(kill(getpid(), SIGTERM), 0); // blocked everywhere: it stays pending
    assert_false(signals_stop_asked());
    assert_int_equal(signals_listen(&stop), STATUS_OK);
    wake_wait(&stop, 10000);
    assert_true(signals_stop_asked());

    errno = 1234;
    assert_int_equal(kill(getpid(), SIGINT), 0);
    assert_int_equal(errno, 1234); // the handler ran on this thread and left no trace
    struct pollfd pollfd = {.fd = stop.fd, .events = POLLIN};
    assert_int_equal(poll(&pollfd, 1, 10000), 1);

    wake_signal(&other);
    assert_int_equal(pthread_join(thread, NULL), 0);
    wake_fini(&other);
}

static void writing_to_nobody_is_an_error_and_no_signal(void **state) {
    (void)state;
    signals_block();
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    close(ends[0]);
    assert_int_equal(write(ends[1], "x", 1), -1);
    assert_int_equal(errno, EPIPE);
    close(ends[1]);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(wake_wait_ends_at_its_timeout),
        cmocka_unit_test(wake_signal_before_the_wait_is_not_lost),
        cmocka_unit_test(wake_signal_of_another_thread_ends_the_wait),
        cmocka_unit_test(signals_set_the_flag_and_wake_the_listener_only),
        cmocka_unit_test(writing_to_nobody_is_an_error_and_no_signal),
    };
    alarm(60); // a wait that is not ended fails here
    return cmocka_run_group_tests(tests, NULL, NULL);
}
