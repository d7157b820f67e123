#include "coordinator/metrics_http.h"

#include <arpa/inet.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/address.h"
#include "base/limits.h"

enum { ASKED = 7, WAIT_MS = 10000 };

// A loop that answers every question, unless it is told to be busy.
struct world {
    struct wake wake;
    struct inbox inbox;
    struct metrics_http *http;
    uint16_t port;
    pthread_t loop;
    atomic_bool is_over, is_busy;
    atomic_uint answer_count;
};

static void *run_loop(void *ctx) {
    struct world *world = ctx;
    Stagecoach__V1__Pipeline pipeline = STAGECOACH__V1__PIPELINE__INIT;
    while (!atomic_load(&world->is_over)) {
        wake_wait(&world->wake, 10);
        if (atomic_load(&world->is_busy)) continue;
        struct event *event;
        while ((event = inbox_take(&world->inbox)) != NULL) {
            if (event->kind != ASKED) abort();
            pipeline.request_running_count = atomic_fetch_add(&world->answer_count, 1) + 1;
            metrics_http_answer(event->subject, &pipeline);
            event_close(event);
        }
    }
    return NULL;
}

static void open_world(struct world *world) {
    memset(world, 0, sizeof(*world));
    assert_int_equal(wake_init(&world->wake), STATUS_OK);
    assert_int_equal(inbox_init(&world->inbox, 64, &world->wake), STATUS_OK);
    struct error error;
    assert_int_equal(metrics_http_open("127.0.0.1:0", &world->inbox, ASKED, &world->http, &error),
                     STATUS_OK);
    struct address address;
    assert_int_equal(address_parse(metrics_http_address(world->http), &address, NULL), STATUS_OK);
    world->port = address.port;
    assert_true(world->port != 0);
    assert_int_equal(pthread_create(&world->loop, NULL, run_loop, world), 0);
}

static void close_world(struct world *world) {
    metrics_http_stop(world->http);
    atomic_store(&world->is_over, true);
    wake_signal(&world->wake);
    pthread_join(world->loop, NULL);
    struct event *event;
    while ((event = inbox_take(&world->inbox)) != NULL)
        event_close(event);
    metrics_http_close(world->http);
    inbox_fini(&world->inbox);
    wake_fini(&world->wake);
}

static int dial(const struct world *world) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in place = {.sin_family = AF_INET,
                                .sin_port = htons(world->port),
                                .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    assert_int_equal(connect(fd, (struct sockaddr *)&place, sizeof(place)), 0);
    return fd;
}

// Everything until the peer closes or WAIT_MS pass; for requests with "Connection: close".
static void read_all(int fd, char *text, size_t capacity_bytes) {
    size_t size_bytes = 0;
    for (;;) {
        struct pollfd entry = {.fd = fd, .events = POLLIN};
        assert_int_equal(poll(&entry, 1, WAIT_MS), 1);
        ssize_t count = recv(fd, text + size_bytes, capacity_bytes - 1 - size_bytes, 0);
        if (count <= 0) break;
        size_bytes += (size_t)count;
    }
    text[size_bytes] = '\0';
}

static char answer[1 << 16];

static const char *fetch(const struct world *world, const char *request) {
    int fd = dial(world);
    size_t size_bytes = strlen(request);
    // A refused request may be cut off before all of it was written.
    ssize_t sent = send(fd, request, size_bytes, MSG_NOSIGNAL);
    assert_true(sent > 0);
    read_all(fd, answer, sizeof(answer));
    close(fd);
    return answer;
}

static void assert_begins(const char *text, const char *words) {
    if (strncmp(text, words, strlen(words)) != 0) fail_msg("'%.60s' is not '%s'", text, words);
}

#define CLOSE "Host: x\r\nConnection: close\r\n\r\n"

static void get_gives_fresh_metrics(void **state) {
    (void)state;
    struct world world;
    open_world(&world);
    const char *text = fetch(&world, "GET /metrics HTTP/1.1\r\n" CLOSE);
    assert_begins(text, "HTTP/1.1 200 OK\r\n");
    assert_non_null(strstr(text, "Content-Type: text/plain; version=0.0.4; charset=utf-8\r\n"));
    assert_non_null(strstr(text, "\nstagecoach_requests_running 1\n"));
    text = fetch(&world, "GET /metrics?x=y HTTP/1.1\r\n" CLOSE);
    assert_non_null(strstr(text, "\nstagecoach_requests_running 2\n"));
    text = fetch(&world, "HEAD /metrics HTTP/1.1\r\n" CLOSE);
    assert_begins(text, "HTTP/1.1 200 OK\r\n");
    assert_null(strstr(text, "stagecoach_requests_running"));
    close_world(&world);
}

