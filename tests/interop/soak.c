// interop_soak: many calls of every kind, half of them broken off at a random point, against
// interop_server or a coordinator. Ends with one line of JSON that says how they ended and what
// this process holds before and after. See --help.
#include <inttypes.h>
#include <malloc.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/check.h"
#include "base/log.h"
#include "base/options.h"
#include "base/rng.h"
#include "base/signals.h"
#include "descriptors.h"
#include "stagecoach/v1/inference.pb-c.h"
#include "testing.pb-c.h"
#include "transport/rpc.h"
#include "transport/rpc_access.h"

#define COUNT_OF(array) (sizeof(array) / sizeof((array)[0]))

enum {
    SLOT_COUNT_MAX = 1024,
    ANSWER_COUNT_MAX = 16,
    ANSWER_BYTES_MAX = 20000,
    INTERVAL_US_MAX = 1000,
    STUCK_SECONDS = 120, // no call takes so long
    SETTLE_COUNT = 500,
};

struct settings {
    const char *server, *service;
    uint64_t call_count, slot_count, seed;
    struct rpc_access_config access;
};

// How a call is broken off.
enum fault {
    FAULT_NONE,
    FAULT_AT_ONCE,  // cancelled before anything was sent
    FAULT_SENT,     // cancelled when the request was sent
    FAULT_MESSAGE,  // cancelled inside a callback, at a message
    FAULT_ANY_TIME, // cancelled by another thread than the callbacks'
    FAULT_DEADLINE, // a deadline of a few milliseconds
    FAULT_COUNT,
};

struct soak;

// A call in progress, or room for one.
struct slot {
    struct soak *soak;
    struct rpc_call *call; // NULL: free
    enum fault fault;
    uint32_t cancel_at;      // the message at which FAULT_MESSAGE cancels
    uint32_t expected_count; // of messages, when nothing breaks it off; UINT32_MAX: not known
    uint32_t message_count;  // rpc thread; then main thread, once over
    // Guarded by the soak's mutex.
    bool is_over;
    enum rpc_code code;
    char text[256];
};

struct soak {
    const struct settings *settings;
    struct rpc_channel *channel;
    uint64_t drawn_count; // numbers drawn so far
    struct slot slots[SLOT_COUNT_MAX];
    pthread_mutex_t mutex;
    pthread_cond_t changed; // a slot's call is over
    uint64_t code_counts[RPC_UNAUTHENTICATED + 1];
    uint64_t wrong_count;
};

static uint32_t draw(struct soak *soak, uint32_t below) {
    return (uint32_t)(rng_uniform(soak->settings->seed, soak->drawn_count++) * below);
}

// -- callbacks; on the rpc thread ----------------------------------------------------------------

static void take_message(struct rpc_call *call, void *ctx, const ProtobufCMessage *message) {
    (void)message;
    struct slot *slot = ctx;
    slot->message_count++;
    if (slot->fault == FAULT_MESSAGE && slot->message_count == slot->cancel_at)
        rpc_call_cancel(call);
}

static void note_closed(struct rpc_call *call, void *ctx, enum rpc_code code, const char *message) {
    (void)call;
    struct slot *slot = ctx;
    struct soak *soak = slot->soak;
    pthread_mutex_lock(&soak->mutex);
    slot->is_over = true;
    slot->code = code;
    (void)snprintf(slot->text, sizeof(slot->text), "%s", message);
    pthread_cond_signal(&soak->changed);
    pthread_mutex_unlock(&soak->mutex);
}

// -- requests ------------------------------------------------------------------------------------

static void begin(struct slot *slot, const ProtobufCServiceDescriptor *service,
                  const char *method) {
    static const struct rpc_handler handler = {.message = take_message, .closed = note_closed};
    struct rpc_call_options options = {0};
    if (slot->fault == FAULT_DEADLINE) options.deadline_ms = 1 + draw(slot->soak, 5);
    CHECK(rpc_call_begin(slot->soak->channel, service, method, &handler, slot, &options,
                         &slot->call) == STATUS_OK);
    if (slot->fault == FAULT_AT_ONCE) rpc_call_cancel(slot->call);
}

// What cannot be sent belongs to a call that is over, or to one that is full: then it stays short.
static bool send(struct slot *slot, const ProtobufCMessage *message) {
    bool is_sent = rpc_call_send(slot->call, message);
    if (slot->fault == FAULT_SENT) rpc_call_cancel(slot->call);
    return is_sent;
}

