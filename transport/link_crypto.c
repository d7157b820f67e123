#include "transport/link_crypto.h"

#include <sodium.h>
#include <string.h>

#include "base/check.h"
#include "base/memory.h"

_Static_assert(LINK_KEY_BYTES == crypto_kdf_KEYBYTES, "keys are made from keys");
_Static_assert(LINK_KEY_BYTES == crypto_auth_hmacsha512256_KEYBYTES, "of proofs");
_Static_assert(LINK_KEY_BYTES == crypto_aead_chacha20poly1305_ietf_KEYBYTES, "of encryption");
_Static_assert(LINK_KEY_BYTES >= crypto_generichash_KEYBYTES_MIN &&
                   LINK_KEY_BYTES <= crypto_generichash_KEYBYTES_MAX,
               "of macs");
_Static_assert(LINK_PROOF_BYTES == crypto_auth_hmacsha512256_BYTES, "a proof is one HMAC");
_Static_assert(LINK_PROOF_BYTES == LINK_KEY_BYTES, "an HMAC is a key");
_Static_assert(LINK_MAC_BYTES == crypto_generichash_BYTES_MIN, "a mac is the shortest hash");
_Static_assert(LINK_MAC_BYTES == crypto_aead_chacha20poly1305_ietf_ABYTES, "and as long as a tag");
_Static_assert(LINK_MAC_BYTES == crypto_verify_16_BYTES, "so they are compared alike");
_Static_assert(sizeof(((struct frame_header *)0)->mac) == LINK_MAC_BYTES, "a header has one");

// Numbers of the keys that are made of the link's.
enum purpose { PURPOSE_HELLO = 1, PURPOSE_ACCEPT, PURPOSE_REFUSE, PURPOSE_SESSION };
static const char auth_context[crypto_kdf_CONTEXTBYTES + 1] = "linkauth";
static const char data_context[crypto_kdf_CONTEXTBYTES + 1] = "linkdata";

enum status link_crypto_start(void) {
    return sodium_init() >= 0 ? STATUS_OK : STATUS_IO;
}

void link_crypto_draw(void *out, size_t size_bytes) {
    randombytes_buf(out, size_bytes);
}

bool link_crypto_is_zero(const void *data, size_t size_bytes) {
    return sodium_is_zero(data, size_bytes) == 1;
}

static void derive(uint8_t *out, uint64_t number, const char *context, const uint8_t *key) {
    int code = crypto_kdf_derive_from_key(out, LINK_KEY_BYTES, number, context, key);
    CHECK(code == 0); // only sizes can be wrong
}

// -- handshake ------------------------------------------------------------------------------------

// What both ends have seen, in order. `answer` is nothing, ACCEPT or REFUSE up to answer_bytes.
static void prove(const uint8_t *key, enum purpose purpose, const uint8_t *nonce,
                  const struct link_hello *hello, size_t hello_bytes, const void *answer,
                  size_t answer_bytes, uint8_t *proof_out) {
    uint8_t purpose_key[LINK_KEY_BYTES];
    crypto_auth_hmacsha512256_state state;
    derive(purpose_key, purpose, auth_context, key);
    crypto_auth_hmacsha512256_init(&state, purpose_key, sizeof(purpose_key));
    crypto_auth_hmacsha512256_update(&state, nonce, LINK_NONCE_BYTES);
    crypto_auth_hmacsha512256_update(&state, (const uint8_t *)hello, hello_bytes);
    crypto_auth_hmacsha512256_update(&state, answer, answer_bytes);
    crypto_auth_hmacsha512256_final(&state, proof_out);
    memory_wipe(&state, sizeof(state));
    memory_wipe(purpose_key, sizeof(purpose_key));
}

static bool proofs_match(const uint8_t *a, const uint8_t *b) {
    _Static_assert(LINK_PROOF_BYTES == crypto_verify_32_BYTES, "a proof is what this compares");
    return crypto_verify_32(a, b) == 0;
}

static void hello_proof(const uint8_t *key, const uint8_t *nonce, const struct link_hello *hello,
                        uint8_t *proof_out) {
    prove(key, PURPOSE_HELLO, nonce, hello, offsetof(struct link_hello, proof), "", 0, proof_out);
}

void link_prove_hello(const uint8_t *key, const uint8_t *nonce, struct link_hello *hello) {
    hello_proof(key, nonce, hello, hello->proof);
}

bool link_hello_is_proved(const uint8_t *key, const uint8_t *nonce,
                          const struct link_hello *hello) {
    uint8_t proof[LINK_PROOF_BYTES];
    hello_proof(key, nonce, hello, proof);
    return proofs_match(proof, hello->proof);
}

static void accept_proof(const uint8_t *key, const uint8_t *nonce, const struct link_hello *hello,
                         const struct link_accept *accept, uint8_t *proof_out) {
    prove(key, PURPOSE_ACCEPT, nonce, hello, sizeof(*hello), accept,
          offsetof(struct link_accept, proof), proof_out);
}

