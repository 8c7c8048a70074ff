#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""A handler of its own beside Lunette's: RAM disks, as user:ram in targetcli.

Lunette's daemon knows nothing of it but its name. It is registered over D-Bus, so that targetcli lists it and asks it about configurations;
its devices are its own affair: it hears of them over netlink, maps their rings and runs their commands. Needs root, python3-dbus and
python3-gi, on a machine of little-endian byte order.

    ram-handler.py &
    targetcli /backstores/user:ram create name=scratch size=64M cfgstring=anything

What belongs to which specification: SBC and SPC for the commands, include/uapi/linux/target_core_user.h for ring and netlink.
"""
import ctypes
import mmap
import os
import re
import socket
import struct
import sys

SUBTYPE = 'ram'
BLOCK = 512
SERVICE = 'org.kernel.TCMUService1'
REGISTRY = '/org/kernel/TCMUService1/HandlerManager1'

GOOD, CHECK_CONDITION = 0, 2
INVALID_OPCODE, INVALID_FIELD, OUT_OF_RANGE = 0x20, 0x24, 0x21


class Ring:
    """The command ring of one device, between the kernel's head and our tail. One thread, commands in order."""

    def __init__(self, memory_fd, kick_fd, size, disk):
        self.kick_fd, self.disk = kick_fd, disk
        self.memory = mmap.mmap(memory_fd, size)
        version, _flags, self.ring, self.ring_size = struct.unpack_from('=HHII', self.memory, 0)
        if version != 2:
            raise RuntimeError(f'mailbox version {version}')
        # Aligned loads and stores of 32 bits: that is all that this language promises, and enough on x86.
        self.head = ctypes.c_uint32.from_buffer(self.memory, 12)
        self.tail = ctypes.c_uint32.from_buffer(self.memory, 64)

    def drain(self):
        """Runs what the kernel has published, and tells it so."""
        began = self.tail.value
        while self.tail.value != self.head.value:
            at = self.ring + self.tail.value
            (word,) = struct.unpack_from('=I', self.memory, at)
            length, opcode = word & ~7, word & 7
            if opcode == 1:
                self.run(at)
            elif opcode not in (0, 2):  # padding and notices of aborts need no answer
                self.memory[at + 7] |= 1  # UNKNOWN_OP
            self.tail.value = (self.tail.value + length) % self.ring_size
        if self.tail.value != began:
            os.write(self.kick_fd, struct.pack('=I', 1))

    def run(self, at):
        count, _bidi, _dif, _pad, cdb_at = struct.unpack_from('=IIIIQ', self.memory, at + 8)
        iovecs = [struct.unpack_from('=QQ', self.memory, at + 48 + 16 * i) for i in range(count)]
        cdb = bytes(self.memory[cdb_at:cdb_at + 16])
        gather = lambda: b''.join(self.memory[base:base + size] for base, size in iovecs)
        status, answer = self.disk.execute(cdb, gather)
        if status == GOOD:
            # All that the initiator expects goes back to it: what is left over is zeros, not what was there before.
            for base, size in iovecs if answer is not None else []:
                self.memory[base:base + size] = answer[:size].ljust(size, b'\0')
                answer = answer[size:]
            response = struct.pack('=B', GOOD)
        else:
            sense = struct.pack('>BBBIBIBB', 0x70, 0, 5, 0, 10, 0, answer, 0)
            response = struct.pack('=B7x', status) + sense.ljust(96, b'\0')
        # A response lies over its request: the id stays where it is.
        self.memory[at + 7] = 0
        self.memory[at + 8:at + 8 + len(response)] = response

    def close(self):
        del self.head, self.tail
        self.memory.close()


