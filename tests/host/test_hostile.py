"""Strangers at a daemon's ports: silent, noisy, oversized, many. The daemon answers on, and gets back what they took."""
import contextlib
import resource
import socket
import threading
import time

import hktest

STRANGERS = 2000
# systemd's soft limit: strangers outnumber it, so a daemon that does not raise it runs out.
SOFT_LIMIT = 1024
MIB = 1 << 20


class Upload:
    """A GetNode request over plain HTTP/2 (RFC 9113), with whatever length it likes to promise."""

    def __init__(self, address, promised):
        self.socket = socket.create_connection(address, timeout=hktest.TIMEOUT)
        self.windows = {0: 65535, 1: 65535}
        self.received = b''
        self.answer = None

        def literal(text):  # RFC 7541, 5.2: not Huffman coded, shorter than 127 bytes
            return bytes([len(text)]) + text
        headers = ((b':method', b'POST'), (b':scheme', b'http'), (b':path', b'/hk.v1.Admin/GetNode'), (b':authority', b'x'), (b'te', b'trailers'),
                   (b'content-type', b'application/grpc'))
        self.socket.sendall(b'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n')
        self.frame(4, 0, 0, b'')
        self.frame(1, 4, 1, b''.join(b'\0' + literal(name) + literal(value) for name, value in headers))
        self.pending = b'\0' + promised.to_bytes(4, 'big')

    def frame(self, kind, flags, stream, payload):
        self.socket.sendall(len(payload).to_bytes(3, 'big') + bytes([kind, flags]) + stream.to_bytes(4, 'big') + payload)

    def send(self, limit):
        """Sends up to `limit` bytes, as fast as the other side lets it; returns what it ends with: trailers, a reset, or ''."""
        with self.socket:
            while self.answer is None:
                size = min(self.windows[0], self.windows[1], 16384, limit)
                if size > 0:
                    payload = self.pending + b'x' * (size - len(self.pending))
                    self.pending = b''
                    try:
                        self.frame(0, 0, 1, payload)
                    except OSError:
                        return b''
                    limit -= size
                    self.windows[0] -= size
                    self.windows[1] -= size
                    self.socket.setblocking(False)
                elif limit == 0:
                    self.socket.settimeout(2)
                else:
                    self.socket.settimeout(hktest.TIMEOUT)
                try:
                    self.read()
                except BlockingIOError:
                    pass
                except OSError:
                    return b''
                self.socket.settimeout(hktest.TIMEOUT)
            return self.answer

    def read(self):
        more = self.socket.recv(65536)
        if not more:
            self.answer = b''
        self.received += more
        while len(self.received) >= 9 and len(self.received) >= 9 + int.from_bytes(self.received[:3], 'big'):
            size = int.from_bytes(self.received[:3], 'big')
            kind, flags, stream = self.received[3], self.received[4], int.from_bytes(self.received[5:9], 'big')
            payload, self.received = self.received[9:9 + size], self.received[9 + size:]
            if kind == 8 and stream in self.windows:
                self.windows[stream] += int.from_bytes(payload, 'big')
            elif kind == 4 and not flags & 1:
                for at in range(0, size, 6):
                    if payload[at:at + 2] == b'\0\4':
                        self.windows[1] += int.from_bytes(payload[at + 2:at + 6], 'big') - 65535
                self.socket.settimeout(hktest.TIMEOUT)
                self.frame(4, 1, 0, b'')
            elif kind == 6 and not flags & 1:
                self.socket.settimeout(hktest.TIMEOUT)
                self.frame(6, 1, 0, payload)
            elif kind in (1, 3, 7):  # headers, reset, goaway
                self.answer = (self.answer or b'') + payload


