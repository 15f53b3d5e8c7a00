#!/usr/bin/env python3
"""Debian's stock kernels under our own VMM, on one lab host: they boot, run on all vCPUs, reset and power off in every way they know;
the daemon leaks nothing, and a killed one leaves nothing."""
import os
import pathlib
import re
import subprocess
import sys
import time
import unittest

import guests

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / 'host'))
import hktest  # noqa: E402

KERNELS = {'generic': os.environ.get('HK_KERNEL', ''), 'cloud': os.environ.get('HK_KERNEL_CLOUD', '')}
CMDLINE = 'console=ttyS0 quiet panic=-1'
# For what needs a guest's memory in use, but no user space.
EARLY_CMDLINE = 'console=ttyS0 earlyprintk=ttyS0'
INIT = r'guest: init reached, {} CPUs'  # after a reset it stands behind the prompt of before
# Warnings that come of the lab's slowness alone.
EXPECTED = re.compile(r'hrtimer: interrupt took|interrupt took too long')
CYCLES = 20 if hktest.SOAK else 5
# What may come and go in a daemon without being a leak: gRPC's threads and connections.
SLACK = 2
ANONYMOUS_GROWTH_MIB = 16


def modules_of(kernel):
    """The modules' directory of the kernel at .../boot/vmlinuz-VERSION."""
    version = pathlib.Path(kernel).name.removeprefix('vmlinuz-')
    return str(pathlib.Path(kernel).parents[1] / 'lib/modules' / version)


def make_initrd(path, *options):
    subprocess.run([os.path.join(hktest.ROOT, 'deploy', 'make-initramfs'), path, *options], check=True)
    return path


