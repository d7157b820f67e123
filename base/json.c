#include "base/json.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/memory.h"

void json_init(struct json *json, const char *text, size_t size_bytes) {
    *json = (struct json){.text = text, .size_bytes = size_bytes};
}

void json_fini(struct json *json) {
    free(json->scratch);
    json->scratch = NULL;
    json->scratch_capacity_bytes = 0;
}

// Lines are counted only when a mistake is reported. The column counts bytes, from 1.
void json_fail(struct json *json, const char *format, ...) {
    if (json->failed) return;
    char sentence[sizeof(json->error.text) - 64];
    va_list args;
    va_start(args, format);
    vsnprintf(sentence, sizeof(sentence), format, args);
    va_end(args);
    size_t line = 1, line_start = 0;
    for (size_t i = 0; i < json->offset; i++) {
        if (json->text[i] != '\n') continue;
        line++;
        line_start = i + 1;
    }
    snprintf(json->error.text, sizeof(json->error.text), "line %zu, column %zu: %s", line,
             json->offset - line_start + 1, sentence);
    json->failed = true;
}

// -- characters -----------------------------------------------------------------------------------

static bool at_end(const struct json *json) {
    return json->offset >= json->size_bytes;
}

// '\0' at the end of the text; a '\0' inside it starts nothing valid either.
static char current(const struct json *json) {
    return at_end(json) ? '\0' : json->text[json->offset];
}

static bool is_digit(char c) {
    return c >= '0' && c <= '9';
}

static void skip_space(struct json *json) {
    while (!at_end(json)) {
        char c = json->text[json->offset];
        if (c != ' ' && c != '\n' && c != '\r' && c != '\t') return;
        json->offset++;
    }
}

static void fail_expected(struct json *json, const char *what) {
    if (at_end(json)) {
        json_fail(json, "expected %s, found the end of the text", what);
        return;
    }
    unsigned char c = (unsigned char)json->text[json->offset];
    if (c > 0x20 && c < 0x7f)
        json_fail(json, "expected %s, found '%c'", what, c);
    else
        json_fail(json, "expected %s, found byte 0x%02x", what, c);
}

static bool take(struct json *json, char c, const char *what) {
    if (json->failed) return false;
    skip_space(json);
    if (at_end(json) || json->text[json->offset] != c) {
        fail_expected(json, what);
        return false;
    }
    json->offset++;
    return true;
}

// -- values ---------------------------------------------------------------------------------------

// Positions at the first character of a value; false when there cannot be one here.
static bool value_begin(struct json *json) {
    if (json->failed) return false;
    skip_space(json);
    if (json->after_value[json->depth]) {
        fail_expected(json, json->depth == 0 ? "the end of the text" : "a comma");
        return false;
    }
    return true;
}

static void value_end(struct json *json) {
    json->after_value[json->depth] = true;
}

enum json_kind json_peek(struct json *json) {
    if (!value_begin(json)) return JSON_KIND_END;
    switch (current(json)) {
    case '{':
        return JSON_KIND_OBJECT;
    case '[':
        return JSON_KIND_ARRAY;
    case '"':
        return JSON_KIND_STRING;
    case 't':
    case 'f':
        return JSON_KIND_BOOL;
    case 'n':
        return JSON_KIND_NULL;
    case '-':
        return JSON_KIND_NUMBER;
    default:
        break;
    }
    if (is_digit(current(json))) return JSON_KIND_NUMBER;
    fail_expected(json, "a value");
    return JSON_KIND_END;
}

static void nest(struct json *json, char open, const char *what) {
    if (!value_begin(json) || !take(json, open, what)) return;
    if (json->depth == JSON_DEPTH_MAX) {
        json_fail(json, "nested deeper than %d", JSON_DEPTH_MAX);
        return;
    }
    json->after_value[++json->depth] = false;
}

