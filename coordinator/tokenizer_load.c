// Reads tokenizer.json: fields, the model, added tokens, and the file as a whole.
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "coordinator/tokenizer_loader.h"

// -- failures and fields --------------------------------------------------------------------------

void loader_fail(struct loader *loader, enum status status, const char *format, ...) {
    if (loader->status != STATUS_OK || loader->json.failed) return;
    char sentence[sizeof(loader->json.error.text)];
    va_list args;
    va_start(args, format);
    vsnprintf(sentence, sizeof(sentence), format, args);
    va_end(args);
    loader->status = status;
    json_fail(&loader->json, "%s", sentence);
}

void loader_fields(struct loader *loader, const char *where, const struct loader_field *fields,
                   size_t field_count) {
    for (size_t i = 0; i < field_count; i++)
        *fields[i].mark_out = MARK_NONE;
    struct json *json = &loader->json;
    struct json_text key;
    json_object_begin(json);
    while (json_object_next(json, &key)) {
        for (size_t i = 0; i < field_count; i++) {
            if (!json_text_equals(key, fields[i].name)) continue;
            if (*fields[i].mark_out != MARK_NONE)
                loader_fail(loader, STATUS_INVALID, "%s: \"%s\" comes twice", where,
                            fields[i].name);
            *fields[i].mark_out = json_mark(json);
        }
        json_skip(json);
    }
}

struct loader_name loader_name(struct json_text text) {
    struct loader_name name = {.text = ""};
    if (text.size_bytes >= sizeof(name.text)) return name;
    memcpy(name.text, text.data, text.size_bytes);
    return name;
}

bool loader_name_equals(const struct loader_name *name, const char *literal) {
    return strcmp(name->text, literal) == 0;
}

bool loader_go_to(struct loader *loader, size_t mark) {
    if (mark == MARK_NONE || loader->json.failed) return false;
    json_return(&loader->json, mark);
    return !json_take_null(&loader->json) && !loader->json.failed;
}

bool loader_bool(struct loader *loader, size_t mark, bool otherwise) {
    return loader_go_to(loader, mark) ? json_take_bool(&loader->json) : otherwise;
}

// -- model ----------------------------------------------------------------------------------------

struct model_marks {
    size_t type, dropout, unknown, prefix, suffix, fuse_unknown, byte_fallback, ignore_merges;
    size_t vocab, merges;
};

static void read_vocab(struct loader *loader, size_t mark) {
    if (!loader_go_to(loader, mark)) {
        loader_fail(loader, STATUS_INVALID, "model: \"vocab\" is missing");
        return;
    }
    struct json *json = &loader->json;
    struct json_text key;
    json_object_begin(json);
    while (json_object_next(json, &key)) {
        // Reading a number leaves the key where it is.
        uint32_t id = (uint32_t)json_take_integer(json, 0, MODEL_VOCABULARY_SIZE_MAX - 1);
        if (json->failed) return;
        struct error error;
        enum status status = vocabulary_add(&loader->tokenizer->vocabulary, key.data,
                                            key.size_bytes, id, true, false, &error);
        if (status != STATUS_OK) loader_fail(loader, status, "model.vocab: %s", error.text);
    }
    vocabulary_finish(&loader->tokenizer->vocabulary);
}

static void add_merge(struct loader *loader, const char *left, size_t left_bytes, const char *right,
                      size_t right_bytes, uint32_t rank) {
    struct error error;
    enum status status = vocabulary_add_merge(&loader->tokenizer->vocabulary, left, left_bytes,
                                              right, right_bytes, rank, &error);
    if (status != STATUS_OK) loader_fail(loader, status, "model.merges: %s", error.text);
}

// "left right"
static void read_merge_string(struct loader *loader, uint32_t rank) {
    struct json_text text = json_take_string(&loader->json);
    if (loader->json.failed) return;
    const char *end = text.data + text.size_bytes;
    const char *space = memchr(text.data, ' ', text.size_bytes);
    if (space == NULL || memchr(space + 1, ' ', (size_t)(end - space - 1)) != NULL) {
        loader_fail(loader, STATUS_INVALID, "model.merges: merge %u is not two tokens and a space",
                    rank);
        return;
    }
    add_merge(loader, text.data, (size_t)(space - text.data), space + 1, (size_t)(end - space - 1),
              rank);
}

