// rpc_access: who may call whom. Certificates and tokens come from files, which are read again when
// they change; what is wrong with a change is logged once, and what was read before stays.
//
// With a CA, connections are TLS (1.2 or newer) and each side shows a certificate; a server that
// also has tokens lets callers in without one. A caller's roles are URIs in its certificate
// (subject alternative names), stagecoach://role/client, .../operator and .../stage, and those of
// its token. Without a CA, connections are plaintext: a server listens on loopback or unix sockets
// only, unless `insecure`, and without tokens everyone may do everything.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/limits.h"
#include "base/options.h"
#include "base/status.h"
#include "transport/rpc.h"

// Paths of files and other options; NULL: none. Borrowed until rpc_access_close.
struct rpc_access_config {
    const char *cert;        // --tls-cert: who we are, see transport/rpc_pem.h
    const char *key;         // --tls-key
    const char *ca;          // --tls-ca: whom we trust
    const char *server_name; // --tls-server-name: of the server's certificate; NULL: as dialled
    const char *tokens;      // --tokens: of callers, see transport/rpc_token.h
    const char *token;       // --token-file: our own, sent with every call
    bool insecure;           // --insecure: plaintext beyond loopback
};

// Options for the table of a program: of all, and of those that dial. `config`: a pointer.
#define RPC_ACCESS_OPTIONS_TLS(config)                                                             \
    {"tls-cert",                                                                                   \
     OPTION_TEXT,                                                                                  \
     &(config)->cert,                                                                              \
     "FILE",                                                                                       \
     "own certificate (PEM), read again when it changes (default: plaintext)",                     \
     0,                                                                                            \
     0},                                                                                           \
        {"tls-key", OPTION_TEXT, &(config)->key, "FILE", "key of --tls-cert (PEM)", 0, 0}, {       \
        "tls-ca", OPTION_TEXT, &(config)->ca, "FILE",                                              \
            "certificates (PEM) that sign those of the other side", 0, 0                           \
    }
#define RPC_ACCESS_OPTIONS_DIAL(config)                                                            \
    {"tls-server-name",                                                                            \
     OPTION_TEXT,                                                                                  \
     &(config)->server_name,                                                                       \
     "NAME",                                                                                       \
     "name in the coordinator's certificate (default: the host of --coordinator)",                 \
     0,                                                                                            \
     0},                                                                                           \
    {                                                                                              \
        "token-file", OPTION_TEXT, &(config)->token, "FILE",                                       \
            "file with the bearer token to call with (default: none)", 0, 0                        \
    }

struct rpc_access;

// Reads and checks every file. STATUS_INVALID and what file_read says, with a sentence that names
// option and file.
MUST_USE enum status rpc_access_open(const struct rpc_access_config *config,
                                     struct rpc_access **access_out, struct error *error);
// After every rpc that uses it was closed. NULL allowed.
void rpc_access_close(struct rpc_access *access);

// For a log line: "TLS as NAME until 2027-01-31, 3 tokens" or "plaintext".
void rpc_access_describe(struct rpc_access *access, char *out, size_t capacity_bytes);

// Whether a server may listen there: STATUS_INVALID when it would be plaintext beyond loopback, or
// TLS without a certificate. `access` NULL: plaintext, no tokens.
MUST_USE enum status rpc_access_check_listen(const struct rpc_access *access, const char *address,
                                             struct error *error);
// Whether a client may dial there: STATUS_INVALID when its token would be readable on the way.
MUST_USE enum status rpc_access_check_dial(const struct rpc_access *access, const char *target,
                                           struct error *error);

// -- for rpc_*.c; any thread; `access` may be NULL
// -------------------------------------------------

struct rpc_pem;

bool rpc_access_has_tls(const struct rpc_access *access);
bool rpc_access_has_tokens(const struct rpc_access *access);
// NULL: none.
const char *rpc_access_server_name(const struct rpc_access *access);
// Rises with each change of the certificates; begins with 1.
uint32_t rpc_access_generation(struct rpc_access *access);
// The certificates in force, until rpc_access_give. With TLS only.
const struct rpc_pem *rpc_access_take(struct rpc_access *access, uint32_t *generation_out);
void rpc_access_give(struct rpc_access *access);
// Writes "Bearer TOKEN" of our own; false: there is none.
enum { RPC_AUTHORIZATION_BYTES_MAX = RPC_TOKEN_BYTES_MAX + 8 };
MUST_USE bool rpc_access_authorization(struct rpc_access *access,
                                       char out[RPC_AUTHORIZATION_BYTES_MAX]);

// Who calls.
struct rpc_caller {
    char name[RPC_CALLER_NAME_BYTES_MAX + 1]; // of the token, or else of the certificate
    uint32_t roles;
    bool has_certificate; // one that the CA signed
};

// The role that a URI of a certificate stands for; 0: none.
uint32_t rpc_role_of_uri(const char *uri, size_t size_bytes);

// Whether the caller may call a method of `service`, which `roles` may. `caller` comes with what
// the certificate says, and gets what `authorization` (NULL: nothing was sent) adds. RPC_OK,
// RPC_UNAUTHENTICATED or RPC_PERMISSION_DENIED, with a sentence that names what is missing.
enum rpc_code rpc_access_decide(struct rpc_access *access, struct rpc_caller *caller,
                                const char *authorization, const char *service, uint32_t roles,
                                struct error *error);
