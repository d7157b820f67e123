"""Bytes at the edges of every field of a message, and beyond, from its descriptor alone.

Fields are written byte by byte, so that what protobuf libraries refuse to write can be sent too.
"""

import struct

from google.protobuf.descriptor import FieldDescriptor as Field

DEPTH_MAX = 5
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
MANY = 5000
LONG = 2 << 20

WIRE_TYPES = {Field.TYPE_DOUBLE: FIXED64, Field.TYPE_FIXED64: FIXED64, Field.TYPE_SFIXED64: FIXED64,
              Field.TYPE_FLOAT: FIXED32, Field.TYPE_FIXED32: FIXED32, Field.TYPE_SFIXED32: FIXED32,
              Field.TYPE_STRING: BYTES, Field.TYPE_BYTES: BYTES, Field.TYPE_MESSAGE: BYTES}
SIGNED = {Field.TYPE_INT32: 32, Field.TYPE_INT64: 64}
UNSIGNED = {Field.TYPE_UINT32: 32, Field.TYPE_UINT64: 64}
FLOATS = [0.0, -0.0, 1e-45, 1e-9, 0.5, 1.0, 1.0000001, -1.0, 2.0, 2.0000002, 100.0, 3.4e38, -3.4e38,
          float("inf"), float("-inf"), float("nan")]


def varint(number):
    number &= 2**64 - 1
    coded = b""
    while number >= 128:
        coded += bytes([number & 127 | 128])
        number >>= 7
    return coded + bytes([number])


def tag(number, wire_type):
    return varint(number << 3 | wire_type)


def sized(data):
    return varint(len(data)) + data


def wire_type_of(field):
    return WIRE_TYPES.get(field.type, VARINT)


def _integers(field):
    """Values of the field's range and past it, as varints; those past it may be cut or refused."""
    if field.type in SIGNED:
        bits = SIGNED[field.type]
        edges = [-2**(bits - 1), -2**(bits - 1) + 1, -1, 0, 1, 2, 2**(bits - 1) - 1, 2**(bits - 1)]
    elif field.type in UNSIGNED:
        edges = [0, 1, 2, 63, 64, 65, 2**31, 2**UNSIGNED[field.type] - 1]
    elif field.type == Field.TYPE_ENUM:
        edges = [value.number for value in field.enum_type.values] + [-1, 9999, 2**31 - 1]
    else:
        edges = [0, 1, 2]
    return [(str(edge), varint(edge)) for edge in [*edges, 2**32, 2**63, 2**64 - 1]]


def _texts(is_text):
    texts = ["", "a", " ", "0", "x" * 129, "x" * 257, "x" * 5000, "y" * LONG, "\u00e9\u4e2d\U0001f600",
             "\x01\x1b[31m\r\n\t\x7f", "\u202e\ufeff", "%s%n%d", "../../etc/passwd", "'\"\\"]
    values = [(repr(text[:20]), text.encode()) for text in texts]
    if not is_text:
        values.append(("every byte", bytes(range(256))))
    return values


def values_of(field):
    """(what it is, bytes after the tag) of values that a peer may send."""
    if field.type == Field.TYPE_FLOAT:
        return [(repr(value), struct.pack("<f", value)) for value in FLOATS]
    if field.type == Field.TYPE_DOUBLE:
        return [(repr(value), struct.pack("<d", value)) for value in FLOATS]
    wire_type = wire_type_of(field)
    if wire_type == FIXED32:
        return [(hex(value), struct.pack("<I", value)) for value in (0, 1, 2**31, 2**32 - 1)]
    if wire_type == FIXED64:
        return [(hex(value), struct.pack("<Q", value)) for value in (0, 1, 2**63, 2**64 - 1)]
    if field.type == Field.TYPE_MESSAGE:
        return [("an empty message", sized(b"")),
                ("a message of unknown fields", sized(tag(536870911, VARINT) + varint(7)))]
    if wire_type == BYTES:
        return [(name, sized(data)) for name, data in _texts(field.type == Field.TYPE_STRING)]
    return _integers(field)


