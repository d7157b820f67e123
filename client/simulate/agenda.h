// agenda: what is going to happen in a simulation, ordered by time and then by when it was put
// there, so that the same seed gives the same story.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

// Whoever things happen to: the coordinator or a stage service.
struct actor {
    uint32_t life;             // rises when it dies; what was for an earlier life does not happen
    uint64_t stopped_until_ns; // what happens to it before waits until then
};

// `subject` and `tag` are as they were put there.
typedef void happening_fn(void *ctx, void *subject, uint64_t tag);

struct happening {
    uint64_t at_ns;
    uint64_t number;
    happening_fn *run;
    void *subject; // not owned
    uint64_t tag;
    struct actor *actor; // NULL: happens to the world
    uint32_t life;
};

struct agenda {
    struct happening *heap;
    size_t count, capacity_count;
    uint64_t number_next;
};

void agenda_fini(struct agenda *agenda);

// `actor` may be NULL; it is remembered with its present life.
void agenda_put(struct agenda *agenda, uint64_t at_ns, struct actor *actor, happening_fn *run,
                void *subject, uint64_t tag);
// Takes the next one that does happen. False: none is left.
MUST_USE bool agenda_take(struct agenda *agenda, struct happening *out);
