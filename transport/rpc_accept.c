#include "transport/rpc_accept.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/limits.h"
#include "base/log.h"

// A connection that gRPC was given. It closes it when it likes: the cookie, which no other socket
// ever has, tells whether the descriptor is still this one's.
struct connection {
    int fd;
    uint64_t cookie;
};

struct rpc_accept {
    uint16_t port; // in network byte order; 0: unix
    char path[sizeof(((struct sockaddr_un *)0)->sun_path)];
    pthread_mutex_t mutex; // of what follows
    struct clock clock;
    int spare_fd; // given up for a moment when there is no other: -1
    struct connection *connections;
    uint32_t connection_count, connection_count_max;
    bool is_stopped;
    uint64_t swept_ms;    // when they were last looked through
    uint64_t reported_ms; // when refusals were last logged
    uint32_t refused_count;
};

static struct {
    pthread_rwlock_t lock;
    struct rpc_accept *accepts[RPC_ACCEPT_SERVER_COUNT_MAX];
} servers = {.lock = PTHREAD_RWLOCK_INITIALIZER};

// -- connections; the mutex is held --------------------------------------------------------------

static uint64_t cookie_of(int fd) {
    uint64_t cookie = 0;
    socklen_t size = sizeof(cookie);
    return getsockopt(fd, SOL_SOCKET, SO_COOKIE, &cookie, &size) == 0 ? cookie : 0;
}

static void forget_closed(struct rpc_accept *accept) {
    uint32_t kept_count = 0;
    for (uint32_t i = 0; i < accept->connection_count; i++) {
        const struct connection *connection = &accept->connections[i];
        if (cookie_of(connection->fd) != connection->cookie) continue;
        accept->connections[kept_count++] = *connection;
    }
    accept->connection_count = kept_count;
}

static bool has_room(struct rpc_accept *accept) {
    if (accept->connection_count < accept->connection_count_max) return true;
    uint64_t now_ms = clock_now_ms(&accept->clock);
    if (now_ms - accept->swept_ms < RPC_ACCEPT_SWEEP_MS) return false;
    accept->swept_ms = now_ms;
    forget_closed(accept);
    return accept->connection_count < accept->connection_count_max;
}

static void note_refused(struct rpc_accept *accept, const char *why) {
    accept->refused_count++;
    uint64_t now_ms = clock_now_ms(&accept->clock);
    if (accept->reported_ms != 0 && now_ms - accept->reported_ms < RPC_ACCEPT_REPORT_MS) return;
    log_warn("rpc: %u connections were refused: %s", accept->refused_count, why);
    accept->reported_ms = now_ms;
    accept->refused_count = 0;
}

// Takes one connection off the queue and closes it, with a descriptor that was kept for that.
// False: it cannot be done now.
static bool refuse_without_descriptor(struct rpc_accept *accept, int listener) {
    if (accept->spare_fd >= 0) (void)close(accept->spare_fd);
    int fd = (int)syscall(SYS_accept4, listener, NULL, NULL, SOCK_CLOEXEC);
    if (fd >= 0) (void)close(fd);
    accept->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (fd >= 0) note_refused(accept, "no descriptor is free");
    return fd >= 0;
}

static bool is_out_of_descriptors(int error) {
    return error == EMFILE || error == ENFILE || error == ENOBUFS || error == ENOMEM;
}

// Not about one connection: the socket was shut.
static bool is_the_sockets(int error) {
    return error == EBADF || error == EINVAL || error == ENOTSOCK || error == EOPNOTSUPP;
}

// The next connection that there is room for; -1 with EAGAIN: none for now.
static int take_connection(struct rpc_accept *accept, int listener, __SOCKADDR_ARG address,
                           socklen_t *address_bytes, int flags) {
    // Whoever keeps coming while there is no room must not keep this thread.
    for (int i = 0; i < RPC_ACCEPT_COUNT_MAX; i++) {
        int fd = (int)syscall(SYS_accept4, listener, address.__sockaddr__, address_bytes, flags);
        if (fd >= 0 && !accept->is_stopped && has_room(accept)) {
            accept->connections[accept->connection_count++] =
                (struct connection){.fd = fd, .cookie = cookie_of(fd)};
            return fd;
        }
        if (fd >= 0) {
            (void)close(fd);
            note_refused(accept, accept->is_stopped ? "the server is shutting down"
                                                    : "as many as allowed are open");
        } else if (errno == EAGAIN || is_the_sockets(errno)) {
            return -1;
        } else if (is_out_of_descriptors(errno) && !refuse_without_descriptor(accept, listener)) {
            break;
        } // else it is that connection's failure: the next may do better
    }
    errno = EAGAIN;
    return -1;
}

// -- the end --------------------------------------------------------------------------------------

void rpc_accept_stop(struct rpc_accept *accept) {
    pthread_mutex_lock(&accept->mutex);
    accept->is_stopped = true;
    pthread_mutex_unlock(&accept->mutex);
}

// 0: unix, or not connected any more.
static uint16_t peer_port_of(int fd) {
    struct sockaddr_storage peer = {0};
    socklen_t size = sizeof(peer);
    if (getpeername(fd, (struct sockaddr *)&peer, &size) != 0) return 0;
    if (peer.ss_family == AF_INET) return ntohs(((const struct sockaddr_in *)&peer)->sin_port);
    if (peer.ss_family == AF_INET6) return ntohs(((const struct sockaddr_in6 *)&peer)->sin6_port);
    return 0;
}

static bool has_port(const struct rpc_ports *ports, uint16_t port) {
    return (ports->words[port / 64] >> (port % 64) & 1) != 0;
}

