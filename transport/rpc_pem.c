#include "transport/rpc_pem.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>

#include "base/limits.h"
#include "base/memory.h"

static enum status read_text(const char *option, const char *path, char **text_out,
                             struct error *error) {
    if (path == NULL) return STATUS_OK;
    size_t size_bytes;
    enum status status = file_read(path, RPC_PEM_BYTES_MAX, text_out, &size_bytes, error);
    if (status != STATUS_OK) error_prefix(error, "%s", option);
    return status;
}

// What OpenSSL said last, in its words.
static const char *openssl_reason(void) {
    const char *reason = ERR_reason_error_string(ERR_peek_last_error());
    return reason != NULL ? reason : "refused";
}

// Keys with a password have none here, rather than a question on the terminal.
static int give_no_password(char *out, int capacity_bytes, int is_writing, void *ctx) {
    (void)out;
    (void)capacity_bytes;
    (void)is_writing;
    (void)ctx;
    return 0;
}

// -- certificates --------------------------------------------------------------------------------

// Whether reading stopped because nothing more is there.
static bool is_end(void) {
    unsigned long code = ERR_peek_last_error();
    return ERR_GET_LIB(code) == ERR_LIB_PEM && ERR_GET_REASON(code) == PEM_R_NO_START_LINE;
}

// Reads every certificate of a text; *first_out gets the first, to be freed with X509_free.
static enum status read_certificates(const char *text, X509 **first_out, struct error *error) {
    BIO *bio = BIO_new_mem_buf(text, -1);
    if (bio == NULL) return error_set(error, STATUS_NO_MEMORY, "no memory");
    X509 *first = NULL, *each;
    int count = 0;
    while ((each = PEM_read_bio_X509(bio, NULL, give_no_password, NULL)) != NULL) {
        if (count++ == 0)
            first = each;
        else
            X509_free(each);
    }
    bool is_whole = is_end();
    BIO_free(bio);
    if (count > 0 && is_whole) {
        *first_out = first;
        return STATUS_OK;
    }
    X509_free(first);
    if (is_whole) return error_set(error, STATUS_INVALID, "has no certificate in PEM");
    return error_set(error, STATUS_INVALID, "certificate %d cannot be read: %s", count + 1,
                     openssl_reason());
}

static time_t time_of(const ASN1_TIME *time) {
    struct tm fields;
    return ASN1_TIME_to_tm(time, &fields) == 1 ? timegm(&fields) : 0;
}

static enum status check_dates(const X509 *cert, struct error *error) {
    const ASN1_TIME *begin = X509_get0_notBefore(cert), *end = X509_get0_notAfter(cert);
    bool is_early = X509_cmp_current_time(begin) > 0;
    if (!is_early && X509_cmp_current_time(end) > 0) return STATUS_OK;
    char text[32] = "an unknown time";
    time_t time = time_of(is_early ? begin : end);
    struct tm fields;
    if (gmtime_r(&time, &fields) != NULL)
        strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%SZ", &fields);
    return error_set(error, STATUS_INVALID, "the certificate %s %s",
                     is_early ? "is not valid before" : "expired at", text);
}

static void read_name(const X509 *cert, char *out, int capacity_bytes) {
    X509_NAME *subject = X509_get_subject_name(cert);
    if (X509_NAME_get_text_by_NID(subject, NID_commonName, out, capacity_bytes) < 0) out[0] = '\0';
}

// -- the pair ------------------------------------------------------------------------------------

static enum status read_key(const char *text, EVP_PKEY **key_out, struct error *error) {
    BIO *bio = BIO_new_mem_buf(text, -1);
    if (bio == NULL) return error_set(error, STATUS_NO_MEMORY, "no memory");
    *key_out = PEM_read_bio_PrivateKey(bio, NULL, give_no_password, NULL);
    BIO_free(bio);
    if (*key_out != NULL) return STATUS_OK;
    return error_set(error, STATUS_INVALID,
                     "has no private key in PEM that can be read without a password");
}

// Whether a handshake would take them: OpenSSL refuses weak keys and signatures.
static enum status try_pair(X509 *cert, EVP_PKEY *key, struct error *error) {
    SSL_CTX *context = SSL_CTX_new(TLS_method());
    if (context == NULL) return error_set(error, STATUS_NO_MEMORY, "no memory");
    bool is_taken =
        SSL_CTX_use_certificate(context, cert) == 1 && SSL_CTX_use_PrivateKey(context, key) == 1;
    SSL_CTX_free(context);
    if (is_taken) return STATUS_OK;
    return error_set(error, STATUS_INVALID, "OpenSSL does not take this certificate: %s",
                     openssl_reason());
}

static enum status check_pair(const struct rpc_pem_files *files, struct rpc_pem *pem,
                              struct error *error) {
    X509 *cert = NULL;
    EVP_PKEY *key = NULL;
    enum status status = read_certificates(pem->cert, &cert, error);
    if (status == STATUS_OK) status = check_dates(cert, error);
    if (status != STATUS_OK) goto name_cert;
    status = read_key(pem->key, &key, error);
    if (status == STATUS_OK && X509_check_private_key(cert, key) != 1)
        status = error_set(error, STATUS_INVALID, "is not the key of the certificate in %s",
                           files->cert);
    if (status != STATUS_OK) {
        error_prefix(error, "--tls-key: %s", files->key);
        goto free_all;
    }
    status = try_pair(cert, key, error);
    if (status != STATUS_OK) goto name_cert;
    read_name(cert, pem->name, sizeof(pem->name));
    pem->expires_at = time_of(X509_get0_notAfter(cert));
    goto free_all;
name_cert:
    error_prefix(error, "--tls-cert: %s", files->cert);
free_all:
    EVP_PKEY_free(key);
    X509_free(cert);
    return status;
}

static enum status check_ca(const struct rpc_pem_files *files, const struct rpc_pem *pem,
                            struct error *error) {
    X509 *first = NULL;
    enum status status = read_certificates(pem->ca, &first, error);
    if (status == STATUS_OK)
        X509_free(first);
    else
        error_prefix(error, "--tls-ca: %s", files->ca);
    return status;
}

enum status rpc_pem_read(const struct rpc_pem_files *files, struct rpc_pem *pem_out,
                         struct error *error) {
    struct rpc_pem pem = {0};
    enum status status = read_text("--tls-cert", files->cert, &pem.cert, error);
    if (status == STATUS_OK) status = read_text("--tls-key", files->key, &pem.key, error);
    if (status == STATUS_OK) status = read_text("--tls-ca", files->ca, &pem.ca, error);
    ERR_clear_error();
    if (status == STATUS_OK && pem.cert != NULL) status = check_pair(files, &pem, error);
    if (status == STATUS_OK && pem.ca != NULL) status = check_ca(files, &pem, error);
    ERR_clear_error(); // what is left would be taken for a later call's
    if (status == STATUS_OK)
        *pem_out = pem;
    else
        rpc_pem_free(&pem);
    return status;
}

void rpc_pem_free(struct rpc_pem *pem) {
    if (pem->key != NULL) OPENSSL_cleanse(pem->key, strlen(pem->key));
    free(pem->cert);
    free(pem->key);
    free(pem->ca);
    *pem = (struct rpc_pem){0};
}
