#include "transport/rpc_health.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>

#include "base/check.h"
#include "base/limits.h"
#include "grpc/health/v1/health.pb-c.h"

typedef Grpc__Health__V1__HealthCheckRequest CheckRequest;
typedef Grpc__Health__V1__HealthCheckResponse CheckResponse;
typedef Grpc__Health__V1__HealthCheckResponse__ServingStatus ServingStatus;
#define SERVING_STATUS(name) GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__##name

static_assert((int)RPC_HEALTH_SERVING == SERVING_STATUS(SERVING), "as on the wire");
static_assert((int)RPC_HEALTH_NOT_SERVING == SERVING_STATUS(NOT_SERVING), "as on the wire");

struct service {
    const char *name;
    ServingStatus status;
};

// A Watch stream from its request until it is over.
struct watch {
    TAILQ_ENTRY(watch) link;
    struct rpc_health *health;
    struct rpc_call *call;
    bool is_listed;     // the request has come
    ServingStatus told; // what was queued last
    char name[RPC_HEALTH_NAME_BYTES_MAX + 1];
};

// A lock, because owners set from their threads; held while something is queued on a call, never
// during a callback.
struct rpc_health {
    pthread_mutex_t mutex;
    struct service services[RPC_HEALTH_SERVICE_COUNT_MAX];
    size_t service_count;
    TAILQ_HEAD(, watch) watches;
    size_t watch_count;
    bool is_ended; // no more watches
};

const char *rpc_health_status_name(enum rpc_health_status status) {
    return status == RPC_HEALTH_SERVING ? "SERVING" : "NOT_SERVING";
}

// -- what is so; the mutex is held ---------------------------------------------------------------

static struct service *find(struct rpc_health *health, const char *name) {
    for (size_t i = 0; i < health->service_count; i++)
        if (strcmp(health->services[i].name, name) == 0) return &health->services[i];
    return NULL;
}

// Tells a watcher what is so, unless it knows. Where its queue is full, `writable` comes back here.
static void tell(struct rpc_health *health, struct watch *watch) {
    const struct service *service = find(health, watch->name);
    ServingStatus status = service != NULL ? service->status : SERVING_STATUS(SERVICE_UNKNOWN);
    if (watch->told == status) return;
    CheckResponse response = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__INIT;
    response.status = status;
    if (rpc_call_send(watch->call, &response.base)) watch->told = status;
}

void rpc_health_set(struct rpc_health *health, const char *name, enum rpc_health_status status) {
    pthread_mutex_lock(&health->mutex);
    struct service *service = find(health, name);
    if (service == NULL) {
        CHECK(health->service_count < RPC_HEALTH_SERVICE_COUNT_MAX);
        service = &health->services[health->service_count++];
        service->name = name;
        service->status = SERVING_STATUS(UNKNOWN);
    }
    if (service->status != (ServingStatus)status) {
        service->status = (ServingStatus)status;
        struct watch *watch;
        TAILQ_FOREACH(watch, &health->watches, link)
        tell(health, watch);
    }
    pthread_mutex_unlock(&health->mutex);
}

void rpc_health_end_watches(struct rpc_health *health) {
    pthread_mutex_lock(&health->mutex);
    health->is_ended = true;
    struct watch *watch;
    TAILQ_FOREACH(watch, &health->watches, link)
    rpc_call_end(watch->call, RPC_UNAVAILABLE, "the server stops");
    pthread_mutex_unlock(&health->mutex);
}

// -- Check and List ------------------------------------------------------------------------------

// Ends the call when no service can have this name.
static bool check_name(struct rpc_call *call, const char *name) {
    size_t size_bytes = strlen(name);
    if (size_bytes <= RPC_HEALTH_NAME_BYTES_MAX) return true;
    struct error error;
    (void)error_set(&error, STATUS_INVALID, "service has %zu bytes, the limit is %d", size_bytes,
                    RPC_HEALTH_NAME_BYTES_MAX);
    rpc_call_end(call, RPC_INVALID_ARGUMENT, error.text);
    return false;
}

static void *begin_plain(struct rpc_call *call, void *service_ctx) {
    (void)call;
    return service_ctx;
}

static void closed_plain(struct rpc_call *call, void *ctx, enum rpc_code code,
                         const char *message) {
    (void)call, (void)ctx, (void)code, (void)message;
}

static void check_message(struct rpc_call *call, void *ctx, const ProtobufCMessage *message) {
    struct rpc_health *health = ctx;
    const char *name = ((const CheckRequest *)message)->service;
    if (!check_name(call, name)) return;
    CheckResponse response = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__INIT;
    pthread_mutex_lock(&health->mutex);
    const struct service *service = find(health, name);
    if (service != NULL) response.status = service->status;
    pthread_mutex_unlock(&health->mutex);
    if (service == NULL) {
        struct error error;
        (void)error_set(&error, STATUS_NOT_FOUND, "service '%s' is not known here", name);
        rpc_call_end(call, RPC_NOT_FOUND, error.text);
        return;
    }
    if (rpc_call_send(call, &response.base)) rpc_call_end(call, RPC_OK, "");
}

