// The tokenizer against Hugging Face tokenizers, by the data of tests/parity/make_tokenizers.py.
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/json.h"
#include "base/limits.h"
#include "base/memory.h"
#include "base/rng.h"
#include "coordinator/tokenizer.h"

#define DATA STAGECOACH_SOURCE_DIR "/tests/parity/testdata/tokenizers/"

enum { ID_COUNT_MAX = 1024, FILE_BYTES_MAX = 1 << 20 };

static const char *const names[] = {"gpt2",  "gpt2_prefix_space", "llama3",    "qwen2", "cased",
                                    "added", "digits_removed",    "no_unknown"};
enum { NAME_COUNT = sizeof(names) / sizeof(names[0]) };

static struct tokenizer *open_named(const char *name) {
    char path[512];
    snprintf(path, sizeof(path), DATA "%s/tokenizer.json", name);
    struct tokenizer *tokenizer;
    struct error error;
    if (tokenizer_open(path, &tokenizer, &error) != STATUS_OK) fail_msg("%s", error.text);
    return tokenizer;
}

// -- expected.json --------------------------------------------------------------------------------

struct ids {
    uint32_t data[ID_COUNT_MAX];
    size_t count;
};

struct text {
    char *data;
    size_t size_bytes;
};

struct expected {
    struct text text, decoded, decoded_skip;
    struct ids ids, ids_special, ids_plain;
};

static void read_ids(struct json *json, struct ids *ids) {
    ids->count = 0;
    json_array_begin(json);
    while (json_array_next(json)) {
        assert_true(ids->count < ID_COUNT_MAX);
        ids->data[ids->count++] = (uint32_t)json_take_integer(json, 0, UINT32_MAX);
    }
}

// A copy that ends where the text ends, so that a sanitizer sees what is read beyond.
static void read_text(struct json *json, struct text *text) {
    struct json_text got = json_take_string(json);
    text->data = malloc(got.size_bytes == 0 ? 1 : got.size_bytes);
    assert_non_null(text->data);
    memcpy(text->data, got.data, got.size_bytes);
    text->size_bytes = got.size_bytes;
}

static void read_expected(struct json *json, struct expected *expected) {
    struct json_text key;
    *expected = (struct expected){.ids = {.count = 0}};
    json_object_begin(json);
    while (json_object_next(json, &key)) {
        if (json_text_equals(key, "text"))
            read_text(json, &expected->text);
        else if (json_text_equals(key, "ids"))
            read_ids(json, &expected->ids);
        else if (json_text_equals(key, "ids_special"))
            read_ids(json, &expected->ids_special);
        else if (json_text_equals(key, "ids_plain"))
            read_ids(json, &expected->ids_plain);
        else if (json_text_equals(key, "decoded"))
            read_text(json, &expected->decoded);
        else if (json_text_equals(key, "decoded_skip"))
            read_text(json, &expected->decoded_skip);
        else
            json_skip(json);
    }
}

static void free_expected(struct expected *expected) {
    free(expected->text.data);
    free(expected->decoded.data);
    free(expected->decoded_skip.data);
}

typedef void check_fn(const char *name, const struct tokenizer *tokenizer,
                      const struct expected *expected);

// Runs `check` on each element of one list of every tokenizer's expected.json.
static void for_each_expected(const char *list, check_fn *check) {
    size_t done = 0;
    for (size_t i = 0; i < NAME_COUNT; i++) {
        struct tokenizer *tokenizer = open_named(names[i]);
        char path[512];
        snprintf(path, sizeof(path), DATA "%s/expected.json", names[i]);
        char *text;
        size_t size_bytes;
        assert_int_equal(file_read(path, FILE_BYTES_MAX, &text, &size_bytes, NULL), STATUS_OK);
        struct json json;
        struct json_text key;
        json_init(&json, text, size_bytes);
        json_object_begin(&json);
        while (json_object_next(&json, &key)) {
            if (!json_text_equals(key, list)) {
                json_skip(&json);
                continue;
            }
            json_array_begin(&json);
            while (json_array_next(&json)) {
                struct expected *expected = malloc(sizeof(*expected));
                assert_non_null(expected);
                read_expected(&json, expected);
                if (!json.failed) check(names[i], tokenizer, expected);
                free_expected(expected);
                free(expected);
                done++;
            }
        }
        json_end(&json);
        if (json.failed) fail_msg("%s: %s", path, json.error.text);
        json_fini(&json);
        free(text);
        tokenizer_close(tokenizer);
    }
    assert_true(done >= 20 * NAME_COUNT);
}

