/** Encrypted images, as QEMU's programs and we make them. */

import assert from 'node:assert/strict';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { ImageHost } from '../../formats/open.ts';
import { cli } from './cli.ts';
import { run } from './process.ts';
import { type Cleanup, temporaryDirectory } from './temporary.ts';

export const SECRET = 'correct horse';

/** A directory with a passphrase in it, and a place for an image. */
export interface Scene {
  readonly directory: string;
  /** File that holds SECRET. */
  readonly secret: string;
  readonly path: string;
  /** Knows the passphrase. */
  readonly host: ImageHost;
}

export async function scene(t: Cleanup): Promise<Scene> {
  const directory = await temporaryDirectory(t);
  const secret = join(directory, 'secret');
  await writeFile(secret, SECRET);
  const host = new ImageHost({ secrets: async () => [Buffer.from(SECRET)] });
  return { directory, secret, path: join(directory, 'disk.qcow2'), host };
}

export async function createByUs(at: Scene, options: string, size: number): Promise<void> {
  const args = ['-q', '-f', 'qcow2', '--secret-file', at.secret, '-o', options, at.path, String(size)];
  const made = await cli('create', ...args);
  assert.equal(made.status, 0, made.stderr);
}

/** How QEMU's programs are told of an encrypted image. */
export function imageOptions(path: string, format = 'luks'): string {
  return `driver=qcow2,file.filename=${path},encrypt.format=${format},encrypt.key-secret=s`;
}

export function secretObject(secret: string, id = 's'): string[] {
  return ['--object', `secret,id=${id},file=${secret}`];
}

export async function createByQemu(to: Scene, options: string, size: number): Promise<void> {
  await patiently('create', '-q', ...secretObject(to.secret), '-f', 'qcow2', '-o', options, to.path, String(size));
}

/** qemu-img measures how fast the machine is where it makes keys, and on a busy one gives up at times. */
export async function patiently(...args: string[]): Promise<string> {
  for (let tries = 0; ; tries++) {
    const result = await run('qemu-img', args);
    if (result.status === 0) return result.stdout;
    if (tries === 20 || !result.stderr.includes('accurate CPU usage')) throw new Error(result.stderr);
  }
}

export async function qemuIoEncrypted(at: Scene, format: string, ...commands: string[]): Promise<void> {
  const args = [...secretObject(at.secret), '--image-opts', imageOptions(at.path, format)];
  const result = await run('qemu-io', [...args, ...commands.flatMap((command) => ['-c', command])]);
  const text = result.stdout + result.stderr;
  assert.ok(result.status === 0 && !/failed|verification|error/i.test(text), `${commands.join('; ')}: ${text}`);
}
