#!/usr/bin/env python3
"""Pages over the wire: request -> page, bulk, CPU of a page. Two processes on this host, over TCP.

Floor: bare sockets between two processes, same sizes, same wait mode, in the same run: product and floor take turns, and a figure's ratio
is the median of the rounds' ratios. p50 and p99 are of one run each, their medians over the rounds.

    request_page    64 bytes -> 4 KiB, one at a time (the floor: a ping-pong)
    pages           the same, 16 under way, as when some vCPUs fault at once
    bulk            64 KiB answers, 8 under way (the floor: a `send` loop, which asks for nothing)
"""
import json
import os
import pathlib
import socket
import subprocess

from figure import emit, emit_pairs

PROGRAM = pathlib.Path(os.environ['HK_BIN']) / 'transport_bench'
ROUNDS = int(os.environ.get('HK_BENCH_ROUNDS', '5'))
RUN_S = 60
COUNTS = {'pingpong': 20000, 'pages': 40000, 'bulk': 10000}
# Of the issue: what a page may take beside bare sockets, and how much CPU on both sides together.
LIMIT_P50_RATIO, LIMIT_BULK_RATIO, LIMIT_CPU_US = 1.3, 0.8, 10


def free_address():
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        return f'127.0.0.1:{listener.getsockname()[1]}'


def run(what, back_end, wait):
    """One measurement, by two fresh processes."""
    client, server = free_address(), free_address()
    with subprocess.Popen([PROGRAM, 'serve', back_end, wait, server, client]) as serving:
        try:
            line = subprocess.run([PROGRAM, what, back_end, wait, client, server, str(COUNTS[what])], check=True, stdout=subprocess.PIPE,
                                  text=True, timeout=RUN_S).stdout
            assert serving.wait(RUN_S) == 0, 'the serving end failed'
        finally:
            serving.kill()
    return json.loads(line)


def rounds(what, back_end, wait):
    """[(product, floor)], each the result of a run."""
    return [(run(what, back_end, wait), run(what, 'bare', wait)) for _ in range(ROUNDS)]


def of(pairs, key):
    return [(product[key], bare[key]) for product, bare in pairs]


def measure_tcp():
    for wait in ('blocking', 'busy'):
        pairs = rounds('pingpong', 'tcp', wait)
        emit_pairs(f'transport.tcp.request_page_p50_{wait}', of(pairs, 'p50_us'), 'us', LIMIT_P50_RATIO, wait=wait)
        emit_pairs(f'transport.tcp.request_page_p99_{wait}', of(pairs, 'p99_us'), 'us', wait=wait)
        pairs = rounds('pages', 'tcp', wait)
        product, bare = (sorted(series)[ROUNDS // 2] for series in zip(*of(pairs, 'cpu_us')))
        emit(f'transport.tcp.page_cpu_{wait}', product, 'us', bare, LIMIT_CPU_US if wait == 'blocking' else None, wait=wait,
             pages_per_s=round(sorted(p['mb_per_s'] for p, _ in pairs)[ROUNDS // 2] * 1e6 / 4096))
        pairs = rounds('bulk', 'tcp', wait)
        emit_pairs(f'transport.tcp.bulk_{wait}', of(pairs, 'mb_per_s'), 'MB/s', LIMIT_BULK_RATIO, at_least=True, wait=wait)


if __name__ == '__main__':
    measure_tcp()
