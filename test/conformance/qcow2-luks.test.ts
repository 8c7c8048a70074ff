/** Encrypted qcow2 images: what QEMU's programs encrypt we read, and what we encrypt they find clean and read. */

import assert from 'node:assert/strict';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { IoVec } from '../../formats/core/iov.ts';
import { KiB, MiB } from '../../formats/core/units.ts';
import { ENCRYPTED, ExtentBuffer } from '../../formats/image/extent.ts';
import { createSnapshot } from '../../formats/image/snapshots.ts';
import { amendQcow2KeySlots, checkImage, type KeySlotChange } from '../../formats/index.ts';
import { ImageHost } from '../../formats/open.ts';
import { openFileStorage } from '../../formats/storage/file.ts';
import { cli } from '../support/cli.ts';
import {
  createByQemu,
  createByUs,
  imageOptions,
  patiently,
  qemuIoEncrypted as qemuIo,
  type Scene,
  SECRET,
  scene,
  secretObject,
} from '../support/luks.ts';
import { run, runOk } from '../support/process.ts';
import { readAll } from '../support/qcow2-images.ts';
import { qemu } from '../support/qemu.ts';
import { type Random, randomFor } from '../support/random.ts';
import { requires } from '../support/requires.ts';

const SIZE = 6 * MiB + 512;

/** Both find it clean, and read what the model holds. */
async function assertAgreed(at: Scene, model: Uint8Array, format = 'luks'): Promise<void> {
  const opened = [...secretObject(at.secret), '--image-opts'];
  await runOk('qemu-img', ['check', ...opened, imageOptions(at.path, format)]);
  const raw = join(at.directory, 'model.raw');
  await writeFile(raw, model);
  await runOk('qemu-img', ['compare', ...opened, imageOptions(at.path, format), `driver=raw,file.filename=${raw}`]);
  const image = await at.host.open(at.path, { readOnly: true });
  assert.ok(Buffer.compare(await readAll(image), model) === 0, 'we read something else');
  await image.close();
  const checked = await checkImage(at.path);
  assert.deepEqual([checked.corruptions, checked.leaks], [0, 0]);
}

async function changeByUs(at: Scene, model: Uint8Array, random: Random, changes: number): Promise<void> {
  const image = await at.host.open(at.path);
  for (let i = 0; i < changes; i++) {
    const offset = random.below(model.length);
    const length = 1 + random.below(Math.min(model.length - offset, random.pick([700, 5000, 300_000])));
    if (random.chance(0.2)) {
      await image.writeZeroes(offset, length, random.chance(0.5));
      model.fill(0, offset, offset + length);
    } else {
      const bytes = random.bytes(length);
      const list = IoVec.of(bytes);
      if (!image.tryWritev(offset, list)) await image.writev(offset, list);
      model.set(bytes, offset);
    }
  }
  await image.close();
}

/** Half of the disk is written by QEMU: a pattern that depends on the place. */
async function fillByQemu(at: Scene, model: Uint8Array, random: Random): Promise<void> {
  const commands: string[] = [];
  for (let i = 0; i < 12; i++) {
    const offset = random.below(model.length / 512 - 1) * 512;
    const length = 512 * (1 + random.below(Math.min((model.length - offset) / 512, 400)));
    const value = 1 + random.below(255);
    commands.push(`write -q -P ${value} ${offset} ${length}`);
    model.fill(value, offset, offset + length);
  }
  await qemuIo(at, 'luks', ...commands);
}

/** QEMU takes seconds to make an encrypted image, to see how fast the machine is: it makes two of the shapes. */
const SHAPES: readonly { name: string; encrypt: string; options?: string; byQemu?: boolean }[] = [
  { name: 'aes-256-xts', encrypt: '', byQemu: true },
  {
    name: 'aes-128-xts, sha1',
    encrypt: ',encrypt.cipher-alg=aes-128,encrypt.hash-alg=sha1',
    options: ',cluster_size=4096',
  },
  {
    name: 'xts with essiv, sha512',
    encrypt: ',encrypt.ivgen-alg=essiv,encrypt.ivgen-hash-alg=sha256,encrypt.hash-alg=sha512',
  },
  {
    name: 'cbc with essiv',
    encrypt: ',encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv,encrypt.ivgen-hash-alg=sha256',
    options: ',cluster_size=2M',
    byQemu: true,
  },
  {
    name: 'cbc with plain64, extended L2',
    encrypt: ',encrypt.cipher-mode=cbc,encrypt.cipher-alg=aes-128',
    options: ',extended_l2=on',
  },
  {
    name: 'cbc with plain, version 2',
    encrypt: ',encrypt.cipher-mode=cbc,encrypt.ivgen-alg=plain',
    options: ',compat=0.10',
  },
];

