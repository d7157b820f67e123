#include "coordinator/completion.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static struct tokenizer *tokenizer;
static struct stop_conditions stop; // of the completion under test

static int open_tokenizer(void **state) {
    (void)state;
    struct error error;
    enum status status = tokenizer_open(STAGECOACH_SOURCE_DIR
                                        "/tests/parity/testdata/tokenizers/qwen2/tokenizer.json",
                                        &tokenizer, &error);
    if (status != STATUS_OK) print_error("%s\n", error.text);
    return status == STATUS_OK ? 0 : -1;
}

static int close_tokenizer(void **state) {
    (void)state;
    tokenizer_close(tokenizer);
    return 0;
}

static size_t encode(const char *text, uint32_t *ids, size_t capacity) {
    size_t count = 0;
    assert_int_equal(
        tokenizer_encode(tokenizer, text, strlen(text), 0, ids, capacity, &count, NULL), STATUS_OK);
    return count;
}

static void init(struct completion *c, uint32_t max_token_count, const char *const *strings,
                 uint32_t string_count) {
    stop = (struct stop_conditions){.max_token_count = max_token_count};
    stop.strings = calloc(string_count + 1, sizeof(char *));
    for (uint32_t i = 0; i < string_count; i++)
        stop.strings[stop.string_count++] = strdup(strings[i]);
    completion_init(c, tokenizer, &stop, false, 1 << 20);
}

static void fini(struct completion *c) {
    completion_fini(c);
    stop_conditions_fini(&stop);
}

static void push(struct completion *c, uint32_t token_id) {
    struct frame_sample sample = {.token_id = token_id};
    assert_int_equal(completion_push(c, &sample, NULL), STATUS_OK);
}

// Pushes the tokens of `text` until the completion ends; returns how many were taken.
static size_t push_text(struct completion *c, const char *text) {
    uint32_t ids[256];
    size_t count = encode(text, ids, 256), taken = 0;
    while (taken < count && c->finish_reason == FINISH_NONE)
        push(c, ids[taken++]);
    return taken;
}

static void completion_ends_at_max_tokens(void **state) {
    (void)state;
    struct completion c;
    init(&c, 3, NULL, 0);
    assert_int_equal(push_text(&c, "one two three four five six seven eight"), 3);
    assert_int_equal(c.finish_reason, FINISH_LENGTH);
    assert_int_equal(c.unsent_count, 3);
    fini(&c);
}

static void completion_cuts_the_text_at_a_stop_string(void **state) {
    (void)state;
    static const char *const strings[] = {"zzz", "STOP here"};
    struct completion c;
    init(&c, 100, strings, 2);
    push_text(&c, "before it STOP here and after");
    assert_int_equal(c.finish_reason, FINISH_STOP);
    assert_true(c.stopped_by_string);
    assert_int_equal(c.stop_string_index, 1);
    assert_string_equal(c.text.data, "before it ");
    fini(&c);
}

static void completion_holds_back_what_may_be_a_stop_string(void **state) {
    (void)state;
    static const char *const strings[] = {"abcd"};
    struct completion c;
    init(&c, 100, strings, 1);
    push_text(&c, "x abc");
    assert_string_equal(c.text.data, "x ");
    push_text(&c, "e");
    assert_string_equal(c.text.data, "x abce");
    assert_int_equal(c.finish_reason, FINISH_NONE);
    // What is held back is released when the end comes another way.
    stop.max_token_count = c.token_count + 1;
    push_text(&c, "a");
    assert_string_equal(c.text.data, "x abcea");
    assert_int_equal(c.finish_reason, FINISH_LENGTH);
    fini(&c);
}

static void completion_finds_the_earliest_of_overlapping_stop_strings(void **state) {
    (void)state;
    static const char *const strings[] = {"b c d", "a b"};
    struct completion c;
    init(&c, 100, strings, 2);
    push_text(&c, "x a b c d");
    assert_string_equal(c.text.data, "x ");
    assert_int_equal(c.stop_string_index, 1);
    fini(&c);
}

