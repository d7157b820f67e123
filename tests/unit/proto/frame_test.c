// Frames as wholes: what is written is read back; headers, sizes and capacities.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "frame_fixture.h"

// Sanitizers must let an allocation fail, as the C library does.
const char *__asan_default_options(void);
const char *__tsan_default_options(void);
const char *__asan_default_options(void) {
    return "allocator_may_return_null=1";
}
const char *__tsan_default_options(void) {
    return "allocator_may_return_null=1";
}

static void valid_frames_are_read_back_as_written(void **state) {
    (void)state;
    random_state = 1;
    for (uint32_t i = 0; i < 600; i++) {
        enum frame_kind kind = i % 3 == 2 ? FRAME_RESULT : FRAME_STEP;
        struct frame_limits limits = limits_of(kind, i % 3 == 0);
        struct frame *frame = kind == FRAME_STEP ? random_step(&limits, 1 + random_below(6))
                                                 : random_result(&limits, random_below(7));
        assert_true(frame->size_bytes <= frame_capacity_bytes(&limits));
        size_t size_bytes = frame->size_bytes;
        uint8_t *before = malloc(size_bytes);
        assert_non_null(before);
        memcpy(before, frame->data, size_bytes);
        struct frame_view view;
        struct error error = {0};
        if (frame_parse(frame, &limits, &view, &error) != STATUS_OK) fail_msg("%s", error.text);
        assert_ptr_equal(view.header, frame->data);
        assert_int_equal((uintptr_t)view.payload % FRAME_ALIGNMENT, 0);
        assert_int_equal(view.header->payload_offset, view.payload - frame->data);
        assert_memory_equal(before, frame->data, size_bytes);
        assert_int_equal(parse(frame, &limits), STATUS_OK);
        free(before);
        frame_close(frame);
    }
}

static void format_places_the_tables_as_documented(void **state) {
    (void)state;
    struct frame_header wanted = {.kind = FRAME_STEP,
                                  .sequence_count = 2,
                                  .row_count = 3,
                                  .block_count = 5,
                                  .bias_count = 7,
                                  .history_count = 11,
                                  .hidden_size = 13,
                                  .dtype = DTYPE_F32,
                                  .magic = 1,
                                  .version = 77,
                                  .flags = 9,
                                  .payload_offset = 1,
                                  .payload_bytes = 1};
    struct frame *frame;
    assert_int_equal(frame_open(4096, &frame), STATUS_OK);
    memset(frame->data, 0xff, frame->capacity_bytes);
    struct frame_view view;
    assert_int_equal(frame_format(frame, &wanted, &view), STATUS_OK);
    size_t tables = 128 + 2 * 96 + 7 * 8 + 11 * 8 + 3 * 4 + 5 * 4;
    size_t payload = (tables + 63) / 64 * 64;
    assert_int_equal(view.header->magic, FRAME_MAGIC);
    assert_int_equal(view.header->version, FRAME_VERSION);
    assert_int_equal(view.header->flags, 0);
    assert_int_equal(view.header->payload_offset, payload);
    assert_int_equal(view.header->payload_bytes, 3 * 13 * 4);
    assert_int_equal(frame->size_bytes, payload + 3 * 13 * 4);
    for (size_t i = 128; i < payload; i++)
        assert_int_equal(frame->data[i], 0);
    assert_memory_equal(frame->data, "STGC", 4);
    frame_close(frame);
}

