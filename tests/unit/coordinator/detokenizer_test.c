#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <utf8proc.h>

#include "base/rng.h"
#include "coordinator/detokenizer.h"

#define DATA STAGECOACH_SOURCE_DIR "/tests/parity/testdata/tokenizers/"

enum { STREAM_COUNT = 2000, ID_COUNT_MAX = 24, TEXT_BYTES_MAX = 1 << 16 };

static int open_tokenizer(void **state) {
    struct tokenizer *tokenizer;
    struct error error;
    if (tokenizer_open(DATA "gpt2/tokenizer.json", &tokenizer, &error) != STATUS_OK) return -1;
    *state = tokenizer;
    return 0;
}

static int close_tokenizer(void **state) {
    tokenizer_close(*state);
    return 0;
}

static bool is_utf8(const char *text, size_t size_bytes) {
    for (size_t i = 0; i < size_bytes;) {
        utf8proc_int32_t c;
        utf8proc_ssize_t size = utf8proc_iterate((const utf8proc_uint8_t *)text + i,
                                                 (utf8proc_ssize_t)(size_bytes - i), &c);
        if (size <= 0) return false;
        i += (size_t)size;
    }
    return true;
}

// The token of one byte: the script that made the tokenizer gave each byte one.
static uint32_t byte_id(const struct tokenizer *tokenizer, uint8_t byte) {
    for (uint32_t id = 0; id < tokenizer_vocabulary_size(tokenizer); id++) {
        const char *data;
        size_t size_bytes;
        bool special;
        if (tokenizer_token_bytes(tokenizer, id, &data, &size_bytes, &special) && size_bytes == 1 &&
            (uint8_t)data[0] == byte)
            return id;
    }
    fail_msg("no token for byte 0x%02x", byte);
    return 0;
}

// Mostly any token; now and then the bytes of a whole character one by one.
static size_t random_ids(const struct tokenizer *tokenizer, uint64_t seed, uint32_t *ids) {
    static const char character[] = "\xf0\x9f\x99\x82";
    uint32_t size = tokenizer_vocabulary_size(tokenizer);
    size_t count = 1 + (size_t)(rng_uniform(seed, 0) * (ID_COUNT_MAX - 5)), i = 0;
    while (i < count) {
        double draw = rng_uniform(seed, 1 + i);
        if (draw < 0.1) {
            for (int b = 0; b < 4; b++)
                ids[i++] = byte_id(tokenizer, (uint8_t)character[b]);
        } else {
            // The first tokens are the single bytes; half of the draws are among them.
            double range = draw < 0.5 ? 256 : size;
            ids[i] = (uint32_t)(rng_uniform(seed, 1000 + i) * range);
            i++;
        }
    }
    return i;
}

static void detokenizer_stream_equals_decoding_at_once(void **state) {
    const struct tokenizer *tokenizer = *state;
    for (uint64_t seed = 0; seed < STREAM_COUNT; seed++) {
        uint32_t ids[ID_COUNT_MAX];
        bool skip_special = seed % 2 == 0;
        size_t count = random_ids(tokenizer, seed, ids);
        struct buffer stream, whole;
        buffer_init(&stream, TEXT_BYTES_MAX);
        buffer_init(&whole, TEXT_BYTES_MAX);
        struct detokenizer detokenizer;
        detokenizer_init(&detokenizer, tokenizer, skip_special);
        for (size_t i = 0; i < count; i++) {
            assert_int_equal(detokenizer_push(&detokenizer, ids[i], &stream), STATUS_OK);
            if (!is_utf8(stream.data, stream.size_bytes)) fail_msg("seed %lu", (unsigned long)seed);
            assert_true(detokenizer.tail_size_bytes <= 3);
        }
        assert_int_equal(detokenizer_flush(&detokenizer, &stream), STATUS_OK);
        assert_int_equal(tokenizer_decode(tokenizer, ids, count, skip_special, &whole, NULL),
                         STATUS_OK);
        if (stream.size_bytes != whole.size_bytes ||
            memcmp(stream.data, whole.data, whole.size_bytes) != 0)
            fail_msg("seed %lu", (unsigned long)seed);
        buffer_fini(&stream);
        buffer_fini(&whole);
    }
}

