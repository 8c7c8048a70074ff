/** Images of all kinds over the kernel's target, and what qemu-img says of them afterwards. */

import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { copyFile, mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, suite, test } from 'node:test';
import { nbdMap, startQemuNbd } from '../../support/nbd.ts';
import { run, runOk } from '../../support/process.ts';
import { temporaryDirectory } from '../../support/temporary.ts';
import { requiresVm, runVm, type VmResult } from '../../support/vm.ts';

const MiB = 1024 * 1024;
const SIZE = 16 * MiB;
const BLOCK = 512;
/** As in jobs/images.sh. */
const PIECES = [
  [1, 3],
  [127, 2],
  [2048, 129],
  [8191, 2],
  [12000, 700],
] as const;
const ZEROED = [5 * MiB, 128 * 1024] as const;

interface Served {
  readonly handler: string;
  readonly file: string;
  /** Rule in words: what tcmu-runner's handler does to such an image is in docs/lio.md. */
  readonly rule: string;
  /** Makes the file in the folder from the content. */
  make(folder: string, content: string): Promise<unknown>;
}

const img = (folder: string, ...args: string[]): Promise<string> => runOk('qemu-img', args, { cwd: folder });
const io = (folder: string, file: string, ...commands: string[]): Promise<string> =>
  runOk('qemu-io', [...commands.flatMap((command) => ['-c', command]), file], { cwd: folder });

function converted(file: string, rule: string, ...options: string[]): Served {
  return {
    handler: 'qcow2',
    file,
    rule,
    make: (folder, content) =>
      img(
        folder,
        'convert',
        '-f',
        'raw',
        '-O',
        'qcow2',
        ...options.flatMap((option) => (option === '-c' ? [option] : ['-o', option])),
        content,
        file,
      ),
  };
}

const IMAGES: readonly Served[] = [
  converted('v3.qcow2', 'qcow2 version 3'),
  converted('v2.qcow2', 'qcow2 version 2', 'compat=0.10'),
  converted('small.qcow2', 'clusters of 4 KiB', 'cluster_size=4096'),
  converted('large.qcow2', 'clusters of 2 MiB', 'cluster_size=2M'),
  converted('wide.qcow2', 'refcounts of 64 bits', 'refcount_bits=64'),
  converted('lazy.qcow2', 'lazy refcounts', 'lazy_refcounts=on'),
  converted('zlib.qcow2', 'clusters compressed with zlib', '-c'),
  converted('zstd.qcow2', 'clusters compressed with zstd', '-c', 'compression_type=zstd'),
  converted('subclusters.qcow2', 'extended L2 entries', 'extended_l2=on,cluster_size=128k'),
  converted('external.qcow2', 'an external data file', 'data_file=external.data'),
  {
    handler: 'qcow2',
    file: 'overlay.qcow2',
    rule: 'an overlay: a write of part of a cluster keeps what the backing file has around it',
    async make(folder, content) {
      await copyFile(content, join(folder, 'base.raw'));
      await img(folder, 'create', '-q', '-f', 'qcow2', '-b', 'base.raw', '-F', 'raw', 'overlay.qcow2');
    },
  },
  {
    handler: 'qcow2',
    file: 'snapshot.qcow2',
    rule: 'an internal snapshot keeps its content while the disk is written to',
    async make(folder, content) {
      await img(folder, 'convert', '-f', 'raw', '-O', 'qcow2', content, 'snapshot.qcow2');
      await img(folder, 'snapshot', '-c', 'before', 'snapshot.qcow2');
    },
  },
  {
    handler: 'qcow',
    file: 'zeroed.qcow2',
    rule: 'zero clusters that keep their place read as zeros, under the name that tcmu-runner has for the handler',
    async make(folder, content) {
      await img(folder, 'convert', '-f', 'raw', '-O', 'qcow2', content, 'zeroed.qcow2');
      await io(folder, 'zeroed.qcow2', 'write -z 1M 1M', 'write -z 6000k 200k');
    },
  },
  {
    handler: 'qcow2',
    file: 'bitmap.qcow2',
    rule: 'a dirty bitmap has every place that was written to, and is as valid as before',
    async make(folder, content) {
      await img(folder, 'convert', '-f', 'raw', '-O', 'qcow2', content, 'bitmap.qcow2');
      await img(folder, 'bitmap', '--add', '--enable', '-g', '64k', 'bitmap.qcow2', 'changes');
    },
  },
  {
    handler: 'vmdk',
    file: 'sparse.vmdk',
    rule: 'a sparse VMDK',
    make: (folder, content) => img(folder, 'convert', '-f', 'raw', '-O', 'vmdk', content, 'sparse.vmdk'),
  },
  {
    handler: 'vdi',
    file: 'dynamic.vdi',
    rule: 'a dynamic VDI',
    make: (folder, content) => img(folder, 'convert', '-f', 'raw', '-O', 'vdi', content, 'dynamic.vdi'),
  },
  {
    handler: 'raw',
    file: 'plain.raw',
    rule: 'a raw file',
    make: (folder, content) => copyFile(content, join(folder, 'plain.raw')),
  },
];

