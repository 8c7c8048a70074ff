/** `convert --resume` as its users meet it: killed, interrupted, out of space; then the same command once more. */

import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { readdir, readFile, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { MiB } from '../../../formats/core/units.ts';
import { lunetteArgs } from '../../support/built.ts';
import { mountMemory } from '../../support/mounts.ts';
import { run, runOk, start } from '../../support/process.ts';
import { qemu } from '../../support/qemu.ts';
import { type Random, randomFor } from '../../support/random.ts';
import { requires } from '../../support/requires.ts';
import { temporaryDirectory } from '../../support/temporary.ts';

const skip = requires.qemuIo();
/** Packing it takes longer than what is between two checkpoints, a second. */
const SIZE = 256 * MiB;

async function sourceDisk(t: TestContext, random: Random): Promise<string> {
  const path = join(await temporaryDirectory(t), 'source.raw');
  const words = new Uint32Array(SIZE / 4);
  for (let at = 0; at < SIZE; at += MiB) {
    if (random.fraction() < 0.1) continue;
    for (let i = at / 4; i < (at + MiB) / 4; i += 2) words[i] = random.next();
  }
  await writeFile(path, words);
  return path;
}

/** Points in a journal; 0 without one. */
async function pointsIn(journal: string): Promise<number> {
  const text = await readFile(journal, 'utf8').catch(() => '');
  return Math.max(0, text.split('\n').length - 2);
}

for (const signal of ['SIGKILL', 'SIGINT'] as const) {
  test(`after ${signal} at any moment --resume goes on, and the image is the source in the end`, {
    skip,
  }, async (t) => {
    const random = randomFor(t);
    const source = await sourceDisk(t, random);
    const folder = await temporaryDirectory(t);
    const target = join(folder, 'disk.qcow2');
    const journal = join(folder, '.disk.qcow2.lunette-journal');
    const args = lunetteArgs('convert', '--resume', '-O', 'qcow2', '-c', source, target);
    await writeFile(target, 'precious');
    const isWhole = (): Promise<boolean> => qemu.compare(target, source, '-f', 'qcow2', '-F', 'raw');
    let continued = 0;
    let ended = false;
    for (let round = 0; round < 2 && !ended; round++) {
      const before = await pointsIn(journal);
      const running = start(t, process.execPath, args);
      // From its first checkpoint on, at any moment.
      while (!running.ended && (await pointsIn(journal)) <= before) await sleep(20);
      await sleep(random.fraction() * 700);
      const { status } = await running.stop(signal, 60_000);
      if (running.stderr.includes('goes on where')) continued++;
      ended = status === 0;
      if (ended) break;
      if (signal === 'SIGINT') assert.match(running.stderr, /interrupted \(ABORTED\)\nWhat is done stays in /);
      if ((await stat(target)).size !== 8) {
        // Killed when the image already had its name: it is whole, and only what it replaced is left to be cleaned up.
        assert.equal(signal, 'SIGKILL');
        assert.ok(await isWhole());
        await runOk(process.execPath, args);
        ended = true;
        break;
      }
      assert.equal(await readFile(target, 'utf8'), 'precious');
      assert.ok(existsSync(journal));
    }
    if (!ended) {
      const { status, stderr } = await run(process.execPath, args);
      assert.equal(status, 0, stderr);
      assert.match(stderr, /goes on where an earlier conversion ended, at \d+ %/);
      continued++;
    }
    // A machine may be so fast that all was done before the first signal.
    assert.ok(continued > 0 || ended);
    assert.ok(await isWhole());
    await qemu.assertClean(target);
    assert.deepEqual(await readdir(folder), ['disk.qcow2']);
  });
}

test('SIGTERM before the first checkpoint leaves what is done, and --resume goes on', { skip }, async (t) => {
  const source = await sourceDisk(t, randomFor(t));
  const folder = await temporaryDirectory(t);
  const target = join(folder, 'disk.qcow2');
  const args = lunetteArgs('convert', '--resume', '-O', 'qcow2', '-c', source, target);
  const running = start(t, process.execPath, args);
  const written = async (): Promise<number> =>
    (await stat(join(folder, '.disk.qcow2.lunette-new')).catch(() => undefined))?.size ?? 0;
  while (!running.ended && (await written()) < 6 * MiB) await sleep(5);
  const { status } = await running.stop('SIGTERM', 60_000);
  assert.equal(status, 1, running.stderr);
  assert.match(
    running.stderr,
    /interrupted \(ABORTED\)\nWhat is done stays in .*: the same command goes on from there\./,
  );
  const rest = await run(process.execPath, args);
  assert.equal(rest.status, 0, rest.stderr);
  assert.match(rest.stderr, /goes on where an earlier conversion ended, at \d+ %/);
  assert.equal(await qemu.compare(target, source, '-f', 'qcow2', '-F', 'raw'), true);
  assert.deepEqual(await readdir(folder), ['disk.qcow2']);
});

test('a full disk leaves what is done, and --resume goes on when there is room', {
  skip: skip || requires.root(),
}, async (t) => {
  const random = randomFor(t);
  const source = await sourceDisk(t, random);
  const folder = await mountMemory(t, 96 * MiB);
  const target = join(folder, 'disk.qcow2');
  const args = lunetteArgs('convert', '--resume', '-O', 'qcow2', '-c', source, target);
  const full = await run(process.execPath, args);
  assert.equal(full.status, 1);
  assert.match(
    full.stderr,
    /no space left.*\(NO_SPACE\)\nWhat is done stays in .*: the same command goes on from there\./,
  );
  await runOk('mount', ['-o', 'remount,size=256m', folder]);
  const rest = await run(process.execPath, args);
  assert.equal(rest.status, 0, rest.stderr);
  assert.match(rest.stderr, /goes on where an earlier conversion ended, at \d+ %/);
  assert.equal(await qemu.compare(target, source, '-f', 'qcow2', '-F', 'raw'), true);
  await qemu.assertClean(target);
  assert.deepEqual(await readdir(folder), ['disk.qcow2']);
});

test('what is written in place cannot be continued, and --resume there is refused', { skip }, async (t) => {
  const folder = await temporaryDirectory(t);
  const source = join(folder, 'source.raw');
  await writeFile(source, Buffer.alloc(MiB, 1));
  for (const target of ['-', 'nbd://localhost/x']) {
    const args = lunetteArgs('convert', '--resume', '-O', 'raw', source, target);
    const { status, stderr } = await run(process.execPath, args);
    assert.equal(status, 2, target);
    assert.match(stderr, /--resume is for new files/);
  }
});
