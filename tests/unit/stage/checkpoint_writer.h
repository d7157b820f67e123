// checkpoint_writer: small checkpoints of random-looking bytes for tests, in a directory of their
// own, with any tensor left out or made wrong.
#pragma once

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
#include <unistd.h>

#include <cmocka.h>

#include "proto/model_config.h"

static const struct model_config small = {
    .architecture = "LlamaForCausalLM",
    .layer_count = 3,
    .hidden_size = 64,
    .head_count = 4,
    .kv_head_count = 2,
    .head_size = 16,
    .ffn_size = 128,
    .vocabulary_size = 96,
};

struct item {
    char name[64];
    const char *dtype;
    uint32_t row_count; // 0: one dimension
    uint32_t column_count;
    int shard;
    bool left_out;
};

enum { ITEM_COUNT_MAX = 80, PATH_BYTES = 128 };

struct checkpoint {
    char directory[64];
    struct model_config config;
    struct item items[ITEM_COUNT_MAX];
    size_t item_count;
    unsigned header_padding; // spaces; the header is otherwise padded to a multiple of 8
};

static struct item *add(struct checkpoint *checkpoint, uint32_t row_count, uint32_t column_count,
                        const char *name) {
    assert_true(checkpoint->item_count < ITEM_COUNT_MAX);
    struct item *item = &checkpoint->items[checkpoint->item_count++];
    *item = (struct item){.dtype = "F32", .row_count = row_count, .column_count = column_count};
    snprintf(item->name, sizeof(item->name), "%s", name);
    return item;
}

static void add_layer(struct checkpoint *checkpoint, uint32_t layer) {
    const struct model_config *config = &checkpoint->config;
    uint32_t hidden = config->hidden_size, ffn = config->ffn_size;
    uint32_t query = config->head_count * config->head_size;
    uint32_t kv = config->kv_head_count * config->head_size;
    const struct {
        const char *name;
        uint32_t row_count, column_count;
        bool present;
    } tensors[] = {
        {"input_layernorm.weight", 0, hidden, true},
        {"mlp.down_proj.weight", hidden, ffn, true},
        {"mlp.down_proj.bias", 0, hidden, config->mlp_bias},
        {"mlp.gate_proj.weight", ffn, hidden, true},
        {"mlp.gate_proj.bias", 0, ffn, config->mlp_bias},
        {"mlp.up_proj.weight", ffn, hidden, true},
        {"mlp.up_proj.bias", 0, ffn, config->mlp_bias},
        {"post_attention_layernorm.weight", 0, hidden, true},
        {"self_attn.k_proj.weight", kv, hidden, true},
        {"self_attn.k_proj.bias", 0, kv, config->attention_bias},
        {"self_attn.o_proj.weight", hidden, query, true},
        {"self_attn.o_proj.bias", 0, hidden, config->attention_bias},
        {"self_attn.q_proj.weight", query, hidden, true},
        {"self_attn.q_proj.bias", 0, query, config->attention_bias},
        {"self_attn.v_proj.weight", kv, hidden, true},
        {"self_attn.v_proj.bias", 0, kv, config->attention_bias},
    };
    for (size_t i = 0; i < sizeof(tensors) / sizeof(tensors[0]); i++) {
        char name[64];
        snprintf(name, sizeof(name), "model.layers.%" PRIu32 ".%s", layer, tensors[i].name);
        if (tensors[i].present)
            add(checkpoint, tensors[i].row_count, tensors[i].column_count, name)->shard =
                (int)layer;
    }
}

// Fills in the tensors of a model; layer N is of shard N, the outer ones are of the last and first.
static inline void fill(struct checkpoint *checkpoint, const struct model_config *config) {
    checkpoint->config = *config;
    checkpoint->item_count = 0;
    checkpoint->header_padding = 0;
    int last = (int)config->layer_count - 1;
    add(checkpoint, config->vocabulary_size, config->hidden_size, "model.embed_tokens.weight");
    for (uint32_t i = 0; i < config->layer_count; i++)
        add_layer(checkpoint, i);
    add(checkpoint, 0, config->hidden_size, "model.norm.weight")->shard = last;
    if (!config->tied_embeddings)
        add(checkpoint, config->vocabulary_size, config->hidden_size, "lm_head.weight")->shard =
            last;
    add(checkpoint, 4, 4, "unused.weight")->dtype = "I64";
}

