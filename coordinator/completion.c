#include "coordinator/completion.h"

#include <stdlib.h>
#include <string.h>

void completion_init(struct completion *completion, const struct tokenizer *tokenizer,
                     const struct stop_conditions *stop, bool keep_special,
                     size_t text_limit_bytes) {
    *completion = (struct completion){.stop = stop, .keep_special = keep_special};
    detokenizer_init(&completion->detokenizer, tokenizer, !keep_special);
    buffer_init(&completion->held, text_limit_bytes);
    buffer_init(&completion->text, text_limit_bytes);
}

void completion_fini(struct completion *completion) {
    buffer_fini(&completion->held);
    buffer_fini(&completion->text);
    free(completion->tokens);
    free(completion->tops);
}

void stop_conditions_fini(struct stop_conditions *stop) {
    for (uint32_t i = 0; i < stop->string_count; i++)
        free(stop->strings[i]);
    free(stop->strings);
    free(stop->token_ids);
}

// Doubles an array until `wanted` entries fit.
static enum status reserve(void **array, uint32_t *capacity_count, uint32_t wanted, size_t size) {
    if (wanted <= *capacity_count) return STATUS_OK;
    uint32_t grown_count = *capacity_count == 0 ? 16 : *capacity_count;
    while (grown_count < wanted)
        grown_count *= 2;
    void *grown = memory_resize(*array, grown_count, size);
    if (grown == NULL) return STATUS_NO_MEMORY;
    *array = grown;
    *capacity_count = grown_count;
    return STATUS_OK;
}

static enum status keep_token(struct completion *c, const struct frame_sample *sample,
                              const struct frame_top *tops) {
    enum status status = reserve((void **)&c->tokens, &c->token_capacity_count, c->unsent_count + 1,
                                 sizeof(*c->tokens));
    if (status != STATUS_OK) return status;
    status = reserve((void **)&c->tops, &c->top_capacity_count, c->top_count + sample->top_count,
                     sizeof(*c->tops));
    if (status != STATUS_OK) return status;
    c->tokens[c->unsent_count++] = (struct completion_token){
        .token_id = sample->token_id,
        .logprob = sample->logprob,
        .top_first = c->top_count,
        .top_count = sample->top_count,
    };
    if (sample->top_count > 0)
        memcpy(&c->tops[c->top_count], tops, sample->top_count * sizeof(*tops));
    c->top_count += sample->top_count;
    c->token_count++;
    return STATUS_OK;
}

static bool is_in(const uint32_t *ids, uint32_t count, uint32_t id) {
    for (uint32_t i = 0; i < count; i++)
        if (ids[i] == id) return true;
    return false;
}

static void drop_front(struct buffer *buffer, size_t size_bytes) {
    if (size_bytes == 0) return;
    buffer->size_bytes -= size_bytes;
    memmove(buffer->data, buffer->data + size_bytes, buffer->size_bytes + 1);
}

// Moves the first size_bytes of held text to the text that may be sent, with the last token.
static enum status release(struct completion *c, size_t size_bytes) {
    if (size_bytes == 0) return STATUS_OK;
    if (!c->drops_text) {
        enum status status = buffer_append(&c->text, c->held.data, size_bytes);
        if (status != STATUS_OK) return status;
        c->tokens[c->unsent_count - 1].text_bytes += size_bytes;
    }
    drop_front(&c->held, size_bytes);
    return STATUS_OK;
}

// The earliest stop string in the held text (the first listed, if several begin there).
static bool find_stop_string(const struct completion *c, size_t *offset_out, uint32_t *index_out) {
    bool found = false;
    for (uint32_t i = 0; i < c->stop->string_count; i++) {
        const char *string = c->stop->strings[i];
        const char *at = memmem(c->held.data, c->held.size_bytes, string, strlen(string));
        if (at == NULL) continue;
        size_t offset = (size_t)(at - c->held.data);
        if (found && offset >= *offset_out) continue;
        *offset_out = offset;
        *index_out = i;
        found = true;
    }
    return found;
}

