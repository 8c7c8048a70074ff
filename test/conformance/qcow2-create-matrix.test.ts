/** Options of new qcow2 images in random combinations: what can be made, and what `info` says of it, is as with qemu-img. */

import assert from 'node:assert/strict';
import { mkdir, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { GiB, MiB } from '../../formats/core/units.ts';
import { cli } from '../support/cli.ts';
import { imageOptions, secretObject } from '../support/luks.ts';
import { run, runOk } from '../support/process.ts';
import { type Random, randomFor } from '../support/random.ts';
import { requires } from '../support/requires.ts';
import { temporaryDirectory } from '../support/temporary.ts';

/** Combinations in one run; LUNETTE_SHAPES=all asks for more. */
const ROUNDS = process.env.LUNETTE_SHAPES === 'all' ? 400 : 24;
const SECRET = 'correct horse';

type Values = Record<string, string>;

/** A value of an option, or none. */
function maybe(random: Random, values: Values, chance: number, name: string, choices: readonly string[]): void {
  if (random.chance(chance)) values[name] = random.pick(choices);
}

function combination(random: Random): { values: Values; size: number } {
  const values: Values = {};
  maybe(random, values, 0.7, 'cluster_size', ['512', '1k', '4096', '8k', '16k', '32k', '64k', '128k', '1M', '2M']);
  maybe(random, values, 0.4, 'compat', ['0.10', '1.1', '1.1', 'v2', 'v3', 'v3']);
  maybe(random, values, 0.4, 'refcount_bits', ['1', '2', '4', '8', '16', '16', '32', '64']);
  maybe(random, values, 0.3, 'lazy_refcounts', ['on', 'off']);
  maybe(random, values, 0.3, 'compression_type', ['zlib', 'zstd']);
  maybe(random, values, 0.3, 'extended_l2', ['on', 'off']);
  maybe(random, values, 0.5, 'preallocation', ['off', 'metadata', 'falloc', 'full']);
  if (random.chance(0.2)) {
    values.data_file = 'data.raw';
    maybe(random, values, 0.6, 'data_file_raw', ['on', 'off']);
  } else maybe(random, values, 0.03, 'data_file_raw', ['on', 'off']);
  if (random.chance(0.25)) {
    values.backing_file = 'base.raw';
    values.backing_fmt = 'raw';
  }
  if (random.chance(0.25)) {
    values['encrypt.format'] = 'luks';
    values['encrypt.iter-time'] = '10';
    maybe(random, values, 0.4, 'encrypt.cipher-alg', ['aes-128', 'aes-256']);
    maybe(random, values, 0.4, 'encrypt.cipher-mode', ['xts', 'cbc']);
    maybe(random, values, 0.4, 'encrypt.hash-alg', ['sha1', 'sha256', 'sha512']);
    maybe(random, values, 0.4, 'encrypt.ivgen-alg', ['plain', 'plain64', 'essiv']);
    if (values['encrypt.ivgen-alg'] === 'essiv') values['encrypt.ivgen-hash-alg'] = 'sha256';
  }
  const preallocated = (values.preallocation ?? 'off') !== 'off' || values.data_file_raw === 'on';
  const sizes = [0, MiB, 1_000_001, 3 * MiB + 512, 5 * MiB];
  return { values, size: random.pick(preallocated ? sizes : [...sizes, GiB, 100 * GiB + 512]) };
}

function optionText(values: Values): string {
  return Object.entries(values)
    .map(([name, value]) => `${name}=${value}`)
    .join(',');
}

/** Without what is not the same in any two images that are made. */
function comparable(json: string, directory: string): unknown {
  const {
    'actual-size': _size,
    filename: _name,
    ...info
  } = JSON.parse(json.replaceAll(directory, '/DIRECTORY')) as Record<string, unknown>;
  delete info.children;
  const encrypt = (info['format-specific'] as { data: { encrypt?: Record<string, unknown> } }).data.encrypt;
  if (encrypt !== undefined) {
    encrypt.uuid = '';
    encrypt['master-key-iters'] = 0;
    for (const slot of (encrypt.slots as { iters?: number }[] | undefined) ?? []) if (slot.iters) slot.iters = 1;
  }
  return info;
}

/** qemu-img times key derivation, and gives up at times. */
async function qemuCreate(args: readonly string[]): Promise<{ made: boolean; why: string }> {
  for (let tries = 0; ; tries++) {
    const { status, stderr } = await run('qemu-img', args);
    if (tries < 20 && stderr.includes('accurate CPU usage')) continue;
    return { made: status === 0, why: stderr };
  }
}

test(`${ROUNDS} combinations of options: what is made, refused and said of the image is as with qemu-img`, {
  skip: requires.qemuImg(),
}, async (t) => {
  const random = randomFor(t);
  const directory = await temporaryDirectory(t);
  const secret = join(directory, 'secret');
  await writeFile(secret, SECRET);
  let made = 0;
  for (let round = 0; round < ROUNDS; round++) {
    const { values, size } = combination(random);
    const folders = { ours: join(directory, `${round}-ours`), theirs: join(directory, `${round}-theirs`) };
    for (const folder of Object.values(folders)) {
      await mkdir(folder);
      await writeFile(join(folder, 'base.raw'), new Uint8Array(MiB));
    }
    // QEMU looks for data files where it runs: whole names are the same to both.
    const valuesIn = (folder: string): Values =>
      values.data_file === undefined ? values : { ...values, data_file: join(folder, values.data_file) };
    const [path, other] = [join(folders.ours, 'disk.qcow2'), join(folders.theirs, 'disk.qcow2')];
    const ourText = optionText(valuesIn(folders.ours));
    const context = `${optionText(values)} ${size}`;
    const ours = await cli(
      'create',
      '-q',
      '-f',
      'qcow2',
      '--secret-file',
      secret,
      ...(ourText === '' ? [] : ['-o', ourText]),
      path,
      String(size),
    );
    const encrypted = values['encrypt.format'] !== undefined;
    const theirText = optionText({
      ...valuesIn(folders.theirs),
      ...(encrypted ? { 'encrypt.key-secret': 's' } : {}),
    });
    const theirs = await qemuCreate([
      'create',
      '-q',
      ...secretObject(secret),
      '-f',
      'qcow2',
      ...(theirText === '' ? [] : ['-o', theirText]),
      other,
      String(size),
    ]);
    if (encrypted && values.data_file_raw === 'on' && theirs.made) {
      // What is encrypted is no raw image: QEMU makes one all the same.
      assert.match(ours.stderr, /data_file_raw and encryption exclude each other/, context);
      continue;
    }
    assert.equal(ours.status === 0, theirs.made, `${context}: ours ${ours.stderr}, QEMU's ${theirs.why}`);
    if (theirs.made) {
      made++;
      const human = await runOk('qemu-img', ['info', path]);
      const json = await runOk('qemu-img', ['info', '--output=json', path]);
      assert.deepEqual(
        comparable(json, folders.ours),
        comparable(await runOk('qemu-img', ['info', '--output=json', other]), folders.theirs),
        context,
      );
      // Of either image both programs say the same, word by word.
      for (const [file, text, members] of [
        [path, human, json],
        [other, await runOk('qemu-img', ['info', other]), await runOk('qemu-img', ['info', '--output=json', other])],
      ] as const) {
        if (JSON.parse(members).children === undefined) {
          assert.equal((await cli('info', file)).stdout, text, context);
          assert.equal((await cli('info', '--json', '--compat', '7.2', file)).stdout, members, context);
        }
      }
      await runOk('qemu-img', [
        'check',
        ...(encrypted ? [...secretObject(secret), '--image-opts', imageOptions(path)] : ['-f', 'qcow2', path]),
      ]);
      assert.equal((await cli('check', other)).status, 0, context);
    }
    for (const folder of Object.values(folders)) await rm(folder, { recursive: true });
  }
  assert.ok(made >= ROUNDS / 4, `only ${made} of ${ROUNDS} could be made`);
});
