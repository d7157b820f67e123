#include "base/address.h"

#include <stdio.h>
#include <string.h>

static enum status malformed(const char *text, const char *why, struct error *error) {
    return error_set(error, STATUS_INVALID, "address '%.200s' is not host:port: %s", text, why);
}

static bool parse_port(const char *text, uint16_t *port_out) {
    uint32_t port = 0;
    size_t digit_count = strlen(text);
    if (digit_count == 0 || digit_count > 5) return false;
    for (; *text != '\0'; text++) {
        if (*text < '0' || *text > '9') return false;
        port = port * 10 + (uint32_t)(*text - '0');
    }
    if (port > UINT16_MAX) return false;
    *port_out = (uint16_t)port;
    return true;
}

enum status address_parse(const char *text, struct address *address_out, struct error *error) {
    const char *colon = strrchr(text, ':');
    if (colon == NULL) return malformed(text, "there is no colon", error);
    struct address address;
    const char *host = text;
    size_t host_bytes = (size_t)(colon - text);
    bool is_bracketed = host_bytes >= 2 && text[0] == '[' && colon[-1] == ']';
    if (is_bracketed) {
        host++;
        host_bytes -= 2;
    } else if (memchr(host, ':', host_bytes) != NULL) {
        return malformed(text, "an IPv6 host needs brackets", error);
    }
    if (memchr(host, '[', host_bytes) != NULL || memchr(host, ']', host_bytes) != NULL)
        return malformed(text, "brackets go around the host", error);
    if (is_bracketed && host_bytes == 0)
        return malformed(text, "there is nothing in the brackets", error);
    if (host_bytes > ADDRESS_HOST_BYTES_MAX) return malformed(text, "the host is too long", error);
    if (!parse_port(colon + 1, &address.port))
        return malformed(text, "the port is not a number from 0 to 65535", error);
    memcpy(address.host, host, host_bytes);
    address.host[host_bytes] = '\0';
    *address_out = address;
    return STATUS_OK;
}

bool address_format(const char *host, uint16_t port, char *text_out, size_t capacity_bytes) {
    bool is_bracketed = strchr(host, ':') != NULL;
    int size = snprintf(text_out, capacity_bytes, is_bracketed ? "[%s]:%u" : "%s:%u", host,
                        (unsigned)port);
    return size > 0 && (size_t)size < capacity_bytes;
}

bool address_is_wildcard(const char *host) {
    return host[0] == '\0' || strcmp(host, "0.0.0.0") == 0 || strcmp(host, "::") == 0;
}
