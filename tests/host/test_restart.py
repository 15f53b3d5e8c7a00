"""Restarts of a daemon that keep its guests: hkctl node restart, SIGTERM with --keep-guests, and what is not to be believed."""
import glob
import os
import re
import signal
import socket
import struct
import unittest

import hktest
from test_vm import Terminal

KVM = os.access('/dev/kvm', os.R_OK | os.W_OK)
needs_kvm = unittest.skipUnless(KVM, 'no /dev/kvm here')
BLOCKS = 2048


class Restart(hktest.TestCase):
    def setUp(self):
        super().setUp()
        self.node = self.bed.node('a')
        self.node.budget_mib = 128
        self.node.start()

    def create(self, name, kernel, extra='', memory_mib=40):
        path = os.path.join(self.node.directory, f'{name}.textproto')
        with open(path, 'w', encoding='utf-8') as file:
            file.write(f'name: "{name}" memory_mib: {memory_mib} kernel: "{hktest.program(kernel)}" {extra}\n')
        self.assert_exit(self.node.hkctl('vm', 'create', '-f', path), 0)
        self.assert_exit(self.node.hkctl('vm', 'start', name), 0)

    def reader(self, name='g', extra=''):
        """A machine that reads its disk all the time."""
        image = os.path.join(self.node.directory, f'{name}.img')
        with open(image, 'wb') as file:
            for block in range(BLOCKS):
                word = struct.pack('<I', block)
                file.write(word + bytes(4088) + word)
        self.create(name, 'disk_kernel', f'disks {{ path: "{image}" }} {extra}')
        self.wait_log(name, 'reading')

    def log(self, name='g'):
        return self.node.hkctl('vm', 'log', name).out

    def wait_log(self, name, text, count=1):
        hktest.wait_for(lambda: self.log(name).count(text) >= count, lambda: f'{text!r} {count} times in {self.log(name)!r}')

    def show(self, name='g'):
        return self.node.hkctl('vm', 'show', name, '-o', 'json').json()

    def type(self, name, keys):
        terminal = Terminal(self.node, 'vm', 'console', name)
        self.addCleanup(terminal.close)
        terminal.expect('connected to')
        terminal.type(keys)

    def check_reader(self, name='g'):
        """All that it asked for is answered, and it goes on."""
        before = self.log(name).count('answered')
        self.type(name, b'x')
        self.wait_log(name, 'answered', before + 1)
        self.assertNotIn('twice', self.log(name))
        self.assertNotIn('wrong', self.log(name))

    def restart(self):
        result = self.node.hkctl('node', 'restart')
        self.assert_exit(result, 0)
        self.assertIn('the daemon was restarted', result.out)
        return [int(ms) for ms in re.findall(r'stood still for (\d+) ms', result.out)]

    @needs_kvm
    def test_a_guest_goes_on(self):
        self.reader()
        self.check_reader()
        pid, started = self.node.process.pid, self.show()['started']
        pauses = []
        for _ in range(5):
            pauses += self.restart()
            self.check_reader()
        print(f'pauses: {pauses} ms')
        self.assertEqual(len(pauses), 5)
        self.assertEqual(self.node.process.pid, pid)
        self.assertIsNone(self.node.process.poll())
        shown = self.show()
        self.assertEqual((shown['state'], shown['started'], shown['generation']), ('VM_STATE_RUNNING', started, '1'))
        self.assertTrue(self.log().startswith('reading'), 'the log is kept')
        self.assertEqual(glob.glob(os.path.join(self.node.frame_directory, '*.state')), [])
        self.assert_exit(self.node.hkctl('vm', 'stop', 'g', '--force'), 0)
        self.assertEqual(glob.glob(os.path.join(self.node.frame_directory, 'g.*')), [])

    @needs_kvm
    def test_vcpus_and_memory_are_kept(self):
        self.create('g', 'echo_kernel', 'vcpus: 3 cmdline: "3"', memory_mib=64)
        self.wait_log('g', 'hello')
        self.type('g', b'F')
        self.wait_log('g', 'filled')
        self.type('g', b'I')
        self.wait_log('g', 'in rounds')
        for _ in range(3):
            self.restart()
        self.type('g', b'x')
        self.wait_log('g', 'all rounds answered')
        self.type('g', b'C')
        self.wait_log('g', 'checked')

    @needs_kvm
    def test_paused_stays_paused(self):
        self.reader()
        self.assert_exit(self.node.hkctl('vm', 'pause', 'g'), 0)
        self.restart()
        self.assertEqual(self.show()['state'], 'VM_STATE_PAUSED')
        self.assert_exit(self.node.hkctl('vm', 'unpause', 'g'), 0)
        self.check_reader()

    @needs_kvm
    def test_a_state_is_used_once(self):
        self.reader()
        self.restart()
        self.check_reader()
        self.node.kill()
        self.node.start()
        shown = self.show()
        self.assertEqual(shown['state'], 'VM_STATE_STOPPED')
        self.assertIn('its daemon ended', shown['reason'])

    def stop_keeping(self):
        self.assert_exit(self.node.hkctl('vm', 'list'), 0)
        self.node.signal(signal.SIGTERM)
        self.assertEqual(self.node.process.wait(hktest.TIMEOUT), 0)
        return glob.glob(os.path.join(self.node.frame_directory, '*.state'))

    def start_keeping(self):
        self.node.stop()
        self.node.arguments = ['--keep-guests']
        self.node.start()

    @needs_kvm
    def test_stopped_with_keep_guests(self):
        self.start_keeping()
        self.reader()
        states = self.stop_keeping()
        self.assertEqual([os.path.basename(path) for path in states], ['g.1.state'])
        self.node.start()
        self.assertIn('kept over a restart', self.show()['reason'])
        self.check_reader()

    @needs_kvm
    def test_what_is_not_to_be_believed(self):
        """Shown as stopped with the reason, frames and state gone; the machine starts anew."""
        def flip(data):
            data[len(data) // 2] ^= 1

        def newer(data):
            data[4] += 1

        def cut(data):
            del data[1000:]

        self.start_keeping()
        self.reader()
        for damage, text in ((flip, 'its checksum is wrong'), (newer, 'version 2, this daemon knows 1'), (cut, 'its checksum is wrong')):
            with self.subTest(text=text):
                [path] = self.stop_keeping()
                with open(path, 'rb') as file:
                    data = bytearray(file.read())
                damage(data)
                with open(path, 'wb') as file:
                    file.write(data)
                self.node.start()
                shown = self.show()
                self.assertEqual(shown['state'], 'VM_STATE_STOPPED')
                self.assertIn('not kept over a restart of its daemon: saved machine: ' + text, shown['reason'])
                self.assertEqual(glob.glob(os.path.join(self.node.frame_directory, 'g.*')), [])
                self.assert_exit(self.node.hkctl('vm', 'start', 'g'), 0)
                self.wait_log('g', 'reading')

    @needs_kvm
    def test_an_image_that_was_changed(self):
        self.start_keeping()
        self.reader()
        self.stop_keeping()
        with open(os.path.join(self.node.directory, 'g.img'), 'r+b') as file:
            file.write(bytes(4))
        self.node.start()
        shown = self.show()
        self.assertEqual(shown['state'], 'VM_STATE_STOPPED')
        self.assertIn('an image of its disks was changed', shown['reason'])
        self.assertEqual(glob.glob(os.path.join(self.node.frame_directory, 'g.*')), [])

    @needs_kvm
    def test_a_daemon_that_cannot_start_loses_nothing(self):
        self.start_keeping()
        self.reader()
        self.stop_keeping()
        with socket.socket() as taken:
            taken.bind(('127.0.0.1', self.node.data_port))
            taken.listen()
            self.assertIn('listen.data', self.node.fails_to_start())
        self.node.start()
        self.assertIn('kept over a restart', self.show()['reason'])
        self.check_reader()

    @needs_kvm
    def test_a_new_daemon_that_would_not_start(self):
        self.reader()
        with open(self.node.config, 'a', encoding='utf-8') as file:
            file.write('nonsense: 1\n')
        self.assert_fails(self.node.hkctl('node', 'restart'), 1, 'a new daemon would not start', 'nonsense')
        self.check_reader()
        self.assertEqual(self.show()['reason'], '')


if __name__ == '__main__':
    hktest.main()
