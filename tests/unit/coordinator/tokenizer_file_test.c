// What the tokenizer makes of tokenizer.json files: small ones that show one thing each, and bad
// ones.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/memory.h"
#include "coordinator/tokenizer.h"

enum { TEXT_BYTES_MAX = 16384, ID_COUNT_MAX = 64 };

#define BYTE_LEVEL "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false}"
#define MODEL                                                                                      \
    "{\"type\":\"BPE\",\"unk_token\":null,\"vocab\":{\"a\":0,\"b\":1,\"c\":2,\"ab\":3,\"bc\":4,"   \
    "\"abc\":5,\"\\u0120\":6},\"merges\":[\"a b\",[\"b\",\"c\"],\"ab c\"]}"

// The parts of a tokenizer.json; NULL stands for one that works.
struct parts {
    const char *model, *pre_tokenizer, *normalizer, *post_processor, *decoder, *added_tokens;
};

static const char *or_else(const char *part, const char *otherwise) {
    return part == NULL ? otherwise : part;
}

static enum status open_text(const char *text, struct tokenizer **tokenizer_out,
                             struct error *error) {
    // A copy that ends where the text ends, so that a sanitizer sees what is read beyond.
    size_t size_bytes = strlen(text);
    char *copy = malloc(size_bytes == 0 ? 1 : size_bytes);
    assert_non_null(copy);
    memcpy(copy, text, size_bytes);
    enum status status = tokenizer_open_memory("test", copy, size_bytes, tokenizer_out, error);
    free(copy);
    return status;
}

static enum status open_parts(const struct parts *parts, struct tokenizer **tokenizer_out,
                              struct error *error) {
    char *text = malloc(TEXT_BYTES_MAX);
    assert_non_null(text);
    int size =
        snprintf(text, TEXT_BYTES_MAX,
                 "{\"version\":\"1.0\",\"truncation\":null,\"added_tokens\":%s,"
                 "\"normalizer\":%s,\"pre_tokenizer\":%s,\"post_processor\":%s,"
                 "\"decoder\":%s,\"model\":%s}",
                 or_else(parts->added_tokens, "[]"), or_else(parts->normalizer, "null"),
                 or_else(parts->pre_tokenizer, BYTE_LEVEL), or_else(parts->post_processor, "null"),
                 or_else(parts->decoder, "{\"type\":\"ByteLevel\"}"), or_else(parts->model, MODEL));
    assert_true(size > 0 && size < TEXT_BYTES_MAX);
    enum status status = open_text(text, tokenizer_out, error);
    free(text);
    return status;
}

static struct tokenizer *open_good(const struct parts *parts) {
    struct tokenizer *tokenizer;
    struct error error;
    if (open_parts(parts, &tokenizer, &error) != STATUS_OK) fail_msg("%s", error.text);
    return tokenizer;
}

// `expected` has the ids with a space after each.
static void check_ids(const struct tokenizer *tokenizer, const char *text, uint32_t flags,
                      const char *expected) {
    uint32_t ids[ID_COUNT_MAX];
    char got[ID_COUNT_MAX * 12] = "";
    size_t count, used = 0;
    struct error error;
    if (tokenizer_encode(tokenizer, text, strlen(text), flags, ids, ID_COUNT_MAX, &count, &error) !=
        STATUS_OK)
        fail_msg("%s: %s", text, error.text);
    for (size_t i = 0; i < count; i++)
        used += (size_t)snprintf(got + used, sizeof(got) - used, "%u ", ids[i]);
    assert_string_equal(got, expected);
}

// -- files that are read --------------------------------------------------------------------------

static void tokenizer_merges_by_rank_then_from_the_left(void **state) {
    (void)state;
    struct tokenizer *tokenizer = open_good(&(struct parts){0});
    check_ids(tokenizer, "", 0, "");
    check_ids(tokenizer, "abc", 0, "5 ");
    check_ids(tokenizer, "bcab", 0, "4 3 ");
    check_ids(tokenizer, "aabbcc", 0, "0 3 4 2 ");
    check_ids(tokenizer, "ab abc", 0, "3 6 5 ");
    check_ids(tokenizer, "axb", 0, "3 "); // "x" has no token, and there is none for the unknown
    tokenizer_close(tokenizer);
}

