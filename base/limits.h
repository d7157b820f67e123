// limits: every named limit of the project, in one place. A section for each module; each limit
// says what happens when it is reached.
#pragma once

#include <stdint.h>

// -- logs -----------------------------------------------------------------------------------------
enum {
    // Named values of one event; more are our bug.
    LOG_FIELD_COUNT_MAX = 24,
    // A longer text of one is cut.
    LOG_FIELD_BYTES_MAX = 256,
};

// -- model files ----------------------------------------------------------------------------------
enum {
    // Larger values in config.json are refused with the field's name.
    MODEL_LAYER_COUNT_MAX = 1024,
    MODEL_HIDDEN_SIZE_MAX = 65536,
    MODEL_HEAD_COUNT_MAX = 1024,
    MODEL_HEAD_SIZE_MAX = 1024,
    MODEL_FFN_SIZE_MAX = 1 << 20,
    MODEL_VOCABULARY_SIZE_MAX = 1 << 20,
    MODEL_POSITION_COUNT_MAX = 1 << 24,
    MODEL_EOS_COUNT_MAX = 16,
    // config.json and generation_config.json larger than this are refused.
    MODEL_CONFIG_BYTES_MAX = 1 << 20,
    // tokenizer.json larger than this is refused.
    TOKENIZER_FILE_BYTES_MAX = 256 << 20,
};

// -- pipeline -------------------------------------------------------------------------------------
enum {
    PIPELINE_STAGE_COUNT_MAX = 64,
    // KV positions per block. The spans in which attention sums the positions are whole blocks, so
    // it is part of the summation order: all stages of all builds use the same.
    KV_BLOCK_POSITION_COUNT = 32,
    // Rows (token positions) of one microbatch; the coordinator never plans more.
    MICROBATCH_ROW_COUNT_MAX = 4096,
    // Sequences of one microbatch.
    MICROBATCH_SEQUENCE_COUNT_MAX = 1024,
    // Entries of one frame's tables. A sequence alone never has more (its history has at most one
    // entry for each token of the vocabulary); one that does not fit beside others waits for the
    // next microbatch.
    FRAME_BLOCK_COUNT_MAX = 1 << 20,
    FRAME_BIAS_COUNT_MAX = 1 << 17,
    FRAME_HISTORY_COUNT_MAX = MODEL_VOCABULARY_SIZE_MAX,
};

// -- requests -------------------------------------------------------------------------------------
enum {
    // Each beyond its limit is refused with INVALID_ARGUMENT that names the field.
    REQUEST_STOP_STRING_COUNT_MAX = 16,
    REQUEST_STOP_STRING_BYTES_MAX = 256,
    REQUEST_STOP_TOKEN_COUNT_MAX = 64,
    REQUEST_LOGIT_BIAS_COUNT_MAX = 1024,
    REQUEST_TOP_LOGPROB_COUNT_MAX = 20,
    REQUEST_TEXT_BYTES_MAX = 1 << 20,
    REQUEST_ID_BYTES_MAX = 128,
    REQUEST_CACHE_SALT_BYTES_MAX = 128,
    // Answers of one request.
    REQUEST_ANSWER_COUNT_MAX = 64,
    // Tokens of one Detokenize call.
    REQUEST_DETOKENIZE_COUNT_MAX = 1 << 20,
};

// From the seed of one answer of a request to that of the next: 2^64 divided by the golden ratio,
// so that requests with neighbouring seeds share none. Part of the protocol.
#define REQUEST_SEED_STEP UINT64_C(0x9E3779B97F4A7C15)

// -- links ----------------------------------------------------------------------------------------
enum {
    // Frames in flight on a link; both ends allocate this many buffers.
    LINK_CREDIT_COUNT_MAX = 64,
    // Both ends ping this often, also when frames flow.
    LINK_PING_MS = 500,
    // Nothing heard from the peer for this long: the link is lost.
    LINK_LOST_MS = 3000,
    // A connection that is not up after this long is given up and reported.
    LINK_CONNECT_MS = 10000,
    // Closing flushes for at most this long, then it is forced.
    LINK_CLOSE_MS = 500,
    // A larger frame is refused when a link is opened.
    FRAME_BYTES_MAX = 1 << 30,
};

