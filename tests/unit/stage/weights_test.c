#include <assert.h>
#include <dirent.h>
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "checkpoint_writer.h"
#include "stage/weights.h"

// -- opening, with care for what is left behind ---------------------------------------------------

static struct weights *open_ok(const struct checkpoint *checkpoint, struct weights_range range) {
    struct weights *weights;
    struct error error;
    unsigned files = count_open_files();
    enum status status =
        weights_open(&(struct weights_source){checkpoint->directory, LOAD_FORMAT_SAFETENSORS},
                     &checkpoint->config, &range, NULL, NULL, &weights, &error);
    if (status != STATUS_OK) fail_msg("%s: %s", status_name(status), error.text);
    assert_int_equal(count_open_files(), files);
    return weights;
}

static void close_all(const struct checkpoint *checkpoint, struct weights *weights) {
    weights_close(weights);
    assert_int_equal(mapped_of(checkpoint->directory).size_bytes, 0);
}

static const struct weights_range whole = {0, 3, true, true};

// The status is as given, the sentence has both words, nothing stays open or mapped.
static void refused(const struct checkpoint *checkpoint, struct weights_range range,
                    enum status expected, const char *words, const char *more_words) {
    struct weights *weights = NULL;
    struct error error = {.text = ""};
    unsigned files = count_open_files();
    enum status status =
        weights_open(&(struct weights_source){checkpoint->directory, LOAD_FORMAT_SAFETENSORS},
                     &checkpoint->config, &range, NULL, NULL, &weights, &error);
    if (status != expected || strstr(error.text, words) == NULL ||
        strstr(error.text, more_words) == NULL)
        fail_msg("%s '%s', expected %s '%s' '%s'", status_name(status), error.text,
                 status_name(expected), words, more_words);
    assert_null(weights);
    assert_int_equal(count_open_files(), files);
    assert_int_equal(mapped_of(checkpoint->directory).size_bytes, 0);
    assert_int_equal(
        weights_open(&(struct weights_source){checkpoint->directory, LOAD_FORMAT_SAFETENSORS},
                     &checkpoint->config, &range, NULL, NULL, &weights, NULL),
        expected);
}

static enum dtype item_dtype(const struct item *item) {
    if (strcmp(item->dtype, "BF16") == 0) return DTYPE_BF16;
    return strcmp(item->dtype, "F16") == 0 ? DTYPE_F16 : DTYPE_F32;
}

static uint64_t check(struct checkpoint *checkpoint, const struct tensor *tensor,
                      const char *name) {
    const struct item *item = item_of(checkpoint, name);
    assert_non_null(tensor->data);
    assert_int_equal(tensor->dtype, item_dtype(item));
    assert_int_equal(tensor->row_count, item->row_count == 0 ? 1 : item->row_count);
    assert_int_equal(tensor->column_count, item->column_count);
    const unsigned char *data = tensor->data;
    unsigned seed = item_seed(name);
    for (uint64_t i = 0; i < item_bytes(item); i++)
        if (data[i] != item_byte(seed, i)) fail_msg("%s differs at byte %" PRIu64, name, i);
    return item_bytes(item);
}

static void check_absent(const struct tensor *tensor) {
    static const struct tensor absent;
    assert_memory_equal(tensor, &absent, sizeof(absent));
}

