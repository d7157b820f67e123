// detokenizer: token ids of one sequence, one at a time, to text that is complete UTF-8 at every
// moment. All that is appended for a sequence equals tokenizer_decode() of all its ids.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/memory.h"
#include "base/status.h"
#include "coordinator/tokenizer.h"

struct detokenizer {
    const struct tokenizer *tokenizer; // borrowed while the detokenizer is used; NULL: no text
    bool skip_special;
    // The start of a character whose other bytes have not come yet.
    uint8_t tail_size_bytes;
    uint8_t tail[3];
};

// Holds no memory of its own: nothing to close, and a copy is a snapshot.
void detokenizer_init(struct detokenizer *detokenizer, const struct tokenizer *tokenizer,
                      bool skip_special);

// Appends the text that `id` completes, maybe none. Bytes that are not UTF-8 become U+FFFD, one for
// each maximal part of a character (Unicode 15, section 3.9; what Hugging Face does). An id that no
// token has gives no text. STATUS_EXHAUSTED (the buffer's limit) or STATUS_NO_MEMORY: nothing was
// appended and the id was not taken.
MUST_USE enum status detokenizer_push(struct detokenizer *detokenizer, uint32_t id,
                                      struct buffer *text_out);

// From offset_bytes on, each U+0000 of the text becomes U+FFFD, for a message's string would end
// there. STATUS_EXHAUSTED, STATUS_NO_MEMORY: the text is as before.
MUST_USE enum status detokenizer_replace_zeros(struct buffer *text, size_t offset_bytes);

// At the end of the sequence: a character that is still incomplete becomes one U+FFFD. Failures are
// those of detokenizer_push().
MUST_USE enum status detokenizer_flush(struct detokenizer *detokenizer, struct buffer *text_out);
