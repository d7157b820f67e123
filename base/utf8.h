// utf8: well-formed UTF-8, by table 3-7 of the Unicode standard: no overlong forms, no surrogates,
// nothing above U+10FFFF.
#pragma once

#include <stddef.h>

// Bytes of the well-formed sequence that text begins with: 1 to 4; 0 when there is none.
// size_bytes at least 1.
size_t utf8_sequence_bytes(const char *text, size_t size_bytes);

// How many bytes at the beginning of text are whole well-formed sequences.
size_t utf8_valid_bytes(const char *text, size_t size_bytes);
