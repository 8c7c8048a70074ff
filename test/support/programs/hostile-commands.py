"""Sends random SCSI commands to a disk: every opcode, fields that do not fit, lengths that do not match, in both directions.

    hostile-commands.py COUNT SEED DISK [ERASE]

DISK is a device, to which they go by SG_IO, or an iscsi:// URL, to which they go by libiscsi. The disk is filled with a text first, which may
come back from reads only. Each command has to end with a status, and in time; a check condition with sense data that say why. ERASE commands
of FORMAT UNIT and SANITIZE follow. Prints the statuses, and ends with 1 at the first command that is not answered as it should be.
"""
import ctypes
import ctypes.util
import errno
import fcntl
import os
import random
import sys
import time

TO_DEVICE, FROM_DEVICE, NO_DATA = -2, -3, -1
CHECK_CONDITION = 2
SECRET = b"what is on disk;"
# What is read of a buffer that a command did not fill.
UNTOUCHED = 0xEE
TIMEOUT = 60


class SgHeader(ctypes.Structure):
    _fields_ = [
        ("interface_id", ctypes.c_int), ("direction", ctypes.c_int), ("cmd_len", ctypes.c_ubyte),
        ("mx_sb_len", ctypes.c_ubyte), ("iovec_count", ctypes.c_ushort), ("dxfer_len", ctypes.c_uint),
        ("dxferp", ctypes.c_void_p), ("cmdp", ctypes.c_void_p), ("sbp", ctypes.c_void_p), ("timeout", ctypes.c_uint),
        ("flags", ctypes.c_uint), ("pack_id", ctypes.c_int), ("usr_ptr", ctypes.c_void_p), ("status", ctypes.c_ubyte),
        ("masked_status", ctypes.c_ubyte), ("msg_status", ctypes.c_ubyte), ("sb_len_wr", ctypes.c_ubyte),
        ("host_status", ctypes.c_ushort), ("driver_status", ctypes.c_ushort), ("resid", ctypes.c_int),
        ("duration", ctypes.c_uint), ("info", ctypes.c_uint),
    ]


class Device:
    """A disk of this machine, by SG_IO."""

    # Linux takes no longer ones. The kernel's target copies as many bytes as the CDB says that it has.
    cdb_lengths = {3: [32]}
    # Persistent reservations and reservations are the kernel's own, and stopping is undone by its error handling.
    left_out = {0x16, 0x17, 0x56, 0x57, 0x5E, 0x5F}

    def __init__(self, path):
        self.fd = os.open(path, os.O_RDWR)

    def send(self, cdb, direction, data):
        command = (ctypes.c_ubyte * len(cdb))(*cdb)
        buffer = ctypes.create_string_buffer(bytes(data), len(data)) if data else None
        sense = ctypes.create_string_buffer(252)
        header = SgHeader(
            interface_id=ord("S"), direction=direction if data else NO_DATA, cmd_len=len(cdb), mx_sb_len=252,
            dxfer_len=len(data), dxferp=ctypes.cast(buffer, ctypes.c_void_p) if data else None,
            cmdp=ctypes.cast(command, ctypes.c_void_p), sbp=ctypes.cast(sense, ctypes.c_void_p), timeout=TIMEOUT * 1000)
        fcntl.ioctl(self.fd, 0x2285, header)
        # 7: DID_ERROR, for residuals that make no sense to Linux.
        if header.host_status not in (0, 7):
            fail("host status %d" % header.host_status, cdb, data)
        sense = sense.raw[: header.sb_len_wr]
        response = sense[0] & 0x7F if len(sense) >= 8 else 0
        key, code = (sense[1] & 15, sense[2]) if response >= 0x72 else (sense[2] & 15, sense[12]) if response else (0, 0)
        returned = buffer.raw if data and direction == FROM_DEVICE else b""
        return header.status, response, key, code, returned


class IscsiData(ctypes.Structure):
    _fields_ = [("size", ctypes.c_size_t), ("data", ctypes.c_void_p)]


class IscsiTask(ctypes.Structure):
    # The beginning of libiscsi's struct scsi_task.
    _fields_ = [
        ("status", ctypes.c_int), ("cdb_size", ctypes.c_int), ("direction", ctypes.c_int), ("expected", ctypes.c_int),
        ("cdb", ctypes.c_ubyte * 16), ("residual_status", ctypes.c_int), ("residual", ctypes.c_size_t),
        ("error_type", ctypes.c_ubyte), ("key", ctypes.c_int), ("ascq", ctypes.c_int), ("specific", ctypes.c_uint),
        ("in_size", ctypes.c_int), ("in_data", ctypes.c_void_p),
    ]


