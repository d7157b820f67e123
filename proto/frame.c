#include "proto/frame.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/limits.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "tables are used in place");

static uint64_t at_most(uint64_t value, uint64_t limit) {
    return value < limit ? value : limit;
}

// Offsets of the tables behind the header, in bytes; computed in 64 bits, where the sums of 32-bit
// counts times small sizes cannot overflow.
struct layout {
    uint64_t sequences, tokens, blocks, biases, history, samples, tops;
    uint64_t tables_end; // padding from here to the payload
    uint64_t payload;
    uint64_t payload_bytes;
    uint64_t total_bytes;
};

static struct layout layout_of(const struct frame_header *h) {
    bool is_step = h->kind == FRAME_STEP;
    struct layout l = {0};
    uint64_t at = sizeof(struct frame_header);
    l.sequences = at;
    at += is_step ? (uint64_t)h->sequence_count * sizeof(struct frame_sequence) : 0;
    l.samples = at;
    at += (uint64_t)h->sample_count * sizeof(struct frame_sample);
    l.biases = at;
    at += (uint64_t)h->bias_count * sizeof(struct frame_bias);
    l.history = at;
    at += (uint64_t)h->history_count * sizeof(struct frame_history);
    l.tops = at;
    at += (uint64_t)h->top_count * sizeof(struct frame_top);
    l.tokens = at;
    at += is_step ? (uint64_t)h->row_count * sizeof(uint32_t) : 0;
    l.blocks = at;
    at += (uint64_t)h->block_count * sizeof(uint32_t);
    l.tables_end = at;
    at = (at + FRAME_ALIGNMENT - 1) / FRAME_ALIGNMENT * FRAME_ALIGNMENT;
    l.payload = at;
    // Two 32-bit counts times 4 may not fit: what is cut here is larger than any buffer.
    uint64_t value_count = at_most((uint64_t)h->row_count * h->hidden_size, UINT64_MAX / 8);
    l.payload_bytes = value_count * dtype_size_bytes((enum dtype)h->dtype);
    l.total_bytes = at + l.payload_bytes;
    return l;
}

static struct frame_view view_of(uint8_t *data, const struct layout *l) {
    return (struct frame_view){
        .header = (struct frame_header *)data,
        .sequences = (struct frame_sequence *)(data + l->sequences),
        .tokens = (uint32_t *)(data + l->tokens),
        .blocks = (uint32_t *)(data + l->blocks),
        .biases = (struct frame_bias *)(data + l->biases),
        .history = (struct frame_history *)(data + l->history),
        .samples = (struct frame_sample *)(data + l->samples),
        .tops = (struct frame_top *)(data + l->tops),
        .payload = data + l->payload,
    };
}

enum status frame_open(size_t capacity_bytes, struct frame **frame_out) {
    struct frame *frame = calloc(1, sizeof(*frame));
    if (frame == NULL) return STATUS_NO_MEMORY;
    size_t rounded = (capacity_bytes + FRAME_ALIGNMENT - 1) / FRAME_ALIGNMENT * FRAME_ALIGNMENT;
    bool is_sum = rounded >= capacity_bytes; // not wrapped around
    frame->data = is_sum ? aligned_alloc(FRAME_ALIGNMENT, rounded) : NULL;
    if (frame->data == NULL) {
        free(frame);
        return STATUS_NO_MEMORY;
    }
    frame->capacity_bytes = rounded;
    *frame_out = frame;
    return STATUS_OK;
}

void frame_close(struct frame *frame) {
    if (frame == NULL) return;
    free(frame->data);
    free(frame);
}

enum status frame_format(struct frame *frame, const struct frame_header *wanted,
                         struct frame_view *view_out) {
    struct frame_header header = *wanted;
    struct layout layout = layout_of(&header);
    if (layout.total_bytes > frame->capacity_bytes) return STATUS_EXHAUSTED;
    header.magic = FRAME_MAGIC;
    header.version = FRAME_VERSION;
    header.flags = 0;
    header.payload_offset = (uint32_t)layout.payload;
    header.payload_bytes = layout.payload_bytes;
    memset(frame->data, 0, layout.payload);
    memcpy(frame->data, &header, sizeof(header));
    frame->size_bytes = layout.total_bytes;
    *view_out = view_of(frame->data, &layout);
    return STATUS_OK;
}

