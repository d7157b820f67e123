#include "coordinator/access_log.h"

#include <stdio.h>
#include <string.h>

#include "base/limits.h"
#include "base/log.h"
#include "coordinator/request.h"

static bool is_enabled = true;

void access_log_enable(bool enabled) {
    is_enabled = enabled;
}

// -- traces ---------------------------------------------------------------------------------------

static const char digits[] = "0123456789abcdef";

// Whether `count` lower-case hexadecimal digits come here, not all of them 0, and then `end`.
static bool has_id(const char *text, size_t count, char end) {
    return strspn(text, digits) == count && strspn(text, "0") < count && text[count] == end;
}

void trace_id_parse(const char *traceparent, char trace_id_out[TRACE_ID_BYTES]) {
    trace_id_out[0] = '\0';
    // version "-" trace-id "-" parent-id "-" trace-flags; later versions may go on after that.
    enum { TRACE = 3, PARENT = TRACE + TRACE_ID_BYTES, FLAGS = PARENT + 17, END = FLAGS + 2 };
    const char *t = traceparent;
    if (strlen(t) < END || strspn(t, digits) != 2 || t[2] != '-') return;
    bool is_first_version = memcmp(t, "00", 2) == 0;
    bool is_no_version = memcmp(t, "ff", 2) == 0;
    if (is_no_version || !has_id(t + TRACE, TRACE_ID_BYTES - 1, '-') ||
        !has_id(t + PARENT, 16, '-'))
        return;
    if (strspn(t + FLAGS, digits) != 2) return;
    if (t[END] != '\0' && (is_first_version || t[END] != '-')) return;
    memcpy(trace_id_out, t + TRACE, TRACE_ID_BYTES - 1);
    trace_id_out[TRACE_ID_BYTES - 1] = '\0';
}

void access_trace_id(const struct rpc_call *call, char trace_id_out[TRACE_ID_BYTES]) {
    const char *traceparent = rpc_call_metadata(call, "traceparent");
    trace_id_parse(traceparent != NULL ? traceparent : "", trace_id_out);
}

// -- lines ----------------------------------------------------------------------------------------

struct fields {
    size_t count;
    struct log_field list[LOG_FIELD_COUNT_MAX];
};

static void add_text(struct fields *fields, const char *key, const char *text) {
    if (text[0] == '\0') return;
    fields->list[fields->count++] =
        (struct log_field){.key = key, .kind = LOG_FIELD_TEXT, .text = text};
}

static void add_count(struct fields *fields, const char *key, uint64_t count) {
    fields->list[fields->count++] =
        (struct log_field){.key = key, .kind = LOG_FIELD_COUNT, .count = count};
}

static void add_ms(struct fields *fields, const char *key, uint64_t ns) {
    fields->list[fields->count++] =
        (struct log_field){.key = key, .kind = LOG_FIELD_MS, .ms = (double)ns / 1e6};
}

static void add_request(struct fields *fields, const struct request *request) {
    const struct sequence *first = &request->answers[0].sequence;
    uint32_t token_count = 0;
    for (uint32_t i = 0; i < request->answer_count; i++)
        token_count += request->answers[i].completion.token_count;
    add_text(fields, "request_id", request->id);
    if (request->answer_count > 1) add_count(fields, "answers", request->answer_count);
    add_count(fields, "prompt_tokens", first->prompt_count);
    add_count(fields, "cached_tokens", first->cached_count);
    add_count(fields, "completion_tokens", token_count);
    if (request->issued_ns != 0)
        add_ms(fields, "queue_ms", request->issued_ns - request->arrived_ns);
    if (request->first_token_ns != 0)
        add_ms(fields, "first_token_ms", request->first_token_ns - request->arrived_ns);
}

void access_log_write(const struct rpc_call *call, const char *trace_id,
                      const struct request *request) {
    if (!is_enabled || !log_enabled(LOG_INFO)) return;
    struct fields fields = {0};
    char peer[64], method[128];
    const char *reason;
    enum rpc_code code = rpc_call_outcome(call, &reason);
    rpc_call_peer_host(call, peer, sizeof(peer));
    snprintf(method, sizeof(method), "%s/%s", rpc_call_service_name(call),
             rpc_call_method_name(call));
    add_text(&fields, "method", method);
    add_text(&fields, "code", rpc_code_name(code));
    add_text(&fields, "peer", peer);
    add_text(&fields, "caller", rpc_call_caller(call));
    add_text(&fields, "trace_id", trace_id);
    if (request != NULL) add_request(&fields, request);
    add_ms(&fields, "total_ms", rpc_call_lasted_ns(call));
    add_text(&fields, "reason", reason);
    log_fields(LOG_INFO, "request", fields.list, fields.count);
}

void access_log_write_call(const struct rpc_call *call) {
    char trace_id[TRACE_ID_BYTES];
    access_trace_id(call, trace_id);
    access_log_write(call, trace_id, NULL);
}
