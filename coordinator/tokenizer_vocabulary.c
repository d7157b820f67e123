// Tokens by id and by text, and the table of merges.
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "coordinator/tokenizer_parts.h"

enum { TOKEN_CAPACITY_FIRST = 1024, SLOT_COUNT_FIRST = 1024, SHOWN_BYTES_MAX = 64 };

// Every token's text, and its bytes where they differ, come from the file once.
enum { TEXTS_BYTES_MAX = 2 * TOKENIZER_FILE_BYTES_MAX };

void vocabulary_init(struct vocabulary *vocabulary) {
    *vocabulary = (struct vocabulary){0};
    buffer_init(&vocabulary->texts, TEXTS_BYTES_MAX);
}

void vocabulary_fini(struct vocabulary *vocabulary) {
    free(vocabulary->tokens);
    free(vocabulary->id_slots);
    free(vocabulary->merges);
    buffer_fini(&vocabulary->texts);
}

// As much of a token as an error sentence shows, cut between characters.
static int shown_bytes(const char *text, size_t size_bytes) {
    if (size_bytes <= SHOWN_BYTES_MAX) return (int)size_bytes;
    size_t size = SHOWN_BYTES_MAX;
    while (size > 0 && ((unsigned char)text[size] & 0xc0) == 0x80)
        size--;
    return (int)size;
}

// -- byte-level alphabet --------------------------------------------------------------------------

// The alphabet of GPT-2: bytes that print stand for themselves; the others, in order, are the
// characters from U+0100 on.
static bool prints(uint32_t byte) {
    return (byte > 0x20 && byte < 0x7f) || (byte > 0xa0 && byte <= 0xff && byte != 0xad);
}

// The byte of a character of the alphabet, or -1.
static int alphabet_byte(uint32_t c) {
    if (c < 0x100) return prints(c) ? (int)c : -1;
    if (c <= 0x120) return (int)(c - 0x100);
    if (c <= 0x142) return (int)(c - 0x121 + 0x7f);
    return c == 0x143 ? 0xad : -1;
}

static uint32_t alphabet_character(uint8_t byte) {
    if (prints(byte)) return byte;
    if (byte <= 0x20) return 0x100u + byte;
    return byte == 0xad ? 0x143 : 0x121u + (byte - 0x7fu);
}

// The bytes that a token's text stands for; false when it has a character outside the alphabet.
static bool alphabet_decode(const char *text, size_t size_bytes, char *bytes_out,
                            size_t *size_bytes_out) {
    size_t count = 0;
    for (size_t offset = 0; offset < size_bytes;) {
        size_t character_bytes;
        int32_t c = utf8_first(text + offset, size_bytes - offset, &character_bytes);
        int byte = alphabet_byte((uint32_t)c);
        if (byte < 0) return false;
        bytes_out[count++] = (char)byte;
        offset += character_bytes;
    }
    *size_bytes_out = count;
    return true;
}

// Every character of the alphabet has one or two bytes.
static size_t alphabet_encode(const char *bytes, size_t size_bytes, char *text_out) {
    size_t used = 0;
    for (size_t i = 0; i < size_bytes; i++) {
        uint32_t c = alphabet_character((uint8_t)bytes[i]);
        if (c < 0x80) {
            text_out[used++] = (char)c;
        } else {
            text_out[used++] = (char)(0xc0 | c >> 6);
            text_out[used++] = (char)(0x80 | (c & 0x3f));
        }
    }
    return used;
}

// -- tokens ---------------------------------------------------------------------------------------

// FNV-1a.
static uint64_t text_hash(const char *text, size_t size_bytes) {
    uint64_t hash = 0xcbf29ce484222325u;
    for (size_t i = 0; i < size_bytes; i++)
        hash = (hash ^ (unsigned char)text[i]) * 0x100000001b3u;
    return hash ^ hash >> 32;
}

