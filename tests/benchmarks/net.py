#!/usr/bin/env python3
"""virtio-net: iperf3 between the guest and its tap's host side, both directions. Runs itself in the lab.

Floor: QEMU 7.2 with KVM, virtio-net-pci on a tap made in the same way, vhost off, in the same lab run: all guests are up, idle but
for the one that measures, in turns. With vhost (the host kernel moves the packets) it is reported, not promised. Medians.
"""
import contextlib
import os
import re
import statistics
import subprocess
import sys

from figure import emit
import lab_run

ROUNDS, SECONDS = int(os.environ.get('HK_BENCH_ROUNDS', '3')), 4
LIMIT_RATIO = 0.8
DIRECTIONS = {'out': '', 'in': '-R'}  # seen from the guest


def make_tap(index):
    name = f'hkbench{index}'
    for command in (f'tuntap add {name} mode tap', f'addr add 10.99.{index}.1/24 dev {name}', f'link set {name} up'):
        subprocess.run(['ip', *command.split()], check=True)
    return name


def megabits(console, index, option):
    output = console.run(f'iperf3 -c 10.99.{index}.1 -t {SECONDS} -i 0 -f m {option}', timeout=SECONDS + 60)
    return float(re.search(r'([\d.]+) Mbits/sec +receiver', output)[1])


def main():
    import guests  # needs the lab
    subprocess.run(['modprobe', 'vhost_net'], check=True)
    with contextlib.ExitStack() as stack:
        ours = guests.Hyperkernel()
        stack.callback(ours.close)
        consoles = []
        for index, vmm in enumerate((ours, guests.Qemu('q35'), guests.Qemu('q35', vhost=True))):
            machine = lab_run.image_machine(disks=('/dev/vda',), taps=(make_tap(index),))
            console, _ = stack.enter_context(vmm.boot(machine))
            lab_run.prepare_shell(console)
            console.run('modprobe virtio_net; while [ ! -e /sys/class/net/e* ] && [ ! -e /sys/class/net/eth0 ]; do sleep 0.1; done; '
                        f'ip addr add 10.99.{index}.2/24 dev eth0 && ip link set eth0 up')
            consoles.append((index, vmm.name, console))
        server = stack.enter_context(subprocess.Popen(['iperf3', '-s'], stdout=subprocess.DEVNULL))
        stack.callback(server.kill)
        for direction, option in DIRECTIONS.items():
            rates = {name: [] for _, name, _ in consoles}
            for _ in range(ROUNDS):
                for index, name, console in consoles:
                    rates[name].append(megabits(console, index, option))
            print(f'{direction}: {rates}', file=sys.stderr, flush=True)
            mine, floor, vhost = (statistics.median(series) for series in rates.values())
            emit(f'net.tcp_{direction}', mine, 'Mbit/s', floor, LIMIT_RATIO * floor, at_least=True, floor_is='qemu-q35')
            emit(f'net.tcp_{direction}_to_vhost', mine, 'Mbit/s', vhost, floor_is='qemu-q35-vhost')


if lab_run.inside():
    main()
else:
    sys.exit(lab_run.enter(__file__, limit_s=500, with_image=True))