// Takes the closing character, or the comma that must come first. True when another value follows.
static bool nest_next(struct json *json, char close, const char *what) {
    if (json->failed) return false;
    CHECK(json->depth > 0);
    skip_space(json);
    if (current(json) == close) {
        json->offset++;
        json->depth--;
        value_end(json);
        return false;
    }
    if (!json->after_value[json->depth]) return true;
    if (!take(json, ',', what)) return false;
    json->after_value[json->depth] = false;
    skip_space(json);
    if (current(json) == close) json_fail(json, "a comma before '%c'", close);
    return !json->failed;
}

void json_object_begin(struct json *json) {
    nest(json, '{', "an object");
}

static struct json_text string_take(struct json *json, const char *what);

bool json_object_next(struct json *json, struct json_text *key_out) {
    if (!nest_next(json, '}', "a comma or '}'")) return false;
    struct json_text key = string_take(json, "a key");
    if (!take(json, ':', "a colon")) return false;
    *key_out = key;
    return true;
}

void json_array_begin(struct json *json) {
    nest(json, '[', "an array");
}

bool json_array_next(struct json *json) {
    return nest_next(json, ']', "a comma or ']'");
}

// -- strings --------------------------------------------------------------------------------------

// The bytes of the UTF-8 character at the offset (RFC 3629), or 0.
static size_t utf8_size(const struct json *json) {
    const unsigned char *p = (const unsigned char *)json->text + json->offset;
    size_t left = json->size_bytes - json->offset;
    size_t size;
    unsigned char low = 0x80, high = 0xbf; // bounds of the second byte
    if (p[0] < 0x80) return 1;
    if (p[0] < 0xc2 || p[0] > 0xf4) return 0;
    if (p[0] < 0xe0) {
        size = 2;
    } else if (p[0] < 0xf0) {
        size = 3;
        if (p[0] == 0xe0) low = 0xa0;
        if (p[0] == 0xed) high = 0x9f;
    } else {
        size = 4;
        if (p[0] == 0xf0) low = 0x90;
        if (p[0] == 0xf4) high = 0x8f;
    }
    if (left < size || p[1] < low || p[1] > high) return 0;
    for (size_t i = 2; i < size; i++)
        if (p[i] < 0x80 || p[i] > 0xbf) return 0;
    return size;
}

// Moves over characters that stand for themselves, up to '"' or '\\'.
static void plain_skip(struct json *json) {
    while (!at_end(json)) {
        unsigned char c = (unsigned char)json->text[json->offset];
        if (c == '"' || c == '\\') return;
        if (c < 0x20) {
            json_fail(json, "control character 0x%02x in a string", c);
            return;
        }
        size_t size = utf8_size(json);
        if (size == 0) {
            json_fail(json, "a string is not valid UTF-8 at byte 0x%02x", c);
            return;
        }
        json->offset += size;
    }
    json_fail(json, "a string without its end");
}

static uint32_t hex4_take(struct json *json) {
    uint32_t value = 0;
    for (int i = 0; i < 4; i++) {
        char c = current(json);
        uint32_t digit;
        if (is_digit(c)) {
            digit = (uint32_t)(c - '0');
        } else if ((c | 0x20) >= 'a' && (c | 0x20) <= 'f') {
            digit = (uint32_t)((c | 0x20) - 'a') + 10;
        } else {
            fail_expected(json, "four hexadecimal digits after \\u");
            return 0;
        }
        value = value * 16 + digit;
        json->offset++;
    }
    return value;
}

// After "\u": one code point, from one escape or from a pair of surrogates.
static uint32_t escape_unicode(struct json *json) {
    uint32_t high = hex4_take(json);
    if (json->failed || high < 0xd800 || high > 0xdfff) return high;
    uint32_t low = 0;
    if (high <= 0xdbff && json->size_bytes - json->offset >= 2 &&
        memcmp(json->text + json->offset, "\\u", 2) == 0) {
        json->offset += 2;
        low = hex4_take(json);
    }
    if (low < 0xdc00 || low > 0xdfff) {
        json_fail(json, "\\u%04x is half of a surrogate pair", high);
        return 0;
    }
    return 0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00);
}

