// rpc_pem: a certificate, its key and the certificates to trust, out of files in PEM (RFC 7468),
// checked so far that a TLS handshake can use them. With rpc_token.c the only place of OpenSSL's
// headers.
#pragma once

#include <time.h>

#include "base/status.h"

// Paths; NULL: none. `cert` and `key` belong together.
struct rpc_pem_files {
    const char *cert; // own certificate first, then those between it and its CA
    const char *key;  // of the first certificate, not encrypted
    const char *ca;   // one or more certificates: what they signed is trusted
};

// The texts of the files, each ended by '\0'; NULL where there is no file.
struct rpc_pem {
    char *cert, *key, *ca;
    char name[64];     // common name of the certificate; "" without one
    time_t expires_at; // of the certificate; 0 without one
};

// Reads and checks all files; what is wrong is said with the option (--tls-cert, --tls-key,
// --tls-ca) and the path. STATUS_INVALID: not PEM, the key of another certificate, encrypted, too
// weak for OpenSSL, expired or not valid yet. STATUS_NOT_FOUND, STATUS_IO, STATUS_EXHAUSTED,
// STATUS_NO_MEMORY.
MUST_USE enum status rpc_pem_read(const struct rpc_pem_files *files, struct rpc_pem *pem_out,
                                  struct error *error);
// Frees the texts; the key is overwritten first.
void rpc_pem_free(struct rpc_pem *pem);
