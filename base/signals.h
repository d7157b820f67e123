// signals: SIGTERM and SIGINT as a flag and a wake. Block them in every thread, then let the main
// thread alone take them.
#pragma once

#include <stdbool.h>

#include "base/status.h"
#include "base/wake.h"

// Blocks SIGTERM, SIGINT and SIGPIPE in this thread and in those it starts. Call first in main().
void signals_block(void);
// From now on SIGTERM and SIGINT reach this thread: they set the flag and signal `wake`, which must
// live as long as the process.
MUST_USE enum status signals_listen(struct wake *wake);
// Whether one of them has come.
bool signals_stop_asked(void);
// Whether a second one has come: who asked does not want to wait.
bool signals_stop_now_asked(void);
