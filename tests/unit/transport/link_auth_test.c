// Who may speak on a link, and what somebody on the way can do: everything goes over a wire that
// the test taps (link_tap.h).
#include "link_tap.h"

enum { PAYLOAD_BYTES = 1000 };

static struct link_config tap_config(bool encrypts) {
    struct link_config config = world_config(4, 4096);
    config.encrypts = encrypts;
    return config;
}

static void assert_lost_with(const struct end *end, const char *reason) {
    assert_int_equal(end->lost_count, 1);
    if (strstr(end->error.text, reason) == NULL) fail_msg("%s", end->error.text);
}

// -- the handshake --------------------------------------------------------------------------------

static void ends_without_the_same_key_never_come_up(void **state) {
    (void)state;
    enum { RIGHT, WRONG, ABSENT, KEY_COUNT };
    for (int of_receiver = 0; of_receiver < KEY_COUNT; of_receiver++)
        for (int of_sender = 0; of_sender < KEY_COUNT; of_sender++) {
            struct end receiver, sender;
            struct link_config configs[KEY_COUNT] = {tap_config(false), tap_config(false),
                                                     tap_config(false)};
            configs[WRONG].key[0] ^= 0x80;
            configs[ABSENT].has_key = false;
            tap_open();
            tap_expect(&configs[of_receiver], &receiver);
            tap_connect(&configs[of_sender], &sender);
            tap_pass_all();
            bool are_equal = of_receiver == of_sender;
            if (receiver.up_count != are_equal || sender.up_count != are_equal)
                fail_msg("receiver %d, sender %d", of_receiver, of_sender);
            assert_int_equal(link_stats(receiver.link).refused_count, are_equal ? 0 : 1);
            assert_int_equal(receiver.lost_count + sender.lost_count, 0);
            tap_close();
        }
}

// What a stranger hears must not tell it what is expected.
static void refusals_of_strangers_are_all_the_same(void **state) {
    (void)state;
    struct link_refuse refusals[4];
    for (int what = 0; what < 4; what++) {
        struct end receiver, sender;
        struct link_config config = tap_config(false), wanted = config;
        wanted.key[3] ^= 1;
        if (what == 1) wanted.epoch++;
        if (what == 2) wanted.link_id++;
        tap_open();
        if (what == 3)
            tap_link(&config, &receiver, &sender);
        else
            tap_expect(&config, &receiver);
        struct end stranger;
        tap_connect(&wanted, &stranger);
        struct tap_item challenge = *tap_take();
        tap_deliver(&challenge, challenge.to);
        struct tap_item hello = *tap_take();
        tap_deliver(&hello, hello.to);
        struct tap_item refusal = *tap_take();
        assert_int_equal(refusal.size_bytes, sizeof(refusals[what]));
        memcpy(&refusals[what], refusal.bytes, sizeof(refusals[what]));
        assert_int_equal(refusals[what].head.kind, LINK_REFUSE);
        assert_memory_equal(&refusals[what], &refusals[0], sizeof(refusals[0]));
        assert_int_equal(stranger.up_count + receiver.lost_count, 0);
        tap_close();
    }
}

static void a_recorded_hello_is_worth_nothing(void **state) {
    (void)state;
    struct end receiver, sender;
    struct link_config config = tap_config(false);
    tap_open();
    tap_expect(&config, &receiver);
    tap_connect(&config, &sender);
    struct tap_item challenge = *tap_take();
    tap_deliver(&challenge, challenge.to);
    struct tap_item hello = *tap_take();
    // Before the sender's own gets through, and after.
    for (int round = 0; round < 2; round++) {
        struct tap_conn *thief = tap_dial();
        struct tap_item own_challenge = *tap_take();
        assert_memory_not_equal(own_challenge.bytes, challenge.bytes, challenge.size_bytes);
        tap_deliver(&hello, thief);
        struct tap_item answer = *tap_take();
        assert_int_equal(((struct link_message_head *)answer.bytes)->kind, LINK_REFUSE);
        tap_poll();
        assert_int_equal(receiver.up_count, round);
        if (round == 1) break;
        tap_deliver(&hello, hello.to);
        tap_pass_all();
        assert_int_equal(receiver.up_count, 1);
        assert_int_equal(sender.up_count, 1);
    }
    assert_int_equal(receiver.lost_count + sender.lost_count, 0);
    assert_int_equal(link_stats(receiver.link).refused_count, 2);
    tap_close();
}

