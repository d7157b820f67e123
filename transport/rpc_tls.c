// The credentials that gRPC wants, and what it knows of a peer's certificate.
//
// Servers use the fetcher of gRPC's SSL credentials, which is asked before each handshake. Channels
// have nothing of the kind: rpc_client.c makes another one. gRPC's watcher of files (the grpc_tls_*
// functions) would do both, but takes certificates without looking at them: a key of another
// certificate ends all handshakes until it is replaced.
#include <string.h>

#include <grpc/grpc_security.h>

#include "base/check.h"
#include "transport/rpc_internal.h"
#include "transport/rpc_pem.h"

// -- servers -------------------------------------------------------------------------------------

// Before each handshake, on a thread of gRPC.
static grpc_ssl_certificate_config_reload_status
fetch_config(void *context, grpc_ssl_server_certificate_config **config_out) {
    struct rpc *rpc = context;
    uint32_t generation;
    const struct rpc_pem *pem = rpc_access_take(rpc->config.access, &generation);
    bool is_new = atomic_exchange(&rpc->tls_generation, generation) != generation;
    if (is_new) {
        const grpc_ssl_pem_key_cert_pair pair = {.private_key = pem->key, .cert_chain = pem->cert};
        *config_out = grpc_ssl_server_certificate_config_create(pem->ca, &pair, 1);
    }
    rpc_access_give(rpc->config.access);
    return is_new ? GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_NEW
                  : GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_UNCHANGED;
}

grpc_server_credentials *rpc_tls_server_credentials(struct rpc *rpc) {
    struct rpc_access *access = rpc->config.access;
    if (!rpc_access_has_tls(access)) return grpc_insecure_server_credentials_create();
    rpc->tls_generation = 0; // the first fetch is to give certificates
    // Who has a token needs no certificate; one that is shown must be right in any case.
    grpc_ssl_client_certificate_request_type request =
        rpc_access_has_tokens(access) ? GRPC_SSL_REQUEST_CLIENT_CERTIFICATE_AND_VERIFY
                                      : GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY;
    return grpc_ssl_server_credentials_create_with_options(
        grpc_ssl_server_credentials_create_options_using_config_fetcher(request, fetch_config,
                                                                        rpc));
}

// -- channels ------------------------------------------------------------------------------------

grpc_channel_credentials *rpc_tls_channel_credentials(struct rpc_access *access,
                                                      uint32_t *generation_out) {
    *generation_out = 0;
    if (!rpc_access_has_tls(access)) return grpc_insecure_credentials_create();
    const struct rpc_pem *pem = rpc_access_take(access, generation_out);
    grpc_ssl_pem_key_cert_pair pair = {.private_key = pem->key, .cert_chain = pem->cert};
    grpc_channel_credentials *credentials =
        grpc_ssl_credentials_create(pem->ca, pem->cert != NULL ? &pair : NULL, NULL, NULL);
    rpc_access_give(access);
    return credentials;
}

// -- callers -------------------------------------------------------------------------------------

void rpc_tls_read_caller(grpc_call *call, struct rpc_caller *caller_out) {
    struct rpc_caller caller = {0};
    grpc_auth_context *context = grpc_call_auth_context(call);
    if (context == NULL) goto done;
    const grpc_auth_property *property;
    // Only a certificate that the CA signed gets through the handshake.
    grpc_auth_property_iterator certificates =
        grpc_auth_context_find_properties_by_name(context, GRPC_X509_PEM_CERT_PROPERTY_NAME);
    caller.has_certificate = grpc_auth_property_iterator_next(&certificates) != NULL;
    grpc_auth_property_iterator names =
        grpc_auth_context_find_properties_by_name(context, GRPC_X509_CN_PROPERTY_NAME);
    property = grpc_auth_property_iterator_next(&names);
    if (property != NULL && caller.has_certificate) {
        size_t size_bytes = property->value_length < RPC_CALLER_NAME_BYTES_MAX
                                ? property->value_length
                                : RPC_CALLER_NAME_BYTES_MAX;
        memcpy(caller.name, property->value, size_bytes);
    }
    grpc_auth_property_iterator uris =
        grpc_auth_context_find_properties_by_name(context, GRPC_PEER_URI_PROPERTY_NAME);
    while (caller.has_certificate && (property = grpc_auth_property_iterator_next(&uris)) != NULL)
        caller.roles |= rpc_role_of_uri(property->value, property->value_length);
    grpc_auth_context_release(context);
done:
    *caller_out = caller;
}