class RamDisk:
    """A disk in memory: the commands that an initiator cannot do without."""

    def __init__(self, size):
        self.bytes = bytearray(size // BLOCK * BLOCK)

    def execute(self, cdb, data_out):
        """@returns GOOD and data-in (None: none), or CHECK CONDITION and an additional sense code"""
        opcode, blocks = cdb[0], len(self.bytes) // BLOCK
        if opcode in (0x00, 0x35, 0x91, 0x1b):  # test unit ready, synchronize cache, start
            return GOOD, None
        if opcode == 0x12:  # inquiry
            if not cdb[1] & 1:
                names = b'LUNETTE ' + b'RAM disk'.ljust(16) + b'0001'
                return GOOD, self.cut(struct.pack('>BBBBB3x', 0, 0, 5, 2, 31) + names, cdb[3:5])
            if cdb[2] == 0:
                return GOOD, self.cut(struct.pack('>BBHB', 0, 0, 1, 0), cdb[3:5])
            return CHECK_CONDITION, INVALID_FIELD
        if opcode == 0x1a:  # mode sense: no pages
            return GOOD, self.cut(struct.pack('>BBBB', 3, 0, 0, 0), cdb[4:5])
        if opcode == 0x25:
            return GOOD, struct.pack('>II', min(blocks - 1, 0xffffffff), BLOCK)
        if opcode == 0x9e and cdb[1] & 31 == 0x10:
            return GOOD, self.cut(struct.pack('>QI20x', blocks - 1, BLOCK), cdb[10:14])
        if opcode in (0x28, 0x2a):
            lba, count = struct.unpack_from('>xxIxH', cdb)
        elif opcode in (0x88, 0x8a):
            lba, count = struct.unpack_from('>xxQI', cdb)
        else:
            return CHECK_CONDITION, INVALID_OPCODE
        if lba + count > blocks:
            return CHECK_CONDITION, OUT_OF_RANGE
        start, end = lba * BLOCK, (lba + count) * BLOCK
        if opcode in (0x28, 0x88):
            return GOOD, bytes(self.bytes[start:end])
        self.bytes[start:end] = data_out()[:end - start]
        return GOOD, None

    @staticmethod
    def cut(answer, allocation_length):
        return answer[:int.from_bytes(allocation_length, 'big')]


class Netlink:
    """The kernel's events about devices (the generic netlink family TCM-USER), and our answers to those of our subtype."""

    ADDED, REMOVED, RECONFIG = 1, 2, 3

    def __init__(self):
        self.socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 16)
        self.socket.bind((0, 0))
        # CTRL_CMD_GETFAMILY
        self.send(16, 3, 1, self.attribute(2, b'TCM-USER\0'))
        attributes = self.attributes(self.socket.recv(65536)[20:])
        (self.family,) = struct.unpack('=H', attributes[1][:2])
        group = self.attributes(self.attributes(attributes[7])[1])
        self.socket.setsockopt(270, 1, struct.unpack('=I', group[2])[0])

    def events(self):
        """What has come: command, device id, minor, name. Lunette's daemon has turned answers on, and leaves this subtype to us."""
        message = self.socket.recv(65536)
        length, family = struct.unpack_from('=IH', message)
        if family != self.family:
            return
        attributes = self.attributes(message[20:length])
        if message[16] in (self.ADDED, self.REMOVED, self.RECONFIG):
            (device,), (minor,) = struct.unpack('=I', attributes[8]), struct.unpack('=I', attributes[2])
            yield message[16], device, minor, attributes[1].rstrip(b'\0').decode()

    def answer(self, command, device, status):
        status = self.attribute(7, struct.pack('=i', status))
        self.send(self.family, command + 3, 2, status + self.attribute(8, struct.pack('=I', device)))

    def send(self, family, command, version, attributes):
        header = struct.pack('=IHHII', 20 + len(attributes), family, 1, 0, 0)
        self.socket.send(header + struct.pack('=BBH', command, version, 0) + attributes)

    @staticmethod
    def attribute(kind, value):
        return struct.pack('=HH', 4 + len(value), kind) + value + b'\0' * (-len(value) % 4)

    @staticmethod
    def attributes(data):
        found = {}
        while len(data) >= 4:
            length, kind = struct.unpack_from('=HH', data)
            if length < 4:
                break
            found.setdefault(kind & 0x3fff, data[4:length])
            data = data[(length + 3) & ~3:]
        return found


