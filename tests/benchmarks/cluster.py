#!/usr/bin/env python3
"""One Debian guest over three daemons beside the same guest on one: boot, idling, moves of vCPUs, a program whose data is elsewhere. Runs
itself in the lab, whose one emulated CPU all daemons and vCPUs share: what is sent between them is their work too, and none of it is done
side by side. And 64 vCPUs over 4 daemons, a small program on this host.

boot: from before `hkctl vm start` until init's line is on the console; the default policy. Idle: faults that asked another node, of all
nodes together, after the policy has moved nothing for SETTLED_S. Move: how long the vCPU stood still at most, as `vm move-vcpu` tells,
against a page's way from another node in the same run (the middle of its histogram's bucket). Program: md5sum of a file in memory that
another node's vCPU wrote, against one that its own wrote, when the policy has settled.
"""
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time

from figure import emit
import lab_run

ROUNDS = int(os.environ.get('HK_BENCH_ROUNDS', '1'))
MEMORY_MIB, NODE_MIB, FILE_MIB = 256, 280, 16
CMDLINE = 'console=ttyS0 quiet panic=-1'
LIMIT_BOOT, LIMIT_IDLE, LIMIT_MOVE, LIMIT_LOCAL = 5, 200, 10, 0.9
INIT_S, COMMAND_S, SETTLED_S, SETTLES_WITHIN_S, IDLE_S, MOVES, PASSES = 600, 150, 20, 200, 20, 8, 5
LAB_S, ROUND_S = 90, 1500


class Across:
    """A guest over the daemons of `names`, a vCPU on each."""

    def __init__(self, names):
        import guests  # needs the lab
        self.names = names
        self.vmm = guests.Hyperkernel(NODE_MIB, names)
        self.places = '' if len(names) == 1 else ' '.join(f'placement {{ node: "{name}" memory_mib: {MEMORY_MIB} vcpus: 1 }}' for name in names)
        self.make = lambda initrd: guests.Machine(os.environ['HK_KERNEL'], initrd, CMDLINE, len(names), MEMORY_MIB, extra=self.places)

    def boot(self, initrd, then):
        with self.vmm.boot(self.make(initrd)) as (console, started):
            _, reached = console.expect(rf'guest: init reached, {len(self.names)} CPUs', INIT_S)
            say(f'{len(self.names)} nodes: init after {reached - started:.1f} s')
            lab_run.sample(kind=f'boot{len(self.names)}', seconds=reached - started)
            if then:
                then(self, console)
        self.vmm.close()

    def json(self, *argv):
        return self.vmm.do(*argv, '-o', 'json').json()

    def show(self):
        return self.json('vm', 'show', 'g')

    def top(self, seconds):
        """What the nodes' faults were within so many seconds, and their kept counters."""
        return self.json('space', 'top', 'g', '--once', '--interval', f'{seconds}s')['nodes']

    def settle(self):
        """Until nothing has been moved for SETTLED_S, or SETTLES_WITHIN_S have gone by; gives which."""
        moves, since, end = None, time.monotonic(), time.monotonic() + SETTLES_WITHIN_S
        while time.monotonic() - since < SETTLED_S:
            if time.monotonic() > end:
                return False
            now = self.show()['vcpu_moves']
            if now != moves:
                moves, since = now, time.monotonic()
            time.sleep(2)
        return True

    def move(self, vcpu, to):
        """The result, or None: the policy moves one itself just now."""
        done = self.vmm.node.hkctl('vm', 'move-vcpu', 'g', '--vcpu', str(vcpu), '--to', to, '-o', 'json')
        return done.json() if done.code == 0 else None

    def node_of(self, vcpu):
        return self.show()['vcpu_times'][vcpu]['node']


def say(text):
    print(text, file=sys.stderr, flush=True)


def idle(across, console):
    settled = across.settle()
    nodes = across.top(IDLE_S)
    total = sum(node['rates'][kind] for node in nodes for kind in ('read_faults', 'write_faults'))
    say(f'idle ({"settled" if settled else "not settled"}): {total:.0f} remote faults/s; ' + ', '.join(
        f'vCPU {vcpu} on {across.node_of(vcpu)}' for vcpu in range(len(across.names))))
    lab_run.sample(kind='idle', faults=total, settled=settled)


def median_fault_ns(nodes):
    """Of all faults of a machine's nodes for reading."""
    buckets = {}
    for node in nodes:
        for power, count in enumerate(node['counters']['read_latency']['buckets']):
            buckets[power] = buckets.get(power, 0) + int(count)
    half, seen = sum(buckets.values()) / 2, 0
    for power, count in sorted(buckets.items()):
        seen += count
        if count and seen >= half:
            return 1.5 * 2 ** power
    raise AssertionError(f'no faults in {nodes}')


def moves(across, console):
    stopped, turn = [], 0
    deadline = time.monotonic() + COMMAND_S
    while len(stopped) < MOVES and time.monotonic() < deadline:
        vcpu = 1 + turn % (len(across.names) - 1)
        here = across.node_of(vcpu)
        to = across.names[(across.names.index(here) + 1) % len(across.names)]
        moved = across.move(vcpu, to)
        turn += 1
        if moved and int(moved['stopped_ns']):
            stopped.append(int(moved['stopped_ns']))
    assert stopped, f'no vCPU could be moved within {COMMAND_S} s'
    page = median_fault_ns(across.top(1))
    say(f'{len(stopped)} moves: {statistics.median(stopped) / 1e6:.2f} ms median, {max(stopped) / 1e6:.2f} most; a page {page / 1e6:.2f} ms')
    lab_run.sample(kind='move', stopped_ns=stopped, page_ns=page)