static void format_refuses_what_is_larger_than_the_frame(void **state) {
    (void)state;
    struct frame *frame;
    struct frame_view view = {0};
    assert_int_equal(frame_open(1000, &frame), STATUS_OK);
    assert_int_equal(frame->capacity_bytes, 1024);
    struct frame_header wanted = {.kind = FRAME_STEP,
                                  .sequence_count = 1,
                                  .row_count = 1,
                                  .hidden_size = (1024 - 256) / 4,
                                  .dtype = DTYPE_F32};
    assert_int_equal(frame_format(frame, &wanted, &view), STATUS_OK);
    assert_int_equal(frame->size_bytes, 1024);
    view = (struct frame_view){0};
    wanted.hidden_size++;
    assert_int_equal(frame_format(frame, &wanted, &view), STATUS_EXHAUSTED);
    wanted.row_count = wanted.hidden_size = 1u << 31; // times 4 is 2^64
    assert_int_equal(frame_format(frame, &wanted, &view), STATUS_EXHAUSTED);
    wanted.kind = FRAME_RESULT; // without a table of tokens, which alone would be too large
    assert_int_equal(frame_format(frame, &wanted, &view), STATUS_EXHAUSTED);
    wanted.kind = FRAME_STEP;
    wanted.row_count = wanted.hidden_size = UINT32_MAX;
    wanted.sequence_count = wanted.block_count = wanted.history_count = UINT32_MAX;
    assert_int_equal(frame_format(frame, &wanted, &view), STATUS_EXHAUSTED);
    assert_null(view.header);
    frame_close(frame);
    frame_close(NULL);
    volatile size_t huge[] = {SIZE_MAX, SIZE_MAX - 62, SIZE_MAX / 2 + 1};
    for (size_t i = 0; i < sizeof(huge) / sizeof(*huge); i++)
        assert_int_equal(frame_open(huge[i], &frame), STATUS_NO_MEMORY);
}

// -- the header -----------------------------------------------------------------------------------

static const struct field header_fields[] = {
    FIELD(frame_header, magic),          FIELD(frame_header, version),
    FIELD(frame_header, kind),           FIELD(frame_header, epoch),
    FIELD(frame_header, step),           FIELD(frame_header, link_sequence),
    FIELD(frame_header, row_count),      FIELD(frame_header, sequence_count),
    FIELD(frame_header, block_count),    FIELD(frame_header, bias_count),
    FIELD(frame_header, history_count),  FIELD(frame_header, sample_count),
    FIELD(frame_header, top_count),      FIELD(frame_header, hidden_size),
    FIELD(frame_header, dtype),          FIELD(frame_header, flags),
    FIELD(frame_header, payload_offset), FIELD(frame_header, payload_bytes),
    FIELD(frame_header, compute_ns),     FIELD(frame_header, slowest_ns),
};
enum { HEADER_FIELD_COUNT = sizeof(header_fields) / sizeof(*header_fields) };

// In a RESULT these say what the step was, which only the coordinator knows.
static bool is_free_count(const struct frame *frame, const struct field *field, uint64_t value,
                          const struct frame_limits *limits) {
    if (limits->kind != FRAME_RESULT) return false;
    uint64_t sample_count = value_at(frame, offsetof(struct frame_header, sample_count), 4);
    if (strcmp(field->name, "row_count") == 0) return value >= 1 && value <= limits->row_count_max;
    if (strcmp(field->name, "sequence_count") == 0)
        return value >= 1 && value >= sample_count && value <= limits->sequence_count_max;
    return false;
}

// A step is later than those that draw its tokens.
static uint32_t largest_lag(const struct frame *frame) {
    const struct frame_header *header = (const struct frame_header *)frame->data;
    const struct frame_sequence *s = (const struct frame_sequence *)(header + 1);
    uint32_t largest = 0;
    for (uint32_t i = 0; header->kind == FRAME_STEP && i < header->sequence_count; i++)
        if (s[i].token_lag > largest) largest = s[i].token_lag;
    return largest;
}

static enum status expected_of_header(const struct frame *frame, const struct field *field,
                                      uint64_t value, const struct frame_limits *limits) {
    if (value == value_at(frame, field->offset, field->size)) return STATUS_OK;
    if (strcmp(field->name, "epoch") == 0) return STATUS_UNAVAILABLE;
    if (strcmp(field->name, "step") == 0)
        return value > largest_lag(frame) ? STATUS_OK : STATUS_INVALID;
    if (strcmp(field->name, "link_sequence") == 0 || strcmp(field->name, "compute_ns") == 0 ||
        strcmp(field->name, "slowest_ns") == 0)
        return STATUS_OK;
    return is_free_count(frame, field, value, limits) ? STATUS_OK : STATUS_INVALID;
}

