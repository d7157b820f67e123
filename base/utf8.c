#include "base/utf8.h"

#include <stdbool.h>
#include <stdint.h>

size_t utf8_sequence_bytes(const char *text, size_t size_bytes) {
    const uint8_t *bytes = (const uint8_t *)text;
    uint8_t lead = bytes[0];
    if (lead < 0x80) return 1;
    size_t length = lead < 0xc2 ? 0 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : lead < 0xf5 ? 4 : 0;
    if (length == 0 || length > size_bytes) return 0;
    uint8_t low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
    uint8_t high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
    if (bytes[1] < low || bytes[1] > high) return 0;
    for (size_t i = 2; i < length; i++) {
        if ((bytes[i] & 0xc0) != 0x80) return 0;
    }
    return length;
}

size_t utf8_valid_bytes(const char *text, size_t size_bytes) {
    size_t valid_bytes = 0;
    while (valid_bytes < size_bytes) {
        bool is_ascii = (unsigned char)text[valid_bytes] < 0x80;
        size_t length =
            is_ascii ? 1 : utf8_sequence_bytes(text + valid_bytes, size_bytes - valid_bytes);
        if (length == 0) break;
        valid_bytes += length;
    }
    return valid_bytes;
}
