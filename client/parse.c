#include "client/parse.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/limits.h"
#include "base/memory.h"

enum status parse_u64(const char *option, const char *text, uint64_t *value_out,
                      struct error *error) {
    errno = 0;
    char *end;
    unsigned long long value = strtoull(text, &end, 10);
    // strtoull accepts a sign and wraps it around: only digits are a number here.
    if (text[0] < '0' || text[0] > '9' || *end != '\0' || errno != 0)
        return error_set(error, STATUS_INVALID, "--%s is '%s', it must be a whole number", option,
                         text);
    *value_out = value;
    return STATUS_OK;
}

// Reads the token id at *cursor and moves behind it.
static bool take_token_id(const char **cursor, uint32_t *id_out) {
    if (**cursor < '0' || **cursor > '9') return false;
    errno = 0;
    char *end;
    unsigned long long id = strtoull(*cursor, &end, 10);
    if (errno != 0 || id > UINT32_MAX) return false;
    *cursor = end;
    *id_out = (uint32_t)id;
    return true;
}

// Reads the "ID=VALUE" at *cursor and moves behind it.
static bool take_token_bias(const char **cursor, struct token_bias *bias_out) {
    struct token_bias bias;
    if (!take_token_id(cursor, &bias.token_id) || **cursor != '=') return false;
    char *end;
    bias.bias = strtof(*cursor + 1, &end);
    if (end == *cursor + 1 || !isfinite(bias.bias)) return false;
    *cursor = end;
    *bias_out = bias;
    return true;
}

static const char *skip_separators(const char *cursor) {
    return cursor + strspn(cursor, ", \t\r\n");
}

static bool at_separator(const char *cursor) {
    return *cursor == '\0' || skip_separators(cursor) != cursor;
}

// How many entries a list can have at most: one more than its separators.
static size_t entry_count_max(const char *text) {
    size_t count = 1;
    for (const char *c = text; *c != '\0'; c++)
        count += strchr(", \t\r\n", *c) != NULL;
    return count;
}

static enum status check_length(const char *option, size_t count, struct error *error) {
    if (count <= CLIENT_LIST_COUNT_MAX) return STATUS_OK;
    return error_set(error, STATUS_EXHAUSTED, "--%s has more than %d entries", option,
                     CLIENT_LIST_COUNT_MAX);
}

enum status parse_token_ids(const char *option, const char *text, uint32_t **ids_out,
                            size_t *count_out, struct error *error) {
    size_t capacity = entry_count_max(text);
    enum status status = check_length(option, capacity, error);
    if (status != STATUS_OK) return status;
    uint32_t *ids = memory_array(capacity, sizeof(*ids));
    if (ids == NULL) return error_set(error, STATUS_NO_MEMORY, "no memory for --%s", option);
    size_t count = 0;
    for (const char *c = skip_separators(text); *c != '\0'; c = skip_separators(c)) {
        const char *entry = c;
        // A number must be followed by a separator or the end, so entries cannot outnumber them.
        if (!take_token_id(&c, &ids[count]) || !at_separator(c)) {
            free(ids);
            return error_set(error, STATUS_INVALID, "--%s: '%.20s' is not a token id", option,
                             entry);
        }
        count++;
    }
    *ids_out = ids;
    *count_out = count;
    return STATUS_OK;
}

enum status parse_token_biases(const char *option, const char *text, struct token_bias **biases_out,
                               size_t *count_out, struct error *error) {
    size_t capacity = entry_count_max(text);
    enum status status = check_length(option, capacity, error);
    if (status != STATUS_OK) return status;
    struct token_bias *biases = memory_array(capacity, sizeof(*biases));
    if (biases == NULL) return error_set(error, STATUS_NO_MEMORY, "no memory for --%s", option);
    size_t count = 0;
    for (const char *c = skip_separators(text); *c != '\0'; c = skip_separators(c)) {
        const char *entry = c;
        if (!take_token_bias(&c, &biases[count]) || !at_separator(c)) {
            free(biases);
            return error_set(error, STATUS_INVALID, "--%s: '%.20s' is not ID=VALUE", option, entry);
        }
        count++;
    }
    *biases_out = biases;
    *count_out = count;
    return STATUS_OK;
}

// Appends standard input to `text`, up to the buffer's limit.
static enum status read_standard_input(struct buffer *text, struct error *error) {
    char piece[4096];
    for (;;) {
        ssize_t size = read(STDIN_FILENO, piece, sizeof(piece));
        if (size == 0) return STATUS_OK;
        if (size < 0)
            return error_set(error, STATUS_IO, "cannot read standard input: %s", strerror(errno));
        enum status status = buffer_append(text, piece, (size_t)size);
        if (status == STATUS_EXHAUSTED)
            return error_set(error, status, "standard input is longer than %d bytes",
                             REQUEST_TEXT_BYTES_MAX);
        if (status != STATUS_OK) return error_set(error, status, "no memory for standard input");
    }
}

enum status parse_standard_input(char **text_out, struct error *error) {
    struct buffer text;
    buffer_init(&text, REQUEST_TEXT_BYTES_MAX);
    enum status status = read_standard_input(&text, error);
    if (status != STATUS_OK) goto free_text;
    size_t length = text.size_bytes;
    if (length != 0 && memchr(text.data, '\0', length) != NULL) {
        status = error_set(error, STATUS_INVALID, "standard input has a NUL byte: it is not text");
        goto free_text;
    }
    if (length != 0 && text.data[length - 1] == '\n') length--;
    char *copy = strndup(length != 0 ? text.data : "", length);
    if (copy == NULL)
        status = error_set(error, STATUS_NO_MEMORY, "no memory for standard input");
    else
        *text_out = copy;
free_text:
    buffer_fini(&text);
    return status;
}
