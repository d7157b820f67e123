#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <jansson.h>

#include "proto/model_config.h"

// -- a valid configuration, with fields changed ---------------------------------------------------

struct change {
    const char *key;
    const char *value; // JSON, or NULL: the field is left out
};

static const struct change valid[] = {
    {"architectures", "[\"LlamaForCausalLM\"]"},
    {"num_hidden_layers", "16"},
    {"hidden_size", "2048"},
    {"num_attention_heads", "32"},
    {"num_key_value_heads", "8"},
    {"head_dim", "64"},
    {"intermediate_size", "8192"},
    {"vocab_size", "128256"},
    {"max_position_embeddings", "131072"},
    {"rms_norm_eps", "1e-05"},
    {"hidden_act", "\"silu\""},
    {"tie_word_embeddings", "true"},
    {"attention_bias", "false"},
    {"mlp_bias", "false"},
    {"torch_dtype", "\"bfloat16\""},
    {"eos_token_id", "[128001, 128008, 128009]"},
    {"rope_theta", "500000.0"},
    {"rope_scaling", "{\"factor\": 32.0, \"high_freq_factor\": 4.0, \"low_freq_factor\": 1.0, "
                     "\"original_max_position_embeddings\": 8192, \"rope_type\": \"llama3\"}"},
};
enum { VALID_COUNT = sizeof(valid) / sizeof(valid[0]) };

static const char *changed_value(const char *key, const char *value, const struct change *changes,
                                 size_t change_count) {
    for (size_t i = 0; i < change_count; i++)
        if (strcmp(key, changes[i].key) == 0) value = changes[i].value;
    return value;
}

static bool is_valid_key(const char *key) {
    for (size_t i = 0; i < VALID_COUNT; i++)
        if (strcmp(key, valid[i].key) == 0) return true;
    return false;
}

// The caller frees it.
static char *config_text(const struct change *changes, size_t change_count) {
    char *text = NULL;
    size_t size_bytes;
    FILE *out = open_memstream(&text, &size_bytes);
    assert_non_null(out);
    fprintf(out, "{\"model_type\": \"llama\"");
    for (size_t i = 0; i < VALID_COUNT; i++) {
        const char *value = changed_value(valid[i].key, valid[i].value, changes, change_count);
        if (value != NULL) fprintf(out, ",\n \"%s\": %s", valid[i].key, value);
    }
    for (size_t i = 0; i < change_count; i++)
        if (!is_valid_key(changes[i].key) && changes[i].value != NULL)
            fprintf(out, ",\n \"%s\": %s", changes[i].key, changes[i].value);
    fprintf(out, "}");
    fclose(out);
    return text;
}

static enum status parse_changed(const struct change *changes, size_t change_count,
                                 struct model_config *config, struct error *error) {
    char *text = config_text(changes, change_count);
    error->text[0] = '\0';
    enum status status = model_config_parse(text, strlen(text), config, error);
    free(text);
    return status;
}

static struct model_config parse_ok(const struct change *changes, size_t change_count) {
    struct model_config config;
    struct error error;
    enum status status = parse_changed(changes, change_count, &config, &error);
    if (status != STATUS_OK) fail_msg("%s: %s", status_name(status), error.text);
    return config;
}
#define PARSE_OK(...)                                                                              \
    parse_ok((const struct change[]){__VA_ARGS__},                                                 \
             sizeof((const struct change[]){__VA_ARGS__}) / sizeof(struct change))