// Compares all of a layer; returns its bytes.
static uint64_t check_layer(struct checkpoint *checkpoint, const struct weights *weights,
                            uint32_t index) {
    const struct layer_weights *layer = &weights->layers[index];
    const struct {
        const struct tensor *tensor;
        const char *name;
        bool present;
    } tensors[] = {
        {&layer->attention_norm, "input_layernorm.weight", true},
        {&layer->q, "self_attn.q_proj.weight", true},
        {&layer->k, "self_attn.k_proj.weight", true},
        {&layer->v, "self_attn.v_proj.weight", true},
        {&layer->o, "self_attn.o_proj.weight", true},
        {&layer->q_bias, "self_attn.q_proj.bias", checkpoint->config.attention_bias},
        {&layer->k_bias, "self_attn.k_proj.bias", checkpoint->config.attention_bias},
        {&layer->v_bias, "self_attn.v_proj.bias", checkpoint->config.attention_bias},
        {&layer->o_bias, "self_attn.o_proj.bias", checkpoint->config.attention_bias},
        {&layer->ffn_norm, "post_attention_layernorm.weight", true},
        {&layer->gate, "mlp.gate_proj.weight", true},
        {&layer->up, "mlp.up_proj.weight", true},
        {&layer->down, "mlp.down_proj.weight", true},
        {&layer->gate_bias, "mlp.gate_proj.bias", checkpoint->config.mlp_bias},
        {&layer->up_bias, "mlp.up_proj.bias", checkpoint->config.mlp_bias},
        {&layer->down_bias, "mlp.down_proj.bias", checkpoint->config.mlp_bias},
    };
    static_assert(sizeof(*layer) == sizeof(tensors) / sizeof(tensors[0]) * sizeof(struct tensor),
                  "every member is listed");
    uint64_t bytes = 0;
    for (size_t i = 0; i < sizeof(tensors) / sizeof(tensors[0]); i++) {
        char name[64];
        snprintf(name, sizeof(name), "model.layers.%" PRIu32 ".%s", weights->layer_first + index,
                 tensors[i].name);
        if (tensors[i].present)
            bytes += check(checkpoint, tensors[i].tensor, name);
        else
            check_absent(tensors[i].tensor);
    }
    return bytes;
}

static uint64_t check_layers(struct checkpoint *checkpoint, const struct weights *weights) {
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < weights->layer_count; i++)
        bytes += check_layer(checkpoint, weights, i);
    return bytes;
}

// -- what is read ---------------------------------------------------------------------------------

static void weights_open_reads_every_tensor(void **state) {
    struct checkpoint *checkpoint = *state;
    write_file(checkpoint, "model.safetensors", -1);
    struct weights *weights = open_ok(checkpoint, whole);
    assert_int_equal(weights->layer_first, 0);
    assert_int_equal(weights->layer_count, 3);
    uint64_t bytes = check_layers(checkpoint, weights);
    bytes += check(checkpoint, &weights->embedding, "model.embed_tokens.weight");
    bytes += check(checkpoint, &weights->final_norm, "model.norm.weight");
    bytes += check(checkpoint, &weights->head, "lm_head.weight");
    assert_int_equal(weights->weight_bytes, bytes);
    assert_int_equal(weights->mapped_bytes, mapped_of(checkpoint->directory).size_bytes);
    close_all(checkpoint, weights);
}

static void weights_open_reads_biases(void **state) {
    struct checkpoint *checkpoint = *state;
    struct model_config config = small;
    config.attention_bias = config.mlp_bias = true;
    fill(checkpoint, &config);
    write_file(checkpoint, "model.safetensors", -1);
    struct weights *weights = open_ok(checkpoint, whole);
    check_layers(checkpoint, weights);
    close_all(checkpoint, weights);
    // Those of the file are left alone when the configuration has none.
    checkpoint->config.attention_bias = false;
    weights = open_ok(checkpoint, whole);
    check_layers(checkpoint, weights);
    close_all(checkpoint, weights);
}

static void weights_open_keeps_the_dtype_of_each_tensor(void **state) {
    struct checkpoint *checkpoint = *state;
    checkpoint->config.dtype = DTYPE_BF16;
    for (size_t i = 0; i < checkpoint->item_count; i++)
        if (strstr(checkpoint->items[i].name, "proj") != NULL)
            checkpoint->items[i].dtype = i % 2 == 0 ? "BF16" : "F16";
    write_file(checkpoint, "model.safetensors", -1);
    struct weights *weights = open_ok(checkpoint, whole);
    check_layers(checkpoint, weights);
    close_all(checkpoint, weights);
}

static void weights_open_takes_matrices_of_one_row(void **state) {
    struct checkpoint *checkpoint = *state;
    struct model_config config = small;
    config.vocabulary_size = config.ffn_size = config.hidden_size = 1;
    fill(checkpoint, &config);
    write_file(checkpoint, "model.safetensors", -1);
    struct weights *weights = open_ok(checkpoint, whole);
    check_layers(checkpoint, weights);
    check(checkpoint, &weights->embedding, "model.embed_tokens.weight");
    close_all(checkpoint, weights);
}

