"""House rules, checked. usage: lint.py RULE --build DIR, in the root of the checkout.

Prints every offence as "file:line: sentence" and ends with a non-zero status when there is one.
"""

import argparse
import concurrent.futures
import os
import pathlib
import re
import shutil
import subprocess
import sys

FOLDERS = ["base", "proto", "transport", "stage", "coordinator", "client"]

# What each folder may include of the others: base <- proto <- transport <- {stage, coordinator}.
INCLUDES_ALLOWED = {
    "base": {"base"},
    "proto": {"base", "proto"},
    "transport": {"base", "proto", "transport"},
    "stage": {"base", "proto", "transport", "stage"},
    "coordinator": {"base", "proto", "transport", "coordinator"},
    "client": {"base", "proto", "transport", "client"},
}
# The pure parts of the services that the client's simulations run.
CLIENT_INCLUDES_ALLOWED = {"coordinator/cluster.h", "coordinator/flow.h", "coordinator/plan.h",
                           "stage/feedback.h"}

# Headers of others, and the only files that may include them.
VENDOR_HOMES = [
    (r"grpc/(?!.*\.pb-c\.h).*",
     r"transport/rpc(_\w+)?\.c|tests/bench/rpc_(minimal|caller)\.c|transport/rpc_(internal|metadata|refusal|wire)\.h"),
    (r"openssl/.*", r"transport/rpc_(pem|token)\.c"),
    (r"(ucp|uct|ucs|ucm)/.*", r"transport/link_ucx\w*\.[ch]"),
    (r"nccl\.h", r"transport/\w+_nccl\.c"),
    (r"(cuda|cublas|nvml|nvtx).*", r"stage/cuda/.*|transport/\w+_nccl\.c"),
    (r"microhttpd\.h", r"coordinator/metrics_http\.c"),
    (r"pcre2\.h|utf8proc\.h", r"coordinator/.*"),
    (r"sodium\.h", r"transport/link_crypto\.c|coordinator/vllm_tokenizer\.c"),
    (r"zlib\.h", r"coordinator/archive\.c"),
    # Messages only where they are packed or unpacked.
    (r"grpc/.*\.pb-c\.h", r"transport/rpc_(health|reflection)\.c|client/.*"),
    (r"stagecoach/v1/.*\.pb-c\.h", r"(proto|coordinator|client)/.*|stage/control\w*\.[ch]|transport/rpc_refusal\.c"),
]

ISA_FLAGS = {
    "avx2": "-mavx2 -mfma -mf16c",
    "avx512": "-mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512dq -mavx512vl",
}

FILE_LINES_REPORTED = 500
FILE_LINES_MAX = 800
FUNCTION_LINES_REPORTED = 70

# Spelled in two parts so that this file does not offend.
WORDS_FORBIDDEN = ["TO" + "DO", "FIX" + "ME", "XX" + "X:", "#if" + " 0"]

PROGRAMS = [
    ["bin/stagecoach-coordinator"],
    ["bin/stagecoach-stage"],
    ["bin/stagecoach", "generate"],
    ["bin/stagecoach", "status"],
    ["bin/stagecoach", "health"],
    ["bin/stagecoach", "trace"],
    ["bin/stagecoach", "model"],
    ["bin/stagecoach", "tokenize"],
    ["bin/stagecoach", "detokenize"],
    ["bin/stagecoach", "simulate"],
]


def sources(*suffixes, folders=FOLDERS):
    paths = []
    for folder in folders:
        for path in sorted(pathlib.Path(folder).rglob("*")):
            if path.suffix in suffixes and path.is_file():
                paths.append(path)
    return paths


def includes_of(path):
    for number, line in enumerate(path.read_text().splitlines(), 1):
        match = re.match(r'\s*#\s*include\s*[<"]([^>"]+)[>"]', line)
        if match:
            yield number, match.group(1)


def check_include(path, name):
    for vendor, home in VENDOR_HOMES:
        if re.fullmatch(vendor, name) and not re.fullmatch(home, str(path)):
            return f"only {home} may include {name}"
    folder, target = path.parts[0], name.split("/")[0]
    if target not in FOLDERS or target in INCLUDES_ALLOWED[folder]:
        return None
    if folder == "client" and name in CLIENT_INCLUDES_ALLOWED:
        return None
    return f"{folder} must not include {name}"


def rule_includes(_build):
    offences = []
    for path in sources(".c", ".h"):
        for number, name in includes_of(path):
            sentence = check_include(path, name)
            if sentence:
                offences.append(f"{path}:{number}: {sentence}")
    return offences


def in_parallel(function, items):
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return [offence for offences in pool.map(function, items) for offence in offences]


