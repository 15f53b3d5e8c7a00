"""Nodes that are emptied while their space is in use, over real daemons."""
import signal
import sys
import time

import hktest
import spacetest

MIB, pipe = spacetest.MIB, spacetest.pipe


class SpaceDrain(spacetest.TestCase):
    def space(self, node, name='pool'):
        return node.hkctl('space', 'show', name, '-o', 'json').json()

    def names(self, node):
        return [space['name'] for space in node.hkctl('space', 'list', '-o', 'json').json()['spaces']]

    def drain(self, node, *arguments):
        return node.hkctl('space', 'drain', 'pool', *arguments)

    def fill(self, node, size):
        content = b''.join(hktest.rng.randbytes(MIB) for _ in range(size // MIB))
        result = pipe(node, 'write', 'pool', '--at', '0', stdin=content)
        self.assertEqual(result.returncode, 0, result.stderr)
        return content

    def assert_content(self, node, content):
        result = pipe(node, 'read', 'pool', '--at', '0', '--bytes', str(len(content)), '--raw')
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertTrue(result.stdout == content, f'what {node.name} reads is not what was written')

    def test_a_node_is_emptied_in_use(self):
        """c has it all, in frames and in its swap, and leaves while a and b read and write: every byte is found; then b goes too."""
        a, b, c = nodes = self.bed.cluster('a', 'b', 'c')
        for node in nodes:
            node.budget_mib, node.swap_mib = 64, 32
            node.start()
        for node, other in ((a, b), (a, c), (b, c)):
            self.wait_data(node, other.name)
        size = 24 * MIB
        self.assert_exit(a.hkctl('space', 'create', 'pool', '--memory', str(size + 2 * MIB), '--nodes', 'a,b,c', '--frames', '10M',
                                 '--swap', '15M'), 0)
        content = self.fill(c, size)
        traffic = spacetest.Traffic(self, a, b, lambda turn, user: size + (turn % 100) * 0x2000 + user * 0x1000)
        began = time.monotonic()
        result = self.drain(a, '--node', 'c', '--timeout', '50s')
        self.assert_exit(result, 0)
        self.assertRegex(result.out, r'^node c has left space pool \(epoch \d+\)\n$')
        self.assertIn('node c: ', result.err)
        print(f'{size >> 20} MiB of c given to others in {time.monotonic() - began:.1f} s', file=sys.stderr)
        traffic.go_on('the space is in use again')
        traffic.stop()
        self.assertEqual(self.names(c), [])
        show = b.hkctl('space', 'show', 'pool').out
        self.assertRegex(show, r'(?m)^Node that left: +c, since 20.*, epoch \d+$')
        self.assertNotIn('Lost', show)
        self.assertNotRegex(show, r'(?m)^c ')
        self.assertEqual([part['node'] for part in self.space(a)['parts']], ['a', 'b'])
        for node in (a, b):
            self.assert_content(node, content)
        self.assert_fails(self.drain(a, '--node', 'c'), 1, "node 'c' has left the space already")
        self.assert_fails(self.drain(a, '--node', 'b'), 1, 'the others (1 node) have room for', 'it cannot be emptied')
        # The end of who left is nothing to the space.
        c.kill()
        a.wait_state('c', 'unreachable')
        self.assert_content(a, content)
        self.assertEqual(self.space(a)['state'], 'SPACE_STATE_RUNNING')
        result = a.hkctl('space', 'delete', 'pool')
        self.assert_exit(result, 0)
        self.assertEqual(result.out, 'space pool deleted\n')

    def test_all_but_one_leave(self):
        a, b, c = self.start('a', 'b', 'c')
        self.create(a, 'a', 'b', 'c', memory='8M')
        content = self.fill(c, 4 * MIB)
        self.assert_exit(self.drain(a, '--node', 'c'), 0)
        self.assert_content(b, content)
        self.assert_exit(self.drain(a, '--node', 'b', '-o', 'json'), 0)
        self.assertEqual([(loss['node'], loss['left'], loss['pages_lost']) for loss in self.space(a)['lost']], [('c', True, '0'), ('b', True, '0')])
        self.assert_content(a, content)
        self.assertEqual(self.names(b) + self.names(c), [])
        result = pipe(a, 'write', 'pool', '--at', '0x500000', stdin=b'alone')
        self.assertEqual(result.returncode, 0, result.stderr)

    def test_a_node_stays_after_all(self):
        """What it has given away by then comes back when it is used."""
        a, b, c = self.start('a', 'b', 'c')
        self.create(a, 'a', 'b', 'c')
        self.assert_fails(self.drain(a, '--node', 'c', '--cancel'), 1, "node 'c' is not being drained")
        content = self.fill(c, 16 * MIB)
        result = self.drain(a, '--node', 'c', '--no-wait')
        self.assertEqual((result.code, result.out), (0, 'node c is being drained; see hkctl space show pool\n'))
        result = self.drain(a, '--node', 'c', '--cancel')
        # It may have gone before (space_drain_test has the order of both).
        if result.code == 0:
            self.assertEqual(result.out, 'node c stays in space pool\n')
            self.assertEqual(self.names(c), ['pool'])
            self.assert_content(c, content)
            self.assertNotIn('Draining', a.hkctl('space', 'show', 'pool').out)
            self.assert_exit(self.drain(a, '--node', 'c'), 0)
        else:
            self.assertRegex(result.err, "node c had left already|node 'c' is not being drained")
        self.assertEqual([(loss['node'], loss['left']) for loss in self.space(a)['lost']], [('c', True)])
        self.assert_content(b, content)

    def test_a_node_is_lost_while_it_is_drained(self):
        a, b, c = self.start('a', 'b', 'c')
        self.create(a, 'a', 'b', 'c')
        self.fill(c, 32 * MIB)
        c.process.send_signal(signal.SIGSTOP)
        self.addCleanup(c.process.send_signal, signal.SIGCONT)
        result = self.drain(a, '--node', 'c')
        self.assert_exit(result, 1)
        # Refused, if it was known by then.
        self.assertRegex(result.err, "node c was lost before it was empty; see hkctl space show pool|node 'c' is (unreachable|lost)")
        space = hktest.wait_for(lambda: (self.space(b) if self.space(b).get('lost') else None), 'b goes on without c')
        self.assertEqual([(loss['node'], loss.get('left', False)) for loss in space['lost']], [('c', False)])
        self.assertNotIn('drain', self.space(a))

    def test_bad_input(self):
        a, b, _ = self.start('a', 'b', 'c')
        self.create(a, 'a', 'b')
        self.assert_fails(self.drain(a, '--node', 'c'), 1, "node 'c' does not take part in space 'pool'; see hkctl space show")
        self.assert_fails(self.drain(a, '--node', 'a'), 1, "node 'a' coordinates space 'pool', which ends with it: delete the space instead")
        self.assert_fails(self.drain(b, '--node', 'b'), 1, "is coordinated by node 'a': ask that one (--endpoint)")
        self.assert_fails(a.hkctl('space', 'drain', 'none', '--node', 'b'), 1, "no space 'none'")
        self.assert_fails(self.drain(a), 2, '--node')
        b.kill()
        a.wait_state('b', 'unreachable')
        result = self.drain(a, '--node', 'b')
        self.assertEqual(result.code, 1)
        self.assertRegex(result.err, "node 'b' is (unreachable|lost to the space already)")


if __name__ == '__main__':
    hktest.main()