// The status is as given, the sentence has the words, and nothing was written out.
static void refused(enum status expected, const char *words, const struct change *changes,
                    size_t change_count) {
    struct model_config config, untouched;
    memset(&config, 0x5a, sizeof(config));
    memcpy(&untouched, &config, sizeof(config));
    struct error error;
    enum status status = parse_changed(changes, change_count, &config, &error);
    if (status != expected || strstr(error.text, words) == NULL)
        fail_msg("%s = %s: %s '%s', expected %s '%s'", changes[0].key,
                 changes[0].value ? changes[0].value : "(absent)", status_name(status), error.text,
                 status_name(expected), words);
    assert_memory_equal(&config, &untouched, sizeof(config));
}
#define REFUSED(status, words, ...)                                                                \
    refused(status, words, (const struct change[]){__VA_ARGS__},                                   \
            sizeof((const struct change[]){__VA_ARGS__}) / sizeof(struct change))

// -- what is read ---------------------------------------------------------------------------------

static void model_config_reads_every_field(void **state) {
    (void)state;
    struct model_config config = parse_ok(NULL, 0);
    assert_string_equal(config.architecture, "LlamaForCausalLM");
    assert_int_equal(config.layer_count, 16);
    assert_int_equal(config.hidden_size, 2048);
    assert_int_equal(config.head_count, 32);
    assert_int_equal(config.kv_head_count, 8);
    assert_int_equal(config.head_size, 64);
    assert_int_equal(config.ffn_size, 8192);
    assert_int_equal(config.vocabulary_size, 128256);
    assert_int_equal(config.position_count_max, 131072);
    assert_true(config.rms_norm_epsilon == 1e-5);
    assert_true(config.tied_embeddings);
    assert_false(config.attention_bias);
    assert_false(config.mlp_bias);
    assert_int_equal(config.dtype, DTYPE_BF16);
    assert_int_equal(config.eos_count, 3);
    assert_int_equal(config.eos_ids[0], 128001);
    assert_int_equal(config.eos_ids[2], 128009);
    assert_int_equal(config.rope.kind, ROPE_LLAMA3);
    assert_true(config.rope.theta == 500000);
    assert_true(config.rope.factor == 32);
    assert_true(config.rope.low_freq_factor == 1);
    assert_true(config.rope.high_freq_factor == 4);
    assert_int_equal(config.rope.original_position_count, 8192);
}

static void model_config_uses_the_defaults_of_llama(void **state) {
    (void)state;
    struct model_config config =
        PARSE_OK({"num_key_value_heads", NULL}, {"head_dim", "null"}, {"rms_norm_eps", NULL},
                 {"hidden_act", NULL}, {"tie_word_embeddings", NULL}, {"attention_bias", "null"},
                 {"mlp_bias", NULL}, {"torch_dtype", "null"}, {"eos_token_id", "null"},
                 {"rope_theta", NULL}, {"rope_scaling", "null"});
    assert_int_equal(config.kv_head_count, 32);
    assert_int_equal(config.head_size, 64);
    assert_true(config.rms_norm_epsilon == 1e-6);
    assert_false(config.tied_embeddings);
    assert_int_equal(config.dtype, DTYPE_NONE);
    assert_int_equal(config.eos_count, 0);
    assert_int_equal(config.rope.kind, ROPE_DEFAULT);
    assert_true(config.rope.theta == 10000);
}

static void model_config_reads_rope_parameters_of_both_generations(void **state) {
    (void)state;
    struct model_config older = parse_ok(NULL, 0);
    struct model_config newer =
        PARSE_OK({"rope_theta", NULL}, {"rope_scaling", NULL},
                 {"rope_parameters", "{\"rope_theta\": 500000.0, \"factor\": 32.0, "
                                     "\"high_freq_factor\": 4.0, \"low_freq_factor\": 1.0, "
                                     "\"original_max_position_embeddings\": 8192, "
                                     "\"rope_type\": \"llama3\"}"});
    assert_memory_equal(&older.rope, &newer.rope, sizeof(older.rope));
    // Both at once, saying the same.
    struct model_config both =
        PARSE_OK({"rope_theta", NULL},
                 {"rope_parameters", "{\"rope_theta\": 500000, \"factor\": 32, "
                                     "\"high_freq_factor\": 4, \"low_freq_factor\": 1, "
                                     "\"original_max_position_embeddings\": 8192, "
                                     "\"rope_type\": \"llama3\"}"});
    assert_memory_equal(&older.rope, &both.rope, sizeof(older.rope));
    struct model_config linear =
        PARSE_OK({"rope_scaling", "{\"type\": \"linear\", \"factor\": 4}"});
    assert_int_equal(linear.rope.kind, ROPE_LINEAR);
    assert_true(linear.rope.factor == 4);
    struct model_config plain = PARSE_OK({"rope_scaling", NULL}, {"rope_theta", NULL},
                                         {"rope_parameters", "{\"rope_theta\": 1234.5}"});
    assert_int_equal(plain.rope.kind, ROPE_DEFAULT);
    assert_true(plain.rope.theta == 1234.5);
    struct model_config named = PARSE_OK({"rope_scaling", "{\"rope_type\": \"default\"}"});
    assert_int_equal(named.rope.kind, ROPE_DEFAULT);
}

