#!/usr/bin/env python3
"""An unmodified Debian kernel under our own VMM, on one lab host: boots, runs on all vCPUs, is paused, resets itself, powers off."""
import os
import pathlib
import re
import subprocess
import sys
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / 'host'))
import hktest  # noqa: E402

KERNEL = os.environ.get('HK_KERNEL', '')
BOOT_S = 180  # catches a hang; under load by others a boot has taken a minute


class Console:
    """hkctl vm console with pipes."""

    def __init__(self, node, vm):
        self.path = os.path.join(node.directory, f'console-{vm}')
        with open(self.path, 'wb') as out:
            self.process = subprocess.Popen([hktest.program('hkctl'), '--endpoint', node.endpoint, 'vm', 'console', vm], stdin=subprocess.PIPE,
                                            stdout=out, stderr=subprocess.STDOUT, env=hktest.clean_environment())

    def text(self):
        return pathlib.Path(self.path).read_text(encoding='utf-8', errors='replace').replace('\r', '')

    def type(self, line):
        self.process.stdin.write(line.encode() + b'\r')
        self.process.stdin.flush()

    def expect(self, pattern, timeout=BOOT_S):
        try:
            return hktest.wait_for(lambda: re.search(pattern, self.text(), re.MULTILINE), f'{pattern!r} on the console', timeout)
        except AssertionError as error:
            raise AssertionError(f'{error}\n--- the console ended with\n{self.text()[-3000:]}') from error

    def close(self):
        self.process.stdin.close()
        self.process.kill()
        self.process.wait()