// -- parity ---------------------------------------------------------------------------------------

static void check_encoded(const char *name, const struct tokenizer *tokenizer,
                          const struct text *text, uint32_t flags, const struct ids *expected) {
    uint32_t ids[ID_COUNT_MAX];
    size_t count;
    struct error error;
    if (tokenizer_encode(tokenizer, text->data, text->size_bytes, flags, ids, ID_COUNT_MAX, &count,
                         &error) != STATUS_OK)
        fail_msg("%s: \"%.*s\": %s", name, (int)text->size_bytes, text->data, error.text);
    bool same = count == expected->count && memcmp(ids, expected->data, count * sizeof(*ids)) == 0;
    if (!same) fail_msg("%s, flags %u: \"%.*s\"", name, flags, (int)text->size_bytes, text->data);
}

static void check_case_encoded(const char *name, const struct tokenizer *tokenizer,
                               const struct expected *expected) {
    check_encoded(name, tokenizer, &expected->text, TOKENIZER_PARSE_SPECIAL, &expected->ids);
    check_encoded(name, tokenizer, &expected->text, TOKENIZER_PARSE_SPECIAL | TOKENIZER_ADD_SPECIAL,
                  &expected->ids_special);
    check_encoded(name, tokenizer, &expected->text, 0, &expected->ids_plain);
}

static void tokenizer_encodes_like_hugging_face(void **state) {
    (void)state;
    for_each_expected("cases", check_case_encoded);
}

static void check_decoded(const char *name, const struct tokenizer *tokenizer,
                          const struct ids *ids, bool skip_special, const struct text *expected) {
    struct buffer buffer;
    struct error error;
    buffer_init(&buffer, FILE_BYTES_MAX);
    assert_int_equal(buffer_append(&buffer, ">", 1), STATUS_OK);
    if (tokenizer_decode(tokenizer, ids->data, ids->count, skip_special, &buffer, &error) !=
        STATUS_OK)
        fail_msg("%s: %s", name, error.text);
    bool same = buffer.size_bytes == expected->size_bytes + 1 &&
                memcmp(buffer.data + 1, expected->data, expected->size_bytes) == 0;
    if (!same)
        fail_msg("%s: \"%s\" instead of \"%.*s\"", name, buffer.data + 1, (int)expected->size_bytes,
                 expected->data);
    buffer_fini(&buffer);
}

static void check_case_decoded(const char *name, const struct tokenizer *tokenizer,
                               const struct expected *expected) {
    check_decoded(name, tokenizer, &expected->ids_special, false, &expected->decoded);
    check_decoded(name, tokenizer, &expected->ids_special, true, &expected->decoded_skip);
}

static void check_stream_decoded(const char *name, const struct tokenizer *tokenizer,
                                 const struct expected *expected) {
    check_decoded(name, tokenizer, &expected->ids, false, &expected->decoded);
    check_decoded(name, tokenizer, &expected->ids, true, &expected->decoded_skip);
}

static void tokenizer_decodes_like_hugging_face(void **state) {
    (void)state;
    for_each_expected("cases", check_case_decoded);
}

static void tokenizer_decodes_invalid_utf8_like_hugging_face(void **state) {
    (void)state;
    for_each_expected("streams", check_stream_decoded);
}

// -- the rest of the interface --------------------------------------------------------------------

