// waiting: until the pipeline runs, with the progress of its stages on standard error.
#pragma once

#include <signal.h>

#include "base/status.h"
#include "client/client.h"

// EXIT_SUCCESS when the pipeline runs; then a line for each stage says which layers it has.
// EXIT_FAILURE when it did not within `seconds`, or a stage reports that it cannot serve the model;
// that has been reported. CLIENT_EXIT_INTERRUPTED after one of `interrupts`, which are blocked.
// A coordinator that does not answer yet is waited for as well.
MUST_USE int waiting_until_running(struct client *client, const sigset_t *interrupts,
                                   double seconds);