// Somebody at the receiver's address, without the key, who has heard an earlier handshake.
static void a_recorded_accept_is_worth_nothing(void **state) {
    (void)state;
    struct end receiver, sender, second;
    struct link_config config = tap_config(false), other = config;
    tap_open();
    tap_expect(&config, &receiver);
    tap_connect(&config, &sender);
    struct tap_item challenge = *tap_take();
    tap_deliver(&challenge, challenge.to);
    struct tap_item hello = *tap_take();
    tap_deliver(&hello, hello.to);
    struct tap_item accept = *tap_take();
    assert_int_equal(((struct link_message_head *)accept.bytes)->kind, LINK_ACCEPT);
    tap_connect(&other, &second);
    struct tap_item second_challenge = *tap_take();
    tap_deliver(&challenge, second_challenge.to); // even the number is the old one
    (void)tap_take();                             // the second hello, which nobody gets
    tap_deliver(&accept, second_challenge.to);
    tap_poll();
    assert_int_equal(second.up_count, 0);
    assert_int_equal(link_stats(second.link).refused_count, 1);
    tap_deliver(&accept, accept.to);
    tap_poll();
    assert_int_equal(sender.up_count, 1);
    tap_close();
}

// Every byte of what is said counts, and that each says what it is.
static void a_handshake_that_was_changed_on_its_way_fails(void **state) {
    (void)state;
    enum { CHALLENGE, HELLO, ACCEPT, MESSAGE_COUNT };
    static const size_t bytes[] = {sizeof(struct link_challenge), sizeof(struct link_hello),
                                   sizeof(struct link_accept)};
    for (int what = 0; what < MESSAGE_COUNT; what++)
        for (size_t at = 0; at < bytes[what]; at++) {
            struct end receiver, sender;
            struct link_config config = tap_config(false);
            tap_open();
            tap_expect(&config, &receiver);
            tap_connect(&config, &sender);
            for (int i = 0; i < MESSAGE_COUNT && tap.count > 0; i++) {
                struct tap_item item = *tap_take();
                if (i == what) item.bytes[at] ^= 1;
                tap_deliver(&item, item.to);
                tap_poll();
            }
            if (sender.up_count != 0) fail_msg("message %d, byte %zu", what, at);
            if (what != ACCEPT && receiver.up_count != 0)
                fail_msg("message %d, byte %zu: the receiver is up", what, at);
            tap_close();
        }
}

static void a_refusal_without_proof_ends_nothing(void **state) {
    (void)state;
    static const uint32_t reasons[] = {LINK_REFUSED_FRAME_BYTES, LINK_REFUSED_VERSION,
                                       LINK_REFUSED_FLAGS, 99};
    for (size_t i = 0; i < sizeof(reasons) / sizeof(*reasons); i++)
        for (int is_greeted = 0; is_greeted < 2; is_greeted++) {
            struct end receiver, sender;
            struct link_config config = tap_config(false);
            tap_open();
            tap_expect(&config, &receiver);
            tap_connect(&config, &sender);
            struct tap_item challenge = *tap_take();
            if (is_greeted) {
                tap_deliver(&challenge, challenge.to);
                (void)tap_take();
            }
            union link_message forged = link_message_make(LINK_REFUSE);
            forged.refuse.reason = reasons[i];
            forged.refuse.proof[0] = (uint8_t)i;
            conn_receive_message(&challenge.to->conn, &forged, sizeof(forged.refuse));
            tap_poll();
            assert_int_equal(sender.lost_count, 0);
            world_push(&(struct world){0}, LINK_RETRY_MS + 100);
            tap_poll();
            tap_pass_all();
            assert_int_equal(sender.up_count, 1);
            assert_int_equal(receiver.up_count, 1);
            tap_close();
        }
}

// -- frames ---------------------------------------------------------------------------------------

