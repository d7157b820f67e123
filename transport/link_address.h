// link_address: "host:port" texts, and the socket addresses behind them.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#include "base/status.h"

// Splits "host:port" or "[ipv6]:port"; the host has no brackets. port 1..65535.
// STATUS_INVALID: names what is wrong.
MUST_USE enum status link_address_split(const char *text, char *host_out,
                                        size_t host_capacity_bytes, uint16_t *port_number_out,
                                        struct error *error);

// Joins them again, with brackets where the host has colons. Cut at the capacity.
void link_address_join(const char *host, uint16_t port_number, char *text_out,
                       size_t text_capacity_bytes);

// Up to count_max addresses of a host; names are looked up, which may block.
// STATUS_UNAVAILABLE: there is none; the error says why.
MUST_USE enum status link_address_resolve(const char *host, uint16_t port_number,
                                          struct sockaddr_storage *sockaddrs_out,
                                          socklen_t *sockaddr_bytes_out, size_t count_max,
                                          size_t *count_out, struct error *error);
