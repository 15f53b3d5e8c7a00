"""What the tests of spaces share: clusters whose daemons have their data planes up, and hkctl space."""
import subprocess
import threading
import unittest

import hktest

BUDGET_MIB = 128
MIB = 1 << 20


def has_userfaultfd():
    """Whether this user may have the memory of a space here; root always may."""
    items = hktest.run([hktest.program('hyperkerneld'), '--probe', '-o', 'json']).json()['items']
    return all(item['verdict'] == 'PROBE_VERDICT_YES' for item in items if item['group'] == 'userfaultfd' and item['required'])


def pipe(node, *args, stdin=b''):
    """hkctl space with bytes in and out."""
    return subprocess.run([hktest.program('hkctl'), '--endpoint', node.endpoint, 'space', *args], input=stdin, capture_output=True,
                          timeout=300 if hktest.SOAK else hktest.TIMEOUT, check=False)


class Traffic:
    """Two nodes that write and read at the other one, until stopped: what is written is read, and no command fails."""
    def __init__(self, case, first, second, address):
        """address: of a turn and one of two users."""
        self.case, self.address, self.ends, self.stopping = case, address, [], threading.Event()
        self.users = [threading.Thread(target=self.use, args=args) for args in ((first, second, 0), (second, first, 1))]
        case.addCleanup(self.stopping.set)
        for user in self.users:
            user.start()
        self.go_on('the space is in use')

    def use(self, node, other, user):
        turn = 0
        while not self.stopping.is_set():
            turn += 1
            at, text = hex(self.address(turn, user)), f'{node.name} {turn:06}'
            wrote = node.hkctl('space', 'write', 'pool', '--at', at, '--text', text)
            read = other.hkctl('space', 'read', 'pool', '--at', at, '--bytes', str(len(text)), '--raw')
            self.ends.append((wrote.code, read.code, read.out, text, wrote.err + read.err))

    def go_on(self, what):
        """Waits until more has been done."""
        count = len(self.ends)
        hktest.wait_for(lambda: len(self.ends) > count + 4, what)

    def stop(self):
        self.stopping.set()
        for user in self.users:
            user.join()
        for wrote, read, out, text, error in self.ends:
            self.case.assertEqual((wrote, read, out), (0, 0, text), error)


class TestCase(hktest.TestCase):
    """A test of spaces; skipped where this user may have none."""
    budget_mib = BUDGET_MIB
    swap_mib = 0

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        if not has_userfaultfd():
            raise unittest.SkipTest('this user may not use userfaultfd')

    def start(self, *names, metrics_of=None, **fields):
        nodes = self.bed.cluster(*names, **fields)
        for node in nodes:
            node.budget_mib, node.swap_mib = self.budget_mib, self.swap_mib
            if node.name == metrics_of:
                node.metrics_port = hktest.free_port()
            node.start()
        for node in nodes:
            for other in nodes:
                if other is not node:
                    self.wait_data(node, other.name)
        return nodes

    def wait_data(self, node, name):
        """Waits until a daemon has its data plane to another one."""
        hktest.wait_for(lambda: node.members().get(name, {}).get('data_link', {}).get('state') == 'DATA_LINK_STATE_UP'
                        and node.state_of(name) == 'up', f'the data plane from {node.name} to {name} is up')

    def create(self, node, *names, name='pool', memory='64M'):
        result = node.hkctl('space', 'create', name, '--memory', memory, '--nodes', ','.join(names))
        self.assert_exit(result, 0)
        return result
