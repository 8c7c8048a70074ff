/** qcow2 images that lie: a good one, with one thing in its header or tables changed. */

import { randomFillSync } from 'node:crypto';
import { copyFile, open, readFile, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { GiB, KiB, MiB } from '../../formats/core/units.ts';
import { create, qemuIo } from './qemu.ts';
import { type Cleanup, temporaryDirectory } from './temporary.ts';

export interface HostileImage {
  /** What is wrong with it. */
  readonly name: string;
  readonly path: string;
}

/** Offsets in the header, from the specification. */
const HEADER = {
  magic: 0,
  version: 4,
  backingFileOffset: 8,
  backingFileSize: 16,
  clusterBits: 20,
  size: 24,
  cryptMethod: 32,
  l1Size: 36,
  l1TableOffset: 40,
  refcountTableOffset: 48,
  refcountTableClusters: 56,
  nbSnapshots: 60,
  snapshotsOffset: 64,
  incompatibleFeatures: 72,
  refcountOrder: 96,
  headerLength: 100,
};

type Change = (bytes: DataView, tables: { l1: number; l2: number }) => void;

const COPIED = 0x8000_0000;
const COMPRESSED = 0x4000_0000;

/** Sets a 64-bit field. */
function set64(view: DataView, at: number, high: number, low: number): void {
  view.setUint32(at, high);
  view.setUint32(at + 4, low);
}

const CHANGES: Readonly<Record<string, Change>> = {
  'cluster bits of 63': (v) => v.setUint32(HEADER.clusterBits, 63),
  'cluster bits of 0': (v) => v.setUint32(HEADER.clusterBits, 0),
  'version 77': (v) => v.setUint32(HEADER.version, 77),
  'a size of 2^63': (v) => set64(v, HEADER.size, 0x8000_0000, 0),
  'a size far past what its L1 table covers': (v) => set64(v, HEADER.size, 0x10, 0),
  'an L1 table of 4 billion entries': (v) => v.setUint32(HEADER.l1Size, 0xffff_ffff),
  'an L1 table past the end of the file': (v) => set64(v, HEADER.l1TableOffset, 0x100, 0),
  'an L1 table between clusters': (v) => set64(v, HEADER.l1TableOffset, 0, 0x1234),
  'a refcount table of 4 billion clusters': (v) => v.setUint32(HEADER.refcountTableClusters, 0xffff_ffff),
  'a refcount table past the end of the file': (v) => set64(v, HEADER.refcountTableOffset, 0x7fff_ffff, 0xffff_0000),
  '4 billion snapshots': (v) => {
    v.setUint32(HEADER.nbSnapshots, 0xffff_ffff);
    set64(v, HEADER.snapshotsOffset, 0, 0x10000);
  },
  'a snapshot table that is garbage': (v) => {
    v.setUint32(HEADER.nbSnapshots, 60_000);
    set64(v, HEADER.snapshotsOffset, 0, 0x20000);
  },
  'a backing file name of 4 GiB': (v) => {
    set64(v, HEADER.backingFileOffset, 0, 0x100);
    v.setUint32(HEADER.backingFileSize, 0xffff_fff0);
  },
  'encryption that does not exist': (v) => v.setUint32(HEADER.cryptMethod, 99),
  'an incompatible feature that nobody knows': (v) => set64(v, HEADER.incompatibleFeatures, 0x4000_0000, 0),
  'a refcount order of 4 billion': (v) => v.setUint32(HEADER.refcountOrder, 0xffff_ffff),
  'a header longer than a cluster': (v) => v.setUint32(HEADER.headerLength, 0xffff_ff00),
  'a header extension of 4 GiB': (v) => {
    v.setUint32(112, 0xe279_2aca);
    v.setUint32(116, 0xffff_ffff);
  },
  'an L2 table past the end of the file': (v, { l1 }) => set64(v, l1, COPIED + 0x100, 0),
  'an L2 table that is the L1 table': (v, { l1 }) => set64(v, l1, COPIED, l1),
  'an L2 table at offset 0 that claims to be there': (v, { l1 }) => set64(v, l1, COPIED, 0),
  'data clusters past the end of the file': (v, { l2 }) => set64(v, l2, COPIED + 0x7f, 0xffff_0000),
  'data clusters that are the L2 table': (v, { l2 }) => set64(v, l2, COPIED, l2),
  'compressed clusters of garbage': (v, { l2 }) => set64(v, l2, COMPRESSED + 0x3f, 0x20000),
  'compressed clusters past the end of the file': (v, { l2 }) => set64(v, l2, COMPRESSED + 0x3fff_ffff, 0xffff_ffff),
};

/** Makes all of them. Each says that it is 64 MiB, if it says anything believable. */
export async function hostileImages(t: Cleanup): Promise<HostileImage[]> {
  const folder = await temporaryDirectory(t);
  const good = await create(t, { path: join(folder, 'good.qcow2'), size: 64 * MiB, clusterSize: 64 * KiB });
  await qemuIo(good, ['write -P 1 0 1M']);
  const bytes = await readFile(good);
  const l1 = bytes.readUInt32BE(HEADER.l1TableOffset + 4);
  const l2 = bytes.readUInt32BE(l1 + 4);
  const images: HostileImage[] = [];
  const path = (): string => join(folder, `hostile-${images.length}.qcow2`);
  for (const [name, change] of Object.entries(CHANGES)) {
    const changed = Buffer.from(bytes);
    change(new DataView(changed.buffer, changed.byteOffset, changed.length), { l1, l2 });
    const at = path();
    await writeFile(at, changed);
    images.push({ name, path: at });
  }
  for (const length of [0, 3, 4, 71, 72, 103, 112, 511, 64 * KiB, l1, l1 + 8, l2 + 1]) {
    const at = path();
    await copyFile(good, at);
    await truncate(at, length);
    images.push({ name: `cut off after ${length} bytes`, path: at });
  }
  const noise = path();
  await writeFile(noise, Buffer.concat([bytes.subarray(0, 8), randomFillSync(Buffer.alloc(256 * KiB))]));
  images.push({ name: 'noise behind a magic number', path: noise });
  const huge = path();
  const handle = await open(huge, 'w');
  await handle.write(bytes.subarray(0, 64 * KiB));
  await handle.truncate(8 * GiB);
  await handle.close();
  images.push({ name: 'nothing but a header in 8 GiB of hole', path: huge });
  return images;
}