static void completion_ends_at_eos_and_stop_token_ids(void **state) {
    (void)state;
    uint32_t ids[8];
    size_t count = encode("hello", ids, 8);
    assert_true(count > 0);
    for (int by_eos = 0; by_eos < 2; by_eos++) {
        for (int ignore_eos = 0; ignore_eos < 2; ignore_eos++) {
            struct completion c;
            init(&c, 100, NULL, 0);
            if (by_eos) {
                stop.eos_ids = ids;
                stop.eos_count = 1;
            } else {
                stop.token_ids = malloc(sizeof(uint32_t));
                stop.token_ids[stop.token_id_count++] = ids[0];
            }
            stop.ignore_eos = ignore_eos != 0;
            push(&c, ids[0]);
            bool goes_on = by_eos && ignore_eos;
            assert_int_equal(c.finish_reason, goes_on ? FINISH_NONE : FINISH_STOP);
            // The token is counted; its text is not part of the text.
            assert_int_equal(c.unsent_count, 1);
            if (!goes_on) assert_int_equal(c.text.size_bytes, 0);
            fini(&c);
        }
    }
}

static void completion_never_splits_characters(void **state) {
    (void)state;
    static const char text[] = "日本語 😀👩‍👩‍👧 é ü — ok";
    struct completion c;
    init(&c, 1000, NULL, 0);
    uint32_t ids[256];
    size_t count = encode(text, ids, 256);
    char all[256] = "";
    for (size_t i = 0; i < count; i++) {
        push(&c, ids[i]);
        // A first byte of 10xxxxxx would be the middle of a character.
        if (c.text.size_bytes > 0) assert_true(((unsigned char)c.text.data[0] & 0xc0) != 0x80);
        if (c.text.data != NULL) strcat(all, c.text.data);
        completion_sent(&c, c.unsent_count);
    }
    assert_string_equal(all, text);
    fini(&c);
}

static void completion_text_goes_on_after_a_zero_byte(void **state) {
    (void)state;
    struct completion c;
    init(&c, 100, NULL, 0);
    push_text(&c, "a");
    uint32_t ids[4];
    size_t count = 0;
    assert_int_equal(tokenizer_encode(tokenizer, "\0", 1, 0, ids, 4, &count, NULL), STATUS_OK);
    for (size_t i = 0; i < count; i++)
        push(&c, ids[i]);
    push_text(&c, "b");
    assert_string_equal(c.text.data, "a\xef\xbf\xbd"
                                     "b");
    fini(&c);
}

static void completion_keeps_logprobs_until_they_are_sent(void **state) {
    (void)state;
    struct completion c;
    init(&c, 100, NULL, 0);
    for (uint32_t i = 0; i < 40; i++) {
        struct frame_sample sample = {.token_id = i, .logprob = -(float)i, .top_count = 2};
        struct frame_top tops[2] = {{i, -(float)i}, {i + 1, -9}};
        assert_int_equal(completion_push(&c, &sample, tops), STATUS_OK);
    }
    completion_sent(&c, 30);
    assert_int_equal(c.unsent_count, 10);
    assert_int_equal(c.tokens[0].token_id, 30);
    assert_int_equal(c.tops[c.tokens[0].top_first].token_id, 30);
    assert_int_equal(c.tops[c.tokens[9].top_first + 1].token_id, 40);
    completion_sent(&c, 10);
    assert_false(completion_has_news(&c));
    fini(&c);
}

static const char MIXED_TEXT[] = "日本 x abc 😀 ab abce — é";
static const char *const MIXED_STOPS[] = {"abcd", "😀!"};

