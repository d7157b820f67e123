"""Damages copies of a model folder, each in one way, for tests of what refuses them."""

import json
import pathlib
import shutil
import struct

from harness import MODEL


def copy_model(folder, source=MODEL):
    target = pathlib.Path(folder, "model")
    shutil.copytree(source, target)
    return target


def edit_json(path, **changes):
    """Sets fields; a value of None removes one."""
    fields = json.loads(path.read_text())
    fields.update(changes)
    path.write_text(json.dumps({k: v for k, v in fields.items() if v is not None}))


def read_header(path):
    """The JSON header of a safetensors file and where the data begins."""
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        return json.loads(file.read(size)), 8 + size


def edit_header(path, change):
    """Calls change(header) and writes the file with the new header."""
    header, data_begin = read_header(path)
    data = path.read_bytes()[data_begin:]
    change(header)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the data stays aligned
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def truncate(path, share=0.5):
    with path.open("r+b") as file:
        file.truncate(int(path.stat().st_size * share))


def weight_files(folder):
    return sorted(folder.glob("*.safetensors"))
