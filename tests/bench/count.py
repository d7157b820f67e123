"""Instructions of each operation on elements, counted by valgrind: the same in every run, where a
time would be noise. valgrind emulates a processor without AVX-512, so these are those of AVX2.

usage: count.py KERNELS_BENCH [--kernel NAME] [--json]
"""

import argparse
import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

CALL_COUNT = 20


def count(program, kernel, folder):
    """(elements of each operation, instructions of each)"""
    out = pathlib.Path(folder, "callgrind.out")
    run = subprocess.run(
        ["valgrind", "--quiet", "--tool=callgrind", f"--callgrind-out-file={out}", program,
         "--calls", str(CALL_COUNT), "--kernel", kernel],
        check=True, stdout=subprocess.PIPE, text=True)
    report = subprocess.run(
        ["callgrind_annotate", "--inclusive=yes", "--threshold=100", str(out)],
        check=True, stdout=subprocess.PIPE, text=True).stdout
    instructions = {}
    for line in report.splitlines():
        match = re.match(r"\s*([\d,]+) .*kernels_elements_bench\.c:(\w+)_call\b", line)
        if match:
            instructions.setdefault(match.group(2), int(match.group(1).replace(",", "")))
    return json.loads(run.stdout.splitlines()[-1]), instructions


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program")
    parser.add_argument("--kernel", default="auto")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if shutil.which("valgrind") is None:
        sys.exit("count.py: valgrind is missing, install Debian's package of that name")
    with tempfile.TemporaryDirectory() as folder:
        done, instructions = count(arguments.program, arguments.kernel, folder)
    each = {name: instructions[name] / elements for name, elements in done["elements"].items()}
    print(f"{done['kernel']} kernels: instructions an element, 16 rows")
    for name, value in each.items():
        print(f"  {name:16} {value:8.4f}")
    if arguments.json:
        print(json.dumps({"benchmark": "kernels", "kernel": done["kernel"],
                          "instructions_per_element": each}))


if __name__ == "__main__":
    main()
