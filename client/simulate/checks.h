// checks: the rules that hold after every event of a simulation.
#pragma once

#include "client/simulate/world.h"

// Blocks, sequences and counts as they are now.
void checks_now(struct world *world);
// A frame goes out to stage 0: its rows follow those before, into blocks that nobody else has.
void checks_sent(struct world *world, struct frame *frame);
// All requests have ended and nothing is in flight: nothing outlives them.
void checks_end(struct world *world);
