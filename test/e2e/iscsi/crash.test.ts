/**
 * kill -9 in the middle of heavy writes, at random moments: the image is never corrupt, it opens again, and what a completed
 * SYNCHRONIZE CACHE or FUA write acknowledged is there.
 */

import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { KiB, MiB } from '../../../formats/core/units.ts';
import { CrashModel, SECTOR } from '../../support/crash-model.ts';
import { IscsiInitiator } from '../../support/iscsi-initiator.ts';
import { startExport } from '../../support/lunette-export.ts';
import { qemu } from '../../support/qemu.ts';
import { type Random, randomFor } from '../../support/random.ts';
import { requires } from '../../support/requires.ts';
import { temporaryDirectory } from '../../support/temporary.ts';

const SIZE = 48 * MiB;
const SECTORS = SIZE / SECTOR;
const DEPTH = 24;
const ROUNDS = 10;

const WRITE_16 = 0x8a;
const WRITE_SAME_16 = 0x93;
const SYNCHRONIZE_CACHE_16 = 0x91;
const FUA = 0x08;
const NDOB_UNMAP = 0x09;

function cdb16(opcode: number, flags: number, lba: number, blocks: number): Buffer {
  const cdb = Buffer.alloc(16);
  cdb[0] = opcode;
  cdb[1] = flags;
  cdb.writeUInt32BE(lba, 6);
  cdb.writeUInt32BE(blocks, 10);
  return cdb;
}

/** Writes at random places with several commands in flight until the connection breaks. */
async function writeUntilKilled(initiator: IscsiInitiator, model: CrashModel, random: Random): Promise<void> {
  let over = false;
  let sinceSync = 0;

  const succeed = async (cdb: Buffer, dataOut?: Buffer): Promise<boolean> => {
    const answer = await initiator.command(cdb, dataOut === undefined ? {} : { dataOut }).catch(() => undefined);
    if (answer === undefined) {
      over = true; // Killed: nothing was promised.
      return false;
    }
    assert.equal(answer.status, 0, `status ${answer.status}`);
    return true;
  };
  const synchronize = async (): Promise<void> => {
    const done = model.synchronizing();
    if (await succeed(cdb16(SYNCHRONIZE_CACHE_16, 0, 0, 0))) done();
  };
  const write = async (): Promise<void> => {
    const count = random.pick([1, 8, 8, 8, 16, 64, 128]);
    const start = Math.min(random.below(SECTORS / 8) * 8 + (random.chance(0.2) ? random.below(8) : 0), SECTORS - count);
    if (!model.isFree(start, count)) return;
    const zero = random.chance(0.1);
    const durable = !zero && random.chance(0.08);
    const tracked = model.sent(start, count, zero);
    const sent = zero
      ? succeed(cdb16(WRITE_SAME_16, NDOB_UNMAP, start, count))
      : succeed(cdb16(WRITE_16, durable ? FUA : 0, start, count), CrashModel.stamp(tracked));
    if (await sent) model.completed(tracked, durable);
  };
  const worker = async (): Promise<void> => {
    while (!over) {
      if (++sinceSync >= 60) {
        sinceSync = 0;
        await synchronize();
      } else {
        await write();
        await Promise.resolve();
      }
    }
  };
  await Promise.all(Array.from({ length: DEPTH }, worker));
  await initiator.close().catch(() => {});
}

interface Setting {
  readonly name: string;
  create(t: TestContext, folder: string): Promise<string>;
}

const SETTINGS: readonly Setting[] = [
  {
    name: 'an empty image with 64 KiB clusters and a snapshot',
    create: async (t, folder) => {
      const path = await qemu.create(t, { path: join(folder, 'disk.qcow2'), size: SIZE, clusterSize: 64 * KiB });
      await qemu.img('snapshot', '-c', 'before', path);
      return path;
    },
  },
  {
    name: 'an overlay with 4 KiB clusters over a full backing image',
    create: async (t, folder) => {
      const base = await qemu.create(t, { path: join(folder, 'base.qcow2'), size: SIZE });
      await qemu.io(base, `write -P ${BASE_PATTERN} 0 ${SIZE}`);
      return qemu.create(t, { path: join(folder, 'disk.qcow2'), backing: 'base.qcow2', clusterSize: 4 * KiB });
    },
  },
];

const BASE_PATTERN = 0xb5;
const BASE_SECTOR = Buffer.alloc(SECTOR, BASE_PATTERN);

for (const [at, setting] of SETTINGS.entries()) {
  test(`kill -9 in the middle of writes to ${setting.name}`, {
    skip: requires.qemuIo(),
    timeout: 240_000,
  }, async (t) => {
    const random = randomFor(t);
    const folder = await temporaryDirectory(t);
    const image = await setting.create(t, folder);
    const model = new CrashModel(SECTORS);
    const initially = at === 1 ? (): Uint8Array => BASE_SECTOR : undefined;
    const copy = join(folder, 'copy.raw');
    let leaks = 0;
    for (let round = 0; round < ROUNDS; round++) {
      const target = await startExport(t, image);
      const initiator = await IscsiInitiator.connect({ port: target.port, target: target.iqn });
      const writing = writeUntilKilled(initiator, model, random);
      writing.catch(() => {}); // Awaited after the kill.
      await sleep(Math.floor(30 + 600 * random.fraction() ** 2));
      await target.kill();
      await writing;

      const what = `round ${round}, after ${model.facts.sent} writes`;
      const report = await qemu.check(image);
      assert.equal(report.corruptions, 0, `${what}: ${JSON.stringify(report.json)}`);
      assert.equal(report.checkErrors, 0, `${what}: ${JSON.stringify(report.json)}`);
      leaks += report.leaks;
      // Half of the time the next export starts from the image as it was left.
      if (report.leaks > 0 && random.chance(0.5)) await qemu.check(image, '-r', 'leaks');
      await qemu.convert(image, copy, '-O', 'raw');
      const disk = await readFile(copy);
      assert.deepEqual(model.judge(disk, initially), [], what);
      model.settle(disk);
    }
    const { sent, durableSectors } = model.facts;
    t.diagnostic(`${sent} writes, ${durableSectors} sectors promised, ${leaks} clusters leaked in ${ROUNDS} kills`);
    assert.ok(sent > ROUNDS * 20 && durableSectors > 1000, 'there was something to lose');

    // And it goes on as if nothing had happened.
    await qemu.check(image, '-r', 'leaks');
    const target = await startExport(t, image);
    await qemu.io(target.url, 'write -P 1 1M 1M', 'flush', 'read -P 1 1M 1M');
    await target.stop();
    await qemu.assertClean(image);
  });
}
