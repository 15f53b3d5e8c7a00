#!/usr/bin/env python3
"""Every .proto message, field, enum, value, service and rpc, and every class and struct of a public header, has a comment.

A comment counts if it stands on the line before, or (fields and values only) on the same line.
"""
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROTO_ITEM = re.compile(r"^\s*(message|enum|service|rpc)\s+(\w+)|^\s*(?:repeated\s+|optional\s+)?[\w.<>, ]+\s+(\w+)\s*=\s*\d+\s*[;\[]|^\s*([A-Z][A-Z0-9_]*)\s*=\s*\d+\s*;")
CPP_CLASS = re.compile(r"^(?:class|struct)\s+(?:[A-Z_]+(?:\([^)]*\))?\s+)?(\w+)[^;]*(?:\{|$)")


def has_comment(lines, index, same_line):
    if same_line and "//" in lines[index]:
        return True
    previous = index - 1
    while previous >= 0 and re.match(r"^\s*template\s*<", lines[previous]):
        previous -= 1
    return previous >= 0 and lines[previous].strip().startswith("//")


def proto_findings(path):
    lines = path.read_text().splitlines()
    for index, line in enumerate(lines):
        found = PROTO_ITEM.match(line)
        if found and not line.strip().startswith(("//", "syntax", "package", "import", "option")):
            is_block = found.group(1) is not None
            if not has_comment(lines, index, not is_block):
                yield index + 1, next(group for group in found.groups()[1:] if group)


def header_findings(path):
    lines = path.read_text().splitlines()
    if not lines or not lines[0].startswith("//"):
        yield 1, "the header itself (first line: its purpose)"
    for index, line in enumerate(lines):
        found = CPP_CLASS.match(line)
        if found and not line.rstrip().endswith(";") and not has_comment(lines, index, False):
            yield index + 1, found.group(1)


def self_test():
    """The patterns see what they should: a gate that cannot fail is worse than none."""
    assert PROTO_ITEM.match("  repeated string admin = 1;") and PROTO_ITEM.match("  MEMBER_STATE_UP = 2;")
    assert PROTO_ITEM.match("  optional uint64 budget_mib = 2;") and PROTO_ITEM.match("  rpc Get(A) returns (B);")
    assert CPP_CLASS.match("class ABSL_LOCKABLE Mutex {") and CPP_CLASS.match("struct ProbeItem {")
    assert not CPP_CLASS.match("class Forward;")


def main():
    self_test()
    listed = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True, text=True)
    bad = 0
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if not path.is_file():
            continue
        if name.endswith(".proto"):
            findings = proto_findings(path)
        elif name.endswith(".h"):
            findings = header_findings(path)
        else:
            continue
        for line, what in findings:
            print(f"{name}:{line}: {what} has no comment")
            bad += 1
    return 1 if bad else 0


sys.exit(main())
