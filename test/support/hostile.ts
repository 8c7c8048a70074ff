/** Files with random damage: whatever they hold, opening and using them ends, quickly, and fails with an error of ours. */

import assert from 'node:assert/strict';
import { codeOf, LunetteError } from '../../formats/core/errors.ts';
import { IoVec } from '../../formats/core/iov.ts';
import { ExtentBuffer } from '../../formats/image/extent.ts';
import type { Image } from '../../formats/image/image.ts';
import type { Random } from './random.ts';

const EXTREMES = [0, 1, 2, 0x7fffffff, 0x80000000, 0xfffffffe, 0xffffffff];

/** Damages some bytes, most of them where `spots` are: bits, or a whole word that is an extreme or points somewhere. */
export function damage(random: Random, bytes: Uint8Array, spots: readonly { start: number; end: number }[]): void {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  for (let n = random.pick([1, 1, 2, 5]); n > 0; n--) {
    const spot = random.chance(0.9) ? random.pick(spots) : { start: 0, end: bytes.length };
    const at = random.between(spot.start, spot.end - 1);
    const word = Math.min(at - (at % 4), bytes.length - 4);
    const kind = random.below(4);
    if (kind < 2) bytes[at] = (bytes[at] as number) ^ (1 << random.below(8));
    else if (kind === 2) view.setUint32(word, random.pick(EXTREMES), true);
    else view.setUint32(word, random.below(2 * bytes.length), true);
  }
}

/** Runs something that may fail with an error of ours, not of another kind and not slowly. @returns whether it succeeded */
export async function survives(act: () => Promise<unknown>, what: string): Promise<boolean> {
  const began = performance.now();
  let ok = true;
  try {
    await act();
  } catch (error) {
    ok = false;
    if (!(error instanceof LunetteError) || codeOf(error) === 'INTERNAL') throw error;
  }
  const took = performance.now() - began;
  assert.ok(took < 1000, `${what} took ${Math.round(took)} ms`);
  return ok;
}

/** Reads, maps and, when it can be written, writes parts of a disk. */
export async function exercise(random: Random, image: Image): Promise<void> {
  const out = new ExtentBuffer(9);
  for (const offset of new Set([0, random.below(image.size + 1), Math.max(0, image.size - 20000)])) {
    const length = Math.min(20000, image.size - offset);
    await survives(() => image.map(offset, length, out), 'map');
    const list = IoVec.of(new Uint8Array(length));
    await survives(async () => {
      if (!image.tryReadv(offset, list)) await image.readv(offset, list);
    }, 'read');
    if (image.readOnly) continue;
    await survives(() => image.writev(offset, list), 'write');
    await survives(() => image.writeZeroes(offset, length, random.chance(0.5)), 'write zeroes');
    await survives(() => image.discard(offset, length), 'discard');
    await survives(() => image.flush(), 'flush');
  }
  await survives(() => image.close(), 'close');
}
