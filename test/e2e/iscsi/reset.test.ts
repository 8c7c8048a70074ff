/** Task management while writes are in flight: the answer comes, aborted writes get none, and the session goes on. */

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { MiB } from '../../../formats/core/units.ts';
import { type CommandResult, IscsiInitiator } from '../../support/iscsi-initiator.ts';
import { startExport } from '../../support/lunette-export.ts';
import { qemu } from '../../support/qemu.ts';
import { requires } from '../../support/requires.ts';

const LUN_RESET = 5;
const FUNCTION_COMPLETE = 0;
const CHECK_CONDITION = 2;
const BUS_DEVICE_RESET = 0x2903;

function write10(lba: number, blocks: number): Buffer {
  const cdb = Buffer.alloc(10);
  cdb[0] = 0x2a;
  cdb.writeUInt32BE(lba, 2);
  cdb.writeUInt16BE(blocks, 7);
  return cdb;
}

test('a LUN reset among writes completes, each write is answered before it or never, and the session goes on', {
  skip: requires.qemuImg(),
  timeout: 60_000,
}, async (t) => {
  const image = await qemu.create(t, { size: 64 * MiB });
  const target = await startExport(t, image);
  const initiator = await IscsiInitiator.connect({ port: target.port, target: target.iqn });
  const data = Buffer.alloc(4096, 1);
  for (let round = 0; round < 20; round++) {
    let answered = 0;
    let afterReset = 0;
    let over = false;
    for (let at = 0; at < 16; at++) {
      initiator.command(write10((round * 16 + at) * 128, 8), { dataOut: data }).then(
        ({ status }: CommandResult) => {
          assert.equal(status, 0);
          answered++;
          if (over) afterReset++;
        },
        () => {}, // Those that were aborted end with the connection.
      );
    }
    assert.equal(await initiator.manage(LUN_RESET), FUNCTION_COMPLETE);
    over = true;
    // The reset is told once, to the one who asked for it as to all others.
    let { status, sense } = await initiator.command(Buffer.alloc(6));
    if (status === CHECK_CONDITION) {
      assert.equal(sense.readUInt16BE(12), BUS_DEVICE_RESET);
      ({ status, sense } = await initiator.command(Buffer.alloc(6)));
    }
    assert.equal(status, 0);
    assert.equal(afterReset, 0, `${afterReset} of ${answered} writes were answered after the reset`);
    const alone = await initiator.command(write10(0, 8), { dataOut: data });
    assert.equal(alone.status, 0);
  }
  await initiator.close();
  await target.stop();
  await qemu.assertClean(image);
});