// The slot that holds the text, or the unused one where it belongs.
static uint32_t slot_of(const struct vocabulary *vocabulary, const char *text, size_t size_bytes) {
    uint32_t mask = vocabulary->id_slot_count - 1;
    uint32_t slot = (uint32_t)text_hash(text, size_bytes) & mask;
    for (;; slot = (slot + 1) & mask) {
        if (vocabulary->id_slots[slot] == 0) return slot;
        const struct token *token = &vocabulary->tokens[vocabulary->id_slots[slot] - 1];
        if (token->text_size_bytes == size_bytes &&
            memcmp(vocabulary->texts.data + token->text_offset, text, size_bytes) == 0)
            return slot;
    }
}

bool vocabulary_find(const struct vocabulary *vocabulary, const char *text, size_t size_bytes,
                     uint32_t *id_out) {
    if (vocabulary->id_slot_count == 0) return false;
    uint32_t held = vocabulary->id_slots[slot_of(vocabulary, text, size_bytes)];
    if (held == 0) return false;
    *id_out = held - 1;
    return true;
}

static bool find_in_model(const struct vocabulary *vocabulary, const char *text, size_t size_bytes,
                          uint32_t *id_out) {
    uint32_t id;
    if (!vocabulary_find(vocabulary, text, size_bytes, &id)) return false;
    if (!vocabulary->tokens[id].in_model) return false;
    *id_out = id;
    return true;
}

bool vocabulary_find_bytes(const struct vocabulary *vocabulary, const char *bytes,
                           size_t size_bytes, uint32_t *id_out) {
    char text[2 * TOKENIZER_TOKEN_BYTES_MAX];
    if (size_bytes > TOKENIZER_TOKEN_BYTES_MAX) return false;
    return find_in_model(vocabulary, text, alphabet_encode(bytes, size_bytes, text), id_out);
}

static enum status slots_reserve(struct vocabulary *vocabulary) {
    if ((vocabulary->token_count + 1) * 2 <= vocabulary->id_slot_count) return STATUS_OK;
    uint32_t *old = vocabulary->id_slots;
    uint32_t old_count = vocabulary->id_slot_count;
    uint32_t count = old_count == 0 ? SLOT_COUNT_FIRST : old_count * 2;
    uint32_t *grown = memory_array(count, sizeof(*grown));
    if (grown == NULL) return STATUS_NO_MEMORY;
    vocabulary->id_slots = grown;
    vocabulary->id_slot_count = count;
    for (uint32_t i = 0; i < old_count; i++) {
        if (old[i] == 0) continue;
        const struct token *token = &vocabulary->tokens[old[i] - 1];
        const char *text = vocabulary->texts.data + token->text_offset;
        grown[slot_of(vocabulary, text, token->text_size_bytes)] = old[i];
    }
    free(old);
    return STATUS_OK;
}

static enum status tokens_reserve(struct vocabulary *vocabulary, uint32_t id) {
    if (id < vocabulary->token_capacity) return STATUS_OK;
    uint32_t capacity = vocabulary->token_capacity;
    if (capacity == 0) capacity = TOKEN_CAPACITY_FIRST;
    while (capacity <= id)
        capacity *= 2; // ids are below 2^22
    struct token *grown = memory_resize(vocabulary->tokens, capacity, sizeof(*grown));
    if (grown == NULL) return STATUS_NO_MEMORY;
    memset(grown + vocabulary->token_capacity, 0,
           (capacity - vocabulary->token_capacity) * sizeof(*grown));
    vocabulary->tokens = grown;
    vocabulary->token_capacity = capacity;
    return STATUS_OK;
}

