#!/usr/bin/env python3
"""virtio-blk: random 4 KiB reads, fio in the guest. Runs itself in the lab.

Floor: QEMU 7.2 with KVM, virtio-blk-pci, aio=io_uring, cache=none, in the same lab run: both guests are up, idle but for the one that
measures, in turns. The disk is a RAM disk of the lab host, so that what is measured is the way to it; the root file system is the
image's, read-only. Medians.
"""
import contextlib
import dataclasses
import os
import statistics
import subprocess
import sys

from figure import emit
import lab_run

ROUNDS, SECONDS = int(os.environ.get('HK_BENCH_ROUNDS', '5')), 4
DISK_MIB = 128
DEPTHS = (32, 1)
LIMIT_RATIO = 0.8
FIO = (f'fio --name=r --filename=/dev/vdb --direct=1 --rw=randread --bs=4k --ioengine=libaio --time_based --runtime={SECONDS} --randseed=1 '
       '--output-format=terse --terse-version=3 --iodepth=')
TERSE_READ_IOPS = 7  # fio(1), "terse output", version 3


def reads_per_second(console, depth):
    output = console.run(FIO + str(depth), timeout=SECONDS + 60)
    line = next(line for line in output.splitlines() if line.startswith('3;'))
    return float(line.split(';')[TERSE_READ_IOPS])


def main():
    import guests  # needs the lab
    subprocess.run(['modprobe', 'brd', 'rd_nr=1', f'rd_size={DISK_MIB << 10}'], check=True)
    subprocess.run(['dd', 'if=/dev/vda', 'of=/dev/ram0', 'bs=1M', f'count={DISK_MIB}', 'oflag=direct', 'status=none'], check=True)
    # Both read-only: neither lets another have an image that it writes to.
    machine = dataclasses.replace(lab_run.image_machine(disks=('/dev/vda', '/dev/ram0')), readonly=2)
    with contextlib.ExitStack() as stack:
        ours = guests.Hyperkernel()
        stack.callback(ours.close)
        consoles = {}
        for vmm in (ours, guests.Qemu('q35')):
            consoles[vmm.name], _ = stack.enter_context(vmm.boot(machine))
            lab_run.prepare_shell(consoles[vmm.name])
        for depth in DEPTHS:
            rates = {name: [] for name in consoles}
            for _ in range(ROUNDS):
                for name, console in consoles.items():
                    rates[name].append(reads_per_second(console, depth))
            print(f'depth {depth}: {rates}', file=sys.stderr, flush=True)
            mine, floor = (statistics.median(series) for series in rates.values())
            emit(f'blk.randread_4k_depth{depth}', mine, '1/s', floor, LIMIT_RATIO * floor, at_least=True, floor_is='qemu-q35')


if lab_run.inside():
    main()
else:
    sys.exit(lab_run.enter(__file__, limit_s=500, with_image=True))