static enum status refuse(struct error *error, const char *field, uint64_t value, uint64_t limit) {
    return error_set(error, STATUS_INVALID, "frame: %s is %" PRIu64 ", the limit is %" PRIu64,
                     field, value, limit);
}

static enum status mismatch(struct error *error, const char *field, uint64_t value,
                            uint64_t expected) {
    return error_set(error, STATUS_INVALID, "frame: %s is %" PRIu64 ", it must be %" PRIu64, field,
                     value, expected);
}

static bool all_zero(const uint8_t *bytes, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (bytes[i] != 0) return false;
    return true;
}

// The most entries that each table of a STEP can have. Buffers have room for these, so a frame that
// passes is one that fits.
struct table_limits {
    uint64_t block, bias, history;
};

static struct table_limits table_limits_of(const struct frame_limits *limits) {
    uint64_t sequences = limits->sequence_count_max;
    uint64_t positions = limits->position_count_max;
    uint64_t blocks_each = (positions + KV_BLOCK_POSITION_COUNT - 1) / KV_BLOCK_POSITION_COUNT;
    uint64_t history_each = at_most(positions, limits->vocabulary_size);
    return (struct table_limits){
        .block = at_most(sequences * blocks_each, FRAME_BLOCK_COUNT_MAX),
        .bias = at_most(sequences * REQUEST_LOGIT_BIAS_COUNT_MAX, FRAME_BIAS_COUNT_MAX),
        .history = at_most(sequences * history_each, FRAME_HISTORY_COUNT_MAX),
    };
}

static enum status check_counts(const struct frame_header *h, const struct frame_limits *limits,
                                struct error *error) {
    uint64_t sequences = limits->sequence_count_max;
    bool is_step = h->kind == FRAME_STEP;
    struct table_limits tables = table_limits_of(limits);
    struct {
        const char *field;
        uint64_t value, limit;
    } counts[] = {
        {"row_count", h->row_count, limits->row_count_max},
        {"sequence_count", h->sequence_count, sequences},
        {"block_count", h->block_count, is_step ? tables.block : 0},
        {"bias_count", h->bias_count, is_step ? tables.bias : 0},
        {"history_count", h->history_count, is_step ? tables.history : 0},
        {"sample_count", h->sample_count, is_step ? 0 : at_most(h->sequence_count, sequences)},
        {"top_count", h->top_count, is_step ? 0 : sequences * REQUEST_TOP_LOGPROB_COUNT_MAX},
    };
    for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
        if (counts[i].value > counts[i].limit)
            return refuse(error, counts[i].field, counts[i].value, counts[i].limit);
    }
    if (h->row_count == 0 || h->sequence_count == 0)
        return error_set(error, STATUS_INVALID, "frame: %s is 0, it must be at least 1",
                         h->row_count == 0 ? "row_count" : "sequence_count");
    return STATUS_OK;
}