// -- tokenizer ------------------------------------------------------------------------------------
enum {
    // A tokenizer.json beyond one of these is refused with the field's name.
    TOKENIZER_TOKEN_BYTES_MAX = 4096,
    TOKENIZER_MERGE_COUNT_MAX = 1 << 23,
    TOKENIZER_ADDED_TOKEN_COUNT_MAX = 1 << 16,
    TOKENIZER_SPLIT_COUNT_MAX = 16,          // steps of the pre-tokenizer
    TOKENIZER_PATTERN_BYTES_MAX = 4096,      // of one step
    TOKENIZER_TEMPLATE_PIECE_COUNT_MAX = 16, // of the post-processor
    // Larger texts are refused when encoded. Requests are limited well below.
    TOKENIZER_TEXT_BYTES_MAX = 16 << 20,
    // Backtracking steps that a pattern may take to match once: a constant, and so many a byte of
    // text. Beyond it the text is refused.
    TOKENIZER_MATCH_STEP_COUNT_BASE = 10000,
    TOKENIZER_MATCH_STEP_COUNT_PER_BYTE = 16,
    TOKENIZER_MATCH_HEAP_KIB_MAX = 64 << 10,
};

// -- coordinator ----------------------------------------------------------------------------------
enum {
    // Requests known at once, running and waiting; one more is refused with RESOURCE_EXHAUSTED.
    REQUEST_COUNT_MAX = 4096,
    // Requests that are refused because too many wait are told to come back after a time in this
    // range.
    RETRY_MS_MIN = 100,
    RETRY_MS_MAX = 30000,
    // A request that a lost pipeline made start again more often than this fails with UNAVAILABLE:
    // it may be what breaks the pipeline.
    REQUEST_REPLAY_COUNT_MAX = 8,
    // A level of priority puts a sequence before so many that came earlier: before all that wait
    // with
    // it, but not before one that has waited while so many came.
    SCHEDULER_PRIORITY_LEAD = REQUEST_COUNT_MAX,
    // Prompt rows of a microbatch where none are set: the most that may be chosen by cost.
    CHUNK_ROW_COUNT_MAX = 1024,
    // Events waiting for the coordinator's loop: a new request beyond is refused with
    // RESOURCE_EXHAUSTED; other events wait in their sender.
    LOOP_EVENT_COUNT_MAX = 1 << 16,
    // Stages joined at once, spares included; one more is refused with RESOURCE_EXHAUSTED.
    CLUSTER_MEMBER_COUNT_MAX = 128,
    // Both ends of a Join stream send a heartbeat this often.
    HEARTBEAT_MS = 500,
    // Nothing heard from a stage (or from the coordinator) for this long: it is lost.
    HEARTBEAT_LOST_MS = 3000,
    // Links of a new epoch that are not up after this long: a new epoch is tried.
    CLUSTER_CONNECT_MS = 12000,
    // Time between a lost link and the next epoch, so that failures cannot make a busy loop.
    CLUSTER_RETRY_MS = 200,
    // A stage that lost its coordinator dials again after this long at first, and at most.
    STAGE_DIAL_MS_MIN = 50,
    STAGE_DIAL_MS_MAX = 2000,
};

// -- VllmEngine -----------------------------------------------------------------------------------
enum {
    // Ids of one Abort; more are refused.
    VLLM_ABORT_ID_COUNT_MAX = REQUEST_COUNT_MAX,
    // Files of a tokenizer, and their bytes in all, plain or packed: with more, GetTokenizer is
    // refused.
    VLLM_TOKENIZER_FILE_COUNT_MAX = 50,
    VLLM_TOKENIZER_BYTES_MAX = 128 << 20,
    // Bytes of one message of GetTokenizer.
    VLLM_TOKENIZER_CHUNK_BYTES = 64 << 10,
};

// -- meters ---------------------------------------------------------------------------------------
enum {
    // Steps whose times are remembered, a power of two; older ones that a stage has not reported
    // by then are lost, and counted.
    TIMELINE_STEP_COUNT_MAX = 4096,
    // Rates and ratios are over so many seconds, counted second by second.
    TIMELINE_WINDOW_S = 10,
    // Of the metrics' HTTP port. More connections wait in the kernel; a larger request is refused;
    // an idle connection is closed; a loop that does not answer in time makes 503.
    METRICS_CONNECTION_COUNT_MAX = 32,
    METRICS_REQUEST_BYTES_MAX = 16 << 10,
    METRICS_IDLE_SECONDS = 10,
    METRICS_ANSWER_MS = 2000,
    METRICS_TEXT_BYTES_MAX = 4 << 20,
    // Steps of one answer of Admin/GetSteps; the caller asks again.
    METERS_ANSWER_STEP_COUNT_MAX = 256,
    // Steps that a stage has not reported yet, a power of two; more are lost, and counted.
    STEP_LOG_COUNT_MAX = 4096,
    // Steps in one heartbeat; more wait for the next one, which comes early when half of them wait.
    HEARTBEAT_STEP_COUNT_MAX = 1024,
    // Exchanges of heartbeats that a clock's offset is chosen from.
    CLOCK_OFFSET_SAMPLE_COUNT = 16,
};