static void list_message(struct rpc_call *call, void *ctx, const ProtobufCMessage *message) {
    (void)message;
    struct rpc_health *health = ctx;
    Grpc__Health__V1__HealthListResponse__StatusesEntry entries[RPC_HEALTH_SERVICE_COUNT_MAX];
    Grpc__Health__V1__HealthListResponse__StatusesEntry *pointers[RPC_HEALTH_SERVICE_COUNT_MAX];
    CheckResponse statuses[RPC_HEALTH_SERVICE_COUNT_MAX];
    Grpc__Health__V1__HealthListResponse response = GRPC__HEALTH__V1__HEALTH_LIST_RESPONSE__INIT;
    pthread_mutex_lock(&health->mutex);
    response.n_statuses = health->service_count;
    for (size_t i = 0; i < health->service_count; i++) {
        grpc__health__v1__health_check_response__init(&statuses[i]);
        statuses[i].status = health->services[i].status;
        entries[i] = (Grpc__Health__V1__HealthListResponse__StatusesEntry)
            GRPC__HEALTH__V1__HEALTH_LIST_RESPONSE__STATUSES_ENTRY__INIT;
        entries[i].key = (char *)(uintptr_t)health->services[i].name;
        entries[i].value = &statuses[i];
        pointers[i] = &entries[i];
    }
    pthread_mutex_unlock(&health->mutex);
    response.statuses = pointers;
    if (rpc_call_send(call, &response.base)) rpc_call_end(call, RPC_OK, "");
}

// -- Watch ---------------------------------------------------------------------------------------

static void *watch_begin(struct rpc_call *call, void *service_ctx) {
    struct watch *watch = calloc(1, sizeof(*watch));
    if (watch == NULL) {
        rpc_call_end(call, RPC_RESOURCE_EXHAUSTED, "no memory");
        return NULL;
    }
    watch->health = service_ctx;
    watch->call = call;
    watch->told = SERVING_STATUS(UNKNOWN);
    return watch;
}

static void watch_message(struct rpc_call *call, void *ctx, const ProtobufCMessage *message) {
    struct watch *watch = ctx;
    const char *name = ((const CheckRequest *)message)->service;
    if (watch == NULL || !check_name(call, name)) return;
    struct rpc_health *health = watch->health;
    memcpy(watch->name, name, strlen(name) + 1);
    pthread_mutex_lock(&health->mutex);
    bool is_full = health->watch_count == RPC_HEALTH_WATCH_COUNT_MAX;
    if (health->is_ended) {
        rpc_call_end(call, RPC_UNAVAILABLE, "the server stops");
    } else if (is_full) {
        rpc_call_refuse(call, RPC_RESOURCE_EXHAUSTED, "too many watch already", RPC_RETRY_MS);
    } else {
        watch->is_listed = true;
        TAILQ_INSERT_TAIL(&health->watches, watch, link);
        health->watch_count++;
        tell(health, watch);
    }
    pthread_mutex_unlock(&health->mutex);
}

static void watch_writable(struct rpc_call *call, void *ctx) {
    (void)call;
    struct watch *watch = ctx;
    if (watch == NULL) return;
    pthread_mutex_lock(&watch->health->mutex);
    tell(watch->health, watch);
    pthread_mutex_unlock(&watch->health->mutex);
}

static void watch_closed(struct rpc_call *call, void *ctx, enum rpc_code code,
                         const char *message) {
    (void)call, (void)code, (void)message;
    struct watch *watch = ctx;
    if (watch == NULL) return;
    struct rpc_health *health = watch->health;
    pthread_mutex_lock(&health->mutex);
    if (watch->is_listed) {
        TAILQ_REMOVE(&health->watches, watch, link);
        health->watch_count--;
    }
    pthread_mutex_unlock(&health->mutex);
    free(watch);
}

// -- life ----------------------------------------------------------------------------------------

static const struct rpc_method METHODS[] = {
    {"Check", {.begin = begin_plain, .message = check_message, .closed = closed_plain}},
    {"List", {.begin = begin_plain, .message = list_message, .closed = closed_plain}},
    {"Watch",
     {.begin = watch_begin,
      .message = watch_message,
      .closed = watch_closed,
      .writable = watch_writable}},
};

enum status rpc_health_open(struct rpc_health **health_out) {
    struct rpc_health *health = calloc(1, sizeof(*health));
    if (health == NULL) return STATUS_NO_MEMORY;
    if (pthread_mutex_init(&health->mutex, NULL) != 0) {
        free(health);
        return STATUS_NO_MEMORY;
    }
    TAILQ_INIT(&health->watches);
    *health_out = health;
    return STATUS_OK;
}

void rpc_health_close(struct rpc_health *health) {
    if (health == NULL) return;
    CHECK(TAILQ_EMPTY(&health->watches));
    pthread_mutex_destroy(&health->mutex);
    free(health);
}

enum status rpc_health_add(struct rpc_health *health, struct rpc *rpc, struct error *error) {
    enum status status =
        rpc_add_service(rpc, &grpc__health__v1__health__descriptor, METHODS,
                        sizeof(METHODS) / sizeof(METHODS[0]), health, RPC_ROLES_ANY, error);
    if (status == STATUS_OK)
        rpc_limit_messages(rpc, &grpc__health__v1__health__descriptor, NULL, RPC_QUERY_BYTES_MAX);
    return status;
}
