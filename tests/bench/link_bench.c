// link_bench: what a frame costs between two processes of this machine over link_ucx: the time one
// way (half of a round trip) and the rate when as many frames are under way as there are credits;
// the same again with encryption; and what the authentication of a frame costs by itself.
//
//   link_bench [HOST]      HOST is where both listen; 127.0.0.1 unless given
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/check.h"
#include "base/limits.h"
#include "transport/link.h"
#include "transport/link_crypto.h"

enum { CREDIT_COUNT = 4, FRAME_BYTES = (16 << 20) + 128, ROUND_COUNT = 2000 };

struct side {
    struct port *port;
    struct link *in, *out;
    uint32_t up_count;
    struct frame *received[LINK_CREDIT_COUNT_MAX]; // a queue of at most the credits
    uint32_t received_first, received_count;
    struct frame *free[CREDIT_COUNT];
    uint32_t free_count;
};

static void is_up(struct link *link, void *ctx) {
    (void)link;
    ((struct side *)ctx)->up_count++;
}

static void is_received(struct link *link, void *ctx, struct frame *frame) {
    struct side *side = ctx;
    (void)link;
    uint32_t at = (side->received_first + side->received_count++) % LINK_CREDIT_COUNT_MAX;
    side->received[at] = frame;
}

static void is_sent(struct link *link, void *ctx, struct frame *frame) {
    struct side *side = ctx;
    (void)link;
    side->free[side->free_count++] = frame;
}

static void is_lost(struct link *link, void *ctx, const struct error *error) {
    (void)link;
    (void)ctx;
    if (strstr(error->text, "the peer closed") != NULL) return; // for the next ones
    fprintf(stderr, "%s\n", error->text);
    exit(1);
}

static const struct link_handler handler = {
    .up = is_up, .received = is_received, .sent = is_sent, .lost = is_lost};

static void side_step(struct side *side) {
    if (!port_poll(side->port)) port_wait(side->port, -1, 1000);
}

static void side_open(struct side *side, const char *host) {
    struct port_config config = {.clock = clock_system(), .handler = &handler};
    struct error error;
    memset(side, 0, sizeof(*side));
    if (port_open_ucx(host, 0, &config, &side->port, &error) != STATUS_OK) {
        fprintf(stderr, "%s\n", error.text);
        exit(1);
    }
    for (int i = 0; i < CREDIT_COUNT; i++) {
        CHECK(frame_open(FRAME_BYTES, &side->free[i]) == STATUS_OK);
        struct frame_header *header = (struct frame_header *)side->free[i]->data;
        memset(side->free[i]->data, 0, FRAME_BYTES);
        header->magic = FRAME_MAGIC;
        header->version = FRAME_VERSION;
        header->epoch = 1;
    }
    side->free_count = CREDIT_COUNT;
}

// The frames' epoch is 1; what encrypts is told apart by the link ids.
static void side_join(struct side *side, const char *peer, bool is_first, bool encrypts) {
    uint32_t in_id = (encrypts ? 3 : 1) + (is_first ? 0 : 1), out_id = in_id + (is_first ? 1 : -1);
    struct link_config config = {.epoch = 1,
                                 .link_id = in_id,
                                 .credit_count = CREDIT_COUNT,
                                 .frame_bytes_max = FRAME_BYTES,
                                 .has_key = true,
                                 .encrypts = encrypts};
    struct error error;
    link_close(side->in);
    link_close(side->out);
    side->up_count = 0;
    CHECK(link_expect(side->port, &config, side, &side->in) == STATUS_OK);
    config.link_id = out_id;
    CHECK(link_connect(side->port, peer, &config, side, &side->out, &error) == STATUS_OK);
    while (side->up_count < 2)
        side_step(side);
}

static void side_send(struct side *side, size_t size_bytes) {
    while (side->free_count == 0)
        side_step(side);
    struct frame *frame = side->free[--side->free_count];
    struct frame_header *header = (struct frame_header *)frame->data;
    frame->size_bytes = size_bytes;
    header->payload_offset = sizeof(*header);
    header->payload_bytes = size_bytes - sizeof(*header);
    while (!link_send(side->out, frame))
        side_step(side);
}

// Takes a frame in and gives it back; its size.
static size_t side_receive(struct side *side) {
    while (side->received_count == 0)
        side_step(side);
    struct frame *frame = side->received[side->received_first];
    size_t size_bytes = frame->size_bytes;
    side->received_first = (side->received_first + 1) % LINK_CREDIT_COUNT_MAX;
    side->received_count--;
    link_release(side->in, frame);
    return size_bytes;
}

// Sends every frame back until one is of the smallest size; the stream's frames (of odd size) are
// answered by one small frame when `count` of them are in.
static void echo(struct side *side) {
    for (size_t size_bytes; (size_bytes = side_receive(side)) != 128;) {
        if (size_bytes % 2 == 0)
            side_send(side, size_bytes);
        else if (size_bytes % 4 == 3)
            side_send(side, 130);
    }
}

static uint64_t now_ns(void) {
    struct clock real = clock_system();
    return clock_now_ns(&real);
}