static void tokenizer_ignores_merges_for_whole_words(void **state) {
    (void)state;
    static const char vocab[] = "\"vocab\":{\"a\":0,\"b\":1,\"aba\":2},\"merges\":[]}";
    char model[256];
    for (int ignore = 0; ignore <= 1; ignore++) {
        snprintf(model, sizeof(model), "{\"ignore_merges\":%s,%s", ignore ? "true" : "false",
                 vocab);
        struct tokenizer *tokenizer = open_good(&(struct parts){.model = model});
        check_ids(tokenizer, "aba", 0, ignore ? "2 " : "0 1 0 ");
        check_ids(tokenizer, "abaa", 0, "0 1 0 0 ");
        tokenizer_close(tokenizer);
    }
}

static void tokenizer_gives_the_unknown_token(void **state) {
    (void)state;
    static const char rest[] = "\"unk_token\":\"<u>\",\"vocab\":{\"a\":0,\"<u>\":1},\"merges\":[]}";
    char model[256];
    for (int fuse = 0; fuse <= 1; fuse++) {
        snprintf(model, sizeof(model), "{\"fuse_unk\":%s,%s", fuse ? "true" : "false", rest);
        struct tokenizer *tokenizer = open_good(&(struct parts){.model = model});
        check_ids(tokenizer, "axyza", 0, fuse ? "0 1 0 " : "0 1 1 1 0 ");
        tokenizer_close(tokenizer);
    }
}

static void tokenizer_reads_fields_in_any_order(void **state) {
    (void)state;
    struct tokenizer *tokenizer;
    struct error error;
    static const char text[] =
        "{\"model\":{\"merges\":[[\"a\",\"b\"]],\"vocab\":{\"a\":0,\"b\":1,\"ab\":2},"
        "\"dropout\":0.0,\"continuing_subword_prefix\":\"\",\"type\":\"BPE\"},"
        "\"post_processor\":{\"single\":[{\"SpecialToken\":{\"id\":\"<s>\"}},{\"Sequence\":"
        "{\"id\":\"A\"}},{\"SpecialToken\":{\"id\":\"<s>\"}}],\"special_tokens\":{\"<s>\":"
        "{\"ids\":[9,1]}},\"type\":\"TemplateProcessing\"},"
        "\"decoder\":{\"type\":\"ByteLevel\"},\"pre_tokenizer\":" BYTE_LEVEL ","
        "\"added_tokens\":[{\"special\":true,\"content\":\"<s>\",\"id\":9}]}";
    if (open_text(text, &tokenizer, &error) != STATUS_OK) fail_msg("%s", error.text);
    check_ids(tokenizer, "ab<s>b", TOKENIZER_ADD_SPECIAL | TOKENIZER_PARSE_SPECIAL,
              "9 1 2 9 1 9 1 ");
    // Ids 3 to 8 are unused: they have no text, but are below the vocabulary's size.
    assert_int_equal(tokenizer_vocabulary_size(tokenizer), 10);
    struct buffer out;
    buffer_init(&out, 100);
    uint32_t ids[] = {2, 5, 9, 0};
    assert_int_equal(tokenizer_decode(tokenizer, ids, 4, false, &out, &error), STATUS_OK);
    assert_string_equal(out.data, "ab<s>a");
    buffer_fini(&out);
    tokenizer_close(tokenizer);
}

static void tokenizer_cuts_at_empty_matches(void **state) {
    (void)state;
    static const struct {
        const char *pattern, *behavior, *ids;
    } cases[] = {{"(?=b)", "Isolated", "0 1 0 4 "},                                  // a|ba|bc
                 {"b*", "Isolated", "0 1 0 1 2 "},  {"\\\\s+|c", "Removed", "3 3 "}, // ab|ab
                 {"^a", "Isolated", "0 1 5 "},      {"[^b\\\\s]", "Isolated", "0 1 0 1 2 "},
                 {"b{,1}c", "Isolated", "3 0 4 "}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char steps[512];
        snprintf(steps, sizeof(steps),
                 "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":"
                 "{\"Regex\":\"%s\"},\"behavior\":\"%s\",\"invert\":false}," BYTE_LEVEL "]}",
                 cases[i].pattern, cases[i].behavior);
        struct tokenizer *tokenizer = open_good(&(struct parts){.pre_tokenizer = steps});
        check_ids(tokenizer, "ababc", 0, cases[i].ids);
        tokenizer_close(tokenizer);
    }
}

