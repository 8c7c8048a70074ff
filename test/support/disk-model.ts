/** A disk beside a byte array: random calls to both, and whether they still agree. */

import assert from 'node:assert/strict';
import { IoVec } from '../../formats/core/iov.ts';
import { ABSENT, ExtentBuffer, ZERO } from '../../formats/image/extent.ts';
import type { Image } from '../../formats/image/image.ts';
import type { Random } from './random.ts';

export interface ModelOptions {
  /** Changes in a run. Default 120. */
  readonly changes?: number;
  /** Opens the disk again after it was closed. Without it the disk is never closed. */
  readonly reopen?: () => Promise<Image>;
  /** Lengths to draw from, besides small ones. */
  readonly lengths?: readonly number[];
  /** Ranges that must not be written: start, end. */
  readonly isWritable?: (offset: number, length: number) => boolean;
}

/** Runs random calls. @param model what the disk holds, changed along. @returns the disk, open */
export async function runModel(
  random: Random,
  first: Image,
  model: Uint8Array,
  options: ModelOptions = {},
): Promise<Image> {
  let image = first;
  for (let i = options.changes ?? 120; i > 0; ) {
    const calls: Promise<void>[] = [];
    for (let burst = random.between(1, 6); burst > 0; burst--, i--) calls.push(change(random, image, model, options));
    if (random.chance(0.2)) calls.push(image.flush());
    await Promise.all(calls);
    if (random.chance(0.15)) await discard(random, image, model, options);
    await compareRange(random, image, model);
    if (options.reopen !== undefined && random.chance(0.06)) {
      await image.close();
      image = await options.reopen();
    }
  }
  await compareAll(image, model);
  return image;
}

async function change(random: Random, image: Image, model: Uint8Array, options: ModelOptions): Promise<void> {
  const { offset, length } = drawRange(random, model.length, options);
  if (options.isWritable !== undefined && !options.isWritable(offset, length)) return;
  if (random.chance(0.3)) {
    model.fill(0, offset, offset + length);
    return image.writeZeroes(offset, length, random.chance(0.5));
  }
  const bytes = random.bytes(length);
  model.set(bytes, offset);
  const list = new IoVec();
  for (let at = 0; at < length; ) {
    const take = Math.min(length - at, random.between(1, 70000));
    list.append(bytes, at, take);
    at += take;
  }
  if (image.tryWritev(offset, list)) return;
  return image.writev(offset, list);
}

/** What a discard gives back reads as zeros, the rest as before. */
async function discard(random: Random, image: Image, model: Uint8Array, options: ModelOptions): Promise<void> {
  const { offset, length } = drawRange(random, model.length, options);
  if (options.isWritable !== undefined && !options.isWritable(offset, length)) return;
  await image.discard(offset, length);
  const unit = image.limits.discardUnit;
  if (unit === 0) return;
  const start = Math.ceil(offset / unit) * unit;
  const end = offset + length === image.size ? image.size : Math.floor((offset + length) / unit) * unit;
  const now = new Uint8Array(length);
  await image.readv(offset, IoVec.of(now));
  for (let i = 0; i < length; i++) {
    const at = offset + i;
    if (now[i] === model[at]) continue;
    assert.ok(now[i] === 0 && at >= start && at < end, `a discard of ${length} at ${offset} changed byte ${at}`);
    model[at] = 0;
  }
}

function drawRange(random: Random, size: number, options: ModelOptions): { offset: number; length: number } {
  const lengths = [1, 17, 512, 4096, 9000, 40000, ...(options.lengths ?? [])];
  const length = Math.min(size, random.pick(lengths));
  let offset = random.below(size - length + 1);
  if (random.chance(0.5)) offset -= offset % Math.min(size, random.pick([512, 4096, 65536, length]));
  if (random.chance(0.1)) offset = size - length;
  return { offset, length };
}

async function compareRange(random: Random, image: Image, model: Uint8Array): Promise<void> {
  const { offset, length } = drawRange(random, model.length, {});
  await compareBytes(image, model, offset, length, random.chance(0.5));
}

/** All bytes, and a map without gaps whose zeros are zeros. */
export async function compareAll(image: Image, model: Uint8Array): Promise<void> {
  assert.equal(image.size, model.length);
  await compareBytes(image, model, 0, model.length, false);
  const out = new ExtentBuffer(7);
  for (let at = 0; at < image.size; at = out.end) {
    await image.map(at, image.size - at, out);
    assert.ok(out.count > 0);
    let expected = at;
    for (let i = 0; i < out.count; i++) {
      assert.equal(out.offsets[i], expected);
      const start = expected;
      expected += out.lengths[i] as number;
      if (out.kinds[i] !== ZERO && out.kinds[i] !== ABSENT) continue;
      assert.ok(
        model.subarray(start, expected).every((byte) => byte === 0),
        `the map says zeros for ${start}`,
      );
    }
    assert.equal(out.end, expected);
  }
}

async function compareBytes(image: Image, model: Uint8Array, offset: number, length: number, now: boolean) {
  const bytes = new Uint8Array(length).fill(0xcc);
  const list = IoVec.of(bytes);
  if (!(now && image.tryReadv(offset, list))) await image.readv(offset, list);
  if (Buffer.compare(bytes, model.subarray(offset, offset + length)) === 0) return;
  const at = bytes.findIndex((byte, i) => byte !== model[offset + i]);
  assert.fail(`byte ${offset + at} is ${bytes[at]}, should be ${model[offset + at]}`);
}
