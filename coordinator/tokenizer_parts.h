// tokenizer_parts: what the files of the tokenizer share; only tokenizer*.c include it.
#pragma once

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/limits.h"
#include "base/memory.h"
#include "base/status.h"
#include "coordinator/tokenizer.h"

// -- vocabulary: tokens by id and by text, and merges ---------------------------------------------

struct token {
    // Into vocabulary.texts. `text` is how tokenizer.json spells it, `bytes` what it stands for.
    uint32_t text_offset, text_size_bytes;
    uint32_t bytes_offset, bytes_size_bytes;
    bool used;     // whether a token has this id
    bool in_model; // part of model.vocab, so BPE can produce it
    bool special;
};

struct merge {
    uint64_t pair; // merge_pair(left, right)
    uint32_t rank; // lower ranks are merged first
    uint32_t id;   // of the merged token
};

struct vocabulary {
    struct token *tokens; // by id
    uint32_t token_capacity;
    uint32_t id_end; // the largest id plus one
    uint32_t token_count;
    struct buffer texts;
    uint32_t *id_slots; // open addressing by text: id + 1, or 0; capacity is a power of two
    uint32_t id_slot_count;
    struct merge *merges; // open addressing by pair; an unused slot has the pair MERGE_NONE
    uint32_t merge_capacity;
    uint32_t merge_count;
    uint32_t byte_ids[256]; // the model's token of each single byte, or ID_NONE
};

#define ID_NONE UINT32_MAX
#define MERGE_NONE UINT64_MAX

static inline uint64_t merge_pair(uint32_t left_id, uint32_t right_id) {
    return (uint64_t)left_id << 32 | right_id;
}

void vocabulary_init(struct vocabulary *vocabulary);
void vocabulary_fini(struct vocabulary *vocabulary);
// Adds a token, or marks an existing one (same id, same text). STATUS_INVALID when the id or the
// text already belongs to another, the text is empty or too long, or the id too large.
MUST_USE enum status vocabulary_add(struct vocabulary *vocabulary, const char *text,
                                    size_t size_bytes, uint32_t id, bool in_model, bool special,
                                    struct error *error);
MUST_USE bool vocabulary_find(const struct vocabulary *vocabulary, const char *text,
                              size_t size_bytes, uint32_t *id_out);
// Only tokens of the model, by the bytes they stand for.
MUST_USE bool vocabulary_find_bytes(const struct vocabulary *vocabulary, const char *bytes,
                                    size_t size_bytes, uint32_t *id_out);
// Merges "left" and "right" into "leftright", all of which must be in the model.
MUST_USE enum status vocabulary_add_merge(struct vocabulary *vocabulary, const char *left,
                                          size_t left_size_bytes, const char *right,
                                          size_t right_size_bytes, uint32_t rank,
                                          struct error *error);
const struct merge *vocabulary_merge(const struct vocabulary *vocabulary, uint64_t pair);
// After the last token is added: fills byte_ids.
void vocabulary_finish(struct vocabulary *vocabulary);

// -- BPE ------------------------------------------------------------------------------------------

struct bpe_symbol {
    uint32_t id;             // ID_NONE: merged into the one before
    uint32_t previous, next; // indices, or ID_NONE
};

struct bpe_candidate {
    uint32_t rank;
    uint32_t position; // index of the left symbol
    uint32_t id;       // of the merged token
};

// Memory that the words of one text share.
struct bpe {
    struct bpe_symbol *symbols;
    size_t symbol_capacity, symbol_count;
    struct bpe_candidate *heap; // the lowest (rank, position) first
    size_t heap_capacity, heap_count;
};

struct bpe_options {
    bool ignore_merges; // a word that is a token is that token
    bool fuse_unknown;
    uint32_t unknown_id; // or ID_NONE
};

void bpe_init(struct bpe *bpe);
void bpe_fini(struct bpe *bpe);
// Leaves the word's tokens in bpe->symbols, in order, those with an id; bpe->symbol_count slots.
MUST_USE enum status bpe_word(struct bpe *bpe, const struct vocabulary *vocabulary,
                              const struct bpe_options *options, const char *word,
                              size_t size_bytes);

// -- Unicode --------------------------------------------------------------------------------------

// The code point at the start or before the end of valid UTF-8, and its size.
int32_t utf8_first(const char *text, size_t size_bytes, size_t *size_bytes_out);
int32_t utf8_last(const char *text, size_t size_bytes, size_t *size_bytes_out);
bool unicode_is_space(int32_t c);   // White_Space
bool unicode_is_word(int32_t c);    // \w of UTS #18
bool unicode_is_numeric(int32_t c); // general category N
// NFC (UAX #15). *owned_out is memory to free that holds *text_out, or NULL when the text already
// was in NFC and *text_out is `text`.
MUST_USE enum status nfc(const char *text, size_t size_bytes, char **owned_out,
                         const char **text_out, size_t *size_bytes_out);

