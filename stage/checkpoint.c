#include "stage/checkpoint.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <jansson.h>

#include "base/limits.h"
#include "base/memory.h"

static const char SINGLE_FILE[] = "model.safetensors";
static const char INDEX_FILE[] = "model.safetensors.index.json";

static enum status make_path(const struct checkpoint *checkpoint, const char *file_name,
                             char path_out[PATH_MAX], struct error *error) {
    int length = snprintf(path_out, PATH_MAX, "%s/%s", checkpoint->directory, file_name);
    if (length < 0 || length >= PATH_MAX)
        return error_set(error, STATUS_INVALID, "the model directory's path is too long");
    return STATUS_OK;
}

static enum status index_load(struct checkpoint *checkpoint, const char *path, const char *text,
                              size_t size_bytes, struct error *error) {
    json_error_t mistake = {.line = -1};
    checkpoint->index = json_loadb(text, size_bytes, JSON_REJECT_DUPLICATES, &mistake);
    if (checkpoint->index == NULL) {
        // jansson leaves the sentence empty when an allocation failed.
        if (mistake.text[0] == '\0' || json_error_code(&mistake) == json_error_out_of_memory)
            return error_set(error, STATUS_NO_MEMORY, "%.200s: no memory", path);
        return error_set(error, STATUS_INVALID, "%.200s: line %d, column %d: %s", path,
                         mistake.line, mistake.column, mistake.text);
    }
    if (!json_is_object(json_object_get(checkpoint->index, "weight_map")))
        return error_set(error, STATUS_INVALID, "%.200s: has no weight_map object", path);
    return STATUS_OK;
}

// As Hugging Face does: one file if it is there, otherwise the index.
enum status checkpoint_open(struct checkpoint *checkpoint, struct error *error) {
    char path[PATH_MAX];
    enum status status = make_path(checkpoint, SINGLE_FILE, path, error);
    if (status != STATUS_OK || access(path, F_OK) == 0) return status;
    status = make_path(checkpoint, INDEX_FILE, path, error);
    if (status != STATUS_OK) return status;
    char *text;
    size_t size_bytes;
    status = file_read(path, CHECKPOINT_INDEX_BYTES_MAX, &text, &size_bytes, error);
    if (status == STATUS_NOT_FOUND)
        return error_set(error, status, "%.200s: has neither %s nor %s", checkpoint->directory,
                         SINGLE_FILE, INDEX_FILE);
    if (status != STATUS_OK) return status == STATUS_EXHAUSTED ? STATUS_INVALID : status;
    status = index_load(checkpoint, path, text, size_bytes, error);
    free(text);
    return status;
}

// A name from the index is a file in the same directory, never a path out of it.
static bool is_plain_name(const char *name) {
    size_t length = strlen(name);
    if (length == 0 || length > NAME_MAX) return false;
    if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0) return false;
    for (size_t i = 0; i < length; i++)
        if (name[i] == '/' || (unsigned char)name[i] < 0x20 || name[i] == 0x7f) return false;
    return true;
}

// The name of the file that holds a tensor; borrowed from the index.
static enum status shard_name(const struct checkpoint *checkpoint, const char *tensor_name,
                              const char **name_out, struct error *error) {
    *name_out = SINGLE_FILE;
    if (checkpoint->index == NULL) return STATUS_OK;
    const json_t *map = json_object_get(checkpoint->index, "weight_map");
    const char *name = json_string_value(json_object_get(map, tensor_name));
    if (name == NULL)
        return error_set(error, STATUS_INVALID, "%.200s/%s: names no file for tensor %s",
                         checkpoint->directory, INDEX_FILE, tensor_name);
    if (!is_plain_name(name))
        return error_set(error, STATUS_INVALID,
                         "%.200s/%s: the file for tensor %s is not a plain file name",
                         checkpoint->directory, INDEX_FILE, tensor_name);
    *name_out = name;
    return STATUS_OK;
}

// Opens the file unless it is open already.
static enum status shard_open(struct checkpoint *checkpoint, const char *file_name,
                              uint32_t *shard_index_out, struct error *error) {
    for (uint32_t i = checkpoint->shard_count; i-- > 0;) {
        if (strcmp(checkpoint->shards[i].file_name, file_name) != 0) continue;
        *shard_index_out = i;
        return STATUS_OK;
    }
    if (checkpoint->shard_count == CHECKPOINT_SHARD_COUNT_MAX)
        return error_set(error, STATUS_INVALID, "%.200s: more than %d files", checkpoint->directory,
                         CHECKPOINT_SHARD_COUNT_MAX);
    char path[PATH_MAX];
    enum status status = make_path(checkpoint, file_name, path, error);
    if (status != STATUS_OK) return status;
    void *grown = memory_resize(checkpoint->shards, checkpoint->shard_count + 1,
                                sizeof(struct checkpoint_shard));
    if (grown != NULL) checkpoint->shards = grown;
    char *copy = strdup(file_name);
    if (grown == NULL || copy == NULL) {
        free(copy);
        return error_set(error, STATUS_NO_MEMORY, "%.200s: no memory", path);
    }
    struct checkpoint_shard shard = {.file_name = copy};
    status = safetensors_open(path, &shard.header, &shard.fd, error);
    if (status != STATUS_OK) {
        free(copy);
        return status;
    }
    *shard_index_out = checkpoint->shard_count;
    checkpoint->shards[checkpoint->shard_count++] = shard;
    return STATUS_OK;
}

enum status checkpoint_find(struct checkpoint *checkpoint, const char *tensor_name,
                            uint32_t *shard_index_out, const struct safetensors_tensor **tensor_out,
                            struct error *error) {
    const char *file_name;
    enum status status = shard_name(checkpoint, tensor_name, &file_name, error);
    if (status != STATUS_OK) return status;
    uint32_t shard_index = 0;
    status = shard_open(checkpoint, file_name, &shard_index, error);
    if (status != STATUS_OK) return status;
    const struct safetensors_tensor *found =
        safetensors_find(checkpoint->shards[shard_index].header, tensor_name);
    if (found == NULL)
        return error_set(error, STATUS_INVALID, "%.200s/%s: has no tensor %s%s%s",
                         checkpoint->directory, file_name, tensor_name,
                         checkpoint->index != NULL ? ", which it should by " : "",
                         checkpoint->index != NULL ? INDEX_FILE : "");
    *shard_index_out = shard_index;
    *tensor_out = found;
    return STATUS_OK;
}

void checkpoint_close(struct checkpoint *checkpoint) {
    for (uint32_t i = 0; i < checkpoint->shard_count; i++) {
        free(checkpoint->shards[i].file_name);
        safetensors_close(checkpoint->shards[i].header);
        close(checkpoint->shards[i].fd);
    }
    free(checkpoint->shards);
    json_decref(checkpoint->index);
}
