// port_file: tells the port that a server got to whoever started it, in a file of --port-file.
#pragma once

#include <stdint.h>

#include "base/status.h"

// The file appears whole, with the port and a line end. STATUS_IO.
MUST_USE enum status port_file_write(const char *path, uint16_t port, struct error *error);
