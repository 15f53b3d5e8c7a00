"""Mutual TLS with the trial certificates of deploy/certs: who gets in, as what, and how the rest is refused."""
import os
import stat
import subprocess

import hktest

ONE_OF = (1, 3)


def certs(*args):
    return hktest.run([hktest.CERTS, *args])


class Authority:
    """A directory of deploy/certs."""

    def __init__(self, directory, *args):
        self.directory = directory
        result = certs(directory, *args)
        assert result.code == 0, result

    def path(self, name):
        return os.path.join(self.directory, name)

    def identity(self, stem):
        return self.path('ca.crt'), self.path(f'{stem}.crt'), self.path(f'{stem}.key')

    def issue(self, stem, common_name, start, end, names=''):
        """A certificate that deploy/certs would not make: times as YYYYMMDDHHMMSSZ."""
        base = self.path(stem)
        work = base + '.ca'
        os.mkdir(work)
        for name, text in (('index.txt', ''), ('serial', '77\n'), ('req.cnf', '[req]\ndistinguished_name=d\n[d]\n'),
                           ('ca.cnf', f'[ca]\ndefault_ca=c\n[c]\ndatabase={work}/index.txt\nnew_certs_dir={work}\nserial={work}/serial\n'
                                      'default_md=sha256\npolicy=p\nx509_extensions=x\n[p]\ncommonName=supplied\n'
                                      '[x]\nextendedKeyUsage=serverAuth,clientAuth\n' + (f'subjectAltName={names}\n' if names else ''))):
            with open(os.path.join(work, name), 'w', encoding='ascii') as file:
                file.write(text)
        for command in (['req', '-new', '-config', f'{work}/req.cnf', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes',
                         '-subj', f'/CN={common_name}', '-keyout', f'{base}.key', '-out', f'{base}.csr'],
                        ['ca', '-batch', '-notext', '-config', f'{work}/ca.cnf', '-cert', self.path('ca.crt'), '-keyfile', self.path('ca.key'),
                         '-startdate', start, '-enddate', end, '-in', f'{base}.csr', '-out', f'{base}.crt']):
            result = hktest.run(['openssl', *command])
            assert result.code == 0, result
        return self.identity(stem)