void rpc_accept_shut_others(struct rpc_accept *accept, const struct rpc_ports *busy) {
    pthread_mutex_lock(&accept->mutex);
    for (uint32_t i = 0; i < accept->connection_count; i++) {
        // A second descriptor: gRPC may close its own, and another socket get the number, now.
        int fd = fcntl(accept->connections[i].fd, F_DUPFD_CLOEXEC, 0);
        if (fd < 0) continue;
        if (cookie_of(fd) == accept->connections[i].cookie && !has_port(busy, peer_port_of(fd)))
            (void)shutdown(fd, SHUT_RDWR);
        (void)close(fd);
    }
    pthread_mutex_unlock(&accept->mutex);
}

// -- servers -------------------------------------------------------------------------------------

static bool listens_for(const struct rpc_accept *accept, const struct sockaddr_storage *local) {
    if (local->ss_family == AF_INET)
        return accept->port == ((const struct sockaddr_in *)local)->sin_port;
    if (local->ss_family == AF_INET6)
        return accept->port == ((const struct sockaddr_in6 *)local)->sin6_port;
    return local->ss_family == AF_UNIX && accept->port == 0 &&
           strcmp(accept->path, ((const struct sockaddr_un *)local)->sun_path) == 0;
}

// The lock is held. NULL: not a socket of a server here.
static struct rpc_accept *find_accept(int listener) {
    struct sockaddr_storage local = {0}; // larger than any: a path in it ends with a NUL
    socklen_t size = sizeof(local);
    if (getsockname(listener, (struct sockaddr *)&local, &size) != 0) return NULL;
    for (size_t i = 0; i < RPC_ACCEPT_SERVER_COUNT_MAX; i++) {
        struct rpc_accept *accept = servers.accepts[i];
        if (accept != NULL && listens_for(accept, &local)) return accept;
    }
    return NULL;
}

// What the libraries of this process call.
int accept4(int listener, __SOCKADDR_ARG address, socklen_t *restrict address_bytes, int flags) {
    CHECK(pthread_rwlock_rdlock(&servers.lock) == 0);
    struct rpc_accept *accept = find_accept(listener);
    int fd;
    if (accept != NULL) {
        pthread_mutex_lock(&accept->mutex);
        fd = take_connection(accept, listener, address, address_bytes, flags);
        pthread_mutex_unlock(&accept->mutex);
    } else {
        fd = -1;
    }
    int error = errno;
    CHECK(pthread_rwlock_unlock(&servers.lock) == 0);
    errno = error;
    if (accept != NULL) return fd;
    return (int)syscall(SYS_accept4, listener, address.__sockaddr__, address_bytes, flags);
}

static uint32_t bounded_by_descriptors(uint32_t count_max) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return count_max;
    rlim_t spare = RPC_DESCRIPTOR_COUNT_SPARE;
    rlim_t room = limit.rlim_cur > 2 * spare ? limit.rlim_cur - spare : limit.rlim_cur / 2;
    return room < count_max ? (uint32_t)room : count_max;
}

static enum status enlist(struct rpc_accept *accept) {
    enum status status = STATUS_EXHAUSTED;
    CHECK(pthread_rwlock_wrlock(&servers.lock) == 0);
    for (size_t i = 0; i < RPC_ACCEPT_SERVER_COUNT_MAX && status != STATUS_OK; i++) {
        if (servers.accepts[i] != NULL) continue;
        servers.accepts[i] = accept;
        status = STATUS_OK;
    }
    CHECK(pthread_rwlock_unlock(&servers.lock) == 0);
    return status;
}

static void delist(struct rpc_accept *accept) {
    CHECK(pthread_rwlock_wrlock(&servers.lock) == 0);
    for (size_t i = 0; i < RPC_ACCEPT_SERVER_COUNT_MAX; i++) {
        if (servers.accepts[i] == accept) servers.accepts[i] = NULL;
    }
    CHECK(pthread_rwlock_unlock(&servers.lock) == 0);
}

enum status rpc_accept_open(uint16_t port, const char *path, uint32_t connection_count_max,
                            struct rpc_accept **accept_out) {
    struct rpc_accept *accept = calloc(1, sizeof(*accept));
    if (accept == NULL) return STATUS_NO_MEMORY;
    enum status status = STATUS_NO_MEMORY;
    accept->port = htons(port);
    if (port == 0) CHECK(strlen(path) < sizeof(accept->path));
    if (port == 0) strcpy(accept->path, path);
    accept->clock = clock_system();
    accept->connection_count_max = bounded_by_descriptors(connection_count_max);
    accept->connections = calloc(accept->connection_count_max, sizeof(*accept->connections));
    if (accept->connections == NULL) goto free_accept;
    status = STATUS_IO;
    accept->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (accept->spare_fd < 0) goto free_connections;
    if (pthread_mutex_init(&accept->mutex, NULL) != 0) goto close_spare;
    status = enlist(accept);
    if (status != STATUS_OK) goto destroy_mutex;
    *accept_out = accept;
    return STATUS_OK;
destroy_mutex:
    pthread_mutex_destroy(&accept->mutex);
close_spare:
    close(accept->spare_fd);
free_connections:
    free(accept->connections);
free_accept:
    free(accept);
    return status;
}

void rpc_accept_close(struct rpc_accept *accept) {
    if (accept == NULL) return;
    delist(accept);
    pthread_mutex_destroy(&accept->mutex);
    if (accept->spare_fd >= 0) close(accept->spare_fd);
    free(accept->connections);
    free(accept);
}
