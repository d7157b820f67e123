// Ten thousand connections that have no business at a port, while a link is made and used.
#include "link_raw.h"

#include <pthread.h>
#include <stdatomic.h>

enum { DIAL_COUNT = 10000, OPEN_COUNT = 150, FRAME_COUNT = 200 };

// A sanitizer keeps what was freed for a while.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { GROWTH_BYTES_MAX = 1 << 30 };
#else
enum { GROWTH_BYTES_MAX = 16 << 20 };
#endif

struct flood {
    char address[64];
    struct link_hello recorded; // a good one, of a connection that is over
    struct link_config config;
    atomic_uint dialed_count;
    atomic_bool stop;
};

// Of every 6: nothing, garbage, a hello with another key, a recorded hello, half of a hello, the
// address of a UCX worker.
static void flood_say(const struct flood *flood, int fd, unsigned number) {
    static const struct link_challenge no_challenge;
    struct link_config config = flood->config;
    config.key[0] ^= 1;
    struct link_hello hello = raw_hello(&config, &no_challenge);
    struct {
        struct link_worker worker;
        uint8_t address[200];
    } worker = {.worker = link_worker_make(1, 13, 200)};
    const void *const what[] = {NULL, world_text(), &hello, &flood->recorded, &hello, &worker};
    static const size_t bytes[] = {0,  100,           sizeof(hello), sizeof(flood->recorded),
                                   60, sizeof(worker)};
    if (bytes[number % 6] > 0) (void)!send(fd, what[number % 6], bytes[number % 6], MSG_NOSIGNAL);
}

static int flood_dial(const struct flood *flood) {
    char host[64];
    uint16_t port_number;
    if (link_address_split(flood->address, host, sizeof(host), &port_number, NULL) != STATUS_OK)
        return -1;
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = htons(port_number)};
    (void)inet_pton(AF_INET, host, &in.sin_addr);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd >= 0 && connect(fd, (struct sockaddr *)&in, sizeof(in)) == 0) return fd;
    if (fd >= 0) close(fd);
    return -1;
}

static void *flood_run(void *ctx) {
    struct flood *flood = ctx;
    int fds[OPEN_COUNT];
    memset(fds, -1, sizeof(fds));
    for (unsigned i = 0; i < DIAL_COUNT && !atomic_load(&flood->stop); i++) {
        int *fd = &fds[i % OPEN_COUNT];
        if (*fd >= 0) close(*fd);
        *fd = flood_dial(flood);
        if (*fd >= 0) flood_say(flood, *fd, i);
        atomic_fetch_add(&flood->dialed_count, 1);
    }
    for (int i = 0; i < OPEN_COUNT; i++)
        if (fds[i] >= 0) close(fds[i]);
    return NULL;
}

static size_t resident_bytes(void) {
    unsigned long total_pages, resident_pages;
    FILE *file = fopen("/proc/self/statm", "r");
    assert_non_null(file);
    assert_int_equal(fscanf(file, "%lu %lu", &total_pages, &resident_pages), 2);
    (void)fclose(file);
    return resident_pages * (size_t)sysconf(_SC_PAGESIZE);
}

static struct link_hello record_hello(struct world *world, const char *address,
                                      const struct link_config *config) {
    int fd = raw_connect(address);
    struct link_challenge challenge = raw_challenge(world, fd);
    close(fd);
    return raw_hello(config, &challenge);
}

static void send_frames(struct world *world, struct end *receiver, struct end *sender) {
    struct frame *frame = world_frame(100);
    for (uint32_t i = 0; i < FRAME_COUNT; i++) {
        world_fill(frame, i, 100);
        while (!link_send(sender->link, frame))
            world_run(world, 1);
        if (!world_until(world, &receiver->held_count, 1, 5000)) fail_msg("frame %u is lost", i);
        world_verify(receiver->held[0], i, 100);
        link_release(receiver->link, receiver->held[--receiver->held_count]);
        sender->returned_count = 0;
    }
    frame_close(frame);
}

static void ucx_link_is_made_and_works_among_ten_thousand_bad_dialers(void **state) {
    (void)state;
    struct world world;
    struct end receiver, sender;
    pthread_t thread;
    world_open(&world, true);
    struct port *port = world_add_port(&world);
    (void)world_add_port(&world);
    struct flood flood = {.config = world_config(4, 4096)};
    snprintf(flood.address, sizeof(flood.address), "%s", port_address(port));
    flood.recorded = record_hello(&world, flood.address, &flood.config);
    (void)world_text();
    world_expect(port, &flood.config, &receiver);
    assert_int_equal(pthread_create(&thread, NULL, flood_run, &flood), 0);
    while (atomic_load(&flood.dialed_count) < 500)
        (void)world_poll(&world);
    size_t before_bytes = resident_bytes();
    world_connect(world.ports[1], flood.address, &flood.config, &sender);
    bool is_up = world_until(&world, &receiver.up_count, 1, LINK_CONNECT_MS) &&
                 world_until(&world, &sender.up_count, 1, 5000);
    unsigned dialed_before_up_count = atomic_load(&flood.dialed_count);
    if (is_up) send_frames(&world, &receiver, &sender);
    while (is_up && atomic_load(&flood.dialed_count) < DIAL_COUNT)
        (void)world_poll(&world);
    size_t after_bytes = resident_bytes();
    atomic_store(&flood.stop, true);
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_true(is_up);
    assert_in_range(dialed_before_up_count, 500, DIAL_COUNT - 1); // it was made meanwhile
    assert_int_equal(receiver.lost_count + sender.lost_count, 0);
    assert_int_equal(receiver.up_count, 1);
    send_frames(&world, &receiver, &sender);
    // A connection that never spoke and was closed by its dialer is no refusal.
    assert_true(port_refused_count(port) > DIAL_COUNT / 4);
    if (after_bytes > before_bytes + GROWTH_BYTES_MAX)
        fail_msg("%zu bytes more", after_bytes - before_bytes);
    world_close(&world);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(ucx_link_is_made_and_works_among_ten_thousand_bad_dialers),
};

int main(int argc, char **argv) {
    if (argc == 2) cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
