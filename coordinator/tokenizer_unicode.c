// UTF-8, classes of characters, and NFC.
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "coordinator/tokenizer_parts.h"

// -- UTF-8 ----------------------------------------------------------------------------------------

int32_t utf8_first(const char *text, size_t size_bytes, size_t *size_bytes_out) {
    utf8proc_int32_t c = 0;
    utf8proc_ssize_t size =
        utf8proc_iterate((const utf8proc_uint8_t *)text, (utf8proc_ssize_t)size_bytes, &c);
    *size_bytes_out = size > 0 ? (size_t)size : 1;
    return c;
}

int32_t utf8_last(const char *text, size_t size_bytes, size_t *size_bytes_out) {
    size_t start = size_bytes - 1;
    while (start > 0 && ((unsigned char)text[start] & 0xc0) == 0x80)
        start--;
    return utf8_first(text + start, size_bytes - start, size_bytes_out);
}

// -- classes --------------------------------------------------------------------------------------

bool unicode_is_space(int32_t c) {
    if (c < 0x80) return c == ' ' || (c >= '\t' && c <= '\r');
    return c == 0x85 || c == 0xa0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 ||
           c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

bool unicode_is_word(int32_t c) {
    switch (utf8proc_category(c)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
        return true;
    default:
        break;
    }
    // Other_Alphabetic that is neither letter nor mark (circled and squared letters), and
    // Join_Control.
    return (c >= 0x24b6 && c <= 0x24e9) || (c >= 0x1f130 && c <= 0x1f149) ||
           (c >= 0x1f150 && c <= 0x1f169) || (c >= 0x1f170 && c <= 0x1f189) || c == 0x200c ||
           c == 0x200d;
}

bool unicode_is_numeric(int32_t c) {
    utf8proc_category_t category = utf8proc_category(c);
    return category == UTF8PROC_CATEGORY_ND || category == UTF8PROC_CATEGORY_NL ||
           category == UTF8PROC_CATEGORY_NO;
}

// -- NFC ------------------------------------------------------------------------------------------

enum {
    DECOMPOSED_COUNT_MAX = 4, // code points that one decomposes to, canonically (UAX #15)
    CLASS_COUNT = 256,        // canonical combining classes
    INSERTION_COUNT_MAX = 32, // longer runs of marks are sorted by counting
};

// Code points below U+0300 are in NFC whatever their neighbours; 0xcc is the lead byte of U+0300.
static bool surely_nfc(const char *text, size_t size_bytes) {
    for (size_t i = 0; i < size_bytes; i++)
        if ((unsigned char)text[i] >= 0xcc) return false;
    return true;
}

static int combining_class(int32_t c) {
    return c < 0x300 ? 0 : utf8proc_get_property(c)->combining_class;
}

// Sorts one run of marks by class, keeping the order within a class. utf8proc's own sorting takes
// quadratic time, which a hostile text would make long.
static void sort_marks(int32_t *marks, size_t count, int32_t *spare) {
    if (count <= INSERTION_COUNT_MAX) {
        for (size_t i = 1; i < count; i++) {
            int32_t mark = marks[i];
            size_t j = i;
            for (; j > 0 && combining_class(marks[j - 1]) > combining_class(mark); j--)
                marks[j] = marks[j - 1];
            marks[j] = mark;
        }
        return;
    }
    size_t starts[CLASS_COUNT + 1] = {0};
    for (size_t i = 0; i < count; i++)
        starts[combining_class(marks[i]) + 1]++;
    for (size_t i = 1; i <= CLASS_COUNT; i++)
        starts[i] += starts[i - 1];
    for (size_t i = 0; i < count; i++)
        spare[starts[combining_class(marks[i])]++] = marks[i];
    memcpy(marks, spare, count * sizeof(*marks));
}

static void order_marks(int32_t *points, size_t count, int32_t *spare) {
    for (size_t i = 0; i < count;) {
        if (combining_class(points[i]) == 0) {
            i++;
            continue;
        }
        size_t start = i;
        while (i < count && combining_class(points[i]) != 0)
            i++;
        sort_marks(points + start, i - start, spare);
    }
}

static size_t decompose(const char *text, size_t size_bytes, int32_t *points) {
    size_t count = 0;
    for (size_t offset = 0; offset < size_bytes;) {
        size_t character_bytes;
        int32_t c = utf8_first(text + offset, size_bytes - offset, &character_bytes);
        offset += character_bytes;
        int boundary = 0;
        utf8proc_ssize_t got =
            utf8proc_decompose_char(c, points + count, DECOMPOSED_COUNT_MAX,
                                    UTF8PROC_STABLE | UTF8PROC_DECOMPOSE, &boundary);
        if (got < 0 || got > DECOMPOSED_COUNT_MAX) {
            points[count++] = c; // cannot be: the text is valid
            continue;
        }
        count += (size_t)got;
    }
    return count;
}

enum status nfc(const char *text, size_t size_bytes, char **owned_out, const char **text_out,
                size_t *size_bytes_out) {
    *owned_out = NULL;
    *text_out = text;
    *size_bytes_out = size_bytes;
    if (surely_nfc(text, size_bytes)) return STATUS_OK;
    // A byte gives at most two code points: three for U+0390 (two bytes), four for U+1F82 (three).
    size_t capacity = 2 * size_bytes + DECOMPOSED_COUNT_MAX;
    int32_t *points = memory_array(capacity, 2 * sizeof(*points));
    if (points == NULL) return STATUS_NO_MEMORY;
    size_t count = decompose(text, size_bytes, points);
    order_marks(points, count, points + capacity);
    utf8proc_ssize_t composed = utf8proc_normalize_utf32(points, (utf8proc_ssize_t)count,
                                                         UTF8PROC_STABLE | UTF8PROC_COMPOSE);
    // NFC of n bytes of UTF-8 has at most 3n bytes (UAX #15, section 12.1).
    char *normal = composed < 0 ? NULL : memory_array(3 * size_bytes + 4, 1);
    if (normal == NULL) {
        free(points);
        return STATUS_NO_MEMORY;
    }
    size_t used = 0;
    for (utf8proc_ssize_t i = 0; i < composed; i++)
        used += (size_t)utf8proc_encode_char(points[i], (utf8proc_uint8_t *)normal + used);
    free(points);
    *owned_out = normal;
    *text_out = normal;
    *size_bytes_out = used;
    return STATUS_OK;
}
