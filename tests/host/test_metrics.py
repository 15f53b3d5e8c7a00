"""The metrics endpoint of real daemons."""
import http.client
import socket

import hktest

SWAP_MIB = 5


class Metrics(hktest.TestCase):
    def setUp(self):
        super().setUp()
        self.a, self.b = self.bed.cluster('a', 'b')
        self.a.metrics_port, self.a.swap_mib = hktest.free_port(), SWAP_MIB
        self.a.start()
        self.b.start()
        self.a.wait_state('b', 'up')

    def get(self, path, method='GET'):
        connection = http.client.HTTPConnection('127.0.0.1', self.a.metrics_port, timeout=10)
        try:
            connection.request(method, path)
            answer = connection.getresponse()
            return answer.status, answer.getheader('Content-Type'), answer.read().decode()
        finally:
            connection.close()

    def test_names_and_values(self):
        status, content_type, text = self.get('/metrics')
        self.assertEqual(status, 200)
        self.assertTrue(content_type.startswith('text/plain'), content_type)
        kinds = dict(line.split()[2:4] for line in text.splitlines() if line.startswith('# TYPE '))
        expected = {'hyperkernel_build_info': 'gauge', 'hyperkernel_start_time_seconds': 'gauge', 'hyperkernel_peer_up': 'gauge',
                    'hyperkernel_hello_seconds': 'histogram', 'hyperkernel_requests_total': 'counter',
                    'hyperkernel_frame_budget_bytes': 'gauge', 'hyperkernel_frames_reserved_bytes': 'gauge', 'hyperkernel_frames_used_bytes': 'gauge',
                    'hyperkernel_swap_budget_bytes': 'gauge', 'hyperkernel_swap_reserved_bytes': 'gauge', 'hyperkernel_swap_used_bytes': 'gauge'}
        self.assertEqual({k: kinds.get(k) for k in expected}, expected)
        helps = {line.split()[2] for line in text.splitlines() if line.startswith('# HELP ') and len(line.split()) > 3}
        self.assertLessEqual(set(expected), helps)
        metrics = self.a.metrics()
        info = self.a.members()['a']['info']
        self.assertEqual(metrics[f'hyperkernel_build_info{{cluster="test",node="a",node_id="{info["node_id"]}",transport="tcp",version="{info["version"]}"}}'], 1)
        self.assertEqual(metrics['hyperkernel_frame_budget_bytes'], hktest.BUDGET_MIB << 20)
        self.assertEqual(metrics['hyperkernel_swap_budget_bytes'], SWAP_MIB << 20)
        for name in ('frames_reserved', 'swap_reserved', 'swap_used'):
            self.assertEqual(metrics[f'hyperkernel_{name}_bytes'], 0, name)
        self.assertEqual(metrics['hyperkernel_peer_up{peer="b"}'], 1)
        self.assertGreater(metrics['hyperkernel_hello_seconds_count{peer="b"}'], 0)
        self.assertGreater(metrics['hyperkernel_start_time_seconds'], 1.6e9)

    def test_requests_are_counted_with_their_outcome(self):
        def count(method, code):
            return self.a.metrics().get(f'hyperkernel_requests_total{{code="{code}",method="{method}"}}', 0)
        fine, unknown = count('GetNode', 0), count('GetNode', 5)
        self.assert_exit(self.a.hkctl('node', 'show'), 0)
        self.assert_exit(self.a.hkctl('node', 'show', 'nobody'), 1)
        self.assertEqual(count('GetNode', 0), fine + 1)
        self.assertEqual(count('GetNode', 5), unknown + 1)
        self.assertGreater(count('Hello', 0), 0)

    def test_a_peer_goes_and_returns(self):
        def peer_up():
            return self.a.metrics()['hyperkernel_peer_up{peer="b"}']
        self.assertEqual(peer_up(), 1)
        self.b.kill()
        hktest.wait_for(lambda: peer_up() == 0, 'peer_up is 0')
        # What the metric says is what operators are told.
        self.a.wait_state('b', 'unreachable')
        self.assertGreater(self.a.metrics()['hyperkernel_hello_failures_total{peer="b"}'], 0)
        self.b.start()
        hktest.wait_for(lambda: peer_up() == 1, 'peer_up is 1')

    def test_other_requests(self):
        self.assertEqual(self.get('/')[0], 404)
        self.assertEqual(self.get('/metrics/../../etc/passwd')[0], 404)
        self.assertIn(self.get('/metrics', 'DELETE')[0], range(400, 600))

    def test_a_silent_connection_does_not_stop_scrapes(self):
        with socket.create_connection(('127.0.0.1', self.a.metrics_port)), socket.create_connection(('127.0.0.1', self.a.metrics_port)):
            self.assertIn('hyperkernel_start_time_seconds', self.a.metrics())
            # Nor the daemon's end.
            self.assertEqual(self.a.stop(), 0)

    def test_none(self):
        self.assertEqual(self.b.members()['b']['info']['metrics_address'], 'none')


if __name__ == '__main__':
    hktest.main()
