"""What the host tests share: daemons on free ports in a directory of their own, hkctl, and waiting for conditions.

Each test file runs by itself: python3 tests/host/test_x.py [--bin DIRECTORY] [unittest's arguments]. The programs are looked
for in --bin, else $HK_BIN, else build/dev/bin. Works as root (frame stores are tmpfs mounts) and as anyone else (they are
directories under /dev/shm). Standard library only.
"""
import atexit
import contextlib
import dataclasses
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest
import urllib.request

import hang_report

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
CERTS = os.path.join(ROOT, 'deploy', 'certs')

# For conditions: a test that passes never waits this long, one that fails waits it once.
TIMEOUT = 30
POLL = 0.03
# Liveness for tests: quick, but far from what a busy machine's scheduling can upset.
HELLO_MS = 100
UNREACHABLE_MS = 1500
BUDGET_MIB = 16
# Full counts (tests/run soak).
SOAK = bool(os.environ.get('HK_SOAK'))

_bin = os.environ.get('HK_BIN') or os.path.join(ROOT, 'build', 'dev', 'bin')
_beds = []
rng = random.Random()


def program(name):
    return os.path.join(_bin, name)


def clean_environment(**extra):
    """The environment without what would steer hkctl or gRPC."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(('HKCTL_', 'GRPC_')) and not k.lower().endswith('_proxy')}
    env.update(extra)
    return env


def wait_for(condition, what, timeout=TIMEOUT):
    """Polls until condition() is true and returns its value; an assertion error naming `what` (a text, or what makes one then) when the
    time is up."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f'not within {timeout} s: {what() if callable(what) else what} (last: {value!r})')
        time.sleep(POLL)


@dataclasses.dataclass
class Result:
    """How a program ended."""
    code: int
    out: str
    err: str

    def json(self):
        return json.loads(self.out)

    @property
    def error(self):
        """The one line of standard error; an assertion error if it is not exactly one."""
        if self.err.count('\n') != 1 or not self.err.endswith('\n'):
            raise AssertionError(f'standard error is not exactly one line: {self.err!r}')
        return self.err.strip()


def run(argv, timeout=60, **kwargs):
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=timeout,
                          text=True, errors='replace', env=kwargs.pop('env', None) or clean_environment(), **kwargs)
    return Result(done.returncode, done.stdout, done.stderr)


def hkctl(endpoint, *args, tls=(), env=None):
    """Runs hkctl; `tls` is (ca, certificate, key). `endpoint` None leaves --endpoint away."""
    argv = [program('hkctl')]
    if endpoint is not None:
        argv += ['--endpoint', endpoint]
    for option, path in zip(('--tls-ca', '--tls-cert', '--tls-key'), tls):
        argv += [option, path]
    return run(argv + list(args), env=clean_environment(**(env or {})))


_port_holders = []  # descriptors, open as long as this process


def free_port():
    """A TCP port of loopback that is free now, outside the range the kernel picks from for outgoing connections, and not given to
    another run of these tests: an abstract unix socket of its number is held until this process ends."""
    while True:
        port = rng.randrange(20000, 32000)
        holder = socket.socket(socket.AF_UNIX)
        try:
            holder.bind(f'\0hk-test-port-{port}')
            with socket.socket() as probe:
                probe.bind(('127.0.0.1', port))
        except OSError:
            holder.close()
            continue
        _port_holders.append(holder.detach())
        return port


def listens(port):
    """True if something accepts connections at a port of loopback."""
    with contextlib.suppress(ConnectionRefusedError), socket.create_connection(('127.0.0.1', port)):
        return True
    return False


def is_mounted(path):
    with open('/proc/self/mounts', encoding='utf-8') as mounts:
        return any(line.split()[1] == path for line in mounts)


