#include "client/simulate/stream.h"

#include <stdio.h>
#include <stdlib.h>

#include "base/check.h"
#include "client/simulate/world.h"

// -- letters --------------------------------------------------------------------------------------

static struct letter *letter_take(struct letters *letters) {
    struct letter *letter = letters->first;
    CHECK(letter != NULL);
    letters->first = letter->next;
    return letter;
}

static void letter_close(struct letter *letter) {
    free(letter->bytes);
    free(letter);
}

static void letters_fini(struct letters *letters) {
    while (letters->first != NULL)
        letter_close(letter_take(letters));
}

static void post(struct world *world, struct stream *stream, struct letters *letters,
                 struct letter letter, struct actor *actor, happening_fn *deliver) {
    if (stream->is_broken) {
        free(letter.bytes);
        return;
    }
    struct letter *copy = malloc(sizeof(*copy));
    CHECK(copy != NULL);
    *copy = letter;
    copy->next = NULL;
    if (letters->first == NULL)
        letters->first = copy;
    else
        letters->last->next = copy;
    letters->last = copy;
    uint64_t at_ns = world->now_ns + world_hop_ns(world);
    if (at_ns < stream->held_until_ns) at_ns = stream->held_until_ns;
    if (at_ns < letters->arrival_ns) at_ns = letters->arrival_ns;
    letters->arrival_ns = at_ns;
    world_put(world, at_ns - world->now_ns, actor, deliver, stream, 0);
}

static struct letter pack(const ProtobufCMessage *message) {
    struct letter letter = {.kind = LETTER_MESSAGE,
                            .size_bytes = protobuf_c_message_get_packed_size(message)};
    letter.bytes = malloc(letter.size_bytes + 1);
    CHECK(letter.bytes != NULL);
    protobuf_c_message_pack(message, letter.bytes);
    return letter;
}

// -- at the coordinator ---------------------------------------------------------------------------

static void leave(void *ctx, void *subject, uint64_t tag) {
    (void)tag;
    struct world *world = ctx;
    struct stream *stream = subject;
    if (stream->has_left) return;
    stream->has_left = true;
    if (stream->member == NULL) return;
    world_enter(world);
    cluster_leave(flow_cluster(world->flow), stream->member);
    world_leave(world);
    free(stream->member);
    stream->member = NULL;
}

static void join(struct world *world, struct stream *stream) {
    struct member *member = calloc(1, sizeof(*member));
    CHECK(member != NULL);
    member->stream = stream;
    snprintf(member->peer_host, sizeof(member->peer_host), "10.0.0.%u", stream->service->index + 2);
    stream->member = member;
    if (!cluster_join(flow_cluster(world->flow), member))
        world_fail(world, "a stage was not let in");
}

static void deliver_up(void *ctx, void *subject, uint64_t tag) {
    (void)tag;
    struct world *world = ctx;
    struct stream *stream = subject;
    if (stream->is_broken || stream->has_left) return;
    struct letter *letter = letter_take(&stream->up);
    world_enter(world);
    if (letter->kind == LETTER_OPEN) {
        join(world, stream);
    } else {
        Stagecoach__V1__StageMessage *message =
            stagecoach__v1__stage_message__unpack(NULL, letter->size_bytes, letter->bytes);
        CHECK(message != NULL);
        cluster_message(flow_cluster(world->flow), stream->member, message);
        stagecoach__v1__stage_message__free_unpacked(message, NULL);
    }
    world_leave(world);
    letter_close(letter);
}

// -- at the stage ---------------------------------------------------------------------------------

static void end(void *ctx, void *subject, uint64_t tag) {
    struct stream *stream = subject;
    if (stream->service->stream == stream) service_on_end(ctx, stream->service, tag != 0);
}

static void deliver_down(void *ctx, void *subject, uint64_t tag) {
    (void)tag;
    struct world *world = ctx;
    struct stream *stream = subject;
    if (stream->is_broken) return;
    struct letter *letter = letter_take(&stream->down);
    if (stream->service->stream == stream) {
        if (letter->kind == LETTER_END) {
            service_on_end(world, stream->service, letter->is_refusal);
        } else {
            Stagecoach__V1__CoordinatorMessage *message =
                stagecoach__v1__coordinator_message__unpack(NULL, letter->size_bytes,
                                                            letter->bytes);
            CHECK(message != NULL);
            service_on_message(world, stream->service, message);
            stagecoach__v1__coordinator_message__free_unpacked(message, NULL);
        }
    }
    letter_close(letter);
}

// -- both -----------------------------------------------------------------------------------------

struct stream *stream_open(struct world *world, struct service *service) {
    struct stream *stream = calloc(1, sizeof(*stream));
    CHECK(stream != NULL);
    stream->service = service;
    stream->next = world->streams;
    world->streams = stream;
    post(world, stream, &stream->up, (struct letter){.kind = LETTER_OPEN}, &world->coordinator,
         deliver_up);
    return stream;
}

void stream_send_up(struct world *world, struct stream *stream,
                    const Stagecoach__V1__StageMessage *message) {
    if (stream == NULL) return;
    post(world, stream, &stream->up, pack(&message->base), &world->coordinator, deliver_up);
}

void stream_send_down(void *ctx, struct member *member,
                      const Stagecoach__V1__CoordinatorMessage *message) {
    struct stream *stream = member->stream;
    if (stream->is_ended) return;
    post(ctx, stream, &stream->down, pack(&message->base), &stream->service->actor, deliver_down);
}

void stream_drop(void *ctx, struct member *member, bool is_refusal, const char *reason) {
    (void)reason;
    struct world *world = ctx;
    struct stream *stream = member->stream;
    if (stream->is_ended) return;
    stream->is_ended = true;
    post(world, stream, &stream->down,
         (struct letter){.kind = LETTER_END, .is_refusal = is_refusal}, &stream->service->actor,
         deliver_down);
    world_put(world, world_hop_ns(world), &world->coordinator, leave, stream, 0);
}

void stream_break(struct world *world, struct stream *stream, uint64_t stage_notice_ns,
                  uint64_t coordinator_notice_ns) {
    if (stream == NULL || stream->is_broken) return;
    stream->is_broken = true;
    world_put(world, stage_notice_ns, &stream->service->actor, end, stream, false);
    world_put(world, coordinator_notice_ns, &world->coordinator, leave, stream, 0);
}

static void end_hold(void *ctx, void *subject, uint64_t tag) {
    (void)tag;
    struct world *world = ctx;
    struct stream *stream = subject;
    if (stream->held_until_ns > world->now_ns) stream_break(world, stream, 0, 0);
}

void stream_hold(struct world *world, struct stream *stream, uint64_t until_ns) {
    if (stream->held_until_ns < until_ns) stream->held_until_ns = until_ns;
    // The keepalive of the stage gives up by then.
    uint64_t keepalive_ms = RPC_KEEPALIVE_MS + RPC_KEEPALIVE_TIMEOUT_MS;
    world_put(world, keepalive_ms * 1000000, NULL, end_hold, stream, 0);
}

void streams_close(struct world *world) {
    while (world->streams != NULL) {
        struct stream *stream = world->streams;
        world->streams = stream->next;
        letters_fini(&stream->up);
        letters_fini(&stream->down);
        free(stream->member);
        free(stream);
    }
}
