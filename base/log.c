#include "base/log.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/check.h"
#include "base/limits.h"
#include "base/utf8.h"

static const char *process_name = "stagecoach";
static enum log_level level_limit = LOG_INFO;
static enum log_format line_format = LOG_FORMAT_TEXT;
static const char *const level_names[] = {"error", "warn", "info", "debug"};

enum {
    MESSAGE_BYTES = 1024, // of a line without fields, and of the message in one with fields
    // A byte of a text can become three when it is quoted.
    LINE_BYTES = 4 * MESSAGE_BYTES + LOG_FIELD_COUNT_MAX * (3 * LOG_FIELD_BYTES_MAX + 64),
};

// What is written of an event; never full, by the sizes above.
struct line {
    size_t size_bytes;
    char text[LINE_BYTES];
};

void log_init(const char *name, enum log_level level) {
    process_name = name;
    level_limit = level;
}

void log_set_format(enum log_format format) {
    line_format = format;
}

bool log_level_parse(const char *text, enum log_level *level_out) {
    for (int i = 0; i <= LOG_DEBUG; i++) {
        if (strcmp(text, level_names[i]) != 0) continue;
        *level_out = (enum log_level)i;
        return true;
    }
    return false;
}

bool log_format_parse(const char *text, enum log_format *format_out) {
    bool is_json = strcmp(text, "json") == 0;
    if (!is_json && strcmp(text, "text") != 0) return false;
    *format_out = is_json ? LOG_FORMAT_JSON : LOG_FORMAT_TEXT;
    return true;
}

bool log_enabled(enum log_level level) {
    return level <= level_limit;
}

// -- parts of a line ------------------------------------------------------------------------------

static void put_bytes(struct line *line, const char *text, size_t size_bytes) {
    CHECK(size_bytes <= sizeof(line->text) - line->size_bytes);
    memcpy(line->text + line->size_bytes, text, size_bytes);
    line->size_bytes += size_bytes;
}

static void put(struct line *line, const char *text) {
    put_bytes(line, text, strlen(text));
}

// A character of a quoted text, `length` bytes of UTF-8; 0: a byte that is none.
static void put_quoted_character(struct line *line, const char *text, size_t length) {
    if (length == 0) {
        put(line, "\xef\xbf\xbd"); // U+FFFD
        return;
    }
    if (text[0] == '"' || text[0] == '\\') put(line, "\\");
    bool is_control = (unsigned char)text[0] < ' ' || text[0] == 0x7f;
    put_bytes(line, is_control ? " " : text, length);
}

static void put_quoted(struct line *line, const char *text, size_t size_bytes) {
    put(line, "\"");
    for (size_t i = 0; i < size_bytes;) {
        size_t length = utf8_sequence_bytes(text + i, size_bytes - i);
        put_quoted_character(line, text + i, length);
        i += length == 0 ? 1 : length;
    }
    put(line, "\"");
}

static bool needs_quotes(const char *text, size_t size_bytes) {
    for (size_t i = 0; i < size_bytes; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c <= ' ' || c >= 0x7f || c == '"' || c == '=' || c == '\\') return true;
    }
    return size_bytes == 0;
}

static void put_value(struct line *line, const struct log_field *field) {
    char number[32];
    switch (field->kind) {
    case LOG_FIELD_TEXT: {
        size_t size_bytes = strnlen(field->text, LOG_FIELD_BYTES_MAX);
        if (line_format == LOG_FORMAT_JSON || needs_quotes(field->text, size_bytes))
            put_quoted(line, field->text, size_bytes);
        else
            put_bytes(line, field->text, size_bytes);
        break;
    }
    case LOG_FIELD_COUNT:
        (void)snprintf(number, sizeof(number), "%" PRIu64, field->count);
        put(line, number);
        break;
    case LOG_FIELD_MS:
        (void)snprintf(number, sizeof(number), "%.3f", field->ms);
        put(line, number);
        break;
    }
}

static void put_field(struct line *line, const struct log_field *field) {
    bool is_json = line_format == LOG_FORMAT_JSON;
    CHECK(strlen(field->key) <= 32);
    put(line, is_json ? ", \"" : " ");
    put(line, field->key);
    put(line, is_json ? "\": " : "=");
    put_value(line, field);
}

static void put_time(struct line *line) {
    struct timespec ts;
    clock_gettime(CLOCK_REALTIME, &ts);
    struct tm tm;
    gmtime_r(&ts.tv_sec, &tm);
    char text[40];
    size_t used = strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%S", &tm);
    (void)snprintf(text + used, sizeof(text) - used, ".%03ldZ", ts.tv_nsec / 1000000);
    put(line, text);
}

static void begin_text(struct line *line, enum log_level level) {
    char head[80];
    put_time(line);
    (void)snprintf(head, sizeof(head), " %-5s %.64s: ", level_names[level], process_name);
    put(line, head);
}

static void begin_json(struct line *line, enum log_level level) {
    put(line, "{\"time\": \"");
    put_time(line);
    put(line, "\", \"level\": \"");
    put(line, level_names[level]);
    put(line, "\", \"process\": ");
    put_quoted(line, process_name, strnlen(process_name, 64));
    put(line, ", \"message\": ");
}

// An event is one line, and a text from outside must not move a terminal's cursor.
static void put_message(struct line *line, const char *message) {
    if (line_format == LOG_FORMAT_JSON) {
        put_quoted(line, message, strnlen(message, MESSAGE_BYTES));
        return;
    }
    size_t begin = line->size_bytes;
    put_bytes(line, message, strnlen(message, MESSAGE_BYTES - 1 - begin));
    for (size_t i = begin; i < line->size_bytes; i++)
        if ((unsigned char)line->text[i] < ' ' || line->text[i] == 0x7f) line->text[i] = ' ';
}

// -- events ---------------------------------------------------------------------------------------

void log_fields(enum log_level level, const char *message, const struct log_field *fields,
                size_t field_count) {
    if (!log_enabled(level)) return;
    CHECK(field_count <= LOG_FIELD_COUNT_MAX);
    struct line line;
    line.size_bytes = 0;
    if (line_format == LOG_FORMAT_JSON)
        begin_json(&line, level);
    else
        begin_text(&line, level);
    put_message(&line, message);
    for (size_t i = 0; i < field_count; i++)
        put_field(&line, &fields[i]);
    put(&line, line_format == LOG_FORMAT_JSON ? "}\n" : "\n");
    // A log that cannot be written has nowhere to complain.
    ssize_t ignored = write(STDERR_FILENO, line.text, line.size_bytes);
    (void)ignored;
}

void log_write(enum log_level level, const char *format, ...) {
    if (!log_enabled(level)) return;
    char message[MESSAGE_BYTES];
    va_list args;
    va_start(args, format);
    int written = vsnprintf(message, sizeof(message), format, args);
    va_end(args);
    if (written < 0) message[0] = '\0';
    log_fields(level, message, NULL, 0);
}
