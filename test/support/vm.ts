/** Jobs on a Linux kernel with LIO and TCMU in a VM under software emulation: see scripts/vm. */

import assert from 'node:assert/strict';
import { mkdir, mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { basename, extname, join } from 'node:path';
import { ensureBuilt } from './built.ts';
import { PROJECT_ROOT, run, runOk } from './process.ts';
import { requirePrograms, type Skip } from './requires.ts';
import { type Cleanup, temporaryDirectory } from './temporary.ts';

const PROGRAMS = [
  'qemu-system-x86_64',
  'busybox',
  'cpio',
  'depmod',
  'dbus-daemon',
  'targetcli',
  'iscsiadm',
  'sg_raw',
  'fio',
  'mke2fs',
  'qemu-img',
];

/** What the VM needs. */
export function requiresVm(): Skip {
  if (process.platform !== 'linux' || process.arch !== 'x64') return 'the VM is for Linux on x86-64';
  return requirePrograms(PROGRAMS, 'packages for the VM');
}

export interface VmResult {
  /** What the job left in /out. */
  readonly out: string;
  /** All that the guest printed. */
  readonly console: string;
}

export interface VmOptions {
  /** Directory that fills the guest's disk at /mnt. */
  readonly seed?: string;
  /** The guest is a machine with systemd, which runs the job as a service. */
  readonly systemd?: boolean;
  /** Processors, 2 unless told. With one a job that does one thing after the other is far quicker. */
  readonly cpus?: 1 | 2;
  /** The VM is ended after so long. */
  readonly seconds: number;
}

/** What a guest's disk is filled with. */
export interface VmSeed {
  readonly seed: string;
  /** /mnt/images */
  readonly images: string;
}

/** A folder for `VmOptions.seed` with new images in it: their sizes by name, whose ending is the format. */
export async function seedWith(t: Cleanup, sizes: Readonly<Record<string, string>> = {}): Promise<VmSeed> {
  const seed = await temporaryDirectory(t);
  const images = join(seed, 'images');
  await mkdir(images);
  for (const [name, size] of Object.entries(sizes)) {
    await runOk('qemu-img', ['create', '-q', '-f', extname(name).slice(1), name, size], { cwd: images });
  }
  return { seed, images };
}

/** Runs test/e2e/vm/jobs/NAME.sh: see runVmJob(). */
export function runVm(t: Cleanup, name: string, options: VmOptions): Promise<VmResult> {
  return runVmJob(t, join(PROJECT_ROOT, `test/e2e/vm/jobs/${name}.sh`), options);
}

/**
 * Runs a shell script as root in the VM, with this checkout as it is, compiled.
 *
 * @throws with the guest's output unless the job ends with status 0
 */
export async function runVmJob(t: Cleanup, job: string, options: VmOptions): Promise<VmResult> {
  ensureBuilt();
  const out = await mkdtemp(join(tmpdir(), 'lunette-vm-'));
  t.after(() => rm(out, { recursive: true, force: true }));
  const env: NodeJS.ProcessEnv = { ...process.env };
  if (options.seed !== undefined) env.SEED = options.seed;
  if (options.systemd === true) env.BOOT = 'systemd';
  if (options.cpus !== undefined) env.CPUS = String(options.cpus);
  const args = [job, out, String(options.seconds)];
  const { status, stdout, stderr } = await run(join(PROJECT_ROOT, 'scripts/vm/run'), args, {
    env,
    timeoutMs: (options.seconds + 300) * 1000,
  });
  const log = await readFile(join(out, 'daemon.log'), 'utf8').catch(() => '');
  assert.equal(
    status,
    0,
    `the job ${basename(job)} ended with ${status}\n${tail(stdout)}${tail(stderr)}daemon:\n${tail(log)}`,
  );
  return { out, console: stdout };
}

function tail(text: string): string {
  return `${text.split('\n').slice(-80).join('\n')}\n`;
}