static void call_unary(struct slot *slot) {
    static uint8_t zeros[ANSWER_BYTES_MAX];
    begin(slot, &grpc__testing__test_service__descriptor, "UnaryCall");
    Grpc__Testing__SimpleRequest request = GRPC__TESTING__SIMPLE_REQUEST__INIT;
    Grpc__Testing__Payload payload = GRPC__TESTING__PAYLOAD__INIT;
    payload.body = (ProtobufCBinaryData){.len = draw(slot->soak, sizeof(zeros)), .data = zeros};
    request.payload = &payload;
    request.response_size = (int32_t)draw(slot->soak, ANSWER_BYTES_MAX);
    slot->expected_count = 1;
    send(slot, &request.base);
}

static void call_input(struct slot *slot) {
    begin(slot, &grpc__testing__test_service__descriptor, "StreamingInputCall");
    uint32_t count = draw(slot->soak, ANSWER_COUNT_MAX);
    for (uint32_t i = 0; i < count; i++) {
        Grpc__Testing__StreamingInputCallRequest request =
            GRPC__TESTING__STREAMING_INPUT_CALL_REQUEST__INIT;
        if (!send(slot, &request.base)) break;
    }
    rpc_call_send_end(slot->call);
    slot->expected_count = 1;
}

// Adds some answers of some sizes at some pace to be asked for.
static bool ask(struct slot *slot) {
    Grpc__Testing__ResponseParameters wanted[ANSWER_COUNT_MAX];
    Grpc__Testing__ResponseParameters *pointers[ANSWER_COUNT_MAX];
    Grpc__Testing__StreamingOutputCallRequest request =
        GRPC__TESTING__STREAMING_OUTPUT_CALL_REQUEST__INIT;
    request.n_response_parameters = draw(slot->soak, ANSWER_COUNT_MAX + 1);
    request.response_parameters = pointers;
    for (size_t i = 0; i < request.n_response_parameters; i++) {
        wanted[i] = (Grpc__Testing__ResponseParameters)GRPC__TESTING__RESPONSE_PARAMETERS__INIT;
        wanted[i].size = (int32_t)draw(slot->soak, ANSWER_BYTES_MAX);
        wanted[i].interval_us = (int32_t)draw(slot->soak, INTERVAL_US_MAX);
        pointers[i] = &wanted[i];
    }
    slot->expected_count += (uint32_t)request.n_response_parameters;
    return send(slot, &request.base);
}

static void call_output(struct slot *slot) {
    begin(slot, &grpc__testing__test_service__descriptor, "StreamingOutputCall");
    ask(slot);
}

static void call_duplex(struct slot *slot) {
    begin(slot, &grpc__testing__test_service__descriptor, "FullDuplexCall");
    uint32_t count = draw(slot->soak, 4);
    for (uint32_t i = 0; i < count; i++) {
        if (!ask(slot)) break;
    }
    rpc_call_send_end(slot->call);
}

static void call_generate(struct slot *slot) {
    static const char *const prompts[] = {
        "The", "Question: What is 27 plus 45? Answer:", "1, 2, 3, 4,",
        "Anna has 3 apples and buys 4 more. How many apples does Anna have?"};
    begin(slot, &stagecoach__v1__inference__descriptor, "Generate");
    Stagecoach__V1__GenerateRequest request = STAGECOACH__V1__GENERATE_REQUEST__INIT;
    Stagecoach__V1__Stop stop = STAGECOACH__V1__STOP__INIT;
    request.prompt_case = STAGECOACH__V1__GENERATE_REQUEST__PROMPT_TEXT;
    request.text = (char *)prompts[draw(slot->soak, COUNT_OF(prompts))];
    stop.max_tokens = 1 + draw(slot->soak, ANSWER_COUNT_MAX);
    request.stop = &stop;
    request.n = draw(slot->soak, 4);
    slot->expected_count = UINT32_MAX;
    send(slot, &request.base);
}

static void call_tokenize(struct slot *slot) {
    begin(slot, &stagecoach__v1__inference__descriptor, "Tokenize");
    Stagecoach__V1__TokenizeRequest request = STAGECOACH__V1__TOKENIZE_REQUEST__INIT;
    request.text = (char *)"The";
    slot->expected_count = 1;
    send(slot, &request.base);
}

static void call_empty(struct slot *slot) {
    begin(slot, &grpc__testing__test_service__descriptor, "EmptyCall");
    Grpc__Testing__Empty request = GRPC__TESTING__EMPTY__INIT;
    slot->expected_count = 1;
    send(slot, &request.base);
}

