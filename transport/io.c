#include "transport/io.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/ring.h"

enum command_kind { COMMAND_CONNECT, COMMAND_DISCONNECT, COMMAND_SEND, COMMAND_RELEASE };

// Commands and events are made at io_open and go round: out of their pool, through a ring, and
// back.
struct command {
    enum command_kind kind;
    uint64_t generation; // of the connection it is about
    uint32_t link_index; // COMMAND_SEND
    struct frame *frame;
    struct io_ring_position position;
};

struct event {
    struct io_event event;
    uint64_t generation;
    struct ring *home; // the pool it came from
};

enum {
    // Sent and received frames cannot take the events of each other, or of up and lost.
    EVENT_SENT_COUNT = IO_LINK_COUNT_MAX * LINK_CREDIT_COUNT_MAX,
    EVENT_RECEIVED_COUNT = IO_RECEIVED_COUNT_MAX,
    EVENT_OTHER_COUNT = 16,
    EVENT_RING_COUNT = 512,
};
_Static_assert(EVENT_SENT_COUNT + EVENT_RECEIVED_COUNT + EVENT_OTHER_COUNT <= EVENT_RING_COUNT,
               "every event has room in the ring");

struct in {
    struct link *link; // NULL: none
    bool is_up;
};

struct out {
    struct link *link; // NULL: none
    bool is_up;
    struct frame *waiting[LINK_CREDIT_COUNT_MAX]; // a queue: for a credit
    uint32_t waiting_first, waiting_count;
    struct frame *lent[LINK_CREDIT_COUNT_MAX]; // a set: in the link
    uint32_t lent_count;
};

// A frame that was received before all links were up.
struct early {
    uint32_t link_index;
    struct frame *frame;
};

struct io {
    struct wake *owner_wake;
    struct wake wake;
    struct ring *commands, *command_pool;
    struct ring *events, *sent_pool, *received_pool, *other_pool;
    struct command *command_memory;
    struct event *event_memory;
    pthread_t thread;
    bool started;
    atomic_bool stop;
    atomic_bool asleep; // the thread may need a signal to see a command
    atomic_uint_fast64_t refused_count;

    // Owner thread.
    uint64_t owner_generation;                      // of the last io_connect or io_disconnect
    uint32_t outstanding_counts[IO_LINK_COUNT_MAX]; // frames of io_send that have not come back

    // Io thread.
    struct port *port;
    uint64_t generation, epoch;
    struct in ins[IO_LINK_COUNT_MAX];
    struct out outs[IO_LINK_COUNT_MAX];
    bool up_owed, lost_owed; // events that still have to be given
    bool lost_noted;         // by the handler; acted upon after the poll
    struct error lost_error;
    struct early early[IO_LINK_COUNT_MAX * LINK_CREDIT_COUNT_MAX];
    uint32_t early_count;
};

// -- events, io thread ---------------------------------------------------------------------------

static void give_event(struct io *io, struct event *event) {
    event->generation = io->generation;
    event->event.epoch = io->epoch;
    CHECK(ring_give(io->events, event));
    wake_signal(io->owner_wake);
}

// The owner counts its frames, so an event for each is free.
static void give_sent(struct io *io, uint32_t link_index, struct frame *frame) {
    struct event *event = ring_take(io->sent_pool);
    CHECK(event != NULL);
    event->event.kind = IO_SENT;
    event->event.link_index = link_index;
    event->event.frame = frame;
    give_event(io, event);
}

static void note_lost(struct io *io, const struct error *error) {
    if (io->lost_noted) return;
    io->lost_noted = true;
    io->lost_error = *error;
}

static void give_received(struct io *io, uint32_t link_index, struct frame *frame) {
    struct event *event = ring_take(io->received_pool);
    if (event == NULL) {
        struct error error;
        (void)error_set(&error, STATUS_EXHAUSTED, "the owner leaves %d received frames untaken",
                        IO_RECEIVED_COUNT_MAX);
        note_lost(io, &error);
        link_release(frame->owner, frame);
        return;
    }
    struct clock clock = clock_system();
    frame->received_ns = clock_now_ns(&clock);
    event->event.kind = IO_RECEIVED;
    event->event.link_index = link_index;
    event->event.frame = frame;
    give_event(io, event);
}

// Up and lost wait here for an event when the owner takes none.
static void give_owed(struct io *io) {
    if (!io->up_owed && !io->lost_owed) return;
    struct event *event = ring_take(io->other_pool);
    if (event == NULL) return;
    event->event.frame = NULL;
    if (io->up_owed) {
        io->up_owed = false;
        event->event.kind = IO_UP;
        give_event(io, event);
        for (uint32_t i = 0; i < io->early_count; i++)
            give_received(io, io->early[i].link_index, io->early[i].frame);
        io->early_count = 0;
        return;
    }
    io->lost_owed = false;
    event->event.kind = IO_LOST;
    event->event.error = io->lost_error;
    give_event(io, event);
}