static void tokenizer_stops_a_pattern_that_backtracks_forever(void **state) {
    (void)state;
    struct tokenizer *tokenizer = open_good(&(struct parts){
        .pre_tokenizer =
            "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":"
            "{\"Regex\":\"(?:(?:a|aa)+)+[bc]\"},\"behavior\":\"Isolated\"}," BYTE_LEVEL "]}"});
    char text[4096];
    uint32_t ids[sizeof(text)];
    size_t count;
    struct error error;
    memset(text, 'a', sizeof(text));
    assert_int_equal(
        tokenizer_encode(tokenizer, text, sizeof(text), 0, ids, sizeof(text), &count, &error),
        STATUS_EXHAUSTED);
    assert_non_null(strstr(error.text, "too many steps"));
    tokenizer_close(tokenizer);
}

// -- files that are refused -----------------------------------------------------------------------

struct bad {
    struct parts parts;
    enum status status;
    const char *sentence; // a part of it
};

static void check_bad(const struct bad *bad, size_t count) {
    for (size_t i = 0; i < count; i++) {
        struct tokenizer *tokenizer = NULL;
        struct error error = {0};
        enum status status = open_parts(&bad[i].parts, &tokenizer, &error);
        if (status != bad[i].status || strstr(error.text, bad[i].sentence) == NULL)
            fail_msg("\"%s\": %s: %s", bad[i].sentence, status_name(status), error.text);
        assert_null(tokenizer);
        assert_memory_equal(error.text, "test: line 1, column ", 21);
    }
}

#define VOCAB(vocab, merges) "{\"type\":\"BPE\",\"vocab\":" vocab ",\"merges\":" merges "}"
#define WITH(field) "{\"type\":\"BPE\"," field ",\"vocab\":{\"a\":0},\"merges\":[]}"

static void tokenizer_refuses_models_that_it_would_get_wrong(void **state) {
    (void)state;
    static const struct bad bad[] = {
        {{.model = "{\"type\":\"Unigram\",\"vocab\":[]}"}, STATUS_UNSUPPORTED, "Unigram"},
        {{.model = "{\"type\":\"WordPiece\",\"vocab\":{}}"}, STATUS_UNSUPPORTED, "WordPiece"},
        {{.model = WITH("\"byte_fallback\":true")}, STATUS_UNSUPPORTED, "model.byte_fallback"},
        {{.model = WITH("\"dropout\":0.1")}, STATUS_UNSUPPORTED, "model.dropout"},
        {{.model = WITH("\"continuing_subword_prefix\":\"##\"")}, STATUS_UNSUPPORTED, "\"##\""},
        {{.model = WITH("\"end_of_word_suffix\":\"</w>\"")}, STATUS_UNSUPPORTED, "\"</w>\""},
        {{.model = WITH("\"unk_token\":\"<u>\"")}, STATUS_INVALID, "model.unk_token: \"<u>\""},
        {{.model = WITH("\"ignore_merges\":1")}, STATUS_INVALID, "expected true or false"},
        {{.model = "null"}, STATUS_INVALID, "\"model\" is missing"},
        {{.model = "[]"}, STATUS_INVALID, "expected an object"},
        {{.model = "{\"merges\":[]}"}, STATUS_INVALID, "\"vocab\" is missing"},
        {{.model = "{\"vocab\":{}}"}, STATUS_INVALID, "\"merges\" is missing"},
        {{.model = "{\"vocab\":{},\"vocab\":{},\"merges\":[]}"}, STATUS_INVALID, "comes twice"},
    };
    check_bad(bad, sizeof(bad) / sizeof(bad[0]));
}

