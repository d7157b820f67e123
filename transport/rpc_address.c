#include "transport/rpc_address.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/address.h"
#include "base/check.h"

static const char unix_prefix[] = "unix:";

bool rpc_address_is_unix(const char *address) {
    return strncmp(address, unix_prefix, strlen(unix_prefix)) == 0;
}

const char *rpc_address_unix_path(const char *address) {
    return rpc_address_is_unix(address) ? address + strlen(unix_prefix) : NULL;
}

enum status rpc_address_check(const char *address, struct error *error) {
    if (rpc_address_is_unix(address)) {
        struct sockaddr_un local;
        size_t path_bytes = strlen(address) - strlen(unix_prefix);
        if (path_bytes > 0 && path_bytes < sizeof(local.sun_path)) return STATUS_OK;
        return error_set(error, STATUS_INVALID, "address %s: the path must have 1 to %zu bytes",
                         address, sizeof(local.sun_path) - 1);
    }
    struct address parsed;
    if (address_parse(address, &parsed, NULL) != STATUS_OK) {
        return error_set(error, STATUS_INVALID,
                         "address %s: must be host:port, [ipv6]:port or unix:/path", address);
    }
    return STATUS_OK;
}

static bool is_loopback(const struct sockaddr *address) {
    if (address->sa_family == AF_INET) {
        const struct sockaddr_in *four = (const struct sockaddr_in *)address;
        return ntohl(four->sin_addr.s_addr) >> 24 == IN_LOOPBACKNET;
    }
    const struct sockaddr_in6 *six = (const struct sockaddr_in6 *)address;
    if (address->sa_family != AF_INET6) return false;
    bool is_mapped = IN6_IS_ADDR_V4MAPPED(&six->sin6_addr) != 0;
    return IN6_IS_ADDR_LOOPBACK(&six->sin6_addr) ||
           (is_mapped && six->sin6_addr.s6_addr[12] == IN_LOOPBACKNET);
}

bool rpc_address_is_loopback(const char *address, struct error *reason_out) {
    if (rpc_address_is_unix(address)) return true;
    struct address parsed;
    enum status status = address_parse(address, &parsed, reason_out);
    if (status != STATUS_OK) return false;
    if (address_is_wildcard(parsed.host)) {
        (void)error_set(reason_out, STATUS_INVALID, "it is every address of this machine");
        return false;
    }
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM};
    struct addrinfo *found;
    int rc = getaddrinfo(parsed.host, NULL, &hints, &found);
    if (rc != 0) {
        (void)error_set(reason_out, STATUS_IO, "%s: %s", parsed.host, gai_strerror(rc));
        return false;
    }
    bool are_all = true;
    for (const struct addrinfo *each = found; each != NULL; each = each->ai_next)
        are_all = are_all && is_loopback(each->ai_addr);
    freeaddrinfo(found);
    if (!are_all) (void)error_set(reason_out, STATUS_INVALID, "%s is not loopback", parsed.host);
    return are_all;
}

static const char *refusal_of_socket(const struct sockaddr *address, socklen_t address_bytes) {
    int fd = socket(address->sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) return strerrordesc_np(errno);
    int yes = 1;
    (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
    bool bound = bind(fd, address, address_bytes) == 0 && listen(fd, 1) == 0;
    const char *reason = bound ? "refused" : strerrordesc_np(errno);
    close(fd);
    return reason;
}

static const char *refusal_of_unix(const char *path) {
    struct sockaddr_un local = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof(local.sun_path)) return "the path is too long";
    memcpy(local.sun_path, path, strlen(path));
    const char *reason = refusal_of_socket((const struct sockaddr *)&local, sizeof(local));
    if (strcmp(reason, "refused") == 0) (void)unlink(path);
    return reason;
}

const char *rpc_address_refusal(const char *address) {
    if (rpc_address_is_unix(address)) return refusal_of_unix(address + strlen(unix_prefix));
    struct address parsed;
    enum status status = address_parse(address, &parsed, NULL);
    CHECK(status == STATUS_OK);
    char service[8];
    (void)snprintf(service, sizeof(service), "%u", (unsigned)parsed.port);
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE};
    struct addrinfo *found;
    int rc = getaddrinfo(parsed.host[0] == '\0' ? NULL : parsed.host, service, &hints, &found);
    if (rc != 0) return gai_strerror(rc);
    const char *reason = refusal_of_socket(found->ai_addr, found->ai_addrlen);
    freeaddrinfo(found);
    return reason;
}

// Undoes %XX; gRPC writes peers as URIs.
static void percent_decode(const char *text, char *out, size_t capacity_bytes) {
    size_t size_bytes = 0;
    while (*text != '\0' && size_bytes + 1 < capacity_bytes) {
        unsigned value;
        if (text[0] == '%' && sscanf(text + 1, "%2x", &value) == 1 && strlen(text) >= 3) {
            out[size_bytes++] = (char)value;
            text += 3;
        } else {
            out[size_bytes++] = *text++;
        }
    }
    out[size_bytes] = '\0';
}

static bool is_ip(const char *peer) {
    return strncmp(peer, "ipv4:", 5) == 0 || strncmp(peer, "ipv6:", 5) == 0;
}

uint16_t rpc_address_peer_port(const char *peer) {
    const char *colon = strrchr(peer, ':');
    unsigned long port = is_ip(peer) ? strtoul(colon + 1, NULL, 10) : 0;
    return port <= UINT16_MAX ? (uint16_t)port : 0;
}

void rpc_address_peer_host(const char *peer, char *host_out, size_t host_capacity_bytes) {
    CHECK(host_capacity_bytes > 0);
    host_out[0] = '\0';
    if (!is_ip(peer)) return;
    char text[256];
    percent_decode(peer + 5, text, sizeof(text));
    char *host = text;
    char *end = strrchr(text, ':');
    if (text[0] == '[') {
        host = text + 1;
        end = strchr(host, ']');
    }
    if (end != NULL) *end = '\0';
    (void)snprintf(host_out, host_capacity_bytes, "%s", host);
}
