#include "base/status.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

const char *status_name(enum status status) {
    switch (status) {
    case STATUS_OK:
        return "ok";
    case STATUS_INVALID:
        return "invalid";
    case STATUS_NOT_FOUND:
        return "not found";
    case STATUS_UNSUPPORTED:
        return "unsupported";
    case STATUS_EXHAUSTED:
        return "exhausted";
    case STATUS_NO_MEMORY:
        return "no memory";
    case STATUS_IO:
        return "i/o error";
    case STATUS_UNAVAILABLE:
        return "unavailable";
    case STATUS_TIMEOUT:
        return "timeout";
    case STATUS_CANCELLED:
        return "cancelled";
    }
    return "unknown status";
}

enum status error_set(struct error *error, enum status status, const char *format, ...) {
    if (error == NULL) return status;
    va_list args;
    va_start(args, format);
    vsnprintf(error->text, sizeof(error->text), format, args);
    va_end(args);
    error->field[0] = '\0';
    return status;
}

// The path that the sentence begins with.
static void take_field(struct error *error) {
    size_t size_bytes = strcspn(error->text, " :");
    if (size_bytes >= sizeof(error->field)) size_bytes = 0;
    memcpy(error->field, error->text, size_bytes);
    error->field[size_bytes] = '\0';
}

enum status error_set_field(struct error *error, enum status status, const char *format, ...) {
    if (error == NULL) return status;
    va_list args;
    va_start(args, format);
    vsnprintf(error->text, sizeof(error->text), format, args);
    va_end(args);
    take_field(error);
    return status;
}

void error_prefix(struct error *error, const char *format, ...) {
    if (error == NULL) return;
    char prefix[sizeof(error->text)];
    va_list args;
    va_start(args, format);
    vsnprintf(prefix, sizeof(prefix), format, args);
    va_end(args);
    char rest[sizeof(error->text)];
    memcpy(rest, error->text, sizeof(rest));
    const char *parts[] = {prefix, ": ", rest};
    size_t used = 0;
    for (size_t i = 0; i < 3; i++) {
        size_t room = sizeof(error->text) - 1 - used;
        size_t length = strnlen(parts[i], room);
        memcpy(error->text + used, parts[i], length);
        used += length;
    }
    error->text[used] = '\0';
}

void error_prefix_field(struct error *error, const char *field) {
    if (error == NULL) return;
    error_prefix(error, "%s", field);
    take_field(error);
}