static int compare(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static void measure_latency(struct side *side, size_t payload_bytes) {
    static uint64_t times_ns[ROUND_COUNT];
    for (int i = -100; i < ROUND_COUNT; i++) {
        uint64_t begin_ns = now_ns();
        side_send(side, payload_bytes + 128);
        (void)side_receive(side);
        if (i >= 0) times_ns[i] = now_ns() - begin_ns;
    }
    qsort(times_ns, ROUND_COUNT, sizeof(*times_ns), compare);
    printf("%8zu KB one way  p50 %8.1f us  p99 %8.1f us\n", payload_bytes >> 10,
           (double)times_ns[ROUND_COUNT / 2] / 2000,
           (double)times_ns[ROUND_COUNT * 99 / 100] / 2000);
}

static void measure_rate(struct side *side, size_t payload_bytes, int count) {
    uint64_t begin_ns = now_ns();
    for (int i = 0; i < count; i++) // sizes: 4k + 1, and 4k + 3 for the last, which is answered
        side_send(side, payload_bytes + (i == count - 1 ? 131 : 129) - 4);
    (void)side_receive(side);
    double seconds = (double)(now_ns() - begin_ns) / 1e9;
    printf("%8zu KB rate     %.2f GB/s\n", payload_bytes >> 10,
           (double)payload_bytes * count / seconds / 1e9);
}

static void measure_idle(struct side *side) {
    struct timespec before, after;
    uint64_t end_ns = now_ns() + UINT64_C(5000000000);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &before);
    while (now_ns() < end_ns)
        side_step(side);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &after);
    printf("idle: %.1f ms of CPU in 5 s\n", (double)(after.tv_sec - before.tv_sec) * 1e3 +
                                                (double)(after.tv_nsec - before.tv_nsec) / 1e6);
}

static void measure_all(struct side *side) {
    measure_latency(side, 8);
    measure_latency(side, 8 << 10);
    measure_latency(side, 64 << 10);
    measure_latency(side, 1 << 20);
    measure_rate(side, 1 << 20, 4000);
    measure_rate(side, 16 << 20, 200);
}

static uint64_t cpu_ns(void) {
    struct timespec time;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
    return (uint64_t)time.tv_sec * UINT64_C(1000000000) + (uint64_t)time.tv_nsec;
}

// Processor time of a header's mac at both ends, and of one megabyte encrypted and decrypted,
// without any link.
static void measure_crypto(void) {
    enum { HEADER_COUNT = 200000, PAYLOAD_COUNT = 100, PAYLOAD_BYTES = 1 << 20 };
    struct link_session session;
    struct frame_header header = {.link_sequence = 1};
    uint8_t tag[LINK_MAC_BYTES], *payload = calloc(1, PAYLOAD_BYTES);
    CHECK(payload != NULL);
    link_crypto_draw(&session, sizeof(session));
    uint64_t begin_ns = cpu_ns();
    for (uint64_t i = 0; i < HEADER_COUNT; i++) {
        header.link_sequence = i;
        link_seal_header(&session, &header);
        CHECK(link_header_is_sealed(&session, &header));
    }
    double header_ns = (double)(cpu_ns() - begin_ns) / HEADER_COUNT;
    begin_ns = cpu_ns();
    for (uint64_t i = 0; i < PAYLOAD_COUNT; i++) {
        link_encrypt(&session, i, payload, PAYLOAD_BYTES, tag);
        CHECK(link_decrypt(&session, i, payload, PAYLOAD_BYTES, tag));
    }
    double payload_us = (double)(cpu_ns() - begin_ns) / PAYLOAD_COUNT / 1e3;
    printf("mac of a header, made and checked: %.0f ns; 1 MB encrypted and decrypted: %.0f us\n",
           header_ns, payload_us);
    free(payload);
}

int main(int argc, char **argv) {
    const char *host = argc > 1 ? argv[1] : "127.0.0.1";
    struct side side;
    int down[2], up[2]; // the two addresses
    char peer[300] = {0};
    CHECK(pipe(down) == 0 && pipe(up) == 0);
    pid_t pid = fork();
    CHECK(pid >= 0);
    side_open(&side, host);
    int to = pid == 0 ? up[1] : down[1], from = pid == 0 ? down[0] : up[0];
    const char *own = port_address(side.port);
    CHECK(write(to, own, strlen(own) + 1) > 0 && read(from, peer, sizeof(peer) - 1) > 0);
    for (int encrypts = 0; encrypts < 2; encrypts++) {
        side_join(&side, peer, pid == 0, encrypts);
        if (pid == 0) {
            echo(&side);
            continue;
        }
        printf("%s\n", encrypts ? "with --data-encryption" : "headers authenticated");
        measure_all(&side);
        if (!encrypts) measure_idle(&side);
        fflush(stdout);
        side_send(&side, 128);
        while (side.free_count < CREDIT_COUNT) // it has left
            side_step(&side);
    }
    if (pid == 0) _exit(0);
    measure_crypto();
    (void)waitpid(pid, NULL, 0);
    return 0;
}
