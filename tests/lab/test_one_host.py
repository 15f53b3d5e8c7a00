#!/usr/bin/env python3
"""One lab host: what the probe finds there, the unit tests that need this kernel or root, and three daemons whose links are cut."""
import pathlib
import subprocess
import time
import unittest

from labtest import LabNode, UNREACHABLE_MS, hktest, link, make_certificates, probe_answers

NODES = {'a': 1, 'b': 2, 'c': 3}


class Probe(hktest.TestCase):
    def test_this_host_runs_stock_kernels_and_has_verbs(self):
        result = hktest.run([hktest.program('hyperkerneld'), '--probe', '-o', 'json'])
        self.assert_exit(result, 0)
        answers = probe_answers(result.json())
        for question in (('kvm', 'runs a stock kernel'), ('kvm', 'hardware module with nested paging'), ('verbs', 'active verbs device'),
                         ('userfaultfd', 'PAGEFAULT_FLAG_WP'), ('io_uring', 'a ring can be made')):
            self.assertEqual(answers[question]['verdict'], 'PROBE_VERDICT_YES', answers[question])
        self.assertIn('rxe0', answers[('verbs', 'active verbs device')]['detail'])
        for (group, name), item in answers.items():
            if item['required']:
                self.assertEqual(item['verdict'], 'PROBE_VERDICT_YES', f'{group}: {name}')
        print(hktest.run([hktest.program('hyperkerneld'), '--probe']).out, flush=True)


class UnitTestsHere(unittest.TestCase):
    """Debian 12's own kernel (6.1) and root: what the development host may lack."""

    def test_units(self):
        for name in ('frame_store_test', 'guest_memory_test', 'space_frames_test', 'space_router_test', 'memory_probe_test', 'kvm_probe_test',
                     'kvm_test', 'verbs_probe_test', 'host_probe_test'):
            with self.subTest(name):
                done = subprocess.run([hktest.program(name), '--gtest_brief=1'], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120)
                self.assertEqual(done.returncode, 0, done.stdout)
                self.assertNotIn('SKIPPED', done.stdout)


class Links(hktest.TestCase):
    def start(self):
        certificates = self.bed.directory + '/certs'
        make_certificates(certificates, NODES)
        nodes = [self.bed_node(name, certificates) for name in NODES]
        for node in nodes:
            node.peers = [(other.name, other.address) for other in nodes]
        for node in nodes:
            node.start()
        return nodes

    def bed_node(self, name, certificates):
        node = LabNode(self.bed, name, f'10.77.1.{NODES[name]}', certificates, NODES[name])
        self.bed.nodes.append(node)
        return node

    def test_cut_and_healed_links_show(self):
        a, b, c = self.start()
        for node in (a, b, c):
            for other in (a, b, c):
                node.wait_state(other.name, 'self' if node is other else 'up')
        # rxe0 belongs to the host's own bridge, whose address these daemons do not have.
        self.assertEqual(a.members()['a']['info']['transport'], 'tcp')
        for _ in range(10 if hktest.SOAK else 1):
            link('cut', 'n2')
            started = time.monotonic()
            try:
                for watcher, gone in ((a, 'b'), (c, 'b'), (b, 'a'), (b, 'c')):
                    member = watcher.wait_state(gone, 'unreachable')
                    self.assertTrue(member['since'])
                    self.assertEqual(member['info']['name'], gone)
                elapsed = time.monotonic() - started
                print(f'cut: all saw it within {elapsed:.1f} s (unreachable_after is {UNREACHABLE_MS / 1000} s)')
                self.assertEqual(a.state_of('c'), 'up')
                print(a.hkctl('node', 'list').out, flush=True)
            finally:
                link('heal', 'n2')
            started = time.monotonic()
            for watcher, back in ((a, 'b'), (c, 'b'), (b, 'a'), (b, 'c')):
                watcher.wait_state(back, 'up')
            elapsed = time.monotonic() - started
            print(f'healed: all saw it within {elapsed:.1f} s')

    def test_a_killed_daemon_comes_back_as_itself(self):
        a, b, _ = self.start()
        identity = a.wait_state('b', 'up')['info']['node_id']
        b.kill()
        a.wait_state('b', 'unreachable')
        b.start()
        self.assertEqual(a.wait_state('b', 'up')['info']['node_id'], identity)


if __name__ == '__main__':
    assert pathlib.Path('/run/lab').exists(), 'runs inside the lab only: tests/lab/lab -- python3 tests/lab/test_one_host.py'
    hktest.main()
    unittest.main(verbosity=2)
