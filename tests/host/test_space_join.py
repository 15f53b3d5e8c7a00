"""Nodes that come to a space while it is in use, over real daemons."""
import sys
import time

import hktest
import spacetest

MIB, pipe = spacetest.MIB, spacetest.pipe


class SpaceJoin(spacetest.TestCase):
    def space(self, node):
        return node.hkctl('space', 'show', 'pool', '-o', 'json').json()

    def join(self, node, name):
        return node.hkctl('space', 'join', 'pool', '--node', name)

    def assert_content(self, node, content):
        result = pipe(node, 'read', 'pool', '--at', '0', '--bytes', str(len(content)), '--raw')
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertTrue(result.stdout == content, f'what {node.name} reads is not what was written')

    def test_a_node_joins_in_use_leaves_and_comes_back(self):
        a, b, c = self.start('a', 'b', 'c')
        self.create(a, 'a', 'b')
        content = b''.join(hktest.rng.randbytes(MIB) for _ in range(16))
        self.assertEqual(pipe(b, 'write', 'pool', '--at', '0', stdin=content).returncode, 0)
        traffic = spacetest.Traffic(self, a, b, lambda turn, user: 32 * MIB + (turn % 100) * 0x2000 + user * 0x1000)
        began = time.monotonic()
        result = self.join(a, 'c')
        self.assert_exit(result, 0)
        self.assertEqual(result.out, 'node c takes part in space pool (epoch 2)\n')
        print(f'joined in {time.monotonic() - began:.2f} s', file=sys.stderr)
        traffic.go_on('the space is in use again')
        self.assert_content(c, content)
        for node in (a, b, c):
            space = self.space(node)
            self.assertEqual(([part['node'] for part in space['parts']], space['lost'], space['pages_lost']), (['a', 'b', 'c'], [], '0'))
        homes = {extent['home'] for extent in a.hkctl('space', 'map', 'pool', '-o', 'json').json()['extents']}
        self.assertEqual(homes, {'a', 'b', 'c'})
        # For maintenance: out, and in again.
        self.assert_exit(a.hkctl('space', 'drain', 'pool', '--node', 'c'), 0)
        self.assert_exit(self.join(a, 'c'), 0)
        self.assertEqual(pipe(c, 'write', 'pool', '--at', '0x1000', stdin=b'again').returncode, 0)
        traffic.go_on('the space is in use again')
        traffic.stop()
        self.assertEqual(pipe(b, 'read', 'pool', '--at', '0x1000', '--bytes', '5', '--raw').stdout, b'again')
        self.assertEqual(self.space(b)['lost'], [])
        # It is as any other now: its loss is one.
        c.kill()
        hktest.wait_for(lambda: [loss['node'] for loss in self.space(a)['lost']] == ['c'], 'a and b go on without c')
        self.assertFalse(self.space(a)['lost'][0]['left'])
        self.assertEqual(self.space(a)['state'], 'SPACE_STATE_RUNNING')

    def test_bad_input(self):
        a, b, c = self.start('a', 'b', 'c')
        self.create(a, 'a', 'b')
        self.assert_fails(self.join(a, 'b'), 1, "node 'b' takes part in space 'pool' already")
        self.assert_fails(self.join(a, 'x'), 1, "node 'x' was no node of the cluster when space 'pool' was made")
        self.assert_fails(self.join(b, 'c'), 1, "is coordinated by node 'a': ask that one (--endpoint)")
        self.assert_exit(c.hkctl('space', 'create', 'pool', '--memory', '1M', '--nodes', 'c'), 0)
        self.assert_fails(self.join(a, 'c'), 1, "node 'c': a space 'pool' is there already (coordinated by node 'c')")
        self.assertEqual(len(self.space(a)['parts']), 2)
        c.kill()
        a.wait_state('c', 'unreachable')
        self.assert_fails(self.join(a, 'c'), 1, "node 'c' is unreachable")


if __name__ == '__main__':
    hktest.main()
