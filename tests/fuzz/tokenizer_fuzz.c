// A tokenizer.json, then a zero byte, then a text: opened, encoded in all ways and decoded.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "coordinator/detokenizer.h"
#include "coordinator/tokenizer.h"

enum { TEXT_BYTES_MAX = 512, ID_COUNT_MAX = 1024 };

static void decode(const struct tokenizer *tokenizer, const uint32_t *ids, size_t count,
                   bool skip_special) {
    struct buffer whole, stream;
    struct detokenizer detokenizer;
    buffer_init(&whole, 16 << 20);
    buffer_init(&stream, 16 << 20);
    CHECK(tokenizer_decode(tokenizer, ids, count, skip_special, &whole, NULL) == STATUS_OK);
    detokenizer_init(&detokenizer, tokenizer, skip_special);
    for (size_t i = 0; i < count; i++)
        CHECK(detokenizer_push(&detokenizer, ids[i], &stream) == STATUS_OK);
    CHECK(detokenizer_flush(&detokenizer, &stream) == STATUS_OK);
    CHECK(whole.size_bytes == stream.size_bytes);
    CHECK(whole.size_bytes == 0 || memcmp(whole.data, stream.data, whole.size_bytes) == 0);
    buffer_fini(&whole);
    buffer_fini(&stream);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const uint8_t *zero = size == 0 ? NULL : memchr(data, 0, size);
    size_t file_bytes = zero == NULL ? size : (size_t)(zero - data);
    const char *text = zero == NULL ? "" : (const char *)zero + 1;
    size_t text_bytes = zero == NULL ? 0 : size - file_bytes - 1;
    if (text_bytes > TEXT_BYTES_MAX) text_bytes = TEXT_BYTES_MAX;

    struct tokenizer *tokenizer;
    struct error error = {0};
    if (tokenizer_open_memory("fuzz", (const char *)data, file_bytes, &tokenizer, &error) !=
        STATUS_OK) {
        CHECK(error.text[0] != '\0');
        return 0;
    }
    uint32_t ids[ID_COUNT_MAX];
    for (uint32_t flags = 0; flags < 4; flags++) {
        size_t count;
        enum status status =
            tokenizer_encode(tokenizer, text, text_bytes, flags, ids, ID_COUNT_MAX, &count, &error);
        if (status != STATUS_OK) continue;
        for (size_t i = 0; i < count; i++)
            CHECK(ids[i] < tokenizer_vocabulary_size(tokenizer));
        decode(tokenizer, ids, count, flags & 1);
    }
    tokenizer_close(tokenizer);
    return 0;
}
