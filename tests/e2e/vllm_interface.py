"""The interface vllm.grpc.engine.VllmEngine, written down once more: names, numbers and types as
gateways have them, and not from proto/, so that a slip there is noticed.

A message is a list of lines: "number [repeated|optional] type name [oneof]".
"""

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

COMMON = "smg.grpc.common"
ENGINE = "vllm.grpc.engine"

_MESSAGES = {
    COMMON: {
        "GetTokenizerRequest": "",
        "GetTokenizerChunk": """
            1 bytes data
            2 string sha256""",
        "SubscribeKvEventsRequest": """
            1 uint64 start_sequence_number""",
        "KvEventBatch": """
            1 uint64 sequence_number
            2 double timestamp
            3 repeated KvCacheEvent events
            4 optional int32 dp_rank""",
        "KvCacheEvent": """
            1 uint64 event_id
            2 KvBlocksStored stored data
            3 KvBlocksRemoved removed data
            4 KvCacheCleared cleared data""",
        "KvBlocksStored": """
            1 repeated KvBlock blocks
            2 optional int64 parent_block_hash""",
        "KvBlock": """
            1 int64 block_hash
            2 repeated uint32 token_ids
            3 int32 block_size
            4 optional int64 lora_id
            5 optional int32 cache_level""",
        "KvBlocksRemoved": """
            1 repeated int64 block_hashes
            2 optional int32 cache_level""",
        "KvCacheCleared": "",
        "ShmHandle": """
            1 string name
            2 uint64 offset
            3 uint64 nbytes
            4 string owner_id""",
        "RemoteTensorHandle": """
            1 string transport
            2 bytes descriptor
            3 uint64 nbytes""",
    },
    ENGINE: {
        "SamplingParams": """
            1 optional float temperature
            2 float top_p
            3 uint32 top_k
            4 float min_p
            5 float frequency_penalty
            6 float presence_penalty
            7 float repetition_penalty
            8 optional uint32 max_tokens
            9 uint32 min_tokens
            10 repeated string stop
            11 repeated uint32 stop_token_ids
            12 bool skip_special_tokens
            13 bool spaces_between_special_tokens
            14 bool ignore_eos
            15 uint32 n
            16 string json_schema constraint
            17 string regex constraint
            18 string grammar constraint
            19 string structural_tag constraint
            20 bool json_object constraint
            21 ChoiceConstraint choice constraint
            22 optional int32 logprobs
            23 optional int32 prompt_logprobs
            24 optional int32 seed
            25 bool include_stop_str_in_output
            26 map<int32,float> logit_bias
            27 optional int32 truncate_prompt_tokens
            28 bool grammar_from_first_token""",
        "ChoiceConstraint": """
            1 repeated string choices""",
        "TokenizedInput": """
            1 string original_text
            2 repeated uint32 input_ids""",
        "TensorData": """
            1 bytes inline payload
            2 repeated uint32 shape
            3 string dtype
            4 smg.grpc.common.ShmHandle shm payload
            5 smg.grpc.common.RemoteTensorHandle remote payload""",
        "PlaceholderRange": """
            1 uint32 offset
            2 uint32 length""",
        "MultimodalInputs": """
            2 TensorData pixel_values
            3 map<string,TensorData> model_specific_tensors
            4 optional uint32 im_token_id
            5 repeated PlaceholderRange mm_placeholders
            6 repeated string mm_hashes
            7 repeated string batched_keys
            8 map<string,string> flat_keys
            9 repeated string keep_on_cpu_keys
            10 enum:smg.grpc.common.Modality modality
            11 optional string encoder_input_key""",
        "MediaRef": """
            1 enum:smg.grpc.common.Modality modality
            2 string url""",
        "MediaRefs": """
            1 repeated MediaRef items""",
        "MediaIdentity": """
            1 repeated uint32 prompt_token_ids
            2 MultimodalInputs mm_inputs
            3 repeated MultimodalInputs extra_mm_inputs""",
        "GenerateRequest": """
            1 string request_id
            2 TokenizedInput tokenized input
            3 string text input
            4 SamplingParams sampling_params
            5 bool stream
            6 KvTransferParams kv_transfer_params
            7 MultimodalInputs mm_inputs
            8 optional string kv_transfer_params_json
            9 optional int32 data_parallel_rank
            10 MediaRefs media_refs
            11 repeated MultimodalInputs extra_mm_inputs""",
        "KvTransferParams": """
            1 string remote_host
            2 uint32 remote_port""",
        "OutputLogProbs": """
            1 repeated float token_logprobs
            2 repeated uint32 token_ids
            3 repeated TopLogProbs top_logprobs""",
        "InputLogProbs": """
            1 repeated InputTokenLogProb token_logprobs
            2 repeated uint32 token_ids
            3 repeated TopLogProbs top_logprobs""",
        "InputTokenLogProb": """
            1 optional float value""",
        "TopLogProbs": """
            1 repeated float values
            2 repeated uint32 token_ids""",
        "GenerateResponse": """
            1 GenerateStreamChunk chunk response
            2 GenerateComplete complete response""",
        "GenerateStreamChunk": """
            1 repeated uint32 token_ids
            2 uint32 prompt_tokens
            3 uint32 completion_tokens
            4 uint32 cached_tokens
            5 OutputLogProbs output_logprobs
            6 InputLogProbs input_logprobs
            7 uint32 index""",
        "GenerateComplete": """
            1 repeated uint32 output_ids
            2 string finish_reason
            3 uint32 prompt_tokens
            4 uint32 completion_tokens
            5 uint32 cached_tokens
            6 OutputLogProbs output_logprobs
            7 InputLogProbs input_logprobs
            8 uint32 index
            9 KvTransferParams kv_transfer_params
            10 uint32 matched_token_id matched_stop
            11 string matched_stop_str matched_stop
            12 optional string kv_transfer_params_json
            13 uint32 spec_accepted_tokens
            14 uint32 spec_draft_tokens
            15 MediaIdentity media_identity""",
        "EmbedRequest": """
            1 string request_id
            2 TokenizedInput tokenized""",
        "EmbedResponse": """
            1 repeated float embedding
            2 uint32 prompt_tokens
            3 uint32 embedding_dim""",
        "HealthCheckRequest": "",
        "HealthCheckResponse": """
            1 bool healthy
            2 string message""",
        "AbortRequest": """
            1 repeated string request_ids""",
        "AbortResponse": "",
        "GetModelInfoRequest": "",
        "GetModelInfoResponse": """
            1 string model_path
            2 bool is_generation
            3 uint32 max_context_length
            4 uint32 vocab_size
            5 bool supports_vision
            6 string served_model_name
            7 string tokenizer_path
            8 string model_type
            9 repeated string architectures
            10 repeated int32 eos_token_ids
            11 int32 pad_token_id
            12 int32 bos_token_id
            13 int32 max_req_input_len
            14 string default_sampling_params_json""",
        "GetServerInfoRequest": "",
        "GetServerInfoResponse": """
            1 uint32 active_requests
            2 bool is_paused
            3 double last_receive_timestamp
            4 double uptime_seconds
            5 string server_type
            6 string kv_connector
            7 string kv_role
            8 string kv_engine_id
            9 int32 data_parallel_size
            10 string shm_namespace_id
            11 string kv_cache_dtype
            12 int32 block_size
            13 string attention_backend
            14 string model_dtype
            15 string pairing_protocol
            16 string mm_processor
            17 string mm_media_ref_schemes
            18 string mm_processor_source
            19 bool mm_device_do_normalize
            20 int32 max_num_seqs
            21 string mm_item_limits
            22 string multimodal_encoder_dtype
            23 string engine_reasoning_parser
            24 string constrained_decoding_start
            25 int32 mm_encoder_budget""",
        "GetLoadsRequest": """
            1 optional int32 dp_rank
            2 repeated string include""",
        "GetLoadsResponse": """
            1 string timestamp
            2 string version
            3 int32 dp_rank_count
            4 repeated SchedulerLoad loads""",
        "SchedulerLoad": """
            1 int32 dp_rank
            2 int32 num_running_reqs
            3 int32 num_waiting_reqs
            4 int32 num_total_reqs
            5 int32 num_used_tokens
            6 int32 max_total_num_tokens
            7 double token_usage
            8 double gen_throughput
            9 double cache_hit_rate
            10 double utilization
            11 int32 max_running_requests
            12 int32 num_waiting_uncached_tokens""",
    },
}

