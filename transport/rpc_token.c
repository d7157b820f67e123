#include "transport/rpc_token.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <openssl/crypto.h>
#include <openssl/evp.h>

#include "base/check.h"
#include "base/memory.h"
#include "transport/rpc.h"

static const struct {
    const char *name;
    uint32_t role;
} ROLES[] = {
    {"client", RPC_ROLE_CLIENT},
    {"operator", RPC_ROLE_OPERATOR},
    {"stage", RPC_ROLE_STAGE},
};
enum { ROLE_COUNT = sizeof(ROLES) / sizeof(ROLES[0]) };

static const char token_characters[] =
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~+/=";
static const char blanks[] = " \t\r";

// -- roles ---------------------------------------------------------------------------------------

uint32_t rpc_role_parse(const char *text, size_t size_bytes) {
    for (size_t i = 0; i < ROLE_COUNT; i++) {
        const char *name = ROLES[i].name;
        if (strlen(name) == size_bytes && memcmp(name, text, size_bytes) == 0) return ROLES[i].role;
    }
    return 0;
}

void rpc_roles_write(uint32_t roles, const char *between, char *out, size_t capacity_bytes) {
    size_t used = (size_t)snprintf(out, capacity_bytes, "%s", roles == 0 ? "none" : "");
    for (size_t i = 0; i < ROLE_COUNT && used < capacity_bytes; i++) {
        if ((roles & ROLES[i].role) == 0) continue;
        used += (size_t)snprintf(out + used, capacity_bytes - used, "%s%s", used > 0 ? between : "",
                                 ROLES[i].name);
    }
}

// -- one line ------------------------------------------------------------------------------------

struct word {
    const char *text;
    size_t size_bytes;
};

// The next word of a line, and moves behind it; empty at the end and before a comment.
static struct word take_word(const char **at, const char *end) {
    while (*at < end && strchr(blanks, **at) != NULL)
        (*at)++;
    const char *begin = *at;
    if (begin == end || *begin == '#') return (struct word){begin, 0};
    while (*at < end && strchr(blanks, **at) == NULL)
        (*at)++;
    return (struct word){begin, (size_t)(*at - begin)};
}

static enum status check_token(struct word word, struct error *error) {
    if (word.size_bytes < RPC_TOKEN_BYTES_MIN || word.size_bytes > RPC_TOKEN_BYTES_MAX)
        return error_set(error, STATUS_INVALID, "the token has %zu bytes, it must have %d to %d",
                         word.size_bytes, RPC_TOKEN_BYTES_MIN, RPC_TOKEN_BYTES_MAX);
    for (size_t i = 0; i < word.size_bytes; i++)
        if (word.text[i] == '\0' || strchr(token_characters, word.text[i]) == NULL)
            return error_set(error, STATUS_INVALID,
                             "character %zu of the token is not a letter, a digit or one of "
                             "-._~+/=",
                             i + 1);
    return STATUS_OK;
}

static enum status parse_roles(struct word word, uint32_t *roles_out, struct error *error) {
    uint32_t roles = 0;
    const char *at = word.text, *end = word.text + word.size_bytes;
    while (at <= end) {
        const char *comma = memchr(at, ',', (size_t)(end - at));
        size_t size_bytes = (size_t)((comma != NULL ? comma : end) - at);
        uint32_t role = rpc_role_parse(at, size_bytes);
        if (role == 0)
            return error_set(error, STATUS_INVALID,
                             "the role is '%.*s', it must be client, operator or stage",
                             size_bytes > 64 ? 64 : (int)size_bytes, at);
        roles |= role;
        at += size_bytes + 1;
    }
    *roles_out = roles;
    return STATUS_OK;
}

static void hash_token(const char *token, size_t size_bytes, uint8_t hash_out[32]) {
    unsigned hash_bytes;
    CHECK(EVP_Digest(token, size_bytes, hash_out, &hash_bytes, EVP_sha256(), NULL) == 1);
    CHECK(hash_bytes == 32);
}

