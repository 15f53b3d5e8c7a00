#!/usr/bin/env python3
"""Machines whose vCPUs are on several daemons of this host, with a guest program on any /dev/kvm: vCPUs are started and woken across nodes,
count together in one memory, and use the I/O node's devices; orders act on all nodes; a node that is lost, stopped or restarted ends the
machine with its name, and nothing is left behind."""
import unittest

import hktest
import placedtest
from test_vm import needs_kvm


@needs_kvm
class VmAcross(placedtest.TestCase):
    budget_mib = 128

    def boot(self, *nodes, vcpus=3, extra='', **placement):
        placement = placement or {node.name: 'vcpus: 1' for node in nodes}
        self.assert_exit(self.create(nodes[0], extra=f'vcpus: {vcpus} {extra}', **placement), 0)
        return self.start_guest(nodes[0])

    def test_vcpus_of_three_nodes_count_together(self):
        a, b, c = self.start('a', 'b', 'c')
        guest = self.boot(a, b, c)
        self.order(guest, b'M', 'counted together')
        said = guest.text
        self.assertIn('1', said)
        self.assertIn('2', said)
        for order in ('pause', 'unpause'):
            self.assert_exit(a.hkctl('vm', order, 'g'), 0)
        self.order(guest, b'M', 'counted together')


if __name__ == '__main__':
    unittest.main()
