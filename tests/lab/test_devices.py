#!/usr/bin/env python3
"""virtio devices of guests with an unmodified Debian kernel, on one lab host: disks, network, entropy; and what is refused."""
import hashlib
import os
import pathlib
import socket
import subprocess
import threading
import time
import unittest

import guests
from guests import hktest

KERNEL = os.environ.get('HK_KERNEL', '')
MODULES = os.environ.get('HK_MODULES', '')
VIRTIO = ('virtio_pci', 'virtio_blk', 'virtio_net', 'virtio_console', 'virtio_rng')
HOST_DISK = '/dev/vda'  # the lab's own: see run_devices
MIB = 1 << 20
TRANSFER = 8 * MIB
# A driver in the guest's shell that breaks the protocol, with virtio's registers by hand (virtio 1.2: 4.1.4.3): break_ring SLOT
# AVAILABLE takes the device from Linux, starts it with one queue whose available ring is at that address, and rings its doorbell.
# Descriptors and used ring are in memory that the guest's kernel leaves alone: behind the ACPI tables.
BREAK_RING = r"""break_ring() {
d=/sys/bus/pci/devices/0000:00:$1.0; echo 0000:00:$1.0 > $d/driver/unbind; echo 1 > $d/enable
printf '\006' | dd of=$d/config bs=1 seek=4 conv=notrunc 2>/dev/null
bar=$(head -n 1 $d/resource | cut -d ' ' -f 1)
r() { devmem $((bar + $1)) $2 $3; }
r 20 8 0; until [ $(r 20 8) = 0x00 ]; do :; done
r 20 8 3; r 8 32 1; r 12 32 1; r 20 8 11; r 22 16 0; r 24 16 8; r 32 64 0xf8000; r 40 64 $2; r 48 64 0xf9000; r 28 16 1; r 20 8 15
r 0x3000 16 0; }""".replace('\n', '; ').replace('{;', '{')
NO_MEMORY, ACPI_TABLES = '0xd0000000', '0xe0000'
BOOT_S = 120  # modules are loaded, and two guests share a CPU


def sha(data):
    return hashlib.sha256(data).hexdigest()


def read(path, offset, count):
    with open(path, 'rb') as file:
        file.seek(offset)
        return file.read(count)


