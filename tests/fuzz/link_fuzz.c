// link_fuzz: whatever a peer may send to a port, message by message, over a carrier that keeps
// nothing. The input is a byte (bit 0: the links have a key; bit 1: they also encrypt) and a list
// of records:
//
//   u8 connection (0..3: accepted ones; 4: the one we dialed)   u8 what   u8 size   bytes
//
//   what 0: a message as it is   1: a frame with this sequence   2: a message whose head is made
//   good
//        3: the connection breaks   4: time passes   5: bytes of a stream
//        6: as 2, by a peer that has the key: its proof or mac is made good too
//
// So what is behind the handshake is reached: a stranger's bytes end at the first mac.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/log.h"
#include "transport/link_internal.h"

enum { CONN_COUNT = 5, FRAME_BYTES = 4096 };

static const uint8_t link_key[LINK_KEY_BYTES] = {1, 2, 3};
static bool has_key; // the links of this run

static uint64_t now_ns;

static uint64_t fuzz_now_ns(void *ctx) {
    (void)ctx;
    return now_ns;
}

static bool fuzz_progress(struct port *port) {
    (void)port;
    return false;
}

static void fuzz_wait(struct port *port, int wake_fd, int timeout_ms) {
    (void)port;
    (void)wake_fd;
    (void)timeout_ms;
}

static enum status fuzz_resolve(struct port *port, const char *text,
                                struct conn_address *address_out, struct error *error) {
    (void)port;
    (void)text;
    (void)error;
    *address_out = (struct conn_address){.count = 1};
    return STATUS_OK;
}

static enum status fuzz_dial(struct port *port, const struct conn_address *address,
                             size_t address_index, struct conn **conn_out) {
    (void)address;
    (void)address_index;
    struct conn *conn = calloc(1, sizeof(*conn));
    if (conn == NULL) return STATUS_NO_MEMORY;
    conn_init(conn, port, false);
    conn->has_way = true;
    *conn_out = conn;
    return STATUS_OK;
}

// What leaves is what a peer would believe: it must be to the letter.
static bool fuzz_send_message(struct conn *conn, const union link_message *message) {
    (void)conn;
    union link_message parsed;
    CHECK(link_message_parse(message, link_message_bytes(message->head.kind), &parsed) ==
          STATUS_OK);
    return true;
}

static void fuzz_send_frame(struct conn *conn, struct send_slot *slot) {
    (void)conn;
    send_slot_done(slot);
}

static void fuzz_flush(struct conn *conn) {
    conn->flushed = true;
}

static void fuzz_force(struct conn *conn) {
    conn->gone = true;
}

static void fuzz_free_conn(struct conn *conn) {
    free(conn);
}

static void fuzz_close(struct port *port) {
    (void)port;
}

static const struct carrier_ops fuzz_ops = {
    .progress = fuzz_progress,
    .wait = fuzz_wait,
    .resolve = fuzz_resolve,
    .dial = fuzz_dial,
    .send_message = fuzz_send_message,
    .send_frame = fuzz_send_frame,
    .flush = fuzz_flush,
    .force = fuzz_force,
    .free_conn = fuzz_free_conn,
    .close = fuzz_close,
};

static void release_at_once(struct link *link, void *ctx, struct frame *frame) {
    (void)ctx;
    link_release(link, frame);
}

static const struct link_handler handler = {.received = release_at_once};

// The connection of a number; a new one where the old one has gone.
static struct conn *conn_at(struct port *port, unsigned number) {
    unsigned at = 0;
    for (struct conn *conn = port->conns; conn != NULL; conn = conn->next)
        if (at++ == number) return conn;
    struct conn *conn = calloc(1, sizeof(*conn));
    if (conn == NULL || !port_has_room_for_pending(port)) {
        free(conn);
        return NULL;
    }
    conn_init(conn, port, true);
    conn_challenge(conn);
    return conn;
}

// As the peer of this connection would.
static void seal_frame(const struct conn *conn, struct frame_header *header, uint8_t *rest,
                       size_t rest_bytes) {
    const struct link *link = conn->link;
    if (link == NULL || !conn->trusted) return;
    if (link->config.encrypts)
        link_encrypt(&link->session, header->link_sequence, rest, rest_bytes, header->payload_tag);
    if (link->config.has_key) link_seal_header(&link->session, header);
}

