#!/usr/bin/env python3
"""Two lab hosts joined by a link: a daemon on each, over mutual TLS. The link is cut and healed, one daemon is killed.

Runs on both hosts at once; LAB_HOST says which this is. Steps meet at barriers, which do not use the link.
"""
import subprocess
import time
import unittest

from labtest import HOST, LabNode, UNREACHABLE_MS, hktest, link, make_certificates

SHARED = '/out/certs'
NAMES = {1: 'a', 2: 'b'}


def barrier(name):
    subprocess.run(['lab-barrier', name], check=True)


class TwoHosts(hktest.TestCase):
    def make_space(self, node, other):
        """A space over both hosts; what each wrote the other reads, over verbs."""
        hktest.wait_for(lambda: node.members()[other].get('data_link', {}).get('state') == 'DATA_LINK_STATE_UP', 'the data plane is up')
        barrier('data')
        if HOST == 1:
            self.assert_exit(node.hkctl('space', 'create', 'pool', '--memory', '32M', '--nodes', 'a,b'), 0)
        barrier('made')
        self.assert_exit(node.hkctl('space', 'write', 'pool', '--at', str(HOST * 4096), '--text', f'from host {HOST}'), 0)
        barrier('written')
        result = node.hkctl('space', 'read', 'pool', '--at', str((3 - HOST) * 4096), '--bytes', '11', '--raw')
        self.assert_exit(result, 0)
        self.assertEqual(result.out, f'from host {3 - HOST}')
        barrier('read')

    def check_space_after_the_cut(self, node, other):
        """It goes on where it is coordinated, with what is there; the other node's part stops."""
        def space():
            return node.hkctl('space', 'show', 'pool', '-o', 'json').json()
        if HOST == 1:
            hktest.wait_for(lambda: [loss['node'] for loss in space().get('lost', [])] == [other], 'the space goes on without it')
            self.assertEqual(space()['state'], 'SPACE_STATE_RUNNING')
            for host in (1, 2):
                result = node.hkctl('space', 'read', 'pool', '--at', str(host * 4096), '--bytes', '11', '--raw')
                self.assertEqual((result.code, result.out), (0, f'from host {host}'), result.err)
            print(node.hkctl('space', 'show', 'pool').out, flush=True)
        else:
            hktest.wait_for(lambda: space()['state'] == 'SPACE_STATE_STOPPED', 'the space is stopped')
            print(f'stopped: {space()["reason"]}', flush=True)
            self.assertIn(f"node '{other}' failed", space()['reason'])

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
        self.make_space(node, other)

        if HOST == 1:
            link('cut', 'link')
        barrier('cut')
        started = time.monotonic()
        node.wait_state(other, 'unreachable')
        elapsed = time.monotonic() - started
        print(f'cut: seen within {elapsed:.1f} s (unreachable_after is {UNREACHABLE_MS / 1000} s)')
        print(node.hkctl('node', 'list').out, flush=True)
        self.check_space_after_the_cut(node, other)
        barrier('both-saw-the-cut')
        # Each for itself: they cannot hear one another.
        deleted = node.hkctl('space', 'delete', 'pool')
        self.assert_exit(deleted, 0)
        self.assertIn(f"note: node '{other}'", deleted.out)
        self.assertEqual(node.hkctl('space', 'list', '-o', 'json').json()['spaces'], [])
        barrier('both-deleted-it')
        if HOST == 1:
            link('heal', 'link')
        barrier('healed')
        started = time.monotonic()
        node.wait_state(other, 'up')
        elapsed = time.monotonic() - started
        print(f'healed: seen within {elapsed:.1f} s', flush=True)
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