def _wrong_type(field):
    """The same field with a wire type that is not its own."""
    if wire_type_of(field) == FIXED64:
        return tag(field.number, FIXED32) + bytes(4)
    return tag(field.number, FIXED64) + bytes(8)


def illegal_of(field):
    """(what it is, tag and bytes) of what must be refused with INVALID_ARGUMENT and a sentence that
    names the field."""
    yield "of a wrong type", _wrong_type(field)
    own = tag(field.number, BYTES)
    if field.type == Field.TYPE_STRING:
        for data in (b"\xff", b"a\0b", b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80", b"ab\xe4\xb8"):
            yield f"the text {data!r}", own + sized(data)
    if field.type == Field.TYPE_MESSAGE:
        if not field.is_repeated:
            yield "given twice", (own + sized(b"")) * 2
        yield "a message that breaks off", own + sized(b"\x0a\x05a")
        yield "a message of a group", own + sized(b"\x0b\x0c")


def numberless_of(field):
    """The same of floating-point values that are no number, where a number is meant."""
    if field.type in (Field.TYPE_FLOAT, Field.TYPE_DOUBLE):
        own = tag(field.number, wire_type_of(field))
        for name, data in values_of(field):
            if name in ("inf", "-inf", "nan"):
                yield name, own + data


def broken_of(field):
    """(what it is, tag and bytes) of what is no message at all, as a last field."""
    wire_type = wire_type_of(field)
    if wire_type == VARINT:
        yield "a number that breaks off", tag(field.number, VARINT) + b"\x80"
        yield "a number of eleven bytes", tag(field.number, VARINT) + b"\x80" * 10 + b"\1"
    elif wire_type == BYTES:
        yield "longer than the message", tag(field.number, BYTES) + varint(2**40)
    else:
        yield "a number that breaks off", tag(field.number, wire_type) + b"\0"


def legal_of(field):
    """(what it is, tag and bytes) of everything that a peer may send in this field."""
    own = tag(field.number, wire_type_of(field))
    values = values_of(field)
    for name, data in values:
        yield name, own + data
    if not field.is_repeated:
        return
    yield f"{MANY} times {values[0][0]}", (own + values[0][1]) * MANY
    yield f"{MANY} times {values[1][0]}", (own + values[1][1]) * MANY
    if wire_type_of(field) != BYTES:
        packed = tag(field.number, BYTES)
        yield "packed, empty", packed + sized(b"")
        yield "packed, every value", packed + sized(b"".join(data for _, data in values))


def paths(descriptor, outer=()):
    """Every field of the message and of the messages in it: a tuple of descriptors from outside in."""
    for field in descriptor.fields:
        path = (*outer, field)
        yield path
        if field.message_type is not None and len(path) < DEPTH_MAX:
            if all(field.message_type is not each.message_type for each in outer):
                yield from paths(field.message_type, path)


def name_of(path):
    return ".".join(field.name for field in path)


def word_of(path):
    """What a sentence about the field must have in it: an entry of a map has the map's name."""
    is_entry = len(path) > 1 and path[-2].message_type.GetOptions().map_entry
    return path[-2 if is_entry else -1].name


def splice(message, path, data):
    """The message's bytes with `data` as last field of the innermost message that the path leads to.

    `message` may be None for one that is empty.
    """
    if len(path) == 1:
        return (message.SerializeToString() if message is not None else b"") + data
    field, inner, rest = path[0], None, b""
    if message is not None:
        outside = type(message).FromString(message.SerializeToString())
        if not field.is_repeated and message.HasField(field.name):
            inner = getattr(message, field.name)
        outside.ClearField(field.name)
        rest = outside.SerializeToString()
    return rest + tag(field.number, BYTES) + sized(splice(inner, path[1:], data))
