#include "transport/link_channel.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/check.h"

enum { LISTEN_BACKLOG_COUNT = 1024 };

union address {
    struct sockaddr any;
    struct sockaddr_in in;
    struct sockaddr_in6 in6;
};

static bool is_every_address(const struct sockaddr *address) {
    union address any = {0};
    memcpy(&any, address, address->sa_family == AF_INET6 ? sizeof(any.in6) : sizeof(any.in));
    if (address->sa_family == AF_INET6) return IN6_IS_ADDR_UNSPECIFIED(&any.in6.sin6_addr);
    return any.in.sin_addr.s_addr == htonl(INADDR_ANY);
}

static int open_socket(const struct sockaddr *address, socklen_t address_bytes,
                       const char **what_out) {
    int on = 1, off = 0;
    *what_out = "socket";
    int fd = socket(address->sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) return -1;
    // A restarted process can listen on its port at once.
    *what_out = "setsockopt";
    if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) != 0) goto close_fd;
    if (address->sa_family == AF_INET6 && is_every_address(address) &&
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off)) != 0)
        goto close_fd;
    *what_out = "cannot bind";
    if (bind(fd, address, address_bytes) != 0) goto close_fd;
    *what_out = "cannot listen";
    if (listen(fd, LISTEN_BACKLOG_COUNT) != 0) goto close_fd;
    return fd;
close_fd:;
    int error = errno;
    close(fd);
    errno = error;
    return -1;
}

// Every address means those of both kinds, where the system has both: a peer may know this machine
// by either.
static int open_listener(const struct sockaddr *address, socklen_t address_bytes,
                         const char **what_out) {
    if (address->sa_family == AF_INET && is_every_address(address)) {
        union address both = {.in6 = {.sin6_family = AF_INET6, .sin6_addr = in6addr_any}};
        union address given;
        memcpy(&given, address, sizeof(given.in));
        both.in6.sin6_port = given.in.sin_port;
        int fd = open_socket(&both.any, sizeof(both.in6), what_out);
        if (fd >= 0 || errno == EADDRINUSE) return fd;
    }
    return open_socket(address, address_bytes, what_out);
}

enum status channel_listen(const struct sockaddr *address, socklen_t address_bytes, int *fd_out,
                           uint16_t *port_number_out, struct error *error) {
    const char *what;
    int fd = open_listener(address, address_bytes, &what);
    if (fd < 0) goto fail;
    what = "cannot tell its port";
    union address bound;
    socklen_t bound_bytes = sizeof(bound);
    memset(&bound, 0, sizeof(bound));
    if (getsockname(fd, &bound.any, &bound_bytes) != 0) goto fail;
    bool is_in6 = bound.any.sa_family == AF_INET6;
    *port_number_out = ntohs(is_in6 ? bound.in6.sin6_port : bound.in.sin_port);
    *fd_out = fd;
    return STATUS_OK;
fail:
    (void)error_set(error, STATUS_IO, "%s: %s", what, strerror(errno));
    if (fd >= 0) close(fd);
    return STATUS_IO;
}

static void channel_init(struct channel *channel, int fd) {
    int on = 1;
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    channel->fd = fd;
    channel->in_bytes = channel->out_bytes = 0;
}

enum status channel_dial(struct channel *channel, const struct sockaddr *address,
                         socklen_t address_bytes) {
    int fd = socket(address->sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) return STATUS_IO;
    channel_init(channel, fd);
    if (connect(fd, address, address_bytes) == 0 || errno == EINPROGRESS) return STATUS_OK;
    channel_close(channel);
    return STATUS_IO;
}