ENUMS = {"smg.grpc.common.Modality": {"MODALITY_UNSPECIFIED": 0, "IMAGE": 1, "AUDIO": 2, "VIDEO": 3}}

# name: (request, response, whether the responses stream)
METHODS = {
    "Generate": (f"{ENGINE}.GenerateRequest", f"{ENGINE}.GenerateResponse", True),
    "Embed": (f"{ENGINE}.EmbedRequest", f"{ENGINE}.EmbedResponse", False),
    "HealthCheck": (f"{ENGINE}.HealthCheckRequest", f"{ENGINE}.HealthCheckResponse", False),
    "Abort": (f"{ENGINE}.AbortRequest", f"{ENGINE}.AbortResponse", False),
    "GetModelInfo": (f"{ENGINE}.GetModelInfoRequest", f"{ENGINE}.GetModelInfoResponse", False),
    "GetServerInfo": (f"{ENGINE}.GetServerInfoRequest", f"{ENGINE}.GetServerInfoResponse", False),
    "GetLoads": (f"{ENGINE}.GetLoadsRequest", f"{ENGINE}.GetLoadsResponse", False),
    "GetTokenizer": (f"{COMMON}.GetTokenizerRequest", f"{COMMON}.GetTokenizerChunk", True),
    "SubscribeKvEvents": (f"{COMMON}.SubscribeKvEventsRequest", f"{COMMON}.KvEventBatch", True),
}

_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS = {"double": _Field.TYPE_DOUBLE, "float": _Field.TYPE_FLOAT, "int64": _Field.TYPE_INT64,
            "uint64": _Field.TYPE_UINT64, "int32": _Field.TYPE_INT32, "uint32": _Field.TYPE_UINT32,
            "bool": _Field.TYPE_BOOL, "string": _Field.TYPE_STRING, "bytes": _Field.TYPE_BYTES}


