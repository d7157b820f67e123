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
#include "client/resume.h"

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

static double ms_since_begun(const struct generation *generation, uint64_t ns) {
    return (double)(ns - generation->begun_ns) / 1e6;
}

// Its times begin with the attempt, ours with the first one.
static void keep_usage(struct generation *generation, const Stagecoach__V1__Usage *usage) {
    if (usage == NULL) return;
    double earlier_ms = ms_since_begun(generation, generation->attempt_ns);
    bool is_first_earlier =
        generation->first_token_ns != 0 && generation->first_token_ns < generation->attempt_ns;
    generation->has_usage = true;
    generation->prompt_tokens = usage->prompt_tokens;
    generation->cached_tokens = usage->cached_tokens;
    generation->completion_tokens = usage->completion_tokens;
    generation->queue_ms = usage->queue_ms;
    generation->first_token_ms = is_first_earlier
                                     ? ms_since_begun(generation, generation->first_token_ns)
                                     : earlier_ms + usage->first_token_ms;
    generation->total_ms = earlier_ms + usage->total_ms;
}

// What later attempts need.
static void keep_identity(struct generation *generation,
                          const Stagecoach__V1__GenerateResponse *response) {
    if (generation->has_seed) return;
    generation->has_seed = true;
    generation->seed = response->seed - response->index * REQUEST_SEED_STEP;
    snprintf(generation->request_id, sizeof(generation->request_id), "%s", response->request_id);
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

static void count_tokens(struct generation *generation, size_t count) {
    if (count == 0) return;
    if (generation->first_token_ns == 0)
        generation->first_token_ns = clock_now_ns(&generation->clock);
    generation->token_count += count;
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

// All of a message, so that tokens and text are always those of whole messages. False: no memory.
static bool keep_message(struct generation *generation, struct answer *answer,
                         const Stagecoach__V1__GenerateResponse *response) {
    keep_identity(generation, response);
    if (!keep_token_ids(answer, response) || !keep_logprobs(answer, response) ||
        !keep_end(answer, response) ||
        buffer_append(&answer->text, response->text, strlen(response->text)) != STATUS_OK)
        return false;
    count_tokens(generation, response->n_token_ids);
    keep_usage(generation, response->usage);
    return true;
}

static void on_message(struct rpc_call *call, void *ctx, const ProtobufCMessage *message) {
    struct generation *generation = ctx;
    const Stagecoach__V1__GenerateResponse *response =
        (const Stagecoach__V1__GenerateResponse *)message;
    if (response->index >= generation->answer_count) return; // not asked for
    struct answer *answer = &generation->answers[response->index];
    generation->is_torn = generation->is_torn || (generation->is_resumed &&
                                                  response->token_first != answer->token_id_count);
    generation->is_out_of_memory =
        generation->is_out_of_memory ||
        (!generation->is_torn && !keep_message(generation, answer, response));
    if (generation->is_torn || generation->is_out_of_memory) {
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
    struct generation *generation = ctx;
    generation->failure = (struct retry_failure){code, rpc_call_retry_ms(call)};
    snprintf(generation->sentence, sizeof(generation->sentence), "%s", message);
    wake_signal(&generation->wake); // nothing after it: the main thread goes on
}

// -- the call, on the main thread ----------------------------------------------------------------

// Sleeps until the call is over or a signal came or the time is up. True when the call is over.
static bool wait_over(struct generation *generation, int signal_fd, int timeout_ms) {
    struct pollfd events[] = {{.fd = generation->wake.fd, .events = POLLIN},
                              {.fd = signal_fd, .events = POLLIN}};
    for (;;) {
        int count = poll(events, 2, timeout_ms);
        if (count == 0 || (count < 0 && errno != EINTR)) return false;
        if (count > 0 && events[0].revents != 0) {
            wake_clear(&generation->wake);
            return true;
        }
        struct signalfd_siginfo ignored;
        if (count > 0 && read(signal_fd, &ignored, sizeof(ignored)) == sizeof(ignored))
            return false;
    }
}

static void finish_call(struct generation *generation, struct rpc_call *call, int signal_fd) {
    if (wait_over(generation, signal_fd, -1)) return;
    generation->is_interrupted = true;
    rpc_call_cancel(call);
    // The RPC thread may hang on standard output; a second signal does not wait for it either.
    if (!wait_over(generation, signal_fd, CLIENT_CANCEL_MS)) _exit(CLIENT_EXIT_INTERRUPTED);
}

// Makes the call once. False when it could not be begun, which has been reported.
static bool attempt(struct generation *generation, struct client *client, int signal_fd,
                    const Stagecoach__V1__GenerateRequest *request) {
    static const struct rpc_handler handler = {.message = on_message, .closed = on_closed};
    generation->attempt_ns = clock_now_ns(&generation->clock);
    generation->is_resumed = request->n_resume > 0;
    struct rpc_call *call;
    enum status status = rpc_call_begin(client->channel, &stagecoach__v1__inference__descriptor,
                                        "Generate", &handler, generation, NULL, &call);
    if (status != STATUS_OK) {
        client_report("cannot begin a call to %s (%s)", client->coordinator, status_name(status));
        return false;
    }
    // A call that is over already says so in on_closed().
    if (rpc_call_send(call, &request->base)) rpc_call_send_end(call);
    finish_call(generation, call, signal_fd);
    rpc_call_release(call);
    return true;
}

static bool is_complete(const struct generation *generation) {
    for (uint32_t i = 0; i < generation->answer_count; i++)
        if (generation->answers[i].finish_reason ==
            STAGECOACH__V1__FINISH_REASON__FINISH_REASON_NONE)
            return false;
    return true;
}

// An OK counts for nothing while the ends of answers are missing, and nothing else counts when all
// has come: the call may have broken after its last message.
static void judge(struct generation *generation) {
    struct retry_failure *failure = &generation->failure;
    if (is_complete(generation) && generation->has_usage) failure->code = RPC_OK;
    if (is_complete(generation) || failure->code != RPC_OK) return;
    *failure = (struct retry_failure){RPC_UNAVAILABLE, RPC_RETRY_UNSAID};
    snprintf(generation->sentence, sizeof(generation->sentence),
             "the call ended before the answer was complete");
}

// Whether there is nothing more to try.
static bool is_settled(struct generation *generation) {
    if (generation->is_interrupted || generation->is_output_lost || generation->is_out_of_memory ||
        generation->is_torn)
        return true;
    judge(generation);
    return generation->failure.code == RPC_OK;
}

static bool run(struct generation *generation, struct client *client, int signal_fd,
                const Stagecoach__V1__GenerateRequest *request) {
    struct retry retry;
    retry_init(&retry, client->retry_ms, retry_draw());
    generation->clock = clock_system();
    generation->begun_ns = clock_now_ns(&generation->clock);
    struct resume resume;
    for (;;) {
        uint64_t token_count = generation->token_count;
        if (!attempt(generation, client, signal_fd, resume_request(&resume, request, generation)))
            return false;
        if (is_settled(generation)) return true;
        if (generation->token_count > token_count) retry_progress(&retry);
        if (client_wait_to_retry(client, &retry, &generation->failure, generation->sentence))
            continue;
        generation->is_interrupted = client->is_interrupted;
        return true;
    }
}

bool generation_run(struct generation *generation, struct client *client,
                    const Stagecoach__V1__GenerateRequest *request) {
    int signal_fd = signalfd(-1, client->interrupts, SFD_CLOEXEC | SFD_NONBLOCK);
    if (signal_fd < 0) {
        client_report("cannot receive signals: %s", strerror(errno));
        return false;
    }
    bool has_run = run(generation, client, signal_fd, request);
    close(signal_fd);
    return has_run;
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