// -- links, io thread ----------------------------------------------------------------------------

static void send_waiting(struct io *io) {
    for (uint32_t i = 0; i < IO_LINK_COUNT_MAX; i++) {
        struct out *out = &io->outs[i];
        while (out->waiting_count > 0 && out->is_up) {
            struct frame *frame = out->waiting[out->waiting_first];
            CHECK(out->lent_count < LINK_CREDIT_COUNT_MAX);
            if (!link_send(out->link, frame)) break;
            out->lent[out->lent_count++] = frame;
            out->waiting_first = (out->waiting_first + 1) % LINK_CREDIT_COUNT_MAX;
            out->waiting_count--;
        }
    }
}

static void give_all_sent(struct io *io, uint32_t link_index) {
    struct out *out = &io->outs[link_index];
    for (uint32_t i = 0; i < out->lent_count; i++)
        give_sent(io, link_index, out->lent[i]);
    out->lent_count = 0;
    for (; out->waiting_count > 0; out->waiting_count--) {
        give_sent(io, link_index, out->waiting[out->waiting_first]);
        out->waiting_first = (out->waiting_first + 1) % LINK_CREDIT_COUNT_MAX;
    }
}

// Closes all links; every frame of the owner comes back, received ones not yet told are dropped.
static void leave_ring(struct io *io) {
    for (uint32_t i = 0; i < io->early_count; i++)
        link_release(io->early[i].frame->owner, io->early[i].frame);
    io->early_count = 0;
    io->up_owed = false;
    for (uint32_t i = 0; i < IO_LINK_COUNT_MAX; i++) {
        link_close(io->outs[i].link);
        link_close(io->ins[i].link);
        io->outs[i].link = io->ins[i].link = NULL;
        io->outs[i].is_up = io->ins[i].is_up = false;
        give_all_sent(io, i);
    }
}

static void act_on_loss(struct io *io) {
    if (!io->lost_noted) return;
    io->lost_noted = false;
    leave_ring(io);
    io->lost_owed = true;
}

static enum status make_links(struct io *io, const struct io_ring_position *position,
                              struct error *error) {
    struct link_config config = {.epoch = position->epoch,
                                 .credit_count = position->credit_count,
                                 .frame_bytes_max = position->frame_bytes_max,
                                 .has_key = true,
                                 .encrypts = position->encrypts};
    enum status status = STATUS_OK;
    for (uint32_t i = 0; i < position->in_count && status == STATUS_OK; i++) {
        config.link_id = position->ins[i].link_id;
        memcpy(config.key, position->ins[i].key, sizeof(config.key));
        status = link_expect(io->port, &config, io, &io->ins[i].link);
        if (status != STATUS_OK)
            (void)error_set(error, status, "no memory for %u frames of %zu bytes",
                            position->credit_count, position->frame_bytes_max);
    }
    for (uint32_t i = 0; i < position->out_count && status == STATUS_OK; i++) {
        config.link_id = position->outs[i].link_id;
        memcpy(config.key, position->outs[i].key, sizeof(config.key));
        status = link_connect(io->port, position->outs[i].address, &config, io, &io->outs[i].link,
                              error);
    }
    memory_wipe(config.key, sizeof(config.key));
    return status;
}

static void enter_ring(struct io *io, struct command *command) {
    leave_ring(io);
    io->lost_noted = io->lost_owed = false;
    io->generation = command->generation;
    io->epoch = command->position.epoch;
    struct error error;
    if (make_links(io, &command->position, &error) != STATUS_OK) note_lost(io, &error);
    memory_wipe(&command->position, sizeof(command->position));
}

static bool all_are_up(const struct io *io) {
    for (uint32_t i = 0; i < IO_LINK_COUNT_MAX; i++) {
        if (io->ins[i].link != NULL && !io->ins[i].is_up) return false;
        if (io->outs[i].link != NULL && !io->outs[i].is_up) return false;
    }
    return true;
}

static void link_is_up(struct link *link, void *ctx) {
    struct io *io = ctx;
    for (uint32_t i = 0; i < IO_LINK_COUNT_MAX; i++) {
        if (link == io->ins[i].link) io->ins[i].is_up = true;
        if (link == io->outs[i].link) io->outs[i].is_up = true;
    }
    if (all_are_up(io)) io->up_owed = true;
}

static void frame_is_received(struct link *link, void *ctx, struct frame *frame) {
    struct io *io = ctx;
    uint32_t index = 0;
    while (io->ins[index].link != link)
        index++;
    if (io->up_owed || !all_are_up(io))
        io->early[io->early_count++] = (struct early){index, frame};
    else
        give_received(io, index, frame);
}

