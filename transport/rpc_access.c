#include "transport/rpc_access.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <time.h>

#include "base/check.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/wake.h"
#include "transport/rpc_address.h"
#include "transport/rpc_pem.h"
#include "transport/rpc_token.h"

// What stat says of one state of a file; all zero: it is not there.
struct stamp {
    dev_t device;
    ino_t inode;
    off_t size_bytes;
    struct timespec changed;
};

enum { WATCHED_PATH_COUNT = 3 };

// Files that are read together.
struct watched {
    const char *what;
    enum status (*read)(struct rpc_access *access, struct error *error);
    const char *paths[WATCHED_PATH_COUNT];
    struct stamp stamps[WATCHED_PATH_COUNT]; // when they were last looked at
    bool is_due;                             // they changed, and could not be read yet
};

enum { WATCHED_CERTIFICATES, WATCHED_TOKENS, WATCHED_TOKEN, WATCHED_COUNT };

struct rpc_access {
    struct rpc_access_config config;
    struct watched watched[WATCHED_COUNT]; // of the thread, once it runs
    time_t warned_until;                   // the expiry that was warned of
    pthread_t thread;
    struct wake wake;
    atomic_bool stops;

    pthread_mutex_t mutex; // guards what follows
    uint32_t generation;
    struct rpc_pem pem;
    struct rpc_tokens tokens;
    char token[RPC_TOKEN_BYTES_MAX + 1];
};

// -- reading -------------------------------------------------------------------------------------

static enum status read_certificates(struct rpc_access *access, struct error *error) {
    const struct rpc_access_config *config = &access->config;
    const struct rpc_pem_files files = {config->cert, config->key, config->ca};
    struct rpc_pem pem;
    enum status status = rpc_pem_read(&files, &pem, error);
    if (status != STATUS_OK) return status;
    pthread_mutex_lock(&access->mutex);
    struct rpc_pem before = access->pem;
    access->pem = pem;
    access->generation++;
    pthread_mutex_unlock(&access->mutex);
    rpc_pem_free(&before);
    return STATUS_OK;
}

// A file of secrets as text.
static enum status read_secrets(const char *option, const char *path, char **text_out,
                                size_t *size_bytes_out, struct error *error) {
    enum status status = file_read(path, RPC_TOKENS_BYTES_MAX, text_out, size_bytes_out, error);
    if (status != STATUS_OK) error_prefix(error, "%s", option);
    return status;
}

static void free_secrets(char *text, size_t size_bytes) {
    explicit_bzero(text, size_bytes);
    free(text);
}

static enum status read_tokens(struct rpc_access *access, struct error *error) {
    const char *path = access->config.tokens;
    char *text;
    size_t size_bytes;
    enum status status = read_secrets("--tokens", path, &text, &size_bytes, error);
    if (status != STATUS_OK) return status;
    struct rpc_tokens tokens;
    status = rpc_tokens_parse(text, path, &tokens, error);
    free_secrets(text, size_bytes);
    if (status != STATUS_OK) {
        error_prefix(error, "--tokens");
        return status;
    }
    pthread_mutex_lock(&access->mutex);
    struct rpc_tokens before = access->tokens;
    access->tokens = tokens;
    pthread_mutex_unlock(&access->mutex);
    rpc_tokens_free(&before);
    return STATUS_OK;
}

static enum status read_token(struct rpc_access *access, struct error *error) {
    const char *path = access->config.token;
    char *text;
    size_t size_bytes;
    enum status status = read_secrets("--token-file", path, &text, &size_bytes, error);
    if (status != STATUS_OK) return status;
    char token[RPC_TOKEN_BYTES_MAX + 1];
    status = rpc_token_parse_own(text, path, token, error);
    free_secrets(text, size_bytes);
    if (status != STATUS_OK) {
        error_prefix(error, "--token-file");
        return status;
    }
    pthread_mutex_lock(&access->mutex);
    memcpy(access->token, token, sizeof(token));
    pthread_mutex_unlock(&access->mutex);
    return STATUS_OK;
}

// -- watching; on its own thread -----------------------------------------------------------------