static void model_config_reads_both_names_of_the_dtype(void **state) {
    (void)state;
    assert_int_equal(PARSE_OK({"torch_dtype", "\"float32\""}).dtype, DTYPE_F32);
    assert_int_equal(PARSE_OK({"torch_dtype", NULL}, {"dtype", "\"float16\""}).dtype, DTYPE_F16);
}

static void model_config_reads_eos_as_a_number_or_a_list(void **state) {
    (void)state;
    struct model_config one = PARSE_OK({"eos_token_id", "2"});
    assert_int_equal(one.eos_count, 1);
    assert_int_equal(one.eos_ids[0], 2);
    assert_int_equal(PARSE_OK({"eos_token_id", "[]"}).eos_count, 0);
}

static void model_config_takes_mistral_without_a_window(void **state) {
    (void)state;
    struct change name = {"architectures", "[\"MistralForCausalLM\"]"};
    assert_string_equal(PARSE_OK(name, {"sliding_window", "null"}).architecture,
                        "MistralForCausalLM");
    PARSE_OK(name, {"sliding_window", "131072"});
    REFUSED(STATUS_UNSUPPORTED, "sliding_window 4096", name, {"sliding_window", "4096"});
    REFUSED(STATUS_UNSUPPORTED, "sliding_window 4096", name);
    REFUSED(STATUS_UNSUPPORTED, "attention_bias", name, {"attention_bias", "true"},
            {"sliding_window", "null"});
    REFUSED(STATUS_INVALID, "num_key_value_heads", name, {"num_key_value_heads", NULL});
}

static void model_config_digest_is_fnv_1a_of_the_bytes(void **state) {
    (void)state;
    char *text = config_text(NULL, 0);
    uint64_t hash = 14695981039346656037u;
    for (const char *c = text; *c != '\0'; c++) {
        hash ^= (unsigned char)*c;
        hash *= 1099511628211u;
    }
    free(text);
    assert_true(parse_ok(NULL, 0).digest == hash);
    assert_true(PARSE_OK({"vocab_size", "128257"}).digest != hash);
}

static void model_config_counts_parameters(void **state) {
    (void)state;
    // Llama 3.2 1B: 1,235,814,400 parameters with its shared embedding counted once.
    struct model_config config = parse_ok(NULL, 0);
    uint64_t total = config.layer_count * model_layer_parameter_count(&config) +
                     model_embedding_parameter_count(&config) + config.hidden_size;
    assert_true(total == 1235814400);
    assert_true(model_kv_element_count(&config) == 2 * 8 * 64);
    struct model_config biased = PARSE_OK({"attention_bias", "true"}, {"mlp_bias", "true"});
    assert_true(model_layer_parameter_count(&biased) - model_layer_parameter_count(&config) ==
                32 * 64 + 2 * 8 * 64 + 2048 + 2 * 8192 + 2048);
}

// -- what is refused ------------------------------------------------------------------------------

