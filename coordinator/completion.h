// completion: what a client gets of a sequence: text that is complete characters, with stop strings
// found and held back, and the tokens and log-probabilities that were not sent yet.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/memory.h"
#include "coordinator/detokenizer.h"
#include "proto/frame.h"

enum finish_reason { FINISH_NONE, FINISH_STOP, FINISH_LENGTH, FINISH_CANCELLED };

// When generation ends.
struct stop_conditions {
    uint32_t max_token_count; // at least 1
    bool ignore_eos;
    const uint32_t *eos_ids; // the model's; borrowed
    uint32_t eos_count;
    uint32_t *token_ids;
    uint32_t token_id_count;
    char **strings; // '\0'-terminated, none empty
    uint32_t string_count;
};

// A token that was not sent to the client yet.
struct completion_token {
    uint32_t token_id;
    float logprob;
    uint32_t top_first, top_count; // in completion->tops
    size_t text_bytes;             // of completion->text, after those of the tokens before it
};

struct completion {
    const struct stop_conditions *stop; // borrowed
    struct detokenizer detokenizer;
    bool keep_special;
    bool drops_text;                 // nobody reads it; stop strings are found all the same
    uint32_t token_count;            // drawn so far
    struct buffer held;              // text not released: it may be the start of a stop string
    struct buffer text;              // released, not sent yet
    struct completion_token *tokens; // not sent yet
    uint32_t unsent_count, token_capacity_count;
    struct frame_top *tops;
    uint32_t top_count, top_capacity_count;
    enum finish_reason finish_reason;
    // What ended it, when finish_reason is FINISH_STOP.
    bool stopped_by_string;
    uint32_t stop_token_id;
    uint32_t stop_string_index;
};

// `stop` is borrowed until completion_fini. text_limit_bytes bounds the text kept for a client that
// does not read.
void completion_init(struct completion *completion, const struct tokenizer *tokenizer,
                     const struct stop_conditions *stop, bool keep_special,
                     size_t text_limit_bytes);
void completion_fini(struct completion *completion);
// Frees what it points to, but for eos_ids.
void stop_conditions_fini(struct stop_conditions *stop);

// A token was drawn. Afterwards finish_reason says whether it was the last. tops: sample->top_count
// entries. STATUS_NO_MEMORY, STATUS_EXHAUSTED: the request must end with that error.
MUST_USE enum status completion_push(struct completion *completion,
                                     const struct frame_sample *sample,
                                     const struct frame_top *tops);

// A token that was drawn in an earlier call, whose client has it and its text: as completion_push,
// but there is nothing to send of it.
MUST_USE enum status completion_advance(struct completion *completion, uint32_t token_id);

// Whether there is anything to send.
bool completion_has_news(const struct completion *completion);
// The text that the first token_count of the unsent tokens released: so much of completion->text.
size_t completion_text_bytes(const struct completion *completion, uint32_t token_count);
// The first token_count of the unsent tokens were sent, and the text that they released.
void completion_sent(struct completion *completion, uint32_t token_count);
