import path from 'node:path';
import { LunetteError } from '../core/errors.ts';
import { IoVec } from '../core/iov.ts';
import { alignUp, divideUp, MiB } from '../core/units.ts';
import { setU32LE } from '../core/words.ts';
import type { Storage } from '../storage/storage.ts';
import {
  COWD_HEADER,
  COWD_TABLE_ENTRIES,
  encodeHosted,
  FLAG_NEWLINE_TEST,
  FLAG_REDUNDANT,
  MAGIC_COWD,
  SECTOR,
} from './header.ts';
import { type AdapterType, descriptorText } from './write-descriptor.ts';

export const CREATE_TYPES = [
  'monolithicSparse',
  'monolithicFlat',
  'twoGbMaxExtentSparse',
  'twoGbMaxExtentFlat',
  'vmfs',
  'vmfsSparse',
] as const;
export type VmdkCreateType = (typeof CREATE_TYPES)[number];

export interface VmdkCreateOptions {
  /** Bytes, a multiple of 512. */
  readonly size: number;
  /** Default: monolithicSparse. */
  readonly type?: VmdkCreateType;
  /** Bytes in a grain of hosted extents: a power of two from 4 KiB to 2 MiB. Default: 64 KiB. */
  readonly grainSize?: number;
  readonly adapterType?: AdapterType;
  readonly hwVersion?: string;
  readonly toolsVersion?: string;
  /** 32 hexadecimal digits, of which the last 8 are the CID. Default: random. */
  readonly longContentId?: string;
  /** Makes a delta: what goes into parentFileNameHint, and the parent's ids. Not for flat types. */
  readonly parent?: {
    readonly hint: string;
    readonly cid: number;
    readonly uuid?: string | undefined;
    readonly modification?: string | undefined;
  };
  /**
   * Makes a further file of the disk beside the descriptor. The new storages are synced and closed here.
   *
   * Needed for every type but monolithicSparse.
   */
  readonly createFile?: (name: string) => Promise<Storage>;
}

/** Extents of split disks: 2047 MiB, as VMware and VirtualBox do it. */
const SPLIT = 2047 * MiB;
const DESCRIPTOR_AT = 1;
const DESCRIPTOR_SECTORS = 20;
const TABLE_ENTRIES = 512;
const TABLE_SECTORS = 4;
const GRAIN = 64 * 1024;
const FLAT = /flat$|^vmfs$/i;

/**
 * Writes a new, empty VMDK disk. `storage` becomes the descriptor, or the whole disk for monolithicSparse.
 *
 * @throws {LunetteError} INVALID, TOO_LARGE
 */
export async function createVmdk(storage: Storage, options: VmdkCreateOptions): Promise<void> {
  const type = options.type ?? 'monolithicSparse';
  checkOptions(storage, type, options);
  const describe = (extents: readonly string[]): Uint8Array =>
    new TextEncoder().encode(descriptorText({ ...options, createType: type, extents }));
  await storage.resize(0);
  if (type === 'monolithicSparse') {
    const line = `RW ${options.size / SECTOR} SPARSE "${path.basename(storage.path)}"`;
    await writeHosted(storage, options.size, options.grainSize ?? GRAIN, describe([line]));
    return;
  }
  const lines: string[] = [];
  for (const part of partsOf(type, storage, options.size)) {
    lines.push(`RW ${part.length / SECTOR} ${part.kind} "${part.name}"${part.kind === 'FLAT' ? ' 0' : ''}`);
    const file = await options.createFile?.(part.name);
    if (file === undefined)
      throw new LunetteError('INVALID', `type ${type} needs further files`, { path: storage.path });
    try {
      if (part.kind === 'SPARSE') await writeHosted(file, part.length, options.grainSize ?? GRAIN);
      else if (part.kind === 'VMFSSPARSE') await writeCowd(file, part.length);
      else {
        await file.resize(part.length);
        await file.sync();
      }
    } finally {
      await file.close();
    }
  }
  // The descriptor last: before it there is no disk.
  await storage.writev(0, IoVec.of(describe(lines)));
  await storage.sync();
}

