#include "transport/rpc_reflection.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "grpc/reflection/v1/reflection.pb-c.h"
#include "grpc/reflection/v1alpha/reflection.pb-c.h"
#include "transport/rpc_descriptors.h"
#include "transport/rpc_internal.h"

typedef Grpc__Reflection__V1__ServerReflectionRequest Request;
typedef Grpc__Reflection__V1__ServerReflectionResponse Response;
#define REQUEST_CASE(name) GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_##name
#define RESPONSE_CASE(name)                                                                        \
    GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_##name

// The descriptors that a stream's rpc has.
static struct rpc_descriptors descriptors_of(const struct rpc *rpc) {
    return (struct rpc_descriptors){rpc->config.descriptor_set, rpc->config.descriptor_set_bytes};
}

// -- answers; false: no memory -------------------------------------------------------------------

// Sends the answer with one of its parts set. On a call of v1alpha it is put into that version's
// messages, which have the same fields.
typedef bool send_fn(struct rpc_call *call, const Response *response);

// What is being asked: by whom, and the answer so far.
struct question {
    const struct rpc *rpc;
    struct rpc_call *call;
    send_fn *send;
    Response response;
};

static bool answer_error(struct question *q, enum rpc_code code, const char *what,
                         const char *name) {
    char text[RPC_REFLECTION_NAME_BYTES_MAX + 128];
    snprintf(text, sizeof(text), "%s '%s'", what, name);
    Grpc__Reflection__V1__ErrorResponse part = GRPC__REFLECTION__V1__ERROR_RESPONSE__INIT;
    part.error_code = (int32_t)code;
    part.error_message = text;
    q->response.message_response_case = RESPONSE_CASE(ERROR_RESPONSE);
    q->response.error_response = &part;
    return q->send(q->call, &q->response);
}

static bool answer_file(struct question *q, const struct rpc_descriptors_file *file) {
    struct rpc_descriptors descriptors = descriptors_of(q->rpc);
    size_t count = rpc_descriptors_file_count(&descriptors);
    struct rpc_descriptors_file *files = calloc(count, sizeof(*files));
    ProtobufCBinaryData *encoded = calloc(count, sizeof(*encoded));
    bool is_sent = false;
    if (files == NULL || encoded == NULL) goto free_lists;
    count = rpc_descriptors_with_imports(&descriptors, file, files);
    for (size_t i = 0; i < count; i++)
        encoded[i] = (ProtobufCBinaryData){.len = files[i].size_bytes,
                                           .data = (uint8_t *)(uintptr_t)files[i].data};
    Grpc__Reflection__V1__FileDescriptorResponse part =
        GRPC__REFLECTION__V1__FILE_DESCRIPTOR_RESPONSE__INIT;
    part.n_file_descriptor_proto = count;
    part.file_descriptor_proto = encoded;
    q->response.message_response_case = RESPONSE_CASE(FILE_DESCRIPTOR_RESPONSE);
    q->response.file_descriptor_response = &part;
    is_sent = q->send(q->call, &q->response);
free_lists:
    free(encoded);
    free(files);
    return is_sent;
}

static bool answer_file_by_name(struct question *q, const char *name) {
    struct rpc_descriptors descriptors = descriptors_of(q->rpc);
    struct rpc_descriptors_file file;
    if (rpc_descriptors_find_file(&descriptors, name, &file)) return answer_file(q, &file);
    return answer_error(q, RPC_NOT_FOUND, "there is no file", name);
}

static bool answer_symbol(struct question *q, const char *name) {
    struct rpc_descriptors descriptors = descriptors_of(q->rpc);
    struct rpc_descriptors_file file;
    if (rpc_descriptors_find_symbol(&descriptors, name, &file)) return answer_file(q, &file);
    return answer_error(q, RPC_NOT_FOUND, "nothing here is called", name);
}

static bool answer_extension(struct question *q,
                             const Grpc__Reflection__V1__ExtensionRequest *request) {
    struct rpc_descriptors descriptors = descriptors_of(q->rpc);
    const char *type = request->containing_type;
    struct rpc_descriptors_file file;
    if (!rpc_descriptors_has_message(&descriptors, type))
        return answer_error(q, RPC_NOT_FOUND, "there is no message", type);
    if (rpc_descriptors_find_extension(&descriptors, type, request->extension_number, &file))
        return answer_file(q, &file);
    char what[64];
    snprintf(what, sizeof(what), "there is no extension %d of", (int)request->extension_number);
    return answer_error(q, RPC_NOT_FOUND, what, type);
}