class Certs(hktest.TestCase):
    """deploy/certs itself."""

    def setUp(self):
        super().setUp()
        self.dir = os.path.join(self.bed.directory, 'tls')

    def read_all(self):
        files = {}
        for name in os.listdir(self.dir):
            with open(os.path.join(self.dir, name), encoding='ascii') as file:
                files[name] = file.read()
        return files

    def text(self, name):
        return hktest.run(['openssl', 'x509', '-in', os.path.join(self.dir, name), '-noout', '-text']).out

    def test_what_is_made(self):
        result = certs(self.dir, '--nodes', 'a,b', '--admins', 'alice', '--viewers', 'bob', '--days', '7')
        self.assert_exit(result, 0)
        self.assertEqual(result.err, '')
        self.assertIn('for trials', result.out)
        stems = ['ca', 'node-a', 'node-b', 'admin-alice', 'viewer-bob']
        self.assertEqual(sorted(os.listdir(self.dir)), sorted(f'{s}.{e}' for s in stems for e in ('crt', 'key')))
        for stem in stems:
            self.assertIn(f'made {stem}.crt', result.out)
            self.assertEqual(stat.S_IMODE(os.stat(os.path.join(self.dir, f'{stem}.key')).st_mode), 0o600)
            self.assertIn('ASN1 OID: prime256v1', self.text(f'{stem}.crt'))
            verified = hktest.run(['openssl', 'verify', '-CAfile', os.path.join(self.dir, 'ca.crt'), os.path.join(self.dir, f'{stem}.crt')])
            self.assert_exit(verified, 0)
        node, admin = self.text('node-a.crt'), self.text('admin-alice.crt')
        self.assertIn('Subject: CN = node:a\n', node)
        self.assertIn('DNS:a, DNS:hyperkernel-node\n', node)
        self.assertIn('TLS Web Server Authentication, TLS Web Client Authentication\n', node)
        self.assertIn('Subject: CN = admin:alice\n', admin)
        self.assertIn('  TLS Web Client Authentication\n', admin)
        self.assertNotIn('DNS:', admin)
        self.assertIn('Subject: CN = viewer:bob\n', self.text('viewer-bob.crt'))

    def test_it_can_be_run_again(self):
        self.assert_exit(certs(self.dir, '--nodes', 'a'), 0)
        first = self.read_all()
        result = certs(self.dir, '--nodes', 'a,b')
        self.assert_exit(result, 0)
        self.assertRegex(result.out, r'kept ca.crt .*\nkept node-a.crt .*\nmade node-b.crt')
        second = self.read_all()
        self.assertEqual(second, {**second, **first})
        self.assert_exit(certs(self.dir, '--nodes', 'a', '--force'), 0)
        third = self.read_all()
        self.assertEqual({n for n in second if second[n] != third[n]}, {'node-a.crt', 'node-a.key'})
        # Half of a pair is made whole; a certificate of another authority is not kept.
        os.remove(os.path.join(self.dir, 'node-b.crt'))
        self.assertIn('made node-b.crt', certs(self.dir, '--nodes', 'b').out)
        other = os.path.join(self.bed.directory, 'other')
        self.assert_exit(certs(other, '--nodes', 'a'), 0)
        for name in ('node-a.crt', 'node-a.key'):
            os.replace(os.path.join(other, name), os.path.join(self.dir, name))
        self.assert_fails(certs(self.dir, '--nodes', 'a'), 1, 'node-a.crt', '--force')
        os.remove(os.path.join(self.dir, 'ca.key'))
        self.assert_fails(certs(self.dir, '--nodes', 'a'), 1, 'ca.key')

    def test_bad_arguments(self):
        for arguments, text in (((), 'directory'), ((self.dir,), 'nothing to make'), ((self.dir, '--nodes'), '--nodes'), ((self.dir, '--nodes', ''), '--nodes'),
                                ((self.dir, '--nodes', 'A'), "'A'"), ((self.dir, '--nodes', 'a,,b'), '[a-z0-9-]'), ((self.dir, '--nodes', 'x' * 64), '{1,63}'),
                                ((self.dir, '--nodes', '../a'), '../a'), ((self.dir, '--nodes', 'a\nb'), 'a?b'), ((self.dir, '--admins', 'a/CN=node:b'), '[a-z0-9-]'),
                                ((self.dir, '--nodes', 'a', '--days', '0'), '--days'), ((self.dir, '--nodes', 'a', '--days', '1e3'), '--days'),
                                ((self.dir, '--nodes', 'a', '--wipe'), '--wipe'), ((self.dir, 'b', '--nodes', 'a'), 'not two')):
            with self.subTest(arguments=arguments):
                self.assert_fails(certs(*arguments), 2, text)
                self.assertFalse(os.path.exists(self.dir))
        self.assert_fails(certs('/proc/nonexistent', '--nodes', 'a'), 1, '/proc/nonexistent')
        help_text = certs('--help')
        self.assert_exit(help_text, 0)
        self.assertIn('FOR TRIALS', help_text.out)
        self.assertIn('examples:', help_text.out)


