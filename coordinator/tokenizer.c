#include "coordinator/tokenizer.h"

#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/utf8.h"
#include "coordinator/detokenizer.h"
#include "coordinator/tokenizer_parts.h"

// -- opening --------------------------------------------------------------------------------------

enum status tokenizer_open_memory(const char *name, const char *text, size_t size_bytes,
                                  struct tokenizer **tokenizer_out, struct error *error) {
    struct tokenizer *tokenizer = memory_array(1, sizeof(*tokenizer));
    if (tokenizer == NULL)
        return error_set(error, STATUS_NO_MEMORY, "%s: no memory for a tokenizer", name);
    vocabulary_init(&tokenizer->vocabulary);
    added_init(&tokenizer->added);
    enum status status = tokenizer_load(tokenizer, name, text, size_bytes, error);
    if (status != STATUS_OK) {
        tokenizer_close(tokenizer);
        return status;
    }
    *tokenizer_out = tokenizer;
    return STATUS_OK;
}

enum status tokenizer_open(const char *path, struct tokenizer **tokenizer_out,
                           struct error *error) {
    char *text;
    size_t size_bytes;
    enum status status = file_read(path, TOKENIZER_FILE_BYTES_MAX, &text, &size_bytes, error);
    if (status != STATUS_OK) return status;
    status = tokenizer_open_memory(path, text, size_bytes, tokenizer_out, error);
    free(text);
    return status;
}

void tokenizer_close(struct tokenizer *tokenizer) {
    if (tokenizer == NULL) return;
    for (size_t i = 0; i < tokenizer->split_count; i++)
        pcre2_code_free(tokenizer->splits[i].code);
    added_fini(&tokenizer->added);
    vocabulary_fini(&tokenizer->vocabulary);
    free(tokenizer);
}

// -- encoding -------------------------------------------------------------------------------------

// One call of tokenizer_encode().
struct encoder {
    const struct tokenizer *tokenizer;
    bool parse_special;
    uint32_t *ids;
    size_t id_count, id_count_max;
    struct matcher matcher;
    struct bpe bpe;
    struct buffer prefixed; // a piece with a space before it
    struct error *error;
};

static enum status give_id(struct encoder *encoder, uint32_t id) {
    if (encoder->id_count == encoder->id_count_max)
        return error_set(encoder->error, STATUS_EXHAUSTED, "the text has more than %zu tokens",
                         encoder->id_count_max);
    encoder->ids[encoder->id_count++] = id;
    return STATUS_OK;
}

static enum status no_memory(struct encoder *encoder) {
    return error_set(encoder->error, STATUS_NO_MEMORY, "no memory to tokenize a text");
}

static enum status encode_word(struct encoder *encoder, const char *word, size_t size_bytes) {
    const struct tokenizer *tokenizer = encoder->tokenizer;
    struct bpe *bpe = &encoder->bpe;
    enum status status = bpe_word(bpe, &tokenizer->vocabulary, &tokenizer->bpe, word, size_bytes);
    if (status != STATUS_OK) return no_memory(encoder);
    for (size_t i = 0; i < bpe->symbol_count; i++) {
        if (bpe->symbols[i].id == ID_NONE) continue;
        status = give_id(encoder, bpe->symbols[i].id);
        if (status != STATUS_OK) return status;
    }
    return STATUS_OK;
}

// Takes a piece through the steps from `step` on, then to BPE.
static enum status encode_piece(struct encoder *encoder, size_t step, const char *text,
                                size_t size_bytes);

static enum status find(struct encoder *encoder, const struct split *split, const char *text,
                        size_t size_bytes, size_t offset, bool *found_out, size_t *start_out,
                        size_t *end_out) {
    enum status status = matcher_find(&encoder->matcher, split->code, text, size_bytes, offset,
                                      found_out, start_out, end_out);
    if (status == STATUS_NO_MEMORY) return no_memory(encoder);
    if (status == STATUS_OK) return STATUS_OK;
    return error_set(encoder->error, status,
                     "a pattern of the pre-tokenizer needs too many steps on this text");
}

