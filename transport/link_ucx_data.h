// link_ucx_data: the way of a connection's frames: a UCX worker of its own, with one endpoint to
// the worker at the other side.
//
// A worker for each connection means that a peer reaches nothing but its own connection, that no
// message has to say whose it is, and that destroying the worker ends every access to our frames,
// whatever state it was in.
#pragma once

#include <ucp/api/ucp.h>

#include "transport/link_internal.h"

struct ucx_data {
    struct conn *conn;
    ucp_worker_h worker;
    ucp_ep_h ep; // NULL until ucx_data_join
    int event_fd;
    uint32_t operation_count; // requests that UCX will still complete
    bool ending;              // ucx_data_end was called
    bool ended;               // the endpoint is closed and every request complete
    bool closed;              // the endpoint is closed
    bool flushed;
    bool credit_busy; // `credit` is on its way
    struct link_credit credit;
};

// STATUS_NO_MEMORY, STATUS_IO (logged).
MUST_USE enum status ucx_data_open(ucp_context_h context, struct conn *conn,
                                   struct ucx_data **data_out);
// Destroys the worker: nothing touches frames afterwards. NULL allowed.
void ucx_data_close(struct ucx_data *data);

// The worker's address, to be freed with ucx_data_free_address.
MUST_USE enum status ucx_data_address(struct ucx_data *data, ucp_address_t **address_out,
                                      size_t *address_bytes_out);
void ucx_data_free_address(struct ucx_data *data, ucp_address_t *address);

// Makes the endpoint to the peer's worker. STATUS_UNAVAILABLE: UCX finds no way to it.
MUST_USE enum status ucx_data_join(struct ucx_data *data, const void *address);

bool ucx_data_progress(struct ucx_data *data);
void ucx_data_send_frame(struct ucx_data *data, struct send_slot *slot);
// A credit costs a microsecond this way, and a system call or two and a wake-up by TCP. False: the
// last one has not left yet, or the peer's worker is not known yet.
MUST_USE bool ucx_data_send_credit(struct ucx_data *data, const struct link_credit *credit);
void ucx_data_flush(struct ucx_data *data); // data->flushed follows
void ucx_data_end(struct ucx_data *data);   // data->ended follows
