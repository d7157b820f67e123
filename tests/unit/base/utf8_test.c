// Well-formed UTF-8: every sequence of up to four bytes that matters, against the definition.
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/utf8.h"

// The encoding of a code point (RFC 3629, section 3).
static size_t encode(uint32_t c, unsigned char *out) {
    if (c < 0x80) {
        out[0] = (unsigned char)c;
        return 1;
    }
    size_t length = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    static const unsigned char leads[] = {0, 0, 0xc0, 0xe0, 0xf0};
    for (size_t i = length - 1; i > 0; i--) {
        out[i] = (unsigned char)(0x80 | (c & 0x3f));
        c >>= 6;
    }
    out[0] = (unsigned char)(leads[length] | c);
    return length;
}

static void utf8_takes_every_code_point_but_surrogates(void **state) {
    (void)state;
    for (uint32_t c = 0; c <= 0x10ffff; c++) {
        unsigned char bytes[4];
        size_t length = encode(c, bytes);
        bool is_surrogate = c >= 0xd800 && c <= 0xdfff;
        size_t found = utf8_sequence_bytes((const char *)bytes, length);
        if (found != (is_surrogate ? 0 : length)) fail_msg("U+%04X: %zu", (unsigned)c, found);
        if (length > 1 && utf8_sequence_bytes((const char *)bytes, length - 1) != 0)
            fail_msg("U+%04X is taken when it is cut", (unsigned)c);
    }
}

// There are exactly as many well-formed sequences as code points: whatever else is taken is wrong.
static void utf8_takes_nothing_else(void **state) {
    (void)state;
    uint32_t count = 0;
    for (uint32_t high = 0; high <= 0xffff; high++) {
        // Bytes from the third on are all alike: 0x7f, 0x80, 0xbf and 0xc0 stand for the rest.
        static const unsigned char low[] = {0x00, 0x7f, 0x80, 0xbf, 0xc0, 0xff};
        for (size_t i = 0; i < 36; i++) {
            unsigned char bytes[] = {(unsigned char)(high >> 8), (unsigned char)high, low[i / 6],
                                     low[i % 6]};
            size_t length = utf8_sequence_bytes((const char *)bytes, 4);
            if (length < 3) continue;
            bool is_good = low[i / 6] == 0x80 || low[i / 6] == 0xbf;
            if (length == 4) is_good = is_good && (low[i % 6] == 0x80 || low[i % 6] == 0xbf);
            if (!is_good) fail_msg("%04x %02x %02x", (unsigned)high, low[i / 6], low[i % 6]);
            count++;
        }
    }
    // 3 bytes: (0x10000 - 0x800 - 0x800 surrogates) / 64 pairs x 2 x 6; 4 bytes: 0x100000 / 4096
    // x 4.
    assert_int_equal(count, (0x10000 - 0x800 - 0x800) / 64 * 12 + 0x100000 / 4096 * 4);
    uint32_t pair_count = 0;
    for (uint32_t pair = 0; pair <= 0xffff; pair++) {
        unsigned char bytes[] = {(unsigned char)(pair >> 8), (unsigned char)pair};
        if (utf8_sequence_bytes((const char *)bytes, 2) == 2) pair_count++;
    }
    assert_int_equal(pair_count, 0x800 - 0x80);
}

static void utf8_says_where_text_goes_wrong(void **state) {
    (void)state;
    assert_int_equal(utf8_valid_bytes("", 0), 0);
    assert_int_equal(utf8_valid_bytes("ab\xc3\xa9", 4), 4);
    assert_int_equal(utf8_valid_bytes("ab\xc3\xa9", 3), 2);
    assert_int_equal(utf8_valid_bytes("a\0b\xff", 4), 3);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(utf8_takes_every_code_point_but_surrogates),
        cmocka_unit_test(utf8_takes_nothing_else),
        cmocka_unit_test(utf8_says_where_text_goes_wrong),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
