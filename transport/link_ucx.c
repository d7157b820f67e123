// link_ucx: connections between processes and machines, by UCX active messages (UCP). Shared memory
// and CMA on one machine, RDMA or TCP across; see link_ucx_config for what is set and why.
//
// Every active message names its endpoint (reply_ep), which tells the connection. Callbacks run
// inside ucp_worker_progress and only note what happened.
#include <netdb.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucp/api/ucp.h>

#include "base/check.h"
#include "base/log.h"
#include "base/memory.h"
#include "transport/link_address.h"
#include "transport/link_internal.h"
#include "transport/link_ucx_config.h"

enum { AM_MESSAGE = 1, AM_FRAME = 2 };

struct ucx_port {
    struct port port;
    ucp_context_h context;
    ucp_worker_h worker;
    ucp_listener_h listener;
    int event_fd;
    ucp_conn_request_h requests[LINK_PENDING_COUNT_MAX]; // arrived in this progress
    size_t request_count;
};

struct ucx_message {
    struct ucx_conn *conn;
    bool busy;
    union link_message message; // lives until it is sent
};

struct ucx_conn {
    struct conn conn;
    ucp_ep_h ep;
    uint32_t operation_count; // requests that UCX will still complete
    bool closed;              // the endpoint is
    struct ucx_message messages[SLOT_COUNT];
};

static void operation_ended(struct ucx_conn *conn) {
    CHECK(conn->operation_count > 0);
    conn->operation_count--;
    conn->conn.gone = conn->closed && conn->operation_count == 0;
    conn->conn.port->happened = true;
}

static void conn_broke_by(struct ucx_conn *conn, const char *what, ucs_status_t status) {
    char reason[128];
    snprintf(reason, sizeof(reason), "%s: %s", what, ucs_status_string(status));
    conn_broke(&conn->conn, reason);
}

// -- sending -------------------------------------------------------------------------------------

static void message_sent(void *request, ucs_status_t status, void *user_data) {
    struct ucx_message *message = user_data;
    message->busy = false;
    if (status != UCS_OK) conn_broke_by(message->conn, "a message cannot be sent", status);
    ucp_request_free(request);
    operation_ended(message->conn);
}

static bool ucx_send_message(struct conn *base, const union link_message *message) {
    struct ucx_conn *conn = (struct ucx_conn *)base;
    struct ucx_message *slot = &conn->messages[link_message_slot(message->head.kind)];
    if (slot->busy) return false;
    slot->message = *message;
    ucp_request_param_t param = {.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK |
                                                 UCP_OP_ATTR_FIELD_USER_DATA |
                                                 UCP_OP_ATTR_FIELD_FLAGS,
                                 .flags = UCP_AM_SEND_FLAG_REPLY | UCP_AM_SEND_FLAG_EAGER,
                                 .cb.send = message_sent,
                                 .user_data = slot};
    ucs_status_ptr_t request =
        ucp_am_send_nbx(conn->ep, AM_MESSAGE, &slot->message,
                        link_message_bytes(message->head.kind), NULL, 0, &param);
    if (UCS_PTR_IS_ERR(request)) {
        conn_broke_by(conn, "a message cannot be sent", UCS_PTR_STATUS(request));
    } else if (request != NULL) {
        slot->busy = true;
        conn->operation_count++;
    }
    return true;
}

static void frame_sent(void *request, ucs_status_t status, void *user_data) {
    struct send_slot *slot = user_data;
    struct ucx_conn *conn = (struct ucx_conn *)slot->link->conn;
    if (status != UCS_OK) conn_broke_by(conn, "a frame cannot be sent", status);
    ucp_request_free(request);
    send_slot_done(slot);
    operation_ended(conn);
}

static void ucx_send_frame(struct conn *base, struct send_slot *slot) {
    struct ucx_conn *conn = (struct ucx_conn *)base;
    ucp_request_param_t param = {
        .op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA |
                        UCP_OP_ATTR_FIELD_FLAGS | UCP_OP_ATTR_FIELD_MEMORY_TYPE,
        .flags = UCP_AM_SEND_FLAG_REPLY,
        .memory_type = UCS_MEMORY_TYPE_HOST,
        .cb.send = frame_sent,
        .user_data = slot};
    ucs_status_ptr_t request =
        ucp_am_send_nbx(conn->ep, AM_FRAME, &slot->notice, sizeof(slot->notice), slot->frame->data,
                        slot->frame->size_bytes, &param);
    if (UCS_PTR_IS_ERR(request)) {
        conn_broke_by(conn, "a frame cannot be sent", UCS_PTR_STATUS(request));
        send_slot_done(slot);
    } else if (request == NULL) {
        send_slot_done(slot);
    } else {
        conn->operation_count++;
    }
}

