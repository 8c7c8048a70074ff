/** Resident memory of an idle export, and of each further LUN in the same process. */

import { copyFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { KiB, MiB } from '../../formats/core/units.ts';
import { bench } from '../support/bench.ts';
import { startExport } from '../support/lunette-export.ts';
import { qemu } from '../support/qemu.ts';
import { requires } from '../support/requires.ts';
import { temporaryDirectory } from '../support/temporary.ts';

bench(
  'memory/export',
  async (b) => {
    const folder = await temporaryDirectory(b);
    const first = await qemu.create(b, { path: join(folder, 'lun0.qcow2'), size: 1024 * MiB });
    const images = [first];
    for (let at = 1; at < b.pick(8, 256); at++) {
      const path = join(folder, `lun${at}.qcow2`);
      await copyFile(first, path);
      images.push(path);
    }
    const rows: string[][] = [];
    let single = 0;
    for (const count of [1, ...b.pick([8], [2, 64, 256])]) {
      const target = await startExport(b, images.slice(0, count), { timeoutMs: 90_000 });
      await sleep(b.pick(100, 2000)); // idle
      const resident = target.residentBytes();
      if (count === 1) single = resident;
      const each = count === 1 ? '' : `${((resident - single) / (count - 1) / KiB).toFixed(0)} KiB`;
      rows.push([
        `${count}`,
        `${(resident / 1e6).toFixed(1)} MB`,
        count === 1 ? '< 90 MB' : '',
        each,
        count === 1 ? '' : '< 1 MB',
      ]);
      await target.stop();
    }
    b.table('lunette export, qcow2, no session', ['LUNs', 'resident', 'aim', 'each further', 'aim'], rows);
  },
  () => requires.qemuImg() || requires.linux(),
);
