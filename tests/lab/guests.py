"""Guests inside the lab, the same way under hyperkerneld and under QEMU with KVM: started, typed to, ended.

For benches that compare both and for tests that boot an image. Runs inside the lab only.
"""
import contextlib
import dataclasses
import os
import pathlib
import re
import subprocess
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / 'host'))
import hktest  # noqa: E402

BOOT_S = 90
# What shells send for terminals: carriage returns, colours, bracketed paste.
ESCAPES = re.compile(r'\r|\x1b\[[0-9;?]*[A-Za-z]')
# The lab's TCG does not intercept XSETBV, so QEMU's guest must not be shown what needs it (README.md, limits).
QEMU_CPU = 'host,-xsave,-pku,-la57'


@dataclasses.dataclass
class Machine:
    """What both are told. `disks` are paths, the first `readonly` of them not to be written; `taps` names of tap devices that exist."""
    kernel: str
    initrd: str
    cmdline: str
    vcpus: int = 1
    memory_mib: int = 256
    disks: tuple = ()
    taps: tuple = ()
    readonly: int = 0
    extra: str = ''  # more of hyperkerneld's specification

    def spec(self, name):
        lines = [f'name: "{name}" memory_mib: {self.memory_mib} vcpus: {self.vcpus}',
                 f'kernel: "{self.kernel}" initrd: "{self.initrd}" cmdline: "{self.cmdline}"']
        lines += [f'disks {{ path: "{path}" readonly: {str(index < self.readonly).lower()} }}' for index, path in enumerate(self.disks)]
        lines += [f'nets {{ tap: "{tap}" mac: "52:54:00:77:00:{index:02x}" }}' for index, tap in enumerate(self.taps)]
        return '\n'.join([*lines, self.extra]) + '\n'

    def qemu(self, board, vhost):
        bus = 'device' if board.startswith('microvm') else 'pci'
        argv = ['qemu-system-x86_64', '-M', board, '-accel', 'kvm', '-cpu', QEMU_CPU, '-m', str(self.memory_mib), '-smp', str(self.vcpus),
                '-nodefaults', '-no-user-config', '-display', 'none', '-no-reboot', '-chardev', 'stdio,id=tty,signal=off', '-serial', 'chardev:tty',
                '-kernel', self.kernel, '-initrd', self.initrd, '-append', self.cmdline]
        for index, path in enumerate(self.disks):
            argv += ['-drive', f'file={path},if=none,id=disk{index},format=raw,cache=none,aio=io_uring,readonly={"on" if index < self.readonly else "off"}',
                     '-device', f'virtio-blk-{bus},drive=disk{index}']
        for index, tap in enumerate(self.taps):
            argv += ['-netdev', f'tap,id=net{index},ifname={tap},script=no,downscript=no,vhost={"on" if vhost else "off"}',
                     '-device', f'virtio-net-{bus},netdev=net{index},mac=52:54:00:77:00:{index:02x}' + (',romfile=' if bus == 'pci' else '')]
        return argv