for (const { name, encrypt, options = '', byQemu = false } of SHAPES) {
  test(`LUKS, ${name}: both read what the other writes, also over snapshots`, {
    skip: requires.qemuIo(),
  }, async (t) => {
    const random = randomFor(t);
    const at = await scene(t);
    const encryption = `encrypt.format=luks,encrypt.iter-time=10${encrypt}${options}`;
    for (const maker of byQemu ? ['QEMU', 'lunette'] : ['lunette']) {
      const model = new Uint8Array(SIZE);
      if (maker === 'QEMU') await createByQemu(at, `encrypt.key-secret=s,${encryption}`, SIZE);
      else await createByUs(at, encryption, SIZE);
      await fillByQemu(at, model, random);
      await assertAgreed(at, model);
      await changeByUs(at, model, random, 12);
      await assertAgreed(at, model);
      const before = model.slice();
      const live = await at.host.open(at.path);
      await createSnapshot(live, 'before');
      await live.close();
      await changeByUs(at, model, random, 8);
      await fillByQemu(at, model, random);
      await assertAgreed(at, model);
      const snapshot = await at.host.open(at.path, { readOnly: true, snapshot: 'before' });
      assert.ok(Buffer.compare(await readAll(snapshot), before) === 0, 'the snapshot has changed');
      await snapshot.close();
    }
  });
}

test('over a backing file: what is copied up is encrypted, and the rest shows', {
  skip: requires.qemuIo(),
}, async (t) => {
  const random = randomFor(t);
  const at = await scene(t);
  const base = random.bytes(4 * MiB);
  await writeFile(join(at.directory, 'base.raw'), base);
  await createByUs(at, 'encrypt.format=luks,encrypt.iter-time=10,backing_file=base.raw,backing_fmt=raw', SIZE);
  const model = new Uint8Array(SIZE);
  model.set(base);
  await changeByUs(at, model, random, 25);
  await assertAgreed(at, model);
  const stored = Buffer.from(await readFile(at.path));
  assert.equal(stored.indexOf(Buffer.from(base.subarray(1 * MiB, 1 * MiB + 64))), -1, 'nothing of it is in the clear');
});

test('info needs no passphrase and says what QEMU says; data needs the right one', {
  skip: requires.qemuImg(),
}, async (t) => {
  const at = await scene(t);
  await createByUs(
    at,
    'encrypt.format=luks,encrypt.iter-time=10,encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv,encrypt.ivgen-hash-alg=sha256',
    SIZE,
  );
  const ours = await cli('info', '--json', '--compat', '7.2', at.path);
  assert.deepEqual(
    (JSON.parse(ours.stdout) as { 'format-specific': unknown })['format-specific'],
    (await qemu.info(at.path))['format-specific'],
  );
  assert.equal((await cli('check', at.path)).status, 0);

  await assert.rejects(new ImageHost().open(at.path), { code: 'ENCRYPTED', path: at.path, field: 'cryptMethod' });
  const wrong = new ImageHost({ secrets: async () => [Buffer.from('wrong'), Buffer.from(`${SECRET}\n`)] });
  await assert.rejects(wrong.open(at.path), {
    code: 'ENCRYPTED',
    path: at.path,
    message: /passphrases do not open it/,
  });

  // A file that ends with a newline: as QEMU takes it, or as an editor left it.
  const edited = join(at.directory, 'edited');
  await writeFile(edited, `${SECRET}\n`);
  for (const file of [at.secret, edited]) {
    const resized = await cli('resize', '--secret-file', file, at.path, '+1M');
    assert.equal(resized.status, 0, resized.stderr);
  }
  const refused = await cli('resize', at.path, '+1M');
  assert.equal(refused.status, 1);
  assert.match(refused.stderr, /encrypted.*\(ENCRYPTED\)\n.*--secret-file/s);
});

test('ciphers that QEMU has and we have not are refused by name, and info shows the image all the same', {
  skip: requires.qemuImg(),
}, async (t) => {
  const at = await scene(t);
  await createByUs(at, 'encrypt.format=luks,encrypt.iter-time=10', SIZE);
  const bytes = await readFile(at.path);
  const header = bytes.indexOf(Buffer.from('LUKS\xba\xbe', 'latin1'));
  bytes.write('serpent', header + 8, 'latin1');
  await writeFile(at.path, bytes);
  await assert.rejects(at.host.open(at.path), {
    code: 'UNSUPPORTED',
    message: /"serpent"/,
    field: 'cipherName',
    offset: header + 8,
  });
  assert.equal((await cli('info', at.path)).status, 0);
});

test('the old AES encryption is read, and not written', { skip: requires.qemuIo() }, async (t) => {
  const random = randomFor(t);
  const at = await scene(t);
  await createByQemu(at, 'encrypt.format=aes,encrypt.key-secret=s', SIZE);
  const model = new Uint8Array(SIZE);
  const commands: string[] = [];
  for (let i = 0; i < 8; i++) {
    const offset = random.below(SIZE / 512 - 200) * 512;
    commands.push(`write -q -P ${i + 1} ${offset} ${100 * KiB}`);
    model.fill(i + 1, offset, offset + 100 * KiB);
  }
  await qemuIo(at, 'aes', ...commands);
  const image = await at.host.open(at.path, { readOnly: true });
  assert.ok(Buffer.compare(await readAll(image), model) === 0);
  for (let i = 0; i < 50; i++) {
    const offset = random.below(SIZE);
    const part = new Uint8Array(1 + random.below(Math.min(SIZE - offset, 200_000)));
    await image.readv(offset, IoVec.of(part));
    assert.ok(Buffer.compare(part, model.subarray(offset, offset + part.length)) === 0);
  }
  await image.close();
  await assert.rejects(at.host.open(at.path), { code: 'UNSUPPORTED', field: 'cryptMethod' });
  await assert.rejects(new ImageHost().open(at.path, { readOnly: true }), { code: 'ENCRYPTED' });
});

