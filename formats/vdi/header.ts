import { type ErrorCode, ImageError } from '../core/errors.ts';
import { bytes, reserved, Struct, type StructOf, u32, u64 } from '../core/struct.ts';
import { alignDown, hex, MiB } from '../core/units.ts';
import { isNullUuid, type UuidBytes, uuidText } from './uuid.ts';

/**
 * The header of VDI files. Layouts after VirtualBox's own description of its format (VDICore.h, "VDIPREHEADER", "VDIHEADER0", "VDIHEADER1PLUS"),
 * see docs/formats/vdi.md. Everything is little-endian.
 */
export const SIGNATURE = 0xbeda107f;
const VERSION_0 = 0x00000002;
const VERSION_1_1 = 0x00010001;

export const TYPE_DYNAMIC = 1;
export const TYPE_FIXED = 2;
export const TYPE_UNDO = 3;
export const TYPE_DIFFERENCING = 4;
export const TYPE_NAMES: Readonly<Record<number, string>> = {
  [TYPE_DYNAMIC]: 'dynamic',
  [TYPE_FIXED]: 'fixed',
  [TYPE_UNDO]: 'undo',
  [TYPE_DIFFERENCING]: 'differencing',
};

/** Block map entries from here on are no places: nothing is allocated. */
export const ENTRY_ZERO = 0xfffffffe;
/** Never written: the parent's bytes; zeros in a base. */
export const ENTRY_FREE = 0xffffffff;

const FLAG_ZERO_EXPAND = 1;
/** The least that cbHeader says: all but the second geometry. */
const HEADER_SIZE_V1_1 = 0x180;
const HEADER_SIZE_NOW = 0x190;
const MIN_BLOCK = 512;
/** A partial write fills a block: larger ones would take that much memory. VirtualBox makes blocks of 1 MiB. */
export const MAX_BLOCK = 64 * MiB;
/** QEMU's limit on the number of blocks too: the map stays below 2 GiB. */
export const MAX_BLOCKS = 2 ** 29 - 128;

export const PRE_HEADER = new Struct(
  'vdi pre-header',
  { size: 0x48, endian: 'little' },
  {
    info: bytes(0, 64),
    signature: u32(0x40),
    version: u32(0x44),
  },
);

/** Version 1.1, without the second geometry at its end. */
export const HEADER_V1 = new Struct(
  'vdi header',
  { size: 0x1c8, endian: 'little' },
  {
    info: bytes(0, 64),
    signature: u32(0x40),
    version: u32(0x44),
    cbHeader: u32(0x48),
    type: u32(0x4c),
    flags: u32(0x50),
    comment: bytes(0x54, 256),
    offBlocks: u32(0x154),
    offData: u32(0x158),
    cylinders: u32(0x15c),
    heads: u32(0x160),
    sectors: u32(0x164),
    cbSector: u32(0x168),
    unused: reserved(0x16c, 4),
    cbDisk: u64(0x170),
    cbBlock: u32(0x178),
    cbBlockExtra: u32(0x17c),
    cBlocks: u32(0x180),
    cBlocksAllocated: u32(0x184),
    uuidCreate: bytes(0x188, 16),
    uuidModify: bytes(0x198, 16),
    uuidLinkage: bytes(0x1a8, 16),
    uuidParentModify: bytes(0x1b8, 16),
  },
);

/** The second (logical) geometry of version 1.1 headers of 0x190 bytes. */
export const LOGICAL_GEOMETRY_AT = 0x1c8;
const LOGICAL_GEOMETRY_SIZE = 16;

/** The ancient version: the map is at 420, the data right behind it. */
export const HEADER_V0 = new Struct(
  'vdi header version 0',
  { size: 420, endian: 'little' },
  {
    info: bytes(0, 64),
    signature: u32(0x40),
    version: u32(0x44),
    type: u32(0x48),
    flags: u32(0x4c),
    comment: bytes(0x50, 256),
    cylinders: u32(0x150),
    heads: u32(0x154),
    sectors: u32(0x158),
    cbSector: u32(0x15c),
    cbDisk: u64(0x160),
    cbBlock: u32(0x168),
    cBlocks: u32(0x16c),
    cBlocksAllocated: u32(0x170),
    uuidCreate: bytes(0x174, 16),
    uuidModify: bytes(0x184, 16),
    uuidLinkage: bytes(0x194, 16),
  },
);

/** Bytes of a file that hold any header. */
export const HEADER_READ = LOGICAL_GEOMETRY_AT + LOGICAL_GEOMETRY_SIZE;

