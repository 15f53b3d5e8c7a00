"""What the tests of machines over several daemons of this host share: a guest program (echo_kernel) that runs on any /dev/kvm."""
import os
import re

import hktest
import spacetest
from test_vm import Terminal

MIB = 1 << 20


class TestCase(spacetest.TestCase):
    memory_mib = 64

    def create(self, node, name='g', extra='', **nodes):
        """nodes: what each of them has, as its PlacementSpec's fields."""
        placement = ' '.join(f'placement {{ node: "{name}" {fields} }}' for name, fields in nodes.items())
        vcpus = re.search(r'vcpus: (\d+)', extra)  # which the program is told
        path = os.path.join(node.directory, f'{name}.textproto')
        with open(path, 'w', encoding='utf-8') as file:
            file.write(f'name: "{name}" memory_mib: {self.memory_mib} kernel: "{hktest.program("echo_kernel")}" '
                       f'cmdline: "{vcpus.group(1) if vcpus else 1}" {placement} {extra}\n')
        return node.hkctl('vm', 'create', '-f', path)

    def boot(self, *nodes, vcpus=3, extra='', **placement):
        """Its console; a vCPU at each node unless `placement` says something else."""
        placement = placement or {node.name: 'vcpus: 1' for node in nodes}
        self.assert_exit(self.create(nodes[0], extra=f'vcpus: {vcpus} {extra}', **placement), 0)
        return self.start_guest(nodes[0])

    def count(self, guest):
        self.order(guest, b'M', 'counted together')

    def start_guest(self, node):
        """Its console."""
        self.assert_exit(node.hkctl('vm', 'start', 'g'), 0)
        hktest.wait_for(lambda: 'hello from the guest' in node.hkctl('vm', 'log', 'g').out, 'the guest runs')
        return self.console(node)

    def console(self, node):
        terminal = Terminal(node, 'vm', 'console', 'g')
        self.addCleanup(terminal.close)
        terminal.expect('connected to')
        return terminal

    def order(self, guest, key, word):
        count = guest.read().count(word)
        guest.type(key)
        hktest.wait_for(lambda: guest.read().count(word) > count or 'wrong' in guest.text, f'{word!r} on the console', 90)
        self.assertNotIn('wrong', guest.text)

    def show(self, node):
        return node.hkctl('vm', 'show', 'g', '-o', 'json').json()

    def wait_state(self, node, state):
        return hktest.wait_for(lambda: self.show(node) if self.show(node)['state'] == f'VM_STATE_{state}' else None, f'the machine is {state}', 90)

    def wait_nothing_left(self, nodes):
        for node in nodes:
            hktest.wait_for(lambda: node.hkctl('space', 'list', '-o', 'json').json().get('spaces', []) == [], f'no space is left at {node.name}', 60)
            self.assertEqual([name for name in os.listdir(node.frame_directory) if name.startswith('g')], [])

    def pages_on(self, node):
        pages = dict.fromkeys('abc', 0)
        for extent in node.hkctl('vm', 'map', 'g', '-o', 'json').json()['extents']:
            for holder in extent['holders']:
                pages[holder['node']] += sum(holder.get(right, 0) for right in ('exclusive', 'owned', 'shared'))
        return pages