def rule_headers(build):
    """Each header compiles alone, with the warnings of the build."""
    packages = "grpc libprotobuf-c ucx jansson libpcre2-8 libutf8proc"
    flags = subprocess.run(
        ["pkg-config", "--cflags-only-I", *packages.split()],
        check=True, capture_output=True, text=True).stdout.split()
    base = ["gcc", "-std=gnu17", "-D_GNU_SOURCE", "-DKERNELS_VARIANT=lint", "-Wall", "-Wextra",
            "-Werror", "-Wno-unused-function", "-fsyntax-only", "-I.",
            "-isystem", f"{build}/proto/generated", *flags, "-x", "c", "-"]

    x86 = os.uname().machine == "x86_64"

    def check(path):
        # Headers of one instruction set are named for it, as the build's flags are.
        sets = [flag for name, flag in ISA_FLAGS.items() if name in path.name]
        if sets and not x86:
            return []
        command = base[:1] + [flag for each in sets for flag in each.split()] + base[1:]
        result = subprocess.run(command, input=f'#include "{path}"\n', capture_output=True, text=True)
        if result.returncode == 0:
            return []
        return [f"{path}:1: does not compile alone\n{result.stderr}"]

    return in_parallel(check, sources(".h"))


def rule_format(_build):
    tool = shutil.which("clang-format-14")
    if tool is None:
        return ["clang-format-14 is missing: deploy/install --tests"]
    paths = sources(".c", ".h", folders=FOLDERS + ["tests"])

    def check(path):
        result = subprocess.run([tool, "--dry-run", "-Werror", "--ferror-limit=1", path],
                                capture_output=True, text=True)
        return [result.stderr] if result.returncode else []

    return in_parallel(check, paths)


def function_lengths(lines):
    """(first line, name, lines) of each function: its body begins and ends in column 0."""
    begin, head = None, ""
    for number, line in enumerate(lines, 1):
        if begin is None and re.match(r"\w.*\) \{$|\s+.*\) \{$", line):
            # The head may have begun some lines above, where a line starts in column 0.
            start = number
            while start > 1 and lines[start - 1][:1].isspace():
                start -= 1
            if re.match(r"(static|struct|enum|union|const|unsigned|\w+)\b[^=;]*\(", lines[start - 1]):
                begin, head = start, lines[start - 1]
        elif begin is not None and line == "}":
            yield begin, re.search(r"(\w+)\(", head).group(1), number - begin + 1
            begin = None


def rule_lengths(_build):
    offences = []
    for path in sources(".c", ".h", folders=FOLDERS + ["tests"]):
        lines = path.read_text().splitlines()
        if len(lines) > FILE_LINES_MAX:
            offences.append(f"{path}:1: {len(lines)} lines, at most {FILE_LINES_MAX}")
        elif len(lines) > FILE_LINES_REPORTED:
            print(f"note: {path}: {len(lines)} lines")
        for number, name, count in function_lengths(lines):
            if count > FUNCTION_LINES_REPORTED:
                print(f"note: {path}:{number}: {name}() has {count} lines")
    return offences


def rule_words(_build):
    offences = []
    suffixes = {".c", ".h", ".py", ".proto", ".txt", ".md", ".json", ".cmake", ".supp", ""}
    for root, folders, names in os.walk("."):
        folders[:] = [f for f in folders if f not in {"build", "testdata", "corpus", "checkpoint"}
                      and (not f.startswith(".") or f == ".ci")]
        for name in names:
            path = pathlib.Path(root, name)
            if path.suffix not in suffixes or path.is_symlink():
                continue
            try:
                lines = path.read_text().splitlines()
            except UnicodeDecodeError:
                continue
            for number, line in enumerate(lines, 1):
                offences += [f"{path}:{number}: has {word}" for word in WORDS_FORBIDDEN
                             if word in line]
    return offences


def rule_options(build):
    """Every option that a program's help names is in README.md."""
    readme = pathlib.Path("README.md")
    if not readme.exists():
        return ["README.md:1: does not exist"]
    documented = set(re.findall(r"--[a-z][a-z0-9-]*", readme.read_text()))
    offences = []
    commands = [[f"{build}/{program}", *verb] for program, *verb in PROGRAMS]
    for command in commands + [["deploy/demo"]]:
        text = subprocess.run([*command, "--help"], check=True, capture_output=True, text=True,
                              timeout=30).stdout
        named = set(re.findall(r"^  (--[a-z][a-z0-9-]*)", text, re.MULTILINE))
        if "--help" not in named:
            offences.append(f"{' '.join(command)} --help does not list --help")
        offences += [f"README.md:1: lacks {name} of {' '.join(command)}"
                     for name in sorted(named - documented)]
    return offences


def rule_tidy(build):
    tool = shutil.which("clang-tidy-14")
    if tool is None:
        return ["clang-tidy-14 is missing: deploy/install --tests"]

    def check(path):
        result = subprocess.run([tool, "-p", build, "--quiet", path], capture_output=True,
                                text=True)
        return [result.stdout] if result.returncode else []

    return in_parallel(check, [p for p in sources(".c") if not str(p).startswith("stage/cuda/")])


RULES = {
    "includes": rule_includes,
    "headers": rule_headers,
    "format": rule_format,
    "lengths": rule_lengths,
    "words": rule_words,
    "options": rule_options,
    "tidy": rule_tidy,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rule", choices=sorted(RULES))
    parser.add_argument("--build", required=True, help="folder of an optimised build")
    arguments = parser.parse_args()
    offences = RULES[arguments.rule](arguments.build)
    for offence in offences:
        print(offence)
    print(f"{arguments.rule}: {len(offences)} offences")
    return 1 if offences else 0


if __name__ == "__main__":
    sys.exit(main())