// -- receiving -----------------------------------------------------------------------------------

static struct ucx_conn *conn_of_reply(struct ucx_port *port, const ucp_am_recv_param_t *param) {
    if ((param->recv_attr & UCP_AM_RECV_ATTR_FIELD_REPLY_EP) == 0) return NULL;
    for (struct conn *conn = port->port.conns; conn != NULL; conn = conn->next) {
        struct ucx_conn *candidate = (struct ucx_conn *)conn;
        if (candidate->ep == param->reply_ep && conn->phase != CONN_FORCED) return candidate;
    }
    return NULL;
}

static ucs_status_t message_arrived(void *arg, const void *header, size_t header_bytes, void *data,
                                    size_t data_bytes, const ucp_am_recv_param_t *param) {
    struct ucx_port *port = arg;
    (void)data;
    struct ucx_conn *conn = conn_of_reply(port, param);
    if (conn == NULL) {
        port->port.refused_count++;
        return UCS_OK;
    }
    // Data beside the message is malformed; the size then says so.
    conn_receive_message(&conn->conn, header, data_bytes == 0 ? header_bytes : 0);
    return UCS_OK;
}

static void frame_arrived_by_rendezvous(void *request, ucs_status_t status, size_t length_bytes,
                                        void *user_data) {
    struct receive_slot *slot = user_data;
    struct ucx_conn *conn = (struct ucx_conn *)slot->link->conn;
    if (status != UCS_OK) conn_broke_by(conn, "a frame cannot be received", status);
    ucp_request_free(request);
    receive_slot_done(slot, status == UCS_OK && length_bytes == slot->frame->size_bytes);
    operation_ended(conn);
}

static void fetch_frame(struct ucx_port *port, struct ucx_conn *conn, struct receive_slot *slot,
                        void *descriptor) {
    ucp_request_param_t param = {.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK |
                                                 UCP_OP_ATTR_FIELD_USER_DATA |
                                                 UCP_OP_ATTR_FIELD_MEMORY_TYPE,
                                 .memory_type = UCS_MEMORY_TYPE_HOST,
                                 .cb.recv_am = frame_arrived_by_rendezvous,
                                 .user_data = slot};
    ucs_status_ptr_t request = ucp_am_recv_data_nbx(port->worker, descriptor, slot->frame->data,
                                                    slot->frame->size_bytes, &param);
    if (UCS_PTR_IS_ERR(request)) {
        conn_broke_by(conn, "a frame cannot be received", UCS_PTR_STATUS(request));
        receive_slot_done(slot, false);
    } else if (request == NULL) {
        receive_slot_done(slot, true);
    } else {
        conn->operation_count++;
    }
}

static ucs_status_t frame_arrived(void *arg, const void *header, size_t header_bytes, void *data,
                                  size_t data_bytes, const ucp_am_recv_param_t *param) {
    struct ucx_port *port = arg;
    struct ucx_conn *conn = conn_of_reply(port, param);
    if (conn == NULL) {
        port->port.refused_count++;
        return UCS_OK;
    }
    struct receive_slot *slot = conn_receive_frame(&conn->conn, header, header_bytes, data_bytes);
    if (slot == NULL) return UCS_OK; // UCX drops the data, or tells the sender so
    if (param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV) {
        fetch_frame(port, conn, slot, data);
        return UCS_INPROGRESS;
    }
    memcpy(slot->frame->data, data, data_bytes);
    receive_slot_done(slot, true);
    return UCS_OK;
}

// -- making and ending connections ---------------------------------------------------------------

static void endpoint_failed(void *arg, ucp_ep_h ep, ucs_status_t status) {
    (void)ep;
    struct ucx_conn *conn = arg;
    conn_broke_by(conn, "the connection broke", status);
}

