import { type ErrorCode, ImageError } from '../core/errors.ts';
import { bytes, reserved, Struct, type StructOf, u8, u16, u32, u64 } from '../core/struct.ts';
import { hex } from '../core/units.ts';

/**
 * Headers of sparse extents. Layouts after VMware's "Virtual Disk Format 5.0" (hosted sparse "KDMV", ESX COW "COWD"); everything is
 * little-endian and in sectors of 512 bytes.
 */
export const SECTOR = 512;
export const MAGIC_HOSTED = 0x564d444b;
export const MAGIC_COWD = 0x44574f43;

export const FLAG_NEWLINE_TEST = 0x1;
export const FLAG_REDUNDANT = 0x2;
export const FLAG_ZEROED_GRAIN = 0x4;
export const FLAG_COMPRESSED = 0x10000;
export const FLAG_MARKERS = 0x20000;
const KNOWN_INCOMPATIBLE = FLAG_COMPRESSED | FLAG_MARKERS;

/** gdOffset of a stream whose directory is found by the footer: all bits set. */
const AT_END = { high: 0xffffffff, low: 0xffffffff };

export const HOSTED_HEADER = new Struct(
  'vmdk sparse header',
  { size: SECTOR, endian: 'little' },
  {
    magic: u32(0),
    version: u32(4),
    flags: u32(8),
    capacity: u64(12),
    grainSize: u64(20),
    descriptorOffset: u64(28),
    descriptorSize: u64(36),
    numGTEsPerGT: u32(44),
    rgdOffset: u64(48),
    gdOffset: u64(56),
    overHead: u64(64),
    uncleanShutdown: u8(72),
    newlineTest: bytes(73, 4),
    compressAlgorithm: u16(77),
    unused: reserved(79, 433),
  },
);

export const NEWLINE_TEST = Uint8Array.of(0x0a, 0x20, 0x0d, 0x0a);
/** Most sectors in a grain: 64 MiB of memory for a partial write. */
const MAX_GRAIN = 0x20000;
/** Directory entries: 8 MiB of memory. Two TiB in grains of 8 sectors, the least that the specification allows, need 2^20. */
export const MAX_DIRECTORY = 2 ** 21;

export type HostedHeader = StructOf<typeof HOSTED_HEADER> & {
  /** The directory's place is in the footer. */
  readonly directoryAtEnd: boolean;
};

/** @throws {ImageError} BAD_MAGIC, BAD_HEADER, UNSUPPORTED, TRUNCATED with field and offset */
export function parseHosted(sector: Uint8Array, path: string, at = 0): HostedHeader {
  if (sector.length < SECTOR)
    throw new ImageError('TRUNCATED', 'the file ends inside the header', { path, offset: at + sector.length });
  const view = new DataView(sector.buffer, sector.byteOffset, sector.length);
  const raw = HOSTED_HEADER.read(view);
  const check = (
    holds: boolean,
    field: keyof typeof HOSTED_HEADER.fields,
    why: string,
    code: ErrorCode = 'BAD_HEADER',
  ) => {
    if (!holds)
      throw new ImageError(code, `vmdk sparse header: ${why}`, {
        path,
        field,
        offset: at + HOSTED_HEADER.fields[field].at,
      });
  };
  check(raw.magic === MAGIC_HOSTED, 'magic', `magic is ${hex(raw.magic)}`, 'BAD_MAGIC');
  check(raw.version >= 1 && raw.version <= 3, 'version', `version ${raw.version} is none of 1, 2, 3`, 'UNSUPPORTED');
  const unknown = raw.flags & 0xffff0000 & ~KNOWN_INCOMPATIBLE;
  check(unknown === 0, 'flags', `it has flags that are not known here: ${hex(unknown >>> 0)}`, 'UNSUPPORTED');
  if ((raw.flags & FLAG_NEWLINE_TEST) !== 0) {
    check(
      raw.newlineTest.every((byte, i) => byte === NEWLINE_TEST[i]),
      'newlineTest',
      'its line ends were converted: the file was transferred as text',
    );
  }
  check(
    raw.grainSize >= 1 && raw.grainSize <= MAX_GRAIN && Number.isInteger(Math.log2(raw.grainSize)),
    'grainSize',
    `grains of ${raw.grainSize} sectors`,
  );
  check(
    raw.numGTEsPerGT >= 1 && raw.numGTEsPerGT <= 512 && Number.isInteger(Math.log2(raw.numGTEsPerGT)),
    'numGTEsPerGT',
    `grain tables of ${raw.numGTEsPerGT} entries`,
    'UNSUPPORTED',
  );
  check(raw.capacity <= 2 ** 43, 'capacity', `${raw.capacity} sectors`, 'UNSUPPORTED');
  check(
    Math.ceil(raw.capacity / raw.grainSize / raw.numGTEsPerGT) <= MAX_DIRECTORY,
    'capacity',
    `${raw.capacity} sectors in grains of ${raw.grainSize} need a directory of more than ${MAX_DIRECTORY} entries`,
    'UNSUPPORTED',
  );
  const compressed = (raw.flags & FLAG_COMPRESSED) !== 0;
  check(
    !compressed || raw.compressAlgorithm === 1,
    'compressAlgorithm',
    `there is no compression ${raw.compressAlgorithm}`,
    'UNSUPPORTED',
  );
  const gd = HOSTED_HEADER.fields.gdOffset.at;
  const directoryAtEnd = view.getUint32(gd, true) === AT_END.low && view.getUint32(gd + 4, true) === AT_END.high;
  if (!directoryAtEnd)
    check(raw.gdOffset <= 0xffffffff, 'gdOffset', `the grain directory is at sector ${raw.gdOffset}`);
  if ((raw.flags & FLAG_REDUNDANT) !== 0 && !compressed)
    check(raw.rgdOffset <= 0xffffffff, 'rgdOffset', `the redundant grain directory is at sector ${raw.rgdOffset}`);
  check(raw.overHead <= 0xffffffff, 'overHead', `metadata of ${raw.overHead} sectors`);
  return { ...raw, directoryAtEnd };
}

