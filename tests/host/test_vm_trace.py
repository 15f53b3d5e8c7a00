#!/usr/bin/env python3
"""hkctl vm trace and hk_policy_replay: what a machine's vCPUs on two daemons of this host wait for is recorded and replayed; a recording ends in
order, however it ends; what is no trace is refused in one line."""
import os
import signal
import subprocess
import unittest

import hktest
import placedtest
from test_vm import needs_kvm


@needs_kvm
class VmTrace(placedtest.TestCase):
    budget_mib = 128

    def boot(self, policy):
        a, b = self.start('a', 'b')
        self.assert_exit(self.create(a, extra=f'vcpus: 2 {policy}', a='vcpus: 1', b='vcpus: 1'), 0)
        return a, self.start_guest(a)

    def trace(self, node, *args):
        """A recording that has begun, and its file."""
        path = os.path.join(node.directory, 'g.trace')
        process = subprocess.Popen([hktest.program('hkctl'), '--endpoint', node.endpoint, 'vm', 'trace', 'g', '-f', path, *args],
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        hktest.wait_for(lambda: os.path.exists(path) and os.path.getsize(path) > 0, 'the recording has begun')
        return process, path

    def ends(self, process):
        out, error = process.communicate(timeout=60)
        self.assertEqual((process.returncode, error), (0, ''))
        return out

    def replay(self, path, *args):
        return hktest.run([hktest.program('hk_policy_replay'), path, *args])

    def recorded(self, path):
        return self.replay(path, '-o', 'json').json()

    def test_what_they_wait_for_is_recorded_and_replayed(self):
        a, guest = self.boot('')
        self.assertEqual(self.show(a)['spec']['policy'], 'balance')
        self.assertRegex(a.hkctl('vm', 'show', 'g').out, r'Policy: +balance')
        process, path = self.trace(a, '--for', '4s')
        while process.poll() is None:
            self.order(guest, b'M', 'counted together')
        said = self.ends(process)
        self.assertRegex(said, r'^[1-9]\d* stalls and 0 moves within .* are in .*g\.trace')
        score = self.recorded(path)
        self.assertEqual((score['machine'], score['recorded_policy'], score['policy'], score['nodes'], score['vcpus']), ('g', 'balance', 'balance', 2, 2))
        self.assertGreater(score['stalls'], 10)
        self.assertGreater(score['recorded_s'], 0)
        self.assertGreaterEqual(score['length_ns'], 2_000_000_000)
        self.assertFalse(score['torn'])
        fetched = self.replay(path, '--policy', 'fetch', '-o', 'json').json()
        self.assertEqual((fetched['policy_s'], fetched['moves']), (fetched['recorded_s'], []))
        self.assertIn('waited as recorded', self.replay(path).out)

    def test_it_ends_in_order(self):
        a, guest = self.boot('policy: "fetch"')
        for end in (lambda process: process.send_signal(signal.SIGINT), lambda process: process.send_signal(signal.SIGTERM),
                    lambda process: self.assert_exit(a.hkctl('vm', 'stop', 'g', '--force'), 0)):
            process, path = self.trace(a)
            self.order(guest, b'M', 'counted together')
            size = os.path.getsize(path)
            hktest.wait_for(lambda: os.path.getsize(path) > size, 'something is recorded')
            end(process)
            self.assertIn('stalls', self.ends(process))
            score = self.recorded(path)
            self.assertEqual((score['recorded_policy'], score['torn']), ('fetch', False))
            with open(path, 'r+b') as file:
                file.truncate(os.path.getsize(path) - 1)
            self.assertTrue(self.recorded(path)['torn'])
            os.unlink(path)

    def test_what_cannot_be_recorded(self):
        a, = self.start('a')
        path = os.path.join(a.directory, 'none.trace')
        self.assert_fails(a.hkctl('vm', 'trace', 'g', '-f', path), 1, "'g'")
        self.assert_exit(self.create(a, a=''), 0)
        self.assert_fails(a.hkctl('vm', 'trace', 'g', '-f', path), 1, 'not running')
        self.start_guest(a)
        self.assert_fails(a.hkctl('vm', 'trace', 'g', '-f', path), 1, 'is on one node')
        self.assertFalse(os.path.exists(path))
        self.assert_fails(a.hkctl('vm', 'trace', 'g'), 2, '--file')
        self.assert_fails(a.hkctl('vm', 'trace', 'g', '-f', path, '--for', '10'), 2, '--for')


class Replay(unittest.TestCase):
    def test_what_is_no_trace_is_refused_in_one_line(self):
        for path, why in (('/etc/passwd', 'not a trace'), ('/dev/null', 'not a trace'), ('/dev/zero', 'not a trace'), ('/nowhere', 'No such file'),
                          ('/', 'directory')):
            result = hktest.run([hktest.program('hk_policy_replay'), path])
            self.assertEqual(result.code, 1, path)
            self.assertIn(why, result.err)
            self.assertEqual(result.err.count('\n'), 1)
        self.assertEqual(hktest.run([hktest.program('hk_policy_replay')]).code, 2)
        self.assertEqual(hktest.run([hktest.program('hk_policy_replay'), '/dev/null', '--policy', 'guess']).code, 2)


if __name__ == '__main__':
    unittest.main()