static bool answer_extension_numbers(struct question *q, const char *type) {
    struct rpc_descriptors descriptors = descriptors_of(q->rpc);
    if (!rpc_descriptors_has_message(&descriptors, type))
        return answer_error(q, RPC_NOT_FOUND, "there is no message", type);
    size_t count = rpc_descriptors_extensions(&descriptors, type, NULL, 0);
    int32_t *numbers = calloc(count + 1, sizeof(*numbers));
    if (numbers == NULL) return false;
    Grpc__Reflection__V1__ExtensionNumberResponse part =
        GRPC__REFLECTION__V1__EXTENSION_NUMBER_RESPONSE__INIT;
    part.base_type_name = (char *)(uintptr_t)type;
    part.n_extension_number = rpc_descriptors_extensions(&descriptors, type, numbers, count);
    part.extension_number = numbers;
    q->response.message_response_case = RESPONSE_CASE(ALL_EXTENSION_NUMBERS_RESPONSE);
    q->response.all_extension_numbers_response = &part;
    bool is_sent = q->send(q->call, &q->response);
    free(numbers);
    return is_sent;
}

// Routes of one service follow one another.
static bool answer_services(struct question *q) {
    Grpc__Reflection__V1__ServiceResponse services[RPC_METHOD_COUNT_MAX];
    Grpc__Reflection__V1__ServiceResponse *pointers[RPC_METHOD_COUNT_MAX];
    Grpc__Reflection__V1__ListServiceResponse part =
        GRPC__REFLECTION__V1__LIST_SERVICE_RESPONSE__INIT;
    for (size_t i = 0; i < q->rpc->route_count; i++) {
        const char *name = q->rpc->routes[i].service->name;
        if (i > 0 && strcmp(name, q->rpc->routes[i - 1].service->name) == 0) continue;
        Grpc__Reflection__V1__ServiceResponse *service = &services[part.n_service];
        grpc__reflection__v1__service_response__init(service);
        service->name = (char *)(uintptr_t)name;
        pointers[part.n_service++] = service;
    }
    part.service = pointers;
    q->response.message_response_case = RESPONSE_CASE(LIST_SERVICES_RESPONSE);
    q->response.list_services_response = &part;
    return q->send(q->call, &q->response);
}

// -- requests ------------------------------------------------------------------------------------

// Names are sent back with the answer, so that they have a limit. False: the call was ended.
static bool check_name(struct rpc_call *call, const char *field, const char *name) {
    size_t size_bytes = strlen(name);
    if (size_bytes <= RPC_REFLECTION_NAME_BYTES_MAX) return true;
    struct error error;
    (void)error_set(&error, STATUS_INVALID, "%s has %zu bytes, the limit is %d", field, size_bytes,
                    RPC_REFLECTION_NAME_BYTES_MAX);
    rpc_call_end(call, RPC_INVALID_ARGUMENT, error.text);
    return false;
}

static bool check_names(struct rpc_call *call, const Request *request) {
    if (!check_name(call, "host", request->host)) return false;
    switch (request->message_request_case) {
    case REQUEST_CASE(FILE_BY_FILENAME):
        return check_name(call, "file_by_filename", request->file_by_filename);
    case REQUEST_CASE(FILE_CONTAINING_SYMBOL):
        return check_name(call, "file_containing_symbol", request->file_containing_symbol);
    case REQUEST_CASE(FILE_CONTAINING_EXTENSION):
        return check_name(call, "file_containing_extension.containing_type",
                          request->file_containing_extension->containing_type);
    case REQUEST_CASE(ALL_EXTENSION_NUMBERS_OF_TYPE):
        return check_name(call, "all_extension_numbers_of_type",
                          request->all_extension_numbers_of_type);
    case REQUEST_CASE(LIST_SERVICES):
        return check_name(call, "list_services", request->list_services);
    default:
        return true;
    }
}

static bool answer(struct question *q, const Request *request) {
    switch (request->message_request_case) {
    case REQUEST_CASE(FILE_BY_FILENAME):
        return answer_file_by_name(q, request->file_by_filename);
    case REQUEST_CASE(FILE_CONTAINING_SYMBOL):
        return answer_symbol(q, request->file_containing_symbol);
    case REQUEST_CASE(FILE_CONTAINING_EXTENSION):
        return answer_extension(q, request->file_containing_extension);
    case REQUEST_CASE(ALL_EXTENSION_NUMBERS_OF_TYPE):
        return answer_extension_numbers(q, request->all_extension_numbers_of_type);
    case REQUEST_CASE(LIST_SERVICES):
        return answer_services(q);
    default:
        return answer_error(q, RPC_INVALID_ARGUMENT, "nothing is asked in", "message_request");
    }
}