/** A header of one sector. `gdOffset` 'at-end' is what a stream has. */
export function encodeHosted(
  header: Omit<StructOf<typeof HOSTED_HEADER>, 'magic' | 'newlineTest' | 'gdOffset' | 'uncleanShutdown'> & {
    gdOffset: number | 'at-end';
  },
): Uint8Array {
  const { gdOffset } = header;
  const all = HOSTED_HEADER.encode({
    ...header,
    magic: MAGIC_HOSTED,
    newlineTest: NEWLINE_TEST,
    uncleanShutdown: 0,
    gdOffset: gdOffset === 'at-end' ? 0 : gdOffset,
  });
  const at = HOSTED_HEADER.fields.gdOffset.at;
  if (gdOffset === 'at-end') all.fill(0xff, at, at + 8);
  return all;
}

/** ESX copy-on-write extents ("vmfsSparse"). */
export const COWD_HEADER_SIZE = 2048;
export const COWD_TABLE_ENTRIES = 4096;
export const COWD_HEADER = new Struct(
  'vmdk COWD header',
  { size: COWD_HEADER_SIZE, endian: 'little' },
  {
    magic: u32(0),
    version: u32(4),
    flags: u32(8),
    numSectors: u32(12),
    grainSize: u32(16),
    gdOffset: u32(20),
    numGDEntries: u32(24),
    freeSector: u32(28),
    parent: bytes(32, 1028),
    generation: u32(1060),
    name: bytes(1064, 60),
    description: bytes(1124, 512),
    savedGeneration: u32(1636),
    spare: reserved(1640, 8),
    uncleanShutdown: u32(1648),
    padding: reserved(1652, 396),
  },
);

export type CowdHeader = StructOf<typeof COWD_HEADER>;

export function parseCowd(head: Uint8Array, path: string): CowdHeader {
  if (head.length < COWD_HEADER_SIZE)
    throw new ImageError('TRUNCATED', 'the file ends inside the header', { path, offset: head.length });
  const raw = COWD_HEADER.read(new DataView(head.buffer, head.byteOffset, head.length));
  const check = (
    holds: boolean,
    field: keyof typeof COWD_HEADER.fields,
    why: string,
    code: ErrorCode = 'BAD_HEADER',
  ) => {
    if (!holds)
      throw new ImageError(code, `vmdk COWD header: ${why}`, { path, field, offset: COWD_HEADER.fields[field].at });
  };
  check(raw.magic === MAGIC_COWD, 'magic', `magic is ${hex(raw.magic)}`, 'BAD_MAGIC');
  check(raw.version === 1, 'version', `version ${raw.version} is not 1`, 'UNSUPPORTED');
  check(
    raw.grainSize >= 1 && raw.grainSize <= MAX_GRAIN && Number.isInteger(Math.log2(raw.grainSize)),
    'grainSize',
    `grains of ${raw.grainSize} sectors`,
  );
  const needed = Math.ceil(raw.numSectors / raw.grainSize / COWD_TABLE_ENTRIES);
  check(
    raw.numGDEntries >= needed,
    'numGDEntries',
    `a directory of ${raw.numGDEntries} entries does not hold ${raw.numSectors} sectors`,
  );
  check(raw.numGDEntries <= MAX_DIRECTORY, 'numGDEntries', `a directory of ${raw.numGDEntries} entries`, 'UNSUPPORTED');
  check(
    raw.gdOffset * SECTOR >= COWD_HEADER_SIZE,
    'gdOffset',
    `the grain directory at sector ${raw.gdOffset} lies in the header`,
  );
  return raw;
}
