// Patterns: Oniguruma's Ruby syntax, which tokenizer.json has, written again for PCRE2.
//
// Sources: Oniguruma doc/RE, PCRE2 pcre2pattern(3). What means the same in both is copied; what
// differs is spelled out, or refused when no tokenizer in use needs it.
#include <stdio.h>
#include <string.h>

#include "coordinator/tokenizer_parts.h"

// Members of Oniguruma's classes, to be put between brackets. PCRE2's \s has U+180E too, and its
// \w lacks marks and connectors. Outside brackets Oniguruma counts
// the numbers of Latin-1, but no others, as \w.
#define SPACE                                                                                      \
    "\\x09-\\x0d\\x20\\x85\\xa0\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}"   \
    "\\x{3000}"
#define NOT_SPACE                                                                                  \
    "\\x00-\\x08\\x0e-\\x1f\\x21-\\x84\\x86-\\x9f\\xa1-\\x{167f}\\x{1681}-\\x{1fff}"               \
    "\\x{200b}-\\x{2027}\\x{202a}-\\x{202e}\\x{2030}-\\x{205e}\\x{2060}-\\x{2fff}"                 \
    "\\x{3001}-\\x{d7ff}\\x{e000}-\\x{10ffff}"
#define WORD "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}"
#define WORD_ALONE WORD "\\xb2\\xb3\\xb9\\xbc-\\xbe" // outside brackets
#define HEX "0-9A-Fa-f"

// Each character of a pattern grows to at most this much.
enum { GROWTH_MAX = 256, TRANSLATED_BYTES_MAX = TOKENIZER_PATTERN_BYTES_MAX * GROWTH_MAX };

struct translation {
    const char *pattern;
    size_t size_bytes;
    size_t offset;
    struct buffer out;
    enum status status;
    struct error *error;
};

// -- reading and writing --------------------------------------------------------------------------

static void refuse(struct translation *translation, const char *what) {
    if (translation->status != STATUS_OK) return;
    translation->status =
        error_set(translation->error, STATUS_UNSUPPORTED, "%s at character %zu is not supported",
                  what, translation->offset);
}

static void put_bytes(struct translation *translation, const char *text, size_t size_bytes) {
    if (translation->status != STATUS_OK) return;
    if (buffer_append(&translation->out, text, size_bytes) != STATUS_OK)
        translation->status =
            error_set(translation->error, STATUS_NO_MEMORY, "no memory for a pattern");
}

static void put(struct translation *translation, const char *text) {
    put_bytes(translation, text, strlen(text));
}

static bool at_end(const struct translation *translation) {
    return translation->offset >= translation->size_bytes;
}

// The character `ahead` places on, or '\0' after the end.
static char look(const struct translation *translation, size_t ahead) {
    size_t left = translation->size_bytes - translation->offset;
    return ahead < left ? translation->pattern[translation->offset + ahead] : '\0';
}

static bool looking_at(const struct translation *translation, const char *text) {
    size_t size = strlen(text);
    return translation->size_bytes - translation->offset >= size &&
           memcmp(translation->pattern + translation->offset, text, size) == 0;
}

static void copy(struct translation *translation, size_t size_bytes) {
    put_bytes(translation, translation->pattern + translation->offset, size_bytes);
    translation->offset += size_bytes;
}

static bool is_alphanumeric(char c) {
    return (c >= '0' && c <= '9') || ((c | 0x20) >= 'a' && (c | 0x20) <= 'z');
}

static bool is_hex(char c) {
    return (c >= '0' && c <= '9') || ((c | 0x20) >= 'a' && (c | 0x20) <= 'f');
}

// -- escapes --------------------------------------------------------------------------------------

static bool is_general_category(const char *name, size_t size_bytes) {
    static const char *const names[] = {"C",  "Cc", "Cf", "Cn", "Co", "Cs", "L",  "Ll", "Lm", "Lo",
                                        "Lt", "Lu", "M",  "Mc", "Me", "Mn", "N",  "Nd", "Nl", "No",
                                        "P",  "Pc", "Pd", "Pe", "Pf", "Pi", "Po", "Ps", "S",  "Sc",
                                        "Sk", "Sm", "So", "Z",  "Zl", "Zp", "Zs"};
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        if (strlen(names[i]) == size_bytes && memcmp(names[i], name, size_bytes) == 0) return true;
    return false;
}

