"""The storage replica of a machine by hkctl on a real daemon: what is shown, dropped, compared, refused; a reset keeps it, an end does not.
That its guest reads from memory is host.replica_reset's and the lab's to show: the guest here has no driver of disks."""
import os
import unittest

import hktest
from test_vm import needs_kvm


class Replica(hktest.TestCase):
    def setUp(self):
        super().setUp()
        self.node = self.bed.node('a')
        self.node.budget_mib, self.node.metrics_port = 100, hktest.free_port()
        self.node.start()
        self.image = os.path.join(self.node.directory, 'disk')
        with open(self.image, 'wb') as file:
            file.truncate(1 << 20)

    def start(self, name, extra=''):
        path = os.path.join(self.node.directory, f'{name}.textproto')
        with open(path, 'w', encoding='utf-8') as file:
            file.write(f'name: "{name}" memory_mib: 40 kernel: "{hktest.program("echo_kernel")}" {extra}\n')
        self.assert_exit(self.node.hkctl('vm', 'create', '-f', path), 0)
        self.assert_exit(self.node.hkctl('vm', 'start', name), 0)

    def disk(self, more=''):
        return f'disks {{ path: "{self.image}" cache: DISK_CACHE_BUFFERED }} {more}'

    def show(self, name='g'):
        result = self.node.hkctl('replica', 'show', name, '-o', 'json')
        self.assert_exit(result, 0)
        return result.json()

    def test_machines_that_are_not_there(self):
        for command in ('show', 'drop', 'verify'):
            with self.subTest(command=command):
                self.assert_fails(self.node.hkctl('replica', command, 'nobody'), 1, "no vm 'nobody'", 'hkctl vm list')
        self.assert_fails(self.node.hkctl('replica', 'show'), 2, 'name', '--help')
        self.assert_fails(self.node.hkctl('replica', 'verify', 'g', '--rate', '0'), 2, '--rate', '--help')

    @needs_kvm
    def test_a_machines_life(self):
        self.start('g', self.disk())
        shown = self.show()
        self.assertEqual((shown['disks'], shown['resets'], int(shown['entries'])), (1, '0', 0))
        self.assertIn('1 tracked', self.node.hkctl('replica', 'show', 'g').out)
        self.assert_exit(self.node.hkctl('vm', 'reset', 'g'), 0)
        self.assertEqual(self.show()['resets'], '1')
        found = self.node.hkctl('replica', 'verify', 'g')
        self.assert_exit(found, 0)
        self.assertIn('none is wrong', found.out)
        self.assertTrue(self.node.hkctl('replica', 'verify', 'g', '-o', 'json').json()['finished'])
        self.assertEqual(float(self.node.metrics()['hyperkernel_replica_entries{vm="g"}']), 0)
        dropped = self.node.hkctl('replica', 'drop', 'g')
        self.assert_exit(dropped, 0)
        self.assertIn('0 entries dropped', dropped.out)
        self.assertEqual(self.show()['resets'], '0')
        self.assert_exit(self.node.hkctl('vm', 'reset', 'g'), 0)
        self.assert_exit(self.node.hkctl('vm', 'reset', 'g', '--cold'), 0)
        self.assertEqual(self.show()['resets'], '0')
        self.assert_exit(self.node.hkctl('vm', 'stop', 'g', '--force'), 0)
        self.assert_fails(self.node.hkctl('replica', 'show', 'g'), 1, "vm 'g' is stopped, not running", 'hkctl vm start g')
        self.assertNotIn('hyperkernel_replica_entries{vm="g"}', self.node.metrics())

    @needs_kvm
    def test_machines_that_have_none(self):
        self.start('without', self.disk('no_replica: true'))
        self.assert_fails(self.node.hkctl('replica', 'show', 'without'), 1, 'no_replica is set')
        self.start('diskless')
        for command in ('show', 'drop', 'verify'):
            self.assert_fails(self.node.hkctl('replica', command, 'diskless'), 1, "vm 'diskless' has none: it has no disks")

    @needs_kvm
    def test_resets_fit_in_the_budget(self):
        """Two machines of 40 MiB in 100: the second always has its room."""
        self.start('g', self.disk())
        for _ in range(4):
            self.assert_exit(self.node.hkctl('vm', 'reset', 'g'), 0)
        self.start('other')
        self.assert_exit(self.node.hkctl('vm', 'reset', 'g'), 0)
        self.assertEqual(float(self.node.metrics()['hyperkernel_frames_reserved_bytes']), 80 << 20)


if __name__ == '__main__':
    hktest.main()