void link_prove_accept(const uint8_t *key, const uint8_t *nonce, const struct link_hello *hello,
                       struct link_accept *accept) {
    accept_proof(key, nonce, hello, accept, accept->proof);
}

bool link_accept_is_proved(const uint8_t *key, const uint8_t *nonce, const struct link_hello *hello,
                           const struct link_accept *accept) {
    uint8_t proof[LINK_PROOF_BYTES];
    accept_proof(key, nonce, hello, accept, proof);
    return proofs_match(proof, accept->proof);
}

static void refuse_proof(const uint8_t *key, const uint8_t *nonce, const struct link_hello *hello,
                         const struct link_refuse *refuse, uint8_t *proof_out) {
    prove(key, PURPOSE_REFUSE, nonce, hello, sizeof(*hello), refuse,
          offsetof(struct link_refuse, proof), proof_out);
}

void link_prove_refuse(const uint8_t *key, const uint8_t *nonce, const struct link_hello *hello,
                       struct link_refuse *refuse) {
    refuse_proof(key, nonce, hello, refuse, refuse->proof);
}

bool link_refuse_is_proved(const uint8_t *key, const uint8_t *nonce, const struct link_hello *hello,
                           const struct link_refuse *refuse) {
    uint8_t proof[LINK_PROOF_BYTES];
    refuse_proof(key, nonce, hello, refuse, proof);
    return proofs_match(proof, refuse->proof);
}

// -- session --------------------------------------------------------------------------------------

void link_session_make(const uint8_t *key, const uint8_t *nonce, const struct link_hello *hello,
                       const struct link_accept *accept, struct link_session *session_out) {
    uint8_t session_key[LINK_KEY_BYTES];
    prove(key, PURPOSE_SESSION, nonce, hello, sizeof(*hello), accept, sizeof(*accept), session_key);
    derive(session_out->header_key, 1, data_context, session_key);
    derive(session_out->payload_key, 2, data_context, session_key);
    derive(session_out->to_receiver_key, 3, data_context, session_key);
    derive(session_out->to_sender_key, 4, data_context, session_key);
    memory_wipe(session_key, sizeof(session_key));
}

void link_mac_make(const uint8_t *key, const void *data, size_t size_bytes, const void *more,
                   size_t more_bytes, uint8_t *mac_out) {
    if (more == NULL) {
        (void)crypto_generichash(mac_out, LINK_MAC_BYTES, data, size_bytes, key, LINK_KEY_BYTES);
        return;
    }
    crypto_generichash_state state;
    (void)crypto_generichash_init(&state, key, LINK_KEY_BYTES, LINK_MAC_BYTES);
    (void)crypto_generichash_update(&state, data, size_bytes);
    (void)crypto_generichash_update(&state, more, more_bytes);
    (void)crypto_generichash_final(&state, mac_out, LINK_MAC_BYTES);
    memory_wipe(&state, sizeof(state));
}

bool link_mac_holds(const uint8_t *key, const void *data, size_t size_bytes, const void *more,
                    size_t more_bytes, const uint8_t *mac) {
    uint8_t expected[LINK_MAC_BYTES];
    link_mac_make(key, data, size_bytes, more, more_bytes, expected);
    return crypto_verify_16(expected, mac) == 0;
}

void link_seal_header(const struct link_session *session, struct frame_header *header) {
    link_mac_make(session->header_key, header, offsetof(struct frame_header, mac), NULL, 0,
                  header->mac);
}

bool link_header_is_sealed(const struct link_session *session, const struct frame_header *header) {
    return link_mac_holds(session->header_key, header, offsetof(struct frame_header, mac), NULL, 0,
                          header->mac);
}

static void make_nonce(uint64_t sequence,
                       uint8_t nonce_out[crypto_aead_chacha20poly1305_ietf_NPUBBYTES]) {
    memset(nonce_out, 0, 4);
    memcpy(nonce_out + 4, &sequence, sizeof(sequence));
}

void link_encrypt(const struct link_session *session, uint64_t sequence, void *data,
                  size_t size_bytes, uint8_t *tag_out) {
    uint8_t nonce[crypto_aead_chacha20poly1305_ietf_NPUBBYTES];
    make_nonce(sequence, nonce);
    (void)crypto_aead_chacha20poly1305_ietf_encrypt_detached(
        data, tag_out, NULL, data, size_bytes, NULL, 0, NULL, nonce, session->payload_key);
}

bool link_decrypt(const struct link_session *session, uint64_t sequence, void *data,
                  size_t size_bytes, const uint8_t *tag) {
    uint8_t nonce[crypto_aead_chacha20poly1305_ietf_NPUBBYTES];
    make_nonce(sequence, nonce);
    return crypto_aead_chacha20poly1305_ietf_decrypt_detached(
               data, NULL, data, size_bytes, tag, NULL, 0, nonce, session->payload_key) == 0;
}
