/** Commit and rebase of images that are encrypted, keep their data in another file, or have bitmaps and snapshots: QEMU reads what comes of it. */

import assert from 'node:assert/strict';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { KiB } from '../../formats/core/units.ts';
import { openBitmap } from '../../formats/image/bitmaps.ts';
import { ImageHost } from '../../formats/open.ts';
import { cli } from '../support/cli.ts';
import { secretObject } from '../support/luks.ts';
import { run, runOk } from '../support/process.ts';
import { type Random, randomFor } from '../support/random.ts';
import { requires } from '../support/requires.ts';
import { temporaryDirectory } from '../support/temporary.ts';

const SIZES = { base: 3000 * KiB, top: 4000 * KiB, other: 3500 * KiB };
type Name = keyof typeof SIZES;
const LUKS = 'encrypt.format=luks,encrypt.iter-time=10';

interface Kind {
  readonly what: string;
  /** Options of each image. */
  readonly options: Partial<Record<Name, string>>;
  /** Bitmaps of base and top, and a snapshot of the base. */
  readonly extras?: boolean;
}

const KINDS: readonly Kind[] = [
  { what: 'an encrypted overlay over a plain base', options: { top: LUKS } },
  { what: 'a plain overlay over an encrypted base', options: { base: LUKS, other: LUKS } },
  { what: 'an encrypted overlay over an encrypted base', options: { base: LUKS, top: `${LUKS},cluster_size=4k` } },
  { what: 'an overlay with a data file', options: { top: 'data_file=top.data' } },
  { what: 'a base with a data file', options: { base: 'data_file=base.data,cluster_size=16k' } },
  { what: 'a base with a raw data file', options: { base: 'data_file=base.data,data_file_raw=on' } },
  { what: 'both with data files', options: { base: 'data_file=base.data', top: 'data_file=top.data,extended_l2=on' } },
  { what: 'bitmaps in both, and a snapshot in the base', options: {}, extras: true },
];

class Chain {
  readonly kind: Kind;
  readonly folder: string;
  readonly secrets: readonly string[];

  constructor(kind: Kind, folder: string) {
    this.kind = kind;
    this.folder = folder;
    this.secrets = (['base', 'top', 'other'] as const).map((name) => join(folder, `${name}.secret`));
  }

  path(name: string): string {
    return join(this.folder, name);
  }

  async lunette(...args: string[]): Promise<string> {
    const [command = '', ...rest] = args;
    const secrets = this.secrets.flatMap((file) => ['--secret-file', file]);
    const { status, stdout, stderr } = await cli(command, ...secrets, ...rest);
    assert.equal(status, 0, `${args.join(' ')}: ${stderr}`);
    return stdout;
  }

  get objects(): string[] {
    return (['base', 'top', 'other'] as const).flatMap((name) => secretObject(this.path(`${name}.secret`), name));
  }

  /** How QEMU opens one of them, without relying on what it says of its backing file where that needs a passphrase. */
  node(name: Name, backing?: Name): string {
    const of = (each: Name, prefix: string): string[] => {
      const { [each]: options = '' } = this.kind.options;
      return [
        `${prefix}driver=qcow2`,
        `${prefix}file.filename=${this.path(each)}`,
        ...(options.includes(LUKS) ? [`${prefix}encrypt.format=luks`, `${prefix}encrypt.key-secret=${each}`] : []),
        ...(options.includes('data_file=') ? [`${prefix}data-file.filename=${this.path(`${each}.data`)}`] : []),
      ];
    };
    return [...of(name, ''), ...(backing === undefined ? [] : of(backing, 'backing.'))].join(',');
  }

  async io(name: Name, commands: readonly string[], backing?: Name): Promise<void> {
    const args = [...this.objects, '--image-opts', this.node(name, backing)];
    const result = await run('qemu-io', [...args, ...commands.flatMap((command) => ['-c', command])]);
    assert.ok(
      result.status === 0 && !/failed|error/i.test(result.stdout + result.stderr),
      result.stdout + result.stderr,
    );
  }

  /** QEMU finds the image whole, and reads what the file holds. */
  async assertHolds(name: Name, raw: string, backing?: Name): Promise<void> {
    await runOk('qemu-img', ['check', ...this.objects, '--image-opts', this.node(name, backing)]);
    const { status, stdout, stderr } = await run('qemu-img', [
      'compare',
      ...this.objects,
      '--image-opts',
      this.node(name, backing),
      `driver=raw,file.filename=${raw}`,
    ]);
    assert.equal(status, 0, `${name}: ${stdout}${stderr}`);
  }

