#include "base/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const char *process_name = "stagecoach";
static enum log_level level_limit = LOG_INFO;
static const char *const level_names[] = {"error", "warn", "info", "debug"};

void log_init(const char *name, enum log_level level) {
    process_name = name;
    level_limit = level;
}

bool log_level_parse(const char *text, enum log_level *level_out) {
    for (int i = 0; i <= LOG_DEBUG; i++) {
        if (strcmp(text, level_names[i]) != 0) continue;
        *level_out = (enum log_level)i;
        return true;
    }
    return false;
}

bool log_enabled(enum log_level level) {
    return level <= level_limit;
}

// An event is one line, and a text from outside must not move a terminal's cursor.
static void blank_controls(char *text, size_t size_bytes) {
    for (size_t i = 0; i < size_bytes; i++)
        if ((unsigned char)text[i] < ' ' || text[i] == 0x7f) text[i] = ' ';
}

void log_write(enum log_level level, const char *format, ...) {
    if (!log_enabled(level)) return;
    struct timespec ts;
    clock_gettime(CLOCK_REALTIME, &ts);
    struct tm tm;
    gmtime_r(&ts.tv_sec, &tm);
    char line[1024];
    size_t used = strftime(line, sizeof(line), "%Y-%m-%dT%H:%M:%S", &tm);
    used += (size_t)snprintf(line + used, sizeof(line) - used,
                             ".%03ldZ %-5s %.64s: ", ts.tv_nsec / 1000000, level_names[level],
                             process_name);
    va_list args;
    va_start(args, format);
    int written = vsnprintf(line + used, sizeof(line) - used - 1, format, args);
    va_end(args);
    size_t room = sizeof(line) - used - 2;
    size_t text = used;
    used += written < 0 ? 0 : ((size_t)written < room ? (size_t)written : room);
    blank_controls(line + text, used - text);
    line[used++] = '\n';
    // A log that cannot be written has nowhere to complain.
    ssize_t ignored = write(STDERR_FILENO, line, used);
    (void)ignored;
}
