// link_crypto: what keys of links are good for: proofs of the handshake, macs, encryption, all of
// them libsodium's; proto/link_wire.h says which key covers what. Pure but for link_crypto_draw;
// any thread. No function allocates; comparisons take the same time whatever differs.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "proto/frame.h"
#include "proto/link_wire.h"

// Before anything else here, once or more often. STATUS_IO: libsodium finds no random numbers.
MUST_USE enum status link_crypto_start(void);

// Random bytes of the operating system, fit for keys.
void link_crypto_draw(void *out, size_t size_bytes);
MUST_USE bool link_crypto_is_zero(const void *data, size_t size_bytes);

// -- handshake: `key` is the link's, `nonce` the challenge's
// ---------------------------------------

void link_prove_hello(const uint8_t *key, const uint8_t *nonce, struct link_hello *hello);
MUST_USE bool link_hello_is_proved(const uint8_t *key, const uint8_t *nonce,
                                   const struct link_hello *hello);

void link_prove_accept(const uint8_t *key, const uint8_t *nonce, const struct link_hello *hello,
                       struct link_accept *accept);
MUST_USE bool link_accept_is_proved(const uint8_t *key, const uint8_t *nonce,
                                    const struct link_hello *hello,
                                    const struct link_accept *accept);

void link_prove_refuse(const uint8_t *key, const uint8_t *nonce, const struct link_hello *hello,
                       struct link_refuse *refuse);
MUST_USE bool link_refuse_is_proved(const uint8_t *key, const uint8_t *nonce,
                                    const struct link_hello *hello,
                                    const struct link_refuse *refuse);

// -- session --------------------------------------------------------------------------------------

struct link_session {
    uint8_t header_key[LINK_KEY_BYTES];
    uint8_t payload_key[LINK_KEY_BYTES];
    uint8_t to_receiver_key[LINK_KEY_BYTES]; // of messages
    uint8_t to_sender_key[LINK_KEY_BYTES];
};

void link_session_make(const uint8_t *key, const uint8_t *nonce, const struct link_hello *hello,
                       const struct link_accept *accept, struct link_session *session_out);

// The mac of size_bytes at `data` and, unless NULL, what comes with them.
void link_mac_make(const uint8_t *key, const void *data, size_t size_bytes, const void *more,
                   size_t more_bytes, uint8_t *mac_out);
MUST_USE bool link_mac_holds(const uint8_t *key, const void *data, size_t size_bytes,
                             const void *more, size_t more_bytes, const uint8_t *mac);

// A header's mac; its other fields are written before.
void link_seal_header(const struct link_session *session, struct frame_header *header);
MUST_USE bool link_header_is_sealed(const struct link_session *session,
                                    const struct frame_header *header);

// Encrypts or decrypts in place what follows the header of frame `sequence`. A session has each
// number once. False: it is not what was encrypted; the bytes are void.
void link_encrypt(const struct link_session *session, uint64_t sequence, void *data,
                  size_t size_bytes, uint8_t *tag_out);
MUST_USE bool link_decrypt(const struct link_session *session, uint64_t sequence, void *data,
                           size_t size_bytes, const uint8_t *tag);
