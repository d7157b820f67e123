// link_ucx: connections between processes and machines. Messages go over a TCP connection of our
// own (link_channel); frames by UCX (link_ucx_data) through shared memory and CMA on one machine
// and RDMA across, and otherwise over the same connection as the messages (link_stream). See
// link_ucx_config for what is set and why.
//
// UCX has listeners of its own, and they are not used: a connection that greets one with a wrong
// length ends the whole process (an assertion in UCX 1.13). So UCX learns of a peer only after its
// hello was accepted, and is given an address only with a mac.
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "base/check.h"
#include "base/memory.h"
#include "transport/link_address.h"
#include "transport/link_channel.h"
#include "transport/link_internal.h"
#include "transport/link_stream.h"
#include "transport/link_ucx_config.h"
#include "transport/link_ucx_data.h"

struct ucx_port {
    struct port port;
    ucp_context_h context;
    int listening_fd;
    int channels_fd;          // epoll: the listener and every connection
    int workers_fd;           // epoll: the event descriptor of every worker
    uint64_t accept_after_ms; // not before: descriptors had run out
};

struct ucx_conn {
    struct conn conn;
    struct channel channel;
    struct stream stream;
    uint32_t watched_events; // of the channel
    bool flushing;
    uint64_t force_ms; // when it was forced
};

static struct ucx_port *ucx_port_of(const struct conn *conn) {
    return (struct ucx_port *)conn->port;
}

// -- channels ------------------------------------------------------------------------------------

static void channel_watch(struct ucx_conn *conn) {
    uint32_t events =
        EPOLLIN | (stream_is_full(&conn->stream, &conn->channel) ? (uint32_t)EPOLLOUT : 0);
    if (events == conn->watched_events) return;
    int operation = conn->watched_events == 0 ? EPOLL_CTL_ADD : EPOLL_CTL_MOD;
    struct epoll_event event = {.events = events, .data.ptr = conn};
    if (epoll_ctl(ucx_port_of(&conn->conn)->channels_fd, operation, conn->channel.fd, &event) != 0)
        conn_broke(&conn->conn, "its descriptor cannot be watched");
    conn->watched_events = events;
}

static void channel_send(struct ucx_conn *conn) {
    const char *reason;
    if (stream_push(&conn->stream, &conn->channel, &reason) != STATUS_OK)
        conn_broke(&conn->conn, reason);
    else
        channel_watch(conn);
}

static struct ucx_conn *ucx_conn_make(struct ucx_port *port) {
    struct ucx_conn *conn = memory_array(1, sizeof(*conn));
    if (conn == NULL) return NULL;
    conn->channel.fd = -1;
    conn->conn.port = &port->port;
    return conn;
}

static enum status ucx_dial(struct port *base, const struct conn_address *address,
                            size_t address_index, struct conn **conn_out) {
    struct ucx_conn *conn = ucx_conn_make((struct ucx_port *)base);
    if (conn == NULL) return STATUS_NO_MEMORY;
    enum status status =
        channel_dial(&conn->channel, (const struct sockaddr *)&address->sockaddrs[address_index],
                     address->sockaddr_bytes[address_index]);
    if (status != STATUS_OK) {
        free(conn);
        return status;
    }
    conn_init(&conn->conn, base, false);
    channel_watch(conn);
    *conn_out = &conn->conn;
    return STATUS_OK;
}

static void ucx_watch_listener(struct ucx_port *port, uint32_t events) {
    struct epoll_event event = {.events = events, .data.ptr = NULL};
    (void)epoll_ctl(port->channels_fd, EPOLL_CTL_MOD, port->listening_fd, &event);
}

// No descriptor or memory is left: looking again at once would only burn a core.
static void ucx_pause_accepting(struct ucx_port *port) {
    port->accept_after_ms = port->port.now_ms + LINK_RETRY_MS;
    ucx_watch_listener(port, 0);
}

// Whether another one may be there.
static bool ucx_accept_one(struct ucx_port *port) {
    struct ucx_conn *conn = ucx_conn_make(port);
    if (conn == NULL) {
        ucx_pause_accepting(port);
        return false;
    }
    errno = 0;
    if (!channel_accept(&conn->channel, port->listening_fd, conn->conn.peer,
                        sizeof(conn->conn.peer))) {
        if (errno != EAGAIN && errno != EWOULDBLOCK && errno != ECONNABORTED)
            ucx_pause_accepting(port);
        free(conn);
        return false;
    }
    conn_init(&conn->conn, &port->port, true);
    channel_watch(conn);
    conn_challenge(&conn->conn);
    return true;
}