def remove_tree(path):
    """Removes a directory and what is mounted below it."""
    with open('/proc/self/mounts', encoding='utf-8') as mounts:
        points = [line.split()[1] for line in mounts]
    for point in reversed(points):
        if point == path or point.startswith(path + '/'):
            subprocess.run(['umount', '-l', point], check=False, stderr=subprocess.DEVNULL)
    shutil.rmtree(path, ignore_errors=True)


def sweep():
    """Removes what runs that were killed have left: directories named after a process that is gone."""
    for parent in ('/tmp', '/dev/shm'):
        for name in os.listdir(parent):
            found = re.fullmatch(r'hkt-(\d+)-\w+', name)
            path = os.path.join(parent, name)
            if found and not os.path.exists(f'/proc/{found[1]}') and os.stat(path).st_uid == os.getuid():
                remove_tree(path)


class Node:
    """One daemon with its configuration. Fields may be changed before start()."""

    def __init__(self, bed, name, **fields):
        self.bed = bed
        self.name = name
        self.directory = os.path.join(bed.directory, f'n{len(bed.nodes)}-{name}'[:24])
        os.mkdir(self.directory)
        self.data_directory = fields.pop('data_directory', os.path.join(self.directory, 'data'))
        self.frame_directory = fields.pop('frame_directory', os.path.join(bed.frames, os.path.basename(self.directory)))
        self.socket = fields.pop('socket', os.path.join(self.directory, 'admin.sock'))
        self.tcp = fields.pop('tcp', False)          # a TCP admin listener beside the socket
        self.tcp_port = free_port() if self.tcp else None
        self.data_port = fields.pop('data_port', None) or free_port()
        self.metrics_port = fields.pop('metrics_port', None)  # None: no metrics
        self.cluster = fields.pop('cluster', 'test')
        self.peers = fields.pop('peers', [])          # (name, address) pairs
        self.peer_fields = {}                         # what else their entries have, by name
        self.tls = fields.pop('tls', None)            # (ca, certificate, key)
        self.extra = fields.pop('extra', '')          # configuration text
        self.hello_ms = fields.pop('hello_ms', HELLO_MS)
        self.unreachable_ms = fields.pop('unreachable_ms', UNREACHABLE_MS)
        self.budget_mib = BUDGET_MIB
        self.swap_mib = 0
        self.arguments = []                           # of the daemon, beyond --config
        assert not fields, fields
        self.config = os.path.join(self.directory, 'node.textproto')
        self.log = os.path.join(self.directory, 'log')
        self.process = None

    @property
    def endpoint(self):
        return f'unix:{self.socket}'

    @property
    def tcp_endpoint(self):
        return f'127.0.0.1:{self.tcp_port}'

    def config_text(self):
        lines = [f'name: "{self.name}"', f'cluster: "{self.cluster}"', f'data_directory: "{self.data_directory}"',
                 f'frame_store {{ directory: "{self.frame_directory}" budget_mib: {self.budget_mib} }}', f'swap_mib: {self.swap_mib}', 'transport: TRANSPORT_TCP',
                 f'listen {{ admin: "{self.endpoint}"']
        if self.tcp:
            lines.append(f'  admin: "{self.tcp_endpoint}"')
        metrics = f'127.0.0.1:{self.metrics_port}' if self.metrics_port else 'none'
        lines += [f'  data: "127.0.0.1:{self.data_port}" metrics: "{metrics}" }}',
                  f'membership {{ hello_interval_ms: {self.hello_ms} unreachable_after_ms: {self.unreachable_ms} }}']
        lines += [f'peers {{ name: "{name}" admin: "{address}" {self.peer_fields.get(name, "")} }}' for name, address in self.peers]
        if self.tls:
            lines.append('tls { ca: "%s" certificate: "%s" key: "%s" }' % tuple(self.tls))
        return '\n'.join(lines + [self.extra, ''])

    def write_config(self):
        with open(self.config, 'w', encoding='utf-8') as file:
            file.write(self.config_text())
        return self.config

    def start(self, wait=True, prefix=()):
        """Starts the daemon; `prefix` is a command to run it under. Waits until hkctl is answered, unless told not to."""
        assert self.process is None or self.process.poll() is not None, f'{self.name} runs already'
        self.write_config()
        with open(self.log, 'ab') as log:
            # The daemon dies with this process even if that is killed.
            self.process = subprocess.Popen(['setpriv', '--pdeathsig', 'KILL', '--', *prefix, program('hyperkerneld'), '--config', self.config, *self.arguments],
                                            stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=clean_environment())
        if wait:
            wait_for(self._serves, f'{self.name} serves')
        return self

    def _serves(self):
        if self.process.poll() is not None:
            raise AssertionError(f'{self.name} ended with {self.process.returncode} instead of serving')
        return self.hkctl('version', '--timeout', '2s').code == 0

    def fails_to_start(self):
        """Runs the daemon, which must end by itself with exit code 1; returns its one line."""
        result = run([program('hyperkerneld'), '--config', self.write_config()], timeout=TIMEOUT)
        # gRPC and the log may not add to what the operator reads.
        if result.code != 1:
            raise AssertionError(f'exit code {result.code}, not 1: {result.err!r}')
        return result.error

    def hkctl(self, *args, **kwargs):
        return hkctl(self.endpoint, *args, **kwargs)

    def members(self):
        """All members by name, as this daemon sees them; {} if it does not answer."""
        result = self.hkctl('node', 'list', '-o', 'json')
        return {m['name']: m for m in result.json()['members']} if result.code == 0 else {}

    def state_of(self, name):
        return self.members().get(name, {}).get('state', '').replace('MEMBER_STATE_', '').lower()

    def wait_state(self, name, state):
        """Waits until this daemon sees a member in a state; returns the member."""
        def seen():
            member = self.members().get(name, {})
            return member if member.get('state') == f'MEMBER_STATE_{state.upper()}' else None
        return wait_for(seen, f'{self.name} sees {name} {state}')

    def signal(self, number):
        self.process.send_signal(number)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self, timeout=TIMEOUT):
        """SIGTERM; returns the exit code."""
        self.process.terminate()
        return self.process.wait(timeout)

    @property
    def running(self):
        return self.process is not None and self.process.poll() is None

    def log_text(self):
        with contextlib.suppress(FileNotFoundError), open(self.log, encoding='utf-8', errors='replace') as file:
            return file.read()
        return ''

    def rss_bytes(self):
        with open(f'/proc/{self.process.pid}/statm', encoding='ascii') as statm:
            return int(statm.read().split()[1]) * os.sysconf('SC_PAGE_SIZE')

    def is_sanitized(self):
        with open(f'/proc/{self.process.pid}/maps', encoding='utf-8') as maps:
            return any('san.so' in line for line in maps)

    def fd_count(self):
        return len(os.listdir(f'/proc/{self.process.pid}/fd'))

    def metrics(self, timeout=10):
        """The metrics as {"name{labels}": value}."""
        with urllib.request.urlopen(f'http://127.0.0.1:{self.metrics_port}/metrics', timeout=timeout) as answer:
            text = answer.read().decode()
        return {k: float(v) for k, v in (line.rsplit(' ', 1) for line in text.splitlines() if line and line[0] != '#')}