// \p{L}, \p{^L}, \P{Han}: after a category, anything else is taken for a script.
static void translate_property(struct translation *translation) {
    const char *pattern = translation->pattern;
    size_t start = translation->offset + 3, end = start;
    bool negated = look(translation, 1) == 'P';
    if (look(translation, 2) == '{' && look(translation, 3) == '^') {
        negated = !negated;
        end = ++start;
    }
    while (end < translation->size_bytes && (is_alphanumeric(pattern[end]) || pattern[end] == '_'))
        end++;
    if (look(translation, 2) != '{' || end == start || end >= translation->size_bytes ||
        pattern[end] != '}') {
        refuse(translation, "a property without its braces");
        return;
    }
    put(translation, negated ? "\\P{" : "\\p{");
    if (!is_general_category(pattern + start, end - start)) put(translation, "sc:");
    put_bytes(translation, pattern + start, end - start);
    put(translation, "}");
    translation->offset = end + 1;
}

// \uHHHH, \x{H...} and, for ASCII only, \xHH (beyond it Oniguruma means a byte).
static void translate_code(struct translation *translation) {
    bool is_u = look(translation, 1) == 'u', braces = !is_u && look(translation, 2) == '{';
    size_t start = braces ? 3 : 2, digits = 0, digits_max = is_u ? 4 : braces ? 6 : 2;
    while (digits < digits_max && is_hex(look(translation, start + digits)))
        digits++;
    bool complete =
        braces ? digits > 0 && look(translation, start + digits) == '}' : digits == digits_max;
    if (!complete || (!is_u && !braces && look(translation, 2) > '7')) {
        refuse(translation, "this code of a character");
        return;
    }
    put(translation, "\\x{");
    put_bytes(translation, translation->pattern + translation->offset + start, digits);
    put(translation, "}");
    translation->offset += start + digits + braces;
}

// What both kinds of escapes share, in a class and outside. False when it is none of these.
static bool translate_common_escape(struct translation *translation) {
    char c = look(translation, 1);
    if (c == 'p' || c == 'P') {
        translate_property(translation);
    } else if (c == 'u' || c == 'x') {
        translate_code(translation);
    } else if (c == 'd' || c == 'D') {
        put(translation, c == 'd' ? "\\p{Nd}" : "\\P{Nd}");
        translation->offset += 2;
    } else if (c == 'v') {
        put(translation, "\\x0b");
        translation->offset += 2;
    } else if ((unsigned char)c >= 0x80) {
        translation->offset++; // the backslash has no meaning there
    } else if (c != '\0' && (!is_alphanumeric(c) || strchr("tnrfae", c) != NULL)) {
        copy(translation, 2);
    } else {
        return false;
    }
    return true;
}

static void translate_escape(struct translation *translation) {
    if (translate_common_escape(translation)) return;
    switch (look(translation, 1)) {
    case 's':
        put(translation, "[" SPACE "]");
        break;
    case 'S':
        put(translation, "[^" SPACE "]");
        break;
    case 'w':
        put(translation, "[" WORD_ALONE "]");
        break;
    case 'W':
        put(translation, "[^" WORD_ALONE "]");
        break;
    case 'h':
        put(translation, "[" HEX "]");
        break;
    case 'H':
        put(translation, "[^" HEX "]");
        break;
    case 'b':
        put(translation, "(?:(?<=[" WORD_ALONE "])(?![" WORD_ALONE "])|(?<![" WORD_ALONE
                         "])(?=[" WORD_ALONE "]))");
        break;
    case 'B':
        put(translation, "(?:(?<=[" WORD_ALONE "])(?=[" WORD_ALONE "])|(?<![" WORD_ALONE
                         "])(?![" WORD_ALONE "]))");
        break;
    case 'A':
        put(translation, "\\A");
        break;
    case 'z':
        put(translation, "\\z");
        break;
    case 'Z':
        put(translation, "\\Z");
        break;
    default:
        refuse(translation, "this escape");
        return;
    }
    translation->offset += 2;
}

// -- classes --------------------------------------------------------------------------------------

static bool is_class_escape(char c) {
    return c != '\0' && strchr("sSwWdDhHpP", c) != NULL;
}

static void translate_class_escape(struct translation *translation) {
    if (translate_common_escape(translation)) return;
    switch (look(translation, 1)) {
    case 's':
        put(translation, SPACE);
        break;
    case 'S':
        put(translation, NOT_SPACE);
        break;
    case 'w':
        put(translation, WORD);
        break;
    case 'h':
        put(translation, HEX);
        break;
    case 'b':
        put(translation, "\\x08");
        break;
    default:
        refuse(translation, "this escape in brackets");
        return;
    }
    translation->offset += 2;
}

