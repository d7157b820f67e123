#include "transport/rpc_retry.h"

#include <inttypes.h>
#include <stdio.h>

#include "base/check.h"
#include "stagecoach/v1/refusal.pb-c.h"
#include "transport/rpc.h"

enum { RETRY_BYTES_MAX = 32 }; // of a RefusalRetry

grpc_slice rpc_retry_details(grpc_status_code code, const char *message, uint32_t retry_ms) {
    Stagecoach__V1__RefusalDelay delay = STAGECOACH__V1__REFUSAL_DELAY__INIT;
    delay.seconds = retry_ms / 1000;
    delay.nanos = (int32_t)(retry_ms % 1000) * 1000000;
    Stagecoach__V1__RefusalRetry retry = STAGECOACH__V1__REFUSAL_RETRY__INIT;
    retry.retry_delay = &delay;
    uint8_t retry_bytes[RETRY_BYTES_MAX];
    CHECK(stagecoach__v1__refusal_retry__get_packed_size(&retry) <= sizeof(retry_bytes));
    Stagecoach__V1__RefusalDetail detail = STAGECOACH__V1__REFUSAL_DETAIL__INIT;
    detail.type_url = (char *)"type.googleapis.com/google.rpc.RetryInfo";
    detail.value.data = retry_bytes;
    detail.value.len = stagecoach__v1__refusal_retry__pack(&retry, retry_bytes);
    Stagecoach__V1__RefusalDetail *details[] = {&detail};
    Stagecoach__V1__Refusal refusal = STAGECOACH__V1__REFUSAL__INIT;
    refusal.code = (int32_t)code;
    refusal.message = (char *)message;
    refusal.n_details = 1;
    refusal.details = details;
    grpc_slice slice = grpc_slice_malloc(stagecoach__v1__refusal__get_packed_size(&refusal));
    stagecoach__v1__refusal__pack(&refusal, GRPC_SLICE_START_PTR(slice));
    return slice;
}

grpc_slice rpc_retry_text(uint32_t retry_ms) {
    char text[16];
    (void)snprintf(text, sizeof(text), "%" PRIu32, retry_ms);
    return grpc_slice_from_copied_string(text);
}

uint32_t rpc_retry_read(const char *value) {
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