static void what_is_not_metrics_is_refused_without_asking_the_loop(void **state) {
    (void)state;
    struct world world;
    open_world(&world);
    assert_begins(fetch(&world, "GET / HTTP/1.1\r\n" CLOSE), "HTTP/1.1 404 ");
    assert_begins(fetch(&world, "GET /metrics/x HTTP/1.1\r\n" CLOSE), "HTTP/1.1 404 ");
    assert_begins(fetch(&world, "GET /../metrics HTTP/1.1\r\n" CLOSE), "HTTP/1.1 404 ");
    const char *text = fetch(&world, "POST /metrics HTTP/1.1\r\nContent-Length: 3\r\n" CLOSE "abc");
    assert_begins(text, "HTTP/1.1 405 ");
    assert_non_null(strstr(text, "Allow: GET, HEAD\r\n"));
    // A body is not waited for.
    assert_begins(fetch(&world, "PUT /metrics HTTP/1.1\r\nContent-Length: 999999999\r\n" CLOSE),
                  "HTTP/1.1 405 ");
    assert_int_equal(atomic_load(&world.answer_count), 0);
    close_world(&world);
}

static void a_request_that_is_too_large_is_refused(void **state) {
    (void)state;
    struct world world;
    open_world(&world);
    static char request[METRICS_REQUEST_BYTES_MAX * 2];
    size_t size_bytes = (size_t)snprintf(request, sizeof(request), "GET /metrics HTTP/1.1\r\nX: ");
    memset(request + size_bytes, 'x', sizeof(request) - size_bytes - 1);
    int fd = dial(&world);
    (void)!send(fd, request, sizeof(request) - 1, MSG_NOSIGNAL);
    read_all(fd, answer, sizeof(answer));
    close(fd);
    if (answer[0] != '\0') assert_begins(answer, "HTTP/1.1 4"); // or cut off before it was read
    assert_int_equal(atomic_load(&world.answer_count), 0);
    assert_begins(fetch(&world, "GET /metrics HTTP/1.1\r\n" CLOSE), "HTTP/1.1 200 OK\r\n");
    close_world(&world);
}

static void a_busy_loop_makes_503_and_later_200(void **state) {
    (void)state;
    struct world world;
    open_world(&world);
    atomic_store(&world.is_busy, true);
    const char *text = fetch(&world, "GET /metrics HTTP/1.1\r\n" CLOSE);
    assert_begins(text, "HTTP/1.1 503 ");
    assert_non_null(strstr(text, "Retry-After: 1\r\n"));
    atomic_store(&world.is_busy, false);
    assert_begins(fetch(&world, "GET /metrics HTTP/1.1\r\n" CLOSE), "HTTP/1.1 200 OK\r\n");
    close_world(&world);
}

static void silent_connections_leave_room_for_others(void **state) {
    (void)state;
    struct world world;
    open_world(&world);
    int silent[METRICS_CONNECTION_COUNT_MAX * 2];
    for (uint32_t i = 0; i < METRICS_CONNECTION_COUNT_MAX * 2; i++)
        silent[i] = dial(&world);
    // Beyond the limit connections wait, and are served when a place is free.
    for (uint32_t i = 0; i < METRICS_CONNECTION_COUNT_MAX * 2; i += 2)
        close(silent[i]);
    for (uint32_t i = 1; i < METRICS_CONNECTION_COUNT_MAX; i += 2)
        close(silent[i]);
    assert_begins(fetch(&world, "GET /metrics HTTP/1.1\r\n" CLOSE), "HTTP/1.1 200 OK\r\n");
    for (uint32_t i = METRICS_CONNECTION_COUNT_MAX + 1; i < METRICS_CONNECTION_COUNT_MAX * 2;
         i += 2)
        close(silent[i]);
    close_world(&world);
}

static void it_stops_while_a_question_is_open(void **state) {
    (void)state;
    struct world world;
    open_world(&world);
    atomic_store(&world.is_busy, true);
    int fd = dial(&world);
    const char request[] = "GET /metrics HTTP/1.1\r\n" CLOSE;
    assert_int_equal(send(fd, request, strlen(request), MSG_NOSIGNAL), strlen(request));
    struct pollfd entry = {.fd = fd, .events = POLLIN};
    assert_int_equal(poll(&entry, 1, 100), 0);
    close_world(&world);
    close(fd);
}

static void a_bad_address_is_named(void **state) {
    (void)state;
    struct world world;
    open_world(&world);
    struct metrics_http *http;
    struct error error;
    assert_int_equal(metrics_http_open("nonsense", &world.inbox, ASKED, &http, &error),
                     STATUS_INVALID);
    assert_non_null(strstr(error.text, "nonsense"));
    char taken[32];
    snprintf(taken, sizeof(taken), "127.0.0.1:%u", (unsigned)world.port);
    assert_int_equal(metrics_http_open(taken, &world.inbox, ASKED, &http, &error), STATUS_IO);
    assert_non_null(strstr(error.text, taken));
    close_world(&world);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(get_gives_fresh_metrics),
        cmocka_unit_test(what_is_not_metrics_is_refused_without_asking_the_loop),
        cmocka_unit_test(a_request_that_is_too_large_is_refused),
        cmocka_unit_test(a_busy_loop_makes_503_and_later_200),
        cmocka_unit_test(silent_connections_leave_room_for_others),
        cmocka_unit_test(it_stops_while_a_question_is_open),
        cmocka_unit_test(a_bad_address_is_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
