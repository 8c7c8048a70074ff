/** Headers and tables of VMDK and VDI files, one word after the other, at every extreme: refused, or of use, quickly and in little memory. */

import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Field } from '../../formats/core/struct.ts';
import type { FormatDriver } from '../../formats/driver.ts';
import { ChainImage, checkVdi, checkVmdk, createVdi, ExtentBuffer, IoVec, MemoryStorage } from '../../formats/index.ts';
import type { Storage } from '../../formats/storage/storage.ts';
import { vdi } from '../../formats/vdi/driver.ts';
import { HEADER_V1 } from '../../formats/vdi/header.ts';
import { vmdk } from '../../formats/vmdk/driver.ts';
import { COWD_HEADER, HOSTED_HEADER } from '../../formats/vmdk/header.ts';
import { SESPARSE_HEADER } from '../../formats/vmdk/sesparse.ts';
import { exercise, survives } from '../support/hostile.ts';
import { openDisk, openLayer, testContext } from '../support/layers.ts';
import { type Random, randomFor } from '../support/random.ts';
import { type Folder, newDisk, seSparseFile, seSparseGrain } from '../support/vmdk-files.ts';

const MEMORY = 64 * 2 ** 20;
const CACHE = 2 ** 20;

interface Victim {
  readonly name: string;
  readonly driver: FormatDriver;
  readonly main: string;
  readonly files: ReadonlyMap<string, Uint8Array>;
  /** The file in which words are changed. */
  readonly file: string;
  readonly fields: Readonly<Record<string, Field<unknown>>>;
  /** Words of its tables, and their length in bytes. */
  readonly tables: readonly { start: number; words: number }[];
  readonly word: 4 | 8;
  /** What a word of a table counts: bytes. */
  readonly unit: number;
}

async function vmdkVictim(type: 'monolithicSparse' | 'vmfsSparse'): Promise<Victim> {
  const folder: Folder = new Map();
  const main = await newDisk(folder, 'disk.vmdk', { size: 20 * 4096, type, grainSize: 4096 });
  const disk = await openDisk(vmdk, folder.get(main) as Storage, { context: testContext({ files: folder }) });
  for (const at of [0, 3, 4, 9]) await disk.writev(at * 4096, IoVec.of(new Uint8Array(4096).fill(at + 1)));
  await disk.close();
  const files = new Map([...folder].map(([path, file]) => [path, file.toBytes()]));
  const hosted = type === 'monolithicSparse';
  const file = hosted ? main : '/memory/disk-delta.vmdk';
  const bytes = files.get(file) as Uint8Array;
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  const directories = hosted ? [view.getUint32(48, true), view.getUint32(56, true)] : [view.getUint32(20, true)];
  const tables = directories.flatMap((sector) => [
    { start: sector * 512, words: 1 },
    { start: 512 * view.getUint32(sector * 512, true), words: 20 },
  ]);
  const { fields } = hosted ? HOSTED_HEADER : COWD_HEADER;
  return { name: type, driver: vmdk, main, files, file, fields, tables, word: 4, unit: 512 };
}

function seSparseVictim(): Victim {
  const bytes = seSparseFile([0n, 1n << 60n, seSparseGrain(0n), seSparseGrain(3n)]).toBytes();
  return {
    name: 'seSparse',
    driver: vmdk,
    main: '/memory/se.vmdk',
    files: new Map([['/memory/se.vmdk', bytes]]),
    file: '/memory/se.vmdk',
    fields: SESPARSE_HEADER.fields,
    tables: [
      { start: 1024, words: 2 },
      { start: 64 * 512, words: 16 },
    ],
    word: 8,
    unit: 512,
  };
}

async function vdiVictim(): Promise<Victim> {
  const storage = new MemoryStorage();
  await createVdi(storage, { size: 16 * 4096, blockSize: 4096 });
  const file = new MemoryStorage({ bytes: storage.toBytes() });
  const disk = await openDisk(vdi, file);
  for (const at of [0, 3, 4, 9]) await disk.writev(at * 4096, IoVec.of(new Uint8Array(4096).fill(at + 1)));
  await disk.close();
  const bytes = file.toBytes();
  const map = new DataView(bytes.buffer, bytes.byteOffset).getUint32(0x154, true);
  return {
    name: 'VDI',
    driver: vdi,
    main: '/memory/disk.vdi',
    files: new Map([['/memory/disk.vdi', bytes]]),
    file: '/memory/disk.vdi',
    fields: HEADER_V1.fields,
    tables: [{ start: map, words: 16 }],
    word: 4,
    unit: 4096,
  };
}