static void tokenizer_knows_its_tokens(void **state) {
    (void)state;
    struct tokenizer *tokenizer = open_named("llama3");
    uint32_t size = tokenizer_vocabulary_size(tokenizer), id;
    const char *data;
    size_t size_bytes;
    bool special;
    assert_true(tokenizer_token_id(tokenizer, "<|eot_id|>", 10, &id));
    assert_true(id < size);
    assert_true(tokenizer_token_bytes(tokenizer, id, &data, &size_bytes, &special));
    assert_true(special);
    assert_int_equal(size_bytes, 10);
    assert_memory_equal(data, "<|eot_id|>", 10);
    // U+0120 is how a space is spelled.
    assert_true(tokenizer_token_id(tokenizer, "\xc4\xa0", 2, &id));
    assert_true(tokenizer_token_bytes(tokenizer, id, &data, &size_bytes, &special));
    assert_false(special);
    assert_int_equal(size_bytes, 1);
    assert_int_equal(data[0], ' ');
    assert_false(tokenizer_token_id(tokenizer, "<|no such token|>", 17, &id));
    assert_false(tokenizer_token_id(tokenizer, "", 0, &id));
    assert_true(tokenizer_token_bytes(tokenizer, size - 1, &data, &size_bytes, &special));
    assert_false(tokenizer_token_bytes(tokenizer, size, &data, &size_bytes, &special));
    assert_false(tokenizer_token_bytes(tokenizer, UINT32_MAX, &data, &size_bytes, &special));
    tokenizer_close(tokenizer);
}

static void tokenizer_refuses_text_that_is_not_utf8(void **state) {
    (void)state;
    static const struct {
        const char *text;
        const char *offset;
    } bad[] = {
        {"\xff", "byte 0"},          {"ab\xc3", "byte 2"},           {"\xc3\xa9\xc0\xaf", "byte 2"},
        {"x\xed\xa0\x80", "byte 1"}, {"\xf4\x90\x80\x80", "byte 0"}, {"abc\x80", "byte 3"}};
    struct tokenizer *tokenizer = open_named("gpt2");
    uint32_t ids[8];
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct error error;
        size_t count = 99;
        assert_int_equal(tokenizer_encode(tokenizer, bad[i].text, strlen(bad[i].text), 0, ids, 8,
                                          &count, &error),
                         STATUS_INVALID);
        assert_non_null(strstr(error.text, bad[i].offset));
        assert_int_equal(count, 99);
    }
    tokenizer_close(tokenizer);
}

static void tokenizer_writes_no_more_ids_than_there_is_room_for(void **state) {
    (void)state;
    struct tokenizer *tokenizer = open_named("gpt2_prefix_space");
    uint32_t all[ID_COUNT_MAX], some[ID_COUNT_MAX];
    size_t count, got;
    struct error error;
    static const char text[] = "one two three foobar 123";
    assert_int_equal(tokenizer_encode(tokenizer, text, strlen(text), TOKENIZER_ADD_SPECIAL, all,
                                      ID_COUNT_MAX, &count, &error),
                     STATUS_OK);
    assert_true(count > 4);
    for (size_t room = 0; room <= count; room++) {
        memset(some, 0xee, sizeof(some));
        enum status status = tokenizer_encode(tokenizer, text, strlen(text), TOKENIZER_ADD_SPECIAL,
                                              some, room, &got, &error);
        assert_int_equal(status, room < count ? STATUS_EXHAUSTED : STATUS_OK);
        assert_int_equal(some[room], 0xeeeeeeee);
        assert_memory_equal(some, all, room * sizeof(*some));
    }
    tokenizer_close(tokenizer);
}

static void tokenizer_refuses_ids_outside_the_vocabulary(void **state) {
    (void)state;
    struct tokenizer *tokenizer = open_named("gpt2");
    struct buffer buffer;
    struct error error;
    buffer_init(&buffer, 100);
    uint32_t ids[] = {1, tokenizer_vocabulary_size(tokenizer)};
    assert_int_equal(tokenizer_decode(tokenizer, ids, 2, false, &buffer, &error), STATUS_INVALID);
    assert_non_null(strstr(error.text, "index 1"));
    ids[1] = UINT32_MAX;
    assert_int_equal(tokenizer_decode(tokenizer, ids, 2, false, &buffer, &error), STATUS_INVALID);
    assert_int_equal(buffer.size_bytes, 0);
    buffer_fini(&buffer);
    tokenizer_close(tokenizer);
}