// -- rpc ------------------------------------------------------------------------------------------
enum {
    // Used where struct rpc_config has a zero. A larger message, one call more or one message more
    // is answered RESOURCE_EXHAUSTED, RESOURCE_EXHAUSTED and false.
    RPC_RECEIVE_BYTES_DEFAULT = 4 << 20,
    RPC_CALL_COUNT_DEFAULT = 4096,
    RPC_SEND_COUNT_DEFAULT = 256,
    RPC_SEND_BYTES_DEFAULT = 1 << 20,
    // A call that is refused because there are too many may be made again after this long.
    RPC_RETRY_MS = 1000,
    // A process is looked at this often, and is not alive when its main thread, which ticks every
    // 100 ms, has not ticked for so long.
    READINESS_LOOK_MS = 250,
    READINESS_TICK_MS = 5000,
    // Services whose health a server tells; one more is a failed CHECK. A request that names a
    // longer
    // service, or a further stream that watches, is refused.
    RPC_HEALTH_SERVICE_COUNT_MAX = 16,
    RPC_HEALTH_NAME_BYTES_MAX = 256,
    RPC_HEALTH_WATCH_COUNT_MAX = 1024,
    // Names in a reflection request, which comes back with its answer; longer ones are refused.
    RPC_REFLECTION_NAME_BYTES_MAX = 1024,
    // Methods of all services of a server: rpc_add_service refuses more.
    RPC_METHOD_COUNT_MAX = 64,
    // Metadata entries that one side may add to a call: adding more fails.
    RPC_METADATA_COUNT_MAX = 32,
    // Used where struct rpc_config has a zero: connections of a server, of which one more is closed
    // at
    // once, and how long one without calls is kept before the client is told to go.
    RPC_CONNECTION_COUNT_DEFAULT = 4096,
    RPC_IDLE_MS_DEFAULT = 300000,
    // Descriptors of the process that connections may not use up.
    RPC_DESCRIPTOR_COUNT_SPARE = 128,
    // Servers of a process: rpc_serve fails beyond it.
    RPC_ACCEPT_SERVER_COUNT_MAX = 16,
    // A request of a method that takes next to nothing.
    RPC_QUERY_BYTES_MAX = 4 << 10,
    // Connections that are refused in one go before other work is seen to.
    RPC_ACCEPT_COUNT_MAX = 256,
    // How often, at the limit, it is looked whether connections have gone, and how often refusals
    // are logged.
    RPC_ACCEPT_SWEEP_MS = 20,
    RPC_ACCEPT_REPORT_MS = 10000,
    // Metadata of one call in one direction, names and 32 bytes an entry included; more ends the
    // call with RESOURCE_EXHAUSTED, and gRPC also closes the connection that it came on.
    RPC_METADATA_BYTES_MAX = 16 << 10,
    // New calls that a server can be given before it asks for more; others wait in gRPC.
    RPC_ACCEPT_COUNT = 32,
    // What gRPC may hold for all connections of a server: this, and so many of the largest
    // messages.
    // Beyond it streams are reset and new connections refused.
    RPC_SERVER_MEMORY_BYTES_BASE = 64 << 20,
    RPC_SERVER_MEMORY_MESSAGE_COUNT = 32,
    // A received message nested deeper, or with more fields in all, is refused: each field costs up
    // to 30 times its bytes once unpacked.
    RPC_MESSAGE_DEPTH_MAX = 32,
    RPC_MESSAGE_FIELD_COUNT_MAX = 1 << 18,
    // A connection without traffic is probed after this long, and cut this long after that.
    RPC_KEEPALIVE_MS = 1000,
    RPC_KEEPALIVE_TIMEOUT_MS = 1000,
    // A server is more patient: programs of every kind are clients, some of which stand still for
    // seconds at times. Stages send heartbeats besides.
    RPC_KEEPALIVE_CLIENT_TIMEOUT_MS = 10000,
    // A peer that probes faster than this, again and again, is cut by the server.
    RPC_KEEPALIVE_INTERVAL_MIN_MS = 500,
    // A connection attempt is given up after this long; calls that wait for it fail.
    RPC_CONNECT_MS = 2000,
    // Pause between connection attempts: from the first, growing, to the second.
    RPC_RECONNECT_FIRST_MS = 100,
    RPC_RECONNECT_LAST_MS = 1000,
    // A connection to a server that has not finished its TLS and HTTP/2 handshakes by then is cut.
    RPC_HANDSHAKE_MS = 10000,
};

// -- access ---------------------------------------------------------------------------------------
enum {
    // Larger files of certificates, keys or tokens are refused.
    RPC_PEM_BYTES_MAX = 1 << 20,
    RPC_TOKENS_BYTES_MAX = 1 << 20,
    // Tokens that a server knows, and the length of each; others are refused with their line.
    RPC_TOKEN_COUNT_MAX = 1024,
    RPC_TOKEN_BYTES_MIN = 16,
    RPC_TOKEN_BYTES_MAX = 512,
    // Names of callers: longer ones are refused in a file of tokens, and cut from certificates.
    RPC_CALLER_NAME_BYTES_MAX = 63,
    // Files of certificates and tokens are looked at this often. What is wrong with a change is
    // said when they have rested for as long.
    RPC_FILES_CHECK_MS = 1000,
    // A certificate is warned of when it has less time than this left.
    RPC_EXPIRY_WARN_S = 7 * 24 * 3600,
};

