// rpc_token: bearer tokens (RFC 6750) of callers, as a file lists them.
//
//     # who          token first, then name and roles if wanted
//     3f6c...e1      web-gateway
//     90ab...77      ops          operator,client
//
// Only hashes of tokens are kept.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/limits.h"
#include "base/status.h"

struct rpc_token {
    uint8_t hash[32]; // SHA-256
    char name[RPC_CALLER_NAME_BYTES_MAX + 1];
    uint32_t roles; // of enum rpc_role
};

struct rpc_tokens {
    struct rpc_token *entries;
    size_t count;
};

// Reads the text of a file: one token a line, then a name ("line N" when there is none) and its
// roles with commas between ("client" when there are none). STATUS_INVALID, with `path`, line and
// what is wrong, never the token: no token, a token given twice, of characters other than letters,
// digits and -._~+/=, or not of RPC_TOKEN_BYTES_MIN to RPC_TOKEN_BYTES_MAX bytes; a name that is
// too long, an unknown role. STATUS_EXHAUSTED beyond RPC_TOKEN_COUNT_MAX. STATUS_NO_MEMORY.
MUST_USE enum status rpc_tokens_parse(const char *text, const char *path,
                                      struct rpc_tokens *tokens_out, struct error *error);
void rpc_tokens_free(struct rpc_tokens *tokens);

// NULL when the token is not known. Takes the same time whichever entry it is.
const struct rpc_token *rpc_tokens_find(const struct rpc_tokens *tokens, const char *token);

// The first line of a file with a caller's own token. STATUS_INVALID as above.
MUST_USE enum status rpc_token_parse_own(const char *text, const char *path,
                                         char token_out[RPC_TOKEN_BYTES_MAX + 1],
                                         struct error *error);

// "client", "operator" or "stage" of `size_bytes`; 0 for anything else.
uint32_t rpc_role_parse(const char *text, size_t size_bytes);
// Writes roles with " or " or ", " between; "none" for 0.
void rpc_roles_write(uint32_t roles, const char *between, char *out, size_t capacity_bytes);