class Bed:
    """Nodes and the directories they live in. close() leaves nothing behind, whatever happened."""

    def __init__(self):
        self.nodes = []
        self.directory = tempfile.mkdtemp(prefix=f'hkt-{os.getpid()}-', dir='/tmp')
        self.frames = tempfile.mkdtemp(prefix=f'hkt-{os.getpid()}-', dir='/dev/shm')
        _beds.append(self)

    def node(self, name, **fields):
        node = Node(self, name, **fields)
        self.nodes.append(node)
        return node

    def cluster(self, *names, **fields):
        """Nodes that know one another; not started."""
        nodes = [self.node(name, **fields) for name in names]
        for node in nodes:
            node.peers = [(other.name, other.tcp_endpoint if other.tls else other.endpoint) for other in nodes]
        return nodes

    def stop_all(self):
        """SIGTERM to all that run; every one must end with 0."""
        running = [node for node in self.nodes if node.running]
        for node in running:
            node.signal(signal.SIGCONT)
            node.signal(signal.SIGTERM)
        codes = {node.name: node.process.wait(TIMEOUT) for node in running}
        assert not any(codes.values()), f'exit codes after SIGTERM: {codes}'

    def check_alive(self):
        """No daemon has ended that no test ended."""
        dead = {n.name: n.process.returncode for n in self.nodes if n.process and n.process.poll() not in (None, 0, -signal.SIGKILL)}
        assert not dead, f'ended by themselves: {dead}'

    def close(self, show_logs=False):
        if self not in _beds:
            return
        _beds.remove(self)
        for node in self.nodes:
            if node.running:
                node.kill()
        if show_logs:
            self.print_logs()
        remove_tree(self.directory)
        remove_tree(self.frames)

    def print_logs(self):
        for node in self.nodes:
            print(f'--- log of {node.name} ({node.directory})\n{node.log_text()[-8000:]}---', file=sys.stderr)


