#!/usr/bin/env python3
"""The layering holds, and its enforcement works.

Three parts. Between our own folders the link graph decides (CMakeLists.txt: hk_folder, hk_must_not_know); here a planted
include and a planted dependency must fail. What the link graph cannot see, the headers of system libraries, is checked by a
table of which folder may include which. And the top level of the tree is exactly what it should be.
"""
import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOP = {"CMakeLists.txt", "CMakePresets.json", "CHANGELOG.md", "LICENSE", "README.md", "proto", "hyperkernel", "storage-replica", "rdma",
       "migration", "deploy", "tests"}
# Header prefix -> folders that may include it. Tests beside units follow their folder.
ALLOWED = {
    "grpcpp/": ("hyperkernel/node", "hyperkernel/cli", "tests"),
    "proto/": ("proto", "hyperkernel/node", "hyperkernel/cli", "storage-replica", "migration", "tests"),
    "linux/kvm.h": ("hyperkernel/kvm",),
    "linux/userfaultfd.h": ("hyperkernel/memory", "tests/benchmarks"),
    "infiniband/": ("rdma", "tests"),
    "rdma/": ("rdma", "hyperkernel/memory", "hyperkernel/node", "migration", "tests"),
    "rocksdb/": ("storage-replica", "hyperkernel/node", "tests"),
}
INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', re.MULTILINE)


def files():
    listed = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True, text=True)
    return [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def check_top(names):
    found = {name.split("/")[0] for name in names}
    found = {name for name in found if not name.startswith(".")}
    for name in sorted(found ^ TOP):
        yield f"{name}: {'not part of' if name in found else 'missing from'} the top level"


def check_includes(names):
    for name in names:
        if not name.endswith((".cc", ".h")):
            continue
        for header in INCLUDE.findall((ROOT / name).read_text()):
            for prefix, folders in ALLOWED.items():
                if header.startswith(prefix) and not name.startswith(tuple(folder + "/" for folder in folders)):
                    yield f"{name}: may not include {header}"


def must_fail(what, command, expected):
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    output = run.stdout + run.stderr
    if run.returncode == 0:
        yield f"{what}: was not refused"
    elif not re.search(expected, output):
        yield f"{what}: failed for another reason:\n{output[-2000:]}"


def check_enforcement():
    include = ROOT / "build/dev/include/hk_irq"
    with tempfile.TemporaryDirectory() as directory:
        source = pathlib.Path(directory) / "planted.cc"
        source.write_text('#include "hyperkernel/node/config.h"\n')
        yield from must_fail("a planted include of node in irq", ["g++", "-std=c++20", "-fsyntax-only", f"-I{include}", str(source)], "No such file")
        copy = pathlib.Path(directory) / "tree"
        subprocess.run(["cp", "-r", "--no-preserve=mode", *[str(ROOT / name) for name in sorted(TOP) if (ROOT / name).exists()], str(copy) + "/"],
                       check=True) if copy.mkdir() is None else None
        irq = copy / "hyperkernel/irq/CMakeLists.txt"
        irq.write_text(irq.read_text().replace("DEPS hk_base", "DEPS hk_base hk_memory"))
        yield from must_fail("a planted dependency of irq on memory",
                             ["cmake", "-G", "Ninja", "-S", str(copy), "-B", directory + "/build", "-DBUILD_TESTING=OFF"],
                             "layering: hk_irq must not know hk_")


def main():
    names = files()
    bad = [*check_top(names), *check_includes(names), *check_enforcement()]
    print("\n".join(bad))
    return 1 if bad else 0


sys.exit(main())