// Writes the token's text, and its bytes when they differ from it.
static enum status token_store(struct vocabulary *vocabulary, struct token *token, const char *text,
                               size_t size_bytes) {
    char bytes[TOKENIZER_TOKEN_BYTES_MAX];
    size_t bytes_size = 0;
    token->text_offset = token->bytes_offset = (uint32_t)vocabulary->texts.size_bytes;
    token->text_size_bytes = token->bytes_size_bytes = (uint32_t)size_bytes;
    enum status status = buffer_append(&vocabulary->texts, text, size_bytes);
    if (status != STATUS_OK) return status;
    if (!alphabet_decode(text, size_bytes, bytes, &bytes_size)) return STATUS_OK;
    if (bytes_size == size_bytes && memcmp(bytes, text, size_bytes) == 0) return STATUS_OK;
    token->bytes_offset = (uint32_t)vocabulary->texts.size_bytes;
    token->bytes_size_bytes = (uint32_t)bytes_size;
    return buffer_append(&vocabulary->texts, bytes, bytes_size);
}

static enum status check_new(const struct vocabulary *vocabulary, const char *text,
                             size_t size_bytes, uint32_t id, struct error *error) {
    int shown = shown_bytes(text, size_bytes);
    if (size_bytes == 0) return error_set(error, STATUS_INVALID, "token %u has no text", id);
    if (size_bytes > TOKENIZER_TOKEN_BYTES_MAX)
        return error_set(error, STATUS_INVALID, "token \"%.*s...\" has %zu bytes, the limit is %d",
                         shown, text, size_bytes, TOKENIZER_TOKEN_BYTES_MAX);
    if (id >= MODEL_VOCABULARY_SIZE_MAX)
        return error_set(error, STATUS_INVALID, "token \"%.*s\" has id %u, the limit is %d", shown,
                         text, id, MODEL_VOCABULARY_SIZE_MAX - 1);
    if (id >= vocabulary->id_end || !vocabulary->tokens[id].used) return STATUS_OK;
    const struct token *other = &vocabulary->tokens[id];
    const char *other_text = vocabulary->texts.data + other->text_offset;
    return error_set(error, STATUS_INVALID, "id %u belongs to \"%.*s\" and to \"%.*s\"", id,
                     shown_bytes(other_text, other->text_size_bytes), other_text, shown, text);
}

enum status vocabulary_add(struct vocabulary *vocabulary, const char *text, size_t size_bytes,
                           uint32_t id, bool in_model, bool special, struct error *error) {
    uint32_t found_id;
    if (size_bytes > 0 && vocabulary_find(vocabulary, text, size_bytes, &found_id)) {
        int shown = shown_bytes(text, size_bytes);
        if (found_id != id)
            return error_set(error, STATUS_INVALID, "token \"%.*s\" has ids %u and %u", shown, text,
                             found_id, id);
        struct token *token = &vocabulary->tokens[id];
        if (in_model && token->in_model)
            return error_set(error, STATUS_INVALID, "token \"%.*s\" comes twice", shown, text);
        token->special |= special;
        return STATUS_OK;
    }
    enum status status = check_new(vocabulary, text, size_bytes, id, error);
    if (status != STATUS_OK) return status;
    if (slots_reserve(vocabulary) != STATUS_OK || tokens_reserve(vocabulary, id) != STATUS_OK)
        return error_set(error, STATUS_NO_MEMORY, "no memory for token %u", id);
    struct token *token = &vocabulary->tokens[id];
    status = token_store(vocabulary, token, text, size_bytes);
    if (status != STATUS_OK) return error_set(error, status, "no room for token %u", id);
    token->used = true;
    token->in_model = in_model;
    token->special = special;
    vocabulary->id_slots[slot_of(vocabulary, text, size_bytes)] = id + 1;
    vocabulary->token_count++;
    if (id >= vocabulary->id_end) vocabulary->id_end = id + 1;
    return STATUS_OK;
}

void vocabulary_finish(struct vocabulary *vocabulary) {
    for (int i = 0; i < 256; i++) {
        char byte = (char)i;
        if (!vocabulary_find_bytes(vocabulary, &byte, 1, &vocabulary->byte_ids[i]))
            vocabulary->byte_ids[i] = ID_NONE;
    }
}

// -- merges ---------------------------------------------------------------------------------------

