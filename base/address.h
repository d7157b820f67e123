// address: "host:port" texts. No look-ups.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

enum { ADDRESS_HOST_BYTES_MAX = 254 };

struct address {
    char host[ADDRESS_HOST_BYTES_MAX + 1]; // without brackets; may be empty
    uint16_t port;                         // may be 0
};

// "host:port", "[ipv6]:port" or ":port". STATUS_INVALID names the text and what is wrong.
MUST_USE enum status address_parse(const char *text, struct address *address_out,
                                   struct error *error);

// Writes "host:port", with brackets where the host has colons. False when it does not fit.
MUST_USE bool address_format(const char *host, uint16_t port, char *text_out,
                             size_t capacity_bytes);

// Whether the host means every interface: "", "0.0.0.0" or "::".
bool address_is_wildcard(const char *host);