function checkOptions(storage: Storage, type: VmdkCreateType, options: VmdkCreateOptions): void {
  const invalid = (why: string): LunetteError => new LunetteError('INVALID', why, { path: storage.path });
  const { size, grainSize = GRAIN } = options;
  if (!CREATE_TYPES.includes(type)) throw invalid(`there is no type ${type}: ${CREATE_TYPES.join(', ')}`);
  if (!Number.isSafeInteger(size) || size <= 0 || size % SECTOR !== 0)
    throw invalid(`VMDK disks are whole sectors: ${size} is no multiple of 512`);
  if (grainSize < 4096 || grainSize > 2 * MiB || !Number.isInteger(Math.log2(grainSize)))
    throw invalid(`a grain of ${grainSize} bytes is no power of two from 4 KiB to 2 MiB`);
  if (options.parent !== undefined && FLAT.test(type)) throw invalid(`a disk of type ${type} has no parent`);
  if (options.parent !== undefined && /["\r\n]/.test(options.parent.hint))
    throw invalid('the parent has a name that descriptors cannot hold');
  if (/["\r\n]/.test(path.basename(storage.path))) throw invalid('descriptors cannot hold such a name');
  if (options.longContentId !== undefined && !/^[0-9a-f]{32}$/i.test(options.longContentId))
    throw invalid('a content id is 32 hexadecimal digits');
  if ((type === 'monolithicSparse' || type === 'vmfsSparse') && size > 2 ** 41 - 2 ** 32)
    throw new LunetteError('TOO_LARGE', 'sparse extents end below 2 TiB: their sectors have numbers of 32 bits', {
      path: storage.path,
      help: 'twoGbMaxExtentSparse has no such limit',
    });
}

interface Part {
  readonly name: string;
  readonly kind: 'SPARSE' | 'FLAT' | 'VMFS' | 'VMFSSPARSE';
  readonly length: number;
}

function partsOf(type: VmdkCreateType, storage: Storage, size: number): Part[] {
  const base = path.basename(storage.path).replace(/\.vmdk$/i, '');
  if (type === 'monolithicFlat') return [{ name: `${base}-flat.vmdk`, kind: 'FLAT', length: size }];
  if (type === 'vmfs') return [{ name: `${base}-flat.vmdk`, kind: 'VMFS', length: size }];
  if (type === 'vmfsSparse') return [{ name: `${base}-delta.vmdk`, kind: 'VMFSSPARSE', length: size }];
  const sparse = type === 'twoGbMaxExtentSparse';
  return Array.from({ length: divideUp(size, SPLIT) }, (_, i) => ({
    name: `${base}-${sparse ? 's' : 'f'}${String(i + 1).padStart(3, '0')}.vmdk`,
    kind: sparse ? 'SPARSE' : 'FLAT',
    length: Math.min(SPLIT, size - i * SPLIT),
  }));
}

/** An empty hosted extent: header, descriptor, both directories with all their tables. */
async function writeHosted(storage: Storage, length: number, grain: number, descriptor?: Uint8Array): Promise<void> {
  const grainSize = grain / SECTOR;
  const capacity = length / SECTOR;
  const tables = divideUp(divideUp(capacity, grainSize), TABLE_ENTRIES);
  const directorySectors = divideUp(4 * tables, SECTOR);
  const rgdOffset = DESCRIPTOR_AT + DESCRIPTOR_SECTORS;
  const gdOffset = rgdOffset + directorySectors + TABLE_SECTORS * tables;
  const overHead = alignUp(gdOffset + directorySectors + TABLE_SECTORS * tables, grainSize);
  if (descriptor !== undefined && descriptor.length > DESCRIPTOR_SECTORS * SECTOR)
    throw new LunetteError('TOO_LARGE', 'the descriptor does not fit: a name is too long', { path: storage.path });
  await storage.resize(overHead * SECTOR);
  for (const at of [rgdOffset, gdOffset]) {
    const directory = new Uint8Array(4 * tables);
    for (let i = 0; i < tables; i++) setU32LE(directory, 4 * i, at + directorySectors + TABLE_SECTORS * i);
    await storage.writev(at * SECTOR, IoVec.of(directory));
  }
  if (descriptor !== undefined) await storage.writev(DESCRIPTOR_AT * SECTOR, IoVec.of(descriptor));
  await storage.sync();
  const header = encodeHosted({
    version: 1,
    flags: FLAG_NEWLINE_TEST | FLAG_REDUNDANT,
    capacity,
    grainSize,
    descriptorOffset: descriptor === undefined ? 0 : DESCRIPTOR_AT,
    descriptorSize: descriptor === undefined ? 0 : DESCRIPTOR_SECTORS,
    numGTEsPerGT: TABLE_ENTRIES,
    rgdOffset,
    gdOffset,
    overHead,
    compressAlgorithm: 0,
  });
  await storage.writev(0, IoVec.of(header));
  await storage.sync();
}

/** An empty ESX extent: header and directory; tables come with the first grains. */
async function writeCowd(storage: Storage, length: number): Promise<void> {
  const numSectors = length / SECTOR;
  const numGDEntries = divideUp(numSectors, COWD_TABLE_ENTRIES);
  const gdOffset = 4;
  const freeSector = gdOffset + divideUp(4 * numGDEntries, SECTOR);
  await storage.resize(freeSector * SECTOR);
  await storage.sync();
  const header = COWD_HEADER.encode({
    magic: MAGIC_COWD,
    version: 1,
    flags: 3,
    numSectors,
    grainSize: 1,
    gdOffset,
    numGDEntries,
    freeSector,
    parent: new Uint8Array(1028),
    generation: 0,
    name: new Uint8Array(60),
    description: new Uint8Array(512),
    savedGeneration: 0,
    uncleanShutdown: 0,
  });
  await storage.writev(0, IoVec.of(header));
  await storage.sync();
}
