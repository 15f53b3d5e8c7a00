#!/usr/bin/env python3
"""Kernels and initrds that cannot boot: `hkctl vm create` refuses each in one line, defines nothing, and the daemon goes on."""
import os
import struct

import hktest

MIB = 1 << 20


def bz_image(**changes):
    """A bzImage of protocol 2.15 with 64 KiB of code, as far as a loader looks at it (Documentation/arch/x86/boot.rst)."""
    fields = {'setup_sects': 4, 'syssize': (64 << 10) // 16, 'boot_flag': 0xaa55, 'jump': 0x66eb, 'magic': b'HdrS', 'version': 0x20f,
              'loadflags': 1, 'initrd_addr_max': 0x7fffffff, 'kernel_alignment': 0x200000, 'relocatable': 1, 'xloadflags': 1,
              'cmdline_size': 2047, 'payload_offset': 0x2cc, 'payload_length': 0x1000, 'pref_address': 16 * MIB, 'init_size': 16 * MIB}
    fields.update(changes)
    places = {'setup_sects': (0x1f1, 'B'), 'syssize': (0x1f4, 'I'), 'boot_flag': (0x1fe, 'H'), 'jump': (0x200, 'H'), 'magic': (0x202, '4s'),
              'version': (0x206, 'H'), 'loadflags': (0x211, 'B'), 'initrd_addr_max': (0x22c, 'I'), 'kernel_alignment': (0x230, 'I'),
              'relocatable': (0x234, 'B'), 'xloadflags': (0x236, 'H'), 'cmdline_size': (0x238, 'I'), 'payload_offset': (0x248, 'I'),
              'payload_length': (0x24c, 'I'), 'pref_address': (0x258, 'Q'), 'init_size': (0x260, 'I')}
    data = bytearray(5 * 512 + (64 << 10))
    for name, (offset, form) in places.items():
        struct.pack_into('<' + form, data, offset, fields[name])
    return bytes(data)


def pvh_elf(elf_class=2, machine=62, note_type=18, entry=16 * MIB + 0x40, load=16 * MIB):
    """An ELF kernel: one segment of 8 KiB and one note, the PVH entry."""
    data = bytearray(0x3000)
    struct.pack_into('<4sBBB9xHHIQQQIHHHHHH', data, 0, b'\x7fELF', elf_class, 1, 1, 2, machine, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    struct.pack_into('<IIQQQQQQ', data, 64, 1, 5, 0x1000, 0, load, 0x2000, 0x2000, 0x1000)
    struct.pack_into('<IIQQQQQQ', data, 64 + 56, 4, 4, 0x200, 0, 0, 24, 24, 4)
    struct.pack_into('<III4sQ', data, 0x200, 4, 8, note_type, b'Xen\0', entry)
    return bytes(data)


class BootFiles(hktest.TestCase):
    @classmethod
    def make_shared(cls, bed):
        cls.node = bed.node('a')
        cls.node.budget_mib = 600
        cls.node.start()

    def path(self, name):
        return os.path.join(self.bed.directory, name)

    def file(self, name, data, size=None):
        with open(self.path(name), 'wb') as file:
            file.write(data)
            file.truncate(size if size is not None else len(data))  # a sparse end
        return self.path(name)

    def create(self, kernel, initrd='', memory_mib=64, cmdline=''):
        spec = self.file('vm.textproto', (f'name: "g" memory_mib: {memory_mib} kernel: "{kernel}" initrd: "{initrd}" '
                                          f'cmdline: "{cmdline}"\n').encode())
        return self.node.hkctl('vm', 'create', '-f', spec)

    def refused(self, result, *texts):
        self.assert_fails(result, 1, *texts)
        self.assertEqual(self.node.hkctl('vm', 'list', '-o', 'json').json().get('vms', []), [])

    def test_what_is_no_kernel(self):
        self.refused(self.create(self.path('gone')), self.path('gone'), 'No such file or directory')
        self.refused(self.create(self.bed.directory), 'is not a regular file')
        os.mkfifo(self.path('fifo'))
        self.refused(self.create(self.path('fifo')), 'is not a regular file')
        for name, data, why in (('empty', b'', 'is empty'), ('text', b'#!/bin/sh\n' * 1000, 'not a kernel (neither bzImage nor ELF)'),
                                ('disk', bz_image(magic=b'\0\0\0\0'), "not a kernel (a boot sector without 'HdrS')")):
            with self.subTest(name):
                self.refused(self.create(self.file(name, data)), f'{self.path(name)}: {why}')

    def test_kernels_that_are_not_64_bit(self):
        for name, data, why in (('32-bit', bz_image(xloadflags=0), 'a 32-bit kernel (no 64-bit entry); 64-bit is needed'),
                                ('zimage', bz_image(loadflags=0), 'a 16-bit kernel (zImage)'),
                                ('old', bz_image(version=0x20b), 'boot protocol 2.11 is too old'),
                                ('elf32', pvh_elf(elf_class=1), 'a 32-bit ELF file; 64-bit is needed'),
                                ('arm64', pvh_elf(machine=183), 'an ELF file for another machine'),
                                ('no-pvh', pvh_elf(note_type=1), 'an ELF file without a PVH entry')):
            with self.subTest(name):
                self.refused(self.create(self.file(name, data)), f'{self.path(name)}: {why}')

    def test_kernels_that_are_damaged(self):
        for name, data, why in (('short', bz_image()[:40000], 'truncated kernel (40000 bytes, '),
                                ('payload', bz_image(payload_length=MIB), 'corrupt kernel (payload'),
                                ('alignment', bz_image(kernel_alignment=3), 'corrupt kernel (kernel_alignment'),
                                ('size', bz_image(init_size=0xffffffff), 'corrupt kernel (pref_address'),
                                ('elf-short', pvh_elf()[:0x2000], 'truncated kernel'),
                                ('elf-low', pvh_elf(load=0), 'corrupt kernel (segment'),
                                ('elf-entry', pvh_elf(entry=1), 'corrupt kernel (PVH entry 0x1 is in no segment)')):
            with self.subTest(name):
                self.refused(self.create(self.file(name, data)), f'{self.path(name)}: {why}')
        # Cut anywhere, a real header's every part: never more than one line, never a daemon that ends.
        for _ in range(200 if hktest.SOAK else 20):
            data = bz_image() if hktest.rng.random() < 0.5 else pvh_elf()
            self.refused(self.create(self.file('cut', data[:hktest.rng.randrange(1, len(data))])), self.path('cut'))

    def test_what_does_not_fit(self):
        kernel = self.file('kernel', bz_image())
        self.refused(self.create(self.file('huge', bz_image(init_size=80 * MIB))),
                     'the kernel needs 96 MiB of RAM below 3072 MiB, the guest has 64 MiB')
        self.refused(self.create(kernel, self.file('initrd', b'x', 300 * MIB)), f'{self.path("initrd")}: initrd of 300 MiB does not fit in ')
        self.refused(self.create(kernel, self.path('no-initrd')), self.path('no-initrd'), 'No such file or directory')
        self.refused(self.create(kernel, self.file('empty-initrd', b'')), 'is empty')
        self.refused(self.create(kernel, cmdline='x' * 3000), 'cmdline: longer than 2047 bytes')
        self.refused(self.create(self.file('terse', bz_image(cmdline_size=255)), cmdline='x' * 300),
                     'cmdline: 300 bytes; this kernel takes 255 at the most')
        self.refused(self.create(kernel, memory_mib=700), 'memory_mib: 700 is more than this node\'s frame_store.budget_mib 600')


if __name__ == '__main__':
    hktest.main()
