#include "client/generation.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "base/limits.h"
#include "client/message_json.h"

bool generation_init(struct generation *generation, uint32_t answer_count, bool stream_text) {
    if (answer_count > REQUEST_ANSWER_COUNT_MAX) answer_count = REQUEST_ANSWER_COUNT_MAX;
    *generation = (struct generation){.stream_text = stream_text, .answer_count = answer_count};
    for (uint32_t i = 0; i < answer_count; i++)
        buffer_init(&generation->answers[i].text, SIZE_MAX / 2);
    if (wake_init(&generation->wake) == STATUS_OK) return true;
    client_report("cannot make an event descriptor: %s", strerror(errno));
    return false;
}

void generation_fini(struct generation *generation) {
    wake_fini(&generation->wake);
    for (uint32_t i = 0; i < generation->answer_count; i++) {
        struct answer *answer = &generation->answers[i];
        buffer_fini(&answer->text);
        json_decref(answer->logprobs);
        free(answer->token_ids);
        free(answer->stop_string);
    }
}

// -- what comes back, on the RPC thread ----------------------------------------------------------

static void keep_usage(struct generation *generation, const Stagecoach__V1__Usage *usage) {
    if (usage == NULL) return;
    generation->has_usage = true;
    generation->prompt_tokens = usage->prompt_tokens;
    generation->cached_tokens = usage->cached_tokens;
    generation->completion_tokens = usage->completion_tokens;
    generation->queue_ms = usage->queue_ms;
    generation->first_token_ms = usage->first_token_ms;
    generation->total_ms = usage->total_ms;
}

static bool keep_token_ids(struct answer *answer,
                           const Stagecoach__V1__GenerateResponse *response) {
    size_t count = answer->token_id_count + response->n_token_ids;
    if (count > answer->token_id_capacity) {
        size_t capacity = count * 2;
        uint32_t *ids = memory_resize(answer->token_ids, capacity, sizeof(*ids));
        if (ids == NULL) return false;
        answer->token_ids = ids;
        answer->token_id_capacity = capacity;
    }
    for (size_t i = 0; i < response->n_token_ids; i++)
        answer->token_ids[answer->token_id_count++] = response->token_ids[i];
    return true;
}

static bool keep_logprobs(struct answer *answer, const Stagecoach__V1__GenerateResponse *response) {
    if (response->n_logprobs == 0) return true;
    if (answer->logprobs == NULL) answer->logprobs = json_array();
    for (size_t i = 0; i < response->n_logprobs; i++)
        if (json_array_append_new(answer->logprobs, message_json(&response->logprobs[i]->base)) !=
            0)
            return false;
    return true;
}

static bool keep_end(struct answer *answer, const Stagecoach__V1__GenerateResponse *response) {
    answer->finish_reason = response->finish_reason;
    answer->seed = response->seed;
    switch (response->stop_cause_case) {
    case STAGECOACH__V1__GENERATE_RESPONSE__STOP_CAUSE_STOP_TOKEN_ID:
        answer->has_stop_token_id = true;
        answer->stop_token_id = response->stop_token_id;
        return true;
    case STAGECOACH__V1__GENERATE_RESPONSE__STOP_CAUSE_STOP_STRING:
        free(answer->stop_string);
        answer->stop_string = strdup(response->stop_string);
        return answer->stop_string != NULL;
    default:
        return true;
    }
}

// False when standard output cannot be written.
static bool write_text(struct generation *generation, const char *text) {
    if (fputs(text, stdout) >= 0 && fflush(stdout) == 0) return true;
    generation->is_output_lost = true;
    generation->output_errno = errno;
    return false;
}

static void on_message(struct rpc_call *call, void *ctx, const ProtobufCMessage *message) {
    struct generation *generation = ctx;
    const Stagecoach__V1__GenerateResponse *response =
        (const Stagecoach__V1__GenerateResponse *)message;
    if (response->index >= generation->answer_count) return; // not asked for
    struct answer *answer = &generation->answers[response->index];
    keep_usage(generation, response->usage);
    if (!keep_token_ids(answer, response) || !keep_logprobs(answer, response) ||
        !keep_end(answer, response) ||
        buffer_append(&answer->text, response->text, strlen(response->text)) != STATUS_OK) {
        generation->is_out_of_memory = true;
        rpc_call_cancel(call);
        return;
    }
    // A slow reader of standard output holds up this thread, which has nothing else to do: so the
    // flow control of the call reaches the coordinator.
    if (generation->stream_text && !generation->is_output_lost &&
        !write_text(generation, response->text))
        rpc_call_cancel(call);
}

static void on_closed(struct rpc_call *call, void *ctx, enum rpc_code code, const char *message) {
    (void)call;
    struct generation *generation = ctx;
    generation->code = code;
    snprintf(generation->sentence, sizeof(generation->sentence), "%s", message);
    atomic_store(&generation->is_over, true);
    wake_signal(&generation->wake);
}

// -- the call, on the main thread ----------------------------------------------------------------

// Sleeps until the call is over or a signal came or the time is up. True when the call is over.
static bool wait_over(struct generation *generation, int signal_fd, int timeout_ms) {
    struct pollfd events[] = {{.fd = generation->wake.fd, .events = POLLIN},
                              {.fd = signal_fd, .events = POLLIN}};
    while (!atomic_load(&generation->is_over)) {
        int count = poll(events, 2, timeout_ms);
        if (count == 0 || (count < 0 && errno != EINTR)) break;
        if (count > 0 && events[1].revents != 0) {
            struct signalfd_siginfo ignored;
            if (read(signal_fd, &ignored, sizeof(ignored)) == sizeof(ignored)) break;
        }
    }
    return atomic_load(&generation->is_over);
}

static void finish_call(struct generation *generation, struct rpc_call *call, int signal_fd) {
    if (wait_over(generation, signal_fd, -1)) return;
    generation->is_interrupted = true;
    rpc_call_cancel(call);
    // The RPC thread may hang on standard output; a second signal does not wait for it either.
    if (!wait_over(generation, signal_fd, CLIENT_CANCEL_MS)) _exit(CLIENT_EXIT_INTERRUPTED);
}

bool generation_run(struct generation *generation, struct client *client,
                    const sigset_t *interrupts, const Stagecoach__V1__GenerateRequest *request) {
    static const struct rpc_handler handler = {.message = on_message, .closed = on_closed};
    int signal_fd = signalfd(-1, interrupts, SFD_CLOEXEC | SFD_NONBLOCK);
    if (signal_fd < 0) {
        client_report("cannot receive signals: %s", strerror(errno));
        return false;
    }
    struct rpc_call *call;
    enum status status = rpc_call_begin(client->channel, &stagecoach__v1__inference__descriptor,
                                        "Generate", &handler, generation, NULL, &call);
    if (status == STATUS_OK) {
        // A call that is over already says so in on_closed().
        if (rpc_call_send(call, &request->base)) rpc_call_send_end(call);
        finish_call(generation, call, signal_fd);
        rpc_call_release(call);
    } else {
        client_report("cannot begin a call to %s (%s)", client->coordinator, status_name(status));
    }
    close(signal_fd);
    return status == STATUS_OK;
}

double generation_tokens_per_second(const struct generation *generation) {
    if (!generation->has_usage) return 0.0;
    double tokens = (double)generation->completion_tokens;
    double ms = generation->total_ms;
    if (generation->completion_tokens > 1) {
        tokens -= 1.0;
        ms -= generation->first_token_ms;
    }
    return ms > 0.0 ? tokens * 1000.0 / ms : 0.0;
}