static void frames_arrive_as_they_were_sent(void **state) {
    (void)state;
    for (int mode = 0; mode < 3; mode++) {
        struct end receiver, sender;
        struct link_config config = tap_config(mode == 2);
        config.has_key = mode > 0;
        tap_open();
        tap_link(&config, &receiver, &sender);
        struct frame *frame = world_frame(PAYLOAD_BYTES);
        for (uint64_t step = 1; step <= 20; step++) {
            size_t payload_bytes = step * 50;
            struct tap_item item = tap_send(&sender, frame, step, payload_bytes);
            const uint8_t *sent = item.bytes + sizeof(struct frame_header);
            const uint8_t *meant = world_text() + step * 64;
            // On the wire it can be read unless it is encrypted.
            assert_true((memcmp(sent, meant, payload_bytes) == 0) == (mode < 2));
            tap_deliver(&item, item.to);
            tap_poll();
            assert_int_equal(receiver.held_count, 1);
            world_verify(receiver.held[0], step, payload_bytes);
            // What the link wrote is taken off again, as frame_parse wants it.
            const struct frame_header *header = (const struct frame_header *)receiver.held[0]->data;
            assert_true(link_crypto_is_zero(header->mac, sizeof(header->mac)));
            assert_true(link_crypto_is_zero(header->payload_tag, sizeof(header->payload_tag)));
            link_release(receiver.link, receiver.held[--receiver.held_count]);
            tap_pass_all();
            sender.returned_count = 0;
        }
        assert_int_equal(receiver.lost_count + sender.lost_count, 0);
        tap_close();
        frame_close(frame);
    }
}

static void every_byte_of_a_frame_header_is_protected(void **state) {
    (void)state;
    for (size_t at = 0; at < sizeof(struct frame_header); at++) {
        struct end receiver, sender;
        struct link_config config = tap_config(at % 2 == 0);
        tap_open();
        tap_link(&config, &receiver, &sender);
        struct frame *frame = world_frame(PAYLOAD_BYTES);
        struct tap_item item = tap_send(&sender, frame, 1, PAYLOAD_BYTES);
        item.bytes[at] ^= (uint8_t)(1 << at % 8);
        tap_deliver(&item, item.to);
        tap_poll();
        assert_int_equal(receiver.received_count, 0);
        assert_lost_with(&receiver, "a frame whose header is not the peer's");
        assert_int_equal(link_stats(receiver.link).refused_count, 1);
        tap_close();
        frame_close(frame);
    }
}

static void a_frame_is_taken_once_and_in_its_place(void **state) {
    (void)state;
    enum { AGAIN_AT_ONCE, AGAIN_LATER, IN_PLACE_OF_ANOTHER, SHORTER, LONGER, CASE_COUNT };
    for (int what = 0; what < CASE_COUNT; what++) {
        struct end receiver, sender;
        struct link_config config = tap_config(false);
        tap_open();
        tap_link(&config, &receiver, &sender);
        struct frame *frames[2] = {world_frame(PAYLOAD_BYTES), world_frame(PAYLOAD_BYTES)};
        struct tap_item first = tap_send(&sender, frames[0], 1, PAYLOAD_BYTES);
        struct tap_item second = tap_send(&sender, frames[1], 2, PAYLOAD_BYTES);
        if (what == SHORTER) first.size_bytes--;
        if (what == LONGER) first.size_bytes++;
        uint64_t sequence = 2;
        // The first frame with the second one's number.
        if (what == IN_PLACE_OF_ANOTHER)
            memcpy(first.bytes + offsetof(struct frame_header, link_sequence), &sequence,
                   sizeof(sequence));
        tap_deliver(&first, first.to);
        if (what == AGAIN_LATER) {
            tap_deliver(&second, second.to);
            tap_poll();
            assert_int_equal(receiver.received_count, 2);
        }
        if (what <= AGAIN_LATER) tap_deliver(&first, first.to);
        tap_poll();
        assert_int_equal(receiver.lost_count, 1);
        uint32_t taken_count = what == AGAIN_LATER ? 2 : what == AGAIN_AT_ONCE ? 1 : 0;
        assert_int_equal(receiver.received_count, taken_count);
        tap_close();
        frame_close(frames[0]);
        frame_close(frames[1]);
    }
}

