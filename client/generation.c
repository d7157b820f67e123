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

bool generation_init(struct generation *generation, bool stream_text) {
    *generation = (struct generation){.stream_text = stream_text};
    buffer_init(&generation->text, SIZE_MAX / 2);
    if (wake_init(&generation->wake) == STATUS_OK) return true;
    client_report("cannot make an event descriptor: %s", strerror(errno));
    return false;
}

void generation_fini(struct generation *generation) {
    wake_fini(&generation->wake);
    buffer_fini(&generation->text);
    json_decref(generation->logprobs);
    free(generation->token_ids);
    free(generation->stop_string);
}

// -- what comes back, on the RPC thread ----------------------------------------------------------

static bool keep_token_ids(struct generation *generation,
                           const Stagecoach__V1__GenerateResponse *response) {
    size_t count = generation->token_id_count + response->n_token_ids;
    if (count > generation->token_id_capacity) {
        size_t capacity = count * 2;
        uint32_t *ids = memory_resize(generation->token_ids, capacity, sizeof(*ids));
        if (ids == NULL) return false;
        generation->token_ids = ids;
        generation->token_id_capacity = capacity;
    }
    for (size_t i = 0; i < response->n_token_ids; i++)
        generation->token_ids[generation->token_id_count++] = response->token_ids[i];
    return true;
}

static bool keep_logprobs(struct generation *generation,
                          const Stagecoach__V1__GenerateResponse *response) {
    if (response->n_logprobs == 0) return true;
    if (generation->logprobs == NULL) generation->logprobs = json_array();
    for (size_t i = 0; i < response->n_logprobs; i++)
        if (json_array_append_new(generation->logprobs,
                                  message_json(&response->logprobs[i]->base)) != 0)
            return false;
    return true;
}

static void keep_usage(struct generation *generation, const Stagecoach__V1__Usage *usage) {
    if (usage == NULL) return;
    generation->has_usage = true;
    generation->prompt_tokens = usage->prompt_tokens;
    generation->completion_tokens = usage->completion_tokens;
    generation->queue_ms = usage->queue_ms;
    generation->first_token_ms = usage->first_token_ms;
    generation->total_ms = usage->total_ms;
}

static bool keep_end(struct generation *generation,
                     const Stagecoach__V1__GenerateResponse *response) {
    generation->finish_reason = response->finish_reason;
    generation->seed = response->seed;
    keep_usage(generation, response->usage);
    switch (response->stop_cause_case) {
    case STAGECOACH__V1__GENERATE_RESPONSE__STOP_CAUSE_STOP_TOKEN_ID:
        generation->has_stop_token_id = true;
        generation->stop_token_id = response->stop_token_id;
        return true;
    case STAGECOACH__V1__GENERATE_RESPONSE__STOP_CAUSE_STOP_STRING:
        free(generation->stop_string);
        generation->stop_string = strdup(response->stop_string);
        return generation->stop_string != NULL;
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
    if (!keep_token_ids(generation, response) || !keep_logprobs(generation, response) ||
        !keep_end(generation, response) ||
        buffer_append(&generation->text, response->text, strlen(response->text)) != STATUS_OK) {
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
                                        "Generate", &handler, generation, 0, &call);
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
