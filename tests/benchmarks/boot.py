#!/usr/bin/env python3
"""Time from start to the guest's init, and what the daemon holds beyond the guest's memory. Runs itself in the lab.

Floor: QEMU 7.2 with KVM, same kernel, initramfs, command line, vCPUs and memory, in the same lab run and alternating; its
faster board. Ours is timed from before `hkctl vm start` runs until `hkctl vm console` shows init's line, so it holds
two starts of hkctl; QEMU's from before its process starts until the line is on its standard output. Medians.
"""
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

from figure import emit
import lab_run

ROUNDS = int(os.environ.get('HK_BENCH_ROUNDS', '3'))
MEMORY_MIB = 256
CMDLINE = 'console=ttyS0 quiet panic=-1'
# Not microvm: it was slower (9.98 s beside q35's 8.45 s with one vCPU; two did not get past the beginning of the guest's kernel), and after
# it nothing more came from the lab until its time limit.
BOARDS = {1: ('q35',), 2: ('q35',)}
LIMIT_RATIO, LIMIT_OVERHEAD_MIB = 0.9, 64


def time_to_init(vmm, machine, when_there=None):
    with vmm.boot(machine) as (console, started):
        _, reached = console.expect(rf'^guest: init reached, {machine.vcpus} CPUs')
        if when_there:
            when_there()
    print(f'{vmm.name}, {machine.vcpus} vCPUs: {reached - started:.2f} s', file=sys.stderr, flush=True)
    return reached - started


def anonymous_mib(pid):
    """Only RssAnon: guest memory is the frame store's file and counts as RssShmem; RssFile is the program itself, shared by all."""
    status = pathlib.Path(f'/proc/{pid}/status').read_text(encoding='ascii')
    return int(status.split('RssAnon:')[1].split()[0]) / 1024


def measure(machine, ours, boards, overheads):
    times = {vmm.name: [] for vmm in (ours, *boards)}
    for _ in range(ROUNDS):
        times[ours.name].append(time_to_init(ours, machine, lambda: overheads.append(anonymous_mib(ours.node.process.pid))))
        for board in boards:
            times[board.name].append(time_to_init(board, machine))
    return {name: statistics.median(series) for name, series in times.items()}


def main():
    import guests  # needs the lab
    print('boot: starting the daemon', file=sys.stderr, flush=True)
    ours = guests.Hyperkernel()
    overheads = []
    try:
        idle = anonymous_mib(ours.node.process.pid)
        with tempfile.TemporaryDirectory() as directory:
            initrd = os.path.join(directory, 'initrd')
            subprocess.run([os.path.join(lab_run.ROOT, 'deploy', 'make-initramfs'), initrd], check=True)
            for vcpus, names in BOARDS.items():
                boards = [guests.Qemu(board) for board in names]
                machine = guests.Machine(os.environ['HK_KERNEL'], initrd, CMDLINE, vcpus, MEMORY_MIB)
                medians = measure(machine, ours, boards, overheads)
                fastest = min(boards, key=lambda board: medians[board.name])
                floor = medians[fastest.name]
                emit(f'boot.to_init_{vcpus}vcpu', medians[ours.name], 's', floor, LIMIT_RATIO * floor, floor_is=fastest.name,
                     all={name: round(median, 2) for name, median in medians.items()})
        emit('boot.daemon_rss_anon', max(overheads), 'MiB', None, LIMIT_OVERHEAD_MIB, idle=round(idle, 1), guest_mib=MEMORY_MIB)
    finally:
        ours.close()


if lab_run.inside():
    main()
else:
    sys.exit(lab_run.enter(__file__, limit_s=int(os.environ.get('HK_BENCH_LIMIT_S', '540')), HK_KERNEL=lab_run.kernel()))