// ["left", "right"]
static void read_merge_pair(struct loader *loader, uint32_t rank) {
    struct json *json = &loader->json;
    char left[TOKENIZER_TOKEN_BYTES_MAX];
    struct json_text right = {"", 0};
    size_t count = 0, left_bytes = 0;
    json_array_begin(json);
    while (json_array_next(json) && count < 3) {
        struct json_text text = json_take_string(json);
        if (json->failed) return;
        if (count == 0 && text.size_bytes > sizeof(left)) {
            loader_fail(loader, STATUS_INVALID, "model.merges: merge %u has a token of %zu bytes",
                        rank, text.size_bytes);
            return;
        }
        if (count == 0) memcpy(left, text.data, left_bytes = text.size_bytes);
        if (count == 1) right = text; // stays while only the end of the list is read
        count++;
    }
    if (count != 2)
        loader_fail(loader, STATUS_INVALID, "model.merges: merge %u is not a pair", rank);
    if (!json->failed) add_merge(loader, left, left_bytes, right.data, right.size_bytes, rank);
}

static void read_merges(struct loader *loader, size_t mark) {
    if (!loader_go_to(loader, mark)) {
        loader_fail(loader, STATUS_INVALID, "model: \"merges\" is missing");
        return;
    }
    struct json *json = &loader->json;
    uint32_t rank = 0;
    json_array_begin(json);
    while (json_array_next(json)) {
        if (rank == TOKENIZER_MERGE_COUNT_MAX) {
            loader_fail(loader, STATUS_EXHAUSTED, "model.merges: more than %d",
                        TOKENIZER_MERGE_COUNT_MAX);
            return;
        }
        if (json_peek(json) == JSON_KIND_ARRAY)
            read_merge_pair(loader, rank);
        else
            read_merge_string(loader, rank);
        rank++;
    }
}

static void refuse_true(struct loader *loader, size_t mark, const char *name) {
    if (loader_bool(loader, mark, false))
        loader_fail(loader, STATUS_UNSUPPORTED,
                    "model.%s: true is not supported (not byte-level BPE)", name);
}

static void refuse_text(struct loader *loader, size_t mark, const char *name) {
    if (!loader_go_to(loader, mark)) return;
    struct json_text text = json_take_string(&loader->json);
    if (text.size_bytes > 0)
        loader_fail(loader, STATUS_UNSUPPORTED, "model.%s: \"%.*s\" is not supported, only none",
                    name, (int)(text.size_bytes < 32 ? text.size_bytes : 32), text.data);
}

// Dropout makes encoding random; only its absence, written in any way, is meant for serving.
static void refuse_dropout(struct loader *loader, size_t mark) {
    if (!loader_go_to(loader, mark)) return;
    struct json *json = &loader->json;
    size_t start = json_mark(json);
    json_skip(json);
    struct json_text text = {json->text + start, json->offset - start};
    if (!json_text_equals(text, "0") && !json_text_equals(text, "0.0"))
        loader_fail(loader, STATUS_UNSUPPORTED, "model.dropout: only null is supported");
}

// A name that is not in the vocabulary matters only when there are bytes without a token.
static void read_unknown(struct loader *loader, size_t mark) {
    struct tokenizer *tokenizer = loader->tokenizer;
    if (!loader_go_to(loader, mark)) return;
    struct json_text text = json_take_string(&loader->json);
    if (loader->json.failed) return;
    if (vocabulary_find(&tokenizer->vocabulary, text.data, text.size_bytes,
                        &tokenizer->bpe.unknown_id))
        return;
    for (int i = 0; i < 256; i++)
        if (tokenizer->vocabulary.byte_ids[i] == ID_NONE)
            loader_fail(
                loader, STATUS_INVALID,
                "model.unk_token: \"%.*s\" is not in the vocabulary, and byte 0x%02x neither",
                (int)(text.size_bytes < 64 ? text.size_bytes : 64), text.data, (unsigned)i);
}