// After the backslash.
static uint32_t escape_take(struct json *json) {
    char c = current(json);
    static const char names[] = "\"\\/bfnrt";
    static const char values[] = "\"\\/\b\f\n\r\t";
    const char *name = c == '\0' ? NULL : strchr(names, c);
    if (name == NULL && c != 'u') {
        fail_expected(json, "an escape such as \\n");
        return 0;
    }
    json->offset++;
    return c == 'u' ? escape_unicode(json) : (uint32_t)(unsigned char)values[name - names];
}

static size_t utf8_write(uint32_t c, char *out) {
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    size_t size = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    static const unsigned char lead[] = {0, 0, 0xc0, 0xe0, 0xf0};
    for (size_t i = size - 1; i > 0; i--) {
        out[i] = (char)(0x80 | (c & 0x3f));
        c >>= 6;
    }
    out[0] = (char)(lead[size] | c);
    return size;
}

// Makes room for `size_bytes` more bytes of scratch; fails the parser when there is no memory.
static bool scratch_reserve(struct json *json, size_t used_bytes, size_t size_bytes) {
    size_t needed = used_bytes + size_bytes;
    if (needed <= json->scratch_capacity_bytes) return true;
    char *grown = memory_resize(json->scratch, needed * 2 + 64, 1);
    if (grown == NULL) {
        json_fail(json, "no memory for a string of %zu bytes", needed);
        return false;
    }
    json->scratch = grown;
    json->scratch_capacity_bytes = needed * 2 + 64;
    return true;
}

// The rest of a string that has an escape at the offset; `start` is its first character.
static struct json_text escaped_take(struct json *json, size_t start) {
    static const struct json_text empty = {"", 0};
    size_t used = 0;
    while (!json->failed) {
        size_t plain_bytes = json->offset - start;
        if (!scratch_reserve(json, used, plain_bytes + 4)) return empty;
        memcpy(json->scratch + used, json->text + start, plain_bytes);
        used += plain_bytes;
        if (json->text[json->offset++] == '"') return (struct json_text){json->scratch, used};
        uint32_t c = escape_take(json);
        if (!json->failed) used += utf8_write(c, json->scratch + used);
        start = json->offset;
        if (!json->failed) plain_skip(json);
    }
    return empty;
}

static struct json_text string_take(struct json *json, const char *what) {
    static const struct json_text empty = {"", 0};
    if (!take(json, '"', what)) return empty;
    size_t start = json->offset;
    plain_skip(json);
    if (json->failed) return empty;
    if (json->text[json->offset] == '\\') return escaped_take(json, start);
    return (struct json_text){json->text + start, json->offset++ - start};
}

struct json_text json_take_string(struct json *json) {
    static const struct json_text empty = {"", 0};
    if (!value_begin(json)) return empty;
    struct json_text text = string_take(json, "a string");
    value_end(json);
    return text;
}

// -- numbers and literals -------------------------------------------------------------------------

static void digits_skip(struct json *json) {
    if (!is_digit(current(json))) fail_expected(json, "a digit");
    while (is_digit(current(json)))
        json->offset++;
}

// number = [ "-" ] ( "0" / digit1-9 *digit ) [ "." 1*digit ] [ ("e" / "E") [ sign ] 1*digit ]
// True when it has neither fraction nor exponent.
static bool number_skip(struct json *json) {
    if (current(json) == '-') json->offset++;
    if (current(json) == '0')
        json->offset++;
    else
        digits_skip(json);
    if (is_digit(current(json))) json_fail(json, "a number that starts with 0");
    bool whole = true;
    if (!json->failed && current(json) == '.') {
        whole = false;
        json->offset++;
        digits_skip(json);
    }
    if (!json->failed && (current(json) == 'e' || current(json) == 'E')) {
        whole = false;
        json->offset++;
        if (current(json) == '+' || current(json) == '-') json->offset++;
        digits_skip(json);
    }
    return whole;
}