// One member; `after_set` is whether the one before was a set such as \s, beside which a hyphen is
// itself.
static void translate_class_member(struct translation *translation, bool *after_set) {
    char c = look(translation, 0);
    bool is_set = false;
    if (c == '\\') {
        is_set = is_class_escape(look(translation, 1));
        translate_class_escape(translation);
    } else if (c == '[') {
        refuse(translation, "a bracket in brackets");
    } else if (c == '&' && look(translation, 1) == '&') {
        refuse(translation, "\"&&\" in brackets");
    } else if (c == '-' && look(translation, 1) != ']' &&
               (*after_set ||
                (look(translation, 1) == '\\' && is_class_escape(look(translation, 2))))) {
        refuse(translation, "a range with a set");
    } else {
        copy(translation, 1);
    }
    *after_set = is_set;
}

static void translate_class(struct translation *translation) {
    copy(translation, 1);
    if (look(translation, 0) == '^') copy(translation, 1);
    if (look(translation, 0) == ']') refuse(translation, "\"[]\"");
    bool after_set = false;
    while (translation->status == STATUS_OK && !at_end(translation)) {
        if (look(translation, 0) == ']') {
            copy(translation, 1);
            return;
        }
        translate_class_member(translation, &after_set);
    }
    refuse(translation, "brackets without their end");
}

// -- groups and quantifiers -----------------------------------------------------------------------

static void translate_group(struct translation *translation) {
    static const char *const openings[] = {
        "(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>", "(?i:", "(?-i:"};
    for (size_t i = 0; i < sizeof(openings) / sizeof(openings[0]); i++) {
        if (!looking_at(translation, openings[i])) continue;
        copy(translation, strlen(openings[i]));
        return;
    }
    // Further inside, "(?i)" reaches over a different part of the pattern in each syntax.
    if (translation->offset == 0 && looking_at(translation, "(?i)")) {
        copy(translation, 4);
    } else if (look(translation, 1) == '?' || look(translation, 1) == '*') {
        refuse(translation, "this kind of group");
    } else {
        copy(translation, 1);
    }
}

static size_t count_digits(const struct translation *translation, size_t ahead) {
    size_t count = 0;
    while (look(translation, ahead + count) >= '0' && look(translation, ahead + count) <= '9')
        count++;
    return count;
}

// "{n}", "{n,}", "{n,m}" and Ruby's "{,m}"; any other brace is itself.
static void translate_brace(struct translation *translation) {
    size_t least = count_digits(translation, 1), size = 1 + least;
    size_t most = 0;
    bool comma = look(translation, size) == ',';
    if (comma) most = count_digits(translation, ++size);
    size += most;
    if (look(translation, size) != '}' || (least == 0 && most == 0)) {
        put(translation, "\\{");
        translation->offset++;
        return;
    }
    char next = look(translation, size + 1);
    if (next == '+' || (next == '?' && !comma)) {
        refuse(translation, "this character after a count");
        return;
    }
    if (least == 0) {
        put(translation, "{0");
        translation->offset++;
        size--;
    }
    copy(translation, size + 1);
}

static void translate(struct translation *translation) {
    while (translation->status == STATUS_OK && !at_end(translation)) {
        switch (look(translation, 0)) {
        case '\\':
            translate_escape(translation);
            break;
        case '[':
            translate_class(translation);
            break;
        case '(':
            translate_group(translation);
            break;
        case '{':
            translate_brace(translation);
            break;
        default:
            copy(translation, 1);
            break;
        }
    }
}

// -- compiling ------------------------------------------------------------------------------------

static enum status compile(const char *text, size_t size_bytes, uint32_t options,
                           pcre2_code **code_out, struct error *error) {
    pcre2_compile_context *context = pcre2_compile_context_create(NULL);
    if (context == NULL) return error_set(error, STATUS_NO_MEMORY, "no memory for a pattern");
    pcre2_set_newline(context, PCRE2_NEWLINE_LF);
    int code_of_error;
    PCRE2_SIZE error_offset;
    pcre2_code *code =
        pcre2_compile((PCRE2_SPTR)text, size_bytes, options | PCRE2_UTF | PCRE2_NO_UTF_CHECK,
                      &code_of_error, &error_offset, context);
    pcre2_compile_context_free(context);
    if (code == NULL) {
        char message[128] = "unknown";
        pcre2_get_error_message(code_of_error, (PCRE2_UCHAR *)message, sizeof(message));
        return error_set(error, STATUS_UNSUPPORTED, "PCRE2: %s", message);
    }
    // Without JIT (no executable memory) the interpreter matches.
    pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);
    *code_out = code;
    return STATUS_OK;
}