static void model_config_refuses_counts_beyond_their_limits(void **state) {
    (void)state;
    static const struct {
        const char *key;
        long limit;
    } counts[] = {
        {"num_hidden_layers", MODEL_LAYER_COUNT_MAX},
        {"hidden_size", MODEL_HIDDEN_SIZE_MAX},
        {"num_attention_heads", MODEL_HEAD_COUNT_MAX},
        {"num_key_value_heads", MODEL_HEAD_COUNT_MAX},
        {"head_dim", MODEL_HEAD_SIZE_MAX},
        {"intermediate_size", MODEL_FFN_SIZE_MAX},
        {"vocab_size", MODEL_VOCABULARY_SIZE_MAX},
        {"max_position_embeddings", MODEL_POSITION_COUNT_MAX},
    };
    static const char *const wrong[] = {
        "0", "-1", "2147483648", "4294967297", "9223372036854775807", "-9223372036854775808"};
    for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
        char beyond[32], words[96];
        snprintf(beyond, sizeof(beyond), "%ld", counts[i].limit + 1);
        snprintf(words, sizeof(words), "%s is %s, not between 1 and %ld", counts[i].key, beyond,
                 counts[i].limit);
        REFUSED(STATUS_INVALID, words, {counts[i].key, beyond});
        for (size_t j = 0; j < sizeof(wrong) / sizeof(wrong[0]); j++)
            REFUSED(STATUS_INVALID, counts[i].key, {counts[i].key, wrong[j]});
        snprintf(words, sizeof(words), "%s must be an integer", counts[i].key);
        REFUSED(STATUS_INVALID, words, {counts[i].key, "2.0"});
        REFUSED(STATUS_INVALID, words, {counts[i].key, "1e3"});
        REFUSED(STATUS_INVALID, words, {counts[i].key, "\"8\""});
        REFUSED(STATUS_INVALID, words, {counts[i].key, "[8]"});
        REFUSED(STATUS_INVALID, words, {counts[i].key, "true"});
    }
}

static void model_config_refuses_missing_fields(void **state) {
    (void)state;
    static const char *const required[] = {
        "architectures",          "num_hidden_layers", "hidden_size",
        "num_attention_heads",    "intermediate_size", "vocab_size",
        "max_position_embeddings"};
    for (size_t i = 0; i < sizeof(required) / sizeof(required[0]); i++) {
        REFUSED(STATUS_INVALID, required[i], {required[i], NULL});
        REFUSED(STATUS_INVALID, required[i], {required[i], "null"});
    }
}

static void model_config_refuses_heads_that_do_not_fit(void **state) {
    (void)state;
    REFUSED(STATUS_INVALID, "does not divide num_attention_heads 32", {"num_key_value_heads", "5"});
    REFUSED(STATUS_INVALID, "does not divide num_attention_heads 32",
            {"num_key_value_heads", "64"});
    REFUSED(STATUS_INVALID, "does not divide hidden_size", {"hidden_size", "2050"},
            {"head_dim", NULL});
    REFUSED(STATUS_INVALID, "must be even", {"head_dim", "63"});
    REFUSED(STATUS_INVALID, "larger than 1024", {"head_dim", NULL}, {"hidden_size", "65536"});
}

static void model_config_refuses_bad_numbers(void **state) {
    (void)state;
    static const char *const wrong[] = {"0", "-1e-5", "-5", "1.5", "\"1e-5\"", "[]", "1e300"};
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++)
        REFUSED(STATUS_INVALID, "rms_norm_eps", {"rms_norm_eps", wrong[i]});
    REFUSED(STATUS_INVALID, "rope_theta is -1", {"rope_theta", "-1"});
    REFUSED(STATUS_INVALID, "rope_theta is 1e+300", {"rope_theta", "1e300"});
    // Not JSON, though some writers produce them; and a number that no double can hold.
    REFUSED(STATUS_INVALID, "NaN", {"rope_theta", "NaN"});
    REFUSED(STATUS_INVALID, "Infinity", {"rope_theta", "Infinity"});
    REFUSED(STATUS_INVALID, "1e999", {"rope_theta", "1e999"});
    REFUSED(STATUS_INVALID, "99999999999999999999", {"vocab_size", "99999999999999999999"});
}

