#include "transport/rpc_methods.h"

#include <string.h>

#include "transport/rpc_wire.h"

// Field numbers of google/protobuf/descriptor.proto.
enum {
    SET_FILE = 1,
    FILE_PACKAGE = 2,
    FILE_SERVICE = 6,
    SERVICE_NAME = 1,
    SERVICE_METHOD = 2,
    METHOD_NAME = 1,
    METHOD_CLIENT_STREAMING = 5,
    METHOD_SERVER_STREAMING = 6,
};

static bool flag_of(struct rpc_wire wire, uint32_t id) {
    struct rpc_wire_field field;
    bool flag = false;
    while (rpc_wire_next(&wire, &field)) {
        if (field.id == id && field.type == RPC_WIRE_VARINT) flag = field.number != 0;
    }
    return flag;
}

static bool find_in_service(struct rpc_wire service, const char *method,
                            struct rpc_streaming *streaming_out) {
    struct rpc_wire_field field;
    while (rpc_wire_next(&service, &field)) {
        if (field.id != SERVICE_METHOD || field.type != RPC_WIRE_BYTES) continue;
        struct rpc_wire_field name = rpc_wire_first(rpc_wire_inside(&field), METHOD_NAME);
        if (!rpc_wire_text_is(&name, method)) continue;
        streaming_out->client = flag_of(rpc_wire_inside(&field), METHOD_CLIENT_STREAMING);
        streaming_out->server = flag_of(rpc_wire_inside(&field), METHOD_SERVER_STREAMING);
        return true;
    }
    return false;
}

// The part of the full service name after the file's package; NULL when it is of another package.
static const char *name_in_package(const char *service, const struct rpc_wire_field *package) {
    if (package->size_bytes == 0) return service;
    if (strncmp(service, (const char *)package->data, package->size_bytes) != 0) return NULL;
    return service[package->size_bytes] == '.' ? service + package->size_bytes + 1 : NULL;
}

static bool find_in_file(struct rpc_wire file, const char *service, const char *method,
                         struct rpc_streaming *streaming_out) {
    struct rpc_wire_field package = rpc_wire_first(file, FILE_PACKAGE);
    const char *name = name_in_package(service, &package);
    if (name == NULL) return false;
    struct rpc_wire_field field;
    while (rpc_wire_next(&file, &field)) {
        if (field.id != FILE_SERVICE || field.type != RPC_WIRE_BYTES) continue;
        struct rpc_wire_field own_name = rpc_wire_first(rpc_wire_inside(&field), SERVICE_NAME);
        if (rpc_wire_text_is(&own_name, name)) {
            return find_in_service(rpc_wire_inside(&field), method, streaming_out);
        }
    }
    return false;
}

bool rpc_methods_find(const uint8_t *set, size_t set_bytes, const char *service, const char *method,
                      struct rpc_streaming *streaming_out) {
    struct rpc_wire wire = rpc_wire_of(set, set_bytes);
    struct rpc_wire_field field;
    while (rpc_wire_next(&wire, &field)) {
        if (field.id != SET_FILE || field.type != RPC_WIRE_BYTES) continue;
        if (find_in_file(rpc_wire_inside(&field), service, method, streaming_out)) return true;
    }
    return false;
}