// -- patterns -------------------------------------------------------------------------------------

// Compiles an Oniguruma pattern (Ruby syntax, as tokenizer.json has them) with PCRE2.
// STATUS_UNSUPPORTED for what does not mean the same in both.
MUST_USE enum status pattern_compile(const char *pattern, size_t size_bytes, pcre2_code **code_out,
                                     struct error *error);
MUST_USE enum status pattern_compile_literal(const char *text, size_t size_bytes,
                                             pcre2_code **code_out, struct error *error);
// The pattern that ByteLevel uses by itself (GPT-2).
MUST_USE enum status pattern_compile_gpt2(pcre2_code **code_out, struct error *error);

// What one thread needs to match.
struct matcher {
    pcre2_match_data *data;
    pcre2_match_context *context;
};

MUST_USE enum status matcher_init(struct matcher *matcher);
void matcher_fini(struct matcher *matcher);
// The first match at or after `offset`. *found_out is false when there is none.
// STATUS_EXHAUSTED when it takes too many steps, STATUS_NO_MEMORY.
MUST_USE enum status matcher_find(struct matcher *matcher, const pcre2_code *code, const char *text,
                                  size_t size_bytes, size_t offset, bool *found_out,
                                  size_t *start_out, size_t *end_out);

// -- pre-tokenizer --------------------------------------------------------------------------------

enum split_kind {
    SPLIT_PATTERN,
    SPLIT_DIGITS,
    SPLIT_BYTE_LEVEL, // always the last step, and only there
};

struct split {
    enum split_kind kind;
    pcre2_code *code;      // SPLIT_PATTERN, and SPLIT_BYTE_LEVEL with use_regex; else NULL
    bool remove_matches;   // SPLIT_PATTERN: drop what matches
    bool remove_others;    // SPLIT_PATTERN: drop what does not match
    bool individual;       // SPLIT_DIGITS: each digit is a piece, not each run of them
    bool add_prefix_space; // SPLIT_BYTE_LEVEL
};

// -- added tokens ---------------------------------------------------------------------------------

struct added_token {
    uint32_t id;
    bool single_word, lstrip, rstrip, special, normalized;
};

// A tree of bytes whose paths spell added tokens.
struct added_node {
    uint32_t first_child, next_sibling; // node indices; 0 is none
    uint32_t token;                     // index into added.tokens plus one; 0 is none
    uint8_t byte;
};

struct added_tree {
    struct added_node *nodes; // nodes[0] is the root
    uint32_t node_count, node_capacity;
    uint32_t roots[256]; // the root's children by byte
};

struct added {
    struct added_token *tokens;
    uint32_t token_count, token_capacity;
    struct added_tree raw;        // matched before the text is normalized
    struct added_tree normalized; // matched after
};

struct added_match {
    const struct added_token *token;
    size_t match_end;  // where the next search starts
    size_t start, end; // with the white space that lstrip and rstrip take
};

void added_init(struct added *added);
void added_fini(struct added *added);
MUST_USE enum status added_append(struct added *added, const struct added_token *token);
// After the last token: builds both trees.
MUST_USE enum status added_finish(struct added *added, const struct vocabulary *vocabulary,
                                  bool normalize);
// The leftmost, then longest added token from `offset` on; `taken_end` is the end of the match
// before, with its white space. A token that starts in that white space is still found, and its
// start is then before taken_end. Special ones do not count when !parse_special.
MUST_USE bool added_find(const struct added *added, const struct added_tree *tree, const char *text,
                         size_t size_bytes, size_t offset, size_t taken_end, bool parse_special,
                         struct added_match *match_out);

// -- the whole ------------------------------------------------------------------------------------

enum { TEMPLATE_ID_COUNT_MAX = TOKENIZER_TEMPLATE_PIECE_COUNT_MAX };

struct tokenizer {
    struct vocabulary vocabulary;
    struct bpe_options bpe;
    bool normalize; // NFC
    struct added added;
    struct split splits[TOKENIZER_SPLIT_COUNT_MAX];
    size_t split_count;
    uint32_t prefix_ids[TEMPLATE_ID_COUNT_MAX], suffix_ids[TEMPLATE_ID_COUNT_MAX];
    size_t prefix_id_count, suffix_id_count;
};

// Fills an empty tokenizer from the text of a tokenizer.json.
MUST_USE enum status tokenizer_load(struct tokenizer *tokenizer, const char *name, const char *text,
                                    size_t size_bytes, struct error *error);