class Console:
    """A serial console over a process's pipes. Output is taken in by a thread of its own, with the time at which it came."""

    def __init__(self, argv):
        self.process = subprocess.Popen(['setpriv', '--pdeathsig', 'KILL', '--', *argv], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT, env=hktest.clean_environment())
        self._changed = threading.Condition()
        self._text, self._times, self._ended = '', [], False  # _times: (length of the text, when it was reached)
        self._at = 0
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self):
        rest = b''  # the beginning of an escape sequence
        while piece := os.read(self.process.stdout.fileno(), 65536):
            now = time.monotonic()
            piece, rest = re.fullmatch(rb'(.*?)((?:\x1b(?:\[[0-9;?]*)?)?)', rest + piece, re.DOTALL).groups()
            with self._changed:
                self._text += ESCAPES.sub('', piece.decode(errors='replace'))
                self._times.append((len(self._text), now))
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def text(self):
        with self._changed:
            return self._text

    def expect(self, pattern, timeout=BOOT_S):
        """The first match after the last one, and the time at which its last character had come.

        A `$` at the pattern's end is the end of a line that is there in full: half a number is no number.
        """
        if pattern.endswith('$'):
            pattern = pattern[:-1] + r'(?=\n)'
        found = None

        def look():
            nonlocal found
            found = re.compile(pattern, re.MULTILINE).search(self._text, self._at)
            return found or self._ended
        with self._changed:
            self._changed.wait_for(look, timeout)
            if not found:
                why = 'the console closed before' if self._ended else f'within {timeout} s there was no'
                raise AssertionError(f'{why} {pattern!r}\n--- the console ended with\n{self._text[-3000:]}')
            self._at = found.end()
            return found, next(when for length, when in self._times if length >= found.end())

    def type(self, line):
        self.process.stdin.write(line.encode() + b'\r')
        self.process.stdin.flush()

    def run(self, command, timeout=BOOT_S):
        """Runs a command in the shell on the console; gives its output. An assertion error if it fails."""
        # The marks are put together by the shell, so that the echo of what is typed does not hold them.
        self.type(f"echo; echo be''gin; {{ {command}\n}} 2>&1; echo en''d $?".replace('\n', '; '))
        found, _ = self.expect(r'^begin\n((?:.*\n)*?)end (\d+)\n', timeout)
        assert found[2] == '0', f'{command!r} ended with {found[2]}: {found[1][-12000:]}'
        return found[1]

    def close(self):
        self.process.kill()
        self.process.wait()
        self._reader.join()
        self.process.stdin.close()
        self.process.stdout.close()


class Hyperkernel:
    """A daemon, or several that know one another, and one guest at a time, which the first has the devices of."""
    name = 'hyperkernel'

    def __init__(self, budget_mib=600, names=('a',)):
        self.bed = hktest.Bed()
        self.nodes = self.bed.cluster(*names) if len(names) > 1 else [self.bed.node(*names)]
        self.node = self.nodes[0]
        for node in self.nodes:
            node.budget_mib = budget_mib
            node.start()
        for node in self.nodes:
            hktest.wait_for(lambda: sum(member.get('data_link', {}).get('state') == 'DATA_LINK_STATE_UP'
                                        for member in node.members().values()) == len(names) - 1, f'{node.name} has its data plane', BOOT_S)

    def do(self, *argv):
        """An order to the first daemon, which must succeed."""
        done = self.node.hkctl(*argv)
        assert done.code == 0, f'hkctl {" ".join(argv)}: {done.err}{self.node.log_text()[-2000:]}'
        return done

    @contextlib.contextmanager
    def boot(self, machine):
        """Gives the console and the time at which the start was asked for. The guest is gone afterwards."""
        spec = pathlib.Path(self.node.directory) / 'vm.textproto'
        spec.write_text(machine.spec('g'), encoding='utf-8')
        self.do('vm', 'create', '-f', str(spec))
        try:
            started = time.monotonic()
            self.do('vm', 'start', 'g')
            console = Console([hktest.program('hkctl'), '--endpoint', self.node.endpoint, 'vm', 'console', 'g'])
            try:
                yield console, started
            finally:
                console.close()
                self.node.hkctl('vm', 'stop', 'g', '--force')
        finally:
            self.do('vm', 'delete', 'g')

    def vm(self):
        return self.do('vm', 'show', 'g', '-o', 'json').json()

    def close(self):
        try:
            self.bed.check_alive()
            self.bed.stop_all()
        finally:
            self.bed.close()


class Qemu:
    """QEMU with KVM on one of its boards, for example q35 or microvm."""

    def __init__(self, board, vhost=False):
        self.name, self.board, self.vhost = f'qemu-{board.split(",")[0]}' + ('-vhost' if vhost else ''), board, vhost

    @contextlib.contextmanager
    def boot(self, machine):
        started = time.monotonic()
        console = Console(machine.qemu(self.board, self.vhost))
        try:
            yield console, started
        finally:
            console.close()

    def close(self):
        pass