static void expect_header_fields_checked(const struct frame *frame,
                                         const struct frame_limits *limits) {
    for (size_t i = 0; i < HEADER_FIELD_COUNT; i++) {
        const struct field *field = &header_fields[i];
        uint64_t own = value_at(frame, field->offset, field->size);
        uint64_t mask = field->size == 8 ? UINT64_MAX : (1ull << field->size * 8) - 1;
        const uint64_t values[] = {
            0, 1, 2, 3, own - 1, own, own + 1, own + 64, own * 2, limits->row_count_max,
            limits->row_count_max + 1, limits->sequence_count_max, limits->sequence_count_max + 1,
            FRAME_BLOCK_COUNT_MAX, FRAME_BLOCK_COUNT_MAX + 1, FRAME_BIAS_COUNT_MAX,
            FRAME_BIAS_COUNT_MAX + 1, FRAME_HISTORY_COUNT_MAX, FRAME_HISTORY_COUNT_MAX + 1,
            // Times 4, 8, 32 or 96 these wrap around 32 or 64 bits.
            0x10000000, 0x20000000, 0x40000000, 0x80000000, 0xaaaaaaab, 0x7fffffff, 0xffffffc0,
            UINT32_MAX, 1ull << 32, 1ull << 62, 1ull << 63, UINT64_MAX - 63, UINT64_MAX};
        for (size_t j = 0; j < sizeof(values) / sizeof(*values); j++) {
            uint64_t value = values[j] & mask;
            enum status status = parse_with(frame, limits, field->offset, &value, field->size);
            if (status != expected_of_header(frame, field, value, limits))
                fail_msg("kind %d, %s %llu: %s", limits->kind, field->name,
                         (unsigned long long)value, status_name(status));
        }
    }
}

static void every_header_field_is_checked(void **state) {
    (void)state;
    random_state = 2;
    for (int i = 0; i < 2; i++) {
        struct frame_limits limits = limits_of(FRAME_STEP, i == 0);
        struct frame *step = random_step(&limits, 3);
        expect_header_fields_checked(step, &limits);
        frame_close(step);
        // A RESULT has no payload, whatever the limits say.
        limits = limits_of(FRAME_RESULT, i == 0);
        struct frame *result = random_result(&limits, 3);
        expect_header_fields_checked(result, &limits);
        frame_close(result);
    }
}

static void header_bytes_of_the_link_are_zero(void **state) {
    (void)state;
    random_state = 3;
    struct frame *frame = random_step(&step_limits, 2);
    for (size_t i = offsetof(struct frame_header, payload_tag); i < sizeof(struct frame_header);
         i++)
        for (int bit = 0; bit < 8; bit++) {
            uint8_t value = (uint8_t)(1 << bit);
            assert_int_equal(parse_with(frame, &step_limits, i, &value, 1), STATUS_INVALID);
        }
    frame_close(frame);
}

// Each field alone is refused by its own limit; two together may cancel out in a sum or product.
static void pairs_of_header_counts_never_pass_by_overflow(void **state) {
    (void)state;
    static const uint64_t values[] = {0,          1,          0x40000000, 0x7fffffff,
                                      0x80000000, 0xaaaaaaab, UINT32_MAX, UINT64_MAX};
    enum { VALUE_COUNT = sizeof(values) / sizeof(*values) };
    random_state = 4;
    // Limits that let every count reach the sums.
    struct frame_limits limits = step_limits;
    struct frame *frame = random_step(&limits, 3);
    limits.row_count_max = limits.sequence_count_max = limits.position_count_max = UINT32_MAX;
    assert_int_equal(parse(frame, &limits), STATUS_OK);
    for (size_t a = 6; a < HEADER_FIELD_COUNT - 2; a++) {
        for (size_t b = 6; b < a; b++) {
            for (int i = 0; i < VALUE_COUNT * VALUE_COUNT; i++) {
                const struct field *fields[] = {&header_fields[a], &header_fields[b]};
                uint64_t wanted[] = {values[i / VALUE_COUNT], values[i % VALUE_COUNT]};
                uint8_t saved[sizeof(struct frame_header)];
                memcpy(saved, frame->data, sizeof(saved));
                for (int j = 0; j < 2; j++)
                    memcpy(frame->data + fields[j]->offset, &wanted[j], fields[j]->size);
                if (memcmp(saved, frame->data, sizeof(saved)) != 0)
                    assert_int_equal(parse(frame, &limits), STATUS_INVALID);
                memcpy(frame->data, saved, sizeof(saved));
            }
        }
    }
    frame_close(frame);
}