static void tokenizer_refuses_bad_vocabularies_by_name(void **state) {
    (void)state;
    static const struct bad bad[] = {
        {{.model = VOCAB("{\"a\":0,\"b\":0}", "[]")},
         STATUS_INVALID,
         "belongs to \"a\" and to \"b\""},
        {{.model = VOCAB("{\"a\":0,\"a\":1}", "[]")}, STATUS_INVALID, "\"a\" has ids 0 and 1"},
        {{.model = VOCAB("{\"a\":0,\"a\":0}", "[]")}, STATUS_INVALID, "\"a\" comes twice"},
        {{.model = VOCAB("{\"a\":-1}", "[]")}, STATUS_INVALID, "-1 is not between 0 and"},
        {{.model = VOCAB("{\"a\":4194304}", "[]")}, STATUS_INVALID, "4194304 is not between"},
        {{.model = VOCAB("{\"a\":18446744073709551616}", "[]")}, STATUS_INVALID, "64 bits"},
        {{.model = VOCAB("{\"a\":1.5}", "[]")}, STATUS_INVALID, "whole number"},
        {{.model = VOCAB("{\"a\":\"0\"}", "[]")}, STATUS_INVALID, "whole number"},
        {{.model = VOCAB("{\"\":0}", "[]")}, STATUS_INVALID, "token 0 has no text"},
        {{.model = VOCAB("{\"a\":0}", "[\"a b\"]")}, STATUS_INVALID, "merge 0: \"b\" is not in"},
        {{.model = VOCAB("{\"b\":0}", "[[\"a\",\"b\"]]")}, STATUS_INVALID, "merge 0: \"a\" is not"},
        {{.model = VOCAB("{\"a\":0,\"b\":1}", "[\"a b\"]")}, STATUS_INVALID, "\"ab\" is not in"},
        {{.model = VOCAB("{\"a\":0}", "[\"aa\"]")}, STATUS_INVALID, "two tokens and a space"},
        {{.model = VOCAB("{\"a\":0}", "[\"a a a\"]")}, STATUS_INVALID, "two tokens and a space"},
        {{.model = VOCAB("{\"a\":0}", "[[\"a\"]]")}, STATUS_INVALID, "merge 0 is not a pair"},
        {{.model = VOCAB("{\"a\":0}", "[[\"a\",\"a\",\"a\"]]")}, STATUS_INVALID, "not a pair"},
        {{.model = VOCAB("{\"a\":0}", "[1]")}, STATUS_INVALID, "expected a string"},
        {{.model = VOCAB("{\"a\":0}", "{}")}, STATUS_INVALID, "expected an array"},
        {{.added_tokens = "[{\"id\":0,\"content\":\"x\"}]"}, STATUS_INVALID, "id 0 belongs to"},
        {{.added_tokens = "[{\"id\":9,\"content\":\"a\"}]"}, STATUS_INVALID, "has ids 0 and 9"},
        {{.added_tokens = "[{\"id\":9}]"}, STATUS_INVALID, "\"content\" is missing"},
        {{.added_tokens = "[{\"content\":\"x\"}]"}, STATUS_INVALID, "\"id\" is missing"},
        {{.added_tokens = "[{\"id\":9,\"content\":\"\"}]"}, STATUS_INVALID, "has no text"},
        {{.added_tokens = "[{\"id\":4294967296,\"content\":\"x\"}]"},
         STATUS_INVALID,
         "not between"},
    };
    check_bad(bad, sizeof(bad) / sizeof(bad[0]));
}

#define SPLIT(pattern, behavior)                                                                   \
    "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"" pattern "\"},\"behavior\":\"" behavior "\"}"

static void tokenizer_refuses_steps_that_it_does_not_know(void **state) {
    (void)state;
    static const struct bad bad[] = {
        {{.normalizer = "{\"type\":\"NFKC\"}"}, STATUS_UNSUPPORTED, "normalizer: type \"NFKC\""},
        {{.normalizer = "{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Prepend\"}]}"},
         STATUS_UNSUPPORTED,
         "\"Prepend\""},
        {{.normalizer = "{}"}, STATUS_INVALID, "\"type\" is missing"},
        {{.pre_tokenizer = "null"}, STATUS_UNSUPPORTED, "end with ByteLevel"},
        {{.pre_tokenizer = "{\"type\":\"Metaspace\"}"}, STATUS_UNSUPPORTED, "\"Metaspace\""},
        {{.pre_tokenizer = "{\"type\":\"Digits\"}"}, STATUS_UNSUPPORTED, "end with ByteLevel"},
        {{.pre_tokenizer = "{\"type\":\"Sequence\",\"pretokenizers\":[" BYTE_LEVEL ",{\"type\":"
                           "\"Digits\"}]}"},
         STATUS_UNSUPPORTED,
         "steps after ByteLevel"},
        {{.pre_tokenizer = SPLIT("a", "MergedWithNext")}, STATUS_UNSUPPORTED, "MergedWithNext"},
        {{.pre_tokenizer = SPLIT("(a", "Isolated")}, STATUS_UNSUPPORTED, "PCRE2"},
        {{.pre_tokenizer = SPLIT("[a&&b]", "Isolated")}, STATUS_UNSUPPORTED, "\"&&\" in brackets"},
        {{.pre_tokenizer = SPLIT("[[:alpha:]]", "Isolated")}, STATUS_UNSUPPORTED, "bracket"},
        {{.pre_tokenizer = SPLIT("(a)\\\\1", "Isolated")}, STATUS_UNSUPPORTED, "this escape"},
        {{.pre_tokenizer = SPLIT("\\\\p{Nonesuch}", "Isolated")}, STATUS_UNSUPPORTED, "PCRE2"},
        {{.pre_tokenizer = SPLIT("(?P<x>a)", "Isolated")}, STATUS_UNSUPPORTED, "kind of group"},
        {{.pre_tokenizer = SPLIT("(*UTF)a", "Isolated")}, STATUS_UNSUPPORTED, "kind of group"},
        {{.pre_tokenizer = SPLIT("a{2}+", "Isolated")}, STATUS_UNSUPPORTED, "after a count"},
        {{.decoder = "null"}, STATUS_UNSUPPORTED, "decoder: null"},
        {{.decoder = "{\"type\":\"Metaspace\"}"},
         STATUS_UNSUPPORTED,
         "decoder: type \"Metaspace\""},
        {{.post_processor = "{\"type\":\"BertProcessing\"}"}, STATUS_UNSUPPORTED, "BertProcessing"},
    };
    check_bad(bad, sizeof(bad) / sizeof(bad[0]));
}

