"""Spaces over real daemons: memory that several nodes present as one."""
import os
import signal
import sys
import threading
import time
import unittest

import hktest
import spacetest

BUDGET_MIB, MIB, SOAK, pipe = spacetest.BUDGET_MIB, spacetest.MIB, hktest.SOAK, spacetest.pipe


class Space(spacetest.TestCase):
    def spaces(self, node):
        return {s['name']: s for s in node.hkctl('space', 'list', '-o', 'json').json()['spaces']}

    def read(self, node, address, count, name='pool'):
        result = node.hkctl('space', 'read', name, '--at', hex(address), '--bytes', str(count), '--raw')
        self.assert_exit(result, 0)
        return result.out

    def write(self, node, address, text, name='pool'):
        self.assert_exit(node.hkctl('space', 'write', name, '--at', hex(address), '--text', text), 0)

    def wait_stopped(self, node, name='pool'):
        def stopped():
            space = self.spaces(node).get(name, {})
            return space if space.get('state') == 'SPACE_STATE_STOPPED' else None
        return hktest.wait_for(stopped, f'{name} is stopped on {node.name}')

    def test_one_space_on_three_nodes(self):
        nodes = self.start('a', 'b', 'c')
        a, b, c = nodes
        result = self.create(a, 'c', 'a', 'b')
        self.assertEqual(result.out, 'space pool created on 3 nodes\n')
        ids = set()
        for node in nodes:
            space = self.spaces(node)['pool']
            self.assertEqual((space['nodes'], space['coordinator'], space['state']), (['a', 'b', 'c'], 'a', 'SPACE_STATE_RUNNING'))
            self.assertEqual(int(space['memory_bytes']), 64 * MIB)
            ids.add(space['id'])
        self.assertEqual(len(ids), 1)
        # What one wrote the others read, each through its own part: the page moves.
        for turn, address in enumerate((0x1000, 2 * MIB - 5, 40 * MIB + 7, 64 * MIB - 12)):
            for writer in nodes:
                text = f'{writer.name} wrote {turn}'[:12]
                self.write(writer, address, text)
                for reader in nodes:
                    self.assertEqual(self.read(reader, address, len(text)), text, f'{writer.name} to {reader.name} at {address:#x}')
        self.assertEqual(self.read(b, 0x1000 + 100, 8), '\0' * 8)
        dump = b.hkctl('space', 'read', 'pool', '--at', '0x1000', '--bytes', '16').out
        self.assertRegex(dump, r'^0000000000001000  63 20 77 72 .* \|c wrote 0')
        show = c.hkctl('space', 'show', 'pool').out
        for text in ('Name:', 'Coordinator:       a\n', '\na     running', '\nb     running', '\nc     running'):
            self.assertIn(text, show)
        layout = b.hkctl('space', 'map', 'pool', '-o', 'json').json()
        self.assertEqual(layout['missing'], [])
        self.assertLessEqual({0, 1, 20, 31}, {int(extent['extent']) for extent in layout['extents']})
        for extent in layout['extents']:
            self.assertIn(extent['home'], ('a', 'b', 'c'))
            # c wrote last and was read by all: everybody has the page.
            self.assertEqual([holder['node'] for holder in extent['holders']], ['a', 'b', 'c'], extent)
        self.assertRegex(a.hkctl('space', 'map', 'pool').out, r'(?m)^0x0 +[abc] +\S')
        top = a.hkctl('space', 'top', 'pool', '-o', 'json').json()
        self.assertEqual([node['part']['node'] for node in top['nodes']], ['a', 'b', 'c'])
        for node in top['nodes']:
            self.assertGreater(int(node['counters']['read_faults']), 0)
            self.assertGreater(int(node['counters']['write_faults']), 0)
            self.assertGreater(int(node['counters']['write_latency']['p99_ns']), 0)
        self.assertRegex(c.hkctl('space', 'top', 'pool').out, r'(?m)^a +\d')
        # Any of its nodes may delete it.
        self.assertEqual(b.hkctl('space', 'delete', 'pool').out, 'space pool deleted\n')
        for node in nodes:
            self.assertEqual(self.spaces(node), {})
            self.assert_fails(node.hkctl('space', 'show', 'pool'), 1, "no space 'pool'", 'hkctl space list')
        # The frames went with it, and the name is free.
        self.create(c, 'a', 'c')
        self.assertEqual(self.spaces(b), {})
        self.assertEqual(self.read(a, 0x1000, 4), '\0' * 4)

    def test_bad_input(self):
        nodes = self.start('a', 'b', 'c')
        a, b, c = nodes
        self.create(a, 'a', 'b')
        # The name may come after the nodes.
        self.assert_exit(a.hkctl('space', 'create', '--memory', '4K', '--nodes', 'a,b', 'small'), 0)
        self.assert_exit(b.hkctl('space', 'delete', 'small'), 0)

        def refused(node, *arguments, says, code=1):
            with self.subTest(arguments=arguments):
                self.assert_fails(node.hkctl('space', *arguments), code, *says)
        create = ('create', 'x', '--memory', '1M', '--nodes')
        refused(a, 'create', 'pool', '--memory', '1M', '--nodes', 'a', says=["a space 'pool' is there already", "node 'a'"])
        refused(c, 'create', 'pool', '--memory', '1M', '--nodes', 'b,c', says=["node 'b': a space 'pool' is there already"])
        refused(a, *create, 'a,x', says=["no node 'x'", 'hkctl node list'])
        refused(a, *create, 'a,b,b', says=["'b' is there twice"])
        refused(a, *create, 'b,c', says=["'a', the node that is asked, is not among them", '--endpoint'])
        refused(a, 'create', 'X', '--memory', '1M', '--nodes', 'a', says=['[a-z0-9-]{1,63}'])
        refused(a, 'create', 'x', '--memory', '0', '--nodes', 'a', says=['memory_bytes: 0'])
        refused(a, 'create', 'x', '--memory', '1000', '--nodes', 'a', says=['not a multiple of 4096'])
        refused(a, 'create', 'x', '--memory', '5P', '--nodes', 'a', says=['4 PiB'])
        refused(a, 'create', 'x', '--memory', '99999P', '--nodes', 'a', says=[''], code=2)
        refused(a, 'create', 'x', '--memory', '-4096', '--nodes', 'a', says=['--memory'], code=2)
        refused(a, 'create', 'x', '--memory', 'much', '--nodes', 'a', says=['--memory'], code=2)
        refused(a, 'create', 'x', '--memory', '1M', says=['--nodes'], code=2)
        refused(a, 'read', 'pool', says=['--at'], code=2)
        refused(a, 'read', 'pool', '--at', '-1', says=['--at'], code=2)
        refused(a, 'read', 'pool', '--at', '0', '--bytes', '0', says=['--bytes'], code=2)
        refused(a, 'read', 'pool', '--at', '0', '--bytes', '65K', says=['--raw'], code=2)
        refused(a, 'read', 'pool', '--at', hex(64 * MIB), '--bytes', '1', says=['not within the space', hex(64 * MIB)])
        refused(a, 'read', 'pool', '--at', hex(64 * MIB - 1), '--bytes', '2', says=['not within the space'])
        refused(a, 'read', 'pool', '--at', '0xffffffffffffffff', '--bytes', '1', says=['not within the space'])
        refused(a, 'write', 'pool', '--at', hex(64 * MIB), '--text', 'x', says=['not within the space'])
        refused(a, 'write', 'pool', '--at', '0', '--text', '', says=['bytes: 0'])
        refused(a, 'write', 'pool', '--at', '0', says=['standard input is empty'], code=2)
        for command in (('show', 'none'), ('delete', 'none'), ('map', 'none'), ('top', 'none'), ('read', 'none', '--at', '0')):
            refused(a, *command, says=["no space 'none' on node 'a'"])
        refused(c, 'read', 'pool', '--at', '0', says=["no space 'pool' on node 'c'"])
        self.assertEqual(list(self.spaces(a)), ['pool'])
        self.assertEqual(list(self.spaces(b)), ['pool'])
        self.assertEqual(self.spaces(c), {})
        # A node that is down, by membership.
        c.stop()
        a.wait_state('c', 'unreachable')
        refused(a, *create, 'a,c', says=["node 'c' is unreachable"])

    def test_frames_that_are_too_few_for_the_virtual_cpus(self):
        a, b = self.start('a', 'b')
        create = ('space', 'create', 'pool', '--memory', '640K', '--nodes', 'a,b', '--frames')
        self.assert_fails(a.hkctl(*create, '344K', '--vcpus', '12'), 1,
                          'node_frames_bytes: 352256 (86 pages) on each node are too few for 12 virtual CPUs each', 'give at least 393216')
        self.assert_fails(a.hkctl(*create, '344K', '--vcpus', '0'), 2, '--vcpus')
        for node in (a, b):
            self.assertEqual(self.spaces(node), {})
        self.assert_exit(a.hkctl(*create, '384K', '--vcpus', '12'), 0)
        self.assertIn('Frames:            384 KiB at most on each node, for 12 vCPUs\n', b.hkctl('space', 'show', 'pool').out)
        self.write(b, 0x1000, 'runs')
        self.assertEqual(self.read(a, 0x1000, 4), 'runs')

    def test_a_budget_that_is_too_small_on_one_node(self):
        a, b, c = self.bed.cluster('a', 'b', 'c')
        for node, budget in ((a, 128), (b, 16), (c, 128)):
            node.budget_mib = budget
            node.start()
        for other in 'bc':
            self.wait_data(a, other)
        self.wait_data(b, 'c')
        result = a.hkctl('space', 'create', 'pool', '--memory', '64M', '--nodes', 'a,b,c')
        self.assert_fails(result, 1, "node 'b': ")
        for node in (a, b, c):
            self.assertEqual(self.spaces(node), {})
        self.create(a, 'a', 'c')

    def test_descriptors_that_do_not_suffice(self):
        a, b = self.bed.cluster('a', 'b')
        a.start()
        b.start(prefix=('prlimit', '--nofile=200:280', '--'))
        self.wait_data(a, 'b')
        self.wait_data(b, 'a')
        self.assert_fails(a.hkctl('space', 'create', 'pool', '--memory', '8M', '--nodes', 'a,b'), 1, "node 'b': it takes 4 file descriptors",
                          'of 280 are open', 'raise LimitNOFILE')
        for node in (a, b):
            self.assertEqual(self.spaces(node), {})
        self.create(a, 'a', memory='8M')

    def test_nodes_pool_their_frames(self):
        """No node can hold it; together they do, and every byte is found from every node."""
        a, b, c = nodes = self.bed.cluster('a', 'b', 'c')
        size, frames = (640 * MIB, 240 * MIB) if SOAK else (12 * MIB, 5 * MIB)
        for node in nodes:
            node.budget_mib = 256
            node.start()
        for node, other in ((a, b), (a, c), (b, c)):
            self.wait_data(node, other.name)
        create = ('space', 'create', 'pool', '--memory', str(size), '--nodes', 'a,b,c', '--frames')
        self.assert_fails(a.hkctl(*create, str(size // 3 // 4096 * 4096)), 1, f'cannot hold {size} bytes and a sixteenth more')
        self.assert_exit(a.hkctl(*create, str(frames)), 0)
        content = b''.join(hktest.rng.randbytes(MIB) for _ in range(size // MIB))
        began = time.monotonic()
        result = pipe(a, 'write', 'pool', '--at', '0', stdin=content)
        self.assertEqual((result.returncode, result.stdout), (0, b'%d bytes written at 0x0\n' % size), result.stderr)
        for node in nodes:
            result = pipe(node, 'read', 'pool', '--at', '0', '--bytes', str(size), '--raw')
            self.assertEqual(result.returncode, 0, result.stderr)
            self.assertTrue(result.stdout == content, f'what {node.name} reads is not what was written')
        print(f'{size >> 20} MiB written once and read by three: {time.monotonic() - began:.1f} s', file=sys.stderr)
        # In no order: pages come from wherever the whole reads have left them.
        piece = size // 160 // 4096 * 4096
        for node in nodes:
            for at in hktest.rng.sample(range(0, size - piece, piece), 20):
                result = pipe(node, 'read', 'pool', '--at', str(at), '--bytes', str(piece), '--raw')
                self.assertTrue(result.stdout == content[at:at + piece], f'what {node.name} reads at {at:#x} is not what was written')
        taken = [int(self.spaces(node)['pool']['frame_bytes']) for node in nodes]
        self.assertTrue(all(0 < one <= frames for one in taken) and sum(taken) >= size, taken)
        # Beyond the end: what fits is there.
        result = pipe(a, 'write', 'pool', '--at', hex(size - (64 << 10)), stdin=bytes(100_000))
        self.assertEqual(result.returncode, 1)
        self.assertIn(b'not within the space', result.stderr)
        self.assertIn(b'65536 bytes were written before', result.stderr)

    def assert_stores(self, nodes, frames, swap, used):
        """Each node says what is reserved, in three ways, and that its swap takes `used` at least of the disk."""
        spare, block = 5 * MIB, 64 << 10  # of a space, for pages that may come back; the file system's own of a file
        for node in nodes:
            info, metrics = node.members()[node.name]['info'], node.metrics()
            for name, least, most in (('frames_reserved', frames, frames + spare if frames else 0), ('swap_budget', 20 * MIB, 20 * MIB),
                                      ('swap_reserved', swap, swap), ('swap_used', used, swap and swap + block)):
                for value in (int(info.get(f'{name}_bytes', 0)), metrics[f'hyperkernel_{name}_bytes']):
                    self.assertTrue(least <= value <= most, (node.name, name, value))
            self.assertRegex(node.hkctl('node', 'show').out,
                             rf'\nFrames: +\S+.* of 64 MiB, .* reserved\nSwap: +\S+.* of 20 MiB, {swap >> 20}( MiB)? reserved\n')

    def test_a_space_larger_than_all_frames(self):
        """What no node has a frame for is in their swap files; every byte is found, and the files go with the space."""
        a, b = nodes = self.bed.cluster('a', 'b')
        size, frames, swap = 24 * MIB, 4 * MIB, 16 * MIB  # one node alone could not hold what it is given
        for node in nodes:
            node.budget_mib, node.swap_mib, node.metrics_port = 64, 20, hktest.free_port()
            node.start()
        self.wait_data(a, 'b')
        create = ('space', 'create', 'pool', '--memory', str(size), '--nodes', 'a,b')
        self.assert_fails(a.hkctl(*create, '--frames', str(frames)), 1, f'cannot hold {size} bytes and a sixteenth more')
        self.assert_fails(a.hkctl(*create, '--frames', str(frames), '--swap', '4M'), 1, 'and 4194304 of swap cannot hold')
        self.assert_fails(a.hkctl(*create, '--swap', '4M'), 1, 'nothing is ever swapped')
        self.assert_fails(a.hkctl(*create, '--frames', str(frames), '--swap', '24M'), 1, 'this node gives 20 MiB (swap_mib)')
        self.assert_exit(a.hkctl(*create, '--frames', str(frames), '--swap', str(swap)), 0)
        files = [os.path.join(node.data_directory, 'swap', 'pool.space.1') for node in nodes]
        self.assertTrue(all(os.path.exists(file) for file in files))
        self.assert_stores(nodes, frames, swap, 0)
        content = b''.join(hktest.rng.randbytes(MIB) for _ in range(size // MIB))
        result = pipe(a, 'write', 'pool', '--at', '0', stdin=content)
        self.assertEqual((result.returncode, result.stdout), (0, b'%d bytes written at 0x0\n' % size), result.stderr)
        pieces = [(at, node) for at in range(0, size, 64 << 10) for node in nodes]
        hktest.rng.shuffle(pieces)
        for at, node in pieces[:200]:
            result = pipe(node, 'read', 'pool', '--at', hex(at), '--bytes', '65536', '--raw')
            self.assertTrue(result.stdout == content[at:at + 65536], f'what {node.name} reads at {at:#x}: {result.stderr}')
        for node in nodes:
            result = pipe(node, 'read', 'pool', '--at', '0', '--bytes', str(size), '--raw')
            self.assertTrue(result.stdout == content, f'what {node.name} reads is not what was written: {result.stderr}')
        shown = a.hkctl('space', 'show', 'pool', '-o', 'json').json()
        swapped = [int(part['swapped_bytes']) for part in shown['parts']]
        self.assertGreaterEqual(sum(swapped), size - 2 * frames)
        self.assertIn('SWAPPED', a.hkctl('space', 'show', 'pool').out)
        self.assert_stores(nodes, frames, swap, min(swapped))
        self.assertTrue(all(int(self.spaces(node)['pool']['frame_bytes']) <= frames for node in nodes))
        b.kill()
        self.assertTrue(os.path.exists(files[1]))
        b.start()
        self.assertFalse(os.path.exists(files[1]))
        self.assert_exit(a.hkctl('space', 'delete', 'pool'), 0)
        self.assertFalse(os.path.exists(files[0]))
        self.assert_stores(nodes, 0, 0, 0)

    def wait_lost(self, node, lost, name='pool'):
        """Waits until the space goes on without a node, and returns what show says."""
        def gone():
            space = node.hkctl('space', 'show', name, '-o', 'json').json()
            return space if lost in [loss['node'] for loss in space.get('lost', [])] else None
        return hktest.wait_for(gone, f'{name} goes on without {lost} on {node.name}')

    def test_a_space_goes_on_without_a_killed_node(self):
        """Nodes a, b and c write and read while c is killed: what others have is read right, what nobody wrote is zero, what
        only c had stops the space, and nothing hangs."""
        a, b, c = self.start('a', 'b', 'c')
        self.create(a, 'a', 'b', 'c')
        # Homes are a, b, c by extents of 2 MiB, in turn. Held by a and b, with each as home; by c too.
        held = {extent * 2 * MIB + 0x3000: f'held {extent:02}' for extent in range(9)}
        for number, (address, text) in enumerate(held.items()):
            self.write((a, b)[number % 2], address, text)
            self.assertEqual(self.read((b, c)[number % 2], address, len(text)), text)
        # Written by c, and read by nobody since; and never touched, beside that.
        lost = [extent * 2 * MIB + 0x5000 for extent in (0, 1, 2)]
        for address in lost:
            self.write(c, address, 'of c')
        # Traffic while it is killed: each writer has a page in each extent, and reads it at another node.
        traffic = spacetest.Traffic(self, a, b, lambda turn, user: (turn % 9) * 2 * MIB + (0x8000, 0x9000)[user])
        start = time.monotonic()
        c.kill()
        for node in (a, b):
            space = self.wait_lost(node, 'c')
            self.assertEqual((space['state'], int(space['epoch'])), ('SPACE_STATE_RUNNING', 2))
        took = time.monotonic() - start
        traffic.go_on('the space is in use again')
        print(f'known to all {took:.1f} s after the kill, used again after {time.monotonic() - start:.1f} s', file=sys.stderr)
        traffic.stop()
        for node in (a, b):
            for address, text in held.items():
                self.assertEqual(self.read(node, address, len(text)), text, f'{address:#x} at {node.name}')
            for extent in range(12):
                self.assertEqual(self.read(node, extent * 2 * MIB + 0x7000, 4), '\0' * 4)
        show = b.hkctl('space', 'show', 'pool').out
        self.assertRegex(show, r'(?m)^Epoch: +2$')
        self.assertRegex(show, r'(?m)^Lost node: +c, since 20.*, epoch 2$')
        self.assertRegex(show, r'(?m)^Lost pages: +3 \(12 KiB\), .*: 3 with c$')
        # A lost page stops it, with node, address and time.
        result = b.hkctl('space', 'read', 'pool', '--at', hex(lost[1]))
        says = f"page at GPA {lost[1]:#x}: it is lost: node 'c' had its only copy, and is lost since 20"
        self.assert_fails(result, 1, "node 'b'", says)
        for node in (a, b):
            space = self.wait_stopped(node)
            self.assertIn(says, space['reason'])
            self.assert_fails(node.hkctl('space', 'read', 'pool', '--at', '0'), 1, 'is stopped', says)
            self.assertRegex(node.hkctl('space', 'show', 'pool').out, r'stopped since 20')
        a.wait_state('c', 'unreachable')
        result = b.hkctl('space', 'delete', 'pool')
        self.assert_exit(result, 0)
        self.assertIn("note: node 'c' is unreachable", result.out)
        for node in (a, b):
            self.assertEqual(self.spaces(node), {})
        # The node returns without it, and can take part in the next.
        c.start()
        for node in (a, b):
            self.wait_data(node, 'c')
            self.wait_data(c, node.name)
        self.assertEqual(self.spaces(c), {})
        self.create(a, 'a', 'b', 'c')
        self.write(c, 0x5000, 'anew')
        self.assertEqual(self.read(a, 0x5000, 4), 'anew')

    def test_readers_of_a_killed_node(self):
        """Whoever reads while a node dies hears which one it was, soon; the others go on without it in a new space."""
        a, b, c = self.start('a', 'b', 'c')
        self.create(a, 'a', 'b', 'c')
        size = 16 * MIB
        result = pipe(c, 'write', 'pool', '--at', '0', stdin=b'c' * size)
        self.assertEqual(result.returncode, 0, result.stderr)
        ends, started = [], threading.Semaphore(0)

        def use(node, seed):
            random, calls = hktest.random.Random(seed), 0
            while True:
                address = random.randrange(size // 4096) * 4096
                began = time.monotonic()
                result = node.hkctl('space', 'read', 'pool', '--at', hex(address), '--bytes', '4', '--raw', '--timeout', '45s')
                calls += 1
                if calls == 3:
                    started.release()
                if result.code != 0 or result.out != 'cccc':
                    ends.append((node.name, result, time.monotonic() - began))
                    return started.release()
        users = [threading.Thread(target=use, args=(node, hktest.rng.randrange(1 << 30))) for node in (a, b) for _ in range(3)]
        for user in users:
            user.start()
        for _ in users:
            self.assertTrue(started.acquire(timeout=hktest.TIMEOUT))
        self.assertEqual(ends, [])
        c.kill()
        for user in users:
            user.join(hktest.TIMEOUT)
        self.assertFalse(any(user.is_alive() for user in users), 'a reader hangs')
        self.assertEqual(len(ends), len(users))
        for name, result, took in ends:
            self.assertEqual(result.code, 1, (name, result))
            self.assertRegex(result.error, "node 'c'", name)
            self.assertLess(took, 10, (name, result))  # a lease, 2 s, and what a busy machine adds
        a.wait_state('c', 'unreachable')
        b.wait_state('c', 'unreachable')
        self.assert_exit(a.hkctl('space', 'delete', 'pool'), 0)
        self.assert_fails(a.hkctl('space', 'create', 'pool', '--memory', '64M', '--nodes', 'a,b,c'), 1, "node 'c' is unreachable")
        self.create(b, 'a', 'b')
        self.write(a, 0x5000, 'of two')
        self.assertEqual(self.read(b, 0x5000, 6), 'of two')

    def test_a_killed_coordinator(self):
        a, b, c = self.start('a', 'b', 'c')
        self.create(a, 'a', 'b', 'c')
        a.kill()
        for node in (b, c):
            self.wait_stopped(node)
        b.wait_state('a', 'unreachable')
        result = b.hkctl('space', 'delete', 'pool')
        self.assert_exit(result, 0)
        self.assertIn("note: node 'a', which coordinates it, does not answer", result.out)
        for node in (b, c):
            self.assertEqual(self.spaces(node), {})

    def test_a_coordinator_that_returns_without_it(self):
        a, b = self.start('a', 'b')
        self.create(a, 'a', 'b')
        self.create(a, 'a', 'b', name='gone')
        self.assert_exit(a.hkctl('space', 'delete', 'gone'), 0)
        a.kill()
        self.wait_stopped(b)
        a.start()
        # What was on disk says which, and in what epoch; not what was deleted.
        ended = [line for line in a.log_text().splitlines() if 'a space ended with an earlier daemon' in line]
        self.assertEqual(len(ended), 1, ended)
        self.assertRegex(ended[0], 'guest=pool .*epoch=1 nodes="?a,b')
        hktest.wait_for(lambda: self.spaces(b) == {}, 'b drops what its coordinator does not know')
        self.assertIn('does not know it any more', b.log_text())

    def test_a_frozen_node(self):
        a, b, c = self.start('a', 'b', 'c')
        c.signal(signal.SIGSTOP)
        result = a.hkctl('space', 'create', 'pool', '--memory', '1M', '--nodes', 'a,b,c')
        self.assert_fails(result, 1, "node 'c'")
        for node in (a, b):
            self.assertEqual(self.spaces(node), {})
        c.signal(signal.SIGCONT)
        a.wait_state('c', 'up')
        # Whatever it did when it woke, nothing of it stays.
        hktest.wait_for(lambda: self.spaces(c) == {}, 'c has no part of it')
        for node in (a, b):
            self.wait_data(node, 'c')
            self.wait_data(c, node.name)
        self.create(a, 'a', 'b', 'c', memory='1M')

    def test_a_node_that_was_given_up_does_not_come_back(self):
        a, b, c = self.start('a', 'b', 'c')
        self.create(a, 'a', 'b', 'c')
        self.write(b, 0x1000, 'old')
        self.assertEqual(self.read(c, 0x1000, 3), 'old')
        c.signal(signal.SIGSTOP)
        for node in (a, b):
            self.assertEqual(self.wait_lost(node, 'c')['state'], 'SPACE_STATE_RUNNING')
        self.write(a, 0x1000, 'new')
        c.signal(signal.SIGCONT)
        space = self.wait_stopped(c)
        self.assertRegex(space['reason'], "node '[ab]' failed|was declared lost in epoch 2")
        self.assert_fails(c.hkctl('space', 'read', 'pool', '--at', '0x1000'), 1, 'is stopped')
        for node in (a, b):
            self.wait_data(node, 'c')  # it is a node like others, but not this space's any more
            self.assertEqual(self.read(node, 0x1000, 3), 'new')
            self.assertEqual(self.spaces(node)['pool']['state'], 'SPACE_STATE_RUNNING')
        # The next loss is another one's.
        b.kill()
        space = self.wait_lost(a, 'b')
        self.assertEqual((space['state'], [loss['node'] for loss in space['lost']]), ('SPACE_STATE_RUNNING', ['c', 'b']))
        self.assertEqual(self.read(a, 0x1000, 3), 'new')
        self.assert_exit(a.hkctl('space', 'delete', 'pool'), 0)
        hktest.wait_for(lambda: self.spaces(c) == {}, 'c drops its part')

    def test_deleted_in_use(self):
        a, b = self.start('a', 'b')
        self.create(a, 'a', 'b')
        ends, stop = [], threading.Event()

        def use(node):
            while not stop.is_set():
                result = node.hkctl('space', 'write', 'pool', '--at', '0x3000', '--text', node.name)
                ends.append((result.code, result.err))
        users = [threading.Thread(target=use, args=(node,)) for node in (a, b)]
        for user in users:
            user.start()
        hktest.wait_for(lambda: sum(code == 0 for code, _ in ends) > 4, 'the space is in use')
        result = b.hkctl('space', 'delete', 'pool')
        stop.set()
        for user in users:
            user.join()
        self.assert_exit(result, 0)
        for code, error in ends:
            self.assertTrue(code == 0 or (code == 1 and ('deleted' in error or 'no space' in error)), (code, error))
        self.assertEqual(self.spaces(a), {})

    def test_a_daemon_stops_with_its_spaces(self):
        a, b = self.start('a', 'b')
        self.create(a, 'a', 'b')
        self.write(b, 0, 'x')
        start = time.monotonic()
        self.assertEqual(b.stop(), 0)
        self.assertLess(time.monotonic() - start, 10)
        # a coordinates it, so it goes on there; what only b had is lost.
        self.assertEqual(self.wait_lost(a, 'b')['state'], 'SPACE_STATE_RUNNING')
        # Known when the new entries hold, a little later.
        hktest.wait_for(lambda: int(a.hkctl('space', 'show', 'pool', '-o', 'json').json()['pages_lost']) == 1, 'the page is lost')
        self.assertEqual(self.read(a, 0x1000, 4), '\0' * 4)
        self.write(a, 0x1000, 'alone')
        self.assertEqual(a.stop(), 0)

    def test_the_data_plane_is_shown(self):
        a, b = self.start('a', 'b')
        rows = a.hkctl('node', 'list').out.splitlines()
        self.assertRegex(rows[0], r'TRANSPORT +DATA$')
        self.assertRegex(rows[1], r'-$')
        self.assertRegex(rows[2], r'up$')
        self.assertRegex(a.hkctl('node', 'show', 'b').out, rf'Data plane: +up since .* at 127\.0\.0\.1:{b.data_port}\n')
        self.assertEqual([a.members()[name]['info']['number'] for name in 'ab'], [0, 1])
        b.kill()
        link = hktest.wait_for(lambda: (lambda l: l if l['state'] == 'DATA_LINK_STATE_DOWN' else None)(a.members()['b']['data_link']),
                               'the data plane is down')
        self.assertTrue(link['reason'])
        # On another port it is found again: it says so itself.
        b.data_port = hktest.free_port()
        b.start()
        self.wait_data(a, 'b')
        self.assertEqual(a.members()['b']['data_link']['address'], f'127.0.0.1:{b.data_port}')

    def test_numbers_that_differ_are_refused(self):
        a, b, c = self.bed.cluster('a', 'b', 'c')
        # b does not know a third node; c, which is number 2 to a, is number 1 to itself.
        c.peers = [(b.name, b.endpoint), (c.name, c.endpoint)]
        b.extra = a.extra = ''
        a.start()
        b.start()
        c.start()
        a.wait_state('b', 'up')
        reason = b.wait_state('c', 'rejected')['reason']
        for text in ('number 1 to itself and 0 here', 'number 2 to it and 1 here', 'same list of peers'):
            self.assertIn(text, reason)
        c.stop()
        c.peers = [(node.name, node.endpoint) for node in (a, b, c)]
        c.start()
        self.wait_data(c, 'a')
        self.wait_data(c, 'b')

    def test_written_numbers(self):
        nodes = self.bed.cluster('a', 'b')
        a, b = nodes
        for node, number, other, its in ((a, 5, b, 63), (b, 63, a, 5)):
            node.budget_mib = BUDGET_MIB
            node.peers = []
            node.extra = f'number: {number} peers {{ name: "{other.name}" admin: "{other.endpoint}" data: "127.0.0.1:{other.data_port}" number: {its} }}'
            node.start()
        self.wait_data(a, 'b')
        self.wait_data(b, 'a')
        self.create(b, 'a', 'b')
        self.write(a, 0, 'five')
        self.assertEqual(self.read(b, 0, 4), 'five')

    def test_metrics_of_the_data_plane(self):
        a, b = self.bed.cluster('a', 'b')
        a.metrics_port = hktest.free_port()
        for node in (a, b):
            node.start()
        self.wait_data(a, 'b')
        self.wait_data(b, 'a')
        self.assertEqual(a.metrics()['hyperkernel_transport_peer_up{peer="b"}'], 1)
        self.create(a, 'a', 'b', memory='1M')
        self.write(a, 0, 'x')
        self.assertEqual(self.read(b, 0, 1), 'x')
        # And those of the space, which go with it.
        self.write(a, 0, 'y')
        metrics = a.metrics()
        self.assertEqual(metrics['hyperkernel_space_running{space="pool"}'], 1)
        self.assertGreater(metrics['hyperkernel_space_faults_total{space="pool",kind="write"}'], 0)
        self.assertEqual(metrics['hyperkernel_space_pages{space="pool",right="exclusive"}'], 1)
        for name in ('prefetched_pages_total', 'prefetch_useful_pages_total', 'prefetch_wasted_pages_total', 'swap_written_pages_total',
                     'swap_read_pages_total', 'swap_failures_total', 'swapped_pages', 'lost_pages'):
            self.assertEqual(metrics[f'hyperkernel_space_{name}{{space="pool"}}'], 0)
        self.assert_exit(a.hkctl('space', 'delete', 'pool'), 0)
        self.assertEqual([name for name in a.metrics() if name.startswith('hyperkernel_space_')], [])
        sent = [value for name, value in a.metrics().items() if name.startswith('hyperkernel_transport_messages_total{')
                and all(label in name for label in ('class="fault"', 'direction="sent"', 'peer="b"'))]
        self.assertEqual(len(sent), 1)
        self.assertGreater(sent[0], 0)


class Roles(hktest.TestCase):
    @unittest.skipUnless(hktest.os.getuid() == 0, 'as an ordinary user there may be no userfaultfd')
    def test_a_viewer_looks_only(self):
        certs = hktest.os.path.join(self.bed.directory, 'tls')
        self.assert_exit(hktest.run([hktest.CERTS, certs, '--nodes', 'a,b', '--admins', 'alice', '--viewers', 'bob']), 0)

        def identity(name):
            return tuple(hktest.os.path.join(certs, file) for file in ('ca.crt', f'{name}.crt', f'{name}.key'))
        a, b = self.bed.cluster('a', 'b', tcp=True)
        for node in (a, b):
            node.tls = identity(f'node-{node.name}')
            node.budget_mib = BUDGET_MIB
            node.peers = [(other.name, other.tcp_endpoint) for other in (a, b)]
            node.start()
        hktest.wait_for(lambda: a.members()['b'].get('data_link', {}).get('state') == 'DATA_LINK_STATE_UP', 'pages travel under TLS')
        admin, viewer = identity('admin-alice'), identity('viewer-bob')

        def ask(who, *arguments):
            return hktest.hkctl(a.tcp_endpoint, 'space', *arguments, tls=who)
        self.assert_fails(ask(viewer, 'create', 'pool', '--memory', '1M', '--nodes', 'a,b'), 1, 'this needs role admin')
        self.assert_exit(ask(admin, 'create', 'pool', '--memory', '1M', '--nodes', 'a,b'), 0)
        for arguments in (('read', 'pool', '--at', '0'), ('write', 'pool', '--at', '0', '--text', 'x'), ('delete', 'pool')):
            self.assert_fails(ask(viewer, *arguments), 1, 'this needs role admin')
        for arguments in (('list',), ('show', 'pool'), ('map', 'pool'), ('top', 'pool')):
            self.assert_exit(ask(viewer, *arguments), 0)
        self.assert_exit(ask(admin, 'write', 'pool', '--at', '4096', '--text', 'secret'), 0)
        result = hktest.hkctl(b.tcp_endpoint, 'space', 'read', 'pool', '--at', '4096', '--bytes', '6', '--raw', tls=admin)
        self.assertEqual(result.out, 'secret')


if __name__ == '__main__':
    hktest.main()