static void payload_size_that_wraps_around_is_refused(void **state) {
    (void)state;
    struct frame_limits limits = step_limits;
    limits.has_payload = false;
    random_state = 5;
    struct frame *frame = random_step(&limits, 1);
    struct frame_header *h = (struct frame_header *)frame->data;
    limits.has_payload = true;
    limits.row_count_max = UINT32_MAX;
    limits.hidden_size = h->hidden_size = 1u << 31;
    limits.dtype = DTYPE_F32;
    h->dtype = DTYPE_F32;
    h->row_count = 1u << 31; // 2^31 * 2^31 * 4 is 0 in 64 bits
    assert_int_equal(parse(frame, &limits), STATUS_INVALID);
    limits.hidden_size = h->hidden_size = UINT32_MAX;
    h->row_count = UINT32_MAX;
    assert_int_equal(parse(frame, &limits), STATUS_INVALID);
    frame_close(frame);
}

// -- sizes ----------------------------------------------------------------------------------------

static void expect_one_size(const struct frame *frame, const struct frame_limits *limits) {
    uint8_t *longer = calloc(1, frame->size_bytes + 200);
    assert_non_null(longer);
    memcpy(longer, frame->data, frame->size_bytes);
    for (size_t size = 0; size < frame->size_bytes + 200; size++)
        assert_int_equal(parse_bytes(longer, size, limits),
                         size == frame->size_bytes ? STATUS_OK : STATUS_INVALID);
    free(longer);
}

static void frame_cut_or_extended_is_refused_at_every_length(void **state) {
    (void)state;
    random_state = 6;
    struct frame_limits limits = limits_of(FRAME_STEP, true);
    struct frame *frame = random_step(&limits, 2);
    expect_one_size(frame, &limits);
    frame_close(frame);
    limits = limits_of(FRAME_STEP, false);
    frame = random_step(&limits, 2);
    expect_one_size(frame, &limits);
    frame_close(frame);
    limits = limits_of(FRAME_RESULT, false);
    frame = random_result(&limits, 2);
    expect_one_size(frame, &limits);
    frame_close(frame);
}

static void padding_before_the_payload_is_zero(void **state) {
    (void)state;
    random_state = 7;
    struct frame *frame = random_step(&step_limits, 2);
    struct frame_view view;
    assert_int_equal(frame_parse(frame, &step_limits, &view, NULL), STATUS_OK);
    size_t end = (size_t)((uint8_t *)&view.blocks[view.header->block_count] - frame->data);
    size_t payload = view.header->payload_offset;
    assert_true(payload > end);
    uint8_t one = 1;
    for (size_t i = end; i < payload; i++)
        assert_int_equal(parse_with(frame, &step_limits, i, &one, 1), STATUS_INVALID);
    frame_close(frame);
}

// Whatever a bit makes of a frame, it is refused or readable.
static void no_flipped_bit_makes_a_frame_unreadable(void **state) {
    (void)state;
    random_state = 8;
    for (int kind = FRAME_STEP; kind <= FRAME_RESULT; kind++) {
        struct frame_limits limits = limits_of((enum frame_kind)kind, false);
        struct frame *frame =
            kind == FRAME_STEP ? random_step(&limits, 2) : random_result(&limits, 3);
        for (size_t i = 0; i < frame->size_bytes * 8; i++) {
            uint8_t value = (uint8_t)(frame->data[i / 8] ^ 1 << i % 8);
            enum status status = parse_with(frame, &limits, i / 8, &value, 1);
            assert_true(status == STATUS_OK || status == STATUS_INVALID ||
                        status == STATUS_UNAVAILABLE);
        }
        frame_close(frame);
    }
}

