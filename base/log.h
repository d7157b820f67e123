// log: one line an event on standard error: time, level, process name, text; as plain text or as
// one JSON object.
//   error: a person must act. warn: we recovered. info: start, stop, membership, requests.
//   debug: one per step.
// Any thread. Control characters in the text become blanks. A line is written by one write(2), so
// lines of several processes do not mix.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

// LOG_NONE is for limits only: nothing is written, as in simulations of what goes wrong.
enum log_level { LOG_NONE = -1, LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG };

// 2026-01-31T12:00:00.000Z info  name: message key=value key="two words"
// {"time": "2026-01-31T12:00:00.000Z", "level": "info", "process": "name", "message": "...", ...}
enum log_format { LOG_FORMAT_TEXT, LOG_FORMAT_JSON };

// Called once before other threads start. `name` is borrowed for the life of the process.
void log_init(const char *name, enum log_level level);
// Likewise; lines are LOG_FORMAT_TEXT without it.
void log_set_format(enum log_format format);

// "error", "warn", "info" or "debug"; false for anything else.
MUST_USE bool log_level_parse(const char *text, enum log_level *level_out);
// "text" or "json"; false for anything else.
MUST_USE bool log_format_parse(const char *text, enum log_format *format_out);

// Whether a line of this level would be written: ask before costly preparation.
bool log_enabled(enum log_level level);

void log_write(enum log_level level, const char *format, ...) PRINTF_LIKE(2, 3);

#define log_error(...) log_write(LOG_ERROR, __VA_ARGS__)
#define log_warn(...) log_write(LOG_WARN, __VA_ARGS__)
#define log_info(...) log_write(LOG_INFO, __VA_ARGS__)
#define log_debug(...) (log_enabled(LOG_DEBUG) ? log_write(LOG_DEBUG, __VA_ARGS__) : (void)0)

// A named value of an event, for lines that programs read.
enum log_field_kind { LOG_FIELD_TEXT, LOG_FIELD_COUNT, LOG_FIELD_MS };
struct log_field {
    const char *key; // lower-case letters and '_'
    enum log_field_kind kind;
    const char *text; // LOG_FIELD_TEXT; the first LOG_FIELD_BYTES_MAX bytes are written
    uint64_t count;   // LOG_FIELD_COUNT
    double ms;        // LOG_FIELD_MS: written with microseconds
};

// One event with values, at most LOG_FIELD_COUNT_MAX.
void log_fields(enum log_level level, const char *message, const struct log_field *fields,
                size_t field_count);
