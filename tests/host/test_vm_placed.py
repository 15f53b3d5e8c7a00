#!/usr/bin/env python3
"""Machines whose memory is a space over three daemons of this host, with a guest program on any /dev/kvm: what it wrote is what it reads,
though no node could hold it, nor, but for their swap, all of them; operators see where it is; ends, refused starts and lost nodes leave nothing
behind."""
import os
import shutil
import unittest

import hktest
import placedtest
from test_vm import needs_kvm

# The guest fills 40 MiB of it. A budget has 4.25 MiB more for each space, for pages that come back.
MEMORY_MIB, NODE_MIB, BUDGET_MIB = 64, 24, 32
# Where that is more than all nodes have frames for; of the budget for swap nothing is left.
FEW_MIB, SWAP_MIB = 8, 20


@needs_kvm
class VmPlaced(placedtest.TestCase):
    budget_mib = BUDGET_MIB
    memory_mib = MEMORY_MIB
    swap_mib = SWAP_MIB

    def create(self, node, name='g', extra='', node_mib=NODE_MIB, swap_mib=0):
        return super().create(node, name, extra, **{other: f'memory_mib: {node_mib} swap_mib: {swap_mib}' for other in 'abc'})

    def boot(self, node, **how):
        self.assert_exit(self.create(node, **how), 0)
        return self.start_guest(node)

    def test_a_guest_larger_than_its_node(self):
        a, b, c = self.start('a', 'b', 'c')
        guest = self.boot(a)
        for _ in range(3):
            self.order(guest, b'F', 'filled')
            self.order(guest, b'C', 'checked')
        pages = self.pages_on(a)
        self.assertLessEqual(pages['a'], NODE_MIB * 256)
        self.assertGreaterEqual(pages['a'] + pages['b'] + pages['c'], 40 * 256)
        self.assertGreater(pages['b'] + pages['c'], 40 * 256 - NODE_MIB * 256 - 1)
        top = {node['part']['node']: node['counters'] for node in a.hkctl('vm', 'top', 'g', '-o', 'json').json()['nodes']}
        self.assertGreater(int(top['a']['read_faults']) + int(top['a']['write_faults']), 2000)
        # It is the machine's, and goes with it alone.
        self.assert_fails(b.hkctl('space', 'delete', 'g'), 1, "is the memory of vm 'g' on node 'a'")
        self.assert_fails(a.hkctl('space', 'drain', 'g', '--node', 'b'), 1, "it cannot be emptied")
        for order in ('pause', 'unpause', 'renew'):
            self.assert_exit(a.hkctl('vm', order, 'g'), 0)
        self.order(guest, b'C', 'checked')
        self.assert_exit(a.hkctl('vm', 'reset', 'g'), 0)
        hktest.wait_for(lambda: a.hkctl('vm', 'log', 'g').out.count('hello from the guest') == 2, 'the guest runs again')
        self.assertLess(sum(self.pages_on(a).values()), 1000)
        guest.type(b'P')
        self.wait_state(a, 'STOPPED')
        self.wait_nothing_left([a, b, c])

    def test_a_placement_that_is_chosen(self):
        a, b, c = self.start('a', 'b', 'c')
        # No node has the frames for it, and no two.
        result = super().create(a, extra='automatic_placement {}')
        self.assert_exit(result, 0)
        for node in 'abc':
            self.assertIn(f'{node}: ', result.out)
        placement = self.show(a)['spec']['placement']
        self.assertEqual([place['node'] for place in placement][0], 'a')
        self.assertEqual({int(place['memory_mib']) for place in placement}, {23})
        guest = self.start_guest(a)
        self.order(guest, b'F', 'filled')
        self.order(guest, b'C', 'checked')
        guest.type(b'P')
        self.wait_state(a, 'STOPPED')
        self.wait_nothing_left([a, b, c])
        self.assert_exit(a.hkctl('vm', 'delete', 'g'), 0)
        c.stop()
        a.wait_state('c', 'unreachable')
        self.assert_fails(super().create(a, extra='automatic_placement {}'), 1, 'automatic_placement: 64 MiB do not fit on up to 2 nodes', "'b' 3")
        self.assert_fails(super().create(a, extra='automatic_placement {}', b=''), 1, '`placement` says where the machine is')

    def swapped(self, node):
        """MiB of the machine in each node's swap; no node has more frames than it gives."""
        parts = node.hkctl('space', 'show', 'g', '-o', 'json').json()['parts']
        self.assertTrue(all(int(part.get('frame_bytes', 0)) <= FEW_MIB * placedtest.MIB for part in parts), parts)
        return {part['node']: int(part.get('swapped_bytes', 0)) / placedtest.MIB for part in parts}

    def test_a_guest_larger_than_all_frames(self):
        a, b, c = nodes = self.start('a', 'b', 'c')
        guest = self.boot(a, node_mib=FEW_MIB, swap_mib=SWAP_MIB)
        self.assertRegex(a.hkctl('vm', 'show', 'g').out, r'Placed: +a: vCPU 0, devices, 8 MiB of memory at most, 20 MiB of swap\n')
        for _ in range(2):
            self.order(guest, b'F', 'filled')
            self.order(guest, b'C', 'checked')
            self.assertGreaterEqual(sum(self.swapped(a).values()), 40 - 3 * FEW_MIB)
        for order in ('pause', 'unpause', 'renew'):
            self.assert_exit(a.hkctl('vm', order, 'g'), 0)
        self.order(guest, b'C', 'checked')
        # The next run has the same swap, which is all that there is.
        self.assert_exit(a.hkctl('vm', 'reset', 'g'), 0)
        hktest.wait_for(lambda: a.hkctl('vm', 'log', 'g').out.count('hello from the guest') == 2, 'the guest runs again')
        self.assertEqual(sum(self.swapped(a).values()), 0)
        self.order(guest, b'F', 'filled')
        self.order(guest, b'C', 'checked')
        guest.type(b'P')
        self.wait_state(a, 'STOPPED')
        self.wait_nothing_left(nodes)
        for node in nodes:
            self.assertEqual(os.listdir(os.path.join(node.data_directory, 'swap')), [])

    def test_the_fewest_frames_while_vcpus_of_two_nodes_run_and_the_third_leaves(self):
        self.swap_mib = 34
        a, *_ = self.start('a', 'b', 'c')
        few = 'memory_mib: 4 swap_mib: 34'
        self.assert_exit(placedtest.TestCase.create(self, a, extra='vcpus: 2', a=f'vcpus: 1 {few}', b=f'vcpus: 1 {few}', c=few), 0)
        guest = self.start_guest(a)
        self.order(guest, b'F', 'filled')
        self.order(guest, b'M', 'counted together')
        self.assert_exit(a.hkctl('space', 'drain', 'g', '--node', 'c'), 0)
        self.assertEqual(self.pages_on(a)['c'], 0)
        self.order(guest, b'C', 'checked')
        self.assert_exit(a.hkctl('space', 'join', 'g', '--node', 'c'), 0)
        self.order(guest, b'F', 'filled')
        self.order(guest, b'M', 'counted together')
        self.order(guest, b'C', 'checked')

    def test_swap_that_nodes_do_not_have(self):
        a, b, c = self.start('a', 'b', 'c')
        self.assert_fails(self.create(a, node_mib=FEW_MIB, swap_mib=SWAP_MIB + 1), 1,
                          f"placement[0].swap_mib: {SWAP_MIB + 1} is more than this node's swap_mib {SWAP_MIB}")
        self.assert_fails(self.create(a, node_mib=FEW_MIB, swap_mib=14), 1, 'placement: 66 MiB on 3 nodes together, swap included, do not hold 64 MiB')
        self.assert_exit(self.create(a, node_mib=FEW_MIB, swap_mib=SWAP_MIB), 0)
        self.assert_exit(c.hkctl('space', 'create', 'other', '--memory', '3M', '--frames', '2M', '--swap', '2M', '--nodes', 'c'), 0)
        self.assert_fails(a.hkctl('vm', 'start', 'g'), 1,
                          "placement: node 'c': 20 MiB of swap do not fit: this node gives 20 MiB (swap_mib), 2 MiB are taken")
        self.wait_nothing_left([a, b])
        self.assert_exit(c.hkctl('space', 'delete', 'other'), 0)
        self.order(self.start_guest(a), b'F', 'filled')

    def test_a_node_leaves_and_comes_again_while_the_guest_runs(self):
        self.budget_mib = 2 * MEMORY_MIB
        a, b, _ = self.start('a', 'b', 'c')
        guest = self.boot(a, node_mib=44)
        self.order(guest, b'F', 'filled')
        self.assert_exit(a.hkctl('space', 'drain', 'g', '--node', 'b'), 0)
        self.assertEqual(self.pages_on(a).get('b', 0), 0)
        self.order(guest, b'C', 'checked')
        self.assert_exit(a.hkctl('space', 'join', 'g', '--node', 'b'), 0)
        self.order(guest, b'F', 'filled')
        self.order(guest, b'C', 'checked')
        self.assertEqual(self.show(a)['state'], 'VM_STATE_RUNNING')

    def test_nodes_of_different_size(self):
        """The I/O node gives little; no node has more than its own bound."""
        a, *_ = self.start('a', 'b', 'c')
        most = {'a': 16, 'b': 26, 'c': 26}
        self.assert_exit(placedtest.TestCase.create(self, a, **{name: f'memory_mib: {mib}' for name, mib in most.items()}), 0)
        guest = self.start_guest(a)
        for _ in range(2):
            self.order(guest, b'F', 'filled')
            self.order(guest, b'C', 'checked')
            for part in a.hkctl('space', 'show', 'g', '-o', 'json').json()['parts']:
                self.assertLessEqual(int(part['frame_bytes']), most[part['node']] << 20, part)
        self.assertRegex(a.hkctl('space', 'show', 'g').out, r'Frames: +16 MiB at most on each node, 26 MiB on b, 26 MiB on c, for 1 vCPUs\n')
        self.assert_fails(a.hkctl('space', 'drain', 'g', '--node', 'c'), 1, 'the others (2 nodes) have room for')

    def test_what_cannot_start_leaves_nothing(self):
        a, b, c = self.start('a', 'b', 'c', unreachable_ms=2000)
        self.assert_fails(self.create(a, node_mib=BUDGET_MIB + 1), 1, f'placement[0].memory_mib: {BUDGET_MIB + 1} is more than this node')
        self.assert_fails(self.create(a, node_mib=20), 1, 'placement: 60 MiB on 3 nodes together do not hold 64 MiB')
        self.assert_exit(self.create(a), 0)
        # One of them has no room: what the others had made of it is gone again.
        self.assert_exit(c.hkctl('space', 'create', 'other', '--memory', '16M', '--nodes', 'c'), 0)
        self.assert_fails(a.hkctl('vm', 'start', 'g'), 1, "placement: node 'c'")
        self.wait_nothing_left([a, b])
        self.assertIn("start failed: placement: node 'c'", self.show(a)['reason'])
        self.assert_exit(c.hkctl('space', 'delete', 'other'), 0)
        c.kill()
        hktest.wait_for(lambda: a.state_of('c') != 'up', 'a has noticed', 60)
        self.assert_fails(a.hkctl('vm', 'start', 'g'), 1, "placement: node 'c'")
        self.wait_nothing_left([a, b])

    def test_bad_placements_are_refused_before_anything_starts(self):
        a, *_ = nodes = self.start('a', 'b', 'c')

        def create(name, extra='', kernel=None, **places):
            places = places or {'a': '', 'b': ''}
            placement = ' '.join(f'placement {{ node: "{node}" {fields} }}' for node, fields in places.items())
            path = os.path.join(a.directory, f'{name}.textproto')
            with open(path, 'w', encoding='utf-8') as file:
                file.write(f'name: "{name}" memory_mib: 32 kernel: "{kernel or hktest.program("echo_kernel")}" {placement} {extra}\n')
            return a.hkctl('vm', 'create', '-f', path)

        image, copy = os.path.join(a.directory, 'image'), os.path.join(a.directory, 'kernel')
        disk = f'disks {{ path: "{image}" cache: DISK_CACHE_BUFFERED }}'
        cases = (
            (create('g', a='', z=''), "placement[1].node: no node 'z' in this cluster; see hkctl node list"),
            (create('g', 'placement { node: "a" }'), "placement[2].node: 'a' is there twice"),
            (create('g', 'vcpus: 3', a='vcpus: 1', b='vcpus: 1'), 'placement: 2 vcpus are placed, the machine has 3'),
            (create('g', a='memory_mib: 16', b='memory_mib: 17'), 'placement: 33 MiB on 2 nodes together do not hold 32 MiB and a sixteenth more'),
            (create('g', a='memory_mib: 33', b='memory_mib: 17'), "placement[0].memory_mib: 33 is more than the machine's 32"),
            (create('g', b='', c=''), "io_node: 'b' is not the node that is asked ('a')"),
            (create('g', disk), f"disks[0].path: {image}: No such file or directory (ENOENT); it is to be on the I/O node, 'a'"),
            (create('g', kernel=copy), f'kernel: {copy}: No such file or directory'),
        )
        for result, line in cases:
            self.assert_fails(result, 1, line)
        self.assertEqual(a.hkctl('vm', 'list', '-o', 'json').json().get('vms', []), [])

        # What was there when it was defined, and is not when it is to start.
        with open(image, 'wb') as file:
            file.truncate(1 << 20)
        shutil.copy(hktest.program('echo_kernel'), copy)
        for name, how in (('g', {}), ('h', {'kernel': copy})):
            self.assert_exit(create(name, disk, **how), 0)
        guest = self.start_guest(a)
        self.assert_fails(create('i', disk), 1, f'disks[0].path: {image}: in use by another guest or program')
        self.assert_fails(a.hkctl('vm', 'start', 'h'), 1, f'disks[0].path: {image}: in use by another guest or program')
        self.assertEqual([space['name'] for space in a.hkctl('space', 'list', '-o', 'json').json()['spaces']], ['g'])
        guest.type(b'P')
        self.wait_state(a, 'STOPPED')
        self.wait_nothing_left(nodes)
        os.remove(copy)
        self.assert_fails(a.hkctl('vm', 'start', 'h'), 1, f'kernel: {copy}')
        self.wait_nothing_left(nodes)
        os.remove(image)
        self.assert_fails(a.hkctl('vm', 'start', 'g'), 1, f'disks[0].path: {image}: No such file')
        self.wait_nothing_left(nodes)

    def test_a_lost_node_ends_who_needs_it_and_it_starts_again_when_that_is_back(self):
        nodes = self.start('a', 'b', 'c', unreachable_ms=2000)
        a = nodes[0]
        guest = self.boot(a, extra='on_crash: ON_CRASH_RESET')
        self.order(guest, b'F', 'filled')
        pages = self.pages_on(a)
        victim = nodes[1] if pages['b'] >= pages['c'] else nodes[2]
        self.assertGreater(pages[victim.name], 0)
        victim.kill()
        guest.type(b'C')
        vm = hktest.wait_for(lambda: self.show(a) if 'waits to start' in self.show(a).get('reason', '') else None, 'the machine has crashed', 90)
        self.assertEqual(vm['state'], 'VM_STATE_STOPPED')
        self.assertIn(f"node '{victim.name}'", vm['reason'])
        self.wait_nothing_left([node for node in nodes if node is not victim])
        victim.start()
        self.wait_state(a, 'RUNNING')
        guest = self.console(a)
        self.order(guest, b'F', 'filled')
        self.order(guest, b'C', 'checked')

    def test_autostart_waits_for_the_nodes(self):
        a, b, c = self.start('a', 'b', 'c', unreachable_ms=2000)
        self.assert_exit(self.create(a, extra='autostart: true'), 0)
        for node in (a, b, c):
            node.stop()
        a.start()
        hktest.wait_for(lambda: 'waits to start: placement:' in self.show(a).get('reason', ''), 'it waits')
        self.assertEqual(self.show(a)['state'], 'VM_STATE_STOPPED')
        b.start()
        c.start()
        self.wait_state(a, 'RUNNING')
        # Not if an operator has said no meanwhile.
        self.assert_exit(a.hkctl('vm', 'stop', 'g', '--force'), 0)
        self.wait_nothing_left([a, b, c])


if __name__ == '__main__':
    unittest.main()