test('extents of encrypted clusters say so', { skip: requires.qemuIo() }, async (t) => {
  const at = await scene(t);
  await createByUs(at, 'encrypt.format=luks,encrypt.iter-time=10', SIZE);
  await qemuIo(at, 'luks', 'write -q 64k 128k');
  const image = await at.host.open(at.path, { readOnly: true });
  const out = new ExtentBuffer();
  await image.map(0, image.size, out);
  assert.deepEqual(
    [...out.flags.subarray(0, out.count)].map((flags) => flags & ENCRYPTED),
    [0, ENCRYPTED, 0],
  );
  assert.equal(out.storages[1]?.fd, null, 'there is no way to the bytes but through the cipher');
  await image.close();
});

test('key slots that we and QEMU add and erase open for both', { skip: requires.qemuIo() }, async (t) => {
  const at = await scene(t);
  await createByUs(at, 'encrypt.format=luks,encrypt.iter-time=10', SIZE);
  const second = join(at.directory, 'second');
  const third = join(at.directory, 'third');
  await writeFile(second, 'second');
  await writeFile(third, 'third');
  const amend = async (change: KeySlotChange): Promise<void> => {
    const storage = await openFileStorage(at.path, { readOnly: false });
    await storage.lock('write');
    await amendQcow2KeySlots(storage, { iterTimeMs: 10, ...change }, async () => [Buffer.from(SECRET)]);
    await storage.close();
  };
  const opens = async (secret: string): Promise<boolean> => {
    const args = [...secretObject(secret), '--image-opts', imageOptions(at.path), '-c', 'read -q 0 4k'];
    const byQemu = (await run('qemu-io', args)).status === 0;
    const host = new ImageHost({ secrets: async () => [await readFile(secret)] });
    const byUs = await host.open(at.path, { readOnly: true }).then(
      (image) => image.close().then(() => true),
      () => false,
    );
    assert.equal(byUs, byQemu, `${secret}: one of us opens it`);
    return byUs;
  };

  await amend({ state: 'active', newSecret: Buffer.from('second') });
  const options = 'encrypt.state=active,encrypt.new-secret=n,encrypt.keyslot=6,encrypt.iter-time=10';
  const args = ['--object', `secret,id=n,file=${third}`, ...secretObject(second), '--image-opts', '-o', options];
  await patiently('amend', ...args, imageOptions(at.path));
  assert.deepEqual([await opens(at.secret), await opens(second), await opens(third)], [true, true, true]);
  await amend({ state: 'inactive', oldSecret: Buffer.from(SECRET) });
  await amend({ state: 'inactive', keyslot: 1 });
  assert.deepEqual([await opens(at.secret), await opens(second), await opens(third)], [false, false, true]);
  await runOk('qemu-img', ['check', ...secretObject(third), '--image-opts', imageOptions(at.path)]);
});

test('convert, compare and map read and make encrypted images', { skip: requires.qemuImg() }, async (t) => {
  const random = randomFor(t);
  const at = await scene(t);
  const raw = join(at.directory, 'disk.raw');
  const back = join(at.directory, 'back.raw');
  const content = new Uint8Array(SIZE);
  random.fill(content.subarray(MiB, 3 * MiB));
  await writeFile(raw, content);
  const options = 'encrypt.format=luks,encrypt.iter-time=10';
  const ok = async (...args: string[]): Promise<string> => {
    const result = await cli(...args);
    assert.equal(result.status, 0, result.stderr);
    return result.stdout;
  };
  await ok('convert', '-f', 'raw', '-O', 'qcow2', '--secret-file', at.secret, '-o', options, raw, at.path);
  await assertAgreed(at, content);
  await ok('convert', '-O', 'raw', '--secret-file', at.secret, at.path, back);
  assert.ok(Buffer.compare(await readFile(back), content) === 0);
  await ok('compare', '--secret-file', at.secret, at.path, back);
  const map = JSON.parse(await ok('map', '--json', '--secret-file', at.secret, at.path)) as { offset?: number }[];
  assert.ok(
    map.every(({ offset }) => offset === undefined),
    'as qemu-img: where encrypted bytes are says nothing',
  );
  const compressed = await cli(
    'convert',
    '-c',
    '-O',
    'qcow2',
    '--secret-file',
    at.secret,
    '-o',
    options,
    at.path,
    back,
  );
  assert.equal(compressed.status, 1);
});