// Room follows in the next sweep, so several go at once; the listener stays readable meanwhile.
static void ucx_accept(struct ucx_port *port) {
    if (!port_has_room_for_pending(&port->port)) {
        for (int i = 0; i < LINK_PENDING_EVICT_COUNT; i++)
            port_evict_pending(&port->port);
        return;
    }
    while (port_has_room_for_pending(&port->port) && ucx_accept_one(port))
        ;
}

// -- the frames' way -----------------------------------------------------------------------------

static enum status channel_put_worker(struct ucx_conn *conn, const void *address,
                                      size_t address_bytes) {
    unsigned major, minor, release;
    if (address_bytes > LINK_WORKER_BYTES_MAX) return STATUS_EXHAUSTED;
    ucp_get_version(&major, &minor, &release);
    struct link_worker worker =
        link_worker_make((uint16_t)major, (uint16_t)minor, (uint32_t)address_bytes);
    conn_seal_worker(&conn->conn, &worker, address);
    bool queued = channel_put(&conn->channel, &worker, sizeof(worker)) &&
                  (address_bytes == 0 || channel_put(&conn->channel, address, address_bytes));
    return queued ? STATUS_OK : STATUS_EXHAUSTED;
}

static enum status ucx_open_worker(struct ucx_conn *conn) {
    struct ucx_port *port = ucx_port_of(&conn->conn);
    enum status status = ucx_data_open(port->context, &conn->conn, &conn->conn.data);
    if (status != STATUS_OK) return status;
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = conn};
    int fd = conn->conn.data->event_fd;
    return epoll_ctl(port->workers_fd, EPOLL_CTL_ADD, fd, &event) == 0 ? STATUS_OK : STATUS_IO;
}

// Tells the peer where the worker of a connection is.
static enum status ucx_offer_worker(struct ucx_conn *conn) {
    ucp_address_t *address;
    size_t address_bytes;
    enum status status = ucx_data_address(conn->conn.data, &address, &address_bytes);
    if (status != STATUS_OK) return status;
    status = channel_put_worker(conn, address, address_bytes);
    ucx_data_free_address(conn->conn.data, address);
    return status;
}

static bool ucx_is_same(const struct link_worker *worker) {
    unsigned major, minor, release;
    ucp_get_version(&major, &minor, &release);
    return worker->ucx_major == major && worker->ucx_minor == minor;
}

// Frames go over the channel; no worker is needed.
static void ucx_open_stream(struct ucx_conn *conn) {
    ucx_data_close(conn->conn.data);
    conn->conn.data = NULL;
    conn->stream.is_open = true;
}

// The receiver offered a worker when it accepted: the sender tries to reach it with one of its own.
static enum status ucx_answer_worker(struct ucx_conn *conn, const struct link_worker *worker,
                                     const uint8_t *address) {
    if (worker->address_bytes > 0 && ucx_is_same(worker)) {
        enum status status = ucx_open_worker(conn);
        if (status == STATUS_OK) status = ucx_data_join(conn->conn.data, address);
        if (status == STATUS_OK) return ucx_offer_worker(conn);
        if (status != STATUS_UNAVAILABLE) return status;
    }
    ucx_open_stream(conn);
    return channel_put_worker(conn, NULL, 0);
}

static enum status ucx_take_answer(struct ucx_conn *conn, const struct link_worker *worker,
                                   const uint8_t *address) {
    if (worker->address_bytes == 0) {
        ucx_open_stream(conn);
        return STATUS_OK;
    }
    return ucx_is_same(worker) ? ucx_data_join(conn->conn.data, address) : STATUS_UNSUPPORTED;
}

static bool ucx_has_way(const struct ucx_conn *conn) {
    const struct ucx_data *data = conn->conn.data;
    return conn->stream.is_open || (data != NULL && data->ep != NULL);
}

static void ucx_receive_worker(struct ucx_conn *conn, const uint8_t *message) {
    struct conn *base = &conn->conn;
    const uint8_t *address = message + sizeof(struct link_worker);
    struct link_worker worker;
    memcpy(&worker, message, sizeof(worker));
    if (!base->trusted || ucx_has_way(conn)) {
        conn_refuse_message(base, "a worker out of place");
        return;
    }
    if (!conn_worker_is_sealed(base, &worker, address)) {
        conn_refuse_message(base, "a worker that is not the peer's");
        return;
    }
    enum status status = base->accepted ? ucx_take_answer(conn, &worker, address)
                                        : ucx_answer_worker(conn, &worker, address);
    if (status != STATUS_OK) {
        conn_broke(base, "UCX finds no way to the peer");
        return;
    }
    channel_send(conn);
    conn_opened_way(base);
}

