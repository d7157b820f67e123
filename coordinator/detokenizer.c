#include "coordinator/detokenizer.h"

#include <string.h>

static const char REPLACEMENT[] = "\xef\xbf\xbd"; // U+FFFD

enum { STAGED_BYTES = 256 };

// Decoded text on its way to the buffer, so that not every character is an append of its own.
struct staged {
    struct buffer *out;
    enum status status;
    size_t size_bytes;
    char data[STAGED_BYTES];
};

static void staged_flush(struct staged *staged) {
    if (staged->status == STATUS_OK)
        staged->status = buffer_append(staged->out, staged->data, staged->size_bytes);
    staged->size_bytes = 0;
}

static void staged_put(struct staged *staged, const void *data, size_t size_bytes) {
    if (staged->size_bytes + size_bytes > sizeof(staged->data)) staged_flush(staged);
    memcpy(staged->data + staged->size_bytes, data, size_bytes);
    staged->size_bytes += size_bytes;
}

void detokenizer_init(struct detokenizer *detokenizer, const struct tokenizer *tokenizer,
                      bool skip_special) {
    *detokenizer = (struct detokenizer){.tokenizer = tokenizer, .skip_special = skip_special};
}

// The bytes of a character that starts with `lead`; 0 when none does.
static size_t character_size(uint8_t lead) {
    if (lead < 0x80) return 1;
    if (lead < 0xc2 || lead > 0xf4) return 0;
    return lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
}

// Whether `byte` can follow the tail. Only the second byte has narrower bounds (Unicode table 3-7).
static bool continues(const struct detokenizer *detokenizer, uint8_t byte) {
    uint8_t low = 0x80, high = 0xbf;
    if (detokenizer->tail_size_bytes == 1) {
        switch (detokenizer->tail[0]) {
        case 0xe0:
            low = 0xa0;
            break;
        case 0xed:
            high = 0x9f;
            break;
        case 0xf0:
            low = 0x90;
            break;
        case 0xf4:
            high = 0x8f;
            break;
        default:
            break;
        }
    }
    return byte >= low && byte <= high;
}

static void put_byte(struct detokenizer *detokenizer, uint8_t byte, struct staged *staged) {
    if (detokenizer->tail_size_bytes > 0) {
        if (continues(detokenizer, byte)) {
            size_t size = detokenizer->tail_size_bytes;
            if (size + 1 < character_size(detokenizer->tail[0])) {
                detokenizer->tail[detokenizer->tail_size_bytes++] = byte;
                return;
            }
            uint8_t character[4];
            memcpy(character, detokenizer->tail, size);
            character[size] = byte;
            staged_put(staged, character, size + 1);
            detokenizer->tail_size_bytes = 0;
            return;
        }
        staged_put(staged, REPLACEMENT, 3);
        detokenizer->tail_size_bytes = 0;
    }
    size_t size = character_size(byte);
    if (size == 1) {
        staged_put(staged, &byte, 1);
    } else if (size == 0) {
        staged_put(staged, REPLACEMENT, 3);
    } else {
        detokenizer->tail[0] = byte;
        detokenizer->tail_size_bytes = 1;
    }
}

// Puts the detokenizer and the buffer back to how they were when appending failed.
static enum status finish(struct detokenizer *detokenizer, const struct detokenizer *before,
                          struct staged *staged, size_t size_before_bytes) {
    staged_flush(staged);
    if (staged->status == STATUS_OK) return STATUS_OK;
    *detokenizer = *before;
    staged->out->size_bytes = size_before_bytes;
    if (staged->out->data != NULL) staged->out->data[size_before_bytes] = '\0';
    return staged->status;
}

enum status detokenizer_push(struct detokenizer *detokenizer, uint32_t id,
                             struct buffer *text_out) {
    const char *data;
    size_t size_bytes;
    bool is_special;
    if (detokenizer->tokenizer == NULL ||
        !tokenizer_token_bytes(detokenizer->tokenizer, id, &data, &size_bytes, &is_special))
        return STATUS_OK;
    if (is_special && detokenizer->skip_special) return STATUS_OK;
    struct detokenizer before = *detokenizer;
    struct staged staged;
    staged.out = text_out;
    staged.status = STATUS_OK;
    staged.size_bytes = 0;
    size_t size_before_bytes = text_out->size_bytes;
    for (size_t i = 0; i < size_bytes; i++)
        put_byte(detokenizer, (uint8_t)data[i], &staged);
    return finish(detokenizer, &before, &staged, size_before_bytes);
}

enum status detokenizer_flush(struct detokenizer *detokenizer, struct buffer *text_out) {
    if (detokenizer->tail_size_bytes == 0) return STATUS_OK;
    enum status status = buffer_append(text_out, REPLACEMENT, 3);
    if (status == STATUS_OK) detokenizer->tail_size_bytes = 0;
    return status;
}

enum status detokenizer_replace_zeros(struct buffer *text, size_t offset_bytes) {
    size_t old_bytes = text->size_bytes, zero_count = 0;
    for (size_t i = offset_bytes; i < old_bytes; i++)
        zero_count += text->data[i] == '\0';
    if (zero_count == 0) return STATUS_OK;
    size_t grown_bytes = zero_count * (sizeof(REPLACEMENT) - 2);
    for (size_t grown = 0; grown < grown_bytes; grown++) {
        enum status status = buffer_append(text, " ", 1);
        if (status == STATUS_OK) continue;
        text->size_bytes = old_bytes;
        text->data[old_bytes] = '\0';
        return status;
    }
    // From the end, so that each byte is moved once.
    char *to = text->data + text->size_bytes;
    for (size_t i = old_bytes; zero_count > 0; i--) {
        if (text->data[i - 1] != '\0') {
            *--to = text->data[i - 1];
            continue;
        }
        to -= sizeof(REPLACEMENT) - 1;
        memcpy(to, REPLACEMENT, sizeof(REPLACEMENT) - 1);
        zero_count--;
    }
    return STATUS_OK;
}