// How many bytes at the end of the held text could be the start of a stop string.
static size_t held_back_bytes(const struct completion *c) {
    size_t longest = 0;
    for (uint32_t i = 0; i < c->stop->string_count; i++) {
        const char *string = c->stop->strings[i];
        size_t size = strlen(string) - 1;
        if (size > c->held.size_bytes) size = c->held.size_bytes;
        for (; size > longest; size--) {
            const char *tail = c->held.data + c->held.size_bytes - size;
            if (memcmp(tail, string, size) != 0) continue;
            longest = size;
            break;
        }
    }
    return longest;
}

// Releases what cannot belong to a stop string. Ends the completion at a stop string.
static enum status release_text(struct completion *c, bool is_end) {
    if (c->held.size_bytes == 0) return STATUS_OK;
    size_t offset = 0;
    uint32_t index = 0;
    if (find_stop_string(c, &offset, &index)) {
        c->finish_reason = FINISH_STOP;
        c->stopped_by_string = true;
        c->stop_string_index = index;
        enum status status = release(c, offset);
        buffer_clear(&c->held);
        return status;
    }
    return release(c, c->held.size_bytes - (is_end ? 0 : held_back_bytes(c)));
}

static void apply_token_stops(struct completion *c, uint32_t token_id) {
    const struct stop_conditions *stop = c->stop;
    bool is_eos = !stop->ignore_eos && is_in(stop->eos_ids, stop->eos_count, token_id);
    if (is_eos || is_in(stop->token_ids, stop->token_id_count, token_id)) {
        c->finish_reason = FINISH_STOP;
        c->stop_token_id = token_id;
    } else if (c->token_count >= stop->max_token_count) {
        c->finish_reason = FINISH_LENGTH;
    }
}

enum status completion_push(struct completion *completion, const struct frame_sample *sample,
                            const struct frame_top *tops) {
    enum status status = keep_token(completion, sample, tops);
    if (status != STATUS_OK) return status;
    apply_token_stops(completion, sample->token_id);
    // A token that ends the text is not part of it.
    if (completion->finish_reason != FINISH_STOP || completion->keep_special) {
        size_t before_bytes = completion->held.size_bytes;
        status = detokenizer_push(&completion->detokenizer, sample->token_id, &completion->held);
        if (status == STATUS_OK)
            status = detokenizer_replace_zeros(&completion->held, before_bytes);
        if (status != STATUS_OK) return status;
    }
    bool is_end = completion->finish_reason != FINISH_NONE;
    if (is_end) {
        status = detokenizer_flush(&completion->detokenizer, &completion->held);
        if (status != STATUS_OK) return status;
    }
    return release_text(completion, is_end);
}

enum status completion_advance(struct completion *completion, uint32_t token_id) {
    const struct frame_sample sample = {.token_id = token_id};
    enum status status = completion_push(completion, &sample, NULL);
    if (status == STATUS_OK) completion_sent(completion, completion->unsent_count);
    return status;
}

bool completion_has_news(const struct completion *completion) {
    return completion->unsent_count > 0 || completion->finish_reason != FINISH_NONE;
}

size_t completion_text_bytes(const struct completion *completion, uint32_t token_count) {
    size_t size_bytes = 0;
    for (uint32_t i = 0; i < token_count; i++)
        size_bytes += completion->tokens[i].text_bytes;
    return size_bytes;
}

void completion_sent(struct completion *completion, uint32_t token_count) {
    if (token_count == 0) return;
    drop_front(&completion->text, completion_text_bytes(completion, token_count));
    completion->unsent_count -= token_count;
    memmove(completion->tokens, completion->tokens + token_count,
            completion->unsent_count * sizeof(*completion->tokens));
    if (completion->unsent_count == 0) completion->top_count = 0;
}