static struct merge *merge_slot(struct merge *merges, uint32_t capacity, uint64_t pair) {
    // The finalizer of splitmix64.
    uint64_t hash = (pair ^ pair >> 30) * 0xbf58476d1ce4e5b9u;
    hash = (hash ^ hash >> 27) * 0x94d049bb133111ebu;
    uint32_t mask = capacity - 1;
    uint32_t slot = (uint32_t)(hash ^ hash >> 31) & mask;
    while (merges[slot].pair != MERGE_NONE && merges[slot].pair != pair)
        slot = (slot + 1) & mask;
    return &merges[slot];
}

const struct merge *vocabulary_merge(const struct vocabulary *vocabulary, uint64_t pair) {
    if (vocabulary->merge_capacity == 0) return NULL;
    const struct merge *merge = merge_slot(vocabulary->merges, vocabulary->merge_capacity, pair);
    return merge->pair == pair ? merge : NULL;
}

static enum status merges_reserve(struct vocabulary *vocabulary) {
    if ((vocabulary->merge_count + 1) * 2 <= vocabulary->merge_capacity) return STATUS_OK;
    uint32_t old_capacity = vocabulary->merge_capacity;
    uint32_t capacity = old_capacity == 0 ? SLOT_COUNT_FIRST : old_capacity * 2;
    struct merge *grown = memory_array(capacity, sizeof(*grown));
    if (grown == NULL) return STATUS_NO_MEMORY;
    for (uint32_t i = 0; i < capacity; i++)
        grown[i].pair = MERGE_NONE;
    for (uint32_t i = 0; i < old_capacity; i++) {
        const struct merge *merge = &vocabulary->merges[i];
        if (merge->pair != MERGE_NONE) *merge_slot(grown, capacity, merge->pair) = *merge;
    }
    free(vocabulary->merges);
    vocabulary->merges = grown;
    vocabulary->merge_capacity = capacity;
    return STATUS_OK;
}

static enum status merge_part(const struct vocabulary *vocabulary, const char *text,
                              size_t size_bytes, uint32_t rank, uint32_t *id_out,
                              struct error *error) {
    if (find_in_model(vocabulary, text, size_bytes, id_out)) return STATUS_OK;
    return error_set(error, STATUS_INVALID, "merge %u: \"%.*s\" is not in the vocabulary", rank,
                     shown_bytes(text, size_bytes), text);
}

enum status vocabulary_add_merge(struct vocabulary *vocabulary, const char *left,
                                 size_t left_size_bytes, const char *right, size_t right_size_bytes,
                                 uint32_t rank, struct error *error) {
    uint32_t left_id = ID_NONE, right_id = ID_NONE, id = ID_NONE;
    enum status status = merge_part(vocabulary, left, left_size_bytes, rank, &left_id, error);
    if (status != STATUS_OK) return status;
    status = merge_part(vocabulary, right, right_size_bytes, rank, &right_id, error);
    if (status != STATUS_OK) return status;
    // Both are tokens, so neither is longer than a token may be.
    char joined[2 * TOKENIZER_TOKEN_BYTES_MAX];
    CHECK(left_size_bytes + right_size_bytes <= sizeof(joined));
    memcpy(joined, left, left_size_bytes);
    memcpy(joined + left_size_bytes, right, right_size_bytes);
    status = merge_part(vocabulary, joined, left_size_bytes + right_size_bytes, rank, &id, error);
    if (status != STATUS_OK) return status;
    if (merges_reserve(vocabulary) != STATUS_OK)
        return error_set(error, STATUS_NO_MEMORY, "no memory for merge %u", rank);
    uint64_t pair = merge_pair(left_id, right_id);
    struct merge *merge = merge_slot(vocabulary->merges, vocabulary->merge_capacity, pair);
    if (merge->pair == MERGE_NONE) vocabulary->merge_count++;
    *merge = (struct merge){.pair = pair, .rank = rank, .id = id};
    return STATUS_OK;
}
