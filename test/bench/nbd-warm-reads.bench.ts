/**
 * Random reads of 4 KiB from warm VMDK and VDI images through `lunette export --transport nbd`, beside a raw image of the same bytes through the
 * same program and qemu-nbd on the same files, in one run, in alternating rounds, with fio as the client: what the tables of a format cost.
 */

import { randomBytes } from 'node:crypto';
import { open } from 'node:fs/promises';
import { join } from 'node:path';
import { KiB, MiB } from '../../formats/core/units.ts';
import { bench, median } from '../support/bench.ts';
import { applyFio, type FioResult } from '../support/fio.ts';
import { type RunningNbd, startNbdExport, startQemuNbd } from '../support/nbd.ts';
import { qemu } from '../support/qemu.ts';
import { requires } from '../support/requires.ts';
import { temporaryDirectory } from '../support/temporary.ts';

const LOAD = { kind: 'randread', block: 4 * KiB, depth: 32 } as const;
const FORMATS = ['vmdk', 'vdi'] as const;
const NAMES = ['raw', 'vmdk', 'vdi', 'qemu vmdk', 'qemu vdi'] as const;
type Name = (typeof NAMES)[number];

bench(
  'nbd/warm-reads-vmdk-vdi',
  async (b) => {
    const size = b.pick(8 * MiB, 256 * MiB);
    const rounds = b.pick(1, 5);
    const seconds = b.pick(1, 2);
    const folder = await temporaryDirectory(b);
    const raw = join(folder, 'raw');
    const file = await open(raw, 'w');
    for (let at = 0; at < size; at += 4 * MiB) await file.write(randomBytes(4 * MiB));
    await file.close();
    const servers = {} as Record<Name, RunningNbd>;
    servers.raw = await startNbdExport(b, raw, { args: ['--socket', '', '-f', 'raw', '--read-only'] });
    for (const format of FORMATS) {
      const path = join(folder, `disk.${format}`);
      const options = format === 'vmdk' ? ['-o', 'subformat=monolithicSparse'] : [];
      await qemu.convert(raw, path, '-f', 'raw', '-O', format, ...options);
      servers[format] = await startNbdExport(b, path, { args: ['--socket', '', '--read-only'] });
      servers[`qemu ${format}`] = await startQemuNbd(b, path, format, '--read-only');
    }
    const results: Record<Name, FioResult[]> = { raw: [], vmdk: [], vdi: [], 'qemu vmdk': [], 'qemu vdi': [] };
    if (!b.smoke) for (const name of NAMES) await applyFio(LOAD, servers[name], size, 1); // compiled code, tables, page cache
    for (let round = 0; round < rounds; round++) {
      for (let turn = 0; turn < NAMES.length; turn++) {
        const name = NAMES[(turn + round) % NAMES.length] as Name;
        results[name].push(await applyFio(LOAD, servers[name], size, seconds));
      }
    }
    const middle = (name: Name, key: keyof FioResult): string =>
      median(results[name].map((result) => result[key])).toFixed(key === 'iops' ? 0 : 1);
    const beside = (name: Name, other: Name, key: keyof FioResult): string =>
      median(results[name].map((result, at) => result[key] / (results[other][at] as FioResult)[key])).toFixed(2);
    b.table(
      `${rounds} rounds of random reads of 4 KiB, depth 32, from ${size / MiB} MiB in the page cache: medians`,
      ['', 'qemu-nbd', 'lunette', 'lunette raw', 'beside raw', 'aim', 'beside qemu-nbd'],
      FORMATS.flatMap((format) => {
        const row = (label: string, key: keyof FioResult, aim: string): string[] => [
          label,
          middle(`qemu ${format}`, key),
          middle(format, key),
          middle('raw', key),
          beside(format, 'raw', key),
          aim,
          beside(format, `qemu ${format}`, key),
        ];
        return [row(`${format}: per second`, 'iops', '≥ 0.85'), row('  server CPU, µs per read', 'cpuUs', '')];
      }),
    );
  },
  () => requires.fio() || requires.qemuNbd() || requires.linux(),
);