static void frames_that_were_swapped_arrive_in_their_order(void **state) {
    (void)state;
    for (int encrypts = 0; encrypts < 2; encrypts++) {
        struct end receiver, sender;
        struct link_config config = tap_config(encrypts);
        tap_open();
        tap_link(&config, &receiver, &sender);
        struct frame *frames[2] = {world_frame(PAYLOAD_BYTES), world_frame(PAYLOAD_BYTES)};
        struct tap_item first = tap_send(&sender, frames[0], 1, PAYLOAD_BYTES);
        struct tap_item second = tap_send(&sender, frames[1], 2, PAYLOAD_BYTES);
        tap_deliver(&second, second.to);
        tap_poll();
        assert_int_equal(receiver.received_count, 0);
        tap_deliver(&first, first.to);
        tap_poll();
        assert_int_equal(receiver.received_count, 2);
        world_verify(receiver.held[0], 1, PAYLOAD_BYTES);
        world_verify(receiver.held[1], 2, PAYLOAD_BYTES);
        tap_close();
        frame_close(frames[0]);
        frame_close(frames[1]);
    }
}

// Another link with the same key, as nobody makes it, and the same link one connection later.
static void a_frame_of_another_connection_is_refused(void **state) {
    (void)state;
    struct end receivers[2], senders[2];
    struct link_config config = tap_config(false), other = config;
    other.link_id = 5;
    tap_open();
    tap_link(&config, &receivers[0], &senders[0]);
    tap_link(&other, &receivers[1], &senders[1]);
    struct frame *frame = world_frame(PAYLOAD_BYTES);
    struct tap_item item = tap_send(&senders[0], frame, 1, PAYLOAD_BYTES);
    tap_deliver(&item, tap_of(receivers[1].link->conn));
    tap_poll();
    assert_lost_with(&receivers[1], "a frame whose header is not the peer's");
    assert_int_equal(receivers[0].lost_count, 0);
    link_close(senders[1].link);
    link_close(receivers[1].link);
    tap_pass_all();
    tap_link(&other, &receivers[1], &senders[1]);
    struct frame *again = world_frame(PAYLOAD_BYTES);
    struct tap_item former = tap_send(&senders[1], again, 1, PAYLOAD_BYTES);
    link_close(senders[1].link);
    link_close(receivers[1].link);
    tap_pass_all();
    tap_link(&other, &receivers[1], &senders[1]);
    tap_deliver(&former, tap_of(receivers[1].link->conn));
    tap_poll();
    assert_lost_with(&receivers[1], "a frame whose header is not the peer's");
    tap_close();
    frame_close(frame);
    frame_close(again);
}

// Which is what docs/protocol.md says of links that do not encrypt.
static void a_payload_that_was_changed_is_noticed_when_it_is_encrypted(void **state) {
    (void)state;
    enum { AT_MAX = 3 };
    static const size_t ats[AT_MAX] = {0, 500, PAYLOAD_BYTES - 1};
    for (int i = 0; i < 2 * AT_MAX; i++) {
        bool encrypts = i % 2 == 1;
        struct end receiver, sender;
        struct link_config config = tap_config(encrypts);
        tap_open();
        tap_link(&config, &receiver, &sender);
        struct frame *frame = world_frame(PAYLOAD_BYTES);
        struct tap_item item = tap_send(&sender, frame, 1, PAYLOAD_BYTES);
        item.bytes[sizeof(struct frame_header) + ats[i / 2]] ^= 4;
        tap_deliver(&item, item.to);
        tap_poll();
        assert_int_equal(receiver.received_count, encrypts ? 0 : 1);
        if (encrypts) assert_lost_with(&receiver, "a frame that is not what the peer encrypted");
        assert_int_equal(link_stats(receiver.link).refused_count, encrypts ? 1 : 0);
        tap_close();
        frame_close(frame);
    }
}

static void an_encrypted_payload_does_not_fit_another_header(void **state) {
    (void)state;
    struct end receiver, sender;
    struct link_config config = tap_config(true);
    tap_open();
    tap_link(&config, &receiver, &sender);
    struct frame *frames[2] = {world_frame(PAYLOAD_BYTES), world_frame(PAYLOAD_BYTES)};
    struct tap_item first = tap_send(&sender, frames[0], 1, PAYLOAD_BYTES);
    struct tap_item second = tap_send(&sender, frames[1], 1, PAYLOAD_BYTES);
    size_t header_bytes = sizeof(struct frame_header);
    // The same text, and yet nothing on the wire shows it.
    assert_memory_not_equal(first.bytes + header_bytes, second.bytes + header_bytes, PAYLOAD_BYTES);
    memcpy(first.bytes + header_bytes, second.bytes + header_bytes, PAYLOAD_BYTES);
    tap_deliver(&first, first.to);
    tap_poll();
    assert_int_equal(receiver.received_count, 0);
    assert_lost_with(&receiver, "a frame that is not what the peer encrypted");
    tap_close();
    frame_close(frames[0]);
    frame_close(frames[1]);
}