static void frame_is_sent(struct link *link, void *ctx, struct frame *frame) {
    struct io *io = ctx;
    uint32_t index = 0, at = 0;
    while (io->outs[index].link != link)
        index++;
    struct out *out = &io->outs[index];
    while (at < out->lent_count && out->lent[at] != frame)
        at++;
    CHECK(at < out->lent_count);
    out->lent[at] = out->lent[--out->lent_count];
    give_sent(io, index, frame);
}

static void link_is_lost(struct link *link, void *ctx, const struct error *error) {
    (void)link;
    note_lost(ctx, error);
}

static const struct link_handler io_handler = {
    .up = link_is_up, .received = frame_is_received, .sent = frame_is_sent, .lost = link_is_lost};

// -- the io thread -------------------------------------------------------------------------------

// A frame for links that the owner has already left, or that are lost, comes straight back.
static void queue_frame(struct io *io, const struct command *command) {
    struct out *out = &io->outs[command->link_index];
    if (out->link == NULL || command->generation != io->generation) {
        give_sent(io, command->link_index, command->frame);
        return;
    }
    CHECK(out->waiting_count < LINK_CREDIT_COUNT_MAX);
    uint32_t at = (out->waiting_first + out->waiting_count++) % LINK_CREDIT_COUNT_MAX;
    out->waiting[at] = command->frame;
}

static void run_command(struct io *io, struct command *command) {
    switch (command->kind) {
    case COMMAND_CONNECT:
        enter_ring(io, command);
        break;
    case COMMAND_DISCONNECT:
        leave_ring(io);
        io->lost_noted = io->lost_owed = false;
        io->generation = command->generation;
        break;
    case COMMAND_SEND:
        queue_frame(io, command);
        break;
    case COMMAND_RELEASE:
        link_release(command->frame->owner, command->frame);
        break;
    }
}

static bool run_commands(struct io *io) {
    bool any = false;
    for (struct command *command; (command = ring_take(io->commands)) != NULL; any = true) {
        run_command(io, command);
        CHECK(ring_give(io->command_pool, command));
    }
    return any;
}

static void *io_thread(void *arg) {
    struct io *io = arg;
    while (!atomic_load(&io->stop)) {
        bool any = run_commands(io);
        any |= port_poll(io->port);
        atomic_store_explicit(&io->refused_count, port_refused_count(io->port),
                              memory_order_relaxed);
        act_on_loss(io);
        give_owed(io);
        send_waiting(io);
        if (any || io->lost_noted) continue;
        (void)atomic_exchange(&io->asleep, true);
        // A command given before the flag was set has not signalled. What is owed waits for the
        // owner, who does not signal either.
        if (!run_commands(io))
            port_wait(io->port, io->wake.fd, io->up_owed || io->lost_owed ? IO_OWED_MS : -1);
        atomic_store(&io->asleep, false);
        wake_clear(&io->wake);
    }
    port_close(io->port);
    return NULL;
}

// -- life ----------------------------------------------------------------------------------------

static void fill_event_pool(struct io *io, size_t first, size_t count, struct ring *pool) {
    for (size_t i = first; i < first + count; i++) {
        io->event_memory[i].home = pool;
        CHECK(ring_give(pool, &io->event_memory[i]));
    }
}

static enum status open_pools(struct io *io) {
    size_t event_count = EVENT_SENT_COUNT + EVENT_RECEIVED_COUNT + EVENT_OTHER_COUNT;
    io->command_memory = memory_array(IO_COMMAND_COUNT_MAX, sizeof(*io->command_memory));
    io->event_memory = memory_array(event_count, sizeof(*io->event_memory));
    if (io->command_memory == NULL || io->event_memory == NULL) return STATUS_NO_MEMORY;
    if (ring_open(IO_COMMAND_COUNT_MAX, &io->commands) != STATUS_OK ||
        ring_open(IO_COMMAND_COUNT_MAX, &io->command_pool) != STATUS_OK ||
        ring_open(EVENT_RING_COUNT, &io->events) != STATUS_OK ||
        ring_open(EVENT_SENT_COUNT, &io->sent_pool) != STATUS_OK ||
        ring_open(EVENT_RECEIVED_COUNT, &io->received_pool) != STATUS_OK ||
        ring_open(EVENT_OTHER_COUNT, &io->other_pool) != STATUS_OK)
        return STATUS_NO_MEMORY;
    for (size_t i = 0; i < IO_COMMAND_COUNT_MAX; i++)
        CHECK(ring_give(io->command_pool, &io->command_memory[i]));
    fill_event_pool(io, 0, EVENT_SENT_COUNT, io->sent_pool);
    fill_event_pool(io, EVENT_SENT_COUNT, EVENT_RECEIVED_COUNT, io->received_pool);
    fill_event_pool(io, EVENT_SENT_COUNT + EVENT_RECEIVED_COUNT, EVENT_OTHER_COUNT, io->other_pool);
    return STATUS_OK;
}