static void read_model(struct loader *loader, size_t mark) {
    if (!loader_go_to(loader, mark)) {
        loader_fail(loader, STATUS_INVALID, "\"model\" is missing");
        return;
    }
    struct model_marks marks;
    const struct loader_field fields[] = {{"type", &marks.type},
                                          {"dropout", &marks.dropout},
                                          {"unk_token", &marks.unknown},
                                          {"continuing_subword_prefix", &marks.prefix},
                                          {"end_of_word_suffix", &marks.suffix},
                                          {"fuse_unk", &marks.fuse_unknown},
                                          {"byte_fallback", &marks.byte_fallback},
                                          {"ignore_merges", &marks.ignore_merges},
                                          {"vocab", &marks.vocab},
                                          {"merges", &marks.merges}};
    loader_fields(loader, "model", fields, sizeof(fields) / sizeof(fields[0]));
    // The oldest files of GPT-2 have no type.
    if (loader_go_to(loader, marks.type)) {
        struct loader_name type = loader_name(json_take_string(&loader->json));
        if (!loader_name_equals(&type, "BPE"))
            loader_fail(loader, STATUS_UNSUPPORTED, "model: type \"%s\" is not supported, only BPE",
                        type.text);
    }
    refuse_true(loader, marks.byte_fallback, "byte_fallback");
    refuse_text(loader, marks.prefix, "continuing_subword_prefix");
    refuse_text(loader, marks.suffix, "end_of_word_suffix");
    refuse_dropout(loader, marks.dropout);
    struct bpe_options *options = &loader->tokenizer->bpe;
    options->ignore_merges = loader_bool(loader, marks.ignore_merges, false);
    options->fuse_unknown = loader_bool(loader, marks.fuse_unknown, false);
    options->unknown_id = ID_NONE;
    read_vocab(loader, marks.vocab);
    read_unknown(loader, marks.unknown);
    read_merges(loader, marks.merges);
}

// -- added tokens ---------------------------------------------------------------------------------

// One element of added_tokens as it is read; normalized is the default unless it is special.
struct added_fields {
    struct added_token token;
    bool has_id, has_content, has_normalized;
    size_t content_bytes;
    char content[TOKENIZER_TOKEN_BYTES_MAX];
};

static void read_added_content(struct loader *loader, struct added_fields *fields) {
    struct json_text text = json_take_string(&loader->json);
    if (text.size_bytes > sizeof(fields->content)) {
        loader_fail(loader, STATUS_INVALID, "added_tokens: content of %zu bytes, the limit is %d",
                    text.size_bytes, TOKENIZER_TOKEN_BYTES_MAX);
        return;
    }
    memcpy(fields->content, text.data, text.size_bytes);
    fields->content_bytes = text.size_bytes;
    fields->has_content = true;
}

static void read_added_field(struct loader *loader, struct json_text key,
                             struct added_fields *fields) {
    struct json *json = &loader->json;
    struct added_token *token = &fields->token;
    if (json_text_equals(key, "id")) {
        token->id = (uint32_t)json_take_integer(json, 0, MODEL_VOCABULARY_SIZE_MAX - 1);
        fields->has_id = true;
    } else if (json_text_equals(key, "content")) {
        read_added_content(loader, fields);
    } else if (json_text_equals(key, "single_word")) {
        token->single_word = json_take_bool(json);
    } else if (json_text_equals(key, "lstrip")) {
        token->lstrip = json_take_bool(json);
    } else if (json_text_equals(key, "rstrip")) {
        token->rstrip = json_take_bool(json);
    } else if (json_text_equals(key, "special")) {
        token->special = json_take_bool(json);
    } else if (json_text_equals(key, "normalized")) {
        token->normalized = json_take_bool(json);
        fields->has_normalized = true;
    } else {
        json_skip(json);
    }
}

