// stream: a simulated Join call between a stage service and the coordinator. Messages are packed
// and unpacked as they are for real; they arrive in order, or the stream breaks.
#pragma once

#include "coordinator/cluster.h"

struct world;
struct service;

struct letter {
    struct letter *next;
    enum { LETTER_OPEN, LETTER_MESSAGE, LETTER_END } kind;
    bool is_refusal; // LETTER_END
    uint8_t *bytes;  // LETTER_MESSAGE, owned
    size_t size_bytes;
};
struct letters {
    struct letter *first;
    struct letter *last;
    uint64_t arrival_ns; // of the last one
};

struct stream {
    struct stream *next;
    struct service *service;
    struct member *member; // NULL before the coordinator knows it and after it left
    bool is_broken;
    bool is_ended; // by the coordinator
    bool has_left; // the coordinator has seen its end
    uint64_t held_until_ns;
    struct letters up, down;
};

// Opens a call; lives until streams_close().
struct stream *stream_open(struct world *world, struct service *service);
void stream_send_up(struct world *world, struct stream *stream,
                    const Stagecoach__V1__StageMessage *message);
// For the coordinator: functions of struct cluster_outside, `ctx` is the world.
void stream_send_down(void *ctx, struct member *member,
                      const Stagecoach__V1__CoordinatorMessage *message);
void stream_drop(void *ctx, struct member *member, bool is_refusal, const char *reason);
// What is under way is lost; each end notices after so long.
void stream_break(struct world *world, struct stream *stream, uint64_t stage_notice_ns,
                  uint64_t coordinator_notice_ns);
void stream_hold(struct world *world, struct stream *stream, uint64_t until_ns);

void streams_close(struct world *world); // frees all, members too