class Hostile(hktest.TestCase):
    @classmethod
    def setUpClass(cls):
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if hard < STRANGERS + 1000:
            raise hktest.unittest.SkipTest(f'needs {STRANGERS + 1000} file descriptors, the hard limit is {hard}')
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        super().setUpClass()

    @classmethod
    def make_shared(cls, bed):
        cls.a = bed.node('a', tcp=True, metrics_port=hktest.free_port())
        # The daemon limits its arenas itself (main.cc).
        cls.a.start(prefix=['prlimit', f'--nofile={SOFT_LIMIT}:'])
        cls.admin = ('127.0.0.1', cls.a.tcp_port)
        cls.metrics = ('127.0.0.1', cls.a.metrics_port)
        # Threads and pools that the first requests make are not the strangers' doing.
        for _ in range(10):
            assert cls.a.hkctl('node', 'list').code == 0
            assert hktest.hkctl(cls.a.tcp_endpoint, 'node', 'list').code == 0
            cls.a.metrics()
        cls.crowd(cls.admin, STRANGERS)
        hktest.wait_for(lambda: cls.a.fd_count() < 100, 'the first crowd is gone')
        cls.a.metrics()
        cls.fds, cls.rss = cls.a.fd_count(), cls.a.rss_bytes()

    @staticmethod
    def crowd(address, count):
        """Connects `count` times and leaves again."""
        with contextlib.ExitStack() as stack:
            for _ in range(count):
                stack.enter_context(socket.create_connection(address))

    def assert_serves(self):
        for endpoint in (self.a.endpoint, self.a.tcp_endpoint):
            self.assert_exit(hktest.hkctl(endpoint, 'node', 'list'), 0)

    def assert_recovers(self):
        """Answers on every address, and holds no more than before, but for what allocators keep."""
        self.assert_serves()
        hktest.wait_for(lambda: self.a.fd_count() <= self.fds + 20, f'descriptors near {self.fds} again')
        self.assertIn('hyperkernel_start_time_seconds', self.a.metrics())
        if not self.a.is_sanitized():  # keeps what is freed, to find who uses it
            hktest.wait_for(lambda: self.a.rss_bytes() < self.rss + 24 * MIB, f'memory near {self.rss >> 20} MiB again')

    def test_silent_connections(self):
        with contextlib.ExitStack() as stack:
            for _ in range(STRANGERS):
                stack.enter_context(socket.create_connection(self.admin, timeout=10))
            hktest.wait_for(lambda: self.a.fd_count() > self.fds + STRANGERS * 3 // 4, 'the strangers are let in')
            self.assert_serves()
            print(f'with {STRANGERS} silent connections: {self.a.fd_count()} descriptors, {self.a.rss_bytes() >> 20} MiB (before: {self.fds}, '
                  f'{self.rss >> 20} MiB)', file=hktest.sys.stderr)
            # They need not leave by themselves: who says nothing is shown out.
            self.assert_recovers()
        self.assert_recovers()

    def test_silent_connections_to_the_socket(self):
        with contextlib.ExitStack() as stack:
            for _ in range(200):
                client = stack.enter_context(socket.socket(socket.AF_UNIX))
                client.settimeout(10)
                client.connect(self.a.socket)
            self.assert_serves()
        self.assert_recovers()

    def test_silent_connections_to_metrics(self):
        with contextlib.ExitStack() as stack:
            for _ in range(300):
                with contextlib.suppress(OSError):
                    client = stack.enter_context(socket.socket())
                    client.settimeout(0.2)
                    client.connect(self.metrics)
            self.assert_serves()
        self.assert_recovers()

    def throw(self, address, data):
        """Sends bytes and waits for the other side to close, or for it to say it waits for more."""
        with contextlib.suppress(OSError), socket.create_connection(address, timeout=0.3) as client:
            client.sendall(data)
            while client.recv(65536):
                pass

    def test_random_bytes(self):
        preface = b'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n'
        settings = b'\0\0\0\4\0\0\0\0\0'
        for i in range(60):
            noise = hktest.rng.randbytes(hktest.rng.choice((1, 9, 100, 5000, 100000)))
            self.throw(self.admin, (b'', preface, preface + settings)[i % 3] + noise)
        for i in range(30):
            noise = hktest.rng.randbytes(hktest.rng.choice((1, 100, 20000)))
            self.throw(self.metrics, (b'', b'GET /metrics HTTP/1.1\r\n', b'POST /metrics HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n')[i % 3] + noise)
        self.throw(self.metrics, b'GET /' + b'x' * 2 * MIB)
        self.throw(self.metrics, b'GET /metrics HTTP/1.1\r\n' + b'X-Header: y\r\n' * 100000)
        self.assert_recovers()

    def test_a_frame_that_promises_too_much(self):
        preface = b'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n' + b'\0\0\0\4\0\0\0\0\0'
        for length, kind in ((0xffffff, 0), (0xffffff, 1), (0xffffff, 4), (1 << 20, 9)):
            self.throw(self.admin, preface + length.to_bytes(3, 'big') + bytes([kind, 0]) + (1).to_bytes(4, 'big') + b'z' * 100000)
        self.assert_recovers()

    def test_a_request_of_two_mebibytes(self):
        self.assertIn(b'larger than max', Upload(self.admin, promised=2 * MIB).send(2 * MIB + 5))
        self.assert_recovers()

    def test_requests_that_never_end(self):
        # A daemon of its own: what the allocator keeps afterwards is bounded, but not little.
        victim = self.bed.node('v', tcp=True).start()
        address = ('127.0.0.1', victim.tcp_port)
        before, fds = victim.rss_bytes(), victim.fd_count()
        stop = threading.Event()

        def attack():
            while not stop.is_set():
                with contextlib.suppress(OSError):
                    Upload(address, promised=0xffffffff).send(256 * MIB)
        attackers = [threading.Thread(target=attack) for _ in range(4)]
        for attacker in attackers:
            attacker.start()
        try:
            # Under attack a request may be turned away; it must not be that none gets through.
            results, peak = [], 0
            for _ in range(20):
                results.append(victim.hkctl('node', 'list', '--timeout', '5s').code)
                peak = max(peak, victim.rss_bytes())
        finally:
            stop.set()
            for attacker in attackers:
                attacker.join()
        print(f'4 uploads without end: {results.count(0)} of 20 requests served, memory grew by at most {(peak - before) >> 20} MiB', file=hktest.sys.stderr)
        self.assertIn(0, results)
        self.assertLess(peak - before, 256 * MIB)
        hktest.wait_for(lambda: victim.fd_count() <= fds + 20, 'the attackers are forgotten')
        self.assert_exit(hktest.hkctl(victim.tcp_endpoint, 'node', 'list'), 0)

    def test_a_long_name(self):
        # Longer than what gRPC lets a status hold: still the answer to the question.
        result = self.a.hkctl('node', 'show', 'x' * 100000)
        self.assert_fails(result, 1, 'no node')
        self.assert_recovers()

    def test_many_requests_at_once(self):
        start = time.monotonic()
        argv = [hktest.program('hkctl'), '--endpoint', self.a.tcp_endpoint, 'node', 'list', '-o', 'json']
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(hktest.subprocess.Popen(argv, stdout=hktest.subprocess.DEVNULL, stderr=hktest.subprocess.PIPE,
                                                                   env=hktest.clean_environment())) for _ in range(60)]
            # Served, or told that it is too busy; nobody hangs.
            codes = [client.wait(hktest.TIMEOUT) for client in clients]
        self.assertLessEqual(set(codes), {0, 1}, f'after {time.monotonic() - start:.1f} s')
        self.assertIn(0, codes)
        self.assert_recovers()


if __name__ == '__main__':
    hktest.main()
