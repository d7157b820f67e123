#include "transport/link_address.h"

#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static enum status malformed(const char *text, const char *why, struct error *error) {
    return error_set(error, STATUS_INVALID, "address \"%.200s\" is not \"host:port\": %s", text,
                     why);
}

static bool port_number_parse(const char *text, uint16_t *port_number_out) {
    uint32_t number = 0;
    size_t digit_count = strlen(text);
    if (digit_count == 0 || digit_count > 5) return false;
    for (; *text != '\0'; text++) {
        if (*text < '0' || *text > '9') return false;
        number = number * 10 + (uint32_t)(*text - '0');
    }
    if (number == 0 || number > UINT16_MAX) return false;
    *port_number_out = (uint16_t)number;
    return true;
}

enum status link_address_split(const char *text, char *host_out, size_t host_capacity_bytes,
                               uint16_t *port_number_out, struct error *error) {
    const char *colon = strrchr(text, ':');
    if (colon == NULL) return malformed(text, "there is no colon", error);
    const char *host = text;
    size_t host_bytes = (size_t)(colon - text);
    bool bracketed = host_bytes >= 2 && text[0] == '[' && colon[-1] == ']';
    if (bracketed) {
        host++;
        host_bytes -= 2;
    } else if (memchr(host, ':', host_bytes) != NULL) {
        return malformed(text, "an IPv6 host needs brackets", error);
    }
    if (host_bytes == 0) return malformed(text, "the host is empty", error);
    if (host_bytes >= host_capacity_bytes) return malformed(text, "the host is too long", error);
    uint16_t port_number;
    if (!port_number_parse(colon + 1, &port_number))
        return malformed(text, "the port is not 1..65535", error);
    memcpy(host_out, host, host_bytes);
    host_out[host_bytes] = '\0';
    *port_number_out = port_number;
    return STATUS_OK;
}

void link_address_join(const char *host, uint16_t port_number, char *text_out,
                       size_t text_capacity_bytes) {
    bool bracketed = strchr(host, ':') != NULL;
    snprintf(text_out, text_capacity_bytes, bracketed ? "[%s]:%u" : "%s:%u", host,
             (unsigned)port_number);
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