class Handler:
    """All devices of the subtype, and whoever asks over D-Bus."""

    def __init__(self, loop):
        from gi.repository import GLib
        self.watch, self.loop = GLib, loop
        self.rings = {}
        self.netlink = Netlink()
        GLib.io_add_watch(self.netlink.socket.fileno(), GLib.IO_IN, self.on_netlink)

    def on_netlink(self, *_):
        for command, device, minor, name in self.netlink.events():
            if not re.match(rf'tcm-user/\d+/[^/]+/{SUBTYPE}/', name):
                continue
            status = 0
            try:
                if command == Netlink.ADDED:
                    self.add(minor, name)
                elif command == Netlink.REMOVED:
                    self.remove(minor)
                else:
                    status = -95
            except OSError as error:
                status = -(error.errno or 5)
            self.netlink.answer(command, device, status)
        return True

    def add(self, minor, name):
        _, hba, device, *_rest = name.split('/')
        attributes = f'/sys/kernel/config/target/core/user_{hba}/{device}/attrib'
        size = int(open(f'{attributes}/dev_size').read())
        region = int(open(f'/sys/class/uio/uio{minor}/maps/map0/size').read(), 16)
        fd = os.open(f'/dev/uio{minor}', os.O_RDWR | os.O_NONBLOCK)
        ring = Ring(fd, fd, region, RamDisk(size))
        source = self.watch.io_add_watch(fd, self.watch.IO_IN | self.watch.IO_ERR, self.on_commands, minor)
        self.rings[minor] = fd, ring, source
        ring.drain()  # what was published before the device was opened wakes nobody

    def on_commands(self, fd, condition, minor):
        if condition & self.watch.IO_ERR or minor not in self.rings:
            return False
        os.read(fd, 4)  # before the ring is looked at, or a wakeup is lost
        self.rings[minor][1].drain()
        return True

    def remove(self, minor):
        if minor in self.rings:
            fd, ring, source = self.rings.pop(minor)
            self.watch.source_remove(source)
            ring.close()
            os.close(fd)


def register(bus):
    """Takes the name that stands for our subtype, and tells the daemon of it. @returns what the daemon says about it"""
    import dbus
    import dbus.service

    class Interface(dbus.service.Object):
        @dbus.service.method(SERVICE, in_signature='s', out_signature='bs')
        def CheckConfig(self, config):
            good = re.match(rf'{SUBTYPE}/.', config) is not None
            return good, '' if good else f'{config}: something has to stand behind {SUBTYPE}/'

    name = dbus.service.BusName(f'{SERVICE}.HandlerManager1.{SUBTYPE}', bus, do_not_queue=True)
    interface = Interface(name, f'{REGISTRY}/{SUBTYPE}')
    manager = dbus.Interface(bus.get_object(SERVICE, REGISTRY), f'{SERVICE}.HandlerManager1')
    words = 'a disk in memory, gone when its handler ends: cfgstring=ANYTHING'

    def answered(done, message):
        print('registered' if done else f'not registered: {message}', flush=True)

    # Asynchronous: the daemon asks the bus for our name before it answers.
    manager.RegisterHandler(SUBTYPE, words, reply_handler=answered, error_handler=lambda error: answered(False, error))
    return interface


def serve_files(memory, events, kicks, size):
    """For tests: one device whose ring is in a file, with named pipes for the kernel's wakeups and ours."""
    fds = [os.open(path, os.O_RDWR) for path in (memory, events, kicks)]
    ring = Ring(fds[0], fds[2], size, RamDisk(1 << 20))
    print('ready', flush=True)
    while True:
        ring.drain()
        os.read(fds[1], 4)


def main():
    if sys.argv[1:2] == ['--files']:
        serve_files(*sys.argv[2:5], int(sys.argv[5]))
    import dbus
    from dbus.mainloop.glib import DBusGMainLoop
    from gi.repository import GLib
    loop = GLib.MainLoop()
    bus = dbus.SystemBus(mainloop=DBusGMainLoop())
    # A machine without the kernel's target can still be asked over D-Bus.
    handler = Handler(loop) if sys.argv[1:2] != ['--no-kernel'] else None
    interface = register(bus)
    loop.run()
    del handler, interface


if __name__ == '__main__':
    main()
