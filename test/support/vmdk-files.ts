/** VMDK disks in memory, of one file or several, and a second reader of them that is not ours to share code with. */

import { MemoryStorage } from '../../formats/storage/memory.ts';
import type { Storage } from '../../formats/storage/storage.ts';
import { createVmdk, type VmdkCreateOptions } from '../../formats/vmdk/create.ts';

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