class Tls(hktest.TestCase):
    @classmethod
    def make_shared(cls, bed):
        cls.ca = Authority(os.path.join(bed.directory, 'tls'), '--nodes', 'a,b,c', '--admins', 'alice', '--viewers', 'bob')
        cls.other = Authority(os.path.join(bed.directory, 'other'), '--nodes', 'a,b', '--admins', 'alice', '--viewers', 'bob')
        cls.a, cls.b = bed.cluster('a', 'b', tcp=True, tls=('', '', ''))
        for node in (cls.a, cls.b):
            node.tls = cls.ca.identity(f'node-{node.name}')
            node.start()
        cls.a.wait_state('b', 'up')
        cls.b.wait_state('a', 'up')

    def asks(self, identity, *args, node=None):
        return hktest.hkctl((node or self.a).tcp_endpoint, *args, '--timeout', '5s', tls=identity)

    def assert_refused(self, result, *texts):
        self.assertIn(result.code, ONE_OF, result)
        self.assert_fails(result, result.code, *texts)
        self.assertEqual(self.a.hkctl('version').code, 0)

    def test_nodes_are_up_over_tls(self):
        member = self.a.members()['b']
        self.assertEqual(member['admin_address'], self.b.tcp_endpoint)
        self.assertEqual(member['state'], 'MEMBER_STATE_UP')
        self.assertFalse([w for w in member['info']['warnings'] if 'insecure' in w])

    def test_admin(self):
        identity = self.ca.identity('admin-alice')
        for command in (('node', 'list'), ('node', 'show', 'b'), ('version',), ('node', 'probe'), ('node', 'probe', 'b')):
            with self.subTest(command=command):
                self.assert_exit(self.asks(identity, *command), 0)
        self.assert_exit(self.asks(identity, 'node', 'list', node=self.b), 0)
        ca, certificate, key = identity
        env = {'HKCTL_TLS_CA': ca, 'HKCTL_TLS_CERT': certificate, 'HKCTL_TLS_KEY': key, 'HKCTL_ENDPOINT': self.a.tcp_endpoint}
        self.assert_exit(hktest.hkctl(None, 'node', 'list', env=env), 0)

    def test_viewer(self):
        identity = self.ca.identity('viewer-bob')
        for command in (('node', 'list'), ('node', 'show', 'b'), ('version',)):
            self.assert_exit(self.asks(identity, *command), 0)
        for command in (('node', 'probe'), ('node', 'probe', 'b')):
            self.assert_fails(self.asks(identity, *command), 1, 'role admin', 'viewer')
        self.assert_fails(self.asks(identity, 'vm', 'trace', 'none', '-f', '/dev/null'), 1, "no vm 'none'")

    def test_the_unix_socket_needs_no_certificate(self):
        self.assert_exit(self.a.hkctl('node', 'probe', 'b'), 0)
        self.assert_exit(self.a.hkctl('node', 'list', tls=self.ca.identity('viewer-bob')), 0)

    def test_strangers(self):
        self.assert_refused(self.asks((), 'node', 'list'), self.a.tcp_endpoint, 'does it want TLS')
        self.assert_refused(self.asks(self.other.identity('admin-alice'), 'node', 'list'))
        # Trusts the right authority, shows another's certificate: the daemon is who refuses.
        _, certificate, key = self.other.identity('admin-alice')
        self.assert_refused(self.asks((self.ca.path('ca.crt'), certificate, key), 'node', 'list'))
        expired = self.ca.issue('expired', 'admin:eve', '20200101000000Z', '20200201000000Z')
        self.assert_refused(self.asks(expired, 'node', 'list'))
        early = self.ca.issue('early', 'admin:eve', '20480101000000Z', '20490201000000Z')
        self.assert_refused(self.asks(early, 'node', 'list'))
        nobody = self.ca.issue('nobody', 'root', '20200101000000Z', '20490101000000Z')
        self.assert_fails(self.asks(nobody, 'node', 'list'), 1, 'role viewer')
        # As would one whose authority is right and whose name is no role.
        almost = self.ca.issue('almost', 'administrator:eve', '20200101000000Z', '20490101000000Z')
        self.assert_fails(self.asks(almost, 'version'), 1, 'role viewer')

    def test_no_certificate_at_all(self):
        # hkctl does not offer it; openssl's own client does.
        result = hktest.run(['openssl', 's_client', '-connect', self.a.tcp_endpoint, '-CAfile', self.ca.path('ca.crt'), '-alpn', 'h2', '-ign_eof'],
                            timeout=30)
        self.assertNotEqual(result.code, 0)
        hktest.wait_for(lambda: 'peer did not return a certificate' in self.a.log_text(), 'the refusal is logged')

    def test_a_client_checks_the_server(self):
        # What answers at the endpoint without TLS is not talked to.
        plain = self.bed.node('p', tcp=True).start()
        self.assert_refused(self.asks(self.ca.identity('admin-alice'), 'node', 'list', node=plain), plain.tcp_endpoint)
        # Nor what has a certificate of the cluster's authority that is no node's.
        port = hktest.free_port()
        _, certificate, key = self.ca.identity('admin-alice')
        argv = ['openssl', 's_server', '-accept', f'127.0.0.1:{port}', '-cert', certificate, '-key', key, '-alpn', 'h2', '-quiet']
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
            self.addCleanup(server.kill)
            hktest.wait_for(lambda: hktest.listens(port), 'openssl s_server listens')
            result = hktest.hkctl(f'127.0.0.1:{port}', 'version', '--timeout', '5s', tls=self.ca.identity('admin-alice'))
            server.kill()
        self.assert_fails(result, 3, f'127.0.0.1:{port}')

    def test_wrong_files(self):
        ca, certificate, key = self.ca.identity('admin-alice')
        for identity, text in (((ca, certificate, ''), 'go together'), (('/nonexistent', certificate, key), '/nonexistent'),
                               ((ca, self.ca.directory, key), self.ca.directory)):
            self.assert_fails(self.asks(identity, 'node', 'list'), 2, text)
        for identity in ((ca, certificate, certificate), (ca, certificate, self.ca.path('viewer-bob.key')), (key, certificate, key)):
            result = self.asks(identity, 'node', 'list')
            self.assert_fails(result, 2, '--tls-key', 'PEM')
            self.assertNotIn('PRIVATE', result.err)

    def test_a_node_cannot_be_another(self):
        thief = self.bed.node('b', tcp=True, tls=self.ca.identity('node-c'))
        result = hktest.run([hktest.program('hyperkerneld'), '--config', thief.write_config()])
        self.assert_fails(result, 2, 'tls: certificate:', "'node:c'", "'node:b'")
        for identity, field, text in ((self.ca.identity('admin-alice'), 'tls: certificate:', 'admin:alice'),
                                      ((self.ca.path('ca.crt'), *self.other.identity('node-b')[1:]), 'tls: certificate:', 'not valid under ca'),
                                      ((*self.ca.identity('node-b')[:2], self.ca.path('node-c.key')), 'tls: key:', 'is not the key'),
                                      (self.ca.issue('node-old', 'node:b', '20200101000000Z', '20200201000000Z', 'DNS:b'), 'tls: certificate:', 'expired')):
            with self.subTest(identity=identity):
                thief.tls = identity
                result = hktest.run([hktest.program('hyperkerneld'), '--config', thief.write_config()])
                self.assert_fails(result, 2, field, text)

    def test_a_certificate_of_another_name_at_a_peers_address(self):
        # Node c serves where this one expects b: the connection is refused by the name in the certificate.
        c = self.bed.node('c', tcp=True, tls=self.ca.identity('node-c')).start()
        a = self.bed.node('a', tcp=True, tls=self.ca.identity('node-a'), peers=[('b', c.tcp_endpoint)]).start()
        reason = a.wait_state('b', 'unreachable')['reason']
        self.assertIn('Peer name b is not in peer certificate', reason)
        # Refused at every hello, told now and then.
        self.assertLessEqual(c.log_text().count('component=grpc'), 20)

    def test_a_peer_of_another_authority(self):
        b = self.bed.node('b', tcp=True, tls=self.other.identity('node-b')).start()
        a = self.bed.node('a', tcp=True, tls=self.ca.identity('node-a'), peers=[('b', b.tcp_endpoint)])
        b.peers = [('a', a.tcp_endpoint)]
        a.start()
        self.assertIn('CERTIFICATE_VERIFY_FAILED', a.wait_state('b', 'unreachable')['reason'].upper().replace(' ', '_'))

    def test_off_loopback(self):
        # 192.0.2.0/24 is nobody's (RFC 5737): the configuration must be refused before anything is bound.
        node = self.bed.node('a')
        text = node.config_text().replace(f'data: "127.0.0.1:{node.data_port}"', f'data: "0.0.0.0:{node.data_port}"')
        with open(node.config, 'w', encoding='utf-8') as file:
            file.write(text)
        result = hktest.run([hktest.program('hyperkerneld'), '--config', node.config])
        self.assert_fails(result, 2, 'listen.data:', 'not loopback', 'insecure: true', 'deploy/certs')
        with open(node.config, 'w', encoding='utf-8') as file:
            file.write(text + 'tls { ca: "%s" certificate: "%s" key: "%s" }' % self.ca.identity('node-a'))
        self.assert_exit(hktest.run([hktest.program('hyperkerneld'), '--check-config', '--config', node.config]), 0)

    def test_insecure_is_shown(self):
        node = self.bed.node('a', extra='insecure: true')
        original = node.config_text()
        node.config_text = lambda: original.replace(f'data: "127.0.0.1:{node.data_port}"', f'data: "0.0.0.0:{node.data_port}"')
        node.start()
        warning = f'insecure: listen.data 0.0.0.0:{node.data_port} has no TLS'
        self.assertIn(f'warning: a: {warning}', node.hkctl('node', 'list').out)
        self.assertIn(warning, node.hkctl('node', 'show').out)
        self.assertIn(warning, node.log_text())

    def test_keys_are_not_told(self):
        secrets = []
        for name in os.listdir(self.ca.directory):
            if name.endswith('.key'):
                with open(self.ca.path(name), encoding='ascii') as file:
                    secrets += [line.strip() for line in file if not line.startswith('-----')]
        told = ''.join(n.log_text() for n in (self.a, self.b)) + self.a.hkctl('node', 'list', '-o', 'json').out
        for secret in secrets:
            self.assertNotIn(secret[:24], told)
        self.assertNotIn('PRIVATE KEY', told)
        self.assertGreater(len(secrets), 5)


if __name__ == '__main__':
    hktest.main()
