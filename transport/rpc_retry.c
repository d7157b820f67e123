#include "transport/rpc_retry.h"

#include <inttypes.h>
#include <stdio.h>

#include "base/check.h"
#include "stagecoach/v1/refusal.pb-c.h"

enum { RETRY_BYTES_MAX = 32 }; // of a RefusalRetry

static grpc_slice pack_refusal(grpc_status_code code, const char *message, uint32_t retry_ms) {
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

void rpc_retry_write(grpc_status_code code, const char *message, uint32_t retry_ms,
                     grpc_metadata entries_out[RPC_RETRY_ENTRY_COUNT]) {
    char text[16];
    (void)snprintf(text, sizeof(text), "%" PRIu32, retry_ms);
    entries_out[0].key = grpc_slice_from_static_string("grpc-retry-pushback-ms");
    entries_out[0].value = grpc_slice_from_copied_string(text);
    entries_out[1].key = grpc_slice_from_static_string("grpc-status-details-bin");
    entries_out[1].value = pack_refusal(code, message, retry_ms);
}

void rpc_retry_release(grpc_metadata entries[RPC_RETRY_ENTRY_COUNT]) {
    for (int i = 0; i < RPC_RETRY_ENTRY_COUNT; i++)
        grpc_slice_unref(entries[i].value);
}