// Makes the endpoint that `params` describes, with our error handling.
static enum status ucx_conn_make(struct ucx_port *port, ucp_ep_params_t *params, bool accepted,
                                 struct ucx_conn **conn_out) {
    struct ucx_conn *conn = memory_array(1, sizeof(*conn));
    if (conn == NULL) return STATUS_NO_MEMORY;
    for (size_t i = 0; i < SLOT_COUNT; i++)
        conn->messages[i].conn = conn;
    params->field_mask |= UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE | UCP_EP_PARAM_FIELD_ERR_HANDLER;
    params->err_mode = UCP_ERR_HANDLING_MODE_PEER;
    params->err_handler.cb = endpoint_failed;
    params->err_handler.arg = conn;
    conn->conn.port = &port->port;
    ucs_status_t status = ucp_ep_create(port->worker, params, &conn->ep);
    if (status != UCS_OK) {
        free(conn);
        return STATUS_UNAVAILABLE;
    }
    conn_init(&conn->conn, &port->port, accepted);
    *conn_out = conn;
    return STATUS_OK;
}

static enum status ucx_dial(struct port *base, const struct conn_address *address,
                            size_t address_index, struct conn **conn_out) {
    ucp_ep_params_t params = {
        .field_mask = UCP_EP_PARAM_FIELD_FLAGS | UCP_EP_PARAM_FIELD_SOCK_ADDR,
        .flags = UCP_EP_PARAMS_FLAGS_CLIENT_SERVER | UCP_EP_PARAMS_FLAGS_NO_LOOPBACK,
        .sockaddr = {.addr = (const struct sockaddr *)&address->sockaddrs[address_index],
                     .addrlen = address->sockaddr_bytes[address_index]}};
    struct ucx_conn *conn;
    enum status status = ucx_conn_make((struct ucx_port *)base, &params, false, &conn);
    if (status == STATUS_OK) *conn_out = &conn->conn;
    return status;
}

static void connection_requested(ucp_conn_request_h request, void *arg) {
    struct ucx_port *port = arg;
    bool room = port->request_count < LINK_PENDING_COUNT_MAX &&
                port->port.pending_count + port->request_count < LINK_PENDING_COUNT_MAX;
    if (room) {
        port->requests[port->request_count++] = request;
        return;
    }
    port->port.refused_count++;
    (void)ucp_listener_reject(port->listener, request);
}

static void name_peer(ucp_conn_request_h request, char *peer_out, size_t peer_capacity_bytes) {
    ucp_conn_request_attr_t attributes = {.field_mask = UCP_CONN_REQUEST_ATTR_FIELD_CLIENT_ADDR};
    char host[sizeof(((struct conn *)NULL)->peer)], service[8];
    snprintf(peer_out, peer_capacity_bytes, "an unknown address");
    if (ucp_conn_request_query(request, &attributes) != UCS_OK) return;
    const struct sockaddr *address = (const struct sockaddr *)&attributes.client_address;
    if (getnameinfo(address, sizeof(attributes.client_address), host, sizeof(host), service,
                    sizeof(service), NI_NUMERICHOST | NI_NUMERICSERV) == 0)
        snprintf(peer_out, peer_capacity_bytes, "%s", host);
}

static void ucx_accept(struct ucx_port *port) {
    for (size_t i = 0; i < port->request_count; i++) {
        ucp_conn_request_h request = port->requests[i];
        char peer[sizeof(((struct conn *)NULL)->peer)];
        name_peer(request, peer, sizeof(peer));
        ucp_ep_params_t params = {.field_mask = UCP_EP_PARAM_FIELD_CONN_REQUEST,
                                  .conn_request = request};
        struct ucx_conn *conn;
        if (ucx_conn_make(port, &params, true, &conn) == STATUS_OK)
            memcpy(conn->conn.peer, peer, sizeof(peer));
        else
            port->port.refused_count++;
    }
    port->request_count = 0;
}

static void conn_flushed(void *request, ucs_status_t status, void *user_data) {
    struct ucx_conn *conn = user_data;
    (void)status;
    conn->conn.flushed = true;
    ucp_request_free(request);
    operation_ended(conn);
}

static void ucx_flush(struct conn *base) {
    struct ucx_conn *conn = (struct ucx_conn *)base;
    ucp_request_param_t param = {.op_attr_mask =
                                     UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA,
                                 .cb.send = conn_flushed,
                                 .user_data = conn};
    ucs_status_ptr_t request = ucp_ep_flush_nbx(conn->ep, &param);
    if (request == NULL || UCS_PTR_IS_ERR(request)) base->flushed = true;
    else conn->operation_count++;
}

static void endpoint_closed(void *request, ucs_status_t status, void *user_data) {
    struct ucx_conn *conn = user_data;
    (void)status;
    conn->closed = true;
    ucp_request_free(request);
    operation_ended(conn);
}

