/** Comparing and weighing snapshots of a large disk whose every cluster is mapped, with the file's tables in the page cache. */

import { join } from 'node:path';
import type { IoVec } from '../../formats/core/iov.ts';
import { GiB, KiB, TiB } from '../../formats/core/units.ts';
import { createSnapshot } from '../../formats/image/snapshots.ts';
import { ImageHost } from '../../formats/open.ts';
import { diffQcow2 } from '../../formats/qcow2/diff.ts';
import { measureQcow2Usage } from '../../formats/qcow2/usage.ts';
import { openFileStorage } from '../../formats/storage/file.ts';
import type { Storage } from '../../formats/storage/storage.ts';
import { type Bench, bench, median } from '../support/bench.ts';
import { qemuImg } from '../support/qemu.ts';
import { Random } from '../support/random.ts';
import { requires } from '../support/requires.ts';
import { temporaryDirectory } from '../support/temporary.ts';

const CLUSTER = 64 * KiB;

/** An image with a snapshot; since then `share` of its clusters have got another mapping, all over the disk. */
async function changedImage(b: Bench, size: number, share: number): Promise<string> {
  const path = join(await temporaryDirectory(b), 'disk.qcow2');
  await qemuImg('create', '-q', '-f', 'qcow2', '-o', 'preallocation=metadata', path, String(size));
  const image = await new ImageHost().open(path);
  try {
    await createSnapshot(image, 'then');
    const random = new Random(b.seed);
    const clusters = size / CLUSTER;
    // Zeros need no data on the disk: the tables are what is measured.
    const step = Math.round(1 / share);
    for (let first = 0; first < clusters; first += step) {
      const at = Math.min(first + random.below(step), clusters - 1);
      await image.writeZeroes(at * CLUSTER, CLUSTER, true);
    }
    return path;
  } finally {
    await image.close();
  }
}

/** Counts the bytes that are read. */
function counting(storage: Storage): { storage: Storage; read: () => number } {
  let read = 0;
  const readv = storage.readv.bind(storage);
  storage.readv = (offset: number, iov: IoVec) => {
    read += iov.byteLength;
    return readv(offset, iov);
  };
  return { storage, read: () => read };
}

bench(
  'snapshots/diff',
  async (b) => {
    const rows: (string | number)[][] = [];
    for (const share of [0.01, 0.0001]) {
      const size = b.pick(8 * GiB, TiB);
      const path = await changedImage(b, size, share);
      const times: number[] = [];
      let [found, bytes] = [0, 0];
      for (let round = 0; round < b.pick(2, 5); round++) {
        const counted = counting(await openFileStorage(path, { readOnly: true }));
        const start = performance.now();
        found = 0;
        const { differences } = await diffQcow2(counted.storage, 'then', undefined);
        for await (const batch of differences) for (const { length } of batch) found += length;
        times.push(performance.now() - start);
        bytes = counted.read();
        await counted.storage.close();
      }
      if (found !== Math.ceil(size / CLUSTER / Math.round(1 / share)) * CLUSTER)
        throw new Error(`${found} bytes differ`);
      rows.push([
        'diff',
        `${share * 100} %`,
        `${median(times).toFixed(0)} ms`,
        `${(bytes / KiB / KiB).toFixed(1)} MiB`,
      ]);
      const storage = await openFileStorage(path, { readOnly: true });
      const start = performance.now();
      await measureQcow2Usage(storage);
      rows.push(['usage', `${share * 100} %`, `${(performance.now() - start).toFixed(0)} ms`, '']);
      await storage.close();
    }
    b.table(
      `Snapshots of a disk of ${b.pick('8 GiB', '1 TiB')}, clusters of 64 KiB`,
      ['', 'changed', 'time', 'read'],
      rows,
    );
  },
  () => requires.qemuImg(),
);
