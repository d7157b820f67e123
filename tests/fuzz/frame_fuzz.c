// Any bytes as a frame: refused with a sentence, or every table may be read, and writing the frame
// again gives the same bytes.
//
// The first byte of the input says what is expected and whether the header is completed (magic,
// version, offsets and sizes that fit the counts), so that the tables are reached. The rest is the
// frame.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/limits.h"
#include "proto/frame.h"

enum { IS_RESULT = 1, HAS_PAYLOAD = 2, IS_COMPLETED = 4 };

static volatile uint64_t sum; // keeps what is read from being optimized away

static void use(const void *data, uint64_t size_bytes) {
    uint64_t local = 0;
    for (uint64_t i = 0; i < size_bytes; i++)
        local = local * 31 + ((const uint8_t *)data)[i];
    sum += local;
}

static struct frame_limits limits_of(uint8_t choice) {
    return (struct frame_limits){
        .epoch = 1,
        .row_count_max = 64,
        .sequence_count_max = 8,
        .position_count_max = 1000,
        .kv_block_count = 100,
        .vocabulary_size = 1000,
        .token_lag_max = 4,
        .hidden_size = 8,
        .dtype = DTYPE_BF16,
        .has_payload = (choice & HAS_PAYLOAD) != 0,
        .kind = choice & IS_RESULT ? FRAME_RESULT : FRAME_STEP,
    };
}

static void read_step(const struct frame_view *view, const struct frame_limits *limits) {
    const struct frame_header *h = view->header;
    uint32_t row = 0;
    for (uint32_t i = 0; i < h->sequence_count; i++) {
        const struct frame_sequence *s = &view->sequences[i];
        CHECK(s->row_first == row);
        row += s->row_count;
        CHECK(s->token_lag == 0 || (s->row_count == 1 && s->token_lag < h->step &&
                                    s->token_lag <= limits->token_lag_max &&
                                    s->token_sample < limits->sequence_count_max));
        CHECK(s->block_count * KV_BLOCK_POSITION_COUNT >= s->position_first + s->row_count);
        for (uint32_t j = 0; j < s->row_count; j++)
            CHECK(view->tokens[s->row_first + j] < limits->vocabulary_size);
        for (uint32_t j = 0; j < s->block_count; j++)
            CHECK(view->blocks[s->block_first + j] < limits->kv_block_count);
        for (uint32_t j = 0; j < s->bias_count; j++)
            CHECK(view->biases[s->bias_first + j].token_id < limits->vocabulary_size);
        for (uint32_t j = 0; j < s->history_count; j++)
            CHECK(view->history[s->history_first + j].token_id < limits->vocabulary_size);
    }
    CHECK(row == h->row_count);
    use(view->payload, (uint64_t)h->row_count * h->hidden_size * sizeof(uint16_t));
}

static void read_result(const struct frame_view *view, const struct frame_limits *limits) {
    const struct frame_header *h = view->header;
    CHECK(h->sample_count <= limits->sequence_count_max);
    for (uint32_t i = 0; i < h->sample_count; i++) {
        const struct frame_sample *s = &view->samples[i];
        CHECK(s->token_id < limits->vocabulary_size);
        for (uint32_t j = 0; j < s->top_count; j++)
            CHECK(view->tops[s->top_first + j].token_id < limits->vocabulary_size);
    }
}

// A frame has one form: header and tables say everything about it.
static void write_again(const struct frame *frame, const struct frame_view *view) {
    struct frame *again;
    struct frame_view view_again;
    CHECK(frame_open(frame->size_bytes, &again) == STATUS_OK);
    CHECK(frame_format(again, view->header, &view_again) == STATUS_OK);
    CHECK(again->size_bytes == frame->size_bytes);
    CHECK(memcmp(again->data, frame->data, sizeof(struct frame_header)) == 0);
    CHECK(view_again.payload - again->data == view->payload - frame->data);
    CHECK((uint8_t *)view_again.tops - again->data == (uint8_t *)view->tops - frame->data);
    frame_close(again);
}

// Makes the header what it must be for its counts, and the frame as long as that asks for.
static void complete(struct frame *frame, const struct frame_limits *limits, size_t size_bytes) {
    struct frame_header wanted = {0};
    if (size_bytes < sizeof(wanted)) return;
    memcpy(&wanted, frame->data, sizeof(wanted));
    bool has_payload = limits->has_payload && limits->kind == FRAME_STEP;
    wanted.kind = (uint16_t)limits->kind;
    wanted.epoch = limits->epoch;
    wanted.hidden_size = has_payload ? limits->hidden_size : 0;
    wanted.dtype = has_payload ? (uint16_t)limits->dtype : DTYPE_NONE;
    memset(wanted.payload_tag, 0, sizeof(wanted.payload_tag));
    memset(wanted.mac, 0, sizeof(wanted.mac));
    struct frame *formatted;
    struct frame_view view;
    CHECK(frame_open(frame->capacity_bytes, &formatted) == STATUS_OK);
    if (frame_format(formatted, &wanted, &view) == STATUS_OK) {
        size_t kept_bytes = size_bytes < formatted->size_bytes ? size_bytes : formatted->size_bytes;
        memset(view.payload, 0, view.header->payload_bytes);
        memcpy(formatted->data + sizeof(wanted), frame->data + sizeof(wanted),
               kept_bytes - sizeof(wanted));
        memcpy(frame->data, formatted->data, formatted->size_bytes);
        frame->size_bytes = formatted->size_bytes;
    }
    frame_close(formatted);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size == 0) return 0;
    struct frame_limits limits = limits_of(data[0]);
    struct frame *frame;
    CHECK(frame_open(frame_capacity_bytes(&limits) + size, &frame) == STATUS_OK);
    frame->size_bytes = size - 1;
    memcpy(frame->data, data + 1, size - 1);
    if (data[0] & IS_COMPLETED) complete(frame, &limits, size - 1);

    // A copy that ends where the frame ends, so that the sanitizer sees what is read beyond.
    struct frame exact = {.size_bytes = frame->size_bytes, .capacity_bytes = frame->size_bytes};
    void *copy = NULL;
    CHECK(posix_memalign(&copy, FRAME_ALIGNMENT, exact.size_bytes > 0 ? exact.size_bytes : 1) == 0);
    exact.data = copy;
    memcpy(exact.data, frame->data, exact.size_bytes);
    frame_close(frame);

    struct frame_view view;
    struct error error = {0};
    enum status status = frame_parse(&exact, &limits, &view, &error);
    CHECK((status == STATUS_OK) == (error.text[0] == '\0'));
    if (status == STATUS_OK) {
        CHECK(exact.size_bytes <= frame_capacity_bytes(&limits));
        if (limits.kind == FRAME_STEP)
            read_step(&view, &limits);
        else
            read_result(&view, &limits);
        write_again(&exact, &view);
    } else {
        CHECK(status == STATUS_INVALID || status == STATUS_UNAVAILABLE);
    }
    free(exact.data);
    return 0;
}
