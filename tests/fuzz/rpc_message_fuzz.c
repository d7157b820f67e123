// Any bytes as a message of a peer: refused, or unpacked into something that packs again.
#include <stdint.h>
#include <stdlib.h>

#include "base/check.h"
#include "grpc/health/v1/health.pb-c.h"
#include "grpc/reflection/v1/reflection.pb-c.h"
#include "stagecoach/v1/admin.pb-c.h"
#include "stagecoach/v1/control.pb-c.h"
#include "stagecoach/v1/inference.pb-c.h"
#include "stagecoach/v1/refusal.pb-c.h"
#include "transport/rpc_message.h"
#include "vllm/vllm_engine.pb-c.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const ProtobufCMessageDescriptor *const types[] = {
        &stagecoach__v1__generate_request__descriptor,
        &stagecoach__v1__generate_response__descriptor,
        &stagecoach__v1__stage_message__descriptor,
        &stagecoach__v1__coordinator_message__descriptor,
        &stagecoach__v1__pipeline__descriptor,
        &stagecoach__v1__steps__descriptor,
        &stagecoach__v1__refusal__descriptor,
        &grpc__health__v1__health_list_response__descriptor,
        &grpc__reflection__v1__server_reflection_request__descriptor,
        &vllm__grpc__engine__generate_request__descriptor,
        &vllm__grpc__engine__generate_response__descriptor,
        &smg__grpc__common__kv_event_batch__descriptor,
    };
    if (size == 0) return 0;
    ProtobufCMessage *message = NULL;
    struct error error = {0};
    const ProtobufCMessageDescriptor *type = types[data[0] % (sizeof(types) / sizeof(types[0]))];
    enum status status = rpc_message_unpack(type, data + 1, size - 1, &message, &error);
    CHECK((status == STATUS_OK) == (message != NULL));
    CHECK((status == STATUS_OK) == (error.text[0] == '\0'));
    if (message == NULL) return 0;

    // What was accepted is accepted again, so nothing was cut or invented.
    size_t packed_bytes = protobuf_c_message_get_packed_size(message);
    uint8_t *packed = malloc(packed_bytes + 1);
    CHECK(packed != NULL);
    CHECK(protobuf_c_message_pack(message, packed) == packed_bytes);
    ProtobufCMessage *again = NULL;
    CHECK(rpc_message_unpack(type, packed, packed_bytes, &again, NULL) == STATUS_OK);
    CHECK(protobuf_c_message_get_packed_size(again) == packed_bytes);
    protobuf_c_message_free_unpacked(again, NULL);
    protobuf_c_message_free_unpacked(message, NULL);
    free(packed);
    return 0;
}
