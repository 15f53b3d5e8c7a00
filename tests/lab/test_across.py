#!/usr/bin/env python3
"""Debian's kernel over two daemons, a vCPU on each: it starts its second CPU on the other node, over TCP and TLS between two network namespaces.
Init is reached there too: the policy has the vCPUs meet, which it can only if the nodes tell each other what they wait for while all fetch pages.
"""
import os
import subprocess
import time
import unittest

import guests
from labtest import LabNode, hktest, make_certificates
from test_guest import make_initrd

CERTIFICATES = '/out/certs'
ADDRESSES = {'a': '10.77.1.1', 'b': '10.77.1.2'}  # of namespaces 1 and 2
MIB = 256
KERNEL = os.environ['HK_KERNEL']
BOOT_S = 180
INIT_S = 380


def nest_page_tables():
    """What a machine over several nodes needs (node/README.md): without, KVM does not see what another node writes to the guest's page tables. An AMD
    processor takes every look at them for a write, so that no two nodes have such a page at a time, and the guest's second CPU is slow to come."""
    subprocess.run(['modprobe', '-r', 'kvm_amd'], check=True)
    subprocess.run(['modprobe', 'kvm_amd', 'npt=1'], check=True)


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
                            f'{node.name} has its data plane to {other.name}')
        return nodes

    def test_the_second_cpu_is_on_another_node(self):
        nest_page_tables()
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
        _, init = console.expect(r'guest: init reached', INIT_S)
        print(f'init after {init - since:.1f} s', flush=True)
        print(a.hkctl('vm', 'show', 'g').out, flush=True)
        self.assert_exit(a.hkctl('vm', 'stop', 'g', '--force'), 0)
        for node in (a, b):
            self.assertEqual(node.hkctl('space', 'list', '-o', 'json').json().get('spaces', []), [])


if __name__ == '__main__':
    unittest.main()
