#!/usr/bin/env python3
"""Debian's kernel over two daemons, a vCPU on each: it starts its second CPU on the other node, over TCP and TLS between two network namespaces.

User space is not waited for: a remote page takes a millisecond and more on emulated hosts, and what the kernel does next takes minutes there.
"""
import os
import subprocess
import time
import unittest

import guests
from labtest import DEADLINE_S, LabNode, hktest, make_certificates
from test_guest import make_initrd

CERTIFICATES = '/out/certs'
ADDRESSES = {'a': '10.77.1.1', 'b': '10.77.1.2'}  # of namespaces 1 and 2
MIB = 256
KERNEL = os.environ['HK_KERNEL']
BOOT_S = 180
ANSWER_S = 60


def share_page_tables():
    """With nested paging an AMD processor takes every look at a guest's page tables for a write, so that no two nodes could have them at a time, which
    takes too long here. Without, KVM does not see what another node writes to them: no machine can live so (node/README.md), but its kernel gets as far as
    this test looks, since it takes no translation back before."""
    subprocess.run(['modprobe', '-r', 'kvm_amd'], check=True)
    subprocess.run(['modprobe', 'kvm_amd', 'npt=0'], check=True)


class Across(hktest.TestCase):
    def start(self):
        make_certificates(CERTIFICATES, ADDRESSES)
        nodes = [LabNode(self.bed, name, address, CERTIFICATES, namespace=number, transport='TCP')
                 for number, (name, address) in enumerate(ADDRESSES.items(), 1)]
        self.bed.nodes += nodes
        for node in nodes:
            node.budget = MIB + 32
            node.peers = list(ADDRESSES.items())
            node.start()
        for node, other in (nodes, nodes[::-1]):
            hktest.wait_for(lambda: node.members().get(other.name, {}).get('data_link', {}).get('state') == 'DATA_LINK_STATE_UP',
                            f'{node.name} has its data plane to {other.name}', DEADLINE_S)
        return nodes

    def test_the_second_cpu_is_on_another_node(self):
        share_page_tables()
        a, b = self.start()
        placement = ' '.join(f'placement {{ node: "{name}" memory_mib: {MIB} vcpus: 1 }}' for name in ADDRESSES)
        machine = guests.Machine(KERNEL, make_initrd(os.path.join(a.directory, 'initrd')), 'console=ttyS0 panic=-1', vcpus=2, memory_mib=MIB, extra=placement)
        path = os.path.join(a.directory, 'g.textproto')
        with open(path, 'w', encoding='utf-8') as file:
            file.write(machine.spec('g'))
        self.assert_exit(a.hkctl('vm', 'create', '-f', path), 0)
        since = time.monotonic()
        self.assert_exit(a.hkctl('vm', 'start', 'g'), 0)
        console = guests.Console([hktest.program('hkctl'), '--endpoint', a.endpoint, 'vm', 'console', 'g'])
        self.addCleanup(console.close)
        _, begun = console.expect(r'smp: Bringing up secondary CPUs', BOOT_S)
        _, reached = console.expect(r'smp: Brought up 1 node, 2 CPUs', BOOT_S)
        print(f'secondary CPUs begun after {begun - since:.1f} s, the one on node b is up {reached - begun:.1f} s later', flush=True)
        print(a.hkctl('vm', 'show', 'g').out, a.hkctl('vm', 'top', 'g').out, flush=True)

        def pages():
            held = {}
            for extent in a.hkctl('vm', 'map', 'g', '-o', 'json').json()['extents']:
                for holder in extent['holders']:
                    held[holder['node']] = held.get(holder['node'], 0) + sum(holder.get(right, 0) for right in ('exclusive', 'owned', 'shared'))
            return held

        # A node that is asked while its only CPU is busy with the guest may not answer in time.
        hktest.wait_for(lambda: pages().get('b', 0) > 0, 'b has pages', ANSWER_S)
        self.assert_exit(a.hkctl('vm', 'stop', 'g', '--force'), 0)
        for node in (a, b):
            self.assertEqual(node.hkctl('space', 'list', '-o', 'json').json().get('spaces', []), [])


if __name__ == '__main__':
    unittest.main()
