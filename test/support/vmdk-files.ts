/** VMDK disks in memory, of one file or several, and a second reader of them that is not ours to share code with. */

import { MemoryStorage } from '../../formats/storage/memory.ts';
import type { Storage } from '../../formats/storage/storage.ts';
import { createVmdk, type VmdkCreateOptions } from '../../formats/vmdk/create.ts';
import { SESPARSE_HEADER } from '../../formats/vmdk/sesparse.ts';

/** Files by path: as a folder. */
export type Folder = Map<string, MemoryStorage>;

/** Creates a disk; all its files go into the folder. @returns the path of its descriptor */
export async function newDisk(folder: Folder, name: string, options: VmdkCreateOptions): Promise<string> {
  const path = `/memory/${name}`;
  const storage = new MemoryStorage({ path });
  folder.set(path, storage);
  await createVmdk(storage, {
    ...options,
    createFile: async (file) => {
      const part = new MemoryStorage({ path: `/memory/${file}` });
      folder.set(part.path, part);
      return part;
    },
  });
  reopenAll(folder);
  return path;
}

/** Closed storages are replaced by open ones with the same bytes. */
export function reopenAll(folder: Folder): void {
  for (const [path, storage] of folder) folder.set(path, new MemoryStorage({ path, bytes: storage.toBytes() }));
}

/**
 * All bytes of a disk, read from the description of the format alone: sparse (hosted, ESX), flat and zero extents, and parents.
 *
 * @param read gives the bytes of a file by its name
 */
export function referenceDisk(read: (name: string) => Uint8Array, name: string): Uint8Array {
  const file = read(name);
  const text = Buffer.from(u32(file, 0) === 0x564d444b ? file.subarray(512, 512 * 21) : file).toString('latin1');
  const parent = /^parentFileNameHint="(.*)"/m.exec(text)?.[1];
  const lines = [...text.matchAll(/^(RW|RDONLY|NOACCESS) (\d+) (\w+)(?: "(.*)"(?: (\d+))?)?/gm)];
  const size = lines.reduce((sum, line) => sum + 512 * Number(line[2]), 0);
  const disk = new Uint8Array(size);
  if (parent !== undefined) disk.set(referenceDisk(read, parent).subarray(0, size));
  let start = 0;
  for (const [, access, sectors, type, path = name, offset = 0] of lines) {
    const part = disk.subarray(start, start + 512 * Number(sectors));
    start += part.length;
    if (type === 'ZERO' || access === 'NOACCESS') part.fill(0);
    else if (type === 'FLAT' || type === 'VMFS')
      part.set(read(path).subarray(512 * Number(offset), 512 * Number(offset) + part.length));
    else readSparse(read(lines.length === 1 && u32(file, 0) === 0x564d444b ? name : path), part);
  }
  return disk;
}

function readSparse(file: Uint8Array, part: Uint8Array): void {
  const hosted = u32(file, 0) === 0x564d444b;
  const grain = 512 * u32(file, hosted ? 20 : 16);
  const entries = hosted ? u32(file, 44) : 4096;
  const directory = 512 * u32(file, hosted ? 56 : 20);
  const zeroed = hosted && (u32(file, 8) & 4) !== 0;
  for (let at = 0; at < part.length; at += grain) {
    const table = u32(file, directory + 4 * Math.floor(at / grain / entries));
    const entry = table === 0 ? 0 : u32(file, 512 * table + 4 * ((at / grain) % entries));
    const end = Math.min(part.length, at + grain);
    if (entry === 1 && zeroed) part.fill(0, at, end);
    else if (entry !== 0) part.set(file.subarray(512 * entry, 512 * entry + end - at), at);
  }
}

function u32(bytes: Uint8Array, at: number): number {
  return new DataView(bytes.buffer, bytes.byteOffset).getUint32(at, true);
}

/** The folder as the context's files. */
export function filesOf(folder: Folder): ReadonlyMap<string, Storage> {
  return folder;
}

/** An seSparse extent of 16 grains, of which 8 have data. Sectors: 0 header, 1 volatile header, 2 directory, 64 table, 128 grains. */
export function seSparseFile(entries: readonly bigint[], change: (view: DataView) => void = () => {}): MemoryStorage {
  const bytes = new Uint8Array(128 * 512 + 8 * 4096);
  const view = new DataView(bytes.buffer);
  SESPARSE_HEADER.write(view, {
    magic: 0xcafebabe,
    capacity: 16 * 8,
    grainSize: 8,
    grainTableSize: 64,
    volatileHeaderOffset: 1,
    volatileHeaderSize: 1,
    grainDirOffset: 2,
    grainDirSize: 1,
    grainTablesOffset: 64,
    grainTablesSize: 64,
    grainsOffset: 128,
    grainsSize: 64,
  });
  view.setBigUint64(8, 0x0000000200000001n, true);
  view.setUint32(512, 0xcafecafe, true);
  view.setBigUint64(1024, 0x1000000000000000n, true);
  for (const [i, entry] of entries.entries()) view.setBigUint64(64 * 512 + 8 * i, entry, true);
  for (let i = 0; i < 8; i++) bytes.fill(i + 1, 128 * 512 + i * 4096, 128 * 512 + (i + 1) * 4096);
  change(view);
  return new MemoryStorage({ bytes });
}

/** The entry of an allocated grain. */
export const seSparseGrain = (index: bigint): bigint => (3n << 60n) | ((index & 0xfffn) << 48n) | (index >> 12n);