static void weights_open_shares_a_tied_embedding(void **state) {
    struct checkpoint *checkpoint = *state;
    struct model_config config = small;
    config.tied_embeddings = true;
    fill(checkpoint, &config);
    write_file(checkpoint, "model.safetensors", -1);
    struct weights *weights = open_ok(checkpoint, whole);
    uint64_t bytes = check_layers(checkpoint, weights);
    bytes += check(checkpoint, &weights->embedding, "model.embed_tokens.weight");
    bytes += check(checkpoint, &weights->final_norm, "model.norm.weight");
    assert_memory_equal(&weights->head, &weights->embedding, sizeof(weights->head));
    assert_int_equal(weights->weight_bytes, bytes);
    assert_int_equal(weights->mapped_bytes, mapped_of(checkpoint->directory).size_bytes);
    close_all(checkpoint, weights);
    // A last stage that is not the first has it as its head only.
    weights = open_ok(checkpoint, (struct weights_range){2, 1, false, true});
    bytes = check_layers(checkpoint, weights);
    bytes += check(checkpoint, &weights->head, "model.embed_tokens.weight");
    bytes += check(checkpoint, &weights->final_norm, "model.norm.weight");
    assert_int_equal(weights->weight_bytes, bytes);
    check_absent(&weights->embedding);
    close_all(checkpoint, weights);
}

static void weights_open_takes_a_stage_with_only_the_head(void **state) {
    struct checkpoint *checkpoint = *state;
    write_file(checkpoint, "model.safetensors", -1);
    struct weights *weights = open_ok(checkpoint, (struct weights_range){3, 0, false, true});
    uint64_t bytes = check(checkpoint, &weights->head, "lm_head.weight");
    bytes += check(checkpoint, &weights->final_norm, "model.norm.weight");
    assert_int_equal(weights->weight_bytes, bytes);
    close_all(checkpoint, weights);
    weights = open_ok(checkpoint, (struct weights_range){3, 0, false, false});
    assert_int_equal(weights->weight_bytes, 0);
    assert_int_equal(weights->mapped_bytes, 0);
    close_all(checkpoint, weights);
    weights_close(NULL);
}

static void weights_open_maps_only_the_pages_of_its_range(void **state) {
    struct checkpoint *checkpoint = *state;
    write_file(checkpoint, "model.safetensors", -1);
    uint64_t page_bytes = (uint64_t)sysconf(_SC_PAGESIZE);
    for (uint32_t layer = 0; layer < 3; layer++) {
        struct weights *weights =
            open_ok(checkpoint, (struct weights_range){layer, 1, false, false});
        struct mapped mapped = mapped_of(checkpoint->directory);
        assert_int_equal(weights->weight_bytes, check_layers(checkpoint, weights));
        assert_int_equal(weights->mapped_bytes, mapped.size_bytes);
        // The layer's tensors follow each other in the file: its pages and at most two cut ones.
        assert_true(mapped.size_bytes >= weights->weight_bytes);
        assert_true(mapped.size_bytes < weights->weight_bytes + 2 * page_bytes);
        assert_int_equal(mapped.offset_max - mapped.offset_min, mapped.size_bytes);
        check_absent(&weights->embedding);
        check_absent(&weights->final_norm);
        check_absent(&weights->head);
        close_all(checkpoint, weights);
    }
}

static void weights_open_leaves_out_pages_between_its_tensors(void **state) {
    struct checkpoint *checkpoint = *state;
    struct model_config config = small;
    config.vocabulary_size = 1000; // 250 KB between the layers' tensors and the norm
    fill(checkpoint, &config);
    struct item head = *item_of(checkpoint, "lm_head.weight");
    struct item *norm = item_of(checkpoint, "model.norm.weight");
    norm[1] = *norm;
    norm[0] = head;
    write_file(checkpoint, "model.safetensors", -1);
    checkpoint->config.tied_embeddings = true; // so that lm_head.weight is not wanted
    struct weights *weights = open_ok(checkpoint, (struct weights_range){0, 3, true, true});
    struct mapped mapped = mapped_of(checkpoint->directory);
    assert_int_equal(weights->mapped_bytes, mapped.size_bytes);
    assert_true(mapped.size_bytes + 200000 < mapped.offset_max - mapped.offset_min);
    check_layers(checkpoint, weights);
    check(checkpoint, &weights->final_norm, "model.norm.weight");
    close_all(checkpoint, weights);
}