enum status pattern_compile(const char *pattern, size_t size_bytes, pcre2_code **code_out,
                            struct error *error) {
    if (size_bytes > TOKENIZER_PATTERN_BYTES_MAX)
        return error_set(error, STATUS_UNSUPPORTED, "%zu bytes, the limit is %d", size_bytes,
                         TOKENIZER_PATTERN_BYTES_MAX);
    struct translation translation = {
        .pattern = pattern, .size_bytes = size_bytes, .error = error, .status = STATUS_OK};
    buffer_init(&translation.out, TRANSLATED_BYTES_MAX);
    put(&translation, "");
    translate(&translation);
    enum status status = translation.status;
    // Multi-line: in Ruby "^" and "$" always match at lines.
    if (status == STATUS_OK)
        status = compile(translation.out.data, translation.out.size_bytes,
                         PCRE2_UCP | PCRE2_MULTILINE, code_out, error);
    buffer_fini(&translation.out);
    return status;
}

enum status pattern_compile_literal(const char *text, size_t size_bytes, pcre2_code **code_out,
                                    struct error *error) {
    if (size_bytes > TOKENIZER_PATTERN_BYTES_MAX)
        return error_set(error, STATUS_UNSUPPORTED, "%zu bytes, the limit is %d", size_bytes,
                         TOKENIZER_PATTERN_BYTES_MAX);
    return compile(text, size_bytes, PCRE2_LITERAL, code_out, error);
}

enum status pattern_compile_gpt2(pcre2_code **code_out, struct error *error) {
    static const char pattern[] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+|"
                                  " ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
    return pattern_compile(pattern, strlen(pattern), code_out, error);
}

// -- matching -------------------------------------------------------------------------------------

enum status matcher_init(struct matcher *matcher) {
    matcher->data = pcre2_match_data_create(1, NULL);
    matcher->context = pcre2_match_context_create(NULL);
    if (matcher->data == NULL || matcher->context == NULL) {
        matcher_fini(matcher);
        return STATUS_NO_MEMORY;
    }
    pcre2_set_heap_limit(matcher->context, TOKENIZER_MATCH_HEAP_KIB_MAX);
    return STATUS_OK;
}

void matcher_fini(struct matcher *matcher) {
    pcre2_match_data_free(matcher->data);
    pcre2_match_context_free(matcher->context);
    *matcher = (struct matcher){0};
}

enum status matcher_find(struct matcher *matcher, const pcre2_code *code, const char *text,
                         size_t size_bytes, size_t offset, bool *found_out, size_t *start_out,
                         size_t *end_out) {
    size_t steps = TOKENIZER_MATCH_STEP_COUNT_BASE +
                   TOKENIZER_MATCH_STEP_COUNT_PER_BYTE * (size_bytes - offset);
    pcre2_set_match_limit(matcher->context, steps > UINT32_MAX ? UINT32_MAX : (uint32_t)steps);
    // The whole text was found to be UTF-8, and pieces end between characters.
    uint32_t options = PCRE2_NO_UTF_CHECK;
    int rc = pcre2_match(code, (PCRE2_SPTR)text, size_bytes, offset, options, matcher->data,
                         matcher->context);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT) // the interpreter's stack is on the heap
        rc = pcre2_match(code, (PCRE2_SPTR)text, size_bytes, offset, options | PCRE2_NO_JIT,
                         matcher->data, matcher->context);
    if (rc == PCRE2_ERROR_NOMATCH) {
        *found_out = false;
        return STATUS_OK;
    }
    if (rc == PCRE2_ERROR_NOMEMORY) return STATUS_NO_MEMORY;
    if (rc < 0) return STATUS_EXHAUSTED; // a match, depth, heap or recursion limit
    const PCRE2_SIZE *ends = pcre2_get_ovector_pointer(matcher->data);
    *found_out = true;
    *start_out = ends[0];
    *end_out = ends[1];
    return STATUS_OK;
}