static void model_config_refuses_bad_rope(void **state) {
    (void)state;
    static const struct {
        enum status status;
        const char *value;
        const char *words;
    } cases[] = {
        {STATUS_UNSUPPORTED, "{\"rope_type\": \"yarn\", \"factor\": 2}", "rope_type 'yarn'"},
        {STATUS_UNSUPPORTED, "{\"type\": \"dynamic\", \"factor\": 2}", "rope_type 'dynamic'"},
        {STATUS_UNSUPPORTED, "{\"factor\": 2}", "rope_type"},
        {STATUS_UNSUPPORTED, "{\"partial_rotary_factor\": 0.5}", "partial_rotary_factor"},
        {STATUS_INVALID, "{\"rope_type\": \"linear\"}", "rope_scaling.factor must be a number"},
        {STATUS_INVALID, "{\"rope_type\": \"linear\", \"factor\": 0.5}", "rope_scaling.factor is"},
        {STATUS_INVALID, "{\"rope_type\": \"linear\", \"factor\": -8}", "rope_scaling.factor is"},
        {STATUS_INVALID, "{\"rope_type\": 3}", "rope_scaling.rope_type must be a string"},
        {STATUS_INVALID, "\"linear\"", "rope_scaling must be an object"},
        {STATUS_INVALID, "{\"rope_type\": \"llama3\", \"factor\": 8}", "low_freq_factor"},
        {STATUS_INVALID,
         "{\"rope_type\": \"llama3\", \"factor\": 8, \"low_freq_factor\": 4, "
         "\"high_freq_factor\": 4, \"original_max_position_embeddings\": 8192}",
         "high_freq_factor is 4, it must be larger than low_freq_factor 4"},
        {STATUS_INVALID,
         "{\"rope_type\": \"llama3\", \"factor\": 8, \"low_freq_factor\": 1, "
         "\"high_freq_factor\": 4, \"original_max_position_embeddings\": 0}",
         "original_max_position_embeddings is 0"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        REFUSED(cases[i].status, cases[i].words, {"rope_scaling", cases[i].value});
    REFUSED(STATUS_INVALID, "disagree", {"rope_parameters", "{\"rope_theta\": 10000}"});
    REFUSED(STATUS_UNSUPPORTED, "partial_rotary_factor", {"partial_rotary_factor", "0.25"});
}

static void model_config_refuses_what_is_not_computed(void **state) {
    (void)state;
    REFUSED(STATUS_UNSUPPORTED, "'Qwen3ForCausalLM'", {"architectures", "[\"Qwen3ForCausalLM\"]"});
    REFUSED(STATUS_INVALID, "architectures", {"architectures", "[]"});
    REFUSED(STATUS_INVALID, "architectures", {"architectures", "\"LlamaForCausalLM\""});
    REFUSED(STATUS_INVALID, "architectures[0]", {"architectures", "[7]"});
    REFUSED(STATUS_INVALID, "control characters", {"architectures", "[\"a\\nb\"]"});
    REFUSED(STATUS_UNSUPPORTED, "hidden_act 'gelu'", {"hidden_act", "\"gelu\""});
    REFUSED(STATUS_UNSUPPORTED, "quantization_config",
            {"quantization_config", "{\"quant_method\": \"awq\"}"});
    REFUSED(STATUS_UNSUPPORTED, "float8_e4m3fn", {"torch_dtype", "\"float8_e4m3fn\""});
    REFUSED(STATUS_INVALID, "attention_bias must be true or false", {"attention_bias", "1"});
    REFUSED(STATUS_INVALID, "tie_word_embeddings", {"tie_word_embeddings", "\"false\""});
    PARSE_OK({"quantization_config", "null"});
}

static void model_config_refuses_bad_eos(void **state) {
    (void)state;
    REFUSED(STATUS_INVALID, "eos_token_id is 128256", {"eos_token_id", "128256"});
    REFUSED(STATUS_INVALID, "eos_token_id is -1", {"eos_token_id", "[1, -1]"});
    REFUSED(STATUS_INVALID, "eos_token_id", {"eos_token_id", "\"</s>\""});
    REFUSED(STATUS_INVALID, "eos_token_id", {"eos_token_id", "[[1]]"});
    REFUSED(STATUS_INVALID, "eos_token_id has 17 entries, the limit is 16",
            {"eos_token_id", "[0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16]"});
}

static void refused_text(const char *text, size_t size_bytes, const char *words) {
    struct model_config config;
    struct error error;
    assert_int_equal(model_config_parse(text, size_bytes, &config, &error), STATUS_INVALID);
    if (strstr(error.text, words) == NULL) fail_msg("'%s' lacks '%s'", error.text, words);
}

static void model_config_refuses_malformed_json(void **state) {
    (void)state;
    refused_text("", 0, "line 1");
    refused_text("[]", 2, "must be a JSON object");
    refused_text("{\"hidden_size\": 1, \"hidden_size\": 2}", 36, "duplicate");
    refused_text("{\"a\": \"\xff\"}", 9, "unable to decode byte 0xff");
    char *text = config_text(NULL, 0);
    for (size_t size_bytes = strlen(text) - 1; size_bytes > 0; size_bytes -= 7) {
        struct model_config config;
        assert_int_equal(model_config_parse(text, size_bytes, &config, NULL), STATUS_INVALID);
        if (size_bytes < 7) break;
    }
    free(text);
    char *deep = malloc(100000);
    assert_non_null(deep);
    memset(deep, '[', 100000);
    refused_text(deep, 100000, "depth");
    free(deep);
    char *large = calloc(1, MODEL_CONFIG_BYTES_MAX + 1);
    assert_non_null(large);
    refused_text(large, MODEL_CONFIG_BYTES_MAX + 1, "the limit is 1048576");
    free(large);
}

// -- files ----------------------------------------------------------------------------------------

struct directory {
    char path[64];
};

static int directory_open(void **state) {
    struct directory *directory = malloc(sizeof(*directory));
    if (directory == NULL) return -1;
    snprintf(directory->path, sizeof(directory->path), "/tmp/model_config_test.XXXXXX");
    if (mkdtemp(directory->path) == NULL) return -1;
    *state = directory;
    return 0;
}

static void directory_path(const struct directory *directory, const char *name, char out[128]) {
    snprintf(out, 128, "%s/%s", directory->path, name);
}

static int directory_close(void **state) {
    struct directory *directory = *state;
    char path[128];
    directory_path(directory, "config.json", path);
    unlink(path);
    directory_path(directory, "generation_config.json", path);
    unlink(path);
    int result = rmdir(directory->path);
    free(directory);
    return result;
}

static void write_text(const struct directory *directory, const char *name, const char *text) {
    char path[128];
    directory_path(directory, name, path);
    FILE *out = fopen(path, "w");
    assert_non_null(out);
    assert_true(fputs(text, out) >= 0);
    assert_int_equal(fclose(out), 0);
}

static void model_config_read_lets_generation_config_win(void **state) {
    const struct directory *directory = *state;
    char *text = config_text(NULL, 0);
    write_text(directory, "config.json", text);
    struct model_config config;
    struct error error;
    assert_int_equal(model_config_read(directory->path, &config, &error), STATUS_OK);
    assert_int_equal(config.eos_count, 3);
    write_text(directory, "generation_config.json", "{\"eos_token_id\": 7}");
    assert_int_equal(model_config_read(directory->path, &config, &error), STATUS_OK);
    assert_int_equal(config.eos_count, 1);
    assert_int_equal(config.eos_ids[0], 7);
    write_text(directory, "generation_config.json", "{\"eos_token_id\": null}");
    assert_int_equal(model_config_read(directory->path, &config, &error), STATUS_OK);
    assert_int_equal(config.eos_count, 3);
    free(text);
}

static void model_config_read_names_the_file_in_errors(void **state) {
    const struct directory *directory = *state;
    struct model_config config;
    struct error error;
    assert_int_equal(model_config_read(directory->path, &config, &error), STATUS_NOT_FOUND);
    assert_non_null(strstr(error.text, "/config.json"));
    write_text(directory, "config.json", "{");
    assert_int_equal(model_config_read(directory->path, &config, &error), STATUS_INVALID);
    assert_non_null(strstr(error.text, "/config.json: line 1"));
    char *text = config_text(NULL, 0);
    write_text(directory, "config.json", text);
    free(text);
    write_text(directory, "generation_config.json", "{\"eos_token_id\": 1000000000}");
    assert_int_equal(model_config_read(directory->path, &config, &error), STATUS_INVALID);
    assert_non_null(strstr(error.text, "/generation_config.json: eos_token_id is 1000000000"));
    char *long_path = calloc(1, PATH_MAX + 1);
    assert_non_null(long_path);
    memset(long_path, 'a', PATH_MAX);
    assert_int_equal(model_config_read(long_path, &config, &error), STATUS_INVALID);
    free(long_path);
}

// -- no memory ------------------------------------------------------------------------------------

static int allocations_left;

static void *failing_malloc(size_t size) {
    return allocations_left-- > 0 ? malloc(size) : NULL;
}

// Whichever of jansson's allocations fails, the answer is a status, and nothing leaks. For some
// failures jansson itself blames the text, so the status is not always NO_MEMORY.
static void model_config_survives_each_failing_allocation(void **state) {
    (void)state;
    char *text = config_text(NULL, 0);
    struct model_config config;
    enum status status = STATUS_NO_MEMORY;
    int count = 0;
    json_set_alloc_funcs(failing_malloc, free);
    for (; status != STATUS_OK && count < 10000; count++) {
        allocations_left = count;
        status = model_config_parse(text, strlen(text), &config, NULL);
    }
    json_set_alloc_funcs(malloc, free);
    free(text);
    assert_int_equal(status, STATUS_OK);
    assert_true(count > 20);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(model_config_reads_every_field),
        cmocka_unit_test(model_config_uses_the_defaults_of_llama),
        cmocka_unit_test(model_config_reads_rope_parameters_of_both_generations),
        cmocka_unit_test(model_config_reads_both_names_of_the_dtype),
        cmocka_unit_test(model_config_reads_eos_as_a_number_or_a_list),
        cmocka_unit_test(model_config_takes_mistral_without_a_window),
        cmocka_unit_test(model_config_digest_is_fnv_1a_of_the_bytes),
        cmocka_unit_test(model_config_counts_parameters),
        cmocka_unit_test(model_config_refuses_counts_beyond_their_limits),
        cmocka_unit_test(model_config_refuses_missing_fields),
        cmocka_unit_test(model_config_refuses_heads_that_do_not_fit),
        cmocka_unit_test(model_config_refuses_bad_numbers),
        cmocka_unit_test(model_config_refuses_bad_rope),
        cmocka_unit_test(model_config_refuses_what_is_not_computed),
        cmocka_unit_test(model_config_refuses_bad_eos),
        cmocka_unit_test(model_config_refuses_malformed_json),
        cmocka_unit_test(model_config_survives_each_failing_allocation),
        cmocka_unit_test_setup_teardown(model_config_read_lets_generation_config_win,
                                        directory_open, directory_close),
        cmocka_unit_test_setup_teardown(model_config_read_names_the_file_in_errors, directory_open,
                                        directory_close),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
