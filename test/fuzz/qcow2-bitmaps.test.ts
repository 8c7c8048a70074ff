import assert from 'node:assert/strict';
import { test } from 'node:test';
import { LunetteError } from '../../formats/core/errors.ts';
import { IoVec } from '../../formats/core/iov.ts';
import * as bitmaps from '../../formats/image/bitmaps.ts';
import { MemoryStorage } from '../../formats/storage/memory.ts';
import { Qcow2File } from '../support/qcow2-file.ts';
import { createImage, openImage, readAll } from '../support/qcow2-images.ts';
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

const CLUSTER = 512;

/** Lets entries of tables, and tables themselves, be clusters of the file that are something else, most of them the guest's. */
function plant(random: Random, bytes: Uint8Array): void {
  const file = new Qcow2File(bytes);
  const tables = file.bitmaps();
  for (let i = random.between(1, 3); i > 0; i--) {
    const { table, entries, directory } = random.pick(tables);
    const target = BigInt(random.below(bytes.length / CLUSTER) * CLUSTER);
    if (directory !== undefined && random.chance(0.2)) file.setU64(directory.at, target);
    else file.setU64(table + random.below(entries) * 8, target);
  }
}

test(`${FLIPS} images whose bitmaps have clusters of others: no change of a bitmap loses what the guest has written`, async (t) => {
  const random = randomFor(t);
  const whole = await sample();
  for (let i = 0; i < FLIPS; i++) {
    const bytes = whole.slice();
    plant(random, bytes);
    const storage = new MemoryStorage({ bytes });
    const model = new Uint8Array(300 * CLUSTER);
    model.fill(1, 0, 40_000);
    await tolerate(async () => {
      const image = await openImage(storage);
      for (let steps = random.between(1, 5); steps > 0; steps--) {
        const name = random.pick(['enabled', 'disabled', 'coarse']);
        const at = random.below(300) * CLUSTER;
        const value = random.below(256);
        switch (random.below(7)) {
          case 0:
            await tolerate(() => bitmaps.clearBitmap(image, name));
            break;
          case 1:
            await tolerate(() => bitmaps.removeBitmap(image, name));
            break;
          case 2:
            await tolerate(() => bitmaps.addBitmap(image, `new ${steps}`, { granularity: 512 }));
            break;
          case 3:
            await tolerate(() => bitmaps.disableBitmap(image, name));
            break;
          case 4:
            await tolerate(async () => bitmaps.mergeBitmap(image, name, await bitmaps.openBitmap(image, 'enabled')));
            break;
          default:
            await image.writev(at, IoVec.of(new Uint8Array(CLUSTER).fill(value)));
            await image.flush(); // an image that is found corrupt loses what was not flushed
            model.fill(value, at, at + CLUSTER);
        }
      }
      await tolerate(() => image.close());
    });
    const after = new MemoryStorage({ bytes: storage.toBytes() });
    const image = await openImage(after, { readOnly: true });
    const shown = await readAll(image);
    const wrong = shown.findIndex((byte, offset) => byte !== model[offset]);
    assert.equal(wrong, -1, `round ${i}: byte ${wrong} is ${shown[wrong]}, not ${model[wrong]}`);
  }
});