static void read_added_token(struct loader *loader) {
    struct added_fields fields;
    fields.token = (struct added_token){0};
    fields.has_id = fields.has_content = fields.has_normalized = false;
    struct json_text key;
    json_object_begin(&loader->json);
    while (json_object_next(&loader->json, &key))
        read_added_field(loader, key, &fields);
    if (!fields.has_id || !fields.has_content)
        loader_fail(loader, STATUS_INVALID, "added_tokens: \"%s\" is missing",
                    fields.has_id ? "content" : "id");
    if (loader->json.failed) return;
    if (!fields.has_normalized) fields.token.normalized = !fields.token.special;
    struct tokenizer *tokenizer = loader->tokenizer;
    struct error error;
    enum status status =
        vocabulary_add(&tokenizer->vocabulary, fields.content, fields.content_bytes,
                       fields.token.id, false, fields.token.special, &error);
    if (status != STATUS_OK)
        loader_fail(loader, status, "added_tokens: %s", error.text);
    else if (added_append(&tokenizer->added, &fields.token) != STATUS_OK)
        loader_fail(loader, STATUS_NO_MEMORY, "added_tokens: no memory");
}

static void read_added_tokens(struct loader *loader, size_t mark) {
    struct tokenizer *tokenizer = loader->tokenizer;
    if (loader_go_to(loader, mark)) {
        json_array_begin(&loader->json);
        while (json_array_next(&loader->json)) {
            if (tokenizer->added.token_count == TOKENIZER_ADDED_TOKEN_COUNT_MAX)
                loader_fail(loader, STATUS_EXHAUSTED, "added_tokens: more than %d",
                            TOKENIZER_ADDED_TOKEN_COUNT_MAX);
            read_added_token(loader);
        }
    }
    if (loader->json.failed) return;
    if (added_finish(&tokenizer->added, &tokenizer->vocabulary, tokenizer->normalize) != STATUS_OK)
        loader_fail(loader, STATUS_NO_MEMORY, "added_tokens: no memory");
}

// -- the whole ------------------------------------------------------------------------------------

struct file_marks {
    size_t model, added_tokens, normalizer, pre_tokenizer, post_processor, decoder;
};

static void read_file(struct loader *loader) {
    struct file_marks marks;
    const struct loader_field fields[] = {{"model", &marks.model},
                                          {"added_tokens", &marks.added_tokens},
                                          {"normalizer", &marks.normalizer},
                                          {"pre_tokenizer", &marks.pre_tokenizer},
                                          {"post_processor", &marks.post_processor},
                                          {"decoder", &marks.decoder}};
    loader_fields(loader, "the file", fields, sizeof(fields) / sizeof(fields[0]));
    json_end(&loader->json);
    // The small parts first, so that an unsupported kind of tokenizer is told by its name and not
    // by a detail of its vocabulary.
    loader_read_normalizer(loader, marks.normalizer);
    loader_read_pre_tokenizer(loader, marks.pre_tokenizer);
    read_model(loader, marks.model);
    loader_read_decoder(loader, marks.decoder);
    struct tokenizer *tokenizer = loader->tokenizer;
    if (tokenizer->split_count == 0 ||
        tokenizer->splits[tokenizer->split_count - 1].kind != SPLIT_BYTE_LEVEL)
        loader_fail(loader, STATUS_UNSUPPORTED,
                    "pre_tokenizer: only those that end with ByteLevel are supported");
    read_added_tokens(loader, marks.added_tokens);
    loader_read_post_processor(loader, marks.post_processor);
}

enum status tokenizer_load(struct tokenizer *tokenizer, const char *name, const char *text,
                           size_t size_bytes, struct error *error) {
    if (size_bytes > TOKENIZER_FILE_BYTES_MAX)
        return error_set(error, STATUS_EXHAUSTED, "%s: %zu bytes, the limit is %d", name,
                         size_bytes, TOKENIZER_FILE_BYTES_MAX);
    struct loader loader = {.tokenizer = tokenizer, .status = STATUS_OK};
    json_init(&loader.json, text, size_bytes);
    read_file(&loader);
    enum status status = loader.status;
    if (loader.json.failed) {
        if (status == STATUS_OK) status = STATUS_INVALID;
        error_set(error, status, "%s: %s", name, loader.json.error.text);
    }
    json_fini(&loader.json);
    return status;
}