export interface VdiHeader {
  readonly version: 0 | 1;
  readonly type: number;
  readonly comment: string;
  /** Byte offset of the block map. */
  readonly offBlocks: number;
  /** Byte offset of the first block (of its extra part, where there is one). */
  readonly offData: number;
  /** As in the header; the guest size is `size`. */
  readonly cbDisk: number;
  /** Guest size, bytes: cbDisk rounded down to sectors, as VirtualBox does. */
  readonly size: number;
  readonly cbBlock: number;
  readonly cbBlockExtra: number;
  readonly cBlocks: number;
  readonly cBlocksAllocated: number;
  readonly uuidCreate: UuidBytes;
  readonly uuidModify: UuidBytes;
  readonly uuidLinkage: UuidBytes;
  /** Zeros in version 0, which has no such field. */
  readonly uuidParentModify: UuidBytes;
}

/** Whether the first bytes of a file are those of a VDI image. */
export function hasSignature(head: Uint8Array): boolean {
  if (head.length < PRE_HEADER.size) return false;
  return new DataView(head.buffer, head.byteOffset, head.length).getUint32(0x40, true) === SIGNATURE;
}

/**
 * Decodes and checks the header of a VDI image.
 *
 * @param head the first HEADER_READ bytes of the file, or all of it when it is shorter
 * @param fileSize bytes; the block map must lie inside
 * @throws {ImageError} BAD_MAGIC, BAD_HEADER, UNSUPPORTED, TRUNCATED with field and byte offset
 */
export function parseHeader(head: Uint8Array, fileSize: number, path: string): VdiHeader {
  const view = new DataView(head.buffer, head.byteOffset, head.length);
  if (!hasSignature(head)) throw new ImageError('BAD_MAGIC', 'vdi header: no VDI signature', { path, offset: 0x40 });
  const { version } = PRE_HEADER.read(view);
  if (version !== VERSION_0 && version !== VERSION_1_1) {
    throw new ImageError('UNSUPPORTED', `vdi header: version ${hex(version)} is neither 1.1 nor 0`, {
      path,
      field: 'version',
      offset: 0x44,
    });
  }
  const header = version === VERSION_0 ? readV0(view, path) : readV1(view, path);
  checkHeader(header, fileSize, path);
  return header;
}

function readV1(view: DataView, path: string): VdiHeader & { flags: number; cbSector: number } {
  requireLength(view, HEADER_V1.size, path);
  const raw = HEADER_V1.read(view);
  if (raw.cbHeader < HEADER_SIZE_V1_1) {
    throw new ImageError('BAD_HEADER', `vdi header: cbHeader is ${hex(raw.cbHeader)}, less than 0x180`, {
      path,
      field: 'cbHeader',
      offset: HEADER_V1.fields.cbHeader.at,
    });
  }
  return { ...raw, version: 1, comment: textOf(raw.comment), size: alignDown(raw.cbDisk, 512) };
}

function readV0(view: DataView, path: string): VdiHeader & { flags: number; cbSector: number } {
  requireLength(view, HEADER_V0.size, path);
  const raw = HEADER_V0.read(view);
  return {
    ...raw,
    version: 0,
    comment: textOf(raw.comment),
    size: alignDown(raw.cbDisk, 512),
    offBlocks: HEADER_V0.size,
    offData: HEADER_V0.size + 4 * raw.cBlocks,
    cbBlockExtra: 0,
    uuidParentModify: new Uint8Array(16),
  };
}

function requireLength(view: DataView, length: number, path: string): void {
  if (view.byteLength < length)
    throw new ImageError('TRUNCATED', `the file ends inside the header`, { path, offset: view.byteLength });
}

/** The comment up to its first zero byte. */
function textOf(field: Uint8Array): string {
  const end = field.indexOf(0);
  return new TextDecoder().decode(end < 0 ? field : field.subarray(0, end));
}

