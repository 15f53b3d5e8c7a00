#!/usr/bin/env python3
"""The trial image (deploy/make-image) under our own VMM, on one lab host: boots from its disk, its programs verify what they do,
it powers off, and its file system is whole afterwards. The image is the lab's /dev/vda."""
import os
import subprocess

import guests
import hktest

IMAGE = os.environ.get('HK_IMAGE', '')
ROOT_DISK = '/dev/vda'
BOOT_S = 150
SECONDS = 60 if hktest.SOAK else 5


class Image(hktest.TestCase):
    def boot(self, cmdline, **machine):
        vmm = guests.Hyperkernel(budget_mib=700)
        self.addCleanup(vmm.close)
        booted = vmm.boot(guests.Machine(f'{IMAGE}/vmlinuz', f'{IMAGE}/initrd', f'root={ROOT_DISK} rw console=ttyS0 quiet panic=-1 {cmdline}',
                                         memory_mib=512, disks=(ROOT_DISK,), **machine))
        console, started = booted.__enter__()  # pylint: disable=unnecessary-dunder-call
        self.addCleanup(booted.__exit__, None, None, None)
        return vmm, console, started

    def stressed(self, console):
        """Programs that check their own results."""
        console.run('fio --name=v --filename=/root/fio --size=24M --rw=randwrite --bs=4k --direct=1 --ioengine=libaio --iodepth=16 '
                    '--verify=crc32c --verify_fatal=1 --do_verify=1', timeout=120)
        out = console.run(f'stress-ng --cpu 2 --vm 1 --vm-bytes 64M --verify --metrics-brief --timeout {SECONDS}s', timeout=SECONDS + 90)
        self.assertIn('successful run completed', out)

    def test_boots_verifies_and_powers_off(self):
        vmm, console, started = self.boot('', vcpus=2)
        _, login = console.expect(r'^root@debian:~# ?', timeout=BOOT_S)
        print(f'systemd to a shell: {login - started:.1f} s', flush=True)
        self.stressed(console)
        console.type('poweroff')
        result = vmm.node.hkctl('vm', 'wait', 'g', '--for', 'stopped', '--timeout', '60s')
        self.assert_exit(result, 0)
        checked = subprocess.run(['e2fsck', '-f', '-n', ROOT_DISK], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        self.assertEqual(checked.returncode, 0, checked.stdout)


if __name__ == '__main__':
    assert IMAGE, 'runs inside the lab only: tests/lab/run_image BIN_DIRECTORY'
    hktest.main()
