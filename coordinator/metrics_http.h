// metrics_http: GET /metrics over HTTP, for Prometheus. A thread of its own reads requests and
// writes answers; the loop is asked by an event for each of them, and gives a copy of what is so.
// Connections, the size of a request, idle time and the wait for the loop are bounded.
#pragma once

#include "base/status.h"
#include "stagecoach/v1/admin.pb-c.h"
#include "transport/inbox.h"

struct metrics_http;

// address: "host:port"; an empty host: every interface; port 0: any free one. Each question is the
// event `kind` whose subject is the metrics_http; the inbox is borrowed until metrics_http_stop.
// STATUS_INVALID, STATUS_IO with a sentence that names the address; STATUS_NO_MEMORY.
MUST_USE enum status metrics_http_open(const char *address, struct inbox *inbox, int kind,
                                       struct metrics_http **http_out, struct error *error);
// "host:port" with the port in use.
const char *metrics_http_address(const struct metrics_http *http);

// The loop's answer; nothing of it is kept. Without a question it does nothing.
void metrics_http_answer(struct metrics_http *http, const Stagecoach__V1__Pipeline *pipeline);

// Ends the thread; events that are on their way may still be answered. NULL allowed.
void metrics_http_stop(struct metrics_http *http);
void metrics_http_close(struct metrics_http *http); // after metrics_http_stop; NULL allowed