  async dirty(name: Name, bitmap: string): Promise<[number, number][]> {
    const host = new ImageHost();
    const image = await host.open(this.path(name), { readOnly: true });
    const reader = await openBitmap(image, bitmap);
    const runs = await reader.runs(0, image.size, 100_000);
    await image.close();
    const ranges: [number, number][] = [];
    let at = 0;
    for (let i = 0; i < runs.length; i += 2) {
      const end = at + (runs[i] as number);
      if (runs[i + 1] === 1) ranges.push([at, end]);
      at = end;
    }
    return ranges;
  }
}

/** top over base, and another base, written at random by QEMU. */
async function makeChain(t: TestContext, random: Random, kind: Kind): Promise<Chain> {
  const chain = new Chain(kind, await temporaryDirectory(t));
  for (const name of ['base', 'top', 'other'] as const) await writeFile(chain.path(`${name}.secret`), `key of ${name}`);
  for (const name of ['base', 'other', 'top'] as const) {
    const { [name]: options } = kind.options;
    const more = options === undefined ? [] : ['-o', options];
    const backing = name === 'top' ? ['-b', 'base', '-F', 'qcow2'] : [];
    const secret = ['--secret-file', chain.path(`${name}.secret`)];
    const args = ['-q', '-f', 'qcow2', ...secret, ...more, ...backing, chain.path(name), String(SIZES[name])];
    const made = await cli('create', ...args);
    assert.equal(made.status, 0, made.stderr);
    if (kind.extras === true && name !== 'other') await chain.lunette('bitmap', '--add', chain.path(name), 'b');
    const commands = Array.from({ length: 10 }, (_, i) => {
      const length = random.between(1, 150) * KiB;
      const offset = random.below(SIZES[name] / KiB - 200) * KiB;
      return i % 4 === 3
        ? `write -q -z ${offset} ${length}`
        : `write -q -P ${random.between(1, 255)} ${offset} ${length}`;
    });
    await chain.io(name, commands, name === 'top' ? 'base' : undefined);
  }
  await chain.lunette('convert', '-O', 'raw', chain.path('top'), chain.path('before'));
  await chain.assertHolds('top', chain.path('before'), 'base');
  return chain;
}

/** What differs between two disks, as ranges of 64 KiB. */
function differences(a: Uint8Array, b: Uint8Array): number[] {
  const found: number[] = [];
  for (let at = 0; at < a.length; at += 64 * KiB) {
    if (Buffer.compare(a.subarray(at, at + 64 * KiB), b.subarray(at, at + 64 * KiB)) !== 0) found.push(at);
  }
  return found;
}

for (const kind of KINDS) {
  test(`commit: ${kind.what}`, { skip: requires.qemuIo() }, async (t) => {
    const chain = await makeChain(t, randomFor(t), kind);
    const old = chain.path('old');
    await chain.lunette('convert', '-O', 'raw', chain.path('base'), old);
    if (kind.extras === true) {
      await chain.lunette('snapshot', '-c', 'before', chain.path('base'));
      await chain.lunette('bitmap', '--clear', chain.path('base'), 'b');
    }
    const noted = kind.extras === true ? await chain.dirty('top', 'b') : [];
    await chain.lunette('commit', chain.path('top'));
    await chain.assertHolds('base', chain.path('before'));
    await chain.assertHolds('top', chain.path('before'), 'base');
    if (kind.extras !== true) return;
    // What the base got is noted in its bitmap; nothing that the overlay shows has changed; the snapshot stays.
    const dirty = await chain.dirty('base', 'b');
    const before = await readFile(old);
    const longer = new Uint8Array(SIZES.top);
    longer.set(before);
    for (const at of differences(longer, await readFile(chain.path('before')))) {
      assert.ok(
        dirty.some(([from, to]) => from <= at && at < to),
        `the bitmap of the base misses ${at}`,
      );
    }
    assert.deepEqual(await chain.dirty('top', 'b'), noted);
    await runOk('qemu-img', ['convert', '-l', 'before', '-O', 'raw', chain.path('base'), chain.path('snapshot')]);
    // QEMU shows as much of a snapshot as the disk has now.
    assert.ok((await readFile(chain.path('snapshot'))).subarray(0, before.length).equals(before), 'it has changed');
  });

  test(`rebase: ${kind.what}`, { skip: requires.qemuIo() }, async (t) => {
    const chain = await makeChain(t, randomFor(t), kind);
    await chain.lunette('rebase', '-b', 'other', '-F', 'qcow2', chain.path('top'));
    await chain.assertHolds('top', chain.path('before'), 'other');
    await chain.lunette('rebase', '-b', '', chain.path('top'));
    await chain.assertHolds('top', chain.path('before'));
    const { status, stderr } = await cli('info', '--backing-chain', chain.path('top'));
    assert.equal(status, 0, stderr);
  });
}