static enum status check_header(const struct frame *frame, const struct frame_header *h,
                                const struct frame_limits *limits, struct error *error) {
    if (h->magic != FRAME_MAGIC) return mismatch(error, "magic", h->magic, FRAME_MAGIC);
    if (h->version != FRAME_VERSION) return mismatch(error, "version", h->version, FRAME_VERSION);
    if (h->kind != limits->kind) return mismatch(error, "kind", h->kind, limits->kind);
    if (h->epoch != limits->epoch)
        return error_set(error, STATUS_UNAVAILABLE,
                         "frame: epoch is %" PRIu64 ", the epoch in force is %" PRIu64, h->epoch,
                         limits->epoch);
    if (h->flags != 0) return mismatch(error, "flags", h->flags, 0);
    if (h->step == 0) return error_set(error, STATUS_INVALID, "frame: step is 0, it counts from 1");
    if (!all_zero(h->payload_tag, sizeof(h->payload_tag)) || !all_zero(h->mac, sizeof(h->mac)))
        return error_set(error, STATUS_INVALID,
                         "frame: %s is not zero, the link that brought it has no use for it",
                         all_zero(h->mac, sizeof(h->mac)) ? "payload_tag" : "mac");
    enum status status = check_counts(h, limits, error);
    if (status != STATUS_OK) return status;
    bool has_payload = limits->has_payload && h->kind == FRAME_STEP;
    uint32_t hidden_size = has_payload ? limits->hidden_size : 0;
    uint16_t dtype = has_payload ? (uint16_t)limits->dtype : DTYPE_NONE;
    if (h->hidden_size != hidden_size)
        return mismatch(error, "hidden_size", h->hidden_size, hidden_size);
    if (h->dtype != dtype) return mismatch(error, "dtype", h->dtype, dtype);
    struct layout layout = layout_of(h);
    if (h->payload_offset != layout.payload)
        return mismatch(error, "payload_offset", h->payload_offset, layout.payload);
    if (h->payload_bytes != layout.payload_bytes)
        return mismatch(error, "payload_bytes", h->payload_bytes, layout.payload_bytes);
    if (frame->size_bytes != layout.total_bytes)
        return mismatch(error, "size in bytes", frame->size_bytes, layout.total_bytes);
    if (!all_zero(frame->data + layout.tables_end, layout.payload - layout.tables_end))
        return error_set(error, STATUS_INVALID, "frame: padding before the payload is not zero");
    return STATUS_OK;
}

static enum status check_number(uint32_t sequence, const char *field, float value, float minimum,
                                float maximum, struct error *error) {
    // Written so that a NaN is refused.
    if (value >= minimum && value <= maximum) return STATUS_OK;
    return error_set(error, STATUS_INVALID,
                     "frame: sequence %" PRIu32 ": %s is %g, it must be from %g to %g", sequence,
                     field, (double)value, (double)minimum, (double)maximum);
}

static enum status check_sampling(uint32_t index, const struct frame_sequence *s,
                                  struct error *error) {
    struct {
        const char *field;
        float value, minimum, maximum;
    } numbers[] = {
        {"temperature", s->temperature, 0.0f, 100.0f},
        {"top_p", s->top_p, 0.0f, 1.0f},
        {"min_p", s->min_p, 0.0f, 1.0f},
        {"repetition_penalty", s->repetition_penalty, 0.01f, 100.0f},
        {"presence_penalty", s->presence_penalty, -2.0f, 2.0f},
        {"frequency_penalty", s->frequency_penalty, -2.0f, 2.0f},
    };
    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
        enum status status = check_number(index, numbers[i].field, numbers[i].value,
                                          numbers[i].minimum, numbers[i].maximum, error);
        if (status != STATUS_OK) return status;
    }
    if (s->top_logprob_count > REQUEST_TOP_LOGPROB_COUNT_MAX)
        return refuse(error, "top_logprob_count", s->top_logprob_count,
                      REQUEST_TOP_LOGPROB_COUNT_MAX);
    if (s->flags & ~(uint32_t)(FRAME_SAMPLE | FRAME_LOGPROBS))
        return refuse(error, "sequence flags", s->flags, FRAME_SAMPLE | FRAME_LOGPROBS);
    return STATUS_OK;
}

// A token that an earlier step draws.
static enum status check_lag(const struct frame_sequence *s, uint64_t step,
                             const struct frame_limits *limits, struct error *error) {
    if (s->token_lag == 0)
        return s->token_sample == 0 ? STATUS_OK
                                    : mismatch(error, "token_sample", s->token_sample, 0);
    if (s->token_lag > limits->token_lag_max)
        return refuse(error, "token_lag", s->token_lag, limits->token_lag_max);
    if (s->token_lag >= step) return refuse(error, "token_lag", s->token_lag, step - 1);
    if (s->token_sample >= limits->sequence_count_max)
        return refuse(error, "token_sample", s->token_sample, limits->sequence_count_max - 1);
    if (s->row_count != 1)
        return mismatch(error, "row_count of a sequence with token_lag", s->row_count, 1);
    if (s->position_first == 0)
        return error_set(error, STATUS_INVALID,
                         "frame: position_first is 0, no earlier step draws the first token");
    return STATUS_OK;
}

