// settings: the coordinator's command line.
#pragma once

#include <stdint.h>

#include "base/dtype.h"
#include "base/log.h"
#include "base/options.h"
#include "proto/weight_format.h"
#include "transport/rpc_access.h"

// Where the token comes from that a decode row begins with.
enum settings_feedback {
    FEEDBACK_DIRECT,      // straight from the last stage: rows are sent before it is known
    FEEDBACK_COORDINATOR, // rows are sent when the coordinator has it
};

struct settings {
    const char *model_path;
    const char *model_name; // NULL: the name of the model's folder
    const char *listen;
    const char *data_listen;
    const char *port_file;
    const char *metrics; // NULL: off
    struct rpc_access_config access;
    const char *layers;
    uint64_t stage_count;
    uint64_t kv_token_count;
    uint64_t context_count; // 0: the model's
    uint64_t chunk_row_count;
    uint64_t in_flight_max; // microbatches; 0: as many as keep all stages busy
    enum settings_feedback feedback;
    bool no_prefix_cache;
    bool encrypts_data; // on the links
    bool is_naive;      // one microbatch of everything at a time
    uint64_t sequence_count_max;
    uint64_t waiting_count_max;
    double absent_seconds;
    double unread_seconds;
    double idle_seconds; // of a connection
    uint64_t connection_count_max;
    double drain_notice_seconds, drain_seconds;
    double stall_seconds;
    enum dtype activation_dtype;
    enum dtype kv_dtype;
    enum load_format load_format;
    enum weight_format weight_format;
    enum log_level log_level;
    enum log_format log_format;
    bool no_access_log;
};

MUST_USE enum options_result settings_parse(int argc, char **argv, struct settings *settings_out);