static struct stamp stamp_of(const char *path) {
    struct stat st;
    struct stamp stamp;
    memset(&stamp, 0, sizeof(stamp)); // padding too: stamps are compared as bytes
    if (path == NULL || stat(path, &st) != 0) return stamp;
    stamp.device = st.st_dev;
    stamp.inode = st.st_ino;
    stamp.size_bytes = st.st_size;
    stamp.changed = st.st_mtim;
    return stamp;
}

// Looks at the files, and whether they changed since the last time.
static bool look(struct watched *watched) {
    bool has_changed = false;
    for (size_t i = 0; i < WATCHED_PATH_COUNT; i++) {
        struct stamp stamp = stamp_of(watched->paths[i]);
        if (memcmp(&stamp, &watched->stamps[i], sizeof(stamp)) != 0) has_changed = true;
        watched->stamps[i] = stamp;
    }
    return has_changed;
}

// A certificate and its key are two files: while they change, they need not fit.
static void check_files(struct rpc_access *access, struct watched *watched) {
    bool has_changed = look(watched);
    if (!has_changed && !watched->is_due) return;
    struct error error = {0};
    if (watched->read(access, &error) == STATUS_OK) {
        log_info("%s: read again", watched->what);
        watched->is_due = false;
        return;
    }
    watched->is_due = has_changed;
    if (!has_changed) log_error("%s; what was read before stays", error.text);
}

static void check_expiry(struct rpc_access *access) {
    pthread_mutex_lock(&access->mutex);
    time_t expires_at = access->pem.expires_at;
    pthread_mutex_unlock(&access->mutex);
    time_t left_s = expires_at - time(NULL);
    if (expires_at == 0 || expires_at == access->warned_until || left_s > RPC_EXPIRY_WARN_S) return;
    access->warned_until = expires_at;
    log_warn("--tls-cert %s: expires in %lld hours", access->config.cert, (long long)left_s / 3600);
}

static void *watch(void *context) {
    struct rpc_access *access = context;
    while (!atomic_load(&access->stops)) {
        for (size_t i = 0; i < WATCHED_COUNT; i++)
            if (access->watched[i].paths[0] != NULL) check_files(access, &access->watched[i]);
        check_expiry(access);
        wake_wait(&access->wake, RPC_FILES_CHECK_MS);
    }
    return NULL;
}

// -- life ----------------------------------------------------------------------------------------

static enum status check_config(const struct rpc_access_config *config, struct error *error) {
    const char *alone = NULL, *missing = NULL;
    if (config->cert != NULL && config->key == NULL) alone = "--tls-cert", missing = "--tls-key";
    if (config->key != NULL && config->cert == NULL) alone = "--tls-key", missing = "--tls-cert";
    if (alone == NULL && config->cert != NULL && config->ca == NULL)
        alone = "--tls-cert", missing = "--tls-ca";
    if (config->server_name != NULL && config->ca == NULL)
        alone = "--tls-server-name", missing = "--tls-ca";
    if (alone == NULL) return STATUS_OK;
    return error_set(error, STATUS_INVALID, "%s is given without %s", alone, missing);
}

static void watch_all(struct rpc_access *access) {
    const struct rpc_access_config *config = &access->config;
    access->watched[WATCHED_CERTIFICATES] =
        (struct watched){.what = "certificates",
                         .read = read_certificates,
                         // The CA comes first: without it there is no TLS.
                         .paths = {config->ca, config->cert, config->key}};
    access->watched[WATCHED_TOKENS] =
        (struct watched){.what = "--tokens", .read = read_tokens, .paths = {config->tokens}};
    access->watched[WATCHED_TOKEN] =
        (struct watched){.what = "--token-file", .read = read_token, .paths = {config->token}};
}

static enum status read_all(struct rpc_access *access, struct error *error) {
    enum status status = STATUS_OK;
    for (size_t i = 0; i < WATCHED_COUNT && status == STATUS_OK; i++) {
        if (access->watched[i].paths[0] == NULL) continue;
        (void)look(&access->watched[i]); // before reading: what changes after this is noticed
        status = access->watched[i].read(access, error);
    }
    return status;
}