static void tokenizer_leaves_the_buffer_when_its_limit_is_reached(void **state) {
    (void)state;
    struct tokenizer *tokenizer = open_named("gpt2");
    struct buffer buffer;
    struct error error;
    uint32_t ids[64];
    buffer_init(&buffer, 20);
    for (size_t i = 0; i < 64; i++)
        ids[i] = 'a';
    assert_int_equal(buffer_append(&buffer, "kept", 4), STATUS_OK);
    assert_int_equal(tokenizer_decode(tokenizer, ids, 64, false, &buffer, &error),
                     STATUS_EXHAUSTED);
    assert_int_equal(buffer.size_bytes, 4);
    assert_string_equal(buffer.data, "kept");
    buffer_fini(&buffer);
    tokenizer_close(tokenizer);
}

// -- large texts ----------------------------------------------------------------------------------

enum { LARGE_BYTES = 1 << 20 };

// Encodes, and checks that decoding gives `text` again when `round_trip`.
static void encode_large(const char *name, const char *text, size_t size_bytes, bool round_trip) {
    struct tokenizer *tokenizer = open_named(name);
    uint32_t *ids = memory_array(size_bytes + 8, sizeof(*ids));
    assert_non_null(ids);
    size_t count;
    struct error error;
    if (tokenizer_encode(tokenizer, text, size_bytes, 0, ids, size_bytes + 8, &count, &error) !=
        STATUS_OK)
        fail_msg("%s: %s", name, error.text);
    if (round_trip) {
        struct buffer buffer;
        buffer_init(&buffer, 2 * size_bytes);
        assert_int_equal(tokenizer_decode(tokenizer, ids, count, false, &buffer, &error),
                         STATUS_OK);
        assert_int_equal(buffer.size_bytes, size_bytes);
        assert_memory_equal(buffer.data, text, size_bytes);
        buffer_fini(&buffer);
    }
    free(ids);
    tokenizer_close(tokenizer);
}

// Anything quadratic takes hours here, and the test's time limit ends it.
static void tokenizer_encodes_a_word_of_a_megabyte(void **state) {
    (void)state;
    char *text = malloc(LARGE_BYTES);
    assert_non_null(text);
    for (size_t i = 0; i < LARGE_BYTES; i++)
        text[i] = "etaoinsrhl"[(size_t)(10 * rng_uniform(7, i))];
    encode_large("gpt2", text, LARGE_BYTES, true);
    encode_large("llama3", text, LARGE_BYTES, true);
    memset(text, 'a', LARGE_BYTES);
    encode_large("gpt2", text, LARGE_BYTES, true);
    free(text);
}

static void tokenizer_encodes_a_megabyte_of_white_space(void **state) {
    (void)state;
    char *text = malloc(LARGE_BYTES);
    assert_non_null(text);
    memset(text, ' ', LARGE_BYTES);
    for (size_t i = 0; i < NAME_COUNT; i++)
        encode_large(names[i], text, LARGE_BYTES, false);
    text[LARGE_BYTES - 1] = 'x';
    encode_large("llama3", text, LARGE_BYTES, true);
    memset(text, '\n', LARGE_BYTES - 1);
    encode_large("qwen2", text, LARGE_BYTES, true);
    free(text);
}

// Marks whose classes alternate are the worst case for sorting them.
static void tokenizer_normalizes_a_megabyte_of_marks(void **state) {
    (void)state;
    char *text = malloc(LARGE_BYTES);
    assert_non_null(text);
    for (size_t i = 0; i < LARGE_BYTES; i += 4)
        memcpy(text + i, "\xcc\x81\xcc\xa3", 4);
    encode_large("qwen2", text, LARGE_BYTES, false);
    free(text);
}