static void io_free(struct io *io) {
    ring_close(io->commands);
    ring_close(io->command_pool);
    ring_close(io->events);
    ring_close(io->sent_pool);
    ring_close(io->received_pool);
    ring_close(io->other_pool);
    if (io->command_memory != NULL) // a command that nobody took has keys
        memory_wipe(io->command_memory, IO_COMMAND_COUNT_MAX * sizeof(*io->command_memory));
    free(io->command_memory);
    free(io->event_memory);
    wake_fini(&io->wake);
    free(io);
}

enum status io_open(const struct io_config *config, struct io **io_out) {
    struct io *io = memory_array(1, sizeof(*io));
    if (io == NULL) return STATUS_NO_MEMORY;
    io->owner_wake = config->owner_wake;
    if (wake_init(&io->wake) != STATUS_OK) {
        free(io);
        return STATUS_IO;
    }
    enum status status = open_pools(io);
    if (status != STATUS_OK) {
        io_free(io);
        return status;
    }
    *io_out = io;
    return STATUS_OK;
}

struct port_config io_port_config(struct io *io) {
    (void)io;
    return (struct port_config){.clock = clock_system(), .handler = &io_handler};
}

enum status io_start(struct io *io, struct port *port) {
    CHECK(!io->started);
    io->port = port;
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int code = pthread_create(&io->thread, NULL, io_thread, io);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (code != 0) {
        io->port = NULL;
        port_close(port);
        return STATUS_IO;
    }
    (void)pthread_setname_np(io->thread, "io");
    io->started = true;
    return STATUS_OK;
}

void io_close(struct io *io) {
    if (io == NULL) return;
    if (io->started) {
        atomic_store(&io->stop, true);
        wake_signal(&io->wake);
        pthread_join(io->thread, NULL);
    }
    io_free(io);
}

// -- the owner thread ----------------------------------------------------------------------------

static bool give_command(struct io *io, enum command_kind kind, uint32_t link_index,
                         struct frame *frame, const struct io_ring_position *position) {
    struct command *command = ring_take(io->command_pool);
    if (command == NULL) return false;
    bool moves = kind == COMMAND_CONNECT || kind == COMMAND_DISCONNECT;
    if (moves) io->owner_generation++;
    command->kind = kind;
    command->generation = io->owner_generation;
    command->link_index = link_index;
    command->frame = frame;
    if (position != NULL) command->position = *position;
    CHECK(ring_give(io->commands, command));
    // Both threads exchange the flag, so one of them sees the other: either this one signals, or
    // the io thread finds the command before it sleeps.
    if (atomic_exchange(&io->asleep, false)) wake_signal(&io->wake);
    return true;
}

bool io_connect(struct io *io, const struct io_ring_position *position) {
    CHECK(position->in_count <= IO_LINK_COUNT_MAX && position->out_count <= IO_LINK_COUNT_MAX);
    return give_command(io, COMMAND_CONNECT, 0, NULL, position);
}

uint64_t io_refused_count(const struct io *io) {
    return atomic_load_explicit(&io->refused_count, memory_order_relaxed);
}

bool io_disconnect(struct io *io) {
    return give_command(io, COMMAND_DISCONNECT, 0, NULL, NULL);
}

bool io_send(struct io *io, uint32_t link_index, struct frame *frame) {
    CHECK(link_index < IO_LINK_COUNT_MAX);
    if (io->outstanding_counts[link_index] >= LINK_CREDIT_COUNT_MAX) return false;
    if (!give_command(io, COMMAND_SEND, link_index, frame, NULL)) return false;
    io->outstanding_counts[link_index]++;
    return true;
}

void io_release(struct io *io, struct frame *frame) {
    // The pool is larger than all frames that can be out, unless the thread is late: then it is
    // closing a link, which takes at most LINK_CLOSE_MS.
    while (!give_command(io, COMMAND_RELEASE, 0, frame, NULL)) {
        wake_signal(&io->wake);
        sched_yield();
    }
}

bool io_take(struct io *io, struct io_event *event_out) {
    for (struct event *event; (event = ring_take(io->events)) != NULL;) {
        struct io_event taken = event->event;
        bool stale = event->generation != io->owner_generation;
        CHECK(ring_give(event->home, event));
        if (taken.kind == IO_SENT) {
            io->outstanding_counts[taken.link_index]--;
        } else if (stale) {
            if (taken.kind == IO_RECEIVED) io_release(io, taken.frame);
            continue;
        }
        *event_out = taken;
        return true;
    }
    return false;
}