// -- shards ---------------------------------------------------------------------------------------

static void weights_open_opens_only_the_shards_of_its_range(void **state) {
    struct checkpoint *checkpoint = *state;
    write_sharded(checkpoint);
    struct weights *weights = open_ok(checkpoint, whole);
    check_layers(checkpoint, weights);
    close_all(checkpoint, weights);
    write_text(checkpoint, "model-0.safetensors", "not a checkpoint");
    char path[PATH_BYTES];
    path_of(checkpoint, "model-2.safetensors", path);
    assert_int_equal(unlink(path), 0);
    weights = open_ok(checkpoint, (struct weights_range){1, 1, false, false});
    check_layers(checkpoint, weights);
    close_all(checkpoint, weights);
    refused(checkpoint, (struct weights_range){0, 1, false, false}, STATUS_INVALID,
            "model-0.safetensors", "header");
    refused(checkpoint, (struct weights_range){2, 1, false, false}, STATUS_NOT_FOUND,
            "model-2.safetensors", "No such file");
}

static void weights_open_refuses_a_shard_without_its_tensor(void **state) {
    struct checkpoint *checkpoint = *state;
    item_of(checkpoint, "model.layers.1.mlp.up_proj.weight")->left_out = true;
    write_sharded(checkpoint);
    refused(checkpoint, whole, STATUS_INVALID,
            "model-1.safetensors: has no tensor model.layers.1.mlp.up_proj.weight",
            "model.safetensors.index.json");
}

static void weights_open_refuses_bad_indexes(void **state) {
    struct checkpoint *checkpoint = *state;
    static const struct {
        const char *text;
        enum status status;
        const char *words;
    } cases[] = {
        {"", STATUS_INVALID, "line 1"},
        {"{", STATUS_INVALID, "line 1"},
        {"[]", STATUS_INVALID, "weight_map"},
        {"{\"weight_map\": []}", STATUS_INVALID, "weight_map"},
        {"{\"weight_map\": {}, \"weight_map\": {}}", STATUS_INVALID, "duplicate"},
        {"{\"weight_map\": {}}", STATUS_INVALID, "names no file for tensor model.norm.weight"},
        {"{\"weight_map\": {\"model.norm.weight\": 7}}", STATUS_INVALID, "names no file"},
        {"{\"weight_map\": {\"model.norm.weight\": \"../x\"}}", STATUS_INVALID, "plain file"},
        {"{\"weight_map\": {\"model.norm.weight\": \"/etc/passwd\"}}", STATUS_INVALID, "plain"},
        {"{\"weight_map\": {\"model.norm.weight\": \"..\"}}", STATUS_INVALID, "plain file"},
        {"{\"weight_map\": {\"model.norm.weight\": \".\"}}", STATUS_INVALID, "plain file"},
        {"{\"weight_map\": {\"model.norm.weight\": \"\"}}", STATUS_INVALID, "plain file"},
        {"{\"weight_map\": {\"model.norm.weight\": \"a\\nb\"}}", STATUS_INVALID, "plain file"},
        {"{\"weight_map\": {\"model.norm.weight\": \"x\"}}", STATUS_NOT_FOUND, "/x: No such"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        write_text(checkpoint, "model.safetensors.index.json", cases[i].text);
        refused(checkpoint, (struct weights_range){3, 0, false, true}, cases[i].status,
                cases[i].words, checkpoint->directory);
    }
}

// -- what is refused ------------------------------------------------------------------------------

static void weights_open_refuses_an_empty_directory(void **state) {
    struct checkpoint *checkpoint = *state;
    refused(checkpoint, whole, STATUS_NOT_FOUND, "has neither model.safetensors nor",
            checkpoint->directory);
    char path[PATH_BYTES];
    path_of(checkpoint, "model.safetensors", path);
    assert_int_equal(mkdir(path, 0700), 0);
    refused(checkpoint, whole, STATUS_IO, "not a regular file", "model.safetensors");
}

static void weights_open_refuses_missing_tensors(void **state) {
    struct checkpoint *checkpoint = *state;
    static const char *const names[] = {"model.embed_tokens.weight", "model.norm.weight",
                                        "lm_head.weight", "model.layers.0.input_layernorm.weight",
                                        "model.layers.2.self_attn.v_proj.weight"};
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        fill(checkpoint, &small);
        item_of(checkpoint, names[i])->left_out = true;
        write_file(checkpoint, "model.safetensors", -1);
        char words[96];
        snprintf(words, sizeof(words), "model.safetensors: has no tensor %s", names[i]);
        refused(checkpoint, whole, STATUS_INVALID, words, checkpoint->directory);
    }
    // A stage that does not need it does not miss it.
    close_all(checkpoint, open_ok(checkpoint, (struct weights_range){0, 2, true, false}));
}