class DevicesTest(hktest.TestCase):
    def setUp(self):
        super().setUp()
        self.node = self.bed.node('a')
        self.node.budget_mib = 500
        self.node.start()
        self.initrd = os.path.join(self.node.directory, 'initrd')
        subprocess.run([os.path.join(hktest.ROOT, 'deploy', 'make-initramfs'), self.initrd, '--modules', MODULES, *VIRTIO],
                       check=True)
        self.serial = 0

    def image(self, name, size, data=b''):
        path = os.path.join(self.node.directory, name)
        with open(path, 'wb') as file:
            file.write(data)
            file.truncate(size)
        return path

    def create(self, name, devices, *options):
        spec = os.path.join(self.node.directory, f'{name}.textproto')
        pathlib.Path(spec).write_text(
            f'name: "{name}" memory_mib: 192 vcpus: 1 kernel: "{KERNEL}" initrd: "{self.initrd}" '
            f'cmdline: "console=ttyS0 quiet panic=-1"\n{devices}\n', encoding='utf-8')
        return self.node.hkctl('vm', 'create', '-f', spec, *options)

    def start(self, name, devices):
        self.assert_exit(self.create(name, devices), 0)
        started = time.monotonic()
        self.assert_exit(self.node.hkctl('vm', 'start', name), 0)
        console = guests.Console([hktest.program('hkctl'), '--endpoint', self.node.endpoint, 'vm', 'console', name])
        self.addCleanup(console.close)
        console.expect(r'^guest: init reached', BOOT_S)
        print(f'{name}: init after {time.monotonic() - started:.1f} s', flush=True)
        self.assertNotIn('does not load', console.text())
        return console

    def do(self, console, command, status=0):
        """Runs a command in the guest's shell; its output."""
        self.serial += 1
        console.type(f'echo "begin-"{self.serial}; {command}; echo "end-"{self.serial} $?')
        found, _ = console.expect(rf'(?s)^begin-{self.serial}\n(.*?)end-{self.serial} (\d+)$', BOOT_S)
        self.assertEqual(int(found[2]), status, f'{command}\n{found[1]}')
        return found[1]

    def show(self, name):
        return self.node.hkctl('vm', 'show', name, '-o', 'json').json()

    def test_disks_and_entropy(self):
        data = os.urandom(4 * MIB)
        raw = self.image('raw', 16 * MIB, data)
        fixed = self.image('fixed', 4 * MIB, os.urandom(4 * MIB))
        vm = self.start('g', f'disks {{ path: "{raw}" serial: "raw-1" cache: DISK_CACHE_BUFFERED queues: 2 }}\n'
                             f'disks {{ path: "{HOST_DISK}" serial: "direct-2" }}\n'
                             f'disks {{ path: "{fixed}" readonly: true cache: DISK_CACHE_BUFFERED }}')
        self.assertEqual(self.do(vm, 'cat /sys/block/vda/serial /sys/block/vdb/serial'), 'raw-1direct-2')
        self.assertEqual(self.do(vm, 'cat /sys/block/vd[abc]/size'), '32768\n131072\n8192\n')
        self.assertIn(sha(data), self.do(vm, 'dd if=/dev/vda bs=64k count=64 2>/dev/null | sha256sum'))

        # Written past the guest's cache or flushed out of it, and seen by the host.
        self.do(vm, 'dd if=/dev/vdc of=/dev/vda bs=128k seek=64 conv=fsync 2>/dev/null')
        self.assertEqual(sha(read(raw, 8 * MIB, 4 * MIB)), sha(read(fixed, 0, 4 * MIB)))
        self.assertEqual(sha(read(raw, 0, 4 * MIB)), sha(data), 'what was not written is as it was')
        self.do(vm, 'dd if=/dev/vda of=/dev/vdb bs=64k count=64 oflag=direct 2>/dev/null')
        self.assertEqual(sha(read(HOST_DISK, 0, 4 * MIB)), sha(data))
        self.do(vm, 'dd if=/dev/vdc of=/dev/vdb bs=4k seek=2048 conv=fsync 2>/dev/null')
        self.assertEqual(sha(read(HOST_DISK, 8 * MIB, 4 * MIB)), sha(read(fixed, 0, 4 * MIB)))
        self.assertIn(sha(data), self.do(vm, 'echo 3 > /proc/sys/vm/drop_caches; dd if=/dev/vdb bs=1M count=4 2>/dev/null | sha256sum'))
        flushes = self.do(vm, "awk '{ print $16 }' /sys/block/vda/stat /sys/block/vdb/stat").split()
        self.assertTrue(all(int(n) > 0 for n in flushes), flushes)

        # Read-only stays so.
        self.assertEqual(self.do(vm, 'cat /sys/block/vd[abc]/ro'), '0\n0\n1\n')
        before = read(fixed, 0, 4 * MIB)
        self.do(vm, 'dd if=/dev/zero of=/dev/vdc bs=4k count=1 conv=fsync 2>/dev/null', status=1)
        self.assertEqual(read(fixed, 0, 4 * MIB), before)

        self.assertEqual(self.do(vm, 'cat /sys/class/misc/hw_random/rng_current'), 'virtio_rng.0\n')
        first, second = (self.do(vm, 'dd if=/dev/hwrng bs=64 count=4 2>/dev/null | sha256sum') for _ in range(2))
        self.assertNotEqual(first, second)

        self.assertEqual(self.do(vm, 'cat /sys/class/virtio-ports/*/name'), 'org.qemu.guest_agent.0\n')

        # What is in use is refused, and what can be shared is not.
        for devices, field in ((f'disks {{ path: "{raw}" cache: DISK_CACHE_BUFFERED }}', 'disks[0].path'),
                               (f'disks {{ path: "{fixed}" readonly: true exclusive: true cache: DISK_CACHE_BUFFERED }}', 'disks[0].path'),
                               (f'disks {{ path: "{fixed}" readonly: true cache: DISK_CACHE_BUFFERED }} disks {{ path: "{HOST_DISK}" }}',
                                'disks[1].path')):
            refused = self.create('h', devices)
            self.assert_exit(refused, 1)
            self.assertIn(f'{field}: ', refused.error)
            self.assertIn('in use by', refused.error)
        self.assert_exit(self.create('h', f'disks {{ path: "{fixed}" readonly: true cache: DISK_CACHE_BUFFERED }}'), 0)

        # Refused at the start as well, when it became so after the definition.
        late = self.image('late', MIB)
        self.assert_exit(self.create('late', f'disks {{ path: "{late}" cache: DISK_CACHE_BUFFERED }}'), 0)
        os.truncate(late, 1000)
        refused = self.node.hkctl('vm', 'start', 'late')
        self.assert_exit(refused, 1)
        self.assertIn('disks[0].path: ', refused.error)
        self.assertIn('1000 bytes', refused.error)
        os.remove(late)
        refused = self.node.hkctl('vm', 'start', 'late')
        self.assert_exit(refused, 1)
        self.assertIn('No such file', refused.error)
        self.assertEqual(self.show('late')['state'], 'VM_STATE_STOPPED')

        # Devices come back after a reset, and let go at the end.
        self.do(vm, 'echo marked | dd of=/dev/vda bs=512 seek=100 conv=fsync 2>/dev/null')
        self.assert_exit(self.node.hkctl('vm', 'reset', 'g'), 0)
        vm.expect(r'guest: init reached', BOOT_S)
        self.assertEqual(self.do(vm, 'dd if=/dev/vda bs=512 skip=100 count=1 2>/dev/null | head -c 7'), 'marked\n')
        self.assert_exit(self.node.hkctl('vm', 'stop', 'g', '--force'), 0)
        self.assert_exit(self.create('i', f'disks {{ path: "{raw}" cache: DISK_CACHE_BUFFERED }} disks {{ path: "{HOST_DISK}" }}'), 0)

    def test_io_that_does_not_end(self):
        """A file system that is frozen holds a guest's write for as long as it likes. Nothing else may wait for it."""
        backing, mounted = self.image('backing', 64 * MIB), os.path.join(self.node.directory, 'mounted')
        os.mkdir(mounted)
        subprocess.run(['mkfs.ext4', '-q', backing], check=True)
        subprocess.run(['mount', '-o', 'loop', backing, mounted], check=True)
        self.addCleanup(subprocess.run, ['umount', '-l', mounted], check=True)
        image = os.path.join(mounted, 'image')
        pathlib.Path(image).write_bytes(os.urandom(16 * MIB))
        vm = self.start('g', f'disks {{ path: "{image}" }}')
        subprocess.run(['fsfreeze', '-f', mounted], check=True)
        thaw = ['fsfreeze', '-u', mounted]
        self.addCleanup(subprocess.run, thaw, check=False, stderr=subprocess.DEVNULL)
        self.do(vm, '(dd if=/dev/zero of=/dev/vda bs=64k count=1 conv=fsync 2>/dev/null) & sleep 1')
        hktest.wait_for(lambda: self.do(vm, 'cat /sys/block/vda/inflight').split()[1] != '0', 'a write in flight')
        self.assert_exit(self.node.hkctl('vm', 'stop', 'g', '--force'), 0)
        self.assertEqual(self.show('g')['state'], 'VM_STATE_STOPPED')
        self.assertIn('does not end', self.node.log_text())
        refused = self.node.hkctl('vm', 'start', 'g')
        self.assert_exit(refused, 1)
        self.assertIn('in use by', refused.error)
        self.start('h', '')  # others are not concerned
        subprocess.run(thaw, check=True)
        hktest.wait_for(lambda: 'the I/O has ended' in self.node.log_text(), 'the end of the I/O')
        self.assert_exit(self.node.hkctl('vm', 'start', 'g'), 0)

    def test_a_ring_broken_on_purpose(self):
        """The device waits for its reset. Nothing else notices: not the guest, not its other devices, not other guests."""
        disks = [self.image(name, MIB, os.urandom(MIB)) for name in 'abc']
        buffered = 'disks {{ path: "{}" cache: DISK_CACHE_BUFFERED }}'
        a = self.start('a', buffered.format(disks[0]) + buffered.format(disks[1]))
        b = self.start('b', buffered.format(disks[2]))

        def reads(console, disk, image):
            hashed = self.do(console, f'echo 3 > /proc/sys/vm/drop_caches; sha256sum /dev/{disk}').split()[0]
            self.assertEqual(hashed, sha(read(image, 0, MIB)))

        self.do(a, BREAK_RING)
        self.do(a, f'break_ring 02 {NO_MEMORY}')
        hktest.wait_for(lambda: self.show('a').get('broken_devices') == ['rng'], 'the entropy device is broken')
        self.assertRegex(self.do(a, 'r 20 8'), '(?i)^0x4f$')  # DEVICE_NEEDS_RESET, and what the driver had set
        # The available index is what the tables' signature reads as: "RSD PTR ".
        self.do(a, f'break_ring 0c {ACPI_TABLES}')
        hktest.wait_for(lambda: sorted(self.show('a').get('broken_devices', [])) == ['disk1', 'rng'], 'the second disk is broken')

        self.do(a, 'dd if=/dev/urandom of=/dev/vda bs=4k count=1 conv=fsync 2>/dev/null')
        reads(a, 'vda', disks[0])
        self.do(b, 'dd if=/dev/hwrng of=/dev/vda bs=64 count=4 conv=fsync 2>/dev/null')
        reads(b, 'vda', disks[2])
        self.assertEqual([vm['state'] for vm in self.node.hkctl('vm', 'list', '-o', 'json').json()['vms']], ['VM_STATE_RUNNING'] * 2)
        self.assertEqual(self.show('b').get('broken_devices', []), [])
        shown = self.node.hkctl('vm', 'show', 'a').out
        self.assertRegex(shown, r'Broken: +disk1: its driver broke the protocol')
        for device, reason in (('a/rng', NO_MEMORY), ('a/disk1', 'available index 8260 is 8260 past 0, queue size 8')):
            self.assertRegex(self.node.log_text(), f'a driver broke the virtio protocol.*{device}.*{reason}')

        # A driver that resets them has them back.
        for slot in ('02', '0c'):
            self.do(a, f'echo 0000:00:{slot}.0 > /sys/bus/pci/drivers/virtio-pci/bind')
        self.do(a, 'dd if=/dev/hwrng of=/dev/vdb bs=64 count=4 conv=fsync 2>/dev/null')
        reads(a, 'vdb', disks[1])
        self.assertEqual(self.show('a').get('broken_devices', []), [])

    def serve(self, address, respond):
        """One connection; the thread's result is in the list that comes back."""
        listener = socket.create_server((address, 0))
        listener.settimeout(BOOT_S)
        results = []

        def run():
            with listener, listener.accept()[0] as peer:
                peer.settimeout(BOOT_S)
                results.append(respond(peer))
        thread = threading.Thread(target=run)
        thread.start()
        self.addCleanup(thread.join)
        return listener.getsockname()[1], thread, results

    def test_network_of_two_guests(self):
        subprocess.run('ip link add hkbr0 type bridge && ip addr add 10.98.0.1/24 dev hkbr0 && ip link set hkbr0 up', shell=True, check=True)
        self.addCleanup(subprocess.run, ['ip', 'link', 'del', 'hkbr0'], check=False)
        refused = self.create('a', 'nets { bridge: "lo" }')
        self.assert_exit(refused, 1)
        self.assertIn('nets[0].bridge: lo: not a bridge', refused.error)
        refused = self.create('a', 'nets { bridge: "hkbr9" }')
        self.assert_exit(refused, 1)
        self.assertIn('nets[0].bridge: hkbr9: no such interface', refused.error)
        a = self.start('a', 'nets { tap: "hkt0" } nets { bridge: "hkbr0" }')
        refused = self.create('c', 'nets { tap: "hkt0" }')
        self.assert_exit(refused, 1)
        self.assertIn('nets[0].tap: hkt0: in use', refused.error)
        b = self.start('b', 'nets { bridge: "hkbr0" queues: 2 }')
        subprocess.run(['ip', 'addr', 'add', '10.99.0.1/24', 'dev', 'hkt0'], check=True)
        macs = [net['mac'] for net in self.show('a')['spec']['nets']]
        self.assertEqual(self.do(a, 'cat /sys/class/net/eth0/address /sys/class/net/eth1/address').split(), macs)
        self.do(a, 'ip link set lo up; ip addr add 10.99.0.2/24 dev eth0; ip link set eth0 up; ip addr add 10.98.0.2/24 dev eth1; ip link set eth1 up')
        self.do(b, 'ip addr add 10.98.0.3/24 dev eth0; ip link set eth0 up')
        self.do(a, 'ping -c 3 -W 5 10.99.0.1')
        self.do(a, 'ping -c 3 -W 5 10.98.0.1')
        self.do(a, 'ping -c 3 -W 5 -s 1400 10.98.0.3')
        self.do(b, 'ping -c 3 -W 5 10.98.0.2')

        # TCP both ways, checksums compared. nc ends when its peer has closed.
        data = os.urandom(TRANSFER)
        port, thread, _ = self.serve('10.99.0.1', lambda peer: peer.sendall(data))
        self.assertIn(sha(data), self.do(a, f'nc 10.99.0.1 {port} < /dev/null | sha256sum'))
        thread.join()

        def receive(peer):
            got = b''
            while len(got) < TRANSFER and (piece := peer.recv(1 << 16)):
                got += piece
            return got
        port, thread, results = self.serve('10.98.0.1', receive)
        output = self.do(b, f'head -c {TRANSFER} /dev/urandom > /run/data; nc 10.98.0.1 {port} < /run/data; sha256sum /run/data')
        thread.join()
        self.assertEqual(len(results[0]), TRANSFER)
        self.assertIn(sha(results[0]), output)

        # One guest's end is not the other's.
        self.assert_exit(self.node.hkctl('vm', 'stop', 'b', '--force'), 0)
        self.do(a, 'ping -c 2 -W 5 10.99.0.1')
        self.assert_exit(self.node.hkctl('vm', 'stop', 'a', '--force'), 0)
        self.assertFalse(os.path.exists('/sys/class/net/hkt0'), 'a tap that was made goes with its machine')


if __name__ == '__main__':
    assert KERNEL and MODULES, 'runs inside the lab only: tests/lab/run_devices BIN_DIRECTORY'
    hktest.main()
    unittest.main(verbosity=2)
