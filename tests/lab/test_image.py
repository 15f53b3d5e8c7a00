#!/usr/bin/env python3
"""The trial image (deploy/make-image) under our own VMM, on one lab host: boots from its disk, its programs check what they do, it
powers off, and its file system is whole afterwards. The image is the lab's /dev/vda.

systemd takes minutes on a busy lab, so the quick test has a shell for its init; the soak boots all of it."""
import contextlib
import os
import pathlib
import re
import subprocess
import unittest

import guests
import hktest

IMAGE = os.environ.get('HK_IMAGE', '')
ROOT_DISK = '/dev/vda'
MEMORY_MIB = 512
BOOT_S, POWER_OFF_S = 300, 150
SECONDS = 60 if hktest.SOAK else 5
TAP, HOST_ADDRESS, GUEST_ADDRESS = 'hktap0', '10.98.0.1', '10.98.0.2'


class Image(hktest.TestCase):
    def setUp(self):
        super().setUp()
        for command in (f'tuntap add {TAP} mode tap', f'addr add {HOST_ADDRESS}/24 dev {TAP}', f'link set {TAP} up'):
            subprocess.run(['ip', *command.split()], check=True)
        self.addCleanup(subprocess.run, ['ip', 'link', 'del', TAP], check=True)
        self.vmm = guests.Hyperkernel(budget_mib=MEMORY_MIB + 100)
        self.addCleanup(self.vmm.close)

    @contextlib.contextmanager
    def boot(self, cmdline, shell):
        machine = guests.Machine(f'{IMAGE}/vmlinuz', f'{IMAGE}/initrd', f'root={ROOT_DISK} rw console=ttyS0 quiet panic=-1 {cmdline}', vcpus=2,
                                 memory_mib=MEMORY_MIB, disks=(ROOT_DISK,), taps=(TAP,))
        with self.vmm.boot(machine) as (console, started):
            _, reached = console.expect(shell, timeout=BOOT_S)
            print(f'a shell after {reached - started:.1f} s', flush=True)
            yield console
        checked = subprocess.run(['e2fsck', '-f', '-n', ROOT_DISK], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        self.assertEqual(checked.returncode, 0, checked.stdout)

    def programs(self, console, card):
        """Programs that check their own results."""
        console.run('fio --name=v --filename=/root/fio --size=16M --rw=randwrite --bs=4k --direct=1 --ioengine=libaio --iodepth=16 '
                    '--verify=crc32c --verify_fatal=1 --do_verify=1', timeout=180)
        out = console.run(f'stress-ng --cpu 2 --vm 1 --vm-bytes 64M --verify --timeout {SECONDS}s', timeout=SECONDS + 120)
        self.assertIn('successful run completed', out)
        console.run(f'ip addr add {GUEST_ADDRESS}/24 dev {card} && ip link set {card} up')
        with subprocess.Popen(['iperf3', '-s'], stdout=subprocess.DEVNULL) as server:
            try:
                for direction in ('', '-R'):
                    out = console.run(f'iperf3 -c {HOST_ADDRESS} -t {SECONDS} -i 0 {direction}', timeout=SECONDS + 60)
                    self.assertRegex(out, r'[1-9][\d.]* .?bits/sec +receiver')
            finally:
                server.kill()

    def check_specification(self):
        """The machine that make-image writes down is one, with the card it proposes: the lab has a br0, and the disk elsewhere."""
        text = pathlib.Path(f'{IMAGE}/vm.textproto').read_text(encoding='utf-8')
        path = pathlib.Path(self.vmm.node.directory) / 'proposed.textproto'
        path.write_text(text.replace(f'{IMAGE}/disk.raw', ROOT_DISK).replace('# nets', 'nets'), encoding='utf-8')
        shown = self.vmm.node.hkctl('vm', 'create', '-f', str(path), '--dry-run', '-o', 'json')
        self.assert_exit(shown, 0)
        self.assertIn('"bridge": "br0"', shown.out)

    def test_a_shell_for_init(self):
        self.check_specification()
        with self.boot('init=/bin/sh', '^# ') as console:
            console.run('mount -t sysfs s /sys && mount -t tmpfs t /run && mount -t tmpfs t /tmp && modprobe virtio_net && cd /run')
            console.run('until [ -e /sys/class/net/eth0 ]; do sleep 0.1; done')
            self.programs(console, 'eth0')
            console.run('cd / && sync && mount -o remount,ro /')

    @unittest.skipUnless(hktest.SOAK, 'a whole start of systemd: tests/run soak')
    def test_systemd_and_power_off(self):
        with self.boot('', r'^root@debian:~# ?') as console:
            # Set up by hand here: the tap has no DHCP server.
            card = re.search(r'(?m)^\d+: (e\w+):', console.run('ip -o link'))[1]
            self.programs(console, card)
            self.assertEqual(console.run('systemctl is-active serial-getty@ttyS0').strip(), 'active')
            console.type('poweroff')
            self.assert_exit(hktest.run([hktest.program('hkctl'), '--endpoint', self.vmm.node.endpoint, 'vm', 'wait', 'g', '--for', 'stopped',
                                         '--timeout', f'{POWER_OFF_S}s'], timeout=POWER_OFF_S + 10), 0)


if __name__ == '__main__':
    assert IMAGE, 'runs inside the lab only: tests/lab/run_image BIN_DIRECTORY'
    hktest.main()
