#!/usr/bin/env python3
"""One guest with Debian's kernel over daemons of several nodes, a vCPU on each, with TLS between them: three in network namespaces of one lab host, over
TCP; or one on each of two lab hosts, over verbs. Litmus tests run in it with threads pinned to its CPUs, while CPUs are moved at random; a node
of it is killed. HK_SOAK=1 has programs run while 100 moves are made, and nodes stopped and cut off too. HK_SEED chooses the moves.

Init is reached because the policy has CPUs meet that take each other's pages, which it can only if the nodes tell each other what they wait for while
all fetch pages.
"""
import contextlib
import os
import random
import re
import signal
import subprocess
import threading
import time
import unittest

import guests
from labtest import HOST, LabNode, hktest, make_certificates
from test_guest import make_initrd

CERTIFICATES = '/out/certs'
HOSTS = int(os.environ['LAB_HOSTS'])
SOAK = bool(os.environ.get('HK_SOAK'))
ADDRESSES = {'a': '10.77.0.1', 'b': '10.77.0.2'} if HOSTS == 2 else {'a': '10.77.1.1', 'b': '10.77.1.2', 'c': '10.77.1.3'}  # of namespaces 1 to 3
MIB = 256
KERNEL, MODULES = os.environ['HK_KERNEL'], os.environ['HK_MODULES']
JOIN_S, BOOT_S, INIT_S, PROGRAM_S, LOST_S = 120, 240, 400, 400, 120
# One round of each of the 49 tests; more when soaking.
LITMUS_RUNS, MOVES = (1024, 100) if SOAK else (64, 6)
PROGRAMS = ('redis-server=redis-check-rdb', 'redis-cli', 'stress-ng', 'sysbench', 'stressapptest', 'hackbench', 'fio')
KEYS, VALUE_BYTES = 512, 32720  # of redis: 16 MiB, each value made of its key
VALUE = f"string.rep(redis.sha1hex(i), {VALUE_BYTES // 40})"
SET = f"for i = ARGV[1], ARGV[2] do redis.call('SET', i, {VALUE}) end return 'done'"
CHECK = f"for i = ARGV[1], ARGV[2] do if redis.call('GET', i) ~= {VALUE} then return i .. ' is wrong' end end return 'done'"


def nest_page_tables():
    """What a machine over several nodes needs (node/README.md): without, KVM does not see what another node writes to the guest's page tables. An AMD
    processor takes every look at them for a write, so that no two nodes have such a page at a time, and the guest's second CPU is slow to come."""
    subprocess.run(['modprobe', '-r', 'kvm_amd'], check=True)
    subprocess.run(['modprobe', 'kvm_amd', 'npt=1'], check=True)


def say(text):
    print(text, flush=True)


def barrier(name, seconds=60):
    subprocess.run(['lab-barrier', name, str(seconds)], check=True)


