#!/usr/bin/env python3
"""Faults of a program on the view of a space: a process for each node, over TCP on this host.

Floors of the same run and wait mode: a local uffd fault (a reader thread copies a zero page in), and the round trip of bare sockets,
64 bytes -> 4 KiB. Product and floors take turns; a figure's ratio is the median of the rounds' ratios.

    read, upgrade, write    of pages that the other node, their home, has written, in no order; upgrade: of those just read
    read_three_hops         requester, home and owner are three nodes
    dormant                 the first store to a page that nobody ever wrote, at home here
    scan                    1 GiB that the last node has written, read in order; beside the transport's bulk throughput, 64 KiB at a time.
                            By two and three nodes, each its part; beside one. All of them share this host's CPUs
    read_beside_scan        read, while another thread of the same node scans other pages; beside read alone
    tables                  bytes of directory, page tables and access maps per byte of guest memory, on all nodes together. private: two nodes,
                            one has written all; mixed: four, each page written by any of them and then read by any of the others
    sparse                  a space of 1 TiB, nothing touched
    touches                 first touches per second, by so many threads in as many userfaultfds (1 GiB each); beside the same in one
"""
import json
import os
import pathlib
import statistics
import subprocess

from figure import emit, emit_pairs
from transport import run as run_transport

PROGRAM = pathlib.Path(os.environ['HK_BIN']) / 'fault_bench'
ROUNDS = int(os.environ.get('HK_BENCH_ROUNDS', '5'))
RUN_S = 120
FAULTS = 3000
# Of the issue.
LIMIT_READ, LIMIT_P99, LIMIT_UPGRADE, LIMIT_DORMANT = 1.6, 4, 1.5, 1.3
LIMIT_SCAN, LIMIT_SCAN_BY_2, LIMIT_PRIVATE, LIMIT_MIXED, LIMIT_SPARSE_S, LIMIT_SPARSE_MIB = 0.6, 1.3, 0.003, 0.012, 1, 64
SCAN_PAGES = 1 << 18
TABLE_PAGES = 1 << 15
SPARSE_PAGES = 1 << 28
TOUCHES = 20000


def run(wait, nodes, count=FAULTS, what='faults'):
    line = subprocess.run([PROGRAM, wait, str(nodes), str(count), what], check=True, stdout=subprocess.PIPE, text=True, timeout=RUN_S).stdout
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


def measure_scans(wait):
    rounds = [(run_transport('bulk', 'tcp', wait)['mb_per_s'], *(run(wait, nodes, SCAN_PAGES, 'scan') for nodes in (2, 3, 4)))
              for _ in range(max(1, ROUNDS // 2))]
    emit_pairs(f'fault.scan_{wait}', [(one['mb_per_s'], bulk) for bulk, one, *_ in rounds], 'MB/s', LIMIT_SCAN, at_least=True, wait=wait,
               prefetch_useful=rounds[0][1]['useful'], prefetch_wasted=rounds[0][1]['wasted'])
    for scanners, limit in ((2, LIMIT_SCAN_BY_2), (3, None)):
        emit_pairs(f'fault.scan_by_{scanners}_{wait}', [(r[scanners]['mb_per_s'], r[1]['mb_per_s']) for r in rounds], 'MB/s', limit,
                   at_least=True, wait=wait, cpus=os.cpu_count())
    rounds = [run(wait, 2, FAULTS, 'beside') for _ in range(ROUNDS)]
    for percentile in ('p50', 'p99'):
        emit_pairs(f'fault.read_beside_scan_{percentile}_{wait}', [(r[f'beside_{percentile}_us'], r[f'alone_{percentile}_us']) for r in rounds],
                   'us', wait=wait, scan_mb_per_s=statistics.median(r['scan_mb_per_s'] for r in rounds),
                   reads=statistics.median(r['beside_reads'] for r in rounds), cpus=os.cpu_count())


def measure_tables():
    private, mixed = (run('blocking', nodes, TABLE_PAGES, 'tables') for nodes in (2, 4))
    emit('fault.tables_private', private['private'] * 100, '%', limit=LIMIT_PRIVATE * 100, untouched_kib=private['untouched_kib'])
    emit('fault.tables_mixed', mixed['mixed'] * 100, '%', limit=LIMIT_MIXED * 100)
    sparse = [run('blocking', 1, SPARSE_PAGES, 'sparse') for _ in range(ROUNDS)]
    emit('fault.sparse_1tib_create', statistics.median(s['seconds'] for s in sparse), 's', limit=LIMIT_SPARSE_S)
    emit('fault.sparse_1tib_resident', statistics.median(s['resident_mib'] for s in sparse), 'MiB', limit=LIMIT_SPARSE_MIB)


def measure_shards():
    for shards in (1, 2, 4, 8):
        rounds = [run('blocking', shards, TOUCHES, 'shards') for _ in range(ROUNDS)]
        emit_pairs(f'fault.touches_{shards}_shards', [(r['apart_per_s'], r['together_per_s']) for r in rounds], 'faults/s', cpus=os.cpu_count())


measure('blocking')
measure_scans('blocking')
measure_tables()
measure_shards()
# Each node then has a thread that never sleeps, beside the program's and the reader's: with fewer CPUs the scheduler is measured.
if os.cpu_count() >= 6:
    measure('busy')
