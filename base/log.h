// log: one line an event on standard error: time, level, process name, text.
//   error: a person must act. warn: we recovered. info: start, stop, membership. debug: one per
//   step.
// Any thread. Control characters in the text become blanks. A line is written by one write(2), so
// lines of several processes do not mix.
#pragma once

#include <stdbool.h>

#include "base/status.h"

// LOG_NONE is for limits only: nothing is written, as in simulations of what goes wrong.
enum log_level { LOG_NONE = -1, LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG };

// Called once before other threads start. `name` is borrowed for the life of the process.
void log_init(const char *name, enum log_level level);

// "error", "warn", "info" or "debug"; false for anything else.
MUST_USE bool log_level_parse(const char *text, enum log_level *level_out);

// Whether a line of this level would be written: ask before costly preparation.
bool log_enabled(enum log_level level);

void log_write(enum log_level level, const char *format, ...) PRINTF_LIKE(2, 3);

#define log_error(...) log_write(LOG_ERROR, __VA_ARGS__)
#define log_warn(...) log_write(LOG_WARN, __VA_ARGS__)
#define log_info(...) log_write(LOG_INFO, __VA_ARGS__)
#define log_debug(...) (log_enabled(LOG_DEBUG) ? log_write(LOG_DEBUG, __VA_ARGS__) : (void)0)
