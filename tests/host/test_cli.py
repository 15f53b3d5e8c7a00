"""hkctl against real daemons: exit codes, options, output forms, help, completion."""
import pathlib
import os
import shlex
import socket
import subprocess
import time

import hktest

VM = ('create', 'list', 'show', 'delete', 'start', 'stop', 'reset', 'pause', 'unpause', 'renew', 'wait', 'console', 'log', 'exec')
SPACE = ('create', 'list', 'show', 'delete', 'read', 'write', 'map', 'top')
COMMANDS = [(), ('node',), ('node', 'list'), ('node', 'show'), ('node', 'probe'), ('version',), ('completion',), ('completion', 'bash'),
            ('vm',), *(('vm', command) for command in VM), ('space',), *(('space', command) for command in SPACE)]
HERE = 'unix:/nonexistent/admin.sock'


class Cli(hktest.TestCase):
    @classmethod
    def make_shared(cls, bed):
        cls.a, cls.b = bed.cluster('a', 'b', tcp=True)
        for node in (cls.a, cls.b):
            node.start()
        cls.a.wait_state('b', 'up')
        cls.b.wait_state('a', 'up')

    def test_every_command_answers_in_both_forms(self):
        for command, text in ((('node', 'list'), 'NAME'), (('space', 'list'), 'NAME'), (('node', 'show'), 'Name:'), (('node', 'show', 'b'), 'Name:'), (('version',), 'hkctl '),
                              (('node', 'probe'), ''), (('node', 'probe', 'b'), '')):
            with self.subTest(command=command):
                table = self.a.hkctl(*command)
                self.assert_exit(table, 0)
                self.assertEqual(table.err, '')
                self.assertIn(text, table.out)
                for line in table.out.splitlines():
                    self.assertEqual(line, line.rstrip())
                for arguments in ((*command, '-o', 'json'), ('--output', 'json', *command), ('--output=json', *command)):
                    result = self.a.hkctl(*arguments)
                    self.assert_exit(result, 0)
                    self.assertIsInstance(result.json(), dict)

    def test_probe_names_the_node(self):
        self.assertEqual(self.a.hkctl('node', 'probe', '-o', 'json').json()['node'], 'a')
        self.assertEqual(self.a.hkctl('node', 'probe', 'a', '-o', 'json').json()['node'], 'a')
        self.assertEqual(self.a.hkctl('node', 'probe', 'b', '-o', 'json').json()['node'], 'b')

    def test_version(self):
        both = self.a.hkctl('version', '-o', 'json').json()
        self.assertEqual(both['client'], both['daemon'])
        self.assertEqual(both['node'], 'a')
        alone = hktest.hkctl(HERE, 'version', '--client')
        self.assert_exit(alone, 0)
        self.assertEqual(alone.out, f'hkctl {both["client"]}\n')
        self.assertEqual(hktest.hkctl(None, '--version').out, f'hkctl {both["client"]}\n')

    def test_the_cluster_says_no(self):
        self.assert_fails(self.a.hkctl('node', 'show', 'nobody'), 1, "no node 'nobody'", 'hkctl node list')
        self.assert_fails(self.a.hkctl('node', 'probe', 'nobody'), 1, "no node 'nobody'")
        # What the terminal must not see comes back harmless.
        result = self.a.hkctl('node', 'show', 'x\x1b[2J\ny')
        self.assert_fails(result, 1, 'x?[2J?y')

    def test_usage(self):
        for arguments, text in (((), 'subcommand'), (('node',), 'subcommand'), (('nod', 'list'), "'nod'"), (('node', 'lis'), "'lis'"),
                                (('--nonsense', 'version'), '--nonsense'), (('node', 'list', '--nonsense'), '--nonsense'),
                                (('node', 'list', 'extra'), 'extra'), (('node', 'show', 'a', 'b'), 'b'), (('-o', 'xml', 'version'), 'xml'),
                                (('--timeout', '5', 'version'), 'unit'), (('--timeout', '0s', 'version'), '--timeout'),
                                (('--timeout', 'soon', 'version'), '--timeout'), (('--timeout', '-5s', 'version'), '--timeout'),
                                (('--timeout', '25h', 'version'), '--timeout'), (('--timeout', '9999999m', 'version'), '--timeout'),
                                (('two\nlines',), 'two?lines'), (('version', '--endpoint'), '--endpoint')):
            with self.subTest(arguments=arguments):
                result = hktest.hkctl(None, *arguments)
                self.assert_fails(result, 2, text, '--help')
                self.assertEqual(result.out, '')

    def test_nothing_there(self):
        for endpoint in (HERE, f'127.0.0.1:{hktest.free_port()}', 'no-such-host.invalid:7469'):
            with self.subTest(endpoint=endpoint):
                self.assert_fails(hktest.hkctl(endpoint, 'node', 'list'), 3, endpoint, 'systemctl status hyperkerneld')

    def test_endpoints_that_are_none(self):
        for endpoint in ('', 'foo', '10.0.0.1', 'unix:relative', 'unix:', 'a:0', 'a:65536', 'a:b', 'http://a:1', ':1'):
            with self.subTest(endpoint=endpoint):
                self.assert_fails(hktest.hkctl(endpoint, 'version'), 2, 'is not unix:/PATH or HOST:PORT')

    def test_output_that_cannot_be_written(self):
        with open('/dev/full', 'w', encoding='ascii') as full:
            done = subprocess.run([hktest.program('hkctl'), 'version', '--client'], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
        self.assertEqual((done.returncode, done.stderr), (1, 'hkctl: cannot write to standard output\n'))

    def test_endpoints(self):
        self.assertEqual(hktest.hkctl(None, 'version', '-o', 'json', env={'HKCTL_ENDPOINT': self.b.endpoint}).json()['node'], 'b')
        self.assertEqual(hktest.hkctl(self.a.endpoint, 'version', '-o', 'json', env={'HKCTL_ENDPOINT': self.b.endpoint}).json()['node'], 'a')
        self.assertEqual(hktest.hkctl(self.a.tcp_endpoint, 'version', '-o', 'json').json()['node'], 'a')
        # A bare debootstrap root has no /etc/hosts.
        if os.path.exists('/etc/hosts') and 'localhost' in pathlib.Path('/etc/hosts').read_text(encoding='utf-8'):
            self.assertEqual(hktest.hkctl(f'localhost:{self.a.tcp_port}', 'version', '-o', 'json').json()['node'], 'a')
        else:
            print('localhost is not in /etc/hosts: the endpoint by host name is not tried here')
        # A proxy in the environment is not for cluster addresses.
        for name in ('http_proxy', 'grpc_proxy', 'https_proxy'):
            self.assert_exit(hktest.hkctl(self.a.tcp_endpoint, 'version', env={name: 'http://127.0.0.1:9'}), 0)

    def test_a_daemon_that_never_answers(self):
        with socket.create_server(('127.0.0.1', 0)) as silent:
            endpoint = f'127.0.0.1:{silent.getsockname()[1]}'
            for text in ('300ms', '1s'):
                start = time.monotonic()
                self.assert_fails(hktest.hkctl(endpoint, 'node', 'list', '--timeout', text), 3, f'no answer within {text}', endpoint)
                self.assertGreater(time.monotonic() - start, 0.25)
                # Not its default of 10 s; how near to the deadline is the machine's business.
                self.assertLess(time.monotonic() - start, 8)

    def test_a_peer_that_is_gone(self):
        gone = self.bed.node('c', peers=[('d', HERE)]).start()
        self.assert_fails(gone.hkctl('node', 'probe', 'd'), 1, "node 'd'")

    def test_every_help_has_examples(self):
        for command in COMMANDS:
            with self.subTest(command=command):
                result = hktest.hkctl(None, *command, '--help')
                self.assert_exit(result, 0)
                self.assertEqual(result.err, '')
                self.assertRegex(result.out, r'Examples:\n  \S*.*hkctl ' + ' '.join(command[:1]))
                # Each example is a command line that hkctl itself understands.
                for line in result.out.split('Examples:\n')[1].splitlines():
                    if not line.startswith('  hkctl'):
                        continue
                    words = shlex.split(line.split(' -- ')[0].split('|')[0].split('>')[0])[1:]
                    self.assert_exit(hktest.hkctl(None, *words, '--help'), 0)

    def complete(self, *words):
        """What bash offers for the last of the words."""
        script = ('source <("$HKCTL" completion bash) || exit 9; COMP_WORDS=(hkctl "$@"); COMP_CWORD=$#; _hkctl; printf "%s\\n" "${COMPREPLY[@]}"')
        result = hktest.run(['bash', '--norc', '-c', script, 'bash', *words], env=hktest.clean_environment(HKCTL=hktest.program('hkctl')))
        self.assert_exit(result, 0)
        self.assertEqual(result.err, '')
        return result.out.split()

    def test_bash_completion(self):
        self.assertLessEqual({'node', 'version', 'completion', '--endpoint', '--timeout', '--output'}, set(self.complete('')))
        self.assertEqual(self.complete('no'), ['node'])
        self.assertLessEqual({'list', 'show', 'probe'}, set(self.complete('node', '')))
        self.assertEqual(self.complete('node', 'l'), ['list'])
        self.assertEqual(self.complete('--endpoint', 'unix:/x', 'node', 'sh'), ['show'])
        self.assertEqual(self.complete('--timeout', '5s', '-o', 'json', 'ver'), ['version'])
        self.assertEqual(self.complete('node', 'list', '-o', ''), ['table', 'json', 'textproto'])
        self.assertLessEqual(set(VM), set(self.complete('vm', '')))
        self.assertEqual(self.complete('vm', 'log', 'g', '--channel', ''), ['serial', 'virtio'])
        self.assertEqual(self.complete('vm', 'log', '-f', 'g', '--ta'), ['--tail'])
        self.assertEqual(self.complete('vm', 'wait', '--for', 'cra'), ['crashed'])
        self.assertEqual(self.complete('vm', 'wait', 'g', '--for', 'running', '--ti'), ['--timeout'])
        self.assertEqual(self.complete('vm', 'exec', 'g', '--', ''), [])
        self.assertEqual(self.complete('--output', 'j'), ['json'])
        self.assertEqual(self.complete('node', 'list', '--endp'), ['--endpoint'])
        self.assertEqual(self.complete('version', '--cl'), ['--client'])
        self.assertEqual(self.complete('zzz'), [])
        file = os.path.join(self.bed.directory, 'ca.crt')
        with open(file, 'w', encoding='utf-8'):
            pass
        self.assertEqual(self.complete('--tls-ca', file[:-3]), [file])
        self.assertEqual(self.complete('vm', 'create', '-f', file[:-3]), [file])
        self.assertEqual(self.complete('vm', 'create', '--file', file, '--dry'), ['--dry-run'])
        # Bash's own registration.
        result = hktest.run(['bash', '--norc', '-c', 'source <("$HKCTL" completion bash); complete -p hkctl'],
                            env=hktest.clean_environment(HKCTL=hktest.program('hkctl')))
        self.assertEqual(result.out, 'complete -F _hkctl hkctl\n')


if __name__ == '__main__':
    hktest.main()
