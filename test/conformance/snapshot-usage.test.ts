/** What each snapshot costs: QEMU deletes every one of them, on copies, and gives free exactly what was predicted. */

import assert from 'node:assert/strict';
import { copyFile, readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { KiB, MiB } from '../../formats/core/units.ts';
import { measureQcow2Usage, type Qcow2Usage } from '../../formats/qcow2/usage.ts';
import { openFileStorage } from '../../formats/storage/file.ts';
import { Qcow2File } from '../support/qcow2-file.ts';
import { create, qemuImg, qemuIo } from '../support/qemu.ts';
import { type Random, randomFor } from '../support/random.ts';
import { requires } from '../support/requires.ts';
import { temporaryDirectory } from '../support/temporary.ts';

async function usageOf(path: string, counterBytes?: number): Promise<Qcow2Usage> {
  const storage = await openFileStorage(path, { readOnly: true });
  try {
    return await measureQcow2Usage(storage, { counterBytes });
  } finally {
    await storage.close();
  }
}

/** Bytes whose refcount is not 0, by the second reading of the format. */
async function countedBytes(path: string): Promise<number> {
  const file = new Qcow2File(await readFile(path));
  let clusters = 0;
  for (let i = 0; i * file.clusterSize < file.bytes.length; i++) if (file.refcount(i) !== 0) clusters++;
  return clusters * file.clusterSize;
}

const SHAPES = [
  { clusterSize: 512, options: { compat: '0.10' } },
  { clusterSize: 4 * KiB, options: { refcount_bits: 4 } },
  { clusterSize: 64 * KiB, options: {} },
  { clusterSize: 64 * KiB, options: { refcount_bits: 64, extended_l2: 'on' } },
  { clusterSize: 2 * MiB, options: { compression_type: 'zstd' } },
] as const;

/** Writes, zeroes, discards and compressed clusters, between snapshots. */
async function makeHistory(path: string, clusterSize: number, size: number, random: Random): Promise<void> {
  const commands = (compressed: boolean): string[] => {
    const list: string[] = [];
    for (let i = random.between(2, 6); i > 0; i--) {
      const length = Math.min((1 + random.below(8)) * Math.min(clusterSize, 64 * KiB), size / 4);
      const at = Math.floor(random.below(size - length) / 512) * 512;
      const aligned = Math.floor(at / clusterSize) * clusterSize;
      const what = random.pick(['write', 'write', 'write', 'zero', 'discard']);
      if (compressed) list.push(`write -c -P ${random.below(250)} ${aligned} ${clusterSize}`);
      else if (what === 'zero') list.push(`write -z ${at} ${length}`);
      else if (what === 'discard') list.push(`discard ${at} ${length}`);
      else list.push(`write -P ${random.below(250)} ${at} ${length}`);
    }
    return list;
  };
  // Compressed clusters cannot be written over what is there: they come first.
  await qemuIo(path, [...new Set(commands(true))].slice(0, 1));
  for (let i = random.between(3, 5); i > 0; i--) {
    await qemuIo(path, commands(false), '-d', 'unmap');
    await qemuImg('snapshot', '-c', random.chance(0.3) ? 'again' : `state ${i}`, path);
    if (random.chance(0.2)) await qemuImg('snapshot', '-a', '1', path);
  }
  if (random.chance(0.7)) await qemuIo(path, commands(false));
}

for (const { clusterSize, options } of SHAPES) {
  const name = `clusters of ${clusterSize} bytes, ${JSON.stringify(options)}`;
  test(`deleting each snapshot gives free what was predicted: ${name}`, { skip: requires.qemuIo() }, async (t) => {
    const random = randomFor(t);
    const size = Math.max(16 * MiB, clusterSize * 16);
    const path = await create(t, { size, clusterSize, options });
    await makeHistory(path, clusterSize, size, random);
    const usage = await usageOf(path);
    assert.equal(usage.damaged, 0);
    assert.equal(usage.leaked, 0);
    assert.equal(usage.used, await countedBytes(path));
    const exclusive = usage.snapshots.reduce((sum, each) => sum + each.exclusive, usage.live.exclusive);
    assert.equal(usage.metadata + usage.shared + exclusive + usage.leaked, usage.used);
    assert.equal(usage.used + usage.free, usage.fileSize);
    assert.ok(Math.abs(usage.fileSize - (await stat(path)).size) < clusterSize);
    const directory = await temporaryDirectory(t);
    for (const { snapshot, freed, referenced, exclusive: own, shared } of usage.snapshots) {
      assert.equal(own + shared, referenced);
      // By a name of its own: qemu-img deletes by name, the first that fits.
      const same = usage.snapshots.filter((each) => each.snapshot.name === snapshot.name);
      if (same[0]?.snapshot.id !== snapshot.id) continue;
      const copy = join(directory, `without-${snapshot.id}.qcow2`);
      await copyFile(path, copy);
      await qemuImg('snapshot', '-d', snapshot.name, copy);
      assert.equal(usage.used - (await countedBytes(copy)), freed, `snapshot ${snapshot.id}`);
      const after = await usageOf(copy);
      assert.equal(after.used, usage.used - freed);
    }
  });

  test(`counting in many passes gives the same: ${name}`, { skip: requires.qemuIo() }, async (t) => {
    const random = randomFor(t);
    const size = Math.max(16 * MiB, clusterSize * 16);
    const path = await create(t, { size, clusterSize, options });
    await makeHistory(path, clusterSize, size, random);
    assert.deepEqual(await usageOf(path, 1), await usageOf(path));
  });
}