// Pushes single bytes and compares what is there before and after flushing.
static void check_bytes(const struct tokenizer *tokenizer, const char *bytes, const char *pushed,
                        const char *flushed) {
    struct buffer out;
    struct detokenizer detokenizer;
    buffer_init(&out, TEXT_BYTES_MAX);
    assert_int_equal(buffer_append(&out, "", 0), STATUS_OK);
    detokenizer_init(&detokenizer, tokenizer, false);
    for (size_t i = 0; i < strlen(bytes); i++)
        assert_int_equal(
            detokenizer_push(&detokenizer, byte_id(tokenizer, (uint8_t)bytes[i]), &out), STATUS_OK);
    assert_string_equal(out.data, pushed);
    assert_int_equal(detokenizer_flush(&detokenizer, &out), STATUS_OK);
    assert_string_equal(out.data, flushed);
    assert_int_equal(detokenizer_flush(&detokenizer, &out), STATUS_OK);
    assert_string_equal(out.data, flushed);
    buffer_fini(&out);
}

static void detokenizer_without_a_tokenizer_gives_no_text(void **state) {
    (void)state;
    struct buffer out;
    struct detokenizer detokenizer;
    buffer_init(&out, TEXT_BYTES_MAX);
    detokenizer_init(&detokenizer, NULL, false);
    for (uint32_t id = 0; id < 1000; id += 99)
        assert_int_equal(detokenizer_push(&detokenizer, id, &out), STATUS_OK);
    assert_int_equal(detokenizer_flush(&detokenizer, &out), STATUS_OK);
    assert_int_equal(out.size_bytes, 0);
    buffer_fini(&out);
}

#define BAD "\xef\xbf\xbd"

static void detokenizer_holds_back_an_incomplete_character(void **state) {
    check_bytes(*state, "a\xc3", "a", "a" BAD);
    check_bytes(*state, "a\xe2\x82", "a", "a" BAD);
    check_bytes(*state, "a\xf0\x9f\x99", "a", "a" BAD);
    check_bytes(*state, "\xf0\x9f\x99\x82", "\xf0\x9f\x99\x82", "\xf0\x9f\x99\x82");
    check_bytes(*state, "\xef\xbf\xbd", BAD, BAD);
}

static void detokenizer_replaces_zeros_in_place(void **state) {
    (void)state;
    static const char text[] = "\0a\0\0bc\0"; // and the one at the end
    struct buffer out;
    buffer_init(&out, 8 + 4 * 2);
    for (size_t offset_bytes = 0; offset_bytes <= 8; offset_bytes++) {
        buffer_clear(&out);
        assert_int_equal(buffer_append(&out, text, 8), STATUS_OK);
        size_t zero_count = 0;
        for (size_t i = offset_bytes; i < 8; i++)
            zero_count += text[i] == '\0';
        enum status status = detokenizer_replace_zeros(&out, offset_bytes);
        if (zero_count > 4) { // beyond the limit
            assert_int_equal(status, STATUS_EXHAUSTED);
            assert_int_equal(out.size_bytes, 8);
            assert_memory_equal(out.data, text, 8);
            continue;
        }
        assert_int_equal(status, STATUS_OK);
        assert_int_equal(out.size_bytes, 8 + zero_count * 2);
        assert_memory_equal(out.data, text, offset_bytes);
        size_t at = offset_bytes;
        for (size_t i = offset_bytes; i < 8; i++) {
            assert_memory_equal(out.data + at, text[i] == '\0' ? BAD : &text[i],
                                text[i] == '\0' ? 3 : 1);
            at += text[i] == '\0' ? 3 : 1;
        }
        assert_int_equal(out.data[at], '\0');
    }
    buffer_fini(&out);
}

