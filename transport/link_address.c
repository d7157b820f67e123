#include "transport/link_address.h"

#include <netdb.h>
#include <stdio.h>
#include <string.h>

#include "base/address.h"

enum status link_address_split(const char *text, char *host_out, size_t host_capacity_bytes,
                               uint16_t *port_number_out, struct error *error) {
    struct address address;
    enum status status = address_parse(text, &address, error);
    if (status != STATUS_OK) return status;
    size_t host_bytes = strlen(address.host);
    const char *why = NULL;
    if (host_bytes == 0) why = "the host is empty";
    if (host_bytes >= host_capacity_bytes) why = "the host is too long";
    if (address.port == 0) why = "the port is not 1..65535";
    if (why != NULL)
        return error_set(error, STATUS_INVALID, "address '%.200s' is no peer's: %s", text, why);
    memcpy(host_out, address.host, host_bytes + 1);
    *port_number_out = address.port;
    return STATUS_OK;
}

void link_address_join(const char *host, uint16_t port_number, char *text_out,
                       size_t text_capacity_bytes) {
    bool is_whole = address_format(host, port_number, text_out, text_capacity_bytes);
    (void)is_whole; // cut at the capacity
}

enum status link_address_resolve(const char *host, uint16_t port_number,
                                 struct sockaddr_storage *sockaddrs_out,
                                 socklen_t *sockaddr_bytes_out, size_t count_max, size_t *count_out,
                                 struct error *error) {
    char service[8];
    snprintf(service, sizeof(service), "%u", (unsigned)port_number);
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV | AI_PASSIVE};
    struct addrinfo *found = NULL;
    int code = getaddrinfo(host, service, &hints, &found);
    if (code != 0)
        return error_set(error, STATUS_UNAVAILABLE, "host \"%.200s\": %s", host,
                         gai_strerror(code));
    size_t count = 0;
    for (struct addrinfo *at = found; at != NULL && count < count_max; at = at->ai_next) {
        if (at->ai_addrlen > sizeof(*sockaddrs_out)) continue;
        memset(&sockaddrs_out[count], 0, sizeof(*sockaddrs_out));
        memcpy(&sockaddrs_out[count], at->ai_addr, at->ai_addrlen);
        sockaddr_bytes_out[count++] = at->ai_addrlen;
    }
    freeaddrinfo(found);
    if (count == 0)
        return error_set(error, STATUS_UNAVAILABLE, "host \"%.200s\" has no address", host);
    *count_out = count;
    return STATUS_OK;
}
