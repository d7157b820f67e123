// The exact bytes of proofs, keys, macs and encryption. The expected values come from another
// implementation: BLAKE2b and HMAC of Python's hashlib, ChaCha20-Poly1305 written from RFC 8439.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "transport/link_crypto.h"

static uint8_t key[LINK_KEY_BYTES], nonce[LINK_NONCE_BYTES]; // 0, 1, 2, ... and 100, 101, ...

static void count_up(void *out, size_t size_bytes, uint8_t first) {
    for (size_t i = 0; i < size_bytes; i++)
        ((uint8_t *)out)[i] = (uint8_t)(first + i);
}

static int set_up(void **state) {
    (void)state;
    count_up(key, sizeof(key), 0);
    count_up(nonce, sizeof(nonce), 100);
    return link_crypto_start() == STATUS_OK ? 0 : -1;
}

static struct link_hello make_hello(void) {
    union link_message message = link_message_make(LINK_HELLO);
    message.hello.epoch = 7;
    message.hello.link_id = 2;
    message.hello.credit_count = 4;
    message.hello.frame_bytes_max = 4096;
    message.hello.flags = LINK_ENCRYPTS;
    count_up(message.hello.nonce, sizeof(message.hello.nonce), 200);
    link_prove_hello(key, nonce, &message.hello);
    return message.hello;
}

static struct link_accept make_accept(const struct link_hello *hello) {
    union link_message message = link_message_make(LINK_ACCEPT);
    message.accept.credit_count = 3;
    link_prove_accept(key, nonce, hello, &message.accept);
    return message.accept;
}

static struct link_session make_session(void) {
    struct link_session session;
    struct link_hello hello = make_hello();
    struct link_accept accept = make_accept(&hello);
    link_session_make(key, nonce, &hello, &accept, &session);
    return session;
}

static void proofs_have_the_bytes_that_the_protocol_says(void **state) {
    (void)state;
    static const uint8_t of_hello[] = {0x1c, 0xbb, 0xb2, 0x3a, 0x8d, 0xf3, 0xa1, 0xd9,
                                       0x34, 0xcb, 0x9a, 0xee, 0xaa, 0xc6, 0x16, 0x48,
                                       0x54, 0x00, 0x49, 0xca, 0x62, 0x20, 0xfa, 0xf8,
                                       0x9a, 0x6c, 0xca, 0xaa, 0x21, 0x22, 0x2b, 0x3b};
    static const uint8_t of_accept[] = {0x9e, 0x1d, 0x59, 0x0c, 0x8e, 0x4c, 0xfd, 0x20,
                                        0x9b, 0xfd, 0x6a, 0x38, 0xd1, 0xae, 0x93, 0x00,
                                        0x7e, 0xf6, 0xad, 0x2b, 0x46, 0x94, 0x06, 0x97,
                                        0x2c, 0xac, 0x15, 0x0d, 0x38, 0x81, 0x4f, 0x3e};
    static const uint8_t of_refuse[] = {0x81, 0x4e, 0x24, 0x6a, 0x32, 0x4a, 0x10, 0x88,
                                        0x0f, 0x13, 0xb0, 0x80, 0x75, 0xcc, 0x63, 0x8e,
                                        0x9d, 0xa2, 0x51, 0x3f, 0x42, 0xa8, 0x79, 0x29,
                                        0xb4, 0x13, 0xea, 0x4a, 0x69, 0x6b, 0xf5, 0x12};
    struct link_hello hello = make_hello();
    struct link_accept accept = make_accept(&hello);
    union link_message refuse = link_message_make(LINK_REFUSE);
    refuse.refuse.reason = LINK_REFUSED_FRAME_BYTES;
    refuse.refuse.frame_bytes_max = 100;
    link_prove_refuse(key, nonce, &hello, &refuse.refuse);
    assert_memory_equal(hello.proof, of_hello, sizeof(of_hello));
    assert_memory_equal(accept.proof, of_accept, sizeof(of_accept));
    assert_memory_equal(refuse.refuse.proof, of_refuse, sizeof(of_refuse));
    assert_true(link_hello_is_proved(key, nonce, &hello));
    assert_true(link_accept_is_proved(key, nonce, &hello, &accept));
    assert_true(link_refuse_is_proved(key, nonce, &hello, &refuse.refuse));
}

static void keys_and_macs_have_the_bytes_that_the_protocol_says(void **state) {
    (void)state;
    static const uint8_t to_receiver[] = {0x51, 0xd6, 0xbf, 0x6b, 0x9a, 0xb8, 0x9b, 0x81,
                                          0x85, 0x09, 0xcc, 0xe6, 0xbf, 0x08, 0x04, 0x6a,
                                          0xad, 0x0f, 0x26, 0x74, 0x3e, 0x77, 0x24, 0xd2,
                                          0xff, 0x94, 0x06, 0x7e, 0x59, 0x11, 0xbe, 0xc8};
    static const uint8_t to_sender[] = {0x66, 0x4f, 0xf7, 0x01, 0xb6, 0x57, 0x2b, 0x6c,
                                        0xe3, 0x04, 0x7c, 0x87, 0x3e, 0x0c, 0xbb, 0x4f,
                                        0x89, 0xdd, 0xa2, 0xfc, 0x95, 0xda, 0xb2, 0x99,
                                        0x87, 0xb8, 0xd6, 0xca, 0xd3, 0x91, 0xbd, 0x19};
    static const uint8_t header_mac[] = {0x83, 0x8a, 0xc9, 0x1b, 0xb1, 0x39, 0xd3, 0xf8,
                                         0x93, 0xea, 0x73, 0x3f, 0x7f, 0x4b, 0xb1, 0x63};
    struct link_session session = make_session();
    assert_memory_equal(session.to_receiver_key, to_receiver, sizeof(to_receiver));
    assert_memory_equal(session.to_sender_key, to_sender, sizeof(to_sender));
    struct frame_header header;
    count_up(&header, sizeof(header), 0);
    link_seal_header(&session, &header);
    assert_memory_equal(header.mac, header_mac, sizeof(header_mac));
    assert_true(link_header_is_sealed(&session, &header));
    // In two pieces it is the same.
    uint8_t mac[LINK_MAC_BYTES];
    link_mac_make(session.header_key, &header, 50, (const uint8_t *)&header + 50,
                  offsetof(struct frame_header, mac) - 50, mac);
    assert_memory_equal(mac, header_mac, sizeof(header_mac));
}