static void receive_frame(struct conn *conn, const uint8_t *bytes, size_t size_bytes) {
    static uint8_t rest[FRAME_BYTES * 2];
    size_t rest_bytes = size_bytes > 16 ? (size_t)bytes[16] * 32 : FRAME_BYTES / 2;
    struct frame_header header = {.magic = FRAME_MAGIC,
                                  .version = FRAME_VERSION,
                                  .epoch = 7,
                                  .payload_offset = sizeof(header),
                                  .payload_bytes = rest_bytes,
                                  .link_sequence = 1};
    memset(rest, 0, rest_bytes);
    if (size_bytes > 0) memcpy(&header.link_sequence, bytes, size_bytes < 2 ? size_bytes : 2);
    if (size_bytes > 18) header.payload_offset += bytes[18];
    seal_frame(conn, &header, rest, rest_bytes);
    if (size_bytes > 19) ((uint8_t *)&header)[bytes[19] % sizeof(header)] ^= 0x10;
    if (size_bytes > 20) rest[0] ^= bytes[20];
    struct receive_slot *slot = conn_receive_frame(conn, &header, sizeof(header), rest_bytes);
    if (slot == NULL) return;
    CHECK(slot->frame->capacity_bytes >= sizeof(header) + rest_bytes);
    CHECK(slot->frame->size_bytes == sizeof(header) + rest_bytes);
    memcpy(slot->frame->data + sizeof(header), rest, rest_bytes);
    receive_slot_done(slot, size_bytes < 18 || bytes[17] < 250);
}

// As the peer of this connection would, where it has the link's key.
static void seal_message(const struct conn *conn, union link_message *message) {
    const uint8_t *key = link_key;
    if (message->head.kind == LINK_HELLO && !conn->accepted) return;
    if (message->head.kind == LINK_HELLO) link_prove_hello(key, conn->nonce, &message->hello);
    if (message->head.kind == LINK_ACCEPT)
        link_prove_accept(key, conn->nonce, &conn->hello, &message->accept);
    if (message->head.kind == LINK_REFUSE)
        link_prove_refuse(key, conn->nonce, &conn->hello, &message->refuse);
    if (conn->link == NULL || !conn->trusted) return;
    const uint8_t *message_key =
        conn->accepted ? conn->link->session.to_receiver_key : conn->link->session.to_sender_key;
    if (message->head.kind == LINK_CREDIT)
        link_mac_make(message_key, message, offsetof(struct link_credit, mac), NULL, 0,
                      message->credit.mac);
    if (message->head.kind == LINK_PING || message->head.kind == LINK_BYE)
        link_mac_make(message_key, message, offsetof(struct link_sign, mac), NULL, 0,
                      message->sign.mac);
}

static void run_record(struct port *port, const uint8_t *record, size_t size_bytes) {
    const uint8_t *bytes = record + 3;
    struct conn *conn = conn_at(port, record[0] % CONN_COUNT);
    if (conn == NULL) return;
    union link_message message = {0};
    size_t copied_bytes = size_bytes < sizeof(message) ? size_bytes : sizeof(message);
    switch (record[1] % 7) {
    case 0:
        conn_receive_message(conn, bytes, size_bytes);
        break;
    case 1:
        receive_frame(conn, bytes, size_bytes);
        break;
    case 2:
    case 6:
        memcpy(&message, bytes, copied_bytes);
        message.head = link_message_make(message.head.kind % (LINK_CHALLENGE + 1)).head;
        if (record[1] % 7 == 6 && has_key) seal_message(conn, &message);
        conn_receive_message(conn, &message, link_message_bytes(message.head.kind));
        break;
    case 3:
        conn_broke(conn, "fuzz");
        break;
    case 4:
        now_ns += size_bytes * UINT64_C(20000000);
        break;
    case 5: {
        size_t message_bytes = link_stream_message_bytes(bytes, size_bytes);
        CHECK(message_bytes == SIZE_MAX ||
              message_bytes <= sizeof(struct link_worker) + LINK_WORKER_BYTES_MAX);
        break;
    }
    }
}

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size_bytes);

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc;
    (void)argv;
    log_init("link_fuzz", LOG_NONE);
    return link_crypto_start() == STATUS_OK ? 0 : 1;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size_bytes) {
    struct port port = {0};
    struct port_config config = {.clock = {.now_ns = fuzz_now_ns}, .handler = &handler};
    struct link *receiver, *sender;
    struct error error;
    if (size_bytes == 0) return 0;
    now_ns = UINT64_C(1000000000);
    has_key = data[0] & 1;
    port_init(&port, &fuzz_ops, &config);
    struct link_config link_config = {.epoch = 7,
                                      .link_id = 2,
                                      .credit_count = 4,
                                      .frame_bytes_max = FRAME_BYTES,
                                      .has_key = has_key,
                                      .encrypts = has_key && (data[0] & 2) != 0};
    memcpy(link_config.key, link_key, sizeof(link_key));
    data++;
    size_bytes--;
    if (link_expect(&port, &link_config, NULL, &receiver) != STATUS_OK) return 0;
    if (link_connect(&port, "", &link_config, NULL, &sender, &error) != STATUS_OK) abort();
    while (size_bytes >= 3) {
        size_t record_bytes = data[2] <= size_bytes - 3 ? data[2] : size_bytes - 3;
        run_record(&port, data, record_bytes);
        (void)port_poll(&port);
        data += 3 + record_bytes;
        size_bytes -= 3 + record_bytes;
    }
    (void)link_stats(receiver);
    link_close(sender);
    port_close(&port);
    return 0;
}
