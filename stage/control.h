// control: the stage's main thread. Keeps a Join stream to the coordinator, passes its orders to
// the worker and the worker's reports back; dials again when the stream ends.
#pragma once

#include "stage/settings.h"

// Serves until SIGTERM or SIGINT. Signals must be blocked already (signals_block). The status of
// starting, or STATUS_INVALID when the coordinator refuses this stage for good, with a sentence.
MUST_USE enum status control_run(const struct settings *settings, struct error *error);
