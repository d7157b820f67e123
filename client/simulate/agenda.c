#include "client/simulate/agenda.h"

#include <stdlib.h>

#include "base/check.h"
#include "base/memory.h"

void agenda_fini(struct agenda *agenda) {
    free(agenda->heap);
    *agenda = (struct agenda){0};
}

static bool is_before(const struct happening *a, const struct happening *b) {
    return a->at_ns != b->at_ns ? a->at_ns < b->at_ns : a->number < b->number;
}

static void insert(struct agenda *agenda, struct happening happening) {
    if (agenda->count == agenda->capacity_count) {
        agenda->capacity_count = agenda->capacity_count == 0 ? 256 : agenda->capacity_count * 2;
        agenda->heap = memory_resize(agenda->heap, agenda->capacity_count, sizeof(*agenda->heap));
        CHECK(agenda->heap != NULL); // a simulation without memory has no story to tell
    }
    happening.number = agenda->number_next++;
    size_t at = agenda->count++;
    while (at > 0 && is_before(&happening, &agenda->heap[(at - 1) / 2])) {
        agenda->heap[at] = agenda->heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    agenda->heap[at] = happening;
}

void agenda_put(struct agenda *agenda, uint64_t at_ns, struct actor *actor, happening_fn *run,
                void *subject, uint64_t tag) {
    insert(agenda, (struct happening){.at_ns = at_ns,
                                      .run = run,
                                      .subject = subject,
                                      .tag = tag,
                                      .actor = actor,
                                      .life = actor == NULL ? 0 : actor->life});
}

static struct happening take_first(struct agenda *agenda) {
    struct happening first = agenda->heap[0];
    struct happening last = agenda->heap[--agenda->count];
    size_t at = 0;
    for (;;) {
        size_t child = at * 2 + 1;
        if (child >= agenda->count) break;
        if (child + 1 < agenda->count && is_before(&agenda->heap[child + 1], &agenda->heap[child]))
            child++;
        if (!is_before(&agenda->heap[child], &last)) break;
        agenda->heap[at] = agenda->heap[child];
        at = child;
    }
    agenda->heap[at] = last;
    return first;
}

bool agenda_take(struct agenda *agenda, struct happening *out) {
    while (agenda->count > 0) {
        struct happening first = take_first(agenda);
        const struct actor *actor = first.actor;
        if (actor != NULL && actor->life != first.life) continue;
        if (actor == NULL || actor->stopped_until_ns <= first.at_ns) {
            *out = first;
            return true;
        }
        first.at_ns = actor->stopped_until_ns;
        insert(agenda, first);
    }
    return false;
}