static void frame_of_another_epoch_is_unavailable_even_if_it_breaks_limits(void **state) {
    (void)state;
    random_state = 16;
    struct frame_limits limits = limits_of(FRAME_RESULT, false);
    struct frame *frame = random_result(&limits, 2);
    limits.epoch++;
    limits.vocabulary_size = 1; // of the next configuration
    limits.sequence_count_max = 1;
    assert_int_equal(parse(frame, &limits), STATUS_UNAVAILABLE);
    frame_close(frame);
}

// -- capacity -------------------------------------------------------------------------------------

// The largest STEP that a sender may make under `limits`; `extra_bias` more make it too large.
static struct frame *largest_step(const struct frame_limits *limits, uint32_t extra_bias) {
    uint32_t sequences = limits->sequence_count_max, positions = limits->position_count_max;
    uint32_t vocabulary = limits->vocabulary_size;
    uint32_t blocks = (positions + KV_BLOCK_POSITION_COUNT - 1) / KV_BLOCK_POSITION_COUNT;
    uint32_t history = positions < vocabulary ? positions : vocabulary;
    struct frame_header wanted = {.kind = FRAME_STEP,
                                  .epoch = limits->epoch,
                                  .step = 1,
                                  .sequence_count = sequences,
                                  .row_count = limits->row_count_max,
                                  .block_count = sequences * blocks,
                                  .bias_count =
                                      sequences * REQUEST_LOGIT_BIAS_COUNT_MAX + extra_bias,
                                  .history_count = sequences * history,
                                  .hidden_size = limits->hidden_size,
                                  .dtype = (uint16_t)limits->dtype};
    struct frame *frame;
    struct frame_view view;
    assert_int_equal(frame_open(frame_capacity_bytes(limits) + 64 * extra_bias, &frame), STATUS_OK);
    assert_int_equal(frame_format(frame, &wanted, &view), STATUS_OK);
    for (uint32_t i = 0; i < sequences; i++) {
        // The first has the rows that are left over.
        uint32_t rows = limits->row_count_max / sequences;
        uint32_t first_rows = rows + limits->row_count_max % sequences;
        view.sequences[i] = (struct frame_sequence){
            .row_first = i == 0 ? 0 : first_rows + (i - 1) * rows,
            .row_count = i == 0 ? first_rows : rows,
            .position_first = positions - (i == 0 ? first_rows : rows),
            .block_first = i * blocks,
            .block_count = blocks,
            .bias_first = i * REQUEST_LOGIT_BIAS_COUNT_MAX,
            .bias_count = REQUEST_LOGIT_BIAS_COUNT_MAX + (i + 1 == sequences ? extra_bias : 0),
            .history_first = i * history,
            .history_count = history,
            .repetition_penalty = 1,
        };
    }
    return frame;
}

static void capacity_holds_the_largest_frames_and_parse_takes_no_larger(void **state) {
    (void)state;
    static const uint32_t numbers[][5] = {// sequences, rows, positions, vocabulary, hidden size
                                          {1, 1, 1, 1, 1},         {1, 7, 33, 1000, 24},
                                          {6, 40, 200, 1000, 24},  {6, 40, 200, 20, 3},
                                          {16, 64, 1000, 500, 64}, {100, 256, 100, 50, 8}};
    for (size_t i = 0; i < sizeof(numbers) / sizeof(*numbers); i++) {
        struct frame_limits limits = step_limits;
        limits.sequence_count_max = numbers[i][0];
        limits.row_count_max = numbers[i][1];
        limits.position_count_max = numbers[i][2];
        limits.vocabulary_size = numbers[i][3];
        limits.hidden_size = numbers[i][4];
        limits.dtype = DTYPE_F32;
        struct frame *frame = largest_step(&limits, 0);
        assert_true(frame->size_bytes <= frame_capacity_bytes(&limits));
        assert_true(frame->size_bytes + FRAME_ALIGNMENT > frame_capacity_bytes(&limits));
        assert_int_equal(parse(frame, &limits), STATUS_OK);
        frame_close(frame);
        frame = largest_step(&limits, 1);
        assert_int_equal(parse(frame, &limits), STATUS_INVALID);
        frame_close(frame);
    }
}

