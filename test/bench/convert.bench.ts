/**
 * The image commands beside qemu-img (and nbdcopy), as programs with all their start-up, in alternating rounds on one machine. The disk is an
 * ext4 half full of real files, in the page cache; targets are new files. Ratios are medians of the rounds' ratios, peaks the largest.
 */

import { rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { MiB } from '../../formats/core/units.ts';
import { type Bench, bench } from '../support/bench.ts';
import { BENCH_FOLDER, halfFullDisk, keptImage } from '../support/bench-disk.ts';
import { lunetteArgs } from '../support/built.ts';
import { mountMade } from '../support/mounts.ts';
import { startNbdkit } from '../support/nbd.ts';
import { runOk } from '../support/process.ts';
import { requires } from '../support/requires.ts';
import { temporaryDirectory } from '../support/temporary.ts';
import { type CommandLine, pairs, requiresTime, timed } from '../support/timed.ts';

/** The bound for any conversion. */
const MOST_MEMORY = 300e6;

interface Place {
  /** Gives a source: the disk in this form. */
  source(form: Form): Promise<string>;
  /** The name that each run writes to; it is not there when a run begins. */
  readonly target: string;
}

interface Case {
  readonly name: string;
  /** Bytes of the disk at full size: smaller where the other program takes half a minute for each GiB. */
  readonly size: number;
  readonly ours: (place: Place) => Promise<CommandLine>;
  readonly theirs: (place: Place) => Promise<CommandLine>;
  /** Most of the other's wall time. */
  readonly aim: number;
  /** Most of the other's size of the target, where that is compared. */
  readonly sizeAim?: number;
  /** The target is there when a run begins. */
  readonly replaces?: boolean;
}

const FORMS = {
  raw: [],
  qcow2: ['-O', 'qcow2'],
  vmdk: ['-O', 'vmdk'],
  vdi: ['-O', 'vdi'],
  zlib: ['-O', 'qcow2', '-c'],
  zstd: ['-O', 'qcow2', '-c', '-o', 'compression_type=zstd'],
} as const;
type Form = keyof typeof FORMS;

const LARGE = 2048 * MiB;
const SMALL = 384 * MiB;

function conversion(
  name: string,
  from: Form,
  to: CommandLine,
  aim: number,
  options: Partial<Pick<Case, 'size' | 'sizeAim' | 'replaces'>> & { sync?: boolean } = {},
): Case {
  const { sync = false, size = LARGE, ...rest } = options;
  return {
    name,
    size,
    aim,
    ...rest,
    ours: async ({ source, target }) =>
      lunette('convert', '--sync', sync ? 'on' : 'off', ...to, await source(from), target),
    theirs: async ({ source, target }) => {
      const format = from === 'zlib' || from === 'zstd' ? 'qcow2' : from;
      const cache = sync ? ['-t', 'writeback'] : [];
      return ['qemu-img', 'convert', '-f', format, ...cache, ...to, await source(from), target];
    },
  };
}

const STREAM = ['-O', 'vmdk', '-o', 'subformat=streamOptimized'];

const CASES: readonly Case[] = [
  conversion('qcow2-to-raw', 'qcow2', ['-O', 'raw'], 1),
  conversion('raw-to-qcow2', 'raw', ['-O', 'qcow2'], 1),
  conversion('qcow2-to-raw-over-existing', 'qcow2', ['-O', 'raw'], 1, { replaces: true }),
  conversion('raw-to-qcow2-over-existing', 'raw', ['-O', 'qcow2'], 1, { replaces: true }),
  conversion('qcow2-to-raw-durable', 'qcow2', ['-O', 'raw'], 1, { sync: true }),
  conversion('raw-to-qcow2-durable', 'raw', ['-O', 'qcow2'], 1, { sync: true }),
  conversion('vmdk-to-raw', 'vmdk', ['-O', 'raw'], 1),
  conversion('vdi-to-raw', 'vdi', ['-O', 'raw'], 1),
  conversion('raw-to-stream-optimized', 'raw', STREAM, 0.6, { size: SMALL }),
  conversion('raw-to-qcow2-zlib', 'raw', FORMS.zlib, 0.55, { size: SMALL, sizeAim: 1.03 }),
  conversion('raw-to-qcow2-zstd', 'raw', FORMS.zstd, 0.6, { sizeAim: 1.03 }),
  conversion('zlib-to-raw', 'zlib', ['-O', 'raw'], 0.5),
  conversion('zstd-to-raw', 'zstd', ['-O', 'raw'], 0.5),
  {
    name: 'compare',
    size: LARGE,
    aim: 0.7,
    ours: async ({ source }) => lunette('compare', await source('raw'), await source('qcow2')),
    theirs: async ({ source }) => [
      'qemu-img',
      'compare',
      '-f',
      'raw',
      '-F',
      'qcow2',
      await source('raw'),
      await source('qcow2'),
    ],
  },
  {
    name: 'checksum',
    size: LARGE,
    aim: 0.6,
    ours: async ({ source }) => lunette('checksum', await source('qcow2')),
    theirs: async ({ source, target }) => [
      'sh',
      '-c',
      `qemu-img convert -O raw ${await source('qcow2')} ${target} && sha256sum ${target}`,
    ],
  },
];

/** The command as it is installed. */
function lunette(...args: string[]): CommandLine {
  return [process.execPath, ...lunetteArgs(...args)];
}

async function place(b: Bench, full: number, targets?: string): Promise<Place & { readonly notes: string }> {
  const notes = await temporaryDirectory(b);
  // Small ones are quickly made; the large ones stay for the next run.
  const folder = b.smoke ? notes : BENCH_FOLDER;
  const size = b.pick(8 * MiB, full);
  const source = async (form: Form): Promise<string> => {
    const raw = await halfFullDisk(folder, size);
    if (form === 'raw') return raw;
    const path = await keptImage(folder, `half-full-${size}.${form}`, (to) =>
      runOk('qemu-img', ['convert', '-f', 'raw', ...FORMS[form], raw, to], { timeoutMs: 600_000 }).then(
        () => undefined,
      ),
    );
    return path;
  };
  return { source, target: join(targets ?? notes, 'target'), notes };
}

const COLUMNS = ['', 'lunette', 'other', 'wall ratio', 'aim', 'CPU', 'CPU other', 'CPU ratio', 'peak', 'aim'];

async function measure(b: Bench, one: Case, targets?: string): Promise<void> {
  const where = await place(b, one.size, targets);
  const { target, notes } = where;
  const [ours, theirs] = [await one.ours(where), await one.theirs(where)];
  const before = async (): Promise<void> => {
    if (one.replaces !== true) await rm(target, { force: true });
  };
  // What the targets' sizes are, and warm files.
  const sizes: number[] = [];
  for (const command of b.smoke && one.sizeAim === undefined ? [] : [theirs, ours]) {
    await before();
    await timed(command, notes);
    if (one.sizeAim !== undefined) sizes.push((await stat(target)).size);
  }
  const result = await pairs(ours, theirs, { rounds: b.pick(1, 5), notes, before });
  await rm(target, { force: true });
  const ms = (value: number): string => `${value.toFixed(0)} ms`;
  b.table(`${b.pick(8 * MiB, one.size) / MiB} MiB, half full`, COLUMNS, [
    [
      one.name,
      ms(result.ours.wallMs),
      ms(result.theirs.wallMs),
      result.wallRatio.toFixed(2),
      `≤ ${one.aim}`,
      ms(result.ours.cpuMs),
      ms(result.theirs.cpuMs),
      result.cpuRatio.toFixed(2),
      `${(result.ours.peakBytes / 1e6).toFixed(0)} MB`,
      `≤ ${MOST_MEMORY / 1e6} MB`,
    ],
  ]);
  const [others = 0, own = 0] = sizes;
  if (one.sizeAim !== undefined)
    b.print(`  target: ${(own / others).toFixed(3)} of the other's size, aim ≤ ${one.sizeAim}`);
}

const skip = () => requires.qemuImg() || requires.e2fsprogs() || requires.linux() || requiresTime();

for (const one of CASES) bench(`convert/${one.name}`, (b) => measure(b, one), skip);

bench(
  'convert/reflink',
  async (b) => {
    const folder = await mountMade(b, 'mkfs.xfs', b.pick(400, 4096) * MiB);
    if (folder === undefined) return b.print('  not run: no XFS can be mounted here');
    const { source } = await place(b, LARGE);
    const disk = join(folder, 'source.raw');
    await runOk('cp', ['--sparse=always', await source('raw'), disk]);
    await runOk('sync', ['-f', folder]);
    await measure(
      b,
      { ...conversion('raw-to-qcow2-reflink', 'raw', ['-O', 'qcow2'], 0.3), ...inPlaceOf(disk) },
      folder,
    );
  },
  () => skip() || requires.root(),
);

/** Both programs on a source that lies beside the target. */
function inPlaceOf(disk: string): Pick<Case, 'ours' | 'theirs'> {
  return {
    ours: async ({ target }) => lunette('convert', '--sync', 'off', '-O', 'qcow2', disk, target),
    theirs: async ({ target }) => ['qemu-img', 'convert', '-f', 'raw', '-O', 'qcow2', disk, target],
  };
}

bench(
  'convert/from-nbd',
  async (b) => {
    const { source } = await place(b, LARGE);
    const { url } = await startNbdkit(b, 'file', await source('raw'));
    // 1 / 0.9 of its time is 0.9 of its speed.
    await measure(b, {
      name: 'nbd-to-raw beside nbdcopy',
      size: LARGE,
      aim: 1.11,
      ours: async ({ target }) => lunette('convert', '--sync', 'off', '-O', 'raw', url, target),
      theirs: async ({ target }) => ['nbdcopy', url, target],
    });
  },
  () => skip() || requires.nbdkit() || requires.nbdinfo(),
);

bench(
  'convert/start-up',
  async (b) => {
    const { source, notes } = await place(b, SMALL);
    const image = await source('qcow2');
    const rows: string[][] = [];
    for (const [name, command] of [
      ['info', lunette('info', image)],
      ['--version', lunette('--version')],
    ] as const) {
      const before = async (): Promise<void> => undefined;
      const result = await pairs(command, [process.execPath, '-e', '0'], { rounds: b.pick(1, 25), notes, before });
      rows.push([
        name,
        `${result.ours.wallMs.toFixed(1)} ms`,
        `${result.theirs.wallMs.toFixed(1)} ms`,
        result.wallRatio.toFixed(2),
        name === 'info' ? '≤ 2.5' : '',
        `${result.ours.cpuMs.toFixed(0)} ms`,
        `${result.theirs.cpuMs.toFixed(0)} ms`,
      ]);
    }
    b.table('beside node -e 0', ['', 'lunette', 'node', 'wall ratio', 'aim', 'CPU', 'CPU node'], rows);
  },
  skip,
);