// -- slots; on the main thread -------------------------------------------------------------------

typedef void start_fn(struct soak *soak, struct slot *slot);

static bool is_of_inference(const struct soak *soak) {
    return strcmp(soak->settings->service, "inference") == 0;
}

// The smallest call that there is.
static void start_small(struct soak *soak, struct slot *slot) {
    *slot = (struct slot){.soak = soak};
    if (is_of_inference(soak))
        call_tokenize(slot);
    else
        call_empty(slot);
}

static void start_any(struct soak *soak, struct slot *slot) {
    static void (*const test_calls[])(struct slot *) = {call_unary, call_input, call_output,
                                                        call_duplex};
    *slot = (struct slot){.soak = soak};
    if (draw(soak, 2) == 0) slot->fault = (enum fault)(1 + draw(soak, FAULT_COUNT - 1));
    slot->cancel_at = 1 + draw(soak, 4);
    if (is_of_inference(soak))
        call_generate(slot);
    else
        test_calls[draw(soak, COUNT_OF(test_calls))](slot);
}

// Whether the call ended as it may. One that is broken off may be complete before.
static bool is_right(const struct slot *slot) {
    if (slot->code == RPC_OK) {
        if (slot->fault == FAULT_AT_ONCE) return false;
        return slot->expected_count == UINT32_MAX || slot->message_count == slot->expected_count;
    }
    if (slot->fault == FAULT_DEADLINE) return slot->code == RPC_DEADLINE_EXCEEDED;
    return slot->fault != FAULT_NONE && slot->code == RPC_CANCELLED;
}

static void reap(struct soak *soak, struct slot *slot) {
    soak->code_counts[slot->code]++;
    if (!is_right(slot)) {
        soak->wrong_count++;
        log_error("a call with fault %d ended with %s (%s) after %u of %u messages",
                  (int)slot->fault, rpc_code_name(slot->code), slot->text, slot->message_count,
                  slot->expected_count);
    }
    rpc_call_release(slot->call);
    slot->call = NULL;
}

// Reaps every call that is over. Returns how many slots are free.
static size_t reap_all(struct soak *soak) {
    size_t free_count = 0;
    for (size_t i = 0; i < soak->settings->slot_count; i++) {
        struct slot *slot = &soak->slots[i];
        if (slot->call != NULL) {
            pthread_mutex_lock(&soak->mutex);
            bool is_over = slot->is_over;
            pthread_mutex_unlock(&soak->mutex);
            if (is_over) reap(soak, slot);
        }
        if (slot->call == NULL) free_count++;
    }
    return free_count;
}

static bool is_any_over(const struct soak *soak) {
    for (size_t i = 0; i < soak->settings->slot_count; i++) {
        if (soak->slots[i].call != NULL && soak->slots[i].is_over) return true;
    }
    return false;
}

static void wait_for_end(struct soak *soak) {
    struct timespec until;
    CHECK(clock_gettime(CLOCK_REALTIME, &until) == 0);
    until.tv_sec += STUCK_SECONDS;
    pthread_mutex_lock(&soak->mutex);
    while (!is_any_over(soak)) {
        CHECK(pthread_cond_timedwait(&soak->changed, &soak->mutex, &until) == 0);
    }
    pthread_mutex_unlock(&soak->mutex);
}

static void cancel_some(struct soak *soak) {
    struct slot *slot = &soak->slots[draw(soak, (uint32_t)soak->settings->slot_count)];
    if (slot->call != NULL && slot->fault == FAULT_ANY_TIME) rpc_call_cancel(slot->call);
}

// Those whose time to be cancelled has not come by the end.
static void cancel_rest(struct soak *soak) {
    for (size_t i = 0; i < soak->settings->slot_count; i++) {
        struct slot *slot = &soak->slots[i];
        if (slot->call != NULL && slot->fault == FAULT_ANY_TIME) rpc_call_cancel(slot->call);
    }
}

// Makes so many calls, `slot_count` at once, and waits for the end of all.
static void run(struct soak *soak, uint64_t call_count, uint64_t slot_count, start_fn *start) {
    uint64_t begun_count = 0;
    for (;;) {
        size_t free_count = reap_all(soak);
        for (size_t i = 0; i < slot_count && begun_count < call_count; i++) {
            if (soak->slots[i].call != NULL) continue;
            start(soak, &soak->slots[i]);
            begun_count++;
            free_count--;
            cancel_some(soak);
        }
        if (begun_count == call_count) cancel_rest(soak);
        if (free_count == soak->settings->slot_count) return;
        wait_for_end(soak);
    }
}