static void encryption_has_the_bytes_that_the_protocol_says(void **state) {
    (void)state;
    static const uint8_t ends[] = {
        0x2d, 0x5f, 0x9d, 0x70, 0xb6, 0x1e, 0xb6, 0x43, 0xb9, 0xa2, 0x9a,
        0x4e, 0xf5, 0xca, 0xc3, 0xd6, 0x22, 0x70, 0xe5, 0x92, 0x8b, 0x2d,
        0x81, 0x79, 0x6f, 0x29, 0x36, 0x2a, 0x0d, 0x08, 0x00, 0xf2}; // the first and last 16 bytes
    static const uint8_t expected_tag[] = {0xc8, 0xd7, 0x5c, 0xa9, 0x1f, 0x89, 0x18, 0x32,
                                           0x8a, 0xd3, 0x79, 0x97, 0x5a, 0xb6, 0xad, 0xd8};
    struct link_session session = make_session();
    uint8_t data[100], plain[100], tag[LINK_MAC_BYTES];
    count_up(plain, sizeof(plain), 0);
    memcpy(data, plain, sizeof(data));
    link_encrypt(&session, 0x0102030405060708, data, sizeof(data), tag);
    assert_memory_equal(data, ends, 16);
    assert_memory_equal(data + 84, ends + 16, 16);
    assert_memory_equal(tag, expected_tag, sizeof(expected_tag));
    assert_true(link_decrypt(&session, 0x0102030405060708, data, sizeof(data), tag));
    assert_memory_equal(data, plain, sizeof(plain));
}

static void nothing_decrypts_but_what_was_encrypted(void **state) {
    (void)state;
    struct link_session session = make_session();
    for (size_t at = 0; at < 100 + LINK_MAC_BYTES + 1; at++) {
        uint8_t data[100] = {0}, tag[LINK_MAC_BYTES];
        link_encrypt(&session, 5, data, sizeof(data), tag);
        if (at < 100) data[at] ^= 1;
        if (at >= 100 && at < 100 + LINK_MAC_BYTES) tag[at - 100] ^= 1;
        assert_false(
            link_decrypt(&session, at == 100 + LINK_MAC_BYTES ? 6 : 5, data, sizeof(data), tag));
    }
    uint8_t tag[LINK_MAC_BYTES], none = 0;
    link_encrypt(&session, 9, &none, 0, tag); // of nothing there is a tag too
    assert_true(link_decrypt(&session, 9, &none, 0, tag));
    tag[15] ^= 1;
    assert_false(link_decrypt(&session, 9, &none, 0, tag));
}

// Each bit of whatever a proof covers, and of itself.
static void a_proof_holds_for_nothing_else(void **state) {
    (void)state;
    struct link_hello hello = make_hello();
    struct link_accept accept = make_accept(&hello);
    struct {
        uint8_t *bytes;
        size_t size_bytes;
        bool of_hello;
    } covered[] = {{key, sizeof(key), true},
                   {nonce, sizeof(nonce), true},
                   {(uint8_t *)&hello, sizeof(hello), true},
                   {(uint8_t *)&accept, sizeof(accept), false}};
    for (size_t i = 0; i < sizeof(covered) / sizeof(*covered); i++)
        for (size_t bit = 0; bit < covered[i].size_bytes * 8; bit++) {
            covered[i].bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
            if (covered[i].of_hello) assert_false(link_hello_is_proved(key, nonce, &hello));
            assert_false(link_accept_is_proved(key, nonce, &hello, &accept));
            covered[i].bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
        }
    assert_true(link_accept_is_proved(key, nonce, &hello, &accept));
}

static void drawn_bytes_differ(void **state) {
    (void)state;
    uint8_t draws[4][LINK_KEY_BYTES];
    for (int i = 0; i < 4; i++) {
        link_crypto_draw(draws[i], sizeof(draws[i]));
        for (int j = 0; j < i; j++)
            assert_memory_not_equal(draws[i], draws[j], sizeof(draws[i]));
    }
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(proofs_have_the_bytes_that_the_protocol_says),
    cmocka_unit_test(keys_and_macs_have_the_bytes_that_the_protocol_says),
    cmocka_unit_test(encryption_has_the_bytes_that_the_protocol_says),
    cmocka_unit_test(nothing_decrypts_but_what_was_encrypted),
    cmocka_unit_test(a_proof_holds_for_nothing_else),
    cmocka_unit_test(drawn_bytes_differ),
};

int main(int argc, char **argv) {
    if (argc == 2) cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, set_up, NULL);
}
