import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { copyFile, readdir, readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { test } from 'node:test';
import { PROJECT_ROOT, run, runOk } from '../support/process.ts';
import { qemu } from '../support/qemu.ts';
import { requires } from '../support/requires.ts';
import { temporaryDirectory } from '../support/temporary.ts';

interface Fixture {
  readonly file: string;
  readonly size: number;
  readonly sha256: string;
}

const directory = join(PROJECT_ROOT, 'fixtures');

/** The rows of the table in fixtures/README.md. */
async function readTable(): Promise<Fixture[]> {
  const text = await readFile(join(directory, 'README.md'), 'utf8');
  return [...text.matchAll(/^\| `([^`]+)` \| .* \| (\d+) \| `([0-9a-f]{64})` \|$/gm)].map(([, file, size, sha256]) => ({
    file: file as string,
    size: Number(size),
    sha256: sha256 as string,
  }));
}

async function sha256Of(path: string): Promise<string> {
  const hash = createHash('sha256');
  await pipeline(createReadStream(path), hash);
  return hash.digest('hex');
}

test('every file in fixtures/ has a row in its README, and no row is without a file', async () => {
  const files = (await readdir(directory)).filter((name) => name !== 'README.md').sort();
  assert.deepEqual((await readTable()).map((row) => row.file).sort(), files);
});

test('each fixture holds the virtual disk that the README says, as qemu-img reads it', {
  skip: requires.qemuImg(),
}, async (t) => {
  const work = await temporaryDirectory(t);
  for (const { file, size, sha256 } of await readTable()) {
    const raw = join(work, `${file}.raw`);
    await qemu.convert(join(directory, file), raw, '-O', 'raw');
    assert.equal((await stat(raw)).size, size, file);
    assert.equal(await sha256Of(raw), sha256, file);
  }
});

test('the sample holds a clean file system with the README that a visitor reads first', {
  skip: requires.qemuImg() || requires.e2fsprogs(),
}, async (t) => {
  const raw = join(await temporaryDirectory(t), 'sample.raw');
  await qemu.convert(join(directory, 'sample.qcow2'), raw, '-O', 'raw');
  assert.equal((await run('e2fsck', ['-fn', raw])).status, 0);
  assert.match(await runOk('debugfs', ['-R', 'cat /home/guest/README', raw]), /came to you through an iSCSI target/);
});

test('scripts/make-sample makes the same virtual disk twice, and a sound compressed image', {
  skip: requires.qemuImg() || requires.e2fsprogs(),
}, async (t) => {
  const path = join(await temporaryDirectory(t), 'again.qcow2');
  const script = join(PROJECT_ROOT, 'scripts/make-sample');
  const first = await runOk(script, [path]);
  await copyFile(path, `${path}.first`);
  assert.equal(await runOk(script, [path]), first);
  await qemu.assertClean(path);
  assert.ok(((await qemu.check(path)).json['compressed-clusters'] as number) > 0);
  assert.ok(await qemu.compare(path, `${path}.first`));
});
