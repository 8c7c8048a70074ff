import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ABSENT, DATA, type ExtentBuffer, WRITABLE } from '../../../../formats/image/extent.ts';
import type { Layer } from '../../../../formats/image/layer.ts';
import { copyRange } from '../../../../formats/image/transfer-range.ts';
import type { Storage } from '../../../../formats/index.ts';

const UNIT = 4096;

/** A layer whose first `placed` units have a place, and which gives room for two at a time; its storage takes `room` units. */
function layerWith(placed: number, room = Number.POSITIVE_INFINITY) {
  const log: string[] = [];
  const storage = {
    canCopy: () => true,
    copyFrom: async (_source: Storage, from: number, to: number, length: number) => {
      log.push(`copy ${from / UNIT} to ${to / UNIT}: ${length / UNIT}`);
      return to / UNIT - 100 < room ? length : 0;
    },
  } as unknown as Storage;
  const layer = {
    storage,
    tryMap(offset: number, length: number, out: ExtentBuffer): number {
      log.push(`map ${offset / UNIT}`);
      out.begin(offset);
      const here = Math.max(0, Math.min(length, placed * UNIT - offset));
      if (here > 0) out.append(DATA, here, storage, offset + 100 * UNIT, WRITABLE);
      if (length > here) out.append(ABSENT, length - here);
      return out.count;
    },
    async reserve(offset: number, length: number) {
      const end = offset + Math.min(length, 2 * UNIT);
      const region = { storage, storageOffset: offset + 100 * UNIT, guestOffset: offset, length: end - offset };
      const note = (what: string) => async () => void log.push(what);
      return { end, regions: [{ ...region, fill: 'zero', fresh: true }], commit: note('commit'), abort: note('abort') };
    },
  } as unknown as Layer;
  const copy = (offset: number, length: number): Promise<number> =>
    copyRange(layer, offset * UNIT, length * UNIT, { source: storage, sourceOffset: 0, leaveOut: 0 });
  return { copy, log };
}

test('what has no place is mapped once, however many times room is asked for', async () => {
  const { copy, log } = layerWith(3);
  assert.equal(await copy(1, 7), 7 * UNIT);
  assert.deepEqual(log, [
    'map 1',
    'copy 0 to 101: 2',
    'map 3',
    'copy 2 to 103: 2',
    'commit',
    'copy 4 to 105: 2',
    'commit',
    'copy 6 to 107: 1',
    'commit',
  ]);
});

test('where copying ends, the room that was taken is given back, and what came before stays', async () => {
  const { copy, log } = layerWith(0, 4);
  assert.equal(await copy(0, 8), 4 * UNIT);
  assert.deepEqual(log.slice(-3), ['commit', 'copy 4 to 104: 2', 'abort']);
});