// What the sequences before this one have used of each table: their parts follow one another.
struct cursor {
    uint64_t row, block, bias, history;
};

static enum status check_sequence(uint32_t index, const struct frame_sequence *s,
                                  const struct frame_limits *limits, struct cursor *cursor,
                                  struct error *error) {
    if (s->row_first != cursor->row) return mismatch(error, "row_first", s->row_first, cursor->row);
    if (s->row_count == 0) return mismatch(error, "sequence row_count", 0, 1);
    uint64_t position_end = (uint64_t)s->position_first + s->row_count;
    if (position_end > limits->position_count_max)
        return refuse(error, "position_first + row_count", position_end,
                      limits->position_count_max);
    uint64_t blocks = (position_end + KV_BLOCK_POSITION_COUNT - 1) / KV_BLOCK_POSITION_COUNT;
    if (s->block_count != blocks)
        return mismatch(error, "sequence block_count", s->block_count, blocks);
    if (s->block_first != cursor->block)
        return mismatch(error, "block_first", s->block_first, cursor->block);
    if (s->bias_first != cursor->bias)
        return mismatch(error, "bias_first", s->bias_first, cursor->bias);
    if (s->history_first != cursor->history)
        return mismatch(error, "history_first", s->history_first, cursor->history);
    cursor->row += s->row_count;
    cursor->block += s->block_count;
    cursor->bias += s->bias_count;
    cursor->history += s->history_count;
    return check_sampling(index, s, error);
}

static enum status check_entries(const struct frame_view *view, const struct frame_limits *limits,
                                 struct error *error) {
    const struct frame_header *h = view->header;
    uint32_t vocabulary_size = limits->vocabulary_size;
    for (uint32_t i = 0; i < h->row_count; i++) {
        if (view->tokens[i] >= vocabulary_size)
            return refuse(error, "token id", view->tokens[i], vocabulary_size - 1);
    }
    for (uint32_t i = 0; i < h->block_count; i++) {
        if (view->blocks[i] >= limits->kv_block_count)
            return refuse(error, "block id", view->blocks[i], limits->kv_block_count - 1);
    }
    for (uint32_t i = 0; i < h->bias_count; i++) {
        if (view->biases[i].token_id >= vocabulary_size)
            return refuse(error, "bias token id", view->biases[i].token_id, vocabulary_size - 1);
        if (!isfinite(view->biases[i].bias))
            return error_set(error, STATUS_INVALID, "frame: a bias is not finite");
    }
    for (uint32_t i = 0; i < h->history_count; i++) {
        if (view->history[i].token_id >= vocabulary_size)
            return refuse(error, "history token id", view->history[i].token_id,
                          vocabulary_size - 1);
    }
    return STATUS_OK;
}

static enum status check_step(const struct frame_view *view, const struct frame_limits *limits,
                              struct error *error) {
    const struct frame_header *h = view->header;
    struct cursor cursor = {0};
    for (uint32_t i = 0; i < h->sequence_count; i++) {
        enum status status = check_sequence(i, &view->sequences[i], limits, &cursor, error);
        if (status == STATUS_OK) status = check_lag(&view->sequences[i], h->step, limits, error);
        if (status != STATUS_OK) return status;
    }
    if (cursor.row != h->row_count) return mismatch(error, "row_count", h->row_count, cursor.row);
    if (cursor.block != h->block_count)
        return mismatch(error, "block_count", h->block_count, cursor.block);
    if (cursor.bias != h->bias_count)
        return mismatch(error, "bias_count", h->bias_count, cursor.bias);
    if (cursor.history != h->history_count)
        return mismatch(error, "history_count", h->history_count, cursor.history);
    return check_entries(view, limits, error);
}

// Minus infinity is the logarithm of 0. Written so that a NaN is refused.
static bool is_logprob(float value) {
    return value < INFINITY;
}