// -- messages -------------------------------------------------------------------------------------

// Fills the credits, lets the receiver give one back, and takes that message off the wire.
static struct tap_item tap_credit(struct end *receiver, struct end *sender, struct frame **frames) {
    for (uint32_t i = 0; i < 4; i++) {
        struct tap_item item = tap_send(sender, frames[i], i, PAYLOAD_BYTES);
        tap_deliver(&item, item.to);
        tap_poll();
    }
    link_release(receiver->link, receiver->held[0]);
    tap_poll();
    assert_int_equal(tap.count, 1);
    struct tap_item credit = *tap_take();
    assert_int_equal(((struct link_message_head *)credit.bytes)->kind, LINK_CREDIT);
    return credit;
}

static void a_credit_counts_once_and_only_as_it_was_given(void **state) {
    (void)state;
    for (size_t at = 0; at <= sizeof(struct link_credit); at++) {
        struct end receiver, sender;
        struct link_config config = tap_config(false);
        struct frame *frames[4];
        tap_open();
        tap_link(&config, &receiver, &sender);
        for (int i = 0; i < 4; i++)
            frames[i] = world_frame(PAYLOAD_BYTES);
        struct tap_item credit = tap_credit(&receiver, &sender, frames);
        bool is_again = at == sizeof(struct link_credit);
        if (is_again)
            tap_deliver(&credit, credit.to);
        else
            credit.bytes[at] ^= 2;
        tap_poll();
        assert_int_equal(sender.lost_count, 0);
        tap_deliver(&credit, credit.to);
        tap_poll();
        if (sender.lost_count != 1) fail_msg("byte %zu", at);
        assert_int_equal(link_stats(sender.link).refused_count, 1);
        tap_close();
        for (int i = 0; i < 4; i++)
            frame_close(frames[i]);
    }
}

static void a_ping_counts_once_and_one_way(void **state) {
    (void)state;
    for (int is_reflected = 0; is_reflected < 2; is_reflected++) {
        struct end receiver, sender;
        struct link_config config = tap_config(false);
        tap_open();
        tap_link(&config, &receiver, &sender);
        world_push(&(struct world){0}, LINK_PING_MS + 100);
        tap_poll();
        assert_int_equal(tap.count, 2); // one each way
        struct tap_item one = *tap_take(), other = *tap_take();
        tap_deliver(&one, one.to);
        if (!is_reflected) tap_deliver(&other, other.to);
        tap_poll();
        assert_int_equal(receiver.lost_count + sender.lost_count, 0);
        tap_deliver(&one, is_reflected ? other.to : one.to);
        tap_poll();
        assert_int_equal(receiver.lost_count + sender.lost_count, 1);
        tap_close();
    }
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(ends_without_the_same_key_never_come_up),
    cmocka_unit_test(refusals_of_strangers_are_all_the_same),
    cmocka_unit_test(a_recorded_hello_is_worth_nothing),
    cmocka_unit_test(a_recorded_accept_is_worth_nothing),
    cmocka_unit_test(a_handshake_that_was_changed_on_its_way_fails),
    cmocka_unit_test(a_refusal_without_proof_ends_nothing),
    cmocka_unit_test(frames_arrive_as_they_were_sent),
    cmocka_unit_test(every_byte_of_a_frame_header_is_protected),
    cmocka_unit_test(a_frame_is_taken_once_and_in_its_place),
    cmocka_unit_test(frames_that_were_swapped_arrive_in_their_order),
    cmocka_unit_test(a_frame_of_another_connection_is_refused),
    cmocka_unit_test(a_payload_that_was_changed_is_noticed_when_it_is_encrypted),
    cmocka_unit_test(an_encrypted_payload_does_not_fit_another_header),
    cmocka_unit_test(a_credit_counts_once_and_only_as_it_was_given),
    cmocka_unit_test(a_ping_counts_once_and_one_way),
};

int main(int argc, char **argv) {
    if (argc == 2) cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
