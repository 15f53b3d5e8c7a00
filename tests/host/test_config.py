"""Bad configurations and command lines through the real hyperkerneld: one line, exit code 2, nothing touched."""
import os

import hktest

GOOD = {
    'name': '"a"',
    'listen': '{ admin: "unix:%(dir)s/run/admin.sock" data: "127.0.0.1:7470" metrics: "none" }',
    'data_directory': '"%(dir)s/data"',
    'frame_store': '{ directory: "%(dir)s/frames" budget_mib: 16 }',
}

# What is changed in GOOD (a field's new text, or more text under ''), what the line must name, what it must say.
BAD = [
    ({'name': '"A"'}, 'name:', '[a-z0-9-]'),
    ({'name': '"%s"' % ('x' * 64)}, 'name:', '[a-z0-9-]{1,63}'),
    ({'name': '"a.b"'}, 'name:', 'a.b'),
    ({'name': '"two\\nlines"'}, 'name:', '[a-z0-9-]'),
    ({'cluster': '"my cluster"'}, 'cluster:', 'my cluster'),
    ({'data_directory': '"relative"'}, 'data_directory:', 'absolute'),
    ({'data_directory': '"/"'}, 'data_directory:', 'root directory'),
    ({'data_directory': '"%(dir)s/../x"'}, 'data_directory:', 'plain path'),
    ({'data_directory': '"%(dir)s/data/"'}, 'data_directory:', 'plain path'),
    ({'data_directory': '"%(dir)s/frames/data"'}, 'data_directory:', 'memory'),
    ({'frame_store': '{ directory: "frames" }'}, 'frame_store.directory:', 'absolute'),
    ({'frame_store': '{ directory: "%(dir)s/frames" budget_mib: 0 }'}, 'frame_store.budget_mib:', '0 is not from 16'),
    ({'frame_store': '{ directory: "%(dir)s/frames" budget_mib: 99999999999 }'}, 'frame_store.budget_mib:', "this host's memory"),
    ({'frame_store': '{ budget_mib: -1 }'}, ':', 'integer'),
    ({'frame_store': '{ budget_mib: 99999999999999999999999 }'}, ':', ''),
    ({'listen': '{ admin: "nonsense" }'}, 'listen.admin:', 'expected'),
    ({'listen': '{ admin: "127.0.0.1:0" }'}, 'listen.admin:', 'port'),
    ({'listen': '{ admin: "127.0.0.1:65536" }'}, 'listen.admin:', '65535'),
    ({'listen': '{ admin: "localhost:7469" }'}, 'listen.admin:', 'IP'),
    ({'listen': '{ admin: "::1:7469" }'}, 'listen.admin:', '[::1]'),
    ({'listen': '{ admin: "unix:relative" }'}, 'listen.admin:', 'absolute'),
    ({'listen': '{ admin: "unix:/%s" }' % ('x' * 120)}, 'listen.admin:', 'bytes'),
    ({'listen': '{ admin: "127.0.0.1:7469" admin: "127.0.0.1:7469" }'}, 'listen.admin:', 'is taken by listen.admin'),
    ({'listen': '{ %s }' % ' '.join(f'admin: "127.0.0.1:{p}"' for p in range(7500, 7509))}, 'listen.admin:', 'at most 8'),
    ({'listen': '{ admin: "192.0.2.1:7469" }'}, 'listen.admin:', 'not loopback'),
    ({'listen': '{ data: "0.0.0.0:7470" }'}, 'listen.data:', 'not loopback'),
    ({'listen': '{ data: "unix:/tmp/x" }'}, 'listen.data:', 'unix socket'),
    ({'listen': '{ admin: "127.0.0.1:7470" }'}, 'listen.data:', 'taken'),
    ({'listen': '{ metrics: "127.0.0.1:7470" }'}, 'listen.metrics:', 'taken'),
    ({'listen': '{ metrics: "0.0.0.0:9000" }'}, 'listen.metrics:', 'insecure_metrics'),
    ({'listen': '{ metrics: "off" }'}, 'listen.metrics:', 'expected'),
    ({'transport': 'TRANSPORT_PIGEON'}, 'TRANSPORT_PIGEON', ''),
    ({'transport': 'TRANSPORT_VERBS'}, 'transport:', 'loopback'),
    ({'peers': '{ admin: "h:1" }'}, 'peers[0].name:', '[a-z0-9-]'),
    ({'peers': '{ name: "b" }'}, 'peers[0].admin:', 'expected'),
    ({'peers': '{ name: "b" admin: "1.2.3:7469" }'}, 'peers[0].admin:', '1.2.3'),
    ({'peers': '[{ name: "b" admin: "h:1" }, { name: "b" admin: "h:2" }]'}, 'peers[1].name:', 'twice'),
    ({'peers': '[{ name: "b" admin: "h:1" }, { name: "c" admin: "h:1" }]'}, 'peers[1].admin:', "another peer's"),
    ({'peers': '[%s]' % ', '.join(f'{{ name: "p{i}" admin: "h{i}:1" }}' for i in range(64))}, 'peers:', 'at most 63'),
    ({'tls': '{ ca: "/nonexistent/ca" }'}, 'tls: ca:', '/nonexistent/ca'),
    ({'tls': '{ ca: "%(config)s" }'}, 'tls: certificate:', 'not set'),
    ({'tls': '{ ca: "%(config)s" certificate: "%(config)s" key: "%(config)s" }'}, 'tls: key:', 'chmod 0600'),
    ({'tls': '{}', 'insecure': 'true'}, 'insecure:', 'contradicts tls'),
    ({'membership': '{ hello_interval_ms: 49 }'}, 'membership.hello_interval_ms:', '49 is not from 50'),
    ({'membership': '{ hello_interval_ms: 500 unreachable_after_ms: 999 }'}, 'membership.unreachable_after_ms:', 'twice'),
    ({'membership': '{ unreachable_after_ms: 600001 }'}, 'membership.unreachable_after_ms:', '600000'),
    ({'log_level': '"loud"'}, 'log_level:', 'loud'),
    ({'': 'no_such_field: 1'}, ':5:', 'no_such_field'),
    ({'': 'name: "b"'}, ':5:', 'name'),
    ({'': 'peers {'}, ':', 'Expected'),
    ({'': '\\x00\\xff'}, ':5:', ''),
]


