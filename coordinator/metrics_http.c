#include "coordinator/metrics_http.h"

#include <errno.h>
#include <microhttpd.h>
#include <netdb.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/address.h"
#include "base/limits.h"
#include "base/log.h"
#include "coordinator/metrics_text.h"

struct metrics_http {
    struct inbox *inbox;
    int kind;
    struct MHD_Daemon *daemon; // NULL: stopped
    char address[ADDRESS_HOST_BYTES_MAX + 16];
    // Between the daemon's thread, which asks, and the loop, which answers.
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    bool is_asked; // the event is on its way
    bool is_stopping;
    uint8_t *packed; // the answer: a Pipeline message, malloc'ed; NULL: none
    size_t packed_bytes;
};

// -- asking the loop ------------------------------------------------------------------------------

void metrics_http_answer(struct metrics_http *http, const Stagecoach__V1__Pipeline *pipeline) {
    size_t packed_bytes = stagecoach__v1__pipeline__get_packed_size(pipeline);
    uint8_t *packed = malloc(packed_bytes);
    if (packed != NULL) stagecoach__v1__pipeline__pack(pipeline, packed);
    pthread_mutex_lock(&http->mutex);
    free(http->packed);
    http->packed = packed;
    http->packed_bytes = packed_bytes;
    http->is_asked = false;
    pthread_cond_broadcast(&http->changed);
    pthread_mutex_unlock(&http->mutex);
}

static struct timespec deadline_after_ms(uint32_t ms) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    time.tv_nsec += (long)(ms % 1000) * 1000000;
    time.tv_sec += ms / 1000 + time.tv_nsec / 1000000000;
    time.tv_nsec %= 1000000000;
    return time;
}

// The pipeline as the loop describes it, to be freed with free_unpacked; NULL: the loop has too
// much to do, or all ends.
static Stagecoach__V1__Pipeline *ask(struct metrics_http *http) {
    struct timespec deadline = deadline_after_ms(METRICS_ANSWER_MS);
    pthread_mutex_lock(&http->mutex);
    // An answer that came too late for an earlier question is too old.
    free(http->packed);
    http->packed = NULL;
    if (!http->is_asked) http->is_asked = inbox_offer(http->inbox, http->kind, http);
    int result = 0;
    while (http->is_asked && !http->is_stopping && result == 0)
        result = pthread_cond_timedwait(&http->changed, &http->mutex, &deadline);
    uint8_t *packed = http->packed;
    size_t packed_bytes = http->packed_bytes;
    http->packed = NULL;
    pthread_mutex_unlock(&http->mutex);
    if (packed == NULL) return NULL;
    Stagecoach__V1__Pipeline *pipeline =
        stagecoach__v1__pipeline__unpack(NULL, packed_bytes, packed);
    free(packed);
    return pipeline;
}

// -- HTTP, on the daemon's thread -----------------------------------------------------------------

static enum MHD_Result respond(struct MHD_Connection *connection, unsigned code, const char *name,
                               const char *value, struct MHD_Response *response) {
    if (response == NULL) return MHD_NO; // no memory: the connection is closed
    enum MHD_Result result = MHD_add_response_header(response, name, value);
    if (result == MHD_YES) result = MHD_queue_response(connection, code, response);
    MHD_destroy_response(response);
    return result;
}

static enum MHD_Result refuse(struct MHD_Connection *connection, unsigned code, const char *name,
                              const char *value, const char *sentence) {
    return respond(connection, code, name, value,
                   MHD_create_response_from_buffer(strlen(sentence), (char *)sentence,
                                                   MHD_RESPMEM_PERSISTENT));
}

static enum MHD_Result send_metrics(struct metrics_http *http, struct MHD_Connection *connection) {
    Stagecoach__V1__Pipeline *pipeline = ask(http);
    struct buffer text;
    buffer_init(&text, METRICS_TEXT_BYTES_MAX);
    bool is_written = pipeline != NULL && metrics_text_write(pipeline, &text) == STATUS_OK;
    stagecoach__v1__pipeline__free_unpacked(pipeline, NULL);
    if (!is_written) {
        buffer_fini(&text);
        return refuse(connection, MHD_HTTP_SERVICE_UNAVAILABLE, "Retry-After", "1",
                      "the coordinator has too much to do\n");
    }
    struct MHD_Response *response =
        MHD_create_response_from_buffer(text.size_bytes, text.data, MHD_RESPMEM_MUST_COPY);
    buffer_fini(&text);
    return respond(connection, MHD_HTTP_OK, "Content-Type",
                   "text/plain; version=0.0.4; charset=utf-8", response);
}

// Called when the header of a request is complete. What is sent after that is not waited for.
static enum MHD_Result on_request(void *ctx, struct MHD_Connection *connection, const char *path,
                                  const char *method, const char *version, const char *data,
                                  size_t *data_bytes, void **request_ctx) {
    (void)version, (void)data, (void)data_bytes, (void)request_ctx;
    if (strcmp(method, "GET") != 0 && strcmp(method, "HEAD") != 0)
        return refuse(connection, MHD_HTTP_METHOD_NOT_ALLOWED, "Allow", "GET, HEAD",
                      "only GET and HEAD are allowed\n");
    if (strcmp(path, "/metrics") != 0)
        return refuse(connection, MHD_HTTP_NOT_FOUND, "Content-Type", "text/plain",
                      "nothing is here; the metrics are at /metrics\n");
    return send_metrics(ctx, connection);
}