class Across(hktest.TestCase):
    @classmethod
    def setUpClass(cls):
        nest_page_tables()
        if HOST == 1:
            make_certificates(CERTIFICATES, ADDRESSES)
        barrier('certificates')

    def setUp(self):
        super().setUp()
        self.seed = int(os.environ.get('HK_SEED') or random.SystemRandom().randrange(1 << 32))
        self.random = random.Random(self.seed)
        say(f'HK_SEED={self.seed}')
        for number, (name, address) in enumerate(ADDRESSES.items(), 1):
            if HOSTS == 2 and number != HOST:
                continue
            node = LabNode(self.bed, name, address, CERTIFICATES, namespace=number if HOSTS == 1 else None, transport='AUTO' if HOSTS == 2 else 'TCP')
            self.bed.nodes.append(node)
            node.budget = MIB + 32
            node.peers = list(ADDRESSES.items())
            node.start()
        self.a = self.bed.nodes[0]
        for node in self.bed.nodes:
            self.wait_joined(node)

    def wait_joined(self, node):
        def linked():
            members = node.members()
            return all(members.get(other, {}).get('data_link', {}).get('state') == 'DATA_LINK_STATE_UP' for other in ADDRESSES if other != node.name)
        hktest.wait_for(linked, f'{node.name} has its data plane to all others', JOIN_S)

    def create(self, *disks):
        placement = ' '.join(f'placement {{ node: "{name}" memory_mib: {MIB} vcpus: 1 }}' for name in ADDRESSES)
        modules = ('crc32c_generic', 'ext4', 'virtio_pci', 'virtio_blk') if disks else ()
        initrd = make_initrd(os.path.join(self.a.directory, 'initrd'), '--program', hktest.program('guest_litmus'), *(
            ('--modules', MODULES, *modules) if modules else ()))
        # The first is for reading; their files are in memory, which knows no O_DIRECT.
        devices = ' '.join(f'disks {{ path: "{path}" readonly: {str(index == 0).lower()} cache: DISK_CACHE_BUFFERED }}' for index, path in enumerate(disks))
        machine = guests.Machine(KERNEL, initrd, 'console=ttyS0 panic=-1', vcpus=len(ADDRESSES), memory_mib=MIB, extra=f'{placement} {devices}')
        path = os.path.join(self.a.directory, 'g.textproto')
        with open(path, 'w', encoding='utf-8') as file:
            file.write(machine.spec('g'))
        self.assert_exit(self.a.hkctl('vm', 'create', '-f', path), 0)

    def start(self, to_init=True):
        """Starts the machine; its console, when all CPUs are up, or init is reached."""
        since = time.monotonic()
        self.assert_exit(self.a.hkctl('vm', 'start', 'g'), 0)
        console = guests.Console([hktest.program('hkctl'), '--endpoint', self.a.endpoint, 'vm', 'console', 'g'])
        self.addCleanup(console.close)
        _, begun = console.expect(r'smp: Bringing up secondary CPUs', BOOT_S)
        _, up = console.expect(rf'smp: Brought up \d+ nodes?, {len(ADDRESSES)} CPUs', BOOT_S)
        say(f'secondary CPUs begun after {begun - since:.1f} s, those of other nodes are up {up - begun:.1f} s later')
        if to_init:
            _, reached = console.expect('guest: init reached', INIT_S)
            say(f'init after {reached - since:.1f} s')
        return console

    def vm(self):
        return self.a.hkctl('vm', 'show', 'g', '-o', 'json').json()

    def move(self):
        """A random vCPU to a random node. False: it is there, or the policy moves one just now."""
        vcpu, to = self.random.randrange(len(ADDRESSES)), self.random.choice(list(ADDRESSES))
        result = self.a.hkctl('vm', 'move-vcpu', 'g', '--vcpu', str(vcpu), '--to', to)
        if result.code:
            self.assertIn('under way', result.err)
            return False
        return 'stopped for' in result.out

    @contextlib.contextmanager
    def moving(self, moves):
        """CPUs are moved so many times while what is inside runs, and after it if it was quicker; when soaking, all the time."""
        made, stop, failed = 0, threading.Event(), []

        def run():
            nonlocal made
            try:
                while made < moves or (SOAK and not stop.is_set()):
                    made += self.move()
                    stop.wait(0.2)
            except BaseException as error:  # pylint: disable=broad-except
                failed.append(error)
        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
        if failed:
            raise failed[0]
        say(f'{made} moves meanwhile; HK_SEED={self.seed}')

    def run_litmus(self, console):
        since = time.monotonic()
        said = console.run(f'{hktest.program("guest_litmus")} {LITMUS_RUNS} {self.seed}', PROGRAM_S * (10 if SOAK else 1))
        self.assertIn('guest_litmus: nothing forbidden', said)
        seen = set(re.findall(r'(\d{4} x=\d y=\d): ', said))
        self.assertGreater(len(seen), 5, 'the threads did not run beside each other')
        say(f'{said.count(" runs ")} litmus tests in {time.monotonic() - since:.1f} s, {len(seen)} kinds of outcomes\n{said if SOAK else said.splitlines()[-1]}')

    def wait_crashed(self, *texts):
        def crashed():
            vm = self.vm()
            return vm if vm['state'] == 'VM_STATE_CRASHED' else None
        vm = hktest.wait_for(crashed, lambda: f"it has crashed: {self.vm()['state']}", LOST_S)
        say(f"crashed: {vm['reason']}")
        for text in texts:
            self.assertIn(text, vm['reason'])

    def wait_nothing_left(self, *nodes):
        for node in nodes:
            hktest.wait_for(lambda: node.hkctl('space', 'list', '-o', 'json').json().get('spaces', []) == [], f'{node.name} has no space', LOST_S)

    def stop_machine(self):
        say(self.a.hkctl('vm', 'show', 'g').out)
        self.assert_exit(self.a.hkctl('vm', 'stop', 'g', '--force'), 0)
        self.wait_nothing_left(*self.bed.nodes)

    def test_init_litmus_and_a_node_that_is_killed(self):
        if HOST == 1:
            self.create()
            console = self.start()
            with self.moving(MOVES):
                self.run_litmus(console)
        if HOSTS == 2:
            if HOST == 1:
                self.stop_machine()
            barrier('ended', 3600)
            return
        b = self.bed.nodes[1]
        # What the kernel of the guest has is on all nodes: it cannot go on.
        b.kill()
        self.wait_crashed("node 'b'")
        self.wait_nothing_left(*(node for node in self.bed.nodes if node is not b))
        b.start()
        for node in self.bed.nodes:
            self.wait_joined(node)
        self.start(to_init=False)
        self.stop_machine()

    @unittest.skipUnless(SOAK and HOSTS == 1, 'a quarter of an hour: with HK_SOAK=1, on one host')
    def test_programs_while_cpus_are_moved(self):
        tools, data = (os.path.join(self.a.directory, name) for name in ('tools.raw', 'data.raw'))
        subprocess.run([os.path.join(hktest.ROOT, 'deploy', 'make-tools'), tools, '192', *PROGRAMS], check=True)
        with open(data, 'wb') as file:
            file.truncate(32 << 20)
        self.create(tools, data)
        console = self.start()
        console.run('mkdir -p /tools; mount -t ext4 -o ro /dev/vda /tools; for d in dev proc sys; do mount --bind /$d /tools/$d; done; '
                    'mount -t tmpfs t /tools/tmp; mount -t tmpfs t /tools/run', PROGRAM_S)
        cpus = len(ADDRESSES)
        redis = 'chroot /tools redis-cli -s /run/redis'
        programs = {
            'stress-ng': f'chroot /tools stress-ng --vm {cpus} --vm-bytes 8M --vm-method flip --vm-ops 600 --verify --temp-path /tmp -t 120s',
            'stressapptest': f'chroot /tools stressapptest -M 16 -m {cpus} -C 1 -s 40 -l /dev/null',
            'hackbench': 'chroot /tools hackbench -g 1 -f 4 -l 50',
            'fio': 'chroot /tools fio --name=v --filename=/dev/vdb --rw=randwrite --bs=16k --size=8M --direct=1 --ioengine=psync --verify=crc32c '
                   '--verify_fatal=1 --randrepeat=1 --output-format=terse',
            'redis filled': "chroot /tools redis-server --port 0 --unixsocket /run/redis --save '' --appendonly no --lua-time-limit 0 --daemonize yes --dir /tmp "
                            f'>/dev/null; sleep 5; {redis} eval "{SET}" 0 0 {KEYS - 1} | grep -x done',
            'redis checked': f'{redis} eval "{CHECK}" 0 0 {KEYS - 1} | grep -x done',
        }
        with self.moving(MOVES):
            for name, command in programs.items():
                since = time.monotonic()
                console.run(command, PROGRAM_S)
                say(f'{name}: {time.monotonic() - since:.1f} s, {self.vm()["vcpu_moves"]} moves so far')
        self.assertGreaterEqual(int(self.vm()['vcpu_moves']), MOVES)
        console.run(f"dmesg -r | grep -E '^<[0-2]>' && false; test $(nproc) = {cpus}")
        self.stop_machine()

    @unittest.skipUnless(SOAK and HOSTS == 1, 'with HK_SOAK=1, on one host')
    def test_nodes_that_are_stopped_and_cut_off(self):
        self.create()
        for what in ('stopped', 'cut off'):
            self.start()
            b = self.bed.nodes[1]
            if what == 'stopped':
                os.kill(b.process.pid, signal.SIGSTOP)
            else:
                subprocess.run(['lab-link', 'cut', 'n2'], check=True)
            self.wait_crashed("node 'b'")
            self.wait_nothing_left(*(node for node in self.bed.nodes if node is not b))
            if what == 'stopped':
                os.kill(b.process.pid, signal.SIGCONT)
            else:
                subprocess.run(['lab-link', 'heal', 'n2'], check=True)
            for node in self.bed.nodes:
                self.wait_joined(node)
            self.wait_nothing_left(b)
        self.start(to_init=False)
        self.stop_machine()


if __name__ == '__main__':
    unittest.main(verbosity=2)