// The examples of table 3-8 of the Unicode standard, and bytes that start nothing.
static void detokenizer_replaces_each_maximal_part(void **state) {
    check_bytes(*state, "\xc0\xaf\xe0\x80\xbf\xf0\x81\x82\x41", BAD BAD BAD BAD BAD BAD BAD BAD "A",
                BAD BAD BAD BAD BAD BAD BAD BAD "A");
    check_bytes(*state, "\xed\xa0\x80\xed\xbf\xbf\xed\xaf\x41", BAD BAD BAD BAD BAD BAD BAD BAD "A",
                BAD BAD BAD BAD BAD BAD BAD BAD "A");
    check_bytes(*state, "\xf4\x91\x92\x93\xff\x41\x80\xbf\x42", BAD BAD BAD BAD BAD "A" BAD BAD "B",
                BAD BAD BAD BAD BAD "A" BAD BAD "B");
    check_bytes(*state, "\xe1\x80\xe2\xf0\x91\x92\xf1\xbf\x41", BAD BAD BAD BAD "A",
                BAD BAD BAD BAD "A");
}

static void detokenizer_skips_special_tokens_inside_a_character(void **state) {
    const struct tokenizer *tokenizer = *state;
    struct buffer out;
    struct detokenizer detokenizer;
    uint32_t special;
    assert_true(tokenizer_token_id(tokenizer, "<|endoftext|>", 13, &special));
    buffer_init(&out, TEXT_BYTES_MAX);
    for (int skip = 1; skip >= 0; skip--) {
        buffer_clear(&out);
        detokenizer_init(&detokenizer, tokenizer, skip);
        assert_int_equal(detokenizer_push(&detokenizer, byte_id(tokenizer, 0xc3), &out), STATUS_OK);
        assert_int_equal(detokenizer_push(&detokenizer, special, &out), STATUS_OK);
        assert_int_equal(detokenizer_push(&detokenizer, byte_id(tokenizer, 0xa9), &out), STATUS_OK);
        assert_string_equal(out.data, skip ? "\xc3\xa9" : BAD "<|endoftext|>" BAD);
    }
    buffer_fini(&out);
}

static void detokenizer_gives_nothing_for_ids_without_a_token(void **state) {
    struct buffer out;
    struct detokenizer detokenizer;
    buffer_init(&out, TEXT_BYTES_MAX);
    detokenizer_init(&detokenizer, *state, false);
    assert_int_equal(detokenizer_push(&detokenizer, tokenizer_vocabulary_size(*state), &out),
                     STATUS_OK);
    assert_int_equal(detokenizer_push(&detokenizer, UINT32_MAX, &out), STATUS_OK);
    assert_int_equal(detokenizer_flush(&detokenizer, &out), STATUS_OK);
    assert_int_equal(out.size_bytes, 0);
    buffer_fini(&out);
}

static void detokenizer_keeps_its_state_when_the_buffer_is_full(void **state) {
    const struct tokenizer *tokenizer = *state;
    struct buffer out;
    struct detokenizer detokenizer;
    buffer_init(&out, 2);
    detokenizer_init(&detokenizer, tokenizer, false);
    assert_int_equal(detokenizer_push(&detokenizer, byte_id(tokenizer, 'a'), &out), STATUS_OK);
    assert_int_equal(detokenizer_push(&detokenizer, byte_id(tokenizer, 0xc3), &out), STATUS_OK);
    uint32_t rest = byte_id(tokenizer, 0xa9);
    assert_int_equal(detokenizer_push(&detokenizer, rest, &out), STATUS_EXHAUSTED);
    assert_int_equal(detokenizer_flush(&detokenizer, &out), STATUS_EXHAUSTED);
    assert_string_equal(out.data, "a");
    buffer_clear(&out);
    assert_int_equal(detokenizer_push(&detokenizer, rest, &out), STATUS_OK);
    assert_string_equal(out.data, "\xc3\xa9");
    buffer_fini(&out);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(detokenizer_stream_equals_decoding_at_once),
        cmocka_unit_test(detokenizer_holds_back_an_incomplete_character),
        cmocka_unit_test(detokenizer_replaces_zeros_in_place),
        cmocka_unit_test(detokenizer_replaces_each_maximal_part),
        cmocka_unit_test(detokenizer_skips_special_tokens_inside_a_character),
        cmocka_unit_test(detokenizer_gives_nothing_for_ids_without_a_token),
        cmocka_unit_test(detokenizer_without_a_tokenizer_gives_no_text),
        cmocka_unit_test(detokenizer_keeps_its_state_when_the_buffer_is_full),
    };
    return cmocka_run_group_tests(tests, open_tokenizer, close_tokenizer);
}