// -- life -----------------------------------------------------------------------------------------

static int listen_at(const struct addrinfo *place) {
    int fd = socket(place->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) return -1;
    int on = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (bind(fd, place->ai_addr, place->ai_addrlen) == 0 &&
        listen(fd, METRICS_CONNECTION_COUNT_MAX) == 0)
        return fd;
    int cause = errno;
    close(fd);
    errno = cause;
    return -1;
}

static enum status listen_on(const struct address *address, int *fd_out, uint16_t *port_out,
                             struct error *error) {
    char port[8];
    snprintf(port, sizeof(port), "%u", (unsigned)address->port);
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE};
    struct addrinfo *places;
    const char *host = address->host[0] != '\0' ? address->host : NULL;
    int result = getaddrinfo(host, port, &hints, &places);
    if (result != 0)
        return error_set(error, STATUS_INVALID, "%s: %s", address->host, gai_strerror(result));
    int fd = -1;
    for (const struct addrinfo *place = places; place != NULL && fd < 0; place = place->ai_next)
        fd = listen_at(place);
    freeaddrinfo(places);
    struct sockaddr_storage bound;
    socklen_t bound_bytes = sizeof(bound);
    if (fd < 0 || getsockname(fd, (struct sockaddr *)&bound, &bound_bytes) != 0) {
        enum status status = error_set(error, STATUS_IO, "cannot listen at %s:%s: %s",
                                       address->host, port, strerror(errno));
        if (fd >= 0) close(fd);
        return status;
    }
    char number[8];
    getnameinfo((struct sockaddr *)&bound, bound_bytes, NULL, 0, number, sizeof(number),
                NI_NUMERICSERV);
    *port_out = (uint16_t)strtoul(number, NULL, 10);
    *fd_out = fd;
    return STATUS_OK;
}

static void ignore_log(void *ctx, const char *format, va_list arguments) {
    (void)ctx, (void)format, (void)arguments; // about peers that misbehave
}

static struct MHD_Daemon *start_daemon(struct metrics_http *http, int fd) {
    return MHD_start_daemon(
        MHD_USE_INTERNAL_POLLING_THREAD | MHD_USE_EPOLL | MHD_USE_ERROR_LOG, 0, NULL, NULL,
        on_request, http, MHD_OPTION_EXTERNAL_LOGGER, ignore_log, NULL, MHD_OPTION_LISTEN_SOCKET,
        fd, MHD_OPTION_CONNECTION_LIMIT, (unsigned)METRICS_CONNECTION_COUNT_MAX,
        MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)METRICS_REQUEST_BYTES_MAX,
        MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)METRICS_IDLE_SECONDS, MHD_OPTION_END);
}

static void init_locks(struct metrics_http *http) {
    pthread_mutex_init(&http->mutex, NULL);
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&http->changed, &attributes);
    pthread_condattr_destroy(&attributes);
}

enum status metrics_http_open(const char *address, struct inbox *inbox, int kind,
                              struct metrics_http **http_out, struct error *error) {
    struct address parsed;
    enum status status = address_parse(address, &parsed, error);
    if (status != STATUS_OK) return status;
    struct metrics_http *http = calloc(1, sizeof(*http));
    if (http == NULL) return error_set(error, STATUS_NO_MEMORY, "no memory");
    http->inbox = inbox;
    http->kind = kind;
    init_locks(http);
    uint16_t port = 0;
    int fd = -1;
    status = listen_on(&parsed, &fd, &port, error);
    if (status != STATUS_OK) goto close_http;
    if (!address_format(parsed.host, port, http->address, sizeof(http->address)))
        http->address[0] = '\0';
    http->daemon = start_daemon(http, fd); // takes the socket
    if (http->daemon == NULL) {
        close(fd);
        status = error_set(error, STATUS_IO, "cannot start the HTTP thread");
        goto close_http;
    }
    *http_out = http;
    return STATUS_OK;
close_http:
    metrics_http_close(http);
    return status;
}

const char *metrics_http_address(const struct metrics_http *http) {
    return http->address;
}

void metrics_http_stop(struct metrics_http *http) {
    if (http == NULL || http->daemon == NULL) return;
    pthread_mutex_lock(&http->mutex);
    http->is_stopping = true;
    pthread_cond_broadcast(&http->changed);
    pthread_mutex_unlock(&http->mutex);
    MHD_stop_daemon(http->daemon);
    http->daemon = NULL;
}

void metrics_http_close(struct metrics_http *http) {
    if (http == NULL) return;
    metrics_http_stop(http);
    pthread_cond_destroy(&http->changed);
    pthread_mutex_destroy(&http->mutex);
    free(http->packed);
    free(http);
}
