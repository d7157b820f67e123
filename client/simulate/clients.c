#include "client/simulate/clients.h"

#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/memory.h"
#include "client/simulate/toy.h"

static const char *const SALTS[] = {NULL, "a", "b"};

enum { SHARED_TEXT_COUNT = 3 };

// -- beginning ------------------------------------------------------------------------------------

// Token p of a text that prompts may share the beginning of.
static uint32_t shared_token(const struct world *world, uint64_t text, uint32_t position) {
    uint64_t mixed = toy_mix(world->settings.seed * SHARED_TEXT_COUNT + text, position);
    return (uint32_t)(mixed % world->limits.vocabulary_size);
}

static enum status draw_prompt(struct world *world, struct client *client, bool is_drawn) {
    uint32_t count_max = (uint32_t)world_number(world, SIMULATION_PROMPT);
    uint32_t count = is_drawn ? 1 + (uint32_t)world_draw(world, count_max) : count_max;
    uint32_t shared_count = is_drawn ? (uint32_t)world_draw(world, count + 1) : 0;
    uint64_t text = world_draw(world, SHARED_TEXT_COUNT);
    uint32_t *tokens = memory_array(count, sizeof(*tokens));
    if (tokens == NULL) return STATUS_NO_MEMORY;
    for (uint32_t p = 0; p < count; p++)
        tokens[p] = p < shared_count ? shared_token(world, text, p)
                                     : (uint32_t)world_draw(world, world->limits.vocabulary_size);
    enum status status = sequence_init(&client->sequence, tokens, count);
    free(tokens);
    return status;
}

static enum status draw_biases(struct world *world, struct sequence *sequence) {
    uint32_t count = 1 + (uint32_t)world_draw(world, 3);
    sequence->biases = memory_array(count, sizeof(*sequence->biases));
    if (sequence->biases == NULL) return STATUS_NO_MEMORY;
    for (uint32_t i = 0; i < count; i++)
        sequence->biases[i] = (struct frame_bias){
            .token_id = (uint32_t)world_draw(world, world->limits.vocabulary_size),
            .bias = (float)world_draw(world, 100) - 50.0f};
    sequence->bias_count = count;
    return STATUS_OK;
}

static enum status draw_sampling(struct world *world, struct sequence *sequence, bool is_drawn) {
    sequence->sampling.seed = world_draw(world, UINT64_MAX);
    sequence->sampling.top_p = 1.0f;
    sequence->sampling.repetition_penalty = 1.0f;
    if (!is_drawn) return STATUS_OK;
    sequence->sampling.temperature = (float)world_draw(world, 3) * 0.5f;
    if (world_chance(world, 300)) sequence->sampling.presence_penalty = 0.5f;
    enum status status = world_chance(world, 200) ? draw_biases(world, sequence) : STATUS_OK;
    if (status == STATUS_OK) status = sequence_begin_history(sequence);
    if (world_chance(world, 200)) sequence->priority = (int32_t)world_draw(world, 3) - 1;
    sequence->cache_salt = SALTS[world_draw(world, 3)];
    return status;
}

// What it must be answered, up to the first token that ends it.
static enum status foresee(struct world *world, struct client *client) {
    struct sequence *sequence = &client->sequence;
    uint32_t count = sequence->token_count_max;
    client->expected = memory_array(count, sizeof(*client->expected));
    if (client->expected == NULL) return STATUS_NO_MEMORY;
    memcpy(client->expected, sequence->tokens, sequence->prompt_count * sizeof(uint32_t));
    struct toy_alone alone = {
        .layer_count = (uint32_t)world_number(world, SIMULATION_LAYERS),
        .position_count = count,
        .vocabulary_size = world->limits.vocabulary_size,
        .is_chained = world->settings.is_long,
        .has_penalties = sequence->has_penalties,
        .sampling = &sequence->sampling,
        .biases = sequence->biases,
        .bias_count = sequence->bias_count,
    };
    toy_alone(&alone, sequence->prompt_count, client->expected, world->scratch);
    client->expected_count = sequence->prompt_count + 1;
    while (client->expected_count < count &&
           (world->stop_modulus == 0 ||
            client->expected[client->expected_count - 1] % world->stop_modulus != 0))
        client->expected_count++;
    return STATUS_OK;
}

// Another sample of the prompt of the client before it.
static enum status follow(struct client *client) {
    struct sequence *leader = &client[-1].sequence;
    enum status status = sequence_init(&client->sequence, leader->tokens, leader->prompt_count);
    if (status != STATUS_OK) return status;
    client->sequence.leader = leader->leader != NULL ? leader->leader : leader;
    client->sequence.cache_salt = leader->cache_salt;
    return STATUS_OK;
}

static enum status open_client(struct world *world, uint32_t index) {
    struct client *client = &world->clients[index];
    client->index = index;
    bool is_drawn = world->is_prompt_drawn;
    bool follows = is_drawn && index > 0 && world_chance(world, 150);
    enum status status = follows ? follow(client) : draw_prompt(world, client, is_drawn);
    if (status != STATUS_OK) return status;
    struct sequence *sequence = &client->sequence;
    sequence->owner = client;
    status = draw_sampling(world, sequence, is_drawn);
    if (status != STATUS_OK) return status;
    if (follows) sequence->cache_salt = sequence->leader->cache_salt;
    uint32_t count_max = (uint32_t)world_number(world, SIMULATION_TOKENS);
    uint32_t count =
        world->is_token_count_drawn ? 1 + (uint32_t)world_draw(world, count_max) : count_max;
    sequence->token_count_max = sequence->prompt_count + count;
    return foresee(world, client);
}

