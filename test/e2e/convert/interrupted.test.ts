/** Conversions that are killed, interrupted or run out of space: the target's name means what it meant before, or the complete image. */

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { readdir, readFile, rm, statfs, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { type TestContext, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { KiB, MiB } from '../../../formats/core/units.ts';
import { lunetteArgs } from '../../support/built.ts';
import { serveFile } from '../../support/http.ts';
import { mountMade, mountMemory } from '../../support/mounts.ts';
import { run } from '../../support/process.ts';
import { qemu } from '../../support/qemu.ts';
import { type Random, randomFor } from '../../support/random.ts';
import { cannotRun, requires } from '../../support/requires.ts';
import { temporaryDirectory } from '../../support/temporary.ts';

const skip = requires.qemuIo();
const SIZE = 96 * MiB;

/** A disk of which a good part is data that does not compress well. */
async function sourceDisk(t: TestContext, random: Random): Promise<string> {
  const path = join(await temporaryDirectory(t), 'source.raw');
  const words = new Uint32Array(SIZE / 4);
  for (let at = 0; at < SIZE; at += MiB) {
    if (random.fraction() < 0.3) continue;
    for (let i = at / 4; i < (at + MiB) / 4; i += 2) words[i] = random.next();
  }
  await writeFile(path, words);
  return path;
}

function start(args: readonly string[]) {
  const child = spawn(process.execPath, lunetteArgs('convert', ...args), { stdio: ['ignore', 'ignore', 'pipe'] });
  const output = text(child.stderr);
  const ended = new Promise<number | null>((resolve) => child.once('close', (status) => resolve(status)));
  return { child, ended, output };
}

test('an interrupt ends waiting for a web server that has become silent', async (t) => {
  const server = await serveFile(t, new Uint8Array(4 * MiB).fill(0x5a));
  const directory = await temporaryDirectory(t);
  for (const resume of [[], ['--resume']]) {
    server.asked.length = 0;
    const silent = new Promise<void>((resolve) => {
      server.instead = () => {
        if (server.asked.length < 2) return false;
        resolve();
        return true;
      };
    });
    const { child, ended } = start(['-f', 'raw', ...resume, server.url, join(directory, 'disk.raw')]);
    await silent;
    await sleep(500);
    const before = performance.now();
    child.kill('SIGINT');
    assert.equal(await ended, 1);
    // A server is given up after 30 s otherwise, and asked again then.
    assert.ok(performance.now() - before < 20_000);
    if (resume.length === 0) assert.deepEqual(await readdir(directory), []);
  }
});

test('after kill -9 or an interrupt the target is the old one or the complete new one', { skip }, async (t) => {
  const random = randomFor(t);
  const source = await sourceDisk(t, random);
  const directory = await temporaryDirectory(t);
  const target = join(directory, 'disk.qcow2');
  const hidden = join(directory, '.disk.qcow2.lunette-new');
  const outcomes = { old: 0, complete: 0 };
  for (let round = 0; round < 6; round++) {
    const signal = round % 2 === 0 ? 'SIGKILL' : 'SIGINT';
    await writeFile(target, 'precious');
    // Half of the rounds begin over what a killed one left.
    if (signal === 'SIGINT') await rm(hidden, { force: true });
    const { child, ended } = start(['-O', 'qcow2', '-c', source, target]);
    // From when it has begun to write on, at any moment.
    for (let i = 0; i < 3000 && !existsSync(hidden) && child.exitCode === null; i++) await sleep(10);
    await sleep(random.fraction() * 1500);
    child.kill(signal);
    const status = await ended;
    const bytes = await readFile(target);
    if (bytes.length === 8) {
      outcomes.old++;
      assert.equal(bytes.toString(), 'precious');
    } else {
      outcomes.complete++;
      assert.equal(await qemu.compare(target, source, '-f', 'qcow2', '-F', 'raw'), true);
    }
    if (signal === 'SIGINT') {
      assert.equal(status, bytes.length === 8 ? 1 : 0);
      assert.deepEqual(await readdir(directory), ['disk.qcow2']);
    }
  }
  t.diagnostic(`${outcomes.old} times the old file, ${outcomes.complete} times the new one`);
  assert.ok(outcomes.old > 0);
  // What a killed one left is in nobody's way, and goes.
  assert.equal(await start(['-O', 'qcow2', source, target]).ended, 0);
  assert.deepEqual(await readdir(directory), ['disk.qcow2']);
  assert.equal(await qemu.compare(target, source, '-f', 'qcow2', '-F', 'raw'), true);
  await qemu.assertClean(target);
});

test('a full disk fails the conversion and leaves what was there', { skip: skip || requires.root() }, async (t) => {
  const random = randomFor(t);
  const source = await sourceDisk(t, random);
  const folder = await mountMemory(t, 24 * MiB);
  for (const args of [
    ['-O', 'raw'],
    ['-O', 'qcow2'],
    ['-O', 'qcow2', '-c'],
    ['-O', 'vmdk'],
    ['-O', 'vdi'],
  ]) {
    const target = join(folder, 'disk.img');
    await writeFile(target, 'precious');
    const before = (await statfs(folder)).bfree;
    const { status, stderr } = await run(process.execPath, lunetteArgs('convert', ...args, source, target));
    assert.equal(status, 1, args.join(' '));
    assert.match(stderr, /no space left.*\(NO_SPACE\)/, args.join(' '));
    assert.equal(await readFile(target, 'utf8'), 'precious');
    assert.deepEqual(await readdir(folder), ['disk.img']);
    assert.equal((await statfs(folder)).bfree, before, 'the space is free again');
  }
});

test('two conversions to one target do not mix', { skip }, async (t) => {
  const random = randomFor(t);
  const source = await sourceDisk(t, random);
  const target = join(await temporaryDirectory(t), 'disk.qcow2');
  const both = [0, 1].map(() => start(['-O', 'qcow2', '-c', source, target]));
  const all = await Promise.all(both.map(({ ended }) => ended));
  const said = await Promise.all(both.map(({ output }) => output));
  assert.ok(all.includes(0), `one of them ends well: ${all}\n${said.join('')}`);
  assert.equal(await qemu.compare(target, source, '-f', 'qcow2', '-F', 'raw'), true);
});

test('on a file system that shares space a conversion takes none for what is data', {
  skip: skip || requires.root(),
}, async (t) => {
  const folder = await mountMade(t, 'mkfs.xfs');
  if (folder === undefined) return cannotRun(t, 'no XFS can be mounted here');
  const random = randomFor(t);
  const source = join(folder, 'source.raw');
  await writeFile(source, await readFile(await sourceDisk(t, random)));
  await run('sync', ['-f', folder]);
  for (const [format, ...options] of [['qcow2'], ['raw'], ['vdi'], ['qcow2', '-o', 'cluster_size=4k']] as string[][]) {
    const target = join(folder, `disk.${format}`);
    const before = await statfs(folder);
    assert.equal(await start(['-O', format as string, ...(options as string[]), source, target]).ended, 0);
    const after = await statfs(folder);
    assert.equal(await qemu.compare(target, source, '-f', format as string, '-F', 'raw'), true, format);
    const taken = (before.bfree - after.bfree) * before.bsize;
    // VDI has its data at a multiple of 1 MiB: shared, too.
    assert.ok(taken < 4 * MiB, `${format} took ${taken / KiB} KiB`);
    await run('rm', [target]);
  }
});
