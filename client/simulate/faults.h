// faults: what goes wrong in a simulation, and when.
#pragma once

#include "client/simulate/world.h"

// Puts all of them on the agenda; world->fault_end_ns is when the last one begins.
void faults_open(struct world *world);
// A frame that is about to be sent may be damaged.
void faults_on_frame(struct world *world, struct parcel *parcel);
