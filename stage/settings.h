// settings: the stage's command line.
#pragma once

#include <stdint.h>

#include "base/log.h"
#include "base/options.h"
#include "stage/cpu/cores.h"
#include "transport/rpc_access.h"

struct settings {
    const char *coordinator; // host:port
    const char *model_path;  // NULL: the coordinator's path
    const char *name;        // NULL: host name and process id
    const char *data_listen;
    struct rpc_access_config access;
    const char *listen; // host:port of its own services; NULL: none
    const char *port_file;
    const char *kernel;
    double drain_seconds, stall_seconds;
    uint64_t thread_count;     // 0: the default
    struct core_request cores; // where compute threads are pinned
    enum log_level log_level;
    enum log_format log_format;
};

MUST_USE enum options_result settings_parse(int argc, char **argv, struct settings *settings_out);