// Cuts at the start and end of each match. An empty match cuts too, unless it only repeats the end
// of the match before.
static enum status encode_matches(struct encoder *encoder, size_t step, const char *text,
                                  size_t size_bytes) {
    const struct split *split = &encoder->tokenizer->splits[step];
    size_t search = 0, done = 0;
    bool any = false;
    while (search <= size_bytes) {
        bool found;
        size_t start, end;
        enum status status = find(encoder, split, text, size_bytes, search, &found, &start, &end);
        if (status != STATUS_OK) return status;
        if (!found) break;
        if (any && start == end && end == done) {
            size_t character_bytes = 1;
            if (search < size_bytes)
                utf8_first(text + search, size_bytes - search, &character_bytes);
            search += character_bytes;
            continue;
        }
        if (!split->remove_others) {
            status = encode_piece(encoder, step + 1, text + done, start - done);
            if (status != STATUS_OK) return status;
        }
        if (!split->remove_matches) {
            status = encode_piece(encoder, step + 1, text + start, end - start);
            if (status != STATUS_OK) return status;
        }
        search = done = end;
        any = true;
    }
    if (split->remove_others) return STATUS_OK;
    return encode_piece(encoder, step + 1, text + done, size_bytes - done);
}

static enum status encode_digits(struct encoder *encoder, size_t step, const char *text,
                                 size_t size_bytes) {
    bool individual = encoder->tokenizer->splits[step].individual;
    size_t start = 0;
    bool run_is_numeric = false;
    for (size_t offset = 0; offset < size_bytes;) {
        size_t character_bytes;
        bool numeric =
            unicode_is_numeric(utf8_first(text + offset, size_bytes - offset, &character_bytes));
        if (numeric != run_is_numeric || (numeric && individual)) {
            enum status status = encode_piece(encoder, step + 1, text + start, offset - start);
            if (status != STATUS_OK) return status;
            start = offset;
            run_is_numeric = numeric;
        }
        offset += character_bytes;
    }
    return encode_piece(encoder, step + 1, text + start, size_bytes - start);
}

// The bytes themselves need no change: the vocabulary knows what bytes its tokens stand for.
static enum status encode_byte_level(struct encoder *encoder, size_t step, const char *text,
                                     size_t size_bytes) {
    const struct split *split = &encoder->tokenizer->splits[step];
    if (split->add_prefix_space && text[0] != ' ') {
        buffer_clear(&encoder->prefixed);
        if (buffer_append(&encoder->prefixed, " ", 1) != STATUS_OK ||
            buffer_append(&encoder->prefixed, text, size_bytes) != STATUS_OK)
            return no_memory(encoder);
        text = encoder->prefixed.data;
        size_bytes = encoder->prefixed.size_bytes;
    }
    if (split->code != NULL) return encode_matches(encoder, step, text, size_bytes);
    return encode_word(encoder, text, size_bytes);
}

static enum status encode_piece(struct encoder *encoder, size_t step, const char *text,
                                size_t size_bytes) {
    if (size_bytes == 0) return STATUS_OK;
    if (step == encoder->tokenizer->split_count) return encode_word(encoder, text, size_bytes);
    switch (encoder->tokenizer->splits[step].kind) {
    case SPLIT_PATTERN:
        return encode_matches(encoder, step, text, size_bytes);
    case SPLIT_DIGITS:
        return encode_digits(encoder, step, text, size_bytes);
    case SPLIT_BYTE_LEVEL:
        return encode_byte_level(encoder, step, text, size_bytes);
    }
    CHECK(false);
}

typedef enum status encode_fn(struct encoder *encoder, const char *text, size_t size_bytes);

// Gives the ids of the added tokens in `tree`, and what lies between them to `encode_between`.
static enum status encode_added(struct encoder *encoder, const struct added_tree *tree,
                                const char *text, size_t size_bytes, encode_fn *encode_between) {
    size_t search = 0, done = 0;
    struct added_match match;
    while (added_find(&encoder->tokenizer->added, tree, text, size_bytes, search, done,
                      encoder->parse_special, &match)) {
        if (done < match.start) {
            enum status status = encode_between(encoder, text + done, match.start - done);
            if (status != STATUS_OK) return status;
        }
        enum status status = give_id(encoder, match.token->id);
        if (status != STATUS_OK) return status;
        search = match.match_end;
        done = match.end;
    }
    if (done == size_bytes) return STATUS_OK;
    return encode_between(encoder, text + done, size_bytes - done);
}

static enum status encode_plain(struct encoder *encoder, const char *text, size_t size_bytes) {
    return encode_piece(encoder, 0, text, size_bytes);
}

static enum status encode_raw(struct encoder *encoder, const char *text, size_t size_bytes) {
    const struct tokenizer *tokenizer = encoder->tokenizer;
    char *owned = NULL;
    if (tokenizer->normalize && nfc(text, size_bytes, &owned, &text, &size_bytes) != STATUS_OK)
        return no_memory(encoder);
    enum status status =
        encode_added(encoder, &tokenizer->added.normalized, text, size_bytes, encode_plain);
    free(owned);
    return status;
}