static bool ucx_send_message(struct conn *base, const union link_message *message) {
    struct ucx_conn *conn = (struct ucx_conn *)base;
    if (message->head.kind == LINK_CREDIT && !conn->stream.is_open)
        return base->data != NULL && ucx_data_send_credit(base->data, &message->credit);
    if (!channel_put(&conn->channel, message, link_message_bytes(message->head.kind))) return false;
    if (message->head.kind == LINK_ACCEPT &&
        (ucx_open_worker(conn) != STATUS_OK || ucx_offer_worker(conn) != STATUS_OK))
        return false;
    channel_send(conn);
    return true;
}

static void ucx_send_frame(struct conn *base, struct send_slot *slot) {
    struct ucx_conn *conn = (struct ucx_conn *)base;
    if (!conn->stream.is_open) {
        ucx_data_send_frame(base->data, slot);
        return;
    }
    stream_send_frame(&conn->stream, slot);
    channel_send(conn);
}

// -- progress ------------------------------------------------------------------------------------

static uint16_t message_kind(const struct channel *channel) {
    struct link_message_head head;
    memcpy(&head, channel->in, sizeof(head));
    return head.kind;
}

// Nothing else of a stranger is looked at, nor waited for.
static bool begins_no_hello(const struct ucx_conn *conn) {
    return conn->conn.pending && conn->channel.in_bytes >= sizeof(struct link_message_head) &&
           message_kind(&conn->channel) != LINK_HELLO;
}

static void channel_handle(struct ucx_conn *conn) {
    size_t size_bytes;
    enum status status;
    if (begins_no_hello(conn)) {
        conn_refuse_message(&conn->conn, "it says something else than hello");
        return;
    }
    while (stream_take_frames(&conn->stream, &conn->channel, &conn->conn)) {
        status = channel_first(&conn->channel, &size_bytes);
        if (status == STATUS_INVALID) conn_refuse_message(&conn->conn, "bytes that are no message");
        if (status != STATUS_OK) return;
        const uint8_t *message = conn->channel.in;
        if (message_kind(&conn->channel) == LINK_WORKER)
            ucx_receive_worker(conn, message);
        else
            conn_receive_message(&conn->conn, message, size_bytes);
        if (!conn_is_live(&conn->conn)) return;
        channel_drop(&conn->channel, size_bytes);
    }
}

static void channel_progress(struct ucx_conn *conn, uint32_t events) {
    const char *reason;
    if (conn->conn.phase == CONN_FORCED) return;
    if (events & EPOLLOUT) channel_send(conn);
    if ((events & (EPOLLIN | EPOLLERR | EPOLLHUP)) == 0) return;
    enum status status = stream_pull(&conn->stream, &conn->channel, &conn->conn, &reason);
    if (conn_is_live(&conn->conn))
        channel_handle(conn);
    else
        conn->channel.in_bytes = 0; // nobody listens any more
    if (status != STATUS_OK) conn_broke(&conn->conn, reason);
}

static bool ucx_channels_progress(struct ucx_port *port) {
    struct epoll_event events[16];
    if (port->accept_after_ms != 0 && port->port.now_ms >= port->accept_after_ms) {
        port->accept_after_ms = 0;
        ucx_watch_listener(port, EPOLLIN);
    }
    int count = epoll_wait(port->channels_fd, events, 16, 0);
    for (int i = 0; i < count; i++) {
        if (events[i].data.ptr == NULL)
            ucx_accept(port);
        else
            channel_progress(events[i].data.ptr, events[i].events);
    }
    return count > 0;
}

// Whether everything of a closing connection has left.
static void ucx_check_flushed(struct ucx_conn *conn) {
    bool frames_left = conn->conn.data == NULL || conn->conn.data->flushed;
    if (!conn->flushing || !frames_left || stream_is_full(&conn->stream, &conn->channel)) return;
    conn->conn.flushed = conn->conn.port->happened = true;
}

static void ucx_check_ended(struct ucx_conn *conn) {
    struct conn *base = &conn->conn;
    if (base->phase != CONN_FORCED || base->gone) return;
    bool late = base->port->now_ms - conn->force_ms >= LINK_FORCE_MS;
    if (base->data != NULL && !base->data->ended && !late) return;
    ucx_data_close(base->data);
    base->data = NULL;
    base->gone = base->port->happened = true;
}

