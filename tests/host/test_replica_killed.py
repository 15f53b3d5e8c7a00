"""A daemon that is killed (SIGKILL) beside a machine that has read its disk: the next daemon's machine reads it from memory, and never what is
not so any more. Real daemons, a guest program that drives its virtio disk."""
import fcntl
import glob
import os
import random
import re
import struct
import unittest

import hktest
from test_vm import Terminal, needs_kvm

READ_BYTES = 32 << 10
BLOCKS = READ_BYTES // 4096


def sum_of(data):
    """As the guest program says it."""
    total = 0
    for word in struct.unpack(f'<{READ_BYTES // 4}I', data[:READ_BYTES]):
        total = ((total << 1 | total >> 31) + word) & 0xffffffff
    return f'{total:08x}'


@needs_kvm
class ReplicaKilled(hktest.TestCase):
    def setUp(self):
        super().setUp()
        self.node = self.bed.node('a')
        self.node.budget_mib, self.node.metrics_port = 100, hktest.free_port()
        self.node.start()
        self.image = os.path.join(self.node.directory, 'disk')
        self.data = random.randbytes(1 << 20)
        with open(self.image, 'wb') as file:
            file.write(self.data)
        path = os.path.join(self.node.directory, 'g.textproto')
        with open(path, 'w', encoding='utf-8') as file:
            file.write(f'name: "g" memory_mib: 40 kernel: "{hktest.program("echo_kernel")}" disks {{ path: "{self.image}" cache: DISK_CACHE_BUFFERED }}\n')
        self.assert_exit(self.node.hkctl('vm', 'create', '-f', path), 0)

    def read(self):
        """The sum of what a machine that was just started reads."""
        self.assert_exit(self.node.hkctl('vm', 'start', 'g'), 0)
        hktest.wait_for(lambda: 'hello from the guest' in self.node.hkctl('vm', 'log', 'g').out, 'the guest says hello')
        self.type_d().expect(' of all')
        return re.findall(r'read: sum ([0-9a-f]{8})', self.node.hkctl('vm', 'log', 'g').out)[-1]

    def type_d(self):
        """A terminal, on which the guest is asked to read."""
        terminal = Terminal(self.node, 'vm', 'console', 'g')
        self.addCleanup(terminal.close)
        terminal.expect('connected to')
        terminal.type(b'D')
        return terminal

    def show(self):
        result = self.node.hkctl('replica', 'show', 'g', '-o', 'json')
        self.assert_exit(result, 0)
        return {key: int(value) if str(value).isdigit() else value for key, value in result.json().items()}

    def put(self, offset, data, path=None):
        with open(path or self.image, 'r+b') as file:
            file.seek(offset)
            file.write(data)

    def frame_files(self):
        return sorted(os.path.basename(path) for path in glob.glob(f'{self.node.frame_directory}/g.*'))

    def restart(self):
        self.node.kill()
        self.assertEqual(self.frame_files(), ['g.1', 'g.1.replica'])
        return lambda: self.node.start()

    def test_the_next_guest_reads_from_memory(self):
        self.assertEqual(self.read(), sum_of(self.data))
        shown = self.show()
        self.assertEqual((shown['misses'], shown['hits'], shown['entries'], shown['durable']), (BLOCKS, 0, BLOCKS, True))
        self.restart()()
        shown = self.show()  # of a machine that does not run
        self.assertEqual((shown['recovered'], shown['warm_entries'], shown['warm_bytes']), (BLOCKS, BLOCKS, READ_BYTES))
        self.assertIn(f'{BLOCKS} entries of a daemon that was killed', self.node.hkctl('replica', 'show', 'g').out)
        self.assertEqual(self.node.metrics()['hyperkernel_frames_reserved_bytes'], 0)
        self.assertEqual(self.read(), sum_of(self.data))
        shown = self.show()
        self.assertEqual((shown['misses'], shown['hits'], shown['bytes_saved'], shown['mismatched']), (0, BLOCKS, READ_BYTES, 0))
        self.assertIn('none is wrong', self.node.hkctl('replica', 'verify', 'g').out)
        self.assert_exit(self.node.hkctl('vm', 'stop', 'g', '--force'), 0)
        self.assertEqual(self.frame_files(), [])
        self.assertEqual(os.listdir(f'{self.node.data_directory}/replicas'), [])

    def test_the_image_is_not_touched(self):
        """What is on the disk is changed behind the running daemon's back: nobody sees it who does not read it."""
        self.assertEqual(self.read(), sum_of(self.data))
        self.restart()()
        self.assert_exit(self.node.hkctl('vm', 'start', 'g'), 0)
        hktest.wait_for(lambda: 'hello from the guest' in self.node.hkctl('vm', 'log', 'g').out, 'the guest says hello')
        self.put(0, bytes(READ_BYTES))
        self.type_d().expect(f'read: sum {sum_of(self.data)} of all')

    def test_an_image_that_was_changed_meanwhile(self):
        self.assertEqual(self.read(), sum_of(self.data))
        start = self.restart()
        self.put(4096, b'other bytes')
        os.utime(self.image, (2**32, 2**32))
        start()
        with open(self.image, 'rb') as file:
            self.assertEqual(self.read(), sum_of(file.read()))
        self.assertEqual(self.show()['hits'], 0)
        self.assertIn('may have been written to since', self.node.log_text())

    def test_a_frame_that_is_not_what_it_was(self):
        self.assertEqual(self.read(), sum_of(self.data))
        start = self.restart()
        with open(f'{self.node.frame_directory}/g.1', 'rb') as file:
            at = file.read().index(self.data[8192:12288])
        self.put(at + 100, bytes([self.data[8292] ^ 1]), f'{self.node.frame_directory}/g.1')
        start()
        self.assertEqual(self.read(), sum_of(self.data))
        self.assertEqual(self.show()['mismatched'], 1)

    def test_a_table_that_is_damaged(self):
        self.assertEqual(self.read(), sum_of(self.data))
        start = self.restart()
        self.put(30, b'damaged', f'{self.node.frame_directory}/g.1.replica')
        start()
        self.assertIn('is not used', self.node.log_text())
        self.assertEqual(self.frame_files(), [])
        self.assert_fails(self.node.hkctl('replica', 'show', 'g'), 1, 'stopped, not running')
        self.assertEqual(self.read(), sum_of(self.data))
        self.assertEqual(self.show()['misses'], BLOCKS)

    def test_an_image_that_is_locked_for_a_while_still(self):
        """As by the kernel, that is busy with the dead daemon's I/O: the machine's autostart waits for it."""
        self.assert_exit(self.node.hkctl('vm', 'delete', 'g'), 0)
        path = os.path.join(self.node.directory, 'g.textproto')
        with open(path, 'a', encoding='utf-8') as file:
            file.write('autostart: true\n')
        self.assert_exit(self.node.hkctl('vm', 'create', '-f', path), 0)
        self.read()
        start = self.restart()
        with open(self.image, 'rb') as holder:
            fcntl.fcntl(holder, fcntl.F_OFD_SETLK, struct.pack('hhqqi4x', fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0))
            start()
            hktest.wait_for(lambda: 'waits to start' in self.node.hkctl('vm', 'show', 'g').out, 'the autostart waits')
        hktest.wait_for(lambda: self.node.hkctl('vm', 'show', 'g', '-o', 'json').json()['state'] == 'VM_STATE_RUNNING', 'the machine runs')
        self.type_d().expect(f'read: sum {sum_of(self.data)} of all')
        self.assertEqual(self.show()['hits'], BLOCKS)

    def test_what_is_dropped_or_deleted_is_gone(self):
        self.read()
        self.restart()()
        self.assert_exit(self.node.hkctl('replica', 'drop', 'g'), 0)
        self.assertEqual(self.show()['warm_bytes'], 0)
        self.assert_exit(self.node.hkctl('vm', 'delete', 'g'), 0)
        self.assertEqual(self.frame_files(), [])
        self.assertEqual(os.listdir(f'{self.node.data_directory}/replicas'), [])


if __name__ == '__main__':
    hktest.main()