class Guest(hktest.TestCase):
    def start(self, vcpus, name='g'):
        node = self.bed.node('a')
        node.budget_mib = 300
        node.start()
        initrd = os.path.join(node.directory, 'initrd')
        subprocess.run([os.path.join(hktest.ROOT, 'deploy', 'make-initramfs'), initrd], check=True)
        spec = os.path.join(node.directory, 'vm.textproto')
        with open(spec, 'w', encoding='utf-8') as file:
            file.write(f'name: "{name}" memory_mib: 256 vcpus: {vcpus} kernel: "{KERNEL}" initrd: "{initrd}" cmdline: "console=ttyS0 quiet panic=-1"\n')
        self.assert_exit(node.hkctl('vm', 'create', '-f', spec), 0)
        started = time.monotonic()
        self.assert_exit(node.hkctl('vm', 'start', name), 0)
        console = Console(node, name)
        self.addCleanup(console.close)
        console.expect(rf'^guest: init reached, {vcpus} CPUs')
        print(f'{vcpus} vCPUs: init after {time.monotonic() - started:.1f} s', flush=True)
        return node, console

    def state(self, node):
        return node.hkctl('vm', 'show', 'g', '-o', 'json').json()

    def boots(self, vcpus):
        node, console = self.start(vcpus)
        console.type('echo cpus $(nproc)')
        console.expect(rf'^cpus {vcpus}$')
        # Local timers tick on every CPU, and with several, they reach one another.
        console.type('grep -E "LOC:|RES:|CAL:" /proc/interrupts; echo end-of-interrupts')
        table = console.expect(r'((?:.*\n)*)^end-of-interrupts$').group(1)
        ticks = [int(n) for n in re.search(r'^ *LOC:((?: +\d+)+)', table, re.MULTILINE).group(1).split()]
        self.assertEqual(len(ticks), vcpus)
        self.assertTrue(all(n > 0 for n in ticks), ticks)
        return node, console

    def test_one_cpu_resets_and_is_forced_off(self):
        node, console = self.boots(1)
        console.type(r'printf "\006" | dd of=/dev/port bs=1 seek=3321 conv=notrunc')  # the reset port, 0xcf9
        console.expect(r'(?s)guest: init reached.*guest: init reached')
        self.assertEqual(self.state(node)['state'], 'VM_STATE_RUNNING')
        self.assert_exit(node.hkctl('vm', 'stop', 'g', '--force'), 0)
        self.assertEqual(self.state(node)['state'], 'VM_STATE_STOPPED')
        self.assertEqual(int(node.members()['a']['info']['frames_used_bytes']) >> 20, 0, 'frames are given back')

    def test_two_cpus_pause_and_power_off(self):
        node, console = self.boots(2)
        self.assert_exit(node.hkctl('vm', 'pause', 'g'), 0)
        exits = self.state(node)['exits']
        self.assertEqual(self.state(node)['exits'], exits, 'a paused guest does not run')
        console.type('echo typed while paused')
        self.assert_exit(node.hkctl('vm', 'unpause', 'g'), 0)
        console.expect(r'^typed while paused$')
        console.type('poweroff -f')
        self.assert_exit(node.hkctl('vm', 'wait', 'g', '--for', 'stopped', '--timeout', '60s'), 0)
        self.assertIn('powered off', self.state(node)['reason'])
        self.assert_exit(node.hkctl('vm', 'delete', 'g'), 0)

    def uptime(self, console, mark):
        """The guest's own time in seconds, and the host's before and after it was read."""
        before = time.monotonic()
        console.type(f'echo {mark} $(cut -d" " -f1 /proc/uptime)')
        guest = float(console.expect(rf'^{mark} ([0-9.]+)$').group(1))
        return guest, before, time.monotonic()

    def sequence(self, console):
        return [int(n) for n in re.findall(r'seq-(\d+)\n', console.text())]

    def test_renewed_under_load(self):
        """Moved into a new KVM VM again and again, both CPUs busy: no timer, tick or character is lost, and time goes on."""
        node, console = self.boots(2)
        console.type('dmesg -n 1; dmesg -c > /dev/null; while :; do :; done & while :; do :; done &')
        start, earliest, latest_start = self.uptime(console, 'uptime-before')
        console.type('(i=0; while true; do i=$((i+1)); echo seq-$i; sleep 0.1; done) &')
        console.expect(r'seq-3$')
        took = []
        for _ in range(50 if hktest.SOAK else 10):
            reached = len(self.sequence(console))
            began = time.monotonic()
            self.assert_exit(node.hkctl('vm', 'renew', 'g'), 0)
            took.append(time.monotonic() - began)
            # A sleep that began before ends after.
            console.expect(rf'seq-{reached + 2}$')
        print(f'{len(took)} renewals, hkctl included: median {sorted(took)[len(took) // 2] * 1000:.0f} ms', flush=True)

        self.assert_exit(node.hkctl('vm', 'pause', 'g'), 0)
        self.assert_exit(node.hkctl('vm', 'renew', 'g'), 0)
        self.assertEqual(self.state(node)['state'], 'VM_STATE_PAUSED')
        self.assert_exit(node.hkctl('vm', 'unpause', 'g'), 0)
        reached = len(self.sequence(console))
        console.expect(rf'seq-{reached + 2}$')

        sequence = self.sequence(console)
        self.assertEqual(sequence, list(range(1, len(sequence) + 1)))
        console.type('kill %3')
        end, earliest_end, latest = self.uptime(console, 'uptime-after')
        self.assertGreater(end - start, (earliest_end - latest_start) * 0.95 - 1, 'the guest lost time')
        self.assertLess(end - start, (latest - earliest) * 1.05 + 1, 'the guest gained time')
        console.type('echo begin-of-dmesg; dmesg | grep -iE "clocksource|rcu|hung|lost|stall|lockup|tsc|backtrace"; echo end-of-dmesg')
        complaints = console.expect(r'(?s)^begin-of-dmesg\n(.*)^end-of-dmesg$').group(1)
        self.assertEqual(complaints, '')
        # Every CPU still gets its ticks.
        for mark in ('ticks-first', 'ticks-second'):
            console.type(f'sleep 1; grep LOC: /proc/interrupts; echo {mark}')
            console.expect(rf'^{mark}$')
        first, second = re.findall(r'^ *LOC: +(\d+) +(\d+)', console.text(), re.MULTILINE)[-2:]
        self.assertTrue(all(int(a) < int(b) for a, b in zip(first, second)), (first, second))
        self.assert_exit(node.hkctl('vm', 'stop', 'g', '--force'), 0)

    @unittest.skipUnless(hktest.SOAK, 'four vCPUs on one CPU take a minute: tests/run soak')
    def test_four_cpus(self):
        self.boots(4)


if __name__ == '__main__':
    assert KERNEL, 'runs inside the lab only: tests/lab/run_guest BIN_DIRECTORY'
    hktest.main()
    unittest.main(verbosity=2)
