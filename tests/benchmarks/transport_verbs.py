#!/usr/bin/env python3
"""The transport over verbs: request -> page and bulk rate, beside perftest on the same device in the same run.

Both ends are processes of one host, on the device that has HK_VERBS_ADDRESS; without that variable the bench runs itself in the lab,
over rxe. Floors: `ib_read_lat -s 4096` + `ib_send_lat -s 64` (a round trip that fetches a page, and the way of a request), and
`ib_write_bw`. Product and perftest wait alike: blocking beside events (-e); and, on hosts with a CPU for each poller, busy beside
perftest's own polling. ib_write_bw always polls: perftest has no events for writes. Rounds interleave; each figure is the median of
the rounds' ratios times the median floor.
"""
import contextlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

from figure import emit
import lab_run

ROUNDS = int(os.environ.get('HK_BENCH_ROUNDS', '5'))
LATENCY_LIMIT, BULK_LIMIT = 1.5, 0.7
# What the transport really sends for a page: a request; then the page and its header, which with a path MTU of 4096 are two packets.
REQUEST_BYTES, ANSWER_BYTES = 160, 4096 + 160
PAGES, BULKS = 1500, 1500
BULK_BYTES = 64 << 10
PORT, FLOOR_PORT = 7400, 7410
ENDS_WITHIN_S, LISTENS_WITHIN_S = 60, 15
POLLERS = 2 * 3  # a thread per class at each end
TYPICAL = 4  # column of perftest's latencies: the median
AVERAGE_MB_S = 3  # of its rates, in MB/s of 2^20 bytes
MIB = 1 << 20


def own():
    return os.environ.get('HK_VERBS_ADDRESS', '10.77.0.1')


@contextlib.contextmanager
def server(argv):
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        yield process
        process.wait(timeout=ENDS_WITHIN_S)
    finally:
        process.kill()
        process.communicate()


def product(what, wait, count):
    """One measurement of the transport: what transport_bench prints."""
    program = pathlib.Path(os.environ['HK_BIN'], 'transport_bench')
    ends = f'{own()}:{PORT}', f'{own()}:{PORT + 1}'
    with server([program, 'serve', 'verbs', wait, *ends]):
        done = subprocess.run([program, what, 'verbs', wait, *reversed(ends), str(count)], check=True, stdout=subprocess.PIPE, text=True,
                              timeout=ENDS_WITHIN_S)
    return json.loads(done.stdout)


def perftest(program, size, count, column, *options):
    """One measurement of perftest: a column of the line that it prints for the size."""
    argv = [program, '-R', '-F', '-s', str(size), '-n', str(count), '-p', str(FLOOR_PORT), *options]
    with server(argv) as serving:
        deadline = time.monotonic() + LISTENS_WITHIN_S
        while True:  # a client that comes before the server listens is refused
            time.sleep(0.1)
            done = subprocess.run([*argv, own()], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=ENDS_WITHIN_S)
            for line in done.stdout.splitlines():
                words = line.split()
                if len(words) > column and words[0] == str(size):
                    return float(words[column])
            if time.monotonic() > deadline or serving.poll() is not None:
                raise RuntimeError(f'{program} said:\n{done.stdout}')


def measure(wait):
    """Rounds of all four, in turns: product, floor; then floor, product."""
    events = ['-e'] if wait == 'blocking' else []
    rounds = []
    for number in range(ROUNDS):
        figures = {}
        steps = [
            ('page', lambda: product('pingpong', wait, PAGES)['p50_us']),
            ('read', lambda: perftest('ib_read_lat', 4096, PAGES, TYPICAL, *events)),
            ('send', lambda: perftest('ib_send_lat', 64, PAGES, TYPICAL, *events)),
            ('request', lambda: perftest('ib_send_lat', REQUEST_BYTES, PAGES, TYPICAL, *events)),
            ('answer', lambda: perftest('ib_send_lat', ANSWER_BYTES, PAGES, TYPICAL, *events)),
            ('bulk', lambda: product('bulk', wait, BULKS)['mb_per_s']),
            ('write', lambda: perftest('ib_write_bw', BULK_BYTES, BULKS, AVERAGE_MB_S) * MIB / 1e6),
        ]
        for name, step in steps if number % 2 == 0 else reversed(steps):
            figures[name] = round(step(), 2)
            print(f'{wait} {number}: {name} {figures[name]}', file=sys.stderr, flush=True)
        rounds.append(figures)
    return rounds


def median(rounds, value):
    return statistics.median(value(one) for one in rounds)


def report(wait, rounds):
    floor_wait = 'events' if wait == 'blocking' else 'busy'
    floor = median(rounds, lambda one: one['read'] + one['send'])
    ratio = median(rounds, lambda one: one['page'] / (one['read'] + one['send']))
    emit(f'transport.verbs.page_{wait}', ratio * floor, 'us', floor, LATENCY_LIMIT * floor, wait=wait, floor_wait=floor_wait,
         floor_is='ib_read_lat -s 4096 + ib_send_lat -s 64', p50_us=round(median(rounds, lambda one: one['page']), 1))
    floor = median(rounds, lambda one: one['request'] + one['answer'])
    ratio = median(rounds, lambda one: one['page'] / (one['request'] + one['answer']))
    emit(f'transport.verbs.page_{wait}_beside_two_sends', ratio * floor, 'us', floor, wait=wait, floor_wait=floor_wait,
         floor_is=f'ib_send_lat -s {REQUEST_BYTES} + ib_send_lat -s {ANSWER_BYTES}: both ends woken, as a page fault wakes them')
    floor = median(rounds, lambda one: one['write'])
    ratio = median(rounds, lambda one: one['bulk'] / one['write'])
    emit(f'transport.verbs.bulk_{wait}', ratio * floor, 'MB/s', floor, BULK_LIMIT * floor, at_least=True, wait=wait, floor_wait='busy',
         floor_is='ib_write_bw', mb_per_s=round(median(rounds, lambda one: one['bulk']), 1))


def main():
    for wait in ['blocking', *(['busy'] if len(os.sched_getaffinity(0)) > POLLERS else [])]:
        report(wait, measure(wait))


if lab_run.inside() or 'HK_VERBS_ADDRESS' in os.environ:
    main()
else:
    sys.exit(lab_run.enter(__file__, limit_s=280))
