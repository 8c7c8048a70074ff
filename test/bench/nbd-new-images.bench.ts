/**
 * Writes of 4 KiB far apart into new VMDK and VDI images through `lunette export --transport nbd`, beside qemu-nbd on the same format, in one
 * run, alternating. The client of both is `qemu-img bench`.
 */

import { join } from 'node:path';
import { MiB } from '../../formats/core/units.ts';
import { bench, median } from '../support/bench.ts';
import { startNbdExport, startQemuNbd } from '../support/nbd.ts';
import { qemu, qemuImg } from '../support/qemu.ts';
import { requires } from '../support/requires.ts';
import { temporaryDirectory } from '../support/temporary.ts';

const FORMATS = [
  { format: 'vmdk', options: { subformat: 'monolithicSparse' } },
  { format: 'vdi', options: {} },
] as const;

bench(
  'nbd/writes-into-new-images',
  async (b) => {
    const size = b.pick(64 * MiB, 1024 * MiB);
    const count = b.pick(200, 20_000);
    const folder = await temporaryDirectory(b);
    const rows: string[][] = [];
    for (const { format, options } of FORMATS) {
      const results: Record<'ours' | 'qemu', { perSecond: number; cpuUs: number }[]> = { ours: [], qemu: [] };
      for (let round = 0; round < b.pick(1, 3); round++) {
        for (const who of ['ours', 'qemu'] as const) {
          const path = await qemu.create(b, { format, size, options, path: join(folder, `${who}${round}.${format}`) });
          const server = who === 'ours' ? await startNbdExport(b, path) : await startQemuNbd(b, path, format);
          const before = server.cpuSeconds();
          const where = ['-c', String(count), '-d', '32', '-s', '4096', '-S', '217088'];
          const text = await qemuImg('bench', '-w', '-f', 'raw', '-t', 'none', ...where, server.url);
          const seconds = Number(/Run completed in ([\d.]+) seconds/.exec(text)?.[1]);
          const cpu = server.cpuSeconds() - before;
          results[who].push({ perSecond: count / seconds, cpuUs: (cpu / count) * 1e6 });
          await server.process.stop();
        }
      }
      const ratio = (key: 'perSecond' | 'cpuUs'): string =>
        median(results.ours.map((ours, i) => ours[key] / (results.qemu[i]?.[key] ?? Number.NaN))).toFixed(2);
      const middle = (who: 'ours' | 'qemu', key: 'perSecond' | 'cpuUs'): string =>
        median(results[who].map((result) => result[key])).toFixed(0);
      rows.push(
        [`${format}: per second`, middle('qemu', 'perSecond'), middle('ours', 'perSecond'), ratio('perSecond'), '≥ 2'],
        ['  server CPU, µs per write', middle('qemu', 'cpuUs'), middle('ours', 'cpuUs'), ratio('cpuUs'), ''],
      );
    }
    b.table(
      `${count} writes of 4 KiB, 212 KiB apart, depth 32, into new images of ${size / MiB} MiB`,
      ['', 'qemu-nbd', 'lunette', 'ratio', 'aim'],
      rows,
    );
  },
  () => requires.qemuNbd() || requires.linux(),
);
