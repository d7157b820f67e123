#include "coordinator/vllm_tokenizer.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "base/log.h"
#include "vllm/common.pb-c.h"

// Of the names that Hugging Face gives to what tokenizers are made from, and to the templates of
// their chats: these, and all that end in one of the suffixes.
static const char *const names[] = {
    "tokenizer.json",
    "tokenizer_config.json",
    "config.json",
    "generation_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    "preprocessor_config.json",
};
static const char *const suffixes[] = {".model", ".tiktoken", ".jinja"};

static bool ends_in(const char *text, const char *suffix) {
    size_t text_bytes = strlen(text), suffix_bytes = strlen(suffix);
    return text_bytes > suffix_bytes && strcmp(text + text_bytes - suffix_bytes, suffix) == 0;
}

static int is_wanted(const struct dirent *entry) {
    if (entry->d_type == DT_DIR) return 0;
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        if (strcmp(entry->d_name, names[i]) == 0) return 1;
    for (size_t i = 0; i < sizeof(suffixes) / sizeof(suffixes[0]); i++)
        if (ends_in(entry->d_name, suffixes[i])) return 1;
    return 0;
}

static int by_name(const struct dirent **a, const struct dirent **b) {
    return strcmp((*a)->d_name, (*b)->d_name);
}

// Adds one file; *left_bytes is what all files may still have.
static enum status add_file(struct archive *archive, const char *model_path, const char *name,
                            size_t *left_bytes, struct error *error) {
    char path[PATH_MAX];
    if (snprintf(path, sizeof(path), "%s/%s", model_path, name) >= (int)sizeof(path))
        return error_set(error, STATUS_EXHAUSTED, "%s: its path is too long", name);
    char *data;
    size_t size_bytes;
    enum status status = file_read(path, *left_bytes, &data, &size_bytes, error);
    if (status != STATUS_OK) return status;
    *left_bytes -= size_bytes;
    status = archive_add(archive, name, data, size_bytes);
    free(data);
    return status == STATUS_OK ? status
                               : error_set(error, status, "%s: %s", path, status_name(status));
}

static enum status add_files(struct archive *archive, const char *model_path, struct error *error) {
    struct dirent **entries;
    int count = scandir(model_path, &entries, is_wanted, by_name);
    if (count < 0) return error_set(error, STATUS_IO, "%s: %s", model_path, strerror(errno));
    enum status status = STATUS_OK;
    if (count > VLLM_TOKENIZER_FILE_COUNT_MAX)
        status = error_set(error, STATUS_EXHAUSTED, "%s: %d tokenizer files, the limit is %d",
                           model_path, count, VLLM_TOKENIZER_FILE_COUNT_MAX);
    size_t left_bytes = VLLM_TOKENIZER_BYTES_MAX;
    for (int i = 0; i < count && status == STATUS_OK; i++)
        status = add_file(archive, model_path, entries[i]->d_name, &left_bytes, error);
    for (int i = 0; i < count; i++)
        free(entries[i]);
    free(entries);
    return status;
}

void vllm_tokenizer_init(struct vllm_tokenizer *tokenizer, const char *model_path) {
    *tokenizer = (struct vllm_tokenizer){0};
    struct archive *archive = &tokenizer->archive;
    archive_init(archive, VLLM_TOKENIZER_BYTES_MAX);
    enum status status = add_files(archive, model_path, &tokenizer->explanation);
    if (status == STATUS_OK) {
        status = archive_finish(archive);
        (void)error_set(&tokenizer->explanation, status, "%s", status_name(status));
    }
    if (status != STATUS_OK) {
        log_warn("gateways cannot get the tokenizer: %s", tokenizer->explanation.text);
        archive_fini(archive);
        return;
    }
    uint8_t digest[crypto_hash_sha256_BYTES];
    (void)crypto_hash_sha256(digest, (const uint8_t *)archive->bytes.data,
                             archive->bytes.size_bytes);
    (void)sodium_bin2hex(tokenizer->sha256, sizeof(tokenizer->sha256), digest, sizeof(digest));
}

void vllm_tokenizer_fini(struct vllm_tokenizer *tokenizer) {
    archive_fini(&tokenizer->archive);
}

void vllm_tokenizer_send(const struct vllm_tokenizer *tokenizer, struct rpc_call *call,
                         size_t *offset_bytes) {
    const struct buffer *bytes = &tokenizer->archive.bytes;
    if (bytes->size_bytes == 0) {
        rpc_call_end(call, RPC_FAILED_PRECONDITION, tokenizer->explanation.text);
        return;
    }
    while (*offset_bytes < bytes->size_bytes) {
        size_t left_bytes = bytes->size_bytes - *offset_bytes;
        bool is_last = left_bytes <= VLLM_TOKENIZER_CHUNK_BYTES;
        Smg__Grpc__Common__GetTokenizerChunk chunk = SMG__GRPC__COMMON__GET_TOKENIZER_CHUNK__INIT;
        chunk.data.data = (uint8_t *)bytes->data + *offset_bytes;
        chunk.data.len = is_last ? left_bytes : VLLM_TOKENIZER_CHUNK_BYTES;
        if (is_last) chunk.sha256 = (char *)tokenizer->sha256;
        if (!rpc_call_send(call, &chunk.base)) return;
        *offset_bytes += chunk.data.len;
    }
    rpc_call_end(call, RPC_OK, "");
}