static void capacity_holds_a_result_with_every_alternative(void **state) {
    (void)state;
    struct frame_limits limits = limits_of(FRAME_RESULT, false);
    limits.position_count_max = limits.vocabulary_size = 1; // smaller than the RESULT
    limits.hidden_size = 1;
    struct frame_header wanted = {.kind = FRAME_RESULT,
                                  .epoch = limits.epoch,
                                  .step = 1,
                                  .row_count = 6,
                                  .sequence_count = 6,
                                  .sample_count = 6,
                                  .top_count = 6 * REQUEST_TOP_LOGPROB_COUNT_MAX};
    struct frame *frame;
    struct frame_view view;
    assert_int_equal(frame_open(frame_capacity_bytes(&limits), &frame), STATUS_OK);
    assert_int_equal(frame_format(frame, &wanted, &view), STATUS_OK);
    for (uint32_t i = 0; i < 6; i++) {
        view.samples[i].top_first = i * REQUEST_TOP_LOGPROB_COUNT_MAX;
        view.samples[i].top_count = REQUEST_TOP_LOGPROB_COUNT_MAX;
    }
    assert_int_equal(parse(frame, &limits), STATUS_OK);
    frame_close(frame);
}

static void capacity_of_the_largest_tables_is_bounded(void **state) {
    (void)state;
    struct frame_limits limits = step_limits;
    limits.sequence_count_max = MICROBATCH_SEQUENCE_COUNT_MAX;
    limits.row_count_max = MICROBATCH_ROW_COUNT_MAX;
    limits.position_count_max = MODEL_POSITION_COUNT_MAX;
    limits.vocabulary_size = MODEL_VOCABULARY_SIZE_MAX;
    limits.hidden_size = 0;
    size_t tables_bytes = FRAME_BLOCK_COUNT_MAX * sizeof(uint32_t) +
                          FRAME_BIAS_COUNT_MAX * sizeof(struct frame_bias) +
                          FRAME_HISTORY_COUNT_MAX * sizeof(struct frame_history) +
                          MICROBATCH_ROW_COUNT_MAX * sizeof(uint32_t) +
                          MICROBATCH_SEQUENCE_COUNT_MAX * sizeof(struct frame_sequence);
    size_t capacity_bytes = frame_capacity_bytes(&limits);
    assert_in_range(capacity_bytes, tables_bytes, tables_bytes + 256);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(valid_frames_are_read_back_as_written),
        cmocka_unit_test(format_places_the_tables_as_documented),
        cmocka_unit_test(format_refuses_what_is_larger_than_the_frame),
        cmocka_unit_test(every_header_field_is_checked),
        cmocka_unit_test(header_bytes_of_the_link_are_zero),
        cmocka_unit_test(pairs_of_header_counts_never_pass_by_overflow),
        cmocka_unit_test(payload_size_that_wraps_around_is_refused),
        cmocka_unit_test(frame_cut_or_extended_is_refused_at_every_length),
        cmocka_unit_test(padding_before_the_payload_is_zero),
        cmocka_unit_test(no_flipped_bit_makes_a_frame_unreadable),
        cmocka_unit_test(frame_of_another_epoch_is_unavailable_even_if_it_breaks_limits),
        cmocka_unit_test(capacity_holds_the_largest_frames_and_parse_takes_no_larger),
        cmocka_unit_test(capacity_holds_a_result_with_every_alternative),
        cmocka_unit_test(capacity_of_the_largest_tables_is_bounded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
