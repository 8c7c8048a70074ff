/** info, map, check and measure print the JSON of qemu-img, member by member, for every kind of image that both read. */

import assert from 'node:assert/strict';
import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { GiB, KiB, MiB } from '../../formats/core/units.ts';
import { cli } from '../support/cli.ts';
import { run } from '../support/process.ts';
import { qemu } from '../support/qemu.ts';
import { requires } from '../support/requires.ts';
import { temporaryDirectory } from '../support/temporary.ts';

const skip = requires.qemuIo();

type Json = null | boolean | number | string | readonly Json[] | { readonly [name: string]: Json };

interface Allowed {
  readonly command: string;
  /** Of images by the name that they have below. */
  readonly image: RegExp;
  /** Members, from the top: `children`, `format-specific.data.encrypt`, `[].offset`. */
  readonly member: RegExp;
  readonly why: string;
  /** Between which values: else any. */
  readonly holds?: (ours: Json | undefined, theirs: Json | undefined) => boolean;
}

/** All that may differ. A row that nothing needs fails the last test. */
const ALLOWED: readonly Allowed[] = [
  {
    command: 'info',
    image: /^VDI/,
    member: /^format-specific$/,
    why: 'ours is additional: QEMU has nothing specific to say about VDI images',
  },
  {
    command: 'info',
    image: /streamOptimized/,
    member: /^compressed$/,
    why: 'ours is additional: QEMU says it of the extent only, which ours does, too',
  },
  {
    command: 'check',
    image: /^V/,
    member: /^(image-end-offset|total-clusters|allocated-clusters|compressed-clusters)$/,
    why: 'ours are additional: QEMU does not count in VDI and VMDK images',
  },
  {
    command: 'measure',
    image: /./,
    member: /^required$/,
    why: 'ours is what our own writer makes, which is never more: QEMU has room for tables that may not come',
    holds: (ours, theirs) => Number(ours) < Number(theirs),
  },
  {
    command: 'measure',
    image: /metadata preallocated|VDI, fixed|snapshots|bitmaps/,
    member: /^required$/,
    why: 'space that was given out and never filled counts as data; QEMU asks the file for holes there. Converting finds the zeros, too, and takes less',
    holds: (ours, theirs) => Number(ours) > Number(theirs),
  },
];

interface Made {
  /** The image to look at, and what both programs are told of it. */
  readonly path: string;
  readonly args?: readonly string[];
}

type Maker = (folder: string) => Promise<Made>;

/** Writes some data, zeros and holes, of every kind. */
async function filled(path: string, size: number): Promise<void> {
  const commands = ['write -P 1 0 64k', 'write -P 2 1M 300k', 'write -z 3M 1M'];
  if (size > 5 * MiB) commands.push(`write -P 3 ${size - 128 * KiB} 128k`);
  await qemu.io(path, ...commands);
}

function created(format: string, options: Record<string, string | number> = {}, size = 8 * MiB): Maker {
  return async (folder) => {
    const path = join(folder, `disk.${format}`);
    const texts = Object.entries(options).map(([name, value]) => `${name}=${value}`);
    await qemu.img(
      'create',
      '-q',
      '-f',
      format,
      ...(texts.length > 0 ? ['-o', texts.join(',')] : []),
      path,
      String(size),
    );
    await filled(path, size);
    return { path, ...(format === 'raw' ? { args: ['-f', 'raw'] } : {}) };
  };
}

/** The same disk converted, for what cannot be written to. */
function converted(format: string, ...args: string[]): Maker {
  return async (folder) => {
    const { path } = await created('raw')(folder);
    const target = join(folder, `converted.${format}`);
    await qemu.convert(path, target, '-f', 'raw', '-O', format, ...args);
    return { path: target };
  };
}

