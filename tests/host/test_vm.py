"""Machines by hkctl on a real daemon: what is refused, and, where there is a /dev/kvm (one that only interprets will do), a guest
kernel that echoes: consoles on a terminal, logs, ends of all kinds, several guests in one budget."""
import fcntl
import os
import pty
import signal
import struct
import subprocess
import termios
import time
import unittest

import hktest

KVM = os.access('/dev/kvm', os.R_OK | os.W_OK)
needs_kvm = unittest.skipUnless(KVM, 'no /dev/kvm here')
BUDGET_MIB = 100


class Terminal:
    """hkctl on a terminal of its own."""

    def __init__(self, node, *arguments, columns=80, rows=24):
        self.master, self.slave = pty.openpty()
        self.resize(columns, rows)
        self.before = termios.tcgetattr(self.slave)
        self.process = subprocess.Popen([hktest.program('hkctl'), '--endpoint', node.endpoint, *arguments], stdin=self.slave, stdout=self.slave,
                                        stderr=self.slave, env=hktest.clean_environment(), start_new_session=True,
                                        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))
        os.set_blocking(self.master, False)
        self.text = ''

    def resize(self, columns, rows):
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack('HHHH', rows, columns, 0, 0))

    def read(self):
        try:
            self.text += os.read(self.master, 65536).decode(errors='replace')
        except BlockingIOError:
            pass
        return self.text

    def expect(self, text):
        hktest.wait_for(lambda: text in self.read(), lambda: f'{text!r} on the terminal, which shows {self.text[-500:]!r}')

    def type(self, keys):
        os.write(self.master, keys)

    def wait(self):
        """The exit code; the terminal must be as it was."""
        # A terminal that nobody reads holds back whoever writes to it.
        hktest.wait_for(lambda: (self.read(), self.process.poll() is not None)[1], f'the end of {self.process.args}')
        code = self.process.wait()
        self.read()
        after = termios.tcgetattr(self.slave)
        assert after == self.before, f'the terminal is not as it was: {self.before} {after}'
        return code

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)


