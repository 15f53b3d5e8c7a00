"""Daemons that join, stop, die, freeze, return, and refuse one another."""
import datetime
import os
import signal
import socket
import subprocess
import time

import hktest


def seconds(timestamp):
    return datetime.datetime.fromisoformat(timestamp.split('.')[0].rstrip('Z') + '+00:00').timestamp()


class Cluster(hktest.TestCase):
    def start(self, *names, **fields):
        nodes = self.bed.cluster(*names, **fields)
        for node in nodes:
            node.start()
        for node in nodes:
            for other in nodes:
                if other is not node:
                    node.wait_state(other.name, 'up')
        return nodes

    def test_three_daemons_join(self):
        nodes = self.start('a', 'b', 'c')
        for node in nodes:
            members = node.members()
            self.assertEqual(list(members), [node.name] + [n.name for n in nodes if n is not node])
            for name, member in members.items():
                info = member['info']
                self.assertEqual(member['state'], 'MEMBER_STATE_SELF' if name == node.name else 'MEMBER_STATE_UP')
                self.assertEqual(info['name'], name)
                self.assertEqual(info['cluster'], 'test')
                self.assertEqual(info['transport'], 'tcp')
                self.assertEqual(info['kernel'], os.uname().release)
                self.assertEqual(info['cpus'], os.sysconf('SC_NPROCESSORS_ONLN'))
                self.assertGreater(int(info['memory_total_bytes']), 1 << 28)
                self.assertEqual(int(info['frame_budget_bytes']), hktest.BUDGET_MIB << 20)
                self.assertRegex(info['version'], r'^\d+\.\d+\.\d+')
        ids = {m['info']['node_id'] for m in nodes[0].members().values()}
        self.assertEqual(len(ids), 3)
        a, b, _ = nodes
        table = a.hkctl('node', 'list')
        self.assert_exit(table, 0)
        rows = table.out.splitlines()
        self.assertEqual(rows[0].split(), ['NAME', 'STATE', 'VERSION', 'CPU', 'MEMORY', 'FRAMES', 'KERNEL', 'TRANSPORT', 'DATA'])
        self.assertRegex(rows[1], r'^a +up \(self\) +\S+ +\d+ x .* of 16 MiB +' + hktest.re.escape(os.uname().release) + r' +tcp +-$')
        self.assertRegex(rows[2], r'^b +up +')
        self.assertEqual(a.hkctl('node', 'show', 'b', '-o', 'json').json()['info']['node_id'], b.members()['b']['info']['node_id'])
        text = a.hkctl('node', 'show', 'b').out
        self.assertRegex(text, r'State: +up\n')
        self.assertRegex(text, rf'Reached at: +{b.endpoint}\n')
        self.assertRegex(text, rf'Process: +{b.process.pid}\n')
        self.assertRegex(text, r'Frames: +\S.* of 16 MiB, 0 reserved\nSwap: +none\n')

    def test_a_stopped_node_is_unreachable(self):
        a, b, c = self.start('a', 'b', 'c')
        before = time.time()
        self.assertEqual(b.stop(), 0)
        self.assertFalse(os.path.exists(b.socket))
        self.assertRegex(b.log_text(), r'msg=stopping signal=SIGTERM\n(.*\n)*.*msg=stopped\n')
        for node in (a, c):
            member = node.wait_state('b', 'unreachable')
            # Last heard of about when it went; never after it was seen to be gone.
            self.assertGreaterEqual(seconds(member['since']), before - 10)
            self.assertLessEqual(seconds(member['since']), time.time())
            self.assertTrue(member['reason'])
            self.assertEqual(member['info']['name'], 'b')
            self.assertRegex(node.hkctl('node', 'list').out, r'\nb +unreachable since \d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ \(\S+\) ')
        self.assertEqual(a.state_of('c'), 'up')
        # The lock went with the process: nothing to clean up.
        b.start()
        a.wait_state('b', 'up')

    def test_sigint_stops_as_well(self):
        a = self.bed.node('a').start()
        a.signal(signal.SIGINT)
        self.assertEqual(a.process.wait(hktest.TIMEOUT), 0)
        self.assertIn('signal=SIGINT', a.log_text())

    def test_a_killed_node_returns_as_itself(self):
        a, b = self.start('a', 'b')
        for _ in range(50 if hktest.SOAK else 2):
            identity = b.members()['b']['info']
            b.kill()
            self.assertTrue(os.path.exists(b.socket), 'a killed daemon cannot remove its socket')
            a.wait_state('b', 'unreachable')
            b.start()
            info = a.wait_state('b', 'up')['info']
            self.assertEqual(info['node_id'], identity['node_id'])
            self.assertEqual(int(info['pid']), b.process.pid)
            self.assertNotEqual(info['pid'], identity['pid'])
            b.wait_state('a', 'up')

    def test_every_stop_is_clean(self):
        # With a peer that is not there: a failing connection is torn down while the daemon stops.
        a = self.bed.cluster('a', 'b')[0]
        for _ in range(1000 if hktest.SOAK else 15):
            a.start()
            self.assertEqual(a.stop(), 0)

    @staticmethod
    def reason(node):
        return node.members()['b']['reason']

    def test_a_frozen_node_comes_back(self):
        a, b = self.start('a', 'b')
        pid = b.process.pid
        b.signal(signal.SIGSTOP)
        # Not "Deadline Exceeded", and not the moment before, when the last hello is still under way.
        hktest.wait_for(lambda: 'timed out' in self.reason(a) or 'no answer' in self.reason(a), 'the reason is silence')
        a.wait_state('b', 'unreachable')
        # The peer is named, not the daemon that was asked, and hkctl does not wait for ever.
        self.assert_fails(a.hkctl('node', 'probe', 'b', '--timeout', '2s'), 1, "node 'b'")
        # Its socket still accepts: a second daemon must not take it.
        self.assert_fails(b.hkctl('version', '--timeout', '1s'), 3, 'no answer within 1s')
        b.signal(signal.SIGCONT)
        self.assertEqual(int(a.wait_state('b', 'up')['info']['pid']), pid)
        b.wait_state('a', 'up')

    def test_another_cluster_is_rejected_on_both_sides(self):
        a, b = self.bed.cluster('a', 'b')
        b.cluster = 'other'
        a.start()
        b.start()
        for node, peer, mine, theirs in ((a, 'b', 'test', 'other'), (b, 'a', 'other', 'test')):
            member = node.wait_state(peer, 'rejected')
            self.assertIn('refuses this node, saying: ', member['reason'])
            self.assertIn(f"'{mine}'", member['reason'])
            self.assertIn(f"'{theirs}'", member['reason'])
            self.assertIn(member['reason'], node.hkctl('node', 'list').out)
            self.assertIn(member['reason'], node.hkctl('node', 'show', peer).out)
            self.assertIn('peer is rejected', node.log_text())

    def test_a_wrong_name_at_an_address_is_rejected(self):
        a, b = self.bed.cluster('a', 'b')
        a.peers = [('x', b.endpoint)]
        a.start()
        b.start()
        reason = a.wait_state('x', 'rejected')['reason']
        self.assertIn("'b'", reason)
        self.assertIn("'x'", reason)
        self.assertIn("check the peer's address", reason)
        # The other side asks for 'a', finds 'a', and hears that 'a' does not know it.
        self.assertIn("'b' is not in the peer list", b.wait_state('a', 'rejected')['reason'])

    def test_an_unknown_fourth_node_is_refused(self):
        nodes = self.start('a', 'b', 'c')
        fourth = self.bed.node('d', peers=[(n.name, n.endpoint) for n in nodes]).start()
        for node in nodes:
            self.assertIn(f"node 'd' is not in the peer list of node '{node.name}'", fourth.wait_state(node.name, 'rejected')['reason'])
            self.assertNotIn('d', node.members())

    def test_a_data_directory_belongs_to_one_name(self):
        a = self.bed.node('a').start()
        self.assertEqual(a.stop(), 0)
        other = self.bed.node('z', data_directory=a.data_directory)
        line = other.fails_to_start()
        for text in ('data_directory', a.data_directory, "node 'a'", "node 'z'"):
            self.assertIn(text, line)
        elsewhere = self.bed.node('a', data_directory=a.data_directory, cluster='other')
        self.assertIn("cluster 'other'", elsewhere.fails_to_start())
        # A damaged identity is not silently replaced by a new one.
        with open(os.path.join(a.data_directory, 'identity.textproto'), 'r+b') as file:
            file.truncate(20)
        line = self.bed.node('a', data_directory=a.data_directory).fails_to_start()
        self.assertIn('damaged', line)
        self.assertIn('identity.textproto', line)

    def test_what_another_daemon_holds_is_refused(self):
        a = self.bed.node('a', tcp=True, metrics_port=hktest.free_port()).start()
        holder = rf'hyperkerneld pid {a.process.pid} \(node a, since \d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\dZ\)'
        self.assertRegex(self.bed.node('a', data_directory=a.data_directory).fails_to_start(), 'data_directory: .*' + holder)
        self.assertRegex(self.bed.node('b', frame_directory=a.frame_directory).fails_to_start(), r'frame_store.directory: .*' + holder)
        self.assertRegex(self.bed.node('b', data_port=a.data_port).fails_to_start(), rf'listen.data: .*:{a.data_port}.*in use')
        self.assertRegex(self.bed.node('b', metrics_port=a.metrics_port).fails_to_start(), rf'listen.metrics: .*:{a.metrics_port}')
        self.assertRegex(self.bed.node('b', socket=a.socket).fails_to_start(), rf'listen.admin: .*{a.socket}.*another process')
        second = self.bed.node('b', tcp=True)
        second.tcp_port = a.tcp_port
        self.assertRegex(second.fails_to_start(), rf'listen.admin: .*:{a.tcp_port}')
        self.assertFalse(os.path.exists(second.socket), 'a daemon that did not start left its socket')
        # The first has not noticed, and what was refused starts once it has ports of its own.
        self.assertEqual(a.hkctl('version').code, 0)
        second.tcp_port = hktest.free_port()
        second.start()

    def test_a_file_in_the_place_of_the_socket_is_not_removed(self):
        a = self.bed.node('a')
        with open(a.socket, 'w', encoding='utf-8') as file:
            file.write('precious')
        self.assertIn(a.socket, a.fails_to_start())
        with open(a.socket, encoding='utf-8') as file:
            self.assertEqual(file.read(), 'precious')

    def test_a_live_socket_of_another_kind_is_not_removed(self):
        node = self.bed.node('a')
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
            other.bind(node.socket)
            self.assertIn('in use by something else', node.fails_to_start())
            self.assertTrue(os.path.exists(node.socket))

    def test_a_refused_daemon_leaves_the_others_frames_alone(self):
        first = self.start('a')[0]
        before = os.statvfs(first.frame_directory).f_blocks
        second = self.bed.node('b', frame_directory=first.frame_directory)
        second.budget_mib = 4 * hktest.BUDGET_MIB
        self.assertIn('is in use by hyperkerneld pid', second.fails_to_start())
        self.assertEqual(os.statvfs(first.frame_directory).f_blocks, before)

    def test_closed_standard_streams_do_not_become_files(self):
        node = self.bed.node('a')
        node.start(prefix=['bash', '-c', 'exec "$@" <&- >&- 2>&-', '-'])
        for fd in range(3):
            self.assertEqual(os.readlink(f'/proc/{node.process.pid}/fd/{fd}'), '/dev/null')

    def test_a_step_of_the_wall_clock_does_not_stop_the_hellos(self):
        a, b, c = self.bed.cluster('a', 'b', 'c')
        step = os.path.join(self.bed.directory, 'step')
        for node in (a, b, c):
            node.start(prefix=['env', f'LD_PRELOAD={hktest.program("clock_step.so")}', f'CLOCK_STEP_FILE={step}'] if node is a else ())
        for name in 'bc':
            a.wait_state(name, 'up')
        # A hello to a frozen peer is in flight when the clock steps: its end comes after the step and before the next tick.
        c.signal(signal.SIGSTOP)
        with open(step, 'w', encoding='ascii') as file:
            file.write('-3600')
        a.wait_state('c', 'unreachable')
        self.assertEqual(a.state_of('b'), 'up')
        c.signal(signal.SIGCONT)
        a.wait_state('c', 'up')
        self.assertEqual(a.state_of('b'), 'up')

    def test_probes_are_not_queued(self):
        node = self.start('a')[0]
        probes = [subprocess.Popen([hktest.program('hkctl'), '--endpoint', node.endpoint, 'node', 'probe'], stdout=subprocess.DEVNULL,
                                   stderr=subprocess.PIPE, text=True) for _ in range(20)]
        ends = [(probe.communicate()[1], probe.returncode) for probe in probes]
        self.assertTrue(any(code == 0 for _, code in ends))
        for text, code in ends:
            self.assertTrue(code == 0 or 'a probe is running already' in text, (code, text))

    def test_the_socket_is_its_users_only(self):
        a = self.bed.node('a').start()
        self.assertEqual(os.stat(a.socket).st_mode & 0o777, 0o660)
        self.assertEqual(os.stat(a.data_directory).st_mode & 0o777, 0o700)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(a.socket)

    def test_frames_are_memory(self):
        a = self.bed.node('a').start()
        if os.getuid() == 0:
            self.assertTrue(hktest.is_mounted(a.frame_directory))
            self.assertEqual(a.members()['a']['info']['warnings'], [])
        else:
            self.assertIn('shares a tmpfs', a.hkctl('node', 'list').out)
        self.assertEqual(a.stop(), 0)
        # It outlives the daemon, and the next one takes it over instead of mounting over it.
        a.start()
        with open('/proc/self/mounts', encoding='utf-8') as mounts:
            self.assertLessEqual(sum(line.split()[1] == a.frame_directory for line in mounts), 1)


if __name__ == '__main__':
    hktest.main()
