/** Snapshots that are odd in one way or another, made by us and by QEMU's programs, resolved and kept the same by both. */

import assert from 'node:assert/strict';
import { copyFile, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { KiB, MiB } from '../../formats/core/units.ts';
import { cli } from '../support/cli.ts';
import { manySnapshots } from '../support/many-snapshots.ts';
import { run } from '../support/process.ts';
import { Qcow2File } from '../support/qcow2-file.ts';
import { assertClean, compare, create, info, qemuImg, qemuIo } from '../support/qemu.ts';
import { requires } from '../support/requires.ts';
import { temporaryDirectory } from '../support/temporary.ts';

const NAMES = [
  '',
  ' ',
  'a b',
  'line\nbreak',
  'tab\tand\x1b[31mcolour',
  'ünï çødé 日本語 🦊',
  '-d',
  '--id',
  '1',
  '0',
  'x'.repeat(255),
  'y'.repeat(300),
  'z'.repeat(1000),
];

async function okCli(...args: string[]): Promise<string> {
  const { status, stdout, stderr } = await cli(...args);
  assert.equal(status, 0, `${args.join(' ')}: ${stderr}`);
  return stdout;
}

interface Listed {
  readonly id: string;
  readonly name: string;
  readonly 'vm-state-size': number;
}

async function listed(path: string): Promise<Listed[]> {
  return ((await info(path)).snapshots ?? []) as Listed[];
}

/** One byte that the disk begins with, as QEMU reads it. */
async function firstByte(path: string): Promise<number> {
  const raw = `${path}.raw`;
  await qemuImg('convert', '-f', 'qcow2', '-O', 'raw', path, raw);
  return (await readFile(raw))[0] as number;
}

test('odd names are taken, listed, applied and deleted by either program alike', {
  skip: requires.qemuIo(),
}, async (t) => {
  for (const ours of [true, false]) {
    const path = await create(t, { size: MiB, clusterSize: 4 * KiB });
    for (const [i, name] of NAMES.entries()) {
      await qemuIo(path, [`write -P ${i + 1} 0 4k`]);
      if (ours) await okCli('snapshot', '-c', name, path);
      else await qemuImg('snapshot', '-c', name, path);
    }
    await assertClean(path);
    // QEMU takes and lists 255 bytes of a name.
    const names = ours ? NAMES : NAMES.map((name) => name.slice(0, 255));
    assert.deepEqual(
      (await listed(path)).map(({ name }) => name),
      NAMES.map((name) => name.slice(0, 255)),
    );
    const mine = JSON.parse(await okCli('snapshot', 'list', '--json', path)) as Listed[];
    assert.deepEqual(
      mine.map(({ name }) => name),
      names,
    );
    for (const [i, name] of names.entries()) {
      // An id is taken first by both: `1` and `0` are names as well.
      const twins = [`${path}.theirs`, `${path}.ours`] as const;
      for (const twin of twins) await copyFile(path, twin);
      const qemu = await run('qemu-img', ['snapshot', '-a', name, twins[0]]);
      const our = await cli('snapshot', '-a', name, twins[1]);
      assert.equal(our.status === 0, qemu.status === 0, `-a ${JSON.stringify(name)}: ${qemu.stderr} ${our.stderr}`);
      if (our.status === 0)
        assert.equal(await firstByte(twins[1]), await firstByte(twins[0]), `-a ${JSON.stringify(name)}`);
      await assertClean(twins[1]);
      for (const twin of twins) await copyFile(path, twin);
      const gone = await run('qemu-img', ['snapshot', '-d', name, twins[0]]);
      const ourGone = await cli('snapshot', '-d', name, twins[1]);
      // QEMU looks for what it lists, which is no longer than 255 bytes; we for the name.
      const cut = Buffer.byteLength(name) > 255;
      const context = `-d ${JSON.stringify(name)}: ${gone.stderr} ${ourGone.stderr}`;
      assert.equal(ourGone.status === 0, cut || gone.status === 0, context);
      const idsOf = async (twin: string) => (await listed(twin)).map(({ id }) => id);
      const left = cut ? names.map((_, k) => `${k + 1}`).filter((_, k) => k !== i) : await idsOf(twins[0]);
      assert.deepEqual(await idsOf(twins[1]), left, context);
      await assertClean(twins[1]);
    }
  }
});

test('of several snapshots of one name, and of names that are ids of others, both programs mean the same one', {
  skip: requires.qemuIo(),
}, async (t) => {
  const path = await create(t, { size: MiB });
  for (const [i, name] of ['twin', '1', 'twin', '2', '9'].entries()) {
    await qemuIo(path, [`write -P ${i + 1} 0 64k`]);
    await qemuImg('snapshot', '-c', name, path);
  }
  // Two with one id, as a program that does not look may leave them.
  const file = new Qcow2File(new Uint8Array(await readFile(path)));
  const text = Buffer.from(file.bytes.buffer, file.bytes.byteOffset, file.bytes.length);
  const table = Number(file.u64(64));
  const fifth = text.indexOf('59', table);
  text.write('49', fifth, 'latin1'); // id 4 again, name 9
  const double = `${path}.double`;
  await writeFile(double, file.bytes);
  assert.deepEqual(
    (await listed(double)).map(({ id, name }) => `${id} ${name}`),
    ['1 twin', '2 1', '3 twin', '4 2', '4 9'],
  );
  for (const source of [path, double]) {
    for (const what of ['twin', '1', '2', '3', '4', '5', '9', 'none']) {
      for (const option of ['-a', '-d']) {
        const twins = [`${path}.theirs`, `${path}.ours`] as const;
        for (const twin of twins) await copyFile(source, twin);
        const qemu = await run('qemu-img', ['snapshot', option, what, twins[0]]);
        const our = await cli('snapshot', option, what, twins[1]);
        const context = `${option} ${what}: QEMU ${qemu.status} ${qemu.stderr}, ours ${our.status} ${our.stderr}`;
        assert.equal(our.status === 0, qemu.status === 0, context);
        assert.deepEqual(await listed(twins[1]), await listed(twins[0]), context);
        assert.equal(await firstByte(twins[1]), await firstByte(twins[0]), context);
        await assertClean(twins[1]);
      }
      const raws = [`${path}.theirs.raw`, `${path}.ours.raw`] as const;
      const qemu = await run('qemu-img', ['convert', '-f', 'qcow2', '-l', what, '-O', 'raw', source, raws[0]]);
      const our = await cli('convert', '-f', 'qcow2', '-l', what, '-O', 'raw', source, raws[1]);
      assert.equal(our.status === 0, qemu.status === 0, `convert -l ${what}: ${qemu.stderr} ${our.stderr}`);
      if (qemu.status === 0)
        assert.equal((await readFile(raws[1]))[0], (await readFile(raws[0]))[0], `convert -l ${what}`);
    }
  }
});

/** Puts `extra` bytes of extra data into the only entry of the table, in place of what it has. */
async function withExtra(path: string, extra: Uint8Array): Promise<Uint8Array> {
  const bytes = new Uint8Array(await readFile(path));
  const view = new DataView(bytes.buffer);
  const at = Number(view.getBigUint64(64));
  const had = view.getUint32(at + 36);
  const texts = view.getUint16(at + 12) + view.getUint16(at + 14);
  const text = bytes.slice(at + 40 + had, at + 40 + had + texts);
  const length = Math.ceil((40 + extra.length + texts) / 8) * 8;
  const file = new Uint8Array(Math.max(bytes.length, Math.ceil((at + length) / 512) * 512));
  file.set(bytes);
  new DataView(file.buffer).setUint32(at + 36, extra.length);
  file.set(extra, at + 40);
  file.set(text, at + 40 + extra.length);
  file.fill(0, at + 40 + extra.length + texts, at + length);
  await writeFile(path, file);
  return file.slice(at, at + length);
}

async function entryBytes(path: string, length: number): Promise<Uint8Array> {
  const bytes = new Uint8Array(await readFile(path));
  const at = Number(new DataView(bytes.buffer).getBigUint64(64));
  return bytes.slice(at, at + length);
}

test('extra data of every length stays as it is, byte for byte, when the table is written anew', {
  skip: requires.qemuIo(),
}, async (t) => {
  const original = await create(t, { size: MiB });
  await qemuIo(original, ['write -P 1 0 64k']);
  await qemuImg('snapshot', '-c', 'kept', original);
  for (const length of [0, 1, 7, 8, 15, 16, 17, 23, 24, 25, 32, 100, 511, 1023, 1024]) {
    const path = `${original}.${length}`;
    await copyFile(original, path);
    const extra = new Uint8Array(length).map((_, i) => 1 + ((i * 37 + length) % 255));
    const view = new DataView(extra.buffer);
    if (length >= 8) view.setBigUint64(0, 0n);
    if (length >= 16) view.setBigUint64(8, BigInt(MiB));
    if (length >= 24) view.setBigUint64(16, 0xffffffffffffffffn);
    const entry = await withExtra(path, extra);
    await okCli('snapshot', '-c', 'second', path);
    assert.deepEqual(await entryBytes(path, entry.length), entry, `${length} bytes, after create`);
    await okCli('snapshot', '-a', 'kept', path);
    await okCli('snapshot', '-d', 'second', path);
    assert.deepEqual(await entryBytes(path, entry.length), entry, `${length} bytes, after delete`);
    if (length >= 16)
      await assertClean(path); // version 3 wants 16
    else assert.equal((await run('qemu-img', ['check', '-r', 'all', path])).status, 0, `${length} bytes`);
    assert.equal((await listed(path))[0]?.name, 'kept');
  }
  const path = `${original}.long`;
  await copyFile(original, path);
  await withExtra(path, new Uint8Array(1025));
  const { status, stderr } = await cli('snapshot', 'list', path);
  assert.equal(status, 1);
  assert.match(stderr, /snapshot table entry 0 has too much extra data/);
});

test('a snapshot with another disk size is listed, read, compared, exported and applied with its own', {
  skip: requires.qemuIo(),
}, async (t) => {
  const folder = await temporaryDirectory(t);
  const path = await create(t, { path: join(folder, 'disk.qcow2'), size: 4 * MiB, clusterSize: 4 * KiB });
  await qemuIo(path, ['write -P 1 0 4M']);
  await okCli('snapshot', 'create', path, 'small');
  await okCli('resize', '-q', path, '64M');
  await qemuIo(path, ['write -P 2 60M 4M']);
  await okCli('snapshot', 'create', path, 'large');
  await okCli('resize', '-q', '--shrink', path, '1M');
  await assertClean(path);
  for (const [name, size] of [
    ['small', 4 * MiB],
    ['large', 64 * MiB],
  ] as const) {
    const shown = await okCli('snapshot', 'show', path, name);
    assert.match(shown, new RegExp(`disk size: .*\\(${size} bytes\\)`));
    const raw = join(folder, `${name}.raw`);
    await qemuImg('convert', '-f', 'qcow2', '-l', `snapshot.name=${name}`, '-O', 'raw', path, raw);
    const exported = join(folder, `${name}.qcow2`);
    await okCli('snapshot', 'export', '-q', path, name, '-O', 'qcow2', exported);
    assert.equal((await info(exported))['virtual-size'], size);
    const ours = join(folder, `${name}.ours.raw`);
    await okCli('convert', '-q', '-l', name, '-O', 'raw', path, ours);
    assert.equal((await readFile(ours)).length, size);
    assert.ok(await compare(exported, ours, '-f', 'qcow2', '-F', 'raw'));
    const applied = join(folder, `${name}.applied.qcow2`);
    await copyFile(path, applied);
    await okCli('snapshot', 'apply', applied, name);
    assert.equal((await info(applied))['virtual-size'], size);
    assert.ok(await compare(applied, ours, '-f', 'qcow2', '-F', 'raw'));
    await assertClean(applied);
    const theirs = join(folder, `${name}.theirs.qcow2`);
    await copyFile(path, theirs);
    await qemuImg('snapshot', '-a', name, theirs);
    assert.ok(await compare(applied, theirs, '-f', 'qcow2', '-F', 'qcow2'));
  }
  const diff = JSON.parse(await okCli('snapshot', 'diff', '-q', '--json', path, 'small', 'large'));
  assert.deepEqual(diff.extents, [{ start: 60 * MiB, length: 4 * MiB, from: 'outside', to: 'data' }]);
});

test('QEMU finds an image with 65,536 snapshots whole after we took and deleted some', {
  skip: requires.qemuImg(),
}, async (t) => {
  const path = join(await temporaryDirectory(t), 'many.qcow2');
  await writeFile(path, manySnapshots(65536, new Set([5])).bytes);
  const refused = await cli('snapshot', 'create', path, 'more');
  assert.equal(refused.status, 1);
  assert.match(
    refused.stderr,
    /many\.qcow2: the image has 65536 snapshots, and there can be no more \(TOO_LARGE\)\nDelete one/,
  );
  await okCli('snapshot', 'delete', path, 's5');
  await okCli('snapshot', '-q', 'create', path, 'last');
  await assertClean(path);
});