class TestCase(unittest.TestCase):
    """A test with a bed of its own (self.bed). A class may have one for all its tests: make_shared(bed)."""
    shared = None
    maxDiff = None

    @classmethod
    def setUpClass(cls):
        if not hasattr(cls, 'make_shared'):
            return
        cls.shared = Bed()
        cls.addClassCleanup(cls.shared.close)
        try:
            cls.make_shared(cls.shared)
        except BaseException:
            cls.shared.print_logs()
            raise

    @classmethod
    def tearDownClass(cls):
        if cls.shared is not None:
            cls.shared.check_alive()
            cls.shared.stop_all()

    def run(self, result=None):
        result = result or self.defaultTestResult()
        failed_before = len(result.failures) + len(result.errors)
        self.bed = Bed()
        try:
            return super().run(result)
        finally:
            failed = len(result.failures) + len(result.errors) > failed_before
            if failed and self.shared is not None:
                self.shared.print_logs()
            self.bed.close(show_logs=failed)

    def setUp(self):
        # Cleanups run in reverse order: what died by itself is found before the rest is stopped.
        self.addCleanup(self.bed.stop_all)
        self.addCleanup(self.bed.check_alive)
        if self.shared is not None:
            self.addCleanup(self.shared.check_alive)

    def assert_exit(self, result, code):
        self.assertEqual(result.code, code, f'stdout: {result.out!r} stderr: {result.err!r}')

    def assert_fails(self, result, code, *texts):
        """Exit code `code`, nothing on standard output, one line of standard error that holds all the texts."""
        self.assert_exit(result, code)
        for text in texts:
            self.assertIn(text, result.error)
        result.error  # pylint: disable=pointless-statement


def main():
    global _bin
    arguments = sys.argv[1:]
    if '--bin' in arguments:
        at = arguments.index('--bin')
        if at + 1 == len(arguments):
            sys.exit('--bin needs a directory')
        _bin = os.path.abspath(arguments[at + 1])
        del arguments[at:at + 2]
    if not os.access(program('hyperkerneld'), os.X_OK):
        print(f'no hyperkerneld in {_bin}: build first (cmake --preset dev && cmake --build build/dev), or give --bin', file=sys.stderr)
        sys.exit(2)
    seed = int(os.environ.get('HK_SEED') or int.from_bytes(os.urandom(4), 'big'))
    rng.seed(seed)
    print(f'seed: HK_SEED={seed}', file=sys.stderr)

    def close_all():
        for bed in list(_beds):
            bed.close()
    atexit.register(close_all)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sweep()
    hang_report.arm()
    unittest.main(module='__main__', argv=[sys.argv[0], *arguments])
