// generation: one Generate call, from the request to everything that came back. A call that breaks
// is made again, so that it goes on where it broke, while struct retry finds that worth it.
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/clock.h"
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
    json_t *logprobs;                           // array, one entry a token; NULL when none came
    Stagecoach__V1__FinishReason finish_reason; // not NONE: the answer is complete
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
    // From when the call was first made. queue_ms is the coordinator's, of the last attempt.
    double queue_ms, first_token_ms, total_ms;
    bool has_seed; // a message came; what it said:
    uint64_t seed; // the first answer's
    char request_id[REQUEST_ID_BYTES_MAX + 1];

    struct clock clock;
    uint64_t begun_ns, attempt_ns; // when the first attempt and this one were made
    uint64_t first_token_ns;       // 0: none yet
    uint64_t token_count;          // of all answers
    bool is_resumed;               // this attempt goes on with an earlier one
    bool is_torn;                  // it did not go on where that one broke

    struct retry_failure failure; // how the call ended; code RPC_OK: well
    char sentence[512];
    bool is_output_lost; // standard output could not be written, errno in output_errno
    int output_errno;
    bool is_out_of_memory;
    bool is_interrupted; // by a signal

    struct wake wake; // signalled when an attempt is over
};

// As many answers as the request asks for, though no more than any may.
MUST_USE bool generation_init(struct generation *generation, uint32_t answer_count,
                              bool stream_text);
void generation_fini(struct generation *generation);

// Runs the call to its end; the client's interrupts, which it has, cancel it. What came is in
// `generation`; false when the call could not be begun, which has been reported.
MUST_USE bool generation_run(struct generation *generation, struct client *client,
                             const Stagecoach__V1__GenerateRequest *request);

// Tokens a second after the first one, so that neither queueing nor the prompt counts; of the whole
// when there is only one token. 0 when nothing is known.
double generation_tokens_per_second(const struct generation *generation);