static void tokenizer_refuses_a_text_beyond_the_limit(void **state) {
    (void)state;
    struct tokenizer *tokenizer = open_named("gpt2");
    struct error error;
    size_t count, size_bytes = (size_t)TOKENIZER_TEXT_BYTES_MAX + 1;
    uint32_t id;
    char *text = memory_array(size_bytes, 1);
    assert_non_null(text);
    assert_int_equal(tokenizer_encode(tokenizer, text, size_bytes, 0, &id, 1, &count, &error),
                     STATUS_EXHAUSTED);
    assert_non_null(strstr(error.text, "the limit is"));
    free(text);
    tokenizer_close(tokenizer);
}

// -- threads --------------------------------------------------------------------------------------

enum { THREAD_COUNT = 4, ROUND_COUNT = 200 };

struct shared {
    const struct tokenizer *tokenizer;
    struct ids expected;
    bool same[THREAD_COUNT];
    int next;
};

static const char shared_text[] =
    "caf\xc3\xa9 cafe\xcc\x81 <mask> foobar 12345 \xe6\x97\xa5\xe6\x9c\xac";

static void *encode_many(void *argument) {
    struct shared *shared = argument;
    int index = __atomic_fetch_add(&shared->next, 1, __ATOMIC_RELAXED);
    bool same = true;
    for (int i = 0; i < ROUND_COUNT; i++) {
        uint32_t ids[ID_COUNT_MAX];
        size_t count;
        enum status status =
            tokenizer_encode(shared->tokenizer, shared_text, strlen(shared_text),
                             TOKENIZER_PARSE_SPECIAL, ids, ID_COUNT_MAX, &count, NULL);
        same = same && status == STATUS_OK && count == shared->expected.count &&
               memcmp(ids, shared->expected.data, count * sizeof(*ids)) == 0;
    }
    shared->same[index] = same;
    return NULL;
}

static void tokenizer_encodes_on_several_threads_at_once(void **state) {
    (void)state;
    struct tokenizer *tokenizer = open_named("added");
    struct shared shared = {.tokenizer = tokenizer};
    assert_int_equal(tokenizer_encode(tokenizer, shared_text, strlen(shared_text),
                                      TOKENIZER_PARSE_SPECIAL, shared.expected.data, ID_COUNT_MAX,
                                      &shared.expected.count, NULL),
                     STATUS_OK);
    pthread_t threads[THREAD_COUNT];
    for (int i = 0; i < THREAD_COUNT; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, encode_many, &shared), 0);
    for (int i = 0; i < THREAD_COUNT; i++)
        pthread_join(threads[i], NULL);
    for (int i = 0; i < THREAD_COUNT; i++)
        assert_true(shared.same[i]);
    tokenizer_close(tokenizer);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tokenizer_encodes_like_hugging_face),
        cmocka_unit_test(tokenizer_decodes_like_hugging_face),
        cmocka_unit_test(tokenizer_decodes_invalid_utf8_like_hugging_face),
        cmocka_unit_test(tokenizer_knows_its_tokens),
        cmocka_unit_test(tokenizer_refuses_text_that_is_not_utf8),
        cmocka_unit_test(tokenizer_writes_no_more_ids_than_there_is_room_for),
        cmocka_unit_test(tokenizer_refuses_ids_outside_the_vocabulary),
        cmocka_unit_test(tokenizer_leaves_the_buffer_when_its_limit_is_reached),
        cmocka_unit_test(tokenizer_encodes_a_word_of_a_megabyte),
        cmocka_unit_test(tokenizer_encodes_a_megabyte_of_white_space),
        cmocka_unit_test(tokenizer_normalizes_a_megabyte_of_marks),
        cmocka_unit_test(tokenizer_refuses_a_text_beyond_the_limit),
        cmocka_unit_test(tokenizer_encodes_on_several_threads_at_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