static inline struct item *item_of(struct checkpoint *checkpoint, const char *name) {
    for (size_t i = 0; i < checkpoint->item_count; i++)
        if (strcmp(checkpoint->items[i].name, name) == 0) return &checkpoint->items[i];
    fail_msg("no tensor %s", name);
    return NULL;
}

static uint64_t element_bytes(const struct item *item) {
    if (strcmp(item->dtype, "I64") == 0 || strcmp(item->dtype, "F64") == 0) return 8;
    return strcmp(item->dtype, "F32") == 0 ? 4 : 2;
}

static uint64_t item_bytes(const struct item *item) {
    return element_bytes(item) * (item->row_count == 0 ? 1 : item->row_count) * item->column_count;
}

// Byte `index` of a tensor, another one in each tensor: the seed is made from its name.
static unsigned item_seed(const char *name) {
    unsigned seed = 17;
    for (; *name != '\0'; name++)
        seed = seed * 31 + (unsigned char)*name;
    return seed;
}

static inline unsigned char item_byte(unsigned seed, uint64_t index) {
    return (unsigned char)((seed + index * 7 + index / 251) >> (index % 3));
}

static void path_of(const struct checkpoint *checkpoint, const char *name, char out[PATH_BYTES]) {
    assert_true(snprintf(out, PATH_BYTES, "%s/%s", checkpoint->directory, name) < PATH_BYTES);
}

static bool is_in(const struct item *item, int shard) {
    return !item->left_out && (shard < 0 || item->shard == shard);
}