suite('images over the kernel’s target', { skip: requiresVm() }, () => {
  let result: VmResult;
  let work: string;
  let pattern: Buffer;
  const cleanups: (() => unknown)[] = [];
  const t = { after: (cleanup: () => unknown) => cleanups.push(cleanup) } as never;

  before(async () => {
    work = await temporaryDirectory(t);
    const seed = join(work, 'seed');
    const images = join(seed, 'images');
    await mkdir(images, { recursive: true });
    const content = join(work, 'content.raw');
    pattern = patternOf(0x55aa);
    await writeFile(content, contentOf());
    await writeFile(join(seed, 'pattern'), pattern);
    for (const image of IMAGES) await image.make(images, content);
    await img(images, 'create', '-q', '-f', 'qcow2', 'other.qcow2', '8M');
    await img(images, 'create', '-q', '-f', 'qcow2', 'locked.qcow2', '8M');
    await img(images, 'convert', '-f', 'raw', '-O', 'qcow2', content, 'both.qcow2');
    await img(images, 'snapshot', '-c', 'before', 'both.qcow2');
    await img(images, 'create', '-q', '-f', 'qcow', 'version1.qcow', '16M');
    await writeFile(join(seed, 'list'), IMAGES.map(({ handler, file }) => `${handler} ${file} ${SIZE}\n`).join(''));
    // A missing file, another format, a wrong size, a handler that nobody has, a path that LIO cuts off.
    const refused = [
      'qcow2 missing.qcow2 1048576',
      `vdi v3.qcow2 ${SIZE}`,
      `qcow2 other.qcow2 ${SIZE}`,
      `qcow version1.qcow ${SIZE}`,
      `glfs v3.qcow2 ${SIZE}`,
    ];
    await writeFile(join(seed, 'refused'), refused.map((line) => `${line}\n`).join(''));
    result = await runVm(t, 'images', { seed, seconds: 480, cpus: 1 });
  });

  after(async () => {
    for (const cleanup of cleanups) await cleanup();
  });

  for (const { file, rule } of IMAGES) {
    test(`${file}: ${rule}`, async (t) => {
      const images = join(result.out, 'images');
      const base = file === 'zeroed.qcow2' ? zeroedContent() : contentOf();
      assert.equal((await readFile(join(result.out, `${file}.before`), 'utf8')).trim(), md5(base), 'content before');
      const after = Buffer.from(base);
      for (const [start, length] of PIECES) pattern.copy(after, start * BLOCK, start * BLOCK, (start + length) * BLOCK);
      after.fill(0, ZEROED[0], ZEROED[0] + ZEROED[1]);
      assert.equal((await readFile(join(result.out, `${file}.after`), 'utf8')).trim(), md5(after), 'content after');
      // And as QEMU sees it.
      const expected = join(work, 'expected.raw');
      await writeFile(expected, after);
      const format = file.endsWith('.raw') ? 'raw' : (file.split('.')[1] as string);
      await img(images, 'compare', '-f', 'raw', '-F', format, expected, file);
      if (format === 'qcow2' || format === 'vdi') {
        const { status, stdout, stderr } = await run('qemu-img', ['check', file], { cwd: images });
        assert.equal(status, 0, `${stdout}${stderr}`);
      }
      if (file === 'snapshot.qcow2') {
        await img(images, 'convert', '-l', 'before', '-O', 'raw', file, join(work, 'snapshot.raw'));
        assert.equal(md5(await readFile(join(work, 'snapshot.raw'))), md5(contentOf()), 'the snapshot');
      }
      if (file === 'bitmap.qcow2') {
        const server = await startQemuNbd(t, join(images, file), 'qcow2', '-r', '-B', 'changes');
        const map = await nbdMap(server.url, 'qemu:dirty-bitmap:changes');
        const dirty = map.flatMap((entry) => (entry.type === 0 ? [] : [`${entry.offset}+${entry.length}`]));
        assert.deepEqual(dirty, dirtyPlaces());
      }
      if (file === 'overlay.qcow2') {
        assert.equal(md5(await readFile(join(images, 'base.raw'))), md5(contentOf()), 'the backing file');
      }
    });
  }

  test('a backstore whose image cannot be served is refused when it is made', () => {
    for (const file of ['missing.qcow2', 'v3.qcow2', 'other.qcow2', 'version1.qcow']) {
      assert.match(result.console, new RegExp(`refused: ${file.replace('.', '\\.')} `));
    }
  });
});

/** Granules of 64 KiB that PIECES and ZEROED touch, joined: `OFFSET+LENGTH`. */
function dirtyPlaces(): string[] {
  const granule = 64 * 1024;
  const touched = new Set<number>();
  const touch = (from: number, to: number): void => {
    for (let at = Math.floor(from / granule); at * granule < to; at++) touched.add(at);
  };
  for (const [start, length] of PIECES) touch(start * BLOCK, (start + length) * BLOCK);
  touch(ZEROED[0], ZEROED[0] + ZEROED[1]);
  const runs: { from: number; to: number }[] = [];
  for (const at of [...touched].sort((a, b) => a - b)) {
    const last = runs.at(-1);
    if (last?.to === at) last.to++;
    else runs.push({ from: at, to: at + 1 });
  }
  return runs.map(({ from, to }) => `${from * granule}+${(to - from) * granule}`);
}

/** Every block differs; some of it is zeros. */
function contentOf(): Buffer {
  const content = patternOf(0x1234);
  content.fill(0, 3 * MiB, 5 * MiB - 4096);
  content.fill(0, 14 * MiB);
  return content;
}

function zeroedContent(): Buffer {
  const content = contentOf();
  content.fill(0, MiB, 2 * MiB);
  content.fill(0, 6000 * 1024, 6200 * 1024);
  return content;
}

function patternOf(seed: number): Buffer {
  const bytes = Buffer.alloc(SIZE);
  for (let block = 0; block < SIZE / BLOCK; block++) {
    bytes.fill(`${seed.toString(16)}:${block};`, block * BLOCK, (block + 1) * BLOCK);
  }
  return bytes;
}

function md5(bytes: Uint8Array): string {
  return createHash('md5').update(bytes).digest('hex');
}
