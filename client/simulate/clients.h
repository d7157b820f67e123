// clients: who asks the simulated coordinator, and what of the coordinator stands between the flow
// and them: requests begin, get tokens and end.
#pragma once

#include "client/simulate/world.h"

// Prompts, arrivals and what each must be answered.
MUST_USE enum status clients_open(struct world *world);
void clients_close(struct world *world);

// Functions of struct flow_outside; `ctx` is the world.
void clients_issued(void *ctx, struct sequence *sequence);
void clients_sample(void *ctx, const struct scheduler_pick *pick, const struct frame_sample *sample,
                    const struct frame_top *tops);
void clients_released(void *ctx, struct sequence *sequence);
void clients_lost(void *ctx);
