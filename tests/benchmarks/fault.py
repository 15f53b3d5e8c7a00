#!/usr/bin/env python3
"""Faults of a program on the view of a space: a process for each node, over TCP on this host.

Floors of the same run and wait mode: a local uffd fault (a reader thread copies a zero page in), and the round trip of bare sockets,
64 bytes -> 4 KiB. Product and floors take turns; a figure's ratio is the median of the rounds' ratios.

    read, upgrade, write    of pages that the other node, their home, has written; upgrade: of those just read
    read_three_hops         requester, home and owner are three nodes
    dormant                 the first store to a page that nobody ever wrote, at home here
"""
import json
import os
import pathlib
import subprocess

from figure import emit_pairs
from transport import run as run_transport

PROGRAM = pathlib.Path(os.environ['HK_BIN']) / 'fault_bench'
ROUNDS = int(os.environ.get('HK_BENCH_ROUNDS', '5'))
RUN_S = 120
FAULTS = 3000
# Of the issue.
LIMIT_READ, LIMIT_P99, LIMIT_UPGRADE, LIMIT_DORMANT = 1.6, 4, 1.5, 1.3


def run(wait, nodes):
    line = subprocess.run([PROGRAM, wait, str(nodes), str(FAULTS)], check=True, stdout=subprocess.PIPE, text=True, timeout=RUN_S).stdout
    return json.loads(line)


def measure(wait):
    rounds = [(run(wait, 2), run(wait, 3), run_transport('pingpong', 'bare', wait)) for _ in range(ROUNDS)]

    def pairs(of, floor):
        return [(of(*r), floor(*r)) for r in rounds]

    def remote(two, _, bare):
        return two['uffd_p50_us'] + bare['p50_us']

    emit_pairs(f'fault.read_p50_{wait}', pairs(lambda r, *_: r['read_p50_us'], remote), 'us', LIMIT_READ, wait=wait)
    emit_pairs(f'fault.read_p99_{wait}', pairs(lambda r, *_: r['read_p99_us'], lambda r, *_: r['read_p50_us']), 'us', LIMIT_P99, wait=wait)
    emit_pairs(f'fault.upgrade_p50_{wait}', pairs(lambda r, *_: r['upgrade_p50_us'], lambda r, *_: r['read_p50_us']), 'us', LIMIT_UPGRADE,
               wait=wait)
    emit_pairs(f'fault.write_p50_{wait}', pairs(lambda r, *_: r['write_p50_us'], remote), 'us', wait=wait)
    emit_pairs(f'fault.dormant_p50_{wait}', pairs(lambda r, *_: r['dormant_write_p50_us'], lambda r, *_: r['uffd_p50_us']), 'us',
               LIMIT_DORMANT, wait=wait)
    emit_pairs(f'fault.dormant_read_p50_{wait}', pairs(lambda r, *_: r['dormant_read_p50_us'], lambda r, *_: r['uffd_p50_us']), 'us',
               wait=wait)
    emit_pairs(f'fault.read_three_hops_p50_{wait}', pairs(lambda _, three, __: three['read_p50_us'], remote), 'us', wait=wait)


measure('blocking')
# Each node then has a thread that never sleeps, beside the program's and the reader's: with fewer CPUs the scheduler is measured.
if os.cpu_count() >= 6:
    measure('busy')
