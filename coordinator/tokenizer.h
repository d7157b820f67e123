// tokenizer: text to token ids and back, as a Hugging Face tokenizer.json describes it.
//
// Supported is byte-level BPE: a normalizer of NFC or none; pre-tokenizers ByteLevel, Split (regex
// or string; Isolated or Removed), Digits and sequences of these that end with ByteLevel;
// post-processors ByteLevel and TemplateProcessing; the ByteLevel decoder. Anything else is refused
// with a sentence that names the field. The fields "truncation" and "padding" have no effect here.
//
// Results equal those of Hugging Face tokenizers, also where that is debatable: a byte that the
// vocabulary has no token for becomes unk_token, or nothing when there is none. Only characters
// that are newer than the Unicode version of the installed PCRE2 and utf8proc may be split
// differently.
//
// After it is opened, a tokenizer never changes: any number of threads may use it at once.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/memory.h"
#include "base/status.h"

struct tokenizer;

// STATUS_NOT_FOUND, STATUS_IO, STATUS_INVALID, STATUS_UNSUPPORTED, STATUS_EXHAUSTED (a limit of the
// section "tokenizer" in base/limits.h), STATUS_NO_MEMORY.
MUST_USE enum status tokenizer_open(const char *path, struct tokenizer **tokenizer_out,
                                    struct error *error);
// The same for a file's text in memory, which is not needed afterwards. `name` is for errors.
MUST_USE enum status tokenizer_open_memory(const char *name, const char *text, size_t size_bytes,
                                           struct tokenizer **tokenizer_out, struct error *error);
void tokenizer_close(struct tokenizer *tokenizer);

enum tokenizer_flags {
    // The ids that the post-processor puts before and after a text, such as a BOS token.
    TOKENIZER_ADD_SPECIAL = 1 << 0,
    // "<|eot|>" inside the text is that special token; else it is ordinary text. Added tokens that
    // are not special are always found.
    TOKENIZER_PARSE_SPECIAL = 1 << 1,
};

// Writes at most id_count_max ids. The text need not be terminated.
// STATUS_INVALID: not UTF-8; the sentence has the byte offset.
// STATUS_EXHAUSTED: more than id_count_max tokens, the text is too large, or matching a pattern of
// the pre-tokenizer took more steps than allowed. STATUS_NO_MEMORY.
MUST_USE enum status tokenizer_encode(const struct tokenizer *tokenizer, const char *text,
                                      size_t size_bytes, uint32_t flags, uint32_t *ids_out,
                                      size_t id_count_max, size_t *id_count_out,
                                      struct error *error);

// Appends the text of all ids. Bytes that are not UTF-8 become U+FFFD.
// STATUS_INVALID: an id is not below tokenizer_vocabulary_size(). STATUS_EXHAUSTED: the buffer's
// limit. STATUS_NO_MEMORY. The buffer is unchanged then.
MUST_USE enum status tokenizer_decode(const struct tokenizer *tokenizer, const uint32_t *ids,
                                      size_t id_count, bool skip_special, struct buffer *text_out,
                                      struct error *error);

// The largest id plus one. Ids below it may be unused: they have no bytes. A model may have more
// rows than this.
uint32_t tokenizer_vocabulary_size(const struct tokenizer *tokenizer);

// The bytes that a token stands for (maybe a part of a UTF-8 character), until tokenizer_close().
// False when no token has this id.
MUST_USE bool tokenizer_token_bytes(const struct tokenizer *tokenizer, uint32_t id,
                                    const char **data_out, size_t *size_bytes_out,
                                    bool *is_special_out);

// The id of a token as tokenizer.json spells it, such as "<|eot|>" or "Ġthe". False when there is
// none.
MUST_USE bool tokenizer_token_id(const struct tokenizer *tokenizer, const char *text,
                                 size_t size_bytes, uint32_t *id_out);
