import assert from 'node:assert/strict';
import { test } from 'node:test';
import { codeOf } from '../../../../formats/core/errors.ts';
import { IoVec } from '../../../../formats/core/iov.ts';
import type { FormatDriver } from '../../../../formats/driver.ts';
import { checkQcow2 } from '../../../../formats/qcow2/check.ts';
import { qcow2 } from '../../../../formats/qcow2/driver.ts';
import { MemoryStorage } from '../../../../formats/storage/memory.ts';
import type { Storage } from '../../../../formats/storage/storage.ts';
import { checkVdi } from '../../../../formats/vdi/check.ts';
import { createVdi } from '../../../../formats/vdi/create.ts';
import { vdi } from '../../../../formats/vdi/driver.ts';
import { checkVmdk } from '../../../../formats/vmdk/check.ts';
import type { VmdkCreateType } from '../../../../formats/vmdk/create.ts';
import { vmdk } from '../../../../formats/vmdk/driver.ts';
import { openDisk, testContext } from '../../../support/layers.ts';
import { PowerCutStorage } from '../../../support/power-cut-storage.ts';
import { createImage, keptOpen, readAll } from '../../../support/qcow2-images.ts';
import { randomFor } from '../../../support/random.ts';
import { type Folder, newDisk } from '../../../support/vmdk-files.ts';

const UNIT = 4096;
const SIZE = 40 * UNIT;

interface Kind {
  readonly name: string;
  readonly driver: FormatDriver;
  create(): Promise<Uint8Array>;
  /** Corruptions that a check finds. */
  check(storage: Storage): Promise<number>;
}

async function hosted(
  type: VmdkCreateType,
  change: (bytes: Uint8Array) => void = () => undefined,
): Promise<Uint8Array> {
  const folder: Folder = new Map();
  const path = await newDisk(folder, 'disk.vmdk', { size: SIZE, grainSize: UNIT, type });
  const bytes = (folder.get(path) as MemoryStorage).toBytes();
  change(bytes);
  return bytes;
}

/** No table is there: both directories are empty. */
function withoutTables(bytes: Uint8Array): void {
  const view = new DataView(bytes.buffer);
  for (const field of [48, 56]) view.setUint32(512 * view.getUint32(field, true), 0, true);
}

const checkOfVmdk = async (storage: Storage) => (await checkVmdk(storage, { context: testContext() })).corruptions;

const KINDS: Kind[] = [
  {
    name: 'VDI image',
    driver: vdi,
    create: async () => {
      const storage = new MemoryStorage();
      await createVdi(storage, { size: SIZE, blockSize: UNIT });
      return storage.toBytes();
    },
    check: async (storage) => (await checkVdi(storage, testContext())).corruptions,
  },
  { name: 'VMDK disk', driver: vmdk, create: () => hosted('monolithicSparse'), check: checkOfVmdk },
  {
    name: 'VMDK disk whose tables come with their first grains',
    driver: vmdk,
    create: () => hosted('monolithicSparse', withoutTables),
    check: checkOfVmdk,
  },
  {
    name: 'qcow2 image',
    driver: qcow2,
    create: async () => (await createImage({ size: SIZE, clusterSize: 512 })).toBytes(),
    check: async (storage) => (await checkQcow2(storage)).corruptions,
  },
];

for (const { name, driver, create, check } of KINDS) {
  // With no room for tables in memory every allocation writes back what is dirty.
  for (const cache of [0, 2 ** 20]) {
    for (const fails of ['write', 'sync'] as const) {
      test(`whichever ${fails} fails, a ${name} (${cache} bytes of cache) has what a later flush says is there`, async (t) => {
        const random = randomFor(t);
        const bytes = await create();
        for (let nth = 1, reached = true; reached; nth++) {
          const storage = new PowerCutStorage(random, bytes);
          storage.tears = random.chance(0.5);
          const image = await openDisk(driver, keptOpen(storage), { context: testContext({ cache }) });
          let calls = 0;
          storage.failing = (call) => call === fails && ++calls === nth;
          const model = new Uint8Array(SIZE);
          const doubtful = new Set<number>();
          let written: { offset: number; bytes: Uint8Array }[] = [];
          for (const [i, unit] of [3, 20, 9, 20, 3, 35].entries()) {
            const data = random.bytes(UNIT);
            const offset = unit * UNIT;
            try {
              if (i === 3) await image.writeZeroes(offset, UNIT, true);
              else await image.writev(offset, IoVec.of(data));
              written.push({ offset, bytes: i === 3 ? new Uint8Array(UNIT) : data });
            } catch (error) {
              assert.equal(codeOf(error), 'IO');
              doubtful.add(offset);
            }
            if (i % 3 === 2) {
              const done = await image.flush().then(
                () => true,
                () => false,
              );
              if (done) {
                for (const each of written) model.set(each.bytes, each.offset);
                written = [];
              }
            }
          }
          reached = calls >= nth;
          await image.close().catch(() => undefined);
          const left = storage.cut(random, storage.now, random.pick([0, 0.5, 1]));
          assert.equal(await check(new MemoryStorage({ bytes: left })), 0, `${fails} ${nth}: it is corrupt`);
          const again = await openDisk(driver, new MemoryStorage({ bytes: left }), { readOnly: true });
          const shown = await readAll(again);
          for (let unit = 0; unit < SIZE / UNIT; unit++) {
            const at = unit * UNIT;
            if (doubtful.has(at) || written.some(({ offset }) => offset === at)) continue;
            const same = Buffer.compare(shown.subarray(at, at + UNIT), model.subarray(at, at + UNIT)) === 0;
            assert.ok(
              same || model.subarray(at, at + UNIT).every((byte) => byte === 0),
              `${fails} ${nth}: unit ${unit} was flushed and is not there`,
            );
          }
          await again.close();
        }
      });
    }
  }
}
