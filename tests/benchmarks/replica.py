#!/usr/bin/env python3
"""The storage replica table alone, on this host: one thread that changes it, and the thread that writes its database; and what it costs a disk.

    updates      pages through disk requests of 128 KiB in no order: the old entry goes, a new one is pending, then valid; per second
    removals     stores to tracked pages, in no order; lookups: blocks asked for by 32, all of them found
    durable      changes per second into RocksDB in build/, at the promised rate: the queue at half time and at the end; and at most
    scan         entries of an earlier process found again
    bytes        memory of table and index per tracked page, all of a 4 GiB guest tracked
    disk_*       a virtio disk on the page cache, one request of 128 KiB or 4 KiB at a time, none of it found in memory: MiB/s with the table, and with
                 table and database; the floor is the disk without either
"""
import json
import os
import pathlib
import statistics
import subprocess
import tempfile

from figure import emit

BIN = pathlib.Path(os.environ['HK_BIN'])
PROGRAM = BIN / 'replica_bench'
ROUNDS = int(os.environ.get('HK_BENCH_ROUNDS', '3'))
DURABLE_S = int(os.environ.get('HK_BENCH_SECONDS', '20'))
RUN_S = 600
PAGES = 1 << 20
# Of the issue. A queue that is this long or shorter is one round of the writer.
LIMIT_UPDATES, LIMIT_DURABLE, LIMIT_SCAN, LIMIT_BYTES, QUEUE_OF_A_ROUND = 1.5e6, 300e3, 2e6, 48, 1 << 16


def run(*arguments):
    return json.loads(subprocess.run([PROGRAM, *map(str, arguments)], check=True, stdout=subprocess.PIPE, text=True, timeout=RUN_S).stdout)


def median(runs, name):
    return statistics.median(each[name] for each in runs)


def durable(rate):
    with tempfile.TemporaryDirectory(dir=BIN.parent) as directory:
        return run('durable', directory, DURABLE_S, rate)


updates = [run('updates', PAGES) for _ in range(ROUNDS)]
emit('replica.updates', median(updates, 'pages_per_s'), '1/s', limit=LIMIT_UPDATES, at_least=True)
emit('replica.removals', median(updates, 'removals_per_s'), '1/s')
emit('replica.lookups', median(updates, 'lookups_per_s'), '1/s')
steady = durable(LIMIT_DURABLE)
emit('replica.durable', steady['written_per_s'], '1/s', limit=LIMIT_DURABLE * 0.99, at_least=True, cpu_s=steady['cpu_s'], seconds=steady['seconds'])
emit('replica.durable_queue', steady['queue_end'], 'changes', limit=max(QUEUE_OF_A_ROUND, 1.5 * steady['queue_half_way']),
     queue_half_way=steady['queue_half_way'], queue_most=steady['queue_most'], anew=steady['anew'])
most = durable(0)
emit('replica.durable_most', most['written_per_s'], '1/s', anew=most['anew'])
emit('replica.scan', median([run('scan', PAGES) for _ in range(ROUNDS)], 'entries_per_s'), '1/s', limit=LIMIT_SCAN, at_least=True)
emit('replica.bytes', run('bytes', PAGES)['bytes_per_page'], 'bytes/page', limit=LIMIT_BYTES)
for what, size in (('read', 128 << 10), ('read', 4 << 10), ('write', 128 << 10), ('write', 4 << 10)):
    with tempfile.TemporaryDirectory(dir=BIN.parent) as directory:
        done = json.loads(subprocess.run([BIN / 'replica_disk_bench', what, str(size)], check=True, stdout=subprocess.PIPE, text=True, timeout=RUN_S,
                                         cwd=directory).stdout)
    for kind in ('memory', 'durable'):
        emit(f'replica.disk_{what}_{size >> 10}k_{kind}', done[kind], 'MiB/s', floor=done['none'])