// A close that flushes cannot be turned into a forced one later, so what must leave is flushed
// before (ucx_flush) and every close is forced.
static void ucx_force(struct conn *base) {
    struct ucx_conn *conn = (struct ucx_conn *)base;
    ucp_request_param_t param = {.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK |
                                                 UCP_OP_ATTR_FIELD_USER_DATA |
                                                 UCP_OP_ATTR_FIELD_FLAGS,
                                 .flags = UCP_EP_CLOSE_FLAG_FORCE,
                                 .cb.send = endpoint_closed,
                                 .user_data = conn};
    conn->operation_count++;
    ucs_status_ptr_t request = ucp_ep_close_nbx(conn->ep, &param);
    if (request != NULL && !UCS_PTR_IS_ERR(request)) return;
    conn->closed = true;
    operation_ended(conn);
}

static void ucx_free_conn(struct conn *base) {
    free(base);
}

// -- progress ------------------------------------------------------------------------------------

static bool ucx_progress(struct port *base) {
    struct ucx_port *port = (struct ucx_port *)base;
    bool any = ucp_worker_progress(port->worker) != 0;
    if (port->request_count > 0) {
        ucx_accept(port);
        any = true;
    }
    return any;
}

// Looks for work for LINK_SPIN_US; true when there is some. Giving way to other threads each time
// costs little when a core is free and saves milliseconds when none is.
static bool ucx_spin(struct ucx_port *port, struct pollfd *wake) {
    struct clock real = clock_system();
    uint64_t end_ns = clock_now_ns(&real) + LINK_SPIN_US * UINT64_C(1000);
    do {
        if (ucx_progress(&port->port) || port->port.happened) return true;
        if (wake->fd >= 0 && poll(wake, 1, 0) > 0) return true;
        sched_yield();
    } while (clock_now_ns(&real) < end_ns);
    return false;
}

static void ucx_wait(struct port *base, int wake_fd, int timeout_ms) {
    struct ucx_port *port = (struct ucx_port *)base;
    struct pollfd pollfds[2] = {{.fd = wake_fd, .events = POLLIN},
                                {.fd = port->event_fd, .events = POLLIN}};
    if (ucx_spin(port, pollfds)) {
        base->happened = true;
        return;
    }
    // Busy: something came between the last look and the arming.
    if (ucp_worker_arm(port->worker) != UCS_OK) return;
    poll(pollfds, 2, timeout_ms);
}

static enum status ucx_resolve(struct port *base, const char *text,
                               struct conn_address *address_out, struct error *error) {
    (void)base;
    char host[256];
    uint16_t port_number;
    enum status status = link_address_split(text, host, sizeof(host), &port_number, error);
    if (status != STATUS_OK) return status;
    return link_address_resolve(host, port_number, address_out->sockaddrs,
                                address_out->sockaddr_bytes, LINK_ADDRESS_COUNT_MAX,
                                &address_out->count, error);
}

// -- ports ---------------------------------------------------------------------------------------

static enum status ucx_error(struct error *error, const char *what, ucs_status_t status) {
    return error_set(error, status == UCS_ERR_NO_MEMORY ? STATUS_NO_MEMORY : STATUS_IO, "%s: %s",
                     what, ucs_status_string(status));
}

static void ucx_close(struct port *base) {
    struct ucx_port *port = (struct ucx_port *)base;
    if (port->listener != NULL) ucp_listener_destroy(port->listener);
    if (port->worker != NULL) ucp_worker_destroy(port->worker);
    if (port->context != NULL) ucp_cleanup(port->context);
    while (base->conns != NULL) {
        struct conn *conn = base->conns;
        base->conns = conn->next;
        ucx_free_conn(conn);
    }
    free(port);
}

static const struct carrier_ops ucx_ops = {
    .progress = ucx_progress,
    .wait = ucx_wait,
    .resolve = ucx_resolve,
    .dial = ucx_dial,
    .send_message = ucx_send_message,
    .send_frame = ucx_send_frame,
    .flush = ucx_flush,
    .force = ucx_force,
    .free_conn = ucx_free_conn,
    .close = ucx_close,
};

static enum status ucx_open_context(struct ucx_port *port, const struct sockaddr *listening,
                                    struct error *error) {
    ucp_config_t *config;
    enum status status = ucx_config_make(listening, &config, error);
    if (status != STATUS_OK) return status;
    ucp_params_t params = {.field_mask = UCP_PARAM_FIELD_FEATURES,
                           .features = UCP_FEATURE_AM | UCP_FEATURE_WAKEUP};
    ucs_status_t ucs_status = ucp_init(&params, config, &port->context);
    ucp_config_release(config);
    return ucs_status == UCS_OK ? STATUS_OK : ucx_error(error, "UCX does not start", ucs_status);
}

