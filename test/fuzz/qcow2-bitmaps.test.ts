import assert from 'node:assert/strict';
import { test } from 'node:test';
import { LunetteError } from '../../formats/core/errors.ts';
import { IoVec } from '../../formats/core/iov.ts';
import * as bitmaps from '../../formats/image/bitmaps.ts';
import { MemoryStorage } from '../../formats/storage/memory.ts';
import { Qcow2File } from '../support/qcow2-file.ts';
import { createImage, openImage } from '../support/qcow2-images.ts';
import { type Random, randomFor } from '../support/random.ts';

/** Damaged images in one run; LUNETTE_FLIPS asks for more. */
const FLIPS = Number(process.env.LUNETTE_FLIPS ?? 1500);

async function sample(): Promise<Uint8Array> {
  const storage = await createImage({ size: 300 * 512, clusterSize: 512 });
  const image = await openImage(storage);
  await bitmaps.addBitmap(image, 'enabled', { granularity: 512 });
  await bitmaps.addBitmap(image, 'disabled', { granularity: 512, enabled: false });
  await bitmaps.addBitmap(image, 'coarse', { granularity: 4096 });
  await image.writev(0, IoVec.of(new Uint8Array(40_000).fill(1)));
  await image.close();
  return storage.toBytes();
}

/** Offsets of what describes bitmaps: autoclear bits and extension, directory, tables. */
function targets(file: Qcow2File): number[] {
  const found: number[] = [88, 95];
  const range = (at: number, length: number) => {
    for (let i = 0; i < length; i++) found.push(at + i);
  };
  range(112, 400);
  for (const { table, entries, directory } of file.bitmaps()) {
    if (directory !== undefined) for (let times = 0; times < 3; times++) range(directory.at, directory.length);
    for (let times = 0; times < 5; times++) range(table, entries * 8);
  }
  return found;
}

/** Whatever happens, it is an error of ours. */
async function tolerate(act: () => Promise<unknown>): Promise<void> {
  await act().catch((error: unknown) => {
    if (!(error instanceof LunetteError) || error.code === 'INTERNAL') throw error;
  });
}

function damage(random: Random, bytes: Uint8Array, places: readonly number[]): void {
  for (let i = random.between(1, 4); i > 0; i--) {
    const at = random.pick(places);
    bytes[at] = random.chance(0.5) ? (bytes[at] as number) ^ (1 << random.below(8)) : random.pick([0, 1, 0x7f, 0xff]);
  }
}

test(`${FLIPS} damaged bitmap directories and tables end in errors of ours, in bounded work and memory`, async (t) => {
  const random = randomFor(t);
  const whole = await sample();
  const places = targets(new Qcow2File(whole));
  for (let i = 0; i < FLIPS; i++) {
    const bytes = whole.slice();
    damage(random, bytes, places);
    const storage = new MemoryStorage({ bytes });
    await tolerate(async () => {
      const image = await openImage(storage, { readOnly: true });
      for (const { name } of await bitmaps.listBitmaps(image)) {
        await tolerate(async () => {
          const reader = await bitmaps.openBitmap(image, name);
          const runs = await reader.runs(0, reader.size, 10_000);
          const covered = runs.filter((_, at) => at % 2 === 0).reduce((sum, length) => sum + length, 0);
          assert.equal(covered, reader.size);
        });
      }
      await image.close();
    });
    assert.ok(
      storage.toBytes().every((byte, at) => byte === bytes[at]),
      'reading has changed the image',
    );
    await tolerate(async () => {
      const image = await openImage(storage);
      await tolerate(() => image.writev(random.below(image.size - 1), IoVec.of(random.bytes(1))));
      await tolerate(() => bitmaps.addBitmap(image, 'new'));
      for (const name of ['enabled', 'disabled', 'coarse']) {
        await tolerate(() => bitmaps.clearBitmap(image, name));
        await tolerate(() => bitmaps.removeBitmap(image, name));
      }
      await image.close();
    });
    assert.ok(storage.size < 10 * whole.length, `the file has grown to ${storage.size} bytes`);
  }
});
