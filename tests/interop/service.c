#include "service.h"

#include <malloc.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/check.h"
#include "meter.pb-c.h"
#include "testing.pb-c.h"

enum {
    // Larger answers are refused.
    PAYLOAD_BYTES_MAX = 64 << 20,
    // Answers that wait on one call; more end it with RESOURCE_EXHAUSTED.
    ANSWER_COUNT_MAX = 1 << 16,
    RPC_CODE_COUNT = RPC_UNAUTHENTICATED + 1,
};

// An answer that is still to be sent.
struct answer {
    uint32_t size_bytes;
    uint32_t interval_us; // after the one before
};

// One streaming call. Guarded by the service's mutex; freed when the call is closed.
struct stream {
    struct service *service;
    struct rpc_call *call;
    bool waits_for_end;     // answers begin when the client sends no more
    bool peer_done;         // it does not: the call ends after the answers
    struct answer *answers; // those with `first` and after wait
    size_t first, count, capacity;
    uint64_t sent_ns;        // when the last answer went out
    uint64_t received_bytes; // of payload
    bool is_paced;           // on the list of those that wait for their time
    struct stream *next, *previous;
};

struct service {
    pthread_mutex_t mutex;
    pthread_cond_t changed; // the list, or is_closing
    pthread_t pacer;
    struct stream *paced;
    bool is_closing;
    uint64_t begun_count, closed_count;
};

