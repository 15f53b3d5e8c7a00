"""What the lab's Python tests share: a daemon on the lab's network, over mutual TLS, on top of the host tests' helpers.

Runs inside the lab only.
"""
import os
import pathlib
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / 'host'))
import hktest  # noqa: E402

ADMIN_PORT, DATA_PORT = 7469, 7470
HOST = int(os.environ['LAB_HOST'])
# Deadlines of the tests' clusters. The lab is slow: a hello takes tens of milliseconds when both hosts are busy.
HELLO_MS, UNREACHABLE_MS = 300, 3000


class LabNode(hktest.Node):
    """A daemon that listens on an address of the lab's network. `namespace` is 1 to 3, or None for the host's own."""

    def __init__(self, bed, name, address, certificates, namespace=None, transport='AUTO'):
        super().__init__(bed, name, hello_ms=HELLO_MS, unreachable_ms=UNREACHABLE_MS)
        self.address = address
        self.certificates = certificates
        self.namespace = namespace
        self.transport = transport
        self.budget = 64

    def config_text(self):
        peers = ''.join(f'peers {{ name: "{name}" admin: "{address}:{ADMIN_PORT}" }}\n' for name, address in self.peers)
        return (f'name: "{self.name}"\ncluster: "lab"\ndata_directory: "{self.data_directory}"\n'
                f'frame_store {{ directory: "{self.frame_directory}" budget_mib: {self.budget} }}\ntransport: TRANSPORT_{self.transport}\n'
                f'listen {{ admin: "{self.endpoint}" admin: "{self.address}:{ADMIN_PORT}" data: "{self.address}:{DATA_PORT}" metrics: "none" }}\n'
                f'tls {{ ca: "{self.certificates}/ca.crt" certificate: "{self.certificates}/node-{self.name}.crt" '
                f'key: "{self.certificates}/node-{self.name}.key" }}\n'
                f'membership {{ hello_interval_ms: {self.hello_ms} unreachable_after_ms: {self.unreachable_ms} }}\n{peers}')

    def start(self, wait=True, prefix=()):
        return super().start(wait, prefix or (('lab-ns', str(self.namespace)) if self.namespace else ()))


def make_certificates(directory, nodes):
    subprocess.run([hktest.CERTS, directory, '--nodes', ','.join(nodes), '--admins', 'operator'], check=True, stdout=subprocess.DEVNULL)


def link(action, what):
    subprocess.run(['lab-link', action, what], check=True)


def probe_answers(report):
    return {(item['group'], item['name']): item for item in report['items']}