enum status rpc_access_open(const struct rpc_access_config *config, struct rpc_access **access_out,
                            struct error *error) {
    enum status status = check_config(config, error);
    if (status != STATUS_OK) return status;
    struct rpc_access *access = calloc(1, sizeof(*access));
    if (access == NULL) return error_set(error, STATUS_NO_MEMORY, "no memory");
    access->config = *config;
    CHECK(pthread_mutex_init(&access->mutex, NULL) == 0);
    watch_all(access);
    status = read_all(access, error);
    if (status != STATUS_OK) goto free_access;
    status = wake_init(&access->wake);
    if (status != STATUS_OK) goto report;
    if (pthread_create(&access->thread, NULL, watch, access) == 0) {
        (void)pthread_setname_np(access->thread, "access");
        *access_out = access;
        return STATUS_OK;
    }
    status = STATUS_IO;
    wake_fini(&access->wake);
report:
    (void)error_set(error, status, "cannot start the thread that watches certificates and tokens");
free_access:
    rpc_pem_free(&access->pem);
    rpc_tokens_free(&access->tokens);
    pthread_mutex_destroy(&access->mutex);
    free(access);
    return status;
}

void rpc_access_close(struct rpc_access *access) {
    if (access == NULL) return;
    atomic_store(&access->stops, true);
    wake_signal(&access->wake);
    CHECK(pthread_join(access->thread, NULL) == 0);
    wake_fini(&access->wake);
    rpc_pem_free(&access->pem);
    rpc_tokens_free(&access->tokens);
    explicit_bzero(access->token, sizeof(access->token));
    pthread_mutex_destroy(&access->mutex);
    free(access);
}

// -- what is in force ----------------------------------------------------------------------------

bool rpc_access_has_tls(const struct rpc_access *access) {
    return access != NULL && access->config.ca != NULL;
}

bool rpc_access_has_tokens(const struct rpc_access *access) {
    return access != NULL && access->config.tokens != NULL;
}

const char *rpc_access_server_name(const struct rpc_access *access) {
    return access != NULL ? access->config.server_name : NULL;
}

uint32_t rpc_access_generation(struct rpc_access *access) {
    if (access == NULL) return 0;
    pthread_mutex_lock(&access->mutex);
    uint32_t generation = access->generation;
    pthread_mutex_unlock(&access->mutex);
    return generation;
}

const struct rpc_pem *rpc_access_take(struct rpc_access *access, uint32_t *generation_out) {
    pthread_mutex_lock(&access->mutex);
    *generation_out = access->generation;
    return &access->pem;
}

void rpc_access_give(struct rpc_access *access) {
    pthread_mutex_unlock(&access->mutex);
}

bool rpc_access_authorization(struct rpc_access *access, char out[RPC_AUTHORIZATION_BYTES_MAX]) {
    if (access == NULL || access->config.token == NULL) return false;
    pthread_mutex_lock(&access->mutex);
    (void)snprintf(out, RPC_AUTHORIZATION_BYTES_MAX, "Bearer %s", access->token);
    pthread_mutex_unlock(&access->mutex);
    return true;
}

void rpc_access_describe(struct rpc_access *access, char *out, size_t capacity_bytes) {
    char tls[128] = "plaintext", until[16] = "", tokens[32] = "";
    pthread_mutex_lock(&access->mutex);
    struct tm fields;
    if (access->pem.cert != NULL && gmtime_r(&access->pem.expires_at, &fields) != NULL)
        strftime(until, sizeof(until), "%Y-%m-%d", &fields);
    if (access->pem.cert != NULL)
        (void)snprintf(tls, sizeof(tls), "TLS as '%s' until %s", access->pem.name, until);
    else if (access->config.ca != NULL)
        (void)snprintf(tls, sizeof(tls), "TLS without an own certificate");
    if (access->config.tokens != NULL)
        (void)snprintf(tokens, sizeof(tokens), ", %zu tokens", access->tokens.count);
    pthread_mutex_unlock(&access->mutex);
    (void)snprintf(out, capacity_bytes, "%s%s", tls, tokens);
}

// -- addresses -----------------------------------------------------------------------------------

enum status rpc_access_check_listen(const struct rpc_access *access, const char *address,
                                    struct error *error) {
    if (rpc_access_has_tls(access)) {
        if (access->config.cert != NULL) return STATUS_OK;
        return error_set(
            error, STATUS_INVALID,
            "--tls-ca is given without --tls-cert and --tls-key, which a server needs");
    }
    if (access != NULL && access->config.insecure) return STATUS_OK;
    struct error reason;
    if (rpc_address_is_loopback(address, &reason)) return STATUS_OK;
    return error_set(error, STATUS_INVALID,
                     "cannot listen on %s: %s, so everyone there could read and make calls; give "
                     "--tls-cert, --tls-key and --tls-ca, or --insecure where the network is safe",
                     address, reason.text);
}