static ucs_status_t ucx_set_handler(struct ucx_port *port, unsigned id, ucp_am_recv_callback_t cb) {
    ucp_am_handler_param_t param = {
        .field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_FLAGS |
                      UCP_AM_HANDLER_PARAM_FIELD_CB | UCP_AM_HANDLER_PARAM_FIELD_ARG,
        .id = id,
        .flags = UCP_AM_FLAG_WHOLE_MSG,
        .cb = cb,
        .arg = port};
    return ucp_worker_set_am_recv_handler(port->worker, &param);
}

static enum status ucx_open_worker(struct ucx_port *port, struct error *error) {
    ucp_worker_params_t params = {.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE,
                                  .thread_mode = UCS_THREAD_MODE_SINGLE};
    ucs_status_t status = ucp_worker_create(port->context, &params, &port->worker);
    if (status != UCS_OK) return ucx_error(error, "UCX worker", status);
    ucp_worker_attr_t attributes = {.field_mask = UCP_WORKER_ATTR_FIELD_MAX_AM_HEADER};
    status = ucp_worker_query(port->worker, &attributes);
    if (status != UCS_OK) return ucx_error(error, "UCX worker", status);
    if (attributes.max_am_header < sizeof(union link_message))
        return error_set(error, STATUS_IO, "UCX takes headers of %zu bytes only",
                         attributes.max_am_header);
    status = ucx_set_handler(port, AM_MESSAGE, message_arrived);
    if (status == UCS_OK) status = ucx_set_handler(port, AM_FRAME, frame_arrived);
    if (status == UCS_OK) status = ucp_worker_get_efd(port->worker, &port->event_fd);
    return status == UCS_OK ? STATUS_OK : ucx_error(error, "UCX worker", status);
}

static enum status ucx_listen(struct ucx_port *port, const char *host,
                              const struct sockaddr_storage *address, socklen_t address_bytes,
                              struct error *error) {
    ucp_listener_params_t params = {
        .field_mask =
            UCP_LISTENER_PARAM_FIELD_SOCK_ADDR | UCP_LISTENER_PARAM_FIELD_CONN_HANDLER,
        .sockaddr = {.addr = (const struct sockaddr *)address, .addrlen = address_bytes},
        .conn_handler = {.cb = connection_requested, .arg = port}};
    ucs_status_t status = ucp_listener_create(port->worker, &params, &port->listener);
    if (status != UCS_OK) return ucx_error(error, "cannot listen", status);
    ucp_listener_attr_t attributes = {.field_mask = UCP_LISTENER_ATTR_FIELD_SOCKADDR};
    status = ucp_listener_query(port->listener, &attributes);
    if (status != UCS_OK) return ucx_error(error, "cannot listen", status);
    char service[8];
    if (getnameinfo((const struct sockaddr *)&attributes.sockaddr, sizeof(attributes.sockaddr),
                    NULL, 0, service, sizeof(service), NI_NUMERICSERV) != 0)
        return error_set(error, STATUS_IO, "cannot tell the port that was chosen");
    link_address_join(host, (uint16_t)atoi(service), port->port.address,
                      sizeof(port->port.address));
    return STATUS_OK;
}

enum status port_open_ucx(const char *host, uint16_t port_number, const struct port_config *config,
                          struct port **port_out, struct error *error) {
    struct sockaddr_storage address;
    socklen_t address_bytes;
    size_t address_count;
    enum status status = link_address_resolve(host, port_number, &address, &address_bytes, 1,
                                              &address_count, error);
    if (status != STATUS_OK) return STATUS_IO;
    struct ucx_port *port = memory_array(1, sizeof(*port));
    if (port == NULL) return error_set(error, STATUS_NO_MEMORY, "no memory for a port");
    port_init(&port->port, &ucx_ops, config);
    status = ucx_open_context(port, (const struct sockaddr *)&address, error);
    if (status == STATUS_OK) status = ucx_open_worker(port, error);
    if (status == STATUS_OK) status = ucx_listen(port, host, &address, address_bytes, error);
    if (status != STATUS_OK) {
        error_prefix(error, "%s port %u", host, (unsigned)port_number);
        ucx_close(&port->port);
        return status;
    }
    *port_out = &port->port;
    return STATUS_OK;
}