// Frames first: what a peer sent before it said goodbye is still taken.
static bool ucx_progress(struct port *base) {
    struct ucx_port *port = (struct ucx_port *)base;
    bool any = false;
    for (struct conn *conn = base->conns; conn != NULL; conn = conn->next)
        if (conn->data != NULL) any |= ucx_data_progress(conn->data);
    any |= ucx_channels_progress(port);
    for (struct conn *conn = base->conns; conn != NULL; conn = conn->next) {
        if (conn->phase == CONN_OPEN) continue;
        ucx_check_flushed((struct ucx_conn *)conn);
        ucx_check_ended((struct ucx_conn *)conn);
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

// False: something came to a worker between the last look and the arming.
static bool ucx_arm(struct ucx_port *port) {
    for (struct conn *conn = port->port.conns; conn != NULL; conn = conn->next)
        if (conn->data != NULL && conn->data->ep != NULL &&
            ucp_worker_arm(conn->data->worker) != UCS_OK)
            return false;
    return true;
}

static void ucx_wait(struct port *base, int wake_fd, int timeout_ms) {
    struct ucx_port *port = (struct ucx_port *)base;
    struct pollfd pollfds[3] = {{.fd = wake_fd, .events = POLLIN},
                                {.fd = port->channels_fd, .events = POLLIN},
                                {.fd = port->workers_fd, .events = POLLIN}};
    if (ucx_spin(port, pollfds))
        base->happened = true;
    else if (ucx_arm(port))
        poll(pollfds, 3, timeout_ms);
}

// -- ending connections --------------------------------------------------------------------------

static void ucx_flush(struct conn *base) {
    struct ucx_conn *conn = (struct ucx_conn *)base;
    conn->flushing = true;
    if (base->data != NULL) ucx_data_flush(base->data);
    ucx_check_flushed(conn);
}

static void ucx_force(struct conn *base) {
    struct ucx_conn *conn = (struct ucx_conn *)base;
    channel_close(&conn->channel);
    conn->force_ms = base->port->now_ms;
    if (base->data != NULL)
        ucx_data_end(base->data);
    else
        base->gone = true;
}

static void ucx_free_conn(struct conn *base) {
    struct ucx_conn *conn = (struct ucx_conn *)base;
    channel_close(&conn->channel);
    ucx_data_close(base->data);
    free(conn);
}

// -- ports ---------------------------------------------------------------------------------------

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

static void ucx_close(struct port *base) {
    struct ucx_port *port = (struct ucx_port *)base;
    while (base->conns != NULL) {
        struct conn *conn = base->conns;
        base->conns = conn->next;
        ucx_free_conn(conn);
    }
    if (port->context != NULL) ucp_cleanup(port->context);
    if (port->listening_fd >= 0) close(port->listening_fd);
    if (port->channels_fd >= 0) close(port->channels_fd);
    if (port->workers_fd >= 0) close(port->workers_fd);
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
    .needs_keys = true,
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
    if (ucs_status == UCS_OK) return STATUS_OK;
    return error_set(error, ucs_status == UCS_ERR_NO_MEMORY ? STATUS_NO_MEMORY : STATUS_IO,
                     "UCX does not start: %s", ucs_status_string(ucs_status));
}

static enum status ucx_listen(struct ucx_port *port, const char *host,
                              const struct sockaddr_storage *address, socklen_t address_bytes,
                              struct error *error) {
    uint16_t port_number;
    enum status status = channel_listen((const struct sockaddr *)address, address_bytes,
                                        &port->listening_fd, &port_number, error);
    if (status != STATUS_OK) return status;
    port->channels_fd = epoll_create1(EPOLL_CLOEXEC);
    port->workers_fd = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    if (port->channels_fd < 0 || port->workers_fd < 0 ||
        epoll_ctl(port->channels_fd, EPOLL_CTL_ADD, port->listening_fd, &event) != 0)
        return error_set(error, STATUS_IO, "epoll: %m");
    link_address_join(host, port_number, port->port.address, sizeof(port->port.address));
    return STATUS_OK;
}

enum status port_open_ucx(const char *host, uint16_t port_number, const struct port_config *config,
                          struct port **port_out, struct error *error) {
    struct sockaddr_storage address;
    socklen_t address_bytes;
    size_t address_count;
    enum status status =
        link_address_resolve(host, port_number, &address, &address_bytes, 1, &address_count, error);
    if (status != STATUS_OK) return STATUS_IO;
    if (link_crypto_start() != STATUS_OK)
        return error_set(error, STATUS_IO, "no random numbers for keys");
    struct ucx_port *port = memory_array(1, sizeof(*port));
    if (port == NULL) return error_set(error, STATUS_NO_MEMORY, "no memory for a port");
    port_init(&port->port, &ucx_ops, config);
    port->listening_fd = port->channels_fd = port->workers_fd = -1;
    status = ucx_listen(port, host, &address, address_bytes, error);
    if (status == STATUS_OK)
        status = ucx_open_context(port, (const struct sockaddr *)&address, error);
    if (status != STATUS_OK) {
        error_prefix(error, "data plane at %s port %u", host, (unsigned)port_number);
        ucx_close(&port->port);
        return status;
    }
    *port_out = &port->port;
    return STATUS_OK;
}