static void weights_open_refuses_wrong_shapes(void **state) {
    struct checkpoint *checkpoint = *state;
    static const struct {
        const char *name;
        uint32_t row_count, column_count;
        const char *words;
    } cases[] = {
        {"model.layers.1.self_attn.k_proj.weight", 64, 64,
         "(64, 64), config.json asks for (32, 64)"},
        {"model.layers.1.mlp.down_proj.weight", 128, 64,
         "(128, 64), config.json asks for (64, 128)"},
        {"model.embed_tokens.weight", 95, 64, "(95, 64), config.json asks for (96, 64)"},
        {"model.norm.weight", 1, 64, "(1, 64), config.json asks for (64)"},
        {"model.norm.weight", 64, 1, "(64, 1), config.json asks for (64)"},
        {"model.norm.weight", 0, 63, "(63), config.json asks for (64)"},
        {"lm_head.weight", 0, 6144, "(6144), config.json asks for (96, 64)"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        fill(checkpoint, &small);
        struct item *item = item_of(checkpoint, cases[i].name);
        item->row_count = cases[i].row_count;
        item->column_count = cases[i].column_count;
        write_file(checkpoint, "model.safetensors", -1);
        refused(checkpoint, whole, STATUS_INVALID, cases[i].words, cases[i].name);
    }
}

static void weights_open_refuses_wrong_dtypes(void **state) {
    struct checkpoint *checkpoint = *state;
    item_of(checkpoint, "model.layers.2.mlp.gate_proj.weight")->dtype = "F64";
    write_file(checkpoint, "model.safetensors", -1);
    refused(checkpoint, whole, STATUS_UNSUPPORTED, "model.layers.2.mlp.gate_proj.weight",
            "has dtype F64");
    close_all(checkpoint, open_ok(checkpoint, (struct weights_range){0, 2, true, false}));
}

static void weights_open_refuses_misaligned_tensors(void **state) {
    struct checkpoint *checkpoint = *state;
    for (size_t i = 0; i < checkpoint->item_count; i++)
        checkpoint->items[i].dtype = "BF16";
    checkpoint->header_padding = 2; // still a multiple of what BF16 needs
    write_file(checkpoint, "model.safetensors", -1);
    close_all(checkpoint, open_ok(checkpoint, whole));
    checkpoint->header_padding = 1;
    write_file(checkpoint, "model.safetensors", -1);
    refused(checkpoint, whole, STATUS_UNSUPPORTED, "not a multiple of its 2-byte elements",
            "model.layers.0.input_layernorm.weight");
}

static void weights_open_refuses_truncated_files(void **state) {
    struct checkpoint *checkpoint = *state;
    write_file(checkpoint, "model.safetensors", -1);
    char path[PATH_BYTES];
    path_of(checkpoint, "model.safetensors", path);
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    static const off_t cut[] = {1, 4096, 100000};
    for (size_t i = 0; i < sizeof(cut) / sizeof(cut[0]); i++) {
        assert_int_equal(truncate(path, st.st_size - cut[i]), 0);
        // Also when the range's own tensors are all there.
        refused(checkpoint, (struct weights_range){0, 1, true, false}, STATUS_INVALID,
                "model.safetensors: tensor ", "truncated");
    }
    assert_int_equal(truncate(path, 100), 0);
    refused(checkpoint, whole, STATUS_INVALID, "in a file of 100", "truncated");
    assert_int_equal(truncate(path, 0), 0);
    refused(checkpoint, whole, STATUS_INVALID, "a file of 0 bytes", "model.safetensors");
}

static void weights_open_refuses_ranges_beyond_the_model(void **state) {
    struct checkpoint *checkpoint = *state;
    write_file(checkpoint, "model.safetensors", -1);
    static const struct weights_range ranges[] = {{0, 4, true, true},
                                                  {3, 1, false, false},
                                                  {4, 0, false, false},
                                                  {1, UINT32_MAX, true, true},
                                                  {UINT32_MAX, 1, true, true}};
    for (size_t i = 0; i < sizeof(ranges) / sizeof(ranges[0]); i++)
        refused(checkpoint, ranges[i], STATUS_INVALID, "layers ", "a model of 3 layers");
}

// -- checkpoints written by others ----------------------------------------------------------------

static void open_directory(const char *directory) {
    struct model_config config;
    struct error error;
    enum status status = model_config_read(directory, &config, &error);
    if (status != STATUS_OK) fail_msg("%s: %s", directory, error.text);
    for (uint32_t layer = 0; layer < config.layer_count; layer++) {
        struct weights_range range = {layer, 1, layer == 0, layer == config.layer_count - 1};
        struct weights *weights;
        status = weights_open(&(struct weights_source){directory, LOAD_FORMAT_SAFETENSORS}, &config,
                              &range, NULL, NULL, &weights, &error);
        if (status != STATUS_OK) fail_msg("%s: %s", directory, error.text);
        uint64_t least = model_layer_parameter_count(&config) * 2;
        assert_true(weights->weight_bytes >= least);
        assert_true(weights->mapped_bytes >= weights->weight_bytes);
        weights_close(weights);
    }
}

static void weights_open_reads_what_transformers_wrote(void **state) {
    (void)state;
    static const char parent[] = STAGECOACH_SOURCE_DIR "/tests/parity/testdata/checkpoints";
    DIR *directory = opendir(parent);
    if (directory == NULL) skip();
    unsigned count = 0;
    const struct dirent *entry;
    while ((entry = readdir(directory)) != NULL) {
        char path[sizeof(parent) + 512], config[sizeof(path) + 16];
        snprintf(path, sizeof(path), "%s/%s", parent, entry->d_name);
        snprintf(config, sizeof(config), "%s/config.json", path);
        if (entry->d_name[0] == '.' || access(config, F_OK) != 0) continue;
        open_directory(path);
        count++;
    }
    closedir(directory);
    assert_true(count > 0);
}

#define ON_CHECKPOINT(test)                                                                        \
    cmocka_unit_test_setup_teardown(test, checkpoint_setup, checkpoint_teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        ON_CHECKPOINT(weights_open_reads_every_tensor),
        ON_CHECKPOINT(weights_open_reads_biases),
        ON_CHECKPOINT(weights_open_keeps_the_dtype_of_each_tensor),
        ON_CHECKPOINT(weights_open_takes_matrices_of_one_row),
        ON_CHECKPOINT(weights_open_shares_a_tied_embedding),
        ON_CHECKPOINT(weights_open_takes_a_stage_with_only_the_head),
        ON_CHECKPOINT(weights_open_maps_only_the_pages_of_its_range),
        ON_CHECKPOINT(weights_open_leaves_out_pages_between_its_tensors),
        ON_CHECKPOINT(weights_open_opens_only_the_shards_of_its_range),
        ON_CHECKPOINT(weights_open_refuses_a_shard_without_its_tensor),
        ON_CHECKPOINT(weights_open_refuses_bad_indexes),
        ON_CHECKPOINT(weights_open_refuses_an_empty_directory),
        ON_CHECKPOINT(weights_open_refuses_missing_tensors),
        ON_CHECKPOINT(weights_open_refuses_wrong_shapes),
        ON_CHECKPOINT(weights_open_refuses_wrong_dtypes),
        ON_CHECKPOINT(weights_open_refuses_misaligned_tensors),
        ON_CHECKPOINT(weights_open_refuses_truncated_files),
        ON_CHECKPOINT(weights_open_refuses_ranges_beyond_the_model),
        cmocka_unit_test(weights_open_reads_what_transformers_wrote),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