static enum status check_sample(const struct frame_sample *s, const struct frame_limits *limits,
                                uint64_t top, struct error *error) {
    if (s->token_id >= limits->vocabulary_size)
        return refuse(error, "sampled token id", s->token_id, limits->vocabulary_size - 1);
    if (s->outcome > FRAME_SAMPLE_NOT_FINITE)
        return refuse(error, "sample outcome", s->outcome, FRAME_SAMPLE_NOT_FINITE);
    if (s->outcome == FRAME_SAMPLE_NOT_FINITE && s->token_id != 0)
        return mismatch(error, "token id of a sample that is not finite", s->token_id, 0);
    if (!is_logprob(s->logprob))
        return error_set(error, STATUS_INVALID, "frame: logprob of a sample is %g",
                         (double)s->logprob);
    if (s->top_first != top) return mismatch(error, "top_first", s->top_first, top);
    if (s->top_count > REQUEST_TOP_LOGPROB_COUNT_MAX)
        return refuse(error, "sample top_count", s->top_count, REQUEST_TOP_LOGPROB_COUNT_MAX);
    if (s->reserved != 0) return mismatch(error, "reserved of a sample", s->reserved, 0);
    return STATUS_OK;
}

static enum status check_result(const struct frame_view *view, const struct frame_limits *limits,
                                struct error *error) {
    const struct frame_header *h = view->header;
    uint64_t top = 0;
    for (uint32_t i = 0; i < h->sample_count; i++) {
        enum status status = check_sample(&view->samples[i], limits, top, error);
        if (status != STATUS_OK) return status;
        top += view->samples[i].top_count;
    }
    if (top != h->top_count) return mismatch(error, "top_count", h->top_count, top);
    for (uint32_t i = 0; i < h->top_count; i++) {
        if (view->tops[i].token_id >= limits->vocabulary_size)
            return refuse(error, "top token id", view->tops[i].token_id,
                          limits->vocabulary_size - 1);
        if (!is_logprob(view->tops[i].logprob))
            return error_set(error, STATUS_INVALID, "frame: logprob of an alternative is %g",
                             (double)view->tops[i].logprob);
    }
    return STATUS_OK;
}

enum status frame_parse(struct frame *frame, const struct frame_limits *limits,
                        struct frame_view *view_out, struct error *error) {
    CHECK(((uintptr_t)frame->data % FRAME_ALIGNMENT) == 0);
    if (frame->size_bytes < sizeof(struct frame_header))
        return error_set(error, STATUS_INVALID, "frame: %zu bytes, a header alone has %zu",
                         frame->size_bytes, sizeof(struct frame_header));
    const struct frame_header *header = (const struct frame_header *)frame->data;
    enum status status = check_header(frame, header, limits, error);
    if (status != STATUS_OK) return status;
    struct layout layout = layout_of(header);
    struct frame_view view = view_of(frame->data, &layout);
    status = limits->kind == FRAME_STEP ? check_step(&view, limits, error)
                                        : check_result(&view, limits, error);
    if (status == STATUS_OK) *view_out = view;
    return status;
}

size_t frame_capacity_bytes(const struct frame_limits *limits) {
    struct table_limits tables = table_limits_of(limits);
    struct frame_header step = {
        .kind = FRAME_STEP,
        .row_count = limits->row_count_max,
        .sequence_count = limits->sequence_count_max,
        .hidden_size = limits->hidden_size,
        .dtype = (uint16_t)limits->dtype,
        .block_count = (uint32_t)tables.block,
        .bias_count = (uint32_t)tables.bias,
        .history_count = (uint32_t)tables.history,
    };
    struct frame_header result = {
        .kind = FRAME_RESULT,
        .sample_count = step.sequence_count,
        .top_count = step.sequence_count * REQUEST_TOP_LOGPROB_COUNT_MAX,
    };
    uint64_t step_bytes = layout_of(&step).total_bytes;
    uint64_t result_bytes = layout_of(&result).total_bytes;
    return step_bytes > result_bytes ? step_bytes : result_bytes;
}