/** Least, most, and what lies around the borders of signed, 32-bit and exact numbers. */
function extremes(length: number): bigint[] {
  const bits = BigInt(8 * length);
  const all = [0n, 1n, 2n, (1n << (bits - 1n)) - 1n, 1n << (bits - 1n), (1n << bits) - 2n, (1n << bits) - 1n];
  if (length === 8) all.push((1n << 32n) - 1n, 1n << 32n, (1n << 53n) - 1n, 1n << 53n, 1n << 54n);
  return all;
}

function setWord(bytes: Uint8Array, at: number, length: number, value: bigint): void {
  for (let i = 0; i < length; i++) bytes[at + i] = Number((value >> BigInt(8 * i)) & 0xffn);
}

/** Each damaged file, with what was done to it. */
function* damagedFiles(victim: Victim): Generator<{ what: string; bytes: Uint8Array }> {
  const good = victim.files.get(victim.file) as Uint8Array;
  const damaged = (at: number, length: number, value: bigint): Uint8Array => {
    const bytes = good.slice();
    setWord(bytes, at, length, value);
    return bytes;
  };
  for (const [key, { at, length }] of Object.entries(victim.fields)) {
    const width = Math.min(length, 8);
    for (const value of extremes(width)) yield { what: `${key} = ${value}`, bytes: damaged(at, width, value) };
  }
  const sectors = (offset: number): bigint => BigInt(Math.floor(offset / victim.unit));
  for (const { start, words } of victim.tables) {
    // The header, this table itself, the other tables, what another word says, the file's end.
    const places = [start, ...victim.tables.map((table) => table.start), good.length - victim.unit, good.length];
    for (let i = 0; i < words; i++) {
      const at = start + i * victim.word;
      for (const value of [...extremes(victim.word), ...places.map(sectors)]) {
        yield { what: `word ${i} of the table at ${start} = ${value}`, bytes: damaged(at, victim.word, value) };
      }
      const other = good.slice();
      other.copyWithin(at, start + ((i + 3) % words) * victim.word, start + (((i + 3) % words) + 1) * victim.word);
      yield { what: `word ${i} of the table at ${start} as another one`, bytes: other };
    }
  }
}

async function attack(random: Random, victim: Victim, bytes: Uint8Array): Promise<boolean> {
  const storages = (): Map<string, MemoryStorage> =>
    new Map(
      [...victim.files].map(([path, good]) => [
        path,
        new MemoryStorage({ path, bytes: path === victim.file ? bytes : good, maxSize: 2 ** 26 }),
      ]),
    );
  const opened = async (readOnly: boolean): Promise<ChainImage> => {
    const files = storages();
    const context = testContext({ files, cache: CACHE });
    return new ChainImage([await openLayer(victim.driver, files.get(victim.main) as Storage, { readOnly, context })]);
  };
  // What is collected meanwhile only makes this less; what the files take is there before and after.
  let isOpen = false;
  const before = process.memoryUsage().arrayBuffers;
  await survives(async () => {
    const image = await opened(true);
    isOpen = true;
    const length = Math.min(image.size, 20 * 4096);
    await survives(() => image.map(0, length, new ExtentBuffer()), 'map');
    await survives(() => image.readv(0, IoVec.of(new Uint8Array(length))), 'read');
    await image.close();
  }, 'open');
  const used = process.memoryUsage().arrayBuffers - before;
  assert.ok(used < MEMORY + CACHE, `${used} bytes of memory`);
  await survives(async () => exercise(random, await opened(false)), 'open for writing');
  const files = storages();
  const storage = files.get(victim.main) as Storage;
  const context = testContext({ files, cache: CACHE });
  await survives(
    () =>
      victim.driver === vdi
        ? checkVdi(storage, { cache: context.cache, repair: 'all' })
        : checkVmdk(storage, { repair: 'all', context }),
    'check',
  );
  return isOpen;
}

for (const make of [
  () => vmdkVictim('monolithicSparse'),
  () => vmdkVictim('vmfsSparse'),
  async () => seSparseVictim(),
  vdiVictim,
]) {
  const victim = await make();
  test(`${victim.name} files with a field or an entry at an extreme are refused or work, quickly and in little memory`, async (t) => {
    const random = randomFor(t);
    let [opened, all] = [0, 0];
    for (const { what, bytes } of damagedFiles(victim)) {
      all++;
      try {
        if (await attack(random, victim, bytes)) opened++;
      } catch (error) {
        throw new Error(`${what}: ${error instanceof Error ? error.message : error}`, { cause: error });
      }
    }
    assert.ok(opened > all / 4 && opened < all, `${opened} of ${all} could be opened`);
  });
}
