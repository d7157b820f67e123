// service: the RPC services that a stage has itself: health, and reflection of it. "" is live,
// "stagecoach.v1.Stage" is ready: in a pipeline that runs, and getting on with what it is given.
#pragma once

#include "base/clock.h"
#include "stage/settings.h"
#include "stage/worker.h"
#include "transport/rpc.h"

struct service;

// Serves on settings->listen and writes settings->port_file; *service_out is NULL without --listen.
// On failure too *service_out is to be closed. `settings` and `rpc` are borrowed until then. Errors
// as rpc_serve, with a sentence.
MUST_USE enum status service_open(const struct settings *settings, struct clock clock,
                                  struct rpc *rpc, struct service **service_out,
                                  struct error *error);
// At every tick of the main thread. `is_in_place`: the stage has joined, its layers are loaded and
// its neighbours connected. NULL allowed.
void service_tick(struct service *service, bool is_in_place, const struct worker *worker);
// Ends what would keep rpc_close waiting; before it. NULL allowed.
void service_stop(struct service *service);
void service_close(struct service *service); // after rpc_close; NULL allowed
