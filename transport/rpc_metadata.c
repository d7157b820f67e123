#include "transport/rpc_metadata.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include <grpc/support/alloc.h>

#include "base/limits.h"

struct rpc_texts {
    size_t count;
    struct rpc_metadata entries[]; // the texts follow the last of them
};

static bool is_binary(const char *key) {
    return grpc_is_binary_header(grpc_slice_from_static_string(key)) != 0;
}

static bool is_kept(const grpc_metadata *entry) {
    return grpc_is_binary_header(entry->key) || memchr(GRPC_SLICE_START_PTR(entry->value), '\0',
                                                       GRPC_SLICE_LENGTH(entry->value)) == NULL;
}

static const char *append_text(char **at, grpc_slice slice) {
    char *text = *at;
    size_t size_bytes = GRPC_SLICE_LENGTH(slice);
    memcpy(text, GRPC_SLICE_START_PTR(slice), size_bytes);
    text[size_bytes] = '\0';
    *at += size_bytes + 1;
    return text;
}

struct rpc_texts *rpc_texts_copy(const grpc_metadata_array *received) {
    size_t count = 0, text_bytes = 0;
    for (size_t i = 0; i < received->count; i++) {
        const grpc_metadata *entry = &received->metadata[i];
        if (!is_kept(entry)) continue;
        count++;
        text_bytes += GRPC_SLICE_LENGTH(entry->key) + GRPC_SLICE_LENGTH(entry->value) + 2;
    }
    if (count == 0) return NULL;
    struct rpc_texts *texts = malloc(sizeof(*texts) + count * sizeof(*texts->entries) + text_bytes);
    if (texts == NULL) return NULL;
    texts->count = 0;
    char *at = (char *)&texts->entries[count];
    for (size_t i = 0; i < received->count; i++) {
        const grpc_metadata *entry = &received->metadata[i];
        if (!is_kept(entry)) continue;
        struct rpc_metadata *copy = &texts->entries[texts->count++];
        copy->key = append_text(&at, entry->key);
        copy->value = append_text(&at, entry->value);
        copy->value_bytes = GRPC_SLICE_LENGTH(entry->value);
    }
    return texts;
}

void rpc_texts_free(struct rpc_texts *texts) {
    free(texts);
}

static const struct rpc_metadata *find(const struct rpc_texts *texts, const char *key) {
    for (size_t i = 0; texts != NULL && i < texts->count; i++) {
        if (strcmp(texts->entries[i].key, key) == 0) return &texts->entries[i];
    }
    return NULL;
}

const char *rpc_texts_find(const struct rpc_texts *texts, const char *key) {
    const struct rpc_metadata *entry = is_binary(key) ? NULL : find(texts, key);
    return entry == NULL ? NULL : entry->value;
}

const void *rpc_texts_find_bytes(const struct rpc_texts *texts, const char *key,
                                 size_t *size_bytes_out) {
    const struct rpc_metadata *entry = is_binary(key) ? find(texts, key) : NULL;
    if (entry == NULL) return NULL;
    *size_bytes_out = entry->value_bytes;
    return entry->value;
}

static bool is_legal(const struct rpc_metadata *entry) {
    if (!grpc_header_key_is_legal(grpc_slice_from_static_string(entry->key))) return false;
    return is_binary(entry->key) ||
           grpc_header_nonbin_value_is_legal(grpc_slice_from_static_string(entry->value));
}

static grpc_slice copy_of_value(const struct rpc_metadata *entry) {
    size_t size_bytes = is_binary(entry->key) ? entry->value_bytes : strlen(entry->value);
    return grpc_slice_from_copied_buffer(entry->value, size_bytes);
}

static void reserve(grpc_metadata_array *array, size_t capacity) {
    if (array->capacity >= capacity) return;
    array->capacity = capacity;
    // Aborts when there is no memory, as everything in gRPC.
    array->metadata = gpr_realloc(array->metadata, capacity * sizeof(*array->metadata));
}

enum status rpc_metadata_append(grpc_metadata_array *array, const struct rpc_metadata *entries,
                                size_t entry_count) {
    if (entry_count == 0) return STATUS_OK;
    if (entry_count > RPC_METADATA_COUNT_MAX - array->count) return STATUS_EXHAUSTED;
    for (size_t i = 0; i < entry_count; i++) {
        if (!is_legal(&entries[i])) return STATUS_INVALID;
    }
    reserve(array, array->count + entry_count);
    for (size_t i = 0; i < entry_count; i++) {
        array->metadata[array->count++] =
            (grpc_metadata){.key = grpc_slice_from_copied_string(entries[i].key),
                            .value = copy_of_value(&entries[i])};
    }
    return STATUS_OK;
}

void rpc_metadata_take(grpc_metadata_array *array, const char *key, grpc_slice value) {
    reserve(array, array->count + 1);
    array->metadata[array->count++] =
        (grpc_metadata){.key = grpc_slice_from_static_string(key), .value = value};
}

void rpc_metadata_fini(grpc_metadata_array *array) {
    for (size_t i = 0; i < array->count; i++) {
        grpc_slice_unref(array->metadata[i].key);
        grpc_slice_unref(array->metadata[i].value);
    }
    grpc_metadata_array_destroy(array);
}