bool channel_accept(struct channel *channel, int listening_fd, char *peer_out,
                    size_t peer_capacity_bytes) {
    struct sockaddr_storage peer;
    socklen_t peer_bytes = sizeof(peer);
    int fd =
        accept4(listening_fd, (struct sockaddr *)&peer, &peer_bytes, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0) return false;
    channel_init(channel, fd);
    if (getnameinfo((const struct sockaddr *)&peer, peer_bytes, peer_out,
                    (socklen_t)peer_capacity_bytes, NULL, 0, NI_NUMERICHOST) != 0)
        snprintf(peer_out, peer_capacity_bytes, "an unknown address");
    // IPv4 on a socket for both.
    size_t mapped_bytes = strlen("::ffff:");
    if (strncmp(peer_out, "::ffff:", mapped_bytes) == 0 && strchr(peer_out, '.') != NULL)
        memmove(peer_out, peer_out + mapped_bytes, strlen(peer_out + mapped_bytes) + 1);
    return true;
}

void channel_close(struct channel *channel) {
    if (channel->fd >= 0) close(channel->fd);
    channel->fd = -1;
}

bool channel_put(struct channel *channel, const void *data, size_t size_bytes) {
    if (size_bytes > sizeof(channel->out) - channel->out_bytes) return false;
    memcpy(channel->out + channel->out_bytes, data, size_bytes);
    channel->out_bytes += size_bytes;
    return true;
}

static bool is_not_now(int error_number) {
    return error_number == EAGAIN || error_number == EWOULDBLOCK || error_number == EINTR;
}

enum status channel_write(struct channel *channel, const void *data, size_t size_bytes,
                          size_t *bytes_out, const char **reason_out) {
    ssize_t sent = send(channel->fd, data, size_bytes, MSG_NOSIGNAL);
    if (sent < 0 && !is_not_now(errno)) {
        *reason_out = strerrordesc_np(errno);
        return STATUS_UNAVAILABLE;
    }
    *bytes_out = sent < 0 ? 0 : (size_t)sent;
    return STATUS_OK;
}

enum status channel_read(struct channel *channel, void *out, size_t size_bytes, size_t *bytes_out,
                         const char **reason_out) {
    ssize_t got = recv(channel->fd, out, size_bytes, 0);
    if (got == 0 || (got < 0 && !is_not_now(errno))) {
        *reason_out = got == 0 ? "the peer closed the connection" : strerrordesc_np(errno);
        return STATUS_UNAVAILABLE;
    }
    *bytes_out = got < 0 ? 0 : (size_t)got;
    return STATUS_OK;
}

enum status channel_push(struct channel *channel, const char **reason_out) {
    while (channel->out_bytes > 0) {
        size_t sent_bytes;
        enum status status =
            channel_write(channel, channel->out, channel->out_bytes, &sent_bytes, reason_out);
        if (status != STATUS_OK || sent_bytes == 0) return status;
        channel->out_bytes -= sent_bytes;
        memmove(channel->out, channel->out + sent_bytes, channel->out_bytes);
    }
    return STATUS_OK;
}

enum status channel_pull(struct channel *channel, const char **reason_out) {
    size_t room_bytes = sizeof(channel->in) - channel->in_bytes, got_bytes;
    if (room_bytes == 0) return STATUS_OK;
    enum status status =
        channel_read(channel, channel->in + channel->in_bytes, room_bytes, &got_bytes, reason_out);
    if (status == STATUS_OK) channel->in_bytes += got_bytes;
    return status;
}

enum status channel_first(const struct channel *channel, size_t *size_bytes_out) {
    size_t size_bytes = link_stream_message_bytes(channel->in, channel->in_bytes);
    if (size_bytes == SIZE_MAX) return STATUS_INVALID;
    if (size_bytes == 0 || size_bytes > channel->in_bytes) return STATUS_UNAVAILABLE;
    *size_bytes_out = size_bytes;
    return STATUS_OK;
}

void channel_drop(struct channel *channel, size_t size_bytes) {
    CHECK(size_bytes <= channel->in_bytes);
    channel->in_bytes -= size_bytes;
    memmove(channel->in, channel->in + size_bytes, channel->in_bytes);
}
