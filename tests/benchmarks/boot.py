#!/usr/bin/env python3
"""Time from start to the guest's init, and what the daemon holds beyond the guest's memory. Runs itself in the lab.

Floor: QEMU 7.2 with KVM, same kernel, initramfs, command line, vCPUs and memory, in the same lab run and alternating; its
faster board. Ours is timed from before `hkctl vm start` runs until `hkctl vm console` shows init's line, so it holds
two starts of hkctl; QEMU's from before its process starts until the line is on its standard output. Medians.

The floor with two vCPUs sometimes stands still in the lab, and cannot even be killed there: the lab then ends by its limit, and the
rounds that are missing run in a new one. A round counts when both of its starts came to their end.
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
BOARD = 'q35'
LIMIT_RATIO, LIMIT_OVERHEAD_MIB = 0.9, 64
# A lab's limit: its own start, and twice what a round takes on a slow day.
LAB_S, ROUND_S, MOST_LABS = 60, 60, 5


def time_to_init(vmm, machine, when_there=lambda: None):
    with vmm.boot(machine) as (console, started):
        _, reached = console.expect(rf'^guest: init reached, {machine.vcpus} CPUs')
        when_there()
    print(f'{vmm.name}, {machine.vcpus} vCPUs: {reached - started:.2f} s', file=sys.stderr, flush=True)
    return reached - started


def anonymous_mib(pid):
    """Only RssAnon: guest memory is the frame store's file and counts as RssShmem; RssFile is the program itself, shared by all."""
    status = pathlib.Path(f'/proc/{pid}/status').read_text(encoding='ascii')
    return int(status.split('RssAnon:')[1].split()[0]) / 1024


def inside():
    import guests  # needs the lab
    vcpus = int(os.environ['HK_BENCH_VCPUS'])
    ours, floor = guests.Hyperkernel(), guests.Qemu(BOARD)
    anonymous = [anonymous_mib(ours.node.process.pid)]
    try:
        with tempfile.TemporaryDirectory() as directory:
            initrd = os.path.join(directory, 'initrd')
            subprocess.run([os.path.join(lab_run.ROOT, 'deploy', 'make-initramfs'), initrd], check=True)
            machine = guests.Machine(os.environ['HK_KERNEL'], initrd, CMDLINE, vcpus, MEMORY_MIB)
            for _ in range(ROUNDS):
                seconds = time_to_init(ours, machine, lambda: anonymous.append(anonymous_mib(ours.node.process.pid)))
                lab_run.sample(idle_mib=anonymous[0], most_mib=max(anonymous))
                lab_run.sample(ours=seconds, floor=time_to_init(floor, machine))
    finally:
        ours.close()


def outside():
    kernel, anonymous = lab_run.kernel(), []
    for vcpus in (1, 2):
        rounds, labs = [], 0
        while len(rounds) < ROUNDS and labs < MOST_LABS:
            labs, missing = labs + 1, ROUNDS - len(rounds)
            for sample in lab_run.collect(__file__, LAB_S + ROUND_S * missing, HK_KERNEL=kernel, HK_BENCH_VCPUS=vcpus, HK_BENCH_ROUNDS=missing):
                (rounds if 'ours' in sample else anonymous).append(sample)
        if len(rounds) < ROUNDS:
            sys.exit(f'boot: {len(rounds)} of {ROUNDS} rounds with {vcpus} vCPUs came to their end in {labs} labs; see build/lab/logs')
        ours, floor = (statistics.median(r[side] for r in rounds) for side in ('ours', 'floor'))
        emit(f'boot.to_init_{vcpus}vcpu', ours, 's', floor, LIMIT_RATIO * floor, floor_is=f'qemu-{BOARD}', labs=labs,
             all=[[round(r[side], 2) for r in rounds] for side in ('ours', 'floor')])
    emit('boot.daemon_rss_anon', max(s['most_mib'] for s in anonymous), 'MiB', None, LIMIT_OVERHEAD_MIB,
         idle=round(max(s['idle_mib'] for s in anonymous), 1), guest_mib=MEMORY_MIB)


if lab_run.inside():
    inside()
else:
    outside()
