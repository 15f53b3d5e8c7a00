"""How a bench runs itself in the lab: the same file, once outside, where it only starts the lab, and once inside."""
import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / 'tests' / 'lab'))  # guests.py


def inside():
    return 'LAB' in os.environ


def kernel(flavour='generic'):
    """A Debian kernel for guests, as packaged."""
    directory = subprocess.run([ROOT / 'tests/lab/kernel', '--flavour', flavour], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    return str(next(pathlib.Path(directory, 'boot').glob('vmlinuz-*')))


def image():
    """The trial image's directory; made if it is not there."""
    directory = ROOT / 'build' / 'image'
    subprocess.run([ROOT / 'deploy/make-image', '-o', directory, '--replace'], check=True, stdout=sys.stderr)
    return directory


def image_machine(disks, taps=()):
    """Inside: a machine whose root is the image (the lab's /dev/vda), read-only so that several may use it, with a shell as its init."""
    import guests
    directory = os.environ['HK_IMAGE']
    return guests.Machine(f'{directory}/vmlinuz', f'{directory}/initrd', 'root=/dev/vda ro console=ttyS0 quiet panic=-1 init=/bin/sh',
                          vcpus=1, memory_mib=256, disks=disks, taps=taps, readonly=1)


def prepare_shell(console):
    """Waits for the shell that is the guest's init, and gives it what programs need."""
    console.expect('^# ')
    console.run('mount -t sysfs s /sys && mount -t tmpfs t /run && mount -t tmpfs t /tmp && cd /run')


def sample(**values):
    """Inside: one measured value for the outside, see collect()."""
    print(json.dumps({'sample': values}), flush=True)


def _lines_of_lab(script, limit_s, status, drives=(), **environment):
    """Runs the script in the lab and yields the lines it prints; puts the exit status into `status`."""
    argv = [ROOT / 'tests/lab/lab', '-t', str(limit_s), '-e', f'HK_BIN={os.environ["HK_BIN"]}']
    for name, value in environment.items():
        argv += ['-e', f'{name}={value}']
    for drive in drives:
        argv += ['--drive', drive]
    with subprocess.Popen([*argv, '--', 'python3', os.path.abspath(script)], stdout=subprocess.PIPE, text=True, errors='replace') as lab:
        yield from lab.stdout
    status.append(lab.returncode)


def collect(script, limit_s, **environment):
    """Outside: runs the script in the lab; gives the samples that came, all or those before the lab ended by its limit."""
    samples, status = [], []
    for line in _lines_of_lab(script, limit_s, status, **environment):
        if line.startswith('{"sample"'):
            samples.append(json.loads(line)['sample'])
        else:
            print(line, end='', file=sys.stderr, flush=True)
    return samples


def enter(script, limit_s, with_image=False, **environment):
    """Outside: runs the script in the lab, with the image as /dev/vda or without; gives its exit status."""
    drives, status = (), []
    if with_image:
        directory = image()
        drives, environment['HK_IMAGE'] = (directory / 'disk.raw',), directory
    if 'HK_BENCH_ROUNDS' in os.environ:
        environment['HK_BENCH_ROUNDS'] = os.environ['HK_BENCH_ROUNDS']
    # The lab's output is one stream: figures go on to ours, what else is said to standard error.
    for line in _lines_of_lab(script, limit_s, status, drives, **environment):
        print(line, end='', file=sys.stdout if line.startswith('{"name"') else sys.stderr, flush=True)
    return status[0]
