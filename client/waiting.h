// waiting: until the pipeline runs, with the progress of its stages on standard error.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "client/client.h"

// True when the pipeline runs; then a line for each stage says which layers it has. False when it
// did not within `seconds`, or a stage reports that it cannot serve the model; that has been
// reported. A coordinator that does not answer yet is waited for as well.
MUST_USE bool waiting_until_running(struct client *client, double seconds);