// gRPC receives into a buffer that it makes as large as what has come lately, and keeps. A while of
// small calls, one at a time, makes it small again.
static uint64_t heap_bytes(struct soak *soak) {
    run(soak, SETTLE_COUNT, 1, start_small);
    struct mallinfo2 heap = mallinfo2();
    return heap.uordblks + heap.hblkhd;
}

static void soak_all(struct soak *soak) {
    // What is made once, such as the connection and pools, is there after the first calls.
    const struct settings *settings = soak->settings;
    uint64_t warm_count = settings->call_count / 4;
    run(soak, warm_count, settings->slot_count, start_any);
    uint64_t before = heap_bytes(soak);
    run(soak, settings->call_count - warm_count, settings->slot_count, start_any);
    uint64_t after = heap_bytes(soak);
    (void)printf("{\"calls\": %" PRIu64 ", \"wrong\": %" PRIu64, settings->call_count,
                 soak->wrong_count);
    (void)printf(", \"heap_before\": %" PRIu64 ", \"heap_after\": %" PRIu64, before, after);
    for (size_t i = 0; i < COUNT_OF(soak->code_counts); i++) {
        if (soak->code_counts[i] == 0) continue;
        (void)printf(", \"%s\": %" PRIu64, rpc_code_name((enum rpc_code)i), soak->code_counts[i]);
    }
    (void)printf("}\n");
}

// -- the program ---------------------------------------------------------------------------------

static enum options_result parse(int argc, char **argv, struct settings *s) {
    const struct option_spec specs[] = {
        {"server", OPTION_TEXT, &s->server, "HOST:PORT", "the server to call (required)", 0, 0},
        {"service", OPTION_TEXT, &s->service, "NAME",
         "test for grpc.testing.TestService, inference for a coordinator (default test)", 0, 0},
        {"calls", OPTION_COUNT, &s->call_count, "N", "calls to make (default 1000)", 4, 1e9},
        {"at-once", OPTION_COUNT, &s->slot_count, "N", "calls in progress (default 64)", 1,
         SLOT_COUNT_MAX},
        {"seed", OPTION_COUNT, &s->seed, "N", "of what is drawn (default 1)", 0, 1e9},
        RPC_ACCESS_OPTIONS_TLS(&s->access),
        RPC_ACCESS_OPTIONS_DIAL(&s->access),
    };
    const struct options options = {
        .program = "interop_soak",
        .purpose = "makes many calls and breaks half of them off",
        .usage = "--server HOST:PORT [options]",
        .specs = specs,
        .spec_count = COUNT_OF(specs),
    };
    size_t positional_count;
    enum options_result result = options_parse(&options, argc, argv, &positional_count);
    if (result != OPTIONS_RUN || s->server != NULL) return result;
    (void)fprintf(stderr, "interop_soak: --server is required, see --help\n");
    return OPTIONS_EXIT_USAGE;
}

int main(int argc, char **argv) {
    signals_block();
    struct settings settings = {.service = "test", .call_count = 1000, .slot_count = 64, .seed = 1};
    enum options_result result = parse(argc, argv, &settings);
    if (result != OPTIONS_RUN) return result == OPTIONS_EXIT_OK ? 0 : 2;
    log_init("interop_soak", LOG_INFO);
    struct error error;
    struct rpc_access *access;
    if (rpc_access_open(&settings.access, &access, &error) != STATUS_OK) {
        log_error("%s", error.text);
        return 1;
    }
    struct rpc_config config = {.access = access};
    if (strcmp(settings.service, "test") == 0) {
        config.descriptor_set = interop_descriptors_begin;
        config.descriptor_set_bytes = interop_descriptors_size_bytes();
    }
    static struct soak soak = {.mutex = PTHREAD_MUTEX_INITIALIZER,
                               .changed = PTHREAD_COND_INITIALIZER};
    soak.settings = &settings;
    struct rpc *rpc;
    if (rpc_open(&config, &rpc) != STATUS_OK ||
        rpc_channel_open(rpc, settings.server, &soak.channel) != STATUS_OK) {
        log_error("gRPC cannot be started");
        return 1;
    }
    soak_all(&soak);
    rpc_channel_close(soak.channel);
    rpc_close(rpc, 0);
    rpc_access_close(access);
    return soak.wrong_count == 0 ? 0 : 1;
}