static void take_request(struct rpc_call *call, const struct rpc *rpc, send_fn *send,
                         const Request *request) {
    if (!check_names(call, request)) return;
    // What is sent back has no fields that we do not know, whose size nobody has checked.
    Request original = *request;
    original.base.n_unknown_fields = 0;
    Grpc__Reflection__V1__ExtensionRequest extension;
    if (request->message_request_case == REQUEST_CASE(FILE_CONTAINING_EXTENSION)) {
        extension = *request->file_containing_extension;
        extension.base.n_unknown_fields = 0;
        original.file_containing_extension = &extension;
    }
    struct question q = {.rpc = rpc, .call = call, .send = send};
    grpc__reflection__v1__server_reflection_response__init(&q.response);
    q.response.valid_host = original.host;
    q.response.original_request = &original;
    if (!answer(&q, request))
        rpc_call_end(call, RPC_RESOURCE_EXHAUSTED,
                     "no memory, or too many answers wait to be read");
}

// -- the two versions ----------------------------------------------------------------------------

// The same fields as a message of another type; NULL: no memory. To be freed with
// protobuf_c_message_free_unpacked(message, NULL).
static ProtobufCMessage *convert(const ProtobufCMessage *message,
                                 const ProtobufCMessageDescriptor *type) {
    size_t size_bytes = protobuf_c_message_get_packed_size(message);
    uint8_t *bytes = malloc(size_bytes + 1);
    if (bytes == NULL) return NULL;
    ProtobufCMessage *converted =
        protobuf_c_message_unpack(type, NULL, protobuf_c_message_pack(message, bytes), bytes);
    free(bytes);
    return converted;
}

static bool send_v1(struct rpc_call *call, const Response *response) {
    return rpc_call_send(call, &response->base);
}

static bool send_v1alpha(struct rpc_call *call, const Response *response) {
    ProtobufCMessage *converted = convert(
        &response->base, &grpc__reflection__v1alpha__server_reflection_response__descriptor);
    if (converted == NULL) return false;
    bool is_sent = rpc_call_send(call, converted);
    protobuf_c_message_free_unpacked(converted, NULL);
    return is_sent;
}

static void on_v1(struct rpc_call *call, void *ctx, const ProtobufCMessage *message) {
    take_request(call, ctx, send_v1, (const Request *)message);
}

static void on_v1alpha(struct rpc_call *call, void *ctx, const ProtobufCMessage *message) {
    ProtobufCMessage *request =
        convert(message, &grpc__reflection__v1__server_reflection_request__descriptor);
    if (request == NULL) {
        rpc_call_end(call, RPC_RESOURCE_EXHAUSTED, "no memory");
        return;
    }
    take_request(call, ctx, send_v1alpha, (const Request *)request);
    protobuf_c_message_free_unpacked(request, NULL);
}

static void *on_begin(struct rpc_call *call, void *service_ctx) {
    (void)call;
    return service_ctx;
}

static void on_half_close(struct rpc_call *call, void *ctx) {
    (void)ctx;
    rpc_call_end(call, RPC_OK, "");
}

static void on_closed(struct rpc_call *call, void *ctx, enum rpc_code code, const char *message) {
    (void)call, (void)ctx, (void)code, (void)message;
}

enum status rpc_reflection_add(struct rpc *rpc, struct error *error) {
    static const struct rpc_method v1 = {
        "ServerReflectionInfo",
        {.begin = on_begin, .message = on_v1, .half_close = on_half_close, .closed = on_closed}};
    static const struct rpc_method v1alpha = {"ServerReflectionInfo",
                                              {.begin = on_begin,
                                               .message = on_v1alpha,
                                               .half_close = on_half_close,
                                               .closed = on_closed}};
    enum status status = rpc_add_service(rpc, &grpc__reflection__v1__server_reflection__descriptor,
                                         &v1, 1, rpc, RPC_ROLES_ANY, error);
    if (status != STATUS_OK) return status;
    rpc_limit_messages(rpc, &grpc__reflection__v1__server_reflection__descriptor, NULL,
                       RPC_QUERY_BYTES_MAX);
    status = rpc_add_service(rpc, &grpc__reflection__v1alpha__server_reflection__descriptor,
                             &v1alpha, 1, rpc, RPC_ROLES_ANY, error);
    if (status == STATUS_OK)
        rpc_limit_messages(rpc, &grpc__reflection__v1alpha__server_reflection__descriptor, NULL,
                           RPC_QUERY_BYTES_MAX);
    return status;
}