function checkHeader(header: VdiHeader & { flags: number; cbSector: number }, fileSize: number, path: string): void {
  const layout: { fields: Record<string, { at: number }> } = header.version === 0 ? HEADER_V0 : HEADER_V1;
  const check = (holds: boolean, field: string, why: string, code: ErrorCode = 'BAD_HEADER'): void => {
    if (!holds) throw new ImageError(code, `vdi header: ${why}`, { path, field, offset: layout.fields[field]?.at });
  };
  check(header.type >= 1 && header.type <= 4, 'type', `there is no type ${header.type}`);
  check(
    (header.flags & ~FLAG_ZERO_EXPAND) === 0,
    'flags',
    `it has flags that are not known here: ${hex(header.flags)}`,
    'UNSUPPORTED',
  );
  check(header.cbSector === 512, 'cbSector', `sectors of ${header.cbSector} bytes`);
  check(isPowerOfTwo(header.cbBlock), 'cbBlock', `a block size of ${header.cbBlock} is no power of two`);
  check(header.cbBlock >= MIN_BLOCK, 'cbBlock', `blocks of ${header.cbBlock} bytes are smaller than a sector`);
  check(
    header.cbBlock <= MAX_BLOCK,
    'cbBlock',
    `blocks of ${header.cbBlock} bytes are larger than ${MAX_BLOCK}`,
    'UNSUPPORTED',
  );
  check(
    header.cbBlockExtra === 0 || isPowerOfTwo(header.cbBlockExtra),
    'cbBlockExtra',
    `${header.cbBlockExtra} extra bytes in each block are no power of two`,
  );
  check(Number.isSafeInteger(header.cbDisk), 'cbDisk', 'the disk has 2^53 bytes or more', 'UNSUPPORTED');
  check(header.cBlocks <= MAX_BLOCKS, 'cBlocks', `${header.cBlocks} blocks are more than ${MAX_BLOCKS}`, 'UNSUPPORTED');
  check(
    header.cBlocks * header.cbBlock >= header.size,
    'cBlocks',
    `${header.cBlocks} blocks of ${header.cbBlock} bytes do not hold a disk of ${header.cbDisk}`,
  );
  check(
    header.cBlocksAllocated <= header.cBlocks,
    'cBlocksAllocated',
    `${header.cBlocksAllocated} of ${header.cBlocks} blocks are allocated`,
  );
  check(!isNullUuid(header.uuidCreate), 'uuidCreate', 'the image has no id');
  check(!isNullUuid(header.uuidModify), 'uuidModify', 'the image has no modification id');
  const mapEnd = header.offBlocks + 4 * header.cBlocks;
  if (header.version === 1) {
    check(header.offBlocks >= HEADER_V1.size, 'offBlocks', `the block map at ${header.offBlocks} lies in the header`);
    check(header.offBlocks % 4 === 0, 'offBlocks', `the block map at ${header.offBlocks} is not aligned`);
    check(header.offData >= mapEnd, 'offData', `the data at ${header.offData} lie in the block map`);
  }
  check(mapEnd <= fileSize, 'cBlocks', `the file ends before its block map does, at ${mapEnd}`, 'TRUNCATED');
}

function isPowerOfTwo(value: number): boolean {
  return value > 0 && (value & (value - 1)) === 0;
}

const INFO_TEXT = '<<< Oracle VM VirtualBox Disk Image >>>\n';

/** A version 1.1 header as VirtualBox writes it, of HEADER_READ bytes. */
export function encodeHeader(
  header: Omit<StructOf<typeof HEADER_V1>, keyof typeof CONSTANT_FIELDS | 'comment'> & { comment: string },
): Uint8Array {
  const comment = new TextEncoder().encode(header.comment);
  if (comment.length > 255) throw new ImageError('INVALID', 'the comment of a VDI image has at most 255 bytes');
  const padded = new Uint8Array(256);
  padded.set(comment);
  const all = new Uint8Array(HEADER_READ);
  all.set(HEADER_V1.encode({ ...CONSTANT_FIELDS, ...header, comment: padded }));
  // No logical geometry: cylinders, heads and sectors 0 say that nobody has chosen one.
  new DataView(all.buffer).setUint32(LOGICAL_GEOMETRY_AT + 12, 512, true);
  return all;
}

function infoField(): Uint8Array {
  const info = new Uint8Array(64);
  info.set(new TextEncoder().encode(INFO_TEXT));
  return info;
}

const CONSTANT_FIELDS = {
  info: infoField(),
  signature: SIGNATURE,
  version: VERSION_1_1,
  cbHeader: HEADER_SIZE_NOW,
  flags: 0,
  cylinders: 0,
  heads: 0,
  sectors: 0,
  cbSector: 512,
};

/** For messages and `info`. */
export function headerIds(header: VdiHeader): {
  image: string;
  modification: string;
  parent: string;
  parentModification: string;
} {
  return {
    image: uuidText(header.uuidCreate),
    modification: uuidText(header.uuidModify),
    parent: uuidText(header.uuidLinkage),
    parentModification: uuidText(header.uuidParentModify),
  };
}
