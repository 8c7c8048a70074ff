/**
 * libiscsi's whole suite, one process per test, against each kind of LUN. Nothing may fail; on a plain disk at least 192
 * of version 1.19's 230 tests pass, the others are skipped by the suite for things that we do not claim to have.
 */

import assert from 'node:assert/strict';
import { truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { MiB } from '../../../formats/core/units.ts';
import * as suite from '../../support/iscsi-test-cu.ts';
import { type ExportOptions, startExport } from '../../support/lunette-export.ts';
import { qemu } from '../../support/qemu.ts';
import { requires } from '../../support/requires.ts';
import { type Cleanup, temporaryDirectory } from '../../support/temporary.ts';

const SIZE = 100 * MiB;
const SECRET = 'correct-horse-1';

async function rawImage(t: Cleanup): Promise<string> {
  const path = join(await temporaryDirectory(t), 'plain.raw');
  await writeFile(path, '');
  await truncate(path, SIZE);
  return path;
}

interface Case {
  readonly name: string;
  readonly format: 'raw' | 'qcow2' | 'vmdk' | 'vdi';
  readonly args?: readonly string[];
  /** How many tests pass at least. */
  readonly passes: number;
  /** Must pass, not be skipped: what this kind of LUN is about. */
  readonly mustPass?: readonly string[];
  readonly chap?: boolean;
  /** Tests that may write; the others are run without, and skipped by the suite when they have to. */
  readonly dataLoss?: (name: string) => boolean;
  /** Tests that make no sense on this kind of LUN, and do not notice. */
  readonly leaveOut?: RegExp;
}

const CASES: readonly Case[] = [
  { name: 'a qcow2 image', format: 'qcow2', passes: 192 },
  { name: 'a raw image', format: 'raw', passes: 192 },
  { name: 'a VMDK disk', format: 'vmdk', passes: 192 },
  { name: 'a VDI image', format: 'vdi', passes: 192 },
  {
    name: 'a removable medium',
    format: 'qcow2',
    args: ['--removable'],
    passes: 192,
    mustPass: ['NoMedia.NoMediaSBC', 'PreventAllow.Simple', 'PreventAllow.Eject', 'StartStopUnit.Simple'],
  },
  {
    name: 'a read-only image',
    format: 'qcow2',
    args: ['--read-only'],
    passes: 90,
    mustPass: ['ReadOnly.ReadOnlySBC', 'Read10.Simple', 'Inquiry.EVPD'],
    // What only reads, and what must be refused. Reservations are no data, but the suite holds them back with the rest.
    dataLoss: (name) => /^ALL\.(ReadOnly|Prin|Prout)/.test(name),
    // These write to see what a reservation lets through, or without asking whether they may.
    leaveOut: /^ALL\.(ProutReserve\.Access|WriteVerify1[026]\.Dpo$)/,
  },
  { name: 'an image behind CHAP', format: 'raw', chap: true, passes: 192 },
];

const skip = requires.libiscsi() || requires.qemuImg();

// Four at a time: the suite mostly waits, for timers of its own.
describe("libiscsi's suite finds no failure", { concurrency: 4, skip }, () => {
  for (const { name, format, args = [], passes, mustPass = [], chap = false, dataLoss, leaveOut } of CASES) {
    test(`on ${name}`, { timeout: 240_000 }, async (t) => {
      const image = format === 'raw' ? await rawImage(t) : await qemu.create(t, { format, size: SIZE });
      let options: ExportOptions = { args };
      if (chap) {
        const secretFile = join(await temporaryDirectory(t), 'secret');
        await writeFile(secretFile, `${SECRET}\n`, { mode: 0o600 });
        options = { args: [...args, '--chap', 'suite', '--chap-secret-file', secretFile] };
      }
      const target = await startExport(t, image, options);
      const url = chap ? target.url.replace('iscsi://', `iscsi://suite%${SECRET}@`) : target.url;

      const all = await suite.listTests();
      assert.ok(all.length >= 230, `the suite has ${all.length} tests`);
      const tests = all.filter((test) => leaveOut?.test(test) !== true);
      const results = await suite.sweep(url, { tests, ...(dataLoss && { dataLoss }) });
      for (const line of suite.describe(results)) t.diagnostic(line);
      const { pass, fail } = suite.tally(results);
      const failed = results.filter((result) => result.result === 'fail');
      assert.equal(fail, 0, failed.map(({ name: test, output }) => `${test}\n${output}`).join('\n'));
      assert.ok(pass >= passes, `${pass} passed, ${passes} must`);
      for (const test of mustPass) {
        assert.equal(results.find((result) => result.name === `ALL.${test}`)?.result, 'pass', test);
      }
      await target.stop();
      if (format === 'qcow2') await qemu.assertClean(image);
    });
  }
});
