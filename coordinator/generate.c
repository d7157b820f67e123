#include "coordinator/generate.h"

#include <stdlib.h>

#include "coordinator/reply.h"

struct generate {
    struct frontend *frontend;
    struct request *request; // the loop's once it was offered; NULL when refused
};

void *generate_begin(struct rpc_call *call, struct frontend *frontend) {
    struct generate *generate = calloc(1, sizeof(*generate));
    if (generate == NULL)
        rpc_call_end(call, RPC_RESOURCE_EXHAUSTED, "no memory");
    else
        generate->frontend = frontend;
    return generate;
}

// Whether it is worth looking at the request. False: the call was ended.
static bool admit(struct frontend *frontend, struct rpc_call *call) {
    if (atomic_load(&frontend->is_draining)) {
        rpc_call_end(call, RPC_UNAVAILABLE, "the coordinator is draining");
        return false;
    }
    if (rpc_call_is_late(call)) {
        rpc_call_end(call, RPC_DEADLINE_EXCEEDED, "the deadline had passed when the request came");
        return false;
    }
    // The loop decides who waits; but what it would refuse need not be tokenized first.
    uint32_t retry_ms = atomic_load(&frontend->retry_ms);
    if (retry_ms > 0) reply_refuse(call, retry_ms);
    return retry_ms == 0;
}

void generate_take(struct rpc_call *call, void *ctx, const ProtobufCMessage *message,
                   generate_open_fn *open) {
    struct generate *generate = ctx;
    if (generate == NULL || generate->request != NULL) return;
    struct frontend *frontend = generate->frontend;
    if (!admit(frontend, call)) return;
    struct error error;
    struct request *request;
    enum status status = open(frontend, message, &request, &error);
    if (status != STATUS_OK) {
        rpc_call_fail(call, status, &error);
        return;
    }
    request_begin(request, call);
    if (!inbox_offer(frontend->inbox, EVENT_REQUEST, request)) {
        request_close(request);
        reply_refuse(call, RETRY_MS_MAX);
        return;
    }
    generate->request = request;
}

void generate_writable(struct rpc_call *call, void *ctx) {
    (void)call;
    struct generate *generate = ctx;
    if (generate == NULL || generate->request == NULL) return;
    inbox_put(generate->frontend->inbox, EVENT_REQUEST_WRITABLE, generate->request, NULL);
}

void generate_closed(struct rpc_call *call, void *ctx, enum rpc_code code, const char *message) {
    (void)code, (void)message;
    struct generate *generate = ctx;
    if (generate != NULL && generate->request != NULL)
        inbox_put(generate->frontend->inbox, EVENT_REQUEST_CLOSED, generate->request, NULL);
    else
        access_log_write_call(call);
    free(generate);
}