class Guest(unittest.TestCase):
    """Guests of one daemon, one after the other."""

    @classmethod
    def setUpClass(cls):
        cls.vmm = guests.Hyperkernel(budget_mib=300)
        cls.addClassCleanup(cls.vmm.close)
        cls.initrd = make_initrd(os.path.join(cls.vmm.node.directory, 'initrd'))

    def machine(self, flavour, vcpus, initrd=None, cmdline=CMDLINE):
        return guests.Machine(KERNELS[flavour], initrd or self.initrd, cmdline, vcpus=vcpus)

    def expect_init(self, console, vcpus, since, what):
        _, reached = console.expect(INIT.format(vcpus))
        print(f'{what}, {vcpus} vCPUs: init after {reached - since:.1f} s', flush=True)

    def check_healthy(self, console, vcpus):
        """All vCPUs are there and tick, and the kernel has nothing to complain of."""
        self.assertEqual(console.run('nproc').strip(), str(vcpus))
        table = console.run('cat /proc/interrupts')
        counts = {name: [int(n) for n in numbers.split()] for name, numbers in re.findall(r'^ *(\w+):((?: +\d+)+)', table, re.MULTILINE)}
        self.assertEqual(len(counts['LOC']), vcpus)
        self.assertTrue(all(n > 0 for n in counts['LOC']), f'local timers: {counts["LOC"]}')
        if vcpus > 1:
            self.assertTrue(all(n > 0 for n in counts['CAL']), f'function calls between CPUs: {counts["CAL"]}')
        warnings = console.run("dmesg -r | grep -E '^<[0-4]>' || true").splitlines()
        self.assertEqual([line for line in warnings if line and not EXPECTED.search(line)], [])

    def check_memory_is_seen(self):
        """What map and top say of a kernel's memory is what it takes."""
        path = os.path.join(self.vmm.node.directory, 'g.png')
        layout = self.vmm.node.hkctl('vm', 'map', 'g', '-o', 'json', '--png', path).json()
        pages = sum(holder['exclusive'] for extent in layout['extents'] for holder in extent['holders'])
        self.assertLessEqual(pages * 4096, int(self.vmm.vm()['frame_bytes']))
        self.assertGreater(pages, 1000)
        top = self.vmm.node.hkctl('vm', 'top', 'g', '-o', 'json').json()
        counters = top['nodes'][0]['counters']
        print(f"memory: {pages} pages, {counters['read_faults']} and {counters['write_faults']} faults, p99 of writing "
              f"{int(counters['write_latency']['p99_ns']) // 1000} us", flush=True)
        self.assertGreater(int(counters['write_faults']), 100)
        self.assertIn('rates', top['nodes'][0])

    def order(self, *argv):
        return self.vmm.do('vm', *argv)

    def order_and_expect_init(self, console, vcpus, order, what):
        since = time.monotonic()
        order()
        self.expect_init(console, vcpus, since, what)
        self.assertEqual(self.vmm.vm()['state'], 'VM_STATE_RUNNING')

    def await_power_off(self):
        self.order('wait', 'g', '--for', 'stopped', '--timeout', '60s')
        self.assertEqual(self.vmm.vm()['reason'], 'powered off by the guest')
        self.assertEqual(int(self.vmm.node.members()['a']['info']['frames_used_bytes']) >> 20, 0, 'frames are given back')

    def type(self, console, line):
        return lambda: console.type(line)

    def boots_resets_and_powers_off(self, flavour, vcpus):
        with self.vmm.boot(self.machine(flavour, vcpus)) as (console, started):
            self.expect_init(console, vcpus, started, flavour)
            self.check_healthy(console, vcpus)
            self.order_and_expect_init(console, vcpus, self.type(console, 'reboot -f'), 'reboot')
            console.type('poweroff -f')
            self.await_power_off()

    def test_generic_1_vcpu_reboots_and_panics(self):
        with self.vmm.boot(self.machine('generic', 1)) as (console, started):
            self.expect_init(console, 1, started, 'generic')
            self.check_healthy(console, 1)
            kinds = {kind: int(count) for kind, count in self.vmm.vm()['exits_by_kind'].items()}
            print(f'exits: {kinds}', flush=True)
            self.assertNotIn('apic_mmio', kinds)
            self.assertGreater(kinds['port'], 0)
            self.assertGreater(kinds['injected'], 0)
            self.check_memory_is_seen()
            self.order_and_expect_init(console, 1, self.type(console, 'reboot -f'), 'reboot')
            self.order_and_expect_init(console, 1, self.type(console, 'echo c > /proc/sysrq-trigger'), 'panic')
            self.order('stop', 'g', '--force')
            self.assertEqual(self.vmm.vm()['state'], 'VM_STATE_STOPPED')

    def test_generic_2_vcpus_under_orders(self):
        """Pause, reset, reboot, and the power button with somebody in the guest who listens to it."""
        initrd = make_initrd(os.path.join(self.vmm.node.directory, 'initrd-button'), '--modules', modules_of(KERNELS['generic']), 'button', 'evdev')
        with self.vmm.boot(self.machine('generic', 2, initrd)) as (console, started):
            self.expect_init(console, 2, started, 'generic')
            self.check_healthy(console, 2)
            self.order('pause', 'g')
            exits = self.vmm.vm()['exits']
            self.assertEqual(self.vmm.vm()['exits'], exits, 'a paused guest does not run')
            console.type("echo typed while pau''sed")
            self.order('unpause', 'g')
            console.expect(r'^typed while paused$')
            self.order_and_expect_init(console, 2, lambda: self.order('reset', 'g'), 'hkctl vm reset')
            self.order_and_expect_init(console, 2, self.type(console, 'reboot -f'), 'reboot')
            # One input event (24 bytes) of the button, as acpid would take it.
            console.run('(dd if=/dev/input/event0 of=/dev/null bs=24 count=1 2>/dev/null && poweroff -f) & :')
            self.order('stop', 'g')
            self.await_power_off()

    def test_cloud_2_vcpus(self):
        self.boots_resets_and_powers_off('cloud', 2)

    def test_cloud_2_vcpus_without_x2apic(self):
        """On the xAPIC's page: every access is an exit, and IPIs go by 8-bit ids."""
        machine = self.machine('cloud', 2)
        machine.extra = 'cpu { disable: "x2apic" }'
        with self.vmm.boot(machine) as (console, started):
            self.expect_init(console, 2, started, 'cloud without x2APIC')
            self.check_healthy(console, 2)
            self.assertEqual(console.run('(cat /proc/cpuinfo; dmesg) | grep -i x2apic || true'), '')
            kinds = self.vmm.vm()['exits_by_kind']
            print(f'exits: {kinds}', flush=True)
            self.assertGreater(int(kinds['apic_mmio']), 100)
            self.order('renew', 'g')
            self.check_healthy(console, 2)
            self.order_and_expect_init(console, 2, self.type(console, 'reboot -f'), 'reboot')
            console.type('poweroff -f')
            self.await_power_off()

    def uptime(self, console, mark):
        """The guest's own time in seconds, and the host's before and after it was read."""
        before = time.monotonic()
        console.type(f'echo {mark} $(cut -d" " -f1 /proc/uptime)')
        guest = float(console.expect(rf'^{mark} ([0-9.]+)$')[0][1])
        return guest, before, time.monotonic()

    def sequence(self, console):
        return [int(n) for n in re.findall(r'seq-(\d+)\n', console.text())]

    def test_renewed_under_load(self):
        """Moved into a new KVM VM again and again, both CPUs busy: no timer, tick or character is lost, and time goes on."""
        with self.vmm.boot(self.machine('generic', 2)) as (console, started):
            self.expect_init(console, 2, started, 'generic')
            self.renew_under_load(console)

    def renew_under_load(self, console):
        console.type('dmesg -n 1; dmesg -c > /dev/null; while :; do :; done & while :; do :; done &')
        start, earliest, latest_start = self.uptime(console, 'uptime-before')
        console.type('(i=0; while true; do i=$((i+1)); echo seq-$i; sleep 0.1; done) &')
        console.expect(r'seq-3$')
        took = []
        for _ in range(50 if hktest.SOAK else 10):
            reached = len(self.sequence(console))
            began = time.monotonic()
            self.order('renew', 'g')
            took.append(time.monotonic() - began)
            # A sleep that began before ends after.
            console.expect(rf'seq-{reached + 2}$')
        print(f'{len(took)} renewals, hkctl included: median {sorted(took)[len(took) // 2] * 1000:.0f} ms', flush=True)

        self.order('pause', 'g')
        self.order('renew', 'g')
        self.assertEqual(self.vmm.vm()['state'], 'VM_STATE_PAUSED')
        self.order('unpause', 'g')
        reached = len(self.sequence(console))
        console.expect(rf'seq-{reached + 2}$')

        sequence = self.sequence(console)
        self.assertEqual(sequence, list(range(1, len(sequence) + 1)))
        console.type('kill %3')
        end, earliest_end, latest = self.uptime(console, 'uptime-after')
        self.assertGreater(end - start, (earliest_end - latest_start) * 0.95 - 1, 'the guest lost time')
        self.assertLess(end - start, (latest - earliest) * 1.05 + 1, 'the guest gained time')
        console.type('echo begin-of-dmesg; dmesg | grep -iE "clocksource|rcu|hung|lost|stall|lockup|tsc|backtrace"; echo end-of-dmesg')
        complaints = console.expect(r'(?s)^begin-of-dmesg\n(.*)^end-of-dmesg$')[0][1]
        self.assertEqual(complaints, '')
        # Every CPU still gets its ticks.
        for mark in ('ticks-first', 'ticks-second'):
            console.type(f'sleep 1; grep LOC: /proc/interrupts; echo {mark}')
            console.expect(rf'^{mark}$')
        first, second = re.findall(r'^ *LOC: +(\d+) +(\d+)', console.text(), re.MULTILINE)[-2:]
        self.assertTrue(all(int(a) < int(b) for a, b in zip(first, second)), (first, second))

    @unittest.skipUnless(hktest.SOAK, 'the rest of the matrix: tests/run soak')
    def test_matrix(self):
        for flavour, vcpus in (('generic', 4), ('cloud', 1), ('cloud', 4)):
            with self.subTest(f'{flavour} {vcpus}'):
                self.boots_resets_and_powers_off(flavour, vcpus)

    def holdings(self):
        """What the daemon holds between two guests."""
        pid = self.vmm.node.process.pid
        status = pathlib.Path(f'/proc/{pid}/status').read_text(encoding='ascii')
        return {'fds': self.vmm.node.fd_count(), 'threads': len(os.listdir(f'/proc/{pid}/task')),
                'anonymous MiB': int(status.split('RssAnon:')[1].split()[0]) >> 10,
                'frame files': [name for name in os.listdir(self.vmm.node.frame_directory) if name != 'lock'],
                'frames MiB': int(self.vmm.node.members()['a']['info']['frames_used_bytes']) >> 20}

    def test_cycles_leak_nothing(self):
        first = None
        for _ in range(CYCLES + 1):
            with self.vmm.boot(self.machine('cloud', 2, cmdline=EARLY_CMDLINE)) as (console, _):
                console.expect(r'Linux version')
                self.assertGreater(int(self.vmm.vm()['frame_bytes']), 1 << 20)
            if first is None:
                first = self.holdings()  # the first guest makes what is made once
        last = self.holdings()
        print(f'{CYCLES} cycles: {first} -> {last}', flush=True)
        self.assertEqual((last['frame files'], last['frames MiB']), ([], 0))
        for what in ('fds', 'threads'):
            self.assertLessEqual(last[what], first[what] + SLACK, what)
        self.assertLessEqual(last['anonymous MiB'], first['anonymous MiB'] + ANONYMOUS_GROWTH_MIB)