static uint64_t now_ns(void) {
    struct timespec now;
    CHECK(clock_gettime(CLOCK_MONOTONIC, &now) == 0);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

// A body of zeros, as long as an answer may be. Untouched pages cost nothing.
static uint8_t zeros[PAYLOAD_BYTES_MAX];

static Grpc__Testing__Payload payload_of(uint32_t size_bytes) {
    Grpc__Testing__Payload payload = GRPC__TESTING__PAYLOAD__INIT;
    payload.body = (ProtobufCBinaryData){.len = size_bytes, .data = zeros};
    return payload;
}

// -- refusals ------------------------------------------------------------------------------------

static void refuse(struct rpc_call *call, enum rpc_code code, struct error *why) {
    rpc_call_end(call, code, why->text);
}

// Ends the call as the client asked for. False: it did not ask.
static bool echo_status(struct rpc_call *call, const Grpc__Testing__EchoStatus *status) {
    if (status == NULL || (status->code == 0 && status->message[0] == '\0')) return false;
    if (status->code < 0 || status->code >= RPC_CODE_COUNT) {
        struct error why;
        (void)error_set(&why, STATUS_INVALID, "response_status.code is %d, must be from 0 to %d",
                        status->code, RPC_CODE_COUNT - 1);
        refuse(call, RPC_INVALID_ARGUMENT, &why);
        return true;
    }
    rpc_call_end(call, (enum rpc_code)status->code, status->message);
    return true;
}

static bool is_type_known(struct rpc_call *call, Grpc__Testing__PayloadType type) {
    if (type == GRPC__TESTING__PAYLOAD_TYPE__COMPRESSABLE) return true;
    struct error why;
    (void)error_set(&why, STATUS_INVALID, "response_type is %d, must be 0", (int)type);
    refuse(call, RPC_INVALID_ARGUMENT, &why);
    return false;
}

static bool is_size_allowed(struct rpc_call *call, const char *field, int32_t size_bytes) {
    if (size_bytes >= 0 && size_bytes <= PAYLOAD_BYTES_MAX) return true;
    struct error why;
    (void)error_set(&why, STATUS_INVALID, "%s is %d, must be from 0 to %d", field, size_bytes,
                    PAYLOAD_BYTES_MAX);
    refuse(call, RPC_INVALID_ARGUMENT, &why);
    return false;
}

// Every message that gets here came uncompressed, and goes out so.
static bool is_compression_allowed(struct rpc_call *call, const Grpc__Testing__BoolValue *expected,
                                   const Grpc__Testing__BoolValue *wanted) {
    if (expected != NULL && expected->value) {
        rpc_call_end(call, RPC_INVALID_ARGUMENT,
                     "expect_compressed is true, but the message came uncompressed");
        return false;
    }
    if (wanted != NULL && wanted->value) {
        rpc_call_end(call, RPC_UNIMPLEMENTED, "compressed answers are not supported");
        return false;
    }
    return true;
}

// Without a peer any more there is nobody to answer.
static void answer(struct rpc_call *call, const ProtobufCMessage *message) {
    bool is_sent = rpc_call_send(call, message);
    (void)is_sent;
    rpc_call_end(call, RPC_OK, "");
}

// -- calls with one message each -----------------------------------------------------------------

#define ECHO_INITIAL "x-grpc-test-echo-initial"
#define ECHO_TRAILING "x-grpc-test-echo-trailing-bin"

// Gives back what the client sent under these keys, unless it must not be sent.
static void echo_metadata(struct rpc_call *call) {
    enum status status = STATUS_OK;
    struct rpc_metadata entry = {.key = ECHO_INITIAL,
                                 .value = rpc_call_metadata(call, ECHO_INITIAL)};
    if (entry.value != NULL) status = rpc_call_add_metadata(call, &entry, 1);
    entry = (struct rpc_metadata){.key = ECHO_TRAILING};
    entry.value = rpc_call_metadata_bytes(call, ECHO_TRAILING, &entry.value_bytes);
    if (entry.value != NULL) status = rpc_call_add_trailers(call, &entry, 1);
    (void)status;
}

static void note_begun(struct rpc_call *call, struct service *service) {
    echo_metadata(call);
    pthread_mutex_lock(&service->mutex);
    service->begun_count++;
    pthread_mutex_unlock(&service->mutex);
}

static void note_closed(struct service *service) {
    pthread_mutex_lock(&service->mutex);
    service->closed_count++;
    pthread_mutex_unlock(&service->mutex);
}

static void *begin_unary(struct rpc_call *call, void *service_ctx) {
    note_begun(call, service_ctx);
    return service_ctx;
}

static void close_unary(struct rpc_call *call, void *ctx, enum rpc_code code, const char *message) {
    (void)call, (void)code, (void)message;
    note_closed(ctx);
}

static void answer_empty(struct rpc_call *call, void *ctx, const ProtobufCMessage *message) {
    (void)ctx, (void)message;
    Grpc__Testing__Empty empty = GRPC__TESTING__EMPTY__INIT;
    answer(call, &empty.base);
}

static void answer_unary(struct rpc_call *call, void *ctx, const ProtobufCMessage *message) {
    (void)ctx;
    const Grpc__Testing__SimpleRequest *request = (const void *)message;
    if (!is_type_known(call, request->response_type) ||
        !is_size_allowed(call, "response_size", request->response_size) ||
        !is_compression_allowed(call, request->expect_compressed, request->response_compressed) ||
        echo_status(call, request->response_status)) {
        return;
    }
    Grpc__Testing__SimpleResponse response = GRPC__TESTING__SIMPLE_RESPONSE__INIT;
    Grpc__Testing__Payload payload = payload_of((uint32_t)request->response_size);
    response.payload = &payload;
    answer(call, &response.base);
}

// -- streams; the mutex is held ------------------------------------------------------------------

static void unpace(struct stream *stream) {
    if (!stream->is_paced) return;
    if (stream->next != NULL) stream->next->previous = stream->previous;
    if (stream->previous != NULL)
        stream->previous->next = stream->next;
    else
        stream->service->paced = stream->next;
    stream->is_paced = false;
}

static void pace(struct stream *stream) {
    if (stream->is_paced) return;
    struct service *service = stream->service;
    stream->next = service->paced;
    stream->previous = NULL;
    if (stream->next != NULL) stream->next->previous = stream;
    service->paced = stream;
    stream->is_paced = true;
    pthread_cond_signal(&service->changed);
}

static uint64_t due_ns(const struct stream *stream) {
    return stream->sent_ns + (uint64_t)stream->answers[stream->first].interval_us * 1000;
}

// False: there is no room yet, or the call is over.
static bool send_first(struct stream *stream) {
    Grpc__Testing__Payload payload = payload_of(stream->answers[stream->first].size_bytes);
    Grpc__Testing__StreamingOutputCallResponse response =
        GRPC__TESTING__STREAMING_OUTPUT_CALL_RESPONSE__INIT;
    response.payload = &payload;
    return rpc_call_send(stream->call, &response.base);
}

// Sends what may be sent now. Called again when there is room, when time has passed and when more
// is to be sent.
static void serve(struct stream *stream) {
    if (stream->waits_for_end && !stream->peer_done) return;
    while (stream->first < stream->count) {
        uint64_t now = now_ns();
        if (now < due_ns(stream)) {
            pace(stream);
            return;
        }
        if (!send_first(stream)) return;
        stream->sent_ns = now;
        stream->first++;
    }
    stream->first = stream->count = 0;
    if (stream->peer_done) rpc_call_end(stream->call, RPC_OK, "");
}

static bool add_answer(struct stream *stream, struct answer answer) {
    if (stream->count == ANSWER_COUNT_MAX) return false;
    if (stream->count == stream->capacity) {
        size_t capacity = stream->capacity == 0 ? 4 : stream->capacity * 2;
        struct answer *answers = realloc(stream->answers, capacity * sizeof(*answers));
        if (answers == NULL) return false;
        stream->answers = answers;
        stream->capacity = capacity;
    }
    if (stream->first == stream->count) stream->sent_ns = now_ns();
    stream->answers[stream->count++] = answer;
    return true;
}

// -- streams -------------------------------------------------------------------------------------

static struct stream *begin_stream(struct rpc_call *call, struct service *service) {
    struct stream *stream = calloc(1, sizeof(*stream));
    if (stream == NULL) {
        rpc_call_end(call, RPC_RESOURCE_EXHAUSTED, "no memory for a call");
        return NULL;
    }
    note_begun(call, service);
    stream->service = service;
    stream->call = call;
    return stream;
}

static void *begin_plain(struct rpc_call *call, void *service_ctx) {
    return begin_stream(call, service_ctx);
}

static void *begin_half_duplex(struct rpc_call *call, void *service_ctx) {
    struct stream *stream = begin_stream(call, service_ctx);
    if (stream != NULL) stream->waits_for_end = true;
    return stream;
}

static void close_stream(struct rpc_call *call, void *ctx, enum rpc_code code,
                         const char *message) {
    (void)call, (void)code, (void)message;
    struct stream *stream = ctx;
    if (stream == NULL) return;
    struct service *service = stream->service;
    pthread_mutex_lock(&service->mutex);
    unpace(stream);
    service->closed_count++;
    pthread_mutex_unlock(&service->mutex);
    free(stream->answers);
    free(stream);
}

static void serve_more(struct rpc_call *call, void *ctx) {
    (void)call;
    struct stream *stream = ctx;
    pthread_mutex_lock(&stream->service->mutex);
    serve(stream);
    pthread_mutex_unlock(&stream->service->mutex);
}

static bool are_answers_allowed(struct rpc_call *call,
                                const Grpc__Testing__StreamingOutputCallRequest *request) {
    if (!is_type_known(call, request->response_type)) return false;
    for (size_t i = 0; i < request->n_response_parameters; i++) {
        const Grpc__Testing__ResponseParameters *wanted = request->response_parameters[i];
        if (!is_size_allowed(call, "response_parameters.size", wanted->size) ||
            !is_compression_allowed(call, NULL, wanted->compressed)) {
            return false;
        }
        if (wanted->interval_us < 0) {
            rpc_call_end(call, RPC_INVALID_ARGUMENT, "response_parameters.interval_us is negative");
            return false;
        }
    }
    return true;
}

static void take_request(struct rpc_call *call, void *ctx, const ProtobufCMessage *message) {
    struct stream *stream = ctx;
    const Grpc__Testing__StreamingOutputCallRequest *request = (const void *)message;
    if (!are_answers_allowed(call, request) || echo_status(call, request->response_status)) return;
    pthread_mutex_lock(&stream->service->mutex);
    bool has_room = true;
    for (size_t i = 0; i < request->n_response_parameters && has_room; i++) {
        const Grpc__Testing__ResponseParameters *wanted = request->response_parameters[i];
        has_room =
            add_answer(stream, (struct answer){.size_bytes = (uint32_t)wanted->size,
                                               .interval_us = (uint32_t)wanted->interval_us});
    }
    if (has_room) serve(stream);
    pthread_mutex_unlock(&stream->service->mutex);
    if (!has_room) rpc_call_end(call, RPC_RESOURCE_EXHAUSTED, "too many answers wait on this call");
}

static void end_requests(struct rpc_call *call, void *ctx) {
    struct stream *stream = ctx;
    pthread_mutex_lock(&stream->service->mutex);
    stream->peer_done = true;
    pthread_mutex_unlock(&stream->service->mutex);
    serve_more(call, ctx);
}

static void take_input(struct rpc_call *call, void *ctx, const ProtobufCMessage *message) {
    struct stream *stream = ctx;
    const Grpc__Testing__StreamingInputCallRequest *request = (const void *)message;
    if (!is_compression_allowed(call, request->expect_compressed, NULL)) return;
    if (request->payload != NULL) stream->received_bytes += request->payload->body.len;
}

static void end_input(struct rpc_call *call, void *ctx) {
    const struct stream *stream = ctx;
    Grpc__Testing__StreamingInputCallResponse response =
        GRPC__TESTING__STREAMING_INPUT_CALL_RESPONSE__INIT;
    response.aggregated_payload_size =
        stream->received_bytes > INT32_MAX ? INT32_MAX : (int32_t)stream->received_bytes;
    answer(call, &response.base);
}

// -- pace ----------------------------------------------------------------------------------------

// Serves the streams whose time has come. Returns when the next is due, UINT64_MAX: none waits.
static uint64_t serve_due(struct service *service) {
    uint64_t next_ns = UINT64_MAX, now = now_ns();
    for (struct stream *stream = service->paced; stream != NULL;) {
        struct stream *next = stream->next;
        uint64_t due = due_ns(stream);
        if (due <= now) {
            unpace(stream);
            serve(stream); // may put it back, at the front, with a later time
            if (stream->is_paced) due = due_ns(stream);
        }
        if (stream->is_paced && due < next_ns) next_ns = due;
        stream = next;
    }
    return next_ns;
}

static void *run_pacer(void *context) {
    struct service *service = context;
    pthread_mutex_lock(&service->mutex);
    while (!service->is_closing) {
        uint64_t next_ns = serve_due(service);
        if (next_ns == UINT64_MAX) {
            pthread_cond_wait(&service->changed, &service->mutex);
            continue;
        }
        struct timespec until = {.tv_sec = (time_t)(next_ns / 1000000000),
                                 .tv_nsec = (long)(next_ns % 1000000000)};
        (void)pthread_cond_timedwait(&service->changed, &service->mutex, &until);
    }
    pthread_mutex_unlock(&service->mutex);
    return NULL;
}

// -- meter ---------------------------------------------------------------------------------------

static void *begin_reading(struct rpc_call *call, void *service_ctx) {
    (void)call;
    return service_ctx;
}

static void answer_reading(struct rpc_call *call, void *ctx, const ProtobufCMessage *message) {
    (void)message;
    struct service *service = ctx;
    Stagecoach__Interop__ReadResponse response = STAGECOACH__INTEROP__READ_RESPONSE__INIT;
    pthread_mutex_lock(&service->mutex);
    response.begun_count = service->begun_count;
    response.closed_count = service->closed_count;
    pthread_mutex_unlock(&service->mutex);
    struct mallinfo2 heap = mallinfo2();
    response.heap_bytes = heap.uordblks + heap.hblkhd;
    answer(call, &response.base);
}

static void close_reading(struct rpc_call *call, void *ctx, enum rpc_code code,
                          const char *message) {
    (void)call, (void)ctx, (void)code, (void)message;
}

// -- the service ---------------------------------------------------------------------------------

static const struct rpc_method test_methods[] = {
    {"EmptyCall", {begin_unary, answer_empty, NULL, close_unary, NULL}},
    {"UnaryCall", {begin_unary, answer_unary, NULL, close_unary, NULL}},
    {"StreamingOutputCall", {begin_plain, take_request, end_requests, close_stream, serve_more}},
    {"StreamingInputCall", {begin_plain, take_input, end_input, close_stream, NULL}},
    {"FullDuplexCall", {begin_plain, take_request, end_requests, close_stream, serve_more}},
    {"HalfDuplexCall", {begin_half_duplex, take_request, end_requests, close_stream, serve_more}},
};

static const struct rpc_method meter_methods[] = {
    {"Read", {begin_reading, answer_reading, NULL, close_reading, NULL}},
};

enum status service_add(struct service *service, struct rpc *rpc, struct error *error) {
    enum status status = rpc_add_service(
        rpc, &grpc__testing__test_service__descriptor, test_methods,
        sizeof(test_methods) / sizeof(test_methods[0]), service, RPC_ROLE_CLIENT, error);
    if (status != STATUS_OK) return status;
    return rpc_add_service(rpc, &stagecoach__interop__meter__descriptor, meter_methods, 1, service,
                           RPC_ROLES_ANY, error);
}

// Times are on the monotonic clock.
static bool init_changed(pthread_cond_t *changed) {
    pthread_condattr_t attributes;
    if (pthread_condattr_init(&attributes) != 0) return false;
    bool is_done = pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC) == 0 &&
                   pthread_cond_init(changed, &attributes) == 0;
    pthread_condattr_destroy(&attributes);
    return is_done;
}

enum status service_open(struct service **service_out) {
    struct service *service = calloc(1, sizeof(*service));
    if (service == NULL) return STATUS_NO_MEMORY;
    if (pthread_mutex_init(&service->mutex, NULL) != 0) goto free_service;
    if (!init_changed(&service->changed)) goto destroy_mutex;
    if (pthread_create(&service->pacer, NULL, run_pacer, service) != 0) goto destroy_changed;
    *service_out = service;
    return STATUS_OK;
destroy_changed:
    pthread_cond_destroy(&service->changed);
destroy_mutex:
    pthread_mutex_destroy(&service->mutex);
free_service:
    free(service);
    return STATUS_IO;
}

void service_close(struct service *service) {
    pthread_mutex_lock(&service->mutex);
    service->is_closing = true;
    pthread_cond_signal(&service->changed);
    pthread_mutex_unlock(&service->mutex);
    CHECK(pthread_join(service->pacer, NULL) == 0);
    CHECK(service->paced == NULL);
    CHECK(service->begun_count == service->closed_count);
    pthread_cond_destroy(&service->changed);
    pthread_mutex_destroy(&service->mutex);
    free(service);
}