const MAKERS: Readonly<Record<string, Maker>> = {
  'raw, sparse': created('raw'),
  'raw, preallocated': created('raw', { preallocation: 'full' }),
  'qcow2 version 2': created('qcow2', { compat: '0.10' }),
  'qcow2 version 3': created('qcow2'),
  'qcow2, clusters of 512': created('qcow2', { cluster_size: 512 }),
  'qcow2, clusters of 2M': created('qcow2', { cluster_size: '2M' }),
  'qcow2, subclusters': created('qcow2', { extended_l2: 'on' }),
  'qcow2, refcounts of 1 bit': created('qcow2', { refcount_bits: 1 }),
  'qcow2, refcounts of 64 bits': created('qcow2', { refcount_bits: 64 }),
  'qcow2, lazy refcounts': created('qcow2', { lazy_refcounts: 'on' }),
  'qcow2, metadata preallocated': created('qcow2', { preallocation: 'metadata' }),
  'qcow2, fully preallocated': created('qcow2', { preallocation: 'full' }),
  'qcow2, large': created('qcow2', {}, 3 * GiB),
  'qcow2, zlib': converted('qcow2', '-c'),
  'qcow2, zstd': converted('qcow2', '-c', '-o', 'compression_type=zstd'),
  'qcow2, snapshots': async (folder) => {
    const made = await created('qcow2')(folder);
    await qemu.img('snapshot', '-c', 'one', made.path);
    await qemu.io(made.path, 'write -P 9 0 1M', 'discard 1M 64k');
    await qemu.img('snapshot', '-c', 'two', made.path);
    return made;
  },
  'qcow2, bitmaps': async (folder) => {
    const made = await created('qcow2')(folder);
    await qemu.img('bitmap', '--add', made.path, 'on');
    await qemu.img('bitmap', '--add', '--disable', '-g', '32k', made.path, 'off');
    await qemu.io(made.path, 'write 2M 128k');
    return made;
  },
  'qcow2, data file': async (folder) => {
    const data = join(folder, 'disk.data');
    return created('qcow2', { data_file: data })(folder);
  },
  'qcow2, raw data file': async (folder) => {
    const data = join(folder, 'disk.data');
    return created('qcow2', { data_file: data, data_file_raw: 'on' })(folder);
  },
  'qcow2, backing qcow2': async (folder) => {
    const { path } = await created('qcow2')(folder);
    const top = join(folder, 'top.qcow2');
    await qemu.img('create', '-q', '-f', 'qcow2', '-b', path, '-F', 'qcow2', top);
    await qemu.io(top, 'write -P 7 64k 64k', 'write -z 1M 64k', 'discard 0 64k');
    return { path: top };
  },
  'qcow2, longer than its backing raw': async (folder) => {
    const { path } = await created('raw')(folder);
    const top = join(folder, 'top.qcow2');
    await qemu.img('create', '-q', '-f', 'qcow2', '-b', path, '-F', 'raw', top, '12M');
    await qemu.io(top, 'write -P 7 7M 2M');
    return { path: top };
  },
  'qcow2, leaks': async (folder) => {
    const made = await created('qcow2', { lazy_refcounts: 'on' })(folder);
    await run('qemu-io', ['-c', 'write 5M 64k', '-c', 'abort', made.path]);
    return made;
  },
  VDI: created('vdi'),
  'VDI, fixed': created('vdi', { static: 'on' }),
  'VDI, end inside a block': created('vdi', {}, 8 * MiB + 512),
  'VMDK monolithicSparse': created('vmdk'),
  'VMDK monolithicSparse, zeroed grains': created('vmdk', { zeroed_grain: 'on' }),
  'VMDK monolithicFlat': created('vmdk', { subformat: 'monolithicFlat' }),
  'VMDK twoGbMaxExtentSparse': created('vmdk', { subformat: 'twoGbMaxExtentSparse' }),
  'VMDK twoGbMaxExtentSparse in two files': created('vmdk', { subformat: 'twoGbMaxExtentSparse' }, 3 * GiB),
  'VMDK twoGbMaxExtentFlat in two files': created('vmdk', { subformat: 'twoGbMaxExtentFlat' }, 3 * GiB),
  'VMDK streamOptimized': converted('vmdk', '-o', 'subformat=streamOptimized'),
  'VMDK delta': async (folder) => {
    const { path } = await created('vmdk')(folder);
    const top = join(folder, 'top.vmdk');
    await qemu.img('create', '-q', '-f', 'vmdk', '-b', path, '-F', 'vmdk', top);
    await qemu.io(top, 'write -P 7 64k 64k');
    return { path: top };
  },
};

const COMMANDS: Readonly<Record<string, readonly (readonly string[])[]>> = {
  info: [[]],
  map: [[], ['--start-offset', '1M', '--max-length', '2M']],
  check: [[]],
  measure: [
    ['-O', 'raw'],
    ['-O', 'qcow2'],
    ['-O', 'qcow2', '-o', 'cluster_size=4k,refcount_bits=1'],
  ],
};