enum status rpc_access_check_dial(const struct rpc_access *access, const char *target,
                                  struct error *error) {
    if (access == NULL || access->config.token == NULL) return STATUS_OK;
    if (rpc_access_has_tls(access) || access->config.insecure) return STATUS_OK;
    struct error reason;
    if (rpc_address_is_loopback(target, &reason)) return STATUS_OK;
    return error_set(error, STATUS_INVALID,
                     "the token of --token-file could be read on the way to %s: %s; give --tls-ca, "
                     "or --insecure where the network is safe",
                     target, reason.text);
}

// -- callers -------------------------------------------------------------------------------------

uint32_t rpc_role_of_uri(const char *uri, size_t size_bytes) {
    static const char prefix[] = "stagecoach://role/";
    const size_t prefix_bytes = sizeof(prefix) - 1;
    if (size_bytes <= prefix_bytes || memcmp(uri, prefix, prefix_bytes) != 0) return 0;
    return rpc_role_parse(uri + prefix_bytes, size_bytes - prefix_bytes);
}

// Adds what the token of a caller says.
static enum rpc_code take_token(struct rpc_access *access, struct rpc_caller *caller,
                                const char *authorization, struct error *error) {
    static const char scheme[] = "Bearer ";
    const size_t scheme_bytes = sizeof(scheme) - 1;
    if (strncasecmp(authorization, scheme, scheme_bytes) != 0) {
        (void)error_set(error, STATUS_INVALID, "the metadata authorization must be 'Bearer TOKEN'");
        return RPC_UNAUTHENTICATED;
    }
    pthread_mutex_lock(&access->mutex);
    const struct rpc_token *token = rpc_tokens_find(&access->tokens, authorization + scheme_bytes);
    if (token != NULL) {
        memcpy(caller->name, token->name, sizeof(caller->name));
        caller->roles |= token->roles;
    }
    pthread_mutex_unlock(&access->mutex);
    if (token != NULL) return RPC_OK;
    (void)error_set(error, STATUS_INVALID, "the bearer token is not one that this server knows");
    return RPC_UNAUTHENTICATED;
}

static enum rpc_code refuse_stranger(const struct rpc_access *access, const char *service,
                                     uint32_t roles, struct error *error) {
    char needed[64];
    rpc_roles_write(roles, " or ", needed, sizeof(needed));
    const char *what =
        rpc_access_has_tls(access) ? "a client certificate or a bearer token" : "a bearer token";
    (void)error_set(error, STATUS_INVALID, "%s needs %s%s%s, and the call has none", service, what,
                    roles == RPC_ROLES_ANY ? "" : " with the role ",
                    roles == RPC_ROLES_ANY ? "" : needed);
    return RPC_UNAUTHENTICATED;
}

enum rpc_code rpc_access_decide(struct rpc_access *access, struct rpc_caller *caller,
                                const char *authorization, const char *service, uint32_t roles,
                                struct error *error) {
    const bool has_tls = rpc_access_has_tls(access), has_tokens = rpc_access_has_tokens(access);
    if (!has_tls && !has_tokens) return RPC_OK; // nobody is known
    bool is_known = caller->has_certificate;
    if (has_tokens && authorization != NULL) {
        enum rpc_code code = take_token(access, caller, authorization, error);
        if (code != RPC_OK) return code;
        is_known = true;
    }
    // Probes of health come in plaintext without a token.
    if (!is_known && (has_tls || roles != RPC_ROLES_ANY))
        return refuse_stranger(access, service, roles, error);
    if (roles == RPC_ROLES_ANY || (caller->roles & roles) != 0) return RPC_OK;
    char needed[64], has[64];
    rpc_roles_write(roles, " or ", needed, sizeof(needed));
    rpc_roles_write(caller->roles, ", ", has, sizeof(has));
    (void)error_set(error, STATUS_INVALID, "%s needs the role %s, '%s' has %s", service, needed,
                    caller->name, has);
    return RPC_PERMISSION_DENIED;
}