class KilledDaemon(unittest.TestCase):
    def test_the_next_one_gives_the_frames_back_and_says_what_happened(self):
        vmm = guests.Hyperkernel(budget_mib=300)
        self.addCleanup(vmm.close)
        node = vmm.node
        spec = pathlib.Path(node.directory) / 'vm.textproto'
        initrd = make_initrd(os.path.join(node.directory, 'initrd'))
        spec.write_text(guests.Machine(KERNELS['cloud'], initrd, EARLY_CMDLINE).spec('g'), encoding='utf-8')

        def order(*argv):
            done = node.hkctl('vm', *argv)
            self.assertEqual(done.code, 0, done.err)

        def starts():
            order('start', 'g')
            console = guests.Console([hktest.program('hkctl'), '--endpoint', node.endpoint, 'vm', 'console', 'g'])
            self.addCleanup(console.close)
            console.expect(r'Linux version')

        def frames_mib():
            return int(node.members()['a']['info']['frames_used_bytes']) >> 20

        order('create', '-f', str(spec))
        starts()
        self.assertGreater(frames_mib(), 0)
        node.kill()
        node.start()
        vm = node.hkctl('vm', 'show', 'g', '-o', 'json').json()
        self.assertEqual(vm['state'], 'VM_STATE_STOPPED')
        self.assertIn('its daemon ended without stopping it', vm['reason'])
        self.assertEqual(frames_mib(), 0)
        starts()
        order('stop', 'g', '--force')
        self.assertEqual(frames_mib(), 0)


if __name__ == '__main__':
    assert all(KERNELS.values()), 'runs inside the lab only: tests/lab/run_guest BIN_DIRECTORY'
    hktest.main()