class Iscsi:
    """A LUN of an iSCSI target, by libiscsi."""

    cdb_lengths = {3: [16]}
    left_out = set()

    def __init__(self, url):
        library = ctypes.CDLL(ctypes.util.find_library("iscsi") or "libiscsi.so.7")
        for name in ("iscsi_create_context", "scsi_create_task", "iscsi_scsi_command_sync", "iscsi_get_error"):
            getattr(library, name).restype = ctypes.c_char_p if name == "iscsi_get_error" else ctypes.POINTER(IscsiTask)
        library.iscsi_create_context.restype = ctypes.c_void_p
        self.library = library
        portal, target, lun = url.removeprefix("iscsi://").split("/")
        self.lun = int(lun)
        self.context = ctypes.c_void_p(library.iscsi_create_context(b"iqn.2026-11.org.example:hostile"))
        library.iscsi_set_targetname(self.context, target.encode())
        library.iscsi_set_session_type(self.context, 2)
        library.iscsi_set_noautoreconnect(self.context, 1)
        if library.iscsi_full_connect_sync(self.context, portal.encode(), self.lun) != 0:
            sys.exit("%s: %s" % (url, self.error()))
        library.iscsi_set_timeout(self.context, TIMEOUT)

    def error(self):
        return self.library.iscsi_get_error(self.context).decode()

    def send(self, cdb, direction, data):
        command = (ctypes.c_ubyte * len(cdb))(*cdb)
        kind = 0 if not data else 2 if direction == TO_DEVICE else 1
        task = self.library.scsi_create_task(len(cdb), command, kind, len(data))
        buffer = ctypes.create_string_buffer(bytes(data), len(data)) if data else None
        out = IscsiData(len(data), ctypes.cast(buffer, ctypes.c_void_p)) if kind == 2 else None
        done = self.library.iscsi_scsi_command_sync(self.context, self.lun, task, ctypes.byref(out) if out else None)
        if not done or task.contents.status > 0xFF:
            fail("no status: %s" % self.error(), cdb, data)
        end = task.contents
        # With a check condition it has the sense data there.
        data_came = end.status != CHECK_CONDITION and end.in_data and end.in_size > 0
        returned = ctypes.string_at(end.in_data, end.in_size) if data_came else b""
        if len(returned) > len(data):
            fail("%d bytes came for %d" % (len(returned), len(data)), cdb, data)
        outcome = end.status, end.error_type & 0x7F, end.key, end.ascq >> 8, returned
        self.library.scsi_free_scsi_task(task)
        return outcome


def fail(what, cdb, data):
    print("%s: %s, %d bytes" % (what, bytes(cdb).hex(), len(data)))
    sys.exit(1)


def lengths_of(opcode, disk):
    group = opcode >> 5
    return disk.cdb_lengths.get(group) or [[6], [10], [10], [16], [16], [12], [6, 10, 16], [6, 12, 16]][group]


READS = {0x08, 0x28, 0x88, 0xA8, 0xBE, 0xB9}
KNOWN = [0x00, 0x03, 0x08, 0x0A, 0x12, 0x15, 0x1A, 0x1B, 0x1D, 0x1E, 0x25, 0x28, 0x2A, 0x2E, 0x2F, 0x34, 0x35, 0x37, 0x3B, 0x3C, 0x41, 0x42,
         0x4D, 0x55, 0x5A, 0x83, 0x84, 0x88, 0x89, 0x8A, 0x8B, 0x8E, 0x8F, 0x90, 0x91, 0x93, 0x9C, 0x9E, 0xA0, 0xA2, 0xA3, 0xA4, 0xA8, 0xAA,
         0xAE, 0xAF, 0xB7, 0x7F, 0x5E, 0x5F]
ERASING = {0x04, 0x48}
STOPPING = 0x1B


def checked(disk, cdb, direction, data):
    """Sends a command and looks at its end. Returns its status."""
    began = time.monotonic()
    try:
        status, response, key, code, returned = disk.send(cdb, direction, data)
    except OSError as error:
        # Linux itself does not take every combination.
        if error.errno in (errno.EINVAL, errno.EMSGSIZE, errno.ENOMEM):
            return "not sent"
        fail("errno %d" % error.errno, cdb, data)
    if time.monotonic() - began > TIMEOUT / 2:
        fail("answered after %d s" % (time.monotonic() - began), cdb, data)
    if status == CHECK_CONDITION and response not in (0x70, 0x71, 0x72, 0x73):
        fail("no sense data", cdb, data)
    if cdb[0] not in READS and not (cdb[0] == 0x7F and cdb[9] == 9) and (SECRET in returned or SECRET[8:] + SECRET[:8] in returned):
        fail("the content of the disk came back", cdb, data)
    return status


