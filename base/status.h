// status: how an operation on the outside world ended, and the sentence that says why.
#pragma once

#define MUST_USE __attribute__((warn_unused_result))
#define PRINTF_LIKE(format_index, first_index)                                                     \
    __attribute__((format(printf, format_index, first_index)))

// Grouped by what the caller can do about it.
enum status {
    STATUS_OK = 0,
    STATUS_INVALID,     // the input is wrong: correct it
    STATUS_NOT_FOUND,   // the named thing does not exist
    STATUS_UNSUPPORTED, // well-formed, but this build or model cannot do it
    STATUS_EXHAUSTED,   // a named limit is reached: try later or ask for less
    STATUS_NO_MEMORY,   // allocation failed
    STATUS_IO,          // the operating system refused; the error text has its reason
    STATUS_UNAVAILABLE, // the peer is lost or not ready: try again
    STATUS_TIMEOUT,     // a deadline passed
    STATUS_CANCELLED,   // the asker no longer wants it
};

// A lower-case name such as "invalid"; never NULL.
const char *status_name(enum status status);

// The sentence that goes with a status that is not STATUS_OK. It names the field or file, the value
// and the limit. Owned by the caller; plain memory, may be copied.
struct error {
    char text[512];
    char field[128]; // path of the message's field that is at fault: "stop.strings[2]"; "": none
};

// Writes the sentence (cut at the end of the buffer) and returns `status`, so that a function can
// end with `return error_set(error, STATUS_INVALID, ...)`. `error` may be NULL: nothing is kept.
enum status error_set(struct error *error, enum status status, const char *format, ...)
    PRINTF_LIKE(3, 4);

// The same for a sentence that begins with the path of the field that is at fault: what comes
// before its first space or colon is kept in error->field too, unless it is too long for that.
enum status error_set_field(struct error *error, enum status status, const char *format, ...)
    PRINTF_LIKE(3, 4);

// Puts "prefix: " before the sentence, for callers that know the file or request it is about.
void error_prefix(struct error *error, const char *format, ...) PRINTF_LIKE(2, 3);
// Puts "field: " before the sentence: this field is at fault.
void error_prefix_field(struct error *error, const char *field);
