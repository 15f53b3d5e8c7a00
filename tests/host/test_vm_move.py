#!/usr/bin/env python3
"""Virtual CPUs that move between daemons of this host while a guest program counts, locks and interrupts on all of them: nothing is lost,
whatever is moved, paused or renewed meanwhile; what cannot be moved is refused; a node that is lost during moves ends the machine with its
name. HK_SEED chooses the moves."""
import os
import random
import re
import signal
import statistics
import sys
import threading
import time
import unittest

import hktest
import placedtest
from test_vm import needs_kvm

MOVES = 100


@needs_kvm
class VmMove(placedtest.TestCase):
    budget_mib = 128

    def setUp(self):
        super().setUp()
        self.seed = int(os.environ.get('HK_SEED', random.SystemRandom().randrange(1 << 32)))
        self.random = random.Random(self.seed)

    def begin_rounds(self, guest):
        self.order(guest, b'I', 'in rounds')

    def end_rounds(self, guest):
        self.order(guest, b'.', 'all rounds answered')

    def move(self, node, vcpu, to):
        return node.hkctl('vm', 'move-vcpu', 'g', '--vcpu', str(vcpu), '--to', to)

    def moved(self, node, vcpu, to):
        """For how long it was stopped, ms; None: it was there."""
        result = self.move(node, vcpu, to)
        self.assertEqual(result.code, 0, f'HK_SEED={self.seed}: {result}')
        found = re.fullmatch(rf"vm g: vCPU {vcpu} moved from '\w' to '{to}', stopped for ([\d.]+) ms\n", result.out)
        if found is None:
            self.assertEqual(result.out, f"vm g: vCPU {vcpu} is on '{to}' already\n")
        return None if found is None else float(found[1])

    def places(self, node):
        return {entry.get('vcpu', 0): entry['node'] for entry in self.show(node).get('vcpu_times', [])}

    def page_wait_ms(self, node):
        """What a vCPU has waited for a page on average."""
        waits = [entry.get(cause, {}) for entry in self.show(node)['vcpu_times'] for cause in ('reads', 'writes', 'upgrades')]
        count = sum(int(wait.get('count', 0)) for wait in waits)
        return sum(int(wait.get('ns', 0)) for wait in waits) / max(count, 1) / 1e6

    def test_moved_around_while_they_count(self):
        a, b, c = self.start('a', 'b', 'c', metrics_of='a')
        guest = self.boot(a, b, c)
        self.begin_rounds(guest)
        at = dict(enumerate('abc'))
        stopped = []
        exits = 0
        begin = time.monotonic()
        while len(stopped) < MOVES:
            vcpu, to = self.random.randrange(3), self.random.choice('abc')
            ms = self.moved(a, vcpu, to)
            self.assertEqual(ms is None, at[vcpu] == to, f'HK_SEED={self.seed}')
            at[vcpu] = to
            if ms is not None:
                stopped.append(ms)
            if len(stopped) % 10 == 0:
                self.assertEqual(self.places(a), at)
                now = int(self.show(a)['exits'])
                self.assertGreaterEqual(now, exits, f'HK_SEED={self.seed}')
                exits = now
        took = time.monotonic() - begin
        self.end_rounds(guest)
        self.count(guest)
        self.assertEqual(int(self.show(a)['vcpu_moves']), MOVES)
        metrics = a.metrics()
        self.assertEqual(metrics['hyperkernel_vcpu_moves_total{result="made"}'], MOVES)
        self.assertEqual(metrics['hyperkernel_vcpu_moves_total{result="refused"}'], 0)
        self.assertEqual(metrics['hyperkernel_vcpu_move_pause_seconds_count'], MOVES)
        stopped.sort()
        at_ends = {end: statistics.median(int(us) for us in re.findall(rf'{end}_us=(\d+)', a.log_text())) / 1000 for end in ('source', 'target')}
        print(f'HK_SEED={self.seed}: {MOVES} moves in {took:.1f} s; a vCPU stood still for {statistics.median(stopped):.2f} ms (median), '
              f'{stopped[MOVES * 95 // 100]:.2f} (p95), {stopped[-1]:.2f} (most), of which at its old node {at_ends["source"]:.2f}, '
              f'at its new one {at_ends["target"]:.2f} (medians); a page of another node took {self.page_wait_ms(a):.3f} ms', file=sys.stderr)

    def test_the_io_node_without_vcpus(self):
        a, b = self.start('a', 'b')
        guest = self.boot(a, b, vcpus=2)
        self.begin_rounds(guest)
        for vcpu in (0, 1):
            self.moved(a, vcpu, 'b')
        self.assertEqual(self.places(a), {0: 'b', 1: 'b'})
        show = a.hkctl('vm', 'show', 'g').out
        self.assertRegex(show, r'Placed: +a: no vCPUs, devices')
        self.assertRegex(show, r'Placed: +b: vCPUs 0-1')
        self.assertIn('vCPUs: 0, 1 on b', a.hkctl('vm', 'top', 'g', '-n', '1', '--interval', '100ms').out)
        for order in ('renew', 'pause', 'renew', 'unpause'):
            self.assert_exit(a.hkctl('vm', order, 'g'), 0)
        self.end_rounds(guest)
        self.count(guest)
        # Now the other one has none.
        for vcpu in (0, 1):
            self.moved(a, vcpu, 'a')
        self.count(guest)
        for order in ('pause', 'unpause'):
            self.assert_exit(a.hkctl('vm', order, 'g'), 0)
        self.moved(a, 0, 'b')
        self.assert_exit(a.hkctl('vm', 'reset', 'g'), 0)
        hktest.wait_for(lambda: a.hkctl('vm', 'log', 'g').out.count('hello from the guest') == 2, 'the guest runs again')
        self.assertEqual(self.places(a), {0: 'a', 1: 'b'})
        self.count(guest)
        self.assert_exit(a.hkctl('vm', 'stop', 'g', '--force'), 0)
        self.wait_nothing_left([a, b])

    def test_paused_it_moves_and_stays_paused(self):
        a, b, c = self.start('a', 'b', 'c')
        guest = self.boot(a, b, c)
        self.begin_rounds(guest)
        self.assert_exit(a.hkctl('vm', 'pause', 'g'), 0)
        exits = int(self.show(a)['exits'])
        for _ in range(10):
            self.moved(a, self.random.randrange(3), self.random.choice('abc'))
        self.assertEqual(self.show(a)['state'], 'VM_STATE_PAUSED')
        # What other nodes have counted is told once a second.
        hktest.wait_for(lambda: int(self.show(a)['exits']) >= exits, 'exits are told')
        self.assert_exit(a.hkctl('vm', 'unpause', 'g'), 0)
        self.end_rounds(guest)
        self.count(guest)

    def test_beside_other_orders(self):
        """One after the other, whatever is asked at the same time."""
        a, b, c = self.start('a', 'b', 'c')
        guest = self.boot(a, b, c)
        self.begin_rounds(guest)
        results = []

        def moves():
            chosen = random.Random(self.seed)
            for _ in range(20):
                results.append(self.move(a, chosen.randrange(3), chosen.choice('abc')))

        threads = [threading.Thread(target=moves) for _ in range(2)]
        for thread in threads:
            thread.start()
        for order in ('renew', 'pause', 'renew', 'unpause') * 4:
            self.assert_exit(a.hkctl('vm', order, 'g'), 0)
        for thread in threads:
            thread.join()
        for result in results:
            self.assertEqual(result.code, 0, f'HK_SEED={self.seed}: {result}')
        self.end_rounds(guest)
        self.count(guest)

    def test_what_is_refused(self):
        a, b, c = self.start('a', 'b', 'c')
        guest = self.boot(a, b, c, vcpus=2, a='vcpus: 1', b='vcpus: 1', c='')
        self.assert_fails(a.hkctl('vm', 'move-vcpu', 'h', '--vcpu', '0', '--to', 'b'), 1, "vm 'h'")
        self.assert_fails(self.move(a, 2, 'b'), 1, 'there is no vCPU 2: they are 0 to 1')
        for node in ('c', 'x'):
            self.assert_fails(self.move(a, 0, node), 1, f"node '{node}' is none that may have vCPUs of the machine, which are a, b")
        self.assert_fails(self.move(b, 0, 'b'), 1, "'g'")  # another node than the I/O node
        self.assert_fails(a.hkctl('vm', 'move-vcpu', 'g', '--vcpu', '-1', '--to', 'b'), 2, 'vcpu')
        self.assertIsNone(self.moved(a, 1, 'b'))
        answer = a.hkctl('vm', 'move-vcpu', 'g', '--vcpu', '1', '--to', 'a', '-o', 'json').json()
        self.assertEqual((answer['from'], answer['to']), ('b', 'a'))
        self.assertGreater(int(answer['stopped_ns']), 0)
        self.count(guest)
        self.assert_exit(a.hkctl('vm', 'stop', 'g', '--force'), 0)
        self.assert_fails(self.move(a, 0, 'b'), 1, 'is stopped, neither running nor paused')
        self.assert_exit(a.hkctl('vm', 'delete', 'g'), 0)
        self.boot(a, vcpus=2, a='vcpus: 2', b='')
        self.assert_fails(self.move(a, 0, 'b'), 1, "all its vCPUs are on node 'a'")

    def test_a_node_that_takes_vcpus_and_begins_without(self):
        a, b, c = self.start('a', 'b', 'c')
        guest = self.boot(a, vcpus=2, a='vcpus: 1', b='vcpus: 1', c='takes_vcpus: true')
        self.begin_rounds(guest)
        for vcpu in (0, 1):
            self.moved(a, vcpu, 'c')
        self.assertEqual(self.places(a), {0: 'c', 1: 'c'})
        self.end_rounds(guest)
        self.assert_fails(a.hkctl('space', 'drain', 'g', '--node', 'c'), 1, "vCPUs of vm 'g' run on node 'c'")
        self.assert_exit(a.hkctl('vm', 'stop', 'g', '--force'), 0)
        self.assert_exit(a.hkctl('vm', 'delete', 'g'), 0)
        # One vCPU, which comes and goes.
        guest = self.boot(a, vcpus=1, a='vcpus: 1', b='takes_vcpus: true')
        for node in 'baba':
            self.moved(a, 0, node)
            self.order(guest, b'F', 'filled')
            self.order(guest, b'C', 'checked')

    def lose_during_moves(self, lose):
        """b, while vCPUs come and go there."""
        a, b, c = self.start('a', 'b', 'c', unreachable_ms=2000)
        guest = self.boot(a, b, c)
        self.begin_rounds(guest)
        over = threading.Event()

        def moves():
            chosen = random.Random(self.seed)
            while not over.is_set():
                self.move(a, chosen.randrange(3), chosen.choice('ab'))

        mover = threading.Thread(target=moves)
        mover.start()
        try:
            time.sleep(self.random.uniform(0.2, 1.0))
            begin = time.monotonic()
            lose(b)
            vm = self.wait_state(a, 'CRASHED')
            took = time.monotonic() - begin
        finally:
            over.set()
            mover.join()
        self.assertIn("'b'", vm['reason'], f'HK_SEED={self.seed}')
        self.assertLess(took, 20, f"HK_SEED={self.seed}: {vm['reason']}")
        self.wait_nothing_left([a, c])
        return a, b, c

    def start_again(self, a, b, c):
        for node in (a, c):
            self.wait_data(node, 'b')
            self.wait_data(b, node.name)
        guest = self.start_guest(a)
        self.count(guest)
        self.moved(a, 0, 'b')
        self.count(guest)

    def test_a_node_is_killed_during_moves(self):
        a, b, c = self.lose_during_moves(lambda node: node.kill())
        b.start()
        self.start_again(a, b, c)

    def test_a_node_stands_still_during_moves(self):
        def stop(node):
            node.signal(signal.SIGSTOP)
            self.addCleanup(node.signal, signal.SIGCONT)

        a, b, c = self.lose_during_moves(stop)
        b.signal(signal.SIGCONT)
        self.wait_nothing_left([b])
        self.start_again(a, b, c)


if __name__ == '__main__':
    unittest.main()
