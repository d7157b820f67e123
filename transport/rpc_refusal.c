#include "transport/rpc_refusal.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "stagecoach/v1/refusal.pb-c.h"

#define TYPE_PREFIX "type.googleapis.com/google.rpc."

// What the details of one refusal are made of. Borrows the field and the message.
struct parts {
    Stagecoach__V1__RefusalDelay delay;
    Stagecoach__V1__RefusalRetry retry;
    Stagecoach__V1__RefusalFieldViolation violation, *violations[1];
    Stagecoach__V1__RefusalBadRequest bad_request;
};

static void fill_parts(struct parts *parts, const char *message, uint32_t retry_ms,
                       const char *field) {
    stagecoach__v1__refusal_delay__init(&parts->delay);
    parts->delay.seconds = retry_ms / 1000;
    parts->delay.nanos = (int32_t)(retry_ms % 1000) * 1000000;
    stagecoach__v1__refusal_retry__init(&parts->retry);
    parts->retry.retry_delay = &parts->delay;
    stagecoach__v1__refusal_field_violation__init(&parts->violation);
    parts->violation.field = (char *)field;
    parts->violation.description = (char *)message;
    parts->violations[0] = &parts->violation;
    stagecoach__v1__refusal_bad_request__init(&parts->bad_request);
    parts->bad_request.n_field_violations = 1;
    parts->bad_request.field_violations = parts->violations;
}

// Packs `part` into memory of its own; false: there is none.
static bool pack_detail(Stagecoach__V1__RefusalDetail *detail, const char *type_url,
                        const ProtobufCMessage *part) {
    stagecoach__v1__refusal_detail__init(detail);
    detail->type_url = (char *)type_url;
    detail->value.data = malloc(protobuf_c_message_get_packed_size(part));
    if (detail->value.data == NULL) return false;
    detail->value.len = protobuf_c_message_pack(part, detail->value.data);
    return true;
}

grpc_slice rpc_refusal_details(enum rpc_code code, const char *message, uint32_t retry_ms,
                               const char *field) {
    struct parts parts;
    fill_parts(&parts, message, retry_ms, field);
    Stagecoach__V1__RefusalDetail details[2], *pointers[] = {&details[0], &details[1]};
    Stagecoach__V1__Refusal refusal = STAGECOACH__V1__REFUSAL__INIT;
    refusal.code = (int32_t)code;
    refusal.message = (char *)message;
    refusal.details = pointers;
    // Without memory the client still gets code and message.
    if (retry_ms != 0 && pack_detail(&details[0], TYPE_PREFIX "RetryInfo", &parts.retry.base))
        refusal.n_details++;
    if (field != NULL &&
        pack_detail(&details[refusal.n_details], TYPE_PREFIX "BadRequest", &parts.bad_request.base))
        refusal.n_details++;
    grpc_slice slice = grpc_slice_malloc(stagecoach__v1__refusal__get_packed_size(&refusal));
    stagecoach__v1__refusal__pack(&refusal, GRPC_SLICE_START_PTR(slice));
    for (size_t i = 0; i < refusal.n_details; i++)
        free(details[i].value.data);
    return slice;
}

grpc_slice rpc_refusal_retry_text(uint32_t retry_ms) {
    char text[16];
    (void)snprintf(text, sizeof(text), "%" PRIu32, retry_ms);
    return grpc_slice_from_copied_string(text);
}

uint32_t rpc_refusal_read_retry(const char *value) {
    if (value == NULL) return RPC_RETRY_UNSAID;
    uint64_t ms = 0;
    if (value[0] == '\0') return RPC_RETRY_NEVER;
    for (const char *digit = value; *digit != '\0'; digit++) {
        if (*digit < '0' || *digit > '9') return RPC_RETRY_NEVER;
        ms = ms * 10 + (uint64_t)(*digit - '0');
        if (ms >= RPC_RETRY_NEVER) return RPC_RETRY_NEVER;
    }
    return (uint32_t)ms;
}