class Vm(hktest.TestCase):
    def setUp(self):
        super().setUp()
        self.node = self.bed.node('a')
        self.node.budget_mib = BUDGET_MIB
        self.node.start()

    def write_spec(self, name, extra='', memory_mib=40):
        path = os.path.join(self.node.directory, f'{name}.textproto')
        with open(path, 'w', encoding='utf-8') as file:
            file.write(f'name: "{name}" memory_mib: {memory_mib} kernel: "{hktest.program("echo_kernel")}" {extra}\n')
        return path

    def create(self, name, extra='', memory_mib=40):
        self.assert_exit(self.node.hkctl('vm', 'create', '-f', self.write_spec(name, extra, memory_mib)), 0)

    def start(self, name='g', extra=''):
        self.create(name, extra)
        self.assert_exit(self.node.hkctl('vm', 'start', name), 0)
        self.wait_log(name, 'hello from the guest')

    def wait_log(self, name, text, count=1):
        hktest.wait_for(lambda: self.node.hkctl('vm', 'log', name).out.count(text) >= count, f'{text!r} in the log of {name}')

    def terminal(self, *arguments, **size):
        terminal = Terminal(self.node, *arguments, **size)
        self.addCleanup(terminal.close)
        return terminal

    def type(self, name, keys):
        terminal = self.terminal('vm', 'console', name)
        terminal.expect('connected to')
        terminal.type(keys)
        return terminal

    def show(self, name='g'):
        return self.node.hkctl('vm', 'show', name, '-o', 'json').json()

    def wait_state(self, name, state):
        self.assert_exit(self.node.hkctl('vm', 'wait', name, '--for', state, '--timeout', '30s'), 0)
        return self.show(name)

    def test_machines_that_are_not_there(self):
        for command in (('show',), ('start',), ('stop',), ('stop', '--force'), ('reset',), ('pause',), ('unpause',), ('renew',), ('delete',), ('log',),
                        ('log', '-f'), ('console',), ('wait', '--for', 'running')):
            with self.subTest(command=command):
                self.assert_fails(self.node.hkctl('vm', command[0], 'nobody', *command[1:]), 1, "no vm 'nobody'", 'hkctl vm list')
        self.assert_fails(self.node.hkctl('vm', 'exec', 'nobody', '--', 'true'), 125, "no vm 'nobody'")

    def test_usage(self):
        for arguments, text in ((('log',), 'name'), (('log', 'g', '--tail', '-1'), '--tail'), (('log', 'g', '--tail', 'x'), '--tail'),
                                (('log', 'g', '--channel', 'foo'), 'foo'), (('console', 'g', '--channel', 'agent'), 'agent'),
                                (('wait', 'g', '--for', 'happy'), 'happy'), (('create',), '--file'), (('show', 'g', '-o', 'xml'), 'xml')):
            with self.subTest(arguments=arguments):
                self.assert_fails(self.node.hkctl('vm', *arguments), 2, text, '--help')
        for arguments, text in (((), 'name'), (('g',), 'after --'), (('g', 'ls'), 'after --'), (('g', '--tail', '1', '--', 'ls'), '--tail')):
            with self.subTest(arguments=arguments):
                self.assert_fails(self.node.hkctl('vm', 'exec', *arguments), 125, text, '--help')

    @needs_kvm
    def test_a_machine_that_never_ran(self):
        path = self.write_spec('g')
        self.assert_exit(self.node.hkctl('vm', 'create', '-f', path, '--dry-run'), 0)
        self.assertEqual(self.node.hkctl('vm', 'list', '-o', 'json').json()['vms'], [])
        self.assert_exit(self.node.hkctl('vm', 'create', '-f', path), 0)
        self.assert_fails(self.node.hkctl('vm', 'log', 'g'), 1, "vm 'g' has not run since this daemon started", 'hkctl vm start g')
        self.assert_fails(self.node.hkctl('vm', 'console', 'g'), 1, "vm 'g' has not run")
        self.assert_fails(self.node.hkctl('vm', 'exec', 'g', '--', 'true'), 125, "vm 'g' is stopped, not running", 'hkctl vm start g')
        self.assert_fails(self.node.hkctl('vm', 'wait', 'g', '--timeout', '200ms'), 1, 'is stopped after 200ms, not running')
        # What show prints can be created again.
        text = self.node.hkctl('vm', 'show', 'g', '-o', 'textproto')
        self.assert_exit(text, 0)
        self.assert_exit(self.node.hkctl('vm', 'delete', 'g'), 0)
        with open(path, 'w', encoding='utf-8') as file:
            file.write(text.out)
        self.assert_exit(self.node.hkctl('vm', 'create', '-f', path), 0)
        self.assertEqual(self.node.hkctl('vm', 'show', 'g', '-o', 'textproto').out, text.out)

    @needs_kvm
    def test_logs(self):
        self.start()
        self.assertEqual(self.node.hkctl('vm', 'log', 'g').out, 'hello from the guest\n')
        self.assertEqual(self.node.hkctl('vm', 'log', 'g', '--channel', 'virtio').out, '')
        follower = self.terminal('vm', 'log', 'g', '-f')
        follower.expect('hello from the guest')
        self.type('g', b'one\rtwo\r')
        self.wait_log('g', 'two\n')
        self.assertEqual(self.node.hkctl('vm', 'log', 'g', '--tail', '1').out, 'two\n')
        follower.expect('two')
        self.assert_exit(self.node.hkctl('vm', 'stop', 'g', '--force'), 0)
        self.assertEqual(follower.wait(), 0)
        self.assertEqual(self.node.hkctl('vm', 'log', 'g', '--tail', '2').out, 'one\ntwo\n', 'the last run is kept')
        self.assert_exit(self.node.hkctl('vm', 'start', 'g'), 0)
        self.wait_log('g', 'hello')
        self.assertNotIn('one', self.node.hkctl('vm', 'log', 'g').out)
        # More than is kept.
        self.type('g', b'L')
        self.wait_log('g', 'end of lines')
        result = self.node.hkctl('vm', 'log', 'g')
        self.assertIn('no longer kept', result.error)
        self.assertLessEqual(len(result.out), 512 << 10)

    @needs_kvm
    def test_a_console_on_a_terminal(self):
        self.start()
        terminal = self.terminal('vm', 'console', 'g')
        terminal.expect('hello from the guest')  # history
        terminal.type(b'abc')
        terminal.expect('abc')
        terminal.type(b'\x03')
        terminal.expect('^C')  # from the guest; hkctl goes on
        terminal.type(b'\x1a\x1cdef')
        terminal.expect('def')
        terminal.resize(132, 50)
        terminal.type(b'ghi')
        terminal.expect('ghi')
        self.assertNotEqual(termios.tcgetattr(terminal.slave), terminal.before, 'raw meanwhile')
        terminal.type(b'jkl\x1d')
        self.assertEqual(terminal.wait(), 0)
        terminal.expect('detached from g')
        self.wait_log('g', 'jkl')
        self.assertEqual(self.show()['state'], 'VM_STATE_RUNNING')

    @needs_kvm
    def test_a_console_restores_the_terminal_however_it_ends(self):
        self.start()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
            with self.subTest(number=number):
                terminal = self.terminal('vm', 'console', 'g')
                terminal.expect('hello')
                hktest.wait_for(lambda t=terminal: termios.tcgetattr(t.slave) != t.before, 'the terminal is raw')
                terminal.process.send_signal(number)
                self.assertEqual(terminal.wait(), 0)
        ended = self.terminal('vm', 'console', 'g')
        ended.expect('hello')
        ended.type(b'P')
        self.assertEqual(ended.wait(), 0)
        ended.expect('console closed: g')
        self.assertEqual(self.wait_state('g', 'stopped')['reason'], 'powered off by the guest')
        refused = self.terminal('vm', 'console', 'nobody')
        self.assertEqual(refused.wait(), 1)
        self.assertNotIn('connected', refused.text)

    @needs_kvm
    def test_a_machine_is_renewed_under_its_console(self):
        self.start()
        terminal = self.terminal('vm', 'console', 'g')
        terminal.expect('connected to')
        descriptors = self.node.fd_count()
        for word in (b'first', b'second', b'third'):
            self.assert_exit(self.node.hkctl('vm', 'renew', 'g'), 0)
            terminal.type(word)
            terminal.expect(word.decode())
        self.assertLessEqual(self.node.fd_count(), descriptors + 2, 'VMs and vCPUs are given back')
        self.assert_exit(self.node.hkctl('vm', 'pause', 'g'), 0)
        self.assertIn('is paused', self.node.hkctl('vm', 'renew', 'g').out)
        terminal.type(b'fourth')
        self.assert_exit(self.node.hkctl('vm', 'unpause', 'g'), 0)
        terminal.expect('fourth')
        self.assert_exit(self.node.hkctl('vm', 'stop', 'g', '--force'), 0)
        self.assert_fails(self.node.hkctl('vm', 'renew', 'g'), 1, "vm 'g' is stopped, neither running nor paused")

    @needs_kvm
    def test_the_daemon_goes_away_under_a_console(self):
        self.start()
        terminal = self.terminal('vm', 'console', 'g')
        terminal.expect('hello')
        self.node.kill()
        terminal.wait()
        self.node.start()

    @needs_kvm
    def test_ends_are_states_with_reasons(self):
        self.start()
        self.type('g', b'R')
        self.wait_log('g', 'hello', 2)
        self.assertEqual(self.show()['reason'], 'reset by the guest')
        self.type('g', b'N')
        crashed = self.wait_state('g', 'crashed')
        self.assertIn('pvpanic', crashed['reason'])
        self.assertIn('pvpanic', self.node.hkctl('vm', 'list').out)
        self.assert_exit(self.node.hkctl('vm', 'start', 'g'), 0)
        self.wait_log('g', 'hello')
        self.type('g', b'T')
        self.assertEqual(self.wait_state('g', 'crashed')['crashes'], 1)
        for text in ('msg=running guest=g', 'msg=crashed guest=g', 'msg=stopping guest=g'):
            self.assertIn(text, self.node.log_text())

    @needs_kvm
    def test_crashes_end(self):
        self.start(extra='on_crash: ON_CRASH_RESET')
        for crash in range(1, 6):
            self.type('g', b'T')
            if crash < 5:
                self.wait_log('g', 'hello', crash + 1)
                hktest.wait_for(lambda n=crash: self.show()['crashes'] == n, f'{crash} crashes')
                self.assertIn('reset after a crash', self.show()['reason'])
        crashed = self.wait_state('g', 'crashed')
        self.assertIn('not reset any more: 5 crashes within 5 minutes', crashed['reason'])

    @needs_kvm
    def test_several_guests_share_the_budget(self):
        self.start('g1')
        self.start('g2')
        self.create('g3')
        refused = self.node.hkctl('vm', 'start', 'g3')
        self.assert_fails(refused, 1, 'budget', f'{BUDGET_MIB} MiB', '80 MiB')
        self.assertIn('start failed', self.show('g3')['reason'])
        self.assert_fails(self.node.hkctl('vm', 'create', '-f', self.write_spec('g4', memory_mib=BUDGET_MIB + 1)), 1, 'memory_mib', 'budget')
        self.assert_exit(self.node.hkctl('vm', 'stop', 'g1', '--force'), 0)
        self.assert_exit(self.node.hkctl('vm', 'start', 'g3'), 0)
        table = self.node.hkctl('vm', 'list').out
        self.assertRegex(table, r'NAME +STATE +FOR +VCPUS +MEMORY +FRAMES +NODE +AGE')
        self.assertRegex(table, r'g2 +running ')
        self.assert_fails(self.node.hkctl('vm', 'delete', 'g2'), 1, 'stop it first')

    @needs_kvm
    def test_memory_is_seen_as_a_spaces(self):
        self.assert_fails(self.node.hkctl('vm', 'map', 'g'), 1, "vm map g", "'g'")
        self.create('g')
        self.assert_fails(self.node.hkctl('vm', 'top', 'g'), 1, 'not running', 'hkctl vm start g')
        self.assert_exit(self.node.hkctl('vm', 'start', 'g'), 0)
        self.wait_log('g', 'hello from the guest')
        path = os.path.join(self.node.directory, 'g.png')
        layout = self.node.hkctl('vm', 'map', 'g', '-o', 'json', '--png', path).json()
        pages = sum(int(holder['exclusive']) for extent in layout['extents'] for holder in extent['holders'])
        self.assertEqual(pages * 4096, int(self.show()['frame_bytes']))
        self.assertEqual({holder['node'] for extent in layout['extents'] for holder in extent['holders']}, {'a'})
        with open(path, 'rb') as file:  # 20 extents
            self.assertEqual(struct.unpack('>II', file.read()[16:24]), (8, 3))
        self.assertRegex(self.node.hkctl('vm', 'map', 'g').out, r'(?m)^ADDRESS +HOME +HEAT +a\n0x\w+ +a +\d+ +\d+ exclusive')
        text = self.node.hkctl('vm', 'top', 'g').out
        self.assertRegex(text, r'^g running, 40 MiB on a; per second, over \d+\.\d s\n\nNODE +READ FAULTS')
        self.assertRegex(text, rf'(?m)^a +.* {pages} +0$')

    @needs_kvm
    def test_show_and_autostart(self):
        self.start(extra='autostart: true')
        time.sleep(1.5)  # the rate is taken once a second
        text = self.node.hkctl('vm', 'show', 'g').out
        for key in ('Name:', 'State:', 'Uptime:', 'Node:', 'vCPUs:', 'Memory:', 'Exits:', 'Channels:', 'On crash:', 'Autostart:', 'Created:'):
            self.assertIn(f'\n{key}' if key != 'Name:' else key, text)
        self.assertGreater(int(self.show()['exits_per_second']), 0, 'it polls its serial line')
        self.assertEqual(self.node.stop(), 0)
        self.node.start()
        self.assert_exit(self.node.hkctl('vm', 'wait', 'g', '--for', 'running', '--timeout', '60s'), 0)
        self.assertEqual(self.show()['generation'], '2')


if __name__ == '__main__':
    hktest.main()