def random_cdb(source, opcode, size):
    flavour = source.random()
    if flavour < 0.2:
        rest = [source.randrange(256) for _ in range(size - 1)]
    elif flavour < 0.7:
        rest = [source.choice([0, 0, 0, 1, 0xFF, source.randrange(256)]) for _ in range(size - 1)]
    else:
        # Mostly zeros: what passes the first checks.
        rest = [source.choice([0] * 9 + [source.randrange(256)]) for _ in range(size - 1)]
    cdb = [opcode] + rest
    if source.random() < 0.8:
        cdb[-1] = 0
    if opcode == 0x7F and size == 32:
        # The service actions of READ, VERIFY, WRITE, WRITE AND VERIFY, WRITE SAME, or none that there is.
        cdb[7] = 24
        cdb[8:10] = [0, source.choice([9, 10, 11, 12, 13, source.randrange(256)])]
    return cdb


def random_data(source, cdb, direction):
    length = source.choice([0, 0, 1, 8, 24, 36, 96, 255, 512, 1024, 4096, 65536, 100000])
    if direction == FROM_DEVICE:
        return bytes([UNTOUCHED]) * length
    if source.random() < 0.5:
        return source.randbytes(length)
    return bytes([source.choice([0, 1, 0xFF, source.randrange(256)])]) * length


def fill(disk, blocks):
    """Writes the secret to the first MiB, and reads it: it is in buffers everywhere then."""
    for at in range(0, blocks, 128):
        disk.send([0x2A, 0, 0, 0, at >> 8, at & 255, 0, 0, 128, 0], TO_DEVICE, SECRET * (65536 // len(SECRET)))
        disk.send([0x28, 0, 0, 0, at >> 8, at & 255, 0, 0, 128, 0], FROM_DEVICE, bytes(65536))


def main():
    count, seed, erase = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[4]) if len(sys.argv) > 4 else 0
    disk = Iscsi(sys.argv[3]) if sys.argv[3].startswith("iscsi://") else Device(sys.argv[3])
    source = random.Random(seed)
    statuses = {}

    def one(opcode):
        cdb = random_cdb(source, opcode, source.choice(lengths_of(opcode, disk)))
        direction = source.choice([TO_DEVICE, FROM_DEVICE])
        status = checked(disk, cdb, direction, random_data(source, cdb, direction))
        statuses[status] = statuses.get(status, 0) + 1
        if opcode == STOPPING:
            disk.send([STOPPING, 0, 0, 0, 1, 0], NO_DATA, b"")

    opcodes = [opcode for opcode in range(256) if opcode not in ERASING and opcode not in disk.left_out]
    known = [opcode for opcode in KNOWN if opcode in opcodes]
    for sent in range(count):
        if sent % 500 == 0:
            fill(disk, 2048 if sent == 0 else 256)
        # All of them once, and then mostly those that there are.
        one(opcodes[sent] if sent < len(opcodes) else source.choice(known if source.random() < 0.8 else opcodes))
    # What is not supported says so.
    for opcode in (0xC0, 0x60, 0xE5, 0x02):
        cdb = [opcode] + [0] * (lengths_of(opcode, disk)[0] - 1)
        status, _, key, code, _ = disk.send(cdb, FROM_DEVICE, bytes(64))
        if (status, key, code) != (CHECK_CONDITION, 5, 0x20):
            fail("status %d, sense key %d, code %#x" % (status, key, code), cdb, b"")
    # Behind an answer there are zeros, or nothing: not what the buffer had.
    for asked in (36, 96, 255):
        status, _, _, _, returned = disk.send([0x12, 0, 0, 0, asked, 0], FROM_DEVICE, bytes([UNTOUCHED]) * 8192)
        if status != 0 or any(returned[asked:].replace(bytes([UNTOUCHED]), b"")):
            fail("bytes behind the answer", [0x12, asked], returned)
    for _ in range(erase):
        one(source.choice(sorted(ERASING)))
    # Formatting may go on for a while.
    for _ in range(600):
        if disk.send([0, 0, 0, 0, 0, 0], NO_DATA, b"")[0] == 0:
            break
        time.sleep(0.1)
    fill(disk, 128)
    if disk.send([0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0], FROM_DEVICE, bytes(512))[4] != SECRET * 32:
        sys.exit("the disk does not keep what is written")
    print("statuses", dict(sorted(statuses.items(), key=str)))


main()
