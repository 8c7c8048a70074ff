import { rmSync } from 'node:fs';
import { mkdtemp, readdir, rm, stat } from 'node:fs/promises';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

const PREFIX = 'lunette-qemu-';
/** A unix socket's path has 107 bytes on Linux, 103 elsewhere. */
const MAX_SOCKET_PATH = 103;
const SOCKET = 'nbd';

/** Directories of this process that are still there: they go with it, also when nobody has closed what they are for. */
const own = new Set<string>();

/** Makes a directory that only this user can enter, for one socket. @returns the socket's path; nothing is there yet */
export async function makeSocketDirectory(): Promise<string> {
  const parent = [process.env.XDG_RUNTIME_DIR, tmpdir(), '/tmp'].find(
    (each) => each !== undefined && each !== '' && Buffer.byteLength(each) + 40 <= MAX_SOCKET_PATH,
  ) as string;
  const made = await mkdtemp(join(parent, `${PREFIX}${process.pid}-`)).catch(() =>
    mkdtemp(join(tmpdir(), `${PREFIX}${process.pid}-`)),
  );
  if (own.size === 0) process.on('exit', removeOwn);
  own.add(made);
  return join(made, SOCKET);
}

/** Removes a socket's directory with all in it. */
export async function removeSocketDirectory(socket: string): Promise<void> {
  const directory = join(socket, '..');
  own.delete(directory);
  if (own.size === 0) process.off('exit', removeOwn);
  await rm(directory, { recursive: true, force: true });
}

function removeOwn(): void {
  for (const directory of own) rmSync(directory, { recursive: true, force: true });
}

/** Removes directories that processes of ours left behind that were killed. */
export async function sweepSocketDirectories(): Promise<void> {
  const parents = new Set([process.env.XDG_RUNTIME_DIR, tmpdir()]);
  for (const parent of parents) {
    if (parent === undefined || parent === '') continue;
    const names = await readdir(parent).catch((): string[] => []);
    for (const name of names) {
      const pid = Number(/^lunette-qemu-(\d+)-\w{6}$/.exec(name)?.[1]);
      if (!(pid > 0) || isAlive(pid)) continue;
      const directory = join(parent, name);
      const owner = await stat(directory).catch(() => undefined);
      if (owner === undefined || owner.uid !== process.getuid?.()) continue;
      // The process may be one of another container that shares the directory.
      if (!(await answers(join(directory, SOCKET)))) await rm(directory, { recursive: true, force: true });
    }
  }
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM';
  }
}

/** Whether somebody listens on a socket. */
export function answers(socket: string): Promise<boolean> {
  return new Promise((resolve) => {
    const probe = connect(socket);
    probe.once('connect', () => {
      probe.destroy();
      resolve(true);
    });
    probe.once('error', () => resolve(false));
  });
}