interface Entry {
  readonly [name: string]: Json;
  readonly start: number;
  readonly length: number;
  readonly present: boolean;
}

/** QEMU gives a place to subclusters that hold nothing where their cluster has one: a place of nothing is left out, and what is alike is joined. */
function joinAbsent(entries: readonly Entry[]): Entry[] {
  const joined: Entry[] = [];
  for (const entry of entries) {
    const last = joined.at(-1);
    const { offset: _, ...absent } = entry;
    const own: Entry = entry.present ? entry : (absent as Entry);
    const rest = (each: Entry): string => JSON.stringify({ ...each, start: 0, length: 0 });
    if (last !== undefined && !own.present && rest(last) === rest(own)) {
      joined[joined.length - 1] = { ...last, length: last.length + own.length };
    } else joined.push(own);
  }
  return joined;
}

/** What both print. @returns undefined: it is nothing for qemu-img */
async function both(command: string, args: readonly string[], { path, args: own = [] }: Made) {
  const tail = [...args, ...own, path];
  const theirs = await run('qemu-img', [command, '--output=json', ...tail]);
  const compat = command === 'info' || command === 'map' ? ['--compat', '7.2'] : [];
  const ours = await cli(command, '--output', 'json', ...compat, ...tail);
  assert.equal(ours.status, theirs.status, `${command} ${tail.join(' ')}: ${ours.stderr}${theirs.stderr}`);
  if (theirs.stdout === '') return undefined;
  const parse = (text: string): Json => {
    const value = JSON.parse(text);
    if (command === 'map') return joinAbsent(value);
    delete value.children; // QEMU has listed them since 8.0; info-json.test.ts compares them where it does
    return value;
  };
  return { ours: parse(ours.stdout), theirs: parse(theirs.stdout) };
}

/** Members in which two values differ, by their names from the top: `format-specific.data.extents[].filename`. */
function* differences(
  ours: Json | undefined,
  theirs: Json | undefined,
  at = '',
): Generator<[string, Json | undefined, Json | undefined]> {
  const isObject = (value: unknown): value is { readonly [name: string]: Json } =>
    typeof value === 'object' && value !== null && !Array.isArray(value);
  if (Array.isArray(ours) && Array.isArray(theirs)) {
    if (ours.length !== theirs.length) yield [`${at}.length`, ours.length, theirs.length];
    for (const [i, value] of ours.entries()) if (i < theirs.length) yield* differences(value, theirs[i], `${at}[]`);
  } else if (isObject(ours) && isObject(theirs)) {
    for (const name of new Set([...Object.keys(ours), ...Object.keys(theirs)])) {
      yield* differences(ours[name], theirs[name], at === '' ? name : `${at}.${name}`);
    }
  } else if (ours !== theirs) {
    yield [at, ours, theirs];
  }
}

const used = new Set<Allowed>();

async function compareAll(t: TestContext, name: string, maker: Maker): Promise<void> {
  const folder = await temporaryDirectory(t);
  const made = await maker(folder);
  // What a file takes may change when it is written back: not between the two programs.
  for (const file of await readdir(folder)) await run('sync', [join(folder, file)]);
  const wrong: string[] = [];
  for (const [command, forms] of Object.entries(COMMANDS)) {
    for (const args of forms) {
      const printed = await both(command, args, made);
      if (printed === undefined) continue;
      for (const [member, ours, theirs] of differences(printed.ours, printed.theirs)) {
        const row = ALLOWED.find(
          (each) =>
            each.command === command &&
            each.image.test(name) &&
            each.member.test(member) &&
            each.holds?.(ours, theirs) !== false,
        );
        if (row !== undefined) used.add(row);
        else
          wrong.push(`${command} ${args.join(' ')}: ${member}: ${JSON.stringify(ours)}, not ${JSON.stringify(theirs)}`);
      }
    }
  }
  assert.deepEqual(wrong, []);
}

for (const [name, maker] of Object.entries(MAKERS)) {
  test(`${name}: info, map, check and measure print what qemu-img prints`, { skip }, (t) => compareAll(t, name, maker));
}

test('nothing is allowed to differ that does not', { skip }, () => {
  const unused = ALLOWED.filter((row) => !used.has(row));
  assert.deepEqual(
    unused.map(({ command, member }) => `${command} ${member}`),
    [],
  );
});
