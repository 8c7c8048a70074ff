# Sends random commands to a disk by SG_IO, from a fixed seed: opcodes of all kinds, lengths that do not fit, in both directions. None may
# hang or end the daemon; each ends with a status.
import ctypes
import fcntl
import os
import random
import sys

SG_IO = 0x2285
TO_DEVICE, FROM_DEVICE, NO_DATA = -2, -3, -1


class Header(ctypes.Structure):
    _fields_ = [
        ("interface_id", ctypes.c_int), ("direction", ctypes.c_int), ("cmd_len", ctypes.c_ubyte),
        ("mx_sb_len", ctypes.c_ubyte), ("iovec_count", ctypes.c_ushort), ("dxfer_len", ctypes.c_uint),
        ("dxferp", ctypes.c_void_p), ("cmdp", ctypes.c_void_p), ("sbp", ctypes.c_void_p), ("timeout", ctypes.c_uint),
        ("flags", ctypes.c_uint), ("pack_id", ctypes.c_int), ("usr_ptr", ctypes.c_void_p), ("status", ctypes.c_ubyte),
        ("masked_status", ctypes.c_ubyte), ("msg_status", ctypes.c_ubyte), ("sb_len_wr", ctypes.c_ubyte),
        ("host_status", ctypes.c_ushort), ("driver_status", ctypes.c_ushort), ("resid", ctypes.c_int),
        ("duration", ctypes.c_uint), ("info", ctypes.c_uint),
    ]


def send(fd, cdb, direction, length, fill):
    command = (ctypes.c_ubyte * len(cdb))(*cdb)
    data = ctypes.create_string_buffer(bytes([fill]) * length, length) if length else None
    sense = ctypes.create_string_buffer(96)
    header = Header(interface_id=ord("S"), direction=direction if length else NO_DATA, cmd_len=len(cdb), mx_sb_len=96,
                    dxfer_len=length, dxferp=ctypes.cast(data, ctypes.c_void_p) if length else None,
                    cmdp=ctypes.cast(command, ctypes.c_void_p), sbp=ctypes.cast(sense, ctypes.c_void_p), timeout=20000)
    fcntl.ioctl(fd, SG_IO, header)
    return header.status, header.host_status, data.raw if length else b"", sense.raw[: header.sb_len_wr]


def length_of(opcode):
    return [6, 10, 10, 12, 16, 12, 10, 10][opcode >> 5]


source = random.Random(20261125)
disk = os.open(sys.argv[1], os.O_RDWR)
statuses = {}
leaks = 0
for round in range(600):
    known = [0x00, 0x03, 0x12, 0x15, 0x1A, 0x1B, 0x1E, 0x25, 0x28, 0x2A, 0x2E, 0x2F, 0x34, 0x35, 0x37, 0x41, 0x42, 0x55, 0x5A, 0x83,
             0x84, 0x88, 0x89, 0x8A, 0x8B, 0x8E, 0x8F, 0x90, 0x91, 0x93, 0x9E, 0xA3, 0xA8, 0xAA, 0xAF, 0xB7]
    opcode = source.choice(known) if source.random() < 0.7 else source.randrange(256)
    # Not what ends the medium or the session: FORMAT UNIT, SANITIZE, ejecting, and what the kernel answers by itself.
    if opcode in (0x04, 0x48, 0x1B, 0x16, 0x17, 0x56, 0x57, 0x5E, 0x5F, 0x7F):
        continue
    size = length_of(opcode)
    cdb = [opcode] + [source.choice([0, 0, 0, 1, 0xFF, source.randrange(256)]) for _ in range(size - 1)]
    if source.random() < 0.8:
        cdb[-1] = 0
    direction = source.choice([TO_DEVICE, FROM_DEVICE])
    length = source.choice([0, 0, 1, 36, 96, 512, 4096, 65536, 100000])
    status, host, data, sense = send(disk, cdb, direction, length, source.randrange(256))
    statuses[status] = statuses.get(status, 0) + 1
    if host not in (0, 7):
        print("host status", host, "for", bytes(cdb).hex(), "length", length)
        sys.exit(1)
    if status == 2 and (len(sense) < 8 or sense[0] & 0x7F not in (0x70, 0x71, 0x72, 0x73)):
        print("bad sense for", bytes(cdb).hex(), sense.hex())
        sys.exit(1)
# Unsupported opcodes say so.
for opcode in (0xC0, 0x60, 0xE5):
    status, host, data, sense = send(disk, [opcode] + [0] * (length_of(opcode) - 1), FROM_DEVICE, 64, 0)
    if status != 2 or sense[2] & 15 != 5 or sense[12] != 0x20:
        print("opcode", hex(opcode), "status", status, "sense", sense.hex())
        sys.exit(1)
# What is not the answer is zeros: pages of other commands are behind the buffer.
for expected in (36, 96, 255):
    status, host, data, sense = send(disk, [0x12, 0, 0, 0, expected, 0], FROM_DEVICE, 8192, 0xEE)
    if status != 0 or any(data[96:4096].replace(b"\xee", b"")):
        print("bytes behind the answer to INQUIRY:", data[:300].hex())
        sys.exit(1)
print("statuses", statuses)
