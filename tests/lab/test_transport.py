#!/usr/bin/env python3
"""The transport over verbs in the lab. On one host: the conformance suite over rxe's loopback, and the device taken away and given
back. On two: pages go from one to the other until its process is killed, stopped, its host cut off, or its host's power lost; the one
that is left reports in time with the reason, and every page that came is right.

Runs on each host; LAB_HOSTS says how many there are. Steps meet at barriers, which do not use the link.
"""
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / 'host'))
import hang_report  # noqa: E402

BIN = pathlib.Path(os.environ['HK_BIN'])
HOST, HOSTS = int(os.environ['LAB_HOST']), int(os.environ['LAB_HOSTS'])
LEASE_MS = 2000
LEASE_EXPIRED, RESTARTED, LOCAL = 1, 5, 7  # PeerFailure
SOME_PAGES = 4000
PAGES = 10**9  # never reached: the transfer ends with the peer


def barrier(name):
    subprocess.run(['lab-barrier', name], check=True)


class Load:
    """A transport_load on this host, for the length of a test."""

    def __init__(self, test, mode, own, peer, *arguments):
        self.process = subprocess.Popen([BIN / 'transport_load', mode, '--listen', own, '--peer', peer, *arguments],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        test.addCleanup(self.release)

    def line(self, pattern):
        """The next line that matches; log lines are passed on."""
        for line in self.process.stdout:
            print(line, end='', flush=True)
            if match := re.match(pattern, line):
                return match
        raise AssertionError(f'no line {pattern!r}; exit status {self.process.wait()}')

    def result(self):
        return json.loads(self.line(r'\{.*')[0])

    def close(self):
        """Ends it in good order."""
        self.process.stdin.close()
        self.process.wait(timeout=60)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def release(self):
        self.kill()
        self.process.stdin.close()
        self.process.stdout.close()


@unittest.skipUnless(HOSTS == 1, 'on one host')
class OneHost(unittest.TestCase):
    def conforms(self, program, *options):
        """The suite of rdma/transport.h over one back end."""
        began = time.monotonic()
        done = subprocess.run([BIN / program, '--gtest_brief=1', *options], env={**os.environ, 'HK_VERBS_ADDRESS': '10.77.0.1'},
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=200)
        self.assertEqual(done.returncode, 0, done.stdout[-8000:])
        tests = re.search(r'(\d\d+) tests from', done.stdout)
        self.assertTrue(tests, done.stdout[-2000:])
        print(f'{program}: {tests[1]} tests in {time.monotonic() - began:.0f} s', flush=True)

    def test_conformance_verbs(self):
        self.conforms('verbs_conformance_test')

    def test_conformance_tcp(self):
        # The other wait modes and TLS are the host's business, but for the soak.
        self.conforms('tcp_conformance_test', *([] if os.environ.get('HK_SOAK') else ['--gtest_filter=Blocking/*']))

    def test_conformance_simulated(self):
        self.conforms('sim_conformance_test')

    def test_a_device_that_goes_and_comes_back(self):
        serving = Load(self, 'serve', '10.77.0.1:7301', '10.77.0.1:7300', '--check')
        asking = Load(self, 'transfer', '10.77.0.1:7300', '10.77.0.1:7301', '--count', str(PAGES), '--stay')
        asking.line('up')
        asking.line('progress')
        subprocess.run(['rdma', 'link', 'delete', 'rxe0'], check=True, timeout=60)
        try:
            # Who hears of it first says so to the other, whose device may still be there for a moment.
            failures = {int(end.line(r'failed (\d+)')[1]) for end in (asking, serving)}
            self.assertIn(LOCAL, failures)
            self.assertLessEqual(failures, {LOCAL, RESTARTED})
        finally:
            subprocess.run(['rdma', 'link', 'add', 'rxe0', 'type', 'rxe', 'netdev', 'br0'], check=True, timeout=60)
        asking.line('up')
        asking.line('progress')
        asking.close()
        self.assertEqual(asking.result()['wrong'], 0)
        serving.close()


@unittest.skipUnless(HOSTS == 2, 'on two hosts')
class TwoHosts(unittest.TestCase):
    def serve_until(self, name, end):
        """Host 2's half: answers until `end` is called."""
        serving = Load(self, 'serve', '10.77.0.2:7300', '10.77.0.1:7300', '--check')
        serving.line('up')
        barrier(f'{name}-running')
        end(serving)
        barrier(f'{name}-over')
        return serving

    def ask_until_failure(self, name):
        """Host 1's half: what became of it."""
        asking = Load(self, 'transfer', '10.77.0.1:7300', '10.77.0.2:7300', '--count', str(PAGES))
        asking.line('up')
        asking.line('progress')  # pages are under way, and go on being
        barrier(f'{name}-running')
        failed = asking.line(r'failed (\d+) after (\d+) ms')
        result = asking.result()
        asking.close()
        self.assertGreater(result['answered'], 0)
        self.assertEqual(result['wrong'], 0)
        if name != 'lost':
            barrier(f'{name}-over')
        return int(failed[1]), int(failed[2])

    def both_done(self, name):
        """Or the next test's process meets this one's."""
        if name != 'lost':
            barrier(f'{name}-done')

    def check(self, name, end, after=Load.kill):
        if HOST == 2:
            after(self.serve_until(name, end))
            return self.both_done(name)
        reason, quiet_ms = self.ask_until_failure(name)
        self.both_done(name)
        self.assertEqual(reason, LEASE_EXPIRED)
        print(f'{name}: reported {quiet_ms} ms after the last page', flush=True)
        # The lease runs from the moment at which a connection broke, and from the last word heard; the rest is the lab's.
        self.assertLess(quiet_ms, 2 * LEASE_MS + 3000)
        return None

    def test_0_a_cut_within_the_lease_is_survived(self):
        """The devices' retries end while the link is cut: the connections are made again, and go on where they were."""
        lease = '--lease-ms', '6000'  # the seven tries take 1.9 s of it
        if HOST == 2:
            serving = Load(self, 'serve', '10.77.0.2:7300', '10.77.0.1:7300', '--check', *lease)
            barrier('survived-running')
            subprocess.run(['lab-link', 'cut', 'link'], check=True)
            time.sleep(3)
            subprocess.run(['lab-link', 'heal', 'link'], check=True)
            barrier('survived-over')
            return serving.kill()
        asking = Load(self, 'transfer', '10.77.0.1:7300', '10.77.0.2:7300', '--count', str(SOME_PAGES),
                      '--reconnects', '1', *lease)  # however late the other host comes to cut the link
        asking.line('progress')
        barrier('survived-running')
        result = asking.result()
        asking.close()
        barrier('survived-over')
        self.assertGreaterEqual(result['answered'], SOME_PAGES)
        self.assertEqual(result['wrong'], 0)
        self.assertGreaterEqual(result['reconnects'], 1)
        print(f'survived: {result["reconnects"]} connections made again', flush=True)
        return None

    def test_1_process_killed_in_mid_transfer(self):
        self.check('killed', Load.kill)

    def test_2_process_stopped_in_mid_transfer(self):
        """Its device goes on acknowledging what is sent to it: only the lease tells. When it goes on, it learns what happened."""
        def goes_on(serving):
            serving.process.send_signal(signal.SIGCONT)
            serving.line(r'failed \d+')
            serving.kill()
        self.check('stopped', lambda serving: serving.process.send_signal(signal.SIGSTOP), goes_on)

    def test_3_host_cut_off_in_mid_transfer(self):
        self.check('cut', lambda _: subprocess.run(['lab-link', 'cut', 'link'], check=True))
        subprocess.run(['lab-link', 'heal', 'link'], check=True)

    def test_4_host_lost_in_mid_transfer(self):
        """The last: host 2 is gone after it."""
        self.check('lost', lambda _: subprocess.run(['lab-die'], check=True))


if __name__ == '__main__':
    hang_report.arm()
    unittest.main(verbosity=2)
