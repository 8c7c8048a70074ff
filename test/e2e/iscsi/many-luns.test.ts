/** 256 images in one process. The bounds are generous, test/bench/memory.bench.ts prints the figures. */

import assert from 'node:assert/strict';
import { copyFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { MiB } from '../../../formats/core/units.ts';
import { startExport } from '../../support/lunette-export.ts';
import { runOk } from '../../support/process.ts';
import { qemu } from '../../support/qemu.ts';
import { requires } from '../../support/requires.ts';
import { temporaryDirectory } from '../../support/temporary.ts';

const COUNT = 256;
const skip = requires.qemuIscsi() || requires.libiscsi() || requires.linux();

for (const oneTarget of [false, true]) {
  test(`${COUNT} images as ${oneTarget ? 'LUNs of one target' : 'targets'} in one process`, {
    skip,
    timeout: 180_000,
  }, async (t) => {
    const folder = await temporaryDirectory(t);
    const first = await qemu.create(t, { path: join(folder, 'lun0.qcow2'), size: 64 * MiB });
    await qemu.io(first, 'write -P 1 0 1M');
    const images = [first];
    for (let at = 1; at < COUNT; at++) {
      const path = join(folder, `lun${at}.qcow2`);
      await copyFile(first, path);
      images.push(path);
    }
    const alone = await startExport(t, first, { args: ['--read-only'] });
    const single = alone.residentBytes();
    await alone.stop();

    const target = await startExport(t, images, { args: oneTarget ? ['--one-target'] : [], timeoutMs: 90_000 });
    const perLun = (target.residentBytes() - single) / (COUNT - 1);
    t.diagnostic(`${(single / MiB).toFixed(1)} MiB with one, ${(perLun / 1024).toFixed(0)} KiB for each further one`);
    assert.ok(perLun < 1.5 * MiB, `${perLun} bytes for each LUN`);
    assert.equal(new Set(target.exports.map(({ url }) => url)).size, COUNT);

    const listing = await runOk('iscsi-ls', ['-s', `iscsi://127.0.0.1:${target.port}`], { timeoutMs: 60_000 });
    assert.equal(listing.match(/Type:DIRECT_ACCESS/g)?.length, COUNT, listing.slice(0, 2000));
    for (const at of [0, 1, 17, 128, 254, 255]) {
      const { url, lun } = target.exports[at] as (typeof target.exports)[number];
      assert.equal(lun, oneTarget ? at : 0);
      await qemu.io(url, 'read -P 1 0 1M', `write -P ${(at % 250) + 2} 1M 1M`, 'flush');
    }
    await target.stop();
    for (const at of [0, 1, 17, 128, 254, 255]) {
      await qemu.assertClean(images[at] as string);
      await qemu.io(images[at] as string, `read -P ${(at % 250) + 2} 1M 1M`, 'read -P 1 0 1M');
    }
  });
}
