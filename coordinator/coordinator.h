// coordinator: the whole service put together from settings: model and tokenizer, threads, loop.
#pragma once

#include "coordinator/settings.h"

// Serves until SIGTERM or SIGINT, then drains. Signals must be blocked already (signals_block).
// The status of starting, with a sentence; STATUS_OK after a clean end.
MUST_USE enum status coordinator_run(const struct settings *settings, struct error *error);
