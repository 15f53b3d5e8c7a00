#!/usr/bin/env python3
"""One Debian over two daemons, a vCPU on each; over two lab hosts, or on one. On both hosts at once; LAB_HOST says which this is."""
import os
import subprocess
import sys
import time
import unittest

import guests
from labtest import HOST, LabNode, hktest, make_certificates
from test_guest import make_initrd

SHARED = '/out/certs'
HOSTS = int(os.environ['LAB_HOSTS'])
NAMES = {1: 'a', 2: 'b'}
KERNEL = os.environ['HK_KERNEL']
MEMORY_MIB, NODE_MIB = 256, 256
BOOT_S = int(os.environ.get('HK_BOOT_S', '200'))
TRANSPORT = os.environ.get('HK_TRANSPORT', 'AUTO')


def barrier(name, seconds=60):
    if HOSTS == 2:
        subprocess.run(['lab-barrier', name, str(seconds)], check=True)


def share_page_tables():
    """With nested paging an AMD processor takes every look at a guest's page tables for a write, so that no two nodes can have them at a time."""
    subprocess.run(['modprobe', '-r', 'kvm_amd'], check=True)
    subprocess.run(['modprobe', 'kvm_amd', 'npt=0'], check=True)


class Across(hktest.TestCase):
    def test_boot(self):
        share_page_tables()
        if HOST == 1:
            make_certificates(SHARED, NAMES.values())
        barrier('certificates')
        nodes = []
        for host, name in NAMES.items():
            if HOSTS == 2 and host != HOST:
                continue
            address = {name: f'10.77.0.{host}' if HOSTS == 2 else f'10.77.1.{host}' for host, name in NAMES.items()}
            node = LabNode(self.bed, name, address[name], SHARED, namespace=None if HOSTS == 2 else host, transport=TRANSPORT)
            node.budget = NODE_MIB + 32
            self.bed.nodes.append(node)
            node.peers = list(address.items())
            nodes.append(node)
        for node in nodes:
            node.start()
        for node in nodes:
            for other in NAMES.values():
                if other != node.name:
                    hktest.wait_for(lambda: node.members()[other].get('data_link', {}).get('state') == 'DATA_LINK_STATE_UP', 'the data plane is up')
        barrier('up')
        if HOST == 1:
            self.run_guest(nodes[0])
        barrier('done', 600)

    def run_guest(self, node):
        initrd = make_initrd(os.path.join(node.directory, 'initrd'))
        placement = ' '.join(f'placement {{ node: "{name}" memory_mib: {NODE_MIB} vcpus: 1 }}' for name in NAMES.values())
        machine = guests.Machine(KERNEL, initrd, f'console=ttyS0 panic=-1 {os.environ.get("HK_CMDLINE", "quiet")}', vcpus=2, memory_mib=MEMORY_MIB, extra=placement)
        path = os.path.join(node.directory, 'g.textproto')
        with open(path, 'w', encoding='utf-8') as file:
            file.write(machine.spec('g'))
        self.assert_exit(node.hkctl('vm', 'create', '-f', path), 0)
        since = time.monotonic()
        self.assert_exit(node.hkctl('vm', 'start', 'g'), 0)
        console = guests.Console([hktest.program('hkctl'), '--endpoint', node.endpoint, 'vm', 'console', 'g'])
        try:
            _, reached = console.expect('guest: init reached, 2 CPUs', BOOT_S)
            print(f'init after {reached - since:.1f} s', flush=True)
            print(console.run('nproc; cat /proc/interrupts | head -40', 120), flush=True)
        finally:
            print(console.text()[-1500:], flush=True)
            print(node.hkctl('vm', 'show', 'g').out, node.hkctl('vm', 'top', 'g').out, flush=True)
            console.close()


if __name__ == '__main__':
    unittest.main()
