import assert from 'node:assert/strict';
import { test } from 'node:test';
import { codeOf } from '../../../../formats/core/errors.ts';
import { IoVec } from '../../../../formats/core/iov.ts';
import { MemoryStorage } from '../../../../formats/storage/memory.ts';
import { checkVdi } from '../../../../formats/vdi/check.ts';
import { createVdi } from '../../../../formats/vdi/create.ts';
import { vdi } from '../../../../formats/vdi/driver.ts';
import { openDisk, testContext } from '../../../support/layers.ts';
import { PowerCutStorage } from '../../../support/power-cut-storage.ts';
import { keptOpen, readAll } from '../../../support/qcow2-images.ts';
import { type Random, randomFor } from '../../../support/random.ts';

const UNIT = 4096;
const BLOCKS = 128;
/** Blocks that are in the file, the first of the disk. */
const FILLED = 60;
/** One that is not, to be written afterwards. */
const NEW = 100;

/** Laid out as QEMU does it, the blocks right behind the map: a longer map takes the place of the first of them. */
async function tightImage(content: Uint8Array): Promise<Uint8Array> {
  const source = new MemoryStorage();
  await createVdi(source, { size: BLOCKS * UNIT, blockSize: UNIT });
  const head = source.toBytes().slice(0, 512);
  const view = new DataView(head.buffer);
  view.setUint32(0x154, 512, true);
  view.setUint32(0x158, 1024, true);
  view.setUint32(0x184, FILLED, true);
  const map = new Uint8Array(4 * BLOCKS).fill(0xff);
  for (let i = 0; i < FILLED; i++) new DataView(map.buffer).setUint32(4 * i, i, true);
  return Buffer.concat([head, map, content]);
}

/** Resizes a disk whose storage was prepared to fail, goes on with it, and looks at it again after it was closed. */
async function judge(random: Random, target: number, what: string, prepare: (storage: PowerCutStorage) => void) {
  const content = random.bytes(FILLED * UNIT);
  const storage = new PowerCutStorage(random, await tightImage(content));
  const image = await openDisk(vdi, keptOpen(storage), { context: testContext() });
  prepare(storage);
  let failure = '';
  await image.resize(target * UNIT, { shrink: true }).catch((error: unknown) => {
    failure = codeOf(error);
    assert.ok(['IO', 'NO_SPACE'].includes(failure), `${what}: ${String(error)}`);
  });
  storage.failing = () => false;
  storage.maxSize = Number.MAX_SAFE_INTEGER;
  // Of a disk that was to be shorter the end may be gone already.
  const sure = Math.min(target, FILLED) * UNIT;
  const expected = content.slice(0, sure);
  const shown = await readAll(image);
  assert.ok(Buffer.compare(shown.subarray(0, sure), expected) === 0, `${what}: it shows something else`);
  const bytes = random.bytes(UNIT);
  let written = false;
  if (image.size > NEW * UNIT) {
    try {
      await image.writev(NEW * UNIT, IoVec.of(bytes));
      await image.flush();
      written = true;
    } catch (error) {
      // After an error nothing needs be taken any more; after a full file system it is.
      assert.equal(failure, 'IO', `${what}: ${String(error)}`);
    }
  }
  await image.close().catch(() => undefined);
  const left = storage.toBytes();
  const found = await checkVdi(new MemoryStorage({ bytes: left }), testContext());
  assert.equal(found.corruptions, 0, `${what}\n${found.messages.join('\n')}`);
  const again = await openDisk(vdi, new MemoryStorage({ bytes: left }), { readOnly: true });
  const after = await readAll(again);
  await again.close();
  assert.ok(Buffer.compare(after.subarray(0, sure), expected) === 0, `${what}: it has something else after closing`);
  if (written) {
    const place = after.subarray(NEW * UNIT, (NEW + 1) * UNIT);
    assert.ok(Buffer.compare(place, bytes) === 0, `${what}: what was flushed afterwards is not there`);
  }
}

for (const target of [300, 30]) {
  test(`whichever write or sync fails while a VDI disk of ${BLOCKS} blocks gets ${target}, no bytes are lost`, async (t) => {
    const random = randomFor(t);
    for (const fails of ['write', 'sync'] as const) {
      let calls = 0;
      for (let nth = 1; calls >= nth - 1; nth++) {
        calls = 0;
        await judge(random, target, `${fails} ${nth}`, (storage) => {
          storage.failing = (call) => call === fails && ++calls === nth;
        });
      }
    }
  });
}

test('a VDI disk that cannot grow because the file system is full goes on as it was', async (t) => {
  const random = randomFor(t);
  for (let room = 0; room < 12; room++) {
    await judge(random, 300, `${room} blocks of room`, (storage) => {
      storage.maxSize = storage.size + room * UNIT;
    });
  }
});
