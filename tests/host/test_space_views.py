"""What operators see of spaces over real daemons: space map with its picture, space top."""
import os
import re
import struct
import subprocess
import threading
import zlib

import hktest
import spacetest

EXTENT = 2 * spacetest.MIB
UNTOUCHED, NOTHING = (32, 32, 32, 255), (0, 0, 0, 0)


def read_png(path):
    """(width, height, {(x, y): (red, green, blue, alpha)}) of an RGBA picture of eight bits, by PNG's specification."""
    with open(path, 'rb') as file:
        data = file.read()
    assert data[:8] == b'\x89PNG\r\n\x1a\n', data[:8]
    at, packed, header = 8, b'', None
    while at < len(data):
        length, kind = struct.unpack('>I4s', data[at:at + 8])
        body = data[at + 8:at + 8 + length]
        assert zlib.crc32(kind + body) == struct.unpack('>I', data[at + 8 + length:at + 12 + length])[0]
        if kind == b'IHDR':
            header = struct.unpack('>IIBBBBB', body)
        packed += body if kind == b'IDAT' else b''
        at += 12 + length
    width, height, *form = header
    assert form == [8, 6, 0, 0, 0], form
    rows, stride = zlib.decompress(packed), 4 * width + 1
    before, pixels = bytes(4 * width), {}
    for y in range(height):
        kind, row = rows[y * stride], bytearray(rows[y * stride + 1:(y + 1) * stride])
        for i, byte in enumerate(row):
            left, up, corner = row[i - 4] if i >= 4 else 0, before[i], before[i - 4] if i >= 4 else 0
            if kind == 4:
                near = left + up - corner
                guess = min((left, up, corner), key=lambda c: (abs(near - c), (left, up, corner).index(c)))
            else:
                guess = (0, left, up, (left + up) // 2)[kind]
            row[i] = (byte + guess) & 0xff
        before = bytes(row)
        for x in range(width):
            pixels[x, y] = tuple(row[4 * x:4 * x + 4])
    return width, height, pixels


class SpaceViews(spacetest.TestCase):
    def write(self, node, address, data):
        done = spacetest.pipe(node, 'write', 'pool', '--at', hex(address), stdin=data)
        self.assertEqual(done.returncode, 0, done.stderr)

    def test_the_picture_shows_who_has_what_and_where_it_is_busy(self):
        a, b, c = self.start('a', 'b', 'c')
        self.create(a, 'a', 'b', 'c')  # 32 extents
        path = os.path.join(self.bed.directory, 'map.png')
        self.write(a, 0, b'x' * EXTENT)
        self.write(b, EXTENT, b'x' * 4096)
        self.write(c, 31 * EXTENT, b'x' * (EXTENT // 2))
        result = b.hkctl('space', 'map', 'pool', '--png', path)
        self.assert_exit(result, 0)
        width, height, pixels = read_png(path)
        self.assertEqual((width, height), (8, 4))
        colours = dict(re.findall(r'(?m)^([abc]) +\w+ +#([0-9a-f]{6}) ', result.out))
        self.assertEqual(sorted(colours), ['a', 'b', 'c'])
        self.assertIn(f'{path}: 8 x 4 pixels, each an extent of 2 MiB', result.out)
        self.assertRegex(result.out, r'(?m)^nobody +dark grey +#202020 +29$')

        def node_at(x, y):
            """By hue: the channels in proportion to the brightest."""
            red, green, blue, alpha = pixels[x, y]
            self.assertEqual(alpha, 255)
            scale = 255 / max(red, green, blue)

            def off(name):
                return max(abs(round(channel * scale) - int(colours[name][2 * i:2 * i + 2], 16)) for i, channel in enumerate((red, green, blue)))
            name = min(colours, key=off)
            self.assertLess(off(name), 6, (x, y, pixels[x, y]))
            return name
        self.assertEqual([node_at(0, 0), node_at(1, 0), node_at(7, 3)], ['a', 'b', 'c'])
        self.assertEqual(pixels[2, 0], UNTOUCHED)
        self.assertEqual(max(pixels[0, 0]), 255)
        self.assertGreater(max(pixels[0, 0][:3]), max(pixels[7, 3][:3]))
        self.assertGreater(max(pixels[7, 3][:3]), max(pixels[1, 0][:3]))
        # The table has the same; JSON may go with the picture.
        layout = a.hkctl('space', 'map', 'pool', '-o', 'json', '--png', path, '--zoom', '5').json()
        self.assertEqual([int(extent['extent']) for extent in layout['extents']], [0, 1, 31])
        self.assertGreater(layout['extents'][0]['holders'][0]['heat'], 10)
        self.assertEqual(read_png(path)[:2], (40, 20))
        self.assertRegex(a.hkctl('space', 'map', 'pool').out, r'(?m)^ADDRESS +HOME +HEAT +a +b +c\n0x0 +[abc] +\d+ ')
        # What b takes is b's from then on.
        self.write(b, 31 * EXTENT, b'y' * EXTENT)
        self.assert_exit(c.hkctl('space', 'map', 'pool', '--png', path), 0)
        _, _, pixels = read_png(path)
        self.assertEqual(node_at(7, 3), 'b')
        self.assertEqual(os.listdir(self.bed.directory).count('map.png'), 1)
        self.assertFalse([name for name in os.listdir(self.bed.directory) if name.endswith('.tmp')])

    def test_a_picture_that_cannot_be_written(self):
        a = self.start('a')[0]
        self.create(a, 'a', memory='4K')
        path = os.path.join(self.bed.directory, 'map.png')
        self.assert_exit(a.hkctl('space', 'map', 'pool', '--png', path), 0)
        self.assertEqual(read_png(path), (1, 1, {(0, 0): UNTOUCHED}))
        for wrong, says in (('/dev/null', 'is not a file'), (self.bed.directory, 'is not a file'),
                            (os.path.join(self.bed.directory, 'none', 'x.png'), 'No such file or directory'),
                            ('/proc/x.png', 'cannot write /proc/x.png')):
            self.assert_fails(a.hkctl('space', 'map', 'pool', '--png', wrong), 1, 'space map pool', says)
        self.assert_fails(a.hkctl('space', 'map', 'pool', '--png', ''), 2, '--png')
        self.assert_fails(a.hkctl('space', 'map', 'pool', '--zoom', '2'), 2, '--png')
        self.assert_fails(a.hkctl('space', 'map', 'pool', '--png', path, '--zoom', '0'), 2, '--zoom')
        # A full file system leaves what was there.
        with open(path, 'rb') as file:
            before = file.read()
        limited = ['prlimit', '--fsize=10', '--', hktest.program('hkctl'), '--endpoint', a.endpoint, 'space', 'map', 'pool', '--png', path]
        result = hktest.run(['env', '--ignore-signal=XFSZ', *limited])
        self.assert_fails(result, 1, 'cannot write', 'File too large')
        with open(path, 'rb') as file:
            self.assertEqual(file.read(), before)
        self.assertFalse([name for name in os.listdir(self.bed.directory) if name.endswith('.tmp')])

    def test_top_shows_pages_that_go_to_and_fro(self):
        a, b, c = self.start('a', 'b', 'c')
        self.create(a, 'a', 'b', 'c')
        stop = threading.Event()

        def use(node):
            while not stop.is_set():
                node.hkctl('space', 'write', 'pool', '--at', '0x5000', '--text', node.name)
        users = [threading.Thread(target=use, args=(node,)) for node in (a, b)]
        for user in users:
            user.start()
        try:
            def busy():
                top = c.hkctl('space', 'top', 'pool', '-o', 'json').json()
                return top if top['ping_pong'] and top['ping_pong'][0]['nodes'] == ['a', 'b'] else None
            top = hktest.wait_for(busy, 'the page that two nodes write is found')
            self.assertEqual(int(top['ping_pong'][0]['address']), 0x5000)
            self.assertGreater(top['ping_pong'][0]['owner_changes_per_second'], 1)
            self.assertGreater(top['interval_seconds'], 0.5)
            rates = {node['part']['node']: node['rates'] for node in top['nodes']}
            self.assertGreater(rates['a']['write_faults'], 0)
            self.assertGreater(rates['b']['revoked'], 0)
            self.assertEqual(rates['c']['write_faults'], 0)
            latency = rates['a']['write_latency']
            self.assertLessEqual(int(latency['p50_ns']), int(latency['p99_ns']))
            self.assertLess(int(latency['p99_ns']), int(latency['max_ns']))
            # Lines for pipes, as many looks as were asked for.
            text = a.hkctl('space', 'top', 'pool', '-n', '3', '--interval', '500ms').out
            self.assertEqual(len(re.findall(r'(?m)^pool running, 64 MiB on a,b,c; per second, over \d\.\d s$', text)), 3)
            self.assertEqual(len(re.findall(r'(?m)^together ', text)), 3)
            self.assertRegex(text, r'(?m)^0x5000 +[\d.]+ +[\d.]+ +a,b$')
            self.assertNotIn('\x1b', text)
        finally:
            stop.set()
            for user in users:
                user.join()
        quiet = c.hkctl('space', 'top', 'pool', '--once', '-o', 'json').json()
        self.assertEqual(quiet['ping_pong'], [])
        self.assertEqual([node['rates']['read_faults'] for node in quiet['nodes']], [0, 0, 0])
        for wrong in (('--interval', '1'), ('--interval', '1ms'), ('-n', '0'), ('--once', '-n', '2')):
            self.assert_exit(a.hkctl('space', 'top', 'pool', *wrong), 2)
        self.assert_fails(a.hkctl('space', 'top', 'none'), 1, "no space 'none'")
        # A node that is gone: the others' rows go on.
        b.kill()
        a.wait_state('b', 'unreachable')
        text = a.hkctl('space', 'top', 'pool').out
        self.assertRegex(text, r'(?m)^b +- +-')
        self.assertRegex(text, r"(?m)^b: .*unreachable")

    def test_top_draws_on_a_terminal(self):
        a = self.start('a')[0]
        self.create(a, 'a')
        command = f"{hktest.program('hkctl')} --endpoint {a.endpoint} space top pool --interval 200ms"
        process = subprocess.Popen(['script', '-qefc', f'stty rows 10 cols 40; {command}', '/dev/null'], stdin=subprocess.PIPE,
                                   stdout=subprocess.PIPE, env=hktest.clean_environment(TERM='xterm'))
        seen = b''
        while seen.count(b'\x1b[H') < 4:  # it goes on by itself
            chunk = os.read(process.stdout.fileno(), 4096)
            self.assertTrue(chunk, seen)
            seen += chunk
        process.stdin.write(b'\x03')  # Ctrl-C
        process.stdin.flush()
        process.wait(hktest.TIMEOUT)
        process.stdin.close()
        process.stdout.close()
        drawn = seen.split(b'\x1b[H')[2].decode()
        lines = [re.sub(r'\x1b\[[KJ]', '', line) for line in drawn.split('\r\n')]
        self.assertTrue(lines[0].startswith('pool running, 64 MiB on a; per second'), drawn)
        self.assertTrue(all(len(line) <= 40 for line in lines), lines)
        self.assertLess(len(lines), 11)


if __name__ == '__main__':
    hktest.main()
