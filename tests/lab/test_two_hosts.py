#!/usr/bin/env python3
"""Two lab hosts joined by a link: a daemon on each, over mutual TLS. The link is cut and healed, one daemon is killed.

Runs on both hosts at once; LAB_HOST says which this is. Steps meet at barriers, which do not use the link.
"""
import subprocess
import time
import unittest

from labtest import DEADLINE_S, HOST, LabNode, UNREACHABLE_MS, hktest, link, make_certificates

SHARED = '/out/certs'
NAMES = {1: 'a', 2: 'b'}


def barrier(name):
    subprocess.run(['lab-barrier', name], check=True)


class TwoHosts(hktest.TestCase):
    def test_join_cut_heal_kill(self):
        if HOST == 1:
            make_certificates(SHARED, NAMES.values())
        barrier('certificates')
        me, other = NAMES[HOST], NAMES[3 - HOST]
        node = LabNode(self.bed, me, f'10.77.0.{HOST}', SHARED)
        self.bed.nodes.append(node)
        node.peers = [(name, f'10.77.0.{host}') for host, name in NAMES.items()]
        node.start()
        member = node.wait_state(other, 'up')
        self.assertEqual(member['info']['host_name'], f'lab{3 - HOST}')
        self.assertEqual(member['info']['transport'], 'verbs(rxe0)')
        identity = member['info']['node_id']
        print(node.hkctl('node', 'list').out, flush=True)
        answer = hktest.hkctl(f'10.77.0.{3 - HOST}:7469', 'node', 'probe', me, '-o', 'json',
                              tls=(f'{SHARED}/ca.crt', f'{SHARED}/admin-operator.crt', f'{SHARED}/admin-operator.key'))
        self.assert_exit(answer, 0)
        self.assertEqual(answer.json()['node'], me)
        barrier('joined')

        if HOST == 1:
            link('cut', 'link')
        barrier('cut')
        started = time.monotonic()
        node.wait_state(other, 'unreachable')
        elapsed = time.monotonic() - started
        print(f'cut: seen within {elapsed:.1f} s (unreachable_after is {UNREACHABLE_MS / 1000} s)')
        self.assertLess(elapsed, DEADLINE_S)
        print(node.hkctl('node', 'list').out, flush=True)
        barrier('both-saw-the-cut')
        if HOST == 1:
            link('heal', 'link')
        barrier('healed')
        started = time.monotonic()
        node.wait_state(other, 'up')
        elapsed = time.monotonic() - started
        print(f'healed: seen within {elapsed:.1f} s', flush=True)
        self.assertLess(elapsed, DEADLINE_S)
        barrier('both-saw-it-healed')

        if HOST == 2:
            node.kill()
            barrier('killed')
            barrier('seen')
            node.start()
        else:
            barrier('killed')
            node.wait_state(other, 'unreachable')
            barrier('seen')
        self.assertEqual(node.wait_state(other, 'up')['info']['node_id'], identity)
        barrier('end')


if __name__ == '__main__':
    hktest.main()
    unittest.main(verbosity=2)