static void completion_sends_with_tokens_the_text_that_they_release(void **state) {
    (void)state;
    uint32_t ids[64];
    size_t count = encode(MIXED_TEXT, ids, 64);
    struct completion whole, c;
    init(&c, 1000, MIXED_STOPS, 2);
    for (size_t i = 0; i < count; i++)
        push(&c, ids[i]);
    completion_init(&whole, tokenizer, &stop, false, 1 << 20);
    char sent[256] = "";
    // In pieces of 1, 2, 3 ... tokens, though all were drawn before the first piece went out.
    for (uint32_t piece = 1, at = 0; c.unsent_count > 0; piece++) {
        if (piece > c.unsent_count) piece = c.unsent_count;
        if (c.text.data != NULL) strncat(sent, c.text.data, completion_text_bytes(&c, piece));
        completion_sent(&c, piece);
        for (uint32_t i = 0; i < piece; i++)
            push(&whole, ids[at++]);
        assert_string_equal(sent, whole.text.data != NULL ? whole.text.data : "");
    }
    assert_int_equal(c.text.size_bytes, 0);
    completion_fini(&whole);
    fini(&c);
}

static void completion_goes_on_where_another_one_was(void **state) {
    (void)state;
    uint32_t ids[64];
    uint32_t count = (uint32_t)encode(MIXED_TEXT, ids, 64);
    for (uint32_t cut = 0; cut <= count; cut++) {
        struct completion whole, c;
        init(&c, count, MIXED_STOPS, 2);
        completion_init(&whole, tokenizer, &stop, false, 1 << 20);
        size_t before_bytes = 0;
        for (uint32_t i = 0; i < count; i++) {
            push(&whole, ids[i]);
            if (i + 1 == cut) before_bytes = whole.text.size_bytes;
            if (i < cut)
                assert_int_equal(completion_advance(&c, ids[i]), STATUS_OK);
            else
                push(&c, ids[i]);
        }
        assert_int_equal(c.unsent_count, count - cut);
        assert_int_equal(c.token_count, count);
        assert_int_equal(c.finish_reason, FINISH_LENGTH);
        assert_int_equal(c.text.size_bytes, whole.text.size_bytes - before_bytes);
        if (cut < count) assert_string_equal(c.text.data, whole.text.data + before_bytes);
        completion_fini(&whole);
        fini(&c);
    }
}

static void completion_without_text_stops_at_strings_all_the_same(void **state) {
    (void)state;
    static const char text[] = "one two three four five six";
    const char *strings[] = {"four"};
    struct completion c, other;
    init(&other, 100, strings, 1);
    size_t taken = push_text(&other, text);
    fini(&other);
    init(&c, 100, strings, 1);
    c.drops_text = true;
    assert_int_equal(push_text(&c, text), taken);
    assert_true(c.stopped_by_string);
    assert_int_equal(c.text.size_bytes, 0);
    assert_int_equal(c.unsent_count, taken);
    completion_sent(&c, 1);
    completion_sent(&c, c.unsent_count);
    assert_int_equal(c.unsent_count, 0);
    fini(&c);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(completion_ends_at_max_tokens),
        cmocka_unit_test(completion_cuts_the_text_at_a_stop_string),
        cmocka_unit_test(completion_holds_back_what_may_be_a_stop_string),
        cmocka_unit_test(completion_finds_the_earliest_of_overlapping_stop_strings),
        cmocka_unit_test(completion_ends_at_eos_and_stop_token_ids),
        cmocka_unit_test(completion_never_splits_characters),
        cmocka_unit_test(completion_text_goes_on_after_a_zero_byte),
        cmocka_unit_test(completion_keeps_logprobs_until_they_are_sent),
        cmocka_unit_test(completion_sends_with_tokens_the_text_that_they_release),
        cmocka_unit_test(completion_goes_on_where_another_one_was),
        cmocka_unit_test(completion_without_text_stops_at_strings_all_the_same),
    };
    return cmocka_run_group_tests(tests, open_tokenizer, close_tokenizer);
}