static enum status encode_all(struct encoder *encoder, const char *text, size_t size_bytes,
                              bool add_special) {
    const struct tokenizer *tokenizer = encoder->tokenizer;
    enum status status = STATUS_OK;
    for (size_t i = 0; status == STATUS_OK && add_special && i < tokenizer->prefix_id_count; i++)
        status = give_id(encoder, tokenizer->prefix_ids[i]);
    if (status == STATUS_OK && size_bytes > 0)
        status = encode_added(encoder, &tokenizer->added.raw, text, size_bytes, encode_raw);
    for (size_t i = 0; status == STATUS_OK && add_special && i < tokenizer->suffix_id_count; i++)
        status = give_id(encoder, tokenizer->suffix_ids[i]);
    return status;
}

enum status tokenizer_encode(const struct tokenizer *tokenizer, const char *text, size_t size_bytes,
                             uint32_t flags, uint32_t *ids_out, size_t id_count_max,
                             size_t *id_count_out, struct error *error) {
    if (size_bytes > TOKENIZER_TEXT_BYTES_MAX)
        return error_set(error, STATUS_EXHAUSTED, "the text has %zu bytes, the limit is %d",
                         size_bytes, TOKENIZER_TEXT_BYTES_MAX);
    size_t valid_bytes = utf8_valid_bytes(text, size_bytes);
    if (valid_bytes != size_bytes)
        return error_set(error, STATUS_INVALID, "the text is not valid UTF-8 at byte %zu",
                         valid_bytes);
    struct encoder encoder = {.tokenizer = tokenizer,
                              .parse_special = (flags & TOKENIZER_PARSE_SPECIAL) != 0,
                              .id_count_max = id_count_max,
                              .error = error};
    encoder.ids = ids_out;
    if (matcher_init(&encoder.matcher) != STATUS_OK) return no_memory(&encoder);
    bpe_init(&encoder.bpe);
    // NFC makes a text at most three times as long.
    buffer_init(&encoder.prefixed, (size_t)3 * TOKENIZER_TEXT_BYTES_MAX + 1);
    enum status status =
        encode_all(&encoder, text, size_bytes, (flags & TOKENIZER_ADD_SPECIAL) != 0);
    buffer_fini(&encoder.prefixed);
    bpe_fini(&encoder.bpe);
    matcher_fini(&encoder.matcher);
    if (status == STATUS_OK) *id_count_out = encoder.id_count;
    return status;
}

// -- decoding -------------------------------------------------------------------------------------

enum status tokenizer_decode(const struct tokenizer *tokenizer, const uint32_t *ids,
                             size_t id_count, bool skip_special, struct buffer *text_out,
                             struct error *error) {
    struct detokenizer detokenizer;
    detokenizer_init(&detokenizer, tokenizer, skip_special);
    for (size_t i = 0; i < id_count; i++)
        if (ids[i] >= tokenizer->vocabulary.id_end)
            return error_set(error, STATUS_INVALID,
                             "token id %u at index %zu is not below the vocabulary size %u", ids[i],
                             i, tokenizer->vocabulary.id_end);
    size_t size_before_bytes = text_out->size_bytes;
    enum status status = STATUS_OK;
    for (size_t i = 0; status == STATUS_OK && i < id_count; i++)
        status = detokenizer_push(&detokenizer, ids[i], text_out);
    if (status == STATUS_OK) status = detokenizer_flush(&detokenizer, text_out);
    if (status == STATUS_OK) return STATUS_OK;
    text_out->size_bytes = size_before_bytes;
    if (text_out->data != NULL) text_out->data[size_before_bytes] = '\0';
    return error_set(error, status, "no room for the text of %zu tokens", id_count);
}

// -- tokens ---------------------------------------------------------------------------------------

uint32_t tokenizer_vocabulary_size(const struct tokenizer *tokenizer) {
    return tokenizer->vocabulary.id_end;
}

bool tokenizer_token_bytes(const struct tokenizer *tokenizer, uint32_t id, const char **data_out,
                           size_t *size_bytes_out, bool *is_special_out) {
    const struct vocabulary *vocabulary = &tokenizer->vocabulary;
    if (id >= vocabulary->id_end || !vocabulary->tokens[id].used) return false;
    const struct token *token = &vocabulary->tokens[id];
    *data_out = vocabulary->texts.data + token->bytes_offset;
    *size_bytes_out = token->bytes_size_bytes;
    *is_special_out = token->special;
    return true;
}

bool tokenizer_token_id(const struct tokenizer *tokenizer, const char *text, size_t size_bytes,
                        uint32_t *id_out) {
    return vocabulary_find(&tokenizer->vocabulary, text, size_bytes, id_out);
}