// -- command lines --------------------------------------------------------------------------------
enum {
    // Times that one option may be given; more are refused with the option's name.
    OPTION_TEXT_COUNT_MAX = 64,
};

// -- client ---------------------------------------------------------------------------------------
enum {
    // Calls other than Generate end with DEADLINE_EXCEEDED after this long.
    CLIENT_CALL_MS = 10000,
    // After Ctrl-C the coordinator has this long to confirm the end of the call.
    CLIENT_CANCEL_MS = 1000,
    // Calls that fail are made again after about this long, and twice as long each time, up to the
    // second. --retry-seconds bounds for how long.
    CLIENT_RETRY_FIRST_MS = 100,
    CLIENT_RETRY_LAST_MS = 3000,
    // A shorter wait for the first of these calls is not worth a line on standard error.
    CLIENT_RETRY_QUIET_MS = 1000,
    // A coordinator that is waited for has this long for each answer.
    CLIENT_WAIT_CALL_MS = 1000,
    // Waiting for a pipeline asks this often.
    CLIENT_WAIT_POLL_MS = 10,
    // How often a stream that is watched is looked at for its end.
    CLIENT_WATCH_POLL_MS = 100,
    // Longer traces are refused, and how often the coordinator is asked for steps meanwhile.
    CLIENT_TRACE_SECONDS_MAX = 3600,
    CLIENT_TRACE_POLL_MS = 100,
    // Token ids or biases in one option; more are refused.
    CLIENT_LIST_COUNT_MAX = 1 << 20,
};

// -- checkpoints ----------------------------------------------------------------------------------
enum {
    // Of a safetensors file; the format's own limit. A larger header is refused.
    SAFETENSORS_HEADER_BYTES_MAX = 100 * 1000 * 1000,
    // Tensors of one safetensors file, and dimensions of a tensor; more are refused.
    SAFETENSORS_TENSOR_COUNT_MAX = 1 << 20,
    SAFETENSORS_DIMENSION_COUNT_MAX = 8,
    // A larger model.safetensors.index.json is refused.
    CHECKPOINT_INDEX_BYTES_MAX = 64 << 20,
    // Safetensors files that hold tensors of one stage; more are refused.
    CHECKPOINT_SHARD_COUNT_MAX = 1024,
    // Weights are read in pieces of this size; progress and cancellation come between them.
    WEIGHTS_READ_STEP_BYTES = 4 << 20,
};

// -- cpu backend ----------------------------------------------------------------------------------
enum {
    // Threads of one compute team; more are refused.
    TEAM_THREAD_COUNT_MAX = 256,
    // A thread of the team looks for work this long before it sleeps: longer than what one thread
    // does alone between two products. It gives way to other threads after the second.
    TEAM_SPIN_NS = 200000,
    TEAM_HOLD_NS = 5000,
    // Processor ids of a machine end before this: higher ones are refused in --cores, and not used
    // otherwise. The most that Linux can be built for.
    PROCESSOR_ID_COUNT = 8192,
};

// -- link internals -------------------------------------------------------------------------------
enum {
    // A refused or unreachable peer is tried again after this long.
    LINK_RETRY_MS = 50,
    // Connections that have not said hello yet; further ones take the places of some of the host
    // that has the most, so many at a time.
    LINK_PENDING_COUNT_MAX = 64,
    LINK_PENDING_EVICT_COUNT = 8,
    // Refused connections are told in the log this often, with their count.
    LINK_STRANGER_LOG_MS = 10000,
    // The address of a UCX worker, which grows with the network devices of a machine; a longer one
    // ends the connection.
    LINK_WORKER_BYTES_MAX = 4096,
    // Resolved addresses of one peer name that are tried in turn; further ones are ignored.
    LINK_ADDRESS_COUNT_MAX = 4,
    // port_wait looks for work this long, giving way to other threads, before it sleeps.
    LINK_SPIN_US = 50,
    // A link whose frames do not come back this long after a forced close is given up with an
    // error.
    LINK_FORCE_MS = 5000,
    // Frames of IO_RECEIVED that the owner has not taken; beyond it the links are lost.
    IO_RECEIVED_COUNT_MAX = 256,
    // Commands on their way to the io thread; io_connect returns false beyond it.
    IO_COMMAND_COUNT_MAX = 1024,
    // The io thread looks this often whether its owner has room for the news of a link.
    IO_OWED_MS = 10,
};