class Config(hktest.TestCase):
    def setUp(self):
        super().setUp()
        self.dir = os.path.join(self.bed.directory, 'host')
        self.config = os.path.join(self.bed.directory, 'node.textproto')

    def write(self, changes):
        fields = {**GOOD, **changes}
        text = '\n'.join(f'{k}: {v}' if k else v for k, v in fields.items()) + '\n'
        with open(self.config, 'w', encoding='utf-8') as file:
            file.write(text.replace('%(dir)s', self.dir).replace('%(config)s', self.config))

    def daemon(self, *args):
        return hktest.run([hktest.program('hyperkerneld'), *args])

    def assert_untouched(self):
        self.assertFalse(os.path.exists(self.dir), 'something was made')
        self.assertEqual(os.listdir(self.bed.frames), [])

    def test_bad_configurations(self):
        self.assertGreaterEqual(len(BAD), 20)
        for changes, field, text in BAD:
            with self.subTest(changes=str(changes)[:100]):
                self.write(changes)
                for arguments in ((), ('--check-config',)):
                    result = self.daemon('--config', self.config, *arguments)
                    self.assert_fails(result, 2, field, text, self.config)
                    self.assertEqual(result.out, '')
                    self.assertTrue(result.error.startswith(f'hyperkerneld: {self.config}:'), result.error)
                self.assert_untouched()

    def test_the_place_of_a_syntax_error_is_told(self):
        self.write({'': 'no_such_field: 1'})
        self.assertRegex(self.daemon('--config', self.config).error, r':5:\d+: ')

    def test_not_a_file(self):
        missing = os.path.join(self.bed.directory, 'missing')
        self.assert_fails(self.daemon('--config', missing), 2, missing, 'No such file')
        self.assert_fails(self.daemon('--config', self.bed.directory), 2, self.bed.directory, 'not a regular file')
        with open(self.config, 'wb') as file:
            file.write(b'#' * ((1 << 20) + 1))
        self.assert_fails(self.daemon('--config', self.config), 2, self.config, 'longer than')
        noise = hktest.rng.randbytes(4096)
        with open(self.config, 'wb') as file:
            file.write(b'\xff' + noise)
        self.assert_fails(self.daemon('--config', self.config), 2, self.config)
        self.assert_untouched()

    def test_command_line(self):
        self.write({})
        for arguments in (['--nonsense'], ['--config'], ['-x'], ['serve'], ['-o', 'xml'], ['two\nlines'], ['--check-config=maybe']):
            with self.subTest(arguments=arguments):
                result = self.daemon(*arguments)
                self.assert_fails(result, 2, '--help')
        self.assert_untouched()

    def test_check_config(self):
        self.write({'peers': '[{ name: "a" admin: "localhost:1" }, { name: "b" admin: "localhost:2" }]'})
        result = self.daemon('--check-config', '--config', self.config)
        self.assert_exit(result, 0)
        self.assertEqual(result.out, f'{self.config}: ok (node a, cluster default, 1 peers)\n')
        self.assertEqual(result.err, '')
        self.assert_untouched()

    def test_check_config_shows_warnings(self):
        self.write({'listen': '{ admin: "0.0.0.0:7469" metrics: "0.0.0.0:7471" }', 'insecure': 'true', 'insecure_metrics': 'true'})
        result = self.daemon('--check-config', '--config', self.config)
        self.assert_exit(result, 0)
        self.assertIn('warning: insecure: listen.admin 0.0.0.0:7469', result.out)
        self.assertIn('warning: insecure_metrics: 0.0.0.0:7471', result.out)

    def test_an_empty_file_means_the_defaults(self):
        with open(self.config, 'w', encoding='utf-8'):
            pass
        result = self.daemon('--check-config', '--config', self.config)
        host = os.uname().nodename.split('.')[0]
        if hktest.re.fullmatch('[a-z0-9-]{1,63}', host):
            self.assert_exit(result, 0)
            self.assertIn(f'(node {host}, cluster default, 0 peers)', result.out)
        else:
            self.assert_fails(result, 2, 'name:', host)


if __name__ == '__main__':
    hktest.main()
