// The pull parser on any bytes: read by kind and skipped, both must agree on whether it is JSON.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/json.h"

static uint64_t sum; // keeps what is read from being optimized away

static void use(struct json_text text) {
    for (size_t i = 0; i < text.size_bytes; i++)
        sum = sum * 31 + (unsigned char)text.data[i];
}

// Nesting is bounded by JSON_DEPTH_MAX.
static void read_value(struct json *json) {
    struct json_text key;
    switch (json_peek(json)) {
    case JSON_KIND_OBJECT:
        json_object_begin(json);
        while (json_object_next(json, &key)) {
            use(key);
            read_value(json);
        }
        break;
    case JSON_KIND_ARRAY:
        json_array_begin(json);
        while (json_array_next(json))
            read_value(json);
        break;
    case JSON_KIND_STRING:
        use(json_take_string(json));
        break;
    case JSON_KIND_NUMBER:
        json_skip(json);
        break;
    case JSON_KIND_BOOL:
        sum += json_take_bool(json);
        break;
    case JSON_KIND_NULL:
        if (!json_take_null(json)) json_skip(json);
        break;
    case JSON_KIND_END:
        CHECK(json->failed);
        break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct json json;
    json_init(&json, (const char *)data, size);
    read_value(&json);
    json_end(&json);
    bool read = !json.failed;
    CHECK(read ? json.offset == size : json.error.text[0] != '\0');
    json_fini(&json);

    json_init(&json, (const char *)data, size);
    size_t mark = json_mark(&json);
    json_skip(&json);
    json_end(&json);
    CHECK(read == !json.failed);
    if (read) {
        json_return(&json, mark);
        json_take_integer(&json, INT64_MIN, INT64_MAX);
    }
    json_fini(&json);
    return 0;
}