def md5_passes(console, file, passes):
    """How long each took, on vCPU 0, seconds."""
    said = console.run(f'for i in $(seq {passes}); do read b r </proc/uptime; taskset 1 md5sum {file} >/dev/null; read e r </proc/uptime; echo $b $e; done',
                       COMMAND_S)
    return [float(end) - float(begin) for begin, end in re.findall(r'^([0-9.]+) ([0-9.]+)$', said, re.MULTILINE)]


def write(console, cpu, file):
    console.run(f'taskset {1 << cpu} dd if=/dev/urandom of={file} bs=1M count={FILE_MIB} 2>/dev/null', COMMAND_S)


def program(across, console):
    """vCPU 0 reads what it wrote itself, and then what vCPU 1, on another node, wrote."""
    write(console, 0, '/own')
    own = md5_passes(console, '/own', PASSES)
    home = across.node_of(0)
    other = next(name for name in across.names if name != home)
    deadline = time.monotonic() + COMMAND_S
    while across.node_of(1) == home:
        assert time.monotonic() < deadline, f'vCPU 1 could not be moved away from {home}'
        across.move(1, other)
    write(console, 1, '/theirs')
    first = md5_passes(console, '/theirs', 1)
    across.settle()
    theirs = md5_passes(console, '/theirs', PASSES)
    say(f'md5sum of {FILE_MIB} MiB: own {own}, of another node at first {first}, settled {theirs}')
    lab_run.sample(kind='program', own=own, first=first[0], settled=theirs)


def inside():
    subprocess.run(['modprobe', '-r', 'kvm_amd'], check=True)
    subprocess.run(['modprobe', 'kvm_amd', 'npt=1'], check=True)  # what machines over several nodes need
    with tempfile.TemporaryDirectory() as directory:
        initrd = os.path.join(directory, 'initrd')
        subprocess.run([os.path.join(lab_run.ROOT, 'deploy', 'make-initramfs'), initrd], check=True)
        for _ in range(ROUNDS):
            Across('a').boot(initrd, None)
            Across('ab').boot(initrd, None)
            Across('abc').boot(initrd, lambda across, console: [part(across, console) for part in (idle, moves, program)])


def sixty_four():
    test = os.path.join(lab_run.ROOT, 'tests', 'host', 'test_vm_across.py')
    done = subprocess.run([sys.executable, test, 'VmAcross.test_64_vcpus_over_4_nodes'], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    found = re.search(r'64 vCPUs over 4 nodes: made in ([0-9.]+) s, all started in ([0-9.]+) s', done.stdout)
    if done.returncode or not found:
        sys.exit(f'cluster: 64 vCPUs did not start:\n{done.stdout[-3000:]}')
    emit('cluster.vcpus_started', 64, 'vCPUs', None, 64, at_least=True, made_s=float(found[1]), started_s=float(found[2]))


def outside():
    sixty_four()
    samples = lab_run.collect(__file__, LAB_S + ROUND_S * ROUNDS, HK_KERNEL=lab_run.kernel(), HK_BENCH_ROUNDS=ROUNDS)
    by_kind = {}
    for sample in samples:
        by_kind.setdefault(sample['kind'], []).append(sample)

    def seconds(kind):
        return [round(sample['seconds'], 1) for sample in by_kind.get(kind, [])]
    one = statistics.median(seconds('boot1'))
    for count in (2, 3):
        if seconds(f'boot{count}'):
            emit(f'cluster.boot_{count}_nodes', statistics.median(seconds(f'boot{count}')), 's', one, LIMIT_BOOT * one,
                 all=seconds(f'boot{count}'), one_node=seconds('boot1'))
    missing = {'boot3', 'idle', 'move', 'program'} - by_kind.keys()
    if 'idle' in by_kind:
        emit('cluster.idle_faults', statistics.median(s['faults'] for s in by_kind['idle']), '1/s', None, LIMIT_IDLE,
             settled=all(s['settled'] for s in by_kind['idle']))
    if 'move' in by_kind:
        stopped = [ns for s in by_kind['move'] for ns in s['stopped_ns']]
        page = statistics.median(s['page_ns'] for s in by_kind['move'])
        emit('cluster.move', statistics.median(stopped) / 1e6, 'ms', page / 1e6, LIMIT_MOVE * page / 1e6, moves=len(stopped),
             p95=round(statistics.quantiles(stopped, n=20)[-1] / 1e6, 2), most=round(max(stopped) / 1e6, 2))
    if 'program' in by_kind:
        own = statistics.median(second for s in by_kind['program'] for second in s['own'])
        settled = statistics.median(second for s in by_kind['program'] for second in s['settled'])
        emit('cluster.program_speed', own / settled, 'of local', None, LIMIT_LOCAL, at_least=True, own_s=round(own, 2),
             settled_s=round(settled, 2), first_s=[s['first'] for s in by_kind['program']])
    if missing:
        sys.exit(f'cluster: nothing came of {", ".join(sorted(missing))}; see build/lab/logs')


if lab_run.inside():
    inside()
else:
    outside()