#define TEMPLATE(single, special)                                                                  \
    "{\"type\":\"TemplateProcessing\",\"single\":[" single "],\"special_tokens\":{" special "}}"
#define SEQUENCE(id) "{\"Sequence\":{\"id\":\"" id "\",\"type_id\":0}}"
#define SPECIAL(id) "{\"SpecialToken\":{\"id\":\"" id "\",\"type_id\":0}}"

static void tokenizer_refuses_bad_templates(void **state) {
    (void)state;
    static const struct bad bad[] = {
        {{.post_processor = TEMPLATE("", "")}, STATUS_INVALID, "no sequence \"A\""},
        {{.post_processor = TEMPLATE(SEQUENCE("B"), "")}, STATUS_UNSUPPORTED, "other sequences"},
        {{.post_processor = TEMPLATE(SEQUENCE("A") "," SEQUENCE("A"), "")},
         STATUS_UNSUPPORTED,
         "other sequences"},
        {{.post_processor = TEMPLATE(SPECIAL("<s>") "," SEQUENCE("A"), "")},
         STATUS_INVALID,
         "no ids for \"<s>\""},
        {{.post_processor = TEMPLATE(SPECIAL("<s>") "," SEQUENCE("A"), "\"<s>\":{\"ids\":[77]}")},
         STATUS_INVALID,
         "no token has id 77"},
        {{.post_processor = TEMPLATE("{}", "")}, STATUS_INVALID, "neither Sequence nor"},
    };
    check_bad(bad, sizeof(bad) / sizeof(bad[0]));
}

static void tokenizer_refuses_files_that_are_no_json(void **state) {
    (void)state;
    static const char *const bad[] = {"",
                                      "{",
                                      "[]",
                                      "null",
                                      "{\"model\":{}",
                                      "{}x",
                                      "{\"decoder\":\"\xff\"}",
                                      "{\"a\":1,\"model\":{}}"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct tokenizer *tokenizer = NULL;
        struct error error;
        enum status status = open_text(bad[i], &tokenizer, &error);
        assert_true(status == STATUS_INVALID || status == STATUS_UNSUPPORTED);
        assert_null(tokenizer);
    }
    struct tokenizer *tokenizer;
    struct error error;
    assert_int_equal(tokenizer_open("/nonexistent/tokenizer.json", &tokenizer, &error),
                     STATUS_NOT_FOUND);
    assert_non_null(strstr(error.text, "/nonexistent/tokenizer.json"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tokenizer_merges_by_rank_then_from_the_left),
        cmocka_unit_test(tokenizer_ignores_merges_for_whole_words),
        cmocka_unit_test(tokenizer_gives_the_unknown_token),
        cmocka_unit_test(tokenizer_reads_fields_in_any_order),
        cmocka_unit_test(tokenizer_cuts_at_empty_matches),
        cmocka_unit_test(tokenizer_stops_a_pattern_that_backtracks_forever),
        cmocka_unit_test(tokenizer_refuses_models_that_it_would_get_wrong),
        cmocka_unit_test(tokenizer_refuses_bad_vocabularies_by_name),
        cmocka_unit_test(tokenizer_refuses_steps_that_it_does_not_know),
        cmocka_unit_test(tokenizer_refuses_bad_templates),
        cmocka_unit_test(tokenizer_refuses_files_that_are_no_json),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
