/** qcow2 images that we and QEMU's programs change in turn: content, snapshots and metadata are as both left them. */

import assert from 'node:assert/strict';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { IoVec } from '../../formats/core/iov.ts';
import { KiB, MiB } from '../../formats/core/units.ts';
import { createSnapshot, deleteSnapshot } from '../../formats/image/snapshots.ts';
import { ImageHost } from '../../formats/open.ts';
import { readAll } from '../support/qcow2-images.ts';
import { qemu } from '../support/qemu.ts';
import { type Random, randomFor } from '../support/random.ts';
import { requires } from '../support/requires.ts';
import { temporaryDirectory } from '../support/temporary.ts';

interface Shape {
  readonly compat: '0.10' | '1.1';
  readonly clusterSize: number;
  readonly refcountBits: number;
  readonly backing: boolean;
  readonly extendedL2: boolean;
  readonly dataFile: 'no' | 'plain' | 'raw';
  readonly lazy: boolean;
}

/** Every combination that the format allows. */
function shapes(): Shape[] {
  const list: Shape[] = [];
  for (const compat of ['0.10', '1.1'] as const)
    for (const clusterSize of [512, 4 * KiB, 64 * KiB, 2 * MiB])
      for (const refcountBits of [1, 8, 16, 64])
        for (const backing of [false, true])
          for (const extendedL2 of [false, true])
            for (const dataFile of ['no', 'plain', 'raw'] as const)
              for (const lazy of [false, true]) {
                if (compat === '0.10' && (refcountBits !== 16 || extendedL2 || dataFile !== 'no' || lazy)) continue;
                if (extendedL2 && clusterSize < 16 * KiB) continue;
                if (dataFile === 'raw' && backing) continue;
                list.push({ compat, clusterSize, refcountBits, backing, extendedL2, dataFile, lazy });
              }
  return list;
}

/** Shapes in one run; LUNETTE_SHAPES asks for another number, or `all`. */
const ASKED = process.env.LUNETTE_SHAPES ?? '8';

test(`${ASKED} shapes of images, changed by us and by QEMU in turn`, { skip: requires.qemuIo() }, async (t) => {
  const random = randomFor(t);
  const all = shapes();
  const chosen = ASKED === 'all' ? all : random.shuffle(all).slice(0, Number(ASKED));
  for (const shape of chosen) await mixed(shape, random, await temporaryDirectory(t));
});

async function mixed(shape: Shape, random: Random, directory: string): Promise<void> {
  const { clusterSize, compat, refcountBits } = shape;
  const what = JSON.stringify(shape);
  const size = Math.min(12 * MiB, Math.max(256 * KiB, clusterSize * 60)) + 512;
  const model = new Uint8Array(size);
  const path = join(directory, 'disk.qcow2');
  const options = [
    `compat=${compat},cluster_size=${clusterSize},lazy_refcounts=${shape.lazy ? 'on' : 'off'}`,
    ...(compat === '1.1' ? [`refcount_bits=${refcountBits},extended_l2=${shape.extendedL2 ? 'on' : 'off'}`] : []),
    ...(shape.dataFile === 'no' ? [] : [`data_file=${join(directory, 'data.raw')}`]),
    ...(shape.dataFile === 'raw' ? ['data_file_raw=on'] : []),
  ].join(',');
  const base = join(directory, 'base.raw');
  if (shape.backing) {
    random.fill(model.subarray(0, Math.floor(size / 3)));
    await writeFile(base, model);
  }
  const backing = shape.backing ? ['-b', 'base.raw', '-F', 'raw'] : [];
  await qemu.img('create', '-q', '-f', 'qcow2', '-o', options, ...backing, path, String(size));
  const host = new ImageHost();
  const snapshots = new Map<string, Uint8Array>();
  const snapshotable = refcountBits > 1 && shape.dataFile === 'no';
  for (let step = 0; step < 8; step++) {
    const ours = random.chance(0.5);
    const image = ours ? await host.open(path) : undefined;
    try {
      const commands: string[] = [];
      for (let i = 0; i < 6; i++) {
        const offset = random.below(size / 512) * 512;
        const length = Math.min(size - offset, 512 * random.between(1, Math.max(8, clusterSize / 256)));
        const value = random.below(4) === 0 ? 0 : random.between(1, 255);
        if (image === undefined) commands.push(`write -q ${value === 0 ? '-z' : `-P ${value}`} ${offset} ${length}`);
        else if (value === 0) await image.writeZeroes(offset, length, random.chance(0.5));
        else await image.writev(offset, IoVec.of(new Uint8Array(length).fill(value)));
        model.fill(value, offset, offset + length);
      }
      if (commands.length > 0) await qemu.io(path, ...commands);
      if (!snapshotable) continue;
      const name = `s${step}`;
      if (random.chance(0.5)) {
        if (image === undefined) await qemu.img('snapshot', '-c', name, path);
        else await createSnapshot(image, name);
        snapshots.set(name, model.slice());
      } else if (snapshots.size > 0) {
        const gone = random.pick([...snapshots.keys()]);
        if (image === undefined) await qemu.img('snapshot', '-d', gone, path);
        else await deleteSnapshot(image, { name: gone });
        snapshots.delete(gone);
      }
    } finally {
      await image?.close();
    }
    await qemu.assertClean(path).catch((error: Error) => assert.fail(`${what}, step ${step}: ${error.message}`));
  }
  const reference = join(directory, 'model.raw');
  await writeFile(reference, model);
  assert.ok(await qemu.compare(path, reference, '-f', 'qcow2', '-F', 'raw'), `${what}: QEMU reads something else`);
  const reader = await host.open(path, { readOnly: true });
  assert.ok(Buffer.compare(await readAll(reader), model) === 0, `${what}: we read something else`);
  await reader.close();
  if (shape.dataFile === 'raw') {
    const data = await readFile(join(directory, 'data.raw'));
    assert.ok(Buffer.compare(data.subarray(0, size), model) === 0, `${what}: the raw data file differs`);
  }
  for (const [name, bytes] of snapshots) {
    const snapshot = await host.open(path, { snapshot: name });
    assert.ok(Buffer.compare(await readAll(snapshot), bytes) === 0, `${what}: snapshot ${name} has changed`);
    await snapshot.close();
  }
}