// -- ending ---------------------------------------------------------------------------------------

static void end(struct world *world, struct client *client, uint32_t *counter) {
    if (client->state == CLIENT_ENDED) {
        world_fail(world, "request %u ends twice", client->index);
        return;
    }
    client->state = CLIENT_ENDED;
    ++*counter;
    world->ended_count++;
    world->report->end_ns = world->now_ns;
    if (world->ended_count == 1) world_end_steady(world);
}

static void cancel(void *ctx, void *subject, uint64_t tag) {
    (void)tag;
    struct world *world = ctx;
    struct client *client = subject;
    if (client->state == CLIENT_ENDED) return;
    bool was_accepted = client->state == CLIENT_WAITING;
    end(world, client, &world->report->cancelled_count);
    if (!was_accepted) return;
    world_enter(world);
    flow_remove(world->flow, &client->sequence);
    world_leave(world);
}

static void come(void *ctx, void *subject, uint64_t tag) {
    (void)tag;
    struct world *world = ctx;
    struct client *client = subject;
    if (client->state != CLIENT_COMING) return; // cancelled before
    world_enter(world);
    client->state = CLIENT_WAITING;
    if (flow_add(world->flow, &client->sequence) == STATUS_OK)
        world->report->prompt_token_count += client->sequence.prompt_count;
    else
        end(world, client, &world->report->refused_count);
    world_leave(world);
}

// -- between --------------------------------------------------------------------------------------

void clients_issued(void *ctx, struct sequence *sequence) {
    (void)ctx, (void)sequence;
}

void clients_sample(void *ctx, const struct scheduler_pick *pick, const struct frame_sample *sample,
                    const struct frame_top *tops) {
    (void)tops;
    struct world *world = ctx;
    struct sequence *sequence = pick->sequence;
    if (sequence->run_id != pick->run_id) {
        world->report->wasted_row_count++;
        return;
    }
    struct client *client = sequence->owner;
    if (client->state != CLIENT_WAITING)
        world_fail(world, "request %u gets a token after its end", client->index);
    uint32_t expected = client->expected[sequence->token_count];
    if (sample->token_id != expected)
        world_fail(world, "request %u: token %u of %u is %u, alone on one stage it is %u",
                   client->index, sequence->token_count, client->expected_count, sample->token_id,
                   expected);
    if (sequence_append(sequence, sample->token_id) != STATUS_OK) world_fail(world, "no memory");
    world->report->token_count++;
    if (client->first_token_ns == 0) {
        client->first_token_ns = world->now_ns;
        if (++world->begun_count == world->client_count) world_begin_steady(world);
    }
    if (sequence->token_count < client->expected_count || world_has_failed(world)) return;
    end(world, client, &world->report->done_count);
    flow_remove(world->flow, sequence);
}

void clients_released(void *ctx, struct sequence *sequence) {
    (void)ctx, (void)sequence;
}

void clients_lost(void *ctx) {
    struct world *world = ctx;
    world->in_flight_count = 0;
    world->sending_epoch = 0;
    for (uint32_t i = 0; i < world->client_count; i++) {
        struct client *client = &world->clients[i];
        if (client->state != CLIENT_WAITING ||
            client->sequence.replay_count <= REQUEST_REPLAY_COUNT_MAX)
            continue;
        end(world, client, &world->report->failed_count);
        flow_remove(world->flow, &client->sequence);
    }
}

// -- life -----------------------------------------------------------------------------------------

static enum status open_scratch(struct world *world) {
    size_t position_count = world->limits.position_count_max;
    size_t cell_count = position_count * world_number(world, SIMULATION_LAYERS);
    world->scratch = memory_array(cell_count + world->limits.vocabulary_size, sizeof(uint64_t));
    world->client_count = (uint32_t)world_number(world, SIMULATION_REQUESTS);
    world->clients = memory_array(world->client_count, sizeof(*world->clients));
    return world->scratch == NULL || world->clients == NULL ? STATUS_NO_MEMORY : STATUS_OK;
}

enum status clients_open(struct world *world) {
    enum status status = open_scratch(world);
    uint64_t spread_ns = world_number(world, SIMULATION_SPREAD_US) * 1000;
    uint64_t at_ns = 0;
    for (uint32_t i = 0; i < world->client_count && status == STATUS_OK; i++) {
        status = open_client(world, i);
        if (spread_ns > 0) at_ns = world_draw(world, spread_ns);
        struct client *client = &world->clients[i];
        // Samples of one prompt come with it.
        if (client->sequence.leader == NULL) client->come_ns = at_ns;
        if (client->sequence.leader != NULL) client->come_ns = client[-1].come_ns;
        world_put(world, client->come_ns, &world->coordinator, come, client, 0);
        if (world_has(world, SIMULATION_CANCEL) && world_chance(world, 200))
            world_put(world, client->come_ns + world_draw(world, 2000000000), &world->coordinator,
                      cancel, client, 0);
    }
    free(world->scratch);
    world->scratch = NULL;
    return status;
}

void clients_close(struct world *world) {
    for (uint32_t i = 0; i < world->client_count && world->clients != NULL; i++) {
        if (world->clients[i].sequence.tokens != NULL) sequence_fini(&world->clients[i].sequence);
        free(world->clients[i].expected);
    }
    free(world->clients);
    free(world->scratch);
}
