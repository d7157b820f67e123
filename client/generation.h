// generation: one Generate call, from the request to everything that came back.
#pragma once

#include <jansson.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/limits.h"
#include "base/memory.h"
#include "base/wake.h"
#include "client/client.h"
#include "stagecoach/v1/inference.pb-c.h"

struct answer {
    struct buffer text;
    uint32_t *token_ids;
    size_t token_id_count;
    size_t token_id_capacity;
    json_t *logprobs; // array, one entry a token; NULL when none came
    Stagecoach__V1__FinishReason finish_reason;
    uint64_t seed;
    char *stop_string; // NULL when none ended it
    bool has_stop_token_id;
    uint32_t stop_token_id;
};

// The RPC thread writes it until the call is over, then the main thread reads it.
struct generation {
    bool stream_text; // write the text of the first answer to standard output as it comes

    struct answer answers[REQUEST_ANSWER_COUNT_MAX];
    uint32_t answer_count;
    bool has_usage;
    uint32_t prompt_tokens, cached_tokens;
    uint32_t completion_tokens;
    double queue_ms, first_token_ms, total_ms;

    enum rpc_code code; // how the call ended
    char sentence[512];
    bool is_output_lost; // standard output could not be written, errno in output_errno
    int output_errno;
    bool is_out_of_memory;
    bool is_interrupted; // by a signal

    struct wake wake;
    atomic_bool is_over;
};

// As many answers as the request asks for, though no more than any may.
MUST_USE bool generation_init(struct generation *generation, uint32_t answer_count,
                              bool stream_text);
void generation_fini(struct generation *generation);

// Runs the call to its end; `interrupts`, which are blocked, cancel it. What came is in
// `generation`; false when the call could not be begun, which has been reported.
MUST_USE bool generation_run(struct generation *generation, struct client *client,
                             const sigset_t *interrupts,
                             const Stagecoach__V1__GenerateRequest *request);

// Tokens a second after the first one, so that neither queueing nor the prompt counts; of the whole
// when there is only one token. 0 when nothing is known.
double generation_tokens_per_second(const struct generation *generation);
