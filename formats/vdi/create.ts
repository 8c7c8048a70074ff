import { LunetteError } from '../core/errors.ts';
import { IoVec } from '../core/iov.ts';
import { alignUp, divideUp, MiB } from '../core/units.ts';
import type { Storage } from '../storage/storage.ts';
import { newMapBytes } from './block-map.ts';
import {
  encodeHeader,
  HEADER_READ,
  MAX_BLOCK,
  MAX_BLOCKS,
  parseHeader,
  TYPE_DIFFERENCING,
  TYPE_DYNAMIC,
  TYPE_FIXED,
  type VdiHeader,
} from './header.ts';
import { parseUuid, randomUuid, type UuidBytes } from './uuid.ts';

export interface VdiCreateOptions {
  /** Bytes, a multiple of 512. Of a child: the parent's when it is left out. */
  readonly size?: number;
  /** `fixed` has all its blocks from the start. A child (with `parent`) is differencing. Default: dynamic. */
  readonly type?: 'dynamic' | 'fixed';
  /** Bytes, a power of two from 4 KiB to 64 MiB. Default: 1 MiB, the only one that QEMU reads; of a child the parent's. */
  readonly blockSize?: number;
  /** Extra bytes before each block: 0 or a power of two. QEMU reads wrong data when there are any. Default: 0. */
  readonly blockExtra?: number;
  /** Makes a child of this VDI image: a linked clone. */
  readonly parent?: Storage;
  /** Makes a child of an image of another format, by the ids it is known by (Layer.ids: uuidCreate, uuidModify); needs a size. */
  readonly parentIds?: { readonly uuid: string; readonly modification: string };
  readonly comment?: string;
  /** Default: random. */
  readonly uuid?: UuidBytes;
}

const FIRST_MAP = 1 * MiB;

/**
 * Writes a new VDI image over an empty storage, laid out as VirtualBox does: map at 1 MiB, data at the next whole MiB.
 *
 * @returns the header that was written
 * @throws {LunetteError} INVALID, TOO_LARGE, BAD_HEADER of the parent
 */
export async function createVdi(storage: Storage, options: VdiCreateOptions): Promise<VdiHeader> {
  const invalid = (why: string): LunetteError => new LunetteError('INVALID', why, { path: storage.path });
  const parent = options.parent === undefined ? undefined : await readHeader(options.parent);
  const size = options.size ?? parent?.size;
  if (size === undefined) throw invalid('a new image needs a size');
  if (!Number.isSafeInteger(size) || size < 0 || size % 512 !== 0)
    throw invalid(`VDI disks are whole sectors: ${size} is no multiple of 512`);
  const blockSize = options.blockSize ?? parent?.cbBlock ?? MiB;
  if (blockSize < 4096 || blockSize > MAX_BLOCK || (blockSize & (blockSize - 1)) !== 0)
    throw invalid(`a block size of ${blockSize} is no power of two from 4 KiB to 64 MiB`);
  const blockExtra = options.blockExtra ?? 0;
  if (blockExtra < 0 || blockExtra > MiB || (blockExtra & (blockExtra - 1)) !== 0)
    throw invalid(`${blockExtra} extra bytes are neither 0 nor a power of two up to 1 MiB`);
  const fixed = options.type === 'fixed';
  const link = parent ?? linkOf(options.parentIds, invalid);
  if (fixed && link !== undefined) throw invalid('a fixed image has no parent');
  const cBlocks = divideUp(size, blockSize);
  const offData = alignUp(FIRST_MAP + 4 * cBlocks, MiB);
  if (cBlocks > MAX_BLOCKS || offData > 0xffffffff)
    throw new LunetteError('TOO_LARGE', `a VDI image of such blocks holds at most ${MAX_BLOCKS * blockSize} bytes`, {
      path: storage.path,
    });
  const header = encodeHeader({
    type: link !== undefined ? TYPE_DIFFERENCING : fixed ? TYPE_FIXED : TYPE_DYNAMIC,
    comment: options.comment ?? '',
    offBlocks: FIRST_MAP,
    offData,
    cbDisk: size,
    cbBlock: blockSize,
    cbBlockExtra: blockExtra,
    cBlocks,
    cBlocksAllocated: fixed ? cBlocks : 0,
    uuidCreate: options.uuid ?? randomUuid(),
    uuidModify: randomUuid(),
    uuidLinkage: link?.uuidCreate ?? new Uint8Array(16),
    uuidParentModify: link?.uuidModify ?? new Uint8Array(16),
  });
  await storage.resize(0);
  await storage.resize(fixed ? offData + cBlocks * (blockSize + blockExtra) : offData);
  const map = newMapBytes(cBlocks, fixed ? 'identity' : 'free');
  if (map.length > 0) await storage.writev(FIRST_MAP, IoVec.of(map));
  await storage.sync();
  // The header last: a file that was cut off before is no image yet.
  await storage.writev(0, IoVec.of(header));
  await storage.sync();
  return parseHeader(header, storage.size, storage.path);
}

function linkOf(
  ids: VdiCreateOptions['parentIds'],
  invalid: (why: string) => LunetteError,
): Pick<VdiHeader, 'uuidCreate' | 'uuidModify'> | undefined {
  if (ids === undefined) return undefined;
  const [uuidCreate, uuidModify] = [parseUuid(ids.uuid), parseUuid(ids.modification)];
  if (uuidCreate === undefined || uuidModify === undefined) throw invalid('the parent has no ids that VDI can name');
  return { uuidCreate, uuidModify };
}

/** The header of a file. @throws {ImageError} as parseHeader */
export async function readHeader(storage: Storage): Promise<VdiHeader> {
  const head = new Uint8Array(Math.min(HEADER_READ, storage.size));
  if (head.length > 0) await storage.readv(0, IoVec.of(head));
  return parseHeader(head, storage.size, storage.path);
}
