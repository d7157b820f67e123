#include "stage/service.h"

#include <stdlib.h>

#include "base/log.h"
#include "base/port_file.h"
#include "transport/readiness.h"
#include "transport/rpc_health.h"
#include "transport/rpc_reflection.h"

struct service {
    struct rpc_health *health;
    struct readiness *readiness;
};

static enum status open_readiness(struct service *service, const struct settings *settings,
                                  struct clock clock) {
    static const char *const services[] = {"stagecoach.v1.Stage"};
    const struct readiness_config config = {
        .clock = clock,
        .health = service->health,
        .services = services,
        .service_count = 1,
        .stall_ms_max = (uint32_t)(settings->stall_seconds * 1000),
    };
    return readiness_open(&config, &service->readiness);
}

static enum status serve(struct service *service, const struct settings *settings, struct rpc *rpc,
                         struct error *error) {
    enum status status = rpc_health_add(service->health, rpc, error);
    if (status == STATUS_OK) status = rpc_reflection_add(rpc, error);
    if (status != STATUS_OK) return status;
    uint16_t port;
    status = rpc_serve(rpc, settings->listen, &port, error);
    if (status != STATUS_OK) return status;
    log_info("health at %s, port %u", settings->listen, (unsigned)port);
    if (settings->port_file == NULL) return STATUS_OK;
    return port_file_write(settings->port_file, port, error);
}

enum status service_open(const struct settings *settings, struct clock clock, struct rpc *rpc,
                         struct service **service_out, struct error *error) {
    if (settings->listen == NULL) {
        *service_out = NULL;
        return STATUS_OK;
    }
    struct service *service = calloc(1, sizeof(*service));
    if (service == NULL) return error_set(error, STATUS_NO_MEMORY, "no memory");
    enum status status = rpc_health_open(&service->health);
    if (status == STATUS_OK) status = open_readiness(service, settings, clock);
    if (status != STATUS_OK)
        (void)error_set(error, status, "cannot prepare the health service");
    else
        status = serve(service, settings, rpc, error);
    // Also when it failed: the rpc may know parts of it.
    *service_out = service;
    return status;
}

void service_tick(struct service *service, bool is_in_place, const struct worker *worker) {
    if (service == NULL) return;
    const struct worker_stats *stats = worker_stats(worker);
    bool is_working = worker_is_working(worker);
    uint64_t progress_count = worker_progress_count(worker);
    const struct readiness_report report = {
        .is_ready = is_in_place,
        .is_owed = is_working || atomic_load(&stats->frame_count) > 0,
        .owed_count = progress_count,
        .is_working = is_working,
        .work_count = progress_count,
    };
    readiness_tick(service->readiness, &report);
}

void service_stop(struct service *service) {
    if (service == NULL) return;
    readiness_close(service->readiness);
    service->readiness = NULL;
    if (service->health != NULL) rpc_health_end_watches(service->health);
}

void service_close(struct service *service) {
    if (service == NULL) return;
    readiness_close(service->readiness);
    rpc_health_close(service->health);
    free(service);
}
