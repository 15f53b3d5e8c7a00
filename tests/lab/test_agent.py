#!/usr/bin/env python3
"""What is inside a guest with an unmodified Debian kernel, on one lab host: commands by the real qemu-guest-agent, and a terminal
on the virtio console."""
import os
import subprocess
import unittest

import guests
from guests import hktest
import test_vm

KERNEL = os.environ.get('HK_KERNEL', '')
MODULES = os.environ.get('HK_MODULES', '')
START_AGENT = ('mkdir -p /var/run /run; qemu-ga -d -t /run -f /run/ga.pid -p '
               '/dev/$(basename $(dirname $(grep -l guest_agent /sys/class/virtio-ports/*/name))) && echo agent "started"')


class AgentTest(hktest.TestCase):
    def setUp(self):
        super().setUp()
        self.node = self.bed.node('a')
        self.node.budget_mib = 300
        self.node.start()
        initrd = os.path.join(self.node.directory, 'initrd')
        subprocess.run([os.path.join(hktest.ROOT, 'deploy', 'make-initramfs'), initrd, '--program', '/usr/sbin/qemu-ga', '--modules', MODULES,
                        'virtio_pci', 'virtio_console'], check=True)
        spec = os.path.join(self.node.directory, 'vm.textproto')
        with open(spec, 'w', encoding='utf-8') as file:
            file.write(f'name: "g" memory_mib: 256 kernel: "{KERNEL}" initrd: "{initrd}" cmdline: "console=ttyS0 quiet panic=-1"\n')
        self.assert_exit(self.node.hkctl('vm', 'create', '-f', spec), 0)
        self.assert_exit(self.node.hkctl('vm', 'start', 'g'), 0)
        self.console = guests.Console([hktest.program('hkctl'), '--endpoint', self.node.endpoint, 'vm', 'console', 'g'])
        self.addCleanup(self.console.close)
        self.console.expect('^guest: init reached')

    def execute(self, *command, stdin=None, timeout='60s'):
        argv = [hktest.program('hkctl'), '--endpoint', self.node.endpoint, 'vm', 'exec', 'g', '--timeout', timeout, '--', *command]
        done = subprocess.run(argv, input=stdin or b'', capture_output=True, check=False, timeout=120, env=hktest.clean_environment())
        return done.returncode, done.stdout, done.stderr.decode()

    def test_commands(self):
        code, _, error = self.execute('true', timeout='2s')
        self.assertEqual(code, 125)
        self.assertIn('the guest agent did not answer within 2 s', error)
        self.console.type(START_AGENT)
        self.console.expect('^agent started')

        self.assertEqual(self.execute('echo', 'ä [a,b]', '--', '-x'), (0, 'ä [a,b] -- -x\n'.encode(), ''))
        self.assertEqual(self.execute('sh', '-c', 'echo out; echo err >&2; exit 3'), (3, b'out\n', 'err\n'))
        data = os.urandom(100000)
        self.assertEqual(self.execute('cat', stdin=data), (0, data, ''))
        self.assertEqual(self.execute('sh', '-c', 'kill -9 $$')[0], 137)
        code, output, error = self.execute('/nonsense')
        self.assertEqual((code, output), (126, b''))
        self.assertIn('No such file or directory', error)
        self.assertEqual(self.execute('dd', 'if=/dev/zero', 'bs=64k', 'count=32')[1], bytes(2 << 20))

        # One that goes on when its time is up leaves the agent to the next; so does one whose hkctl is gone.
        code, _, error = self.execute('sleep', '1000', timeout='3s')
        self.assertEqual(code, 125)
        self.assertRegex(error, r'still runs after 3 s .*process \d+ of the guest')
        self.assertIn(b'sleep 1000', self.execute('ps')[1])
        channels = {c['name']: int(c['output_bytes']) for c in self.node.hkctl('vm', 'show', 'g', '-o', 'json').json()['channels']}
        self.assertGreater(channels['agent'], 2 << 20)

        # The agent's end is told, and so is the guest's.
        self.console.type('kill $(cat /run/ga.pid); echo "agent" ended')
        self.console.expect('^agent ended')
        self.assertEqual(self.execute('true', timeout='2s')[0], 125)
        self.console.type(START_AGENT.replace('started', 'restarted'))
        self.console.expect('^agent restarted')
        self.assertEqual(self.execute('true'), (0, b'', ''))
        code, _, error = self.execute('sh', '-c', 'sync; poweroff -f')
        self.assertEqual(code, 125)
        self.assertIn('run has ended', error)

    def test_a_terminal_on_the_virtio_console(self):
        self.console.type('while true; do setsid sh -c "exec sh </dev/hvc0 >/dev/hvc0 2>&1"; done &')
        terminal = test_vm.Terminal(self.node, 'vm', 'console', 'g', '--channel', 'virtio', columns=91, rows=31)
        self.addCleanup(terminal.close)
        terminal.expect('connected to g')
        terminal.type(b'stty size; echo "size" told\r')
        terminal.expect('size told')
        self.assertIn('31 91', terminal.text)
        terminal.resize(132, 50)
        terminal.type(b'while [ "$(stty size)" != "50 132" ]; do sleep 0.1; done; echo "now" resized\r')
        terminal.expect('now resized')
        # Only what a command says shows that the shell has left the line's editor, where Ctrl-C is a key like others; and only a command
        # that sleeps itself is told of Ctrl-C from then on: a shell that is about to start one waits for its end first.
        terminal.type(b'sh -c \'echo "now" asleep; exec sleep 1000\'\r')
        terminal.expect('now asleep')
        terminal.type(b'\x03')
        terminal.type(b'echo "still" here\r')
        terminal.expect('still here')
        terminal.type(b'\x1d')
        self.assertEqual(terminal.wait(), 0)
        terminal.expect('detached from g')
        self.assertIn('now resized', self.node.hkctl('vm', 'log', 'g', '--channel', 'virtio').out)
        self.assertNotIn('now resized', self.node.hkctl('vm', 'log', 'g').out)


if __name__ == '__main__':
    assert KERNEL, 'runs inside the lab only: tests/lab/run_agent BIN_DIRECTORY'
    hktest.main()
    unittest.main(verbosity=2)