def _set_type(field, package, name):
    if name in _SCALARS:
        field.type = _SCALARS[name]
        return
    field.type = _Field.TYPE_MESSAGE
    if name.startswith("enum:"):
        field.type, name = _Field.TYPE_ENUM, name.removeprefix("enum:")
    field.type_name = f".{name}" if "." in name else f".{package}.{name}"


def _add_map(message, field, package, key, value):
    entry = message.nested_type.add()
    entry.name = "".join(word.capitalize() for word in field.name.split("_")) + "Entry"
    entry.options.map_entry = True
    for number, (name, kind) in enumerate([("key", key), ("value", value)], 1):
        part = entry.field.add(name=name, number=number, label=_Field.LABEL_OPTIONAL)
        _set_type(part, package, kind)
    field.label = _Field.LABEL_REPEATED
    field.type = _Field.TYPE_MESSAGE
    field.type_name = f".{package}.{message.name}.{entry.name}"


def _oneof_index(message, name):
    names = [oneof.name for oneof in message.oneof_decl]
    if name not in names:
        message.oneof_decl.add(name=name)
        return len(names)
    return names.index(name)


def _add_field(message, package, line):
    number, *words = line.split()
    label = words.pop(0) if words[0] in ("repeated", "optional") else ""
    kind, name, *oneof = words
    field = message.field.add(name=name, number=int(number), label=_Field.LABEL_OPTIONAL)
    if kind.startswith("map<"):
        _add_map(message, field, package, *kind[4:-1].split(","))
        return
    if label == "repeated":
        field.label = _Field.LABEL_REPEATED
    _set_type(field, package, kind)
    if oneof:
        field.oneof_index = _oneof_index(message, oneof[0])


def _add_presence(message, lines):
    """Optional fields come after all: their oneofs, which protobuf makes, must be the last."""
    optional = {line.split()[3] for line in lines if line.split()[1] == "optional"}
    for field in message.field:
        if field.name in optional:
            field.proto3_optional = True
            field.oneof_index = _oneof_index(message, f"_{field.name}")


def _make_file(package, messages, **extra):
    file = descriptor_pb2.FileDescriptorProto(name=f"independent/{package}.proto", package=package,
                                              syntax="proto3", **extra)
    for name, text in messages.items():
        message = file.message_type.add(name=name)
        lines = [line.strip() for line in text.strip().splitlines()]
        for line in lines:
            _add_field(message, package, line)
        _add_presence(message, lines)
    for full_name, values in ENUMS.items():
        if full_name.startswith(f"{package}."):
            enum = file.enum_type.add(name=full_name.rsplit(".", 1)[1])
            for name, number in values.items():
                enum.value.add(name=name, number=number)
    return file


FILES = [_make_file(COMMON, _MESSAGES[COMMON]),
         _make_file(ENGINE, _MESSAGES[ENGINE], dependency=[f"independent/{COMMON}.proto"])]
_pool = descriptor_pool.DescriptorPool()
for _file in FILES:
    _pool.Add(_file)


def message_class(full_name):
    if "." not in full_name:
        full_name = f"{ENGINE}.{full_name}"
    return message_factory.GetMessageClass(_pool.FindMessageTypeByName(full_name))


class Stub:
    """One callable for each method, as grpcio-tools would make them."""

    def __init__(self, channel):
        for name, (request, response, is_stream) in METHODS.items():
            make = channel.unary_stream if is_stream else channel.unary_unary
            call = make(f"/{ENGINE}.VllmEngine/{name}",
                        request_serializer=message_class(request).SerializeToString,
                        response_deserializer=message_class(response).FromString)
            setattr(self, name, call)


def shape(files):
    """What of some FileDescriptorProtos is seen on the wire, as a set of lines; and for a field's
    presence it does not matter whether it is `optional` or alone in a oneof."""
    lines = set()
    for file in files:
        for message in file.message_type:
            _add_shape(lines, f"{file.package}.{message.name}", message)
        for enum in file.enum_type:
            lines |= {f"{file.package}.{enum.name} {v.name} = {v.number}" for v in enum.value}
        for service in file.service:
            lines |= {f"{file.package}.{service.name}.{m.name} {m.input_type} {m.output_type} "
                      f"{m.client_streaming} {m.server_streaming}" for m in service.method}
    return lines


def _add_shape(lines, full_name, message):
    lines.add(full_name)
    members = {}
    for field in message.field:
        if field.HasField("oneof_index"):
            members.setdefault(field.oneof_index, []).append(field.name)
    for field in message.field:
        oneof = members.get(field.oneof_index, []) if field.HasField("oneof_index") else None
        presence = "none" if oneof is None else "+".join(sorted(oneof))
        lines.add(f"{full_name}.{field.name} = {field.number} {field.type} {field.label} "
                  f"{field.type_name} {presence}")
    for nested in message.nested_type:
        _add_shape(lines, f"{full_name}.{nested.name}", nested)
