// limits: every named limit of the project, in one place. A section for each module; each limit
// says what happens when it is reached.
#pragma once

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
    // KV positions per block. Attention walks the positions in pieces of this size from position 0,
    // so it is part of the summation order: all stages of all builds use the same.
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
};

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
    TOKENIZER_SPLIT_COUNT_MAX = 16,       // steps of the pre-tokenizer
    TOKENIZER_PATTERN_BYTES_MAX = 4096,   // of one step
    TOKENIZER_TEMPLATE_PIECE_COUNT_MAX = 16, // of the post-processor
    // Larger texts are refused when encoded. Requests are limited well below.
    TOKENIZER_TEXT_BYTES_MAX = 64 << 20,
    // Backtracking steps that a pattern may take to match once: a constant, and so many a byte of
    // text. Beyond it the text is refused.
    TOKENIZER_MATCH_STEP_COUNT_BASE = 10000,
    TOKENIZER_MATCH_STEP_COUNT_PER_BYTE = 16,
    TOKENIZER_MATCH_HEAP_KIB_MAX = 64 << 10,
};