int64_t json_take_integer(struct json *json, int64_t minimum, int64_t maximum) {
    if (!value_begin(json)) return 0;
    size_t start = json->offset;
    if (current(json) != '-' && !is_digit(current(json))) fail_expected(json, "a whole number");
    bool whole = !json->failed && number_skip(json);
    if (json->failed) return 0;
    size_t end = json->offset;
    json->offset = start; // where a mistake is reported
    if (!whole) {
        json_fail(json, "expected a whole number");
        return 0;
    }
    bool negative = json->text[start] == '-';
    int64_t value = 0;
    for (size_t i = start + negative; i < end; i++) {
        int64_t digit = json->text[i] - '0';
        if (__builtin_mul_overflow(value, 10, &value) ||
            __builtin_add_overflow(value, negative ? -digit : digit, &value)) {
            json_fail(json, "a number that does not fit in 64 bits");
            return 0;
        }
    }
    if (value < minimum || value > maximum) {
        json_fail(json, "%lld is not between %lld and %lld", (long long)value, (long long)minimum,
                  (long long)maximum);
        return 0;
    }
    json->offset = end;
    value_end(json);
    return value;
}

static bool literal_take(struct json *json, const char *literal) {
    size_t size = strlen(literal);
    if (json->size_bytes - json->offset < size ||
        memcmp(json->text + json->offset, literal, size) != 0)
        return false;
    json->offset += size;
    value_end(json);
    return true;
}

bool json_take_bool(struct json *json) {
    if (!value_begin(json)) return false;
    if (literal_take(json, "true")) return true;
    if (!literal_take(json, "false")) fail_expected(json, "true or false");
    return false;
}

bool json_take_null(struct json *json) {
    return value_begin(json) && literal_take(json, "null");
}

// -- skipping -------------------------------------------------------------------------------------

// Takes a value that holds no others, or opens one that does.
static void skip_one(struct json *json) {
    switch (json_peek(json)) {
    case JSON_KIND_OBJECT:
        json_object_begin(json);
        break;
    case JSON_KIND_ARRAY:
        json_array_begin(json);
        break;
    case JSON_KIND_STRING:
        json_take_string(json);
        break;
    case JSON_KIND_BOOL:
        json_take_bool(json);
        break;
    case JSON_KIND_NULL:
        if (!json_take_null(json)) fail_expected(json, "null");
        break;
    case JSON_KIND_NUMBER:
        number_skip(json);
        if (!json->failed) value_end(json);
        break;
    case JSON_KIND_END:
        break;
    }
}

void json_skip(struct json *json) {
    bool is_object[JSON_DEPTH_MAX + 1];
    uint32_t base = json->depth;
    do {
        bool object = json_peek(json) == JSON_KIND_OBJECT;
        uint32_t before = json->depth;
        skip_one(json);
        if (json->failed) return;
        if (json->depth > before) is_object[json->depth] = object;
        // Close what ends here; stop when a value follows or the whole is taken.
        struct json_text key;
        while (json->depth > base) {
            bool more =
                is_object[json->depth] ? json_object_next(json, &key) : json_array_next(json);
            if (json->failed) return;
            if (more) break;
        }
    } while (json->depth > base);
}

size_t json_mark(struct json *json) {
    if (!json->failed) skip_space(json);
    return json->offset;
}

void json_return(struct json *json, size_t mark) {
    if (json->failed) return;
    CHECK(json->depth == 0 && mark <= json->size_bytes);
    json->offset = mark;
    json->after_value[0] = false;
}

void json_end(struct json *json) {
    if (json->failed) return;
    CHECK(json->depth == 0);
    skip_space(json);
    if (!at_end(json)) fail_expected(json, "the end of the text");
}

bool json_text_equals(struct json_text text, const char *literal) {
    size_t size = strlen(literal);
    return text.size_bytes == size && memcmp(text.data, literal, size) == 0;
}
