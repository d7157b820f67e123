#include "transport/link_ucx_config.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <ifaddrs.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucs/config/global_opts.h>
#include <ucs/debug/debug.h>

// When it is loaded, UCX takes over the signals of crashes to print its own report, unless
// UCX_HANDLE_ERRORS=none is in the environment. No code of a program runs before its libraries are
// loaded, so this gives the signals back to whoever had them, before main().
__attribute__((constructor)) static void ucx_signals_give_back(void) {
    static const int signals[] = {SIGILL, SIGSEGV, SIGBUS, SIGFPE};
    for (size_t i = 0; i < sizeof(signals) / sizeof(*signals); i++)
        ucs_debug_disable_signal(signals[i]);
}

// -- sanitizers: UCX itself is not instrumented --------------------------------------------------

#if defined(__SANITIZE_THREAD__)
#define UCX_UNDER_TSAN
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define UCX_UNDER_TSAN
#endif
#endif

#ifdef UCX_UNDER_TSAN
// The locks and atomics inside UCX are invisible. Weak: gRPC needs the same, and says so itself.
// UCX_MEM_EVENTS=n must be in the environment besides: UCX patches madvise when it is loaded, and
// takes a lock in it at the end of a thread, when ThreadSanitizer knows the thread no more.
const char *__tsan_default_options(void);
__attribute__((weak)) const char *__tsan_default_options(void) {
    return "ignore_noninstrumented_modules=1";
}
#endif

// -- settings ------------------------------------------------------------------------------------

struct ucx_setting {
    const char *name;
    const char *value;
};

static const struct ucx_setting ucx_settings[] = {
    // Without this and the next, an endpoint that reports errors goes by TCP between local
    // processes.
    {"MM_ERROR_HANDLING", "y"},
    // From here on the receiver fetches a frame straight into its buffer.
    {"RNDV_THRESH", "128k"},
    // One frame takes one way: no striping over interfaces of different speed.
    {"MAX_RNDV_LANES", "1"},
    // Of the two kinds of shared memory, the one that leaves nothing behind after a kill. No TCP:
    // UCX would listen on a port of its own, where bytes that are not its protocol end the process
    // (an assertion in UCX 1.13), whoever they are from. link_stream does what is left.
    {"TLS", "^sysv,tcp"},
};

// UCX before 1.17 knows a component's own settings without the component's prefix.
static const char *cma_invalidate_name(void) {
    unsigned major, minor, release;
    ucp_get_version(&major, &minor, &release);
    bool prefixed = major > 1 || (major == 1 && minor >= 17);
    return prefixed ? "CMA_MEMORY_INVALIDATE" : "MEMORY_INVALIDATE";
}

static enum status config_set(ucp_config_t *config, const char *name, const char *value,
                              struct error *error) {
    ucs_status_t status = ucp_config_modify(config, name, value);
    if (status == UCS_OK) return STATUS_OK;
    return error_set(error, STATUS_IO, "UCX setting %s=%s: %s", name, value,
                     ucs_status_string(status));
}

enum status ucx_config_make(const struct sockaddr *listening, ucp_config_t **config_out,
                            struct error *error) {
    ucp_config_t *config;
    ucs_status_t ucs_status = ucp_config_read(NULL, NULL, &config);
    if (ucs_status != UCS_OK)
        return error_set(error, STATUS_IO, "UCX configuration: %s", ucs_status_string(ucs_status));
    // A peer that goes away is an error to UCX; the link reports it once, with its own words.
    if (getenv("UCX_LOG_LEVEL") == NULL) (void)ucs_global_opts_set_value("LOG_LEVEL", "fatal");
    char devices[256];
    enum status status = STATUS_OK;
    for (size_t i = 0; i < sizeof(ucx_settings) / sizeof(*ucx_settings); i++) {
        status = config_set(config, ucx_settings[i].name, ucx_settings[i].value, error);
        if (status != STATUS_OK) goto release_config;
    }
    status = config_set(config, cma_invalidate_name(), "y", error);
    if (status != STATUS_OK) goto release_config;
    if (ucx_devices_of(listening, devices, sizeof(devices)))
        status = config_set(config, "NET_DEVICES", devices, error);
    if (status != STATUS_OK) goto release_config;
    *config_out = config;
    return STATUS_OK;
release_config:
    ucp_config_release(config);
    return status;
}

// -- devices -------------------------------------------------------------------------------------

static bool is_same_host(const struct sockaddr *a, const struct sockaddr *b) {
    if (a == NULL || a->sa_family != b->sa_family) return false;
    if (a->sa_family == AF_INET)
        return ((const struct sockaddr_in *)a)->sin_addr.s_addr ==
               ((const struct sockaddr_in *)b)->sin_addr.s_addr;
    return a->sa_family == AF_INET6 &&
           memcmp(&((const struct sockaddr_in6 *)a)->sin6_addr,
                  &((const struct sockaddr_in6 *)b)->sin6_addr, sizeof(struct in6_addr)) == 0;
}

static bool interface_of(const struct sockaddr *listening, char *name_out,
                         size_t name_capacity_bytes) {
    struct ifaddrs *interfaces;
    bool found = false;
    if (getifaddrs(&interfaces) != 0) return false;
    for (const struct ifaddrs *at = interfaces; at != NULL && !found; at = at->ifa_next) {
        found = is_same_host(at->ifa_addr, listening);
        if (found) snprintf(name_out, name_capacity_bytes, "%s", at->ifa_name);
    }
    freeifaddrs(interfaces);
    return found;
}

// Appends ",mlx5_0:1" and so on for an interface of an RDMA card.
static void append_rdma_devices(const char *interface, char *devices,
                                size_t devices_capacity_bytes) {
    char path[128];
    snprintf(path, sizeof(path), "/sys/class/net/%.32s/device/infiniband", interface);
    DIR *directory = opendir(path);
    if (directory == NULL) return;
    for (struct dirent *entry; (entry = readdir(directory)) != NULL;) {
        size_t used_bytes = strlen(devices);
        if (entry->d_name[0] == '.') continue;
        if (used_bytes + strlen(entry->d_name) + sizeof(",:1") > devices_capacity_bytes) break;
        snprintf(devices + used_bytes, devices_capacity_bytes - used_bytes, ",%s:1", entry->d_name);
    }
    closedir(directory);
}

static bool is_loopback(const struct sockaddr *address) {
    if (address->sa_family == AF_INET)
        return (ntohl(((const struct sockaddr_in *)address)->sin_addr.s_addr) >> 24) == 127;
    const struct in6_addr *in6 = &((const struct sockaddr_in6 *)address)->sin6_addr;
    if (IN6_IS_ADDR_V4MAPPED(in6)) return in6->s6_addr[12] == 127;
    return IN6_IS_ADDR_LOOPBACK(in6);
}

bool ucx_devices_of(const struct sockaddr *listening, char *devices_out,
                    size_t devices_capacity_bytes) {
    if (is_loopback(listening)) {
        snprintf(devices_out, devices_capacity_bytes, "lo");
        return true;
    }
    char interface[64];
    if (!interface_of(listening, interface, sizeof(interface))) return false;
    snprintf(devices_out, devices_capacity_bytes, "%s", interface);
    append_rdma_devices(interface, devices_out, devices_capacity_bytes);
    return true;
}
