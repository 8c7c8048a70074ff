import assert from 'node:assert/strict';
import { mkdir, symlink, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { test } from 'node:test';
import { LunetteError } from '../../../formats/core/errors.ts';
import { IoVec } from '../../../formats/core/iov.ts';
import { KiB } from '../../../formats/core/units.ts';
import { DirectoryGate, OPEN_GATE } from '../../../formats/image/gate.ts';
import { ImageHost } from '../../../formats/open.ts';
import { createQcow2 } from '../../../formats/qcow2/create.ts';
import { openFileStorage } from '../../../formats/storage/file.ts';
import { type Cleanup, temporaryDirectory } from '../../support/temporary.ts';

async function overlay(file: string, backingFile: string, backingFormat?: string): Promise<string> {
  await writeFile(file, '');
  const storage = await openFileStorage(file, { readOnly: false });
  await createQcow2(storage, {
    size: 256 * KiB,
    backingFile,
    ...(backingFormat === undefined ? {} : { backingFormat }),
  });
  await storage.close();
  return file;
}

async function rawFile(file: string, value: number): Promise<string> {
  await writeFile(file, new Uint8Array(256 * KiB).fill(value));
  return file;
}

async function host(t: Cleanup, options: ConstructorParameters<typeof ImageHost>[0] = {}): Promise<ImageHost> {
  const made = new ImageHost(options);
  t.after(() => made.close());
  return made;
}

async function firstByte(image: { readv(offset: number, iov: IoVec): Promise<void> }): Promise<number> {
  const bytes = new Uint8Array(1);
  await image.readv(0, IoVec.of(bytes));
  return bytes[0] as number;
}

test('a relative backing file is found beside the image that names it, through a chain', async (t) => {
  const directory = await temporaryDirectory(t);
  await mkdir(path.join(directory, 'bases'));
  await rawFile(path.join(directory, 'bases/base.raw'), 9);
  await overlay(path.join(directory, 'bases/middle.qcow2'), 'base.raw', 'raw');
  const top = await overlay(path.join(directory, 'top.qcow2'), 'bases/middle.qcow2', 'qcow2');
  const image = await (await host(t)).open(top);
  assert.deepEqual(
    image.layers.map((layer) => layer.format),
    ['qcow2', 'qcow2', 'raw'],
  );
  assert.equal(await firstByte(image), 9);
});

test('a base under several overlays is opened once and closed with the last', async (t) => {
  const directory = await temporaryDirectory(t);
  await rawFile(path.join(directory, 'base.raw'), 5);
  const tops = await Promise.all(
    [1, 2, 3].map((i) => overlay(path.join(directory, `top${i}.qcow2`), 'base.raw', 'raw')),
  );
  const images = await host(t);
  const opened = await Promise.all(tops.map((top) => images.open(top)));
  const [first, second, third] = opened;
  assert.ok(first !== undefined && second !== undefined && third !== undefined);
  assert.equal(first.layers[1], second.layers[1]);
  await first.close();
  await second.close();
  assert.equal(await firstByte(third), 5);
  await assert.rejects(images.open(path.join(directory, 'base.raw'), { format: 'raw' }), { code: 'LOCKED' });
  await third.close();
  const base = await images.open(path.join(directory, 'base.raw'), { format: 'raw' });
  assert.equal(base.readOnly, false);
});

test('a second writer of the same file is refused, whatever path it uses', async (t) => {
  const directory = await temporaryDirectory(t);
  const file = await rawFile(path.join(directory, 'disk.raw'), 1);
  await symlink(file, path.join(directory, 'other-name'));
  const images = await host(t);
  const image = await images.open(file, { format: 'raw' });
  await assert.rejects(images.open(path.join(directory, 'other-name'), { format: 'raw' }), { code: 'LOCKED' });
  await assert.rejects(images.open(file, { format: 'raw', readOnly: true }), { code: 'LOCKED' });
  await image.close();
  await (await images.open(file, { format: 'raw' })).close();
});

test('of two writers at the same time one is refused, also where files have no locks', async (t) => {
  const directory = await temporaryDirectory(t);
  const file = await rawFile(path.join(directory, 'disk.raw'), 1);
  const images = await host(t, {
    openStorage: async (name, options) => {
      const storage = await openFileStorage(name, options);
      storage.lock = () => new Promise((resolve) => setImmediate(resolve));
      return storage;
    },
  });
  const open = () => images.open(file, { format: 'raw' });
  const results = await Promise.allSettled([open(), open(), images.open(file, { format: 'raw', readOnly: true })]);
  const codes = results.map((result) => (result.status === 'rejected' ? result.reason.code : 'open'));
  assert.deepEqual(codes.sort(), ['LOCKED', 'LOCKED', 'open']);
  // Those that were refused have left the books as they were.
  await images.close();
  await (await open()).close();
});

test('a chain that comes back to itself is refused', async (t) => {
  const directory = await temporaryDirectory(t);
  await overlay(path.join(directory, 'a.qcow2'), 'b.qcow2', 'qcow2');
  await overlay(path.join(directory, 'b.qcow2'), 'c.qcow2', 'qcow2');
  await overlay(path.join(directory, 'c.qcow2'), 'b.qcow2', 'qcow2');
  await assert.rejects((await host(t)).open(path.join(directory, 'a.qcow2'), { readOnly: true }), {
    code: 'CORRUPT',
    message: /comes back/,
  });
});

test('an image that names itself as its backing file is refused, also for writing', async (t) => {
  const directory = await temporaryDirectory(t);
  const file = await overlay(path.join(directory, 'a.qcow2'), 'a.qcow2', 'qcow2');
  const images = await host(t);
  await assert.rejects(images.open(file), LunetteError);
  await assert.rejects(images.open(file, { readOnly: true }), { code: 'CORRUPT' });
});

test('a backing file outside the allowed directories is refused before it is opened', async (t) => {
  const directory = await temporaryDirectory(t);
  const elsewhere = await temporaryDirectory(t);
  const base = await rawFile(path.join(elsewhere, 'base.raw'), 3);
  const top = await overlay(path.join(directory, 'top.qcow2'), base, 'raw');
  const opened: string[] = [];
  const openStorage: typeof openFileStorage = (file, options) => {
    opened.push(file);
    return openFileStorage(file, options);
  };
  await assert.rejects((await host(t, { openStorage })).open(top), { code: 'DENIED', help: /--allow/ });
  assert.deepEqual(opened, [top]);
  for (const gate of [OPEN_GATE, new DirectoryGate({ ownDirectory: true, directories: [elsewhere] })]) {
    const image = await (await host(t, { gate })).open(top);
    assert.equal(await firstByte(image), 3);
    await image.close();
  }
});

test('backing files that are no files are refused by name', async (t) => {
  const directory = await temporaryDirectory(t);
  const images = await host(t);
  for (const reference of ['nbd://localhost/disk', 'json:{"driver":"null-co"}', 'rbd:pool/x']) {
    const top = await overlay(path.join(directory, 'top.qcow2'), reference, 'raw');
    await assert.rejects(images.open(top), { code: 'UNSUPPORTED', message: /is no file/ }, reference);
  }
});

test('a missing backing file is named, with the image that wants it', async (t) => {
  const directory = await temporaryDirectory(t);
  const top = await overlay(path.join(directory, 'top.qcow2'), 'gone.raw', 'raw');
  const images = await host(t);
  await assert.rejects(images.open(top), { code: 'NOT_FOUND', path: top, message: /gone\.raw/ });
  const layer = await images.openLayer(top);
  assert.equal((await layer.describe()).backingFile, 'gone.raw');
  await layer.close();
});

test('after a failed open nothing stays open or locked', async (t) => {
  const directory = await temporaryDirectory(t);
  const top = await overlay(path.join(directory, 'top.qcow2'), 'gone.raw', 'raw');
  const images = await host(t);
  await assert.rejects(images.open(top));
  await rawFile(path.join(directory, 'gone.raw'), 2);
  await (await images.open(top)).close();
});

test('only a read-only open can share the image with writers', async (t) => {
  const directory = await temporaryDirectory(t);
  const file = await rawFile(path.join(directory, 'disk.raw'), 1);
  const images = await host(t);
  await assert.rejects(images.open(file, { lock: 'shared' }), { code: 'INVALID' });
  const writer = await images.open(file, { format: 'raw' });
  const reader = await images.open(file, { format: 'raw', lock: 'shared', readOnly: true });
  assert.equal(await firstByte(reader), 1);
  await writer.close();
});

test('an unknown format is refused naming those there are', async (t) => {
  const directory = await temporaryDirectory(t);
  const file = await rawFile(path.join(directory, 'disk.raw'), 1);
  await assert.rejects((await host(t)).open(file, { format: 'vhdx' }), { code: 'UNSUPPORTED', help: /raw/ });
});
