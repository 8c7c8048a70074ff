import { execFile } from 'node:child_process';
import { NativeError } from '../../formats/core/errors.ts';

/** qemu-nbd as it was found. */
export interface QemuNbd {
  /** What is run: a name on PATH, or a path. */
  readonly program: string;
  /** As it prints it: `7.2.22`. */
  readonly version: string;
  /** The whole first line, with the distribution's own number. */
  readonly banner: string;
  /** What stands before the program so that it ends with us; undefined: a shell watches us instead. */
  readonly tether: readonly string[] | undefined;
  /** util-linux' flock is there: it can hold a lock for as long as the program runs. */
  readonly flock: boolean;
}

/** The oldest that has all that we ask for: JSON names, secrets, image locks, several clients. */
const OLDEST = 4;
/** util-linux: runs a program that gets a signal when its parent is gone, however that went. */
const TETHER = ['setpriv', '--pdeathsig', 'TERM'] as const;
const PROBE_TIMEOUT_MS = 10_000;

const found = new Map<string, Promise<QemuNbd>>();

/** The program that is meant: LUNETTE_QEMU_NBD, or qemu-nbd on PATH. */
export function configuredProgram(env: Readonly<Record<string, string | undefined>> = process.env): string {
  const configured = env.LUNETTE_QEMU_NBD;
  return configured === undefined || configured === '' ? 'qemu-nbd' : configured;
}

/**
 * Finds qemu-nbd and asks for its version, once per program.
 *
 * @throws {NativeError} UNAVAILABLE naming the package when it is not there, is too old or does not run
 */
export function findQemuNbd(program: string = configuredProgram()): Promise<QemuNbd> {
  let finding = found.get(program);
  if (finding === undefined) {
    finding = probe(program);
    found.set(program, finding);
    // It may be installed later.
    finding.catch(() => found.delete(program));
  }
  return finding;
}

async function probe(program: string): Promise<QemuNbd> {
  const tethered = await output([...TETHER, program, '-V']).catch(() => undefined);
  const banner = firstLine(
    tethered ?? (await output([program, '-V']).catch((error: unknown) => unavailable(program, error))),
  );
  const version = /\b(\d+)\.(\d+)[.\d]*/.exec(banner);
  if (version === null || !/qemu-nbd/i.test(banner)) return unavailable(program, new Error(`it says ${banner}`));
  if (Number(version[1]) < OLDEST) {
    throw new NativeError('UNAVAILABLE', `${program} is of version ${version[0]}, ${OLDEST}.0 or later is needed`);
  }
  const tether = tethered === undefined ? undefined : TETHER;
  const flock = tether !== undefined && (await output(['flock', '--version']).catch(() => '')).includes('util-linux');
  return { program, version: version[0], banner, tether, flock };
}

function unavailable(program: string, cause: unknown): never {
  const absent = (cause as { code?: unknown }).code === 'ENOENT';
  const why = absent ? `${program} is not there` : `${program} does not run: ${(cause as Error).message}`;
  throw new NativeError('UNAVAILABLE', `the bridge to QEMU's formats needs qemu-nbd: ${why}`, {
    help: 'apt install qemu-utils (Fedora: dnf install qemu-img), or set LUNETTE_QEMU_NBD to its path.',
    cause,
  });
}

/**
 * Names of the format and protocol drivers that QEMU was built with, as the qemu-img beside qemu-nbd lists them; undefined when there is none.
 */
export async function listDrivers({ program }: QemuNbd): Promise<ReadonlySet<string> | undefined> {
  const text = await output([program.replace(/qemu-nbd(?=[^/]*$)/, 'qemu-img'), '--help']).catch(() => undefined);
  const list = /^Supported formats: (.*)$/m.exec(text ?? '')?.[1];
  return list === undefined ? undefined : new Set(list.trim().split(/\s+/));
}

function firstLine(text: string): string {
  return text.split('\n')[0] as string;
}

function output([program = '', ...args]: readonly string[]): Promise<string> {
  return new Promise((resolve, reject) => {
    execFile(program, args, { timeout: PROBE_TIMEOUT_MS, env: { ...process.env, LC_ALL: 'C' } }, (error, stdout) => {
      if (error === null) resolve(stdout);
      else reject(error);
    });
  });
}