static enum status parse_line(const char *at, const char *end, struct rpc_token *token,
                              bool *is_token_out, struct error *error) {
    struct word secret = take_word(&at, end);
    *is_token_out = secret.size_bytes > 0;
    if (secret.size_bytes == 0) return STATUS_OK;
    enum status status = check_token(secret, error);
    if (status != STATUS_OK) return status;
    hash_token(secret.text, secret.size_bytes, token->hash);
    struct word name = take_word(&at, end), roles = take_word(&at, end);
    if (name.size_bytes >= sizeof(token->name))
        return error_set(error, STATUS_INVALID, "the name has %zu bytes, at most %d are allowed",
                         name.size_bytes, RPC_CALLER_NAME_BYTES_MAX);
    if (name.size_bytes > 0)
        (void)snprintf(token->name, sizeof(token->name), "%.*s", (int)name.size_bytes, name.text);
    token->roles = RPC_ROLE_CLIENT;
    if (roles.size_bytes > 0) status = parse_roles(roles, &token->roles, error);
    if (status != STATUS_OK) return status;
    if (take_word(&at, end).size_bytes > 0)
        return error_set(error, STATUS_INVALID, "more than a token, a name and roles");
    return STATUS_OK;
}

// -- files ---------------------------------------------------------------------------------------

static bool has_hash(const struct rpc_tokens *tokens, const uint8_t hash[32]) {
    for (size_t i = 0; i < tokens->count; i++)
        if (memcmp(tokens->entries[i].hash, hash, 32) == 0) return true;
    return false;
}

static enum status add(struct rpc_tokens *tokens, const struct rpc_token *token,
                       struct error *error) {
    if (has_hash(tokens, token->hash))
        return error_set(error, STATUS_INVALID, "the token of a line before");
    if (tokens->count == RPC_TOKEN_COUNT_MAX)
        return error_set(error, STATUS_EXHAUSTED, "more than %d tokens", RPC_TOKEN_COUNT_MAX);
    tokens->entries[tokens->count++] = *token;
    return STATUS_OK;
}

enum status rpc_tokens_parse(const char *text, const char *path, struct rpc_tokens *tokens_out,
                             struct error *error) {
    struct rpc_tokens tokens = {.entries =
                                    memory_array(RPC_TOKEN_COUNT_MAX, sizeof(*tokens.entries))};
    if (tokens.entries == NULL) return error_set(error, STATUS_NO_MEMORY, "%s: no memory", path);
    enum status status = STATUS_OK;
    unsigned line = 0;
    while (*text != '\0' && status == STATUS_OK) {
        const char *end = strchrnul(text, '\n');
        struct rpc_token token = {0};
        (void)snprintf(token.name, sizeof(token.name), "line %u", ++line);
        bool is_token;
        status = parse_line(text, end, &token, &is_token, error);
        if (status == STATUS_OK && is_token) status = add(&tokens, &token, error);
        text = *end == '\n' ? end + 1 : end;
    }
    if (status != STATUS_OK) {
        error_prefix(error, "%s, line %u", path, line);
    } else if (tokens.count == 0) {
        status = error_set(error, STATUS_INVALID, "%s: has no token", path);
    } else {
        *tokens_out = tokens;
        return STATUS_OK;
    }
    rpc_tokens_free(&tokens);
    return status;
}

void rpc_tokens_free(struct rpc_tokens *tokens) {
    free(tokens->entries);
    *tokens = (struct rpc_tokens){0};
}

const struct rpc_token *rpc_tokens_find(const struct rpc_tokens *tokens, const char *token) {
    uint8_t hash[32];
    hash_token(token, strlen(token), hash);
    const struct rpc_token *found = NULL;
    for (size_t i = 0; i < tokens->count; i++)
        if (CRYPTO_memcmp(tokens->entries[i].hash, hash, sizeof(hash)) == 0)
            found = &tokens->entries[i];
    return found;
}

enum status rpc_token_parse_own(const char *text, const char *path,
                                char token_out[RPC_TOKEN_BYTES_MAX + 1], struct error *error) {
    const char *at = text, *end = strchrnul(text, '\n');
    struct word word = take_word(&at, end);
    enum status status = check_token(word, error);
    if (status != STATUS_OK) {
        error_prefix(error, "%s", path);
        return status;
    }
    memcpy(token_out, word.text, word.size_bytes);
    token_out[word.size_bytes] = '\0';
    return STATUS_OK;
}