static void write_header(const struct checkpoint *checkpoint, int shard, FILE *out) {
    char *header = NULL;
    size_t size_bytes;
    FILE *text = open_memstream(&header, &size_bytes);
    assert_non_null(text);
    uint64_t offset = 0;
    fprintf(text, "{\"__metadata__\":{\"format\":\"pt\"}");
    for (size_t i = 0; i < checkpoint->item_count; i++) {
        const struct item *item = &checkpoint->items[i];
        if (!is_in(item, shard)) continue;
        fprintf(text, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[", item->name, item->dtype);
        if (item->row_count != 0) fprintf(text, "%" PRIu32 ",", item->row_count);
        fprintf(text, "%" PRIu32 "],\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}",
                item->column_count, offset, offset + item_bytes(item));
        offset += item_bytes(item);
    }
    fprintf(text, "}");
    fflush(text);
    for (size_t i = size_bytes % 8; i % 8 != 0; i++)
        fputc(' ', text);
    for (unsigned i = 0; i < checkpoint->header_padding; i++)
        fputc(' ', text);
    fclose(text);
    for (int i = 0; i < 8; i++)
        fputc((int)(size_bytes >> (8 * i) & 0xff), out);
    fwrite(header, 1, size_bytes, out);
    free(header);
}

// shard < 0: all tensors.
static inline void write_file(const struct checkpoint *checkpoint, const char *name, int shard) {
    char path[PATH_BYTES];
    path_of(checkpoint, name, path);
    FILE *out = fopen(path, "w");
    assert_non_null(out);
    write_header(checkpoint, shard, out);
    for (size_t i = 0; i < checkpoint->item_count; i++) {
        const struct item *item = &checkpoint->items[i];
        if (!is_in(item, shard)) continue;
        unsigned seed = item_seed(item->name);
        uint64_t size_bytes = item_bytes(item);
        for (uint64_t j = 0; j < size_bytes; j++)
            putc_unlocked(item_byte(seed, j), out);
    }
    assert_int_equal(fclose(out), 0);
}

static inline void write_text(const struct checkpoint *checkpoint, const char *name,
                              const char *text) {
    char path[PATH_BYTES];
    path_of(checkpoint, name, path);
    FILE *out = fopen(path, "w");
    assert_non_null(out);
    assert_true(fputs(text, out) >= 0);
    assert_int_equal(fclose(out), 0);
}

static void shard_file_name(int shard, char out[32]) {
    snprintf(out, 32, "model-%d.safetensors", shard);
}

static inline void write_sharded(const struct checkpoint *checkpoint) {
    char path[PATH_BYTES], name[32];
    path_of(checkpoint, "model.safetensors.index.json", path);
    FILE *index = fopen(path, "w");
    assert_non_null(index);
    fprintf(index, "{\"metadata\": {\"total_size\": 1}, \"weight_map\": {\"x\": \"y\"");
    for (size_t i = 0; i < checkpoint->item_count; i++) {
        shard_file_name(checkpoint->items[i].shard, name);
        fprintf(index, ",\n\"%s\": \"%s\"", checkpoint->items[i].name, name);
    }
    fprintf(index, "}}");
    assert_int_equal(fclose(index), 0);
    for (int shard = 0; shard < (int)checkpoint->config.layer_count; shard++) {
        shard_file_name(shard, name);
        write_file(checkpoint, name, shard);
    }
}

static inline int checkpoint_setup(void **state) {
    struct checkpoint *checkpoint = calloc(1, sizeof(*checkpoint));
    if (checkpoint == NULL) return -1;
    snprintf(checkpoint->directory, sizeof(checkpoint->directory), "/tmp/weights_test.XXXXXX");
    if (mkdtemp(checkpoint->directory) == NULL) return -1;
    fill(checkpoint, &small);
    *state = checkpoint;
    return 0;
}

static void empty_directory(const struct checkpoint *checkpoint) {
    DIR *directory = opendir(checkpoint->directory);
    assert_non_null(directory);
    const struct dirent *entry;
    while ((entry = readdir(directory)) != NULL) {
        char path[PATH_BYTES + 256];
        snprintf(path, sizeof(path), "%s/%s", checkpoint->directory, entry->d_name);
        if (entry->d_name[0] != '.' && unlink(path) != 0) rmdir(path);
    }
    closedir(directory);
}

static inline int checkpoint_teardown(void **state) {
    struct checkpoint *checkpoint = *state;
    empty_directory(checkpoint);
    int result = rmdir(checkpoint->directory);
    free(checkpoint);
    return result;
}

// -- what is left behind
// ---------------------------------------------------------------------------

static inline unsigned count_open_files(void) {
    unsigned count = 0;
    DIR *directory = opendir("/proc/self/fd");
    assert_non_null(directory);
    while (readdir(directory) != NULL)
        count++;
    closedir(directory);
    return count;
}

struct mapped {
    uint64_t size_bytes;
    uint64_t resident_bytes;
    uint64_t offset_min; // in the file
    uint64_t offset_max;
};

// What this process has mapped of files whose path has `path` in it.
static inline struct mapped mapped_of(const char *path) {
    struct mapped mapped = {.offset_min = UINT64_MAX};
    bool ours = false;
    char *line = NULL;
    size_t capacity = 0;
    FILE *maps = fopen("/proc/self/smaps", "r");
    assert_non_null(maps);
    while (getline(&line, &capacity, maps) > 0) {
        uint64_t begin, end, offset, resident_kilobytes;
        char flags[8];
        if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %7s %" SCNx64, &begin, &end, flags, &offset) ==
            4) {
            ours = strstr(line, path) != NULL;
            if (!ours) continue;
            assert_string_equal(flags, "r--s");
            mapped.size_bytes += end - begin;
            if (offset < mapped.offset_min) mapped.offset_min = offset;
            if (offset + end - begin > mapped.offset_max) mapped.offset_max = offset + end - begin;
        } else if (ours && sscanf(line, "Rss: %" SCNu64, &resident_kilobytes) == 1) {
            mapped.resident_bytes += resident_kilobytes * 1024;
        }
    }
    free(line);
    fclose(maps);
    return mapped;
}
